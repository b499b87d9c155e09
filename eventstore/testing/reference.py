"""The chain and the segment format once more, written from their description alone.

For `testing.invariants`: an oracle that used the store's own code would share its mistakes. Slow and plain.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["COLUMNS", "TIMES", "Folder", "Row", "chain_start", "link", "parse_us", "segment_rows", "us_sql"]

Row = dict[str, Any]

TIMES = ("recorded_at", "occurred_at")
_VALUES = ("old_value", "new_value")
_TEXTS = (
    "entity_type",
    "entity_id",
    "action",
    "field",
    *_VALUES,
    "actor",
    "source",
    "workspace_id",
    "metadata",
)
COLUMNS = ("seq", "event_id", *TIMES, *_TEXTS, "hash")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def chain_start(tenant_id: str) -> bytes:
    """What a tenant's first event chains onto."""
    tag, name = b"eventstore/chain/v1", tenant_id.encode()
    return hashlib.sha256(_size(tag) + tag + _size(name) + name).digest()


def link(previous: bytes, row: Row) -> bytes:
    """SHA-256 of the previous hash and the canonical bytes."""
    data = previous + (1).to_bytes(8, "little") + row["seq"].to_bytes(8, "little") + row["event_id"]
    for name in TIMES:
        data += row[name].to_bytes(8, "little", signed=True)
    for name in _TEXTS:
        text = None if row[name] is None else row[name].encode()
        data += b"\xff" * 8 if text is None else _size(text) + text
    return hashlib.sha256(data).digest()


def _size(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little")


def us_sql(column: str) -> str:
    """A timestamp column as microseconds since 1970, under its own name."""
    return f"(extract(epoch FROM {column}) * 1000000)::bigint AS {column}"


def parse_us(text: str) -> int:
    """A timestamp as Postgres prints it, in microseconds since 1970."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def segment_rows(file: pq.ParquetFile) -> Iterator[Row]:
    """A segment's events in the file's order; times as microseconds, event_id as 16 bytes."""
    for index in range(file.num_row_groups):
        table = file.read_row_group(index)
        for name in TIMES:
            position = table.schema.get_field_index(name)
            table = table.set_column(position, name, table.column(name).cast(pa.int64()))
        for row in table.to_pylist():
            if isinstance(row["event_id"], uuid.UUID):
                row["event_id"] = row["event_id"].bytes
            yield row


class Folder:
    """An archive that is a local folder, read without the store's own target."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, key: str) -> BinaryIO:
        return (self._root / key).open("rb")

    def list(self, prefix: str = "") -> Iterator[Any]:
        for path in sorted(self._root.rglob("*")):
            key = path.relative_to(self._root).as_posix()
            if path.is_file() and key.startswith(prefix) and not path.name.startswith(".staged-"):
                yield _Object(key)


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
