"""The logging handler and the ASGI middleware."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventstore.client import Client
from eventstore.client.asgi import RecordChanges, record_change
from eventstore.client.logging import EventHandler
from eventstore.client.outbox import read_outbox
from eventstore.client.recorder import Recorder
from eventstore.errors import BusyError


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Its store is away, so that what it records stays in the outbox."""

    def away(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with Client("http://store", "acme", transport=httpx.MockTransport(away)) as client:
        made = Recorder(client, tmp_path / "outbox")
        yield made
        made.close(timeout_s=0)


@pytest.fixture
def recorded(recorder: Recorder, tmp_path: Path) -> Any:
    def read() -> list[dict[str, Any]]:
        recorder.sync()
        return [msgspec.json.decode(line) for _, line in read_outbox(tmp_path / "outbox")]

    return read


# --- logging --------------------------------------------------------------------------------------------


@pytest.fixture
def handler(recorder: Recorder) -> Iterator[EventHandler]:
    made = EventHandler(recorder, source="billing")
    root = logging.getLogger()
    root.addHandler(made)
    yield made
    root.removeHandler(made)


def test_log_records_become_events(handler: EventHandler, recorded: Any) -> None:
    log = logging.getLogger("shop.cart")
    # Handed over by hand: no report of a test run could hold this text.
    odd = "limit of %s raised\0 \ud800"
    here = "test_log_records_become_events"
    handler.handle(log.makeRecord(log.name, logging.WARNING, __file__, 1, odd, ("ann",), None, func=here))
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed", extra={"event": {"entity_type": "account", "entity_id": "7", "actor": "ben"}})
    first, second = recorded()
    assert (first["entity_type"], first["entity_id"], first["action"]) == ("log", "shop.cart", "warning")
    assert (first["actor"], first["source"]) == ("system", "billing")
    assert first["new_value"] == {"message": "limit of ann raised\\0 \\ud800"}
    assert first["metadata"]["function"] == "test_log_records_become_events"
    assert (second["entity_type"], second["entity_id"], second["actor"]) == ("account", "7", "ben")
    assert "ValueError: why" in second["new_value"]["exception"]


def test_what_sending_logs_is_not_recorded(handler: EventHandler, recorder: Recorder, recorded: Any) -> None:
    for name in ("eventstore.client.recorder", "httpx", "httpcore.connection", "eventstore.client"):
        logging.getLogger(name).error("sending failed")
    logging.getLogger("eventstore.clientele").error("another's")
    recorder.flush(timeout_s=0.05)  # fails, and logs it from its own thread
    assert [e["entity_id"] for e in recorded()] == ["eventstore.clientele"]


def test_it_neither_waits_nor_raises_and_counts_what_it_drops(
    handler: EventHandler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def full(event: Any, **options: Any) -> None:
        asked.append(options)
        raise BusyError("the outbox is full")

    monkeypatch.setattr(handler._recorder, "record", full)
    logging.getLogger("shop").warning("lost")
    handler.handle(logging.LogRecord("shop", logging.ERROR, "f", 1, "%d", ("not a number",), None))
    assert asked == [{"wait": False, "full": "raise", "timeout_s": 0}]
    assert handler.dropped == 2
    assert "the outbox is full" in capsys.readouterr().err


# --- ASGI -----------------------------------------------------------------------------------------------


async def pay(request: Request) -> Response:
    request.scope["user"] = "ann"
    for old, new in (("open", "paying"), ("paying", "paid")):
        record_change(request, "order", request.path_params["number"], "state", old, new)
    record_change(request.scope, "order", request.path_params["number"], "note", None, "x")
    return Response(status_code=int(request.query_params.get("status", "200")))


async def fails(request: Request) -> Response:
    record_change(request, "order", "1", "state", 1, 2)
    raise ValueError("a mistake")


async def look(request: Request) -> Response:
    with pytest.raises(RuntimeError, match="not recorded"):
        record_change(request, "order", "1", "state", 1, 2)
    return Response()


def ask(recorder: Recorder, method: str, path: str, **options: Any) -> int:
    middleware = Middleware(
        RecordChanges, recorder=recorder, source="shop", actor=lambda scope: scope.get("user"), **options
    )
    routes = [
        Route("/orders/{number}", pay, methods=["POST"]),
        Route("/fails", fails, methods=["DELETE"]),
        Route("/look", look),
    ]
    app = Starlette(routes=routes, middleware=[middleware])

    async def once() -> int:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return (await client.request(method, path)).status_code

    return asyncio.run(once())


def test_a_request_and_its_changes_are_recorded(recorder: Recorder, recorded: Any) -> None:
    assert ask(recorder, "POST", "/orders/7") == 200
    request, *changes = recorded()
    assert (request["entity_type"], request["action"], request["actor"]) == ("route", "post", "ann")
    assert request["entity_id"] in ("/orders/{number}", "/orders/7")
    assert (request["new_value"], request["metadata"]) == ({"status": 200}, {"path": "/orders/7"})
    assert [(c["entity_id"], c["field"], c.get("old_value"), c["new_value"]) for c in changes] == [
        ("7", "state", "open", "paid"),
        ("7", "note", None, "x"),
    ]
    assert {c["metadata"]["request"] for c in changes} == {request["event_id"]}
    assert {c["actor"] for c in changes} == {"ann"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/orders/7?status=409", 409), ("DELETE", "/fails", 500)]
)
def test_a_request_that_fails_changed_nothing(
    recorder: Recorder, recorded: Any, method: str, path: str, status: int
) -> None:
    assert ask(recorder, method, path) == status
    (request,) = recorded()
    assert request["new_value"] == {"status": status}


def test_reading_is_not_recorded(recorder: Recorder, recorded: Any) -> None:
    assert ask(recorder, "GET", "/look") == 200
    assert recorded() == []
    assert ask(recorder, "GET", "/look", methods=("POST",)) == 200
    assert recorded() == []


@pytest.mark.parametrize(("required", "status"), [(True, 500), (False, 200)])
def test_what_cannot_be_recorded(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    required: bool,
    status: int,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BusyError("the outbox is full")

    monkeypatch.setattr(recorder, "record", full)
    assert ask(recorder, "POST", "/orders/7", required=required) == status
    assert required or "POST /orders/7 is not recorded" in caplog.text
