"""Signing in to the console: by key, at an issuer, from this machine; what is refused, and what a browser
keeps."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from eventstore.access.authenticator import HOW_TO_BEGIN
from eventstore.access.limits import CallerLimits
from eventstore.app import Store
from eventstore.clock import SystemClock
from eventstore.console.problems import own_page
from eventstore.errors import RetryError, SetupError
from eventstore.governance.keys import revoke_key
from eventstore.governance.sessions import csrf_of as token_of
from eventstore.model.access import Role
from eventstore.model.apikey import new_key_text
from eventstore.settings import Settings, load_settings
from tests.console.served import ServedConsole, csrf_of, served_console
from tests.integration.issuer import Issuer
from tests.unit.helpers import execute, make_tenant

HERE, ELSEWHERE = "127.0.0.1", "203.0.113.9"


@pytest.fixture
def served(store: Store) -> Iterator[ServedConsole]:
    make_tenant(store)
    with served_console(store) as running:
        running.app.state.console.state.door._attempts = CallerLimits(store.settings.default_limits)
        yield running


def sign_in(client: httpx.Client, text: str, **more: str) -> httpx.Response:
    token = csrf_of(client.get("/console/sign-in"))
    return client.post("/console/sign-in", data={"csrf": token, "key": text, **more})


def configured(store: Store, **settings: Any) -> Store:
    return replace(store, settings=Settings(**{**store.settings.model_dump(exclude_unset=True), **settings}))


def ask(
    app: Any,
    method: str,
    path: str,
    *,
    peer: str = HERE,
    base: str = "http://127.0.0.1",
    cookies: dict[str, str] | None = None,
    **more: Any,
) -> httpx.Response:
    """Ask the application without a socket: so a request can come from any address, and by https."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url=base, cookies=cookies) as client:
            return await client.request(method, path, **more)

    return asyncio.run(asked())


def cookies_of(answer: httpx.Response) -> dict[str, str]:
    """The cookies that an answer sets, by name, with their attributes."""
    return {c.partition("=")[0]: c for c in answer.headers.get_list("set-cookie")}


# --- by key -------------------------------------------------------------------------------------------


