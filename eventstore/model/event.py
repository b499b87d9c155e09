"""What an event is: its fields, their limits, its canonical bytes and the chain.

This is the reference: plain Python, one event at a time. `columns.canonical` computes the same bytes for
whole Arrow batches, and a property test holds the two together.

Canonical bytes are a pre-authentication encoding in the manner of PASETO and DSSE
(https://github.com/secure-systems-lab/dsse/blob/master/protocol.md): every field is either of fixed
width or preceded by its length, so that no two different events have the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Annotated

import msgspec

from eventstore.clock import to_iso

__all__ = [
    "CANONICAL_VERSION",
    "TEXT_FIELDS",
    "TEXT_LIMITS",
    "VALUE_FIELDS",
    "WHOLE_ENTITY",
    "Event",
    "NewEvent",
    "canonical_bytes",
    "chain_hash",
    "chain_start",
    "uuid7",
    "uuid7_time_us",
]

CANONICAL_VERSION = 1
_CHAIN_TAG = b"eventstore/chain/v1"
_FIXED = struct.Struct("<QQ16sqq")  # version, seq, event_id, recorded_at, occurred_at
_NULL = b"\xff" * 8  # the length 2^64-1 alone

WHOLE_ENTITY = "*"  # the `field` of an event about the whole entity

# The most characters of each text field. Required fields take at least one.
TEXT_LIMITS = {
    "entity_type": 200,
    "entity_id": 1024,
    "action": 100,
    "field": 256,
    "actor": 256,
    "source": 256,
    "workspace_id": 256,
}
# JSON values of the caller's, stored as compact JSON text; limited in bytes by the settings.
VALUE_FIELDS = ("old_value", "new_value", "metadata")
# Every variable-length field, in the schema's order.
TEXT_FIELDS = (
    "entity_type",
    "entity_id",
    "action",
    "field",
    "old_value",
    "new_value",
    "actor",
    "source",
    "workspace_id",
    "metadata",
)
_texts = attrgetter(*TEXT_FIELDS)


def _text(name: str) -> msgspec.Meta:
    return msgspec.Meta(min_length=1, max_length=TEXT_LIMITS[name])


class NewEvent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An event as a caller sends it.

    `expected_version`, if given, is the seq of the entity's last event (0 for none): the append is refused
    when it is not. A JSON null in an optional field means the same as leaving it out.
    """

    entity_type: Annotated[str, _text("entity_type")]
    entity_id: Annotated[str, _text("entity_id")]
    action: Annotated[str, _text("action")]
    actor: Annotated[str, _text("actor")]
    source: Annotated[str, _text("source")]
    field: Annotated[str, _text("field")] = WHOLE_ENTITY
    old_value: msgspec.Raw = msgspec.Raw()
    new_value: msgspec.Raw = msgspec.Raw()
    workspace_id: Annotated[str, _text("workspace_id")] | None = None
    metadata: msgspec.Raw = msgspec.Raw()
    event_id: uuid.UUID | None = None
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


@dataclass(slots=True)
class Event:
    """A stored event. Times are microseconds since 1970 UTC; None means the caller gave no such value.

    `old_value`, `new_value` and `metadata` are compact JSON text, exactly as hashed.
    """

    seq: int
    event_id: bytes
    recorded_at_us: int
    occurred_at_us: int
    entity_type: str
    entity_id: str
    action: str
    field: str
    old_value: str | None
    new_value: str | None
    actor: str
    source: str
    workspace_id: str | None
    metadata: str | None
    hash: bytes

    def __str__(self) -> str:
        return f"#{self.seq} {to_iso(self.recorded_at_us)} {self.action} {self.entity_type} {self.entity_id}"


def canonical_bytes(event: Event) -> bytes:
    """The bytes that are hashed: format version, then every stored field but the hash, in order."""
    parts = [
        _FIXED.pack(CANONICAL_VERSION, event.seq, event.event_id, event.recorded_at_us, event.occurred_at_us)
    ]
    for value in _texts(event):
        if value is None:
            parts.append(_NULL)
        else:
            data = value.encode()
            parts += (len(data).to_bytes(8, "little"), data)
    return b"".join(parts)


def chain_start(tenant_id: str) -> bytes:
    """What the first event of a tenant chains onto: SHA-256 of a domain tag and the tenant."""
    name = tenant_id.encode()
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (_CHAIN_TAG, name))
    return hashlib.sha256(framed).digest()


def chain_hash(previous: bytes, canonical: bytes) -> bytes:
    """`SHA-256(previous hash ‖ canonical bytes)`, 32 bytes."""
    return hashlib.sha256(previous + canonical).digest()


def uuid7(at_us: int, ordinal: int = 0) -> bytes:
    """A UUIDv7 (RFC 9562, 5.7) for a moment: 48 bits of milliseconds, 12 bits of the fraction of the
    millisecond, then the last 20 bits of `ordinal` (the seq) and 42 random bits: ids rise along the log."""
    ms, rest_us = divmod(at_us, 1000)
    high = (ms & (2**48 - 1)) << 16 | 0x7000 | rest_us * 4096 // 1000
    random = int.from_bytes(os.urandom(6), "big") & (2**42 - 1)
    low = 0b10 << 62 | (ordinal & 0xFFFFF) << 42 | random
    return (high << 64 | low).to_bytes(16, "big")


def uuid7_time_us(event_id: bytes) -> int | None:
    """The time inside a UUIDv7 in microseconds (millisecond resolution); None for any other version."""
    if event_id[6] >> 4 != 7:
        return None
    return int.from_bytes(event_id[:6], "big") * 1000
