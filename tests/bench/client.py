"""The recorder: how fast it takes events, and how fast its outbox is sent, over sending without one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import numpy as np

from eventstore.client import Client, Retry
from eventstore.client.recorder import Recorder
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import DEFAULT_POLICY
from tests.bench.events import json_bodies, pending_events
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row

__all__ = ["ROWS", "run"]

_THREADS = 16
_BATCH = 1000

ROWS = (
    Row(
        "recorder: `record()`, one thread, each durable in the outbox",
        "a write and fdatasync of the same bytes",
        "events/s",
    ),
    Row(f"the same by {_THREADS} threads", "one thread that writes and syncs", "events/s"),
    Row("recorder: `record(wait=False)`, one thread", "a write and fdatasync of the same bytes", "events/s"),
    Row(
        f"recorder: the outbox sent, {_BATCH} events a request",
        f"`Client.append` of {_BATCH} events at a time",
        "events/s",
    ),
)


def run(lab: Lab) -> list[Measured]:
    """Taking in is measured with the store away, sending with nothing else going on."""
    count = lab.size(2_000, 300)
    (body,) = json_bodies(pending_events(np.random.default_rng(9), lab.size(20_000, 3_000)), 10**6)
    events = msgspec.json.decode(body)
    lines = [msgspec.json.encode(event) + b"\n" for event in events]
    rates: list[list[float]] = [[], [], [], [], [], []]
    with Client("http://store", "one", transport=httpx.MockTransport(_away)) as away:
        for number in lab.rounds():
            folder = lab.exchange / f"outbox-{number}"
            rates[0].append(count / _timed(lambda: _bare(lab.exchange / "bare", lines[:count])))
            with Recorder(away, folder, retry=Retry(first_s=60)) as recorder:
                rates[1].append(count / _timed(lambda r=recorder: _record(r, events[:count])))
                rates[2].append(_THREADS * count / _timed(lambda r=recorder: _by_threads(r, events[:count])))
                rates[3].append(len(events) / _timed(lambda r=recorder: _record(r, events, wait=False)))
                recorder.close(0)
    with lab.site() as site, lab.api(site) as (port, _):
        with site.store() as store:
            create_tenant(store.database, "one", DEFAULT_POLICY)
        with Client(f"http://127.0.0.1:{port}", "one") as client:
            for number in lab.rounds():
                direct = _timed(
                    lambda c=client: [c.append(events[n : n + _BATCH]) for n in range(0, len(events), _BATCH)]
                )
                rates[5].append(len(events) / direct)
                with Recorder(client, lab.exchange / f"sent-{number}", flush_s=3600, flush_events=10**9) as r:
                    _record(r, events, wait=False)
                    rates[4].append(len(events) / _timed(r.flush))
    return [
        Measured(ROWS[0], rates[1], rates[0]),
        Measured(ROWS[1], rates[2], rates[0]),
        Measured(ROWS[2], rates[3], rates[0]),
        Measured(ROWS[3], rates[4], rates[5]),
    ]


def _away(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _bare(path: Path, lines: list[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    for line in lines:
        os.write(fd, line)
        os.fdatasync(fd)
    os.close(fd)


def _record(recorder: Recorder, events: list[dict[str, object]], *, wait: bool = True) -> None:
    for event in events:
        recorder.record(event, wait=wait)
    recorder.sync()


def _by_threads(recorder: Recorder, events: list[dict[str, object]]) -> None:
    threads = [threading.Thread(target=_record, args=(recorder, events)) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
