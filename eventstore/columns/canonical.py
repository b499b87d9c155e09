"""Canonical bytes and the chain, for whole Arrow batches. `model.event` is the reference."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.columns.framing import fixed_column, join_records, length_prefixed
from eventstore.model.event import CANONICAL_VERSION, TEXT_FIELDS

__all__ = ["canonical_column", "chain_column", "first_chain_break", "fixed_bytes", "int64_values"]

_HEAD = np.dtype(
    [("version", "<i8"), ("seq", "<i8"), ("event_id", "V16"), ("recorded_at", "<i8"), ("occurred_at", "<i8")]
)


def int64_values(column: pa.Array) -> npt.NDArray[np.int64]:
    """An int64 or timestamp column without nulls as numpy integers, without copying."""
    values: npt.NDArray[np.int64] = column.view(pa.int64()).to_numpy()
    return values


def fixed_bytes(column: pa.Array, width: int) -> npt.NDArray[Any]:
    """A fixed-size binary column without nulls as a numpy array of `V<width>`, without copying."""
    data = np.frombuffer(column.buffers()[1], dtype=f"V{width}")
    return data[column.offset : column.offset + len(column)]


def canonical_column(events: pa.RecordBatch) -> pa.BinaryArray:
    """The canonical bytes of each event. `hash` need not be among the columns."""
    head = np.empty(events.num_rows, dtype=_HEAD)
    head["version"] = CANONICAL_VERSION
    head["seq"] = int64_values(events.column("seq"))
    head["event_id"] = fixed_bytes(events.column("event_id"), 16)
    head["recorded_at"] = int64_values(events.column("recorded_at"))
    head["occurred_at"] = int64_values(events.column("occurred_at"))
    columns = [fixed_column(head)]
    for name in TEXT_FIELDS:
        columns += length_prefixed(events.column(name), "<i8")
    return join_records(columns)


def chain_column(previous: bytes, canonical: pa.BinaryArray) -> tuple[pa.FixedSizeBinaryArray, bytes]:
    """Chain each event onto the one before it; the hashes, and the last of them."""
    sha256, last, hashes = hashlib.sha256, previous, []
    offsets = np.frombuffer(canonical.buffers()[1], dtype=np.int32)
    ends = offsets[canonical.offset : canonical.offset + len(canonical) + 1].tolist()
    data, start = memoryview(canonical.buffers()[2] or b""), ends[0] if ends else 0
    for end in ends[1:]:
        link = sha256(last)
        link.update(data[start:end])
        last, start = link.digest(), end
        hashes.append(last)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(hashes), [None, pa.py_buffer(b"".join(hashes))]
    )
    return column, last


def first_chain_break(previous: bytes, events: pa.RecordBatch) -> tuple[int | None, bytes]:
    """Recompute the chain over events that carry their hash.

    Returns the index of the first event whose stored hash is not the recomputed one (None if all are
    right), and the last recomputed hash.
    """
    hashes, last = chain_column(previous, canonical_column(events))
    stored = events.column("hash")
    if hashes.equals(stored):
        return None, last
    same = fixed_bytes(hashes, 32) == fixed_bytes(stored, 32)
    return int(np.argmin(same)), last
