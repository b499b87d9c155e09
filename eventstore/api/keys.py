"""The routes of API keys: of the whole deployment, and of one tenant for its own administrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.governed import read_json
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import Time
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import parse_time_us, to_iso
from eventstore.errors import ForbiddenError, InputError
from eventstore.governance.keys import create_key, list_keys, revoke_key, rotate_key
from eventstore.governance.record import mirror_or_warn
from eventstore.model.access import Permission, Principal, Role
from eventstore.model.apikey import ApiKey, KeyState
from eventstore.model.limits import Limits
from eventstore.model.policy import parse_duration_us
from eventstore.model.query import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(dependencies=[Depends(known_parameters)])

Body = TypeVar("Body")

KEYS_MAX = 1000
_BODY_BYTES_MAX = 16_384
_OVERLAP = "1d"
_ENCODER = msgspec.json.Encoder()
# An answer that shows a key is for whoever asked, and for nobody's cache.
_NO_STORE = {"Cache-Control": "no-store"}


class NewTenantKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. It ends at `expires` or after `expires_in`, or never. One that a tenant's own
    administrator makes has the limits of its maker."""

    role: Role
    label: str = ""
    expires: Time | None = None
    expires_in: Annotated[str, msgspec.Meta(description="a duration, e.g. 90d")] | None = None
    limits: Annotated[
        dict[str, int], msgspec.Meta(description="that differ from the deployment's; for its own keys alone")
    ] = {}


