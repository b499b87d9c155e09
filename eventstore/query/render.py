"""Events as the faces show them: rows of plain values, JSON text, CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.columns.canonical import fixed_bytes
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.event import VALUE_FIELDS

__all__ = ["EventView", "event_views", "format_uuid", "to_json_lines", "to_text_table"]


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
_ENCODER = msgspec.json.Encoder()


def format_uuid(octets: bytes) -> str:
    """The text form of a UUID's 16 bytes."""
    text = octets.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _texts(column: pa.Array, name: str) -> list[Any]:
    match name:
        case "recorded_at" | "occurred_at":
            values = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ").to_pylist()
        case "event_id":
            values = [format_uuid(octets) for octets in column.to_pylist()]
        case "hash":
            values = [octets.tobytes().hex() for octets in fixed_bytes(column, 32)]
        case _:
            values = column.to_pylist()
    return list(values)


def event_views(events: pa.Table) -> Iterator[EventView]:
    """The events of a table, one by one."""
    for batch in events.to_batches(max_chunksize=10_000):
        columns = []
        for name in EVENT_FIELDS:
            values = _texts(batch.column(name), name)
            if name in VALUE_FIELDS:
                values = [_NULL if v is None else msgspec.Raw(v.encode()) for v in values]
            columns.append(values)
        for row in zip(*columns, strict=True):
            yield EventView(*row)


def to_json_lines(events: pa.Table) -> bytes:
    """One JSON object a line."""
    return _ENCODER.encode_lines(list(event_views(events)))


def to_text_table(events: pa.Table) -> pa.Table:
    """Every column as text (null stays null), for CSV."""
    columns = []
    for name in EVENT_FIELDS:
        kind = pa.int64() if name == "seq" else pa.string()
        chunks = [pa.array(_texts(chunk, name), kind) for chunk in events.column(name).chunks]
        columns.append(pa.chunked_array(chunks, kind))
    return pa.Table.from_arrays(columns, names=list(EVENT_FIELDS))
