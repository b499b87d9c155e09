"""What the planner needs to know, read from the catalog; and which tenants are worth a plan at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import psycopg
import sqlalchemy as sa

from eventstore.archive.targets import Targets
from eventstore.catalog.tenants import get_tenant, list_tenants
from eventstore.catalog.windows import list_entity_filters, list_segments, list_windows, read_watermark
from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database
from eventstore.db.partitions import list_leaves
from eventstore.db.tables import heads, quarantine, removals, windows
from eventstore.governance.holds import holds_in_force
from eventstore.governance.policies import policies_of_all, policy_of
from eventstore.model.policy import PolicyInForce, longest_kept
from eventstore.model.run import RunKind
from eventstore.model.tenant import Head, Tenant, TenantState
from eventstore.model.window import Window, WindowRecord, WindowState
from eventstore.retention.holding import HeldSegment, holds_over
from eventstore.retention.planner import FoundLeaf, TenantPlan, plan_expiry, plan_tenant
from eventstore.retention.quarantined import quarantined_of

__all__ = ["Planning"]

_HOT = (WindowState.OPEN.value, WindowState.SEALED.value, WindowState.ARCHIVED.value)


class Planning:
    """Plans of tenants. Changes nothing."""

    def __init__(self, database: Database, targets: Targets) -> None:
        self._database = database
        self._targets = targets

    def tenants(self, only: str | None = None) -> list[Tenant]:
        """The tenants of a run: all that are not closed, or the one named."""
        with self._database.transaction() as conn:
            found = list_tenants(conn) if only is None else [get_tenant(conn, only)]
        return [tenant for tenant in found if tenant.state is not TenantState.CLOSED]

    def worth_planning_in(
        self,
        conn: sa.Connection,
        tenants: Sequence[Tenant],
        kind: RunKind,
        now_us: int,
        policies: Mapping[str, PolicyInForce],
    ) -> list[Tenant]:
        """Those of the tenants for which something may be due under these policies: their number is what a
        run costs, not the number of all. Takes two queries in all."""
        oldest = sa.select(
            windows.c.tenant_id,
            windows.c.target,
            windows.c.state.in_(_HOT).label("hot"),
            sa.func.min(windows.c.window_to).label("window_to"),
        ).where(windows.c.state != WindowState.EXPIRED.value)
        oldest = oldest.group_by(windows.c.tenant_id, windows.c.target, sa.text("hot"))
        # Whatever a policy says, a window that has not ended is not due.
        oldest = oldest.having(sa.func.min(windows.c.window_to) <= from_us(now_us))
        pending = sa.select(removals.c.tenant_id).where(removals.c.removed_at.is_(None)).distinct()
        found = set(conn.execute(pending).scalars())
        if kind is RunKind.EXPIRY:
            set_aside = sa.select(quarantine.c.tenant_id).where(quarantine.c.tenant_id.is_not(None))
            found.update(conn.execute(set_aside.distinct()).scalars())
        for row in conn.execute(oldest):
            policy = policies[row.tenant_id].policy
            window = Window(0, to_us(row.window_to))
            if kind is RunKind.EXPIRY:
                expires_us = policy.expires_at(window)
                due = expires_us is not None and expires_us <= now_us
            else:
                tier = policy.tier_at(window, now_us)
                due = tier is not None and (row.hot or policy.tiers[tier].target != row.target)
            if due:
                found.add(row.tenant_id)
        return [tenant for tenant in tenants if tenant.tenant_id in found]

    def plan(self, tenant: Tenant, now_us: int) -> TenantPlan:
        """What a run of retention at that time would do for a tenant.

        Raises:
            CoverageError: its partitions and the catalog disagree.
        """
        # One snapshot for the catalog and the partitions: an append may make a window at any moment.
        with self._database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant.tenant_id)).one()
            policy = policy_of(conn, tenant.tenant_id, now_us)
            records = list_windows(conn, tenant.tenant_id)
            watermark = read_watermark(conn, tenant.tenant_id)
            unremoved, left = self._removals(conn, tenant, records)
            driver = conn.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            leaves = [FoundLeaf(leaf.name, leaf.window) for leaf in list_leaves(driver, tenant.tenant_no)]
        return plan_tenant(
            tenant,
            policy=policy,
            leaves=leaves,
            windows=records,
            head=Head(head.last_seq, head.last_hash, head.last_recorded_us, head.id_lead_us),
            archived_through=watermark.archived_through,
            now_us=now_us,
            unremoved=unremoved,
            left=left,
        )

    def plan_expiry(self, tenant: Tenant, now_us: int) -> TenantPlan:
        """What has expired of a tenant at that time, and which holds stop its destruction.

        Raises:
            TargetUnavailableError: what a hold covers could not be found out.
        """
        with self._database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            present_us = to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
            policy = longest_kept(
                policy_of(conn, tenant.tenant_id, now_us), policy_of(conn, tenant.tenant_id, present_us)
            )
            records = list_windows(conn, tenant.tenant_id)
            unremoved, _ = self._removals(conn, tenant, records)
            held = self._held(conn, tenant, policy, records, now_us)
            found = quarantined_of(conn, tenant.tenant_id, {record.window for record in records})
        plan = plan_expiry(
            tenant,
            policy=policy,
            windows=records,
            held=held,
            now_us=now_us,
            unremoved=unremoved,
            quarantined=found.by_window,
        )
        told = tuple(
            f"{key} in {target!r} is in quarantine, and of no known window: it stays, whatever has expired"
            for target, key in found.others
        )
        return replace(plan, warnings=plan.warnings + told)

    def _removals(
        self, conn: sa.Connection, tenant: Tenant, records: Iterable[WindowRecord]
    ) -> tuple[set[Window], set[tuple[str, Window]]]:
        """The windows with objects that are still to be removed, and the targets that windows have left."""
        by_from = {record.window.from_us: record.window for record in records}
        query = (
            sa.select(removals.c.window_from, removals.c.target, removals.c.removed_at.is_(None))
            .where(removals.c.tenant_id == tenant.tenant_id)
            .distinct()
        )
        unremoved, left = set(), set()
        for window_from, target, pending in conn.execute(query):
            window = by_from.get(to_us(window_from))
            if window is not None:
                left.add((target, window))
                if pending:
                    unremoved.add(window)
        return unremoved, left

    def _held(
        self,
        conn: sa.Connection,
        tenant: Tenant,
        policy: PolicyInForce,
        records: Sequence[WindowRecord],
        now_us: int,
    ) -> dict[Window, list[str]]:
        holds = holds_in_force(conn, tenant.tenant_id)
        if not holds:
            return {}
        held = {}
        for record in records:
            expires_us = policy.policy.expires_at(record.window)
            if record.state is not WindowState.DROPPED or expires_us is None or expires_us > now_us:
                continue
            assert record.last_seq is not None
            bounds = {"seq_from": record.first_seq, "seq_to": record.last_seq}
            filters = list_entity_filters(conn, tenant.tenant_id, **bounds)
            segments = [
                HeldSegment.of_segment(s, filters.get(s.range.first_seq))
                for s in list_segments(conn, tenant.tenant_id, **bounds)
            ]
            found = holds_over(holds, segments, self._targets)
            if found:
                held[record.window] = [hold.name for hold in found]
        return held

    def policies(self, now_us: int) -> dict[str, PolicyInForce]:
        """The policy in force of each tenant."""
        with self._database.transaction() as conn:
            return policies_of_all(conn, now_us)
