"""No value of an event, an address or a form ever becomes part of a page as anything but text.

Every payload stands in every field of an event, in a hold and in whoever ordered a run; and payloads are
given as every parameter, part of a path and field of a form that the console has. By default each of these
takes some of the payloads in turn; with HOSTILE=1 each takes all.
"""

from __future__ import annotations

import itertools
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from eventstore.governance.holds import place_hold, release_hold
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.limits import Limits
from eventstore.retention.compactor import RunOrder
from tests.console.hostile import MARK, PAYLOADS, Parsed, findings, hostile_event
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import Form, Page, forms_of, own_store, pages
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, make_tenant

ALL = bool(os.environ.get("HOSTILE"))
TENANT = "acme"
_SOME = 3  # of the payloads, for each parameter; no divisor of their number, so that all have a turn
_OFTEN = 100_000  # no limit of requests a second is to stand in the way
_turns = itertools.count()


def some() -> list[str]:
    """The next of the payloads."""
    if ALL:
        return list(PAYLOADS)
    start = next(_turns) * _SOME
    return [PAYLOADS[(start + n) % len(PAYLOADS)] for n in range(_SOME)]


@dataclass
class Hostile:
    """A served console over a log that is full of payloads: payload n lies at seq n + 1."""

    served: ServedConsole
    person: Person
    values: dict[str, str]
    gets: list[Page]
    posts: list[Page]


