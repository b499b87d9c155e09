"""Exports: all events that meet conditions, as one stream of bytes in a format that other programs read.

An export is of one moment: it ends at the seq at which the log ended when it began, and names what had been
destroyed by then; should more be destroyed on the way, before it was read, it fails. It takes one step of the
reader after the other, so its memory is bounded by a step, however long the log; whoever takes its pieces
may stop between any two, and nothing stays open.

One that fails ends in a way that nobody takes for its proper end (`failure`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from eventstore.archive.parquet import ENCODING, FILE_SCHEMA
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import EventStoreError, StateError
from eventstore.model.export import ExportFormat
from eventstore.model.query import EventFilter, Order
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.render import csv_header, csv_lines, json_lines, small_batches

__all__ = ["MEDIA_TYPES", "Export", "ExportFormat", "Progress", "export_events", "failure"]

# A row group of Parquet is written as soon as it has so many events or takes so much memory; the step that
# completes it may bring as much as the reader does at once (50,000 events, or about 32 MiB).
_GROUP_ROWS = 32_768
_GROUP_BYTES = 16 * 2**20
# A batch of Arrow is smaller: its bytes are handed on from the caches.
_BATCH_ROWS = 8192
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


MEDIA_TYPES: Mapping[ExportFormat, str] = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.ARROW: "application/vnd.apache.arrow.stream",
}
_SUFFIXES: Mapping[ExportFormat, str] = {
    ExportFormat.NDJSON: "ndjson",
    ExportFormat.CSV: "csv",
    ExportFormat.PARQUET: "parquet",
    ExportFormat.ARROW: "arrows",
}


@dataclass(slots=True)
class Progress:
    """How far an export has come: the events that were read, and the seq of the last one (0: none yet)."""

    events: int = 0
    at_seq: int = 0


@dataclass(frozen=True, slots=True)
class Export:
    """An export that has begun. It covers the events up to `through_seq`; 0: the log is empty. `expired` are
    the seqs, first and last, that it should hold and that were destroyed before.

    `pieces` are its bytes, some of them empty: a step that found nothing, after which to look whether anybody
    still wants the rest. `progress` and `coverage` grow as they are taken.
    """

    file_name: str
    media_type: str
    through_seq: int
    progress: Progress
    coverage: Coverage
    pieces: Generator[bytes]
    expired: Sequence[tuple[int, int]] = ()


def export_events(
    reader: LogReader,
    tenant_id: str,
    wanted: EventFilter,
    form: ExportFormat,
    *,
    order: Order = Order.ASC,
    byte_order_mark: bool = False,
) -> Export:
    """Begin an export. With `byte_order_mark`, CSV begins with one, by which Excel knows UTF-8.

    Taking its pieces raises what reading raises (`LogReader.page`), and StateError when something of it is
    destroyed meanwhile.

    Raises:
        TenantNotFoundError
    """
    through = reader.last_seq(tenant_id)
    last = through if wanted.seq_to is None else min(through, wanted.seq_to)
    expired = reader.expired(tenant_id, wanted.seq_from or 1, last)
    progress, coverage = Progress(), Coverage()
    steps = reader.stream(
        tenant_id, replace(wanted, seq_to=last), order=order, coverage=coverage, every_step=True
    )
    tables = _counted(progress, _lasting(coverage, {number for _, _, number in expired}, steps))
    metadata = {"eventstore.tenant_id": tenant_id, "eventstore.through_seq": str(through)}
    match form:
        case ExportFormat.NDJSON:
            pieces = _lines(tables, b"", json_lines)
        case ExportFormat.CSV:
            pieces = _lines(tables, (_BYTE_ORDER_MARK if byte_order_mark else b"") + csv_header(), csv_lines)
        case ExportFormat.PARQUET:
            pieces = _file(_grouped(tables), lambda sink: _parquet(sink, metadata, order))
        case ExportFormat.ARROW:
            schema = EVENT_SCHEMA.with_metadata(metadata)
            pieces = _file(_split(tables), lambda sink: pa.ipc.new_stream(sink, schema))
    return Export(
        f"{tenant_id}.{_SUFFIXES[form]}",
        MEDIA_TYPES[form],
        through,
        progress,
        coverage,
        pieces,
        _joined(expired),
    )


def failure(form: ExportFormat, error: Exception) -> bytes:
    """What to put at the end of an export that fails, so that it is not taken for a whole one: a line that is
    no event, a quote without its end, a message that breaks off. Parquet is nothing without its footer."""
    reason = error.message if isinstance(error, EventStoreError) else "an error of the store's own"
    code = error.code if isinstance(error, EventStoreError) else "internal"
    match form:
        case ExportFormat.NDJSON:
            return (
                msgspec.json.encode({"problem": {"type": f"urn:eventstore:{code}", "detail": reason}}) + b"\n"
            )
        case ExportFormat.CSV:
            return b'"the export failed: ' + reason.replace('"', "'").encode()
        case ExportFormat.PARQUET:
            return b""
        case ExportFormat.ARROW:
            # The head of a message of 16 bytes, without these.
            return b"\xff\xff\xff\xff\x10\x00\x00\x00"


def _joined(expired: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, last, _ in sorted(expired):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _lasting(coverage: Coverage, certificates: Set[int], steps: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The steps, as long as nothing but what these certificates tell of turns out to be destroyed."""
    for events in steps:
        for first, last, number in coverage.expired:
            if number not in certificates:
                raise StateError(
                    f"the events {first} to {last} were destroyed under certificate {number} meanwhile",
                    hint="export again; what is left comes whole",
                )
        yield events


