"""Events as Postgres' binary COPY format, built column by column.

Format: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format). A row is a 16-bit count of
fields, then each field's length (32 bits, big-endian; -1 is null) and bytes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from eventstore.columns.canonical import fixed_bytes, int64_values
from eventstore.columns.framing import fixed_column, join_records, length_prefixed
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.event import TEXT_FIELDS

__all__ = ["COPY_COLUMNS", "COPY_HEADER", "COPY_TRAILER", "copy_rows"]

COPY_COLUMNS = ("tenant_id", *EVENT_FIELDS)
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # signature, no flags, no header extension
COPY_TRAILER = b"\xff\xff"

_PG_EPOCH_US = 946_684_800_000_000  # Postgres counts timestamptz from 2000-01-01


def copy_rows(tenant_id: str, events: pa.RecordBatch) -> memoryview:
    """The rows of a batch of `EVENT_SCHEMA`, without the format's header and trailer."""
    name = tenant_id.encode()
    head = np.empty(
        events.num_rows,
        dtype=[
            ("fields", ">i2"),
            ("tenant_length", ">i4"),
            ("tenant", f"V{len(name)}"),
            ("seq_length", ">i4"),
            ("seq", ">i8"),
            ("event_id_length", ">i4"),
            ("event_id", "V16"),
            ("recorded_length", ">i4"),
            ("recorded", ">i8"),
            ("occurred_length", ">i4"),
            ("occurred", ">i8"),
        ],
    )
    head["fields"] = len(COPY_COLUMNS)
    head["tenant_length"] = len(name)
    head["tenant"] = np.void(name)
    head["event_id_length"] = 16
    for field in ("seq", "recorded", "occurred"):
        head[f"{field}_length"] = 8
    head["seq"] = int64_values(events.column("seq"))
    head["event_id"] = fixed_bytes(events.column("event_id"), 16)
    head["recorded"] = int64_values(events.column("recorded_at")) - _PG_EPOCH_US
    head["occurred"] = int64_values(events.column("occurred_at")) - _PG_EPOCH_US

    tail = np.empty(events.num_rows, dtype=[("hash_length", ">i4"), ("hash", "V32")])
    tail["hash_length"] = 32
    tail["hash"] = fixed_bytes(events.column("hash"), 32)

    columns = [fixed_column(head)]
    for field in TEXT_FIELDS:
        columns += length_prefixed(events.column(field), ">i4")
    columns.append(fixed_column(tail))
    rows = join_records(columns)
    offsets = np.frombuffer(rows.buffers()[1], dtype=np.int32)
    start, end = offsets[rows.offset], offsets[rows.offset + len(rows)]
    return memoryview(rows.buffers()[2])[start:end]
