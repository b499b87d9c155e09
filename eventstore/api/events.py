"""The routes of events: append, and the ways to read. How a request is understood; no rule of the store."""

from __future__ import annotations

import json
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.append import ARROW, LINES, PARQUET, Appended, AppendService
from eventstore.api.conditional import ETAG, NOT_MODIFIED, IfNoneMatch, etag_of, is_match, not_modified
from eventstore.api.parameters import known_parameters, time_us
from eventstore.api.reads import Read, reading
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import (
    COVERED_EXAMPLE,
    EVENT_EXAMPLE,
    PAGE_EXAMPLE,
    STATS_EXAMPLE,
    EventInput,
    EventPage,
    OneEvent,
    Stats,
)
from eventstore.app import Store
from eventstore.clock import to_iso
from eventstore.errors import InputError
from eventstore.model.access import Permission
from eventstore.model.query import (
    PAGE_LIMIT_MAX,
    TEXT_CHARACTERS_MAX,
    EventFilter,
    Order,
    decode_cursor,
    encode_cursor,
)
from eventstore.query.reader import Page
from eventstore.query.render import event_views, json_array
from eventstore.query.stats import log_stats

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

_ENCODER = msgspec.json.Encoder()
_NEW = {"entity_type": "contract", "entity_id": "c-1", "action": "created", "actor": "anna", "source": "crm"}
_APPENDED = {
    "first_seq": 7,
    "last_seq": 7,
    "count": 1,
    "duplicates": 0,
    "events": [{"seq": 7, "event_id": "019a48f1-d680-7000-8000-0368969ec29a"}],
}


def _json(value: Any, status: int = 200) -> Response:
    return Response(_ENCODER.encode(value), status, media_type="application/json")


@router.post(
    "/events",
    status_code=201,
    dependencies=[allow(Permission.APPEND)],
    summary="Append events, all or nothing",
    responses=answers(Appended, 409, 422, status=201, example=_APPENDED),
    openapi_extra=accepts(
        EventInput | list[EventInput],
        example=[_NEW],
        media={
            LINES: ("An event a line, as a JSON object", json.dumps(_NEW) + "\n"),
            ARROW: (
                "An Arrow IPC stream whose columns are the fields of events",
                "\\xff\\xff\\xff\\xff…\\xff\\xff\\xff\\xff\\0\\0\\0\\0",
            ),
            PARQUET: ("A Parquet file whose columns are the fields of events", "PAR1…PAR1"),
        },
        description="The body may have a Content-Encoding of gzip or zstd.",
    ),
)
async def append(tenant: str, request: Request, events: bool = True) -> Response:
    """Takes one event (a JSON object), many (an array), or a stream of lines, of Arrow or of Parquet.

    Answered once the events are durable. `events=false` leaves out the list of seq and event_id.
    """
    service: AppendService = request.app.state.appending
    return await service.respond(tenant, request, with_events=events)


def event_filter(
    entity_type: str | None = None,
    entity_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    field: str | None = None,
    source: str | None = None,
    workspace_id: str | None = None,
    text: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=TEXT_CHARACTERS_MAX,
            description="Occurs in the old or the new value, in upper or lower case",
        ),
    ] = None,
    recorded_from: Annotated[str | None, Query(description="RFC 3339, inclusive")] = None,
    recorded_to: Annotated[str | None, Query(description="RFC 3339, exclusive")] = None,
    occurred_from: Annotated[str | None, Query(description="RFC 3339, inclusive")] = None,
    occurred_to: Annotated[str | None, Query(description="RFC 3339, exclusive")] = None,
    seq_from: Annotated[int | None, Query(ge=0, lt=2**63, description="inclusive")] = None,
    seq_to: Annotated[int | None, Query(ge=0, lt=2**63, description="inclusive")] = None,
) -> EventFilter:
    """The conditions of a request."""
    return EventFilter(
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        action=action,
        field=field,
        source=source,
        workspace_id=workspace_id,
        text=text,
        recorded_from_us=time_us("recorded_from", recorded_from),
        recorded_to_us=time_us("recorded_to", recorded_to),
        occurred_from_us=time_us("occurred_from", occurred_from),
        occurred_to_us=time_us("occurred_to", occurred_to),
        seq_from=seq_from,
        seq_to=seq_to,
    )


Wanted = Annotated[EventFilter, Depends(event_filter)]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT_MAX)]
Partial = Annotated[
    bool, Query(description="Answer although a segment cannot be read, and name it in `covered.unreadable`")
]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]
Reading = Annotated[Read, reading()]


