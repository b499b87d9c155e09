"""Making a tenant: its log, its first policy and the entry that says so, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from eventstore.catalog.tenants import BEGINNING_US, add_tenant
from eventstore.clock import SystemClock
from eventstore.db import locks
from eventstore.db.engine import Database
from eventstore.governance.policies import add_version, policy_versions
from eventstore.governance.record import EntryKind, record, required_text, take_lock
from eventstore.model.policy import Policy, PolicyOverride, PolicyVersion, policy_in_force
from eventstore.model.policy_change import check_targets, in_grace, pinned, standing
from eventstore.model.tenant import Tenant, check_new_tenant_id

__all__ = ["create_tenant", "override_of"]


def create_tenant(
    database: Database,
    tenant_id: str,
    policy: Policy | PolicyOverride = PolicyOverride(),  # noqa: B008 - frozen
    *,
    actor: str = "system",
    now_us: int | None = None,
    known_targets: Sequence[str] | None = None,
    is_own: bool = False,
) -> Tenant:
    """Register a tenant with an empty log.

    `policy` is what it says differently from the deployment's default; a whole `Policy` leaves nothing to the
    default. It counts as in force ever since, because there was no other one before. `now_us` None: the
    machine's clock. `known_targets` None: tiers are not checked. `is_own`: it is the store's own, with a name
    that nobody else may take.

    Raises:
        InputError: not a slug, or reserved; or the policy contradicts itself together with the default, or
            names a target that is not among those known.
        TenantExistsError: it is registered already.
        BusyError: another change of policies took too long.
    """
    if not is_own:
        check_new_tenant_id(tenant_id)
    now_us = SystemClock().now_us() if now_us is None else now_us
    who = required_text("who makes it", actor)
    override = override_of(policy) if isinstance(policy, Policy) else pinned(policy)
    if known_targets is not None:
        check_targets(override, known_targets)
    with database.transaction() as conn:
        # The default cannot change before this tenant is among those that follow it.
        take_lock(conn, locks.governance_key(), "a change of policies is being made")
        defaults = standing(policy_versions(conn, None))
        own = PolicyVersion(0, tenant_id, override, BEGINNING_US, now_us, who, "")
        moments = [now_us, *(version.effective_us for version in in_grace(defaults, now_us))]
        resulting, *_later = [policy_in_force(defaults, [own], at_us).policy for at_us in moments]
        tenant = add_tenant(conn, tenant_id, resulting.unit)
        document = {"unit": resulting.unit.value, "tenant_no": tenant.tenant_no}
        record(conn, EntryKind.TENANT_CREATED, tenant_id, who, document, now_us)
        if override.as_json():
            add_version(
                conn,
                tenant_id,
                override,
                effective_us=BEGINNING_US,
                now_us=now_us,
                actor=who,
                reason="made with the tenant",
            )
    return tenant


def override_of(policy: Policy) -> PolicyOverride:
    """A whole policy as one that leaves nothing to the layers below it."""
    return PolicyOverride(policy.unit, policy.hot_for_us, policy.tiers, policy.ending, policy.quality)
