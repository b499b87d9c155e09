"""One window's quality issues, accepted by somebody: the window goes on, and the policy stays as strict."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import from_us, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import governance, windows
from eventstore.errors import InputError, StateError
from eventstore.governance.record import EntryKind, record, required_text
from eventstore.model.window import Window, WindowState

__all__ = ["Acceptance", "accept_window", "acceptance_of"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Who accepted what a window's rules find, and why."""

    entry_no: int
    actor: str
    reason: str


def accept_window(
    database: Database, tenant_id: str, at_us: int, *, actor: str, reason: str, now_us: int
) -> Window:
    """Let the window in which a time lies pass whatever its quality rules say; recorded, and heeded by the
    next run. What they find is told all the same.

    Raises:
        InputError: there is no such window, or who or why is missing.
        StateError: it is archived already.
        TenantNotFoundError
    """
    who, why = required_text("who accepts it", actor), required_text("the reason", reason)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = conn.execute(
            sa.select(windows.c.window_from, windows.c.window_to, windows.c.state).where(
                windows.c.tenant_id == tenant_id,
                windows.c.window_from <= from_us(at_us),
                windows.c.window_to > from_us(at_us),
            )
        ).one_or_none()
        if row is None:
            raise InputError(
                f"{tenant_id!r} has no window at {to_iso(at_us)[:19]}Z",
                hint=f"eventstore retention run --dry-run --tenant {tenant_id} lists those that are due",
            )
        window = Window(to_us(row.window_from), to_us(row.window_to))
        if row.state not in (WindowState.OPEN.value, WindowState.SEALED.value):
            raise StateError(
                f"window {window} of {tenant_id!r} is archived already", hint="there is nothing to accept"
            )
        document = {"window_from": to_iso(window.from_us), "reason": why}
        record(conn, EntryKind.QUALITY_ACCEPTED, tenant_id, who, document, now_us)
    return window


def acceptance_of(conn: sa.Connection, tenant_id: str, window: Window) -> Acceptance | None:
    """The latest acceptance of a window; None: nobody has accepted it."""
    query = (
        sa.select(governance)
        .where(
            governance.c.tenant_id == tenant_id,
            governance.c.kind == EntryKind.QUALITY_ACCEPTED.value,
            governance.c.document["window_from"].astext == to_iso(window.from_us),
        )
        .order_by(governance.c.entry_no.desc())
        .limit(1)
    )
    row = conn.execute(query).one_or_none()
    return None if row is None else Acceptance(row.entry_no, row.actor, row.document["reason"])
