"""Limits per caller: the rate of requests, bodies, feeds, and bytes of the archive in a day."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import sqlalchemy as sa

from eventstore.access.limits import CallerLimits
from eventstore.access.usage import ArchiveUsage, CallerMeter
from eventstore.app import Store
from eventstore.catalog.windows import list_segments
from eventstore.clock import FixedClock, parse_time_us
from eventstore.db.engine import Database
from eventstore.db.tables_access import usage
from eventstore.errors import BusyError, InputError, RateLimitedError
from eventstore.governance.keys import create_key, rotate_key
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.model.access import Principal, Role
from eventstore.model.limits import Limits
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment, SegmentRange
from eventstore.model.window import Window
from eventstore.query.coverage import Coverage, opened_bytes
from tests.integration.callers import Callers, calling
from tests.unit.helpers import DAY_US, START_US, append, fill_days, make_tenant, new_event, run_retention

WAIT_S = 30.0
DEFAULTS = Limits(requests_per_s=5, body_bytes_max=2000, feeds_max=2, archive_bytes_per_day=10**6)
EVENT = {"entity_type": "order", "entity_id": "1", "action": "changed", "actor": "ann", "source": "web"}
EVENTS = "/v1/tenants/acme/events"


class Ticks:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def in_s(self) -> float:
        return self.now_ns / 10**9

    def pass_ms(self, ms: int) -> None:
        self.now_ns += ms * 10**6


def caller(name: str = "key:a", limits: Limits | None = Limits()) -> Principal:  # noqa: B008 - frozen
    return Principal(name, Role.WRITER, "acme", limits=limits)


def admitted(limits: CallerLimits, who: Principal, tries: int) -> int:
    count = 0
    for _ in range(tries):
        with suppress(RateLimitedError):
            limits.admit(who)
            count += 1
    return count


@pytest.fixture
def callers(store: Store) -> Iterator[Callers]:
    make_tenant(store)
    with calling(store) as found:
        yield found


@pytest.fixture
def archived(callers: Callers, clock: FixedClock) -> int:
    """Three archived days of five events, and one hot event; the size of the segments in bytes."""
    fill_days(callers.store, clock, "acme", 3)
    run_retention(callers.store, START_US + 3 * DAY_US)
    clock.move_to(START_US + 4 * DAY_US)
    append(callers.store, "acme", new_event())
    with callers.store.database.transaction() as conn:
        sizes = [s.size_bytes for s in list_segments(conn, "acme", seq_from=1, seq_to=15)]
    assert len(sizes) == 3
    return sum(sizes)


# --- the rate of requests -----------------------------------------------------------------------------


def test_a_caller_may_send_a_seconds_worth_at_once_and_then_its_rate() -> None:
    ticks = Ticks()
    limits = CallerLimits(DEFAULTS, monotonic_ns=ticks)
    assert admitted(limits, caller(), 20) == 5
    assert admitted(limits, caller("key:b"), 20) == 5  # another has its own
    ticks.pass_ms(200)
    assert admitted(limits, caller(), 20) == 1  # what was refused did not count
    ticks.pass_ms(3_600_000)
    assert admitted(limits, caller(), 20) == 5  # nothing is saved up
    total = 0
    for _ in range(100):
        ticks.pass_ms(100)
        total += admitted(limits, caller(), 3)
    assert 49 <= total <= 51  # ten seconds at five a second


def test_a_keys_own_limit_comes_before_the_default_and_the_machine_has_none() -> None:
    limits = CallerLimits(DEFAULTS, monotonic_ns=Ticks())
    assert admitted(limits, caller("key:c", Limits(requests_per_s=2)), 20) == 2
    assert admitted(limits, caller("key:d", Limits(feeds_max=1)), 20) == 5
    assert admitted(limits, caller("loopback", None), 100) == 100


def test_every_route_counts_together_and_so_does_the_shortcut_of_appends(callers: Callers) -> None:
    callers.app.state.limits = CallerLimits(callers.store.settings.default_limits, monotonic_ns=Ticks())
    writer = callers.as_role(Role.ADMINISTRATOR, "acme", Limits(requests_per_s=4))
    assert writer.post(EVENTS, json=EVENT).status_code == 201
    assert writer.get(EVENTS).status_code == 200
    assert writer.get("/v1/tenants/other/events").status_code == 404
    assert writer.post(EVENTS, json=EVENT).status_code == 201
    for refused in (writer.post(EVENTS, json=EVENT), writer.get(EVENTS), writer.get("/v1/nothing")):
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:eventstore:rate-limited"
    assert callers.as_role(Role.READER).get(EVENTS).status_code == 200
    assert callers.store.reader.last_seq("acme") == 2


@pytest.mark.parametrize(
    "document",
    [
        {"requests_per_s": 0},
        {"requests_per_s": True},
        {"feeds_max": -1},
        {"archive_bytes_per_day": 1.5},
        {"body_bytes_max": 2**31},
        {"requests": 5},
    ],
)
def test_limits_that_make_no_sense_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Limits.of_json(document)


def test_limits_are_stored_as_what_differs_from_the_defaults() -> None:
    own = Limits(feeds_max=7)
    assert own.as_json() == {"feeds_max": 7}
    assert Limits.of_json(own.as_json()) == own
    assert own.over(DEFAULTS).as_json() == {**DEFAULTS.as_json(), "feeds_max": 7}


# --- bodies and feeds ---------------------------------------------------------------------------------


def test_a_body_may_be_as_large_as_its_caller_may_send(callers: Callers) -> None:
    small = callers.as_role(Role.WRITER, "acme", Limits(body_bytes_max=300))
    event = {**EVENT, "metadata": {"text": "x" * 300}}
    refused = small.post(EVENTS, json=event)
    assert (refused.status_code, refused.json()["limit_bytes"]) == (413, 300)
    streamed = small.post(
        EVENTS, content=iter([b" " * 200] * 2), headers={"content-type": "application/json"}
    )
    assert (streamed.status_code, streamed.json()["limit_bytes"]) == (413, 300)
    assert small.post(EVENTS, json=EVENT).status_code == 201
    assert callers.as_role(Role.WRITER).post(EVENTS, json=event).status_code == 201


def test_feeds_at_the_same_time_are_counted_until_they_end() -> None:
    limits = CallerLimits(DEFAULTS)
    first, second = limits.feed(caller()), limits.feed(caller())
    with pytest.raises(RateLimitedError, match="2 feeds"):
        limits.feed(caller())
    limits.feed(caller("key:b")).leave()
    with first:
        pass
    first.leave()  # again: nothing happens
    third = limits.feed(caller())
    with pytest.raises(RateLimitedError):
        limits.feed(caller())
    # An answer that never came to its `with` is given up by whoever held it.
    del second, third
    gc.collect()
    again = [limits.feed(caller()), limits.feed(caller())]
    assert len(again) == 2
    assert len([limits.feed(caller("loopback", None)) for _ in range(50)]) == 50


# --- bytes of the archive -----------------------------------------------------------------------------


def test_coverage_says_how_much_of_the_archive_was_opened(callers: Callers, archived: int) -> None:
    reader = callers.as_role(Role.READER)

    def opened(**params: object) -> int:
        found: int = reader.get(EVENTS, params=params).json()["covered"]["archive_bytes"]  # type: ignore[arg-type]
        return found

    assert opened() == archived
    assert opened(seq_from=16) == 0
    one = opened(seq_from=2, seq_to=3)
    assert 0 < one < archived
    # What the catalog rules out is not opened: by its time, or by its filter.
    assert opened(recorded_from="2024-03-02", recorded_to="2024-03-03") < archived
    assert opened(entity_id="nobody") == 0


def test_of_a_long_segment_the_row_groups_that_were_looked_at_count() -> None:
    r = SegmentRange("acme", Window(0, DAY_US), 0, 1001, 201_000, b"", b"")
    segment = Segment(r, "k", 2_000_000, b"", 0, 0)
    group = 65_536 * 10
    assert opened_bytes(segment, 1, 10**9) == 2_000_000
    assert opened_bytes(segment, 1001, 1001) == group
    assert opened_bytes(segment, 1001 + 65_535, 1001 + 65_536) == 2 * group
    assert opened_bytes(segment, 200_999, 201_000) == 2_000_000 - 3 * group


def test_a_used_up_budget_refuses_the_archive_until_midnight_in_every_process(
    callers: Callers, archived: int
) -> None:
    subject, text = callers.key(Role.READER, limits=Limits(archive_bytes_per_day=archived + 1))
    reader = callers.client(text)
    assert reader.get(EVENTS).status_code == 200
    assert reader.get(EVENTS).status_code == 200  # one byte was left
    refused = reader.get(EVENTS)
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:eventstore:rate-limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert reader.get(EVENTS, params={"seq_from": 16}).json()["events"][0]["seq"] == 16
    assert callers.as_role(Role.READER).get(EVENTS).status_code == 200
    # Another process knows of it as soon as it was written, and that is each second, or at the end.
    callers.app.state.usage.close()
    with callers.store.database.transaction() as conn:
        stored = conn.execute(sa.select(usage.c.archive_bytes).where(usage.c.subject == subject)).scalar_one()
    assert stored == 2 * archived
    with pytest.raises(RateLimitedError):
        CallerMeter(ArchiveUsage(callers.store.database), subject, archived + 1).check()


def test_what_a_proof_reads_of_the_archive_counts(callers: Callers, archived: int) -> None:
    store, path = callers.store, "/v1/tenants/acme"
    make_checkpoint(store.database, store.tiers, store.key, "acme")
    # Both proofs read the hashes of all the segments: the first of them also those before the event, which
    # is hot itself; the other one the tree of the smaller size.
    for asked in (f"{path}/events/16/proof", f"{path}/consistency?first=2&second=16"):
        subject, text = callers.key(Role.READER, limits=Limits(archive_bytes_per_day=archived + 1))
        reader = callers.client(text)
        assert reader.get(asked).status_code == 200
        assert archived < callers.app.state.usage.used(subject) <= 2 * archived
        refused = reader.get(asked)
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:eventstore:rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert reader.get(f"{path}/checkpoint").status_code == 200


def test_processes_add_up_and_a_new_day_begins_anew(database: Database) -> None:
    clock, ticks = FixedClock(parse_time_us("2026-03-01T23:59:50Z")), Ticks()
    one, other = (ArchiveUsage(database, clock=clock, monotonic_s=ticks.in_s) for _ in range(2))
    meter = CallerMeter(one, "key:a", 100)
    for process in (one, other):
        assert process.used("key:a") == 0
        process.add("key:a", 60)
        process.add("key:b", 1)
    one.write()
    assert (one.used("key:a"), other.used("key:a")) == (60, 60)
    meter.check()
    other.write()
    assert other.used("key:a") == 120
    ticks.pass_ms(1000)
    assert one.used("key:a") == 120  # looked up again, after a second
    with pytest.raises(RateLimitedError) as caught:
        meter.check()
    assert caught.value.retry_after_s == 10
    clock.move_to(parse_time_us("2026-03-02T00:00:00Z"))
    meter.check()
    meter.add(7)
    one.write()
    with database.transaction() as conn:
        rows = conn.execute(sa.select(usage.c.archive_bytes).where(usage.c.subject == "key:a")).scalars()
        assert sorted(rows) == [7, 120]
    clock.move_to(parse_time_us("2026-09-01T00:00:00Z"))
    one.add("key:b", 5)
    one.write()  # what is long past goes
    with database.transaction() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(usage)).scalar_one() == 1


def test_a_key_goes_on_with_the_budget_of_those_it_replaces(database: Database) -> None:
    counting, now_us = ArchiveUsage(database), database.now_us()
    first, _ = create_key(database, role=Role.READER, tenant_id=None, by="test", now_us=now_us)
    line = [first.key_id]
    for _ in range(2):
        new, *_ = rotate_key(database, line[-1], by="test", now_us=now_us, overlap_us=DAY_US)
        line.append(new.key_id)
    for key_id in line:
        assert counting.used(f"key:{key_id}") == 100 * line.index(key_id)
        counting.add(f"key:{key_id}", 100)
        counting.write()
    assert ArchiveUsage(database).used(f"key:{line[1]}") == 300
    assert counting.used("oidc:ann") == counting.used("key:unknown") == 0


def test_what_could_not_be_written_is_written_with_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = ArchiveUsage(database)
    counted.used("key:a")
    counted.add("key:a", 60)

    def away() -> None:
        raise BusyError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", away)
        counted.write()
        assert counted.used("key:a") == 60  # and it counts meanwhile
    counted.add("key:a", 1)
    counted.write()
    assert ArchiveUsage(database).used("key:a") == 61


def test_a_stream_stops_where_the_budget_ends_and_what_it_scanned_is_counted(
    callers: Callers, archived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.query.walk._ARCHIVE_EVENTS", 1)  # a segment a step
    counted = ArchiveUsage(callers.store.database)
    reader = callers.store.reader.metered(CallerMeter(counted, "key:a", 1))
    coverage = Coverage()
    tables = reader.stream("acme", EventFilter(), coverage=coverage)
    assert next(tables).num_rows == 5
    with pytest.raises(RateLimitedError):
        next(tables)
    assert 0 < counted.used("key:a") == coverage.archive_bytes < archived


class Watched(ArchiveUsage):
    """Lets a read begin only when it is told to, and says when it was counted."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.reading, self.go, self.counted = threading.Event(), threading.Event(), threading.Event()

    def used(self, subject: str) -> int:
        self.reading.set()
        assert self.go.wait(WAIT_S)
        return super().used(subject)

    def add(self, subject: str, archive_bytes: int) -> None:
        super().add(subject, archive_bytes)
        self.counted.set()


def test_a_read_whose_client_went_away_is_counted(callers: Callers, archived: int) -> None:
    watched = Watched(callers.store.database)
    callers.app.state.usage.close()
    callers.app.state.usage = watched
    watched.start()
    subject, text = callers.key(Role.READER)
    with socket.create_connection(("127.0.0.1", callers.port), timeout=WAIT_S) as conn:
        head = f"GET {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {text}\r\n\r\n"
        conn.sendall(head.encode())
        assert watched.reading.wait(WAIT_S)
    watched.go.set()
    assert watched.counted.wait(WAIT_S)
    assert watched.used(subject) == archived
