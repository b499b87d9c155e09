"""A drop is not MVCC: the interleavings in which a reader's snapshot is older than a cutover and the
partition is gone when the reader comes to it. Each is forced, and each has a twin that shows the gap which
the store would have without its counter-measure.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest

from eventstore.app import Store
from eventstore.catalog.tenants import create_tenant
from eventstore.clock import US_PER_S, parse_time_us
from eventstore.db.locks import DROP_LOCK_TIMEOUT_MS
from eventstore.errors import BusyError, CoverageError, EventNotFoundError, VersionConflictError
from eventstore.hot import append as append_module
from eventstore.hot import log as log_module
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.hot.batch import pending_batch
from eventstore.hot.log import log_transaction
from eventstore.model.event import NewEvent
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowUnit
from eventstore.query import reader as reader_module
from eventstore.query.tiers import LogState
from eventstore.retention import compactor as compactor_module
from eventstore.retention.steps import archive_window, cut_over_window, drop_window, seal_window
from eventstore.testing.invariants import check_store

BASE_US = parse_time_us("2024-03-01T00:00:00Z")
HOUR_US = 3600 * US_PER_S
WINDOW_EVENTS = 10  # seq 1 to 10 lie in the window that goes
EVENTS = 3 * WINDOW_EVENTS
GONE_ID = 3  # an event of that window
DEADLINE_S = 30.0


def event(number: int, **more: Any) -> NewEvent:
    """Entity `old` occurs in the first window only."""
    return NewEvent(
        entity_type="account",
        entity_id="old" if number <= WINDOW_EVENTS else "new",
        action="update",
        actor="a",
        source="s",
        **{"event_id": uuid.UUID(int=number), **more},
    )


class Moving:
    """A log whose first window is archived but for its cutover and its drop, which a test places."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tenant: Tenant = create_tenant(store.database, "acme", Policy(WindowUnit.HOUR, 0))
        times = BASE_US + np.arange(EVENTS, dtype=np.int64) * (HOUR_US // WINDOW_EVENTS)
        with store.database.connection() as conn, log_transaction(conn, "acme", {}) as log:
            log.write(pending_batch([event(n) for n in range(1, EVENTS + 1)]), times)
        plan = store.compactor.plan(self.tenant, BASE_US + HOUR_US)
        assert [w.event_count for w in plan.due] == [WINDOW_EVENTS]
        self.record = seal_window(store.database, self.tenant, plan.due[0].record)
        self.verified = archive_window(
            store.database, store.target, self.tenant, self.record, on_file=lambda _: None
        )

    def cut_over(self) -> None:
        cut_over_window(self.store.database, self.record, self.verified)

    def drop(self) -> None:
        drop_window(self.store.database, self.tenant, self.record, self.verified)

    @property
    def parent(self) -> str:
        return f"hot.events_{self.tenant.tenant_no}"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        return psycopg.connect(self.store.database.url, autocommit=autocommit)

    def until_waiting(self, statement: str) -> None:
        """Until a statement like this waits for a lock."""
        deadline = time.monotonic() + DEADLINE_S
        with self.connect() as conn:
            while not conn.execute(
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s",
                [statement],
            ).fetchone():
                assert time.monotonic() < deadline, f"nothing like {statement} waits for a lock"
                time.sleep(0.002)

    def drop_under(self, work: Callable[[], Any], statement: str) -> Any:
        """Start `work`, whose statement takes its snapshot and then waits for the partitions; commit the
        cutover meanwhile, and drop the window before the statement gets on. What `work` gave."""
        with ThreadPoolExecutor(1) as executor, self.connect(autocommit=False) as dropper:
            dropper.execute(f"LOCK TABLE {self.parent} IN ACCESS EXCLUSIVE MODE")
            future = executor.submit(work)
            self.until_waiting(statement)
            self.cut_over()
            # What hot.drop does, on the connection that already has the lock for which the reader queues.
            dropper.execute(f"DROP TABLE hot.{self.record.leaf}")
            dropper.execute("UPDATE windows SET state = 'dropped' WHERE state = 'archived'")
            dropper.commit()
            return future.result(DEADLINE_S)


@pytest.fixture
def moving(store: Store) -> Moving:
    return Moving(store)


# --- how a log is read --------------------------------------------------------------------------------


def _page(store: Store, order: Order, limit: int) -> list[int]:
    seqs: list[int] = []
    after = None
    while True:
        page = store.reader.page("acme", EventFilter(), order=order, after=after, limit=limit)
        seqs += page.events.column("seq").to_pylist()
        after = page.next_after
        if after is None:
            return sorted(seqs)


def _stream(store: Store, wanted: EventFilter, order: Order) -> list[int]:
    tables = store.reader.stream("acme", wanted, order=order)
    return sorted(seq for table in tables for seq in table.column("seq").to_pylist())


def _event(store: Store, **named: Any) -> list[int]:
    try:
        return store.reader.event("acme", **named).events.column("seq").to_pylist()
    except EventNotFoundError:
        return []


ALL = list(range(1, EVENTS + 1))
OLD = ALL[:WINDOW_EVENTS]
READS: dict[str, tuple[Callable[[Store], list[int]], list[int]]] = {
    "page-asc": (lambda s: _page(s, Order.ASC, 7), ALL),
    "page-desc": (lambda s: _page(s, Order.DESC, 7), ALL),
    "page-whole": (lambda s: _page(s, Order.DESC, EVENTS), ALL),
    "stream-asc": (lambda s: _stream(s, EventFilter(), Order.ASC), ALL),
    "stream-desc": (lambda s: _stream(s, EventFilter(), Order.DESC), ALL),
    "entity": (lambda s: _stream(s, EventFilter(entity_type="account", entity_id="old"), Order.ASC), OLD),
    "event-by-seq": (lambda s: _event(s, seq=GONE_ID), [GONE_ID]),
    "event-by-id": (lambda s: _event(s, event_id=uuid.UUID(int=GONE_ID).bytes), [GONE_ID]),
}
reads = pytest.mark.parametrize(("read", "expected"), READS.values(), ids=READS.keys())


Step = Callable[[], None]


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
    read: Callable[[Store], list[int]],
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
    assert read(moving.store) == expected
    assert touched
    assert read(moving.store) == expected  # and from the archive


@reads
def test_without_looking_at_the_watermark_again_events_are_missing(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, read: Callable[[Store], list[int]], expected: list[int]
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
            read(moving.store)
        monkeypatch.setattr(reader_module._Walk, "_check_range", lambda *_: None)
    missing = set(expected) - set(read(moving.store))
    assert missing == set(expected) & set(OLD)


# --- in this Postgres, without the store --------------------------------------------------------------


def test_the_silent_gap_is_real_in_repeatable_read(moving: Moving) -> None:
    with moving.connect(autocommit=False) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        watermark = "SELECT archived_through FROM watermarks WHERE tenant_id = 'acme'"
        assert conn.execute(watermark).fetchone() == (0,)
        moving.cut_over()
        moving.drop()
        # One snapshot says: nothing is archived; and its rows are not there.
        assert conn.execute(watermark).fetchone() == (0,)
        rows = conn.execute("SELECT seq FROM events WHERE tenant_id = 'acme' ORDER BY seq").fetchall()
        assert [seq for (seq,) in rows] == ALL[WINDOW_EVENTS:]


def test_one_copy_statement_has_the_gap_too(moving: Moving) -> None:
    """COPY (query) TO, which ADBC uses, takes its snapshot before it locks the partitions."""
    query = (
        "SELECT seq, (SELECT archived_through FROM watermarks WHERE tenant_id = 'acme') AS watermark"
        " FROM events WHERE tenant_id = 'acme' ORDER BY seq"
    )

    def look() -> list[dict[str, int]]:
        with moving.store.database.arrow() as conn, conn.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetch_arrow_table().to_pylist()

    rows = moving.drop_under(look, "COPY%")
    assert [row["seq"] for row in rows] == ALL[WINDOW_EVENTS:]
    assert {row["watermark"] for row in rows} == {0}


def test_one_select_statement_has_not(moving: Moving) -> None:
    """A SELECT takes its snapshot after planning has locked the partitions: watermark and rows agree."""
    query = (
        "SELECT seq, (SELECT archived_through FROM watermarks WHERE tenant_id = 'acme')"
        " FROM events WHERE tenant_id = 'acme' ORDER BY seq"
    )

    def look() -> list[tuple[int, int]]:
        with moving.store.database.connection() as conn:
            return conn.execute(query).fetchall()

    rows = moving.drop_under(look, "SELECT seq%")
    assert [seq for seq, _ in rows] == ALL[WINDOW_EVENTS:]
    assert {watermark for _, watermark in rows} == {WINDOW_EVENTS}


@reads
def test_reader_queued_behind_the_drop(
    moving: Moving, read: Callable[[Store], list[int]], expected: list[int]
) -> None:
    """The real thing, nothing wrapped: the reader's statement waits with its old snapshot for the drop."""
    assert moving.drop_under(lambda: read(moving.store), "COPY%") == expected


# --- expected versions --------------------------------------------------------------------------------


def _append(store: Store, expected_version: int) -> object:
    request = AppendRequest([event(1, event_id=None, expected_version=expected_version)])
    return store.appender.append("acme", [request])[0]


@pytest.mark.parametrize("expected_version", [0, WINDOW_EVENTS])
def test_versions_are_right_under_the_drop(moving: Moving, expected_version: int) -> None:
    outcome = moving.drop_under(lambda: _append(moving.store, expected_version), "SELECT u.entity_type%")
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
        if moving.store.tiers.state("acme").archived_through == 0:
            moving.cut_over()
            moving.drop()
        return versions(*args)

    monkeypatch.setattr(append_module, "_versions", after_the_drop)
    monkeypatch.setattr(log_module, "_LOCK", begin)
    outcome = _append(moving.store, 0)
    if isolation == "READ COMMITTED":
        assert isinstance(outcome, VersionConflictError)
        assert outcome.conflicts[0].actual == WINDOW_EVENTS
    else:
        assert isinstance(outcome, AppendResult), "the gap is gone: this mutation no longer proves anything"


# --- a drop that readers hold up ----------------------------------------------------------------------


@contextmanager
def _long_reader(moving: Moving) -> Iterator[None]:
    with moving.connect(autocommit=False) as conn:
        conn.execute("SELECT count(*) FROM events WHERE tenant_id = 'acme'")
        yield


def _leaf_exists(moving: Moving) -> bool:
    with moving.connect() as conn:
        row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [f"hot.{moving.record.leaf}"]).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_held_up_drop_steps_back_and_succeeds_later(moving: Moving, archive_dir: Any) -> None:
    moving.cut_over()
    with _long_reader(moving):
        started = time.monotonic()
        with pytest.raises(BusyError):
            moving.drop()
        # Ten times the lock time-out is for a slow machine, not for the drop.
        assert time.monotonic() - started < 10 * DROP_LOCK_TIMEOUT_MS / 1000
        assert _leaf_exists(moving)
        assert _stream(moving.store, EventFilter(), Order.ASC) == ALL
    moving.drop()
    assert not _leaf_exists(moving)
    assert _stream(moving.store, EventFilter(), Order.ASC) == ALL
    assert not check_store(moving.store.database.url, archive_dir).violations


def test_a_run_leaves_a_held_up_drop_to_the_next(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "_DROP_PAUSES_S", (0.0,))
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


def _append_one(store: Store) -> None:
    outcome = store.appender.append("acme", [AppendRequest([event(99, event_id=None)])])[0]
    assert isinstance(outcome, AppendResult)


def test_appends_do_not_wait_for_a_held_up_drop(moving: Moving) -> None:
    _append_one(moving.store)  # makes the leaf
    _append_one(moving.store)  # and now the connection knows its constraint
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
            executor.submit(_append_one, moving.store).result(DEADLINE_S)
            assert not dropped.is_set()
        drop.result(DEADLINE_S)


def test_a_first_append_waits_for_one_drop_attempt_at_most(moving: Moving) -> None:
    """A connection that has not written into a leaf yet derives its constraint from its parents, and for
    that it locks them: it queues behind a drop. The drop's lock time-out lets it through."""
    moving.cut_over()
    with ThreadPoolExecutor(2) as executor, _long_reader(moving):
        drop = executor.submit(moving.drop)
        moving.until_waiting("%DROP TABLE%")
        executor.submit(_append_one, moving.store).result(DEADLINE_S)
        assert isinstance(drop.exception(DEADLINE_S), BusyError)
