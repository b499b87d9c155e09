"""A served console, and people who are signed in to it, for the tests of its pages.

def test_a_page(store: Store) -> None:
    make_tenant(store)
    with served_console(store) as served:
        ann = served.person(Role.COMPLIANCE, "acme")
        page = ann.get("/console/t/acme/search", entity_type="order")
        answer = ann.post("/console/t/acme/holds", name="case 17", reason="asked by the court")
        assert answer.status_code == 303
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import uvicorn

from eventstore.app import Store
from eventstore.clock import Clock, SystemClock
from eventstore.console.server import create_web
from eventstore.governance.keys import create_key
from eventstore.model.access import Role
from eventstore.model.limits import Limits

__all__ = ["Person", "ServedConsole", "csrf_of", "served_console"]

TIMEOUT_S = 60.0
_CSRF = re.compile(r'name="csrf" value="([^"]*)"')


def csrf_of(page: httpx.Response) -> str:
    """The token that the forms of a page have."""
    found = _CSRF.search(page.text)
    assert found is not None, page.text
    return found[1]


class Person:
    """Somebody at a browser. `key` is the text of the key that they signed in with, `subject` whose it is."""

    def __init__(self, client: httpx.Client, key: str, subject: str, csrf: str) -> None:
        self.client, self.key, self.subject, self.csrf = client, key, subject, csrf

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params or None)

    def page(self, path: str, **params: Any) -> str:
        """A page that is there."""
        answer = self.get(path, **params)
        assert answer.status_code == 200, (answer.status_code, answer.headers.get("location"), answer.text)
        return answer.text

    def fragment(self, path: str, **params: Any) -> httpx.Response:
        """As htmx asks for a part of a page."""
        return self.client.get(path, params=params or None, headers={"hx-request": "true"})

    def post(self, path: str, **fields: Any) -> httpx.Response:
        """A form, as its page would send it."""
        return self.client.post(path, data={"csrf": self.csrf, **fields})


class ServedConsole:
    """The API with the console on a port of its own. `app` is the application, `store` what it serves."""

    def __init__(self, store: Store, app: Any, port: int, stack: ExitStack) -> None:
        self.store, self.app, self.port = store, app, port
        self.url = f"http://127.0.0.1:{port}"
        self._stack = stack

    def key(
        self,
        role: Role,
        tenant: str | None = "acme",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> tuple[str, str]:
        """A new key: its id, and its text."""
        key, text = create_key(
            self.store.database,
            role=role,
            tenant_id=tenant,
            by="test",
            now_us=SystemClock().now_us(),
            limits=limits,
        )
        return key.key_id, text

    def client(self, **more: Any) -> httpx.Client:
        """A browser in which nobody is signed in; it follows no redirects."""
        return self._stack.enter_context(httpx.Client(base_url=self.url, timeout=TIMEOUT_S, **more))

    def person(
        self,
        role: Role,
        tenant: str | None = "acme",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Person:
        """Somebody signed in with a new key."""
        key_id, text = self.key(role, tenant, limits)
        return self.signed_in(key_id, text)

    def signed_in(self, key_id: str, text: str) -> Person:
        """Somebody signed in with this key."""
        client = self.client()
        csrf = csrf_of(client.get("/console/sign-in"))
        answer = client.post("/console/sign-in", data={"csrf": csrf, "key": text})
        assert answer.status_code == 303, answer.text
        return Person(client, text, f"key:{key_id}", csrf_of(client.get("/console/reason")))


@contextmanager
def served_console(
    store: Store, *, administrator: bool = True, clock: Clock | None = None
) -> Iterator[ServedConsole]:
    """The application on a store, in a thread. An administrator exists, unless told otherwise; `clock` is
    what sessions end by, the system's unless given."""
    # Whoever connects before the server runs waits in the socket's queue.
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_web(store, clock=clock)
    with ExitStack() as stack, listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            served = ServedConsole(store, app, listener.getsockname()[1], stack)
            if administrator:
                served.key(Role.ADMINISTRATOR, None)
            # It has started: its state can be exchanged.
            assert httpx.get(f"{served.url}/healthz", timeout=TIMEOUT_S).status_code == 200
            yield served
            app.state.feeds.end()
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
