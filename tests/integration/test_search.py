"""Searches and histograms: the same events as a reader gives, each once, however often they are interrupted
and whatever a compaction does meanwhile."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.query.histogram import (
    BARS_MAX,
    Histogram,
    count_by_time,
    edges_between,
    extent,
    recorded_by,
)
from eventstore.query.reader import LogReader
from eventstore.query.search import Origin, Searched, places, search, windows_between
from eventstore.query.tiers import Tiers
from tests.conftest import create_database
from tests.integration.tiering import PER_DAY, Lab, Tiered
from tests.unit.helpers import DAY_US, HOUR_US, START_US, new_event

_WORDS = ("draft", "Draft signed", "paid", "Überweisung", 'say "paid"')


@pytest.fixture(scope="module")
def lab(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One database for this file; each test has a tenant of its own."""
    database = Database(
        create_database(server_url, f"search_{secrets.token_hex(4)}", template=template_database)
    )
    database.open()
    lab = Lab(database, tmp_path_factory.mktemp("search"))
    yield lab
    lab.targets.close()
    database.close()


@pytest.fixture(autouse=True)
def _calm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("eventstore.query.search._LAST_SEQS", 0)
    yield
    for watched in lab.watched.values():
        watched.down, watched.before, watched.asked = False, None, []


def _busy(lab: Lab, days: int = 8) -> Tiered:
    """A tenant whose days have events at many hours, with values."""
    tenant = lab.tenant(0)
    tenant.days = days
    tenant.per_day = 12
    chance = random.Random(5)
    for day in range(days):
        for hour in range(0, 24, 8):
            at_us = START_US + day * DAY_US + hour * HOUR_US + chance.randrange(7 * HOUR_US)
            events = [
                new_event(
                    str(chance.randrange(5)),
                    actor=chance.choice(["ann", "bo"]),
                    action=chance.choice(["made", "changed"]),
                    field=chance.choice(["*", "state"]),
                    old_value=chance.choice(_WORDS),
                    new_value=chance.choice([*_WORDS, None]),
                )
                for _ in range(4)
            ]
            tenant.append(at_us, *events)
    return tenant


def _filters(count: int) -> list[EventFilter]:
    chance = random.Random(7)
    found = [EventFilter()]
    while len(found) < count:
        choices = {
            "entity_id": str(chance.randrange(6)),
            "actor": chance.choice(["ann", "bo", "nobody"]),
            "action": "made",
            "field": "state",
            "text": chance.choice(["draft", "PAID", "über", '"paid"', "%", "d"]),
            "recorded_from_us": START_US + chance.randrange(8 * 24) * HOUR_US,
            "recorded_to_us": START_US + chance.randrange(8 * 24) * HOUR_US,
            "seq_from": chance.randrange(1, 96),
            "seq_to": chance.randrange(1, 96),
        }
        names = chance.sample(sorted(choices), chance.randrange(1, 4))
        found.append(EventFilter(**{name: choices[name] for name in names}))  # type: ignore[arg-type]
    return found


def _expected(reader: LogReader, tenant: str, wanted: EventFilter, edges: Sequence[int]) -> list[int]:
    """The counts, from the events themselves."""
    events = reader.page(tenant, wanted, limit=10_000).events
    times = events.column("recorded_at").cast("int64").to_pylist()
    return [sum(start <= at < end for at in times) for start, end in pairwise(edges)]


def _counted(
    tiers: Tiers,
    tenant: str,
    wanted: EventFilter,
    edges: Sequence[int],
    between: Callable[[Histogram], None] = lambda _: None,
) -> Histogram:
    """A histogram, counted in as many parts as it can be."""
    found = count_by_time(tiers, tenant, wanted, edges, budget_s=0)
    while found.next_after is not None:
        between(found)
        found = count_by_time(
            tiers, tenant, wanted, edges, after=found.next_after, counts=found.counts, budget_s=0
        )
    return found


def _pages(reader: LogReader, tenant: str, wanted: EventFilter, *, limit: int = 3) -> Iterator[Searched]:
    """A search, in as many parts as it can be."""
    after: int | None = None
    while True:
        found = search(reader, tenant, wanted, after=after, limit=limit, budget_s=0)
        yield found
        if found.next_after is None:
            return
        assert after is None or found.next_after < after
        after = found.next_after


def _seqs(found: Searched) -> list[int]:
    seqs: list[int] = found.events.column("seq").to_pylist()
    return seqs


