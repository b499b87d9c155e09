"""Compaction of many windows by several workers, appends beside it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import numpy as np
import psycopg

from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.run import RunStatus
from eventstore.model.window import Window, WindowUnit
from eventstore.retention.compactor import RunOrder
from tests.bench.events import json_bodies, load_window, pending_events
from tests.bench.lab import ROOT, Lab, Site
from tests.bench.load import Plan, collect, generating, write_bodies
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)
_DAY_US = 86_400_000_000
_TENANTS = 20
_RATE = 50.0
_BOUND_S = 120.0
_WORKERS = (1, 2, 4)

ROWS = (
    Row("compaction of 200 windows with 2 workers", "with 1 worker", "events/s"),
    Row("compaction of 200 windows with 4 workers", "with 1 worker", "events/s"),
    Row("append p99 beside 1 worker", "p99 without", "ms"),
    Row("append p99 beside 2 workers", "p99 without", "ms"),
    Row("append p99 beside 4 workers", "p99 without", "ms"),
)


def run(lab: Lab) -> list[Measured]:
    """200 windows of 20 tenants by 1, 2 and 4 `eventstore worker` processes."""
    windows, rows = lab.size(200, 20), lab.size(4_000, 2_000)
    each = windows // _TENANTS

    def build(database: Database) -> None:
        for number in range(_TENANTS):
            name = f"t-{number:02d}"
            create_tenant(database, name, Policy(WindowUnit.DAY, 0))
            for day in range(each):
                window = Window(_DAY.from_us + day * _DAY_US, _DAY.to_us + day * _DAY_US)
                load_window(database, name, window, rows)
        create_tenant(database, "live", Policy(WindowUnit.DAY, 0))

    lab.say(f"loading {windows * rows:,} events")
    bodies = write_bodies(
        lab.exchange / "ones", json_bodies(pending_events(np.random.default_rng(6), 2_000), 1)
    )
    rates: dict[int, list[float]] = {n: [] for n in _WORKERS}
    beside: dict[int, list[float]] = {n: [] for n in _WORKERS}
    quiet: list[float] = []
    for number in lab.rounds():
        for workers in _WORKERS if number % 2 else _WORKERS[::-1]:
            with lab.site("fleet", build) as site, lab.api(site) as (port, _):
                lab.checkpoint()
                paths = ["/v1/tenants/live/events"]
                plan = Plan(port, paths, bodies, int(_RATE * _BOUND_S), 8, rate=_RATE)
                if workers == _WORKERS[0]:
                    quiet.append(_p99(_quiet(plan, lab.size(6, 2))))
                elapsed_s, latencies_ms = _with_workers(site, plan, workers)
                rates[workers].append(windows * rows / elapsed_s)
                beside[workers].append(_p99(latencies_ms))
    lab.forget("fleet")
    notes = [
        f"{windows} windows of {rows:,} events, of {_TENANTS} tenants (a tenant's windows are archived one "
        f"after the other); {_RATE:.0f} appends/s beside it. With 1 worker "
        f"{amount(median(rates[1]))} events/s."
    ]
    return [
        Measured(ROWS[0], rates[2], rates[1], notes),
        Measured(ROWS[1], rates[4], rates[1]),
        *(Measured(ROWS[2 + index], beside[n], quiet) for index, n in enumerate(_WORKERS)),
    ]


def _p99(latencies_ms: list[float]) -> float:
    return float(np.percentile(latencies_ms, 99))


def _quiet(plan: Plan, seconds: float) -> list[float]:
    with generating(plan) as process:
        time.sleep(seconds)
        return collect(process, stop=True).latencies_ms


def _with_workers(site: Site, plan: Plan, workers: int) -> tuple[float, list[float]]:
    """Plan the run, let the workers do it; the seconds from their first claim to the last drop."""
    with ExitStack() as stack:
        load = stack.enter_context(generating(plan))
        for _ in range(workers):
            stack.enter_context(_worker(site))
        with site.store() as store:
            now_us = _DAY.to_us + 40 * _DAY_US
            tenants = [t for t in store.compactor.tenants() if t.tenant_id != "live"]
            store.compactor.start(tenants, now_us, order=RunOrder(requested_by="benchmark"))
        with psycopg.connect(site.url, autocommit=True) as conn:
            deadline = time.monotonic() + _BOUND_S
            while not _one(conn, "SELECT status IN ('completed', 'failed') FROM runs"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the run did not end within {_BOUND_S:.0f} s")
                time.sleep(0.02)
            assert _one(conn, "SELECT status FROM runs") == RunStatus.COMPLETED
            elapsed_s = _one(
                conn,
                "SELECT extract(epoch FROM max(at) - min(at))::float FROM run_entries"
                " WHERE kind IN ('window_started', 'window_completed')",
            )
        return float(str(elapsed_s)), collect(load, stop=True).latencies_ms


def _one(conn: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@contextmanager
def _worker(site: Site) -> Iterator[None]:
    """`eventstore worker` on a site; told to stop at the end."""
    process = subprocess.Popen(
        site.command("worker"),
        env=site.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
