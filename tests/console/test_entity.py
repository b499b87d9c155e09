"""The page of an entity: its timeline over both tiers, its state at any time, and who touched it."""

from __future__ import annotations

import html
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock, to_iso
from eventstore.console.difference import difference
from eventstore.console.values import readable
from eventstore.model.access import Role
from eventstore.model.tenant import READS_TENANT
from eventstore.query import life
from eventstore.query.as_of import entity_as_of
from tests.console.hostile import PAYLOADS, Parsed, findings
from tests.console.served import Person, served_console
from tests.console.walking import own_store
from tests.unit.helpers import DAY_US, START_US, append, make_tenant, new_event, read, run_retention

PATH = "/console/t/acme/entity"
STRANGE = "a/b?c=d&e#f%2F +\"'é中<script>x</script>\u202e"


@dataclass
class World:
    """`acme` has four days; two are in the archive."""

    store: Store
    clock: FixedClock
    person: Person

    def page(self, **query: Any) -> str:
        return self.person.page(PATH, **query)


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("entity")
    with own_store(server_url, template_database, folder) as (store, clock):
        make_tenant(store)
        fill(store, clock)
        with served_console(store) as served:
            yield World(store, clock, served.person(Role.COMPLIANCE))


def fill(store: Store, clock: FixedClock) -> None:
    days: list[list[Any]] = [
        [
            new_event(action="created", actor="ann", new_value={"status": "draft", "total": 10}),
            new_event("dup", entity_type="invoice"),
            new_event(field="status", actor="bob", old_value="draft", new_value="sent to Ann on Monday"),
        ],
        [
            new_event(field="status", new_value="sent to Bob on Monday"),
            new_event("dup"),
            new_event(field="total", actor="bob", old_value=10, new_value=12.5),
        ],
        [
            new_event(STRANGE, new_value={"note": "x"}),
            new_event("gone", new_value={"a": 1}),
            new_event(field="note", old_value="two  blanks", new_value="two blanks"),
            *(new_event("busy", field=f"f{n % 4}", old_value=n, new_value=n + 1) for n in range(120)),
        ],
        [
            new_event("gone", action="deleted"),
            new_event(field="total", new_value=None, metadata={"why": "x"}),
        ],
    ]
    for day, events in enumerate(days):
        clock.move_to(START_US + day * DAY_US + DAY_US // 2)
        append(store, "acme", *events)
    run_retention(store, START_US + 2 * DAY_US)


def steps(page: str) -> list[int]:
    return [int(seq) for seq in re.findall(r'<li class="step" id="event-(\d+)"', page)]


def way_on(page: str) -> str | None:
    """Where the steps that follow are."""
    more = re.search(r'hx-get="([^"]*)" hx-target="closest li"', page)
    return html.unescape(more[1]) if more else None


def text_of(page: str) -> str:
    """What can be read, an element apart from the next."""
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
    return re.sub(r" ([.,;:])", r"\1", text)


def seqs_of(world: World, entity_id: str, **wanted: Any) -> list[int]:
    return [row["seq"] for row in read(world.store, "acme", entity_id=entity_id, **wanted)]


# --- the timeline -------------------------------------------------------------------------------------


def test_a_life_is_shown_over_both_tiers_newest_first(world: World) -> None:
    page = world.page(entity_type="order", entity_id="1")
    expected = seqs_of(world, "1")
    assert steps(page) == expected[::-1]
    places = re.findall(r'id="event-(\d+)".*?<span class="pill (\w+)">', page, re.DOTALL)
    assert [(int(seq), tier) for seq, tier in places] == [
        (seq, "archive" if seq <= 6 else "hot") for seq in expected[::-1]
    ]
    assert all(f'href="/console/t/acme/event/{seq}"' in page for seq in expected)
    assert '<del><span class="visually-hidden">taken out: </span>two··</del>' in page
    assert "differs only in white space" in page
    assert "old: 10 → new: 12.5" in text_of(page)
    assert steps(world.page(entity_type="order", entity_id="1", order="asc")) == expected


def test_an_old_value_that_the_event_does_not_say_is_that_of_the_one_before(world: World) -> None:
    page = world.page(entity_type="order", entity_id="1")
    assert "sent to taken out: Ann put in: Bob on Monday" in text_of(page)
    assert "The event does not say the old value; compared with #3." in text_of(page)
    assert "The event does not say the old value; compared with #6." in text_of(page)
    # the first one of the field after an event about the whole entity is compared with nothing
    assert text_of(page).count("does not say the old value") == 2


def test_one_field_alone(world: World) -> None:
    page = world.page(entity_type="order", entity_id="1", field="status")
    assert steps(page) == seqs_of(world, "1", field="status")[::-1]
    assert "Ann put in: Bob" in text_of(page)
    nothing = world.page(entity_type="order", entity_id="1", field="x<y")
    assert steps(nothing) == []
    assert "No event on the field x<y here." in text_of(nothing)


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("most", [2000, 50], ids=["all at hand", "in parts"])
@pytest.mark.parametrize("field", ["", "f2"])
def test_pages_follow_one_another(
    world: World, monkeypatch: pytest.MonkeyPatch, order: str, most: int, field: str
) -> None:
    monkeypatch.setitem(life.EVENTS_MAX, life.Depth.GLANCE, most)
    monkeypatch.setattr(life, "_FIRST_EVENTS", 40)
    monkeypatch.setattr(life, "_PICKED_FROM_MAX", 30)
    page = world.page(entity_type="order", entity_id="busy", order=order, field=field)
    found, pages = steps(page), 1
    while (address := way_on(page)) is not None:
        assert len(steps(page)) <= 50
        assert steps(world.person.page(address)) == steps(world.person.fragment(address).text)
        page = world.person.fragment(address).text
        assert "<html" not in page
        found += steps(page)
        pages += 1
    expected = seqs_of(world, "busy", **({"field": field} if field else {}))
    assert found == (expected if order == "asc" else expected[::-1])
    assert pages > 1 or (most == 2000 and field)


def test_a_compaction_changes_nothing_but_the_tier(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with own_store(server_url, template_database, tmp_path_factory.mktemp("compacted")) as (store, clock):
        make_tenant(store)
        fill(store, clock)
        with served_console(store) as served:
            person = served.person(Role.READER)

            def told(**query: Any) -> list[str]:
                page = person.page(PATH, entity_type="order", entity_id="1", **query)
                page = re.sub(r'<span class="pill (hot|archive)">[^<]*</span>', "", page)
                return re.findall(r'<li class="step".*?</li>|<tr>.*?</tr>', page, re.DOTALL)

            before = told()
            assert len(steps("".join(before))) == 6
            run = threading.Thread(target=run_retention, args=(store, START_US + 9 * DAY_US))
            run.start()
            looks = 0
            while run.is_alive() or looks == 0:
                assert told() == before
                looks += 1
            run.join()
            assert told() == before
            page = person.page(PATH, entity_type="order", entity_id="1")
            assert page.count('<span class="pill archive">archive</span>') == 6 + 1  # and of the summary


# --- its state ----------------------------------------------------------------------------------------


def test_the_state_at_any_time_is_what_the_log_says(world: World) -> None:
    times = {row["recorded_at"] for row in read(world.store, "acme", entity_id="1")}
    for moment in sorted(times):
        as_of = moment.strftime("%Y-%m-%dT%H:%M:%S")
        text = text_of(world.page(entity_type="order", entity_id="1", as_of=as_of))
        expected = entity_as_of(
            world.store.reader, "acme", "1", entity_type="order", as_of_us=int(moment.timestamp() * 1e6)
        )
        assert expected.fields
        for name, setting in expected.fields.items():
            shown = readable(setting.value or "").text
            at = setting.origin.recorded_at[:19].replace("T", " ")
            assert f"{name} {shown} #{setting.origin.seq} {at} {setting.origin.actor}" in text
        names = re.findall(r'<table class="list state">.*?</table>', world.page(
            entity_type="order", entity_id="1", as_of=as_of), re.DOTALL)  # fmt: skip
        assert names[0].count('<th scope="row">') == len(expected.fields)


def test_before_its_first_event_it_had_none(world: World) -> None:
    text = text_of(world.page(entity_type="order", entity_id="1", as_of="2024-02-28T00:00"))
    assert "It had no event by then. Its first one is of 2024-03-01 12:00:00." in text


def test_an_end_is_said(world: World) -> None:
    page = world.page(entity_type="order", entity_id="gone")
    assert "It had ended: #" in text_of(page)
    then = to_iso(START_US + 3 * DAY_US)
    assert "It had ended" not in text_of(world.page(entity_type="order", entity_id="gone", as_of=then))


@pytest.mark.parametrize("as_of", ["yesterday", "2024-13-01T00:00", "9999-99-99"])
def test_what_is_no_time_is_refused(world: World, as_of: str) -> None:
    answer = world.person.get(PATH, entity_type="order", entity_id="1", as_of=as_of)
    assert answer.status_code == 400
    assert "is not a time" in answer.text


def test_from_a_step_to_the_state_just_then(world: World) -> None:
    page = world.page(entity_type="order", entity_id="1")
    (link,) = re.findall(r'href="([^"]*)#state">state then<span class="visually-hidden">, after #3<', page)
    text = text_of(world.person.page(html.unescape(link)))
    assert "status sent to Ann on Monday #3" in text


# --- what is said of it all ---------------------------------------------------------------------------


def test_who_touched_it_and_when(world: World) -> None:
    page = world.page(entity_type="order", entity_id="1")
    text = text_of(page)
    assert "bob 2 2024-03-01 12:00:00 2024-03-02 12:00:00" in text
    assert "ann 4 2024-03-01 12:00:00 2024-03-04 12:00:00" in text
    assert "First seen 2024-03-01 12:00:00 #1" in text
    assert "Last change 2024-03-04 12:00:00 #" in text
    assert "Events 6 Actors 2 Tiers hot 2 archive 4" in text


def together_of(world: World, page: str) -> str:
    """What htmx puts into a page of a long life when it is loaded."""
    (address,) = re.findall(r'<div class="life-now" hx-get="([^"]*)" hx-trigger="load"', page)
    answer = world.person.client.get(html.unescape(address), headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert "<html" not in answer.text
    return answer.text


@pytest.mark.parametrize("as_of", ["", "2024-03-03T12:00:00Z"])
def test_of_a_long_life_the_page_shows_the_newest_and_reads_on(
    world: World, monkeypatch: pytest.MonkeyPatch, as_of: str
) -> None:
    monkeypatch.setitem(life.EVENTS_MAX, life.Depth.PART, 60)
    seqs = seqs_of(world, "busy")
    page = world.page(entity_type="order", entity_id="busy", as_of=as_of)
    assert steps(page) == seqs[::-1][:50]
    assert "It has more than 50 events." in text_of(page)
    assert "Who touched it</h2>" not in page

    part = together_of(world, page)
    text = text_of(part)
    assert "Events more than 60" in text
    assert "Actors 1 in the newest 60 events" in text
    assert f"First seen 2024-03-03 12:00:00 #{seqs[0]} Last change 2024-03-03 12:00:00 #{seqs[-1]}" in text
    assert "In the newest 60 events; there are more" in text
    assert "A field that was set before them, and not since, is missing here." in text

    (whole,) = re.findall(r'hx-get="([^"]*)" hx-target="closest .life-now"', part)
    every = world.person.client.get(html.unescape(whole), headers={"HX-Request": "true"}).text
    assert "Events 120 Actors 1 Tiers hot 120" in text_of(every)
    assert "is missing here" not in every
    # Without htmx, the same addresses are pages with all of it.
    for address, shown in ((whole, "Events 120 Actors 1"), (whole.replace("=all", "=part"), "more than 60")):
        paged = world.person.page(html.unescape(address))
        assert shown in text_of(paged)
        assert steps(paged) == seqs[::-1][:50]


def test_a_whole_life_is_folded_however_little_of_it_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even a whole life may be held at once, its state is that of all events nevertheless."""
    monkeypatch.setitem(life.EVENTS_MAX, life.Depth.PART, 2)
    monkeypatch.setitem(life.EVENTS_MAX, life.Depth.GLANCE, 2)
    monkeypatch.setitem(life.EVENTS_MAX, life.Depth.ALL, 3)
    parts = [text_of(world.page(entity_type="order", entity_id="1", life=how)) for how in ("part", "all")]
    expected = entity_as_of(world.store.reader, "acme", "1", entity_type="order")
    for name, setting in expected.fields.items():
        at = setting.origin.recorded_at[:19].replace("T", " ")
        shown = f"{name} {readable(setting.value or '').text} #{setting.origin.seq} {at}"
        assert shown in parts[1]
    assert "is missing here" in parts[0]
    assert "is missing here" not in parts[1]
    assert "Events more than 3" in parts[1]


def test_a_field_of_a_long_life_is_looked_for_further_back_by_itself(world: World) -> None:
    page = world.page(entity_type="order", entity_id="busy", field="f1")
    found = steps(page)
    assert len(found) > 9
    assert 'hx-trigger="load, click"' not in page
    rare = world.page(entity_type="order", entity_id="busy", field="no-such")
    assert steps(rare) == []
    (address,) = re.findall(
        r'hx-get="([^"]*)" hx-target="closest li" hx-swap="outerHTML" hx-trigger="load, click"', rare
    )
    more = world.person.client.get(html.unescape(address), headers={"HX-Request": "true"}).text
    assert "No event on the field no-such here." in text_of(more)


def test_what_was_searched_is_said_where_nothing_is_found(world: World) -> None:
    text = text_of(world.page(entity_id="<nobody>"))
    last = read(world.store, "acme")[-1]["seq"]
    assert "No event of any type with the id <nobody> was found." in text
    assert f"Hot events 7–{last} Archive events 1–6; 2 windows" in text
    assert "order" not in text_of(world.page())  # the form alone


def test_an_id_of_several_types_is_a_choice(world: World) -> None:
    page = world.page(entity_id="dup")
    assert "Several entities have the id dup" in text_of(page)
    links = [html.unescape(a) for a in re.findall(r'href="(/console/t/acme/entity\?[^"]*)"', page)]
    assert [steps(world.person.page(link)) for link in links] == [
        seqs_of(world, "dup", entity_type=kind) for kind in ("invoice", "order")
    ]
    assert steps(world.page(entity_id="busy", order="asc"))[:1] == seqs_of(world, "busy")[:1]


def test_an_id_may_hold_anything(world: World) -> None:
    page = world.page(entity_type="order", entity_id=STRANGE)
    assert not findings(page)
    assert "a/b?c=d&e#f%2F +\"'é中<script>x</script>⟦U+202E⟧" in text_of(page)
    for link in re.findall(r'href="(/console/t/acme/entity\?[^"]*)"', page):
        assert steps(world.person.page(html.unescape(link))) == steps(page) != []


@pytest.mark.parametrize(
    "query",
    [
        {"entity_id": "a\0b"},
        {"entity_id": "1", "cursor": "x"},
        {"entity_id": "1", "order": "up"},
        {"entity_id": "1", "entity_type": "\0"},
    ],
)
def test_bad_questions_are_refused(world: World, query: dict[str, str]) -> None:
    assert world.person.get(f"{PATH}?{urlencode(query)}").status_code == 400


def test_the_read_is_written_down(world: World) -> None:
    world.page(entity_type="order", entity_id="1", field="status")
    entry = json.loads(read(world.store, READS_TENANT)[-1]["new_value"])
    assert entry["route"] == "GET /console/t/{tenant}/entity"
    assert entry["query"] == {"entity_type": "order", "entity_id": "1", "field": "status"}
    assert (entry["state"], entry["events"]) == ("answered", 6)
    assert entry["covered"]["archive"] == [{"first_seq": 1, "last_seq": 6}]


# --- values that were not meant to be read ------------------------------------------------------------

DEEP = "[" * 400 + "]" * 400
_VALUES: list[Any] = [
    *PAYLOADS,
    "x" * 1_000_000,
    "y " * 500_000,
    {f"k{n}": n for n in range(20_000)},
    json.loads(DEEP),
    "",
    None,
    0.1,
]


def test_hostile_values_are_text_and_bounded(world: World) -> None:
    tenant = "hostile"
    make_tenant(world.store, tenant)
    world.clock.move_to(START_US)
    for number, value in enumerate(_VALUES):
        name = PAYLOADS[number % len(PAYLOADS)]
        append(
            world.store,
            tenant,
            new_event(
                field=name.replace("\0", "") or "x",
                action=name[:100],
                actor=name,
                source=name,
                old_value=_VALUES[number - 1],
                new_value={"inner": value, name: [value]} if number % 2 else value,
            ),
        )
    with served_console(world.store) as served:
        person = served.person(Role.READER, tenant)
        address: str | None = f"/console/t/{tenant}/entity?entity_id=1&entity_type=order"
        found: list[int] = []
        while address is not None:
            answer = person.get(address)
            assert answer.status_code == 200
            assert not findings(answer.text)
            assert len(answer.content) < 700_000
            assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\u200b]", Parsed(answer.text).text)
            found += steps(answer.text)
            address = way_on(answer.text)
        assert found == list(range(len(_VALUES), 0, -1))
        for seq in range(len(PAYLOADS) + 1, len(_VALUES) + 1):
            answer = person.get(f"/console/t/{tenant}/event/{seq}")
            assert answer.status_code == 200
            assert len(answer.content) < 700_000


def test_a_difference_has_no_white_space_of_the_template(world: World) -> None:
    """What stands between the pieces of a text would be read as a part of it."""
    page = world.page(entity_type="order", entity_id="1", field="status")
    change = re.findall(r'<span class="diff">(.*?)</span></p>', page, re.DOTALL)
    words = re.sub(r'<span class="visually-hidden">[^<]*</span>|</?(?:del|ins)>', "", change[0])
    pieces = difference('"sent to Ann on Monday"', '"sent to Bob on Monday"').changes[0].pieces
    assert words == "".join(piece.text for piece in pieces)
