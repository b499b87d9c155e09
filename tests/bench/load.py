"""The load generator: a process of its own, one thread, raw sockets, requests built beforehand.

Reads one line of JSON from standard input (`Plan`), connects, writes `ready`, and begins at the next line.
Writes what happened as one line of JSON. In an open loop a further line, or its end, stops it. Standard
library only, so that it costs the measured server as little as can be.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Happened", "Plan", "collect", "generate", "generating", "write_bodies"]

_BOUND_S = 300.0  # no plan may take longer


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. Bodies (of the file `bodies`) go round-robin to `paths`.

    `rate` None: a closed loop, each connection sending its next request upon the answer, `count` in all.
    Otherwise an open loop: so many a second until told to stop or `count` are sent; a latency counts from
    the moment at which the request was due, whether or not a connection was free.
    """

    port: int
    paths: Sequence[str]
    bodies: str
    count: int
    connections: int
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Happened:
    """What came of a plan: seconds from the first request to the last answer, and for each request when
    it was due (time.time()) and its latency in milliseconds. `cpu_s` is the generator's own."""

    elapsed_s: float
    due: list[float]
    latencies_ms: list[float]
    cpu_s: float


def write_bodies(path: Path, bodies: Sequence[bytes]) -> str:
    """Write the file that a plan names."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(len(body).to_bytes(8, "little") + body)
    return str(path)


@contextmanager
def generating(plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """A generator process that has begun. `collect` its result before leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(plan)) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the load generator did not start")
        process.stdin.write("go\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def collect(process: subprocess.Popen[str], *, stop: bool = False) -> Happened:
    """The result of a generator; `stop` ends an open loop first."""
    assert process.stdin is not None
    assert process.stdout is not None
    if stop:
        process.stdin.write("stop\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if process.wait(_BOUND_S) != 0 or not line:
        raise RuntimeError("the load generator failed; see its message above")
    return Happened(**json.loads(line))


def generate(plan: Plan) -> Happened:
    """Carry a plan out in a process of its own."""
    with generating(plan) as process:
        return collect(process)


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    blocked: bool = False  # the socket takes no more for now
    answer: bytes = b""
    due: float = 0.0


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = _requests(plan)
        self._sent = 0
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        for _ in range(plan.connections):
            sock = socket.create_connection(("127.0.0.1", plan.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            connection = _Connection(sock)
            self._selector.register(sock, selectors.EVENT_READ, connection)
            self._idle.append(connection)
        self.due: list[float] = []
        self.latencies_ms: list[float] = []

    def closed_loop(self) -> float:
        started = time.perf_counter()
        bound = started + _BOUND_S
        while self._idle and self._sent < self._plan.count:
            self._send(self._idle.popleft(), time.perf_counter())
        while len(self.due) < self._plan.count:
            for key, mask in self._wait(bound - time.perf_counter()):
                if self._advance(key.data, mask) and self._sent < self._plan.count:
                    self._send(key.data, time.perf_counter())
        return time.perf_counter() - started

    def open_loop(self) -> float:
        assert self._plan.rate is not None
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        interval, stopped = 1.0 / self._plan.rate, False
        started = time.perf_counter()
        bound = started + _BOUND_S
        while True:
            now = time.perf_counter()
            due = started + self._sent * interval
            finished = stopped or self._sent >= self._plan.count
            if finished and len(self.due) == self._sent:
                return time.perf_counter() - started
            if now > bound:
                raise TimeoutError("the plan took too long")
            if not finished and due <= now and self._idle:
                self._send(self._idle.popleft(), due)
                continue
            wait_s = 0.1 if finished or not self._idle else min(0.1, due - now)
            for key, mask in self._selector.select(max(0.0, wait_s)):
                if key.data is None:
                    stopped = True
                    self._selector.unregister(sys.stdin)
                elif self._advance(key.data, mask):
                    self._idle.append(key.data)

    def _wait(self, left_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        found = self._selector.select(max(0.0, left_s))
        if not found:
            raise TimeoutError("the plan took too long")
        return found

    def _send(self, connection: _Connection, due: float) -> None:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        connection.due = due
        connection.answer = b""
        connection.unsent = memoryview(request)
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        connection.unsent = connection.unsent[sent:]
        blocked = len(connection.unsent) > 0
        if blocked != connection.blocked:
            connection.blocked = blocked
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            self._selector.modify(connection.sock, events, connection)

    def _advance(self, connection: _Connection, mask: int) -> bool:
        """Send or receive more; True once the answer is complete."""
        if mask & selectors.EVENT_WRITE:
            self._flush(connection)
        if not mask & selectors.EVENT_READ:
            return False
        data = connection.sock.recv(2**20)
        if not data:
            raise ConnectionError("the server closed a connection")
        answer = connection.answer = connection.answer + data
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found:
            return False
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return False
        if head[9:12] != b"201":
            raise RuntimeError(f"the server answered {head[:40]!r} {body[:500]!r}")
        self.latencies_ms.append((time.perf_counter() - connection.due) * 1000)
        self.due.append(time.time() - (time.perf_counter() - connection.due))
        return True


def _requests(plan: Plan) -> list[bytes]:
    data = Path(plan.bodies).read_bytes()
    bodies, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        bodies.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    # As many requests as it takes for every path to come up evenly.
    return [
        f"POST {plan.paths[n % len(plan.paths)]} HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
        for n, body in enumerate(bodies)
    ]


def _main() -> None:
    # Unbuffered: a line that is still to come must be seen by the selector, not lie in a buffer.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:
        generator = _Generator(plan := Plan(**json.loads(orders.readline())))
        print("ready", flush=True)
        orders.readline()
    before_s = time.process_time()
    elapsed_s = generator.closed_loop() if plan.rate is None else generator.open_loop()
    cpu_s = time.process_time() - before_s
    print(json.dumps(asdict(Happened(elapsed_s, generator.due, generator.latencies_ms, cpu_s))), flush=True)


if __name__ == "__main__":
    _main()
