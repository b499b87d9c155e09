"""Reading runs: lists of them, one with its answers, and its journal entry by entry while it is written."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from eventstore.clock import from_us, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs, tenants
from eventstore.errors import InputError, RunNotFoundError, TenantNotFoundError
from eventstore.model.run import RunKind, RunStatus
from eventstore.query.run_answers import Journaled
from eventstore.query.run_entries import ENTRY_COLUMNS, HELD_LOCKS, IS_UNDERSTOOD, entry_view, iso, number_sql
from eventstore.query.run_longest import longest_window
from eventstore.query.run_view import ENTRIES_MAX, LATEST, RUNS_MAX, EntriesPage, RunSummary, RunView

__all__ = [
    "ENTRIES_MAX",
    "LATEST",
    "RUNS_MAX",
    "before_last_entries",
    "find_run",
    "list_runs",
    "read_entries",
    "read_run",
]

# For how long a page of entries waits for writers that were about to commit an earlier entry.
_SETTLE_S = 1.0
_ELAPSED_MS = "CAST(extract(epoch FROM coalesce(finished_at, now()) - started_at) * 1000 AS bigint)"


@contextmanager
def _snapshot(database: Database) -> Iterator[sa.Connection]:
    """A transaction whose every statement sees the same moment."""
    with database.transaction() as conn:
        conn.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield conn


# --- one run --------------------------------------------------------------------------------------------


def read_run(database: Database, run_id: uuid.UUID) -> RunView:
    """What was planned, what happened, what degraded, what was the outcome, and the longest window and why.

    All of one moment, also while the run goes on.

    Raises:
        RunNotFoundError: no such run.
    """
    with _snapshot(database) as conn:
        run = conn.execute(
            sa.text(f"SELECT *, {_ELAPSED_MS} AS elapsed_ms FROM runs WHERE run_id = :run_id"),
            {"run_id": run_id},
        ).one_or_none()
        if run is None:
            raise _no_run(run_id)
        journal = Journaled(conn, run)
        windows = journal.window_counts()
        planned, happened = journal.planned(), journal.happened(windows)
        return RunView(
            run_id=str(run_id),
            kind=RunKind(run.kind),
            requested_by=run.requested_by,
            now=to_iso(run.now_us),
            started_at=iso(run.started_at),
            planned=planned,
            happened=happened,
            degraded=journal.degraded(),
            outcome=journal.outcome(windows),
            longest_window=longest_window(
                conn,
                run_id,
                ended=journal.ended,
                unfinished=windows.unfinished.items,
                any_retries=bool(happened.retries.count),
            ),
            entries=journal.entries,
            not_understood=journal.not_understood(),
        )


def find_run(database: Database, text: str) -> uuid.UUID:
    """The run that is meant by `latest`, an id, or the beginning of one.

    Raises:
        InputError: not the beginning of an id, or of several runs'.
        RunNotFoundError: of none.
    """
    newest = sa.select(runs.c.run_id).order_by(runs.c.started_at.desc(), runs.c.run_id.desc())
    with database.transaction() as conn:
        if text == LATEST:
            found = conn.execute(newest.limit(1)).scalars().all()
            if not found:
                raise RunNotFoundError("there is no run yet", hint="eventstore retention run")
            return _uuid(found[0])
        wanted = text.lower()
        if not re.fullmatch(r"[0-9a-f][0-9a-f-]{0,35}", wanted):
            raise InputError(f"{text!r} is not the beginning of a run's id", hint="eventstore runs list")
        matching = newest.where(sa.cast(runs.c.run_id, sa.Text).like(f"{wanted}%")).limit(4)
        found = conn.execute(matching).scalars().all()
    if not found:
        raise _no_run(text)
    if len(found) > 1:
        some = ", ".join(str(run_id) for run_id in found[:3]) + (", …" if len(found) > 3 else "")
        raise InputError(f"several runs begin with {text!r}: {some}", hint="give more of the id")
    return _uuid(found[0])


def _uuid(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))


def _no_run(run: object) -> RunNotFoundError:
    return RunNotFoundError(f"there is no run {str(run)!r}", hint="eventstore runs list")


# --- its entries ----------------------------------------------------------------------------------------


def read_entries(
    database: Database, run_id: uuid.UUID, *, after: int = 0, limit: int = ENTRIES_MAX
) -> EntriesPage:
    """The entries behind `after`, in order.

    Entries are numbered before they are committed, so that one may appear below another that is there
    already. This page waits for such entries, and is empty if they take longer than a second: whoever goes
    on behind `next_after` misses none.

    Raises:
        RunNotFoundError: no such run.
    """
    with database.transaction() as conn:
        # Before the entries: a run that has ended has written them all.
        row = conn.execute(
            sa.select(runs.c.status, runs.c.finished_at).where(runs.c.run_id == run_id)
        ).one_or_none()
        if row is None:
            raise _no_run(run_id)
        where = "FROM run_entries WHERE run_id = :run_id AND entry_no > :after"
        through = conn.execute(
            sa.text(
                f"SELECT max(n) FROM (SELECT entry_no AS n {where} ORDER BY entry_no LIMIT :limit) AS page"
            ),
            {"run_id": run_id, "after": after, "limit": limit},
        ).scalar_one()
        found: Sequence[sa.Row[Any]] = []
        settled = through is None or _is_settled(conn)
        if through is not None and settled:
            found = conn.execute(
                sa.text(
                    f"SELECT {ENTRY_COLUMNS} {where} AND entry_no <= :through ORDER BY entry_no LIMIT :limit"
                ),
                {"run_id": run_id, "after": after, "through": through, "limit": limit},
            ).all()
    return EntriesPage(
        entries=[entry_view(row) for row in found],
        next_after=found[-1].entry_no if found else after,
        status=RunStatus(row.status),
        ended=settled and row.finished_at is not None,
    )


def before_last_entries(database: Database, run_id: uuid.UUID, count: int) -> int:
    """The `after` behind which the last `count` entries follow that there are now, for `read_entries`; 0:
    there are no more than that."""
    query = sa.select(run_entries.c.entry_no).where(run_entries.c.run_id == run_id)
    with database.transaction() as conn:
        found = conn.execute(query.order_by(run_entries.c.entry_no.desc()).offset(count).limit(1)).scalar()
    return 0 if found is None else int(found)


def _is_settled(conn: sa.Connection) -> bool:
    """Wait until every transaction that may be writing an entry now has ended; False: one takes too long.

    A writer locks the table before its entry gets its number. So whoever holds that lock now, and nobody who
    comes later, may yet commit an entry below one that is visible already.
    """
    writers, until = _writers(conn), time.monotonic() + _SETTLE_S
    pause_s = 0.002
    while writers:
        if time.monotonic() > until:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)
        writers &= _writers(conn)
    return True


def _writers(conn: sa.Connection) -> set[str]:
    return set(
        conn.execute(
            sa.text(
                "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND relation = CAST(:table AS regclass) AND mode = 'RowExclusiveLock' AND granted"
            ),
            {"table": run_entries.name},
        ).scalars()
    )


# --- lists of runs --------------------------------------------------------------------------------------

_LIST = f"""
WITH page AS MATERIALIZED (
  SELECT *, {_ELAPSED_MS} AS elapsed_ms FROM runs
   WHERE {{where}} ORDER BY started_at DESC, run_id DESC LIMIT :limit)
