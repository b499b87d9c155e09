"""The only remover of hot events: drops a whole partition, and only against proof of its archive."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from eventstore.catalog.windows import check_cover, list_segments, mark_dropped, read_watermark
from eventstore.db.engine import Database, Guard
from eventstore.db.locks import DROP_LOCK_TIMEOUT_MS, busy_when_locked
from eventstore.db.partitions import SCHEMA
from eventstore.errors import CoverageError
from eventstore.model.segment import VerifiedSegment
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowRecord

__all__ = ["drop_window"]


def drop_window(
    database: Database,
    tenant: Tenant,
    record: WindowRecord,
    verified: Sequence[VerifiedSegment],
    *,
    lock_timeout_ms: int = DROP_LOCK_TIMEOUT_MS,
    guard: Guard | None = None,
) -> None:
    """Drop an archived window's partition and record it, in one transaction.

    Takes a constant time, whatever the window holds. Waits for readers only briefly, because whoever
    reads this tenant next queues behind the wait.

    Raises:
        CoverageError: the verified segments do not cover the window, or the catalog holds other ones, or
            its cutover is not committed. Nothing is dropped.
        BusyError: readers held the tenant's table longer than the time-out. Nothing is dropped; try again.
    """
    found = [v.segment for v in verified]
    check_cover(record, found)
    assert record.last_seq is not None
    drop = sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(SCHEMA, record.leaf)).as_string()
    with (
        database.transaction() as conn,
        busy_when_locked(
            f"readers hold the table of {tenant.tenant_id!r}",
            hint="the window is safe in the archive; its partition goes with a later try",
        ),
    ):
        conn.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
        if guard is not None:
            guard(conn)
        if read_watermark(conn, tenant.tenant_id).archived_through < record.last_seq:
            raise CoverageError(
                f"window {record.window} is not archived yet", hint="its cutover must commit first"
            )
        if list_segments(conn, tenant.tenant_id, seq_from=record.first_seq, seq_to=record.last_seq) != found:
            raise CoverageError(
                f"the catalog holds other segments for window {record.window} than were verified",
                hint="nothing was dropped; run eventstore verify",
            )
        conn.exec_driver_sql(drop)
        mark_dropped(conn, tenant.tenant_id, record)
