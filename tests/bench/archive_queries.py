"""Questions about one entity over an archive of 25 M events, over DuckDB told the right file by hand."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from eventstore.app import Store
from eventstore.archive.bloom import entity_filter
from eventstore.archive.file import FileTarget
from eventstore.archive.layout import segment_key
from eventstore.archive.parquet import SegmentWriter, cut_row_groups
from eventstore.catalog.windows import cut_over, mark_dropped
from eventstore.clock import US_PER_S, from_us
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.db.tables import heads, watermarks, windows
from eventstore.governance.tenants import create_tenant
from eventstore.hot.batch import uuid7_column
from eventstore.model.event import TEXT_FIELDS
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment, SegmentRange, VerifiedSegment
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit
from eventstore.query.reader import LogReader
from tests.bench.events import entity_name, pending_events, spread_times
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "TENANT", "SegmentOrder", "build_segment", "catalog", "duck_as_configured", "run"]

TENANT = "t"
_RARE = "order-rare"
_RARE_EVENTS = 3
_LIMIT = 50
_FIRST_DAY_US = Window.containing(WindowUnit.DAY, 1_750_000_000_000_000).from_us
_DAY_US = 86_400 * US_PER_S
_BATCH_ROWS = 32_768
_REPEATS = 7  # within a run, whose median counts: one query takes only milliseconds

ROWS = (
    Row(
        "newest 50 of an entity, over 100 segments of 250 k rows",
        "DuckDB told the right file by hand",
        "ms",
        at_most=3,
    ),
    Row(
        "all of a rare entity, over 100 segments of 250 k rows",
        "DuckDB told the right file by hand",
        "ms",
        at_most=3,
    ),
)


def run(lab: Lab) -> list[Measured]:
    """The archive is built by the product's own writer, with a catalog that the product's reader trusts."""
    count, rows = lab.size(100, 10), lab.size(250_000, 60_000)
    busy = entity_name(rows // 1250)  # has about a hundred events in each segment
    lab.say(f"building {count} segments of {rows:,} events")
    with lab.site() as site:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
            made = list(
                executor.map(
                    build_segment,
                    (SegmentOrder(str(site.archive), n, rows, n == count // 2) for n in range(count)),
                )
            )
        with site.store() as store:
            catalog(store, made)
            questions = {
                busy: _question(store.reader, busy, _LIMIT),
                _RARE: _question(store.reader, _RARE, _LIMIT),
            }
            right = {busy: made[-1].segment, _RARE: made[count // 2].segment}
            duck = duck_as_configured()
            by_hand = {
                entity: _by_hand(duck, site.archive / segment.key, entity, _LIMIT)
                for entity, segment in right.items()
            }
            cold_ms = {entity: _ms(question) for entity, question in questions.items()}
            for entity, question in questions.items():
                found, expected = question(), by_hand[entity]()
                assert found.equals(expected.cast(EVENT_SCHEMA)), f"the answers for {entity} differ"
            runs: dict[str, tuple[list[float], list[float]]] = {busy: ([], []), _RARE: ([], [])}
            for _ in lab.rounds():
                for entity in questions:
                    pairs = [(_ms(questions[entity]), _ms(by_hand[entity])) for _ in range(_REPEATS)]
                    runs[entity][0].append(median(a for a, _ in pairs))
                    runs[entity][1].append(median(b for _, b in pairs))
            duck.close()
    size_mb = sum(v.segment.size_bytes for v in made) / 1e6
    notes = [
        f"{count} daily segments of {rows:,} events, {size_mb:,.0f} MB. The first question of all took "
        f"{amount(cold_ms[busy])} ms, the rare entity's first {amount(cold_ms[_RARE])} ms: a segment is "
        "digested before its first use."
    ]
    return [Measured(ROWS[0], *runs[busy], notes), Measured(ROWS[1], *runs[_RARE])]


@dataclass(frozen=True, slots=True)
class SegmentOrder:
    """A segment to build."""

    archive: str
    number: int
    rows: int
    with_rare: bool


def _hash_after(number: int) -> bytes:
    """The hash at the end of a segment. The chain within is made up: queries do not look at it."""
    return hashlib.sha256(f"segment {number}".encode()).digest()


def build_segment(order: SegmentOrder) -> VerifiedSegment:
    """Write one day's segment into the archive. Nothing is to be dropped for it: no need to verify it."""
    rng = np.random.default_rng(order.number)
    start_us = _FIRST_DAY_US + order.number * _DAY_US
    window = Window(start_us, start_us + _DAY_US)
    target = FileTarget(Path(order.archive))
    key = segment_key(TENANT, window, 0)
    times = spread_times(window, order.rows)
    first_seq = order.number * order.rows + 1

    def batches() -> list[tuple[pa.RecordBatch, np.ndarray]]:
        found = []
        for start in range(0, order.rows, _BATCH_ROWS):
            recorded = times[start : start + _BATCH_ROWS]
            found.append((_events(rng, order, start, first_seq, recorded), np.full(len(recorded), 400)))
        return found

    path = target.stage(key)
    segment_range = SegmentRange(
        tenant_id=TENANT,
        window=window,
        part=0,
        first_seq=first_seq,
        last_seq=first_seq + order.rows - 1,
        hash_before=_hash_after(order.number - 1),
        hash_after=_hash_after(order.number),
    )
    with SegmentWriter(path, rows_left=order.rows) as writer:
        for group in cut_row_groups(batches()):
            writer.write(group)
        writer.finish(segment_range)
    data = path.read_bytes()
    target.put(key, path)
    segment = Segment(
        segment_range, key, len(data), hashlib.sha256(data).digest(), int(times[0]), int(times[-1])
    )
    return VerifiedSegment(segment, entity_filter(pq.ParquetFile(pa.BufferReader(data)), data))


