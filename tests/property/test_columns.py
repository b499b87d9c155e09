"""What is computed column by column is what the reference computes one by one; nothing depends on batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.archive import parquet
from eventstore.archive.parquet import SegmentWriter, cut_row_groups
from eventstore.columns.canonical import canonical_column, chain_column, first_chain_break
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.db.engine import Database
from eventstore.hot.copy_frame import COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, copy_rows
from eventstore.hot.read import to_events
from eventstore.model.event import Event, canonical_bytes, chain_hash
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window
from tests.conftest import create_database
from tests.property.strategies import events, examples
from tests.unit.helpers import as_batch, execute

lists = st.lists(events, min_size=1, max_size=12)


@examples(150)
@given(lists, st.integers(0, 11))
def test_canonical_bytes_by_column(batch: list[Event], start: int) -> None:
    expected = [canonical_bytes(e) for e in batch]
    columns = as_batch(batch)
    assert canonical_column(columns).to_pylist() == expected
    # A slice looks into its parent's buffers from somewhere in the middle.
    assert canonical_column(columns.slice(start)).to_pylist() == expected[start:]


@examples(100)
@given(lists, st.binary(min_size=32, max_size=32), st.data())
def test_the_chain_by_column(batch: list[Event], previous: bytes, data: st.DataObject) -> None:
    chained, last = [], previous
    for event in batch:
        last = chain_hash(last, canonical_bytes(event))
        chained.append(replace(event, hash=last))
    columns = as_batch(chained)
    hashes, end = chain_column(previous, canonical_column(columns))
    assert (hashes.to_pylist(), end) == ([e.hash for e in chained], last)
    assert first_chain_break(previous, columns) == (None, last)
    # Any change of any one event is found at its place.
    index = data.draw(st.integers(0, len(chained) - 1))
    other = data.draw(events.filter(lambda e: canonical_bytes(e) != canonical_bytes(chained[index])))
    altered = [*chained[:index], replace(other, hash=chained[index].hash), *chained[index + 1 :]]
    assert first_chain_break(previous, as_batch(altered))[0] == index


@examples(150)
@given(events, events)
def test_different_events_have_different_canonical_bytes(one: Event, two: Event) -> None:
    same = replace(one, hash=b"") == replace(two, hash=b"")
    assert (canonical_bytes(one) == canonical_bytes(two)) == same


# --- Postgres ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flat(server_url: str, template_database: str) -> Iterator[Database]:
    """A database with a plain table of the columns of events."""
    url = create_database(server_url, "property_copy", template=template_database)
    database = Database(url)
    database.open()
    execute(url, "CREATE TABLE flat (LIKE events); ALTER TABLE flat ADD no serial")
    yield database
    database.close()
    execute(server_url, 'DROP DATABASE "property_copy" WITH (FORCE)')


_tenants = (f"t{n}" for n in itertools.count())


@examples(60)
@given(batch=lists)
def test_a_copy_frame_is_taken_by_postgres_and_read_back_equal(flat: Database, batch: list[Event]) -> None:
    tenant, columns = next(_tenants), as_batch(batch)
    with flat.connection() as conn, conn.cursor() as cursor:
        with cursor.copy(
            f"COPY flat ({', '.join(COPY_COLUMNS)}) FROM STDIN (FORMAT BINARY)".encode()
        ) as copy:
            copy.write(COPY_HEADER)
            copy.write(copy_rows(tenant, columns.slice(0, 1)))
            copy.write(copy_rows(tenant, columns.slice(1)))
            copy.write(COPY_TRAILER)
        row = conn.execute(
            "SELECT entity_id, event_id, hash, old_value FROM flat WHERE tenant_id = %s ORDER BY no LIMIT 1",
            [tenant],
        ).fetchone()
    first = batch[0]
    assert row is not None  # psycopg reads it as it is, too
    assert (row[0], row[1].bytes, bytes(row[2]), row[3]) == (
        first.entity_id,
        first.event_id,
        first.hash,
        first.old_value,
    )
    with flat.arrow() as conn, conn.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(EVENT_FIELDS)} FROM flat WHERE tenant_id = '{tenant}' ORDER BY no")
        with cursor.fetch_record_batch() as reader:
            found = pa.Table.from_batches([to_events(b) for b in reader])
    assert found.combine_chunks() == pa.Table.from_batches([columns])


def test_postgres_refuses_a_frame_that_is_cut_short(flat: Database) -> None:
    event = Event(1, bytes(16), 0, 0, "t", "i", "a", "*", None, None, "p", "s", None, None, bytes(32))
    frame = bytes(copy_rows("cut", as_batch([event])))
    with (
        pytest.raises(psycopg.Error),
        flat.connection() as conn,
        conn.cursor() as cursor,
        cursor.copy(f"COPY flat ({', '.join(COPY_COLUMNS)}) FROM STDIN (FORMAT BINARY)".encode()) as copy,
    ):
        copy.write(COPY_HEADER + frame[:-1])


# --- row groups and segments ------------------------------------------------------------------------


@st.composite
def batchings(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    sizes = draw(st.lists(st.integers(1, 500), min_size=1, max_size=60))
    cuts = draw(st.lists(st.integers(0, len(sizes)), max_size=10))
    return sizes, sorted(cuts)


def pieces(batch: pa.RecordBatch, sizes: list[int], cuts: list[int]) -> Iterator[tuple[pa.RecordBatch, Any]]:
    edges = [0, *cuts, len(sizes)]
    for start, end in itertools.pairwise(edges):
        yield batch.slice(start, end - start), np.array(sizes[start:end], dtype=np.int64)


def small_limits() -> Any:
    return mock.patch.multiple(parquet, GROUP_ROWS_MAX=16, GROUP_BYTES_MAX=1500)


@examples(150)
@given(batchings())
def test_row_groups_depend_on_the_events_alone(batching: tuple[list[int], list[int]]) -> None:
    sizes, cuts = batching
    batch = pa.RecordBatch.from_arrays([pa.array(range(len(sizes)))], ["seq"])
    with small_limits():
        whole = list(cut_row_groups(pieces(batch, sizes, [])))
        assert list(cut_row_groups(pieces(batch, sizes, cuts))) == whole
    assert [n for g in whole for n in g.events["seq"].to_pylist()] == list(range(len(sizes)))
    for group in whole:
        rows = group.events["seq"].to_pylist()
        assert group.size_bytes == sum(sizes[n] for n in rows)
        assert len(rows) <= 16
        assert sum(sizes[n] for n in rows[:-1]) < 1500
    for group in whole[:-1]:
        assert group.events.num_rows == 16 or group.size_bytes >= 1500


@examples(25)
@given(st.lists(events, min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_a_segment_is_the_same_bytes_however_it_was_batched(
    tmp_path_factory: pytest.TempPathFactory, found: list[Event], cuts: list[int]
) -> None:
    batch = as_batch(found)
    sizes = [len(canonical_bytes(e)) for e in found]
    cuts = sorted(min(cut, len(found)) for cut in cuts)
    segment_range = SegmentRange("t", Window(0, 1), 0, 1, len(found), bytes(32), bytes(32))
    written = []
    folder: Path = tmp_path_factory.mktemp("segments")
    with small_limits():
        for name, at in (("whole", []), ("cut", cuts)):
            with SegmentWriter(folder / name, rows_left=len(found)) as writer:
                for group in cut_row_groups(pieces(batch, sizes, at)):
                    writer.write(group)
                writer.finish(segment_range)
            written.append((folder / name).read_bytes())
    assert written[0] == written[1]
