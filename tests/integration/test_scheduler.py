"""The scheduler: one leader, fail-over, jobs missed and failing, tables made ahead; and `serve` with it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from eventstore.app import Store, scheduler_of
from eventstore.clock import FixedClock, parse_time_us
from eventstore.db.engine import Database
from eventstore.db.locks import scheduler_key
from eventstore.db.partitions import drop_unused_leaves, prepare_leaf
from eventstore.errors import InputError
from eventstore.model.schedule import Schedule, parse_schedule
from eventstore.model.window import Window, WindowUnit
from eventstore.retention import scheduler as scheduler_module
from eventstore.retention.daemon import precreate
from eventstore.retention.scheduler import Job, Scheduler, next_fire_us, trigger_of
from eventstore.settings import Settings
from eventstore.testing.invariants import check_store
from tests.integration.commands import has_ended, serving, started
from tests.unit.helpers import (
    DAY_US,
    HOUR_US,
    START_US,
    append,
    execute,
    leaves,
    make_tenant,
    new_event,
    read,
    run_retention,
    seqs,
)
from tests.waiting import until

EVERY_HOUR = Schedule(every_us=HOUR_US)
NIGHTLY = Schedule(cron="30 3 * * *")


class Log:
    """Jobs that write down at which times they ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []

    def job(self, name: str, schedule: Schedule) -> Job:
        return Job(schedule, lambda now_us: self.ran.append((name, now_us)))


@contextmanager
def scheduling(database: Database, clock: FixedClock, jobs: dict[str, Job]) -> Iterator[Scheduler]:
    scheduler = Scheduler(database, jobs, clock)
    try:
        yield scheduler
    finally:
        scheduler.close()


# --- when -------------------------------------------------------------------------------------------


def test_an_interval_counts_from_midnight_and_cron_is_in_utc() -> None:
    interval, cron = trigger_of(parse_schedule("every 15m")), trigger_of(parse_schedule("30 3 * * 1"))
    assert interval is not None
    assert cron is not None
    at = parse_time_us
    assert next_fire_us(interval, at("2024-03-01T10:07:00Z")) == at("2024-03-01T10:15:00Z")
    assert next_fire_us(interval, at("2024-03-01T10:15:00Z")) == at("2024-03-01T10:30:00Z")
    # A Friday; the next Monday, also where clocks change that night.
    assert next_fire_us(cron, at("2024-03-29T10:00:00Z")) == at("2024-04-02T03:30:00Z")
    assert trigger_of(parse_schedule("never")) is None


