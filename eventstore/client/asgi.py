"""ASGI middleware that records who changed what: each unsafe request, and the field changes it names.

    app.add_middleware(RecordChanges, recorder=recorder, source="shop", actor=lambda scope:
    scope["user"].name)

    async def pay(request):
        record_change(request, "order", "7", "state", "open", "paid")

Works with Starlette, FastAPI and whatever else speaks ASGI.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from eventstore.client.recorder import Recorder
from eventstore.model.event import TEXT_LIMITS

__all__ = ["RecordChanges", "record_change"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_CHANGES = "eventstore.changes"
_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_NOBODY = "anonymous"
_log = logging.getLogger(__name__)


def record_change(
    request: Any, entity_type: str, entity_id: str, field: str, old: Any = None, new: Any = None
) -> None:
    """Note that a request changes a field. It is recorded with the request, unless that fails (status 400 and
    above).

    Args:
        request: a Starlette or FastAPI request, or the ASGI scope.
    """
    scope: Scope = getattr(request, "scope", request)
    changes: dict[tuple[str, str], dict[str, tuple[Any, Any]]] | None = scope.get(_CHANGES)
    if changes is None:
        raise RuntimeError("this request does not pass RecordChanges, or its method is not recorded")
    fields = changes.setdefault((entity_type, entity_id), {})
    first_old = fields[field][0] if field in fields else old
    fields[field] = (first_old, new)


class RecordChanges:
    """Records an event for each request: entity_type `route`, entity_id the route (`/orders/{id}`, or the
    path where the framework tells no route), action the method, new_value the status; then the changes of
    `record_change`, each with the request's event_id in its metadata.

    They are durable in the outbox before the answer begins.

    Args:
        source: of the events.
        actor: who makes a request; None is recorded as `anonymous`. It is called when the answer begins, so
        it
            finds what inner middleware has put into the scope.
        methods: which are recorded.
        required: True: a request whose events cannot be recorded fails. False: that is logged, and the answer
            goes out.
    """

    def __init__(
        self,
        app: App,
        *,
        recorder: Recorder,
        source: str,
        actor: Callable[[Scope], str | None] = lambda _: None,
        methods: Collection[str] = _UNSAFE,
        required: bool = False,
    ) -> None:
        self._app, self._recorder, self._source, self._actor = app, recorder, source, actor
        self._methods = frozenset(methods)
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in self._methods:
            await self._app(scope, receive, send)
            return
        scope[_CHANGES] = {}
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and not begun:
                begun = True
                await self._record(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if not begun:
                await self._record(scope, 500)
            raise

    async def _record(self, scope: Scope, status: int) -> None:
        try:
            await self._record_all(scope, status)
        except Exception:
            if self._required:
                raise
            _log.exception("%s %s is not recorded", scope["method"], scope["path"])

    async def _record_all(self, scope: Scope, status: int) -> None:
        path: str = scope["path"]
        route = getattr(scope.get("route"), "path", None) or path
        common = {"actor": self._actor(scope) or _NOBODY, "source": self._source}
        request_id = await self._recorder.arecord(
            {
                **common,
                "entity_type": "route",
                "entity_id": route[: TEXT_LIMITS["entity_id"]],
                "action": scope["method"].lower(),
                "new_value": {"status": status},
                "metadata": {"path": path},
            }
        )
        if status >= 400:
            return
        for (entity_type, entity_id), fields in scope[_CHANGES].items():
            await self._recorder.arecord_update(
                entity_type, entity_id, fields, metadata={"request": str(request_id)}, **common
            )
