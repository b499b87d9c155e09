"""The route of the feed: a log followed from a cursor on, as Server-Sent Events or by long polls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.types import Message, Receive, Scope, Send

from eventstore.access.limits import FeedSlot
from eventstore.api import problems
from eventstore.api.access import allow, check, recheck
from eventstore.api.feed_hub import FeedHub, Follower
from eventstore.api.limits import feed_slot
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import answers
from eventstore.api.shapes import EVENT_EXAMPLE
from eventstore.api.waiting import gone, unless_gone
from eventstore.app import Store
from eventstore.clock import US_PER_S
from eventstore.errors import EventStoreError, FeedResetError, InputError
from eventstore.model.access import Permission
from eventstore.model.policy import parse_duration_us
from eventstore.model.query import PAGE_LIMIT_MAX, EventFilter, decode_cursor
from eventstore.model.tenant import READS_TENANT
from eventstore.query.feed_ring import Form, Framing

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

_log = logging.getLogger(__name__)

_SSE, _NDJSON = "text/event-stream", "application/x-ndjson"
_WAIT_S_MAX = 60
_WAIT_S = 20
# A poll that has to search through a long log answers after so long at the latest, with how far it has come.
_SEARCH_S = 10.0
_ANSWER_BYTES_MAX = 8 * 2**20
# What is handed on at once; then it has to be taken in before more follows.
_PIECE_BYTES = 64 * 2**10
_RETRY_MS = 1000
_LINE = msgspec.json.encode(EVENT_EXAMPLE).decode()


def feed_filter(
    entity_type: str | None = None,
    entity_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    field: str | None = None,
    source: str | None = None,
    workspace_id: str | None = None,
) -> EventFilter:
    """The conditions of a feed; all given must hold."""
    return EventFilter(
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        action=action,
        field=field,
        source=source,
        workspace_id=workspace_id,
    )


@router.get(
    "/feed",
    dependencies=[allow(Permission.READ)],
    summary="Follow the log from a cursor on",
    response_class=Response,
    responses=answers(
        None,
        description="Events in the order of seq",
        media={
            _SSE: (
                "The id is the seq, the data the event. Comments are signs of life",
                f"retry: {_RETRY_MS}\n\nid: {EVENT_EXAMPLE['seq']}\ndata: {_LINE}\n\n: keep-alive\n\n",
            ),
            _NDJSON: ("An event a line", f"{_LINE}\n"),
        },
        headers={"Eventstore-Next-Since": "Long polls: the next poll's `since`"},
    )
    | {
        404: {"description": "No such tenant"},
        410: {"description": "The next events were destroyed (long polls; a stream has a feed_reset event)"},
        429: {"description": "Too many feeds are open"},
        503: {"description": "Too many feeds are open in this process, or the log cannot be read now"},
    },
)
async def feed(
    tenant: str,
    request: Request,
    wanted: Annotated[EventFilter, Depends(feed_filter)],
    read: Annotated[Read, reading(ReadAction.FEED)],
    since: Annotated[int, Query(ge=0, lt=10**18, description="The last seq that was received")] = 0,
    wait: Annotated[
        float | None,
        Query(ge=0, le=_WAIT_S_MAX, description="Long poll: for how many seconds"),
    ] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=PAGE_LIMIT_MAX, description="Long poll: at most so many events")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="As `since`, and before it; event sources send it by themselves")
    ] = None,
) -> Response:
    """As `text/event-stream`: the log behind `since`, then what comes, without an end. As
    `application/x-ndjson`: the next events as soon as there are any; the next poll's `since` is in the header
    `Eventstore-Next-Since`."""
    after = since if last_event_id is None else decode_cursor(last_event_id)
    hub: FeedHub = request.app.state.feeds
    if _framing(request) is Framing.LINES:
        wait_s = _WAIT_S if wait is None else wait
        if wait_s and tenant == READS_TENANT and read.is_logged:
            raise InputError(
                "a long poll on the log of reads would always find itself",
                hint=f"follow it with Accept: {_SSE}, or ask with wait=0",
            )
        with feed_slot(request):
            form = Form(wanted, Framing.LINES)
            most = PAGE_LIMIT_MAX if limit is None else limit
            polling = _logged_poll(hub, request, read, form, after, wait_s, most)
            response = await unless_gone(request.receive, polling)
        if response is None:
            await hub.in_thread(read.answered)
            response = Response(status_code=204)  # to nobody
        return response
    if wait is not None or limit is not None:
        raise InputError("wait and limit are for long polls", hint=f"ask with Accept: {_NDJSON}")
    slot = feed_slot(request)
    # Before the answer begins.
    await hub.in_thread(lambda: hub.reader.check_cursor(tenant, after))
    await hub.in_thread(read.begin)
    return _Stream(hub, request, read, slot, Form(wanted, Framing.SSE), after)


def _framing(request: Request) -> Framing:
    accepted = request.headers.get("accept", "*/*").lower()
    kinds = {kind.partition(";")[0].strip() for kind in accepted.split(",")}
    if kinds & {_SSE, "text/*", "*/*"}:
        return Framing.SSE
    if kinds & {_NDJSON, "application/*"}:
        return Framing.LINES
    raise InputError(f"a feed is not given as {accepted!r}", hint=f"ask for {_SSE} or {_NDJSON}")


async def _logged_poll(
    hub: FeedHub, request: Request, read: Read, form: Form, after: int, wait_s: float, limit: int
) -> Response:
    """A poll, and its entry in the log of reads."""
    reader = hub.reader.metered(read.meter)
    try:
        async with hub.following(read.asked.tenant_id, form, after, reader) as follower:
            response, count = await _poll(follower, request, read.asked.tenant_id, wait_s, limit)
            read.covers(events=count, seqs=(after + 1, follower.cursor))
    except EventStoreError as e:
        error = e
        await hub.in_thread(lambda: read.answered(error))
        raise
    await hub.in_thread(read.answered)
    return response


async def _poll(
    follower: Follower, request: Request, tenant: str, wait_s: float, limit: int
) -> tuple[Response, int]:
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    search_until = until + _SEARCH_S
    found: list[bytes] = []
    count = size_bytes = 0
    while count < limit and size_bytes < _ANSWER_BYTES_MAX and loop.time() < search_until:
        try:
            part = await follower.next(0.0 if count else until, limit=limit - count)
        except EventStoreError:
            if not count:
                raise
            break  # the next poll meets it again, at its beginning
        if not count:
            # A key may have been revoked while it waited.
            check(await recheck(request), Permission.READ, tenant)
        if part is None:
            break
        found.append(part.data)
        count += part.count
        size_bytes += len(part.data)
    headers = {"Eventstore-Next-Since": str(follower.cursor), "Cache-Control": "no-store"}
    return Response(b"".join(found), headers=headers, media_type=_NDJSON), count


class _Stream(Response):
    """A feed as Server-Sent Events, until its client, this process or an error ends it."""

    media_type = _SSE

    def __init__(
        self, hub: FeedHub, request: Request, read: Read, slot: FeedSlot, form: Form, since: int
    ) -> None:
        self._hub, self._request, self._read, self._slot = hub, request, read, slot
        self._tenant, self._form, self._since = read.asked.tenant_id, form, since
        self._sent, self._through = 0, since
        self._error: Exception | None = None
        store: Store = request.app.state.store
        self._keepalive_s = parse_duration_us(store.settings.feed_keepalive) / US_PER_S
        self._stall_s = parse_duration_us(store.settings.feed_stall) / US_PER_S
        # No content-length, nothing kept, and no proxy that collects before it passes on.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._slot:
                await self._stream(receive, send)
        finally:
            self._read.covers(events=self._sent, seqs=(self._since + 1, self._through))
            self._read.end(self._error)

    async def _stream(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writing = asyncio.create_task(self._run(send))
        leaving = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await leaving
            with suppress(asyncio.CancelledError):
                await writing

    async def _run(self, send: Send) -> None:
        write = _Writer(send, self._stall_s)
        try:
            try:
                await write(f"retry: {_RETRY_MS}\n\n".encode())
                await self._follow(write)
            except EventStoreError as e:
                self._error = e
                await write(_told(e))
            except _StalledError:
                raise
            except Exception as e:  # noqa: BLE001 - told on the stream, and in the log
                self._error = e
                _log.exception("the feed of %r failed", self._tenant, exc_info=e)
                internal = problems.problem(
                    500, "Internal error", "the store's log says more", code="internal"
                )
                await write(_event("error", bytes(internal.body)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except _StalledError:
            # Not completed: the server closes the connection. Its client goes on from its last id.
            _log.warning("a feed of %r took nothing for %g s, and was closed", self._tenant, self._stall_s)

    async def _follow(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        reader = self._hub.reader.metered(self._read.meter)
        async with self._hub.following(self._tenant, self._form, self._since, reader) as follower:
            told, checked_s, written_s = self._since, loop.time(), loop.time()
            while True:
                part = await follower.next(written_s + self._keepalive_s)
                if follower.is_ending:
                    return
                self._through = follower.cursor
                if part is not None and part.data:
                    self._sent += part.count
                    await write(part.data)
                    told, written_s = follower.cursor, loop.time()
                if loop.time() >= checked_s + self._keepalive_s:
                    await self._check_caller()
                    checked_s = loop.time()
                if loop.time() >= written_s + self._keepalive_s:
                    # Where nothing was wanted, the id alone moves on: who resumes does not search it again.
                    alive = (
                        b": keep-alive\n\n" if told == follower.cursor else b"id: %d\n\n" % follower.cursor
                    )
                    await write(alive)
                    told, written_s = follower.cursor, loop.time()

    async def _check_caller(self) -> None:
        """Whether what opened the feed still opens it: a key may have been revoked, a token may be over."""
        check(await recheck(self._request), Permission.READ, self._tenant)


class _StalledError(Exception):
    """The consumer takes nothing in."""


class _Writer:
    """Writes in pieces, each within a time."""

    def __init__(self, send: Send, stall_s: float) -> None:
        self._send, self._stall_s = send, stall_s

    async def __call__(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            message: Message = {"type": "http.response.body", "body": piece, "more_body": True}
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._send(message)
            except TimeoutError as e:
                raise _StalledError from e


def _told(error: EventStoreError) -> bytes:
    """An error on the stream. With a reset comes the id from which an event source goes on by itself."""
    data = bytes(problems.from_error(error).body)
    if isinstance(error, FeedResetError):
        return _event("feed_reset", data, b"id: %d\n" % error.since)
    return _event("error", data)


def _event(name: str, data: bytes, more: bytes = b"") -> bytes:
    return b"event: " + name.encode() + b"\n" + more + b"data: " + data + b"\n\n"
