"""The routes of tenants: which there are, one of them, and a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from eventstore.api.access import allow
from eventstore.api.governed import answering, changing, plain, read_json
from eventstore.api.parameters import known_parameters
from eventstore.api.policies import PolicyDocument, PolicyMembers, override_from
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import Time
from eventstore.catalog.tenants import get_tenant, list_tenants
from eventstore.clock import to_iso
from eventstore.governance.policies import policies_of_all, policy_of
from eventstore.governance.tenants import create_tenant
from eventstore.model.access import Permission, Principal
from eventstore.model.policy import PolicyInForce
from eventstore.model.tenant import TENANT_ID_PATTERN, Tenant, TenantState

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants", dependencies=[Depends(known_parameters)])

TENANTS_MAX = 1000
Name = Annotated[str, msgspec.Meta(pattern=f"^{TENANT_ID_PATTERN}$")]


class NewTenant(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tenant to be made. `policy` is what it says differently from the deployment's default."""

    tenant: Name
    policy: PolicyMembers | None = None


class TenantView(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tenant. `state` closing: it is being offboarded; closed: its history is destroyed."""

    tenant: str
    state: TenantState
    created: Time
    policy: PolicyDocument
    policy_no: int
    in_words: str
    warning: str | msgspec.UnsetType = msgspec.UNSET


class TenantPage(msgspec.Struct, forbid_unknown_fields=True):
    """Tenants by name. `next_cursor` null: there are no more."""

    tenants: list[TenantView]
    next_cursor: str | None


_VIEW: dict[str, Any] = {
    "tenant": "acme",
    "state": "active",
    "created": "2026-01-31T12:00:00.000000Z",
    "policy": {
        "window": "month",
        "hot_for": "90d",
        "tiers": [{"target": "archive"}],
        "then": "keep",
        "quality": {"volume": "warn"},
    },
    "policy_no": 0,
    "in_words": "windows of one month, hot for 90d, then archive, then kept there for ever",
}


def _view(tenant: Tenant, found: PolicyInForce) -> dict[str, Any]:
    return {
        "tenant": tenant.tenant_id,
        "state": tenant.state.value,
        "created": to_iso(tenant.created_at_us),
        "policy": found.policy.as_json(),
        "policy_no": found.policy_no,
        "in_words": found.policy.in_words(),
    }


@router.get(
    "",
    dependencies=[allow(Permission.ADMINISTER)],
    summary="All tenants, a page at a time",
    responses=answers(TenantPage, example={"tenants": [_VIEW], "next_cursor": None}),
)
async def tenants(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=TENANTS_MAX)] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """By name, with the policy in force."""
    after = "" if cursor is None else plain("cursor", cursor)

    def read(store: Store) -> dict[str, Any]:
        now_us = store.database.now_us()
        with store.database.transaction() as conn:
            found = [t for t in list_tenants(conn) if t.tenant_id > after]
            policies = policies_of_all(conn, now_us)
        page = found[:limit]
        return {
            "tenants": [_view(t, policies[t.tenant_id]) for t in page],
            "next_cursor": page[-1].tenant_id if len(found) > limit else None,
        }

    return await answering(request, read)


@router.post(
    "",
    status_code=201,
    summary="Make a tenant, with an empty log",
    responses=answers(TenantView, 409, status=201, example=_VIEW),
    openapi_extra=accepts(NewTenant, example={"tenant": "acme", "policy": {"hot_for": "30d"}}),
)
async def create(request: Request, caller: Annotated[Principal, allow(Permission.ADMINISTER)]) -> Response:
    """What its policy does not say follows the deployment's default."""
    wanted = await read_json(request, NewTenant)
    override = override_from(wanted.policy or PolicyMembers())

    def make(store: Store, now_us: int) -> dict[str, Any]:
        made = create_tenant(
            store.database,
            wanted.tenant,
            override,
            actor=caller.subject,
            now_us=now_us,
            known_targets=store.targets.names,
        )
        with store.database.transaction() as conn:
            return _view(made, policy_of(conn, made.tenant_id, now_us))

    return await changing(request, make, status=201)


@router.get(
    "/{tenant}",
    dependencies=[allow(Permission.READ)],
    summary="One tenant",
    responses=answers(TenantView, example=_VIEW),
)
async def one_tenant(tenant: str, request: Request) -> Response:
    """With the policy in force."""

    def read(store: Store) -> dict[str, Any]:
        now_us = store.database.now_us()
        with store.database.transaction() as conn:
            return _view(get_tenant(conn, tenant), policy_of(conn, tenant, now_us))

    return await answering(request, read)