SELECT page.*, ended.detail AS completed, soFar.*, task.*
  FROM page
  LEFT JOIN LATERAL (
    SELECT detail FROM run_entries
     WHERE run_id = page.run_id AND page.finished_at IS NOT NULL AND kind = 'run_completed'
       AND {IS_UNDERSTOOD} ORDER BY entry_no DESC LIMIT 1) AS ended ON true
  CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE kind = 'window_completed') AS windows,
           count(*) FILTER (WHERE kind = 'window_failed') AS windows_failed,
           coalesce(sum({number_sql("events")}) FILTER (WHERE kind = 'window_completed'), 0) AS events
      FROM run_entries
     WHERE run_id = page.run_id AND (ended.detail IS NULL OR page.status = 'interrupted')
       AND kind IN ('window_completed', 'window_failed') AND {IS_UNDERSTOOD}) AS soFar
  CROSS JOIN LATERAL (
    SELECT count(*) AS tasks,
           count(*) FILTER (WHERE state = 'running' AND leased_until >= now()
                              AND holder IN {HELD_LOCKS}) AS at_work
      FROM tasks WHERE run_id = page.run_id AND page.finished_at IS NULL) AS task
 ORDER BY page.started_at DESC, page.run_id DESC
"""
_OF_TENANT = (
    "(EXISTS (SELECT FROM tasks t WHERE t.run_id = runs.run_id AND t.tenant_id = :tenant)"
    " OR EXISTS (SELECT FROM run_entries e WHERE e.run_id = runs.run_id AND e.tenant_id = :tenant))"
)


def list_runs(
    database: Database,
    *,
    limit: int = 50,
    cursor: str | None = None,
    status: RunStatus | None = None,
    kind: RunKind | None = None,
    tenant: str | None = None,
) -> tuple[list[RunSummary], str | None]:
    """Runs, newest first, and the cursor of the next page; None: there are no more.

    `tenant`: only runs that planned something for it, or whose journal names it.

    Raises:
        InputError: not a cursor.
        TenantNotFoundError: no such tenant.
    """
    conditions, parameters = ["true"], dict[str, Any](limit=limit + 1)
    if status is not None:
        conditions.append("status = :status")
        parameters["status"] = status.value
    if kind is not None:
        conditions.append("kind = :kind")
        parameters["kind"] = kind.value
    if cursor is not None:
        conditions.append("(started_at, run_id) < (:before, :before_id)")
        parameters["before"], parameters["before_id"] = _decode_cursor(cursor)
    if tenant is not None:
        conditions.append(_OF_TENANT)
        parameters["tenant"] = tenant
    with _snapshot(database) as conn:
        if (
            tenant is not None
            and not conn.execute(sa.select(sa.exists().where(tenants.c.tenant_id == tenant))).scalar_one()
        ):
            raise TenantNotFoundError(tenant)
        rows = conn.execute(sa.text(_LIST.format(where=" AND ".join(conditions))), parameters).all()
    page = rows[:limit]
    return [_summary(row) for row in page], _encode_cursor(page[-1]) if len(rows) > limit else None


def _summary(row: sa.Row[Any]) -> RunSummary:
    said: dict[str, Any] = row.completed or {}
    ended = row.finished_at is not None
    return RunSummary(
        run_id=str(row.run_id),
        kind=RunKind(row.kind),
        status=RunStatus(row.status),
        requested_by=row.requested_by,
        now=to_iso(row.now_us),
        started_at=iso(row.started_at),
        finished_at=iso(row.finished_at) if ended else None,
        duration_ms=row.elapsed_ms,
        windows=max(row.windows, int(said.get("windows", 0))),
        windows_failed=max(row.windows_failed, int(said.get("windows_failed", 0))),
        events=max(int(row.events), int(said.get("events", 0))),
        error=said.get("error"),
        tasks=None if ended else row.tasks,
        at_work=None if ended else row.at_work,
    )


def _encode_cursor(row: sa.Row[Any]) -> str:
    return f"{to_us(row.started_at)}.{_uuid(row.run_id).hex}"


def _decode_cursor(text: str) -> tuple[Any, uuid.UUID]:
    found = re.fullmatch(r"([0-9]{1,18})\.([0-9a-f]{32})", text)
    try:
        if found is not None:
            return from_us(int(found[1])), uuid.UUID(hex=found[2])
    except OverflowError:
        pass
    raise InputError(f"{text!r} is not a cursor", hint="take it from next_cursor of the page before")
