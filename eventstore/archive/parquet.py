"""Events ↔ Parquet segments. The same events always give the same bytes (with the same pyarrow).

Where a window is cut into segments and row groups depends on the events alone, never on how they were
batched on their way: by number of rows and by size, whichever comes first. The size bounds memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window

__all__ = [
    "ENCODING",
    "FILE_SCHEMA",
    "GROUP_ROWS_MAX",
    "RowGroup",
    "SegmentWriter",
    "as_events",
    "cut_row_groups",
    "read_range",
    "segment_is_full",
]

GROUP_ROWS_MAX = 65_536
GROUP_BYTES_MAX = 16 * 2**20
SEGMENT_ROWS_MAX = 4 * GROUP_ROWS_MAX
SEGMENT_BYTES_MAX = 48 * 2**20

# A UUID is told to be one, so that every engine shows it as such.
FILE_SCHEMA = EVENT_SCHEMA.set(1, pa.field("event_id", pa.uuid(), nullable=False))
_PREFIX = b"eventstore."
_DICTIONARY = ["entity_type", "entity_id", "action", "field", "actor", "source", "workspace_id"]
_INCOMPRESSIBLE = ("event_id", "hash")
_COMPRESSION = {name: "NONE" if name in _INCOMPRESSIBLE else "ZSTD" for name in EVENT_SCHEMA.names}
_RISING = dict.fromkeys(("seq", "recorded_at", "occurred_at"), "DELTA_BINARY_PACKED")
# How every file of events is written: options of pyarrow's ParquetWriter.
ENCODING: Mapping[str, Any] = {
    "compression": _COMPRESSION,
    "use_dictionary": _DICTIONARY,
    "column_encoding": _RISING,
}
_FALSE_POSITIVES = 0.01


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Events that make one row group, and the size of their canonical bytes."""

    events: pa.Table
    size_bytes: int


@dataclass(slots=True)
class _Open:
    slices: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0


def cut_row_groups(batches: Iterable[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]) -> Iterator[RowGroup]:
    """Cut a stream of (events, size of each event's canonical bytes) into row groups."""
    group = _Open()
    for events, sizes in batches:
        start = 0
        while start < events.num_rows:
            room = GROUP_ROWS_MAX - group.rows
            totals = group.size_bytes + np.cumsum(sizes[start : start + room])
            # The event that reaches the size limit is the last of its group.
            count = min(len(totals), int(np.searchsorted(totals, GROUP_BYTES_MAX)) + 1)
            group.slices.append(events.slice(start, count))
            group.rows += count
            group.size_bytes = int(totals[count - 1])
            start += count
            if group.rows == GROUP_ROWS_MAX or group.size_bytes >= GROUP_BYTES_MAX:
                yield _close(group)
                group = _Open()
    if group.rows:
        yield _close(group)


def _close(group: _Open) -> RowGroup:
    return RowGroup(pa.Table.from_batches(group.slices).combine_chunks(), group.size_bytes)


def segment_is_full(rows: int, size_bytes: int) -> bool:
    """Whether a segment takes no further row group."""
    return rows >= SEGMENT_ROWS_MAX or size_bytes >= SEGMENT_BYTES_MAX


class SegmentWriter:
    """Writes one segment to a local path, row group by row group. `rows_left` is how many events of the
    window are still to be written, this segment's included; it sizes the Bloom filters."""

    def __init__(self, path: Path, *, rows_left: int) -> None:
        self._path = path
        bloom = {"ndv": min(rows_left, GROUP_ROWS_MAX), "fpp": _FALSE_POSITIVES}
        self._writer = pq.ParquetWriter(
            path,
            FILE_SCHEMA,
            **ENCODING,
            write_statistics=True,
            write_page_index=True,
            bloom_filter_options={"entity_id": bloom, "event_id": bloom},
            sorting_columns=[pq.SortingColumn(0)],
            store_schema=False,
        )

    def write(self, group: RowGroup) -> None:
        self._writer.write_table(group.events.cast(FILE_SCHEMA), row_group_size=GROUP_ROWS_MAX)

    def finish(self, segment_range: SegmentRange) -> None:
        """Complete the file; the range goes into its metadata, so that it stands alone."""
        self._writer.add_key_value_metadata(_to_metadata(segment_range))
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Left by an error, the staged file is not a segment: nobody will put it.
        if kind is not None:
            self._writer.close()
            self._path.unlink(missing_ok=True)


def as_events(table: pa.Table) -> pa.Table | None:
    """A table of a segment file as `EVENT_SCHEMA`; None where its columns are not those of a segment."""
    return table.cast(EVENT_SCHEMA) if table.schema.equals(FILE_SCHEMA) else None


def _to_metadata(r: SegmentRange) -> dict[bytes, bytes]:
    values = {
        "schema_version": str(r.schema_version),
        "tenant_id": r.tenant_id,
        "window_from_us": str(r.window.from_us),
        "window_to_us": str(r.window.to_us),
        "part": str(r.part),
        "first_seq": str(r.first_seq),
        "last_seq": str(r.last_seq),
        "hash_before": r.hash_before.hex(),
        "hash_after": r.hash_after.hex(),
    }
    return {_PREFIX + name.encode(): value.encode() for name, value in values.items()}


def read_range(file: pq.ParquetFile, key: str) -> SegmentRange:
    """What a segment says of itself.

    Raises:
        ArchiveDamageError: it does not say it, or not in full.
    """
    try:
        given = {
            name.removeprefix(_PREFIX).decode(): value.decode()
            for name, value in (file.metadata.metadata or {}).items()
            if name.startswith(_PREFIX)
        }
        return SegmentRange(
            tenant_id=given["tenant_id"],
            window=Window(int(given["window_from_us"]), int(given["window_to_us"])),
            part=int(given["part"]),
            first_seq=int(given["first_seq"]),
            last_seq=int(given["last_seq"]),
            hash_before=bytes.fromhex(given["hash_before"]),
            hash_after=bytes.fromhex(given["hash_after"]),
            schema_version=int(given["schema_version"]),
        )
    except (KeyError, ValueError) as e:
        raise ArchiveDamageError(
            f"{key} does not carry a segment's metadata ({e})",
            key=key,
            hint="it is not a segment of this store, or was rewritten by another program",
        ) from e
