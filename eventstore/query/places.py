"""Where events lie now: the window of each, its state, and the target that has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import windows
from eventstore.model.window import Window, WindowState

__all__ = ["Place", "places_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """The window of an event. `target` names where the archive has it; None: it is hot, or destroyed."""

    window: Window
    state: WindowState
    target: str | None

    @property
    def tier(self) -> str:
        """hot, archive or expired."""
        if self.state in (WindowState.OPEN, WindowState.SEALED):
            return "hot"
        return "expired" if self.state is WindowState.EXPIRED else "archive"


def places_of(database: Database, tenant_id: str, recorded_us: Sequence[int]) -> list[Place]:
    """The places of events that exist, by their recorded times, in the same order, in one snapshot."""
    at = sa.func.unnest(sa.cast([from_us(us) for us in recorded_us], ARRAY(TIMESTAMP(timezone=True))))
    times = at.table_valued("at", with_ordinality="n").render_derived(name="times")
    window = (
        sa.select(windows.c.window_from, windows.c.window_to, windows.c.state, windows.c.target)
        .where(windows.c.tenant_id == tenant_id, windows.c.window_from <= times.c.at)
        .order_by(windows.c.window_from.desc())
        .limit(1)
        .lateral("window_of")
    )
    with database.transaction() as conn:
        rows = conn.execute(
            sa.select(window).select_from(times.join(window, sa.true())).order_by(times.c.n)
        ).all()
    return [_place(row) for row in rows]


def _place(row: sa.Row[tuple[object, ...]]) -> Place:
    state = WindowState(row.state)
    archived = state in (WindowState.ARCHIVED, WindowState.DROPPED)
    return Place(
        Window(to_us(row.window_from), to_us(row.window_to)), state, row.target if archived else None
    )
