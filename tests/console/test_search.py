"""The search page: links that ask the same again, rows and counts in parts that together are everything, and
what it says of where it looked."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

import pytest

from eventstore.console.asked import ROWS
from eventstore.console.pages import search as search_page
from eventstore.model.access import Role
from eventstore.model.tenant import READS_TENANT
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import own_store
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, make_tenant, new_event, read, run_retention

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
SEARCH = "/console/t/acme/search"
_ROW = re.compile(r'href="/console/t/acme/event/(\d+)"')
_MORE = re.compile(r'<tbody id="search-more" hx-get="([^"]*)" hx-trigger="load"')
_OLDER = re.compile(r'<a class="button" href="(/console/t/acme/search\?[^"]*)"')
_CHART_MORE = re.compile(r'<div id="search-chart" hx-get="([^"]*)" hx-trigger="load"')
_BAR = re.compile(r"<title>(\S+) to (\S+): ([\d,]+)( \([^)]*\))?</title>")


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedConsole]:
    """Six days of twenty events, four of the days archived."""
    folder = tmp_path_factory.mktemp("search")
    with own_store(server_url, template_database, folder) as (store, clock):
        make_tenant(store, hot_for_us=2 * DAY_US)
        make_tenant(store, "other")
        for day in range(6):
            clock.move_to(START_US + day * DAY_US + HOUR_US)
            for tenant in ("acme", "other"):
                append(store, tenant, *(_event(tenant, day, n) for n in range(20)))
        run_retention(store, START_US + 6 * DAY_US, "acme")
        make_tenant(store, "odd")
        append(store, "odd", new_event(HOSTILE, new_value="x" * 500 + HOSTILE + "y" * 500, actor=HOSTILE))
        with served_console(store) as found:
            yield found


@pytest.fixture(scope="module")
def reader(served: ServedConsole) -> Person:
    return served.person(Role.READER)


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough on the busiest machine, unless a test has it otherwise."""
    for name in ("_FIRST_S", "_CHART_S", "_PART_S"):
        monkeypatch.setattr(search_page, name, 60.0)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small step of the log in each part."""
    for name in ("_FIRST_S", "_CHART_S", "_PART_S"):
        monkeypatch.setattr(search_page, name, 0.0)
    monkeypatch.setattr("eventstore.query.walk._BRISK_EVENTS", 10)
    monkeypatch.setattr("eventstore.query.walk._BRISK_SPAN", 10)
    monkeypatch.setattr("eventstore.query.search._LAST_SEQS", 0)


def _event(tenant: str, day: int, n: int) -> object:
    return new_event(
        f"{day}/{n}",
        field="state",
        actor="ann" if n % 2 else "bö",
        old_value="draft",
        new_value=f"paid by {tenant}" if n == 7 else "signed",
    )


def _rows(text: str) -> list[int]:
    return [int(seq) for seq in _ROW.findall(text)]


def _link(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else html.unescape(found[1])


def _bars(text: str) -> list[tuple[str, str, int, str]]:
    return [(a, b, int(n.replace(",", "")), html.unescape(note)) for a, b, n, note in _BAR.findall(text)]


def test_newest_first_each_with_its_tier_and_window(reader: Person) -> None:
    page = reader.page(SEARCH)
    assert _rows(page) == list(range(120, 70, -1))
    rows = re.findall(r"<tr>\s*<td>.*?</tr>", page, re.DOTALL)
    for row, seq in zip(rows, _rows(page), strict=True):
        day = (seq - 1) // 20 + 1
        assert ("archive: archive" in row) == (day <= 4), row
        assert ('class="pill hot"' in row) == (day > 4)
        assert f"2024-03-0{day} – 2024-03-0{day + 1}" in row
        assert f"entity_type=order&amp;entity_id={day - 1}%2F" in row
    assert "Searched: seq <span" in page
    assert "40 hot" in page


def test_rows_go_on_in_place_and_as_pages_of_their_own(reader: Person) -> None:
    """With htmx or without it, the parts are the whole log, once."""
    page = reader.page(SEARCH)
    by_link, by_part = _rows(page), _rows(page)
    at = page
    while (address := _link(_OLDER, at)) is not None:
        at = reader.page(address)
        assert len(_rows(at)) <= ROWS
        by_link += _rows(at)
    at = page
    while found := re.search(r'hx-get="([^"]*)" hx-target="#search-more"', at):
        assert _link(_MORE, at) is None  # a full page waits to be asked
        part = reader.fragment(html.unescape(found[1]))
        assert part.status_code == 200
        assert "<html" not in part.text
        at = part.text
        by_part += _rows(at)
    assert by_link == by_part == list(range(120, 0, -1))
    assert "These are all: 120 events" in at
    assert "80 archived in 4 windows" in at


def test_a_search_that_takes_long_says_how_far_it_is_and_goes_on(
    reader: Person, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = reader.page(SEARCH, text="PAID")
    found, told = _rows(text), 0
    assert _rows(text) == [] or "Searched back to" in text
    while (address := _link(_MORE, text)) is not None:
        assert "Searched back to" in text
        assert "Search further back" in text  # for whoever has no script
        told += 1
        text = reader.fragment(address).text
        found += _rows(text)
    assert found == [8 + 20 * day for day in reversed(range(6))]
    assert told > 3
    assert "40 hot" in text
    assert "80 archived in 4 windows" in text
    # It does not go on by itself for ever.
    monkeypatch.setattr(search_page, "HOPS_MAX", 2)
    text, hops = reader.page(SEARCH, text="nowhere"), 0
    while (address := _link(_MORE, text)) is not None:
        text, hops = reader.fragment(address).text, hops + 1
    assert hops == 2
    assert "found nothing yet" in text
    assert "Search further back" in text


def test_a_page_in_the_browser_does_not_grow_without_end(
    reader: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_page, "SHOWN_MAX", 60)
    page = reader.page(SEARCH)
    more = re.search(r'hx-get="([^"]*)" hx-target="#search-more"', page)
    assert more is not None
    part = reader.fragment(html.unescape(more[1])).text
    assert _rows(part)[-1] == 21
    assert "hx-get" not in part
    assert _rows(reader.page(_link(_OLDER, part) or "")) == list(range(20, 0, -1))


def test_every_search_is_one_address(reader: Person) -> None:
    untidy = reader.get(SEARCH, actor="bö", text="", field="state", entity_id=" ", recorded_from="2024-03-02")
    assert untidy.status_code == 303
    tidy = untidy.headers["location"]
    assert parse_qsl(urlsplit(tidy).query) == [
        ("actor", "bö"),
        ("field", "state"),
        ("recorded_from", "2024-03-02"),
    ]
    page = reader.page(tidy)
    assert all(seq > 20 and seq % 2 for seq in _rows(page))
    for name, value in parse_qsl(urlsplit(tidy).query):
        assert re.search(rf'name="{name}" value="{value}"', page)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"recorded_from": "yesterday", "actor": "ann"}, "is not a time"),
        ({"occurred_to": "2024-01-01T00:00:00"}, "has no time zone"),
        ({"seq_from": "-1"}, "is no seq"),
        ({"recorded_from": "2024-03-03", "recorded_to": "2024-03-02"}, "is before the beginning"),
        ({"text": "x" * 200}, "128"),
        ({"limit": "1000"}, "is no number of rows"),
        ({"actr": "ann"}, 'There is no condition "actr"'),
    ],
)
def test_a_mistake_is_said_beside_its_field_and_nothing_typed_is_lost(
    reader: Person, params: dict[str, str], said: str
) -> None:
    answer = reader.get(SEARCH, **params)
    assert answer.status_code == 400
    assert said in html.unescape(answer.text)
    assert _rows(answer.text) == []
    for name, value in params.items():
        if name not in ("actr", "limit"):
            assert f'value="{value}"' in answer.text
    if not params.keys() & {"actr", "limit"}:
        assert answer.text.count('aria-invalid="true"') == 1


def test_the_chart_comes_with_the_page_or_after_it(reader: Person) -> None:
    """By time alone the catalog has the counts; without a script all counts are a link away."""
    times = {"recorded_from": "2024-03-01", "recorded_to": "2024-03-07"}
    page = reader.page(SEARCH, **times)
    assert _link(_CHART_MORE, page) is None
    assert sum(n for _, _, n, _ in _bars(page)) == 120
    page = reader.page(SEARCH, actor="ann", **times)
    assert _bars(page) == []
    asked = re.search(r'<a href="([^"]*)">Show the counts', page)
    assert asked is not None
    assert sum(n for _, _, n, _ in _bars(reader.page(html.unescape(asked[1])))) == 60


def test_the_chart_counts_in_parts_and_its_bars_lead_to_their_events(
    reader: Person, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"recorded_from": "2024-03-01", "recorded_to": "2024-03-07"}
    at, parts, uncounted = reader.page(SEARCH, actor="ann", **times), 0, []
    while (address := _link(_CHART_MORE, at)) is not None:
        at, parts = reader.fragment(address).text, parts + 1
        uncounted.append(sum("not all counted" in note for _, _, _, note in _bars(at)))
        assert at.count('class="uncounted"') == uncounted[-1]
    assert parts > 3
    assert uncounted == sorted(uncounted, reverse=True)
    assert uncounted[0] > uncounted[-1] == 0
    bars = _bars(at)
    assert sum(n for _, _, n, _ in bars) == 60
    assert (bars[0][0], bars[-1][1]) == ("2024-03-01T01:00:00Z", "2024-03-06T01:00:00.000001Z")
    # The same numbers as text, and each bar's link finds as many.
    cells = re.findall(r'<td class="num">([\d,]+)</td>', at)
    assert [int(cell) for cell in cells] == [n for _, _, n, _ in bars]
    monkeypatch.setattr(search_page, "_FIRST_S", 60.0)
    links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)" data-from', at)]
    for link, (_, _, count, _) in zip(links, bars, strict=True):
        if count:
            assert len(_rows(reader.page(link))) == count


def test_a_chart_that_reads_much_of_the_archive_asks_before_it_goes_on(
    served: ServedConsole, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it reads no segment after the one with which it has read enough."""
    monkeypatch.setattr(search_page, "CHART_BYTES_MAX", 1)
    person, asked = served.person(Role.READER), 0
    button = re.compile(
        r'<a class="button" href="([^"]*)"[^>]*>Count further back, reading up to 1 B of the archive</a>'
        r' <span class="muted small">All the rest takes up to [\d.,]+ KiB\.'
    )
    at = person.fragment(SEARCH, actor="ann", part="chart").text
    while True:
        while (address := _link(_CHART_MORE, at)) is not None:
            at = person.fragment(address).text
        address = _link(button, at)
        if address is None:
            break
        asked, at = asked + 1, person.fragment(address).text
    assert asked == 3  # of four segments; the last one was the first to be read
    assert sum(n for _, _, n, _ in _bars(at)) == 60
    assert "counted so far" not in at


