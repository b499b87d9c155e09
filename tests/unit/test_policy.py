"""Policies: layers and versions, what is withdrawn, the way of a window, what a change does, explanations."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from eventstore.clock import US_PER_S, parse_time_us
from eventstore.errors import HeldError, InputError, TargetUnavailableError
from eventstore.governance.holds import covering_holds
from eventstore.model.bloom import BLOCK_BYTES, BloomProbe, join_filters
from eventstore.model.explain import (
    BlockerKind,
    HoldOver,
    PolicyFacts,
    TaskFacts,
    WindowFacts,
    explain_facts,
)
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.itinerary import itinerary
from eventstore.model.policy import (
    DEFAULT_POLICY,
    ArchiveTier,
    Ending,
    Policy,
    PolicyInForce,
    PolicyOverride,
    PolicyVersion,
    policy_in_force,
)
from eventstore.model.policy_change import (
    EffectKind,
    WindowEffects,
    add_window,
    destroys_sooner,
    situations,
    standing,
)
from eventstore.model.run import TaskAction, TaskState
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit

DAY_US = 86_400 * US_PER_S
NOW_US = parse_time_us("2026-01-01")
GRACE_US = 7 * DAY_US
KEEP = Policy(WindowUnit.DAY, 10 * DAY_US, (ArchiveTier("near", 20 * DAY_US), ArchiveTier("deep")))
EXPIRE = PolicyOverride(
    tiers=(ArchiveTier("near", 20 * DAY_US), ArchiveTier("deep", 30 * DAY_US)), ending=Ending.EXPIRE
)


def version(
    no: int, override: PolicyOverride, effective: int, *, created: int | None = None
) -> PolicyVersion:
    """Times in days from NOW_US."""
    made_us = NOW_US + (effective if created is None else created) * DAY_US
    return PolicyVersion(no, "acme", override, NOW_US + effective * DAY_US, made_us, "ann", "test")


def days_ago(
    days: int, state: WindowState = WindowState.DROPPED, target: str | None = "near"
) -> WindowRecord:
    """A window of a day that ended so many days before NOW_US."""
    end_us = NOW_US - days * DAY_US
    last = None if state is WindowState.OPEN else 10
    hashes = None if last is None else b""
    return WindowRecord(Window(end_us - DAY_US, end_us), state, "leaf", 1, last, hashes, hashes, target)


def expiring(lifetime_days: int) -> PolicyOverride:
    return PolicyOverride(
        hot_for_us=0, tiers=(ArchiveTier("archive", lifetime_days * DAY_US),), ending=Ending.EXPIRE
    )


KEEP_O = PolicyOverride(ending=Ending.KEEP)


class TestVersions:
    def test_the_tenants_own_lies_over_the_default_and_both_over_what_is_built_in(self) -> None:
        default = PolicyVersion(1, None, PolicyOverride(unit=WindowUnit.WEEK, hot_for_us=1), 0, 0, "a", "r")
        own = PolicyVersion(2, "acme", PolicyOverride(hot_for_us=2), 0, 0, "a", "r")
        found = policy_in_force([default], [own], 5)
        assert (found.policy.unit, found.policy.hot_for_us, found.policy.tiers) == (
            WindowUnit.WEEK,
            2,
            DEFAULT_POLICY.tiers,
        )
        assert found.policy_no == 2
        assert policy_in_force([default], [], 5).policy_no == 1
        assert policy_in_force([], [], 5) == PolicyInForce(DEFAULT_POLICY, 0)

    def test_a_version_in_grace_is_not_in_force_until_its_time(self) -> None:
        own = standing([version(1, PolicyOverride(), -9), version(2, expiring(9), 7, created=0)])
        assert policy_in_force([], own, NOW_US + 7 * DAY_US - 1).policy_no == 1
        assert policy_in_force([], own, NOW_US + 7 * DAY_US).policy_no == 2

    @pytest.mark.parametrize("day", range(-1, 40))
    def test_what_was_withdrawn_in_its_grace_never_comes_into_force(self, day: int) -> None:
        own = [version(1, PolicyOverride(), -9), version(2, expiring(9), 7, created=0), version(3, KEEP_O, 3)]
        assert policy_in_force([], standing(own), NOW_US + day * DAY_US).policy_no in (1, 3)

    @pytest.mark.parametrize("day", range(-1, 40))
    def test_nor_does_it_when_what_withdrew_it_is_in_grace_too(self, day: int) -> None:
        """A mistaken short time, corrected to a longer one that still destroys sooner than the present: for
        the days between the two, the mistake must not be in force."""
        own = [
            version(1, PolicyOverride(), -9),
            version(2, expiring(9), 7, created=0),
            version(3, expiring(900), 8, created=1),
        ]
        assert policy_in_force([], standing(own), NOW_US + day * DAY_US).policy_no == (3 if day >= 8 else 1)

    def test_one_that_has_been_in_force_stands(self) -> None:
        own = [version(1, PolicyOverride(), -9), version(2, expiring(9), 7, created=0), version(3, KEEP_O, 8)]
        assert [v.policy_no for v in standing(own)] == [1, 2, 3]


class TestItinerary:
    def test_a_hot_window_goes_through_all_tiers(self) -> None:
        way = itinerary(EXPIRE.over(KEEP), days_ago(5, WindowState.OPEN, None), NOW_US)
        assert way.archive_us == NOW_US + 5 * DAY_US
        assert way.target == "near"
        assert way.moves == (("deep", NOW_US + 25 * DAY_US),)
        assert way.destroy_us == NOW_US + 55 * DAY_US

    def test_a_tier_whose_time_has_passed_is_left_out(self) -> None:
        assert itinerary(KEEP, days_ago(31, WindowState.OPEN, None), NOW_US).target == "deep"
        assert itinerary(KEEP, days_ago(31, WindowState.OPEN, None), NOW_US).moves == ()

    def test_where_a_sealed_window_was_to_go_it_goes(self) -> None:
        way = itinerary(KEEP, days_ago(31, WindowState.SEALED, "near"), NOW_US)
        assert (way.target, way.moves) == ("near", (("deep", NOW_US - DAY_US),))

    def test_a_window_never_goes_back(self) -> None:
        assert itinerary(KEEP, days_ago(12, target="deep"), NOW_US).moves == ()

    def test_from_a_target_that_is_not_named_it_goes_to_the_tier_of_its_age(self) -> None:
        assert itinerary(KEEP, days_ago(12, target="gone"), NOW_US).moves == (
            ("near", NOW_US - 2 * DAY_US),
            ("deep", NOW_US + 18 * DAY_US),
        )
        assert itinerary(KEEP, days_ago(40, target="gone"), NOW_US).moves == (("deep", NOW_US - 10 * DAY_US),)


def change(
    before: Policy, after: Policy, record: WindowRecord, *, sooner: bool | None = None
) -> WindowEffects:
    """The effect of a tenant's change on one window of ten events."""
    own = [version(1, override(before), -99)]
    found = situations([], own, changes_default=False, override=override(after), now_us=NOW_US)
    effective_us = NOW_US + (GRACE_US if destroys_sooner(found) else 0)
    assert sooner in (None, destroys_sooner(found))
    total = WindowEffects()
    add_window(total, found, record, 10, now_us=NOW_US, effective_us=effective_us)
    return total


