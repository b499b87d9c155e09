"""The clients without a store: retries, errors, pages, the feed's reconnecting; sync and async alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from eventstore.api.problems import from_error
from eventstore.client import AsyncClient, Client, Event, FeedReset, NewEvent, Retry, feeding, frames
from eventstore.client.problems import error_from_answer
from eventstore.errors import (
    CoverageError,
    EventStoreError,
    FeedResetError,
    InputError,
    InvalidEventError,
    RateLimitedError,
    RetryError,
    SetupError,
    TargetUnavailableError,
    TenantNotFoundError,
    UnauthenticatedError,
    VersionConflictError,
)
from tests.unit.test_errors import TREE

ROOT = Path(__file__).resolve().parents[2]
QUICK = Retry(attempts=3, first_s=0.0, longest_s=0.0)
EVENT = {"entity_type": "order", "entity_id": "1", "action": "changed", "actor": "ann", "source": "web"}
STORED = {"first_seq": 1, "last_seq": 1, "count": 1, "duplicates": 0, "events": []}


class Script:
    """Answers requests one after the other with what it is given; an exception is raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[Any]:
        return [msgspec.json.decode(r.content) for r in self.requests]


class Both:
    """Calls a method of `Client`, or the same of `AsyncClient`; its value, or its items as a list."""

    def __init__(self, kind: str, script: Script, **options: Any) -> None:
        options = {"retry": QUICK, "api_key": "sk_secret", **options}
        transport = httpx.MockTransport(script)
        self.kind = kind
        self._make: Callable[[], Any] = lambda: (Client if kind == "sync" else AsyncClient)(
            "http://store/", "acme", transport=transport, **options
        )

    def __call__(self, name: str, *args: Any, take: int = 1000, **options: Any) -> Any:
        if self.kind == "async":
            return asyncio.run(self._later(name, args, options, take))
        with self._make() as client:
            result = getattr(client, name)(*args, **options)
            return _take(result, take) if isinstance(result, Iterator) else result

    async def _later(self, name: str, args: Any, options: Any, take: int) -> Any:
        async with self._make() as client:
            result = getattr(client, name)(*args, **options)
            if isinstance(result, AsyncIterator):
                items = []
                async for item in result:
                    items.append(item)
                    if len(items) == take:
                        break
                return items
            assert isinstance(result, Coroutine)
            return await result


def _take(items: Iterator[Any], count: int) -> list[Any]:
    return [item for _, item in zip(range(count), items, strict=False)]


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest) -> Callable[..., Both]:
    return lambda *answers, **options: Both(request.param, *answers, **options)


def problem(error: EventStoreError) -> httpx.Response:
    made = from_error(error)
    return httpx.Response(made.status_code, content=bytes(made.body), headers=dict(made.headers))


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [row[0] for row in TREE], ids=lambda e: type(e).__name__)
def test_every_error_of_the_store_is_made_again_with_its_fields(error: EventStoreError) -> None:
    error.hint = "do so"
    answer = problem(error)
    made = error_from_answer(answer.status_code, answer.content, tenant="acme", retry_after_s=None)
    assert type(made) is type(error)
    hidden = {"key"}  # of the archive; callers are not told
    fields = {name: value for name, value in vars(error).items() if name not in hidden}
    assert {name: value for name, value in vars(made).items() if name not in hidden} == fields
    assert str(made) == str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError),
        (404, InputError),
        (409, "StateError"),
        (429, RetryError),
        (503, RetryError),
        (500, ""),
    ],
)
def test_what_this_version_does_not_know_is_of_its_family(status: int, kind: Any) -> None:
    body = msgspec.json.encode({"type": "urn:eventstore:brand-new", "detail": "d", "hint": "h", "x": 1})
    for data, code in ((body, "brand-new"), (b"<html>", None)):
        made = error_from_answer(status, data, tenant="acme", retry_after_s=9)
        if isinstance(kind, str):
            assert type(made).__name__ == (kind or "EventStoreError")
        else:
            assert type(made) is kind
        if code:
            assert (made.code, made.message, made.hint) == (code, "d", "h")
        if isinstance(made, RetryError):
            assert made.retry_after_s == 9
    assert EventStoreError.code == "eventstore-error", "no class was changed"


# --- appending and retries ------------------------------------------------------------------------------


