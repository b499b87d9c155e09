"""Tenants as registered."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from eventstore.clock import to_us
from eventstore.db.partitions import create_tenant_table
from eventstore.db.tables import heads, tenants, watermarks
from eventstore.errors import TenantExistsError, TenantNotFoundError
from eventstore.model.event import chain_start
from eventstore.model.tenant import Tenant, TenantState, check_tenant_id
from eventstore.model.window import WindowUnit

__all__ = ["TenantHead", "add_tenant", "browse_tenants", "get_tenant", "list_tenants", "set_unit"]

# The tenant's clock before its first event: the earliest time that the store can hold.
BEGINNING_US = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z


def add_tenant(conn: sa.Connection, tenant_id: str, unit: WindowUnit) -> Tenant:
    """Register a tenant, with an empty log and its own partitioned table, in the connection's transaction.

    Raises:
        InputError: not a slug.
        TenantExistsError: it is registered already.
    """
    check_tenant_id(tenant_id)
    start = chain_start(tenant_id)
    try:
        row = conn.execute(
            sa.insert(tenants)
            .values(tenant_id=tenant_id, window_unit=unit.value)
            .returning(tenants.c.tenant_no, tenants.c.created_at)
        ).one()
    except IntegrityError as e:
        raise TenantExistsError(f"tenant {tenant_id!r} exists already", hint="choose another name") from e
    conn.execute(
        sa.insert(heads).values(
            tenant_id=tenant_id, last_seq=0, last_hash=start, last_recorded_us=BEGINNING_US, id_lead_us=0
        )
    )
    conn.execute(sa.insert(watermarks).values(tenant_id=tenant_id, archived_through=0, archived_hash=start))
    driver = conn.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    create_tenant_table(driver, row.tenant_no, tenant_id)
    return Tenant(tenant_id, row.tenant_no, unit, to_us(row.created_at))


def set_unit(conn: sa.Connection, tenant_id: str, unit: WindowUnit) -> None:
    """Align the tenant's next windows to another unit; those that exist stay as they are."""
    conn.execute(sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(window_unit=unit.value))


def _tenant(row: sa.Row[tuple[object, ...]]) -> Tenant:
    return Tenant(
        row.tenant_id,
        row.tenant_no,
        WindowUnit(row.window_unit),
        to_us(row.created_at),
        TenantState(row.state),
    )


def get_tenant(conn: sa.Connection, tenant_id: str) -> Tenant:
    """One tenant.

    Raises:
        TenantNotFoundError: it is not registered.
    """
    row = conn.execute(sa.select(tenants).where(tenants.c.tenant_id == tenant_id)).one_or_none()
    if row is None:
        raise TenantNotFoundError(tenant_id)
    return _tenant(row)


def list_tenants(conn: sa.Connection) -> list[Tenant]:
    """All tenants by name."""
    return [_tenant(row) for row in conn.execute(sa.select(tenants).order_by(tenants.c.tenant_id))]


@dataclass(frozen=True, slots=True)
class TenantHead:
    """A tenant and how far its log has come. `last_recorded_us` None: it has no event yet."""

    tenant_id: str
    state: TenantState
    last_seq: int
    last_recorded_us: int | None


def browse_tenants(
    conn: sa.Connection, *, containing: str = "", after: str = "", limit: int
) -> list[TenantHead]:
    """Tenants by name: those that have a text in it, from the one after `after`."""
    t = tenants.c
    query = sa.select(t.tenant_id, t.state, heads.c.last_seq, heads.c.last_recorded_us).join(
        heads, heads.c.tenant_id == t.tenant_id
    )
    if containing:
        query = query.where(t.tenant_id.contains(containing, autoescape=True))
    rows = conn.execute(query.where(t.tenant_id > after).order_by(t.tenant_id).limit(limit))
    return [
        TenantHead(
            row.tenant_id,
            TenantState(row.state),
            row.last_seq,
            row.last_recorded_us if row.last_seq else None,
        )
        for row in rows
    ]
