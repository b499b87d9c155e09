"""Append to a store of 2,000 tenants over a store of 10 on the same server."""

from __future__ import annotations

import time
from functools import partial
from itertools import cycle, islice
from statistics import median

import numpy as np

from eventstore.app import Store
from eventstore.db.engine import Database
from eventstore.errors import EventStoreError
from eventstore.governance.tenants import create_tenant
from eventstore.hot.append import AppendRequest
from eventstore.intake.json import parse_array_or_object
from eventstore.model.policy import DEFAULT_POLICY
from tests.bench.events import json_bodies, pending_events
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_BATCH = 10

ROWS = (Row("append with 2,000 tenants", "with 10 tenants", "ms", at_most=1.5),)


def run(lab: Lab) -> list[Measured]:
    """Batches of 10 round-robin over the tenants, in process, one at a time; medians a run."""
    many, few = lab.size(2000, 100), 10
    appends = lab.size(2000, 100)
    batch = pending_events(np.random.default_rng(3), _BATCH * 50)
    requests = [
        AppendRequest(parse_array_or_object(body, value_bytes_max=2**18))
        for body in json_bodies(batch, _BATCH)
    ]
    lab.say(f"making {many:,} tenants")
    with (
        lab.site("tenants-many", partial(_build, tenants=many)) as many_site,
        lab.site("tenants-few", partial(_build, tenants=few)) as few_site,
        many_site.store() as many_store,
        few_site.store() as few_store,
    ):
        lab.say("each tenant's first append")
        _append(many_store, many, many, requests)
        _append(few_store, few, appends // 10, requests)
        found: dict[int, list[float]] = {many: [], few: []}
        p99: dict[int, list[float]] = {many: [], few: []}
        for _ in lab.rounds():
            for tenants, store in ((many, many_store), (few, few_store)):
                lab.checkpoint()
                latencies_ms = _append(store, tenants, appends, requests)
                found[tenants].append(median(latencies_ms))
                p99[tenants].append(float(np.percentile(latencies_ms, 99)))
    for key in ("tenants-many", "tenants-few"):
        lab.forget(key)
    notes = [
        f"Each append is {_BATCH} events in one transaction; {appends:,} a run, round-robin. "
        f"p99: {amount(median(p99[many]))} ms with {many:,} tenants, {amount(median(p99[few]))} ms with "
        f"{few}."
    ]
    return [Measured(ROWS[0], found[many], found[few], notes)]


def _build(database: Database, *, tenants: int) -> None:
    for number in range(tenants):
        create_tenant(database, f"t-{number}", DEFAULT_POLICY)


def _append(store: Store, tenants: int, appends: int, requests: list[AppendRequest]) -> list[float]:
    latencies_ms = []
    names = cycle(f"t-{number}" for number in range(tenants))
    for name, request in islice(zip(names, cycle(requests), strict=False), appends):
        started = time.perf_counter()
        outcome = store.appender.append(name, [request])[0]
        latencies_ms.append((time.perf_counter() - started) * 1000)
        if isinstance(outcome, EventStoreError):
            raise outcome
    return latencies_ms
