"""The Arrow schema of events: the one order of columns in Postgres, in segments and in answers."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["EVENT_FIELDS", "EVENT_SCHEMA", "TIMESTAMP"]

TIMESTAMP = pa.timestamp("us", tz="UTC")

EVENT_SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("event_id", pa.binary(16), nullable=False),
        pa.field("recorded_at", TIMESTAMP, nullable=False),
        pa.field("occurred_at", TIMESTAMP, nullable=False),
        pa.field("entity_type", pa.string(), nullable=False),
        pa.field("entity_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("old_value", pa.string()),
        pa.field("new_value", pa.string()),
        pa.field("actor", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("workspace_id", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("hash", pa.binary(32), nullable=False),
    ]
)

EVENT_FIELDS = tuple(EVENT_SCHEMA.names)