def override(policy: Policy) -> PolicyOverride:
    return PolicyOverride(policy.unit, policy.hot_for_us, policy.tiers, policy.ending, policy.quality)


def kinds(total: WindowEffects) -> dict[tuple[str, str | None], Any]:
    return {(k.value, target): effect.first_us for (k, target), effect in total.effects.items()}


class TestChange:
    def test_an_end_where_there_was_none_destroys_sooner_and_never_before_the_grace(self) -> None:
        total = change(KEEP, EXPIRE.over(KEEP), days_ago(500, target="deep"), sooner=True)
        assert kinds(total) == {("destroyed sooner", None): NOW_US + GRACE_US}
        assert (total.events_destroyed_sooner, total.first_destruction_us) == (10, NOW_US + GRACE_US)

    def test_a_window_that_has_not_ended_is_told_but_not_counted(self) -> None:
        total = change(KEEP, EXPIRE.over(KEEP), days_ago(-1, WindowState.OPEN, None))
        assert total.events_destroyed_sooner == 0
        assert total.first_destruction_us == NOW_US + 61 * DAY_US

    def test_a_longer_time_is_no_danger(self) -> None:
        longer = PolicyOverride(
            tiers=(ArchiveTier("near", 20 * DAY_US), ArchiveTier("deep", 99 * DAY_US)), ending=Ending.EXPIRE
        )
        total = change(EXPIRE.over(KEEP), longer.over(KEEP), days_ago(40, target="deep"), sooner=False)
        assert kinds(total) == {("destroyed later", None): NOW_US + 89 * DAY_US}
        total = change(EXPIRE.over(KEEP), KEEP, days_ago(40, target="deep"), sooner=False)
        assert kinds(total) == {("not destroyed any more", None): None}

    def test_a_shorter_hot_time_archives_and_moves_sooner_and_shortens_the_life(self) -> None:
        short = PolicyOverride(hot_for_us=0)
        total = change(KEEP, short.over(KEEP), days_ago(5, WindowState.OPEN, None), sooner=False)
        assert kinds(total) == {
            ("archived sooner", "near"): NOW_US,
            ("moved sooner", "deep"): NOW_US + 15 * DAY_US,
        }
        expire = EXPIRE.over(KEEP)
        total = change(expire, short.over(expire), days_ago(5, WindowState.OPEN, None), sooner=True)
        assert total.events_destroyed_sooner == 10

    def test_what_is_due_before_the_change_comes_into_force_is_no_difference(self) -> None:
        expire = EXPIRE.over(KEEP)
        total = change(expire, PolicyOverride(hot_for_us=0).over(expire), days_ago(8, WindowState.OPEN, None))
        assert {kind for kind, _ in kinds(total)} == {"destroyed sooner", "moved sooner"}

    def test_another_target(self) -> None:
        far = PolicyOverride(tiers=(ArchiveTier("far"),))
        assert kinds(change(KEEP, far.over(KEEP), days_ago(5, WindowState.OPEN, None))) == {
            ("archived elsewhere", "far"): NOW_US + 5 * DAY_US,
            ("not moved any more", "deep"): None,
        }
        assert kinds(change(KEEP, far.over(KEEP), days_ago(12))) == {
            ("moved sooner", "far"): NOW_US,
            ("not moved any more", "deep"): None,
        }

    def test_a_change_of_the_default_is_compared_with_what_the_tenant_is_about_to_have_too(self) -> None:
        """The tenant keeps for ever now, and will expire by the default's tiers in three days."""
        tiers = PolicyOverride(hot_for_us=0, tiers=(ArchiveTier("archive", 50 * DAY_US),))
        default = [version(1, tiers, -99)]
        own = [version(2, PolicyOverride(ending=Ending.EXPIRE), 3, created=-4)]
        shorter = PolicyOverride(hot_for_us=0, tiers=(ArchiveTier("archive", 20 * DAY_US),))
        found = situations(default, own, changes_default=True, override=shorter, now_us=NOW_US)
        assert [s.from_us for s in found] == [NOW_US, NOW_US + 3 * DAY_US]
        assert destroys_sooner(found)
        assert not destroys_sooner(found[:1])

    def test_a_default_that_contradicts_what_a_tenant_is_about_to_have_is_refused(self) -> None:
        default = [version(1, PolicyOverride(tiers=(ArchiveTier("archive", DAY_US),)), -99)]
        own = [version(2, PolicyOverride(ending=Ending.EXPIRE), 3, created=-4)]
        endless = PolicyOverride(tiers=(ArchiveTier("archive"),))
        with pytest.raises(InputError, match="needs a time for its last tier"):
            situations(default, own, changes_default=True, override=endless, now_us=NOW_US)

    def test_effects_are_told_with_destruction_first(self) -> None:
        total = WindowEffects()
        for kind in (EffectKind.MOVED_LATER, EffectKind.DESTROYED_SOONER, EffectKind.ARCHIVED_LATER):
            total.note(kind, None, 1, 1)
        assert total.in_order()[0].kind is EffectKind.DESTROYED_SOONER


