"""What the routes of governance share: bodies of JSON, and changes that are copied into the archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.bodies import media_type_of, read_body
from eventstore.errors import InputError, MediaTypeError
from eventstore.governance.record import mirror_or_warn

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["answering", "changing", "encoded", "plain", "read_json"]

Body = TypeVar("Body")

_ENCODER = msgspec.json.Encoder()


async def read_json(request: Request, shape: type[Body], *, bytes_max: int = 65_536) -> Body:
    """The request's body; an empty one is an object without members.

    Raises:
        MediaTypeError, TooLargeError
        InputError: it is not as the shape says.
    """
    body = await read_body(request, bytes_max)
    if media_type_of(request) != "application/json":
        raise MediaTypeError(f"the media type {media_type_of(request)!r} is not taken", hint="send JSON")
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise InputError(f"the body: {e}", hint="see /openapi.json for what it takes") from e


def plain(name: str, text: str) -> str:
    """A text of the path or of a parameter that the database can be asked for.

    Raises:
        InputError: it has a NUL.
    """
    if "\0" in text:
        raise InputError(f"{name}: has a NUL, as none has")
    return text


def encoded(value: Any, status: int = 200) -> Response:
    """An answer of JSON."""
    return Response(_ENCODER.encode(value), status, media_type="application/json")


async def answering(request: Request, read: Callable[[Store], Any]) -> Response:
    """Answer what `read` finds, in a thread."""
    store: Store = request.app.state.store
    return encoded(await run_in_threadpool(read, store))


async def changing(
    request: Request, change: Callable[[Store, int], dict[str, Any]], *, status: int = 200
) -> Response:
    """Make a change as of now, copy its record into the archive, and answer what it gives. `warning` says
    that the copy could not be made yet; the change stands."""
    store: Store = request.app.state.store

    def run() -> dict[str, Any]:
        made = change(store, store.database.now_us())
        warning = mirror_or_warn(store.database, store.targets)
        return made if warning is None else {**made, "warning": warning}

    return encoded(await run_in_threadpool(run), status)
