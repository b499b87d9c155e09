"""What a route does that reads a log: a reader that counts against its caller's limits, and an entry in the
log of reads where the caller is a person (`access.reads`).

    @router.get("/events", dependencies=[allow(Permission.READ)])
    async def list_events(tenant: str, read: Annotated[Read, reading()]) -> Response:
        def answer() -> Response:
            with read:                                           # leaving it writes the read down, durably
                page = read.reader.page(tenant, …)
                read.covers(page.coverage, events=page.events.num_rows)
                return …
        return await run_in_threadpool(answer)

    A stream instead writes down its beginning and its end:

        await run_in_threadpool(read.begin)                      # before the first byte; may refuse
        …
        read.covers(coverage, events=sent)                       # as often as it likes
        …
        read.end(error_or_none)                                  # in a `finally`; waits for nothing

    A feed has a reader of its own: it takes `read.meter`, and says `read.covers(events=…, seqs=(from, to))`.

`reading` adds the parameter `reason` and the header `Eventstore-Reason` to the route.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request

from eventstore.access.reads import REASON_CHARACTERS_MAX, Asked, Read, ReadAction, ReadsLog
from eventstore.api.access import principal_of
from eventstore.api.limits import meter_of
from eventstore.app import Store

__all__ = ["Read", "ReadAction", "reading"]

_DESCRIPTION = "Why, for the log of reads"


def reading(action: ReadAction = ReadAction.READ) -> Any:
    """The dependency of a route that reads the `tenant` of its path: a `Read`.

    Raises (when the route is called):
        InputError: the caller has to say why, and does not.
    """

    async def begun(
        request: Request,
        reason: Annotated[
            str | None, Query(max_length=REASON_CHARACTERS_MAX, description=_DESCRIPTION)
        ] = None,
        eventstore_reason: Annotated[
            str | None, Header(description=f"{_DESCRIPTION}, where the parameter is not given")
        ] = None,
    ) -> Read:
        store: Store = request.app.state.store
        log: ReadsLog = request.app.state.reads
        given = reason if reason is not None else _header_text(eventstore_reason)
        asked = Asked(
            principal=principal_of(request),
            tenant_id=request.path_params["tenant"],
            action=action,
            route=f"{request.method} {request.scope['route'].path}",
            query=_query(request),
            reason=given.strip() or None if given is not None else None,
        )
        return log.read(asked, store.reader, meter_of(request))

    return Depends(begun)


def _query(request: Request) -> dict[str, object]:
    """Every parameter of a request, but for its reason, which stands elsewhere."""
    asked: dict[str, object] = {k: v for k, v in request.path_params.items() if k != "tenant"}
    asked.update((name, value) for name, value in request.query_params.items() if name != "reason")
    return asked


def _header_text(value: str | None) -> str | None:
    """A header's text: UTF-8 if it is that, else Latin-1, as which it arrives."""
    if value is not None:
        with suppress(UnicodeError):
            return value.encode("latin-1").decode("utf-8")
    return value
