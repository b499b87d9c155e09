"""Reading a segment back: the sole maker of `VerifiedSegment`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from eventstore.archive.bloom import entity_filter
from eventstore.archive.parquet import as_events, read_range
from eventstore.archive.target import ArchiveTarget
from eventstore.columns.canonical import int64_values
from eventstore.errors import ArchiveConflictError, ArchiveDamageError
from eventstore.model.bloom import BloomProbe
from eventstore.model.segment import Segment, SegmentRange, VerifiedSegment

__all__ = [
    "SegmentContent",
    "WrittenFile",
    "digest_segment",
    "read_segment",
    "verify_copy",
    "verify_segment",
]

_HINT = "restore it from a backup; until then it cannot be read, and nothing is dropped on its strength"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """The file that was handed to the target; `created` is what the target answered."""

    sha256: bytes
    size_bytes: int
    created: bool


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """A segment's bytes, read whole from its target: its digest, and its events by row group."""

    key: str
    sha256: bytes
    size_bytes: int
    range: SegmentRange
    file: pq.ParquetFile
    data: bytes

    def row_groups(self) -> Iterator[pa.RecordBatch]:
        """The events, one batch a row group.

        Raises:
            ArchiveDamageError: a row group cannot be decoded, or has another schema.
        """
        for index in range(self.file.num_row_groups):
            try:
                table = self.file.read_row_group(index, use_threads=False)
            except (pa.ArrowException, OSError) as e:
                raise _damage(self.key, f"row group {index} cannot be read: {e}") from e
            events = as_events(table)
            if events is None:
                raise _damage(self.key, f"its columns are not an event's: {table.schema.names}")
            yield events.combine_chunks().to_batches()[0]


def read_segment(target: ArchiveTarget, key: str, *, sha256: bytes | None = None) -> SegmentContent:
    """Read a segment from its target; with `sha256`, its bytes must have that digest.

    Raises:
        ArchiveDamageError: missing, changed, or not a segment.
        TargetUnavailableError: the target did not answer.
    """
    with target.open(key) as file:
        data = file.read()
    digest = hashlib.sha256(data).digest()
    if sha256 is not None:
        _check_digest(key, digest, sha256)
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as e:
        raise _damage(key, f"it is not a Parquet file: {e}") from e
    return SegmentContent(key, digest, len(data), read_range(parquet, key), parquet, data)


def digest_segment(target: ArchiveTarget, segment: Segment) -> bytes:
    """Read a cataloged segment's bytes; their SHA-256, which is the catalog's.

    Raises:
        ArchiveDamageError: missing, or another digest.
        TargetUnavailableError: the target did not answer.
    """
    with target.open(segment.key) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    _check_digest(segment.key, digest, segment.sha256)
    return digest


def verify_segment(
    target: ArchiveTarget,
    key: str,
    expected: SegmentRange,
    originals: Sequence[pa.Table],
    written: WrittenFile,
    *,
    target_name: str,
) -> VerifiedSegment:
    """Read a segment back from its target and compare it with the database's events, value by value.

    `originals` are those events as Postgres gave them, one table a row group, their chain recomputed.
    Equal rows and metadata are what counts: another library version may have written other bytes. But
    those that this program has just written must be the same, or it is damage that no value shows: a
    Bloom filter or a page index that lies would hide events from queries.

    Raises:
        ArchiveDamageError: it differs, anywhere; names the first row group.
    """
    content = read_segment(target, key)
    if content.range != expected:
        raise _damage(key, f"it says of itself {content.range}, expected {expected}")
    first = last = 0
    compared = 0
    for index, events in enumerate(content.row_groups()):
        if index >= len(originals) or not pa.Table.from_batches([events]).equals(originals[index]):
            raise _damage(key, f"row group {index} differs from the database")
        times = int64_values(events.column("recorded_at"))
        first, last = (int(times[0]) if index == 0 else first), int(times[-1])
        compared += events.num_rows
    if compared != expected.event_count:
        raise _damage(key, f"it holds {compared} events, expected {expected.event_count}")
    if content.sha256 != written.sha256 and (written.created or _same_writer(content, written)):
        raise _damage(key, "its events are right, but its bytes are not those that were written")
    bits = entity_filter(content.file, content.data)
    if content.sha256 != written.sha256 and bits is not None and not _admits_all(bits, originals):
        raise _damage(key, "its Bloom filter denies entities that it holds")
    return VerifiedSegment(
        Segment(
            range=expected,
            key=key,
            size_bytes=content.size_bytes,
            sha256=content.sha256,
            min_recorded_at_us=first,
            max_recorded_at_us=last,
            target=target_name,
        ),
        bits,
    )


def verify_copy(
    target: ArchiveTarget, segment: Segment, *, target_name: str, key: str, created: bool
) -> VerifiedSegment:
    """Read the copy of a segment back from another target, or from under another key: it must have the
    very same bytes.

    Raises:
        ArchiveDamageError: it has not, and was written just now (`created`).
        ArchiveConflictError: it has not, and was there before.
        TargetUnavailableError: the target did not answer.
    """
    try:
        content = read_segment(target, key, sha256=segment.sha256)
    except ArchiveDamageError as e:
        if created:
            raise
        raise ArchiveConflictError(
            f"a different object lies under {key} in {target.describe()}: {e.message}",
            hint="nothing was overwritten or removed; find out whose it is, and move it away",
        ) from e
    if content.range != segment.range:
        raise _damage(key, f"it says of itself {content.range}, expected {segment.range}")
    return VerifiedSegment(
        replace(segment, target=target_name, key=key), entity_filter(content.file, content.data)
    )


def _same_writer(content: SegmentContent, written: WrittenFile) -> bool:
    """Whether these would be the written bytes if they were undamaged. Damage does not change a size."""
    by: str = content.file.metadata.created_by
    return content.size_bytes == written.size_bytes and by.endswith(f" {pa.__version__}")


def _admits_all(bits: bytes, originals: Sequence[pa.Table]) -> bool:
    ids = pa.chunked_array([chunk for table in originals for chunk in table.column("entity_id").chunks])
    return all(BloomProbe(entity_id.encode()).may_be_in(bits) for entity_id in ids.unique().to_pylist())


def _check_digest(key: str, digest: bytes, expected: bytes) -> None:
    if digest != expected:
        raise _damage(key, f"its SHA-256 is {digest.hex()}, not {expected.hex()} as cataloged")


def _damage(key: str, what: str) -> ArchiveDamageError:
    return ArchiveDamageError(f"segment {key}: {what}", key=key, hint=_HINT)
