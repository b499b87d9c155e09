"""Exports that are made in the background, as stored: asked for, listed, cancelled. How they are made is in
`governance.export_making`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.locks import exports_key
from eventstore.db.tables_access import api_keys
from eventstore.db.tables_exports import exports
from eventstore.errors import ExportNotFoundError, RateLimitedError, StateError, TenantClosedError
from eventstore.model.access import Principal, Role
from eventstore.model.event import uuid7
from eventstore.model.export import BackgroundExport, ExportState, FileFormat, filter_from_json, filter_json
from eventstore.model.query import EventFilter, Order
from eventstore.model.tenant import TenantState

__all__ = [
    "EXPORTS_LISTED_MAX",
    "ExportLimits",
    "Wish",
    "ask_export",
    "cancel_export",
    "end_exports",
    "end_kept",
    "export_of",
    "get_export",
    "list_exports",
]

EXPORTS_LISTED_MAX = 100
# A tenant's files that are kept at the same time.
_KEPT_MAX = 100
_RETRY_S = 60
_KEY = "key:"
_now = sa.func.clock_timestamp()


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `reason` None: none was given."""

    wanted: EventFilter
    form: FileFormat
    order: Order = Order.ASC
    byte_order_mark: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ExportLimits:
    """How many exports may wait or be made at once, of one caller and of one tenant."""

    caller_max: int
    tenant_max: int


# --- asked for ------------------------------------------------------------------------------------------


