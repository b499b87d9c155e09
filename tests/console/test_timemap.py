"""The map of time: counted in the database, laid out as shapes; and policies and scopes in words."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.clock import from_us, parse_time_us, to_us
from eventstore.console.timemap import BARS_HEIGHT, WIDTH, colours, draw
from eventstore.console.words import duration, policy_sentences, scope_words
from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.policy import DEFAULT_POLICY, ArchiveTier, Ending, Policy
from eventstore.model.window import WindowUnit
from eventstore.query.timemap import (
    SLOTS_MAX,
    Gap,
    MapPart,
    Place,
    PlaceKind,
    TimeMap,
    ended_before,
    time_map,
)
from tests.conftest import create_database
from tests.unit.helpers import DAY_US, HOUR_US, START_US, execute

_PLACES = [
    Place(PlaceKind.EXPIRED),
    Place(PlaceKind.ARCHIVE, "deep"),
    Place(PlaceKind.ARCHIVE, "near"),
    Place(PlaceKind.HOT),
]
NOW_US = START_US + 4000 * DAY_US


# --- counted ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(server_url: str, template_database: str) -> Iterator[Database]:
    opened = Database(create_database(server_url, "timemap", template=template_database))
    opened.open()
    create_tenant(opened, "acme", Policy(WindowUnit.HOUR, 0))
    create_tenant(opened, "other", Policy(WindowUnit.HOUR, 0))
    yield opened
    opened.close()


def put(database: Database, windows: list[tuple[int, int, Place, int]], tenant: str = "acme") -> None:
    """Make a tenant's log consist of windows (from, to, place, events), as its catalog would say it."""
    states = {PlaceKind.EXPIRED: "expired", PlaceKind.ARCHIVE: "dropped", PlaceKind.HOT: "open"}
    for table in ("segments", "windows"):
        execute(database.url, f"DELETE FROM {table} WHERE tenant_id = '{tenant}'")
    seq, froms, tos, kinds, targets, firsts, lasts = 1, [], [], [], [], [], []
    for from_us_, to_us_, place, events in windows:
        froms.append(from_us(from_us_))
        tos.append(from_us(to_us_))
        kinds.append(states[place.kind])
        targets.append(place.target)
        firsts.append(seq)
        lasts.append(None if place.kind is PlaceKind.HOT else seq + events - 1)
        seq += events
    execute(
        database.url,
        "INSERT INTO windows (tenant_id, window_from, window_to, state, target, leaf, first_seq, last_seq,"
        " hash_before, hash_after) SELECT %s, f, t, k, g, %s || a, a, z,"
        " CASE WHEN z IS NULL THEN NULL ELSE '\\x00'::bytea END,"
        " CASE WHEN z IS NULL THEN NULL ELSE '\\x00'::bytea END"
        " FROM unnest(%s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[], %s::bigint[],"
        " %s::bigint[]) AS x(f, t, k, g, a, z)",
        [tenant, tenant, froms, tos, kinds, targets, firsts, lasts],
    )
    execute(
        database.url,
        "INSERT INTO segments (tenant_id, first_seq, last_seq, window_from, part, target, key, hash_before,"
        " hash_after, min_recorded_at, max_recorded_at, size_bytes, sha256, schema_version)"
        " SELECT tenant_id, first_seq, last_seq, window_from, 0, target, leaf, '\\x00', '\\x00', window_from,"
        " window_to - interval '1 us', 7, '\\x00', 1 FROM windows WHERE state = 'dropped' AND tenant_id = %s",
        [tenant],
    )
    execute(database.url, "UPDATE heads SET last_seq = %s WHERE tenant_id = %s", [seq - 1, tenant])


