"""What the store says about runs: journals that are whole, broken off, strange, or still being written."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner, Result

from eventstore.api import problems
from eventstore.api import runs as api_runs
from eventstore.api.hygiene import CleanAddress
from eventstore.cli import runs as cli_runs
from eventstore.clock import US_PER_S, from_us, to_iso
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs, tasks, tenants
from eventstore.errors import InputError, RunNotFoundError, TenantNotFoundError
from eventstore.model.access import Principal, Role
from eventstore.model.run import (
    Entry,
    FileWritten,
    PlannedWindow,
    PlanResolved,
    PlanWarning,
    Retry,
    RunCompleted,
    RunKind,
    RunStatus,
    TaskAction,
    TaskState,
    Warned,
    WindowCompleted,
    WindowFailed,
    WindowStarted,
    detail_of,
    entry_from,
    kind_of,
)
from eventstore.model.window import Window
from eventstore.query.run_view import LIST_MAX, LongestWindow, RunView, Unknown
from eventstore.query.runs import find_run, list_runs, read_entries, read_run
from eventstore.retention.journal import Journal
from tests.unit.test_run_entries import ENTRIES

DAY_US = 86_400 * US_PER_S
NOW_US = 1_709_251_200 * US_PER_S  # 2024-03-01
HOLDER = 4711


def day(n: int) -> Window:
    return Window(NOW_US + n * DAY_US, NOW_US + (n + 1) * DAY_US)


@dataclass
class Run:
    """A run that a test tells."""

    database: Database
    journal: Journal

    @property
    def id(self) -> uuid.UUID:
        return self.journal.run_id

    def tell(self, *entries: Entry, tenant: str | None = "acme", window: Window | None = None) -> None:
        for entry in entries:
            self.journal.record(entry, tenant_id=tenant, window=window)

    def tell_raw(self, kind: str, detail: Any) -> None:
        with self.database.transaction() as conn:
            conn.execute(sa.insert(run_entries).values(run_id=self.id, kind=kind, detail=detail))

    def task(self, n: int, state: TaskState, *, lease_s: float = 60, not_before_s: float = 0) -> None:
        """A task for a day of acme's; running: in the hands of `HOLDER`."""
        running = state is TaskState.RUNNING
        with self.database.transaction() as conn:
            conn.execute(
                sa.insert(tasks).values(
                    run_id=self.id,
                    tenant_id="acme",
                    window_from=from_us(day(n).from_us),
                    action="archive",
                    state=state.value,
                    holder=HOLDER if running else None,
                    leased_until=sa.func.now() + sa.text(f"interval '{lease_s} seconds'")
                    if running
                    else None,
                    not_before=sa.func.now() + sa.text(f"interval '{not_before_s} seconds'"),
                )
            )

    def window(self, n: int, *, duration_ms: int = 1000, events: int = 100, tenant: str = "acme") -> None:
        """A whole window, as a worker would tell it."""
        self.tell(started(events=events), written(n, events), tenant=tenant, window=day(n))
        self.tell(completed(duration_ms, events), tenant=tenant, window=day(n))

    def end(self, status: RunStatus = RunStatus.COMPLETED, **values: Any) -> None:
        given = {"duration_ms": 1, "windows": 1, "windows_failed": 0, "events": 100, **values}
        assert self.journal.finish(RunCompleted(status=status, **given))

    def read(self) -> RunView:
        return read_run(self.database, self.id)


def begin(database: Database, *, kind: RunKind = RunKind.RETENTION, running: bool = True) -> Run:
    with database.transaction() as conn:
        known = conn.execute(sa.select(tenants.c.tenant_id)).scalars().all()
        if "acme" not in known:
            conn.execute(sa.insert(tenants).values(tenant_id="acme", window_unit="day"))
    journal = Journal.begin(database, kind=kind, now_us=NOW_US, requested_by="a test", holder=HOLDER)
    if running:
        journal.set_running()
    return Run(database, journal)


@pytest.fixture
def run(database: Database) -> Run:
    return begin(database)


