"""A tenant's policy: how its log is cut into windows, and how long a window stays hot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eventstore.clock import US_PER_S
from eventstore.errors import InputError
from eventstore.model.window import WindowUnit

__all__ = ["DEFAULT_POLICY", "Policy", "format_duration", "parse_duration_us"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_DURATION = re.compile(r"(\d+)([smhdwy])")


@dataclass(frozen=True, slots=True)
class Policy:
    """`unit` aligns the windows; a window may leave the hot tier `hot_for_us` after its end."""

    unit: WindowUnit
    hot_for_us: int


DEFAULT_POLICY = Policy(WindowUnit.MONTH, 90 * 86400 * US_PER_S)


def parse_duration_us(text: str) -> int:
    """Read `90d`, `12h`, `2w`, `1y` (365 days) or sums like `1d12h`; microseconds.

    Raises:
        InputError: not a duration.
    """
    total_s, at = 0, 0
    for match in _DURATION.finditer(text):
        if match.start() != at:
            break
        total_s += int(match[1]) * _UNITS_S[match[2]]
        at = match.end()
    if not text or at != len(text):
        raise InputError(f"{text!r} is not a duration", hint="write it like 90d, 12h or 1d12h")
    if total_s > 1000 * _UNITS_S["y"]:
        raise InputError(f"{text!r} is longer than a thousand years", hint="1000y is the most")
    return total_s * US_PER_S


def format_duration(us: int) -> str:
    """The shortest exact form that `parse_duration_us` reads back; fractions of a second as decimals."""
    if us % US_PER_S:
        return f"{us / US_PER_S:.6f}s"
    rest_s, parts = us // US_PER_S, []
    for unit in ("d", "h", "m", "s"):
        count, rest_s = divmod(rest_s, _UNITS_S[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
