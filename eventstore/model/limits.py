"""How much one caller may ask of the store: a value for each limit, or the deployment's default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from eventstore.errors import InputError

__all__ = ["ARCHIVE_BYTES_PER_DAY_MAX", "FEEDS_MAX", "REQUESTS_PER_S_MAX", "Limits"]

# Far more than a process can do: a limit that high is none.
REQUESTS_PER_S_MAX = 1_000_000
FEEDS_MAX = 100_000
ARCHIVE_BYTES_PER_DAY_MAX = 2**62
_MOST = {
    "requests_per_s": REQUESTS_PER_S_MAX,
    "body_bytes_max": 2**30,
    "feeds_max": FEEDS_MAX,
    "archive_bytes_per_day": ARCHIVE_BYTES_PER_DAY_MAX,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's own limits. None: the deployment's default (`EVENTSTORE_LIMIT_*`).

    `feeds_max` counts feeds at the same time. A day is one of UTC.
    """

    requests_per_s: int | None = None
    body_bytes_max: int | None = None
    feeds_max: int | None = None
    archive_bytes_per_day: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that a limit cannot have."""
        for name, most in _MOST.items():
            value: object = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise InputError(f"{name}: {value!r} is no whole number from 1 to {most}")

    def over(self, defaults: Limits) -> Limits:
        """These limits, with the defaults where they say nothing."""
        return Limits(
            **{f.name: _first(getattr(self, f.name), getattr(defaults, f.name)) for f in fields(self)}
        )

    @staticmethod
    def of_json(document: Mapping[str, object]) -> Limits:
        """Limits as a key stores them: an object that names those which differ from the defaults.

        Raises:
            InputError: a name or a value that no limit has.
        """
        unknown = sorted(document.keys() - _MOST.keys())
        if unknown:
            raise InputError(f"there is no limit {unknown[0]!r}", hint=f"known are: {', '.join(_MOST)}")
        return Limits(**document)  # type: ignore[arg-type]  # __post_init__ looks at the values

    def as_json(self) -> dict[str, int]:
        """The opposite of `of_json`."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def _first(own: int | None, default: int | None) -> int | None:
    return default if own is None else own
