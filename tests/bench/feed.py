"""The feed: replays from both tiers over DuckDB reading the same events; from an append to its consumers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

import duckdb
import numpy as np

from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.window import Window, WindowUnit
from tests.bench.events import json_bodies, load_window, pending_events
from tests.bench.feed_load import Delivered, FeedPlan, consume, following
from tests.bench.lab import Lab, Site
from tests.bench.load import Plan, generate, write_bodies
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)
_CONSUMERS = (1, 50, 500)
_APPENDS = 100

ROWS = (
    Row("feed replayed from the archive", "DuckDB reading the same file in order", "events/s"),
    Row("feed replayed from the hot tier", "DuckDB reading the same events' file in order", "events/s"),
    *(
        Row(f"append sent to event received, {count} consumers, {which}", "–", "ms", absolute=True)
        for count in _CONSUMERS
        for which in ("p50", "p99")
    ),
    Row("the same, 1 consumer, appended in another process, p50", "–", "ms", at_most=50, absolute=True),
    Row("the same, 1 consumer, appended in another process, p99", "–", "ms", absolute=True),
    Row("append p50 with 50 consumers following", "without", "ms"),
    Row("append p99 with 50 consumers following", "without", "ms"),
    Row("append p50 with 50 consumers following, 2 serving processes", "without", "ms"),
    Row("append p99 with 50 consumers following, 2 serving processes", "without", "ms"),
)


def run(lab: Lab) -> list[Measured]:
    """Over real sockets; the consumers are a process of their own."""
    return [*_replays(lab), *_latencies(lab), *_appends(lab)]


def _replays(lab: Lab) -> list[Measured]:
    rows = lab.size(1_000_000, 100_000)

    def build(database: Database) -> None:
        for name in ("cold", "warm"):
            create_tenant(database, name, Policy(WindowUnit.DAY, 0 if name == "cold" else 10**16))
            load_window(database, name, _DAY, rows)

    lab.say(f"loading {2 * rows:,} events")
    with lab.site("feed", build) as site:
        lab.finish(site.command("retention", "run", "--tenant", "cold"), site, timeout_s=300)
        with lab.api(site) as (port, _):
            rates: dict[str, list[float]] = {"cold": [], "warm": [], "duck": []}
            for name in ("cold", "warm"):
                consume(FeedPlan(port, name, 0, 1, rows))  # digests the segments, warms caches
            for _ in lab.rounds():
                for name in ("cold", "warm"):
                    rates[name].append(rows / consume(FeedPlan(port, name, 0, 1, rows)).elapsed_s)
                rates["duck"].append(rows / _duck_s(site.archive))
    lab.forget("feed")
    note = f"{rows:,} events as Server-Sent Events to one consumer over a socket; DuckDB into Arrow, by seq."
    return [
        Measured(ROWS[0], rates["cold"], rates["duck"], [note]),
        Measured(ROWS[1], rates["warm"], rates["duck"]),
    ]


def _duck_s(archive: Path) -> float:
    duck = duckdb.connect(":memory:", config={"threads": os.cpu_count() or 1})
    started = time.perf_counter()
    files = f"{archive}/tenant_id=cold/**/*.parquet"
    duck.sql(
        f"SELECT * FROM read_parquet('{files}', hive_partitioning = false) ORDER BY seq"
    ).to_arrow_table()
    elapsed_s = time.perf_counter() - started
    duck.close()
    return elapsed_s


def _latencies(lab: Lab) -> list[Measured]:
    appends = lab.size(_APPENDS, 40)
    found: dict[str, list[Delivered]] = {name: [] for name in (*map(str, _CONSUMERS), "apart")}
    with lab.site() as site, lab.api(site) as (port, _), lab.api(site) as (other_port, _):
        _tenants(site, "live")
        through = 0

        def measure(consumers: int, append_port: int) -> Delivered:
            nonlocal through
            done = consume(FeedPlan(port, "live", through, consumers, through, appends, append_port))
            through += appends
            return done

        measure(1, port)
        for _ in lab.rounds():
            for count in _CONSUMERS:
                found[str(count)].append(measure(count, port))
            found["apart"].append(measure(1, other_port))
    append_ms = median(d.append_p50_ms for d in found["1"])
    note = f"{appends} appends of one event, 20 a second; the append itself takes {amount(append_ms)} ms."
    rows = iter(ROWS[2:10])
    return [
        Measured(next(rows), [getattr(d, f"{which}_ms") for d in found[name]], (), [note])
        for name in found
        for which in ("p50", "p99")
    ]


def _tenants(site: Site, *names: str) -> None:
    with site.store() as store:
        for name in names:
            create_tenant(store.database, name, Policy(WindowUnit.DAY, 10**16))


def _appends(lab: Lab) -> list[Measured]:
    """Appends at 200 a second, with nobody following, and with 50 consumers of one of the tenants."""
    count = lab.size(1500, 400)
    bodies = write_bodies(
        lab.exchange / "followed", json_bodies(pending_events(np.random.default_rng(5), count), 1)
    )
    followed: tuple[list[list[float]], ...] = ([], [])
    alone: tuple[list[list[float]], ...] = ([], [])
    with lab.site() as site, lab.api(site) as (one, _), lab.api(site, processes=2) as (two, _):
        _tenants(site, "a", "b")
        paths = ["/v1/tenants/a/events", "/v1/tenants/b/events"]
        plans = [Plan(port, paths, bodies, count, 8, rate=200.0) for port in (one, two)]
        for plan in plans:
            generate(plan)
        for _ in lab.rounds():
            for which, plan in enumerate(plans):
                alone[which].append(generate(plan).latencies_ms)
                with following(FeedPlan(plan.port, "a", 0, 50, 2**60)):
                    followed[which].append(generate(plan).latencies_ms)

    def percentiles(found: list[list[float]], at: int) -> list[float]:
        return [float(np.percentile(latencies_ms, at)) for latencies_ms in found]

    note = "200 requests/s of one event over two tenants, one of which is followed; open loop."
    return [
        Measured(
            ROWS[10 + 2 * which + (at == 99)],
            percentiles(followed[which], at),
            percentiles(alone[which], at),
            [note] if which == 0 and at == 50 else [],
        )
        for which in (0, 1)
        for at in (50, 99)
    ]