def ask_export(
    database: Database, tenant_id: str, wish: Wish, *, by: Principal, limits: ExportLimits
) -> BackgroundExport:
    """Ask for an export; whoever makes exports finds it.

    Raises:
        RateLimitedError: the caller, or the tenant, has as many going on as it may have.
        StateError: as many files of the tenant are kept as may be.
        TenantClosedError: its history is destroyed.
        TenantNotFoundError
    """
    with database.transaction() as conn:
        if get_tenant(conn, tenant_id).state is TenantState.CLOSED:
            raise TenantClosedError(
                f"the history of {tenant_id!r} is destroyed", hint="nothing is left of it"
            )
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(exports_key())))
        _refuse_more(conn, tenant_id, by, limits)
        row = conn.execute(
            sa.insert(exports)
            .values(
                export_id=UUID(bytes=uuid7(time.time_ns() // 1000)),
                tenant_id=tenant_id,
                asked_by=by.subject,
                role=by.role.value,
                person=by.person,
                asker_tenant=by.tenant,
                reason=wish.reason,
                wanted=filter_json(wish.wanted),
                seq_order=wish.order.value,
                format=wish.form.value,
                byte_order_mark=wish.byte_order_mark,
                state=ExportState.WAITING.value,
                asked_at=_now,
            )
            .returning(exports)
        ).one()
    return export_of(row)


def _refuse_more(conn: sa.Connection, tenant_id: str, by: Principal, limits: ExportLimits) -> None:
    going_on = exports.c.state.in_([ExportState.WAITING.value, ExportState.MAKING.value])
    count = sa.select(
        sa.func.count().filter(going_on, exports.c.asked_by == by.subject),
        sa.func.count().filter(going_on, exports.c.tenant_id == tenant_id),
        sa.func.count().filter(exports.c.state == ExportState.READY.value, exports.c.tenant_id == tenant_id),
    ).where(going_on | (exports.c.state == ExportState.READY.value))
    own, of_tenant, kept = conn.execute(count).one()
    for number, most, whose in (
        (own, limits.caller_max, "yours"),
        (of_tenant, limits.tenant_max, "this tenant"),
    ):
        if number >= most:
            raise RateLimitedError(
                f"{most} exports of {whose} are waiting or being made already",
                hint="wait until one of them is ready, or cancel one",
                retry_after_s=_RETRY_S,
            )
    if kept >= _KEPT_MAX:
        raise StateError(f"{_KEPT_MAX} exports of this tenant are kept", hint="remove some that nobody needs")


# --- looked at ------------------------------------------------------------------------------------------


def get_export(database: Database, tenant_id: str, export_id: UUID, *, by: Principal) -> BackgroundExport:
    """One export: the caller's own; for administrators, anybody's.

    Raises:
        ExportNotFoundError: there is none, or none that this caller may know of.
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        return export_of(_row(conn, tenant_id, export_id, by))


def list_exports(
    database: Database,
    tenant_id: str,
    *,
    by: Principal,
    before: UUID | None = None,
    limit: int = EXPORTS_LISTED_MAX,
) -> tuple[list[BackgroundExport], UUID | None]:
    """A tenant's exports that the caller may know of, newest first; and, if there are more, what the next
    page comes `before`.

    Raises:
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        query = sa.select(exports).where(exports.c.tenant_id == tenant_id, _visible(conn, by))
        if before is not None:
            query = query.where(exports.c.export_id < before)
        rows = conn.execute(query.order_by(exports.c.export_id.desc()).limit(limit + 1)).all()
    return [export_of(row) for row in rows[:limit]], rows[limit - 1].export_id if len(rows) > limit else None


def _visible(conn: sa.Connection, by: Principal) -> sa.ColumnElement[bool]:
    """Which exports a caller may know of. A key that replaces another has that one's too."""
    if by.role is Role.ADMINISTRATOR:
        return sa.true()
    own = [by.subject]
    if by.subject.startswith(_KEY):
        line = (
            sa.select(api_keys.c.replaces)
            .where(api_keys.c.key_id == by.subject.removeprefix(_KEY))
            .cte("line", recursive=True)
        )
        line = line.union(sa.select(api_keys.c.replaces).join(line, api_keys.c.key_id == line.c.replaces))
        found = conn.execute(sa.select(line.c.replaces).where(line.c.replaces.is_not(None))).scalars()
        own += [f"{_KEY}{key_id}" for key_id in found]
    return exports.c.asked_by.in_(own)


def _row(
    conn: sa.Connection, tenant_id: str, export_id: UUID, by: Principal, *, lock: bool = False
) -> sa.Row[Any]:
    query = sa.select(exports).where(
        exports.c.tenant_id == tenant_id, exports.c.export_id == export_id, _visible(conn, by)
    )
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise ExportNotFoundError(f"there is no export {export_id}", hint="exports are listed at …/exports")
    return row


def cancel_export(database: Database, tenant_id: str, export_id: UUID, *, by: Principal) -> BackgroundExport:
    """End an export: one that is going on is given up, the file of one that is ready goes. One that has ended
    already stays as it is.

    Raises:
        ExportNotFoundError: there is none, or none that this caller may know of.
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        found = export_of(_row(conn, tenant_id, export_id, by, lock=True))
        if found.state.is_going_on:
            end_exports(conn, ExportState.CANCELLED, exports.c.export_id == export_id)
        elif found.state is ExportState.READY:
            end_kept(conn, exports.c.export_id == export_id)
        return export_of(_row(conn, tenant_id, export_id, by))


# --- rows -----------------------------------------------------------------------------------------------


def end_exports(conn: sa.Connection, state: ExportState, which: sa.ColumnElement[bool], **values: Any) -> int:
    """End exports that are going on; how many."""
    ended = {"state": state.value, "leased_until": None, "finished_at": _now, **values}
    return conn.execute(sa.update(exports).where(which).values(**ended)).rowcount


def end_kept(conn: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    """End exports that are ready now, before their time if need be; how many. Their files go with the next
    look of whoever has them."""
    values = {
        "state": ExportState.EXPIRED.value,
        "expires_at": sa.func.least(exports.c.expires_at, _now),
    }
    return conn.execute(sa.update(exports).where(which).values(**values)).rowcount


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else to_us(moment)


def export_of(row: sa.Row[Any]) -> BackgroundExport:
    """A row of the table."""
    return BackgroundExport(
        export_id=row.export_id,
        tenant_id=row.tenant_id,
        asked_by=row.asked_by,
        role=row.role,
        person=row.person,
        asker_tenant=row.asker_tenant,
        reason=row.reason,
        wanted=filter_from_json(row.wanted),
        order=Order(row.seq_order),
        form=FileFormat(row.format),
        byte_order_mark=row.byte_order_mark,
        state=ExportState(row.state),
        asked_us=to_us(row.asked_at),
        started_us=_us(row.started_at),
        finished_us=_us(row.finished_at),
        expires_us=_us(row.expires_at),
        events=row.events,
        size_bytes=row.size_bytes,
        looked_at=row.looked_at,
        attempt=row.attempt,
        through_seq=row.through_seq,
        gone=[(first, last) for first, last in row.gone],
        host=row.host,
        sha256=None if row.sha256 is None else bytes(row.sha256),
        error=row.error,
    )