def test_each_attempt_sends_the_same_ids(both: Callable[..., Both]) -> None:
    script = Script(httpx.ReadTimeout("x"), httpx.Response(502), httpx.Response(201, json=STORED))
    assert both(script)("append", EVENT).count == 1
    ids = {body["event_id"] for body in script.bodies}
    assert len(ids) == 1
    assert uuid.UUID(ids.pop()).version == 7
    assert script.requests[0].headers["authorization"] == "Bearer sk_secret"
    assert script.requests[0].url.path == "/v1/tenants/acme/events"


def test_many_events_go_as_lines_with_rising_ids(both: Callable[..., Both]) -> None:
    script = Script(httpx.Response(201, json=STORED))
    own = uuid.uuid4()
    both(script)("append", [EVENT, {**EVENT, "event_id": own}, NewEvent(**EVENT, new_value={"a": 1})])
    request = script.requests[0]
    assert request.headers["content-type"] == "application/x-ndjson"
    events = [msgspec.json.decode(line) for line in request.content.split(b"\n")]
    assert events[1]["event_id"] == str(own)
    assert events[0]["event_id"] < events[2]["event_id"]
    assert events[2]["new_value"] == {"a": 1}
    with pytest.raises(InvalidEventError, match="no event"):
        both(Script())("append", [])
    with pytest.raises(InvalidEventError, match="event 1: is no JSON"):
        both(Script())("append", [EVENT, {**EVENT, "new_value": object()}])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500])
def test_what_will_not_change_is_not_tried_again(both: Callable[..., Both], status: int) -> None:
    script = Script(httpx.Response(status))
    with pytest.raises(EventStoreError):
        both(script)("stats")
    assert len(script.requests) == 1


def test_attempts_are_bounded(both: Callable[..., Both]) -> None:
    script = Script(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(RetryError, match="the store did not answer: refused"):
        both(script)("stats")
    script = Script(*[httpx.Response(503)] * 3)
    with pytest.raises(RetryError):
        both(script)("stats")
    assert script.answers == []


def test_pauses_double_with_chance_and_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    retry = Retry(attempts=6, first_s=1.0, longest_s=3.0)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    script = Script(
        *[httpx.Response(503)] * 3,
        httpx.Response(429, headers={"retry-after": "7"}),
        httpx.Response(429, headers={"retry-after": soon}),
        httpx.Response(201, json=STORED),
    )
    Both("sync", script, retry=retry)("append", EVENT)
    for pause, (low, high) in zip(slept, [(0.5, 1), (1, 2), (1.5, 3), (7, 8), (17, 21)], strict=True):
        assert low <= pause <= high
    limited = problem(RateLimitedError("m", retry_after_s=3600))
    with pytest.raises(RateLimitedError) as told:
        Both("sync", Script(limited), retry=retry)("stats")
    assert told.value.retry_after_s == 3600


def test_an_answer_that_is_not_the_stores_is_an_error(both: Callable[..., Both]) -> None:
    with pytest.raises(EventStoreError, match="none of the store's"):
        both(Script(httpx.Response(200, text="<html>Welcome")))("stats")


def test_a_conflict_names_what_conflicts(both: Callable[..., Both]) -> None:
    error = next(row[0] for row in TREE if isinstance(row[0], VersionConflictError))
    with pytest.raises(VersionConflictError) as told:
        both(Script(problem(error)))("append", {**EVENT, "expected_version": 3})
    assert [(c.entity_id, c.actual) for c in told.value.conflicts] == [("7", 5)]


def test_the_key_is_nowhere_to_be_seen(both: Callable[..., Both]) -> None:
    client = both(Script(problem(UnauthenticatedError("m"))))
    with pytest.raises(UnauthenticatedError) as told:
        client("stats")
    assert "sk_secret" not in repr(told.value) + str(told.value) + repr(client._make())
    for url in ("http://user:pw@store", "store", "ftp://x", "http://"):
        with pytest.raises(InputError) as refused:
            Client(url, "acme")
        assert "pw" not in str(refused.value)
    with pytest.raises(InputError):
        Client("http://store", "acme", api_key="two\nlines")


# --- reading --------------------------------------------------------------------------------------------


def stored_event(seq: int) -> dict[str, Any]:
    time = "2025-11-03T09:00:00.000000Z"
    values = {"field": "*", "old_value": None, "new_value": seq, "workspace_id": None, "metadata": None}
    ids = {"event_id": str(uuid.UUID(int=seq)), "recorded_at": time, "occurred_at": time, "hash": "00"}
    return {**EVENT, **values, **ids, "seq": seq}


def page(first: int, last: int, cursor: str | None) -> httpx.Response:
    events = [stored_event(seq) for seq in range(first, last + 1)]
    return httpx.Response(200, json={"events": events, "next_cursor": cursor, "covered": {}})


def test_pages_are_one_iterator(both: Callable[..., Both]) -> None:
    script = Script(page(1, 2, "2"), page(3, 4, "4"), page(5, 5, None))
    events = both(script)(
        "events", actor="ann", page_events=2, recorded_from=datetime(2025, 1, 1, tzinfo=UTC)
    )
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert isinstance(events[0], Event)
    assert events[0].recorded_at == datetime(2025, 11, 3, 9, tzinfo=UTC)
    assert [dict(r.url.params) for r in script.requests] == [
        {"limit": "2", "order": "asc", "actor": "ann", "recorded_from": "2025-01-01T00:00:00+00:00", **more}
        for more in ({}, {"cursor": "2"}, {"cursor": "4"})
    ]


def test_a_limit_ends_it(both: Callable[..., Both]) -> None:
    script = Script(page(1, 2, "2"), page(3, 3, "3"))
    assert [e.seq for e in both(script)("events", limit=3, page_events=2)] == [1, 2, 3]
    assert [r.url.params["limit"] for r in script.requests] == ["2", "1"]


@pytest.mark.parametrize("entity_id", ["a/b", "ü ?#%2F", "..", "1"])
def test_ids_are_quoted(both: Callable[..., Both], entity_id: str) -> None:
    script = Script(page(1, 1, None))
    both(script)("history", entity_id)
    assert script.requests[0].url.path == f"/v1/tenants/acme/history/{entity_id}"
    assert script.requests[0].url.raw_path.count(b"/") == 5


# --- the feed -------------------------------------------------------------------------------------------


def message(seq: int) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (seq, msgspec.json.encode(stored_event(seq)))


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(parts))


