"""The steps of a window's way through the tiers. Each is idempotent: a retry after a crash runs the same
steps again, finds its own work, and goes on. There is no second code for recovery.

archive: freeze (hot.seal) → write → read back and verify → cut over → drop (hot.drop)
move:    copy → read back and compare → cut over → remove the former copy

Every transaction begins with the guard of the claim under which it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.archive.copy import copy_segment
from eventstore.archive.layout import segment_key
from eventstore.archive.parquet import RowGroup, SegmentWriter, cut_row_groups, segment_is_full
from eventstore.archive.target import ArchiveTarget, keep_object
from eventstore.archive.verify import WrittenFile, verify_segment
from eventstore.catalog.windows import cut_over, move_segments
from eventstore.columns.canonical import canonical_column, chain_column, fixed_bytes, int64_values
from eventstore.db.engine import Database, Guard
from eventstore.errors import ArchiveConflictError, ArchiveDamageError, CoverageError, IntegrityError
from eventstore.hot.drop import drop_window
from eventstore.hot.read import leaf_batches
from eventstore.hot.seal import seal_window
from eventstore.model.segment import Segment, SegmentRange, VerifiedSegment
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowRecord
from eventstore.retention.prefetch import prefetch
from eventstore.retention.quality import WindowQuality

__all__ = [
    "Stored",
    "archive_window",
    "copy_window",
    "cut_over_move",
    "cut_over_window",
    "drop_window",
    "seal_window",
]


@dataclass(frozen=True, slots=True)
class Stored:
    """A segment that now lies verified in a target. `created` is False when it was found there."""

    verified: VerifiedSegment
    created: bool


def archive_window(
    database: Database,
    target: ArchiveTarget,
    tenant: Tenant,
    record: WindowRecord,
    *,
    on_file: Callable[[Stored], None],
    quality: WindowQuality | None = None,
    retain_until_us: int | None = None,
) -> list[VerifiedSegment]:
    """Write a sealed window's segments, read each back from the target, and compare it with the database.

    Memory is bounded by the size of one segment, however large the window. The whole chain of the window
    is recomputed on the way and must join its frozen ends. `quality` is shown every event. `on_file` is
    called after each segment; it may raise to stop here, and a retry finds what is stored.

    Raises:
        IntegrityError: the leaf is not the frozen range, its chain is broken, or a segment differs.
        ArchiveConflictError: another object lies under a segment's key.
        TargetUnavailableError: the target did not take or give a segment.
    """
    assert record.last_seq is not None, "only a sealed window is archived"
    assert record.target is not None
    verified: list[VerifiedSegment] = []
    with ThreadPoolExecutor(1, "chain") as executor:
        check = _ChainCheck(record, executor, quality)
        batches = prefetch(leaf_batches(database, record.leaf))
        groups = cut_row_groups(check.sizes(batch) for batch in batches)
        for segment_range, path, originals in _write_segments(target, tenant, record, groups):
            key = segment_key(tenant.tenant_id, record.window, segment_range.part)
            try:
                # The segment says where its chain ends, so the chain must be whole up to there.
                check.wait()
                sha256, size_bytes = _digest(path)
                created = target.put(key, path, retain_until_us=retain_until_us)
            finally:
                path.unlink(missing_ok=True)  # what was not put is no use to a retry
            # Dying here leaves an object that no catalog row names; the retry makes the same bytes,
            # finds them stored, and goes on from here.
            try:
                segment = verify_segment(
                    target,
                    key,
                    segment_range,
                    originals,
                    WrittenFile(sha256, size_bytes, created),
                    target_name=record.target,
                )
            except ArchiveDamageError as e:
                if created:
                    raise
                raise ArchiveConflictError(
                    f"a different object lies under {key}: {e.message}",
                    hint="nothing was overwritten or dropped; find out whose it is, and move it away",
                ) from e
            if not created:
                keep_object(target, key, retain_until_us)
            verified.append(segment)
            on_file(Stored(segment, created))
        check.finish()
    return verified


def _digest(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest(), path.stat().st_size


def cut_over_window(
    database: Database,
    record: WindowRecord,
    verified: list[VerifiedSegment],
    *,
    guard: Guard | None = None,
    profile: Mapping[str, object] | None = None,
) -> None:
    """Commit the window as archived. Before this transaction readers take it from Postgres, after it
    from the archive. Repeating it changes nothing."""
    with database.transaction() as conn:
        if guard is not None:
            guard(conn)
        cut_over(conn, record, verified, profile=profile)


def copy_window(
    source: Callable[[str], ArchiveTarget],
    target: ArchiveTarget,
    target_name: str,
    segments: Sequence[Segment],
    *,
    on_file: Callable[[Stored], None],
    retain_until_us: int | None = None,
) -> list[VerifiedSegment]:
    """Copy a window's segments into another target, and read each back from there. `source` opens the
    target in which a segment is.

    Raises:
        ArchiveDamageError: a segment is not what the catalog says.
        ArchiveConflictError: another object lies under its key in the new target.
        TargetUnavailableError: a target did not take or give a segment.
    """
    verified = []
    for segment in segments:
        copy = copy_segment(
            source(segment.target), target, segment, to=target_name, retain_until_us=retain_until_us
        )
        verified.append(copy.verified)
        # Dying here leaves a copy that no catalog row names; the retry finds it, and goes on from here.
        on_file(Stored(copy.verified, copy.created))
    return verified


def cut_over_move(
    database: Database,
    record: WindowRecord,
    verified: list[VerifiedSegment],
    target_name: str,
    *,
    guard: Guard | None = None,
) -> None:
    """Commit that a window is in another target. Before this transaction readers take it from the former
    one, after it from the new one; the former copies are to be removed. Repeating it changes nothing."""
    with database.transaction() as conn:
        if guard is not None:
            guard(conn)
        move_segments(conn, record, verified, target_name)


class _ChainCheck:
    """Recomputes a window's chain beside the writing, and sizes the events for cutting."""

    def __init__(
        self, record: WindowRecord, executor: ThreadPoolExecutor, quality: WindowQuality | None
    ) -> None:
        assert record.hash_before is not None
        self._quality = quality
        self._record = record
        self._executor = executor
        self._last_hash = record.hash_before
        self._next_seq = record.first_seq
        self._running: Future[None] | None = None

    def sizes(self, events: pa.RecordBatch) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """The batch, with the size in bytes of each event's canonical form."""
        seqs = int64_values(events.column("seq"))
        expected = np.arange(self._next_seq, self._next_seq + len(seqs))
        if not np.array_equal(seqs, expected):
            missing = expected[np.argmin(seqs == expected)]
            raise CoverageError(
                f"window {self._record.window}: seq {missing} does not follow in partition "
                f"{self._record.leaf}",
                hint="nothing was dropped; run eventstore verify",
            )
        self._next_seq += len(seqs)
        canonical = canonical_column(events)
        self.wait()
        self._running = self._executor.submit(self._chain, events, canonical)
        return events, np.diff(np.frombuffer(canonical.buffers()[1], dtype=np.int32)).astype(np.int64)

    def wait(self) -> None:
        """Return when the chain of all events so far is found whole."""
        if self._running is not None:
            self._running.result()

    def finish(self) -> None:
        """All events of the window have come, and the chain joins its frozen end."""
        self.wait()
        assert self._record.last_seq is not None
        if self._next_seq != self._record.last_seq + 1 or self._last_hash != self._record.hash_after:
            raise CoverageError(
                f"window {self._record.window} ends at seq {self._next_seq - 1} in partition "
                f"{self._record.leaf}, it was frozen at {self._record.last_seq}",
                hint="nothing was dropped; run eventstore verify",
            )

    def _chain(self, events: pa.RecordBatch, canonical: pa.BinaryArray) -> None:
        if self._quality is not None:
            self._quality.add(events)
        hashes, self._last_hash = chain_column(self._last_hash, canonical)
        stored = events.column("hash")
        if not hashes.equals(stored):
            index = int(np.argmin(fixed_bytes(hashes, 32) == fixed_bytes(stored, 32)))
            raise IntegrityError(
                f"the chain breaks at seq {events.column('seq')[index]} in partition {self._record.leaf}",
                hint="a stored event was altered; nothing was dropped",
            )


