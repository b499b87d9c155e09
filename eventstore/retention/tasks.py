"""Tasks: what a run has to do, a window at a time, and who may do it now (docs/design/0019).

A claim carries a fence. Every transaction that changes something under a claim begins with its guard, which
looks whether the fence still stands and keeps the next claim out until the transaction has ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database, Guard
from eventstore.db.locks import claims_key
from eventstore.db.tables import governor, removals, runs, tasks, windows
from eventstore.errors import LeaseLostError
from eventstore.model.run import RunKind, RunStatus, TaskAction, TaskState
from eventstore.retention.planner import WindowPlan

__all__ = ["Claim", "TaskCounts", "Tasks"]

_GOVERNED_S = 60.0
# Shorter than the lock time-out with which others wait for their turn.
_CLAIM_IDLE = "3s"
_UNFINISHED = (TaskState.WAITING.value, TaskState.RUNNING.value)

# A worker is alive while its advisory lock is held, and asleep when its lease has run out.
_DEAD = """
NOT EXISTS (SELECT 1 FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (l.classid::bigint << 32 | l.objid::bigint) = {of}.holder)
"""
_FREE = f"t.leased_until < clock_timestamp() OR {_DEAD.format(of='t')}"

# The next task: its time has come and nobody alive holds it; a window is archived only when no older one of
# its tenant is still to be.
_NEXT = f"""
SELECT t.task_id, t.run_id, t.tenant_id, t.window_from, t.action, t.fence, t.attempts
  FROM tasks t
 WHERE t.state IN ('waiting', 'running')
   AND (:tenants_given = false OR t.tenant_id = ANY(:tenants))
   AND (t.state = 'waiting' AND t.not_before <= clock_timestamp()
        OR t.state = 'running' AND ({_FREE}))
   AND (t.action <> 'archive' OR NOT EXISTS (
        SELECT 1 FROM tasks o
         WHERE o.tenant_id = t.tenant_id AND o.window_from < t.window_from
           AND o.state IN ('waiting', 'running') AND o.action = 'archive'))
 ORDER BY t.task_id
 LIMIT 1
   FOR UPDATE SKIP LOCKED
"""

_FENCE = sa.text("SELECT fence FROM tasks WHERE task_id = :task_id AND state = 'running' FOR SHARE")

_ENDED = f"""
SELECT r.run_id, r.status FROM runs r
 WHERE r.status = 'planning' AND {_DEAD.format(of="r")}
    OR r.status = 'running' AND (r.kind <> 'scrub' OR {_DEAD.format(of="r")})
       AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.run_id = r.run_id AND t.state IN ('waiting', 'running'))