@st.composite
def logs(draw_: st.DrawFn) -> list[tuple[int, int, Place, int]]:
    """Windows of any length from an hour to a month, with gaps between them, in any mix of places."""
    at_us = to_us(from_us(draw_(st.integers(-(2**55), 2**55))).replace(minute=0, second=0, microsecond=0))
    found = []
    count = draw_(st.sampled_from([1, 5, SLOTS_MAX, SLOTS_MAX + 1, 300]))
    random = draw_(st.randoms(use_true_random=False))
    unit_us = draw_(st.sampled_from([HOUR_US, DAY_US, 7 * DAY_US, 30 * DAY_US]))
    spread = draw_(st.sampled_from([0, 1, 50]))
    for _ in range(count):
        at_us += unit_us * random.randint(0, spread)
        found.append((at_us, at_us + unit_us, random.choice(_PLACES[:3]), random.randint(1, 1000)))
        at_us += unit_us
    return [*found[:-1], (*found[-1][:2], _PLACES[3], found[-1][3])]


@settings(max_examples=25, deadline=None)  # the database's time
@given(windows=logs(), data=st.data())
def test_every_window_is_in_exactly_one_part_and_every_part_is_one_bar(
    database: Database, windows: list[tuple[int, int, Place, int]], data: st.DataObject
) -> None:
    put(database, windows)
    ends = sorted({us for window in windows for us in window[:2]})
    inside = HOUR_US // 2  # in the middle of a window, or beside one
    start = data.draw(st.sampled_from([None, *ends[:4], *(us + inside for us in ends[:4])]))
    end = data.draw(st.sampled_from([None, *ends[-4:], *(us - inside for us in ends[-4:])]))
    if start is not None and end is not None and start >= end:
        end = None
    found = time_map(database, "acme", now_us=ends[-1], from_us_=start, to_us_=end)
    shown = [w for w in windows if w[1] > found.from_us and w[0] < found.to_us]
    assert (found.first_us, found.last_us) == (ends[0], ends[-1])
    by_place: dict[Place, Counter[str]] = {}
    for window in shown:
        size = 7 if window[2].kind is PlaceKind.ARCHIVE else 0
        by_place.setdefault(window[2], Counter()).update(windows=1, events=window[3], size_bytes=size)
    for total in found.totals():
        expected = by_place.pop(total.place)
        assert {n: getattr(total, n) for n in expected} == dict(expected)
        mine = [w for w in shown if w[2] == total.place]
        assert (total.from_us, total.to_us) == (mine[0][0], max(w[1] for w in mine))
    assert not by_place
    # Each window lies in the part of its place into whose span its beginning falls.
    for part in found.parts:
        own = [w for w in shown if w[2] == part.place and part.from_us <= w[0] < part.to_us]
        assert (part.windows, part.events) == (len(own), sum(w[3] for w in own))

    drawing = draw(found, [], colours([t.place for t in found.totals()], []), ends[-1])
    assert Counter(bar.part for bar in drawing.bars) == Counter(found.parts)
    assert len(drawing.bars) * 3 + len(drawing.gaps) * 2 <= 370
    for bar in drawing.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.01
        assert 0 <= bar.y <= bar.y + bar.height <= BARS_HEIGHT + 0.01
    between = [(a[1], b[0]) for a, b in pairwise(windows) if b[0] > a[1]]
    visible = [(a, b) for a, b in between if a > found.from_us and b < found.to_us]
    named = {(gap.from_us, gap.to_us) for gap in found.gaps}
    assert named <= set(between)
    assert len(named) + found.gaps_more >= len(visible)
    longest = sorted(named, key=lambda gap: gap[1] - gap[0])
    assert all(b - a <= longest[0][1] - longest[0][0] for a, b in set(visible) - named)


