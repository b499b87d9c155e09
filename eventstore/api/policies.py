"""The routes of policies: what is in force, what a change would do, and the change; of the deployment's
default and of one tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from eventstore.api.access import allow
from eventstore.api.governed import answering, changing, read_json
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import Time
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_iso
from eventstore.governance.policies import apply_change, policy_versions, preview_change
from eventstore.model.access import Permission, Principal
from eventstore.model.policy import (
    Ending,
    PolicyOverride,
    PolicyVersion,
    parse_duration_us,
)
from eventstore.model.policy_change import standing
from eventstore.model.quality import QualityAction, QualityRule
from eventstore.model.window import WindowUnit
from eventstore.query.explain import policy_facts

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["PolicyDocument", "PolicyMembers", "override_from", "router"]

router = APIRouter(dependencies=[Depends(known_parameters)])

Caller = Annotated[Principal, allow(Permission.OPERATE)]
Reader = Annotated[Principal, allow(Permission.EXPLAIN)]
Duration = Annotated[str, msgspec.Meta(max_length=64, description="e.g. 90d, 12h or 1d12h")]


# --- shapes -------------------------------------------------------------------------------------------


class PolicyTier(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename={"for_": "for"}
):
    """A stay in an archive target, by its name. Without `for`: for ever, in the last tier only."""

    target: Annotated[str, msgspec.Meta(max_length=200)]
    for_: Duration | None = None


class PolicyMembers(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a policy says differently. What is left out, or null, stays as it is."""

    window: WindowUnit | None = None
    hot_for: Duration | None = None
    tiers: list[PolicyTier] | None = None
    then: Ending | None = None
    quality: dict[QualityRule, QualityAction] | None = None