"""

# What earlier runs have left, and whether nothing of it is still to be done. Rows in which somebody's open
# transaction stands are left to later.
_LEFT = f"""
SELECT t.task_id, t.run_id,
       t.attempts > 0 AND CASE t.action WHEN 'archive' THEN w.state IN ('dropped', 'expired')
            ELSE w.state = CASE t.action WHEN 'move' THEN 'dropped' ELSE 'expired' END AND NOT EXISTS (
            SELECT 1 FROM removals m WHERE (m.tenant_id, m.window_from) = (t.tenant_id, t.window_from)
               AND m.removed_at IS NULL) END AS ended
  FROM tasks t JOIN runs r ON r.run_id = t.run_id
       LEFT JOIN windows w ON (w.tenant_id, w.window_from) = (t.tenant_id, t.window_from)
 WHERE r.kind = ANY(:kinds) AND t.tenant_id = ANY(:tenants) AND t.run_id <> :run_id
   AND (t.state = 'waiting' OR t.state = 'running' AND ({_FREE}))
   FOR UPDATE OF t SKIP LOCKED
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A task in a worker's hands. `attempt` counts from 1."""

    task_id: int
    run_id: uuid.UUID
    tenant_id: str
    window_from_us: int
    action: TaskAction
    fence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many tasks are in each state."""

    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    blocked: int = 0

    @property
    def unfinished(self) -> int:
        return self.waiting + self.running


class Tasks:
    """The tasks of one database. `lease_s` is how long a claim lasts unless it is renewed."""

    def __init__(self, database: Database, *, lease_s: float = 30.0) -> None:
        self._database = database
        self.lease_s = lease_s

    def add(
        self, conn: sa.Connection, run_id: uuid.UUID, tenant_id: str, windows: Sequence[WindowPlan]
    ) -> list[WindowPlan]:
        """Make a task of each window, in the connection's transaction; those for which there is an
        unfinished one already are left out, and returned. What another worker has brought further since the
        plan was made is left out too: a later plan finds it due if it still is."""
        busy = []
        for window in windows:
            if not _still_due(conn, tenant_id, window):
                continue
            values = {
                "run_id": run_id,
                "tenant_id": tenant_id,
                "window_from": from_us(window.record.window.from_us),
                "action": window.action.value,
            }
            made = conn.execute(
                insert(tasks)
                .values(values)
                .on_conflict_do_nothing(
                    index_elements=["tenant_id", "window_from"],
                    index_where=tasks.c.state.in_(["waiting", "running"]),
                )
                .returning(tasks.c.task_id)
            )
            if made.one_or_none() is None and not _is_of(conn, run_id, tenant_id, window):
                busy.append(window)
        return busy

    def adopt(
        self, run_id: uuid.UUID, tenants: Collection[str], kind: RunKind | None = None
    ) -> set[uuid.UUID]:
        """Take unfinished tasks of these tenants that nobody alive works on out of the world, if they are of
        runs of that kind (None: of any): the plan that follows makes them anew, as far as they are still due.
        One whose worker came to its end, but not to saying so, is no longer due: it is given to the run
        `run_id` instead. Returns the runs they belonged to."""
        kinds = [one.value for one in (RunKind if kind is None else [kind])]
        with self._database.transaction() as conn:
            _take_turn(conn)
            given = {"tenants": list(tenants), "run_id": run_id, "kinds": kinds}
            found = conn.execute(sa.text(_LEFT), given).all()
            ended = [row.task_id for row in found if row.ended and kind is not None]
            conn.execute(
                sa.update(tasks)
                .where(tasks.c.task_id.in_(ended))
                .values(
                    run_id=run_id,
                    state=TaskState.WAITING.value,
                    holder=None,
                    leased_until=None,
                    fence=tasks.c.fence + 1,
                    attempts=0,
                    not_before=sa.func.clock_timestamp(),
                )
            )
            conn.execute(
                sa.delete(tasks).where(tasks.c.task_id.in_({row.task_id for row in found} - set(ended)))
            )
            return {row.run_id for row in found}

    def claim(self, holder: int, *, tenants: Collection[str] | None = None) -> Claim | None:
        """Claim the next task (of these tenants); None: there is none now, or enough are worked on."""
        with self._database.transaction() as conn:
            _take_turn(conn)
            if not self._room(conn):
                return None
            row = conn.execute(
                sa.text(_NEXT), {"tenants_given": tenants is not None, "tenants": list(tenants or ())}
            ).one_or_none()
            if row is None:
                return None
            conn.execute(
                sa.update(tasks)
                .where(tasks.c.task_id == row.task_id)
                .values(
                    state=TaskState.RUNNING.value,
                    fence=row.fence + 1,
                    attempts=row.attempts + 1,
                    holder=holder,
                    leased_until=_from_now(self.lease_s),
                    error=None,
                )
            )
        return Claim(
            row.task_id,
            row.run_id,
            row.tenant_id,
            to_us(row.window_from),
            TaskAction(row.action),
            row.fence + 1,
            row.attempts + 1,
        )

    def _room(self, conn: sa.Connection) -> bool:
        # A limit that nobody has affirmed lately is of a governor that has ended.
        lately = sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, _GOVERNED_S)
        most = conn.execute(
            sa.select(governor.c.parallelism).where(governor.c.felt_at > lately)
        ).scalar_one_or_none()
        if most is None:
            return True
        live = conn.execute(
            sa.text(f"SELECT count(*) FROM tasks t WHERE t.state = 'running' AND NOT ({_FREE})")
        ).scalar_one()
        return int(live) < int(most)

    def guard(self, claim: Claim) -> Guard:
        """The guard of a claim: to be called first in each transaction that changes something under it.

        Raises (when called):
            LeaseLostError: somebody else has claimed the task since.
        """

        def look(conn: sa.Connection) -> None:
            fence = conn.execute(_FENCE, {"task_id": claim.task_id}).scalar_one_or_none()
            if fence != claim.fence:
                raise LeaseLostError(
                    f"another worker has taken over the window of {claim.tenant_id!r} at "
                    f"{from_us(claim.window_from_us):%Y-%m-%d %H:%M}",
                    hint="nothing was changed; the other one finishes it",
                )

        return look

    def renew(self, claim: Claim) -> bool:
        """Make a claim last for another lease from now; False: it is no longer ours."""
        return self._change(claim, leased_until=_from_now(self.lease_s))

    def done(self, claim: Claim, told: Callable[[sa.Connection], None]) -> bool:
        """The task is done, and `told` writes so in the same transaction; False: it was no longer ours."""
        with self._database.transaction() as conn:
            ours = self._change_in(conn, claim, state=TaskState.DONE.value, holder=None, leased_until=None)
            if ours:
                told(conn)
        return ours

    def give_back(self, claim: Claim, *, pause_s: float = 0.0, counted: bool = True) -> bool:
        """The task is to be tried again after a pause; `counted`: this was an attempt."""
        return self._change(
            claim,
            state=TaskState.WAITING.value,
            holder=None,
            leased_until=None,
            not_before=_from_now(pause_s),
            attempts=claim.attempt if counted else claim.attempt - 1,
        )

    def fail(self, claim: Claim, error: str, told: Callable[[sa.Connection], None]) -> bool:
        """The task has failed in its run, and `told` writes so in the same transaction; what is to be
        archived after it in the same run is blocked. False: it was no longer ours."""
        with self._database.transaction() as conn:
            ours = self._change_in(
                conn, claim, state=TaskState.FAILED.value, holder=None, leased_until=None, error=error
            )
            if ours and claim.action is TaskAction.ARCHIVE:
                conn.execute(
                    sa.update(tasks)
                    .where(
                        tasks.c.run_id == claim.run_id,
                        tasks.c.tenant_id == claim.tenant_id,
                        tasks.c.action == TaskAction.ARCHIVE.value,
                        tasks.c.window_from > from_us(claim.window_from_us),
                        tasks.c.state == TaskState.WAITING.value,
                    )
                    .values(state=TaskState.BLOCKED.value)
                )
            if ours:
                told(conn)
        return ours

    def _change(self, claim: Claim, **values: object) -> bool:
        with self._database.transaction() as conn:
            return self._change_in(conn, claim, **values)

    def _change_in(self, conn: sa.Connection, claim: Claim, **values: object) -> bool:
        changed = conn.execute(
            sa.update(tasks)
            .where(
                tasks.c.task_id == claim.task_id,
                tasks.c.fence == claim.fence,
                tasks.c.state == TaskState.RUNNING.value,
            )
            .values(**values)
        )
        return bool(changed.rowcount == 1)

    def withdraw(self, run_id: uuid.UUID) -> None:
        """Take out of a run what nobody has begun."""
        with self._database.transaction() as conn:
            conn.execute(
                sa.delete(tasks).where(tasks.c.run_id == run_id, tasks.c.state == TaskState.WAITING.value)
            )

    def counts(self, run_id: uuid.UUID) -> TaskCounts:
        """How a run's tasks stand."""
        query = (
            sa.select(tasks.c.state, sa.func.count().label("found"))
            .where(tasks.c.run_id == run_id)
            .group_by(tasks.c.state)
        )
        with self._database.transaction() as conn:
            return TaskCounts(**{row.state: row.found for row in conn.execute(query)})

    def unfinished(self, tenants: Collection[str] | None = None) -> int:
        """How many tasks (of these tenants) are waiting or worked on."""
        query = sa.select(sa.func.count()).where(tasks.c.state.in_(_UNFINISHED))
        if tenants is not None:
            query = query.where(tasks.c.tenant_id.in_(tenants))
        with self._database.transaction() as conn:
            return int(conn.execute(query).scalar_one())

    def ended_runs(self) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
        """Runs in planning whose process died; and those that are marked as running, but have no task left to
        be done. (A scrub has none: it is over when its process has ended.)"""
        with self._database.transaction() as conn:
            found = conn.execute(sa.text(_ENDED)).all()
        planning = [row.run_id for row in found if row.status == RunStatus.PLANNING.value]
        return planning, [row.run_id for row in found if row.status == RunStatus.RUNNING.value]

    def release_planning(self, run_ids: Collection[uuid.UUID]) -> None:
        """Runs whose process died while it planned them go on as running."""
        with self._database.transaction() as conn:
            conn.execute(
                sa.update(runs)
                .where(runs.c.run_id.in_(run_ids), runs.c.status == RunStatus.PLANNING.value)
                .values(status=RunStatus.RUNNING.value)
            )


