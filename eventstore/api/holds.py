"""The routes of legal holds: what one may cover, placing it, and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request, Response

from eventstore.api.access import allow
from eventstore.api.governed import answering, changing, plain, read_json
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import Time
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import parse_time_us, to_iso
from eventstore.governance.holds import get_hold, list_holds, place_hold, release_hold
from eventstore.governance.scopes import preview_scope
from eventstore.model.access import Permission, Principal
from eventstore.model.hold import ENTITIES_MAX, Hold, HoldScope

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}/holds", dependencies=[Depends(known_parameters)])

Caller = Annotated[Principal, allow(Permission.HOLD)]
# Ten thousand entities with long ids.
_BODY_BYTES_MAX = 8 * 2**20


class HeldEntity(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An entity whose events are held."""

    entity_type: str
    entity_id: str


class NewScope(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """What a hold covers: events of these entities (none: all), recorded from `from` (inclusive) to `to`
    (exclusive; null: without an end on that side)."""

    entities: Annotated[list[HeldEntity], msgspec.Meta(max_length=ENTITIES_MAX)] = []
    from_: Time | None = None
    to: Time | None = None


class NewHold(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A hold to be placed. Its name is never used again in this tenant."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    scope: NewScope


class HoldRelease(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why a hold ends."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class HoldScopeView(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """What a hold covers."""

    entities: list[HeldEntity]
    from_: Time | None
    to: Time | None


class HoldCoverage(msgspec.Struct, forbid_unknown_fields=True):
    """What a scope may cover in one place (`hot`, a target's name, `being destroyed`): whole windows, and all
    events in them."""

    place: str
    windows: int
    events: int


class HoldView(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A hold. `released` null: it is in force."""

    hold_id: str
    tenant: str
    name: str
    reason: str
    placed_by: str
    placed: Time
    scope: HoldScopeView
    released: Time | None
    released_by: str | None
    release_reason: str | None
    may_cover: list[HoldCoverage] | msgspec.UnsetType = msgspec.UNSET
    warning: str | msgspec.UnsetType = msgspec.UNSET


class HoldList(msgspec.Struct, forbid_unknown_fields=True):
    """Holds in the order in which they were placed."""

    holds: list[HoldView]


class ScopeView(msgspec.Struct, forbid_unknown_fields=True):
    """What a hold of a scope may cover; never too little."""

    scope: HoldScopeView
    in_words: str
    may_cover: list[HoldCoverage]


_ENTITY = {"entity_type": "contract", "entity_id": "c-1"}
_SCOPE = {"entities": [_ENTITY], "from": "2025-01-01T00:00:00.000000Z", "to": None}
_COVERED = [{"place": "archive", "windows": 10, "events": 4_500_000}]
_VIEW = {
    "hold_id": "36ede067-2626-45c4-a238-ab3c7505e9d9",
    "tenant": "acme",
    "name": "Smith v. Acme",
    "reason": "litigation, file 7/26",
    "placed_by": "key:compliance-7k3m9q2xa4",
    "placed": "2026-01-31T12:00:00.000000Z",
    "scope": _SCOPE,
    "released": None,
    "released_by": None,
    "release_reason": None,
}
_RELEASED = {
    **_VIEW,
    "released": "2026-06-30T12:00:00.000000Z",
    "released_by": "key:compliance-7k3m9q2xa4",
    "release_reason": "settled",
}


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "hold_id": str(hold.hold_id),
        "tenant": hold.tenant_id,
        "name": hold.name,
        "reason": hold.reason,
        "placed_by": hold.placed_by,
        "placed": to_iso(hold.placed_us),
        "scope": hold.scope.as_json(),
        "released": None if hold.released_us is None else to_iso(hold.released_us),
        "released_by": hold.released_by,
        "release_reason": hold.release_reason,
    }


def _scope(given: NewScope) -> HoldScope:
    return HoldScope(
        tuple((plain("entity_type", e.entity_type), plain("entity_id", e.entity_id)) for e in given.entities),
        None if given.from_ is None else parse_time_us(given.from_),
        None if given.to is None else parse_time_us(given.to),
    )


def _may_cover(conn: sa.Connection, tenant: str, scope: HoldScope) -> list[dict[str, Any]]:
    return [
        {"place": count.place, "windows": count.windows, "events": count.events}
        for count in preview_scope(conn, tenant, scope)
    ]


@router.get("", summary="A tenant's legal holds", responses=answers(HoldList, example={"holds": [_VIEW]}))
async def holds(
    tenant: str,
    request: Request,
    caller: Caller,
    released: Annotated[bool, Query(description="Those that were released, too")] = False,
) -> Response:
    """Those in force, and with `released` all that ever were."""

    def read(store: Store) -> dict[str, Any]:
        with store.database.transaction() as conn:
            get_tenant(conn, tenant)
            found = list_holds(conn, tenant, in_force_only=not released)
        return {"holds": [_hold(hold) for hold in found]}

    return await answering(request, read)


@router.post(
    "",
    status_code=201,
    summary="Place a legal hold",
    responses=answers(HoldView, 409, status=201, example={**_VIEW, "may_cover": _COVERED}),
    openapi_extra=accepts(
        NewHold, example={"name": "Smith v. Acme", "reason": "litigation, file 7/26", "scope": _SCOPE}
    ),
)
async def place(tenant: str, request: Request, caller: Caller) -> Response:
    """With the answer, nothing that it covers and that is still there will be destroyed. A `scope` without
    members is the whole tenant, for ever."""
    wanted = await read_json(request, NewHold, bytes_max=_BODY_BYTES_MAX)
    scope = _scope(wanted.scope)

    def make(store: Store, now_us: int) -> dict[str, Any]:
        hold = place_hold(
            store.database, tenant, wanted.name, wanted.reason, caller.subject, scope, now_us=now_us
        )
        with store.database.transaction() as conn:
            return {**_hold(hold), "may_cover": _may_cover(conn, tenant, scope)}

    return await changing(request, make, status=201)


@router.post(
    "/preview",
    summary="What a legal hold may cover",
    responses=answers(
        ScopeView, example={"scope": _SCOPE, "in_words": "events of contract c-1", "may_cover": _COVERED}
    ),
    openapi_extra=accepts(NewScope, example=_SCOPE),
)
async def preview(tenant: str, request: Request, caller: Caller) -> Response:
    """Counted by windows, because a window is destroyed as a whole. Nothing is held."""
    scope = _scope(await read_json(request, NewScope, bytes_max=_BODY_BYTES_MAX))

    def read(store: Store) -> dict[str, Any]:
        with store.database.transaction() as conn:
            found = _may_cover(conn, tenant, scope)
        return {"scope": scope.as_json(), "in_words": scope.in_words(), "may_cover": found}

    return await answering(request, read)


@router.post(
    "/{name:path}/release",
    summary="End a legal hold",
    responses=answers(HoldView, 409, example=_RELEASED),
    openapi_extra=accepts(HoldRelease, example={"reason": "settled"}),
)
async def release(tenant: str, name: str, request: Request, caller: Caller) -> Response:
    """What other holds cover as well stays held."""
    wanted = await read_json(request, HoldRelease)

    def end(store: Store, now_us: int) -> dict[str, Any]:
        which = plain("the hold's name", name)
        return _hold(release_hold(store.database, tenant, which, caller.subject, wanted.reason, now_us))

    return await changing(request, end)


@router.get("/{name:path}", summary="One legal hold", responses=answers(HoldView, example=_VIEW))
async def one_hold(tenant: str, name: str, request: Request, caller: Caller) -> Response:
    """In force or released, with what it may cover now. The name may contain slashes."""

    def read(store: Store) -> dict[str, Any]:
        with store.database.transaction() as conn:
            hold = get_hold(conn, tenant, plain("the hold's name", name))
            return {**_hold(hold), "may_cover": _may_cover(conn, tenant, hold.scope)}

    return await answering(request, read)
