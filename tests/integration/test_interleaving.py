"""A drop is not MVCC: the interleavings in which a reader's snapshot is older than a cutover and the
partition is gone when the reader comes to it. Each is forced, and each has a twin that shows the gap which
the store would have without its counter-measure.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.db.engine import Database
from eventstore.db.locks import DROP_LOCK_TIMEOUT_MS
from eventstore.db.partitions import Leaf, list_leaves
from eventstore.errors import BusyError, CoverageError, VersionConflictError
from eventstore.hot import append as append_module
from eventstore.hot import log as log_module
from eventstore.hot.append import Appender, AppendRequest, AppendResult
from eventstore.model.query import EventFilter, Order
from eventstore.query import walk as walk_module
from eventstore.query.tiers import LogState
from eventstore.retention import archiving as archiving_module
from eventstore.retention import planning as planning_module
from eventstore.settings import Settings
from eventstore.testing.invariants import check_store
from tests.conftest import TODAY_US, create_database
from tests.integration.moving import (
    ALL,
    BASE_US,
    DEADLINE_S,
    EVENTS,
    HOUR_US,
    OLD,
    READS,
    WINDOW_EVENTS,
    Moving,
    event,
    read_stream,
)

reads = pytest.mark.parametrize(("read", "expected"), READS.values(), ids=READS.keys())
Step = Callable[[], None]


@pytest.fixture(scope="module")
def shared(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """One store for this file; each test has a tenant of its own."""
    folder = tmp_path_factory.mktemp("interleaving")
    name = f"interleaving_{secrets.token_hex(4)}"
    url = create_database(server_url, name, template=template_database)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with open_store(settings, clock=FixedClock(TODAY_US)) as store:
        yield store


@pytest.fixture
def moving(shared: Store) -> Moving:
    return Moving(shared)


def _around_hot(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, before: list[Step], after: list[Step]
) -> list[str]:
    """Do something right before and right after the first hot statement that touches the first window."""
    hot, done = moving.store.tiers.hot, []

    def wrapped(tenant_id: str, wanted: EventFilter, seq_from: int, seq_to: int, **more: Any) -> Any:
        touches = seq_from <= WINDOW_EVENTS and not done
        if touches:
            done.append("touched")
            for step in before:
                step()
        events = hot(tenant_id, wanted, seq_from, seq_to, **more)
        for step in after if touches else ():
            step()
        return events

    monkeypatch.setattr(moving.store.tiers, "hot", wrapped)
    return done


@reads
@pytest.mark.parametrize("order", ["cutover, drop, rows", "cutover, rows, drop", "rows, cutover, drop"])
def test_every_event_once_however_the_window_moves(
    moving: Moving,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Moving], list[int]],
    expected: list[int],
    order: str,
) -> None:
    steps = {"cutover": moving.cut_over, "drop": moving.drop}
    before, _, after = order.partition("rows")
    touched = _around_hot(
        moving,
        monkeypatch,
        [steps[word] for word in before.split(", ") if word],
        [steps[word] for word in after.split(", ") if word],
    )
    assert read(moving) == expected
    assert touched
    assert read(moving) == expected  # and from the archive


@reads
def test_without_looking_at_the_watermark_again_events_are_missing(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, read: Callable[[Moving], list[int]], expected: list[int]
) -> None:
    """The test above can fail: with a reader that trusts its first look, it would."""
    state = moving.store.tiers.state
    first_look: list[LogState] = []

    def stale(tenant_id: str) -> LogState:
        first_look.append(state(tenant_id))
        return first_look[0]

    _around_hot(moving, monkeypatch, [moving.cut_over, moving.drop], [])
    monkeypatch.setattr(moving.store.tiers, "state", stale)
    if read not in (READS["entity"][0], READS["event-by-id"][0]):
        # Where every seq of a range is wanted there is a second net, which makes the gap loud.
        with pytest.raises(CoverageError):
            read(moving)
        monkeypatch.setattr(walk_module.Walk, "_check_range", lambda *_: None)
    missing = set(expected) - set(read(moving))
    assert missing == set(expected) & set(OLD)


# --- in this Postgres, without the store --------------------------------------------------------------


def test_the_silent_gap_is_real_in_repeatable_read(moving: Moving) -> None:
    with moving.connect(autocommit=False) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        watermark = f"SELECT archived_through FROM watermarks WHERE tenant_id = '{moving.name}'"
        assert conn.execute(watermark).fetchone() == (0,)
        moving.cut_over()
        moving.drop()
        # One snapshot says: nothing is archived; and its rows are not there.
        assert conn.execute(watermark).fetchone() == (0,)
        query = f"SELECT seq FROM events WHERE tenant_id = '{moving.name}' ORDER BY seq"
        rows = conn.execute(query).fetchall()
        assert [seq for (seq,) in rows] == ALL[WINDOW_EVENTS:]


_WITH_WATERMARK = """
SELECT seq, (SELECT archived_through FROM watermarks WHERE tenant_id = '{name}') AS watermark
  FROM events WHERE tenant_id = '{name}' ORDER BY seq
