"""The routes of records: inserted, updated, ingested. What these words mean stands in `model.records`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.append import Appended, AppendService
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import Time, Uuid, text_of
from eventstore.app import Store
from eventstore.model.access import Permission
from eventstore.model.records import RecordIngest, RecordInsert, RecordUpdate

__all__ = ["router"]

router = APIRouter(
    prefix="/v1/tenants/{tenant}", dependencies=[allow(Permission.APPEND), Depends(known_parameters)]
)

WithEvents = Annotated[bool, Query(description="Whether to list the seq and event_id of each event")]
_ENCODER = msgspec.json.Encoder()


class RecordBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every event of a record has in common."""

    actor: Annotated[str, text_of("actor")]
    source: Annotated[str, text_of("source")]
    workspace_id: Annotated[str, text_of("workspace_id")] | None = None
    metadata: dict[str, Any] | None = None
    event_id: Uuid | None = None
    occurred_at: Time | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class InsertBody(RecordBody):
    """A record that was made, with its fields."""

    entity_type: Annotated[str, text_of("entity_type")]
    entity_id: Annotated[str, text_of("entity_id")]
    fields: dict[str, Any]


class ChangeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A field's value before and after."""

    old: Any = None
    new: Any = None


class FieldChangeBody(ChangeBody):
    """A change that names its field."""

    field: Annotated[str, text_of("field")]


class UpdateBody(RecordBody):
    """Fields of a record that were changed: by name, or as a list in the order in which they are to be."""

    entity_type: Annotated[str, text_of("entity_type")]
    entity_id: Annotated[str, text_of("entity_id")]
    changes: (
        Annotated[dict[Annotated[str, text_of("field")], ChangeBody], msgspec.Meta(min_length=1)]
        | Annotated[list[FieldChangeBody], msgspec.Meta(min_length=1)]
    )


class IngestBody(RecordBody):
    """A batch that came into a dataset."""

    dataset: Annotated[str, text_of("entity_id")]
    count: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Flushed(msgspec.Struct, forbid_unknown_fields=True):
    """`count` events were waiting in this process, or under way, when it was asked; `last_seq` is the log's
    last seq now (0: it is empty)."""

    count: int
    last_seq: int


_ONE: Mapping[str, Any] = {
    "first_seq": 7,
    "last_seq": 7,
    "count": 1,
    "duplicates": 0,
    "events": [{"seq": 7, "event_id": "019a48f1-d680-7000-8000-0368969ec29a"}],
}
_WHO = {"actor": "anna", "source": "crm"}
_INSERT = {"entity_type": "contract", "entity_id": "c-1", "fields": {"status": "draft", "value": 120}, **_WHO}
_UPDATE = {
    "entity_type": "contract",
    "entity_id": "c-1",
    "changes": {"status": {"old": "draft", "new": "signed"}},
    **_WHO,
}
_INGEST = {"dataset": "invoices", "count": 48210, "actor": "nightly", "source": "s3://landing/2025-11-03"}


async def _record(tenant: str, request: Request, kind: Any, with_events: bool) -> Response:
    service: AppendService = request.app.state.appending
    return await service.respond(tenant, request, with_events=with_events, record=kind)


@router.post(
    "/records/insert",
    status_code=201,
    summary="A record was made",
    responses=answers(Appended, 409, 422, status=201, example=_ONE),
    openapi_extra=accepts(InsertBody, example=_INSERT),
)
async def insert(tenant: str, request: Request, events: WithEvents = True) -> Response:
    """One event: `insert` on `*`, whose new value is the object of the fields."""
    return await _record(tenant, request, RecordInsert, events)


@router.post(
    "/records/update",
    status_code=201,
    summary="Fields of a record were changed",
    responses=answers(Appended, 409, 422, status=201, example=_ONE),
    openapi_extra=accepts(UpdateBody, example=_UPDATE),
)
async def update(tenant: str, request: Request, events: WithEvents = True) -> Response:
    """An event `update` for each field, stored together or not at all."""
    return await _record(tenant, request, RecordUpdate, events)


@router.post(
    "/records/ingest",
    status_code=201,
    summary="A batch came into a dataset",
    responses=answers(Appended, 409, 422, status=201, example=_ONE),
    openapi_extra=accepts(IngestBody, example=_INGEST),
)
async def ingest(tenant: str, request: Request, events: WithEvents = True) -> Response:
    """One event: `ingest` on the entity `dataset`, whose new value is `{"count": …}`."""
    return await _record(tenant, request, RecordIngest, events)


@router.post(
    "/flush",
    summary="Wait until what was accepted is stored",
    responses=answers(Flushed, example={"count": 250, "last_seq": 1250}),
)
async def flush(tenant: str, request: Request) -> Response:
    """Answered when every append that this process took for the tenant before is durable and visible."""
    service: AppendService = request.app.state.appending
    store: Store = request.app.state.store
    count = await service.flush(tenant)
    last_seq = await run_in_threadpool(store.reader.last_seq, tenant)
    return Response(_ENCODER.encode(Flushed(count, last_seq)), media_type="application/json")
