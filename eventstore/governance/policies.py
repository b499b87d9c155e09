"""Policies as stored: every version of the deployment's default and of the tenants' own, and how they change.

A change is explained before it is taken (`preview_change`). One that would destroy something sooner needs a
confirmation that names how many events, and takes effect only after a time of grace. Until then a later
version of the same scope withdraws it: it never comes into force (`model.policy_change.standing`).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import US_PER_S, to_iso
from eventstore.db import locks
from eventstore.db.engine import Database
from eventstore.db.tables import policies, tenants
from eventstore.errors import ConfirmationError, InputError, TenantClosedError
from eventstore.governance.holds import lock_destruction
from eventstore.governance.record import EntryKind, record, required_text, take_lock
from eventstore.governance.windows import CountedWindow, counted_windows
from eventstore.model.policy import (
    Policy,
    PolicyInForce,
    PolicyOverride,
    PolicyVersion,
    policy_in_force,
    version_in_force,
)
from eventstore.model.policy_change import (
    PolicyChange,
    Situation,
    TenantChange,
    WindowEffects,
    add_window,
    check_targets,
    destroys_sooner,
    in_grace,
    pinned,
    situations,
    standing,
)
from eventstore.model.tenant import TenantState
from eventstore.model.window import WindowState

__all__ = [
    "GRACE_US",
    "add_version",
    "apply_change",
    "bring_units_into_force",
    "policies_at",
    "policies_of_all",
    "policy_of",
    "policy_versions",
    "preview_change",
]

# How long a change that destroys sooner waits, unless the deployment says otherwise.
GRACE_US = 7 * 86_400 * US_PER_S

_VERSIONS = sa.select(
    policies.c.policy_no,
    policies.c.tenant_id,
    sa.cast(policies.c.document, sa.Text).label("document"),
    policies.c.effective_us,
    policies.c.created_us,
    policies.c.actor,
    policies.c.reason,
    policies.c.confirmed_events,
)


# --- reading ------------------------------------------------------------------------------------------


def policy_versions(conn: sa.Connection, tenant_id: str | None) -> list[PolicyVersion]:
    """Every version of the default (None) or of a tenant's own policy, oldest first."""
    query = _VERSIONS.where(policies.c.tenant_id.is_not_distinct_from(tenant_id))
    return [_version(row) for row in conn.execute(query.order_by(policies.c.policy_no))]


def policy_of(conn: sa.Connection, tenant_id: str, at_us: int) -> PolicyInForce:
    """What is in force for a tenant at a time."""
    query = _VERSIONS.where(
        sa.or_(policies.c.tenant_id.is_(None), policies.c.tenant_id == tenant_id)
    ).order_by(policies.c.policy_no)
    found = [_version(row) for row in conn.execute(query)]
    defaults = standing([v for v in found if v.tenant_id is None])
    return policy_in_force(defaults, standing([v for v in found if v.tenant_id is not None]), at_us)


def policies_of_all(conn: sa.Connection, at_us: int) -> dict[str, PolicyInForce]:
    """What is in force for each tenant at a time, in two queries however many there are."""
    return policies_at(conn, at_us)[0]


def policies_at(conn: sa.Connection, *times_us: int) -> list[dict[str, PolicyInForce]]:
    """What is in force for each tenant at each of some times, in two queries."""
    defaults, own = _all_versions(conn)
    names = list(conn.execute(sa.select(tenants.c.tenant_id).order_by(tenants.c.tenant_id)).scalars())
    changes_us = sorted(v.effective_us for versions in (defaults, *own.values()) for v in versions)
    found: dict[int, dict[str, PolicyInForce]] = {}  # by how many versions had come into force
    for at_us in times_us:
        if (count := bisect_right(changes_us, at_us)) not in found:
            found[count] = _of_each(names, policy_in_force(defaults, (), at_us), own, at_us)
    return [found[bisect_right(changes_us, at_us)] for at_us in times_us]


def _of_each(
    names: Iterable[str], default: PolicyInForce, own: Mapping[str, Sequence[PolicyVersion]], at_us: int
) -> dict[str, PolicyInForce]:
    """What is in force for each of many tenants, of whom most say one of a few things, or nothing."""
    found: dict[str, PolicyInForce] = {}
    laid_over: dict[int, Policy] = {}  # by the override's identity: equal documents are read as one object
    for name in names:
        current = version_in_force(own.get(name, ()), at_us)
        if current is None:
            found[name] = default
            continue
        policy = laid_over.get(id(current.override))
        if policy is None:
            policy = laid_over[id(current.override)] = current.override.over(default.policy)
        found[name] = PolicyInForce(policy, max(default.policy_no, current.policy_no))
    return found


def _all_versions(conn: sa.Connection) -> tuple[list[PolicyVersion], dict[str, list[PolicyVersion]]]:
    """The standing versions of the default, and of each tenant that has one of its own."""
    found = [_version(row) for row in conn.execute(_VERSIONS.order_by(policies.c.policy_no))]
    own: dict[str, list[PolicyVersion]] = {}
    for version in found:
        if version.tenant_id is not None:
            own.setdefault(version.tenant_id, []).append(version)
    defaults = standing([v for v in found if v.tenant_id is None])
    return defaults, {name: standing(versions) for name, versions in own.items()}


