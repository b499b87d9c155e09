"""HTTP append in batches of 1,000, over COPY of the same rows into the same table and indexes."""

from __future__ import annotations

import time
import uuid
from statistics import median

import numpy as np
import psutil
from psycopg import sql

from eventstore.db.engine import Database
from eventstore.db.partitions import SCHEMA, create_leaf
from eventstore.governance.tenants import create_tenant
from eventstore.hot.copy_frame import COPY_COLUMNS
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.model.window import Window
from tests.bench.events import json_bodies, pending_events
from tests.bench.lab import Lab, Site
from tests.bench.load import Plan, generate, write_bodies
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_BATCH = 1000
_CONNECTIONS = 8

ROWS = (
    Row(
        "HTTP append, batches of 1,000",
        "server-side COPY of the same rows into the same table and indexes",
        "events/s",
        at_least=0.5,
    ),
    Row(
        "HTTP append, batches of 1,000, each event with an event_id",
        "server-side COPY of the same rows into the same table and indexes",
        "events/s",
    ),
    Row(
        "HTTP append, batches of 1,000, 2 serving processes",
        "server-side COPY of the same rows into the same table and indexes",
        "events/s",
    ),
)


def run(lab: Lab) -> list[Measured]:
    """One tenant, a few connections in flight; a fresh tenant and table each run."""
    rows = lab.size(100_000, 20_000)
    batch = pending_events(np.random.default_rng(1), rows)
    bodies = json_bodies(batch, _BATCH)
    plain = write_bodies(lab.exchange / "batches", bodies)
    with (
        lab.site() as site,
        site.store() as store,
        lab.api(site) as one,
        lab.api(site, processes=2) as two,
    ):
        bench = _Bench(lab, site, store.database, rows)
        bench.append("warm-up-1", plain, one)
        bench.append("warm-up-2", plain, two)
        rates: list[list[float]] = [[], [], []]
        limits: list[list[float]] = [[], [], []]
        cpu_us: list[list[float]] = [[], [], []]
        for number in lab.rounds():
            # The server's clock is the log's, so ids are made right before they are used.
            ids = [str(_uuid7(n)) for n in range(rows)]
            named = write_bodies(lab.exchange / "batches-ids", json_bodies(batch, _BATCH, ids))
            for which, (path, server) in enumerate(((plain, one), (named, one), (plain, two))):
                tenant = f"t-{number}-{which}"
                lab.checkpoint()
                rate, used_us = bench.append(tenant, path, server)
                rates[which].append(rate)
                cpu_us[which].append(used_us)
                lab.checkpoint()
                limits[which].append(bench.copy(tenant))
    size = sum(map(len, bodies)) / rows
    notes = [
        f"{rows:,} events of {size:.0f} bytes of JSON a run, {_CONNECTIONS} connections, one tenant.",
        f"The serving process used {amount(median(cpu_us[0]))} µs of CPU an event, the load generator "
        f"{amount(bench.generator_us)} µs; COPY took {amount(1e6 / max(limits[0]))} µs at best.",
    ]
    return [
        Measured(ROWS[0], rates[0], limits[0], notes),
        Measured(
            ROWS[1],
            rates[1],
            limits[1],
            ["As above, each event with a UUIDv7 of the caller's (idempotency)."],
        ),
        Measured(
            ROWS[2],
            rates[2],
            limits[2],
            [f"Both processes together used {amount(median(cpu_us[2]))} µs of CPU an event."],
        ),
    ]


class _Bench:
    def __init__(self, lab: Lab, site: Site, database: Database, rows: int) -> None:
        self._lab, self._site, self._database, self._rows = lab, site, database, rows
        self.generator_us = 0.0

    def append(self, tenant: str, bodies: str, server: tuple[int, int]) -> tuple[float, float]:
        """Events a second over HTTP into a new tenant's log, and µs of the server's CPU an event."""
        port, pid = server
        create_tenant(self._database, tenant, DEFAULT_POLICY)
        before_s = _cpu_s(pid)
        happened = generate(
            Plan(
                port=port,
                paths=[f"/v1/tenants/{tenant}/events"],
                bodies=bodies,
                count=self._rows // _BATCH,
                connections=_CONNECTIONS,
            )
        )
        used_s = _cpu_s(pid) - before_s
        self.generator_us = happened.cpu_s / self._rows * 1e6
        return self._rows / happened.elapsed_s, used_s / self._rows * 1e6

    def copy(self, tenant: str) -> float:
        """Events a second by COPY from a file, of that tenant's rows under another tenant's name."""
        other = f"c{tenant[1:]}"
        made = create_tenant(self._database, other, DEFAULT_POLICY)
        file = self._lab.exchange / f"{tenant}.copy"
        columns = sql.SQL(", ").join(map(sql.Identifier, COPY_COLUMNS))
        rest = sql.SQL(", ").join(map(sql.Identifier, COPY_COLUMNS[1:]))
        with self._database.connection() as conn:
            row = conn.execute(
                "SELECT leaf, extract(epoch FROM window_from)::bigint, extract(epoch FROM window_to)::bigint"
                "  FROM windows WHERE tenant_id = %s",
                [tenant],
            ).fetchone()
            assert row is not None
            conn.execute(
                sql.SQL(
                    "COPY (SELECT {other}, {rest} FROM {leaf} ORDER BY seq) TO {file} (FORMAT BINARY)"
                ).format(
                    other=sql.Literal(other),
                    rest=rest,
                    leaf=sql.Identifier(SCHEMA, row[0]),
                    file=sql.Literal(str(file)),
                )
            )
            leaf = create_leaf(conn, made.tenant_no, Window(row[1] * 1_000_000, row[2] * 1_000_000))
            started = time.perf_counter()
            copied = conn.execute(
                sql.SQL("COPY {leaf} ({columns}) FROM {file} (FORMAT BINARY)").format(
                    leaf=sql.Identifier(SCHEMA, leaf), columns=columns, file=sql.Literal(str(file))
                )
            ).rowcount
            elapsed_s = time.perf_counter() - started
        file.unlink()
        assert copied == self._rows, f"{copied} rows copied, {self._rows} sent"
        return self._rows / elapsed_s


def _cpu_s(pid: int) -> float:
    """CPU time of a server's processes."""
    first = psutil.Process(pid)
    found = [process.cpu_times() for process in (first, *first.children())]
    return float(sum(times.user + times.system for times in found))


def _uuid7(ordinal: int) -> uuid.UUID:
    high = int(time.time() * 1000) << 16 | 0x7000 | ordinal >> 20 & 0xFFF
    low = 0b10 << 62 | (ordinal & 0xFFFFF) << 42 | uuid.uuid4().int & (2**42 - 1)
    return uuid.UUID(int=high << 64 | low)
