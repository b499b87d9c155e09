"""Append latency at a steady rate while retention runs, over the latency while it does not."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.window import Window, WindowUnit
from tests.bench.events import json_bodies, load_window, pending_events
from tests.bench.lab import Lab, Site
from tests.bench.load import Happened, Plan, collect, generating, write_bodies
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)
_APPENDED = ("a-0", "a-1", "a-2", "a-3")
_DUE = ("a-0", "b-0", "b-1")  # one of those that are appended to, and two others
_BATCH = 10
_RATE = 100.0
_CONNECTIONS = 16
_PERIOD_S_MAX = 60.0

ROWS = (
    Row("append p99 during retention", "p99 without", "ms", at_most=2),
    Row("append p50 during retention", "p50 without", "ms"),
)


def run(lab: Lab) -> list[Measured]:
    """100 requests a second of 10 events (open loop); `eventstore retention run` beside it, or not."""
    rows = lab.size(800_000, 100_000)

    def build(database: Database) -> None:
        for name in sorted({*_APPENDED, *_DUE}):
            create_tenant(database, name, Policy(WindowUnit.DAY, 0))
        for name in _DUE:
            load_window(database, name, _DAY, rows)

    bodies = write_bodies(
        lab.exchange / "tens", json_bodies(pending_events(np.random.default_rng(4), _BATCH * 400), _BATCH)
    )
    lab.say(f"loading {rows * len(_DUE):,} events")
    during: list[list[float]] = []
    without: list[list[float]] = []
    for number in lab.rounds():
        with lab.site("retention", build) as site, lab.api(site) as (port, _):
            plan = Plan(
                port,
                [f"/v1/tenants/{name}/events" for name in _APPENDED],
                bodies,
                int(_RATE * _PERIOD_S_MAX),
                _CONNECTIONS,
                rate=_RATE,
            )
            _quiet(plan, 1.0)
            lab.checkpoint()
            if number % 2:
                during.append(_with_retention(plan, site))
                without.append(_quiet(plan, len(during[-1]) / _RATE))
            else:
                seconds = len(during[-1]) / _RATE if during else lab.size(8, 3)
                without.append(_quiet(plan, seconds))
                during.append(_with_retention(plan, site))
    lab.forget("retention")

    def percentiles(found: list[list[float]], at: int) -> list[float]:
        return [float(np.percentile(latencies_ms, at)) for latencies_ms in found]

    notes = [
        f"{_RATE:.0f} requests/s of {_BATCH} events over {len(_APPENDED)} tenants; retention archives "
        f"{len(_DUE)} windows of {rows:,} events, one of them of a tenant that is appended to; a period "
        f"lasts as long as the retention run, {amount(median(map(len, during)) / _RATE)} s. Greatest "
        f"latency: {amount(median(map(max, during)))} ms during, {amount(median(map(max, without)))} ms "
        "without."
    ]
    return [
        Measured(ROWS[0], percentiles(during, 99), percentiles(without, 99), notes),
        Measured(ROWS[1], percentiles(during, 50), percentiles(without, 50)),
    ]


def _quiet(plan: Plan, seconds: float) -> list[float]:
    with generating(plan) as process:
        time.sleep(seconds)
        return collect(process, stop=True).latencies_ms


def _with_retention(plan: Plan, site: Site) -> list[float]:
    with generating(plan) as process:
        time.sleep(0.3)
        began = time.time()
        Lab.finish(site.command("retention", "run"), site, timeout_s=_PERIOD_S_MAX)
        ended = time.time()
        return _between(collect(process, stop=True), began, ended)


def _between(happened: Happened, began: float, ended: float) -> list[float]:
    return [
        latency_ms
        for due, latency_ms in zip(happened.due, happened.latencies_ms, strict=True)
        if began <= due <= ended
    ]