def _events(
    rng: np.random.Generator, order: SegmentOrder, start: int, first_seq: int, recorded: np.ndarray
) -> pa.RecordBatch:
    count = len(recorded)
    pending = pending_events(rng, count, recorded)
    columns = {name: pending.column(name) for name in TEXT_FIELDS}
    if order.with_rare and start == 0:
        ids = columns["entity_id"].to_pylist()
        for index in range(_RARE_EVENTS):
            ids[(index + 1) * count // (_RARE_EVENTS + 1)] = _RARE
        columns["entity_id"] = pa.array(ids)
    hashes = np.frombuffer(rng.bytes(32 * count), dtype=np.uint8)
    columns |= {
        "seq": pa.array(np.arange(first_seq + start, first_seq + start + count)),
        "event_id": uuid7_column(recorded),
        "recorded_at": pa.array(recorded).cast(EVENT_SCHEMA.field("recorded_at").type),
        "occurred_at": pending.column("occurred_at"),
        "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, pa.py_buffer(hashes)]),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in EVENT_FIELDS], schema=EVENT_SCHEMA)


def catalog(store: Store, made: list[VerifiedSegment]) -> None:
    """Bring the catalog to where a compaction of each day would have left it."""
    create_tenant(store.database, TENANT, Policy(WindowUnit.DAY, 0))
    first, last = made[0].segment.range, made[-1].segment.range
    with store.database.transaction() as conn:
        # The first segment's chain starts from nothing that exists.
        conn.execute(sa.update(watermarks).values(archived_hash=first.hash_before))
        for verified in made:
            r = verified.segment.range
            record = WindowRecord(
                r.window,
                WindowState.SEALED,
                f"gone_{r.first_seq}",
                r.first_seq,
                r.last_seq,
                r.hash_before,
                r.hash_after,
            )
            conn.execute(
                sa.insert(windows).values(
                    tenant_id=TENANT,
                    window_from=from_us(r.window.from_us),
                    window_to=from_us(r.window.to_us),
                    state=record.state.value,
                    leaf=record.leaf,
                    first_seq=r.first_seq,
                    last_seq=r.last_seq,
                    hash_before=r.hash_before,
                    hash_after=r.hash_after,
                )
            )
            cut_over(conn, record, [verified])
            mark_dropped(conn, TENANT, record)
        conn.execute(
            sa.update(heads).values(
                last_seq=last.last_seq, last_hash=last.hash_after, last_recorded_us=last.window.to_us
            )
        )


def _question(reader: LogReader, entity: str, limit: int) -> Callable[[], pa.Table]:
    wanted = EventFilter(entity_id=entity)
    return lambda: reader.page(TENANT, wanted, order=Order.DESC, limit=limit).events


def duck_as_configured() -> duckdb.DuckDBPyConnection:
    """DuckDB set up as the product sets it up."""
    duck = duckdb.connect(":memory:", config={"threads": os.cpu_count() or 1})
    duck.execute("SET TimeZone = 'UTC'")
    duck.execute("SET arrow_lossless_conversion = true")
    duck.execute("SET parquet_metadata_cache = true")
    return duck


def _by_hand(duck: duckdb.DuckDBPyConnection, file: Path, entity: str, limit: int) -> Callable[[], pa.Table]:
    query = (
        f"SELECT {', '.join(EVENT_FIELDS)} FROM read_parquet('{file}', hive_partitioning = false)"
        f" WHERE entity_id = '{entity}' ORDER BY seq DESC LIMIT {limit}"
    )
    return lambda: _plain(duck.sql(query).to_arrow_table())


def _plain(table: pa.Table) -> pa.Table:
    columns = [
        pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        if isinstance(column.type, pa.BaseExtensionType)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _ms(question: Callable[[], object]) -> float:
    started = time.perf_counter()
    question()
    return (time.perf_counter() - started) * 1000
