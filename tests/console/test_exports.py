"""The page of exports: what is asked for there is made and downloaded, seen by whoever may, and shows what
others have typed as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.model.access import Role
from tests.console.served import Person, served_console
from tests.unit.helpers import START_US, append, fill_days, make_tenant, new_event, read, run_retention
from tests.waiting import until

PAGE = "/console/t/acme/exports"
HOSTILE = "<script>alert(1)</script>\"'=1"
WAIT_S = 30.0


@pytest.fixture
def log(store: Store, clock: FixedClock) -> Store:
    make_tenant(store)
    fill_days(store, clock, "acme", 3)
    append(store, "acme", new_event(HOSTILE, actor="bea"))
    run_retention(store, START_US + 2 * 86_400_000_000)
    return store


def ask(person: Person, **fields: str) -> str:
    """Ask by the form; the address it leads to."""
    answer = person.post(PAGE, **{"format": "csv", "order": "asc", "reason": "", **fields})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def settled(person: Person, address: str) -> str:
    """The list, as htmx polls it, when it asks no more."""

    def look() -> str | None:
        part = person.fragment(address)
        assert part.status_code == 200
        assert "<html" not in part.text
        return None if "every 2s" in part.text else part.text

    found: str = until(look, "it is polled no more")
    return found


def test_an_export_is_asked_for_seen_and_downloaded(log: Store) -> None:
    with served_console(log) as served:
        ann = served.person(Role.COMPLIANCE, "acme")
        form = ann.page(PAGE, actor="ann", recorded_from="2024-03-02", order="desc", format="ndjson")
        assert 'name="actor" value="ann"' in form
        assert 'value="2024-03-02"' in form
        assert re.search(r'<option value="ndjson" selected', form)
        assert re.search(r'<option value="desc" selected', form)
        assert "every 2s" not in form, "a page on which nothing goes on asks for nothing"
        address = ask(
            ann, actor="ann", recorded_from="2024-03-02", order="desc", format="ndjson", reason="case 7"
        )
        shown = settled(ann, address)
        assert "10 events" in shown
        assert "case 7" in shown
        assert "The file stays for" in shown
        (where,) = re.findall(rf'href="({PAGE}/[0-9a-f-]+/file)"', shown)
        got = ann.get(where)
        wanted = {"actor": "ann", "recorded_from": "2024-03-02", "order": "desc"}
        api = served.client(headers={"authorization": f"Bearer {ann.key}"})
        assert got.content == api.get("/v1/tenants/acme/export", params=wanted).content
        assert got.headers["content-disposition"].startswith('attachment; filename="acme-')
        assert "script-src 'self'" in got.headers["content-security-policy"]
        until(lambda: len(read(log, "eventstore-reads")) >= 5, "reads are written down")
        routes = [e["new_value"] for e in read(log, "eventstore-reads") if e["actor"] == ann.subject]
        assert sum("/console/t/{tenant}/exports/{export_id}/file" in text for text in routes) == 2
        gone = ann.post(where.removesuffix("/file") + "/cancel")
        assert gone.status_code == 303
        assert "The file is gone" in ann.page(PAGE)
        assert ann.get(where).status_code == 409


def test_a_form_that_cannot_be_is_shown_again_with_what_was_typed(log: Store) -> None:
    idle = replace(log, settings=log.settings.model_copy(update={"export_workers": 0}))
    with served_console(idle) as served:
        ann = served.person(Role.COMPLIANCE, "acme")
        answer = ann.post(
            PAGE, format="csv", order="asc", recorded_from="yesterday", actor="bea", reason="why"
        )
        assert answer.status_code == 400
        assert "is not a time" in answer.text
        assert 'name="actor" value="bea"' in answer.text
        assert 'value="why"' in answer.text
        for fields in ({"format": "exe", "order": "asc"}, {"format": "csv", "order": "up"}, {}):
            assert ann.post(PAGE, **fields).status_code == 400
        for _ in range(3):
            ask(ann)
        refused = ann.post(PAGE, format="csv", order="asc", actor="bea")
        assert refused.status_code == 429
        assert "3 exports of yours" in refused.text
        assert 'name="actor" value="bea"' in refused.text
        assert ann.page(PAGE).count("Waits for its turn") == 3
        assert 'hx-trigger="every 2s"' in ann.page(PAGE)


def test_nothing_typed_becomes_markup(log: Store) -> None:
    with served_console(log) as served:
        ann = served.person(Role.COMPLIANCE, "acme")
        for page in (
            ann.page(PAGE, entity_id=HOSTILE, reason=HOSTILE, format=HOSTILE),
            ann.page(PAGE, asked=HOSTILE[:30]),
        ):
            assert "<script>alert" not in page
        settled(ann, ask(ann, entity_id=HOSTILE, reason=HOSTILE))
        page = ann.page(PAGE)
        assert "<script>alert" not in page
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
        assert "1 event," in page


def test_only_whoever_may_sees_and_ends_it(log: Store) -> None:
    make_tenant(log, "rival")
    with served_console(log) as served:
        ann = served.person(Role.COMPLIANCE, "acme")
        where = re.findall(rf"{PAGE}/[0-9a-f-]+", settled(ann, ask(ann, reason="secret")))[0]
        bea, chief = served.person(Role.COMPLIANCE, "acme"), served.person(Role.ADMINISTRATOR, "acme")
        rival, clerk = served.person(Role.ADMINISTRATOR, "rival"), served.person(Role.READER, "acme")
        assert "secret" not in bea.page(PAGE)
        assert "secret" in chief.page(PAGE)
        for person, status in ((bea, 404), (rival, 404), (clerk, 403)):
            assert person.get(f"{where}/file").status_code == status
            assert person.post(f"{where}/cancel").status_code == status
        assert rival.get(PAGE).status_code == 404
        assert clerk.get(PAGE).status_code == 403
        # Without the session's own token nothing changes.
        assert ann.client.post(f"{where}/cancel", data={"csrf": "x"}).status_code == 403
        assert ann.client.post(PAGE, data={"format": "csv", "order": "asc"}).status_code == 403
        assert ann.get(f"{where}/file").status_code == 200