def test_a_key_signs_in_and_the_session_is_new(served: ServedConsole) -> None:
    key_id, text = served.key(Role.COMPLIANCE)
    client = served.client()
    assert client.get("/console/t/acme/search?q=1").headers["location"] == (
        "/console/sign-in?next=/console/t/acme/search%3Fq%3D1"
    )
    # A session that somebody planted meanwhile is neither taken over nor left alive.
    token = csrf_of(client.get("/console/sign-in"))
    planted = served.person(Role.READER).client.cookies["eventstore"]
    client.cookies.set("eventstore", planted, domain="127.0.0.1")
    assert client.get("/console/reason").status_code == 200
    answer = client.post(
        "/console/sign-in", data={"csrf": token, "key": f"  {text}\n", "next": "/console/t/acme/search?q=1"}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/t/acme/search?q=1")
    kept = cookies_of(answer)["eventstore"]
    assert re.fullmatch(r"eventstore=[\w-]{43}; HttpOnly; Path=/; SameSite=lax", kept)
    assert planted not in kept
    assert served.client(cookies={"eventstore": planted}).get("/console/reason").status_code == 303
    assert key_id in client.get("/console/reason").text
    assert client.get("/console/sign-in?next=/console/reason").headers["location"] == "/console/reason"


def test_whatever_is_wrong_with_a_key_is_answered_alike(served: ServedConsole) -> None:
    revoked_id, revoked = served.key(Role.READER)
    expired_id, expired = served.key(Role.READER)
    _, good = served.key(Role.READER)
    now_us = SystemClock().now_us()
    revoke_key(served.store.database, revoked_id, by="test", now_us=now_us)
    execute(served.store.database.url, f"UPDATE api_keys SET expires_us = 1 WHERE key_id = '{expired_id}'")
    wrong = [
        "",
        "x",
        "\ud7ff\u20ac" * 10,
        "x" * 2000,
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        new_key_text(Role.ADMINISTRATOR)[1],
        revoked,
        expired,
        "eyJhbGciOiJub25lIn0.e30.",
    ]
    client = served.client()
    answers = [sign_in(client, text) for text in wrong]
    assert {a.status_code for a in answers} == {401}
    assert len({a.text for a in answers}) == 1
    assert "eventstore" not in client.cookies
    for text, answer in zip(wrong, answers, strict=True):
        assert len(text) < 2 or text not in answer.text


def test_roles_without_a_page_are_told_so(served: ServedConsole) -> None:
    for role, tenant in ((Role.WRITER, "acme"), (Role.WRITER, None), (Role.OPERATOR, "acme")):
        client = served.client()
        answer = sign_in(client, served.key(role, tenant)[1])
        assert answer.status_code == 403
        assert f"The role &#39;{role.value}&#39; has nothing to do in the console" in answer.text
        assert "eventstore" not in client.cookies


def test_each_role_begins_where_it_may(served: ServedConsole) -> None:
    begins = {
        (Role.READER, "acme"): "/console/t/acme",
        (Role.COMPLIANCE, "acme"): "/console/t/acme",
        (Role.ADMINISTRATOR, "acme"): "/console/t/acme",
        (Role.OPERATOR, None): "/console/runs",
    }
    for (role, tenant), page in begins.items():
        answer = served.person(role, tenant).get("/console/")
        assert (answer.status_code, answer.headers["location"]) == (303, page)
    for role in (Role.READER, Role.COMPLIANCE, Role.ADMINISTRATOR):
        person = served.person(role, None)
        assert '<a href="/console/t/acme">acme</a>' in person.page("/console/")
        assert ("/console/runs" in person.page("/console/")) == (role is Role.ADMINISTRATOR)


def test_the_list_of_tenants_is_paged_and_can_be_narrowed(
    served: ServedConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.console.pages.home._PAGE", 2)
    for name in ("beta", "beta-2", "gamma-x", "under"):
        make_tenant(served.store, name)
    ann = served.person(Role.COMPLIANCE, None)

    def listed(**params: str) -> tuple[list[str], str | None]:
        page = ann.page("/console/", **params)
        further = re.search(r'href="([^"]*)">Further', page)
        return re.findall(r'<th scope="row"><a href="/console/t/([^"]+)">', page), further and further[1]

    assert listed() == (["acme", "beta"], "/console/?containing=&amp;after=beta")
    assert listed(after="beta") == (["beta-2", "gamma-x"], "/console/?containing=&amp;after=gamma-x")
    assert listed(after="gamma-x") == (["under"], None)
    assert listed(containing="ETA") == (["beta", "beta-2"], None)
    assert listed(containing="%") == ([], None)
    assert "No tenant has" in ann.page("/console/", containing="<b>")
    assert "<b>" not in ann.page("/console/", containing="<b>")


def test_tries_from_one_address_are_bounded(served: ServedConsole) -> None:
    door = served.app.state.console.state.door
    defaults = replace(served.store.settings.default_limits, requests_per_s=5)
    door._attempts = CallerLimits(defaults, monotonic_ns=lambda: 10**18)
    client = served.client()
    answers = [sign_in(client, "es_wrong") for _ in range(6)]
    assert [a.status_code for a in answers] == [401] * 5 + [429]
    assert answers[-1].headers["retry-after"] == "1"
    _, text = served.key(Role.READER)
    assert sign_in(client, text).status_code == 429  # also with a right one
    # Others are not held up; the addresses of one network of IPv6 count as one.
    tokens = {"csrf": csrf_of(client.get("/console/sign-in")), "key": "es_wrong"}
    begun = {"__Host-eventstore-begin": client.cookies["eventstore-begin"]}

    def tried(peer: str) -> int:
        return ask(
            served.app, "POST", "/console/sign-in", peer=peer, base="https://a", cookies=begun, data=tokens
        ).status_code

    assert tried(ELSEWHERE) == 401
    assert [tried(f"2001:db8::{n}") for n in range(6)] == [401] * 5 + [429]
    assert tried("2001:db8:0:1::1") == 401
    assert [tried(f"::ffff:198.51.100.{n}") for n in range(6)] == [401] * 6  # six of IPv4


def test_nobody_is_led_elsewhere(served: ServedConsole) -> None:
    _, text = served.key(Role.READER)
    elsewhere = [
        "https://evil.example/console/",
        "//evil.example/console/",
        "/\\evil.example",
        "\\/evil.example",
        "/console",
        "/consolex/",
        "/console/../v1",
        "/console/\\..\\..",
        "/console/\r\nset-cookie: a=b",
        "/console/\u2028",
        "javascript:alert(1)",
        "/console/" + "x" * 5000,
    ]
    assert {own_page(address) for address in elsewhere} == {"/console/"}
    assert sign_in(served.client(), text, next=elsewhere[0]).headers["location"] == "/console/"
    assert own_page("/console/t/acme/search?q=a%20b#x") == "/console/t/acme/search?q=a%20b#x"


# --- the way there ------------------------------------------------------------------------------------


def test_over_https_cookies_have_their_prefix_and_stay_on_https(served: ServedConsole) -> None:
    _, text = served.key(Role.READER)
    page = ask(served.app, "GET", "/console/sign-in", peer=ELSEWHERE, base="https://store.example")
    begin = cookies_of(page)["__Host-eventstore-begin"]
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(begin.split("; "))
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    answer = ask(
        served.app,
        "POST",
        "/console/sign-in",
        peer=ELSEWHERE,
        base="https://store.example",
        cookies={"__Host-eventstore-begin": begin.split("=", 1)[1].split(";")[0]},
        data={"csrf": csrf_of(page), "key": text},
    )
    assert answer.status_code == 303
    session = cookies_of(answer)["__Host-eventstore"]
    assert re.fullmatch(r"__Host-eventstore=[\w-]{43}; HttpOnly; Path=/; SameSite=lax; Secure", session)
    name = session.split("=", 1)[1].split(";")[0]
    for cookie, signed_in in (("__Host-eventstore", True), ("eventstore", False)):
        seen = ask(
            served.app,
            "GET",
            "/console/reason",
            peer=ELSEWHERE,
            base="https://store.example",
            cookies={cookie: name},
        )
        assert (seen.status_code == 200) == signed_in, cookie


def test_nobody_signs_in_over_plain_http_from_elsewhere(served: ServedConsole) -> None:
    _, text = served.key(Role.READER)
    begun = {"eventstore-begin": "n"}
    fields = {"csrf": token_of("n"), "key": text}
    ways: list[dict[str, Any]] = [
        {"peer": ELSEWHERE},
        {"headers": {"x-forwarded-for": ELSEWHERE}},
        {"headers": {"x-forwarded-proto": "https"}},  # no header makes a way safe
        {"base": "http://store.example"},
    ]
    for way in ways:
        answer = ask(served.app, "POST", "/console/sign-in", cookies=begun, data=fields, **way)
        assert answer.status_code == 403, way
        assert "EVENTSTORE_CONSOLE_URL" in answer.text
        assert "strict-transport-security" not in answer.headers
        assert "eventstore" not in cookies_of(answer)
    assert ask(served.app, "POST", "/console/sign-in", cookies=begun, data=fields).status_code == 303


def test_behind_a_proxy_that_takes_tls(store: Store) -> None:
    make_tenant(store)
    proxied = configured(store, console_url="https://Store.example/")
    with served_console(proxied) as served:
        _, text = served.key(Role.READER)
        # As a proxy passes it on: by plain http, under its own name, with headers that count for nothing.
        way: dict[str, Any] = {"base": "http://127.0.0.1:8080"}
        passed = {
            "x-forwarded-for": ELSEWHERE,
            "x-forwarded-proto": "http",
            "origin": "https://store.example",
        }
        page = ask(served.app, "GET", "/console/sign-in", headers=passed, **way)
        name = cookies_of(page)["__Host-eventstore-begin"].split("=", 1)[1].split(";")[0]
        assert "strict-transport-security" in page.headers
        for origin, status in (
            ("https://store.example", 303),
            ("https://evil.example", 403),
            ("https://store.example.evil.example", 403),
            ("null", 403),
        ):
            answer = ask(
                served.app,
                "POST",
                "/console/sign-in",
                headers={**passed, "origin": origin},
                cookies={"__Host-eventstore-begin": name},
                data={"csrf": csrf_of(page), "key": text},
                **way,
            )
            assert answer.status_code == status, origin
            assert ("__Host-eventstore" in cookies_of(answer)) == (status == 303)


def test_behind_a_proxy_nobody_passes_for_this_machine(store: Store) -> None:
    make_tenant(store)
    proxied = configured(store, console_url="https://store.example")
    with served_console(proxied, administrator=False) as served:
        # What a proxy on this machine passes on when it adds no header.
        answer = served.client().get("/console/", headers={"host": "localhost:8080"})
        assert answer.status_code == 401
        assert "eventstore keys create --role administrator" in answer.text


def test_without_an_administrator_this_machine_is_let_in_and_nobody_else(store: Store) -> None:
    make_tenant(store)
    with served_console(store, administrator=False) as served:
        client = served.client()
        page = client.get("/console/")
        assert page.status_code == 200
        assert HOW_TO_BEGIN in page.text
        assert HOW_TO_BEGIN in client.get("/console/t/acme/search").text
        # A form of another site's is no form of this machine's.
        forged = client.post(
            "/console/reason", data={"csrf": csrf_of(page), "reason": "x"}, headers={"origin": "https://evil"}
        )
        assert forged.status_code in (401, 403)
        assert client.post("/console/sign-out", data={"csrf": "stub"}).status_code == 403
        ways: list[dict[str, Any]] = [
            {"peer": ELSEWHERE},
            {"headers": {"x-forwarded-for": ELSEWHERE}},
            {"headers": {"sec-fetch-site": "cross-site"}},
            {"base": "http://evil.example"},
        ]
        for way in ways:
            answer = ask(served.app, "GET", "/console/", **way)
            assert answer.status_code == 401, way
            assert "eventstore keys create --role administrator" in answer.text
            assert "acme" not in answer.text
        # A tenant's key is no administrator: its session is good on this machine alone.
        own = served.person(Role.READER)
        kept = {"eventstore": own.client.cookies["eventstore"]}
        assert ask(served.app, "GET", "/console/reason", cookies=kept).status_code == 200
        assert ask(served.app, "GET", "/console/reason", cookies=kept, peer=ELSEWHERE).status_code == 401
        served.key(Role.ADMINISTRATOR, None)
        assert client.get("/console/").headers["location"].startswith("/console/sign-in")


# --- at the issuer ------------------------------------------------------------------------------------


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    yield running
    running.close()


@pytest.fixture
def with_issuer(store: Store, issuer: Issuer) -> Iterator[ServedConsole]:
    """A console on plain http at this machine's name, where an issuer signs people in."""
    make_tenant(store)
    settings = {
        "oidc_issuer": issuer.url,
        "oidc_audience": "eventstore",
        "oidc_client_id": issuer.client[0],
        "oidc_client_secret": issuer.client[1],
        "console_url": "http://127.0.0.1",
    }
    with served_console(configured(store, **settings)) as served:
        served.app.state.console.state.door._attempts = CallerLimits(served.store.settings.default_limits)
        yield served


def go_to(client: httpx.Client, issuer: Issuer, **params: str) -> str:
    """The way to the issuer: its address."""
    answer = client.get("/console/sign-in/issuer", params=params)
    assert answer.status_code == 303
    return answer.headers["location"]


def test_people_sign_in_at_the_issuer(with_issuer: ServedConsole, issuer: Issuer) -> None:
    client = with_issuer.client()
    assert (
        "/console/sign-in/issuer?next=/console/reason"
        in client.get("/console/sign-in?next=/console/reason").text
    )
    url = go_to(client, issuer, next="/console/reason")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert asked["redirect_uri"] == "http://127.0.0.1/console/sign-in/done"
    assert asked["response_type"] == "code"
    assert asked["scope"] == "openid"
    assert asked["code_challenge_method"] == "S256"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    back = issuer.authorize(url, exp=int(time.time()) + 600)
    answer = client.get("/console/sign-in/done", params=back)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/reason")
    assert "oidc:ann@example" in client.get("/console/reason").text
    rows = execute(
        with_issuer.store.database.url,
        "SELECT key_id, subject, role, tenant_id, expires_us - made_us FROM sessions",
    )
    ((*whose, lasts_us),) = rows
    assert whose == [None, "oidc:ann@example", "compliance", "acme"]
    assert 0 < lasts_us <= 600 * 10**6  # no longer than the token
    # The way back is good for one sign-in, of this browser's.
    assert "eventstore-issuer" not in client.cookies
    assert client.get("/console/sign-in/done", params=back).status_code == 401
    assert with_issuer.client().get("/console/sign-in/done", params=back).status_code == 401


def test_the_console_says_who_it_is(with_issuer: ServedConsole, issuer: Issuer) -> None:
    oidc = with_issuer.app.state.console.state.door.oidc
    client = with_issuer.client()
    for methods, in_form in ((None, False), (["client_secret_post"], True), (["client_secret_basic"], False)):
        issuer.auth_methods = methods
        oidc._described_until = 0.0  # it is asked anew
        client.cookies.clear()
        back = issuer.authorize(go_to(client, issuer))
        assert client.get("/console/sign-in/done", params=back).status_code == 303
        assert ("client_secret" in issuer.redeemed[-1]) == in_form
    issuer.client = (issuer.client[0], "another")
    client.cookies.clear()
    back = issuer.authorize(go_to(client, issuer))
    assert client.get("/console/sign-in/done", params=back).status_code == 401


CHANGED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "another state": ({}, {"state": "x"}),
    "no state": ({}, {"state": ""}),
    "another issuer": ({}, {"iss": "https://evil.example"}),
    "another code": ({}, {"code": "x"}),
    "an error": ({}, {"error": "access_denied"}),
    "another nonce": ({"nonce": "x"}, {}),
    "no nonce": ({"nonce": None}, {}),
    "a token for the API": ({"aud": "eventstore"}, {}),
    "a token for another client": ({"azp": "other"}, {}),
    "an old token": ({"exp": 1}, {}),
    "a token of another issuer": ({"iss": "https://evil.example"}, {}),
}


def test_an_answer_that_does_not_fit_signs_nobody_in(with_issuer: ServedConsole, issuer: Issuer) -> None:
    for what, (claims, answer) in CHANGED.items():
        client = with_issuer.client()
        back = {**issuer.authorize(go_to(client, issuer), **claims), **answer}
        refused = client.get("/console/sign-in/done", params=back)
        assert refused.status_code == 401, what
        assert "You were not signed in there" in refused.text
        assert "eventstore" not in client.cookies
    assert execute(with_issuer.store.database.url, "SELECT count(*) FROM sessions") == [(0,)]


def test_people_without_a_role_or_a_page_are_told_so(with_issuer: ServedConsole, issuer: Issuer) -> None:
    for claims in ({"eventstore_role": "writer"}, {"eventstore_role": None}, {"eventstore_tenant": None}):
        client = with_issuer.client()
        back = issuer.authorize(go_to(client, issuer), **claims)
        assert client.get("/console/sign-in/done", params=back).status_code == 403
        assert "eventstore" not in client.cookies


def test_an_issuer_that_is_away(with_issuer: ServedConsole, issuer: Issuer) -> None:
    issuer.status = 500
    client = with_issuer.client()
    for _ in range(2):
        answer = client.get("/console/sign-in/issuer")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
    assert len(issuer.asked) == 1  # it is left in peace for a moment
    assert sign_in(client, with_issuer.key(Role.READER)[1]).status_code == 303


def test_an_issuer_that_hangs_holds_up_nobody_else(
    with_issuer: ServedConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait for it, threads are left for whoever is let in."""
    waiting = 80  # twice the threads that the requests of a process share
    door = with_issuer.app.state.console.state.door
    reader = with_issuer.person(Role.READER)
    kept = base64.urlsafe_b64encode(b'{"state":"","nonce":"","verifier":"","back_to":""}').decode()
    hung, go_on = threading.Semaphore(0), threading.Event()

    def hang(*_: object) -> None:
        hung.release()
        assert go_on.wait(60)
        raise RetryError("the issuer does not answer")

    monkeypatch.setattr(door.oidc, "begin", hang)
    monkeypatch.setattr(door.oidc, "finish", hang)

    async def asked() -> tuple[int, set[int]]:
        cookies = {"cookie": f"eventstore-issuer={kept}"}
        own = {"cookie": f"eventstore={reader.client.cookies['eventstore']}"}
        async with httpx.AsyncClient(base_url=with_issuer.url, timeout=60) as browser:
            tasks = [
                asyncio.create_task(
                    browser.get(f"/console/sign-in/{('issuer', 'done')[n % 2]}", headers=cookies)
                )
                for n in range(waiting)
            ]
            try:
                for _ in range(4):
                    assert await asyncio.to_thread(hung.acquire, timeout=30)
                page = await browser.get("/console/reason", headers=own, timeout=10)
            finally:
                go_on.set()
                answers = await asyncio.gather(*tasks)
        return page.status_code, {answer.status_code for answer in answers}

    assert asyncio.run(asked()) == (200, {503})


def test_the_secret_of_the_console_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, issuer: Issuer
) -> None:
    file = tmp_path / "secret"
    file.write_text("from-a-file\n")
    base = {"oidc_issuer": issuer.url, "oidc_audience": "a", "oidc_client_id": "c", "console_url": issuer.url}
    plain = Settings(**base, oidc_client_secret="not-to-be-seen")
    assert plain.oidc_client is not None
    assert plain.oidc_client.secret == "not-to-be-seen"
    assert "not-to-be-seen" not in repr(plain) + repr(plain.oidc_client) + str(plain.model_dump())
    filed = Settings(**base, oidc_client_secret_file=file)
    assert filed.oidc_client is not None
    assert filed.oidc_client.secret == "from-a-file"
    with pytest.raises(SetupError):
        _ = Settings(**base, oidc_client_secret_file=tmp_path / "none").oidc_client
    for name, value in {**base, "oidc_client_secret": "a"}.items():
        monkeypatch.setenv(f"EVENTSTORE_{name.upper()}", value)
    for name, value in (
        ("oidc_client_secret_file", str(file)),
        ("console_url", "https://a.example/path"),
        ("console_url", "http://a.example"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(f"EVENTSTORE_{name.upper()}", value)
            with pytest.raises(SetupError):
                load_settings()
    monkeypatch.delenv("EVENTSTORE_CONSOLE_URL")
    with pytest.raises(SetupError, match="EVENTSTORE_CONSOLE_URL"):
        load_settings()
