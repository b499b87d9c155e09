"""The making of exports, as stored: claimed, kept, finished, and ended when their time has come.

Whoever makes one holds a lease on its row and renews it. A lease that has run out is anybody's, who then
begins anew: `attempt` rises with each claim, and every change of a making names its attempt, so one that was
taken for dead and wakes up changes nothing. Times are the database's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import tenants
from eventstore.db.tables_exports import exports
from eventstore.governance.exports import end_exports, end_kept, export_of
from eventstore.governance.keys import get_key
from eventstore.model.access import Permission, Principal, Role
from eventstore.model.apikey import KeyState
from eventstore.model.export import BackgroundExport, ExportState
from eventstore.model.tenant import TenantState

__all__ = [
    "Making",
    "asker_of",
    "claim_export",
    "expire_exports",
    "fail_export",
    "finish_export",
    "fits",
    "give_back",
    "keep_making",
    "prune_exports",
    "states_of",
]

# Whoever makes an export may die so often before it is given up: it may be what kills them.
_LOST_MAX = 3
_KEY = "key:"
_now = sa.func.clock_timestamp()


@dataclass(slots=True)
class Making:
    """How far a making has come: `looked_at` counts seqs of the log, whether they are wanted or not.
    `through_seq` None: it has not begun to read. `gone` is as in the export."""

    events: int = 0
    size_bytes: int = 0
    looked_at: int = 0
    through_seq: int | None = None
    gone: Sequence[tuple[int, int]] = ()


def claim_export(database: Database, *, lease_us: int, host: str) -> BackgroundExport | None:
    """Take the next export that waits, or whose maker's lease has run out; None: there is none. Of tenants
    of which fewest are being made comes first whose was asked for first."""
    c, other = exports.c, exports.alias()
    dead = sa.and_(c.state == ExportState.MAKING.value, c.leased_until < _now)
    at_work = (
        sa.select(sa.func.count())
        .where(other.c.tenant_id == c.tenant_id, other.c.state == ExportState.MAKING.value)
        .scalar_subquery()
    )
    query = (
        sa.select(exports)
        .where((c.state == ExportState.WAITING.value) | dead)
        .order_by(at_work, c.asked_at, c.export_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    with database.transaction() as conn:
        row = conn.execute(query).one_or_none()
        if row is None:
            return None
        lost = row.lost + (row.state == ExportState.MAKING.value)
        this = c.export_id == row.export_id
        if lost > _LOST_MAX:
            error = f"it was begun {lost} times, and each time whoever made it died"
            end_exports(conn, ExportState.FAILED, this, error=error, lost=lost)
            return None
        claimed = conn.execute(
            sa.update(exports)
            .where(this)
            .values(
                state=ExportState.MAKING.value,
                leased_until=_now + _interval(lease_us),
                attempt=c.attempt + 1,
                lost=lost,
                started_at=_now,
                events=0,
                size_bytes=0,
                looked_at=0,
                through_seq=None,
                gone=[],
                host=host,
            )
            .returning(exports)
        ).one()
    return export_of(claimed)


def asker_of(conn: sa.Connection, export: BackgroundExport) -> Principal | None:
    """Who asked for an export, as it is known now; None: it may not export that tenant's events any more.
    Of a person who signed in with a token, and of the machine itself, nothing newer is known than when they
    asked."""
    if export.asked_by.startswith(_KEY):
        key = get_key(conn, export.asked_by.removeprefix(_KEY))
        now_us = to_us(conn.execute(sa.select(_now)).scalar_one())
        if key is None or key.state(now_us) is not KeyState.ACTIVE:
            return None
        asker = key.principal
    else:
        asker = Principal(export.asked_by, Role(export.role), export.asker_tenant, person=export.person)
    return asker if asker.may(Permission.EXPORT) and asker.sees(export.tenant_id) else None


def keep_making(database: Database, export: BackgroundExport, made: Making, *, lease_us: int) -> bool:
    """Renew the lease of an export that is being made, and say how far it is; False: it is this attempt's no
    more, for it was cancelled, or another has taken it over."""
    with database.transaction() as conn:
        return _change(conn, export, leased_until=_now + _interval(lease_us), **_progress(made))


def fits(database: Database, export: BackgroundExport, size_bytes: int, *, bytes_max: int) -> bool:
    """Whether an export that is being made, and has come to that size, fits beside the others: all files
    that are kept and being made may have `bytes_max` together. If they have more, the largest of those that
    are being made is the one that does not fit; what is kept stays."""
    c = exports.c
    states = (ExportState.READY.value, ExportState.MAKING.value)
    query = sa.select(c.export_id, c.state, c.size_bytes).where(
        c.state.in_(states), c.export_id != export.export_id
    )
    with database.transaction() as conn:
        rows = conn.execute(query).all()
    making = [row for row in rows if row.state == ExportState.MAKING.value]
    making_bytes = sum(row.size_bytes for row in making)
    kept_bytes = sum(row.size_bytes for row in rows) - making_bytes
    if kept_bytes + making_bytes + size_bytes <= bytes_max:
        return True
    largest = max(((row.size_bytes, row.export_id) for row in making), default=(0, export.export_id))
    return kept_bytes + size_bytes <= bytes_max and (size_bytes, export.export_id) < largest


def finish_export(
    database: Database, export: BackgroundExport, made: Making, *, sha256: bytes, kept_us: int
) -> bool:
    """An export's file lies in its place, whole and durable: it is ready, for `kept_us`. False: it is this
    attempt's no more, or whoever asked may not have it any more; then the file is nobody's."""
    with database.transaction() as conn:
        if asker_of(conn, export) is None:
            return False
        return _change(
            conn,
            export,
            state=ExportState.READY.value,
            leased_until=None,
            finished_at=_now,
            expires_at=_now + _interval(kept_us),
            sha256=sha256,
            **_progress(made),
        )


def fail_export(database: Database, export: BackgroundExport, made: Making, error: str) -> bool:
    """An export cannot be made; `error` says why, for whoever asked."""
    with database.transaction() as conn:
        return _change(
            conn,
            export,
            state=ExportState.FAILED.value,
            leased_until=None,
            finished_at=_now,
            error=error,
            **_progress(made),
        )


def give_back(database: Database, export: BackgroundExport) -> bool:
    """Whoever makes an export stops: the next one makes it anew."""
    with database.transaction() as conn:
        waiting = ExportState.WAITING.value
        return _change(conn, export, state=waiting, leased_until=None, events=0, size_bytes=0, looked_at=0)


# --- its end --------------------------------------------------------------------------------------------


def expire_exports(database: Database, *, tenant_id: str | None = None) -> int:
    """End the exports whose time has come, and all of tenants whose history is destroyed (`tenant_id`: is
    about to be); how many. Their files go with the next look of whoever has them."""
    closed: sa.ColumnElement[bool] = exports.c.tenant_id.in_(
        sa.select(tenants.c.tenant_id).where(tenants.c.state == TenantState.CLOSED.value)
    )
    if tenant_id is not None:
        closed = closed | (exports.c.tenant_id == tenant_id)
    ready = exports.c.state == ExportState.READY.value
    going_on = exports.c.state.in_([ExportState.WAITING.value, ExportState.MAKING.value])
    with database.transaction() as conn:
        expired = end_kept(conn, ready & (closed | (exports.c.expires_at <= _now)))
        error = "the tenant's history was destroyed meanwhile"
        return expired + end_exports(conn, ExportState.CANCELLED, going_on & closed, error=error)


def states_of(database: Database, export_ids: Collection[UUID]) -> dict[UUID, tuple[ExportState, int]]:
    """The state and the attempt of each of these exports that there is."""
    query = sa.select(exports.c.export_id, exports.c.state, exports.c.attempt)
    with database.transaction() as conn:
        rows = conn.execute(query.where(exports.c.export_id.in_(export_ids))).all()
    return {row.export_id: (ExportState(row.state), row.attempt) for row in rows}


def prune_exports(database: Database, before_us: int) -> int:
    """Delete the rows of exports that ended before a time, and have no file any more; how many."""
    ended = [s.value for s in (ExportState.FAILED, ExportState.EXPIRED, ExportState.CANCELLED)]
    with database.transaction() as conn:
        return conn.execute(
            sa.delete(exports).where(exports.c.state.in_(ended), exports.c.finished_at < from_us(before_us))
        ).rowcount


# --- rows ----------------------------------------------------------------------------------------------


def _change(conn: sa.Connection, export: BackgroundExport, **values: Any) -> bool:
    """Change a row as long as this attempt is the one that makes it."""
    ours = sa.and_(
        exports.c.export_id == export.export_id,
        exports.c.attempt == export.attempt,
        exports.c.state == ExportState.MAKING.value,
    )
    return conn.execute(sa.update(exports).where(ours).values(**values)).rowcount == 1


def _progress(made: Making) -> dict[str, Any]:
    return {
        "events": made.events,
        "size_bytes": made.size_bytes,
        "looked_at": made.looked_at,
        "through_seq": made.through_seq,
        "gone": [list(span) for span in made.gone],
    }


def _interval(us: int) -> sa.ColumnElement[timedelta]:
    return sa.literal(timedelta(microseconds=us), sa.Interval)