class NewKey(NewTenantKey, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. It ends at `expires` or after `expires_in`, or never. `tenant` null: it is of the
    whole deployment."""

    tenant: str | None = None


class Rotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a key is replaced. The new one lasts as long as the old one was made to, unless this says else."""

    overlap: Annotated[str, msgspec.Meta(description="how long the old key still holds, e.g. 1d or 0s")] = (
        _OVERLAP
    )
    expires: Time | None = None
    expires_in: Annotated[str, msgspec.Meta(description="a duration, e.g. 90d")] | None = None


class KeyView(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A key as it is listed. null in a time: it has not come, or never will."""

    key_id: str
    tenant: str | None
    role: Role
    label: str
    state: KeyState
    limits: dict[str, int]
    created: Time
    created_by: str
    expires: Time | None
    last_used: Time | None
    revoked: Time | None
    revoked_by: str | None
    replaces: str | None
    warning: str | msgspec.UnsetType = msgspec.UNSET


class ShownKey(KeyView, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A new key, with its text in `key`: no other answer shows it."""

    key: str


class KeyPage(msgspec.Struct, forbid_unknown_fields=True):
    """Keys in the order in which they were made."""

    keys: list[KeyView]
    next_cursor: str | None


_VIEW: dict[str, object] = {
    "key_id": "writer-7k3m9q2xa4",
    "tenant": "acme",
    "role": "writer",
    "label": "billing",
    "state": "active",
    "limits": {},
    "created": "2026-01-31T12:00:00.000000Z",
    "created_by": "key:administrator-p5d8w1n6c2",
    "expires": None,
    "last_used": None,
    "revoked": None,
    "revoked_by": None,
    "replaces": None,
}
_SHOWN = {**_VIEW, "key": "es_writer-7k3m9q2xa4_" + "0123456789abcdefghjkmnpqrstv" * 2}
_ROTATION = {"overlap": "1d"}
Caller = Annotated[Principal, allow(Permission.ADMINISTER)]
Ended = Annotated[bool, Query(description="Those that expired or were revoked, too")]
KeyLimit = Annotated[int, Query(ge=1, le=KEYS_MAX)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]


# --- of the deployment --------------------------------------------------------------------------------


@router.get(
    "/v1/keys",
    summary="All keys, of the deployment and of tenants",
    responses=answers(KeyPage, example={"keys": [_VIEW], "next_cursor": None}),
)
async def list_all(
    request: Request, caller: Caller, ended: Ended = False, limit: KeyLimit = 100, cursor: Cursor = None
) -> Response:
    """A key's text is never shown again."""
    return await _list(request, None, ended, limit, cursor)


@router.post(
    "/v1/keys",
    status_code=201,
    summary="Make a key of the deployment, or of a tenant",
    responses=answers(ShownKey, 404, 409, status=201, example=_SHOWN),
    openapi_extra=accepts(NewKey, example={"role": "writer", "tenant": "acme", "expires_in": "90d"}),
)
async def create(request: Request, caller: Caller) -> Response:
    """The answer shows the key's text, this once."""
    wanted = await read_json(request, NewKey)
    return await _create(request, caller, wanted, wanted.tenant)


@router.delete(
    "/v1/keys/{key_id}",
    summary="Revoke a key, at once and everywhere",
    responses=answers(KeyView, 404, 409, example={**_VIEW, "state": "revoked"}),
)
async def revoke(key_id: str, request: Request, caller: Caller) -> Response:
    """With the answer, no process takes the key any more."""
    return await _revoke(request, caller, key_id, None)


@router.post(
    "/v1/keys/{key_id}/rotate",
    status_code=201,
    summary="Replace a key by a new one, both in force for a while",
    responses=answers(ShownKey, 404, 409, status=201, example=_SHOWN),
    openapi_extra=accepts(Rotation, example=_ROTATION, required=False),
)
async def rotate(key_id: str, request: Request, caller: Caller) -> Response:
    """The answer shows the new key's text, this once. The old one ends after the overlap."""
    return await _rotate(request, caller, key_id, None)


# --- of a tenant --------------------------------------------------------------------------------------


@router.get(
    "/v1/tenants/{tenant}/keys",
    summary="A tenant's keys",
    responses=answers(KeyPage, example={"keys": [_VIEW], "next_cursor": None}),
)
async def list_of_tenant(
    tenant: str,
    request: Request,
    caller: Caller,
    ended: Ended = False,
    limit: KeyLimit = 100,
    cursor: Cursor = None,
) -> Response:
    """A key's text is never shown again."""
    return await _list(request, tenant, ended, limit, cursor)


@router.post(
    "/v1/tenants/{tenant}/keys",
    status_code=201,
    summary="Make a key of the tenant",
    responses=answers(ShownKey, 409, status=201, example=_SHOWN),
    openapi_extra=accepts(NewTenantKey, example={"role": "writer", "expires_in": "90d"}),
)
async def create_of_tenant(tenant: str, request: Request, caller: Caller) -> Response:
    """The answer shows the key's text, this once."""
    return await _create(request, caller, await read_json(request, NewTenantKey), tenant)


@router.delete(
    "/v1/tenants/{tenant}/keys/{key_id}",
    summary="Revoke a key of the tenant, at once and everywhere",
    responses=answers(KeyView, 409, example={**_VIEW, "state": "revoked"}),
)
async def revoke_of_tenant(tenant: str, key_id: str, request: Request, caller: Caller) -> Response:
    """With the answer, no process takes the key any more."""
    return await _revoke(request, caller, key_id, tenant)


@router.post(
    "/v1/tenants/{tenant}/keys/{key_id}/rotate",
    status_code=201,
    summary="Replace a key of the tenant by a new one, both in force for a while",
    responses=answers(ShownKey, 409, status=201, example=_SHOWN),
    openapi_extra=accepts(Rotation, example=_ROTATION, required=False),
)
async def rotate_of_tenant(tenant: str, key_id: str, request: Request, caller: Caller) -> Response:
    """The answer shows the new key's text, this once. The old one ends after the overlap."""
    return await _rotate(request, caller, key_id, tenant)


# --- what they do -------------------------------------------------------------------------------------


async def _list(
    request: Request, tenant: str | None, ended: bool, limit: int, cursor: str | None
) -> Response:
    store: Store = request.app.state.store
    after = 0 if cursor is None else decode_cursor(cursor)

    def read() -> Response:
        now_us = store.database.now_us()
        with store.database.transaction() as conn:
            if tenant is not None:
                get_tenant(conn, tenant)
            keys, following = list_keys(
                conn, tenant_id=tenant, now_us=now_us, ended=ended, after=after, limit=limit
            )
        views = [KeyView(**_members(key, now_us)) for key in keys]
        return _json(KeyPage(views, None if following is None else encode_cursor(following)))

    return await run_in_threadpool(read)


async def _create(request: Request, caller: Principal, wanted: NewTenantKey, tenant: str | None) -> Response:
    limits = Limits.of_json(wanted.limits)
    if wanted.limits and caller.tenant is not None:
        raise ForbiddenError(
            "limits are the deployment's to give", hint="leave limits out, or ask its administrator"
        )
    if caller.tenant is not None and caller.limits is not None:
        limits = caller.limits  # or it would rid itself of them by a key of its own making

    def make(store: Store, now_us: int) -> KeyView:
        key, text = create_key(
            store.database,
            role=wanted.role,
            tenant_id=tenant,
            by=caller.subject,
            now_us=now_us,
            label=wanted.label,
            expires_us=_expiry(wanted.expires, wanted.expires_in, now_us),
            limits=limits,
        )
        return ShownKey(key=text, **_members(key, now_us))

    return await _changing(request, make, status=201)


async def _revoke(request: Request, caller: Principal, key_id: str, tenant: str | None) -> Response:
    def end(store: Store, now_us: int) -> KeyView:
        key = revoke_key(store.database, key_id, by=caller.subject, now_us=now_us, tenant_id=tenant)
        return KeyView(**_members(key, now_us))

    return await _changing(request, end)


async def _rotate(request: Request, caller: Principal, key_id: str, tenant: str | None) -> Response:
    wanted = await read_json(request, Rotation)
    overlap_us = parse_duration_us(wanted.overlap)

    def replace(store: Store, now_us: int) -> KeyView:
        key, text, _ = rotate_key(
            store.database,
            key_id,
            by=caller.subject,
            now_us=now_us,
            overlap_us=overlap_us,
            expires_us=_expiry(wanted.expires, wanted.expires_in, now_us),
            tenant_id=tenant,
        )
        return ShownKey(key=text, **_members(key, now_us))

    return await _changing(request, replace, status=201)


async def _changing(
    request: Request, change: Callable[[Store, int], KeyView], *, status: int = 200
) -> Response:
    store: Store = request.app.state.store

    def run() -> Response:
        view = change(store, store.database.now_us())
        warning = mirror_or_warn(store.database, store.targets)
        if warning is not None:
            view.warning = warning
        return _json(view, status)

    return await run_in_threadpool(run)


def _expiry(expires: str | None, expires_in: str | None, now_us: int) -> int | None:
    if expires is not None and expires_in is not None:
        raise InputError("expires and expires_in are both given", hint="give one of them, or none")
    if expires_in is not None:
        return now_us + parse_duration_us(expires_in)
    return None if expires is None else parse_time_us(expires)


def _members(key: ApiKey, now_us: int) -> dict[str, Any]:
    def time(us: int | None) -> str | None:
        return None if us is None else to_iso(us)

    return {
        "key_id": key.key_id,
        "tenant": key.tenant_id,
        "role": key.role,
        "label": key.label,
        "state": key.state(now_us),
        "limits": key.limits.as_json(),
        "created": to_iso(key.created_us),
        "created_by": key.created_by,
        "expires": time(key.expires_us),
        "last_used": time(key.last_used_us),
        "revoked": time(key.revoked_us),
        "revoked_by": key.revoked_by,
        "replaces": key.replaces,
    }


def _json(value: Any, status: int = 200) -> Response:
    return Response(_ENCODER.encode(value), status, headers=_NO_STORE, media_type="application/json")
