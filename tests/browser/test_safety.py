"""What a browser really does with hostile values, with a page that frames the console, with its cookies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode

import pytest

from eventstore.app import Store
from eventstore.model.access import Role
from tests.browser.chromium import Watched
from tests.browser.visits import sign_in
from tests.browser.world import World
from tests.console.hostile import PAYLOADS, hostile_event
from tests.unit.helpers import append, make_tenant

_TENANT = "hostile"


def _fill(store: Store) -> None:
    make_tenant(store, _TENANT)
    append(store, _TENANT, *(hostile_event(payload) for payload in PAYLOADS))


@pytest.mark.parametrize("csp", [True, False], ids=["with-the-policy", "without"])
def test_no_script_of_a_value_runs(person: Callable[..., Watched], world: World, csp: bool) -> None:
    """Neither what the policy would have stopped, nor what it would not: without it, escaping alone must do.
    That nothing was asked of another host, and no dialog came, is looked at by `person`."""
    with world.store.database.transaction() as conn:
        made = conn.exec_driver_sql("SELECT count(*) FROM tenants WHERE tenant_id = 'hostile'").scalar_one()
    if not made:
        _fill(world.store)
    watched = person(csp=csp)
    sign_in(watched, world)
    base = f"{world.console}/t/{_TENANT}"
    addresses = [
        f"{base}/search?{urlencode({'seq_from': n, 'seq_to': n + 24, 'limit': 25})}" for n in (1, 51)
    ]
    for number in range(0 if csp else 1, len(PAYLOADS), 10):
        payload = PAYLOADS[number]
        entity = urlencode({"entity_type": payload[:200], "entity_id": payload})
        addresses += [f"{base}/event/{number + 1}", f"{base}/entity?{entity}"]
    page = watched.page
    for address in addresses:
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        page.mouse.move(300, 300)
        assert page.evaluate("typeof window.zq7x") == "undefined", address
        assert page.locator("[onerror],[onload],[onfocus],[style],iframe,object,embed,base").count() == 0


@contextmanager
def _elsewhere(body: str) -> Iterator[str]:
    """A site of another origin, with one page; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_console_shows_nothing_in_a_frame(person: Callable[..., Watched], world: World) -> None:
    watched = person()
    sign_in(watched, world)
    framed = "".join(f'<iframe src="{world.console}{path}"></iframe>' for path in ("/", "/sign-in"))
    with _elsewhere(f"<p>lure</p>{framed}") as address:
        watched.page.goto(address)
        watched.page.wait_for_load_state("networkidle")
        frames = watched.page.frames[1:]
        assert len(frames) == 2
        for frame in frames:
            assert "eventstore" not in frame.content()
            assert frame.locator("form").count() == 0
    assert any("frame" in complaint for complaint in watched.complaints)
    watched.complaints.clear()  # all of them are about the lure


def test_a_form_of_another_site_is_refused(person: Callable[..., Watched], world: World) -> None:
    """A real browser, with the victim's cookie as far as it sends it."""
    watched = person()
    sign_in(watched, world, Role.COMPLIANCE)
    form = (
        f'<form method="post" action="{world.console}/reason"><input name="reason" value="forged">'
        '<input name="next" value="/console/"><button>win a prize</button></form>'
    )
    with _elsewhere(form) as address:
        watched.page.goto(address)
        # Sent without the cookie, it is nobody's: the browser is led to sign in, and is signed in already.
        watched.page.get_by_role("button").click()
        watched.page.wait_for_url(f"{world.console}/**")
        assert "forged" not in watched.page.content()
    watched.page.goto(f"{world.console}/")
    assert "forged" not in watched.page.content()
    watched.complaints.clear()  # of the other site's address, and of the refusal


def test_no_script_can_read_the_session(person: Callable[..., Watched], world: World) -> None:
    watched = person()
    sign_in(watched, world)
    assert watched.page.evaluate("document.cookie") == ""
    kept = watched.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert world.keys[Role.ADMINISTRATOR] not in kept
    cookies = watched.context.cookies()
    assert cookies
    for cookie in cookies:
        assert cookie["httpOnly"]
        assert cookie["sameSite"] in ("Lax", "Strict")
        assert world.keys[Role.ADMINISTRATOR] not in cookie["value"]
