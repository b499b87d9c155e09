"""Object stores for tests, on loopback: moto's S3, and a proxy before it that does what networks do."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Exchange", "Proxy", "moto_server", "serving"]


@contextmanager
def moto_server() -> Iterator[str]:
    """A moto server of its own; its URL."""
    from moto.server import MotoRequestHandler, ThreadedMotoServer

    MotoRequestHandler.disable_nagle_algorithm = True
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        assert server._server is not None
        server._server.server_close()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[str]:
    """A handler, serving on a free port; its URL. `attributes` are set on the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Exchange:
    """One request through the proxy. A fault may change it, forward it, and answer what it likes."""

    handler: _ProxyHandler
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answered: bool = False

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Have the server do it; what it answered."""
        host = self.handler.server.upstream.removeprefix("http://")  # type: ignore[attr-defined]
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            headers = {**self.headers, "Content-Length": str(len(self.body))}
            connection.request(self.method, self.path, self.body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, declared: int | None = None
    ) -> None:
        """Answer; `declared` is a Content-Length that is not the body's."""
        self.answered = True
        self.handler.send_response_only(status)
        hop = {"connection", "content-length", "transfer-encoding"}
        if self.method == "HEAD":
            hop.discard("content-length")
        for name, value in headers:
            if name.lower() not in hop:
                self.handler.send_header(name, value)
        if self.method != "HEAD":
            self.handler.send_header("Content-Length", str(len(body) if declared is None else declared))
        if declared is not None:
            self.handler.close_connection = True
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def error(self, status: int, code: str, message: str = "as told by a test") -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.answer(status, [("Content-Type", "application/xml")], text.encode())

    def hang_up(self) -> None:
        """Close the connection without an answer."""
        self.answered = True
        self.handler.close_connection = True


Fault = Callable[[Exchange], None]


@dataclass
class Proxy:
    """What the proxy does with the next requests: each fault is for one matching request, then it is gone."""

    url: str = ""
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    _faults: list[tuple[str, str, Fault]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    always: Fault | None = None  # for every request that no fault takes

    def reset(self) -> None:
        self.seen, self._faults, self.always = [], [], None

    def fault(self, method: str, what: Fault, *, times: int = 1, path: str = "") -> None:
        self._faults += [(method, path, what)] * times

    def take(self, exchange: Exchange) -> Fault | None:
        with self._lock:
            self.seen.append((exchange.method, exchange.path, exchange.headers))
            for index, (method, path, fault) in enumerate(self._faults):
                if method == exchange.method and path in exchange.path:
                    del self._faults[index]
                    return fault
        return self.always

    @property
    def used_up(self) -> bool:
        return not self._faults

    def count(self, method: str) -> int:
        return sum(seen == method for seen, _, _ in self.seen)

    @contextmanager
    def running(self, upstream: str) -> Iterator[Proxy]:
        with serving(_ProxyHandler, upstream=upstream, proxy=self) as self.url:
            yield self


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("content-length", "connection")}
        exchange = Exchange(self, self.command, self.path, headers, body)
        fault = self.server.proxy.take(exchange)  # type: ignore[attr-defined]
        try:
            if fault is not None:
                fault(exchange)
            if not exchange.answered:
                exchange.answer(*exchange.forward())
        except OSError:  # the client has gone
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass
