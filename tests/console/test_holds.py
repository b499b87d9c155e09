"""Legal holds on their pages: looked at, placed, seen to stop destruction, and released."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from eventstore.access.reads import READS_TENANT
from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.console.pages import holds as holds_page
from eventstore.governance.holds import list_holds, place_hold
from eventstore.governance.tenants import create_tenant
from eventstore.hot.append import Appender
from eventstore.model.access import Role
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.console.served import Person, ServedConsole, served_console
from tests.console.test_tenant import row
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, execute, fill_days, new_event, read, seqs

POLICY = Policy(WindowUnit.DAY, DAY_US, (ArchiveTier("archive", 2 * DAY_US),), Ending.EXPIRE)
EXPIRY = RunOrder(RunKind.EXPIRY, "test")
EVERYTHING = {"name": "case 17", "reason": "asked by the court", "covers": "everything"}
HOSTILE = '<img src=x onerror="x">'


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedConsole]:
    folder = tmp_path_factory.mktemp("holds_page")
    (folder / "archive").mkdir()
    settings = Settings(
        database_url=create_database(server_url, "holds_page", template=template_database),
        home=folder / "home",
        archive_url=(folder / "archive").as_uri(),
    )
    with open_store(settings, clock=FixedClock(START_US)) as store, served_console(store) as found:
        yield found


def filled(served: ServedConsole, name: str) -> Person:
    """A tenant with six archived days of five events at noon, of which entity 2 has one each, and two more in
    the evening of the last; all are past the policy's time. Its compliance officer."""
    store, clock = served.store, FixedClock(START_US)
    create_tenant(store.database, name, POLICY)
    appender = Appender(store.database, archived_versions=store.reader.archived_versions, clock=clock)
    writing = replace(store, appender=appender)
    fill_days(writing, clock, name, 6)
    clock.move_to(START_US + 5 * DAY_US + 18 * HOUR_US)
    append(writing, name, new_event("9"), new_event("9"))
    report = store.compactor.run(store.compactor.tenants(name), START_US + 9 * DAY_US)
    assert report.outcomes[0].windows == 6
    return served.person(Role.COMPLIANCE, name)


def holds_of(store: Store, name: str) -> list[Hold]:
    with store.database.transaction() as conn:
        return list_holds(conn, name)


def expire(store: Store, name: str) -> int:
    return (
        store.compactor.run(store.compactor.tenants(name), START_US + 20 * DAY_US, order=EXPIRY)
        .outcomes[0]
        .windows
    )


def sent(page: httpx.Response | str) -> dict[str, str]:
    """The hidden fields of the form that places what was looked at."""
    text = page if isinstance(page, str) else page.text
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text))
    (entities,) = re.findall(r'<textarea name="entities" hidden[^>]*>\n(.*?)</textarea>', text, re.S)
    return {**{k: v for k, v in fields.items() if k not in ("csrf", "next")}, "entities": entities}


def test_a_hold_is_looked_at_placed_stops_destruction_and_is_released(served: ServedConsole) -> None:
    store, ann = served.store, filled(served, "flow")
    base = "/console/t/flow/holds"
    assert "No case yet." in ann.page(base)
    form = {
        "name": "case 17",
        "reason": "asked by the court",
        "covers": "entities",
        "entities": "order/2\r\norder/never seen\r\n",
        "from": "2024-03-02",
        "to": "2024-03-04T00:00:00Z",
    }
    looked = ann.post(f"{base}/preview", **form)
    assert looked.status_code == 200, looked.text
    assert row(looked.text, "archive") == ["archive", "not counted", "up to 2", "up to 10"]
    assert f'hx-post="{base}/preview" hx-trigger="load"' in looked.text
    fields = {"csrf": ann.csrf, **sent(looked)}
    fragment = ann.client.post(f"{base}/preview", data=fields, headers={"hx-request": "true"})
    assert "<html" not in fragment.text
    without_scripts = ann.post(f"{base}/preview", **sent(looked), counted="true")
    assert "hx-post" not in without_scripts.text
    for counted in (fragment, without_scripts):
        assert counted.status_code == 200, counted.text
        assert row(counted.text, "archive") == ["archive", "2", "up to 2", "up to 10"]
    for page in (looked, fragment, without_scripts):
        assert "stops the destruction of 2 windows with 10 events" in page.text
        assert "2 are due now" in page.text
        assert "lower bound" not in page.text
    assert holds_of(store, "flow") == [], "looking holds nothing"
    placed = [ann.post(base, **sent(looked)) for _ in range(2)]
    assert [answer.status_code for answer in placed] == [303, 303], "a double click"
    assert placed[0].headers["location"] == placed[1].headers["location"]
    (hold,) = holds_of(store, "flow")
    assert (hold.name, hold.reason, hold.placed_by) == ("case 17", "asked by the court", ann.subject)
    assert hold.scope.entities == (("order", "2"), ("order", "never seen"))
    assert (hold.scope.from_us, hold.scope.to_us) == (START_US + DAY_US, START_US + 3 * DAY_US)
    case = ann.page(placed[0].headers["location"])
    assert "The hold is in force" in case
    assert "has no copy" not in case
    assert list((served.store.settings.resolved_home.parent / "archive").rglob("*governance*"))

    assert expire(store, "flow") == 4
    assert seqs(read(store, "flow")) == list(range(6, 16))

    ask = ann.page(f"{base}/{hold.hold_id}/release")
    assert "2 windows are past the policy" in ask
    done = ann.post(f"{base}/{hold.hold_id}/release", reason="settled", confirm="yes")
    assert done.status_code == 303
    (hold,) = holds_of(store, "flow")
    assert (hold.released_by, hold.release_reason) == (ann.subject, "settled")
    again = ann.post(f"{base}/{hold.hold_id}/release", reason="settled", confirm="yes")
    assert again.status_code == 303
    other = ann.post(f"{base}/{hold.hold_id}/release", reason="another", confirm="yes")
    assert other.status_code == 409
    assert "was released by" in other.text
    assert expire(store, "flow") == 2
    assert read(store, "flow") == []
    kinds = execute(
        store.database.url, "SELECT kind, actor FROM governance WHERE tenant_id = 'flow' ORDER BY entry_no"
    )
    assert kinds[-2:] == [("hold_placed", ann.subject), ("hold_released", ann.subject)]


def test_counting_what_a_scope_covers_is_written_to_the_log_of_reads(served: ServedConsole) -> None:
    ann = filled(served, "logged")
    path = "/console/t/logged/holds/preview"
    assert "hx-post" not in ann.post(path, **EVERYTHING).text, "the catalog tells how many are all"
    ann.post(path, **{**EVERYTHING, "covers": "entities", "entities": "order/1"}, counted="true")
    entries = [row["new_value"] for row in read(served.store, READS_TENANT) if row["entity_id"] == "logged"]
    assert any("POST /console/t/{tenant}/holds/preview" in str(entry) for entry in entries)


