"""What the store answers, typed. Members that a newer store adds are passed over."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import msgspec

from eventstore.client.events import Event

__all__ = [
    "Appended",
    "EntityState",
    "FeedReset",
    "FieldState",
    "Flushed",
    "Head",
    "OneEvent",
    "Page",
    "SetBy",
    "Stats",
    "Stored",
    "TierStats",
]


class Stored(msgspec.Struct, frozen=True):
    """Where an event lies: its number in the tenant's log, and its id."""

    seq: int
    event_id: uuid.UUID


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an append. `count` events are new, with the seqs `first_seq` to `last_seq` (None where
    none is); `duplicates` were stored before. `events` has one item for each event sent, in order."""

    first_seq: int | None
    last_seq: int | None
    count: int
    duplicates: int
    events: list[Stored] = []


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Events in order. `covered` says what was looked at; `next_cursor` None: there are no more."""

    events: list[Event]
    next_cursor: str | None
    covered: dict[str, Any]


class TierStats(msgspec.Struct, frozen=True):
    """How much a tier holds; `size_bytes` includes indexes."""

    events: int
    size_bytes: int = msgspec.field(name="bytes")


class Head(msgspec.Struct, frozen=True):
    """The log's end. `clock` is the time of the last event or of the last sealed window; None if empty."""

    last_seq: int
    last_hash: str
    clock: datetime | None


class _Expired(msgspec.Struct, frozen=True):
    events: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How much a tenant's log holds, by tier; `windows` counts them by state."""

    tenant: str
    hot: TierStats
    archive: TierStats
    expired: _Expired
    windows: dict[str, int]
    head: Head


class OneEvent(msgspec.Struct, frozen=True):
    event: Event


class FeedReset(msgspec.Struct, frozen=True, kw_only=True):
    """What followed the feed's cursor was destroyed. `since` is the cursor with which it goes on,
    `oldest_seq` the oldest seq that exists behind it (None: none yet), `expired` what is gone between:
    certificate, first and last seq."""

    since: int
    oldest_seq: int | None
    expired: list[tuple[int, int, int]]


class SetBy(msgspec.Struct, frozen=True, kw_only=True):
    """The event that something comes from."""

    seq: int
    event_id: uuid.UUID
    recorded_at: datetime
    actor: str


class FieldState(SetBy, frozen=True, kw_only=True):
    """A field's value, and the event that set it."""

    value: Any


class EntityState(msgspec.Struct, frozen=True, kw_only=True):
    """An entity as the log says it was.

    `exists`: it has events, and none of them ended it without one after it. `ended`: the event that did.
    `version`: the seq of its last event, 0 if it has none. `incomplete`: a part of the log was destroyed or
    could not be read (see `covered`), so a field may be missing, or too old.
    """

    entity_type: str | None
    entity_id: str
    as_of: datetime | None
    exists: bool
    version: int
    ended: SetBy | None
    fields: dict[str, FieldState]
    incomplete: bool
    covered: dict[str, Any]


class Flushed(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was accepted before is durable and visible. `count` events were waiting; `last_seq` is
    the log's end now."""

    count: int
    last_seq: int