def hold(name: str, **scope: Any) -> Hold:
    return Hold(uuid.uuid4(), "acme", name, "why", "counsel", 0, HoldScope(**scope))


def filter_of(*ids: str) -> bytes:
    """A Bloom filter of one block that has exactly these ids."""
    bits = 0
    for name in ids:
        bits |= BloomProbe(name.encode())._mask
    return join_filters([bits.to_bytes(BLOCK_BYTES, "little")])


def unreadable(_: set[tuple[str, str]]) -> set[tuple[str, str]]:
    raise TargetUnavailableError("away")


def never_asked(_: set[tuple[str, str]]) -> set[tuple[str, str]]:
    raise AssertionError("the segment was read in vain")


class TestCoveringHolds:
    def cover(self, *holds: Hold, contains: Any = never_asked, filtered: bytes | None = None) -> list[str]:
        found = covering_holds(holds, first_us=100, last_us=200, entity_filter=filtered, contains=contains)
        return [h.name for h in found]

    def test_times_alone_decide_where_no_entity_is_named(self) -> None:
        assert self.cover(hold("all"), hold("before", to_us=100), hold("touch", to_us=101)) == [
            "all",
            "touch",
        ]
        assert self.cover(hold("after", from_us=201), hold("last", from_us=200)) == ["last"]

    def test_a_filter_that_excludes_every_entity_spares_the_reading(self) -> None:
        assert self.cover(hold("h", entities=(("order", "7"),)), filtered=filter_of("8")) == []

    def test_a_filter_is_never_enough_to_hold(self) -> None:
        held = hold("h", entities=(("order", "7"),))
        assert self.cover(held, filtered=filter_of("7"), contains=lambda wanted: set()) == []
        assert self.cover(held, filtered=filter_of("7"), contains=lambda wanted: wanted) == ["h"]
        assert self.cover(held, contains=lambda wanted: wanted) == ["h"]

    def test_the_segment_is_read_once_for_all_holds_and_tells_them_apart(self) -> None:
        asked: list[set[tuple[str, str]]] = []

        def contains(wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
            asked.append(wanted)
            return {("order", "7"), ("user", "1")} & wanted

        seven, eight = hold("7", entities=(("order", "7"),)), hold("8", entities=(("order", "8"),))
        other = hold("type", entities=(("order", "1"),))
        assert self.cover(seven, eight, other, contains=contains) == ["7"]
        assert asked == [{("order", "7"), ("order", "8"), ("order", "1")}]

    def test_what_cannot_be_read_is_held_and_said_why(self) -> None:
        said: list[Exception] = []
        found = covering_holds(
            [hold("h", entities=(("order", "7"),)), hold("out", to_us=50, entities=(("order", "7"),))],
            first_us=100,
            last_us=200,
            entity_filter=None,
            contains=unreadable,
            on_unreadable=said.append,
        )
        assert [h.name for h in found] == ["h"]
        assert [type(e) for e in said] == [TargetUnavailableError]
        assert not issubclass(TargetUnavailableError, HeldError)


def facts(record: WindowRecord, policy: Policy = KEEP, **more: Any) -> WindowFacts:
    in_force = PolicyFacts(
        PolicyInForce(policy, 1), version(1, override(policy), -99), more.pop("coming", ())
    )
    return WindowFacts("acme", record, 10, in_force, NOW_US, ("near", "deep"), **more)


class TestExplain:
    def test_a_hot_window(self) -> None:
        found = explain_facts(facts(days_ago(5, WindowState.OPEN, None)))
        assert found.place.startswith("hot")
        assert "its hot time is not over" in found.because[0]
        assert "policy version 1 (its own policy), in force since 2025-09-24" in found.because[1]
        assert [(s.what, s.due) for s in found.next] == [
            ("sealed, then archived to near", False),
            ("moved to deep", False),
        ]
        assert found.blocked_by == ()

    def test_one_whose_archiving_failed_says_so(self) -> None:
        task = TaskFacts(TaskAction.ARCHIVE, TaskState.FAILED, 3, "disk full")
        record = days_ago(11, WindowState.SEALED, "near")
        found = explain_facts(facts(record, task=task, older_hot=days_ago(12, WindowState.OPEN, None)))
        assert [s.due for s in found.next] == [True, False]
        assert {b.kind for b in found.blocked_by} == {BlockerKind.FAILED_TASK, BlockerKind.OLDER_WINDOW}
        assert "it was tried 3 times: disk full" in found.in_words()

    def test_an_archived_one_waits_for_readers(self) -> None:
        found = explain_facts(facts(days_ago(11, WindowState.ARCHIVED)))
        assert [b.kind for b in found.blocked_by] == [BlockerKind.READERS]
        assert found.next[0].what == "dropped from Postgres"

    def test_a_hold_blocks_destruction(self) -> None:
        held = HoldOver(hold("case 1"), certain=True)
        found = explain_facts(facts(days_ago(70, target="deep"), EXPIRE.over(KEEP), holds=[held]))
        assert [(s.what, s.due) for s in found.next] == [("destroyed", True)]
        assert [(b.kind, b.blocks) for b in found.blocked_by] == [(BlockerKind.HOLD, "destruction")]
        assert "held by 'case 1'" in found.in_words()
        doubtful = HoldOver(hold("case 1"), certain=False)
        found = explain_facts(facts(days_ago(70, target="deep"), holds=[doubtful]))
        assert "which the policy does not ask for: perhaps held" in found.in_words()

    def test_a_target_that_is_not_known(self) -> None:
        policy = PolicyOverride(tiers=(ArchiveTier("near", DAY_US), ArchiveTier("far"))).over(KEEP)
        found = explain_facts(facts(days_ago(5, WindowState.OPEN, None), policy))
        assert [(b.kind, b.blocks) for b in found.blocked_by] == [(BlockerKind.UNKNOWN_TARGET, "moving")]

    def test_a_policy_in_its_grace_time_is_told(self) -> None:
        coming = ((version(2, EXPIRE, 7, created=0), EXPIRE.over(KEEP)),)
        found = explain_facts(facts(days_ago(70, target="deep"), coming=coming))
        assert found.next == ()
        assert found.changes == (
            "policy version 2 comes into force on 2026-01-08: destroyed from 2026-01-08",
        )

    def test_a_destroyed_window(self) -> None:
        found = explain_facts(facts(days_ago(70, WindowState.EXPIRED), certificate=4))
        assert (found.place, found.next) == ("destroyed", ())
        assert "certificate 4 stands for it" in found.because[0]
        left = explain_facts(facts(days_ago(70, WindowState.EXPIRED), left=2))
        assert left.place == "being destroyed"
        assert "2 of its objects" in left.in_words()

    def test_as_json(self) -> None:
        found = explain_facts(facts(days_ago(11, WindowState.ARCHIVED))).as_json()
        assert found["blocked_by"][0]["kind"] == "readers"
        assert found["next"][1] == {
            "what": "moved to deep",
            "at": "2026-01-20T00:00:00.000000Z",
            "due": False,
            "target": "deep",
        }
