"""Appending: all or nothing per request, idempotency, expected versions, the tenant's clock."""

from __future__ import annotations

import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock, to_us
from eventstore.errors import InputError, StateError, TenantNotFoundError, VersionConflictError
from eventstore.hot.append import AppendRequest, AppendResult, Outcome
from eventstore.hot.batch import pending_batch
from eventstore.hot.group import GroupCommitter
from eventstore.integrity.verify import verify_log
from eventstore.model.event import NewEvent, uuid7, uuid7_time_us
from eventstore.model.window import WindowState, WindowUnit
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


@pytest.fixture(autouse=True)
def _at_start(clock: FixedClock) -> None:
    clock.move_to(START_US)


def group(store: Store, *requests: list[NewEvent]) -> list[Outcome]:
    """Several requests in one transaction, as group commit hands them over."""
    return store.appender.append("acme", [AppendRequest(events) for events in requests])


def stored(outcome: Outcome) -> AppendResult:
    assert isinstance(outcome, AppendResult), outcome
    return outcome


def last_seq(store: Store) -> int:
    return store.tiers.state("acme").last_seq


def whole(store: Store) -> None:
    report = verify_log(store.tiers, store.targets, "acme")
    assert report.ok, report.problems


def id7(at_us: int, tail: int = 0) -> uuid.UUID:
    return uuid.UUID(bytes=uuid7(at_us)[:10] + tail.to_bytes(6, "big"))


# --- what is stored ---------------------------------------------------------------------------------


def test_events_are_stored_as_sent(store: Store) -> None:
    make_tenant(store)
    given = id7(START_US - 5)
    result = append(
        store,
        "acme",
        new_event("é/1", event_id=given, old_value=None, new_value={"a": [1, "x"]}, metadata={"k": 1}),
        new_event("2", workspace_id="w", field="status"),
    )
    assert (result.first_seq, result.last_seq, result.count, result.duplicates) == (1, 2, 2, 0)
    assert list(result.seqs) == [1, 2]
    first, second = read(store, "acme")
    assert first["event_id"] == given.bytes == result.event_ids[0]
    assert second["event_id"] == result.event_ids[1]
    assert uuid7_time_us(second["event_id"]) == START_US
    assert (first["entity_id"], first["field"], first["new_value"]) == ("é/1", "*", '{"a":[1,"x"]}')
    assert (first["workspace_id"], second["workspace_id"], second["field"]) == (None, "w", "status")
    assert (second["old_value"], second["new_value"], second["metadata"]) == (None, None, None)
    for row in (first, second):
        assert to_us(row["recorded_at"]) == to_us(row["occurred_at"]) == START_US
    whole(store)


def test_an_unknown_tenant_is_refused(store: Store) -> None:
    with pytest.raises(TenantNotFoundError):
        append(store, "nobody", new_event())
    with pytest.raises(InputError):
        append(store, "No Tenant", new_event())


def test_tenants_have_logs_of_their_own(store: Store) -> None:
    for name in ("acme", "b"):
        make_tenant(store, name)
    append(store, "acme", new_event("1"), new_event("2"))
    assert append(store, "b", new_event("9")).first_seq == 1
    assert [row["entity_id"] for row in read(store, "b")] == ["9"]
    assert len(read(store, "acme")) == 2


def test_many_events_cross_the_chunks_of_encoding(store: Store) -> None:
    make_tenant(store)
    result = append(store, "acme", *(new_event(str(n)) for n in range(9000)))
    assert (result.first_seq, result.last_seq) == (1, 9000)
    rows = read(store, "acme")
    assert [row["entity_id"] for row in rows] == [str(n) for n in range(9000)]
    assert [row["event_id"] for row in rows] == list(result.event_ids)
    assert len(set(result.event_ids)) == 9000
    whole(store)


# --- all or nothing ---------------------------------------------------------------------------------


