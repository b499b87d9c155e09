"""Events as the client takes and gives them, and their JSON."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from eventstore.errors import InvalidEventError, Place
from eventstore.model.event import WHOLE_ENTITY, uuid7
from eventstore.model.event import NewEvent as Accepted

__all__ = ["Event", "EventIds", "NewEvent", "Recordable", "decode_event", "encode_event", "validate_line"]


class NewEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event to be stored. `old_value` and `new_value` are any JSON values, `metadata` a JSON object.

    Without an `event_id` the client gives one, so that sending it again stores nothing twice.
    `expected_version`: append only if this is the seq of the entity's last event (0: it has none).
    """

    entity_type: str
    entity_id: str
    action: str
    actor: str
    source: str
    field: str = WHOLE_ENTITY
    old_value: Any = None
    new_value: Any = None
    workspace_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    event_id: uuid.UUID | str | None = None
    occurred_at: datetime | str | None = None
    expected_version: int | None = None


# What can be stored: a `NewEvent`, or a mapping with the same names.
Recordable: TypeAlias = NewEvent | Mapping[str, Any]


class Event(msgspec.Struct, kw_only=True, frozen=True):
    """A stored event. `seq` is its number in the tenant's log, `hash` its link in the chain (hexadecimal)."""

    seq: int
    event_id: uuid.UUID
    recorded_at: datetime
    occurred_at: datetime
    entity_type: str
    entity_id: str
    action: str
    field: str
    old_value: Any
    new_value: Any
    actor: str
    source: str
    workspace_id: str | None
    metadata: dict[str, Any] | None
    hash: str


@dataclass(slots=True)
class EventIds:
    """Gives event_ids that rise in the order in which they are asked for."""

    _ordinals: Iterator[int] = field(default_factory=itertools.count)

    def next(self) -> uuid.UUID:
        return uuid.UUID(bytes=uuid7(time.time_ns() // 1000, next(self._ordinals)))


_ENCODER = msgspec.json.Encoder()
_ACCEPTED = msgspec.json.Decoder(Accepted)
_EVENT = msgspec.json.Decoder(Event)


def decode_event(data: bytes | str) -> Event:
    """The stored event in a JSON object."""
    return _EVENT.decode(data)


def encode_event(
    event: Recordable, ids: EventIds, *, index: int | None = None, occurred_now: bool = False
) -> bytes:
    """An event as one line of JSON (without a newline), with an event_id.

    `occurred_now` sets an absent occurred_at to this moment. `index` is its place in a request, for errors.

    Raises:
        InvalidEventError: it is no JSON.
    """
    fields: dict[str, Any]
    if isinstance(event, NewEvent):
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
    elif isinstance(event, Mapping):
        fields = dict(event)
    else:
        raise InvalidEventError(
            f"{type(event).__name__} is no event",
            place=Place(index=index),
            hint="give a NewEvent or a mapping",
        )
    if fields.get("event_id") is None:
        fields["event_id"] = ids.next()
    if occurred_now and fields.get("occurred_at") is None:
        fields["occurred_at"] = datetime.now(UTC)
    try:
        return _ENCODER.encode({name: value for name, value in fields.items() if value is not None})
    except (TypeError, ValueError, RecursionError, OverflowError) as e:
        place = Place(index=index)
        where = f"{place}: " if index is not None else ""
        raise InvalidEventError(
            f"{where}is no JSON: {e}", place=place, hint="values are what JSON can hold"
        ) from e


def validate_line(line: bytes) -> uuid.UUID:
    """Check a line against the model as the store does, as far as that can be known here; its event_id.

    Raises:
        InvalidEventError: names the field.
    """
    try:
        event = _ACCEPTED.decode(line)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _invalid(str(e), None) from e
    if event.metadata and bytes(event.metadata)[:1] != b"{":
        raise _invalid("must be a JSON object", "metadata")
    if b"\\u0000" in line and _has_nul(msgspec.json.decode(line)):
        raise _invalid("has a NUL character", None)
    if event.expected_version is not None:
        raise _invalid("an event that is sent later has no version to expect", "expected_version")
    assert event.event_id is not None, "every line is given an id"
    return event.event_id


def _invalid(reason: str, name: str | None) -> InvalidEventError:
    place = Place(field=name)
    return InvalidEventError(
        f"{place}: {reason}" if name else reason, place=place, hint="see docs/reference/events.md"
    )


def _has_nul(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item
    return False