def test_what_a_map_shows_is_one_tenant_s_and_up_to_now(database: Database) -> None:
    put(database, [(START_US, START_US + DAY_US, _PLACES[1], 10)])
    put(database, [(START_US - 9 * DAY_US, START_US, _PLACES[2], 99)], "other")
    found = time_map(database, "acme", now_us=START_US + 5 * DAY_US)
    assert [(p.place.name, p.windows, p.events) for p in found.parts] == [("deep", 1, 10)]
    assert (found.from_us, found.to_us) == (START_US, START_US + 5 * DAY_US)
    assert found.gaps == (Gap(START_US + DAY_US, START_US + 5 * DAY_US),)
    assert ended_before(database, "acme", START_US + DAY_US) == (1, 10)
    assert ended_before(database, "acme", START_US + DAY_US - 1) == (0, 0)
    assert ended_before(database, "other", START_US + DAY_US) == (1, 99)


def test_times_at_the_ends_of_the_calendar_can_be_shown(database: Database) -> None:
    first = parse_time_us("0005-03-01T00:00:00Z")
    put(
        database,
        [(first + n * 30 * DAY_US, first + (n + 1) * 30 * DAY_US, _PLACES[1], 1) for n in range(300)],
    )
    far = parse_time_us("9999-12-31T00:00:00Z")
    found = time_map(database, "acme", now_us=NOW_US, from_us_=parse_time_us("0001-01-01"), to_us_=far)
    assert (found.span, found.windows) == ("quarter", 300)
    decade = time_map(database, "acme", now_us=NOW_US, span="decade")
    assert sum(part.windows for part in decade.parts) == 300


# --- drawn --------------------------------------------------------------------------------------------


def a_map(parts: list[MapPart], days: int = 10) -> TimeMap:
    return TimeMap(
        START_US, START_US + days * DAY_US, None, tuple(parts), (), 0, START_US, START_US + days * DAY_US
    )


def a_part(day: int, place: Place, events: int, slot: int | None = None) -> MapPart:
    at_us = START_US + day * DAY_US
    return MapPart(
        START_US + (day if slot is None else slot) * DAY_US, place, 1, events, 0, at_us, at_us + DAY_US
    )


def test_bars_are_as_high_as_they_have_events_and_small_ones_are_seen() -> None:
    found = a_map([a_part(0, _PLACES[1], 100), a_part(1, _PLACES[1], 50), a_part(9, _PLACES[3], 0)])
    high, half, none = draw(found, [], colours(_PLACES, ["near", "deep"]), NOW_US).bars
    assert (high.x, high.width, high.height, high.y) == (0, 100, BARS_HEIGHT, 0)
    assert (half.x, half.height) == (100, BARS_HEIGHT / 2)
    assert (none.x, none.height) == (900, 3)
    assert (high.colour, none.colour) == ("archive-1", "hot")
    assert high.title == "2024-03-01 to 2024-03-02: deep, 100 events in 1 window"


def test_parts_of_one_span_stand_on_one_another() -> None:
    found = a_map([a_part(0, _PLACES[1], 30, 0), a_part(1, _PLACES[2], 70, 0), a_part(5, _PLACES[3], 10)])
    below, above, other = draw(found, [], colours(_PLACES, []), NOW_US).bars
    assert (below.x, below.width) == (above.x, above.width) == (0, 200)
    assert below.y == pytest.approx(above.y + above.height)
    assert below.height + above.height == pytest.approx(BARS_HEIGHT)
    assert other.height == pytest.approx(BARS_HEIGHT / 10)


def a_hold(name: str, **scope: object) -> Hold:
    return Hold(uuid.UUID(int=1), "acme", name, "why", "who", 0, HoldScope(**scope))  # type: ignore[arg-type]


def test_holds_lie_where_they_hold_and_too_many_share_a_lane() -> None:
    found = a_map([a_part(0, _PLACES[3], 1)])
    holds = [
        a_hold("all"),
        a_hold("some", entities=(("order", "1"),), from_us=START_US + DAY_US, to_us=START_US + 3 * DAY_US),
        a_hold("before", to_us=START_US),
        a_hold("later", from_us=START_US + 10 * DAY_US),
    ]
    drawn = draw(found, holds, colours(_PLACES, []), START_US + 5 * DAY_US)
    assert [(lane.x, lane.width, lane.partial) for lane in drawn.lanes] == [
        (0, WIDTH, False),
        (100, 200, True),
    ]
    assert (
        drawn.lanes[1].title
        == "Held by some: events of order 1 recorded from 2024-03-02 on and before 2024-03-04"
    )
    assert drawn.today_x == WIDTH / 2
    assert draw(found, holds, colours(_PLACES, []), START_US - 1).today_x is None
    many = draw(found, [a_hold(str(n)) for n in range(100)], colours(_PLACES, []), NOW_US)
    assert len(many.lanes) == 8
    assert many.lanes[-1].title == "93 more holds"