"""


def test_one_copy_statement_has_the_gap_too(moving: Moving) -> None:
    """COPY (query) TO, which ADBC uses, takes its snapshot before it locks the partitions."""

    def look() -> list[dict[str, int]]:
        with moving.store.database.arrow() as conn, conn.cursor() as cursor:
            cursor.execute(_WITH_WATERMARK.format(name=moving.name))
            return cursor.fetch_arrow_table().to_pylist()

    rows = moving.drop_under(look, "COPY%")
    assert [row["seq"] for row in rows] == ALL[WINDOW_EVENTS:]
    assert {row["watermark"] for row in rows} == {0}


def test_one_select_statement_has_not(moving: Moving) -> None:
    """A SELECT takes its snapshot after planning has locked the partitions: watermark and rows agree."""

    def look() -> list[tuple[int, int]]:
        with moving.store.database.connection() as conn:
            return conn.execute(_WITH_WATERMARK.format(name=moving.name)).fetchall()

    rows = moving.drop_under(look, "%SELECT seq%")
    assert [seq for seq, _ in rows] == ALL[WINDOW_EVENTS:]
    assert {watermark for _, watermark in rows} == {WINDOW_EVENTS}


@reads
def test_reader_queued_behind_the_drop(
    moving: Moving, read: Callable[[Moving], list[int]], expected: list[int]
) -> None:
    """The real thing, nothing wrapped: the reader's statement waits with its old snapshot for the drop."""
    assert moving.drop_under(lambda: read(moving), "COPY%") == expected


# --- expected versions --------------------------------------------------------------------------------


def _append(moving: Moving, expected_version: int) -> object:
    request = AppendRequest([event(1, event_id=None, expected_version=expected_version)])
    return moving.store.appender.append(moving.name, [request])[0]


@pytest.mark.parametrize("expected_version", [0, WINDOW_EVENTS])
def test_versions_are_right_under_the_drop(moving: Moving, expected_version: int) -> None:
    outcome = moving.drop_under(lambda: _append(moving, expected_version), "SELECT u.entity_type%")
    if expected_version == WINDOW_EVENTS:
        assert isinstance(outcome, AppendResult)
        assert outcome.first_seq == EVENTS + 1
    else:
        assert isinstance(outcome, VersionConflictError)
        assert outcome.conflicts[0].actual == WINDOW_EVENTS


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_versions_need_read_committed(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    """The window goes between the head's lock and the look at versions. With one snapshot for the whole
    transaction the entity would seem never to have been written to."""
    versions = append_module._versions
    begin = log_module._LOCK.replace("BEGIN;", f"BEGIN ISOLATION LEVEL {isolation};")

    def after_the_drop(*args: Any) -> Any:
        if moving.store.tiers.state(moving.name).archived_through == 0:
            moving.cut_over()
            moving.drop()
        return versions(*args)

    monkeypatch.setattr(append_module, "_versions", after_the_drop)
    monkeypatch.setattr(log_module, "_LOCK", begin)
    outcome = _append(moving, 0)
    if isolation == "READ COMMITTED":
        assert isinstance(outcome, VersionConflictError)
        assert outcome.conflicts[0].actual == WINDOW_EVENTS
    else:
        assert isinstance(outcome, AppendResult), "the gap is gone: this mutation no longer proves anything"


# --- a drop that readers hold up ----------------------------------------------------------------------


@contextmanager
def _long_reader(moving: Moving) -> Iterator[None]:
    with moving.connect(autocommit=False) as conn:
        conn.execute("SELECT count(*) FROM events WHERE tenant_id = %s", [moving.name])
        yield


def _leaf_exists(moving: Moving) -> bool:
    with moving.connect() as conn:
        row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [f"hot.{moving.record.leaf}"]).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_held_up_drop_steps_back_and_succeeds_later(moving: Moving) -> None:
    moving.cut_over()
    with _long_reader(moving):
        started = time.monotonic()
        with pytest.raises(BusyError):
            moving.drop()
        # Ten times the lock time-out is for a slow machine, not for the drop.
        assert time.monotonic() - started < 10 * DROP_LOCK_TIMEOUT_MS / 1000
        assert _leaf_exists(moving)
        assert read_stream(moving, EventFilter(), Order.ASC) == ALL
    moving.drop()
    assert not _leaf_exists(moving)
    assert read_stream(moving, EventFilter(), Order.ASC) == ALL
    report = check_store(moving.store.database.url, moving.store.target)
    assert not [v for v in report.violations if repr(moving.name) in v.message]