@pytest.fixture(scope="module")
def hostile(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    with own_store(server_url, template_database, folder) as (store, clock), ExitStack() as stack:
        make_tenant(store, TENANT)
        clock.move_to(START_US + HOUR_US)
        half = len(PAYLOADS) // 2
        append(store, TENANT, *(hostile_event(payload) for payload in PAYLOADS[:half]))
        clock.move_to(START_US + DAY_US)
        append(store, TENANT, *(hostile_event(payload) for payload in PAYLOADS[half:]))
        order = RunOrder(requested_by=PAYLOADS[0])
        report = store.compactor.run(store.compactor.tenants(), START_US + DAY_US, order=order)
        assert [outcome.windows for outcome in report.outcomes] == [1]
        held = [_hold(store, number, payload) for number, payload in enumerate(PAYLOADS)]
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("eventstore.console.door._ATTEMPTS_PER_S", _OFTEN)
        with served_console(store) as served:
            person = served.person(Role.ADMINISTRATOR, None, Limits(requests_per_s=_OFTEN))
            found = pages(served.app)
            values = {"tenant": TENANT, "seq": "1", "run_id": str(report.run_id), "hold_id": str(held[0])}
            values |= {"export_id": str(uuid.UUID(int=1)), "number": "1", "name": "x"}
            yield Hostile(
                served,
                person,
                values,
                [p for p in found if p.method == "GET"],
                [p for p in found if p.method == "POST"],
            )


def _hold(store: Any, number: int, payload: str) -> uuid.UUID:
    name = f"{number} {payload}".replace("\r", "").replace("\n", "")
    scope = HoldScope(((payload[:200], payload),))
    hold = place_hold(store.database, TENANT, name, payload, payload, scope, START_US)
    if number % 2:
        release_hold(store.database, TENANT, hold.name, payload, payload, START_US + DAY_US)
    return hold.hold_id


def checked(answer: Any, where: str) -> Parsed:
    """A page that has nothing of a payload but as text."""
    assert answer.status_code < 500, (where, answer.status_code, answer.text[-2000:])
    # There are only so many exports at a time.
    assert answer.status_code != 429 or "/exports" in where, where
    assert MARK not in " ".join(answer.headers.keys()), where
    assert "set-cookie" not in answer.headers or MARK not in answer.headers["set-cookie"], where
    location = answer.headers.get("location")
    if location is not None:
        found = urlsplit(location)
        assert not found.scheme, (where, location)
        assert not found.netloc, (where, location)
        assert location.startswith("/console"), (where, location)
    if not answer.headers.get("content-type", "").startswith("text/html"):
        return Parsed("")
    found_here = findings(answer.text)
    assert not found_here, (where, found_here[:3])
    assert "49zq7x" not in answer.text, where  # what a template would make of 7 * 7
    return Parsed(answer.text)


def plain(text: str) -> str:
    """What is left of a text when blanks and what cannot be seen are not compared, nor what pages write
    in the place of such a character."""
    return "".join(c for c in re.sub("⟦U\\+[0-9A-F]+⟧", "", text) if c.isprintable() and not c.isspace())


def test_the_search_shows_every_field_as_text(hostile: Hostile) -> None:
    path, seen = f"/console/t/{TENANT}/search", ""
    for seq in range(1, len(PAYLOADS) + 1, 20):
        answer = hostile.person.get(path, seq_from=seq, seq_to=seq + 19, limit=20)
        seen += plain(checked(answer, path).text)
    missing = [payload for payload in PAYLOADS if plain(payload)[:40] not in seen]
    assert not missing


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_the_pages_of_an_event_and_of_its_entity_show_every_field_as_text(
    hostile: Hostile, number: int
) -> None:
    payload, base = PAYLOADS[number], f"/console/t/{TENANT}"
    event = checked(hostile.person.get(f"{base}/event/{number + 1}"), payload)
    # Nine fields and values hold it; what is long may be cut.
    assert plain(event.text).count(plain(payload)[:40]) >= 9
    if ALL or number % 3 == 0:
        entity = hostile.person.get(f"{base}/entity", entity_type=payload[:200], entity_id=payload)
        assert entity.status_code == 200, payload
        assert plain(payload)[:40] in plain(checked(entity, payload).text)


def test_holds_and_runs_show_who_and_why_as_text(hostile: Hostile) -> None:
    seen, path = "", f"/console/t/{TENANT}/holds"
    for address in (path, f"{path}?page=2", "/console/runs"):
        seen += plain(checked(hostile.person.get(address), address).text)
    run = hostile.person.get(f"/console/runs/{hostile.values['run_id']}")
    assert plain(PAYLOADS[0]) in plain(checked(run, "run").text)
    assert sum(plain(payload)[:40] in seen for payload in PAYLOADS) >= 20  # a page of cases


def test_every_parameter_of_every_page_is_text(hostile: Hostile) -> None:
    """Also those that only a form of the page names, and one that no page knows."""
    asked = 0
    for page in hostile.gets:
        address = page.address(hostile.values)
        own = {**_needed(page)}
        there = hostile.person.get(address, **own)
        checked(there, address)
        names = set(page.params) | {"nothing-that-it-knows"}
        names |= {
            name
            for form in forms_of(there.text)
            if form.method == "get" and urlsplit(form.action or address).path == address
            for name in form.fields
        }
        for name in sorted(names):
            for payload in some():
                asked += 1
                checked(
                    hostile.person.get(address, **{**own, name: payload}), f"{address} {name}={payload!r}"
                )
    assert asked >= 5 * len(hostile.gets)


def test_every_part_of_a_path_is_text(hostile: Hostile) -> None:
    for page in [*hostile.gets, *hostile.posts]:
        for name in page.names:
            for payload in some():
                address = page.address({**hostile.values, name: payload})
                where = f"{page.method} {address}"
                if page.method == "GET":
                    checked(hostile.person.get(address), where)
                else:
                    checked(hostile.person.post(address), where)
    for payload in PAYLOADS:
        checked(hostile.person.get(f"/console/{quote(payload, safe='')}"), payload)


def test_every_field_of_every_form_is_text(hostile: Hostile) -> None:
    """Sent with the session's token; then the pages that show what was sent are looked at."""
    sent = 0
    for form, page in _forms(hostile):
        for name in [n for n in form.fields if n != "csrf"]:
            for payload in some():
                sent += 1
                fields = {**form.fields, name: payload, "csrf": hostile.person.csrf}
                where = f"POST {form.action} {name}={payload!r}"
                checked(hostile.person.client.post(form.action, data=fields), where)
        checked(hostile.person.get(page), page)
    assert sent
    hostile.person.post("/console/reason", reason=PAYLOADS[0], next="/console/")
    assert plain(PAYLOADS[0])[:30] in plain(checked(hostile.person.get("/console/"), "reason").text)


def test_nobody_is_sent_elsewhere_after_signing_in(hostile: Hostile) -> None:
    for payload in PAYLOADS:
        answer = hostile.served.client().get("/console/sign-in", params={"next": payload})
        checked(answer, payload)
    elsewhere = ["//zq7x.invalid/", "/\\zq7x.invalid/", "https://zq7x.invalid/", "/console/\r\nx: y"]
    for payload in [*elsewhere, *some()]:
        client = hostile.served.client()
        form = next(f for f in forms_of(client.get("/console/sign-in").text) if "key" in f.fields)
        fields = {**form.fields, "key": hostile.person.key, "next": payload}
        answer = client.post("/console/sign-in", data=fields)
        assert answer.status_code in (303, 400), (payload, answer.text)
        checked(answer, payload)
        assert "invalid" not in unquote(answer.headers.get("location", "")), payload


def _needed(page: Page) -> dict[str, str]:
    """What a page has to be given so that it shows something."""
    return {"entity_type": "order", "entity_id": "1"} if page.path.endswith("/entity") else {}


def _forms(hostile: Hostile) -> list[tuple[Form, str]]:
    """Every form that changes something, once each, with the address of a page that has it. Signing out would
    end the session, and is left out."""
    found: dict[str, tuple[Form, str]] = {}
    for page in hostile.gets:
        address = page.address(hostile.values)
        there = hostile.person.get(address, **_needed(page))
        for form in forms_of(there.text):
            if form.method == "post" and not form.action.endswith("/sign-out"):
                found.setdefault(urlsplit(form.action).path, (form, address))
    return list(found.values())


def test_the_application_has_pages_to_walk(hostile: Hostile) -> None:
    """So that nothing above is true of nothing."""
    assert len(hostile.gets) >= 12
    assert len(hostile.posts) >= 8
