"""Time as a dependency, so that tests can move it.

Times inside the store are integers: microseconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from eventstore.errors import InputError

__all__ = [
    "US_PER_S",
    "Clock",
    "FixedClock",
    "SystemClock",
    "clamp_us",
    "from_us",
    "parse_time_us",
    "to_iso",
    "to_us",
]

US_PER_S = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The years 1 to 9999, which every part of the store can hold and show.
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999


class Clock(Protocol):
    """Tells the time in microseconds since 1970, UTC."""

    def now_us(self) -> int: ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


class FixedClock:
    """A clock that stands still until it is moved (simulated times and tests)."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def move_to(self, now_us: int) -> None:
        self._now_us = now_us


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly (no floating point)."""
    if moment.tzinfo is None:
        raise InputError(f"{moment} has no time zone", hint="write it with Z or an offset such as +02:00")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """The aware UTC datetime of a count of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=us)


def clamp_us(us: int) -> int:
    """The nearest time that the store can hold: computed bounds (an id's time less a lead) may lie beyond."""
    return min(max(us, _FIRST_US), _LAST_US)


def to_iso(us: int) -> str:
    """RFC 3339 in UTC with microseconds, as every face of the store prints times."""
    return from_us(us).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time_us(text: str) -> int:
    """Read an RFC 3339 / ISO 8601 time, or a bare date as midnight UTC.

    Raises:
        InputError: not a time, no time zone given, or (in UTC) outside the years 1 to 9999.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"{text!r} is not a time", hint="write it like 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None and len(text.strip()) == 10:
        moment = moment.replace(tzinfo=UTC)
    us = to_us(moment)
    if not _FIRST_US <= us <= _LAST_US:
        raise InputError(
            f"{text!r} is outside the years 1 to 9999 in UTC", hint="write an earlier or later one"
        )
    return us