def test_counts_are_those_of_the_events(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 6)  # many steps
    monkeypatch.setattr("eventstore.query.walk._BRISK_SPAN", 7)
    tenant = _busy(lab)
    for day in range(5):
        tenant.archive(day, "near" if day % 2 else "archive")
    reader, tiers = lab.reader()
    chance = random.Random(11)
    for wanted in _filters(16):
        ends = sorted(chance.sample(range(-10, 8 * 24 + 10), 2))
        edges = edges_between(
            START_US + ends[0] * HOUR_US, START_US + ends[1] * HOUR_US, chance.choice([3, 60])
        )
        found = _counted(tiers, tenant.name, wanted, edges)
        assert found.counts == _expected(reader, tenant.name, wanted, edges), wanted
        assert found.counts == count_by_time(tiers, tenant.name, wanted, edges).counts


def test_time_alone_is_counted_from_the_catalog(lab: Lab) -> None:
    tenant = _busy(lab)
    for day in range(6):
        tenant.archive(day)
    _, tiers = lab.reader("by-catalog")
    lab.watched["archive"].down = True  # whatever is opened fails
    edges = edges_between(START_US, START_US + 8 * DAY_US, 10)
    found = count_by_time(tiers, tenant.name, EventFilter(), edges)
    assert found.counts == [12] * 8
    assert (found.coverage.archive_bytes, found.unreadable) == (0, set())


def test_a_window_that_lies_across_spans_is_read(lab: Lab) -> None:
    tenant = _busy(lab, days=2)
    tenant.archive(0)
    reader, tiers = lab.reader()
    edges = edges_between(START_US, START_US + DAY_US, 60)
    found = count_by_time(tiers, tenant.name, EventFilter(), edges)
    assert found.counts == _expected(reader, tenant.name, EventFilter(), edges)
    assert found.coverage.archive_bytes > 0


def test_a_count_that_is_interrupted_says_what_is_sure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 6)
    monkeypatch.setattr("eventstore.query.walk._BRISK_SPAN", 7)
    tenant = _busy(lab)
    for day in range(5):
        tenant.archive(day)
    reader, tiers = lab.reader()
    edges = edges_between(START_US, START_US + 8 * DAY_US, 60)
    wanted = EventFilter(text="draft")
    expected = _expected(reader, tenant.name, wanted, edges)
    unsure = []

    def judge(found: Histogram) -> None:
        sure = [n for n in range(len(edges) - 1) if found.is_counted(n)]
        unsure.append(len(edges) - 1 - len(sure))
        assert [found.counts[n] for n in sure] == [expected[n] for n in sure]
        assert all(count <= whole for count, whole in zip(found.counts, expected, strict=True))

    assert _counted(tiers, tenant.name, wanted, edges, judge).counts == expected
    assert len(unsure) > 4
    assert unsure == sorted(unsure, reverse=True)
    assert 0 < unsure[-1] < unsure[0]


def test_slow_steps_stay_small_for_one_entity_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops by the clock is kept by no step that has grown, however selective conditions are."""
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 12)
    monkeypatch.setattr("eventstore.query.walk._STEP_EVENTS_MIN", 12)
    monkeypatch.setattr("eventstore.query.walk._BRISK_S", (-1.0, -1.0))  # every step takes long
    tenant = _busy(lab)
    for day in range(7):
        tenant.archive(day, "archive")
    reader, _ = lab.reader()
    steps: list[int] = []
    archived = Tiers.archived

    def counted(self: Tiers, segments: Sequence[Segment], *given: Any, **named: Any) -> pa.Table:
        steps.append(len(segments))
        return archived(self, segments, *given, **named)

    monkeypatch.setattr(Tiers, "archived", counted)
    found = search(reader, tenant.name, EventFilter(entity_id="1"), limit=100, budget_s=60)
    assert found.next_after is None
    assert len(steps) > 3
    assert max(steps) <= 2  # segments


def test_nothing_is_lost_or_doubled_while_windows_move(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days are archived, and moved, between and within the parts of a search and of a count."""
    state = Tiers.state
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 6)
    monkeypatch.setattr("eventstore.query.walk._BRISK_SPAN", 7)
    for wanted in (
        EventFilter(),
        EventFilter(text="d"),
        EventFilter(actor="ann"),
        EventFilter(entity_id="1"),
    ):
        tenant = _busy(lab)
        edges = edges_between(START_US, START_US + 8 * DAY_US, 60)
        reader, tiers = lab.reader()
        events = reader.page(tenant.name, wanted, limit=1000).events
        expected = events.column("seq").to_pylist()[::-1]
        times = events.column("recorded_at").cast("int64").to_pylist()
        days = iter(range(8))

        def moving(self: Tiers, name: str, tenant: Tiered = tenant, days: Iterator[int] = days) -> object:
            """Each look at the state may find a window cut over and dropped since the last."""
            if name == tenant.name and (day := next(days, None)) is not None:
                tenant.archive(day)
                if day:
                    tenant.move(day - 1, "near")
            return state(self, name)

        with monkeypatch.context() as patched:
            patched.setattr(Tiers, "state", moving)
            found = [seq for page in _pages(reader, tenant.name, wanted) for seq in _seqs(page)]
        assert next(days, None) is None  # all of it happened meanwhile
        assert found == expected
        tenant = _busy(lab)
        days = iter(range(8))
        with monkeypatch.context() as patched:
            patched.setattr(Tiers, "state", lambda s, n, t=tenant, d=days: moving(s, n, t, d))
            counted = _counted(tiers, tenant.name, wanted, edges)
        assert counted.counts == [sum(a <= at < b for at in times) for a, b in pairwise(edges)]