@lru_cache(maxsize=4096)
def _override_of(document: str) -> PolicyOverride:
    """Equal documents are read once, as one object: thousands of tenants may say the same."""
    return PolicyOverride.from_json(json.loads(document))


def _version(row: sa.Row[tuple[object, ...]]) -> PolicyVersion:
    return PolicyVersion(
        row.policy_no,
        row.tenant_id,
        _override_of(row.document),
        row.effective_us,
        row.created_us,
        row.actor,
        row.reason,
        row.confirmed_events,
    )


# --- explaining a change ------------------------------------------------------------------------------


def preview_change(
    database: Database,
    tenant_id: str | None,
    change: PolicyOverride | None,
    now_us: int,
    known_targets: Sequence[str],
    *,
    grace_us: int = GRACE_US,
) -> PolicyChange:
    """What a change of the default (None) or of a tenant's own policy would move or destroy, and when.

    `change` is laid over what the scope says now; None: it says nothing any more (a tenant follows the
    default again, the default is what is built in). Nothing is changed.

    Raises:
        InputError: the result contradicts itself, also together with a tenant's own policy, or names a target
            that is not among those known.
        TenantNotFoundError, TenantClosedError
    """
    with database.transaction() as conn:
        return _preview(conn, tenant_id, change, now_us, known_targets, grace_us)


def _preview(
    conn: sa.Connection,
    tenant_id: str | None,
    change: PolicyOverride | None,
    now_us: int,
    known_targets: Sequence[str],
    grace_us: int,
) -> PolicyChange:
    check_targets(change or PolicyOverride(), known_targets)
    if tenant_id is not None and get_tenant(conn, tenant_id).state is TenantState.CLOSED:
        raise TenantClosedError(f"{tenant_id!r} was offboarded", hint="it has no history and takes no policy")
    scope = policy_versions(conn, tenant_id)
    present = [v for v in standing(scope) if v.effective_us <= now_us]
    override = PolicyOverride()
    if change is not None:
        override = pinned((present[-1].override if present else PolicyOverride()).changed_by(change))
    found = _situations_of(conn, tenant_id, override, now_us)
    changed = {name: s for name, s in found.items() if any(x.before != x.after for x in s)}
    sooner = any(destroys_sooner(s) for s in changed.values())
    effective_us = now_us + grace_us if sooner else now_us
    totals = _effects(conn, tenant_id, changed, now_us, effective_us)
    first = [t.first_destruction_us for t in totals.values() if t.first_destruction_us is not None]
    if tenant_id is None:
        defaults = [v for v in standing(scope) if v.effective_us <= now_us]
        before = policy_in_force(defaults, (), now_us).policy
        after = override.over(policy_in_force((), (), now_us).policy)
    else:
        before, after = found[tenant_id][0].before, found[tenant_id][0].after
    return PolicyChange(
        tenant_id=tenant_id,
        override=override,
        before=before,
        after=after,
        effective_us=effective_us,
        withdraws=tuple(v.policy_no for v in in_grace(scope, now_us)),
        tenants=tuple(
            TenantChange(name, s[0].before, s[0].after, totals[name].in_order())
            for name, s in changed.items()
        ),
        destroys_sooner=sooner,
        events_destroyed_sooner=sum(t.events_destroyed_sooner for t in totals.values()),
        first_destruction_us=min(first, default=None),
    )


def _situations_of(
    conn: sa.Connection, tenant_id: str | None, override: PolicyOverride, now_us: int
) -> dict[str, list[Situation]]:
    """Each affected tenant's policies before and after."""
    defaults, own = _all_versions(conn) if tenant_id is None else ([], {})
    if tenant_id is None:
        open_ones = sa.select(tenants.c.tenant_id).where(tenants.c.state != TenantState.CLOSED.value)
        names = list(conn.execute(open_ones.order_by(tenants.c.tenant_id)).scalars())
    else:
        names = [tenant_id]
        defaults, own = policy_versions(conn, None), {tenant_id: policy_versions(conn, tenant_id)}
    found = {}
    for name in names:
        try:
            found[name] = situations(
                defaults,
                own.get(name, []),
                changes_default=tenant_id is None,
                override=override,
                now_us=now_us,
            )
        except InputError as e:
            if tenant_id is not None:
                raise
            raise InputError(
                f"with its own policy, {name!r} would have one that contradicts itself: {e.message}",
                hint=f"change that first: eventstore policy show {name}",
            ) from e
    return found


def _effects(
    conn: sa.Connection,
    tenant_id: str | None,
    changed: dict[str, list[Situation]],
    now_us: int,
    effective_us: int,
) -> dict[str, WindowEffects]:
    """What happens to each tenant's windows otherwise than before."""
    totals = {name: WindowEffects() for name in changed}
    if not changed:
        return totals
    alive = [state for state in WindowState if state is not WindowState.EXPIRED]

    def tenant_of(found: CountedWindow) -> str:
        return found.tenant_id

    for name, group in groupby(counted_windows(conn, tenant_id, states=alive), key=tenant_of):
        if name not in changed:
            continue
        for found in group:
            add_window(
                totals[name],
                changed[name],
                found.record,
                found.events,
                now_us=now_us,
                effective_us=effective_us,
            )
    return totals


