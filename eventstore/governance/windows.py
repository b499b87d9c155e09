"""Windows with the number of their events, for whoever has to say what a change would do to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.clock import to_us
from eventstore.db.tables import heads, windows
from eventstore.model.window import Window, WindowRecord, WindowState

__all__ = ["CountedWindow", "counted_windows"]

_FETCH = 5_000


@dataclass(frozen=True, slots=True)
class CountedWindow:
    """A window, and how many events it has (so far, while it is open)."""

    tenant_id: str
    record: WindowRecord
    events: int


def counted_windows(
    conn: sa.Connection, tenant_id: str | None = None, *, states: Collection[WindowState] | None = None
) -> Iterator[CountedWindow]:
    """The windows of a tenant, or of all (None), by tenant and oldest first, in one streamed query.
    `states` None: in whichever state."""
    following = sa.func.lead(windows.c.first_seq).over(
        partition_by=windows.c.tenant_id, order_by=windows.c.window_from
    )
    last_seq = sa.func.coalesce(windows.c.last_seq, following - 1, heads.c.last_seq)
    query = (
        sa.select(windows, (last_seq - windows.c.first_seq + 1).label("events"))
        .join(heads, heads.c.tenant_id == windows.c.tenant_id)
        .order_by(windows.c.tenant_id, windows.c.window_from)
    )
    if tenant_id is not None:
        query = query.where(windows.c.tenant_id == tenant_id)
    for row in conn.execute(query, execution_options={"yield_per": _FETCH}):
        record = WindowRecord(
            Window(to_us(row.window_from), to_us(row.window_to)),
            WindowState(row.state),
            row.leaf,
            row.first_seq,
            row.last_seq,
            row.hash_before,
            row.hash_after,
            row.target,
        )
        if states is None or record.state in states:
            yield CountedWindow(row.tenant_id, record, row.events)
