"""What no request may have in its address, whatever the route: NUL, and what is not UTF-8."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from eventstore.api import problems
from eventstore.errors import InputError

__all__ = ["CleanAddress"]


class CleanAddress:
    """ASGI middleware that refuses such a request in one place: no text of the store's holds a NUL, and
    Postgres takes none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            query: bytes = scope["query_string"]
            if "\0" in path or "\ufffd" in path or b"%00" in query or b"\0" in query:
                error = InputError(
                    "the address has a NUL, or bytes that are not UTF-8",
                    hint="percent-encode the UTF-8 bytes of the text; NUL is in none",
                )
                await problems.from_error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
