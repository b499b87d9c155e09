"""What another site can make a signed-in person's browser do: nothing. Every form's target of the console is
tried, with what a page of another origin can send, and what the store holds is compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from eventstore.app import Store
from eventstore.governance.holds import place_hold
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import Page, own_store, pages
from tests.unit.helpers import START_US, append, execute, make_tenant, new_event

TENANT, CASE = "acme", "case-17"
# Fields of all forms together, so that a form that is taken does something.
FIELDS = {
    "name": "case-18",
    "hold": CASE,
    "reason": "asked by the court",
    "entities": "order 1",
    "entity_type": "order",
    "entity_id": "1",
    "format": "csv",
    "confirm": "yes",
    "count": "1",
    "events": "1",
    "next": "/console/",
}


@dataclass
class Site:
    store: Store
    served: ServedConsole
    victim: Person
    attacker: Person
    forms: list[tuple[Page, str]]

    def state(self) -> str:
        """What people have decided: everything that a form may change."""
        tables = ("holds", "governance", "exports", "policies", "runs", "api_keys", "sessions", "tenants")
        rows = []
        for table in tables:
            # The times of last use come and go by themselves.
            columns = "to_jsonb(t) - 'last_used_at' - 'last_used' - 'seen_at' - 'last_seen' - 'used_at'"
            rows.append(execute(self.store.database.url, f"SELECT {columns} FROM {table} t ORDER BY 1::text"))
        return repr(rows)


@pytest.fixture(scope="module")
def site(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("forgery")
    with own_store(server_url, template_database, folder) as (store, _):
        make_tenant(store, TENANT)
        append(store, TENANT, new_event("1"))
        hold = place_hold(store.database, TENANT, CASE, "asked", "counsel", HoldScope(), START_US)
        with served_console(store) as served:
            values = {"tenant": TENANT, "seq": "1", "hold": CASE, "name": CASE, "hold_id": str(hold.hold_id)}
            values |= {"run_id": str(uuid.uuid4()), "export_id": str(uuid.uuid4()), "number": "1"}
            forms = [(p, p.address(values)) for p in pages(served.app) if p.method != "GET"]
            victim, attacker = (served.person(Role.ADMINISTRATOR, None) for _ in range(2))
            yield Site(store, served, victim, attacker, forms)


Forged = Callable[[Site, str], httpx.Response]


def _sent(headers: dict[str, str], **token: str) -> Forged:
    """With the victim's own token, unless told otherwise, and what the browser says of its origin."""

    def send(site: Site, address: str) -> httpx.Response:
        data = {**FIELDS, "csrf": site.victim.csrf, **token}
        return site.victim.client.post(address, data=data, headers=headers)

    return send


def _without(site: Site, address: str) -> httpx.Response:
    return site.victim.client.post(address, data=FIELDS)


def _of_another(site: Site, address: str) -> httpx.Response:
    return site.victim.client.post(address, data={**FIELDS, "csrf": site.attacker.csrf})


def _in_the_address(site: Site, address: str) -> httpx.Response:
    return site.victim.client.post(address, data=FIELDS, params={"csrf": site.victim.csrf})


def _as_text(site: Site, address: str) -> httpx.Response:
    """What a page elsewhere may send without asking first, made to look like another kind of body."""
    body = "&".join(f"{k}={v}" for k, v in {**FIELDS, "csrf": site.victim.csrf}.items())
    return site.victim.client.post(address, content=body, headers={"content-type": "text/plain"})


def _as_json(site: Site, address: str) -> httpx.Response:
    return site.victim.client.post(address, json={**FIELDS, "csrf": site.victim.csrf})


def _in_parts(site: Site, address: str) -> httpx.Response:
    parts: Any = {k: (None, v) for k, v in {**FIELDS, "csrf": site.victim.csrf}.items()}
    return site.victim.client.post(address, files=parts)


def _by_address(site: Site, address: str) -> httpx.Response:
    """A link, or an image."""
    return site.victim.client.get(address, params={**FIELDS, "csrf": site.victim.csrf})


FORGED: dict[str, Forged] = {
    "no-token": _without,
    "empty-token": _sent({}, csrf=""),
    "another-sessions-token": _of_another,
    "token-in-the-address": _in_the_address,
    "another-origin": _sent({"origin": "https://zq7x.invalid"}),
    "another-port": _sent({"origin": "http://127.0.0.1:1"}),
    "origin-null": _sent({"origin": "null"}),
    "cross-site": _sent({"sec-fetch-site": "cross-site"}),
    "same-site": _sent({"sec-fetch-site": "same-site"}),
    "nobody-asked": _sent({"sec-fetch-site": "none"}),
    "as-plain-text": _as_text,
    "as-json": _as_json,
    "in-parts": _in_parts,
    "by-address": _by_address,
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_form_is_refused_and_changes_nothing(site: Site, how: str) -> None:
    before = site.state()
    assert len(site.forms) >= 5
    for page, address in site.forms:
        answer = FORGED[how](site, address)
        if how == "by-address":
            # The page of that name, if there is one; it shows and does nothing.
            assert answer.status_code in (200, 303, 400, 404, 405), (page, answer.status_code)
        else:
            assert answer.status_code in (400, 403, 415), (page, answer.status_code, answer.text)
    assert site.state() == before
    assert site.victim.get("/console/").status_code == 200  # nobody was signed out


def test_a_cookie_alone_asks_nothing_of_the_api(site: Site) -> None:
    """The routes of the API take no cookie, so that no form of another site reaches them."""
    before = site.state()
    hold = {"name": "case-19", "reason": "asked", "scope": {}}
    answers = [
        site.victim.client.get(f"/v1/tenants/{TENANT}/events"),
        site.victim.client.post(f"/v1/tenants/{TENANT}/holds", json=hold),
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert site.state() == before


def test_the_same_form_from_its_own_page_is_taken(site: Site) -> None:
    """Otherwise all the above would be true of a console that takes no form at all."""
    answer = site.victim.client.post(
        "/console/reason",
        data={"csrf": site.victim.csrf, "reason": "case 17", "next": "/console/"},
        headers={"origin": site.served.url, "sec-fetch-site": "same-origin"},
    )
    assert answer.status_code == 303
    assert "case 17" in site.victim.page("/console/")


def test_every_answer_forbids_framing_scripts_of_others_and_keeping(site: Site) -> None:
    known = [
        "/console/",
        "/console/sign-in",
        f"/console/t/{TENANT}/event/1",
        f"/console/t/{TENANT}/event/99",
        "/console/t/nobody/search",
        "/console/nothing",
        "/console/static/console.css",
        "/console/static/nothing.js",
    ]
    for client in (site.victim.client, site.served.client()):
        for address in known:
            answer = client.get(address)
            policy = answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy, address
            assert "default-src 'none'" in policy, address
            assert "unsafe" not in policy, address
            assert "*" not in policy, address
            assert answer.headers["x-frame-options"] == "DENY", address
            assert answer.headers["x-content-type-options"] == "nosniff", address
            assert "access-control-allow-origin" not in answer.headers, address
            if "static" not in address:
                assert "no-store" in answer.headers["cache-control"], address


def test_the_cookie_is_out_of_reach(site: Site) -> None:
    client = site.served.client()
    _, text = site.served.key(Role.READER, TENANT)
    first = client.get("/console/sign-in")
    token = first.text.split('name="csrf" value="')[1].split('"')[0]
    answer = client.post("/console/sign-in", data={"csrf": token, "key": text})
    assert answer.status_code == 303
    given = [c.lower() for a in (first, answer) for c in a.headers.get_list("set-cookie")]
    assert given
    for cookie in given:
        assert "httponly" in cookie
        assert "samesite=lax" in cookie or "samesite=strict" in cookie
        assert "domain=" not in cookie
        assert text.lower() not in cookie
