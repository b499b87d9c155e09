"""How much a tenant's log holds, by tier and by state of its windows."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.db.engine import Database
from eventstore.db.partitions import SCHEMA
from eventstore.db.tables import heads, segments, watermarks, windows
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowState
from eventstore.query.tiers import list_expired

__all__ = ["LogStats", "TierStats", "log_stats"]


@dataclass(frozen=True, slots=True)
class TierStats:
    """Events in a tier, and the bytes they take there (indexes included in the hot tier)."""

    events: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LogStats:
    """One tenant's log. `windows` counts them by state, `targets` has the archive's events and bytes by
    target.

    `archive.events` is what has to be there: all that was archived, less `expired_events`, which certificates
    stand for. `targets` adds up what the catalog's segments say.
    `clock_us` is the tenant's clock: no later event is recorded before it. None: the log is empty.
    """

    tenant: Tenant
    hot: TierStats
    archive: TierStats
    segments: int
    targets: dict[str, TierStats]
    expired_events: int
    windows: dict[WindowState, int]
    last_seq: int
    last_hash: bytes
    clock_us: int | None


def log_stats(database: Database, tenant_id: str) -> LogStats:
    """Count one tenant's log from one snapshot of the catalog.

    Raises:
        TenantNotFoundError: no such tenant.
    """
    with database.app.transaction(tenant_id, one_snapshot=True) as conn:
        tenant = get_tenant(conn, tenant_id)
        head = conn.execute(
            sa.select(heads, watermarks.c.archived_through)
            .join(watermarks, watermarks.c.tenant_id == heads.c.tenant_id)
            .where(heads.c.tenant_id == tenant_id)
        ).one()
        states = conn.execute(
            sa.select(windows.c.state, sa.func.count())
            .where(windows.c.tenant_id == tenant_id)
            .group_by(windows.c.state)
        ).all()
        archive = conn.execute(
            sa.select(
                segments.c.target,
                sa.func.count(),
                sa.func.sum(segments.c.last_seq - segments.c.first_seq + 1),
                sa.func.sum(segments.c.size_bytes),
            )
            .where(segments.c.tenant_id == tenant_id)
            .group_by(segments.c.target)
            .order_by(segments.c.target)
        ).all()
        expired = list_expired(conn, tenant_id)
        # to_regclass: a leaf that is dropped meanwhile counts nothing.
        hot_bytes = conn.execute(
            sa.text(
                "SELECT coalesce(sum(pg_total_relation_size(to_regclass(:schema || '.' || leaf))), 0)::bigint"
                " FROM windows WHERE tenant_id = :tenant_id AND state NOT IN ('dropped', 'expired')"
            ),
            {"schema": SCHEMA, "tenant_id": tenant_id},
        ).scalar_one()
    counts = {WindowState(state): count for state, count in states}
    targets = {name: TierStats(int(events), int(size_bytes)) for name, _, events, size_bytes in archive}
    expired_events = sum(one.last_seq - one.first_seq + 1 for one in expired)
    return LogStats(
        tenant=tenant,
        hot=TierStats(head.last_seq - head.archived_through, hot_bytes),
        archive=TierStats(
            head.archived_through - expired_events, sum(target.size_bytes for target in targets.values())
        ),
        segments=sum(count for _, count, _, _ in archive),
        targets=targets,
        expired_events=expired_events,
        windows={state: counts.get(state, 0) for state in WindowState},
        last_seq=head.last_seq,
        last_hash=bytes(head.last_hash),
        clock_us=head.last_recorded_us if head.last_seq else None,
    )
