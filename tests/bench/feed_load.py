"""The feed's consumers: a process of its own, one thread, an event loop of plain sockets.

Reads one line of JSON from standard input (`FeedPlan`), writes one line of JSON (`Delivered`).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

__all__ = ["Delivered", "FeedPlan", "consume", "following"]

_ID = re.compile(rb"^id: (\d+)\n", re.MULTILINE)
_BOUND_S = 300.0


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """`consumers` follow `tenant` from `since` on at `port`. With `appends`, that many single events are sent
    to `append_port`, `rate` a second; without, it ends when each consumer has seq `through`."""

    port: int
    tenant: str
    since: int
    consumers: int
    through: int
    appends: int = 0
    append_port: int = 0
    rate: float = 20.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """From connecting to the last event, and percentiles in milliseconds: from when an append was sent to
    each consumer's having it, and to its answer. Zeros without appends."""

    elapsed_s: float
    p50_ms: float
    p99_ms: float
    append_p50_ms: float


def consume(plan: FeedPlan) -> Delivered:
    """Carry out a plan."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.feed_load"],
        input=json.dumps(asdict(plan)) + "\n",
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        timeout=_BOUND_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the consumers failed: {done.stderr.strip()[-1000:]}")
    return Delivered(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def following(plan: FeedPlan) -> Iterator[None]:
    """Consumers that are there for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.feed_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(plan)) + "\n")
        process.stdin.close()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the consumers did not connect")
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Sink(asyncio.Protocol):
    """One consumer. Keeps nothing of what it is given but the time at which each id came."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._rest = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        plan = self._load.plan
        path = f"/v1/tenants/{plan.tenant}/feed?since={plan.since}"
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
        transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._begun:
            self._begun = b"retry:" in data
            if self._begun:
                self._load.begun()
        if len(data) > 10_000:  # a replay: only how far it is matters
            tail = (self._rest + data)[-4000:]
            self._rest = tail[-32:]
            found = _ID.findall(tail)[-1:]
        else:
            found = _ID.findall(self._rest + data)
            self._rest = (self._rest + data).rpartition(b"\nid: ")[2] if not data.endswith(b"\n\r\n") else b""
        for text in found:
            self._load.came(int(text), now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.over.done():
            self._load.over.set_exception(RuntimeError(f"the server closed a feed: {exc}"))


class _Load:
    def __init__(self, plan: FeedPlan) -> None:
        self.plan = plan
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()
        self._all_begun: asyncio.Future[None] = loop.create_future()
        self._begun = self._finished = 0
        self._sent: dict[int, float] = {}
        self._latencies: list[float] = []
        self._answers: list[float] = []
        self._through = plan.through + plan.appends

    def begun(self) -> None:
        self._begun += 1
        if self._begun == self.plan.consumers:
            self._all_begun.set_result(None)

    def came(self, seq: int, now: float) -> None:
        if seq in self._sent:
            self._latencies.append(now - self._sent[seq])
        if seq == self._through:
            self._finished += 1
            if self._finished == self.plan.consumers and not self.over.done():
                self.over.set_result(None)

    async def run(self) -> Delivered:
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        for _ in range(self.plan.consumers):
            await loop.create_connection(lambda: _Sink(self), "127.0.0.1", self.plan.port)
        await self._all_begun
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if self.plan.appends:
            await self._append()
        await asyncio.wait_for(self.over, _BOUND_S)
        elapsed_s = time.perf_counter() - started
        if not self.plan.appends:
            return Delivered(elapsed_s, 0.0, 0.0, 0.0)
        p50, p99 = np.percentile(np.array(self._latencies) * 1000, [50, 99])
        answer_p50 = np.percentile(np.array(self._answers) * 1000, 50)
        return Delivered(elapsed_s, float(p50), float(p99), float(answer_p50))

    async def _append(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.plan.append_port)
        body = json.dumps(
            {"entity_type": "order", "entity_id": "1", "action": "changed", "actor": "a", "source": "s"}
        )
        request = (
            f"POST /v1/tenants/{self.plan.tenant}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        due = time.perf_counter()
        for n in range(self.plan.appends):
            due += 1 / self.plan.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = self._sent[self.plan.through + n + 1] = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 201 " in head.partition(b"\r\n")[0], head
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            self._answers.append(time.perf_counter() - sent)
        writer.close()


async def _main() -> None:
    plan = FeedPlan(**json.loads(sys.stdin.readline()))
    delivered = await _Load(plan).run()
    sys.stdout.write(json.dumps(asdict(delivered)) + "\n")


if __name__ == "__main__":
    asyncio.run(_main())
