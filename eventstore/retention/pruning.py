"""Old runs go, with their journals and tasks. What governs and what proves is never pruned: policies, holds,
certificates, and the record of governance."""

from __future__ import annotations

import sqlalchemy as sa

from eventstore.clock import from_us
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs, tasks
from eventstore.model.run import RunStatus, TaskState

__all__ = ["prune_runs"]

_AT_ONCE = 200


def prune_runs(database: Database, before_us: int) -> int:
    """Delete the runs that ended before a time; how many. One that has not ended, or of which somebody still
    has a task, stays however old it is."""
    ended = [s.value for s in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.INTERRUPTED)]
    open_task = sa.exists().where(
        tasks.c.run_id == runs.c.run_id,
        tasks.c.state.in_([TaskState.WAITING.value, TaskState.RUNNING.value]),
    )
    query = (
        sa.select(runs.c.run_id)
        .where(runs.c.status.in_(ended), runs.c.finished_at < from_us(before_us), ~open_task)
        .order_by(runs.c.finished_at)
        .limit(_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    count = 0
    while True:
        # Dying between two of these leaves whole runs.
        with database.transaction() as conn:
            found = list(conn.execute(query).scalars())
            for table in (run_entries, tasks, runs):
                conn.execute(sa.delete(table).where(table.c.run_id.in_(found)))
        count += len(found)
        if len(found) < _AT_ONCE:
            return count
