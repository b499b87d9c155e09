"""The two processes of the outbox's crash test: a server that flaps, and a recorder. Both die by SIGKILL."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["CLIENT_TIMEOUT_S", "TENANT", "record", "serve"]

TENANT = "acme"
CLIENT_TIMEOUT_S = 0.4
# Of the appends that reach it, a flapping server does something else with this share.
FAULTS = 0.35

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


class Flapping:
    """ASGI: refuses, answers too late, or stores the events and dies to the caller, by chance."""

    def __init__(self, app: Any, seed: int) -> None:
        self._app, self._chosen = app, random.Random(seed)

    async def __call__(self, scope: Any, receive: Any, send: _Send) -> None:
        if scope["type"] != "http" or self._chosen.random() > FAULTS:
            await self._app(scope, receive, send)
            return
        fault = self._chosen.choice(("refuse", "late", "lose", "cut"))
        if fault == "refuse":
            await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        answer: list[_Message] = []

        async def keep(message: _Message) -> None:
            answer.append(message)

        await self._app(scope, receive, keep)
        if fault == "lose":
            raise ConnectionAbortedError("the answer is lost")
        if fault == "late":
            import asyncio

            await asyncio.sleep(CLIENT_TIMEOUT_S * 1.5)
        for message in answer[:1] if fault == "cut" else answer:
            await send(message)


def serve(settings: dict[str, Any], port: int, seed: int | None, ready: Any) -> None:
    """Serve a store on a port; `seed` None: without faults. Sets `ready` when it listens."""
    import uvicorn

    from eventstore.api.server import create_app
    from eventstore.app import open_store
    from eventstore.settings import Settings

    with open_store(Settings(**settings)) as store:
        app: Any = create_app(store)
        app = app if seed is None else Flapping(app, seed)
        with socket.create_server(("127.0.0.1", port)) as listener:
            ready.set()
            config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="on")
            uvicorn.Server(config).run(sockets=[listener])


def record(folder: Path, port: int, life: str, out: int, count: int | None) -> None:
    """Record events `life-0`, `life-1`, … and write the number of each that is known to be durable. With a
    count, end after so many, with all of the outbox sent."""
    from eventstore.client import Client, Retry
    from eventstore.client.recorder import Recorder

    client = Client(f"http://127.0.0.1:{port}", TENANT, timeout_s=CLIENT_TIMEOUT_S if count is None else 30)
    recorder = Recorder(
        client,
        folder,
        flush_events=10,
        flush_s=0.02,
        batch_events=50,
        roll_bytes=8192,
        max_bytes=2**24,
        retry=Retry(first_s=0.01, longest_s=0.1),
    )
    number = 0
    while count is None or number < count:
        # A few without waiting, so that groups have several events, then one that is waited for.
        for _ in range(random.randrange(6)):
            recorder.record(_event(life, number), wait=False)
            number += 1
        recorder.record(_event(life, number))
        number += 1
        os.write(out, b"%d\n" % number)
        time.sleep(0.01)  # a pace that a flapping server can follow, or all lives but the first find it full
    recorder.flush()
    recorder.close()


def _event(life: str, number: int) -> dict[str, Any]:
    return {
        "entity_type": "life",
        "entity_id": f"{life}-{number}",
        "action": "recorded",
        "actor": "test",
        "source": "test",
        "new_value": "x" * 50,
    }


if __name__ == "__main__":
    _folder, _port, _life, _count = sys.argv[1:]
    record(Path(_folder), int(_port), _life, 1, int(_count) if _count else None)