# --- changing -----------------------------------------------------------------------------------------


def apply_change(
    database: Database,
    tenant_id: str | None,
    change: PolicyOverride | None,
    *,
    actor: str,
    reason: str,
    now_us: int,
    known_targets: Sequence[str],
    grace_us: int = GRACE_US,
    confirm: int | None = None,
) -> PolicyVersion:
    """Take a change, as `preview_change` explains it, as a new version of the default (None) or of a tenant's
    own policy. It is in force at once; or, if it destroys anything sooner, after the grace time.

    `confirm` is how many events it destroys sooner, as the caller has been told. Versions of the scope that
    are in their grace time are withdrawn by it.

    Raises:
        ConfirmationError: it destroys sooner, and `confirm` is not that count. Nothing is changed.
        InputError, TenantNotFoundError, TenantClosedError: as `preview_change`.
        BusyError: another change, or a destruction of the tenant's, took too long.
    """
    who, why = required_text("who changes it", actor), required_text("the reason", reason)
    with database.transaction() as conn:
        # From the commit on, nothing of the tenant is destroyed under the policy of before.
        if tenant_id is not None:
            lock_destruction(conn, tenant_id)
        # Changes come one after the other, so that the one before is part of what is explained.
        take_lock(conn, locks.governance_key(), "another change of policies is being made")
        explained = _preview(conn, tenant_id, change, now_us, known_targets, grace_us)
        if explained.destroys_sooner and confirm != explained.events_destroyed_sooner:
            raise _unconfirmed(explained, confirm)
        version = add_version(
            conn,
            tenant_id,
            explained.override,
            effective_us=explained.effective_us,
            now_us=now_us,
            actor=who,
            reason=why,
            confirmed_events=confirm if explained.destroys_sooner else None,
        )
        if version.effective_us <= now_us:
            bring_units_into_force(conn, policies_of_all(conn, now_us))
    return version


def _unconfirmed(explained: PolicyChange, confirm: int | None) -> ConfirmationError:
    count = explained.events_destroyed_sooner
    events = f"{count:,} event{'' if count == 1 else 's'} that {'is' if count == 1 else 'are'} stored now"
    first = explained.first_destruction_us
    when = "" if first is None else f", the first on {to_iso(first)[:10]}"
    said = "" if confirm is None else f", not {confirm:,}"
    return ConfirmationError(
        f"this policy destroys history sooner than the one in force: {events}{said}{when}",
        events=count,
        hint=f"if that is meant, confirm the count {count}; it takes effect on"
        f" {to_iso(explained.effective_us)[:16].replace('T', ' ')}, and can be withdrawn until then",
    )


def add_version(
    conn: sa.Connection,
    tenant_id: str | None,
    override: PolicyOverride,
    *,
    effective_us: int,
    now_us: int,
    actor: str,
    reason: str,
    confirmed_events: int | None = None,
) -> PolicyVersion:
    """Store a version, and record it, in the connection's transaction. Explains and asks nothing: that is for
    `apply_change`."""
    values = {
        "tenant_id": tenant_id,
        "document": override.as_json(),
        "effective_us": effective_us,
        "created_us": now_us,
        "actor": actor,
        "reason": reason,
        "confirmed_events": confirmed_events,
    }
    # The number is taken under this lock, so that a higher one is always the later one.
    take_lock(conn, locks.governance_key(), "another change of policies is being made")
    policy_no = conn.execute(sa.insert(policies).values(values).returning(policies.c.policy_no)).scalar_one()
    document = {
        "policy_no": policy_no,
        "policy": override.as_json(),
        "effective": to_iso(effective_us),
        "reason": reason,
        "confirmed_events": confirmed_events,
    }
    record(conn, EntryKind.POLICY, tenant_id, actor, document, now_us)
    return PolicyVersion(
        policy_no, tenant_id, override, effective_us, now_us, actor, reason, confirmed_events
    )


def bring_units_into_force(conn: sa.Connection, in_force: Mapping[str, PolicyInForce]) -> list[str]:
    """Align the next windows of every tenant to the unit of its policy, as it is in force at present: appends
    look at nothing else. The tenants for which that is another unit than before."""
    units = {name: found.policy.unit.value for name, found in in_force.items()}
    differing: dict[str, list[str]] = {}
    for name, unit in conn.execute(sa.select(tenants.c.tenant_id, tenants.c.window_unit)):
        wanted = units.get(name, unit)
        if wanted != unit:
            differing.setdefault(wanted, []).append(name)
    for unit, names in differing.items():
        conn.execute(
            sa.update(tenants)
            .where(tenants.c.tenant_id == sa.any_(sa.literal(names, sa.ARRAY(sa.Text))))
            .values(window_unit=unit)
        )
    return sorted(name for names in differing.values() for name in names)