def test_a_run_leaves_a_held_up_drop_to_the_next(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving_module, "_DROP_PAUSES_S", (0.0,))
    with _long_reader(moving):
        report = moving.store.compactor.run([moving.tenant], BASE_US + HOUR_US)
        assert report.outcomes[0].error is None
        assert len(report.outcomes[0].warnings) == 1
        assert _leaf_exists(moving)
    report = moving.store.compactor.run([moving.tenant], BASE_US + HOUR_US)
    assert report.outcomes[0].warnings == []
    assert report.outcomes[0].windows == 1
    assert not _leaf_exists(moving)
    assert moving.store.compactor.run([moving.tenant], BASE_US + HOUR_US).outcomes[0].windows == 0


def _append_one(moving: Moving, appender: Appender | None = None) -> None:
    request = AppendRequest([event(99, event_id=None)])
    outcome = (appender or moving.store.appender).append(moving.name, [request])[0]
    assert isinstance(outcome, AppendResult)


@pytest.fixture
def appender(moving: Moving) -> Iterator[Appender]:
    """An appender with one connection."""
    database = Database(moving.store.database.url, max_connections=1)
    database.open()
    yield Appender(
        database,
        archived_versions=moving.store.reader.archived_versions,
        clock=FixedClock(TODAY_US),
    )
    database.close()


def test_appends_do_not_wait_for_a_held_up_drop(moving: Moving, appender: Appender) -> None:
    _append_one(moving, appender)  # makes the leaf
    _append_one(moving, appender)  # and now the connection knows its constraint
    moving.cut_over()
    dropped = threading.Event()

    def drop_without_timeout() -> None:
        with moving.connect() as conn:
            conn.execute(f"DROP TABLE hot.{moving.record.leaf}")
        dropped.set()

    with ThreadPoolExecutor(2) as executor:
        with _long_reader(moving):
            drop = executor.submit(drop_without_timeout)
            moving.until_waiting("DROP TABLE%")
            executor.submit(_append_one, moving, appender).result(DEADLINE_S)
            assert not dropped.is_set()
        drop.result(DEADLINE_S)


def test_a_first_append_waits_for_one_drop_attempt_at_most(moving: Moving, appender: Appender) -> None:
    """A connection that has not written into a leaf yet derives its constraint from its parents, and for
    that it locks them: it queues behind a drop. The drop's lock time-out lets it through."""
    moving.cut_over()
    with ThreadPoolExecutor(2) as executor, _long_reader(moving):
        drop = executor.submit(moving.drop)
        moving.until_waiting("%DROP TABLE%")
        executor.submit(_append_one, moving, appender).result(DEADLINE_S)
        assert isinstance(drop.exception(DEADLINE_S), BusyError)


def test_a_plan_sees_partitions_and_catalog_at_one_moment(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append makes a window and its leaf between the planner's two looks: no reason to stop a tenant."""
    for name in ("list_leaves", "list_windows"):
        look = getattr(planning_module, name)

        def then_append(*args: Any, look: Callable[..., Any] = look) -> Any:
            found = look(*args)
            _append_one(moving)  # the first one makes a window
            return found

        monkeypatch.setattr(planning_module, name, then_append)
    plan = moving.store.compactor.plan(moving.tenant, BASE_US + HOUR_US)
    assert [w.event_count for w in plan.due] == [WINDOW_EVENTS]


def test_a_list_of_leaves_passes_over_one_that_is_just_dropped(moving: Moving) -> None:
    """Its row is in the statement's snapshot, its bounds are looked up as they are now: there are none."""
    before = list_leaves_of(moving)
    with moving.store.database.connect_apart() as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT count(*) FROM pg_class")  # the snapshot
        moving.store.compactor.run([moving.tenant], BASE_US + HOUR_US)
        row = conn.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass(%s)",
            [f"hot.events_{moving.tenant.tenant_no}"],
        ).fetchone()
        assert row == (len(before),)
        found = list_leaves(conn, moving.tenant.tenant_no)
    assert len(found) == len(before) - 1
    assert found == list_leaves_of(moving)


def list_leaves_of(moving: Moving) -> list[Leaf]:
    with moving.store.database.connect_apart() as conn:
        return list_leaves(conn, moving.tenant.tenant_no)