@pytest.mark.parametrize("line", ["61 * * * *", "* * * * FRO", "* 25 * * *", "a b c d e", "*/0 * * * *"])
def test_a_bad_cron_line_is_refused_with_words(database: Database, line: str) -> None:
    with pytest.raises(InputError, match="is no cron line") as refused:
        Scheduler(database, {"job": Job(parse_schedule(line), print)}, FixedClock(START_US))
    assert repr(line) in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["", "often", "every", "every 0s", "every -5m", "* * * *", "0 0 * * * *"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_schedule(text)


def test_what_was_missed_is_caught_up_once(database: Database) -> None:
    clock, log = FixedClock(START_US), Log()
    jobs = {
        "hourly": log.job("hourly", EVERY_HOUR),
        "nightly": log.job("nightly", NIGHTLY),
        "never": log.job("never", Schedule()),
    }
    with scheduling(database, clock, jobs) as scheduler:
        assert scheduler.tick(wait=True) == []  # never run before: due at their next times
        clock.move_to(START_US + HOUR_US - 1)
        assert scheduler.tick(wait=True) == []
        clock.move_to(START_US + HOUR_US)
        assert scheduler.tick(wait=True) == ["hourly"]
        assert scheduler.tick(wait=True) == []
        clock.move_to(START_US + 5 * DAY_US)
        assert scheduler.tick(wait=True) == ["hourly", "nightly"]
        assert scheduler.tick(wait=True) == []
    # Another process goes on where that one was.
    with scheduling(database, clock, jobs) as scheduler:
        assert scheduler.tick(wait=True) == []
        clock.move_to(START_US + 9 * DAY_US)
        assert scheduler.tick(wait=True) == ["hourly", "nightly"]
    assert log.ran == [
        ("hourly", START_US + HOUR_US),
        *[(name, START_US + 5 * DAY_US) for name in ("hourly", "nightly")],
        *[(name, START_US + 9 * DAY_US) for name in ("hourly", "nightly")],
    ]


def test_days_go_by_and_each_night_has_its_run(database: Database) -> None:
    clock, log = FixedClock(START_US), Log()
    with scheduling(database, clock, {"nightly": log.job("nightly", NIGHTLY)}) as scheduler:
        for hour in range(5 * 24 + 1):
            clock.move_to(START_US + hour * HOUR_US)
            scheduler.tick(wait=True)
    assert [at for _, at in log.ran] == [START_US + day * DAY_US + 4 * HOUR_US for day in range(5)]


def test_a_failing_job_stops_no_other(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    clock, log = FixedClock(START_US), Log()

    def fail(_: int) -> None:
        raise RuntimeError("no such luck")

    jobs = {"bad": Job(EVERY_HOUR, fail), "good": log.job("good", EVERY_HOUR)}
    with scheduling(database, clock, jobs) as scheduler, caplog.at_level(logging.ERROR):
        for hour in range(3):
            clock.move_to(START_US + hour * HOUR_US)
            scheduler.tick(wait=True)
    assert [at for _, at in log.ran] == [START_US + HOUR_US, START_US + 2 * HOUR_US]
    assert "job bad failed" in caplog.text
    assert "no such luck" in caplog.text


def test_a_job_that_still_runs_is_not_begun_again(database: Database) -> None:
    clock, log, go_on = FixedClock(START_US), Log(), threading.Event()
    began: list[int] = []

    def slow(now_us: int) -> None:
        began.append(now_us)
        assert go_on.wait(30)

    jobs = {"slow": Job(EVERY_HOUR, slow), "quick": log.job("quick", EVERY_HOUR)}
    with scheduling(database, clock, jobs) as scheduler:
        begun = []
        for hour in range(4):
            clock.move_to(START_US + hour * HOUR_US)
            begun.append(scheduler.tick())
            until(lambda hour=hour: len(log.ran) == hour, "the quick one has ended")
        assert begun == [[], ["slow", "quick"], ["quick"], ["quick"]]
        go_on.set()
        until(scheduler._running["slow"].done, "the slow one has ended")
        assert scheduler.tick(wait=True) == ["slow"]  # once for both that it missed
    assert began == [START_US + HOUR_US, START_US + 3 * HOUR_US]


def test_the_jobs_of_a_store_plan_runs_for_workers(store: Store) -> None:
    make_tenant(store)
    append(store, "acme", new_event())
    clock = FixedClock(START_US)
    scheduler = scheduler_of(store, clock=clock)
    try:
        scheduler.tick(wait=True)
        clock.move_to(START_US + DAY_US + 4 * HOUR_US)
        begun = scheduler.tick(wait=True)
        assert {"retention", "expiry", "precreate", "governor", "scrub", "prune", "checkpoint"} == set(begun)
    finally:
        scheduler.close()
    runs = execute(store.database.url, "SELECT kind, requested_by, status FROM runs")
    assert set(runs) >= {(kind, "scheduler", "completed") for kind in ("retention", "expiry")}


# --- who leads --------------------------------------------------------------------------------------


def test_a_leader_that_sleeps_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler_module, "_STALE_S", 0.3)
    clock = FixedClock(START_US)
    with scheduling(database, clock, {}) as sleeper, scheduling(database, clock, {}) as other:
        assert sleeper.lead()
        assert not other.lead()
        assert sleeper.lead()  # its heart beats
        until(other.lead, "the other one leads")
        with pytest.raises(psycopg.Error):
            sleeper.lead()
        sleeper._step_down()
        assert not sleeper.lead()
        assert other.lead()
        other._step_down()
        assert sleeper.lead()


def leader(url: str | None) -> str | None:
    """The name of the process that leads."""
    rows = execute(
        str(url),
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = %s AND l.database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())",
        [scheduler_key()],
    )
    assert len(rows) <= 1
    return rows[0][0] if rows else None


