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
    "STATS_EXAMPLE",
    "Covered",
    "EventInput",
    "EventPage",
    "ExpiredSeqs",
    "OneEvent",
    "SeqRange",
    "Stats",
    "StoredEvent",
    "Time",
    "Uuid",
    "text_of",
]

Time = Annotated[str, msgspec.Meta(description="RFC 3339, UTC", extra_json_schema={"format": "date-time"})]
Uuid = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
_Seq = Annotated[int, msgspec.Meta(ge=1)]


def text_of(name: str) -> msgspec.Meta:
    """The limits of a text field of an event."""
    return msgspec.Meta(min_length=1, max_length=TEXT_LIMITS[name])


class StoredEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event as the log keeps it."""

    seq: _Seq
    event_id: Uuid
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

    entity_type: Annotated[str, text_of("entity_type")]
    entity_id: Annotated[str, text_of("entity_id")]
    action: Annotated[str, text_of("action")]
    actor: Annotated[str, text_of("actor")]
    source: Annotated[str, text_of("source")]
    field: Annotated[str, text_of("field")] = "*"
    old_value: Any = None
    new_value: Any = None
    workspace_id: Annotated[str, text_of("workspace_id")] | None = None
    metadata: dict[str, Any] | None = None
    event_id: Uuid | None = None
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


class TierSize(msgspec.Struct, forbid_unknown_fields=True):
    """What a tier, or an archive target, holds."""

    events: int
    bytes: int


class ArchiveSize(TierSize):
    """What the archive holds, in all and by target."""

    segments: int
    targets: dict[str, TierSize]


class ExpiredSize(msgspec.Struct, forbid_unknown_fields=True):
    """What was destroyed; certificates stand for it."""

    events: int


class WindowCounts(msgspec.Struct, forbid_unknown_fields=True):
    """Windows by state."""

    open: int
    sealed: int
    archived: int
    dropped: int
    expired: int


class LogHead(msgspec.Struct, forbid_unknown_fields=True):
    """Where the log ends. `clock` null: it is empty."""

    last_seq: int
    last_hash: str
    clock: Time | None


class Stats(msgspec.Struct, forbid_unknown_fields=True):
    """How much a log holds."""

    tenant: str
    hot: TierSize
    archive: ArchiveSize
    expired: ExpiredSize
    windows: WindowCounts
    head: LogHead


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
STATS_EXAMPLE: Mapping[str, Any] = {
    "tenant": "acme",
    "hot": {"events": 8, "bytes": 65536},
    "archive": {
        "events": 4,
        "bytes": 7698,
        "segments": 2,
        "targets": {"archive": {"events": 4, "bytes": 7698}},
    },
    "expired": {"events": 0},
    "windows": {"open": 1, "sealed": 0, "archived": 0, "dropped": 2, "expired": 0},
    "head": {"last_seq": 12, "last_hash": "822d01f3" * 8, "clock": "2026-11-21T08:39:00.306587Z"},
}
