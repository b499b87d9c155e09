"""Compaction of a window, from reading it to having dropped it, over COPY TO file and over a row loop."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from psycopg import sql

from eventstore.clock import SystemClock
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.db.engine import Database
from eventstore.db.partitions import SCHEMA
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.run import RunStatus
from eventstore.model.window import Window, WindowUnit
from tests.bench.events import load_window
from tests.bench.lab import Lab, Site
from tests.bench.measure import Measured, Row

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)
_LOOP_CHUNK = 10_000

ROWS = (
    Row(
        "compaction, read to dropped, verified",
        "server-side COPY TO file of the same window",
        "events/s",
        at_least=0.4,
    ),
    Row(
        "compaction, read to dropped, verified",
        "a SQLAlchemy row loop to Parquet, not verified",
        "events/s",
        at_least=4,
    ),
)


def run(lab: Lab) -> list[Measured]:
    """Each run on a copy of the same database with one window that is due."""
    rows = lab.size(500_000, 100_000)

    def build(database: Database) -> None:
        create_tenant(database, "t", Policy(WindowUnit.DAY, 0))
        load_window(database, "t", _DAY, rows)

    compacted: list[float] = []
    copied: list[float] = []
    looped: list[float] = []
    for number in lab.rounds():
        with lab.site("compaction", build) as site, site.store() as store:
            leaf = _leaf(store.database)
            file = lab.exchange / "window.copy"
            _copy_to(store.database, leaf, "/dev/null")  # what is read first would warm it for the others
            lab.checkpoint()
            for measure in (0, 1) if number % 2 else (1, 0):
                if measure:
                    copied.append(rows / _copy_to(store.database, leaf, str(file)))
                    file.unlink()
                else:
                    looped.append(rows / _row_loop(store.database, leaf, site))
            lab.checkpoint()
            started = time.perf_counter()
            report = store.compactor.run(store.compactor.tenants("t"), SystemClock().now_us())
            compacted.append(rows / (time.perf_counter() - started))
            assert report.status is RunStatus.COMPLETED, report.outcomes
            assert report.outcomes[0].events == rows, report.outcomes
            size_mb = report.outcomes[0].size_bytes / 1e6
    lab.forget("compaction")
    notes = [
        f"A window of {rows:,} events, {size_mb:.0f} MB as Parquet; COPY TO in binary format. The window was "
        "vacuumed and had been read once, as all three find it."
    ]
    return [Measured(ROWS[0], compacted, copied, notes), Measured(ROWS[1], compacted, looped, ())]


def _leaf(database: Database) -> str:
    with database.connection() as conn:
        row = conn.execute("SELECT leaf FROM windows").fetchone()
    assert row is not None
    return str(row[0])


def _copy_to(database: Database, leaf: str, file: str) -> float:
    with database.connection() as conn:
        started = time.perf_counter()
        conn.execute(
            sql.SQL("COPY {} TO {} (FORMAT BINARY)").format(sql.Identifier(SCHEMA, leaf), sql.Literal(file))
        )
        return time.perf_counter() - started


def _row_loop(database: Database, leaf: str, site: Site) -> float:
    """What one would write first: rows as Python objects, chunk by chunk into a Parquet file."""
    table = sa.table(leaf, *(sa.column(name) for name in EVENT_FIELDS), schema=SCHEMA)
    schema = EVENT_SCHEMA.set(1, pa.field("event_id", pa.uuid()))
    path = site.archive / "loop.parquet"
    started = time.perf_counter()
    with database.engine.connect() as conn, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        result = conn.execution_options(yield_per=_LOOP_CHUNK).execute(sa.select(table).order_by(table.c.seq))
        for rows in result.mappings().partitions():
            chunk = [dict(row) | {"event_id": row["event_id"].bytes} for row in rows]
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    elapsed_s = time.perf_counter() - started
    path.unlink()
    return elapsed_s
