"""Runs of retention: plan each tenant, make a task of each due window, and work until all are done.

Resuming is not a mode: a window that an earlier run left half-way is due, and is taken up in its state.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from eventstore.archive.targets import Targets
from eventstore.clock import SystemClock, from_us, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import certificates, governance, runs, tasks, windows
from eventstore.errors import EventStoreError, InputError
from eventstore.governance.certificates import store_copies
from eventstore.governance.policies import bring_units_into_force, policies_at
from eventstore.governance.record import mirror
from eventstore.governance.signing import SigningKey
from eventstore.model.run import (
    PlannedWindow,
    PlanResolved,
    PlanWarning,
    RunCompleted,
    RunKind,
    RunReport,
    RunStatus,
    TaskState,
    Warned,
    WindowCompleted,
)
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowState
from eventstore.retention.journal import Journal
from eventstore.retention.planner import TenantPlan, WindowPlan
from eventstore.retention.planning import Planning
from eventstore.retention.quarantined import request_quarantined
from eventstore.retention.report import report_of, summary_of
from eventstore.retention.task import Stopped, Workshop
from eventstore.retention.tasks import Claim, Tasks
from eventstore.retention.worker import Worker, finish_runs

__all__ = ["Compactor", "Progress", "RunOrder", "check_now"]

# Called with the tenant, the windows done and to be done, and the events done.
Progress = Callable[[str, int, int, int], None]

_POLL_S = 0.05


def check_now(now_us: int) -> int:
    """A time to run retention at: the past may be simulated, the future not.

    Raises:
        InputError: it lies beyond the real clock; sealing there would push every later event's time.
    """
    real_us = SystemClock().now_us()
    if now_us > real_us:
        raise InputError(
            f"{to_iso(now_us)} lies in the future", hint="a simulated time may only lie in the past"
        )
    return now_us


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What a run is to do, and who asked for it.

    `notice_us`: an expired window is destroyed no sooner than this long after a run has listed it.
    """

    kind: RunKind = RunKind.RETENTION
    requested_by: str = "command line"
    notice_us: int = 0
    # the (tenant, window's start) that were listed to whoever ordered it; None: all that is due
    only: frozenset[tuple[str, int]] | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What a run's look at all tenants found: those that are worth a plan at its time. `idle_run`: nothing
    was to be done, nor left by others, and that run is recorded as having found so."""

    now_us: int
    worth: Sequence[Tenant]
    idle_run: uuid.UUID | None = None


class Compactor:
    """Plans and works on runs. `stop`, when set, ends them between two steps."""

    def __init__(
        self,
        database: Database,
        targets: Targets,
        key: SigningKey,
        *,
        lease_s: float = 30.0,
        retry_pauses_s: Collection[float] = (1.0, 4.0, 15.0),
    ) -> None:
        self.stop = threading.Event()
        self.planning = Planning(database, targets)
        self.board = Tasks(database, lease_s=lease_s)
        self._database = database
        self._shop = Workshop(database, targets, key, self.stop)
        self._pauses = tuple(retry_pauses_s)

    def tenants(self, only: str | None = None) -> list[Tenant]:
        """The tenants of a run: all that are not closed, or the one named."""
        return self.planning.tenants(only)

    def plan(self, tenant: Tenant, now_us: int, kind: RunKind = RunKind.RETENTION) -> TenantPlan:
        """What a run at that time would do for a tenant. Changes nothing.

        Raises:
            CoverageError: its partitions and the catalog disagree.
        """
        if kind is RunKind.EXPIRY:
            return self.planning.plan_expiry(tenant, now_us)
        return self.planning.plan(tenant, now_us)

    def worker(self, *, on_done: Callable[[Claim, WindowCompleted | None], None] | None = None) -> Worker:
        """A worker for this database and these targets."""
        return Worker(self._shop, self.board, retry_pauses_s=self._pauses, on_done=on_done)

    def run(
        self,
        tenants: Sequence[Tenant],
        now_us: int,
        *,
        order: RunOrder | None = None,
        progress: Progress | None = None,
        workers: int = 1,
    ) -> RunReport:
        """Plan a run and work on it until it has ended. An error stops the window it concerns, is recorded,
        and never the other tenants. Other workers may take part."""
        counter, order = _Counter(progress), order or RunOrder()
        ids = [tenant.tenant_id for tenant in tenants]
        found = self._look(tenants, now_us, order)
        if found.idle_run is not None:
            return report_of(self._database, found.idle_run, ids)
        with self.worker(on_done=counter) as first:
            run_id = self._begin(tenants, found, order, first.holder, counter)
            with ThreadPoolExecutor(max(1, workers - 1), "worker") as executor:
                others = [executor.submit(self._work_apart, run_id, ids, counter) for _ in range(workers - 1)]
                self._work(first, run_id, ids)
                for other in others:
                    other.result()
            if self.stop.is_set():
                self._interrupt(run_id)
            finish_runs(self._shop, self.board)
        return report_of(self._database, run_id, ids)

    def start(self, tenants: Sequence[Tenant], now_us: int, *, order: RunOrder) -> uuid.UUID:
        """Plan a run, and leave the work to the workers that there are."""
        found = self._look(tenants, now_us, order)
        if found.idle_run is not None:
            return found.idle_run
        with self.worker() as planner:
            run_id = self._begin(tenants, found, order, planner.holder, _Counter(None))
        finish_runs(self._shop, self.board)
        return run_id

    def _look(self, tenants: Sequence[Tenant], now_us: int, order: RunOrder) -> _Found:
        """The one look at all tenants that a run takes. By far the most runs of a schedule find nothing to
        do: such a one is recorded, whole, in the same transaction."""
        started, now_us = time.monotonic(), check_now(now_us)
        with self._database.transaction() as conn:
            # By Postgres' clock, in which events are recorded: this machine's may be ahead of it.
            real_us = to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
            now_us = min(now_us, real_us)
            # Units by the clock of the appends, whose windows they align.
            policies, at_run = policies_at(conn, real_us, now_us)
            bring_units_into_force(conn, policies)
            worth = self.planning.worth_planning_in(conn, tenants, order.kind, now_us, at_run)
            if order.kind is RunKind.EXPIRY:
                names = {tenant.tenant_id for tenant in worth}
                _unlist(conn, [t.tenant_id for t in tenants if t.tenant_id not in names])
            if worth or _anything_open(conn):
                return _Found(now_us, worth)
            completed = RunCompleted(
                status=RunStatus.COMPLETED,
                duration_ms=round((time.monotonic() - started) * 1000),
                windows=0,
                windows_failed=0,
                events=0,
            )
            idle_run = Journal.record_whole(
                conn, kind=order.kind, now_us=now_us, requested_by=order.requested_by, completed=completed
            )
        return _Found(now_us, worth, idle_run)

    def _begin(
        self, tenants: Sequence[Tenant], found: _Found, order: RunOrder, holder: int, counter: _Counter
    ) -> uuid.UUID:
        journal = Journal.begin(
            self._database,
            kind=order.kind,
            now_us=found.now_us,
            requested_by=order.requested_by,
            holder=holder,
        )
        self._take_over(journal, tenants, order.kind)
        self._mirror(journal)
        for tenant in found.worth:
            try:
                plan = self.plan(tenant, found.now_us, order.kind)
                self._add(journal, plan, order, found.now_us, counter)
            except EventStoreError as e:
                journal.record(PlanWarning(message=str(e), failed=True), tenant_id=tenant.tenant_id)
        journal.set_running()
        return journal.run_id

    def _mirror(self, journal: Journal) -> None:
        """What was decided since, and certificates without a copy, go into the default target."""
        targets = self._shop.targets
        try:
            mirror(self._database, targets[targets.default])
            store_copies(self._database, targets)
        except EventStoreError as e:
            journal.record(Warned(message=f"decisions were not copied to {targets.default!r}: {e}"))

    def _take_over(self, journal: Journal, tenants: Sequence[Tenant], kind: RunKind) -> None:
        """What earlier runs of this kind have left and nobody works on is planned anew, if still due."""
        for run_id in self.board.adopt(journal.run_id, [tenant.tenant_id for tenant in tenants], kind):
            former = Journal(self._database, run_id)
            words = f"run {journal.run_id} has taken over what was left"
            if self.board.counts(run_id).unfinished:
                former.record(Warned(message=words))
            else:
                former.finish(self._ending(run_id, RunStatus.INTERRUPTED, words))

    def _add(
        self, journal: Journal, plan: TenantPlan, order: RunOrder, now_us: int, counter: _Counter
    ) -> None:
        tenant_id = plan.tenant.tenant_id
        due = [w for w in plan.due if not w.held_by]
        if order.only is not None:
            due = [w for w in due if (tenant_id, w.record.window.from_us) in order.only]
        if order.kind is RunKind.EXPIRY:
            due = self._listed(tenant_id, due, now_us - order.notice_us, now_us)
        with self._database.transaction() as conn:
            if plan.due:
                journal.record_in(conn, _resolved(plan), tenant_id=tenant_id)
            for warning in plan.warnings:
                journal.record_in(conn, PlanWarning(message=warning), tenant_id=tenant_id)
            for window in plan.due:
                if window.held_by:
                    held = f"window {window.record.window} is kept: held by {', '.join(window.held_by)}"
                    journal.record_in(
                        conn, PlanWarning(message=held), tenant_id=tenant_id, window=window.record.window
                    )
            for window in due:
                if window.quarantined and window.record.state is WindowState.EXPIRED:
                    request_quarantined(conn, tenant_id, window.record)
            # Dying before this commit leaves a run that never had these tasks; after it, anyone may do them.
            for window in self.board.add(conn, journal.run_id, tenant_id, due):
                busy = f"window {window.record.window} is in another worker's hands"
                journal.record_in(
                    conn, PlanWarning(message=busy), tenant_id=tenant_id, window=window.record.window
                )
        counter.planned(tenant_id, len(due))

    def _listed(
        self, tenant_id: str, due: Sequence[WindowPlan], listed_by_us: int, now_us: int
    ) -> list[WindowPlan]:
        """Those of the windows that were listed as expired by then; the others are listed from now on. One
        that is not due any more, held or kept by its policy, is listed anew when it is: its notice begins
        again."""
        froms = [from_us(window.record.window.from_us) for window in due]
        mine = (windows.c.tenant_id == tenant_id) & windows.c.window_from.in_(froms)
        with self._database.transaction() as conn:
            conn.execute(
                sa.update(windows)
                .where(
                    windows.c.tenant_id == tenant_id,
                    windows.c.listed_us.is_not(None),
                    windows.c.window_from.not_in(froms),
                )
                .values(listed_us=None)
            )
            conn.execute(
                sa.update(windows).where(mine, windows.c.listed_us.is_(None)).values(listed_us=now_us)
            )
            query = sa.select(windows.c.window_from).where(mine, windows.c.listed_us <= listed_by_us)
            listed = {to_us(found) for found in conn.execute(query).scalars()}
        return [window for window in due if window.record.window.from_us in listed]

    def _work(self, worker: Worker, run_id: uuid.UUID, tenants: Collection[str]) -> None:
        try:
            while True:
                if not worker.do_next(tenants):
                    if not self.board.counts(run_id).unfinished:
                        return
                    # Others have what is left, or it is tried again later.
                    self.stop.wait(_POLL_S)
        except Stopped:
            return

    def _work_apart(self, run_id: uuid.UUID, tenants: Collection[str], counter: _Counter) -> None:
        with self.worker(on_done=counter) as worker:
            self._work(worker, run_id, tenants)

    def _interrupt(self, run_id: uuid.UUID) -> None:
        """Told to stop: what nobody has begun is left to the next run."""
        self.board.withdraw(run_id)
        if not self.board.counts(run_id).unfinished:
            ending = self._ending(run_id, RunStatus.INTERRUPTED, "it was told to stop")
            Journal(self._database, run_id).finish(ending)

    def _ending(self, run_id: uuid.UUID, status: RunStatus, words: str) -> RunCompleted:
        return msgspec.structs.replace(summary_of(self._database, run_id), status=status, error=words)


class _Counter:
    """Turns what workers tell into progress. Safe for use by many threads."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._planned: dict[str, int] = {}
        self._done: dict[str, tuple[int, int]] = {}

    def planned(self, tenant_id: str, count: int) -> None:
        if count:
            self._planned[tenant_id] = count
            self._tell(tenant_id, 0, 0)

    def __call__(self, claim: Claim, completed: WindowCompleted | None) -> None:
        if completed is not None:
            self._tell(claim.tenant_id, 1, completed.events)

    def _tell(self, tenant_id: str, windows_done: int, events: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            done, total = self._done.get(tenant_id, (0, 0))
            done, total = self._done[tenant_id] = (done + windows_done, total + events)
            self._progress(tenant_id, done, self._planned.get(tenant_id, done), total)


def _unlist(conn: sa.Connection, tenants: Collection[str]) -> None:
    """Nothing of these tenants has expired: what was listed before is listed anew when it does."""
    mine = windows.c.tenant_id == sa.any_(sa.literal(list(tenants), sa.ARRAY(sa.Text)))
    conn.execute(sa.update(windows).where(mine, windows.c.listed_us.is_not(None)).values(listed_us=None))


def _anything_open(conn: sa.Connection) -> bool:
    """Whether a task or a run has not ended, or a decision or a certificate has no copy in a target yet."""
    unfinished = [TaskState.WAITING.value, TaskState.RUNNING.value]
    going_on = [RunStatus.PLANNING.value, RunStatus.RUNNING.value]
    found = sa.or_(
        sa.exists().where(tasks.c.state.in_(unfinished)),
        sa.exists().where(runs.c.status.in_(going_on)),
        sa.exists().where(~governance.c.mirrored),
        sa.exists().where(certificates.c.stored_in.is_(None)),
    )
    return bool(conn.execute(sa.select(found)).scalar_one())


def _resolved(plan: TenantPlan) -> PlanResolved:
    return PlanResolved(
        policy_no=plan.policy.policy_no,
        policy=plan.policy.policy.in_words(),
        due=[
            PlannedWindow(
                window_from=to_iso(w.record.window.from_us),
                window_to=to_iso(w.record.window.to_us),
                action=w.action,
                state=w.record.state.value,
                events=w.event_count,
                first_seq=w.record.first_seq,
                to_target=w.target,
                from_target=w.record.target,
                held_by=list(w.held_by),
            )
            for w in plan.due
        ],
        hot_windows=plan.hot_windows,
        archived_windows=plan.archived_windows,
    )
