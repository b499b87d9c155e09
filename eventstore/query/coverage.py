"""What an answer covered: a reader must be able to tell "there is nothing" from "nothing was looked at"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from eventstore.archive.parquet import GROUP_ROWS_MAX
from eventstore.clock import to_iso
from eventstore.model.segment import Segment

__all__ = ["Coverage", "Meter", "Unreadable", "opened_bytes"]


class Meter(Protocol):
    """Keeps count of what a caller scans of the archive. Used by whichever thread reads."""

    def check(self) -> None:
        """Asked before each look into segments.

        Raises:
            RateLimitedError: the caller may scan no more today.
        """

    def add(self, archive_bytes: int) -> None:
        """Told after each look, whatever becomes of the answer."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A segment that should have been read and could not be: it is damaged, or its target is away."""

    target: str
    key: str
    first_seq: int
    last_seq: int
    window_from_us: int
    window_to_us: int
    error: str


@dataclass(slots=True)
class Coverage:
    """The seq ranges that were looked at, per tier, and what could not be.

    A range was looked at for the conditions asked: archive segments whose statistics exclude them count.
    `expired` has the ranges of which there is nothing left to look at, each with the number of the
    certificate under which it was destroyed; they are in no tier's list. `archive_bytes` is the size of the
    segments that were opened, and of a long segment only of the row groups that hold what was looked at.
    """

    hot: list[tuple[int, int]] = field(default_factory=list)
    archive: list[tuple[int, int]] = field(default_factory=list)
    expired: list[tuple[int, int, int]] = field(default_factory=list)
    windows: set[tuple[int, int]] = field(default_factory=set)
    unreadable: list[Unreadable] = field(default_factory=list)
    archive_bytes: int = 0

    def add_hot(self, first_seq: int, last_seq: int) -> None:
        _extend(self.hot, first_seq, last_seq)

    def add_archive(self, first_seq: int, last_seq: int) -> None:
        _extend(self.archive, first_seq, last_seq)

    def add_windows(self, segments: Iterable[Segment]) -> None:
        self.windows.update((s.range.window.from_us, s.range.window.to_us) for s in segments)

    def add_expired(self, first_seq: int, last_seq: int, certificate_no: int) -> None:
        if (first_seq, last_seq, certificate_no) not in self.expired:
            self.expired.append((first_seq, last_seq, certificate_no))

    @property
    def seqs(self) -> int:
        """How many seqs were looked at, or are no more."""
        spans = [*self.hot, *self.archive, *((first, last) for first, last, _ in self.expired)]
        return sum(last - first + 1 for first, last in spans)

    def as_json(self) -> dict[str, object]:
        """The coverage as every face shows it."""
        return {
            "hot": [{"first_seq": a, "last_seq": b} for a, b in sorted(self.hot)],
            "archive": [{"first_seq": a, "last_seq": b} for a, b in sorted(self.archive)],
            "archive_windows": len(self.windows),
            "archive_from": to_iso(min(self.windows)[0]) if self.windows else None,
            "archive_to": to_iso(max(self.windows)[1]) if self.windows else None,
            "archive_bytes": self.archive_bytes,
            "expired": [
                {"first_seq": a, "last_seq": b, "certificate": number}
                for a, b, number in sorted(self.expired)
            ],
            "unreadable": [
                {
                    "target": u.target,
                    "key": u.key,
                    "first_seq": u.first_seq,
                    "last_seq": u.last_seq,
                    "window_from": to_iso(u.window_from_us),
                    "window_to": to_iso(u.window_to_us),
                    "error": u.error,
                }
                for u in self.unreadable
            ],
        }


def opened_bytes(segment: Segment, first: int, last: int) -> int:
    """What a look at these seqs reads of a segment: whole row groups, as they are written."""
    r = segment.range
    start = max(first, r.first_seq) - r.first_seq
    end = min(last, r.last_seq) - r.first_seq + 1
    start -= start % GROUP_ROWS_MAX
    end = min(r.event_count, end + -end % GROUP_ROWS_MAX)
    return segment.size_bytes * (end - start) // r.event_count


def _extend(ranges: list[tuple[int, int]], first_seq: int, last_seq: int) -> None:
    """Add a range, joining it with the latest one where they touch (pages follow one another)."""
    if ranges:
        first, last = ranges[-1]
        if first_seq <= last + 1 and last_seq >= first - 1:
            ranges[-1] = (min(first, first_seq), max(last, last_seq))
            return
    ranges.append((first_seq, last_seq))