def test_one_wrong_event_refuses_the_whole_request(store: Store) -> None:
    make_tenant(store)
    append(store, "acme", new_event("1"))
    with pytest.raises(VersionConflictError) as caught:
        append(
            store,
            "acme",
            new_event("2"),
            new_event("1", expected_version=0),
            new_event("3", expected_version=7),
            new_event("4", expected_version=0),
        )
    found = [(c.entity_id, c.expected, c.actual, c.place.index) for c in caught.value.conflicts]
    assert found == [("1", 0, 1, 1), ("3", 7, 0, 2)]
    assert last_seq(store) == 1
    assert len(read(store, "acme")) == 1
    whole(store)


def test_one_refused_request_leaves_the_others_of_its_group(store: Store) -> None:
    make_tenant(store)
    good, bad, also_good = group(
        store,
        [new_event("1"), new_event("2")],
        [new_event("3"), new_event("1", expected_version=0)],
        [new_event("4")],
    )
    assert isinstance(bad, VersionConflictError)
    assert bad.conflicts[0].actual == 1  # set by the request before it in the same group
    assert list(stored(good).seqs) == [1, 2]
    assert list(stored(also_good).seqs) == [3]  # no gap is left
    assert [row["entity_id"] for row in read(store, "acme")] == ["1", "2", "4"]
    whole(store)


def test_a_group_of_which_every_request_is_refused_stores_nothing(store: Store) -> None:
    make_tenant(store)
    outcomes = group(store, [new_event("1", expected_version=3)], [new_event("2", expected_version=1)])
    assert all(isinstance(o, VersionConflictError) for o in outcomes)
    assert last_seq(store) == 0
    assert leaves(store.database.url) == []


def test_conflicts_name_the_line_of_a_stream(store: Store) -> None:
    make_tenant(store)
    (outcome,) = store.appender.append(
        "acme", [AppendRequest([new_event("1"), new_event("1", expected_version=4)], lines=[2, 5])]
    )
    assert isinstance(outcome, VersionConflictError)
    assert (outcome.conflicts[0].place.line, outcome.conflicts[0].place.index) == (5, None)


# --- idempotency ------------------------------------------------------------------------------------


def test_a_repeated_id_is_answered_with_its_first_seq(store: Store) -> None:
    make_tenant(store)
    one, two = id7(START_US), uuid.UUID("0b7f5e3c-1111-4222-8333-444455556666")
    append(store, "acme", new_event("1", event_id=one), new_event("2", event_id=two))
    again = append(store, "acme", new_event("x", event_id=two), new_event("3"), new_event("y", event_id=one))
    assert list(again.seqs) == [2, 3, 1]
    assert (again.first_seq, again.last_seq, again.count, again.duplicates) == (3, 3, 1, 2)
    assert again.event_ids[0] == two.bytes
    assert again.event_ids[2] == one.bytes
    assert [row["entity_id"] for row in read(store, "acme")] == ["1", "2", "3"]
    all_known = append(store, "acme", new_event("z", event_id=one))
    assert (all_known.first_seq, all_known.last_seq, all_known.count, list(all_known.seqs)) == (
        None,
        None,
        0,
        [1],
    )
    whole(store)


def test_a_repeated_id_within_a_request_and_within_a_group(store: Store) -> None:
    make_tenant(store)
    one = id7(START_US)
    first, second = group(
        store,
        [new_event("1", event_id=one), new_event("2", event_id=one), new_event("3")],
        [new_event("4", event_id=one), new_event("5")],
    )
    assert list(stored(first).seqs) == [1, 1, 2]
    assert list(stored(second).seqs) == [1, 3]
    assert [row["entity_id"] for row in read(store, "acme")] == ["1", "3", "5"]
    whole(store)


def test_ids_of_a_refused_request_are_not_taken(store: Store) -> None:
    make_tenant(store)
    one = id7(START_US)
    refused, accepted = group(
        store,
        [new_event("1", event_id=one), new_event("9", expected_version=5)],
        [new_event("2", event_id=one)],
    )
    assert isinstance(refused, VersionConflictError)
    assert (stored(accepted).count, list(stored(accepted).seqs)) == (1, [1])
    assert [row["entity_id"] for row in read(store, "acme")] == ["2"]


