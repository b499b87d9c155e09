"""Appending over HTTP: from a request to a place in the next group commit, and back.

The route is declared like the others (`events.append`), which documents it. `AppendShortcut` takes the
same requests before the framework's routing does: that way costs several times what the append itself
does, and this is the one route that is called for every single event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eventstore.api import problems
from eventstore.api.access import check, principal_of
from eventstore.api.bodies import BodyBudget, media_type_of, read_body
from eventstore.api.limits import body_bytes_max
from eventstore.errors import EventStoreError, InputError, MediaTypeError
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.hot.group import GroupCommitter
from eventstore.intake.bulk import DECODED_FACTOR, parse_arrow, parse_parquet
from eventstore.intake.json import parse_array_or_object, parse_lines, parse_record
from eventstore.model.access import Permission
from eventstore.model.records import RecordIngest, RecordInsert, RecordUpdate
from eventstore.query.render import format_uuid

__all__ = ["ARROW", "LINES", "PARQUET", "AppendService", "AppendShortcut", "Appended"]

LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
Record = RecordInsert | RecordUpdate | RecordIngest

_PREFIX, _SUFFIX = "/v1/tenants/", "/events"
# Bodies up to this size are parsed in less time than it takes to hand them to a thread.
_INLINE_BYTES_MAX = 16_384
# So many larger ones at once: what they become takes several times their bytes.
_PARSED_AT_ONCE = 4
# Answers of up to so many events are written in a few milliseconds.
_INLINE_EVENTS_MAX = 2000
_ENCODER = msgspec.json.Encoder()


class Stored(msgspec.Struct, forbid_unknown_fields=True):
    """Where an event of the request is in the log."""

    seq: int
    event_id: str


class Appended(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a request. `count` events are new and have the seqs `first_seq` to `last_seq` (null:
    none is new); `duplicates` were stored before. `events` has an item for each event of the request."""

    first_seq: int | None
    last_seq: int | None
    count: int
    duplicates: int
    events: list[Stored] | msgspec.UnsetType = msgspec.UNSET


Parse = Callable[[bytes], AppendRequest]


class AppendService:
    """Takes append requests of one event loop."""

    def __init__(
        self, committer: GroupCommitter, *, body_bytes_max: int, value_bytes_max: int, bodies_bytes_max: int
    ) -> None:
        self._committer = committer
        self._budget = BodyBudget(bodies_bytes_max)
        self._parsing = anyio.CapacityLimiter(_PARSED_AT_ONCE)
        self._body_bytes_max = body_bytes_max
        self._value_bytes_max = value_bytes_max
        self._answers = _Answers(asyncio.get_running_loop())

    async def respond(
        self, tenant: str, request: Request, *, with_events: bool, record: type[Record] | None = None
    ) -> Response:
        """Store the request's events; answered once they are durable. `record`: the body is such a one.

        Raises:
            EventStoreError: why nothing of it was stored.
        """
        most = body_bytes_max(request, self._body_bytes_max)
        parse = self._parser(media_type_of(request), record, most)
        with self._budget.share() as share:
            body = await read_body(request, most, share)
            if len(body) <= _INLINE_BYTES_MAX:
                appending = parse(body)
            else:
                appending = await anyio.to_thread.run_sync(parse, body, limiter=self._parsing)
            result = await self._answers.of(self._committer.submit(tenant, appending))
        if with_events and len(result.seqs) > _INLINE_EVENTS_MAX:
            content = await run_in_threadpool(_content, result, with_events)
        else:
            content = _content(result, with_events)
        return Response(content, 201, media_type="application/json")

    async def flush(self, tenant: str) -> int:
        """Wait until all that was accepted before for a tenant is settled; how many events that were."""
        return await asyncio.wrap_future(self._committer.flush(tenant))

    def _parser(self, media_type: str, record: type[Record] | None, bytes_max: int) -> Parse:
        """How a body of that media type, of at most so many bytes, becomes events.

        Raises:
            MediaTypeError: it is not taken here.
        """
        values = self._value_bytes_max
        if media_type == "application/json":
            if record is not None:
                return lambda body: AppendRequest(
                    parse_record(body, record, value_bytes_max=values), None, len(body)
                )
            return lambda body: AppendRequest(
                parse_array_or_object(body, value_bytes_max=values), None, len(body)
            )
        if record is None and media_type == LINES:
            return lambda body: AppendRequest(*parse_lines(body, value_bytes_max=values), len(body))
        if record is None and media_type in (ARROW, PARQUET):
            columns = parse_arrow if media_type == ARROW else parse_parquet
            decoded = bytes_max * DECODED_FACTOR

            def parse(body: bytes) -> AppendRequest:
                events = columns(body, value_bytes_max=values, decoded_bytes_max=decoded)
                return AppendRequest(events, None, events.nbytes)

            return parse
        taken = (
            "application/json" if record is not None else f"application/json, {LINES}, {ARROW} or {PARQUET}"
        )
        raise MediaTypeError(f"the media type {media_type!r} is not taken here", hint=f"use {taken}")


def _appended(result: AppendResult, with_events: bool) -> Appended:
    listed: list[Stored] | msgspec.UnsetType = msgspec.UNSET
    if with_events:
        listed = [Stored(s, format_uuid(i)) for s, i in zip(result.seqs, result.event_ids, strict=True)]
    return Appended(result.first_seq, result.last_seq, result.count, result.duplicates, listed)


def _content(result: AppendResult, with_events: bool) -> bytes:
    return _ENCODER.encode(_appended(result, with_events))


class _Answers:
    """Brings results from the committing threads to the event loop: one wake-up for a whole group, where
    asyncio.wrap_future would take one for each request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._settled: list[tuple[asyncio.Future[AppendResult], Future[AppendResult]]] = []

    def of(self, committing: Future[AppendResult]) -> asyncio.Future[AppendResult]:
        """A future of the loop that gets the outcome of one of a committing thread."""
        waiting: asyncio.Future[AppendResult] = self._loop.create_future()
        committing.add_done_callback(partial(self._settle, waiting))
        return waiting

    def _settle(self, waiting: asyncio.Future[AppendResult], done: Future[AppendResult]) -> None:
        with self._lock:
            self._settled.append((waiting, done))
            first = len(self._settled) == 1
        if first:
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            settled, self._settled = self._settled, []
        for waiting, done in settled:
            if waiting.cancelled():
                continue
            error = done.exception()
            if error is None:
                waiting.set_result(done.result())
            else:
                waiting.set_exception(error)


class AppendShortcut:
    """ASGI middleware that answers appends itself, and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = _appending_tenant(scope)
        if tenant is None:
            await self._app(scope, receive, send)
            return
        service: AppendService = scope["app"].state.appending
        request = Request(scope, receive)
        try:
            check(principal_of(request), Permission.APPEND, tenant)
            response = await service.respond(tenant, request, with_events=_with_events(scope["query_string"]))
        except EventStoreError as e:
            response = problems.from_error(e)
        except ClientDisconnect:
            return  # nothing was handed on yet
        await response(scope, receive, send)


def _appending_tenant(scope: Scope) -> str | None:
    """The tenant of an append; None for any other request."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    tenant = path[len(_PREFIX) : -len(_SUFFIX)]
    return tenant if tenant and "/" not in tenant else None


def _with_events(query: bytes) -> bool:
    wanted = True
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name != "events":
            raise InputError(f"there is no parameter {name!r} here", hint="known are: events")
        if value.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"events: {value!r} is neither true nor false")
        wanted = value.lower() in ("true", "1")
    return wanted
