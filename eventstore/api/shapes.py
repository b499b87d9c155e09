"""The shapes that several routes share: events, pages of them, and what an answer covered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from eventstore.model.event import TEXT_LIMITS

__all__ = [
    "COVERED_EXAMPLE",
    "EVENT_EXAMPLE",
    "PAGE_EXAMPLE",
    "Covered",
    "EventInput",
    "EventPage",
    "ExpiredSeqs",
    "OneEvent",
    "SeqRange",
    "StoredEvent",
    "Time",
]

Time = Annotated[str, msgspec.Meta(description="RFC 3339, UTC", extra_json_schema={"format": "date-time"})]
_Uuid = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
_Seq = Annotated[int, msgspec.Meta(ge=1)]


def _text(name: str) -> msgspec.Meta:
    return msgspec.Meta(min_length=1, max_length=TEXT_LIMITS[name])


class StoredEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event as the log keeps it."""

    seq: _Seq
    event_id: _Uuid
    recorded_at: Time
    occurred_at: Time
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
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class EventInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An event as a caller sends it. null in an optional member means the same as leaving it out."""

    entity_type: Annotated[str, _text("entity_type")]
    entity_id: Annotated[str, _text("entity_id")]
    action: Annotated[str, _text("action")]
    actor: Annotated[str, _text("actor")]
    source: Annotated[str, _text("source")]
    field: Annotated[str, _text("field")] = "*"
    old_value: Any = None
    new_value: Any = None
    workspace_id: Annotated[str, _text("workspace_id")] | None = None
    metadata: dict[str, Any] | None = None
    event_id: _Uuid | None = None
    occurred_at: Time | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class SeqRange(msgspec.Struct, forbid_unknown_fields=True):
    """Both ends inclusive."""

    first_seq: _Seq
    last_seq: _Seq


class ExpiredSeqs(msgspec.Struct, forbid_unknown_fields=True):
    """A range that was destroyed; the certificate of that number stands for it."""

    first_seq: _Seq
    last_seq: _Seq
    certificate: int


class UnreadableSegment(msgspec.Struct, forbid_unknown_fields=True):
    """A segment that had to be read and could not be."""

    target: str
    key: str
    first_seq: _Seq
    last_seq: _Seq
    window_from: Time
    window_to: Time
    error: str


class Covered(msgspec.Struct, forbid_unknown_fields=True):
    """The seqs that were looked at, by tier, and what could not be."""

    hot: list[SeqRange]
    archive: list[SeqRange]
    archive_windows: int
    archive_from: Time | None
    archive_to: Time | None
    archive_bytes: int
    expired: list[ExpiredSeqs]
    unreadable: list[UnreadableSegment]


class EventPage(msgspec.Struct, forbid_unknown_fields=True):
    """Events in order. `next_cursor` null: there are no more."""

    events: list[StoredEvent]
    next_cursor: str | None
    covered: Covered


class OneEvent(msgspec.Struct, forbid_unknown_fields=True):
    """One event, and where it was looked for."""

    event: StoredEvent
    covered: Covered


EVENT_EXAMPLE: Mapping[str, Any] = {
    "seq": 1,
    "event_id": "019a48f1-d680-7000-8000-0368969ec29a",
    "recorded_at": "2025-11-03T09:00:00.000000Z",
    "occurred_at": "2025-11-03T09:00:00.000000Z",
    "entity_type": "contract",
    "entity_id": "c-1",
    "action": "created",
    "field": "*",
    "old_value": None,
    "new_value": "draft",
    "actor": "anna",
    "source": "legacy",
    "workspace_id": None,
    "metadata": None,
    "hash": "fac4dad1d8da161fc7174574f3214101f3c62b8cfd0d37c3e6a7999bc2bffb87",
}
COVERED_EXAMPLE: Mapping[str, Any] = {
    "hot": [],
    "archive": [{"first_seq": 1, "last_seq": 2}],
    "archive_windows": 1,
    "archive_from": "2025-11-01T00:00:00.000000Z",
    "archive_to": "2025-12-01T00:00:00.000000Z",
    "archive_bytes": 7698,
    "expired": [],
    "unreadable": [],
}
PAGE_EXAMPLE: Mapping[str, Any] = {"events": [EVENT_EXAMPLE], "next_cursor": "1", "covered": COVERED_EXAMPLE}
