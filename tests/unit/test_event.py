"""The reference of the event model: canonical bytes, the chain, UUIDv7, the limits of an event."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import pyarrow as pa
import pytest

from eventstore.columns.canonical import canonical_column, chain_column, first_chain_break
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.event import (
    TEXT_FIELDS,
    TEXT_LIMITS,
    Event,
    NewEvent,
    canonical_bytes,
    chain_hash,
    chain_start,
    uuid7,
    uuid7_time_us,
)
from tests.unit.helpers import as_batch

EVENT = Event(
    seq=258,
    event_id=bytes(range(16)),
    recorded_at_us=1,
    occurred_at_us=-1,
    entity_type="t",
    entity_id="é",
    action="",
    field="*",
    old_value=None,
    new_value="1",
    actor="a",
    source="s",
    workspace_id=None,
    metadata="{}",
    hash=bytes(32),
)
# Every byte by hand: an encoder that changes makes every stored hash wrong, so this vector must never change.
CANONICAL = bytes.fromhex(
    "0100000000000000"  # format version 1
    "0201000000000000"  # seq 258
    "000102030405060708090a0b0c0d0e0f"  # event_id
    "0100000000000000"  # recorded_at: 1 µs after 1970
    "ffffffffffffffff"  # occurred_at: 1 µs before 1970, two's complement
    "0100000000000000"
    "74"  # entity_type "t"
    "0200000000000000"
    "c3a9"  # entity_id "é", two bytes of UTF-8
    "0000000000000000"  # action ""
    "0100000000000000"
    "2a"  # field "*"
    "ffffffffffffffff"  # old_value: null, the length 2^64-1 alone
    "0100000000000000"
    "31"  # new_value "1"
    "0100000000000000"
    "61"  # actor "a"
    "0100000000000000"
    "73"  # source "s"
    "ffffffffffffffff"  # workspace_id: null
    "0200000000000000"
    "7b7d"  # metadata "{}"
)


def test_canonical_bytes_are_those_written_out_by_hand() -> None:
    assert canonical_bytes(EVENT) == CANONICAL
    assert canonical_column(as_batch([EVENT])).to_pylist() == [CANONICAL]


def test_canonical_bytes_cover_every_stored_field_but_the_hash() -> None:
    assert ("seq", "event_id", "recorded_at", "occurred_at", *TEXT_FIELDS, "hash") == EVENT_FIELDS
    for name in TEXT_FIELDS:
        changed = replace(EVENT, **{name: "other"})
        assert canonical_bytes(changed) != CANONICAL, name
    assert canonical_bytes(replace(EVENT, hash=b"\1" * 32)) == CANONICAL


def test_null_and_empty_and_shifted_texts_differ() -> None:
    variants = [
        replace(EVENT, old_value=None, new_value="ab"),
        replace(EVENT, old_value="", new_value="ab"),
        replace(EVENT, old_value="a", new_value="b"),
        replace(EVENT, old_value="ab", new_value=""),
        replace(EVENT, old_value="ab", new_value=None),
    ]
    assert len({canonical_bytes(e) for e in variants}) == len(variants)


def test_chain_starts_from_tag_and_tenant_each_with_its_length() -> None:
    framed = b"\x13\0\0\0\0\0\0\0eventstore/chain/v1" + b"\x04\0\0\0\0\0\0\0acme"
    assert chain_start("acme") == hashlib.sha256(framed).digest()
    # The same bytes through sha256sum(1).
    assert chain_start("acme").hex() == "142da09f49bb01f542dd1ac3db6f121d2a89488e73148564265f4822305f0a69"
    assert chain_start("acme") != chain_start("acm")


def test_chain_hash_is_sha256_of_both() -> None:
    assert chain_hash(b"p" * 32, b"xyz") == hashlib.sha256(b"p" * 32 + b"xyz").digest()


def test_chain_column_and_first_break() -> None:
    start = chain_start("acme")
    events, last = [], start
    for seq in range(1, 6):
        event = replace(EVENT, seq=seq)
        last = chain_hash(last, canonical_bytes(event))
        events.append(replace(event, hash=last))
    batch = as_batch(events)
    hashes, end = chain_column(start, canonical_column(batch))
    assert hashes.to_pylist() == [e.hash for e in events]
    assert end == last
    assert first_chain_break(start, batch) == (None, last)
    altered = [*events[:3], replace(events[3], actor="eve"), events[4]]
    assert first_chain_break(start, as_batch(altered))[0] == 3
    # A slice begins inside its parent's buffers.
    assert first_chain_break(events[1].hash, batch.slice(2)) == (None, last)


def test_uuid7_holds_its_time_and_rises_within_a_batch() -> None:
    at_us = 1_709_251_200_123_456
    ids = [uuid7(at_us, ordinal) for ordinal in range(1000)]
    assert ids == sorted(ids)
    for octets in (ids[0], ids[-1]):
        assert uuid7_time_us(octets) == 1_709_251_200_123_000
        assert octets[6] >> 4 == 7  # version
        assert octets[8] >> 6 == 0b10  # variant
    # Microseconds order ids of the same millisecond.
    assert uuid7(at_us, 2**20 - 1) < uuid7(at_us + 1)
    assert len(set(ids)) == 1000


def test_other_uuid_versions_have_no_time() -> None:
    assert uuid7_time_us(bytes.fromhex("0190000000004000800000000000000f")) is None
    assert uuid7_time_us(bytes(16)) is None


REQUIRED = {"entity_type": "t", "entity_id": "i", "action": "a", "actor": "p", "source": "s"}


@pytest.mark.parametrize(("name", "limit"), TEXT_LIMITS.items())
def test_text_limits_count_characters(name: str, limit: int) -> None:
    def decode(text: str) -> NewEvent:
        return msgspec.convert({**REQUIRED, name: text}, NewEvent)

    assert getattr(decode("é" * limit), name) == "é" * limit
    for wrong in ("", "é" * (limit + 1)):
        with pytest.raises(msgspec.ValidationError, match=name):
            decode(wrong)


@pytest.mark.parametrize("name", REQUIRED)
def test_required_fields(name: str) -> None:
    given = {k: v for k, v in REQUIRED.items() if k != name}
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert(given, NewEvent)


def test_schema_says_which_columns_may_be_null() -> None:
    batch = as_batch([EVENT])
    nullable = {field.name for field in batch.schema if field.nullable}
    assert nullable == {"old_value", "new_value", "workspace_id", "metadata"}
    assert batch.schema.field("recorded_at").type == pa.timestamp("us", "UTC")
