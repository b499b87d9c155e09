"""Claims, leases and fences, with real processes: stopped (SIGSTOP), killed, told to stop, and racing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eventstore.app import Store
from eventstore.cli.retention import stopping_on_signals
from eventstore.clock import FixedClock, from_us
from eventstore.db.engine import Database
from eventstore.errors import LeaseLostError
from eventstore.hot.batch import pending_batch
from eventstore.hot.log import log_transaction
from eventstore.model.run import RunKind, TaskAction
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from eventstore.retention.tasks import Claim, Tasks
from eventstore.testing.invariants import check_store
from tests.crash.fixtures import (
    archived_copy,
    archived_world,
    host,
    seeded_template,
    tiered_template,
    tiered_world,
    world,
)
from tests.crash.world import BASE_US, HOUR_US, World
from tests.unit.helpers import (
    DAY_US,
    START_US,
    execute,
    fill_days,
    make_tenant,
    new_event,
    run_retention,
)
from tests.waiting import until

# Fixtures, for pytest to find.
__all__ = [
    "archived_copy",
    "archived_world",
    "host",
    "seeded_template",
    "tiered_template",
    "tiered_world",
    "world",
]

_ARCHIVING = "eventstore.retention.archiving"
_MOVING = "eventstore.retention.moving"
_EXPIRING = "eventstore.retention.expiring"
_PUT = "eventstore.archive.file/FileTarget.put"
_DELETE = "eventstore.retention.removing/_remove>eventstore.archive.file/FileTarget.delete"
_COMMIT = "psycopg/Connection.commit"

# Where a worker is stopped → whether its transaction stays open meanwhile.
ARCHIVE_HALTS = {
    "claiming": ("eventstore.retention.tasks/Tasks.claim>psycopg/Connection.commit:before:1", True),
    "before the seal's commit": (f"{_ARCHIVING}/seal_window>{_COMMIT}:before:1", True),
    "before a put": (f"{_ARCHIVING}/archive_window>{_PUT}:before:1", False),
    "written": (f"{_ARCHIVING}/archive_window:after:1", False),
    "before the cutover's commit": (f"{_ARCHIVING}/cut_over_window>{_COMMIT}:before:1", True),
    "before the drop": (f"{_ARCHIVING}/drop_window:before:1", False),
    "before the drop's commit": (f"{_ARCHIVING}/drop_window>{_COMMIT}:before:1", True),
    "before it says that it is done": ("eventstore.retention.tasks/Tasks.done:before:1", False),
}
MOVE_HALTS = {
    "before a copy": (f"{_MOVING}/copy_window>{_PUT}:before:2", False),
    "copied": (f"{_MOVING}/cut_over_move:before:1", False),
    "before the move's commit": (f"{_MOVING}/cut_over_move>{_COMMIT}:before:1", True),
    "before a deletion": (f"{_DELETE}:before:1", True),
}
EXPIRE_HALTS = {
    "before expiry": (f"{_EXPIRING}/_take_out:before:1", False),
    "before the expiry's commit": (f"{_EXPIRING}/_take_out>{_COMMIT}:before:1", True),
    "before a deletion": (f"{_DELETE}:before:1", True),
}


def _slept_through(world: World, point: str, kind: RunKind, first_us: int) -> None:
    """A worker is stopped at a point in the first tenant's window that is due at `first_us`, across its
    lease. Another one takes it over. The first wakes up, changes nothing, and goes on with other work: the
    windows that are due an hour later."""
    world.plan(first_us, kind)
    sleeper = world.worker("sleeper", "--halt", point)
    until(sleeper.is_stopped, "the worker has come to the point")
    other = world.worker("other")
    until(lambda: world.unfinished() == 0, "another worker has taken over and finished")
    world.check()
    done = world.check_completed_once()

    os.kill(sleeper.pid, signal.SIGCONT)
    claimed = "Tasks.claim>" not in point  # else it had not got that far, and Postgres has gone away for it
    words = "has taken over" if claimed else "cannot go on now"
    until(lambda: any(words in line for line in sleeper.lines()), "the sleeper has noticed")
    assert world.check_completed_once() == done
    world.check(orphans_allowed=False)

    other.end()
    assert not [line for line in other.lines() if line != "ready"], "nothing was in the other one's way"
    world.plan(first_us + HOUR_US, kind)
    until(lambda: world.unfinished() == 0, "the sleeper goes on with other work")
    sleeper.end()
    workers = world.query(
        "SELECT DISTINCT detail ->> 'worker' FROM run_entries JOIN runs USING (run_id)"
        " WHERE run_entries.kind = 'window_started' AND now_us = %s",
        first_us + HOUR_US,
    )
    assert [int(name.split("/")[1]) for (name,) in workers] == [sleeper.pid]
    assert world.check_completed_once() == done + 2
    world.check(orphans_allowed=False)
    assert world.query("SELECT DISTINCT status FROM runs") == [("completed",)]


@pytest.mark.parametrize("point", [p for p, _ in ARCHIVE_HALTS.values()], ids=ARCHIVE_HALTS.keys())
def test_a_worker_that_sleeps_while_it_archives(world: World, point: str) -> None:
    _slept_through(world, point, RunKind.RETENTION, BASE_US + HOUR_US)


@pytest.mark.parametrize("point", [p for p, _ in MOVE_HALTS.values()], ids=MOVE_HALTS.keys())
def test_a_worker_that_sleeps_while_it_moves(archived_copy: World, point: str) -> None:
    _slept_through(archived_copy, point, RunKind.RETENTION, BASE_US + 11 * HOUR_US)


@pytest.mark.parametrize("point", [p for p, _ in EXPIRE_HALTS.values()], ids=EXPIRE_HALTS.keys())
def test_a_worker_that_sleeps_while_it_destroys(archived_copy: World, point: str) -> None:
    _slept_through(archived_copy, point, RunKind.EXPIRY, BASE_US + 31 * HOUR_US)


def test_an_object_that_comes_back_is_removed_again(tiered_world: World) -> None:
    """A worker sleeps right before it puts a window's first segment, until others have moved the window on
    and removed that object. Its put then succeeds: no lease can stop that. It is noticed, and undone."""
    world = tiered_world

    def first_windows() -> list[Path]:
        return list(world.archive.rglob("*.20240301T000000Z-*.parquet"))

    world.plan(BASE_US + HOUR_US)
    sleeper = world.worker("sleeper", "--halt", f"{_ARCHIVING}/archive_window>{_PUT}:before:1")
    until(sleeper.is_stopped, "the worker has come to the point")
    other = world.worker("other")
    until(lambda: world.unfinished() == 0, "another worker has archived the window")
    world.plan(BASE_US + 11 * HOUR_US)
    until(lambda: world.unfinished() == 0, "and moved it on")
    assert world.first_window() == ("dropped", "near")
    assert not first_windows()

    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: any("has taken over" in line for line in sleeper.lines()), "the sleeper has noticed")
    assert first_windows()
    world.check(orphans_allowed=False)  # it is to be removed
    world.plan(BASE_US + 11 * HOUR_US)
    until(lambda: world.unfinished() == 0, "it is removed")
    assert not first_windows()
    for worker in (sleeper, other):
        worker.end()
    world.check(orphans_allowed=False)


def test_a_killed_worker_is_taken_over_at_once(world: World) -> None:
    """Not after its lease, which has half a minute to go: its advisory lock has gone with it."""
    world.plan(BASE_US + HOUR_US)
    killed = world.worker("killed", "--halt", f"{_ARCHIVING}/archive_window:after:1", lease_s=30)
    until(killed.is_stopped, "the worker has come to the point")
    other = world.worker("other", "--patient", lease_s=30)
    until(lambda: world.unfinished() == 1, "the other one has done the other tenant's window")
    (until_before,) = world.query(
        "SELECT leased_until > now() + interval '20 s' FROM tasks WHERE holder IS NOT NULL"
    )
    assert until_before[0]
    started = time.monotonic()
    killed.kill()
    until(lambda: world.unfinished() == 0, "the window is taken over and finished")
    took_s = time.monotonic() - started
    print(f"a killed worker's window was taken over and finished after {took_s:.2f} s")
    assert took_s < 5
    other.end()
    world.check(orphans_allowed=False)
    assert world.check_completed_once() == 2


# --- claims -----------------------------------------------------------------------------------------


@dataclass
class Board:
    """Tasks to be claimed, of windows that need not be there."""

    database: Database
    tasks: Tasks
    run_id: uuid.UUID

    def add(self, tenant: str, hour: int, action: str = "archive", *, wait_s: float = 0) -> None:
        execute(
            self.database.url,
            "INSERT INTO tasks (run_id, tenant_id, window_from, action, not_before)"
            " VALUES (%s, %s, %s, %s, now() + make_interval(secs => %s))",
            [self.run_id, tenant, from_us(START_US + hour * HOUR_US), action, wait_s],
        )

    @contextmanager
    def holder(self) -> Iterator[int]:
        """A worker's advisory lock."""
        number = random.SystemRandom().getrandbits(62)
        conn = self.database.connect_apart()
        try:
            conn.execute("SELECT pg_advisory_lock(%s)", [number])
            yield number
        finally:
            conn.close()


