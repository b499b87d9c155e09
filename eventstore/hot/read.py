"""Hot events as Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from psycopg import sql

from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA, TIMESTAMP
from eventstore.db.engine import Database
from eventstore.db.partitions import SCHEMA
from eventstore.errors import IntegrityError

__all__ = ["EVENT_COLUMNS_SQL", "leaf_batches", "to_events"]

_BATCH_BYTES = 2 * 2**20

EVENT_COLUMNS_SQL = ", ".join(EVENT_FIELDS)


def to_events(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch as ADBC gives it (columns in the schema's order) as `EVENT_SCHEMA`, without copying."""
    columns = []
    for field, column in zip(EVENT_SCHEMA, batch.columns, strict=True):
        if field.name == "event_id":
            column = column.storage
        elif field.name == "hash":
            column = _fixed_width(column, 32)
        elif field.type == TIMESTAMP:
            column = column.cast(TIMESTAMP)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)


def _fixed_width(column: pa.Array, width: int) -> pa.Array:
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[
        column.offset : column.offset + len(column) + 1
    ]
    if column.null_count or bool(np.any(np.diff(offsets) != width)):
        raise IntegrityError(f"a stored hash is not {width} bytes long", hint="run eventstore verify")
    start, end = (int(offsets[0]), int(offsets[-1])) if len(column) else (0, 0)
    data = column.buffers()[2].slice(start, end - start) if len(column) else pa.py_buffer(b"")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(column), [None, data])


def leaf_batches(database: Database, leaf: str) -> Iterator[pa.RecordBatch]:
    """All that a leaf holds, in the order of seq, streamed: what must not be there is to be seen as well.

    Reads the leaf itself: a window that is being archived is sealed, and only its archiver drops it.
    """
    query = sql.SQL("SELECT {columns} FROM {leaf} ORDER BY seq").format(
        columns=sql.SQL(EVENT_COLUMNS_SQL), leaf=sql.Identifier(SCHEMA, leaf)
    )
    with database.arrow() as conn, conn.cursor() as cursor:
        # Smaller than the driver's 16 MB: several batches are in memory at once while a window is archived.
        hint = {StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_BATCH_BYTES)}
        cursor.adbc_statement.set_options(**hint)
        cursor.execute(query.as_string())
        with cursor.fetch_record_batch() as reader:
            for batch in reader:
                yield to_events(batch)
