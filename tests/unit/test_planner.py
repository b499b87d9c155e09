"""The planner: pure, so that a dry run and a run make the same plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eventstore.errors import CoverageError
from eventstore.model.policy import ArchiveTier, Ending, Policy, PolicyInForce
from eventstore.model.run import TaskAction
from eventstore.model.tenant import Head, Tenant
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit
from eventstore.retention.planner import FoundLeaf, TenantPlan, plan_expiry, plan_tenant

DAY_US = 86_400_000_000
HOT_US = 2 * DAY_US
TENANT = Tenant("acme", 1, WindowUnit.DAY, 0)
POLICY = PolicyInForce(Policy(WindowUnit.DAY, HOT_US), 7)
# Hot for two days, then three in `near`, ten in `deep`, then destroyed.
TIERS = (ArchiveTier("near", 3 * DAY_US), ArchiveTier("deep", 10 * DAY_US))
TIERED = PolicyInForce(Policy(WindowUnit.DAY, HOT_US, TIERS, Ending.EXPIRE), 8)


def record(
    day: int, state: WindowState, first_seq: int, last_seq: int | None, target: str = "archive"
) -> WindowRecord:
    frozen = None if last_seq is None else bytes(32)
    window = Window(day * DAY_US, (day + 1) * DAY_US)
    where = None if last_seq is None else target
    return WindowRecord(window, state, f"leaf-{day}", first_seq, last_seq, frozen, frozen, where)


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
    policy: PolicyInForce = POLICY,
    **more: Any,
) -> TenantPlan:
    return plan_tenant(
        TENANT,
        policy=policy,
        leaves=leaves_of(windows) if leaves is None else leaves,
        windows=windows,
        head=Head(last_seq, bytes(32), 0, 0),
        archived_through=archived_through,
        now_us=now_us,
        **more,
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
    at_once = PolicyInForce(Policy(WindowUnit.DAY, 0), 7)
    assert len(plan(policy=at_once, now_us=6 * DAY_US).due) == 4
    assert len(plan(policy=at_once, now_us=6 * DAY_US - 1).due) == 3


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


# --- tiers ------------------------------------------------------------------------------------------


def moved(*records: WindowRecord, now_us: int, **more: Any) -> list[tuple[int, TaskAction, str | None]]:
    """What is planned for archived windows of a tiered policy: the day, the action, and where to."""
    last_seq = records[-1].last_seq
    assert last_seq is not None
    made = plan(
        list(records), last_seq=last_seq, archived_through=last_seq, now_us=now_us, policy=TIERED, **more
    )
    return [(w.record.window.from_us // DAY_US, w.action, w.target) for w in made.due]


def test_a_window_moves_when_its_time_in_a_tier_is_over() -> None:
    near = record(0, WindowState.DROPPED, 1, 10, "near")
    moves_us = DAY_US + HOT_US + 3 * DAY_US
    assert moved(near, now_us=moves_us - 1) == []
    assert moved(near, now_us=moves_us) == [(0, TaskAction.MOVE, "deep")]
    assert moved(replace(near, target="deep"), now_us=moves_us) == []


def test_a_window_that_comes_late_goes_straight_to_the_tier_of_its_age() -> None:
    windows = [record(0, WindowState.SEALED, 1, 10), record(4, WindowState.OPEN, 11, None)]
    windows[0] = replace(windows[0], target=None)
    made = plan(windows, last_seq=12, archived_through=0, now_us=7 * DAY_US, policy=TIERED)
    assert [(w.action, w.target) for w in made.due] == [
        (TaskAction.ARCHIVE, "deep"),
        (TaskAction.ARCHIVE, "near"),
    ]


def test_what_was_frozen_with_a_target_is_retried_there() -> None:
    sealed = record(0, WindowState.SEALED, 1, 10, "near")
    made = plan([sealed], last_seq=10, archived_through=0, now_us=100 * DAY_US, policy=TIERED)
    assert [w.target for w in made.due] == ["near"]


def test_a_window_never_goes_back() -> None:
    deep = record(0, WindowState.DROPPED, 1, 10, "deep")
    assert moved(deep, now_us=DAY_US + HOT_US) == []  # by its age it would be in near
    elsewhere = replace(deep, target="old")
    assert moved(elsewhere, now_us=DAY_US + HOT_US) == [(0, TaskAction.MOVE, "near")]
    assert moved(elsewhere, now_us=DAY_US + HOT_US, left=[("near", deep.window)]) == []


def test_a_former_copy_that_is_still_there_is_due() -> None:
    deep = record(0, WindowState.DROPPED, 1, 10, "deep")
    assert moved(deep, now_us=20 * DAY_US, unremoved=[deep.window]) == [(0, TaskAction.MOVE, "deep")]


def test_targets_that_the_policy_does_not_name_are_told() -> None:
    made = plan(policy=TIERED)
    assert "archive" in made.warnings[0]


# --- expiry -----------------------------------------------------------------------------------------

EXPIRES_US = DAY_US + HOT_US + 13 * DAY_US  # of day 0


def expiring(*records: WindowRecord, now_us: int, **more: Any) -> TenantPlan:
    return plan_expiry(TENANT, policy=TIERED, windows=records, now_us=now_us, **{"held": {}, **more})


def test_a_window_expires_to_the_microsecond_and_only_from_the_archive() -> None:
    deep = record(0, WindowState.DROPPED, 1, 10, "deep")
    assert expiring(deep, now_us=EXPIRES_US - 1).due == ()
    (due,) = expiring(deep, now_us=EXPIRES_US).due
    assert (due.action, due.target, due.event_count) == (TaskAction.EXPIRE, None, 10)
    for state in (WindowState.SEALED, WindowState.ARCHIVED):
        made = expiring(replace(deep, state=state), now_us=EXPIRES_US)
        assert made.due == ()
        assert "not archived yet" in made.warnings[0]


def test_a_policy_that_keeps_never_destroys() -> None:
    deep = record(0, WindowState.DROPPED, 1, 10, "deep")
    keeps = PolicyInForce(replace(TIERED.policy, ending=Ending.KEEP), 9)
    made = plan_expiry(TENANT, policy=keeps, windows=[deep], held={}, now_us=10**6 * DAY_US)
    assert (made.due, made.archived_windows) == ((), 1)


def test_holds_are_named_and_an_expired_window_is_due_only_while_objects_are_left() -> None:
    deep = record(0, WindowState.DROPPED, 1, 10, "deep")
    (due,) = expiring(deep, now_us=EXPIRES_US, held={deep.window: ["case 7"]}).due
    assert due.held_by == ("case 7",)
    gone = replace(deep, state=WindowState.EXPIRED)
    assert expiring(gone, now_us=EXPIRES_US).due == ()
    (due,) = expiring(gone, now_us=EXPIRES_US, unremoved=[gone.window]).due
    assert due.steps == ("destroy",)