class PolicyDocument(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A policy, or what a version of one says; then a member that it says nothing of is left out."""

    window: WindowUnit | msgspec.UnsetType = msgspec.UNSET
    hot_for: str | msgspec.UnsetType = msgspec.UNSET
    tiers: list[PolicyTier] | msgspec.UnsetType = msgspec.UNSET
    then: Ending | msgspec.UnsetType = msgspec.UNSET
    quality: dict[str, QualityAction] | msgspec.UnsetType = msgspec.UNSET


class PolicyQuestion(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A change that is to be explained. `policy` null: the scope says nothing of its own any more."""

    policy: PolicyMembers | None


class NewPolicy(PolicyQuestion, kw_only=True, forbid_unknown_fields=True):
    """A change. `confirm` names how many events it destroys sooner, where it does."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    confirm: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class VersionView(msgspec.Struct, forbid_unknown_fields=True):
    """A version. `stands` false: it was withdrawn in its grace time, and never came into force."""

    policy_no: int
    policy: PolicyDocument
    effective: Time
    created: Time
    actor: str
    reason: str
    confirmed_events: int | None
    stands: bool


class ComingPolicy(msgspec.Struct, forbid_unknown_fields=True):
    """What will be in force once a version's grace time is over."""

    policy_no: int
    effective: Time
    policy: PolicyDocument


class PolicyView(msgspec.Struct, forbid_unknown_fields=True):
    """What is in force now. `policy_no` is that of the newest version in it; 0: all is built in."""

    tenant: str | None
    policy: PolicyDocument
    policy_no: int
    in_words: str
    coming: list[ComingPolicy]


class PolicyVersions(msgspec.Struct, forbid_unknown_fields=True):
    """Every version of a scope, oldest first."""

    tenant: str | None
    versions: list[VersionView]


class EffectView(msgspec.Struct, forbid_unknown_fields=True):
    """How windows that exist would fare otherwise. null: never, or no target."""

    effect: str
    target: str | None
    windows: int
    events: int
    first: Time | None
    last: Time | None


class TenantEffects(msgspec.Struct, forbid_unknown_fields=True):
    """What a change means for one tenant; destruction first."""

    tenant: str
    effects: list[EffectView]


class ChangeView(msgspec.Struct, forbid_unknown_fields=True):
    """What a change would do. `events_destroyed_sooner` is what a confirmation has to name, if
    `destroys_sooner`."""

    tenant: str | None
    before: PolicyDocument
    after: PolicyDocument
    effective: Time
    withdraws: list[int]
    destroys_sooner: bool
    events_destroyed_sooner: int
    first_destruction: Time | None
    tenants: list[TenantEffects]
    changes_nothing: bool
    differences: list[str]


class ChangedPolicy(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The version that was made; null: the policy says so already. `warning`: its copy is not in the archive
    yet."""

    tenant: str | None
    version: VersionView | None
    warning: str | msgspec.UnsetType = msgspec.UNSET


_DOCUMENT: Mapping[str, Any] = {
    "window": "month",
    "hot_for": "90d",
    "tiers": [{"target": "archive", "for": "3650d"}],
    "then": "expire",
    "quality": {"volume": "warn"},
}
_KEPT = {**_DOCUMENT, "tiers": [{"target": "archive"}], "then": "keep"}
_VERSION: Mapping[str, Any] = {
    "policy_no": 3,
    "policy": {"hot_for": "90d"},
    "effective": "2026-02-07T12:00:00.000000Z",
    "created": "2026-01-31T12:00:00.000000Z",
    "actor": "key:operator-7k3m9q2xa4",
    "reason": "contract of January",
    "confirmed_events": 120_000,
    "stands": True,
}
_VIEW = {
    "tenant": "acme",
    "policy": _KEPT,
    "policy_no": 0,
    "in_words": "windows of one month, hot for 90d, then archive, then kept there for ever",
    "coming": [],
}
_CHANGE = {
    "tenant": "acme",
    "before": _KEPT,
    "after": _DOCUMENT,
    "effective": "2026-02-07T12:00:00.000000Z",
    "withdraws": [],
    "destroys_sooner": True,
    "events_destroyed_sooner": 120_000,
    "first_destruction": "2026-02-07T12:00:00.000000Z",
    "tenants": [
        {
            "tenant": "acme",
            "effects": [
                {
                    "effect": "destroyed sooner",
                    "target": None,
                    "windows": 2,
                    "events": 120_000,
                    "first": "2026-02-07T12:00:00.000000Z",
                    "last": "2026-03-01T00:00:00.000000Z",
                }
            ],
        }
    ],
    "changes_nothing": False,
    "differences": ["archive for 3650d, then destroyed, instead of archive, then kept there for ever"],
}
_ASKED = {"policy": {"tiers": [{"target": "archive", "for": "10y"}], "then": "expire"}}
_ORDERED = {**_ASKED, "reason": "contract of January", "confirm": 120_000}
_DONE = {"tenant": "acme", "version": _VERSION}


# --- of the deployment --------------------------------------------------------------------------------


@router.get(
    "/v1/policy",
    summary="The deployment's default policy",
    responses=answers(PolicyView, example={**_VIEW, "tenant": None}),
)
async def default_policy(request: Request, caller: Reader) -> Response:
    """What tenants follow where they say nothing else."""
    return await _show(request, None)


@router.put(
    "/v1/policy",
    summary="Change the deployment's default policy",
    responses=answers(ChangedPolicy, 409, example={**_DONE, "tenant": None}),
    openapi_extra=accepts(NewPolicy, example=_ORDERED),
)
async def change_default(request: Request, caller: Caller) -> Response:
    """As a tenant's own; it applies to every tenant, in what that says nothing of."""
    return await _change(request, caller, None)


@router.get(
    "/v1/policy/versions",
    summary="Every version of the deployment's default policy",
    responses=answers(PolicyVersions, example={"tenant": None, "versions": [_VERSION]}),
)
async def default_versions(request: Request, caller: Reader) -> Response:
    """Oldest first."""
    return await _versions(request, None)


@router.post(
    "/v1/policy/preview",
    summary="Explain a change of the deployment's default policy",
    responses=answers(ChangeView, example={**_CHANGE, "tenant": None}),
    openapi_extra=accepts(PolicyQuestion, example=_ASKED),
)
async def preview_default(request: Request, caller: Caller) -> Response:
    """Nothing is changed."""
    return await _preview(request, None)


# --- of a tenant --------------------------------------------------------------------------------------


@router.get(
    "/v1/tenants/{tenant}/policy",
    summary="A tenant's policy in force",
    responses=answers(PolicyView, example=_VIEW),
)
async def tenant_policy(tenant: str, request: Request, caller: Reader) -> Response:
    """Its own policy over the deployment's default over what is built in."""
    return await _show(request, tenant)


@router.put(
    "/v1/tenants/{tenant}/policy",
    summary="Change a tenant's policy",
    responses=answers(ChangedPolicy, 409, example=_DONE),
    openapi_extra=accepts(NewPolicy, example=_ORDERED),
)
async def change_policy(tenant: str, request: Request, caller: Caller) -> Response:
    """What is not given stays as it is; `policy` null: it follows the default again. A change that destroys
    history sooner needs `confirm`, and comes into force after a time of grace."""
    return await _change(request, caller, tenant)


@router.get(
    "/v1/tenants/{tenant}/policy/versions",
    summary="Every version of a tenant's own policy",
    responses=answers(PolicyVersions, example={"tenant": "acme", "versions": [_VERSION]}),
)
async def tenant_versions(tenant: str, request: Request, caller: Reader) -> Response:
    """Oldest first. None: it has followed the default all the time."""
    return await _versions(request, tenant)


@router.post(
    "/v1/tenants/{tenant}/policy/preview",
    summary="Explain a change of a tenant's policy",
    responses=answers(ChangeView, 409, example=_CHANGE),
    openapi_extra=accepts(PolicyQuestion, example=_ASKED),
)
async def preview_policy(tenant: str, request: Request, caller: Caller) -> Response:
    """What it would move or destroy, and when. Nothing is changed."""
    return await _preview(request, tenant)


# --- what they do -------------------------------------------------------------------------------------


def override_from(members: PolicyMembers) -> PolicyOverride:
    """What members of a body say of a policy.

    Raises:
        InputError: a duration is none.
    """
    given = {name: value for name, value in msgspec.to_builtins(members).items() if value is not None}
    return PolicyOverride.from_json(given)


def _version(version: PolicyVersion, stands: bool) -> dict[str, Any]:
    return {
        "policy_no": version.policy_no,
        "policy": version.override.as_json(),
        # One that was made with its tenant counts from the beginning of time.
        "effective": to_iso(max(version.effective_us, version.created_us)),
        "created": to_iso(version.created_us),
        "actor": version.actor,
        "reason": version.reason,
        "confirmed_events": version.confirmed_events,
        "stands": stands,
    }


async def _show(request: Request, tenant: str | None) -> Response:
    def read(store: Store) -> dict[str, Any]:
        now_us = store.database.now_us()
        with store.database.transaction() as conn:
            if tenant is not None:
                get_tenant(conn, tenant)
            facts = policy_facts(conn, tenant, now_us)
        policy = facts.in_force.policy
        return {
            "tenant": tenant,
            "policy": policy.as_json(),
            "policy_no": facts.in_force.policy_no,
            "in_words": policy.in_words(),
            "coming": [
                {"policy_no": v.policy_no, "effective": to_iso(v.effective_us), "policy": p.as_json()}
                for v, p in facts.coming
            ],
        }

    return await answering(request, read)


async def _versions(request: Request, tenant: str | None) -> Response:
    def read(store: Store) -> dict[str, Any]:
        with store.database.transaction() as conn:
            if tenant is not None:
                get_tenant(conn, tenant)
            found = policy_versions(conn, tenant)
        stand = {version.policy_no for version in standing(found)}
        return {"tenant": tenant, "versions": [_version(v, v.policy_no in stand) for v in found]}

    return await answering(request, read)


async def _preview(request: Request, tenant: str | None) -> Response:
    wanted = await read_json(request, PolicyQuestion)
    change = None if wanted.policy is None else override_from(wanted.policy)

    def read(store: Store) -> dict[str, Any]:
        explained = preview_change(
            store.database,
            tenant,
            change,
            store.database.now_us(),
            store.targets.names,
            grace_us=parse_duration_us(store.settings.policy_grace),
        )
        return {
            **explained.as_json(),
            "changes_nothing": explained.changes_nothing,
            "differences": explained.differences(),
        }

    return await answering(request, read)


async def _change(request: Request, caller: Principal, tenant: str | None) -> Response:
    wanted = await read_json(request, NewPolicy)
    change = None if wanted.policy is None else override_from(wanted.policy)

    def make(store: Store, now_us: int) -> dict[str, Any]:
        names, grace_us = store.targets.names, parse_duration_us(store.settings.policy_grace)
        explained = preview_change(store.database, tenant, change, now_us, names, grace_us=grace_us)
        if explained.changes_nothing:
            return {"tenant": tenant, "version": None}
        version = apply_change(
            store.database,
            tenant,
            change,
            actor=caller.subject,
            reason=wanted.reason,
            now_us=now_us,
            known_targets=names,
            grace_us=grace_us,
            confirm=wanted.confirm,
        )
        return {"tenant": tenant, "version": _version(version, stands=True)}

    return await changing(request, make)