def told(name: str, error: EventStoreError) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), problem(error).content)


def test_a_feed_connects_again_from_its_last_event(both: Callable[..., Both]) -> None:
    script = Script(
        stream(b"retry: 0\n\n", message(4), b": keep-alive\n\n", message(5)),
        httpx.ConnectError("refused"),
        httpx.Response(503),
        stream(message(5), message(6)),
        stream(message(7)),
    )
    events = both(script)("feed", 3, take=4)
    assert [event.seq for event in events] == [4, 5, 6, 7]
    assert [r.url.params["since"] for r in script.requests] == ["3", "5", "5", "5", "6"]
    assert script.requests[0].headers["accept"] == "text/event-stream"


def test_a_filtered_feed_does_not_search_twice(both: Callable[..., Both]) -> None:
    script = Script(stream(message(4), b"id: 900\n\n"), stream(message(950)))
    assert [e.seq for e in both(script)("feed", actor="ann", take=2)] == [4, 950]
    assert [dict(r.url.params) for r in script.requests] == [
        {"since": "0", "actor": "ann"},
        {"since": "900", "actor": "ann"},
    ]


def test_an_event_left_out_is_an_error(both: Callable[..., Both]) -> None:
    with pytest.raises(CoverageError, match="from seq 1 to 3"):
        both(Script(stream(message(1), message(3))))("feed")


GONE = FeedResetError("gone", oldest_seq=6, since=5, expired=[(1, 1, 5)])


@pytest.mark.parametrize("on_stream", [True, False])
def test_a_reset_raises_or_is_given(both: Callable[..., Both], on_stream: bool) -> None:
    reset = stream(told("feed_reset", GONE)) if on_stream else problem(GONE)
    with pytest.raises(FeedResetError) as found:
        both(Script(reset))("feed")
    assert (found.value.oldest_seq, found.value.since, found.value.expired) == (6, 5, [(1, 1, 5)])
    script = Script(reset, stream(message(6)))
    items = both(script)("feed", on_reset="yield", take=2)
    assert items[0] == FeedReset(since=5, oldest_seq=6, expired=[(1, 1, 5)])
    assert items[1].seq == 6
    assert script.requests[1].url.params["since"] == "5"


