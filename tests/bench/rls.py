"""What row-level security costs: the same work by the application's login and by the owner, whom no policy
binds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import numpy as np
import sqlalchemy as sa

from eventstore.db.connections import Connections
from eventstore.db.engine import Database
from eventstore.db.roles import TenantConnections, make_login, with_login
from eventstore.errors import EventStoreError
from eventstore.governance.tenants import create_tenant
from eventstore.hot.append import Appender, AppendRequest
from eventstore.intake.json import parse_array_or_object
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.model.query import EventFilter, Order
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from tests.bench.events import entity_name, json_bodies, pending_events
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_TENANTS = 20
_LOGIN = "eventstore_bench_app"
_OWNER = "the owner, without row-level security"

ROWS = (
    Row("append one event, under row-level security", _OWNER, "ms"),
    Row("append 1,000 events, under row-level security", _OWNER, "ms"),
    Row("newest 50 events, under row-level security", _OWNER, "ms"),
    Row("history of an entity, under row-level security", _OWNER, "ms"),
)


class _Unbound(TenantConnections):
    """The owner's connections in the place of the application's: nothing is said about the tenant, but once
    for a connection, so that the look into the entity index knows whose."""

    def scope(self, tenant_id: str) -> str:
        return ""

    def row(self, tenant_id: str, query: str) -> tuple[Any, ...] | None:
        with self.connection() as conn:
            return conn.execute(query.encode()).fetchone()

    @contextmanager
    def transaction(self, tenant_id: str, *, one_snapshot: bool = False) -> Iterator[sa.Connection]:
        with self._connections.transaction() as conn:
            yield conn

    @contextmanager
    def arrow(self, tenant_id: str) -> Iterator[adbc.Connection]:
        with self._connections.arrow() as conn:
            yield conn


def run(lab: Lab) -> list[Measured]:
    """In process, one call at a time, the two in turn; medians a run. The tenant has 20,000 hot events beside
    those that are measured, and 19 neighbours."""
    calls = lab.size(500, 50)
    rng = np.random.default_rng(24)

    def requests(count: int, each: int) -> list[AppendRequest]:
        bodies = json_bodies(pending_events(rng, count * each), each)
        return [AppendRequest(parse_array_or_object(body, value_bytes_max=2**18)) for body in bodies]

    singles, thousands = requests(calls, 1), requests(10, 1000)
    with lab.site("rls", _build) as site, site.store() as store:
        with store.database.connection() as conn, conn.transaction():
            make_login(conn, _LOGIN, "bench")
        bound = Database(site.url, app_url=with_login(site.url, _LOGIN, "bench"))
        token = bound.app.scope("t-0").split("'")[3]
        owner = Database(site.url)
        owner.app = _Unbound(
            Connections(site.url, max_connections=4, session={"eventstore.tenant": token}), bytes
        )
        sides = []
        for database in (bound, owner):
            database.open()
            reader = LogReader(Tiers(database, store.tiers._scan))
            sides.append((Appender(database, archived_versions=reader.archived_versions), reader))
        for request in requests(20, 1000):
            _stored(sides[0][0], request)
        with store.database.connection() as conn:
            conn.execute("ANALYZE events")
        found: list[tuple[list[float], list[float]]] = [([], []) for _ in ROWS]
        for _ in lab.rounds():
            for side, (appender, reader) in enumerate(sides):
                lab.checkpoint()
                for measured, took_ms in zip(
                    found, _round(appender, reader, singles, thousands, calls), strict=True
                ):
                    measured[side].append(took_ms)
        for database in (bound, owner):
            database.close()
    lab.forget("rls")
    with lab.admin() as conn:
        conn.execute(f"DROP ROLE {_LOGIN}")
    return [
        Measured(row, *figures, [f"{amount(median(figures[0]) - median(figures[1]))} ms more."])
        for row, figures in zip(ROWS, found, strict=True)
    ]


def _round(
    appender: Appender,
    reader: LogReader,
    singles: list[AppendRequest],
    thousands: list[AppendRequest],
    calls: int,
) -> list[float]:
    """The medians of each kind of call, in the order of `ROWS`."""

    def history(number: int) -> object:
        wanted = EventFilter(entity_type="order", entity_id=entity_name(number % 50))
        return reader.page("t-0", wanted, limit=100)

    return [
        _median_ms(lambda n: _stored(appender, singles[n]), len(singles)),
        _median_ms(lambda n: _stored(appender, thousands[n]), len(thousands)),
        _median_ms(lambda _: reader.page("t-0", EventFilter(), order=Order.DESC, limit=50), calls),
        _median_ms(history, calls),
    ]


def _median_ms(call: Callable[[int], object], times: int) -> float:
    took_ms = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        took_ms.append((time.perf_counter() - started) * 1000)
    return median(took_ms)


def _stored(appender: Appender, request: AppendRequest) -> None:
    outcome = appender.append("t-0", [request])[0]
    if isinstance(outcome, EventStoreError):
        raise outcome


def _build(database: Database) -> None:
    for number in range(_TENANTS):
        create_tenant(database, f"t-{number}", DEFAULT_POLICY)
