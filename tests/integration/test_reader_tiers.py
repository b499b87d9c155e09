"""Reading a log that lies in Postgres, in several targets, and in part nowhere any more; and while its
windows move or are destroyed under the reader."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.archive.cache import Fetch, SegmentCache
from eventstore.db.engine import Database
from eventstore.errors import (
    ArchiveDamageError,
    CoverageError,
    EventNotFoundError,
    TargetUnavailableError,
)
from eventstore.governance.certificates import check_certificates, trusted_keys
from eventstore.integrity.verify import CertificateCheck, HashAt, verify_log
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment
from eventstore.query import tiers as tiers_module
from eventstore.query import walk as walk_module
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.stats import log_stats
from eventstore.query.tiers import ExpiredRange, Tiers, span
from tests.conftest import create_database
from tests.integration.tiering import PER_DAY, Lab, Tiered
from tests.property.strategies import examples
from tests.unit.helpers import DAY_US, START_US, execute, new_event

orders = pytest.mark.parametrize("order", Order)


@pytest.fixture(scope="module")
def lab(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One database for this file; each test has a tenant of its own."""
    database = Database(
        create_database(server_url, f"tiers_{secrets.token_hex(4)}", template=template_database)
    )
    database.open()
    lab = Lab(database, tmp_path_factory.mktemp("tiers"))
    yield lab
    lab.targets.close()
    database.close()


@pytest.fixture(autouse=True)
def _calm(lab: Lab) -> Iterator[None]:
    yield
    for watched in lab.watched.values():
        watched.down, watched.before, watched.asked = False, None, []


@pytest.fixture
def cache(tmp_path: Path) -> str:
    """A cache folder of the test's own."""
    return str(tmp_path)


# Day 0 local, 1 near, 2 destroyed, 3 deep, 4 destroyed, 5 near; 6 and 7 hot.
PLACES = ["archive", "near", None, "deep", None, "near"]


@pytest.fixture(scope="module")
def log(lab: Lab) -> Tiered:
    """For tests that change nothing of it."""
    return laid_out(lab, PLACES, 2)


@pytest.fixture
def own(lab: Lab) -> Tiered:
    return laid_out(lab, PLACES, 2)


def laid_out(lab: Lab, places: list[str | None], hot_days: int) -> Tiered:
    """A log whose first days lie in these targets (None: destroyed)."""
    log = lab.tenant(len(places) + hot_days)
    for day, place in enumerate(places):
        log.archive(day, place or "near")
    for day, place in enumerate(places):
        if place is None:
            log.expire(day)
    return log


def expected_seqs(log: Tiered, gone: set[int]) -> list[int]:
    return [seq for day in range(log.days) if day not in gone for seq in log.day(day)]


def stream(reader: LogReader, log: Tiered, order: Order = Order.ASC, **wanted: Any) -> list[int]:
    tables = reader.stream(log.name, EventFilter(**wanted), order=order)
    return [seq for table in tables for seq in table["seq"].to_pylist()]


def pages(reader: LogReader, log: Tiered, order: Order, limit: int, **wanted: Any) -> list[int]:
    found: list[int] = []
    after = None
    while True:
        page = reader.page(log.name, EventFilter(**wanted), order=order, after=after, limit=limit)
        found += page.events["seq"].to_pylist()
        after = page.next_after
        if after is None:
            return found
        assert page.events.num_rows == limit


def in_order(seqs: list[int], order: Order) -> list[int]:
    return sorted(seqs, reverse=order is Order.DESC)


def governed(lab: Lab) -> CertificateCheck:
    """The check of certificates as the store puts it together."""

    def check(tenant_id: str, hash_at: HashAt) -> list[str]:
        with lab.database.transaction() as conn:
            return check_certificates(conn, tenant_id, trusted_keys(conn), hash_at=hash_at)

    return check


# --- values -----------------------------------------------------------------------------------------