def test_errors_on_the_stream_raise(both: Callable[..., Both]) -> None:
    with pytest.raises(CoverageError, match="a gap"):
        both(Script(stream(message(1), told("error", CoverageError("a gap")))))("feed")
    script = Script(*[stream(told("error", TargetUnavailableError("the archive is away")))] * 3)
    with pytest.raises(TargetUnavailableError):
        both(script)("feed", attempts=3)
    assert script.answers == [], "what may pass is tried again, in bounds"
    with pytest.raises(TenantNotFoundError):
        both(Script(problem(TenantNotFoundError("acme"))))("feed")
    with pytest.raises(RetryError, match="text/event-stream"):
        both(Script(httpx.Response(200, text="<html>")))("feed")
    with pytest.raises(RetryError, match="refused"):
        both(Script(*[httpx.ConnectError("refused")] * 2))("feed", attempts=2)


def test_a_feed_of_a_quiet_log_does_not_give_up(
    both: Callable[..., Both], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [stream(told("error", TargetUnavailableError("the archive is away")))] * 9
    assert both(Script(*away, stream(message(1))))("feed", take=1)[0].seq == 1, "without bounds: for ever"

    looked = [stream(b"id: %d\n\n" % seq) for seq in (10, 20, 30)]
    assert both(Script(*looked, stream(message(31))))("feed", actor="ann", attempts=2, take=1)[0].seq == 31

    ended = [stream(b"retry: 0\n\n")] * 3
    with pytest.raises(RetryError, match="ends each time"):
        both(Script(*ended))("feed", attempts=3)
    monkeypatch.setattr(feeding, "_LASTED_S", 0.0)
    assert both(Script(*ended, stream(message(1))))("feed", attempts=2, take=1)[0].seq == 1, "each lasted"


# --- exporting ------------------------------------------------------------------------------------------


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"half of "
        raise httpx.RemoteProtocolError("cut")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


def test_an_export_that_breaks_begins_anew_and_leaves_no_half_file(
    both: Callable[..., Both], tmp_path: Path
) -> None:
    path = tmp_path / "out.ndjson"
    script = Script(httpx.Response(200, stream=Broken()), httpx.Response(200, content=b"whole\n"))
    assert both(script)("export", path, "ndjson", actor="ann") == 6
    assert path.read_bytes() == b"whole\n"
    assert dict(script.requests[0].url.params) == {"format": "ndjson", "actor": "ann"}
    with pytest.raises(RetryError):
        both(Script(*[httpx.Response(200, stream=Broken()) for _ in range(3)]))("export", path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.ndjson"]
    assert path.read_bytes() == b"whole\n"


def test_arrow_pandas_and_polars(both: Callable[..., Both]) -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.table({"seq": [1, 2], "actor": ["a", None]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()

    def script() -> Script:
        return Script(httpx.Response(200, content=data))

    assert both(script())("to_arrow").equals(table)
    assert both(script())("to_pandas")["seq"].tolist() == [1, 2]
    assert both(script())("to_polars")["seq"].to_list() == [1, 2]


def test_a_package_that_is_missing_is_named(
    both: Callable[..., Both], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(frames.importlib, "import_module", missing)
    script = Script()
    for method, package in (("to_arrow", "pyarrow"), ("to_pandas", "pyarrow"), ("to_polars", "pyarrow")):
        with pytest.raises(SetupError, match=f"{package} is not installed.*pip install {package}"):
            both(script)(method)
    assert script.requests == [], "nothing was fetched in vain"


# --- the package ----------------------------------------------------------------------------------------


def test_it_brings_nothing_of_the_server() -> None:
    program = (
        "import sys; import eventstore.client, eventstore.client.recorder, eventstore.client.logging, "
        "eventstore.client.asgi; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.startswith("eventstore.") and ".client" not in name}
    assert ours <= {
        "eventstore.clock",
        "eventstore.errors",
        "eventstore.model",
        "eventstore.model.event",
        "eventstore.model.records",
    }
    heavy = {
        "fastapi",
        "starlette",
        "sqlalchemy",
        "psycopg",
        "pyarrow",
        "duckdb",
        "pandas",
        "polars",
        "numpy",
    }
    assert not loaded & (heavy | {"pydantic", "uvicorn", "fsspec", "typer"})
    assert (ROOT / "eventstore" / "py.typed").exists()
