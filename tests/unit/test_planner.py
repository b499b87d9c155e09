"""The planner: pure, so that a dry run and a run make the same plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventstore.errors import CoverageError
from eventstore.model.policy import Policy
from eventstore.model.tenant import Head, Tenant
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit
from eventstore.retention.planner import FoundLeaf, TenantPlan, plan_tenant

DAY_US = 86_400_000_000
HOT_US = 2 * DAY_US
TENANT = Tenant("acme", 1, Policy(WindowUnit.DAY, HOT_US), 0)


def record(day: int, state: WindowState, first_seq: int, last_seq: int | None) -> WindowRecord:
    frozen = None if last_seq is None else bytes(32)
    window = Window(day * DAY_US, (day + 1) * DAY_US)
    return WindowRecord(window, state, f"leaf-{day}", first_seq, last_seq, frozen, frozen)


# Days 0 to 4, one in each state, and two open ones. Day 3 is missing: no event came.
WINDOWS = [
    record(0, WindowState.DROPPED, 1, 10),
    record(1, WindowState.ARCHIVED, 11, 15),
    record(2, WindowState.SEALED, 16, 16),
    record(4, WindowState.OPEN, 17, None),
    record(5, WindowState.OPEN, 20, None),
]
LAST_SEQ = 25


def leaves_of(windows: list[WindowRecord]) -> list[FoundLeaf]:
    return [FoundLeaf(w.leaf, w.window) for w in windows if w.state is not WindowState.DROPPED]


def plan(
    windows: list[WindowRecord] = WINDOWS,
    *,
    leaves: list[FoundLeaf] | None = None,
    last_seq: int = LAST_SEQ,
    archived_through: int = 15,
    now_us: int = 1000 * DAY_US,
    tenant: Tenant = TENANT,
) -> TenantPlan:
    return plan_tenant(
        tenant,
        leaves=leaves_of(windows) if leaves is None else leaves,
        windows=windows,
        head=Head(last_seq, bytes(32), 0, 0),
        archived_through=archived_through,
        now_us=now_us,
    )


def test_due_windows_come_oldest_first_with_exact_counts() -> None:
    made = plan()
    assert [w.record.window.from_us // DAY_US for w in made.due] == [1, 2, 4, 5]
    assert [w.event_count for w in made.due] == [5, 1, 3, 6]
    assert made.hot_windows == 0
    assert made.tenant is TENANT


def test_steps_go_on_from_the_state() -> None:
    steps = {w.record.state: w.steps for w in plan().due}
    assert steps[WindowState.OPEN] == ("seal", "write", "verify", "cut over", "drop")
    assert steps[WindowState.SEALED] == ("write", "verify", "cut over", "drop")
    assert steps[WindowState.ARCHIVED] == ("verify", "drop")


def test_a_dropped_window_is_not_due_and_an_empty_log_plans_nothing() -> None:
    assert all(w.record.state is not WindowState.DROPPED for w in plan().due)
    empty = plan([], last_seq=0, archived_through=0)
    assert (empty.due, empty.hot_windows) == ((), 0)


def test_hot_for_counts_from_the_windows_end_to_the_microsecond() -> None:
    due_us = 5 * DAY_US + HOT_US  # day 4 ends at 5
    for now_us, due, hot in ((due_us - 1, 2, 2), (due_us, 3, 1), (due_us + 1, 3, 1)):
        made = plan(now_us=now_us)
        assert (len(made.due), made.hot_windows) == (due, hot), now_us


def test_a_window_that_is_half_way_waits_for_its_time_too() -> None:
    assert plan(now_us=0).due == ()
    assert plan(now_us=0).hot_windows == 4


def test_hot_for_zero_is_due_at_the_windows_end() -> None:
    at_once = replace(TENANT, policy=Policy(WindowUnit.DAY, 0))
    assert len(plan(tenant=at_once, now_us=6 * DAY_US).due) == 4
    assert len(plan(tenant=at_once, now_us=6 * DAY_US - 1).due) == 3


def test_a_younger_window_is_never_taken_before_an_older_one() -> None:
    due = plan(now_us=5 * DAY_US + HOT_US).due
    assert [w.record for w in due] == WINDOWS[1:4]


def test_the_plan_of_the_same_facts_is_the_same() -> None:
    assert plan() == plan(leaves=leaves_of(WINDOWS)[::-1])


@pytest.mark.parametrize(
    ("leaves", "named"),
    [
        pytest.param(leaves_of(WINDOWS)[1:], "leaf-1", id="a partition is gone"),
        pytest.param([*leaves_of(WINDOWS), FoundLeaf("x", Window(9, 10))], "x", id="nobody recorded it"),
        pytest.param(
            [FoundLeaf("renamed", WINDOWS[1].window), *leaves_of(WINDOWS)[1:]], "leaf-1", id="renamed"
        ),
        pytest.param(
            [FoundLeaf("leaf-1", Window(DAY_US, 2 * DAY_US + 1)), *leaves_of(WINDOWS)[1:]],
            "leaf-1",
            id="other bounds",
        ),
        pytest.param(
            [*leaves_of(WINDOWS), FoundLeaf("leaf-0", WINDOWS[0].window)], "leaf-0", id="dropped, yet there"
        ),
    ],
)
def test_partitions_that_the_catalog_does_not_know(leaves: list[FoundLeaf], named: str) -> None:
    with pytest.raises(CoverageError, match=f"partition {named} of 'acme'") as caught:
        plan(leaves=leaves)
    assert "by hand" in caught.value.hint


def changed(index: int, **values: object) -> list[WindowRecord]:
    windows = list(WINDOWS)
    windows[index] = replace(windows[index], **values)  # type: ignore[arg-type]
    return windows


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        pytest.param(changed(0, first_seq=2), "must hold 1 to 10", id="does not begin at 1"),
        pytest.param(changed(2, first_seq=17, last_seq=17), "holds seq 11 to 15, but", id="a gap"),
        pytest.param(changed(1, last_seq=16), "holds seq 11 to 16", id="an overlap"),
        pytest.param(WINDOWS[:1] + WINDOWS[2:], "holds seq 1 to 10, but", id="one is missing"),
        pytest.param(
            [replace(WINDOWS[0], state=WindowState.SEALED), *WINDOWS[1:]],
            "archived before an older one",
            id="not a prefix",
        ),
    ],
)
def test_windows_that_do_not_follow_one_another(windows: list[WindowRecord], message: str) -> None:
    with pytest.raises(CoverageError, match=message):
        plan(windows)


def test_the_last_window_ends_at_the_head() -> None:
    sealed = [*WINDOWS[:4], record(5, WindowState.SEALED, 20, 24)]
    with pytest.raises(CoverageError, match="must hold 20 to 25"):
        plan(sealed)


@pytest.mark.parametrize("archived_through", [10, 14, 16])
def test_the_watermark_is_where_the_archived_windows_end(archived_through: int) -> None:
    with pytest.raises(CoverageError, match=f"should reach seq 15, the watermark says {archived_through}"):
        plan(archived_through=archived_through)