def test_a_repeat_need_not_meet_its_expected_version_again(store: Store) -> None:
    """The answer was lost, the caller sends the same once more: it gets the same answer."""
    make_tenant(store)
    event = new_event("1", event_id=id7(START_US), expected_version=0)
    assert list(append(store, "acme", event).seqs) == [1]
    append(store, "acme", new_event("1"))
    assert list(append(store, "acme", event).seqs) == [1]


@pytest.mark.parametrize("lead_us", [0, 3 * DAY_US, -40 * DAY_US], ids=["no lead", "clock ahead", "old id"])
def test_version_7_ids_are_found_in_the_windows_that_their_time_allows(
    store: Store, clock: FixedClock, lead_us: int
) -> None:
    """A caller's clock may be ahead: the id then lies in an older window than its own time says."""
    make_tenant(store)
    one = id7(START_US + lead_us)
    append(store, "acme", new_event("1", event_id=one))
    for day in range(1, 6):
        clock.move_to(START_US + day * DAY_US)
        append(store, "acme", new_event(str(day)))
        assert list(append(store, "acme", new_event("x", event_id=one)).seqs) == [1], f"day {day}"
    # Together with an id of another version every window is looked at.
    both = append(store, "acme", new_event("x", event_id=one), new_event("y", event_id=uuid.UUID(int=4)))
    assert list(both.seqs) == [1, 7]
    whole(store)


@pytest.mark.parametrize(
    "text",
    [
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
        "00000000-0000-7000-8000-000000000000",
        "e6773e0c-0000-7000-8000-000000000000",
    ],
    ids=["year 10889", "1970", "year 9999"],
)
def test_ids_of_any_time_are_stored_found_and_repeated(store: Store, clock: FixedClock, text: str) -> None:
    make_tenant(store)
    one, other = uuid.UUID(text), id7(START_US)
    event = new_event("1", event_id=one)
    assert list(append(store, "acme", event).seqs) == [1]
    assert list(append(store, "acme", event).seqs) == [1]
    append(store, "acme", new_event("2", event_id=other))
    for event_id, seq in ((one, 1), (other, 2)):
        assert store.reader.event("acme", event_id=event_id.bytes).events["seq"].to_pylist() == [seq]
    clock.move_to(START_US + 2 * DAY_US)
    run_retention(store, START_US + 2 * DAY_US)
    assert store.tiers.state("acme").archived_through == 2
    for event_id, seq in ((one, 1), (other, 2)):
        assert store.reader.event("acme", event_id=event_id.bytes).events["seq"].to_pylist() == [seq]
    with pytest.raises(InputError, match="no event"):
        store.reader.event("acme", event_id=id7(START_US + 1).bytes)


def test_a_foreign_id_does_not_stop_other_requests_of_its_group(store: Store) -> None:
    make_tenant(store)
    odd = uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")
    first, second = group(store, [new_event("1", event_id=odd)], [new_event("2", event_id=id7(START_US))])
    assert (list(stored(first).seqs), list(stored(second).seqs)) == ([1], [2])


# --- expected versions ------------------------------------------------------------------------------


def test_expected_version_is_the_seq_of_the_entitys_last_event(store: Store) -> None:
    make_tenant(store)
    append(store, "acme", new_event("1", expected_version=0))
    append(store, "acme", new_event("2"), new_event("3"))
    assert append(store, "acme", new_event("1", expected_version=1)).first_seq == 4
    for wrong in (0, 1, 3, 5):
        with pytest.raises(VersionConflictError) as caught:
            append(store, "acme", new_event("1", expected_version=wrong))
        assert caught.value.conflicts[0].actual == 4
    # Another type with the same id is another entity.
    append(store, "acme", new_event("1", entity_type="invoice", expected_version=0))
    append(store, "acme", new_event("1", expected_version=4))


