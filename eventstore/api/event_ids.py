"""Whether an event is stored, for who sent it and got no answer: appending again looks in the hot tier
alone."""

from __future__ import annotations

from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.limits import meter_of
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import answers
from eventstore.app import Store
from eventstore.errors import InputError
from eventstore.model.access import Permission
from eventstore.query.render import format_uuid

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

_ENCODER = msgspec.json.Encoder()


class StoredId(msgspec.Struct, forbid_unknown_fields=True):
    """Where an event lies, and nothing else of it."""

    seq: int
    event_id: str


@router.get(
    "/event-ids/{event_id}",
    dependencies=[allow(Permission.APPEND)],
    summary="Whether an event is stored, in either tier",
    responses=answers(StoredId, 404, example={"seq": 5, "event_id": "019a48f1-d680-7000-8000-0368969ec29a"}),
)
async def stored(tenant: str, event_id: str, request: Request) -> Response:
    """For who appends and got no answer: the seq of its event, or 404. It says no more than the answer to
    sending it again would, and needs the same permission."""
    try:
        octets = UUID(event_id).bytes
    except ValueError as e:
        raise InputError(f"{event_id!r} is no UUID") from e
    store: Store = request.app.state.store
    meter = meter_of(request)
    reader = store.reader if meter is None else store.reader.metered(meter)
    page = await run_in_threadpool(reader.event, tenant, event_id=octets)
    found = StoredId(page.events.column("seq")[0].as_py(), format_uuid(octets))
    return Response(_ENCODER.encode(found), media_type="application/json")