def _still_due(conn: sa.Connection, tenant_id: str, plan: WindowPlan) -> bool:
    """Whether a window is as its plan saw it, with something left to be done; it stays so until the
    transaction ends."""
    start = from_us(plan.record.window.from_us)
    as_planned = sa.select(windows.c.leaf).where(
        windows.c.tenant_id == tenant_id,
        windows.c.window_from == start,
        windows.c.state == plan.record.state.value,
        windows.c.target.is_not_distinct_from(plan.record.target),
    )
    left = sa.select(removals.c.key).where(
        removals.c.tenant_id == tenant_id, removals.c.window_from == start, removals.c.removed_at.is_(None)
    )
    wanted = [as_planned]
    if plan.steps in (("remove former copy",), ("destroy",)):
        wanted.append(left)
    return all(conn.execute(query.with_for_update(read=True)).first() is not None for query in wanted)


def _is_of(conn: sa.Connection, run_id: uuid.UUID, tenant_id: str, plan: WindowPlan) -> bool:
    """Whether the unfinished task of a window belongs to a run already."""
    query = sa.select(tasks.c.task_id).where(
        tasks.c.run_id == run_id,
        tasks.c.tenant_id == tenant_id,
        tasks.c.window_from == from_us(plan.record.window.from_us),
        tasks.c.state.in_(_UNFINISHED),
    )
    return conn.execute(query).first() is not None


def _take_turn(conn: sa.Connection) -> None:
    """Claims come one after the other. Whoever is stopped in the middle of one is soon ended by Postgres."""
    turn = sa.func.pg_advisory_xact_lock(claims_key())
    idle = sa.func.set_config("idle_in_transaction_session_timeout", _CLAIM_IDLE, True)
    conn.execute(sa.select(idle, turn))


def _from_now(seconds: float) -> sa.ColumnElement[object]:
    return sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