def test_requests_of_a_group_see_one_another(store: Store) -> None:
    make_tenant(store)
    outcomes = group(
        store,
        [new_event("1", expected_version=0)],
        [new_event("1", expected_version=0)],
        [new_event("1", expected_version=1)],
        [new_event("2"), new_event("2")],
        [new_event("2", expected_version=4)],
    )
    kinds = [list(o.seqs) if isinstance(o, AppendResult) else "refused" for o in outcomes]
    assert kinds == [[1], "refused", [2], [3, 4], [5]]


@pytest.mark.parametrize("as_columns", [False, True], ids=["objects", "columns"])
def test_a_repeat_is_no_version_of_the_entity_that_it_names_now(store: Store, as_columns: bool) -> None:
    """An id that was stored for one entity and comes again with another changes nothing of that one, whether
    it was stored before or in the same group."""
    make_tenant(store)
    one, two = id7(START_US, 1), id7(START_US, 2)
    append(store, "acme", new_event("1", event_id=one))
    repeats = [new_event("2", event_id=one), new_event("3", event_id=two), new_event("4", event_id=two)]
    first = AppendRequest(pending_batch(repeats) if as_columns else repeats)
    conditions = [AppendRequest([new_event(entity, expected_version=0)]) for entity in "24"]
    outcomes = store.appender.append("acme", [first, *conditions])
    assert [list(stored(outcome).seqs) for outcome in outcomes] == [[1, 2, 2], [3], [4]]
    assert [row["entity_id"] for row in read(store, "acme")] == ["1", "3", "2", "4"]
    whole(store)


def test_several_conditions_of_one_request_look_at_the_same_moment(store: Store) -> None:
    make_tenant(store)
    append(store, "acme", new_event("1"))
    result = append(store, "acme", new_event("1", expected_version=1), new_event("1", expected_version=1))
    assert list(result.seqs) == [2, 3]


def test_expected_version_of_an_entity_that_lies_in_the_archive_alone(
    store: Store, clock: FixedClock
) -> None:
    make_tenant(store)
    append(store, "acme", new_event("old"), new_event("both"))
    clock.move_to(START_US + DAY_US)
    append(store, "acme", new_event("both"), new_event("new"))
    run_retention(store, START_US + DAY_US)
    assert store.tiers.state("acme").archived_through == 2
    expected = {"old": 1, "both": 3, "new": 4, "none": 0}
    for entity_id, version in expected.items():
        with pytest.raises(VersionConflictError) as caught:
            append(store, "acme", new_event(entity_id, expected_version=version + 100))
        assert caught.value.conflicts[0].actual == version, entity_id
    together = append(store, "acme", *(new_event(e, expected_version=v) for e, v in expected.items()))
    assert list(together.seqs) == [5, 6, 7, 8]
    whole(store)


def test_writers_that_race_for_a_version_are_stored_once(store: Store) -> None:
    make_tenant(store)
    committer = GroupCommitter(store.appender, workers=4)
    with ThreadPoolExecutor(8) as executor:
        for version in range(5):

            def attempt(n: int, version: int = version) -> Any:
                request = AppendRequest([new_event("1", actor=f"a{n}", expected_version=version)])
                return committer.submit("acme", request).exception(30)

            errors = list(executor.map(attempt, range(8)))
            assert errors.count(None) == 1
            assert all(isinstance(e, StateError) for e in errors if e is not None)
    committer.close()
    assert last_seq(store) == 5
    whole(store)


def test_appenders_of_different_processes_make_one_log(store: Store) -> None:
    """Two appenders share nothing but the database, as two processes do."""
    from eventstore.hot.append import Appender

    make_tenant(store)
    clock = FixedClock(START_US)
    others = [
        Appender(store.database, archived_versions=store.reader.archived_versions, clock=clock)
        for _ in range(4)
    ]

    def write(appender: Appender) -> list[int]:
        return [
            seq
            for n in range(10)
            for outcome in appender.append("acme", [AppendRequest([new_event(str(n)), new_event(str(n))])])
            for seq in stored(outcome).seqs
        ]

    with ThreadPoolExecutor(4) as executor:
        given = sorted(seq for found in executor.map(write, others) for seq in found)
    assert given == list(range(1, 81))
    whole(store)