@pytest.fixture
def board(store: Store) -> Board:
    for name in ("a", "b", "c"):
        make_tenant(store, name, unit=WindowUnit.HOUR)
    run_id = uuid.uuid4()
    execute(
        store.database.url,
        "INSERT INTO runs (run_id, kind, now_us, requested_by, holder, status)"
        " VALUES (%s, 'retention', 0, 'test', 0, 'running')",
        [run_id],
    )
    return Board(store.database, Tasks(store.database, lease_s=30), run_id)


def _done(board: Board, claim: Claim) -> bool:
    return board.tasks.done(claim, lambda _: None)


def test_no_two_workers_ever_have_one_window(board: Board) -> None:
    hours = 12
    for hour in range(hours):
        for tenant in ("a", "b", "c"):
            board.add(tenant, hour)
    lock = threading.Lock()
    held: set[tuple[str, int]] = set()
    order: list[Claim] = []

    def work(_: int) -> None:
        with board.holder() as holder:
            while board.tasks.unfinished():
                claim = board.tasks.claim(holder)
                if claim is None:
                    continue
                window = (claim.tenant_id, claim.window_from_us)
                with lock:
                    assert window not in held
                    # Of a tenant, one at a time: the older one first.
                    assert claim.tenant_id not in {tenant for tenant, _ in held}
                    held.add(window)
                    order.append(claim)
                for _ in range(3):  # long enough for the others to come in between
                    assert board.tasks.renew(claim)
                with lock:
                    held.remove(window)
                assert _done(board, claim)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert len(order) == 3 * hours
    for tenant in ("a", "b", "c"):
        mine = [claim.window_from_us for claim in order if claim.tenant_id == tenant]
        assert mine == sorted(mine)