@orders
@pytest.mark.parametrize("limit", [1, 3, 5, 9, 29, 30, 31])
def test_pages_join_over_every_place_and_over_what_is_gone(
    lab: Lab, log: Tiered, cache: str, order: Order, limit: int
) -> None:
    reader, _ = lab.reader(cache)
    expected = in_order(expected_seqs(log, {2, 4}), order)
    assert pages(reader, log, order, limit) == expected
    assert stream(reader, log, order) == expected
    assert pages(reader, log, order, limit, entity_id="1") == [
        seq for seq in expected if (seq - 1) % PER_DAY in (1, 4)
    ]
    assert pages(reader, log, order, limit, actor="ann", seq_from=8, seq_to=33) == [
        seq for seq in expected if 8 <= seq <= 33
    ]


def test_an_event_is_equal_wherever_it_lies(lab: Lab, cache: str) -> None:
    log = lab.tenant(1)
    reader, _ = lab.reader(cache)
    hot = reader.page(log.name, EventFilter(), limit=100).events
    log.archive(0)
    for target in ("archive", "near", "deep"):
        if target != "archive":
            log.move(0, target)
        assert reader.page(log.name, EventFilter(), limit=100).events == hot


@orders
def test_coverage_tells_what_was_destroyed_from_what_never_was(
    lab: Lab, log: Tiered, cache: str, order: Order
) -> None:
    reader, _ = lab.reader(cache)
    for wanted in ({}, {"entity_id": "1"}, {"entity_id": "nobody"}, {"actor": "nobody"}):
        coverage = Coverage()
        list(reader.stream(log.name, EventFilter(**wanted), order=order, coverage=coverage))
        assert sorted(coverage.hot) == [(31, 40)]
        assert sorted(coverage.archive) == [(1, 10), (16, 20), (26, 30)]
        assert sorted(coverage.expired) == [(11, 15, 1), (21, 25, 2)]
        assert len(coverage.windows) == 4
        assert coverage.as_json()["expired"] == [
            {"first_seq": 11, "last_seq": 15, "certificate": 1},
            {"first_seq": 21, "last_seq": 25, "certificate": 2},
        ]
    coverage = Coverage()
    list(reader.stream(log.name, EventFilter(seq_from=13, seq_to=17), order=order, coverage=coverage))
    assert (coverage.archive, coverage.expired) == ([(16, 17)], [(13, 15, 1)])
    page = reader.page(log.name, EventFilter(seq_from=22, seq_to=24), order=order, limit=5)
    assert page.events.num_rows == 0
    assert (page.coverage.hot, page.coverage.archive, page.coverage.expired) == ([], [], [(22, 24, 2)])


def test_a_single_event_that_was_destroyed(lab: Lab, log: Tiered, cache: str) -> None:
    reader, _ = lab.reader(cache)
    for seq in (10, 16, 31):
        assert reader.event(log.name, seq=seq).events["seq"].to_pylist() == [seq]
    for seq, number in ((11, 1), (15, 1), (23, 2)):
        with pytest.raises(EventNotFoundError, match=f"seq {seq} .*destroyed under certificate {number}"):
            reader.event(log.name, seq=seq)
    with pytest.raises(EventNotFoundError, match="has no event with seq 41"):
        reader.event(log.name, seq=41)
    with pytest.raises(EventNotFoundError, match=r"no event with event_id .*under certificate 1, 2"):
        reader.event(log.name, event_id=bytes(16))


def test_versions_are_what_the_log_still_shows(lab: Lab, log: Tiered, cache: str) -> None:
    reader, _ = lab.reader(cache)
    entities = [("order", "1"), ("order", "day-1"), ("order", "day-2"), ("order", "day-5")]
    versions = reader.archived_versions(log.name, entities, 30)
    assert [versions[entity] for entity in entities] == [30, 6, 0, 26]