def test_what_goes_between_a_look_and_its_count_is_counted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are archived and dropped after the watermark was read, before the hot events are counted."""
    tenant = lab.tenant(2)
    _, tiers = lab.reader()
    tally, days = Tiers.tally_hot, iter([0, 1])

    def late(self: Tiers, *args: Any) -> dict[int, int]:
        for day in days:
            tenant.archive(day)
        return tally(self, *args)

    monkeypatch.setattr(Tiers, "tally_hot", late)
    counted = count_by_time(tiers, tenant.name, EventFilter(), [START_US, START_US + 2 * DAY_US])
    assert next(days, None) is None
    assert counted.counts == [2 * PER_DAY]


def test_parts_cover_the_whole_range_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 6)
    monkeypatch.setattr("eventstore.query.walk._BRISK_SPAN", 7)
    tenant = _busy(lab)
    for day in range(5):
        tenant.archive(day)
    reader, tiers = lab.reader()
    for wanted in _filters(8):
        expected = reader.page(tenant.name, wanted, limit=1000).events.column("seq").to_pylist()[::-1]
        pages = list(_pages(reader, tenant.name, wanted))
        assert [seq for page in pages for seq in _seqs(page)] == expected
        looked = [seq for page in pages if page.top for seq in range(page.top, (page.low or 0) - 1, -1)]
        assert looked == list(range(min(wanted.seq_to or 96, 96), (wanted.seq_from or 1) - 1, -1)), wanted
        # What was said to be searched was searched: what follows was recorded no later.
        for page in pages[:-1]:
            assert page.next_after is not None
            seqs = [seq for seq in expected if seq < page.next_after]
            if seqs:
                at_us = recorded_by(tiers, tenant.name, page.next_after - 1)
                event = reader.event(tenant.name, seq=seqs[0]).events
                assert event.column("recorded_at").cast("int64")[0].as_py() <= at_us


def test_each_event_says_where_it_was_read(lab: Lab) -> None:
    tenant = lab.tenant(4)
    tenant.archive(0, "near")
    tenant.archive(1)
    reader, tiers = lab.reader()
    found = search(reader, tenant.name, EventFilter(), limit=100, budget_s=30)
    origins = places(lab.database, tiers, tenant.name, found)
    day_of = [(seq - 1) // PER_DAY for seq in _seqs(found)]
    expected = [
        Origin({0: "near", 1: "archive"}.get(day), (START_US + day * DAY_US, START_US + (day + 1) * DAY_US))
        for day in day_of
    ]
    assert origins == expected
    assert windows_between(tiers, tenant.name, 1, 20) == 2
    assert windows_between(tiers, tenant.name, PER_DAY + 1, 20) == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_found(lab: Lab) -> None:
    tenant = lab.tenant(5)
    for day in range(3):
        tenant.archive(day, "near" if day == 1 else "archive")
    reader, tiers = lab.reader("away")
    lab.watched["near"].down = True
    wanted = EventFilter(actor="ann")
    found = search(reader, tenant.name, wanted, limit=100, budget_s=30)
    assert sorted(_seqs(found)) == [seq for day in (0, 2, 3, 4) for seq in tenant.day(day)]
    assert {missing.target for missing in found.coverage.unreadable} == {"near"}
    edges = edges_between(START_US, START_US + 5 * DAY_US, 10)
    counted = count_by_time(tiers, tenant.name, wanted, edges)
    assert counted.counts == [PER_DAY, 0, PER_DAY, PER_DAY, PER_DAY]
    assert counted.unreadable == {1}


def test_what_was_destroyed_is_named(lab: Lab) -> None:
    tenant = lab.tenant(4)
    for day in range(3):
        tenant.archive(day)
    number = tenant.expire(0)
    reader, tiers = lab.reader()
    found = search(reader, tenant.name, EventFilter(), limit=100, budget_s=30)
    assert found.coverage.expired == [(1, PER_DAY, number)]
    assert (found.low, found.next_after) == (1, None)
    ends = extent(tiers, tenant.name, EventFilter())
    assert ends == (START_US, START_US + 3 * DAY_US + 12 * HOUR_US + 1)
    edges = edges_between(START_US, START_US + 4 * DAY_US, 10)
    edges = [edge for edge in edges if edge % DAY_US == 0]
    counted = count_by_time(tiers, tenant.name, EventFilter(), edges)
    assert counted.counts == [0, PER_DAY, PER_DAY, PER_DAY]
    assert counted.expired == {0}
    gone = lab.tenant(1)
    gone.archive(0)
    gone.offboard()
    assert sum(count_by_time(tiers, gone.name, EventFilter(), [START_US, START_US + DAY_US]).counts) == 0
    assert extent(tiers, gone.name, EventFilter()) is not None


def test_text_is_found_in_ones_own_log_alone(lab: Lab) -> None:
    mine, other = lab.tenant(2), lab.tenant(2)
    for tenant, owner in ((mine, "mine"), (other, "theirs")):
        tenant.append(START_US + 3 * DAY_US, new_event("x", new_value={"secret": f"needle of {owner}"}))
    mine.archive(0)
    other.archive(0)
    reader, _ = lab.reader()
    hostile = "needle' OR tenant_id <> '' OR '1' = '1"
    assert _seqs(search(reader, mine.name, EventFilter(text="needle of theirs"), limit=9, budget_s=30)) == []
    assert _seqs(search(reader, mine.name, EventFilter(text=hostile), limit=9, budget_s=30)) == []
    (seq,) = _seqs(search(reader, mine.name, EventFilter(text="NEEDLE of"), limit=9, budget_s=30))
    assert seq == 2 * PER_DAY + 1


@pytest.mark.parametrize("text", ["needle", "é", '"'])
def test_text_is_found_in_both_tiers(lab: Lab, text: str) -> None:
    tenant = lab.tenant(2)
    for day in (2, 3):
        values = [{"old_value": f"a{text}"}, {"new_value": {"k": [f"{text}b"]}}, {"metadata": {"k": text}}]
        tenant.append(START_US + day * DAY_US, *(new_event("x", **value) for value in values))
    for day in range(3):
        with_values = tenant.record(day)
        tenant.per_day = with_values.event_count or PER_DAY if day < 2 else 3
        tenant.archive(day)
    reader, _ = lab.reader()
    found = search(reader, tenant.name, EventFilter(text=text, action="changed"), limit=99, budget_s=30)
    last = 2 * PER_DAY + 6
    assert _seqs(found) == [last - 1, last - 2, last - 4, last - 5]


def test_edges_are_round_times_and_few() -> None:
    chance = random.Random(3)
    first, last = to_us(from_us(-62_135_596_800_000_000)), 253_402_300_799_999_999
    for _ in range(3000):
        start = chance.randrange(first, last)
        end = min(last, start + chance.randrange(1, 10 ** chance.randrange(1, 18)))
        if start == end:
            continue
        edges = edges_between(start, end)
        assert (edges[0], edges[-1]) == (start, end)
        assert edges == sorted(set(edges))
        assert 1 <= len(edges) - 1 <= BARS_MAX
        assert all(edge % 1_000_000 == 0 for edge in edges[1:-1])
    assert len(edges_between(first, last)) > 5
    days = edges_between(START_US, START_US + 30 * DAY_US)
    assert days == [START_US + day * DAY_US for day in range(31)] or len(days) > 31
