"""What happens to records, as events: inserted, updated field by field, ingested as a batch of a dataset.

The one place where these words get their meaning; the API and the client both use it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec

from eventstore.model.event import TEXT_LIMITS, WHOLE_ENTITY, NewEvent

__all__ = [
    "DATASET",
    "DELETE_ACTIONS",
    "INGEST",
    "INSERT",
    "UPDATE",
    "Change",
    "FieldChange",
    "RecordIngest",
    "RecordInsert",
    "RecordUpdate",
    "derived_id",
]

INSERT = "insert"
UPDATE = "update"
INGEST = "ingest"
DATASET = "dataset"  # the entity_type of ingested batches
# Actions that, on the whole entity, end it. An event after them begins it anew.
DELETE_ACTIONS = frozenset({"delete", "deleted"})


def _text(name: str) -> msgspec.Meta:
    return msgspec.Meta(min_length=1, max_length=TEXT_LIMITS[name])


class _Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every event of a record has in common; see `NewEvent`."""

    actor: Annotated[str, _text("actor")]
    source: Annotated[str, _text("source")]
    workspace_id: Annotated[str, _text("workspace_id")] | None = None
    metadata: msgspec.Raw = msgspec.Raw()
    event_id: uuid.UUID | None = None
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class RecordInsert(_Record):
    """A record was made, with these fields: one event `insert` on `*`, whose new value is the object of the
    fields."""

    entity_type: Annotated[str, _text("entity_type")]
    entity_id: Annotated[str, _text("entity_id")]
    fields: msgspec.Raw

    def events(self) -> list[NewEvent]:
        return [
            NewEvent(
                **_common(self),
                entity_type=self.entity_type,
                entity_id=self.entity_id,
                action=INSERT,
                field=WHOLE_ENTITY,
                new_value=self.fields,
            )
        ]


class Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A field's value before and after. Left out is null: there was none, or there is none any more."""

    old: msgspec.Raw = msgspec.Raw()
    new: msgspec.Raw = msgspec.Raw()


class FieldChange(Change):
    """A change that names its field."""

    field: Annotated[str, _text("field")]


class RecordUpdate(_Record):
    """Fields of a record were changed: an event `update` for each, in the order given, stored together.

    The first has the update's `event_id` and `expected_version`; the ids of the others are made from it and
    their field (`derived_id`), so that the same update sent again is the same events.
    """

    entity_type: Annotated[str, _text("entity_type")]
    entity_id: Annotated[str, _text("entity_id")]
    changes: dict[Annotated[str, _text("field")], Change] | list[FieldChange]

    def events(self) -> list[NewEvent]:
        """No event at all if there are no changes."""
        events: list[NewEvent] = []
        common = _common(self)
        for name, change in _named(self.changes):
            if events:
                following = None if self.event_id is None else derived_id(self.event_id, name)
                common |= {"event_id": following, "expected_version": None}
            events.append(
                NewEvent(
                    **common,
                    entity_type=self.entity_type,
                    entity_id=self.entity_id,
                    action=UPDATE,
                    field=name,
                    old_value=change.old,
                    new_value=change.new,
                )
            )
        return events


class RecordIngest(_Record):
    """A batch came into a dataset: one event `ingest` of the entity `dataset`, whose new value is
    `{"count": …}`. `source` is where the batch came from."""

    dataset: Annotated[str, _text("entity_id")]
    count: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

    def events(self) -> list[NewEvent]:
        return [
            NewEvent(
                **_common(self),
                entity_type=DATASET,
                entity_id=self.dataset,
                action=INGEST,
                field=WHOLE_ENTITY,
                new_value=msgspec.Raw(msgspec.json.encode({"count": self.count})),
            )
        ]


def derived_id(event_id: uuid.UUID, field: str) -> uuid.UUID:
    """The id of a further event of one request: the time and version of the request's id (a UUIDv7 stays
    one), and behind the variant what SHA-256 makes of the id and the field."""
    digest = hashlib.sha256(b"eventstore/record/v1" + event_id.bytes + field.encode()).digest()
    variant = bytes([0x80 | digest[0] & 0x3F])
    return uuid.UUID(bytes=event_id.bytes[:8] + variant + digest[1:8])


def _common(record: _Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _Record.__struct_fields__}


def _named(changes: Mapping[str, Change] | list[FieldChange]) -> list[tuple[str, Change]]:
    if isinstance(changes, Mapping):
        return list(changes.items())
    return [(change.field, change) for change in changes]
