"""The reader over both tiers: values, pages, look-ups, coverage, steps of bounded size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from eventstore.app import Store
from eventstore.archive import parquet
from eventstore.archive.scan import ArchiveScan
from eventstore.clock import FixedClock
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import EventNotFoundError, InputError, TenantNotFoundError
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment
from eventstore.query import reader as reader_module
from eventstore.query import walk as walk_module
from eventstore.query.coverage import Coverage
from eventstore.query.render import event_views, to_json_lines
from tests.unit.helpers import (
    DAY_US,
    HOUR_US,
    START_US,
    append,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
    seqs,
)


@pytest.fixture
def both(store: Store, clock: FixedClock) -> Store:
    """Three archived days of five events, and two hot ones."""
    make_tenant(store)
    fill_days(store, clock, "acme", 5)
    run_retention(store, START_US + 3 * DAY_US)
    assert store.tiers.state("acme").archived_through == 15
    return store


def test_events_are_equal_from_either_tier(store: Store, clock: FixedClock) -> None:
    """Every column of every event, before and after its window has moved."""
    make_tenant(store)
    clock.move_to(START_US)
    texts = ["x", "é\u2028😀", "'\";--", " ", "\\", "\t\n\r", "%s", "\x7f\x01", "a" * 1000]
    for n, text in enumerate(texts):
        append(
            store,
            "acme",
            new_event(
                text,
                actor=text[:256],
                workspace_id=text[:256] if n % 2 else None,
                old_value={"k": text} if n % 3 else None,
                new_value=[text, 10**25, 1.5, None],
                metadata={text: n},
            ),
        )
    hot = store.reader.page("acme", EventFilter(), limit=100).events
    run_retention(store, START_US + DAY_US)
    archived = store.reader.page("acme", EventFilter(), limit=100).events
    assert store.tiers.state("acme").archived_through == len(texts)
    assert hot.schema.equals(EVENT_SCHEMA)
    assert archived == hot
    assert to_json_lines(archived) == to_json_lines(hot)
    shown = [json.loads(line) for line in to_json_lines(hot).splitlines()]
    assert [e["entity_id"] for e in shown] == texts
    assert [e["new_value"] for e in shown] == [[text, 10**25, 1.5, None] for text in texts]
    for text in texts:
        assert [r["entity_id"] for r in read(store, "acme", entity_id=text)] == [text]


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("limit", [1, 2, 4, 5, 7, 15, 24, 25, 26])
def test_pages_join_over_both_tiers(both: Store, order: Order, limit: int) -> None:
    every = list(range(1, 26)) if order is Order.ASC else list(range(25, 0, -1))
    found: list[int] = []
    after = None
    while True:
        page = both.reader.page("acme", EventFilter(), order=order, after=after, limit=limit)
        found += page.events["seq"].to_pylist()
        after = page.next_after
        if after is None:
            break
        assert page.events.num_rows == limit
    assert found == every


def test_a_cursor_outlives_a_compaction(both: Store) -> None:
    """A seq means the same whichever tier it lies in."""
    first = both.reader.page("acme", EventFilter(), limit=16)
    run_retention(both, START_US + 5 * DAY_US)
    second = both.reader.page("acme", EventFilter(), after=first.next_after, limit=100)
    assert first.events["seq"].to_pylist() + second.events["seq"].to_pylist() == list(range(1, 26))


def test_a_stream_goes_on_while_windows_move_and_events_come(both: Store, clock: FixedClock) -> None:
    """Up to the log's end as it was when the stream began, each event once."""
    stream = both.reader.stream("acme", EventFilter())
    found = next(stream)["seq"].to_pylist()
    run_retention(both, START_US + 5 * DAY_US)
    append(both, "acme", new_event("late"))
    found += [seq for table in stream for seq in table["seq"].to_pylist()]
    assert found == list(range(1, 26))


def test_cursors_beyond_the_ends(both: Store) -> None:
    def page(after: int, order: Order) -> list[int]:
        found: list[int] = (
            both.reader.page("acme", EventFilter(), order=order, after=after, limit=2)
            .events["seq"]
            .to_pylist()
        )
        return found

    assert page(25, Order.ASC) == page(10**17, Order.ASC) == []
    assert page(0, Order.ASC) == [1, 2]
    assert page(1, Order.DESC) == page(0, Order.DESC) == []
    assert page(10**17, Order.DESC) == [25, 24]
    assert page(16, Order.DESC) == [15, 14]


