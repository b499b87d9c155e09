"""The route of entities: their fields as the log says they were."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.parameters import known_parameters, time_us
from eventstore.api.reads import Read, reading
from eventstore.api.schemas import answers
from eventstore.api.shapes import COVERED_EXAMPLE, EVENT_EXAMPLE, Covered, Time, Uuid
from eventstore.clock import to_iso
from eventstore.model.access import Permission
from eventstore.query.as_of import EntityState, Origin, Setting, entity_as_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

_ENCODER = msgspec.json.Encoder()


class SetBy(msgspec.Struct, forbid_unknown_fields=True):
    """The event that something comes from."""

    seq: int
    event_id: Uuid
    recorded_at: Time
    actor: str


class FieldState(SetBy):
    """A field's value, and the event that set it."""

    value: Any


class EntityAsOf(msgspec.Struct, forbid_unknown_fields=True):
    """An entity as it was.

    `exists`: it has events, and none of them ended it without one after it. `ended`: the event that did.
    `version`: the seq of its last event, 0 if it has none. `incomplete`: a part of the log that may have held
    events of it was destroyed or could not be read (see `covered`), so a field may be missing, or too old.
    """

    entity_type: str | None
    entity_id: str
    as_of: Time | None
    exists: bool
    version: int
    ended: SetBy | None
    fields: dict[str, FieldState]
    incomplete: bool
    covered: Covered


_SET_BY = {name: EVENT_EXAMPLE[name] for name in ("seq", "event_id", "recorded_at", "actor")}
_EXAMPLE = {
    "entity_type": "contract",
    "entity_id": "c-1",
    "as_of": "2025-11-30T00:00:00.000000Z",
    "exists": True,
    "version": 1,
    "ended": None,
    "fields": {"*": {**_SET_BY, "value": "draft"}},
    "incomplete": False,
    "covered": COVERED_EXAMPLE,
}


@router.get(
    "/entities/{entity_id:path}",
    dependencies=[allow(Permission.READ)],
    summary="An entity's fields as they were",
    responses=answers(EntityAsOf, example=_EXAMPLE),
)
async def entity(
    tenant: str,
    entity_id: str,
    read: Annotated[Read, reading()],
    entity_type: Annotated[
        str | None, Query(description="Needed where entities of several types have this id")
    ] = None,
    as_of: Annotated[
        str | None, Query(description="RFC 3339: events recorded up to then, inclusive. Now, unless given")
    ] = None,
    partial: Annotated[
        bool, Query(description="Answer although a segment cannot be read, and name it in `covered`")
    ] = False,
) -> Response:
    """Each with the event that set it. The id may contain slashes."""
    as_of_us = time_us("as_of", as_of)

    def answer() -> Response:
        with read:
            state = entity_as_of(
                read.reader,
                tenant,
                entity_id,
                entity_type=entity_type,
                as_of_us=as_of_us,
                partial=partial,
            )
            read.covers(state.coverage, events=len(state.fields))
            return Response(_ENCODER.encode(_shown(state, as_of_us)), media_type="application/json")

    return await run_in_threadpool(answer)


def _shown(state: EntityState, as_of_us: int | None) -> dict[str, Any]:
    return {
        "entity_type": state.entity_type,
        "entity_id": state.entity_id,
        "as_of": None if as_of_us is None else to_iso(as_of_us),
        "exists": state.exists,
        "version": state.version,
        "ended": None if state.ended is None else _origin(state.ended),
        "fields": {name: _field(setting) for name, setting in state.fields.items()},
        "incomplete": state.is_incomplete,
        "covered": state.coverage.as_json(),
    }


def _field(setting: Setting) -> dict[str, Any]:
    value = msgspec.Raw((setting.value or "null").encode())
    return {"value": value, **_origin(setting.origin)}


def _origin(origin: Origin) -> dict[str, Any]:
    return {
        "seq": origin.seq,
        "event_id": origin.event_id,
        "recorded_at": origin.recorded_at,
        "actor": origin.actor,
    }
