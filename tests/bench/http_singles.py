"""Single events over HTTP on 32 connections, over an endpoint that does nothing with the same body."""

from __future__ import annotations

import sys
from statistics import median

import numpy as np
import psutil

from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import DEFAULT_POLICY
from tests.bench.events import json_bodies, pending_events
from tests.bench.lab import Lab
from tests.bench.load import Happened, Plan, generate, write_bodies
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_CONNECTIONS = 32
_TENANTS = 16

ROWS = (
    Row(
        "HTTP append, single events, 32 connections, each acknowledged after commit",
        "a no-op FastAPI endpoint with the same body",
        "requests/s",
        at_least=0.5,
    ),
    Row(
        f"the same, spread over {_TENANTS} tenants",
        "a no-op FastAPI endpoint with the same body",
        "requests/s",
    ),
)


def run(lab: Lab) -> list[Measured]:
    """A closed loop; both servers are up all the time, and take turns."""
    count = lab.size(6_000, 1_000)
    bodies = write_bodies(
        lab.exchange / "singles", json_bodies(pending_events(np.random.default_rng(2), count), 1)
    )
    one = ["/v1/tenants/one/events"]
    many = [f"/v1/tenants/many-{n}/events" for n in range(_TENANTS)]
    with (
        lab.site() as site,
        lab.api(site) as (port, pid),
        lab.serving([sys.executable, "-m", "tests.bench.noop"], site.environment) as (noop_port, noop_pid),
    ):
        with site.store() as store:
            for name in ["one", *(f"many-{n}" for n in range(_TENANTS))]:
                create_tenant(store.database, name, DEFAULT_POLICY)

        def measure(at: int, paths: list[str], requests: int = count) -> Happened:
            return generate(Plan(at, paths, bodies, requests, _CONNECTIONS))

        for at, paths in ((port, one), (port, many), (noop_port, one)):
            measure(at, paths, count // 10)
        runs: dict[str, list[Happened]] = {"one": [], "many": [], "noop": []}
        cpu_us: dict[str, list[float]] = {"one": [], "many": [], "noop": []}
        targets = (("one", port, one, pid), ("noop", noop_port, one, noop_pid), ("many", port, many, pid))
        for _ in lab.rounds():
            for name, at, paths, process in targets:
                lab.checkpoint()
                before_s = _cpu_s(process)
                runs[name].append(measure(at, paths))
                cpu_us[name].append((_cpu_s(process) - before_s) / count * 1e6)
    rates = {name: [count / h.elapsed_s for h in found] for name, found in runs.items()}
    p99 = {
        name: median(float(np.percentile(h.latencies_ms, 99)) for h in found) for name, found in runs.items()
    }
    p50 = {
        name: median(float(np.percentile(h.latencies_ms, 50)) for h in found) for name, found in runs.items()
    }

    def told(name: str) -> str:
        return (
            f"p50 {amount(p50[name])} ms, p99 {amount(p99[name])} ms, "
            f"{amount(median(cpu_us[name]))} µs of CPU in the server process a request"
        )

    return [
        Measured(
            ROWS[0],
            rates["one"],
            rates["noop"],
            [f"One tenant: {told('one')}. No-op: {told('noop')}.", f"{count:,} requests a run."],
        ),
        Measured(ROWS[1], rates["many"], rates["noop"], [f"{_TENANTS} tenants: {told('many')}."]),
    ]


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