def test_a_window_is_not_archived_before_an_older_one(board: Board) -> None:
    board.add("a", 0, wait_s=3600)  # to be tried again later
    board.add("a", 1)
    board.add("a", 2, "move")
    with board.holder() as holder:
        claim = board.tasks.claim(holder)
        assert claim is not None
        assert claim.action is TaskAction.MOVE
        assert board.tasks.claim(holder) is None


def test_a_fence_refuses_who_was_presumed_dead(board: Board) -> None:
    board.add("a", 0)
    short = Tasks(board.database, lease_s=0.01)
    with board.holder() as sleeper, board.holder() as other:
        lost = short.claim(sleeper)
        assert lost is not None
        claim = until(lambda: board.tasks.claim(other), "the lease has run out")
        assert (claim.task_id, claim.fence, claim.attempt) == (lost.task_id, lost.fence + 1, 2)
        assert not board.tasks.renew(lost)
        assert not board.tasks.give_back(lost)
        assert not board.tasks.fail(lost, "no", lambda _: pytest.fail("it is not ours"))
        assert not board.tasks.done(lost, lambda _: pytest.fail("it is not ours"))
        with pytest.raises(LeaseLostError), board.database.transaction() as conn:
            board.tasks.guard(lost)(conn)
        with board.database.transaction() as conn:
            board.tasks.guard(claim)(conn)
        assert _done(board, claim)
        with pytest.raises(LeaseLostError), board.database.transaction() as conn:
            board.tasks.guard(claim)(conn)


def test_a_guard_keeps_the_next_claim_out(board: Board) -> None:
    """While a transaction is open that has looked, the lease may run out: nobody gets in between."""
    board.add("a", 0)
    short = Tasks(board.database, lease_s=0.01)
    with board.holder() as sleeper, board.holder() as other:
        claim = short.claim(sleeper)
        assert claim is not None
        with board.database.transaction() as conn:
            board.tasks.guard(claim)(conn)
            query = "SELECT leased_until < clock_timestamp() FROM tasks"
            until(lambda: execute(board.database.url, query)[0][0], "the lease has run out")
            assert board.tasks.claim(other) is None
        assert board.tasks.claim(other) is not None


def test_the_governor_limits_claims(board: Board) -> None:
    for tenant in ("a", "b", "c"):
        board.add(tenant, 0)
    url = board.database.url
    execute(url, "INSERT INTO governor (parallelism, reason) VALUES (1, 'test')")
    with ExitStack() as stack:
        first, second = (stack.enter_context(board.holder()) for _ in range(2))
        claim = board.tasks.claim(first)
        assert claim is not None
        assert board.tasks.claim(second) is None
        assert _done(board, claim)
        with board.holder() as killed:
            assert board.tasks.claim(killed) is not None
            assert board.tasks.claim(second) is None
        # A dead one takes no room, though its lease has not run out.
        taken = until(lambda: board.tasks.claim(second), "the dead one's lock has gone")
        assert taken.attempt == 2
        assert board.tasks.claim(first) is None
        # The word of a governor that has ended counts no more.
        execute(url, "UPDATE governor SET felt_at = now() - interval '2 minutes'")
        assert board.tasks.claim(first) is not None


