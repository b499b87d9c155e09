"""Events on their way in: from the caller's objects to columns, and from columns to stamped events."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.columns.canonical import canonical_column, chain_column
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA, TIMESTAMP
from eventstore.model.event import TEXT_FIELDS, VALUE_FIELDS, NewEvent

__all__ = ["PENDING_SCHEMA", "pending_batch", "stamp", "uuid7_column"]

# What a caller brings. A null event_id is given a UUIDv7, a null occurred_at is the recorded time.
PENDING_SCHEMA = pa.schema(
    [pa.field("event_id", pa.binary(16)), pa.field("occurred_at", TIMESTAMP)]
    + [EVENT_SCHEMA.field(name) for name in TEXT_FIELDS]
)


def pending_batch(events: Sequence[NewEvent]) -> pa.RecordBatch:
    """The columns of `PENDING_SCHEMA`. The events are taken as valid (see `intake`)."""
    columns = [
        pa.array([e.event_id.bytes if e.event_id else None for e in events], pa.binary(16)),
        pa.array([e.occurred_at for e in events], TIMESTAMP),
    ]
    for name in TEXT_FIELDS:
        if name in VALUE_FIELDS:
            values = [bytes(getattr(e, name)) or None for e in events]
            columns.append(pa.array(values, pa.binary()).cast(pa.string()))
        else:
            columns.append(pa.array([getattr(e, name) for e in events], pa.string()))
    return pa.RecordBatch.from_arrays(columns, schema=PENDING_SCHEMA)


def uuid7_column(recorded_us: npt.NDArray[np.int64], first_ordinal: int = 0) -> pa.FixedSizeBinaryArray:
    """A UUIDv7 for each time, rising along the batch; `model.event.uuid7` for a whole column."""
    count = len(recorded_us)
    ms, rest_us = np.divmod(recorded_us, 1000)
    words = np.empty((count, 2), dtype=">u8")
    words[:, 0] = (
        (ms & (2**48 - 1)).astype(np.uint64) << np.uint64(16)
        | np.uint64(0x7000)
        | (rest_us * 4096 // 1000).astype(np.uint64)
    )
    random = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) & np.uint64(2**42 - 1)
    ordinal = np.arange(first_ordinal, first_ordinal + count, dtype=np.uint64) & np.uint64(0xFFFFF)
    words[:, 1] = np.uint64(0b10 << 62) | ordinal << np.uint64(42) | random
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(words.tobytes())])


def stamp(
    pending: pa.RecordBatch, *, first_seq: int, recorded_us: npt.NDArray[np.int64], previous_hash: bytes
) -> tuple[pa.RecordBatch, bytes]:
    """Give pending events their place in the log: seq, recorded_at, missing ids and times, hash.

    Returns the stored events (`EVENT_SCHEMA`) and the last hash.
    """
    count = pending.num_rows
    recorded = pa.array(recorded_us, pa.int64()).cast(TIMESTAMP)
    columns = {
        "seq": pa.array(np.arange(first_seq, first_seq + count, dtype=np.int64)),
        "event_id": _filled(pending.column("event_id"), uuid7_column(recorded_us, first_seq)),
        "recorded_at": recorded,
        "occurred_at": _filled(pending.column("occurred_at"), recorded),
        **{name: pending.column(name) for name in TEXT_FIELDS},
    }
    unhashed = pa.RecordBatch.from_arrays(
        [columns[name] for name in EVENT_FIELDS[:-1]],
        schema=pa.schema([EVENT_SCHEMA.field(i) for i in range(len(EVENT_FIELDS) - 1)]),
    )
    hashes, last = chain_column(previous_hash, canonical_column(unhashed))
    return pa.RecordBatch.from_arrays([*unhashed.columns, hashes], schema=EVENT_SCHEMA), last


def _filled(given: pa.Array, default: pa.Array) -> pa.Array:
    if given.null_count == len(given):
        return default
    if given.null_count == 0:
        return given
    return pa.compute.if_else(given.is_valid(), given, default)