def test_looking_at_a_hold_reads_no_event_until_they_are_counted(
    served: ServedConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is shown at once, however long counting takes."""
    ann = filled(served, "quick")

    def reads(*_: Any, **__: Any) -> Any:
        raise AssertionError("events are read")

    monkeypatch.setattr("eventstore.query.walk.Walk.run", reads)
    fields = {**EVERYTHING, "covers": "entities", "entities": "order/1", "from": "2024-03-02T05:00:00Z"}
    many = "\n".join(f"order/{number}" for number in range(150))
    for more in ({}, {"covers": "everything", "entities": ""}, {"entities": many, "from": ""}):
        answer = ann.post("/console/t/quick/holds/preview", **{**fields, **more})
        assert answer.status_code == 200, answer.text
        assert "Count the events of its scope" in answer.text


def test_a_form_that_is_not_right_says_so_beside_each_field_and_loses_nothing(served: ServedConsole) -> None:
    create_tenant(served.store.database, "typed", POLICY)
    ann = served.person(Role.COMPLIANCE, "typed")
    base = "/console/t/typed/holds"
    typed = {
        "name": " ",
        "reason": 'because "of" this',
        "covers": "entities",
        "entities": "order/1\nno slash",
        "from": "soon",
        "to": "2024-03-04",
    }
    for path in (f"{base}/preview", base):
        answer = ann.post(path, **typed)
        assert answer.status_code == 400
        assert set(re.findall(r'id="hold-(\w+)-error"', answer.text)) == {"name", "entities", "from"}
        assert "Line 2: &#39;no slash&#39; names no entity" in answer.text
        assert 'value="because &#34;of&#34; this"' in answer.text
        assert 'value="soon"' in answer.text
        assert 'value="2024-03-04"' in answer.text
        assert "order/1\nno slash</textarea>" in answer.text
        assert re.search(r'value="entities" checked', answer.text)
    wrong = {
        "covers": {**EVERYTHING, "covers": ""},
        "to": {**EVERYTHING, "from": "2024-03-04", "to": "2024-03-04"},
        "entities": {**EVERYTHING, "covers": "entities", "entities": " \n"},
    }
    for name, fields in wrong.items():
        answer = ann.post(f"{base}/preview", **fields)
        assert answer.status_code == 400
        assert re.findall(r'id="hold-(\w+)-error"', answer.text) == [name]
    # What is chosen and what is typed say different things: nothing is guessed.
    both = ann.post(f"{base}/preview", **{**EVERYTHING, "entities": "order/1"})
    assert re.findall(r'id="hold-(\w+)-error"', both.text) == ["covers"]
    assert holds_of(served.store, "typed") == []
    edited = ann.post(f"{base}/edit", **typed)
    assert edited.status_code == 200
    assert 'value="soon"' in edited.text
    assert "-error" not in edited.text


def test_a_name_is_one_case_and_a_request_places_one_hold(served: ServedConsole) -> None:
    store = served.store
    create_tenant(store.database, "named", POLICY)
    ann = served.person(Role.COMPLIANCE, "named")
    base, case = "/console/t/named/holds", str(uuid.uuid4())
    assert ann.post(base, case=case, **EVERYTHING).status_code == 303
    for path, status in ((f"{base}/preview", 400), (base, 409)):
        answer = ann.post(path, case=str(uuid.uuid4()), **EVERYTHING)
        assert answer.status_code == status
        assert re.findall(r'id="hold-(\w+)-error"', answer.text) == ["name"]
    # The same request with other words is another one, and is not taken for the first.
    assert ann.post(base, case=case, **{**EVERYTHING, "name": "case 18"}).status_code == 409
    assert [hold.name for hold in holds_of(store, "named")] == ["case 17"]
    assert ann.post(base, case="x", **EVERYTHING).status_code == 400


def test_a_release_needs_a_reason_and_a_confirmation_and_leaves_others_in_force(
    served: ServedConsole,
) -> None:
    store = served.store
    create_tenant(store.database, "two", POLICY)
    ann = served.person(Role.COMPLIANCE, "two")
    first, second = (
        place_hold(store.database, "two", name, "why", "counsel", HoldScope(), START_US)
        for name in ("first", "second")
    )
    path = f"/console/t/two/holds/{first.hold_id}/release"
    ask = ann.page(path)
    assert f'href="/console/t/two/holds/{second.hold_id}"' in ask
    for fields, missing in (
        ({"reason": "", "confirm": "yes"}, ["reason"]),
        ({"reason": "it is over"}, ["confirm"]),
        ({}, ["reason", "confirm"]),
    ):
        answer = ann.post(path, **fields)
        assert answer.status_code == 400
        assert re.findall(r'id="hold-(\w+)-error"', answer.text) == missing
        assert f'value="{fields.get("reason", "")}"' in answer.text
    assert all(hold.in_force for hold in holds_of(store, "two"))
    assert ann.post(path, reason="it is over", confirm="yes").status_code == 303
    assert {hold.name: hold.in_force for hold in holds_of(store, "two")} == {"first": False, "second": True}
    page = ann.page("/console/t/two/holds")
    assert page.index("second</bdi>") < page.index("first</bdi>"), "those in force come first"
    assert "1 in force, 1 released" in page
    assert ann.get(path).status_code == 303, "there is nothing to release any more"


def test_without_the_session_s_token_or_the_permission_nothing_changes(served: ServedConsole) -> None:
    store = served.store
    for name in ("guarded", "elsewhere"):
        create_tenant(store.database, name, POLICY)
    held = place_hold(store.database, "guarded", "kept", "why", "counsel", HoldScope(), START_US)
    ann, bob = (served.person(role, "guarded") for role in (Role.COMPLIANCE, Role.READER))
    far = served.person(Role.COMPLIANCE, "elsewhere")
    base = "/console/t/guarded/holds"
    release = {"reason": "x", "confirm": "yes"}
    for path, fields in (
        (base, EVERYTHING),
        (f"{base}/preview", EVERYTHING),
        (f"{base}/edit", EVERYTHING),
        (f"{base}/{held.hold_id}/release", release),
    ):
        for token in ({}, {"csrf": ""}, {"csrf": bob.csrf}):
            assert ann.client.post(path, data={**fields, **token}).status_code == 403, path
        foreign = {"origin": "https://elsewhere.example"}
        data = {"csrf": ann.csrf, **fields}
        assert ann.client.post(path, data=data, headers=foreign).status_code == 403, path
        assert bob.post(path, **fields).status_code == 403, path
        assert far.post(path, **fields).status_code == 404, path
    for path in (base, f"{base}/new", f"{base}/{held.hold_id}"):
        assert (bob.get(path).status_code, far.get(path).status_code) == (403, 404), path
    # Nor is a case of one tenant found under another's address.
    assert far.get(f"/console/t/elsewhere/holds/{held.hold_id}").status_code == 404
    assert [(hold.name, hold.in_force) for hold in holds_of(store, "guarded")] == [("kept", True)]


def test_what_people_wrote_is_shown_as_text(served: ServedConsole) -> None:
    create_tenant(served.store.database, "hostile", POLICY)
    ann = served.person(Role.COMPLIANCE, "hostile")
    base = "/console/t/hostile/holds"
    fields = {
        "name": f"name {HOSTILE}",
        "reason": f"why {HOSTILE}",
        "covers": "entities",
        "entities": f"{HOSTILE}/</textarea>{HOSTILE}",
        "from": "",
        "to": "",
    }
    looked = ann.post(f"{base}/preview", **fields)
    assert looked.status_code == 200
    placed = ann.post(base, case=sent(looked)["case"], **fields)
    assert placed.status_code == 303
    case = placed.headers["location"].partition("?")[0]
    wrong = ann.post(f"{case}/release", reason=HOSTILE)
    pages = [looked.text, wrong.text, ann.post(f"{base}/edit", **fields).text]
    pages += [ann.page(path) for path in (base, case, f"{case}/release", "/console/t/hostile")]
    for page in pages:
        assert "<img" not in page
        assert "&lt;img" in page or page is pages[-1]
        assert page.count("</textarea>") == page.count("<textarea")


def test_a_copy_that_the_archive_does_not_take_is_told_and_the_hold_stands(served: ServedConsole) -> None:
    store = served.store
    create_tenant(store.database, "uncopied", POLICY)
    ann = served.person(Role.COMPLIANCE, "uncopied")
    archive = store.settings.resolved_home.parent / "archive"
    blocked = archive / "governance"
    aside = archive.parent / "aside"
    shutil.move(blocked, aside)
    blocked.write_text("in the way")
    try:
        placed = ann.post("/console/t/uncopied/holds", case=str(uuid.uuid4()), **EVERYTHING)
        assert placed.status_code == 303
        page = ann.page(placed.headers["location"])
    finally:
        blocked.unlink()
        shutil.move(aside, blocked)
    assert "The hold is in force" in page
    assert "its copy is not in the archive yet" in page


def test_one_case_is_counted_when_it_is_asked_for(served: ServedConsole) -> None:
    ann = filled(served, "counted")
    scope = HoldScope((), START_US + 4 * DAY_US, START_US + 5 * DAY_US + 15 * HOUR_US)
    hold = place_hold(served.store.database, "counted", "range", "why", "counsel", scope, START_US)
    path = f"/console/t/counted/holds/{hold.hold_id}"
    page = ann.page(path)
    assert f'hx-get="{path}"' in page
    assert "2 windows, with 12 events in them" in page
    fragment = ann.fragment(path)
    assert "<html" not in fragment.text
    # The last day's window is kept whole; the events of its evening are not of the scope.
    assert row(fragment.text, "archive") == ["archive", "10", "2", "12"]
    assert row(ann.page(path, counted=True), "archive") == ["archive", "10", "2", "12"]


def test_a_list_looks_for_entities_only_where_that_is_little(
    served: ServedConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says stays true: "up to" so many."""
    ann, path = filled(served, "listed"), "/console/t/listed/holds"
    one = HoldScope((("order", "9"),))  # has events in the last of six windows alone
    hold = place_hold(served.store.database, "listed", "case 9", "why", "ann", one, START_US)
    aside = "by their times alone here"
    listed = ann.page(path)
    assert re.search(r'data-label="Events kept now">up to 7</td>', listed)
    assert aside not in listed
    monkeypatch.setattr(holds_page, "_FILTER_BYTES_MAX", 1)
    listed = ann.page(path)
    assert re.search(r'data-label="Events kept now">up to 32</td>', listed)
    assert aside in listed
    assert "archive: up to 1 window, with 7 events in them" in ann.page(f"{path}/{hold.hold_id}")