def _counted(progress: Progress, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for events in tables:
        if events.num_rows:
            progress.events += events.num_rows
            progress.at_seq = events.column("seq")[-1].as_py()
        yield events


# --- lines --------------------------------------------------------------------------------------------


def _lines(
    tables: Iterator[pa.Table], header: bytes, lines: Callable[[pa.Table], Iterator[bytes]]
) -> Generator[bytes]:
    for events in tables:
        # With the first step, so that what fails at once fails before anything was given out.
        yield header
        header = b""
        yield from lines(events)
    yield header


# --- files --------------------------------------------------------------------------------------------


class _Writer(Protocol):
    """What pyarrow's writers of Parquet and of IPC streams have in common."""

    def write_table(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...


class _Sink(io.RawIOBase):
    """What a writer writes into; keeps the bytes until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size_bytes

    def write(self, data: Any, /) -> int:
        part = bytes(data)  # the writer uses its own again
        self._parts.append(part)
        self._size_bytes += len(part)
        return len(part)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _file(tables: Iterator[pa.Table], begin: Callable[[_Sink], _Writer]) -> Generator[bytes]:
    """The bytes of a file, after each table. It is completed only if all of them have come."""
    sink = _Sink()
    writer: _Writer | None = None
    for events in tables:
        writer = writer or begin(sink)  # not before the first step, which may fail
        if events.num_rows:
            writer.write_table(events)
        yield sink.take()
    writer = writer or begin(sink)
    writer.close()
    yield sink.take()


def _split(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Events in what are to be batches; empty tables stay, one for each step."""
    for events in tables:
        if not events.num_rows:
            yield events
        for batch in small_batches(events, _BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _parquet(sink: _Sink, metadata: Mapping[str, str], order: Order) -> pq.ParquetWriter:
    writer = pq.ParquetWriter(
        sink,
        FILE_SCHEMA,
        **ENCODING,
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(0, descending=order is Order.DESC)],
        store_schema=False,
    )
    writer.add_key_value_metadata(metadata)
    return writer


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Events in what are to be row groups, and between them empty tables, one for each step."""
    waiting: list[pa.Table] = []
    for events in tables:
        waiting.append(events)
        rows, size_bytes = sum(t.num_rows for t in waiting), sum(t.nbytes for t in waiting)
        if rows >= _GROUP_ROWS or size_bytes >= _GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks().cast(FILE_SCHEMA)
            waiting = []
        else:
            yield FILE_SCHEMA.empty_table()
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks().cast(FILE_SCHEMA)
