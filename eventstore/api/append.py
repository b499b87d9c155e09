"""Appending over HTTP: from a request to a place in the next group commit, and back.

The route is declared like the others (`events.append`), which documents it. `AppendShortcut` takes the
same requests before the framework's routing does: that way costs several times what the append itself
does, and this is the one route that is called for every single event.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from functools import partial
from urllib.parse import parse_qsl

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eventstore.api import problems
from eventstore.errors import EventStoreError, InputError, MediaTypeError, TooLargeError
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.hot.group import GroupCommitter
from eventstore.intake.json import parse_array_or_object, parse_lines
from eventstore.query.render import format_uuid

__all__ = ["AppendService", "AppendShortcut"]

_PREFIX, _SUFFIX = "/v1/tenants/", "/events"
# Bodies up to this size are parsed in less time than it takes to hand them to a thread.
_INLINE_BYTES_MAX = 16_384
_ENCODER = msgspec.json.Encoder()


class _Stored(msgspec.Struct):
    seq: int
    event_id: str


class _Appended(msgspec.Struct):
    first_seq: int | None
    last_seq: int | None
    count: int
    duplicates: int
    events: list[_Stored] | msgspec.UnsetType = msgspec.UNSET


class AppendService:
    """Takes append requests of one event loop."""

    def __init__(self, committer: GroupCommitter, *, body_bytes_max: int, value_bytes_max: int) -> None:
        self._committer = committer
        self._body_bytes_max = body_bytes_max
        self._value_bytes_max = value_bytes_max
        self._answers = _Answers(asyncio.get_running_loop())

    async def respond(self, tenant: str, request: Request, *, with_events: bool) -> Response:
        """Store the request's events; answered once they are durable.

        Raises:
            EventStoreError: why nothing of it was stored.
        """
        body = await self._read_body(request)
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        parse = partial(self._parse, kind, body)
        appending = parse() if len(body) <= _INLINE_BYTES_MAX else await run_in_threadpool(parse)
        result = await self._answers.of(self._committer.submit(tenant, appending))
        content = _ENCODER.encode(_appended(result, with_events))
        return Response(content, 201, media_type="application/json")

    async def _read_body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._body_bytes_max:
            raise self._too_large()
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._body_bytes_max:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> TooLargeError:
        limit = self._body_bytes_max
        return TooLargeError(
            f"the body is larger than {limit} bytes", limit_bytes=limit, hint="send it in several requests"
        )

    def _parse(self, media_type: str, body: bytes) -> AppendRequest:
        limit = self._value_bytes_max
        if media_type == "application/x-ndjson":
            events, lines = parse_lines(body, value_bytes_max=limit)
            return AppendRequest(events, lines, len(body))
        if media_type not in ("application/json", ""):
            raise MediaTypeError(
                f"the media type {media_type!r} is not taken",
                hint="use application/json, or application/x-ndjson for a stream of lines",
            )
        return AppendRequest(parse_array_or_object(body, value_bytes_max=limit), None, len(body))


def _appended(result: AppendResult, with_events: bool) -> _Appended:
    listed: list[_Stored] | msgspec.UnsetType = msgspec.UNSET
    if with_events:
        listed = [_Stored(s, format_uuid(i)) for s, i in zip(result.seqs, result.event_ids, strict=True)]
    return _Appended(result.first_seq, result.last_seq, result.count, result.duplicates, listed)


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