@pytest.mark.parametrize(
    "params",
    [
        {"part": "rows", "so_far": "1-2"},
        {"part": "rows", "after": "x"},
        {"part": "chart", "bars": "1,2,3,4,5"},
        {"part": "chart", "bars": f"0,0,5,0,{10**17},1"},
        {"part": "chart", "bars": f"0,0,5,{-(10**17)},{9 * 10**17},{','.join('1' * 50)}"},
        {"part": "chart", "bars": "0,0,5,999999999999999000,999999999999999999,0"},  # beyond the year 9999
        {"part": "chart", "bars": f"0,0,5,{-(10**17)},{-(10**17) + 1000},0"},  # before the year 1
        {"part": "nothing"},
        {"part": "chart", "recorded_from": "never"},
    ],
)
def test_a_part_that_makes_no_sense_is_refused(reader: Person, params: dict[str, str]) -> None:
    answer = reader.fragment(SEARCH, **params)
    assert answer.status_code == 400, answer.text


def test_what_was_found_is_marked_and_stays_text(served: ServedConsole) -> None:
    page = served.person(Role.READER, "odd").page("/console/t/odd/search", text="<SCRIPT>")
    assert _rows(page.replace("/odd/", "/acme/")) == [1]
    assert "<mark>&lt;script&gt;</mark>" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "x" * 40 in page
    assert "x" * 41 not in page


