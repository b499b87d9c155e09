"""A segment's content, held against what the segment says of itself: every event, and the chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from threading import Event
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.archive.bloom import entity_filter
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.verify import SegmentContent, read_segment
from eventstore.columns.canonical import first_chain_break, fixed_bytes, int64_values
from eventstore.errors import ArchiveDamageError, IntegrityError
from eventstore.model.segment import Segment, VerifiedSegment

__all__ = ["CheckedContent", "Interrupted", "Pace", "check_content", "check_segment", "paced"]

_CHUNK_BYTES = 2**20
_HINT = "run eventstore archive scrub, which repairs it from another copy if there is one"


class Interrupted(Exception):  # noqa: N818 - no error: whoever reads was told to stop
    """Reading was given up, because `stop` is set."""


class Pace:
    """Holds reading down to a number of bytes a second, on average. None: as fast as it goes.

    `take` waits until that many bytes more are allowed.

    Raises:
        Interrupted: it was told to stop.
    """

    def __init__(self, bytes_per_s: int | None, stop: Event) -> None:
        self._bytes_per_s, self._stop = bytes_per_s, stop
        self._due = time.monotonic()
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        if self._bytes_per_s is not None:
            # What was not used in a pause is not made up for.
            self._due = max(self._due, time.monotonic() - 1.0) + size_bytes / self._bytes_per_s
            wait_s = self._due - time.monotonic()
            if wait_s > 0:
                self._stop.wait(wait_s)
        if self._stop.is_set():
            raise Interrupted


class _PacedTarget:
    """A target from which nothing is read faster than the pace allows."""

    def __init__(self, inner: ArchiveTarget, pace: Pace) -> None:
        self._inner, self._pace = inner, pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, key: str) -> BufferedIOBase:
        chunks = []
        with self._inner.open(key) as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._pace.take(len(chunk))
                chunks.append(chunk)
        return BytesIO(b"".join(chunks))


def paced(target: ArchiveTarget, pace: Pace) -> ArchiveTarget:
    """The same target, read at a bounded rate."""
    return cast(ArchiveTarget, _PacedTarget(target, pace))


@dataclass(frozen=True, slots=True)
class CheckedContent:
    """A segment whose events are what it says. `segment.target` and `segment.key` are where it was read.
    `id_lead_us`: by how much the time inside a UUIDv7 of it is ahead of its recorded time, at the most."""

    verified: VerifiedSegment
    id_lead_us: int


def check_content(content: SegmentContent, *, target_name: str) -> CheckedContent:
    """Decode every event of a segment and recompute its chain, from the hash before to the one after.

    Raises:
        ArchiveDamageError: it does not hold what its own metadata says.
    """
    r = content.range
    next_seq, last_hash, lead_us = r.first_seq, r.hash_before, 0
    first_us: int | None = None
    last_us = r.window.from_us
    for events in _non_empty(content):
        seqs, times = (int64_values(events.column(name)) for name in ("seq", "recorded_at"))
        if not np.array_equal(seqs, np.arange(next_seq, next_seq + len(seqs))):
            raise _damage(content, f"its seqs do not go on at {next_seq}")
        if int(times[0]) < last_us or bool(np.any(np.diff(times) < 0)) or int(times[-1]) >= r.window.to_us:
            raise _damage(content, f"recorded times around seq {next_seq} are not those of its window")
        broken, last_hash = first_chain_break(last_hash, events)
        if broken is not None:
            raise _damage(content, f"the chain breaks at seq {next_seq + broken}")
        next_seq += len(seqs)
        first_us, last_us = int(times[0]) if first_us is None else first_us, int(times[-1])
        lead_us = max(lead_us, _id_lead_us(events.column("event_id"), times))
    if first_us is None or next_seq != r.last_seq + 1 or last_hash != r.hash_after:
        raise _damage(content, f"it ends at seq {next_seq - 1}, or with another hash than it says")
    segment = Segment(
        range=r,
        key=content.key,
        size_bytes=content.size_bytes,
        sha256=content.sha256,
        min_recorded_at_us=first_us,
        max_recorded_at_us=last_us,
        target=target_name,
    )
    return CheckedContent(VerifiedSegment(segment, entity_filter(content.file, content.data)), lead_us)


def check_segment(target: ArchiveTarget, segment: Segment) -> CheckedContent:
    """Read a cataloged segment whole and compare its bytes and its content with the catalog.

    Raises:
        ArchiveDamageError: missing, or other bytes than cataloged: another copy can mend it.
        IntegrityError: the bytes are those cataloged, but they are not what the catalog says of them.
        TargetUnavailableError: the target did not answer.
    """
    content = read_segment(target, segment.key, sha256=segment.sha256)
    try:
        checked = check_content(content, target_name=segment.target)
    except ArchiveDamageError as e:
        raise IntegrityError(
            e.message, hint="no copy can mend it: these are the bytes that were cataloged"
        ) from e
    if checked.verified.segment != segment:
        raise IntegrityError(
            f"the catalog says of {segment.key}: {segment.range}, but it holds: {content.range}",
            hint="the catalog was altered; compare it with a backup of the database",
        )
    return checked


def _non_empty(content: SegmentContent) -> Iterator[pa.RecordBatch]:
    for events in content.row_groups():
        if events.num_rows:
            yield events


def _id_lead_us(event_ids: pa.Array, recorded_us: npt.NDArray[np.int64]) -> int:
    octets = fixed_bytes(event_ids, 16).view(">u8").reshape(-1, 2)[:, 0]
    version7 = octets >> 12 & 0xF == 7
    leads = np.where(version7, (octets >> 16).astype(np.int64) * 1000 - recorded_us, 0)
    return max(0, int(leads.max()))


def _damage(content: SegmentContent, what: str) -> ArchiveDamageError:
    return ArchiveDamageError(f"segment {content.key}: {what}", key=content.key, hint=_HINT)
