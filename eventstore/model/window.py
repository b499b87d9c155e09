"""Windows: half-open spans [from, to) of recorded time in UTC, aligned to the hour, day, week or month."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from eventstore.clock import from_us, to_iso, to_us

__all__ = ["Window", "WindowRecord", "WindowState", "WindowUnit"]


class WindowUnit(StrEnum):
    """What windows are aligned to. A week begins on Monday (ISO 8601)."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class WindowState(StrEnum):
    """open → sealed → archived → dropped → expired. Only ever forward.

    open: may still receive events. sealed: its seq range is frozen, nothing can be added.
    archived: the cutover has been committed, readers take it from the archive, its partition may still
    exist. dropped: the partition is gone. expired: destroyed under policy, a certificate stands for it.
    """

    OPEN = "open"
    SEALED = "sealed"
    ARCHIVED = "archived"
    DROPPED = "dropped"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """[from_us, to_us), microseconds since 1970 UTC."""

    from_us: int
    to_us: int

    @staticmethod
    def containing(unit: WindowUnit, at_us: int) -> Window:
        """The window of that unit in which the moment lies."""
        moment = from_us(at_us)
        start = moment.replace(minute=0, second=0, microsecond=0)
        match unit:
            case WindowUnit.HOUR:
                end = start + timedelta(hours=1)
            case WindowUnit.DAY:
                start = start.replace(hour=0)
                end = start + timedelta(days=1)
            case WindowUnit.WEEK:
                start = start.replace(hour=0) - timedelta(days=start.weekday())
                end = start + timedelta(days=7)
            case WindowUnit.MONTH:
                start = start.replace(hour=0, day=1)
                end = datetime(start.year + start.month // 12, start.month % 12 + 1, 1, tzinfo=UTC)
        return Window(to_us(start), to_us(end))

    def clip_from(self, earliest_us: int) -> Window:
        """This window less everything before a moment (when a policy's unit changed in its middle)."""
        return Window(max(self.from_us, earliest_us), self.to_us)

    def __str__(self) -> str:
        return f"[{to_iso(self.from_us)}, {to_iso(self.to_us)})"


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """A window as the catalog knows it.

    `first_seq` is set when the window is made. `last_seq`, `hash_before` and `hash_after` are None while
    it is open: they are frozen by sealing.
    `leaf` is the name of its partition (also after the partition has been dropped).
    `target` names the target where it is to go (from sealing on) or is (once archived).
    """

    window: Window
    state: WindowState
    leaf: str
    first_seq: int
    last_seq: int | None
    hash_before: bytes | None
    hash_after: bytes | None
    target: str | None = None

    @property
    def event_count(self) -> int | None:
        """Events in the window; None while it is open."""
        return None if self.last_seq is None else self.last_seq - self.first_seq + 1
