"""The chain, the segment format and the certificates once more, written from their description alone.

For `testing.invariants`: an oracle that used the store's own code would share its mistakes. Slow and plain.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "COLUMNS",
    "TIMES",
    "Folder",
    "Row",
    "certificate_start",
    "chain_start",
    "link",
    "parse_us",
    "segment_rows",
    "unseal",
    "us_sql",
]

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


# --- certificates: docs/reference/certificate-format.md ------------------------------------------------

_TYPE = "application/vnd.eventstore.certificate+json"


def certificate_start(store_id: str, tenant_id: str) -> str:
    """The `previous_sha256` of a tenant's first certificate, in hex."""
    parts = (b"eventstore/certificate/v1", store_id.encode(), tenant_id.encode())
    return hashlib.sha256(b"".join(_size(part) + part for part in parts)).hexdigest()


def unseal(envelope: bytes, keys: Mapping[str, bytes]) -> bytes:
    """The payload of a signed envelope. `keys`: the raw public keys that are trusted, by their ids.

    Raises:
        ValueError: it is not of the form, or a signature is not right.
    """
    said = json.loads(envelope)
    if list(said) != ["payload", "payloadType", "signatures"] or _compact(said) != envelope:
        raise ValueError("the envelope has another form")
    payload = base64.b64decode(said["payload"], validate=True)
    if said["payloadType"] != _TYPE or not 1 <= len(said["signatures"]) <= 16:
        raise ValueError("the envelope is of another type, or not signed")
    signed = b"DSSEv1 %d %b %d %b" % (len(_TYPE), _TYPE.encode(), len(payload), payload)
    for signature in said["signatures"]:
        raw = keys.get(signature["keyid"])
        if raw is None or hashlib.sha256(raw).hexdigest()[:16] != signature["keyid"]:
            raise ValueError(f"no trusted key {signature['keyid']}")
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(
                base64.b64decode(signature["sig"], validate=True), signed
            )
        except InvalidSignature:
            raise ValueError("the signature is not right") from None
    if _compact(json.loads(payload), sort=True) != payload:
        raise ValueError("the payload is not canonical JSON")
    return payload


def _compact(document: object, *, sort: bool = False) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=sort, ensure_ascii=False).encode()
