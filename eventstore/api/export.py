"""The route of exports: events as one long answer, made while it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.types import Receive, Scope, Send

from eventstore.api.access import allow, check, recheck
from eventstore.api.events import Wanted
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import answers
from eventstore.model.access import Permission
from eventstore.model.query import Order
from eventstore.query.export import MEDIA_TYPES, Export, ExportFormat, export_events, failure

__all__ = ["STEPS_AT_ONCE", "router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

# So many exports read at the same moment; the others wait for their turn from step to step. A client that is
# slow in taking an answer in takes none of these places meanwhile.
STEPS_AT_ONCE = 4
# How often it is asked whether the caller still may: a key that is revoked ends its exports.
_RECHECK_S = 5.0
# Clients take a few KiB of headers.
_EXPIRED_MAX = 50

_HELD = {
    ExportFormat.NDJSON: "An event a line, as in the other answers",
    ExportFormat.CSV: "A line of names, then an event a line. No cell is a formula",
    ExportFormat.PARQUET: "A Parquet file",
    ExportFormat.ARROW: "An Arrow IPC stream",
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
        first = next(begun.pieces, None)
        read.begin()
        return begun, first

    begun, first = await anyio.to_thread.run_sync(begin, limiter=limiter)

    async def still_may() -> None:
        check(await recheck(request), Permission.EXPORT, tenant)

    return _Stream(begun, first, form, read, limiter, still_may)


def _expired(export: Export) -> dict[str, str]:
    """The header that says what was destroyed."""
    named = [f"{first}-{last}" for first, last in export.expired[:_EXPIRED_MAX]]
    more = ["..."] if len(export.expired) > _EXPIRED_MAX else []
    return {"Eventstore-Expired": ", ".join(named + more)} if named else {}


class BrokenOffError(Exception):
    """Raised out of an answer that has begun: the server then closes the connection, so that the client sees
    that the answer is not complete."""


class _Stream(Response):
    """The answer. While a piece is sent, the next one is made, and no more: a slow client bounds both."""

    def __init__(
        self,
        export: Export,
        first: bytes | None,
        form: ExportFormat,
        read: Read,
        limiter: anyio.CapacityLimiter,
        still_may: Callable[[], Awaitable[None]],
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
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
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
            async with receiving:
                async for piece in receiving:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            ending = b"" if self._error is None else failure(self._form, self._error)
            await send({"type": "http.response.body", "body": ending, "more_body": self._error is not None})
            group.cancel_scope.cancel()

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
                self._error = e  # raised again when what came before it has been sent

    async def _taken(self) -> bytes | None:
        return await anyio.to_thread.run_sync(self._next, limiter=self._limiter)

    def _next(self) -> bytes | None:
        piece, self._first = self._first, None
        return next(self._export.pieces, None) if piece is None else piece
