"""Policies of every kind: tiers follow one another, what is written is read back, and no change destroys what
nobody was asked about."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from eventstore.clock import US_PER_S, parse_time_us
from eventstore.errors import InputError
from eventstore.model.itinerary import itinerary
from eventstore.model.policy import (
    ArchiveTier,
    Ending,
    Policy,
    PolicyOverride,
    PolicyVersion,
    format_duration,
    parse_duration_us,
    policy_in_force,
)
from eventstore.model.policy_change import (
    Situation,
    WindowEffects,
    add_window,
    destroys_sooner,
    situations,
    standing,
)
from eventstore.model.quality import QualityAction, QualityRule
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit

DAY_US = 86_400 * US_PER_S
NOW_US = parse_time_us("2026-01-01")
GRACE_US = 7 * DAY_US
TARGETS = ("archive", "near", "deep", "far")

durations = st.integers(0, 400).map(lambda days: days * DAY_US)
# Whole seconds: the finest that a duration is written in.
fine_durations = st.integers(0, 10**9).map(lambda s: s * US_PER_S)


@st.composite
def tiers(
    draw: st.DrawFn, stays: st.SearchStrategy[int] = durations, *, ends: bool
) -> tuple[ArchiveTier, ...]:
    names = draw(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True))
    last = draw(stays) if ends else None
    return (*(ArchiveTier(n, draw(stays)) for n in names[:-1]), ArchiveTier(names[-1], last))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    ending = draw(st.sampled_from(Ending))
    return Policy(
        draw(st.sampled_from(WindowUnit)),
        draw(durations),
        draw(tiers(ends=ending is Ending.EXPIRE or draw(st.booleans()))),
        ending,
    )


@st.composite
def overrides(draw: st.DrawFn, stays: st.SearchStrategy[int] = durations) -> PolicyOverride:
    return PolicyOverride(
        draw(st.none() | st.sampled_from(WindowUnit)),
        draw(st.none() | stays),
        draw(st.none() | tiers(stays, ends=draw(st.booleans()))),
        draw(st.none() | st.sampled_from(Ending)),
        draw(
            st.none()
            | st.dictionaries(st.sampled_from(QualityRule), st.sampled_from(QualityAction), min_size=1)
        ),
    )


@st.composite
def records(draw: st.DrawFn) -> WindowRecord:
    end_us = NOW_US - draw(st.integers(-40, 1500)) * DAY_US
    state = draw(st.sampled_from([s for s in WindowState if s is not WindowState.EXPIRED]))
    window = Window(end_us - draw(st.sampled_from([1, 7, 30])) * DAY_US, end_us)
    if state is WindowState.OPEN:
        return WindowRecord(window, state, "leaf", 1, None, None, None)
    return WindowRecord(window, state, "leaf", 1, 10, b"", b"", draw(st.sampled_from(TARGETS)))


@st.composite
def versions(draw: st.DrawFn) -> list[PolicyVersion]:
    """Made one after the other, each in force at once or after a grace."""
    made_us, found = NOW_US - 100 * DAY_US, []
    for number in range(1, draw(st.integers(1, 6))):
        made_us += draw(st.integers(0, 20)) * DAY_US
        grace_us = draw(st.sampled_from([0, GRACE_US, 30 * DAY_US]))
        found.append(PolicyVersion(number, "a", draw(overrides()), made_us + grace_us, made_us, "x", "y"))
    return found


def resolved(before: list[PolicyVersion], own: list[PolicyVersion], at_us: int) -> Policy | None:
    try:
        return policy_in_force(before, own, at_us).policy
    except InputError:
        return None  # they contradict each other: no such thing is ever stored


@given(policies(), records(), st.lists(st.integers(-100, 3000), min_size=2, max_size=10))
def test_a_window_only_ever_goes_on_to_later_tiers(
    policy: Policy, record: WindowRecord, days: list[int]
) -> None:
    found = [policy.tier_at(record.window, record.window.to_us + day * DAY_US) for day in sorted(days)]
    numbers = [-1 if index is None else index for index in found]
    assert numbers == sorted(numbers)


@given(policies(), records())
def test_times_add_up(policy: Policy, record: WindowRecord) -> None:
    starts = policy.tier_starts(record.window)
    assert starts[0] == policy.archive_at(record.window) == record.window.to_us + policy.hot_for_us
    for index, start in enumerate(starts[1:]):
        assert (
            start
            == starts[index] + (policy.tiers[index].for_us or 0)
            == policy.tier_end(record.window, index)
        )
    expires = policy.expires_at(record.window)
    if policy.ending is Ending.KEEP:
        assert policy.lifetime_us is None
        assert expires is None
    else:
        assert expires == starts[-1] + (policy.tiers[-1].for_us or 0)
        assert expires == record.window.to_us + (policy.lifetime_us or 0)


@given(policies(), records(), st.integers(0, 2000))
def test_the_way_of_a_window_agrees_with_the_tier_of_its_age(
    policy: Policy, record: WindowRecord, later: int
) -> None:
    """Whoever follows the itinerary to a time is then in the tier in which a window of that age belongs, or
    further on."""
    at_us = NOW_US + later * DAY_US
    way = itinerary(policy, record, NOW_US)
    wanted = policy.tier_at(record.window, at_us)
    names = [tier.target for tier in policy.tiers]
    hot = record.state in (WindowState.OPEN, WindowState.SEALED)
    place = None if way.archive_us is not None and way.archive_us > at_us else way.target
    for target, when in way.moves:
        if place is not None and when <= at_us:
            place = target
    if wanted is None:
        assert place is None or not hot
        return
    assert place in names
    assert names.index(place) >= wanted


@given(overrides(fine_durations))
def test_an_override_is_read_back_as_it_was_written(override: PolicyOverride) -> None:
    assert PolicyOverride.from_json(json.loads(json.dumps(override.as_json()))) == override


@given(fine_durations)
@example(0)
def test_a_duration_is_read_back_as_it_was_written(us: int) -> None:
    assert parse_duration_us(format_duration(us)) == us


@given(overrides(), overrides(), policies())
def test_a_change_laid_over_an_override_is_as_if_laid_over_the_result(
    first: PolicyOverride, second: PolicyOverride, base: Policy
) -> None:
    try:
        middle = first.over(base)
        expected = second.over(middle)
    except InputError:
        assume(False)
    assert first.changed_by(second).over(base) == expected


@given(versions(), st.integers(-150, 150))
def test_only_the_newest_that_stood_its_grace_is_in_force(found: list[PolicyVersion], day: int) -> None:
    """Against a walk through time: a version comes into force if no later one was made before its time."""
    at_us = NOW_US + day * DAY_US
    current = 0
    for index, version in enumerate(found):
        later = found[index + 1 :]
        withdrawn = any(v.created_us < version.effective_us for v in later)
        if not withdrawn and version.effective_us <= at_us:
            current = version.policy_no
    try:
        assert policy_in_force([], standing(found), at_us).policy_no == current
    except InputError:
        assume(False)


@given(versions(), overrides(), st.lists(records(), min_size=1, max_size=5))
def test_a_change_that_asks_nobody_destroys_nothing_sooner(
    own: list[PolicyVersion], override: PolicyOverride, windows: list[WindowRecord]
) -> None:
    try:
        found = situations([], own, changes_default=False, override=override, now_us=NOW_US)
    except InputError:
        assume(False)
    total, effective_us = effects(found, windows)
    for record in windows:
        before, after = (p.expires_at(record.window) for p in (found[0].before, found[0].after))
        if not destroys_sooner(found):
            assert after is None or (before is not None and before <= after)
        elif before is None and after is not None:
            # Nothing of what had no end goes before the grace is over.
            assert effective_us == NOW_US + GRACE_US
            assert total.first_destruction_us is not None
            assert total.first_destruction_us >= NOW_US + GRACE_US
    if not destroys_sooner(found):
        assert (total.events_destroyed_sooner, total.first_destruction_us) == (0, None)


def effects(found: list[Situation], windows: list[WindowRecord]) -> tuple[WindowEffects, int]:
    effective_us = NOW_US + (GRACE_US if destroys_sooner(found) else 0)
    total = WindowEffects()
    for record in windows:
        add_window(total, found, record, 10, now_us=NOW_US, effective_us=effective_us)
    return total, effective_us


@given(versions(), overrides(), records(), st.integers(0, 300))
def test_whatever_is_in_force_later_destroys_nothing_in_the_grace_that_the_present_would_keep(
    own: list[PolicyVersion], override: PolicyOverride, record: WindowRecord, day: int
) -> None:
    """As a run would see it: with the new version stored, at any later time before the grace is over."""
    at_us = NOW_US + day * DAY_US
    own = [v for v in own if v.created_us <= NOW_US]
    try:
        found = situations([], own, changes_default=False, override=override, now_us=NOW_US)
    except InputError:
        assume(False)
    effective_us = NOW_US + (GRACE_US if destroys_sooner(found) else 0)
    new = PolicyVersion(99, "a", override, effective_us, NOW_US, "x", "y")
    policy = resolved([], standing([*own, new]), at_us)
    assume(policy is not None)
    assert policy is not None
    expires_us = policy.expires_at(record.window)
    present_us = found[0].before.expires_at(record.window)
    due_then = expires_us is not None and expires_us <= at_us
    due_by_present = present_us is not None and present_us <= at_us
    if due_then and not due_by_present:
        assert at_us >= NOW_US + GRACE_US


@pytest.mark.parametrize("rule", QualityRule)
def test_rules_of_quality_are_laid_over_one_by_one(rule: QualityRule) -> None:
    base = Policy(WindowUnit.DAY, 0)
    found: Any = PolicyOverride(quality={rule: QualityAction.STOP}).over(base)
    assert found.quality == {**base.quality, rule: QualityAction.STOP}
