"""The route of exports: events as one long answer, made while it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
import anyio.to_thread
import msgspec
from anyio.streams.memory import MemoryObjectSendStream
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.types import Receive, Scope, Send

from eventstore.access.limits import FeedSlot
from eventstore.api.access import allow, check, recheck
from eventstore.api.events import Wanted
from eventstore.api.limits import feed_slot
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import answers
from eventstore.api.shapes import EVENT_EXAMPLE
from eventstore.app import Store
from eventstore.clock import US_PER_S
from eventstore.model.access import Permission
from eventstore.model.policy import parse_duration_us
from eventstore.model.query import Order
from eventstore.query.export import MEDIA_TYPES, Export, ExportFormat, export_events, failure
from eventstore.query.render import csv_header

__all__ = ["STEPS_AT_ONCE", "router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

# So many exports read at the same moment; the others wait for their turn from step to step. A client that is
# slow in taking an answer in takes none of these places meanwhile.
STEPS_AT_ONCE = 4
# How often it is asked whether the caller still may: a key that is revoked ends its exports.
_RECHECK_S = 5.0
# What is handed on at once; then it has to be taken in before more follows.
_PART_BYTES = 256 * 2**10
# Clients take a few KiB of headers.
_EXPIRED_MAX = 50

_SHOWN = dict(EVENT_EXAMPLE) | {"new_value": '""draft""'}
_ROW = ",".join("" if v is None else f'"{v}"' if isinstance(v, str) else str(v) for v in _SHOWN.values())
# What is no text is shown by how it begins and ends.
_HELD = {
    ExportFormat.NDJSON: (
        "An event a line, as in the other answers",
        msgspec.json.encode(EVENT_EXAMPLE).decode() + "\n",
    ),
    ExportFormat.CSV: (
        "A line of names, then an event a line. No cell is a formula",
        csv_header().decode() + _ROW + "\n",
    ),
    ExportFormat.PARQUET: ("A Parquet file", "PAR1…PAR1"),
    ExportFormat.ARROW: ("An Arrow IPC stream", "\\xff\\xff\\xff\\xff…\\xff\\xff\\xff\\xff\\0\\0\\0\\0"),
}
_FORMAT = Annotated[ExportFormat, Query(alias="format", description="What the answer is")]


@router.get(
    "/export",
    dependencies=[allow(Permission.EXPORT)],
    summary="All events that meet conditions, in one answer",
    response_class=Response,
    responses=answers(
        None,
        description="Complete only if the transfer is",
        media={MEDIA_TYPES[form]: held for form, held in _HELD.items()},
        headers={
            "Eventstore-Through-Seq": "The seq at which the log ended when the export began",
            "Eventstore-Expired": "The seqs that it should hold and that were destroyed before, as in "
            f"1-700, 900-950; missing if there are none. At most {_EXPIRED_MAX} ranges, then a ...",
            "Content-Disposition": "A name for the file",
        },
    ),
)
async def export(
    tenant: str,
    request: Request,
    wanted: Wanted,
    read: Annotated[Read, reading(ReadAction.EXPORT)],
    form: _FORMAT = ExportFormat.NDJSON,
    order: Order = Order.ASC,
    bom: Annotated[
        bool, Query(description="CSV begins with a byte order mark, by which Excel knows UTF-8")
    ] = False,
) -> Response:
    """Of one moment: events that come later are not in it. What goes wrong before the first byte is answered
    as a problem; afterwards the answer breaks off."""
    limiter: anyio.CapacityLimiter = request.app.state.exporting

    def begin() -> tuple[Export, bytes | None]:
        begun = export_events(read.reader, tenant, wanted, form, order=order, byte_order_mark=bom)
        try:
            first = next(begun.pieces, None)
            read.begin()
        except BaseException:
            begun.pieces.close()
            raise
        return begun, first

    slot = feed_slot(request)
    try:
        begun, first = await anyio.to_thread.run_sync(begin, limiter=limiter)
    except BaseException:
        slot.leave()
        raise

    async def still_may() -> None:
        check(await recheck(request), Permission.EXPORT, tenant)

    store: Store = request.app.state.store
    stall_s = parse_duration_us(store.settings.feed_stall) / US_PER_S
    return _Stream(begun, first, form, read, limiter, still_may, slot, stall_s)


def _expired(export: Export) -> dict[str, str]:
    """The header that says what was destroyed."""
    named = [f"{first}-{last}" for first, last in export.expired[:_EXPIRED_MAX]]
    more = ["..."] if len(export.expired) > _EXPIRED_MAX else []
    return {"Eventstore-Expired": ", ".join(named + more)} if named else {}


class BrokenOffError(Exception):
    """Raised out of an answer that has begun: the server then closes the connection, so that the client sees
    that the answer is not complete."""


class _StalledError(Exception):
    """The client takes nothing in."""


class _Stream(Response):
    """The answer. While a piece is sent, the next one is made, and no more: a slow client bounds both. One
    that takes nothing in for `stall_s` is disconnected: it holds a place, and counts as an open feed."""

    def __init__(
        self,
        export: Export,
        first: bytes | None,
        form: ExportFormat,
        read: Read,
        limiter: anyio.CapacityLimiter,
        still_may: Callable[[], Awaitable[None]],
        slot: FeedSlot,
        stall_s: float,
    ) -> None:
        super().__init__(
            headers={
                "Eventstore-Through-Seq": str(export.through_seq),
                "Content-Disposition": f'attachment; filename="{export.file_name}"',
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                **_expired(export),
            },
            media_type=export.media_type,
        )
        del self.headers["content-length"]
        self._export, self._first, self._form, self._read = export, first, form, read
        self._limiter, self._still_may = limiter, still_may
        self._slot, self._stall_s = slot, stall_s
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._slot:
                await self._answer(receive, send)
        finally:
            # No thread is in the iterator any more: whoever waits for one, waits until it is done.
            self._export.pieces.close()
            self._read.covers(self._export.coverage, events=self._export.progress.events)
            self._read.end(self._error)
        if self._error is not None:
            raise BrokenOffError(f"an export of {self._read.asked.tenant_id!r} broke off") from self._error

    async def _answer(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending, receiving = anyio.create_memory_object_stream[bytes]()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            group.start_soon(self._make, sending)
            try:
                async with receiving:
                    async for piece in receiving:
                        await self._write(send, piece)
                ending = b"" if self._error is None else failure(self._form, self._error)
                await self._write(send, ending, more=self._error is not None)
            except _StalledError as e:
                self._error = e  # rather than what the other side makes of its being left
            group.cancel_scope.cancel()

    async def _write(self, send: Send, piece: bytes, *, more: bool = True) -> None:
        """Send it in parts, each within a time."""
        for start in range(0, len(piece) or 1, _PART_BYTES):
            part = piece[start : start + _PART_BYTES]
            follows = more or start + _PART_BYTES < len(piece)
            with anyio.move_on_after(self._stall_s) as waited:
                await send({"type": "http.response.body", "body": part, "more_body": follows})
            if waited.cancelled_caught:
                raise _StalledError(f"the client took nothing in for {self._stall_s:g} s")

    async def _make(self, sending: MemoryObjectSendStream[bytes]) -> None:
        asked_s = anyio.current_time()
        async with sending:
            try:
                while (piece := await self._taken()) is not None:
                    if piece:
                        await sending.send(piece)
                    if anyio.current_time() - asked_s >= _RECHECK_S:
                        await self._still_may()
                        asked_s = anyio.current_time()
            except Exception as e:  # noqa: BLE001
                self._error = self._error or e  # raised again when what came before it has been sent

    async def _taken(self) -> bytes | None:
        return await anyio.to_thread.run_sync(self._next, limiter=self._limiter)

    def _next(self) -> bytes | None:
        piece, self._first = self._first, None
        return next(self._export.pieces, None) if piece is None else piece