@pytest.mark.parametrize("order", Order)
def test_steps_of_any_size_make_the_same_log(
    both: Store, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seqs(read(both, "acme", order=order))
    selected = seqs(read(both, "acme", order=order, entity_id="1"))
    for name, value in (("_HOT_SPAN", 3), ("_FILES_FIRST", 1), ("_ARCHIVE_EVENTS", 1), ("_STEP_ROWS_MAX", 2)):
        monkeypatch.setattr(walk_module, name, value)
        assert seqs(read(both, "acme", order=order)) == expected, name
        assert seqs(read(both, "acme", order=order, entity_id="1")) == selected, name
        assert seqs(read(both, "acme", order=order, actor="ann", seq_from=4, seq_to=22)) == [
            seq for seq in expected if 4 <= seq <= 22
        ]


def test_a_page_of_very_large_events_is_cut_by_size(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tenant(store)
    clock.move_to(START_US)
    for _ in range(2):
        append(store, "acme", *(new_event(str(n), new_value="x" * 2000) for n in range(6)))
        clock.move_to(START_US + DAY_US)
    run_retention(store, START_US + DAY_US)
    monkeypatch.setattr(reader_module, "_PAGE_BYTES_MAX", 5000)
    for name in ("_STEP_ROWS_MAX", "_STEP_ROWS_FIRST"):
        monkeypatch.setattr(walk_module, name, 2)
    for order in Order:
        found: list[int] = []
        after, pages = None, 0
        while True:
            page = store.reader.page("acme", EventFilter(), order=order, after=after, limit=100)
            assert page.events.num_rows > 0
            found += page.events["seq"].to_pylist()
            after, pages = page.next_after, pages + 1
            if after is None:
                break
        assert sorted(found) == list(range(1, 13))
        assert found == sorted(found, reverse=order is Order.DESC)
        assert pages > 2


def test_a_single_event_by_seq_and_by_id(both: Store) -> None:
    rows = read(both, "acme")
    for row in (rows[0], rows[14], rows[15], rows[24]):
        for page in (
            both.reader.event("acme", seq=row["seq"]),
            both.reader.event("acme", event_id=row["event_id"]),
        ):
            assert page.events.to_pylist() == [row]
    for wanted in (
        {"seq": 0},
        {"seq": 26},
        {"event_id": bytes(16)},
        {"event_id": rows[0]["event_id"][:15] + b"\0"},
    ):
        with pytest.raises(EventNotFoundError):
            both.reader.event("acme", **wanted)
    with pytest.raises(InputError):
        both.reader.event("acme")
    with pytest.raises(InputError):
        both.reader.event("acme", seq=1, event_id=bytes(16))


def test_unknown_tenants(both: Store) -> None:
    for tenant in ("nobody", "acme-2"):
        with pytest.raises(TenantNotFoundError):
            both.reader.page(tenant, EventFilter(), limit=1)
    with pytest.raises(InputError):
        both.reader.page("acme' OR true --", EventFilter(), limit=1)


def test_one_tenant_never_sees_another(both: Store, clock: FixedClock) -> None:
    make_tenant(both, "b")
    clock.move_to(START_US)
    append(both, "b", new_event("1", actor="b's"))
    other_id = read(both, "b")[0]["event_id"]
    run_retention(both, START_US + DAY_US)
    assert [r["actor"] for r in read(both, "b", entity_id="1")] == ["b's"]
    assert "b's" not in {r["actor"] for r in read(both, "acme")}
    with pytest.raises(EventNotFoundError):
        both.reader.event("acme", event_id=other_id)


COVERED: list[tuple[dict[str, Any], list[tuple[int, int]], list[tuple[int, int]], int]] = [
    ({}, [(16, 25)], [(1, 15)], 3),
    ({"entity_id": "1"}, [(16, 25)], [(1, 15)], 3),
    ({"seq_from": 20}, [(20, 25)], [], 0),
    ({"seq_to": 7}, [], [(1, 7)], 2),
    (
        {"recorded_from_us": START_US + DAY_US, "recorded_to_us": START_US + 2 * DAY_US},
        [(16, 25)],
        [(1, 15)],
        3,
    ),
    ({"actor": "nobody"}, [(16, 25)], [(1, 15)], 3),
    ({"seq_from": 9, "seq_to": 3}, [], [], 0),
]


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(("wanted", "hot", "archive", "windows"), COVERED)
def test_coverage_says_what_was_looked_at(
    both: Store,
    order: Order,
    wanted: dict[str, Any],
    hot: list[tuple[int, int]],
    archive: list[tuple[int, int]],
    windows: int,
) -> None:
    coverage = Coverage()
    list(both.reader.stream("acme", EventFilter(**wanted), order=order, coverage=coverage))
    assert (coverage.hot, coverage.archive, len(coverage.windows)) == (hot, archive, windows)
    assert coverage.unreadable == coverage.expired == []


def test_a_page_covers_no_more_than_it_looked_at(both: Store) -> None:
    page = both.reader.page("acme", EventFilter(), order=Order.DESC, limit=3)
    assert page.coverage.archive == []
    ((first, last),) = page.coverage.hot
    assert first > 16
    assert last == 25


def test_row_groups_inside_a_segment(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 50)
    make_tenant(store)
    clock.move_to(START_US + HOUR_US)
    append(store, "acme", *(new_event(f"id-{n}") for n in range(500)))
    run_retention(store, START_US + DAY_US)
    for n in (0, 49, 50, 499):
        assert seqs(read(store, "acme", entity_id=f"id-{n}")) == [n + 1]
    assert read(store, "acme", entity_id="id-500") == []
    views = list(event_views(store.reader.page("acme", EventFilter(seq_from=499), limit=9).events))
    assert [v.entity_id for v in views] == ["id-498", "id-499"]


def test_a_few_events_of_an_entity_open_a_few_segments(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many small windows, those in which the newest ones may be; then ever more at once."""
    make_tenant(store)
    fill_days(store, clock, "acme", 60, per_day=3)
    run_retention(store, START_US + 60 * DAY_US)
    opened: list[int] = []
    query = ArchiveScan.query

    def counted(self: ArchiveScan, segments: Sequence[Segment], *given: Any, **more: Any) -> Any:
        opened.append(len(segments))
        return query(self, segments, *given, **more)

    monkeypatch.setattr(ArchiveScan, "query", counted)
    wanted = EventFilter(entity_type="order", entity_id="1")
    everything = store.reader.page("acme", wanted, order=Order.DESC, limit=1000).events
    assert everything.num_rows == 60
    assert opened == [60]
    opened.clear()
    page = store.reader.page("acme", wanted, order=Order.DESC, limit=5)
    assert page.events.equals(everything.slice(0, 5))
    assert opened == [8]
    opened.clear()
    wanted = EventFilter(entity_type="order", entity_id="1", action="day-3")
    page = store.reader.page("acme", wanted, order=Order.DESC, limit=5)
    assert page.events.equals(everything.slice(56, 1))
    assert opened == [8, 32, 20]