def test_a_place_keeps_its_colour_whatever_is_shown() -> None:
    near, deep = _PLACES[2], _PLACES[1]
    policy = ["near", "deep"]
    assert colours([deep], policy)[deep] == colours([near, deep], policy)[deep] == "archive-1"
    assert colours([near], policy)[near] == "archive-0"
    many = [Place(PlaceKind.ARCHIVE, f"t{n}") for n in range(9)]
    assert set(colours(many, []).values()) == {f"archive-{n}" for n in range(5)}


# --- in words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (DEFAULT_POLICY, ["Hot for 90 days.", "Then in 'archive', kept for ever."]),
        (
            Policy(
                WindowUnit.DAY,
                90 * DAY_US,
                (
                    ArchiveTier("near", 365 * DAY_US),
                    ArchiveTier("deep", 7 * 365 * DAY_US),
                    ArchiveTier("cold"),
                ),
            ),
            [
                "Hot for 90 days.",
                "Then 1 year in 'near'.",
                "Then 7 years in 'deep'.",
                "Then in 'cold', kept for ever.",
            ],
        ),
        (
            Policy(WindowUnit.HOUR, 0, (ArchiveTier("near", 36 * HOUR_US),), Ending.EXPIRE),
            [
                "Hot until the hour has ended.",
                "Then 1 day and 12 hours in 'near'.",
                "Then destroyed; a certificate stands for it.",
            ],
        ),
        # The last tier has a time, and keeps all the same.
        (
            Policy(WindowUnit.WEEK, DAY_US, (ArchiveTier("near", DAY_US),), Ending.KEEP),
            ["Hot for 1 day.", "Then in 'near', kept for ever."],
        ),
    ],
    ids=["built in", "three tiers", "expires", "keeps after a time"],
)
def test_a_policy_in_words(policy: Policy, said: list[str]) -> None:
    first, *rest = policy_sentences(policy)
    unit = policy.unit.value
    assert first == f"Events are kept together by the {unit}; times count from the end of each {unit}."
    assert rest == said


@given(st.integers(0, 10**17))
def test_a_length_of_time_in_words_is_exact(us: int) -> None:
    units = {"year": 365 * DAY_US, "day": DAY_US, "hour": HOUR_US, "minute": 60_000_000, "second": 1_000_000}
    total = 0
    for part in duration(us).replace(" and ", ", ").replace("no time", "0 seconds").split(", "):
        count, name = part.rsplit(" ", 1)
        whole, _, fraction = count.replace(",", "").partition(".")
        total += int(whole) * units[name.removesuffix("s")] + int(fraction.ljust(6, "0") or 0)
        assert (count == "1") == (not name.endswith("s"))
    assert total == us


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        (HoldScope(), "every event, past and future"),
        (HoldScope((), START_US), "every event recorded from 2024-03-01 on"),
        (HoldScope((), None, START_US + HOUR_US), "every event recorded before 2024-03-01 01:00Z"),
        (
            HoldScope(tuple(("order", str(n)) for n in range(5)), START_US, START_US + DAY_US),
            "events of order 0, order 1, order 2 and 2 more"
            " recorded from 2024-03-01 on and before 2024-03-02",
        ),
    ],
    ids=["all", "from", "to", "entities"],
)
def test_a_scope_in_words(scope: HoldScope, said: str) -> None:
    assert scope_words(scope) == said
