"""What a legal hold would cover and stop, and what its end would let go, counted against the log itself."""

from __future__ import annotations

import random

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.governance.holds import get_hold_by_id, list_holds, place_hold
from eventstore.governance.policies import apply_change
from eventstore.governance.tenants import create_tenant
from eventstore.model.explain import PolicyFacts
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.policy import (
    ArchiveTier,
    Ending,
    Policy,
    PolicyInForce,
    PolicyOverride,
    PolicyVersion,
)
from eventstore.model.run import RunKind
from eventstore.model.window import Window, WindowUnit
from eventstore.query import scope as scope_module
from eventstore.query.scope import ScopeMeasure, destroyed_at, measure_release, measure_scope
from eventstore.retention.compactor import RunOrder
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, execute, new_event, read, run_retention

NOW_US = START_US + 8 * DAY_US
ALL = HoldScope()


@pytest.fixture
def acme(store: Store, clock: FixedClock) -> Store:
    """Eight days of events at every fourth hour, of entity 1, 2 or 3; the first five days are archived."""
    create_tenant(
        store.database,
        "acme",
        Policy(WindowUnit.DAY, 2 * DAY_US, (ArchiveTier("archive", 3 * DAY_US),), Ending.EXPIRE),
    )
    clock.move_to(START_US)
    for hour in range(0, 8 * 24, 4):
        clock.move_to(START_US + hour * HOUR_US)
        append(store, "acme", *(new_event(str(hour % 3 + 1)) for _ in range(1 + hour % 5)))
    assert run_retention(store, START_US + 7 * DAY_US, "acme").outcomes[0].windows == 5
    return store


def measured(store: Store, scope: HoldScope, **more: float) -> ScopeMeasure:
    return measure_scope(store.database, store.reader, "acme", scope, now_us=NOW_US, **more)


def events_of(found: ScopeMeasure) -> dict[str, int | None]:
    return {place.place: place.events for place in found.places if place.events}