def _write_segments(
    target: ArchiveTarget, tenant: Tenant, record: WindowRecord, groups: Iterator[RowGroup]
) -> Iterator[tuple[SegmentRange, Path, list[pa.Table]]]:
    """Build segment files from row groups: each one's range, staged path, and events by row group."""
    assert record.hash_before is not None
    assert record.last_seq is not None
    last_hash, next_seq, part = record.hash_before, record.first_seq, 0
    group = next(groups, None)
    while group is not None:
        path = target.stage(segment_key(tenant.tenant_id, record.window, part))
        with SegmentWriter(path, rows_left=record.last_seq - next_seq + 1) as writer:
            originals: list[pa.Table] = []
            rows = size_bytes = 0
            while group is not None and not segment_is_full(rows, size_bytes):
                writer.write(group)
                originals.append(group.events)
                rows += group.events.num_rows
                size_bytes += group.size_bytes
                group = next(groups, None)
            hash_after: bytes = originals[-1].column("hash")[-1].as_py()
            segment_range = SegmentRange(
                tenant_id=tenant.tenant_id,
                window=record.window,
                part=part,
                first_seq=next_seq,
                last_seq=next_seq + rows - 1,
                hash_before=last_hash,
                hash_after=hash_after,
            )
            writer.finish(segment_range)
        yield segment_range, path, originals
        last_hash, next_seq, part = hash_after, next_seq + rows, part + 1