def test_an_offboarded_log(lab: Lab, own: Tiered, cache: str) -> None:
    """What had expired before stays under its own certificate."""
    reader, tiers = lab.reader(cache)
    assert len(stream(reader, own)) == 30
    assert own.offboard() == 3
    for order in Order:
        page = reader.page(own.name, EventFilter(), order=order, limit=100)
        assert (page.events.num_rows, page.coverage.archive, page.coverage.hot) == (0, [], [])
        assert sorted(page.coverage.expired) == [
            (1, 10, 3),
            (11, 15, 1),
            (16, 20, 3),
            (21, 25, 2),
            (26, 40, 3),
        ]
    with pytest.raises(EventNotFoundError, match="certificate 3"):
        reader.event(own.name, seq=40)
    report = verify_log(tiers, lab.targets, own.name)
    assert (report.problems, report.events, report.expired_events) == ([], 0, 40)
    stats = log_stats(lab.database, own.name)
    assert (stats.archive.events, stats.expired_events, stats.hot.events) == (0, 40, 0)


@examples(12)
@given(data=st.data())
def test_any_layout(data: st.DataObject, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever lies where, and however little the cache holds: each event once, in order, and every seq
    that was asked for is accounted for once."""
    place = st.sampled_from(["archive", "near", "deep", None])
    places = data.draw(st.lists(place, max_size=6))
    log = laid_out(lab, places, data.draw(st.integers(0, 2)))
    gone = {day for day, where in enumerate(places) if where is None}
    cache = str(tmp_path_factory.mktemp("cache"))
    reader, tiers = lab.reader(cache, size_bytes_max=data.draw(st.sampled_from([1, 20_000, 2**20])))
    for _ in range(4):
        order = data.draw(st.sampled_from(Order))
        first, last = data.draw(st.integers(1, 45)), data.draw(st.integers(0, 45))
        entity = data.draw(st.sampled_from([None, "1", "day-1", "nobody"]))
        expected = [seq for seq in expected_seqs(log, gone) if first <= seq <= last]
        if entity is not None:
            residues = {"1": (1, 4), "day-1": (0,), "nobody": ()}[entity]
            expected = [seq for seq in expected if (seq - 1) % PER_DAY in residues]
            if entity == "day-1":
                expected = [seq for seq in expected if seq in log.day(1)]
        wanted = {"seq_from": first, "seq_to": last, "entity_id": entity}
        coverage = Coverage()
        tables = reader.stream(log.name, EventFilter(**wanted), order=order, coverage=coverage)
        found = [seq for table in tables for seq in table["seq"].to_pylist()]
        assert found == in_order(expected, order)
        assert found == pages(reader, log, order, data.draw(st.integers(1, 9)), **wanted)
        covered = [*coverage.hot, *coverage.archive, *((a, b) for a, b, _ in coverage.expired)]
        looked_at = sorted(seq for a, b in covered for seq in range(a, b + 1))
        assert looked_at == list(range(first, min(last, log.days * PER_DAY) + 1))
    report = verify_log(tiers, lab.targets, log.name, certificates=governed(lab))
    assert (report.problems, report.expired_events) == ([], PER_DAY * len(gone))
    assert report.events == len(expected_seqs(log, gone))


# --- the list that a reader keeps ---------------------------------------------------------------------


def test_a_list_grows_with_the_archive_and_is_made_anew_with_the_catalog(
    lab: Lab, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = lab.tenant(4)
    listed: list[int] = []
    list_segments = tiers_module.list_segments

    def spy(conn: Any, tenant_id: str, *, seq_from: int, seq_to: int) -> list[Segment]:
        listed.append(seq_from)
        return list_segments(conn, tenant_id, seq_from=seq_from, seq_to=seq_to)

    monkeypatch.setattr(tiers_module, "list_segments", spy)
    reader, tiers = lab.reader(cache)
    steps: list[tuple[Callable[[], object], list[int], list[int]]] = [
        (lambda: log.archive(0), [1], [0, 1, 2, 3]),
        (lambda: log.archive(1), [6], [0, 1, 2, 3]),
        (lambda: None, [], [0, 1, 2, 3]),
        (lambda: log.move(0, "deep"), [1], [0, 1, 2, 3]),
        (lambda: log.archive(2), [11], [0, 1, 2, 3]),
        (lambda: log.expire(1), [1], [0, 2, 3]),
        (lambda: (log.expire(0), log.archive(3, "near")), [1], [2, 3]),
    ]
    for change, expected, days in steps:
        change()
        listed.clear()
        assert stream(reader, log) == [seq for day in days for seq in log.day(day)]
        assert stream(reader, log, entity_id="day-3") == log.day(3)[:1]
        assert listed == expected
    parts = tiers.archive(log.name, tiers.state(log.name))
    assert [(type(part), *span(part)) for part in parts[:3]] == [
        (ExpiredRange, 1, 5),
        (ExpiredRange, 6, 10),
        (Segment, 11, 13),
    ]
    # The filters of what is gone are forgotten, those of what moved are kept.
    assert set(tiers.entity_filters(log.name, 20)) == {11, 14, 16, 19}


def test_a_state_that_is_older_than_the_list(lab: Lab, cache: str) -> None:
    """Of two readers in one process, one lags behind: it gets what is right now, up to its watermark."""
    log = lab.tenant(3)
    _, tiers = lab.reader(cache)
    log.archive(0)
    older = tiers.state(log.name)
    log.archive(1)
    log.expire(0)
    tiers.archive(log.name, tiers.state(log.name))
    assert [span(part) for part in tiers.archive(log.name, older)] == [(1, 5)]


# --- moved and destroyed under a reader ---------------------------------------------------------------

READS: dict[str, Callable[[LogReader, Tiered], list[int]]] = {
    "stream-asc": lambda reader, log: stream(reader, log),
    "stream-desc": lambda reader, log: sorted(stream(reader, log, Order.DESC)),
    "page-asc": lambda reader, log: pages(reader, log, Order.ASC, 7),
    "page-desc": lambda reader, log: sorted(pages(reader, log, Order.DESC, 7)),
    "condition": lambda reader, log: stream(reader, log, actor="ann"),
    "entity": lambda reader, log: stream(reader, log, entity_id="day-1"),
    "event": lambda reader, log: found_event(reader, log, log.day(1)[0]),
}
reads = pytest.mark.parametrize("name", READS)
OF_THE_DAY = ("entity", "event")


def found_event(reader: LogReader, log: Tiered, seq: int) -> list[int]:
    try:
        return list(reader.event(log.name, seq=seq).events["seq"].to_pylist())
    except EventNotFoundError:
        return []


def interleaved(lab: Lab, log: Tiered, where: str, change: Callable[[], object]) -> list[str]:
    """Do something between a reader's listing and its opening of the first segment of day 1."""
    done: list[str] = []
    watched = lab.watched[where]
    keys = {segment.key for segment in log.segments(1)}

    def before(key: str) -> None:
        if key in keys:
            change()
            done.append(key)
        else:
            watched.before = before

    watched.before = before
    return done


@reads
@pytest.mark.parametrize("end", ["moved", "moved twice", "destroyed"])
@pytest.mark.parametrize("where", ["archive", "near"])
def test_a_window_that_goes_between_listing_and_opening(
    lab: Lab, cache: str, name: str, end: str, where: str
) -> None:
    log = laid_out(lab, ["near", where, "archive"], 1)
    reader, _ = lab.reader(cache)
    changes: dict[str, Callable[[], object]] = {
        "moved": lambda: log.move(1, "deep"),
        "moved twice": lambda: (log.move(1, "deep"), log.move(1, "archive" if where == "near" else "near")),
        "destroyed": lambda: log.expire(1),
    }
    done = interleaved(lab, log, where, changes[end])
    all_seqs = log.day(1)[:1] if name in OF_THE_DAY else expected_seqs(log, set())
    left = [seq for seq in all_seqs if end != "destroyed" or seq not in log.day(1)]
    assert READS[name](reader, log) == left
    assert done
    assert READS[name](reader, log) == left


@reads
@pytest.mark.parametrize("end", ["moved", "destroyed"])
def test_without_looking_at_the_catalog_again_the_read_fails(
    lab: Lab, cache: str, name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: with a reader that trusts its first look, it would."""
    log = laid_out(lab, ["near", "near", "archive"], 1)
    reader, _ = lab.reader(cache)
    done = interleaved(lab, log, "near", lambda: log.move(1, "deep") if end == "moved" else log.expire(1))
    monkeypatch.setattr(walk_module.Walk, "_newer", lambda *_: None)
    with pytest.raises(ArchiveDamageError):
        READS[name](reader, log)
    assert done


def test_a_partial_answer_does_not_call_a_moved_window_unreadable(lab: Lab, cache: str) -> None:
    log = laid_out(lab, ["near", "near", "archive"], 1)
    reader, _ = lab.reader(cache)
    done = interleaved(lab, log, "near", lambda: log.move(1, "deep"))
    page = reader.page(log.name, EventFilter(), limit=100, partial=True)
    assert done
    assert page.events["seq"].to_pylist() == expected_seqs(log, set())
    assert page.coverage.unreadable == []
    assert page.coverage.archive == [(1, 15)]


def test_a_window_that_moves_while_a_partial_answer_goes_round_a_damaged_one(lab: Lab, cache: str) -> None:
    log = laid_out(lab, ["near", "archive"], 1)
    reader, _ = lab.reader(cache)
    log.delete(log.segments(0))
    watched, key = lab.watched["archive"], log.segments(1)[0].key
    moved: list[str] = []

    def before(looked_at: str) -> None:
        # At first all are looked at together, and digested; then each alone.
        if looked_at == key and watched.asked.count(key) == 3:
            log.move(1, "deep")
            moved.append(key)
        else:
            watched.before = before

    watched.before = before
    page = reader.page(log.name, EventFilter(), limit=100, partial=True)
    assert moved
    assert page.events["seq"].to_pylist() == expected_seqs(log, {0})
    assert [u.first_seq for u in page.coverage.unreadable] == [1, 4]


@pytest.mark.parametrize("partial", [False, True])
def test_a_catalog_that_keeps_changing_does_not_keep_a_reader_for_ever(
    lab: Lab, cache: str, partial: bool
) -> None:
    """A segment is missing, and between any two looks some other window moves."""
    log = laid_out(lab, ["near", "archive"], 1)
    reader, _ = lab.reader(cache)
    log.delete(log.segments(0))
    watched = lab.watched["near"]
    opened = len(watched.asked)

    def bump(key: str) -> None:
        execute(
            lab.database.url,
            "UPDATE watermarks SET catalog_version = catalog_version + 1 WHERE tenant_id = %s",
            [log.name],
        )
        watched.before = bump

    watched.before = bump
    if partial:
        page = reader.page(log.name, EventFilter(), limit=100, partial=True)
        assert [u.first_seq for u in page.coverage.unreadable] == [1, 4]
    else:
        with pytest.raises(ArchiveDamageError):
            reader.page(log.name, EventFilter(), limit=100)
    assert len(watched.asked) - opened <= 4 * (walk_module._ANEW_MAX + 1)


def test_gaps_and_overlaps_without_a_certificate_stay_errors(lab: Lab, own: Tiered, cache: str) -> None:
    own.drop_only_in_catalog(3)
    reader, tiers = lab.reader(cache)
    for order in Order:
        for wanted in ({}, {"entity_id": "1"}, {"actor": "ann"}):
            with pytest.raises(CoverageError, match="covers seq"):
                stream(reader, own, order, **wanted)
    assert [(p.seq, p.key) for p in verify_log(tiers, lab.targets, own.name).problems] == [(16, None)]
    # And a certificate for what is still there.
    other = laid_out(lab, ["archive", "near"], 1)
    execute(
        lab.database.url,
        "INSERT INTO certificates (tenant_id, number, kind, first_seq, last_seq, hash_before, hash_after,"
        " payload_sha256, envelope, issued_us) VALUES (%s, 1, 'expired', 4, 5, '', '', '', '', 0)",
        [other.name],
    )
    for order in Order:
        with pytest.raises(CoverageError):
            stream(reader, other, order)
    assert not verify_log(tiers, lab.targets, other.name).ok


# --- targets that are away, and the cache ---------------------------------------------------------------


def test_only_what_needs_a_target_that_is_away_fails(lab: Lab, log: Tiered, cache: str) -> None:
    reader, _ = lab.reader(cache)
    near = lab.watched["near"]
    near.down = True
    assert stream(reader, log, seq_to=5) == log.day(0)
    assert stream(reader, log, entity_id="day-3") == log.day(3)[:1]
    assert stream(reader, log, Order.DESC, seq_from=31) == in_order(log.day(6) + log.day(7), Order.DESC)
    assert reader.event(log.name, seq=18).events.num_rows == 1
    assert near.asked == []
    for order in Order:
        for wanted in ({}, {"entity_id": "1"}, {"entity_id": "day-5"}, {"seq_from": 6, "seq_to": 6}):
            with pytest.raises(TargetUnavailableError, match="is away"):
                stream(reader, log, order, **wanted)
    # What lies before it in reading order is given.
    tables = reader.stream(log.name, EventFilter())
    given: list[int] = []
    with pytest.raises(TargetUnavailableError):
        given += (seq for table in tables for seq in table["seq"].to_pylist())
    assert given == log.day(0)


@orders
def test_a_partial_answer_names_what_a_target_that_is_away_holds(
    lab: Lab, log: Tiered, cache: str, order: Order
) -> None:
    reader, _ = lab.reader(cache)
    near = lab.watched["near"]
    near.down, near.asked = True, []
    page = reader.page(log.name, EventFilter(), order=order, limit=100, partial=True)
    assert page.events["seq"].to_pylist() == in_order(expected_seqs(log, {1, 2, 4, 5}), order)
    unreadable = sorted(page.coverage.unreadable, key=lambda u: u.first_seq)
    assert [(u.target, u.first_seq, u.last_seq) for u in unreadable] == [
        ("near", 6, 8),
        ("near", 9, 10),
        ("near", 26, 28),
        ("near", 29, 30),
    ]
    assert all("is away" in u.error for u in unreadable)
    assert sorted(page.coverage.expired) == [(11, 15, 1), (21, 25, 2)]
    assert len(near.asked) <= 6  # once together, once alone: not once for every segment and step
    near.down = False
    assert stream(reader, log, order) == in_order(expected_seqs(log, {2, 4}), order)


def test_what_is_cached_needs_no_target(lab: Lab, own: Tiered, cache: str) -> None:
    reader, _ = lab.reader(cache)
    assert stream(reader, own, seq_to=10) == own.day(0) + own.day(1)
    near, deep = lab.watched["near"], lab.watched["deep"]
    near.asked, deep.asked = [], []
    near.down = True
    fresh, _ = lab.reader(cache)  # a new process over the same folder
    for each in (reader, fresh):
        for order in Order:
            assert stream(each, own, order, seq_to=10) == in_order(own.day(0) + own.day(1), order)
    own.delete(own.segments(1))
    assert stream(reader, own, seq_to=10) == own.day(0) + own.day(1)
    assert (near.asked, deep.asked) == ([], [])
    for order in Order:
        page = reader.page(own.name, EventFilter(), order=order, limit=100, partial=True)
        assert {u.first_seq for u in page.coverage.unreadable} == {26, 29}
        assert page.events["seq"].to_pylist() == in_order(expected_seqs(own, {2, 4, 5}), order)


def test_a_window_that_moves_between_targets_is_not_fetched_again(lab: Lab, cache: str) -> None:
    log = laid_out(lab, ["near"], 0)
    reader, _ = lab.reader(cache)
    stream(reader, log)
    for target in ("deep", "archive"):
        log.move(0, target)
        lab.watched[target].asked.clear()
        assert stream(reader, log) == log.day(0)
        assert lab.watched[target].asked == []


def test_a_cached_segment_that_changes_on_the_disk_is_fetched_anew(
    lab: Lab, log: Tiered, tmp_path: Path
) -> None:
    reader, _ = lab.reader(str(tmp_path))
    expected = reader.page(log.name, EventFilter(), limit=100).events
    copies = sorted(tmp_path.glob("*.parquet"))
    assert len(copies) == 6
    for path in copies:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for each in (reader, lab.reader(str(tmp_path))[0]):
        assert each.page(log.name, EventFilter(), limit=100).events == expected


def test_damage_in_a_remote_target_is_named(lab: Lab, own: Tiered, cache: str) -> None:
    reader, _ = lab.reader(cache)
    segment = own.segments(3)[1]
    deep = lab.watched["deep"].inner
    with deep.open(segment.key) as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    deep.delete(segment.key)
    staged = deep.stage(segment.key)
    staged.write_bytes(data)
    deep.put(segment.key, staged)
    for order in Order:
        with pytest.raises(ArchiveDamageError, match="in target deep") as caught:
            stream(reader, own, order)
        assert caught.value.key == segment.key
    page = reader.page(own.name, EventFilter(), limit=100, partial=True)
    assert [(u.target, u.key, u.first_seq) for u in page.coverage.unreadable] == [("deep", segment.key, 19)]
    assert page.events["seq"].to_pylist() == [s for s in expected_seqs(own, {2, 4}) if s not in (19, 20)]


@pytest.mark.parametrize("times", [1, 2])
def test_a_copy_that_another_process_evicts_under_a_query(
    lab: Lab, log: Tiered, cache: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once is mended by fetching it again; a folder in which nothing lasts is an error to try again after."""
    left = times
    pinned = SegmentCache.pinned

    @contextmanager
    def evicting(self: SegmentCache, segments: list[Segment], fetch: Fetch) -> Iterator[list[str]]:
        nonlocal left
        with pinned(self, segments, fetch) as paths:
            if left:
                left -= 1
                Path(paths[0]).unlink()
            yield paths

    monkeypatch.setattr(SegmentCache, "pinned", evicting)
    reader, _ = lab.reader(cache)
    if times == 1:
        assert reader.event(log.name, seq=6).events["seq"].to_pylist() == [6]
        left = 1
        assert stream(reader, log, seq_from=6, seq_to=10) == log.day(1)
    else:
        with pytest.raises(TargetUnavailableError, match="cannot read segments"):
            reader.event(log.name, seq=6)
        assert stream(reader, log) == expected_seqs(log, {2, 4})


@orders
def test_a_cache_too_small_for_a_query_reads_in_portions(
    lab: Lab, log: Tiered, tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(segment.size_bytes for day in (1, 3, 5) for segment in log.segments(day))
    pinned_bytes: list[int] = []
    pinned = SegmentCache.pinned

    def counting(self: SegmentCache, segments: list[Segment], fetch: Fetch) -> Any:
        pinned_bytes.append(sum(segment.size_bytes for segment in segments))
        return pinned(self, segments, fetch)

    monkeypatch.setattr(SegmentCache, "pinned", counting)
    reader, _ = lab.reader(str(tmp_path), size_bytes_max=5 * largest)
    expected = in_order(expected_seqs(log, {2, 4}), order)
    assert stream(reader, log, order) == expected
    assert stream(reader, log, order, entity_id="1") == [
        seq for seq in expected if (seq - 1) % PER_DAY in (1, 4)
    ]
    assert pages(reader, log, order, 4) == expected
    assert largest < max(pinned_bytes) <= 5 * largest // 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5 * largest


# --- statistics and proof -------------------------------------------------------------------------------


def test_stats_by_target(lab: Lab, log: Tiered) -> None:
    stats = log_stats(lab.database, log.name)
    assert (stats.hot.events, stats.archive.events, stats.expired_events) == (10, 20, 10)
    assert {name: tier.events for name, tier in stats.targets.items()} == {
        "archive": 5,
        "deep": 5,
        "near": 10,
    }
    assert sum(tier.size_bytes for tier in stats.targets.values()) == stats.archive.size_bytes > 0
    assert stats.segments == 8
    assert {state.value: count for state, count in stats.windows.items() if count} == {
        "open": 2,
        "dropped": 4,
        "expired": 2,
    }


def test_the_chain_holds_across_what_was_destroyed(lab: Lab, log: Tiered, cache: str) -> None:
    _, tiers = lab.reader(cache)
    seen: list[tuple[int, int]] = []
    report = verify_log(
        tiers,
        lab.targets,
        log.name,
        certificates=governed(lab),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report.problems == []
    assert (report.events, report.expired_events, report.segments, report.last_seq) == (30, 10, 8, 40)
    assert seen[-1] == (40, 40)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_certificate_that_does_not_join_the_chain(lab: Lab, own: Tiered, cache: str) -> None:
    for column, seq in (("hash_before", 11), ("hash_after", 16)):
        (right,) = execute(
            lab.database.url,
            f"SELECT {column} FROM certificates WHERE tenant_id = %s AND number = 1",
            [own.name],
        )[0]
        update = f"UPDATE certificates SET {column} = %s WHERE tenant_id = %s AND number = 1"
        execute(lab.database.url, update, [bytes(32), own.name])
        _, tiers = lab.reader(cache)
        report = verify_log(tiers, lab.targets, own.name)
        assert report.first_break == seq, column
        report = verify_log(tiers, lab.targets, own.name, certificates=governed(lab))
        assert any("certificate 1: its row" in problem.message for problem in report.problems)
        execute(lab.database.url, update, [right, own.name])


def test_verification_goes_on_while_windows_move(lab: Lab, cache: str) -> None:
    log = laid_out(lab, ["near", "near", "archive"], 1)
    _, tiers = lab.reader(cache)
    for change in (lambda: log.move(1, "deep"), lambda: log.expire(1)):
        where = log.segments(1)[0].target
        done = interleaved(lab, log, where, change)
        report = verify_log(tiers, lab.targets, log.name)
        assert done
        assert report.problems == []
    assert (report.events, report.expired_events) == (15, 5)
    log.delete(log.segments(2))  # what is missing and was not moved is a problem, as ever
    report = verify_log(tiers, lab.targets, log.name)
    assert [p.seq for p in report.problems] == [11, 14]


@pytest.mark.parametrize("forged", [False, True])
def test_an_end_that_was_cut_off_with_its_head(lab: Lab, cache: str, forged: bool) -> None:
    """The chain of what is left is whole; only the certificate knows that there was more, or other."""
    log = laid_out(lab, [None, "near"], 2)
    url = lab.database.url
    (leaf,) = execute(url, "SELECT leaf FROM windows WHERE tenant_id = %s AND first_seq = 16", [log.name])[0]
    execute(url, f"DROP TABLE hot.{leaf}")
    execute(url, "DELETE FROM windows WHERE tenant_id = %s AND first_seq = 16", [log.name])
    (last_hash,) = execute(url, "SELECT hash FROM events WHERE tenant_id = %s AND seq = 15", [log.name])[0]
    execute(
        url,
        "UPDATE heads SET last_seq = 15, last_hash = %s WHERE tenant_id = %s",
        [last_hash, log.name],
    )
    if forged:  # and other events were put in their place
        log.append(START_US + 4 * DAY_US, *(new_event(f"forged-{n}") for n in range(7)))
    _, tiers = lab.reader(cache)
    assert verify_log(tiers, lab.targets, log.name).ok
    report = verify_log(tiers, lab.targets, log.name, certificates=governed(lab))
    assert not report.ok
    (problem,) = report.problems
    assert problem.seq == (22 if forged else 15)
    assert ("seq 20 has another hash" if forged else "end was cut off") in problem.message


def test_readers_may_be_used_by_many_threads_while_windows_move(lab: Lab, cache: str) -> None:
    """Each read sees every event once, whatever moves meanwhile, with a cache that holds next to nothing."""
    from concurrent.futures import ThreadPoolExecutor

    log = laid_out(lab, ["near", "archive", "deep", "near"], 1)
    reader, tiers = lab.reader(cache, size_bytes_max=15_000)
    expected = expected_seqs(log, set())
    with ThreadPoolExecutor(3) as executor:
        futures = [
            executor.submit(lambda order=order: [sorted(stream(reader, log, order)) for _ in range(12)])
            for order in (Order.ASC, Order.DESC, Order.ASC)
        ]
        for day, target in ((0, "deep"), (1, "near"), (2, "archive"), (3, "deep"), (1, "deep")):
            log.move(day, target)
        for future in futures:
            assert all(found == expected for found in future.result(60))
    assert isinstance(tiers, Tiers)