@router.get(
    "/events",
    dependencies=[allow(Permission.READ)],
    summary="Events that meet conditions, a page at a time",
    responses=answers(EventPage, example=PAGE_EXAMPLE),
)
async def list_events(
    tenant: str,
    read: Reading,
    wanted: Wanted,
    order: Order = Order.ASC,
    limit: Limit = 100,
    cursor: Cursor = None,
    partial: Partial = False,
) -> Response:
    """Reads both tiers as one log. `covered` says what was looked at."""
    return await _page(read, tenant, wanted, order, limit, cursor, partial)


@router.get(
    "/history/{entity_id:path}",
    dependencies=[allow(Permission.READ)],
    summary="Everything that happened to one entity",
    responses=answers(EventPage, example=PAGE_EXAMPLE),
)
async def history(
    tenant: str,
    entity_id: str,
    read: Reading,
    entity_type: str | None = None,
    order: Order = Order.ASC,
    limit: Limit = 1000,
    cursor: Cursor = None,
    partial: Partial = False,
) -> Response:
    """The entity's events in the order of the log. The id may contain slashes."""
    wanted = event_filter(entity_type=entity_type, entity_id=entity_id)
    return await _page(read, tenant, wanted, order, limit, cursor, partial)


@router.get(
    "/recent",
    dependencies=[allow(Permission.READ)],
    summary="The newest events",
    responses=answers(EventPage, example=PAGE_EXAMPLE),
)
async def recent(tenant: str, read: Reading, limit: Limit = 50) -> Response:
    """Newest first."""
    return await _page(read, tenant, EventFilter(), Order.DESC, limit, None, False)


@router.get(
    "/events/{seq_or_event_id}",
    dependencies=[allow(Permission.READ)],
    summary="One event",
    responses=answers(
        OneEvent, 404, example={"event": EVENT_EXAMPLE, "covered": COVERED_EXAMPLE}, headers=ETAG
    )
    | NOT_MODIFIED,
)
async def one_event(
    tenant: str, seq_or_event_id: str, read: Reading, if_none_match: IfNoneMatch = None
) -> Response:
    """By its seq, or by its event_id (a UUID)."""
    seq, event_id = _named(seq_or_event_id)

    def answer() -> Response:
        with read:
            page = read.reader.event(tenant, seq=seq, event_id=event_id)
            read.covers(page.coverage, events=1)
            (view,) = event_views(page.events)
            etag = etag_of(view.hash)
            if is_match(if_none_match, etag):
                return not_modified(etag)
            answered = _json({"event": view, "covered": page.coverage.as_json()})
            answered.headers["ETag"] = etag
            return answered

    return await run_in_threadpool(answer)


def _named(seq_or_event_id: str) -> tuple[int | None, bytes | None]:
    """Which event is meant: its seq, or its event_id."""
    if seq_or_event_id.isascii() and seq_or_event_id.isdigit():
        if len(seq_or_event_id) > 18:
            raise InputError(f"{seq_or_event_id} is no seq", hint="seqs are below 10^18")
        return int(seq_or_event_id), None
    try:
        return None, UUID(seq_or_event_id).bytes
    except ValueError as e:
        raise InputError(f"{seq_or_event_id!r} is neither a seq nor a UUID") from e


@router.get(
    "/stats",
    dependencies=[allow(Permission.READ)],
    summary="How much the log holds, by tier",
    responses=answers(Stats, example=STATS_EXAMPLE),
)
async def stats(tenant: str, request: Request) -> Response:
    """Events and bytes by tier, windows by state, and the log's head."""
    store: Store = request.app.state.store
    found = await run_in_threadpool(log_stats, store.database, tenant)
    return _json(
        {
            "tenant": tenant,
            "hot": {"events": found.hot.events, "bytes": found.hot.size_bytes},
            "archive": {
                "events": found.archive.events,
                "bytes": found.archive.size_bytes,
                "segments": found.segments,
                "targets": {
                    name: {"events": tier.events, "bytes": tier.size_bytes}
                    for name, tier in found.targets.items()
                },
            },
            "expired": {"events": found.expired_events},
            "windows": {state.value: count for state, count in found.windows.items()},
            "head": {
                "last_seq": found.last_seq,
                "last_hash": found.last_hash.hex(),
                "clock": None if found.clock_us is None else to_iso(found.clock_us),
            },
        }
    )


async def _page(
    read: Read,
    tenant: str,
    wanted: EventFilter,
    order: Order,
    limit: int,
    cursor: str | None,
    partial: bool,
) -> Response:
    after = None if cursor is None else decode_cursor(cursor)

    def answer() -> Response:
        with read:
            page: Page = read.reader.page(
                tenant, wanted, order=order, after=after, limit=limit, partial=partial
            )
            read.covers(page.coverage, events=page.events.num_rows)
            return _json(
                {
                    "events": json_array(page.events),
                    "next_cursor": None if page.next_after is None else encode_cursor(page.next_after),
                    "covered": page.coverage.as_json(),
                }
            )

    return await run_in_threadpool(answer)
