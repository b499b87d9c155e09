"""Sealing: freezing a window's seq range, so that nothing can be added to it any more."""

from __future__ import annotations

import sqlalchemy as sa
from psycopg import sql

from eventstore.clock import from_us
from eventstore.db.engine import Database, Guard
from eventstore.db.partitions import SCHEMA
from eventstore.db.tables import heads, windows
from eventstore.errors import CoverageError
from eventstore.model.event import chain_start
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowRecord, WindowState

__all__ = ["seal_window"]


def seal_window(
    database: Database, tenant: Tenant, record: WindowRecord, *, target: str, guard: Guard | None = None
) -> WindowRecord:
    """Freeze an open window, in one transaction under the head's lock; a sealed one is returned as it is.
    The target in which it is to be archived is frozen with it: a retry writes to the same one.

    The tenant's clock is moved past the window's end first, so that no writer, however wrong its own
    clock, can record an event in it. What is then in the window is its seq range for ever.

    Raises:
        CoverageError: the leaf does not hold the seq range that the catalog says.
    """
    if record.state is not WindowState.OPEN:
        return record
    with database.transaction() as conn:
        if guard is not None:
            guard(conn)
        head = conn.execute(
            sa.select(heads).where(heads.c.tenant_id == tenant.tenant_id).with_for_update()
        ).one()
        if head.last_recorded_us < record.window.to_us:
            conn.execute(
                sa.update(heads)
                .where(heads.c.tenant_id == tenant.tenant_id)
                .values(last_recorded_us=record.window.to_us)
            )
        next_first, hash_before = _neighbours(conn, tenant.tenant_id, record)
        last_seq = head.last_seq if next_first is None else next_first - 1
        hash_after = _leaf_end(conn, record, last_seq)
        sealed = WindowRecord(
            record.window,
            WindowState.SEALED,
            record.leaf,
            record.first_seq,
            last_seq,
            hash_before,
            hash_after,
            target,
        )
        moved = conn.execute(
            sa.update(windows)
            .where(
                windows.c.tenant_id == tenant.tenant_id,
                windows.c.window_from == from_us(record.window.from_us),
                windows.c.state == WindowState.OPEN.value,
            )
            .values(
                state=WindowState.SEALED.value,
                last_seq=last_seq,
                hash_before=hash_before,
                hash_after=hash_after,
                target=target,
                sealed_at=sa.func.now(),
            )
        )
        if moved.rowcount != 1:
            raise CoverageError(
                f"window {record.window} of {tenant.tenant_id!r} is no longer open",
                hint="another run is working on this tenant; run again",
            )
    # Dying before the commit leaves the window open; after it, frozen: a retry takes up this same range.
    return sealed


def _neighbours(conn: sa.Connection, tenant_id: str, record: WindowRecord) -> tuple[int | None, bytes]:
    """The first seq of the window after this one (None: there is none), and the hash that its own first event
    chains onto, as the sealed windows say."""
    seq = record.first_seq - 1
    following = (
        sa.select(windows.c.first_seq)
        .where(windows.c.tenant_id == tenant_id, windows.c.window_from > from_us(record.window.from_us))
        .order_by(windows.c.window_from)
        .limit(1)
    )
    before = sa.select(windows.c.hash_after).where(
        windows.c.tenant_id == tenant_id, windows.c.last_seq == seq
    )
    next_first, found = conn.execute(sa.select(following.scalar_subquery(), before.scalar_subquery())).one()
    if seq == 0:
        return next_first, chain_start(tenant_id)
    if found is None:
        raise CoverageError(
            f"no sealed window of {tenant_id!r} ends at seq {seq}",
            hint="windows are sealed oldest first; run eventstore verify",
        )
    return next_first, bytes(found)


def _leaf_end(conn: sa.Connection, record: WindowRecord, last_seq: int) -> bytes:
    # As text: a statement of a table of its own would be compiled anew for each window.
    query = sql.SQL("SELECT min(seq), max(seq), (SELECT hash FROM {0} WHERE seq = %s) FROM {0}")
    text = query.format(sql.Identifier(SCHEMA, record.leaf)).as_string()
    *ends, last_hash = conn.exec_driver_sql(text, (last_seq,)).one()
    if ends != [record.first_seq, last_seq]:
        raise CoverageError(
            f"partition {SCHEMA}.{record.leaf} holds seq {ends[0]} to {ends[1]}, "
            f"the catalog says {record.first_seq} to {last_seq}",
            hint="nothing was archived or dropped; run eventstore verify",
        )
    return bytes(last_hash)