# --- the tenant's clock and its windows -------------------------------------------------------------


def states(store: Store) -> list[tuple[str, int, int, int]]:
    return [
        (state, to_us(start), to_us(end), first)
        for state, start, end, first in execute(
            store.database.url,
            "SELECT state, window_from, window_to, first_seq FROM windows ORDER BY window_from",
        )
    ]


def test_recorded_at_never_decreases(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    for at_us in (5, 3, DAY_US, -DAY_US, DAY_US + 1):
        clock.move_to(START_US + at_us)
        append(store, "acme", new_event())
    times = [to_us(row["recorded_at"]) - START_US for row in read(store, "acme")]
    assert times == [5, 5, DAY_US, DAY_US, DAY_US + 1]
    assert len(states(store)) == 2
    whole(store)


def test_occurred_at_is_the_callers_and_may_be_any_time(store: Store) -> None:
    from eventstore.clock import from_us

    make_tenant(store)
    for at_us in (-62_135_596_800_000_000, 253_402_300_799_999_999, 0):
        append(store, "acme", new_event(occurred_at=from_us(at_us)))
        assert to_us(read(store, "acme")[-1]["occurred_at"]) == at_us
    whole(store)


def test_an_event_after_sealing_lands_in_the_next_window(store: Store, clock: FixedClock) -> None:
    """However wrong its writer's clock: the tenant's clock has been moved past the sealed window."""
    make_tenant(store)
    append(store, "acme", new_event("1"))
    run_retention(store, START_US + DAY_US)
    clock.move_to(START_US + 12 * HOUR_US)  # still inside the sealed window
    append(store, "acme", new_event("2"))
    assert to_us(read(store, "acme")[-1]["recorded_at"]) == START_US + DAY_US
    assert states(store) == [
        ("dropped", START_US, START_US + DAY_US, 1),
        ("open", START_US + DAY_US, START_US + 2 * DAY_US, 2),
    ]
    whole(store)


def test_the_last_microsecond_of_a_window_belongs_to_it(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    for at_us in (START_US, START_US + DAY_US - 1, START_US + DAY_US):
        clock.move_to(at_us)
        append(store, "acme", new_event())
    assert [first for _, _, _, first in states(store)] == [1, 3]


def test_windows_without_events_do_not_exist(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    append(store, "acme", new_event())
    clock.move_to(START_US + 10 * DAY_US)
    append(store, "acme", new_event())
    assert [start for _, start, _, _ in states(store)] == [START_US, START_US + 10 * DAY_US]
    assert len(leaves(store.database.url)) == 2


@pytest.mark.parametrize(
    ("old", "new"), [("day", "hour"), ("hour", "month"), ("week", "day"), ("day", "week")]
)
def test_when_the_unit_changes_windows_neither_meet_nor_leave_a_gap(
    store: Store, clock: FixedClock, old: str, new: str
) -> None:
    make_tenant(store, unit=WindowUnit(old))
    append(store, "acme", new_event("1"))
    execute(store.database.url, f"UPDATE tenants SET window_unit = '{new}'")
    # The open window stays as it was made; what follows is of the new unit, clipped where the old one ends.
    for step in range(1, 10):
        clock.move_to(START_US + step * 19 * HOUR_US)
        append(store, "acme", new_event(str(step)))
    found = states(store)
    for (_, _, end, _), (_, start, _, _) in itertools.pairwise(found):
        assert end <= start
    assert found[0][0] == WindowState.OPEN
    assert seqs(read(store, "acme")) == list(range(1, 11))
    run_retention(store, START_US + 60 * DAY_US)
    assert seqs(read(store, "acme")) == list(range(1, 11))
    assert {state for state, *_ in states(store)} == {"dropped"}
    whole(store)
