"""Events as the faces show them: rows of plain values, JSON text, CSV."""

from __future__ import annotations

import io
from collections.abc import Iterator

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from eventstore.columns.schema import EVENT_FIELDS
from eventstore.columns.text import (
    fixed_text,
    formula_safe,
    hash_text,
    json_string,
    text_parts,
    time_text,
    uuid_text,
)
from eventstore.model.event import TEXT_FIELDS, VALUE_FIELDS

__all__ = [
    "PREVIOUS",
    "EventView",
    "csv_header",
    "csv_lines",
    "event_views",
    "format_uuid",
    "json_array",
    "json_lines",
    "small_batches",
    "to_json_lines",
]

# The hash of the event before each, for who shows it.
PREVIOUS = "prev_hash"

# What is turned into text at once: small enough for the caches, large enough for the cost of a call.
_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20
_CSV_OPTIONS = pa.csv.WriteOptions(include_header=False, quoting_style="needed")


class EventView(msgspec.Struct):
    """A stored event in JSON: times as RFC 3339, ids and hashes as text, values as JSON."""

    seq: int
    event_id: str
    recorded_at: str
    occurred_at: str
    entity_type: str
    entity_id: str
    action: str
    field: str
    old_value: msgspec.Raw
    new_value: msgspec.Raw
    actor: str
    source: str
    workspace_id: str | None
    metadata: msgspec.Raw
    hash: str


_NULL = msgspec.Raw(b"null")


def format_uuid(octets: bytes) -> str:
    """The text form of a UUID's 16 bytes."""
    text = octets.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def event_views(events: pa.Table) -> Iterator[EventView]:
    """The events of a table, one by one."""
    for batch in events.to_batches(max_chunksize=10_000):
        columns = []
        for name in EVENT_FIELDS:
            values = _texts(batch.column(name), name).to_pylist()
            if name in VALUE_FIELDS:
                values = [_NULL if v is None else msgspec.Raw(v.encode()) for v in values]
            columns.append(values)
        for row in zip(*columns, strict=True):
            yield EventView(*row)


def _texts(column: pa.Array, name: str) -> pa.Array:
    """A column as it is shown: everything is text but seq."""
    match name:
        case "recorded_at" | "occurred_at":
            return fixed_text(time_text(column), rows=len(column))
        case "event_id":
            return fixed_text(uuid_text(column), rows=len(column))
        case "hash":
            return fixed_text(hash_text(column), rows=len(column))
        case _:
            return column


# --- JSON ---------------------------------------------------------------------------------------------


def to_json_lines(events: pa.Table) -> bytes:
    """One JSON object a line: for each event what `EventView` would be."""
    return b"".join(json_lines(events))


def json_lines(events: pa.Table) -> Iterator[bytes]:
    """As `to_json_lines`, in pieces of some megabytes at most, each of whole lines. If the table has a column
    `PREVIOUS` too, it comes last."""
    # Not joined if that can be helped: touching so much new memory takes as long as making the lines.
    return map(_json_lines, small_batches(events))


def json_array(events: pa.Table) -> msgspec.Raw:
    """The events as a JSON array, to stand in an answer."""
    found = b"".join(_json_lines(batch, b"},") for batch in small_batches(events))
    return msgspec.Raw(b"[" + found[:-1] + b"]")


def _json_lines(events: pa.RecordBatch, ending: bytes = b"}\n") -> bytes:
    rows = events.num_rows
    between = fixed_text(
        b',"event_id":"',
        uuid_text(events.column("event_id")),
        b'","recorded_at":"',
        time_text(events.column("recorded_at")),
        b'","occurred_at":"',
        time_text(events.column("occurred_at")),
        rows=rows,
    )
    parts: list[pa.Array | str] = ['{"seq":', events.column("seq").cast(pa.string()), between]
    before = '"'
    for name in TEXT_FIELDS:
        column = events.column(name)
        label = f'{before},"{name}":'
        before = ""
        if name in VALUE_FIELDS:
            parts += [label, pc.fill_null(column, "null") if column.null_count else column]
        elif column.null_count:
            quoted = pc.binary_join_element_wise('"', json_string(column), '"', "")
            parts += [label, pc.fill_null(quoted, "null")]
        else:
            parts += [f'{label}"', json_string(column)]
            before = '"'
    hashes = (f'{before},"hash":"'.encode(), hash_text(events.column("hash")))
    if PREVIOUS in events.schema.names:
        previous = (f'","{PREVIOUS}":"'.encode(), hash_text(events.column(PREVIOUS)))
        end = fixed_text(*hashes, *previous, b'"' + ending, rows=rows)
    else:
        end = fixed_text(*hashes, b'"' + ending, rows=rows)
    _, octets = text_parts(pc.binary_join_element_wise(*parts, end, ""))
    return octets.tobytes()


def small_batches(events: pa.Table, rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """A table in batches of so many rows and some megabytes at most, without empty ones."""
    per_event = max(1, events.nbytes // max(1, events.num_rows))
    rows = max(1, min(rows, _BATCH_BYTES // per_event))
    yield from (batch for batch in events.to_batches(max_chunksize=rows) if batch.num_rows)


# --- CSV ----------------------------------------------------------------------------------------------


def csv_header() -> bytes:
    """The line of names that CSV begins with."""
    return ",".join(f'"{name}"' for name in EVENT_FIELDS).encode() + b"\n"


def csv_lines(events: pa.Table) -> Iterator[bytes]:
    """A line for each event, as RFC 4180 has it but for the line's end, which is LF; in pieces as
    `json_lines`.

    Texts stand in quotes; null is nothing at all, an empty text `""`. No cell can be taken for a formula
    (`columns.text.formula_safe`).
    """
    return map(_csv_lines, small_batches(events))


def _csv_lines(events: pa.RecordBatch) -> bytes:
    columns = []
    for name in EVENT_FIELDS:
        column = _texts(events.column(name), name)
        columns.append(formula_safe(column) if name in TEXT_FIELDS else column)
    written = io.BytesIO()
    text = pa.RecordBatch.from_arrays(columns, names=list(EVENT_FIELDS))
    pa.csv.write_csv(text, written, _CSV_OPTIONS)
    return written.getvalue()
