"""When a job runs: at fixed intervals, by a cron line, or never."""

from __future__ import annotations

from dataclasses import dataclass

from eventstore.errors import InputError
from eventstore.model.policy import parse_duration_us

__all__ = ["Schedule", "parse_schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either `every_us`, or a `cron` line of five fields in UTC; both None: never."""

    every_us: int | None = None
    cron: str | None = None

    @property
    def never(self) -> bool:
        return self.every_us is None and self.cron is None


def parse_schedule(text: str) -> Schedule:
    """Read `every 15m`, a cron line such as `30 3 * * *`, or `never`.

    Raises:
        InputError: neither. (Whether the fields of a cron line make sense is for the scheduler to say.)
    """
    words = text.split()
    if words == ["never"]:
        return Schedule()
    if len(words) == 2 and words[0] == "every":
        every_us = parse_duration_us(words[1])
        if every_us <= 0:
            raise InputError("a job cannot run every 0s", hint="write never to switch it off")
        return Schedule(every_us=every_us)
    if len(words) == 5:
        return Schedule(cron=" ".join(words))
    raise InputError(
        f"{text!r} is not a schedule", hint="write it like every 15m, 30 3 * * * (UTC), or never"
    )