def test_one_leads_and_another_takes_over(settings: Settings, tmp_path: Path) -> None:
    """First the leader is stopped (SIGSTOP) and then its successor killed, so that it leads again."""
    url = settings.database_url
    processes = {n: started(settings, n, "scheduler", "--workers", "0", out=tmp_path / "log") for n in "ab"}
    try:
        first = until(lambda: leader(url), "one leads")
        until(lambda: _is_connected(url, *(set("ab") - {first})), "the other one is there")
        (second,) = set("ab") - {first}

        began_s = time.monotonic()
        processes[first].send_signal(signal.SIGSTOP)
        until(lambda: leader(url) == second, "the other one leads")
        print(f"a leader that sleeps was replaced after {time.monotonic() - began_s:.1f} s (stale: 2 s)")
        processes[first].send_signal(signal.SIGCONT)

        until(lambda: _is_connected(url, first), "the former one is awake")
        assert leader(url) == second
        began_s = time.monotonic()
        processes[second].kill()
        until(lambda: leader(url) == first, "the former one leads again")
        took_s = time.monotonic() - began_s
        print(f"a killed leader was replaced after {took_s:.2f} s")
        assert took_s < 5
        processes[first].terminate()
        assert processes[first].wait(30) == 0, (tmp_path / "log").read_text()
        assert leader(url) is None
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _is_connected(url: str | None, name: str) -> bool:
    """Whether a process has connected within the last second: it looks whether somebody leads."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s AND state IS NOT NULL"
        " AND now() - backend_start < interval '1 s')"
    )
    return bool(execute(str(url), query, [name])[0][0])


# --- beside `serve` -----------------------------------------------------------------------------------


def _says(tmp_path: Path, words: str) -> None:
    until(lambda: words in (tmp_path / "log").read_text(), f"it says {words!r}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_serve_starts_the_scheduler_and_takes_it_along(
    settings: Settings, tmp_path: Path, how: signal.Signals
) -> None:
    with serving(settings, tmp_path / "log") as process:
        until(lambda: leader(settings.database_url), "the scheduler leads")
        (scheduler,) = psutil.Process(process.pid).children()
        assert "scheduler" in scheduler.cmdline()
        _says(tmp_path, "Serving http")
        process.send_signal(how)
        assert process.wait(60) in (0, -how), (tmp_path / "log").read_text()
        until(lambda: has_ended(scheduler), "the scheduler has ended with it")
        assert leader(settings.database_url) is None


def test_serve_killed_while_the_scheduler_starts(settings: Settings, tmp_path: Path) -> None:
    """Before it could ask the kernel to be told."""
    with serving(settings, tmp_path / "log") as process:
        (scheduler,) = until(psutil.Process(process.pid).children, "the scheduler's process is there")
        process.kill()
        process.wait()
        until(lambda: has_ended(scheduler), "the scheduler has ended too")
        assert leader(settings.database_url) is None


def test_serve_without_a_scheduler(settings: Settings, tmp_path: Path) -> None:
    with serving(settings, tmp_path / "log", "--no-scheduler") as process:
        _says(tmp_path, "Serving http")
        assert psutil.Process(process.pid).children() == []
        assert leader(settings.database_url) is None


# --- tables made ahead ------------------------------------------------------------------------------


def test_a_table_made_ahead_is_taken_by_the_first_event(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    tenant = make_tenant(store)
    quiet = make_tenant(store, "quiet")
    url = store.database.url
    clock.move_to(START_US + 12 * HOUR_US)
    append(store, "acme", new_event())
    before_us = START_US + DAY_US - HOUR_US
    assert precreate(store.database, before_us - 1) == 0  # not yet: more than an hour ahead
    assert precreate(store.database, before_us) == 1
    assert precreate(store.database, before_us + 1) == 0  # it is there
    prepared = f"hot.events_{tenant.tenant_no}_20240302t000000"
    assert leaves(url)[-1] == prepared
    assert not [name for name in leaves(url) if f"_{quiet.tenant_no}_" in name]

    # Nobody sees it: no window, no partition; readers, retention and the checker go on as before.
    assert _attached(url) == [f"hot.events_{tenant.tenant_no}_20240301t000000"]
    assert seqs(read(store, "acme")) == [1]
    assert run_retention(store, before_us).outcomes[0].error is None
    assert execute(url, "SELECT count(*) FROM windows") == [(1,)]
    assert not check_store(url, archive_dir).violations

    oid = execute(url, f"SELECT '{prepared}'::regclass::oid")
    clock.move_to(START_US + DAY_US + HOUR_US)
    append(store, "acme", new_event("2"))
    assert prepared in _attached(url)
    assert execute(url, f"SELECT '{prepared}'::regclass::oid") == oid  # the same table
    indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'hot' GROUP BY tablename"
    assert execute(url, indexes) == [(3,), (3,)]
    with pytest.raises(psycopg.Error, match="never"):
        execute(url, f"DELETE FROM {prepared}")
    assert seqs(read(store, "acme")) == [1, 2]
    assert not check_store(url, archive_dir).violations


def _attached(url: str) -> list[str]:
    rows = execute(
        url,
        "SELECT 'hot.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'hot' AND c.relkind = 'r' AND c.relispartition ORDER BY 1",
    )
    return [name for (name,) in rows]


def test_tables_into_which_nothing_came_vanish(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    url = store.database.url
    clock.move_to(START_US + 12 * HOUR_US)
    append(store, "acme", new_event())
    for day in range(3):
        precreate(store.database, START_US + (day + 1) * DAY_US - HOUR_US)
    assert len(leaves(url)) == 4
    clock.move_to(START_US + DAY_US + HOUR_US)
    append(store, "acme", new_event())  # takes the first of them
    precreate(store.database, START_US + 39 * DAY_US)
    assert len(leaves(url)) == 4
    precreate(store.database, START_US + 43 * DAY_US + HOUR_US)
    assert leaves(url) == _attached(url)
    assert len(leaves(url)) == 2


def test_a_table_made_ahead_that_holds_something_stays(store: Store) -> None:
    """Nothing puts events there; but if somebody did, they are not dropped unseen."""
    tenant = make_tenant(store)
    window = Window.containing(WindowUnit.DAY, START_US)
    with store.database.connection() as conn:
        with conn.transaction():
            assert prepare_leaf(conn, tenant.tenant_no, window)
        (name,) = leaves(store.database.url)
        conn.execute(
            f"INSERT INTO {name} SELECT 'acme', 1, gen_random_uuid(), now(), now(), 'a', 'b', 'c', 'd', null,"
            " null, 'e', 'f', null, null, sha256('x')"
        )
        assert drop_unused_leaves(conn, START_US + DAY_US) == []
    assert leaves(store.database.url) == [name]


def test_a_table_is_made_while_the_first_event_comes(store: Store, clock: FixedClock) -> None:
    """Both at the same moment: the one waits for the other."""
    tenant = make_tenant(store)
    window = Window.containing(WindowUnit.DAY, START_US)
    clock.move_to(START_US + HOUR_US)
    with store.database.connect_apart() as conn, ThreadPoolExecutor(1) as executor:
        with conn.transaction():
            assert prepare_leaf(conn, tenant.tenant_no, window)
            appending = executor.submit(append, store, "acme", new_event())
            query = (
                "SELECT EXISTS (SELECT FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database())"
            )
            until(lambda: execute(store.database.url, query)[0][0], "the append waits")
        assert list(appending.result().seqs) == [1]
    assert len(_attached(store.database.url)) == 1