def test_a_person_sees_their_own_tenant_alone(served: ServedConsole, reader: Person) -> None:
    assert reader.get("/console/t/other/search").status_code == 404
    assert _rows(reader.page(SEARCH, text="paid by other")) == []
    assert "exports?" not in reader.page(SEARCH, actor="ann")
    compliance = served.person(Role.COMPLIANCE)
    assert 'href="/console/t/acme/exports?actor=ann"' in compliance.page(SEARCH, actor="ann")


def test_searches_and_their_parts_are_written_down(served: ServedConsole) -> None:
    person = served.person(Role.COMPLIANCE)
    person.page(SEARCH, text="signed", actor="ann")
    person.fragment(SEARCH, actor="ann", part="rows", after="60")
    person.fragment(SEARCH, actor="ann", part="chart")
    rows = read(served.store, READS_TENANT, actor=person.subject)
    entries = [json.loads(row["new_value"]) for row in rows]
    asked = [e for e in entries if e["route"] == "GET /console/t/{tenant}/search"]
    assert [e["query"] for e in asked] == [
        {"text": "signed", "actor": "ann"},
        {"actor": "ann", "after": "60", "part": "rows"},
        {"actor": "ann", "part": "chart"},
    ]
    assert [e["events"] for e in asked] == [50, 29, 0]
    assert all(e["covered"]["archive_bytes"] > 0 for e in asked)


def test_the_api_finds_text_too(served: ServedConsole, reader: Person) -> None:
    client = served.client(headers={"Authorization": f"Bearer {reader.key}"})
    found = client.get("/v1/tenants/acme/events", params={"text": "Paid BY acme", "order": "desc"})
    assert [event["seq"] for event in found.json()["events"]] == [8 + 20 * day for day in reversed(range(6))]
    for text in ("", "x" * 129):
        assert client.get("/v1/tenants/acme/events", params={"text": text}).status_code == 400
