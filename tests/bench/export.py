"""Exports of a million archived events into a file, against DuckDB that reads the same files and writes the
same format."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.event import VALUE_FIELDS
from eventstore.model.query import EventFilter
from eventstore.query.export import ExportFormat, export_events
from eventstore.query.reader import LogReader
from tests.bench.archive_queries import TENANT, SegmentOrder, build_segment, catalog, duck_as_configured
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_AGAINST = "DuckDB reads the same files and writes that format"
ROWS = tuple(
    Row(f"export of archived events as {form.value}", _AGAINST, "k events/s", at_least=goal)
    for form, goal in (
        (ExportFormat.NDJSON, 0.8),
        (ExportFormat.CSV, 0.8),
        (ExportFormat.PARQUET, 0.8),
        (ExportFormat.ARROW, 0.5),
    )
)


def run(lab: Lab) -> list[Measured]:
    """One process, as the command line exports. The files are in the system's cache for both."""
    count, rows = lab.size(4, 2), lab.size(250_000, 60_000)
    lab.say(f"building {count} segments of {rows:,} events")
    with lab.site() as site:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
            orders = (SegmentOrder(str(site.archive), n, rows, with_rare=False) for n in range(count))
            made = list(executor.map(build_segment, orders))
        with site.store() as store:
            catalog(store, made)
            files = [site.archive / v.segment.key for v in made]
            duck = duck_as_configured()
            to = site.archive / "exported"
            rates: dict[ExportFormat, tuple[list[float], list[float]]] = {f: ([], []) for f in ExportFormat}
            sizes: dict[ExportFormat, int] = {}
            reading: list[float] = []
            for n, _ in enumerate(lab.rounds()):
                reading.append(_rate(count * rows, lambda: _read(store.reader)))
                for form in ExportFormat:
                    ours = _rate(count * rows, lambda form=form: _export(store.reader, form, to))
                    sizes[form] = to.stat().st_size
                    if n == 0:
                        assert _rows(form, to) == count * rows
                    theirs = _rate(count * rows, _by_duck(duck, files, form, to))
                    rates[form][0].append(ours)
                    rates[form][1].append(theirs)
            duck.close()
            to.unlink()
    note = f"{count * rows:,} events. Reading them and writing nothing: {amount(max(reading))} k events/s."
    return [
        Measured(row, *rates[form], [f"{note} {sizes[form] / 1e6:,.0f} MB."])
        for row, form in zip(ROWS, ExportFormat, strict=True)
    ]


def _rate(events: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return events / (time.perf_counter() - started) / 1000


def _read(reader: LogReader) -> None:
    for _ in reader.stream(TENANT, EventFilter()):
        pass


def _export(reader: LogReader, form: ExportFormat, to: Path) -> None:
    with to.open("wb", buffering=0) as file:
        for piece in export_events(reader, TENANT, EventFilter(), form).pieces:
            file.write(piece)


def _rows(form: ExportFormat, file: Path) -> int:
    """How many events are in a file, as another program reads it."""
    match form:
        case ExportFormat.NDJSON:
            return file.read_bytes().count(b"\n")
        case ExportFormat.CSV:
            return int(pa.csv.read_csv(file).num_rows)
        case ExportFormat.PARQUET:
            return int(pq.read_metadata(file).num_rows)
        case ExportFormat.ARROW:
            return int(pa.ipc.open_stream(file).read_all().num_rows)


def _by_duck(
    duck: duckdb.DuckDBPyConnection, files: list[Path], form: ExportFormat, to: Path
) -> Callable[[], object]:
    as_text = form in (ExportFormat.NDJSON, ExportFormat.CSV)

    def column(name: str) -> str:
        if name == "hash" and as_text:
            return "lower(hex(hash)) AS hash"
        if name in VALUE_FIELDS and form is ExportFormat.NDJSON:
            return f"{name}::JSON AS {name}"
        return name

    query = (
        f"SELECT {', '.join(map(column, EVENT_FIELDS))}"
        f" FROM read_parquet({list(map(str, files))}, hive_partitioning = false)"
    )
    options = {
        ExportFormat.NDJSON: "FORMAT json",
        ExportFormat.CSV: "FORMAT csv, HEADER",
        ExportFormat.PARQUET: "FORMAT parquet, COMPRESSION zstd",
    }
    if form in options:
        return lambda: duck.execute(f"COPY ({query}) TO '{to}' ({options[form]})")
    return lambda: _write_arrow(duck.sql(query), to)


def _write_arrow(relation: duckdb.DuckDBPyRelation, to: Path) -> None:
    batches = relation.to_arrow_reader(50_000)
    with to.open("wb", buffering=0) as file, pa.ipc.new_stream(file, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
