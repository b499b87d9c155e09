"""A served store and its tenants, seen through the API, for the tests of it."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from eventstore.api.server import create_app
from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, execute, make_tenant, new_event

BODY_BYTES_MAX = 300_000
VALUE_BYTES_MAX = 1000
REQUIRED = {"entity_type": "order", "entity_id": "1", "action": "changed", "actor": "ann", "source": "web"}


@dataclass
class Served:
    store: Store
    clock: FixedClock
    client: httpx.Client
    address: tuple[str, int]
    archive: Path


_numbers = itertools.count(1)


@contextmanager
def served_api(server_url: str, template_database: str, folder: Path, **settings: Any) -> Iterator[Served]:
    """A server on a database and a folder of its own. `settings` are given besides."""
    name = f"api_{folder.name}_{next(_numbers)}"
    url = create_database(server_url, name, template=template_database)
    configured = Settings(
        database_url=url,
        home=folder,
        archive_url=(folder / "archive").as_uri(),
        body_bytes_max=BODY_BYTES_MAX,
        value_bytes_max=VALUE_BYTES_MAX,
        **settings,
    )
    clock = FixedClock(START_US)
    # Whoever connects before the server runs waits in the socket's queue.
    listener = socket.create_server(("127.0.0.1", 0))
    with open_store(configured, clock=clock) as store, listener:
        config = uvicorn.Config(create_app(store), log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = listener.getsockname()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30) as client:
                yield Served(store, clock, client, address, folder / "archive")
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


class Tenant:
    """A tenant, seen through the API."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.name = f"t{next(_numbers)}"
        served.clock.move_to(START_US)
        make_tenant(served.store, self.name)
        self.path = f"/v1/tenants/{self.name}"

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.served.client.get(f"{self.path}/{path}", params=params or None)

    def found(self, path: str, **params: Any) -> dict[str, Any]:
        response = self.get(path, **params)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def seqs(self, path: str, **params: Any) -> list[int]:
        return [event["seq"] for event in self.found(path, **params)["events"]]

    def post(self, body: Any, *, media_type: str = "application/json", **params: Any) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.served.client.post(
            f"{self.path}/events", content=data, headers={"content-type": media_type}, params=params or None
        )

    def append(self, *events: dict[str, Any]) -> dict[str, Any]:
        response = self.post(list(events))
        assert response.status_code == 201, response.text
        body: dict[str, Any] = response.json()
        return body

    def last_seq(self) -> int:
        found: int = self.found("stats")["head"]["last_seq"]
        return found

    def fill(self) -> list[dict[str, Any]]:
        """Three archived days of four events and a hot day of four; every event as the API shows it."""
        for day in range(4):
            self.served.clock.move_to(START_US + day * DAY_US + HOUR_US)
            append(
                self.served.store,
                self.name,
                *(new_event(str(n % 2), action=f"day-{day}", actor=f"a{n}") for n in range(4)),
            )
        compactor = self.served.store.compactor
        report = compactor.run(compactor.tenants(self.name), START_US + 3 * DAY_US)
        assert report.outcomes[0].windows == 3
        events: list[dict[str, Any]] = self.found("events", limit=1000)["events"]
        assert [e["seq"] for e in events] == list(range(1, 17))
        return events


def event(**values: Any) -> dict[str, Any]:
    return {**REQUIRED, **values}


def is_problem(response: httpx.Response, status: int, **expected: Any) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:eventstore:")
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in response.text
    for name, value in expected.items():
        assert body.get(name) == value, body
    return body
