"""A served store and its consumers, for `test_feed`: real sockets, and a consumer that proves the chain."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import uvicorn

from eventstore.api.server import create_app
from eventstore.app import Store
from eventstore.clock import parse_time_us
from eventstore.columns.canonical import first_chain_break
from eventstore.model.event import Event, chain_start
from eventstore.query.render import EventView
from tests.unit.helpers import as_batch

__all__ = ["Chain", "Consumer", "Message", "Served", "event_of", "serving"]

TIMEOUT_S = 60.0


@dataclass
class Served:
    store: Store
    port: int
    app: Any

    def path(self, tenant: str, **params: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in params.items())
        return f"/v1/tenants/{tenant}/feed" + (f"?{query}" if query else "")


@contextmanager
def serving(store: Store) -> Iterator[Served]:
    """The API on a store, in a thread."""
    # Whoever connects before the server runs waits in the socket's queue.
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(store)
    with listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            port = listener.getsockname()[1]
            assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S).status_code == 200
            yield Served(store, port, app)
            app.state.feeds.end()
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@dataclass
class Message:
    """One block of the stream. `id` is the last that was given up to it."""

    id: int | None
    event: str
    data: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data)
        return found


class Consumer:
    """One connection to a feed, over a plain socket. Use as a context manager, or `kill` it."""

    def __init__(
        self,
        port: int,
        path: str,
        *,
        last_event_id: int | None = None,
        receive_bytes: int | None = None,
        bearer: str | None = None,
    ) -> None:
        self.last_id = last_event_id
        self._socket = socket.socket()
        if receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(("127.0.0.1", port))
        key = "" if bearer is None else f"Authorization: Bearer {bearer}\r\n"
        resumed = "" if last_event_id is None else f"Last-Event-ID: {last_event_id}\r\n"
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{key}{resumed}\r\n"
        self._socket.sendall(head.encode())
        self._raw, self._text = bytearray(), bytearray()
        self._chunked_over = False
        self.status, self.headers = self._head()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def kill(self) -> None:
        """Go without a word: what is on its way is thrown away."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._raw:
            assert self._fill(), bytes(self._raw)
        head, _, rest = bytes(self._raw).partition(b"\r\n\r\n")
        self._raw = bytearray(rest)
        first, *lines = head.decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    def _fill(self, size_bytes: int = 2**18) -> bool:
        try:
            data = self._socket.recv(size_bytes)
        except ConnectionResetError:
            return False
        self._raw += data
        return bool(data)

    def _unchunk(self) -> None:
        while True:
            line, found, _ = bytes(self._raw[:20]).partition(b"\r\n")
            if not found:
                return
            size = int(line, 16)
            if size == 0:
                self._chunked_over = True
                return
            start = len(line) + 2
            if len(self._raw) < start + size + 2:
                return
            self._text += self._raw[start : start + size]
            del self._raw[: start + size + 2]

    def messages(self, *, piece_bytes: int = 2**18) -> Iterator[Message]:
        """Each block, until the stream ends. `ended_well` says then whether it was ended, not cut."""
        self.ended_well = False
        while True:
            self._unchunk()
            *blocks, rest = bytes(self._text).split(b"\n\n")
            self._text = bytearray(rest)
            for block in blocks:
                yield self._message(block)
            if self._chunked_over:
                self.ended_well = True
                return
            if not self._fill(piece_bytes):
                return

    def _message(self, block: bytes) -> Message:
        event, data = "message", b""
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"id":
                self.last_id = int(value)
            elif name == b"event":
                event = value.decode()
            elif name == b"data":
                data = value
        return Message(self.last_id, event, data)

    def events(self, count: int | None = None) -> Iterator[Message]:
        """Blocks with data, as many as asked for."""
        for message in self.messages():
            if not message.data:
                continue
            yield message
            if count is not None:
                count -= 1
                if count == 0:
                    return


def event_of(view: EventView) -> Event:
    """The event as the model has it, from what the API shows of it."""

    def text(value: msgspec.Raw) -> str | None:
        raw = bytes(value).decode()
        return None if raw == "null" else raw

    return Event(
        seq=view.seq,
        event_id=bytes.fromhex(view.event_id.replace("-", "")),
        recorded_at_us=parse_time_us(view.recorded_at),
        occurred_at_us=parse_time_us(view.occurred_at),
        entity_type=view.entity_type,
        entity_id=view.entity_id,
        action=view.action,
        field=view.field,
        old_value=text(view.old_value),
        new_value=text(view.new_value),
        actor=view.actor,
        source=view.source,
        workspace_id=view.workspace_id,
        metadata=text(view.metadata),
        hash=bytes.fromhex(view.hash),
    )


@dataclass
class Chain:
    """Recomputes a tenant's chain from what a consumer was given; fails at a gap, a repeat or a change."""

    tenant: str
    count: int = 0
    last_hash: bytes = b""
    _pending: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.last_hash = chain_start(self.tenant)

    def add(self, data: bytes) -> None:
        self._pending.append(data)
        if len(self._pending) == 2000:
            self.settle()

    def settle(self) -> None:
        views = [msgspec.json.decode(data, type=EventView) for data in self._pending]
        self._pending = []
        seqs = [view.seq for view in views]
        assert seqs == list(range(self.count + 1, self.count + len(seqs) + 1)), (self.count, seqs[:5])
        self.count += len(seqs)
        broken, self.last_hash = first_chain_break(self.last_hash, as_batch([event_of(v) for v in views]))
        assert broken is None, f"seq {seqs[broken]}"