def test_events_of_a_scope_are_counted_by_place_as_the_log_has_them(acme: Store) -> None:
    log = read(acme, "acme")
    chance = random.Random(5)
    moments = [START_US + chance.randrange(9 * 24 * 4) * HOUR_US // 4 for _ in range(6)]
    moments += [START_US, START_US + 3 * DAY_US, START_US + 3 * DAY_US + 4 * HOUR_US]
    scopes = [ALL, HoldScope((("order", "1"), ("order", "none"), ("order", "1")))]
    for _ in range(12):
        first, last = sorted(chance.sample(moments, 2))
        for bounds in ((first, last), (first, None), (None, last)):
            scopes.append(HoldScope((), *bounds))
            scopes.append(HoldScope((("order", "2"), ("order", "3")), *bounds))
    for scope in scopes:
        found = measured(acme, scope)
        expected: dict[str, int] = {}
        for row in log:
            us = row["recorded_at"].timestamp() * 1e6
            if scope.touches(us, us) and (
                not scope.entities or ("order", row["entity_id"]) in scope.entities
            ):
                place = "archive" if us < START_US + 5 * DAY_US else "hot"
                expected[place] = expected.get(place, 0) + 1
        assert found.exact
        assert events_of(found) == expected, scope
        assert all(place.events is not None and place.events <= place.kept for place in found.places)


def test_a_count_that_takes_long_ends_and_says_so(acme: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entities = HoldScope((("order", "1"), ("order", "2"), ("order", "3")))
    whole = measured(acme, entities).events
    cut = measured(acme, entities, budget_s=-1.0)
    assert not cut.exact
    assert cut.why
    assert cut.events is not None
    assert whole is not None
    assert 0 < cut.events < whole
    assert cut.kept == measured(acme, entities).kept, "what is kept is known all the same"
    monkeypatch.setattr(scope_module, "ENTITIES_READ_MAX", 2)
    many = measured(acme, entities)
    assert (many.exact, many.events) == (False, None)
    assert many.kept


def test_what_cannot_be_read_is_not_counted_and_is_not_hidden(acme: Store) -> None:
    for file in acme.settings.resolved_home.parent.joinpath("archive").rglob("*.parquet"):
        file.unlink()
    middle = measured(acme, HoldScope((), START_US + DAY_US + 5 * HOUR_US))
    assert (middle.exact, middle.events) == (False, None)
    assert "could not be read" in (middle.why or "")
    edge = measured(acme, HoldScope((), START_US + DAY_US))
    assert edge.exact, "a range of whole windows needs no look into the archive"
    named = measured(acme, HoldScope((("order", "1"),)))
    assert not named.exact
    assert named.kept


def test_the_destruction_that_a_hold_stops_is_told(acme: Store) -> None:
    # Destroyed five days after its end: of the windows that ended by day 3 the time has come.
    stops = measured(acme, ALL).stops
    assert (stops.windows, stops.due, stops.listed) == (8, 3, 0)
    assert stops.first_us == START_US + 6 * DAY_US
    notice = RunOrder(RunKind.EXPIRY, "test", notice_us=DAY_US)
    acme.compactor.run(acme.compactor.tenants("acme"), NOW_US, order=notice)
    assert measured(acme, ALL).stops.listed == 3
    some = measured(acme, HoldScope((), START_US + 2 * DAY_US, START_US + 4 * DAY_US)).stops
    assert (some.windows, some.due, some.listed) == (2, 1, 1)
    keep = PolicyOverride(tiers=(ArchiveTier("archive"),), ending=Ending.KEEP)
    apply_change(
        acme.database, "acme", keep, actor="op", reason="keep", now_us=NOW_US - 1, known_targets=["archive"]
    )
    assert measured(acme, ALL).stops.first_us is None


def test_what_a_release_lets_go_is_what_no_other_hold_keeps(acme: Store) -> None:
    def hold(name: str, scope: HoldScope) -> Hold:
        return place_hold(acme.database, "acme", name, "why", "counsel", scope, NOW_US)

    first = hold("first", HoldScope((), None, START_US + 3 * DAY_US))
    freed = measure_release(acme.database, "acme", first, now_us=NOW_US)
    assert (freed.windows, freed.due) == (3, 3)
    hold("second", HoldScope((), START_US + DAY_US, START_US + 2 * DAY_US))
    freed = measure_release(acme.database, "acme", first, now_us=NOW_US)
    assert (freed.windows, freed.due) == (2, 2)
    hold("third", ALL)
    assert measure_release(acme.database, "acme", first, now_us=NOW_US).windows == 0


def test_objects_that_are_still_to_be_deleted_are_covered_too(acme: Store) -> None:
    execute(
        acme.database.url,
        "INSERT INTO removals (target, key, tenant_id, window_from, reason, first_seq, last_seq,"
        " min_recorded_at, max_recorded_at, size_bytes, sha256) VALUES ('archive', 'k', 'acme',"
        " '2024-01-01Z', 'expired', 1, 40, '2024-01-01Z', '2024-01-02Z', 1, '\\x00')",
    )
    last = measured(acme, ALL).places[-1]
    assert (last.place, last.windows, last.kept, last.events) == ("being destroyed", 1, 40, 40)
    part = measured(acme, HoldScope((), None, START_US - DAY_US)).places
    assert [(p.place, p.kept, p.events) for p in part] == [("being destroyed", 40, None)]


def test_a_request_that_comes_twice_places_one_hold(acme: Store) -> None:
    hold = place_hold(acme.database, "acme", "case", "why", "counsel", ALL, NOW_US)
    again = place_hold(acme.database, "acme", "case", "why", "counsel", ALL, NOW_US + 1, hold_id=hold.hold_id)
    assert again == hold
    with acme.database.transaction() as conn:
        assert list_holds(conn, "acme") == [hold]
        assert get_hold_by_id(conn, "acme", hold.hold_id) == hold
    count = "SELECT count(*) FROM governance WHERE kind = 'hold_placed'"
    assert execute(acme.database.url, count) == [(1,)]


_WINDOW = Window(START_US, START_US + DAY_US)
_EXPIRES = Policy(WindowUnit.DAY, DAY_US, (ArchiveTier("a", 4 * DAY_US),), Ending.EXPIRE)
_LATER = Policy(WindowUnit.DAY, DAY_US, (ArchiveTier("a", 9 * DAY_US),), Ending.EXPIRE)
_KEEPS = Policy(WindowUnit.DAY, DAY_US, (ArchiveTier("a"),))
_ENDS_US = START_US + 6 * DAY_US


def _facts(now: Policy, *coming: tuple[int, Policy]) -> PolicyFacts:
    versions = [
        (PolicyVersion(n, "acme", PolicyOverride(), at_us, 0, "", ""), then)
        for n, (at_us, then) in enumerate(coming, 1)
    ]
    return PolicyFacts(PolicyInForce(now, 0), None, tuple(versions))


@pytest.mark.parametrize(
    ("facts", "at_us"),
    [
        (_facts(_EXPIRES), _ENDS_US),
        (_facts(_KEEPS), None),
        (_facts(_KEEPS, (_ENDS_US + DAY_US, _EXPIRES)), _ENDS_US + DAY_US),
        (_facts(_KEEPS, (_ENDS_US - DAY_US, _EXPIRES)), _ENDS_US),
        (_facts(_EXPIRES, (_ENDS_US - DAY_US, _KEEPS)), None),
        (_facts(_EXPIRES, (_ENDS_US + DAY_US, _KEEPS)), _ENDS_US),
        (_facts(_EXPIRES, (_ENDS_US - 1, _LATER)), _ENDS_US + 5 * DAY_US),
        (_facts(_KEEPS, (START_US, _EXPIRES), (START_US + DAY_US, _KEEPS)), None),
    ],
    ids=["expires", "keeps", "late", "in time", "saved", "too late", "longer", "withdrawn"],
)
def test_when_policies_want_a_window_destroyed(facts: PolicyFacts, at_us: int | None) -> None:
    assert destroyed_at(facts, _WINDOW) == at_us