@contextmanager
def worker(database: Database) -> Iterator[None]:
    """Holds the advisory lock by which others see that the worker is alive."""
    with psycopg.connect(database.url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", [HOLDER])
        yield


def planned(n: int, *, tenant_events: int = 100, held_by: list[str] | None = None) -> PlannedWindow:
    return PlannedWindow(
        window_from=to_iso(day(n).from_us),
        window_to=to_iso(day(n).to_us),
        action=TaskAction.EXPIRE if held_by else TaskAction.ARCHIVE,
        state="sealed",
        events=tenant_events,
        first_seq=1,
        held_by=held_by or [],
    )


def plan(*due: PlannedWindow) -> PlanResolved:
    return PlanResolved(policy_no=2, policy="by day", due=list(due), hot_windows=1, archived_windows=4)


def started(*, attempt: int = 1, events: int = 100) -> WindowStarted:
    return WindowStarted(
        action=TaskAction.ARCHIVE, state="sealed", events=events, worker="h/1", attempt=attempt, target="near"
    )


def written(n: int, rows: int = 100) -> FileWritten:
    return FileWritten(target="near", name=f"day-{n}.p000", part=0, rows=rows, size_bytes=1000, created=True)


def completed(duration_ms: int, events: int = 100, **steps: int) -> WindowCompleted:
    return WindowCompleted(
        action=TaskAction.ARCHIVE,
        events=events,
        segments=1,
        size_bytes=1000,
        duration_ms=duration_ms,
        steps_ms=steps or {"seal": 1, "write and verify": duration_ms - 2, "drop": 1},
    )


def failed(duration_ms: int, error: str = "the target is away") -> WindowFailed:
    return WindowFailed(action=TaskAction.ARCHIVE, error=error, code="x", attempts=2, duration_ms=duration_ms)


# --- the answers ----------------------------------------------------------------------------------------


def test_every_kind_of_entry_comes_back_in_its_answer(run: Run) -> None:
    for entry, _ in ENTRIES:
        run.tell(entry, window=day(0))
    view = run.read()
    counts = {kind_of(entry): 1 for entry, _ in ENTRIES}
    assert (view.entries.by_kind, view.entries.count) == (counts, len(ENTRIES))
    assert view.not_understood.count == 0

    def only(items: Any) -> Any:
        (item,) = items
        assert (item.tenant_id, item.window_from) == ("acme", to_iso(day(0).from_us))
        return entry_from(item.kind, item.detail)

    by_kind = {kind_of(entry): entry for entry, _ in ENTRIES}
    happened, degraded = view.happened, view.degraded
    for kind, listed in (
        ("plan_warning", view.planned.warnings.items),
        ("file_written", happened.files_written.items),
        ("file_removed", happened.files_removed.items),
        ("retry", happened.retries.items),
        ("parallelism_adjusted", happened.parallelism.items),
        ("parallelism_adjusted", degraded.lowered_parallelism.items),
        ("window_failed", degraded.failed_windows.items),
        ("warning", degraded.warnings.items),
        ("quality_issue", degraded.quality.items),
        ("schema_changed", degraded.schema_changes.items),
        ("validation_result", degraded.failed_validations.items),
        ("reconciliation_result", degraded.mismatches.items),
        ("window_started", happened.windows.unfinished.items),
    ):
        assert only(listed) == by_kind[kind], kind
    (tenant,) = view.planned.tenants
    assert (tenant.policy_no, tenant.policy, tenant.due_count, tenant.due_events) == (3, "by day", 1, 1000)
    assert (tenant.hot_windows, tenant.archived_windows) == (2, 5)
    assert tenant.due == [detail_of(by_kind["plan_resolved"])["due"][0]]
    assert (view.planned.windows, view.planned.events) == (1, 1000)
    # The start is of a move, the ends are of an archive and an expiry: three windows' work.
    windows = happened.windows
    assert (windows.started, windows.completed, windows.failed) == (1, 1, 1)
    assert (windows.events, windows.segments, windows.size_bytes) == (1000, 1, 12_345)
    assert (happened.files_written.rows, happened.files_written.size_bytes) == (10, 999)
    assert happened.files_written.found == 1
    assert (happened.compared.validations_failed, happened.compared.counts_mismatched) == (1, 1)
    assert (happened.compared.source_count, happened.compared.archived_rows) == (10, 9)
    assert (degraded.anything, degraded.quality_fail, degraded.quality_warn) == (True, 1, 0)
    assert [(g.what, g.count, g.pauses_s) for g in degraded.retry_reasons] == [("drop", 1, 0.5)]
    longest = view.longest_window
    assert isinstance(longest, LongestWindow)
    assert (longest.duration_ms, longest.step, longest.attempts) == (
        44_000,
        "drop",
        Unknown(why="the journal has no start of it"),
    )
    assert longest.why == (
        "drop took 41.2 s of 44.0 s (94 %): tried again once (pauses of 500 ms), readers held the table"
    )
    page = read_entries(run.database, run.id)
    assert [entry_from(e.kind, e.detail) for e in page.entries] == [entry for entry, _ in ENTRIES]


def test_a_run_without_trouble(run: Run) -> None:
    run.tell(plan(planned(0), planned(1)))
    run.window(0)
    run.window(1, duration_ms=2000, events=300)
    run.end(windows=2, events=400)
    view = run.read()
    assert not view.degraded.anything
    assert view.planned.note is None
    assert (view.planned.windows, view.planned.events) == (2, 200)
    windows = view.happened.windows
    assert (windows.started, windows.completed, windows.failed, windows.unfinished.count) == (2, 2, 0, 0)
    outcome = view.outcome
    assert (outcome.status, outcome.ended, outcome.error) == (RunStatus.COMPLETED, True, None)
    assert (outcome.windows, outcome.windows_failed, outcome.events) == (2, 0, 400)
    assert outcome.activity is None
    assert outcome.finished_at is not None
    assert 0 < outcome.duration_ms < 60_000
    longest = view.longest_window
    assert isinstance(longest, LongestWindow)
    assert (longest.window_from, longest.duration_ms, longest.attempts) == (to_iso(day(1).from_us), 2000, 1)
    assert longest.why == "write and verify took 2.0 s of 2.0 s (100 %)"
    assert (longest.result, longest.caveat) == ("completed", None)


def test_a_window_counts_once_however_often_it_was_tried(run: Run) -> None:
    run.tell(started(), window=day(0))
    run.tell(Retry(attempt=1, reason="away", backoff_s=1), window=day(0))
    run.tell(started(attempt=2), completed(50), window=day(0))
    run.tell(started(), failed(10), window=day(1))
    run.tell(started(), window=day(2))
    run.tell(started(attempt=2), window=day(2))
    windows = run.read().happened.windows
    assert (windows.started, windows.completed, windows.failed) == (3, 1, 1)
    assert windows.unfinished.count == 1
    assert windows.unfinished.items[0].detail["attempt"] == 2


def test_why_the_longest_window_took_so_long(run: Run) -> None:
    for n in range(3):
        run.window(n)
    run.tell(started(events=90_000), window=day(3))
    run.tell(*[Retry(attempt=n, reason="locked", backoff_s=2, what="drop") for n in (1, 2, 3)], window=day(3))
    run.tell(started(attempt=2), completed(50_000, 90_000, seal=1, drop=45_000), window=day(3))
    run.tell(Retry(attempt=1, reason="elsewhere", backoff_s=2, what="drop"), window=day(1))
    longest = run.read().longest_window
    assert isinstance(longest, LongestWindow)
    assert (longest.step, longest.attempts) == ("drop", 2)
    assert longest.why == (
        "drop took 45.0 s of 50.0 s (90 %): tried again 3 times (pauses of 6.0 s), locked; "
        "it held 90,000 events, 900 times the median window's 100"
    )
    run.tell(failed(60_000), window=day(4))
    longest = run.read().longest_window
    assert isinstance(longest, LongestWindow)
    assert (longest.result, longest.attempts) == ("failed", 2)
    assert longest.why == "it failed after 2 attempts: the target is away"
    assert isinstance(longest.step, Unknown)


def test_what_cannot_be_told_is_unknown(run: Run) -> None:
    run.tell_raw("window_completed", {**detail_of(completed(9)), "steps_ms": {}})
    longest = run.read().longest_window
    assert isinstance(longest, LongestWindow)
    assert isinstance(longest.why, Unknown)
    assert "steps" in longest.why.why
    assert isinstance(longest.step, Unknown)


def test_held_windows_and_tenants_without_a_plan_are_told(run: Run) -> None:
    run.tell(plan(planned(0, held_by=["case 7"]), planned(1)))
    run.tell(PlanWarning(message="a gap", failed=True), tenant="other")
    run.tell(PlanWarning(message="soon full"))
    view = run.read()
    ((held,), count) = view.degraded.held, view.degraded.held_count
    assert (count, held["tenant_id"], held["held_by"]) == (1, "acme", ["case 7"])
    assert held["window_from"] == to_iso(day(0).from_us)
    assert [e.tenant_id for e in view.degraded.failed_tenants.items] == ["other"]
    assert view.planned.warnings.count == 2
    assert {action: sums.windows for action, sums in view.planned.actions.items()} == {
        "archive": 1,
        "expire": 1,
    }


def test_a_window_planned_twice_counts_once(run: Run) -> None:
    run.tell(plan(planned(0), planned(1)), plan(planned(1, tenant_events=7)))
    view = run.read()
    assert (view.planned.windows, view.planned.events, view.planned.tenant_count) == (2, 107, 2)


def test_lists_are_bounded_and_say_what_they_leave_out(run: Run) -> None:
    with run.database.transaction() as conn:
        for n in range(LIST_MAX + 5):
            due = [planned(i) for i in range(150 if n < 2 else 1)]
            run.journal.record_in(conn, plan(*due), tenant_id=f"t{n}")
            run.journal.record_in(conn, written(n), tenant_id="acme", window=day(n))
            run.journal.record_in(conn, started(), tenant_id="acme", window=day(n))
    view = run.read()
    files, unfinished, tenants_planned = (
        view.happened.files_written,
        view.happened.windows.unfinished,
        view.planned.tenants,
    )
    assert (files.count, len(files.items), files.more, files.rows) == (205, 200, 5, 20_500)
    assert (unfinished.count, len(unfinished.items), unfinished.more) == (205, 200, 5)
    assert (view.planned.tenant_count, len(tenants_planned), view.planned.more_tenants) == (205, 200, 5)
    assert [(len(t.due), t.more) for t in tenants_planned[:4]] == [(150, 0), (50, 100), (0, 1), (0, 1)]
    assert [t.due_count for t in tenants_planned[:3]] == [150, 150, 1]
    assert view.planned.windows == 150 + 150 + 203


# --- what broke off, what is strange --------------------------------------------------------------------


def test_a_run_that_was_killed_before_any_window_ended(run: Run) -> None:
    run.tell(plan(planned(0), planned(1)))
    run.tell(started(), window=day(0))
    run.task(0, TaskState.RUNNING, lease_s=-5)
    run.task(1, TaskState.WAITING)
    with worker(run.database):  # it still has its lock: stopped, not dead
        view = run.read()
    assert view.longest_window == Unknown(why="no window has ended yet; 1 begun")
    outcome = view.outcome
    assert (outcome.status, outcome.ended, outcome.finished_at) == (RunStatus.RUNNING, False, None)
    assert outcome.error == Unknown(why="the run has not ended")
    assert (outcome.progress.running, outcome.progress.abandoned, outcome.progress.waiting) == (1, 1, 1)
    assert outcome.activity is not None
    assert outcome.activity.startswith("no worker is at it")
    (summary,), _ = list_runs(run.database)
    assert (summary.tasks, summary.at_work, summary.windows) == (2, 0, 0)


def test_a_run_that_was_killed_midway(run: Run) -> None:
    run.window(0, duration_ms=1)
    run.tell(started(), window=day(1))
    run.task(0, TaskState.DONE)
    run.task(1, TaskState.RUNNING)  # under a lease that holds, by a worker that does not live
    time.sleep(0.02)
    view = run.read()
    longest = view.longest_window
    assert isinstance(longest, LongestWindow)
    assert longest.caveat is not None
    assert longest.caveat.startswith(f"acme {to_iso(day(1).from_us)} was begun")
    assert view.outcome.activity is not None
    assert view.outcome.activity.startswith("no worker is at it")
    assert view.outcome.progress.abandoned == 1
    assert (view.outcome.windows, view.outcome.events) == (1, 100)


def test_a_run_that_another_took_over_has_its_own_numbers(run: Run) -> None:
    run.window(0)
    run.end(RunStatus.INTERRUPTED, duration_ms=0, windows=0, events=0, error="taken over")
    view = run.read()
    assert (view.outcome.windows, view.outcome.events, view.outcome.error) == (1, 100, "taken over")
    assert view.outcome.duration_ms > 0
    (summary,), _ = list_runs(run.database)
    assert (summary.windows, summary.events, summary.error) == (1, 100, "taken over")


def test_a_run_that_ended_without_a_word(run: Run) -> None:
    with run.database.transaction() as conn:
        conn.execute(sa.update(runs).values(status="interrupted", finished_at=sa.func.now()))
    view = run.read()
    assert isinstance(view.outcome.error, Unknown)
    assert view.longest_window == Unknown(why="no window was completed, and none failed")


def test_who_is_at_it(run: Run) -> None:
    def activity() -> str:
        found = run.read().outcome.activity
        assert found is not None
        return found

    assert "every task has ended" in activity()
    run.task(0, TaskState.WAITING, not_before_s=300)
    assert "the next try is due at 20" in activity()
    run.task(1, TaskState.WAITING)
    assert "what waits is done by the next worker" in activity()
    run.task(2, TaskState.RUNNING)
    assert "are gone, or their leases have run out" in activity()
    with worker(run.database):
        assert activity() == "1 window is being worked on"
        (summary,), _ = list_runs(run.database)
        assert summary.at_work == 1


def test_whether_it_is_being_planned(database: Database) -> None:
    run = begin(database, running=False)
    view = run.read()
    assert view.outcome.activity == "no worker is at it: the process that planned it is gone"
    assert view.planned.note == "planning has not ended: more tenants may follow"
    with worker(database):
        assert run.read().outcome.activity == "it is being planned"


def test_entries_of_other_kinds_are_shown_as_they_are(run: Run) -> None:
    run.tell_raw("quantum_leap", {"to": ["x", 1]})
    run.tell_raw("quantum_leap", [1])
    run.tell_raw("retry", {"reason": "of an older form"})
    run.window(0)
    view = run.read()
    assert [(e.kind, e.detail) for e in view.not_understood.items] == [
        ("quantum_leap", {"to": ["x", 1]}),
        ("quantum_leap", [1]),
        ("retry", {"reason": "of an older form"}),
    ]
    assert view.entries.by_kind["quantum_leap"] == 2
    assert (view.happened.retries.count, view.degraded.retries) == (0, 0)
    assert view.happened.windows.completed == 1
    assert [e.kind for e in read_entries(run.database, run.id).entries][:3] == [
        "quantum_leap",
        "quantum_leap",
        "retry",
    ]


def test_what_is_understood_in_sql_is_what_the_model_understands(run: Run) -> None:
    expected = []
    for entry, _ in ENTRIES:
        detail = detail_of(entry)
        for member in detail:
            rest = {name: value for name, value in detail.items() if name != member}
            for other in (rest, {**rest, member: None}, {**rest, member: {"a": "b"}}, {**rest, member: "?"}):
                run.tell_raw(kind_of(entry), other)
                if entry_from(kind_of(entry), other) is None:
                    expected.append((kind_of(entry), other))
    found = run.read().not_understood
    assert found.count == len(expected)
    shown = json.dumps([(entry.kind, entry.detail) for entry in found.items], sort_keys=True)
    assert shown == json.dumps(expected[: len(found.items)], sort_keys=True)


# --- while it is written --------------------------------------------------------------------------------


def test_the_answers_agree_while_the_run_goes_on(run: Run) -> None:
    stop = threading.Event()

    def write() -> None:
        for n in range(10_000):
            if stop.is_set():
                return
            with run.database.transaction() as conn:
                for entry in (started(), written(n), completed(5)):
                    run.journal.record_in(conn, entry, tenant_id="acme", window=day(n % 1000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = 0
        for _ in range(40):
            view = run.read()
            files = view.happened.files_written
            assert view.entries.count == 3 * files.count
            assert view.happened.windows.completed == min(files.count, 1000)
            assert len(files.items) == min(files.count, LIST_MAX)
            assert files.count >= seen
            seen = files.count
    finally:
        stop.set()
        thread.join()
    assert seen > 0


def test_an_entry_that_commits_late_is_not_missed(run: Run) -> None:
    committed = threading.Event()

    def write_slowly() -> None:
        with run.database.transaction() as conn:
            run.journal.record_in(conn, Warned(message="first"))
            inserted.set()
            time.sleep(0.3)
        committed.set()

    inserted = threading.Event()
    thread = threading.Thread(target=write_slowly)
    thread.start()
    assert inserted.wait(10)
    run.tell(Warned(message="second"))
    page = read_entries(run.database, run.id)
    assert committed.is_set()
    assert [e.detail["message"] for e in page.entries] == ["first", "second"]
    thread.join()


def test_nothing_is_given_out_behind_an_entry_that_does_not_commit(run: Run) -> None:
    run.tell(Warned(message="before"))
    before = read_entries(run.database, run.id)
    assert [e.detail["message"] for e in before.entries] == ["before"]
    with run.database.transaction() as conn:
        run.journal.record_in(conn, Warned(message="first"))
        run.end()
        page = read_entries(run.database, run.id, after=before.next_after)
        # A follower that took this for the end would miss what comes.
        assert (page.entries, page.next_after, page.ended) == ([], before.next_after, False)
    page = read_entries(run.database, run.id, after=before.next_after)
    assert [e.kind for e in page.entries] == ["warning", "run_completed"]


def test_a_journal_is_read_in_pages(run: Run) -> None:
    other = begin(run.database)
    for n in range(7):
        run.tell(Warned(message=str(n)))
        other.tell(Warned(message="of another run"))
    found, after = [], 0
    while page := read_entries(run.database, run.id, after=after, limit=3).entries:
        assert len(page) <= 3
        found += [entry.detail["message"] for entry in page]
        after = page[-1].entry_no
    assert found == [str(n) for n in range(7)]
    assert read_entries(run.database, run.id, after=after).next_after == after


# --- which run ------------------------------------------------------------------------------------------


def test_runs_are_found_by_the_beginning_of_their_id(database: Database) -> None:
    with pytest.raises(RunNotFoundError, match="no run yet"):
        find_run(database, "latest")
    made = [begin(database).id for _ in range(3)]
    with database.transaction() as conn:
        for run_id, name in zip(made, ("aaaa0000", "aaaa1111", "bbbb0000"), strict=True):
            now = uuid.UUID(f"{name}-0000-4000-8000-000000000000")
            conn.execute(sa.update(runs).where(runs.c.run_id == run_id).values(run_id=now))
    assert str(find_run(database, "b")).startswith("bbbb")
    assert str(find_run(database, "AAAA1")).startswith("aaaa1111")
    assert str(find_run(database, "aaaa1111-0000-4000-8000-000000000000")).startswith("aaaa1111")
    assert str(find_run(database, "latest")).startswith("bbbb")
    with pytest.raises(InputError, match=r"several runs begin with 'aaaa': aaaa1111-.*, aaaa0000-"):
        find_run(database, "aaaa")
    with pytest.raises(RunNotFoundError):
        find_run(database, "c")
    for wrong in ("", "x", "-", "a%", "a_", "a" * 37):
        with pytest.raises(InputError, match="is not the beginning of a run's id"):
            find_run(database, wrong)
    with pytest.raises(RunNotFoundError):
        read_run(database, uuid.uuid4())
    with pytest.raises(RunNotFoundError):
        read_entries(database, uuid.uuid4())


def test_runs_are_listed_newest_first(database: Database) -> None:
    made = [begin(database, kind=kind) for kind in (RunKind.RETENTION, RunKind.SCRUB, RunKind.RETENTION)]
    made[0].window(0)
    made[0].end(windows=1, events=100)
    made[1].tell(Warned(message="m"), tenant=None)
    made[1].end(RunStatus.FAILED, error="away", windows=0, events=0, windows_failed=2)
    made[2].window(0, tenant="other")
    with database.transaction() as conn:
        conn.execute(sa.insert(tenants).values(tenant_id="other", window_unit="day"))
    ids = [str(run.id) for run in reversed(made)]

    def listed(**wanted: Any) -> list[str]:
        return [run.run_id for run in list_runs(database, **wanted)[0]]

    assert listed() == ids
    assert listed(status=RunStatus.FAILED) == [ids[1]]
    assert listed(kind=RunKind.RETENTION) == [ids[0], ids[2]]
    assert listed(tenant="acme") == [ids[2]]
    assert listed(tenant="other") == [ids[0]]
    made[1].task(0, TaskState.DONE)
    assert listed(tenant="acme") == [ids[1], ids[2]]
    with pytest.raises(TenantNotFoundError):
        list_runs(database, tenant="nobody")
    first, cursor = list_runs(database, limit=2)
    assert cursor is not None
    rest, end = list_runs(database, limit=2, cursor=cursor)
    assert ([run.run_id for run in (*first, *rest)], end) == (ids, None)
    assert list_runs(database, limit=3)[1] is None
    running, broken, done = list_runs(database)[0]
    assert (running.windows, running.events, running.finished_at, running.tasks) == (1, 100, None, 0)
    assert (broken.error, broken.windows_failed, broken.tasks) == ("away", 2, None)
    assert (done.windows, done.events, done.at_work) == (1, 100, None)
    for wrong in ("", "x", "1.x", "1" * 19 + "." + "a" * 32, "9" * 18 + "." + "a" * 32):
        with pytest.raises(InputError, match="is not a cursor"):
            list_runs(database, cursor=wrong)


# --- the API --------------------------------------------------------------------------------------------


class Client:
    """Asks the routes of runs, without a socket."""

    def __init__(self, database: Database) -> None:
        self._app = FastAPI()
        self._app.state.store = SimpleNamespace(database=database)
        problems.install(self._app)
        self._app.add_middleware(CleanAddress)
        self._app.include_router(api_runs.router)

    async def _as_administrator(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"principal": Principal("test", Role.ADMINISTRATOR)}
        await self._app(scope, receive, send)

    def get(self, path: str, **params: Any) -> httpx.Response:
        async def get() -> httpx.Response:
            transport = httpx.ASGITransport(self._as_administrator)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.get(path, params=params or None)

        return asyncio.run(get())


@pytest.fixture
def client(database: Database) -> Client:
    return Client(database)


def test_the_api_gives_lists_answers_and_entries(client: Client, run: Run) -> None:
    run.tell(plan(planned(0)))
    run.window(0)
    listed = client.get("/v1/runs").json()
    assert listed["next_cursor"] is None
    (summary,) = listed["runs"]
    assert (summary["run_id"], summary["status"], summary["windows"]) == (str(run.id), "running", 1)
    body = client.get(f"/v1/runs/{run.id}").json()
    assert set(body) >= {"planned", "happened", "degraded", "outcome", "longest_window", "entries"}
    assert body["outcome"]["error"] == {"answer": "unknown", "why": "the run has not ended"}
    assert body["longest_window"]["why"] == "write and verify took 998 ms of 1.0 s (100 %)"
    first = client.get(f"/v1/runs/{run.id}/entries", limit=2).json()
    assert [e["kind"] for e in first["entries"]] == ["plan_resolved", "window_started"]
    assert (first["status"], first["ended"]) == ("running", False)
    run.end()
    rest = client.get(f"/v1/runs/{run.id}/entries", after=first["next_after"]).json()
    assert [e["kind"] for e in rest["entries"]] == ["file_written", "window_completed", "run_completed"]
    assert rest["ended"]
    assert rest["entries"][0] == {
        "entry_no": rest["entries"][0]["entry_no"],
        "at": rest["entries"][0]["at"],
        "kind": "file_written",
        "tenant_id": "acme",
        "window_from": to_iso(day(0).from_us),
        "detail": detail_of(written(0)),
    }


NOBODY = uuid.UUID("f41b84ac-0289-466a-bf15-d94d1a0c0d08")


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        (f"/{NOBODY}", 404, "run-not-found", str(NOBODY)),
        (f"/{NOBODY}/entries", 404, "run-not-found", str(NOBODY)),
        ("/latest", 400, "invalid-request", "not the id of a run"),
        ("/x/entries", 400, "invalid-request", "not the id of a run"),
        ("?limit=0", 400, "invalid-request", "limit"),
        ("?limit=201", 400, "invalid-request", "limit"),
        ("?status=asleep", 400, "invalid-request", "status"),
        ("?kind=party", 400, "invalid-request", "kind"),
        ("?cursor=x", 400, "invalid-request", "cursor"),
        ("?tenant=nobody", 404, "tenant-not-found", "nobody"),
        ("?tenant=a%00b", 400, "invalid-request", "NUL"),
        ("?tennant=acme", 400, "invalid-request", "no parameter 'tennant'"),
        ("?limit=1&limit=2", 400, "invalid-request", "more than once"),
        (f"/{NOBODY}?after=1", 400, "invalid-request", "no parameter 'after'"),
        (f"/{NOBODY}/entries?after=-1", 400, "invalid-request", "after"),
        (f"/{NOBODY}/entries?after={2**63}", 400, "invalid-request", "after"),
        (f"/{NOBODY}/entries?limit=1001", 400, "invalid-request", "limit"),
    ],
)
def test_wrong_requests(client: Client, path: str, status: int, code: str, words: str) -> None:
    response = client.get(f"/v1/runs{path}")
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    body = response.json()
    assert body["type"] == f"urn:eventstore:{code}"
    assert words in body["detail"]


# --- the command line -----------------------------------------------------------------------------------


@dataclass
class Shell:
    url: str

    def __call__(self, *arguments: str, status: int = 0) -> Result:
        environment = {"EVENTSTORE_DATABASE_URL": self.url, "COLUMNS": "160"}
        found = CliRunner().invoke(cli_runs.app, arguments, env=environment)
        assert found.exit_code == status, (found.output, found.exception)
        return found


@pytest.fixture
def shell(database: Database) -> Shell:
    return Shell(database.url)


def test_the_list_on_the_command_line(shell: Shell, run: Run) -> None:
    run.window(0)
    run.task(0, TaskState.DONE)
    run.task(1, TaskState.RUNNING)
    other = begin(run.database, kind=RunKind.EXPIRY)
    other.end(RunStatus.FAILED, windows_failed=1)
    header, second, first = shell("list").stdout.splitlines()
    assert re.split("  +", header.strip()) == [
        "run",
        "started (UTC)",
        "kind",
        "status",
        "windows",
        "events",
        "duration",
        "requested by",
    ]
    assert re.search(r"expiry +failed +1 \(1 failed\) +100 ", second)
    assert re.search(r"retention +running \(no worker\) +1 of 2 +100 .* … +a test *$", first)
    assert "older ones: --cursor " in shell("list", "--limit", "1").stdout
    body = json.loads(shell("list", "--json", "--kind", "expiry").stdout)
    assert [found["run_id"] for found in body["runs"]] == [str(other.id)]


def test_the_page_on_the_command_line(shell: Shell, run: Run, client: Client) -> None:
    run.tell(plan(planned(0), planned(1)))
    run.window(0)
    run.tell(Retry(attempt=1, reason="locked", backoff_s=2, what="drop"), window=day(0))
    run.tell_raw("quantum_leap", {"to": 1})
    run.task(1, TaskState.WAITING)
    text = shell("show").stdout
    for words in (
        f"Run {run.id}: retention, running",
        "archive: 2 windows, 200 events",
        "windows: 1 completed; 100 events, 1 segment, 1.0 kB",
        "1 file written: 100 rows, 1.0 kB",
        "drop tried again 1 time (pauses 2.0 s): locked",
        "of 1 task: 1 waiting",
        "no worker is at it",
        "acme 2024-03-01  archive completed, 1.0 s",
        'quantum_leap {"to": 1}',
    ):
        assert words in text, text
    titles = ["Planned", "Happened", "Degraded", "Outcome", "Longest window", "Not understood"]
    assert [line for line in text.splitlines() if line in titles] == titles
    run.end()
    beginning = str(run.id)[:13]
    body = json.loads(shell("show", beginning, "--json").stdout)
    assert body == client.get(f"/v1/runs/{run.id}").json()
    assert "unknown" not in shell("show", beginning).stdout
    assert isinstance(shell("show", "zz", status=1).exception, InputError)


def test_a_run_is_followed_to_its_end(shell: Shell, run: Run) -> None:
    run.tell(started(), window=day(0))

    def go_on() -> None:
        time.sleep(0.7)
        run.tell(completed(5), window=day(0))
        time.sleep(0.7)
        run.end(RunStatus.FAILED, error="away")

    thread = threading.Thread(target=go_on)
    thread.start()
    lines = shell("follow", status=1).stdout.splitlines()
    thread.join()
    assert lines[0] == f"Run {run.id}"
    assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines[1:]] == [
        "acme 2024-03-01  archive to near started: sealed, 100 events, by h/1",
        "acme 2024-03-01  archive completed in 5 ms: 100 events, 1 segment, 1.0 kB",
        "run failed: away",
    ]
    done = begin(run.database)
    done.end()
    (entry,) = shell("follow", str(done.id), "--json").stdout.splitlines()
    assert json.loads(entry)["kind"] == "run_completed"