def test_a_plan_that_others_have_overtaken_makes_no_task(store: Store, clock: FixedClock) -> None:
    """Else the window would be done, and told to be done, once more."""
    tenant = make_tenant(store)
    fill_days(store, clock, "acme", 2)
    now_us = START_US + 9 * DAY_US
    plan = store.compactor.plan(tenant, now_us)
    assert len(plan.due) == 2
    run_retention(store, now_us)
    run_id = uuid.uuid4()
    with store.database.transaction() as conn:
        assert store.compactor.board.add(conn, run_id, "acme", plan.due) == []
    assert execute(store.database.url, "SELECT count(*) FROM tasks WHERE state <> 'done'") == [(0,)]


def test_a_run_takes_over_only_what_is_of_its_kind_and_free(board: Board) -> None:
    """What is worked on, or in the middle of a transaction of its worker's, is left alone; nobody waits."""
    board.add("a", 0)
    board.add("b", 0)
    board.add("c", 0)
    short = Tasks(board.database, lease_s=0.01)
    query = "SELECT count(*) FROM tasks WHERE leased_until < clock_timestamp()"
    with board.holder() as holder, board.database.transaction() as conn:
        mine, asleep = board.tasks.claim(holder), short.claim(holder)
        assert mine is not None
        assert asleep is not None
        until(lambda: execute(board.database.url, query) == [(1,)], "the lease has run out")
        short.guard(asleep)(conn)
        new_run = uuid.uuid4()
        assert board.tasks.adopt(new_run, "abc", RunKind.EXPIRY) == set()
        assert board.tasks.adopt(new_run, "abc", RunKind.RETENTION) == {board.run_id}
        left = execute(board.database.url, "SELECT task_id FROM tasks ORDER BY 1")
        assert left == [(mine.task_id,), (asleep.task_id,)]
    assert board.tasks.adopt(new_run, "abc", RunKind.RETENTION) == {board.run_id}


# --- told to stop -----------------------------------------------------------------------------------

_EVENTS = 20_000
_SEGMENT_ROWS = 1_000
# The command itself, with small segments, so that a window of a test is a large one.
_WORKER = f"""
import sys
from eventstore.archive import parquet
from eventstore.cli.main import main
parquet.GROUP_ROWS_MAX = parquet.SEGMENT_ROWS_MAX = {_SEGMENT_ROWS}
sys.argv = ["eventstore", "worker"]
main()
"""


@pytest.mark.timeout(30)
def test_a_signal_that_comes_at_the_event_itself(store: Store) -> None:
    """The main thread holds the lock of what the signal sets: it must not wait for itself."""
    stop = store.compactor.stop
    with stopping_on_signals(store):
        with stop._cond:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)


def test_sigterm_ends_a_worker_between_two_segments(store: Store, archive_dir: Path) -> None:
    make_tenant(store, unit=WindowUnit.DAY)
    times = START_US + np.arange(_EVENTS, dtype=np.int64) * 1_000_000
    with store.database.connection() as conn, log_transaction(conn, "acme", {}) as log:
        log.write(pending_batch([new_event(str(n % 9)) for n in range(_EVENTS)]), times)
    store.compactor.start(store.compactor.tenants(), START_US + 30 * 24 * HOUR_US, order=RunOrder())
    url = store.database.url
    files = "SELECT count(*) FROM run_entries WHERE kind = 'file_written'"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            env={
                **os.environ,
                "EVENTSTORE_DATABASE_URL": url,
                "EVENTSTORE_HOME": str(store.settings.home),
                "EVENTSTORE_ARCHIVE_URL": store.settings.resolved_archive_url,
            },
            stderr=subprocess.PIPE,
        )

    with start() as worker:
        until(lambda: execute(url, files)[0][0] > 2, "some segments are written")
        started = time.monotonic()
        worker.terminate()
        before = execute(url, files)[0][0]
        _, said = worker.communicate(timeout=60)
        took_s = time.monotonic() - started
    assert worker.returncode == 0, said.decode()
    written = execute(url, files)[0][0]
    # A second or so; but it is the nicest of processes, and gives way to all others.
    print(f"SIGTERM took {took_s:.2f} s, after {written} segments")
    assert 2 < written <= before + 2 < _EVENTS // _SEGMENT_ROWS
    # Given back, not counted as a try, and nothing of it is lost.
    assert execute(url, "SELECT state, attempts, holder FROM tasks") == [("waiting", 0, None)]
    assert execute(url, "SELECT state FROM windows") == [("sealed",)]
    assert not check_store(url, archive_dir).violations

    with start() as another:
        until(lambda: execute(url, "SELECT state FROM tasks") == [("done",)], "another one has resumed")
        another.terminate()
        another.communicate(timeout=30)
    found = "SELECT count(*) FROM run_entries WHERE kind = 'file_written' AND detail -> 'created' = 'false'"
    assert execute(url, found) == [(written,)]
    report = check_store(url, archive_dir)
    assert not report.violations, str(report)
    assert (report.events, report.orphans) == (_EVENTS, [])
