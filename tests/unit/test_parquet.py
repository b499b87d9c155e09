"""Cutting row groups and writing segments: by the events alone, never by how they were batched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventstore.archive import parquet
from eventstore.archive.parquet import SegmentWriter, as_events, cut_row_groups, read_range, segment_is_full
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError
from eventstore.model.event import Event, uuid7
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window
from tests.unit.helpers import as_batch

RANGE = SegmentRange("acme", Window(0, 86_400_000_000), 3, 1, 40, b"a" * 32, b"b" * 32)


def events(count: int) -> pa.RecordBatch:
    return as_batch(
        [
            Event(
                seq,
                uuid7(seq)[:10] + seq.to_bytes(6, "big"),
                seq * 1000,
                seq * 1000,
                "order",
                f"id-{seq % 7}",
                "changed",
                "*",
                None,
                f'"{seq}"' if seq % 2 else None,
                "ann",
                "test",
                None,
                None,
                seq.to_bytes(32, "big"),
            )
            for seq in range(1, count + 1)
        ]
    )


BATCH = events(40)
SIZES = np.array([100 + seq % 5 * 10 for seq in range(40)], dtype=np.int64)


def batched(*cuts: int) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    edges = [0, *cuts, 40]
    for start, end in itertools.pairwise(edges):
        yield BATCH.slice(start, end - start), SIZES[start:end]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 12)
    monkeypatch.setattr(parquet, "GROUP_BYTES_MAX", 1000)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("cuts", [(), (1,), (12,), (8, 9, 10), tuple(range(1, 40)), (0, 0, 39, 39)])
def test_row_groups_do_not_depend_on_batches(cuts: tuple[int, ...]) -> None:
    groups = list(cut_row_groups(batched(*cuts)))
    assert [g.events.num_rows for g in groups] == [g.events.num_rows for g in cut_row_groups(batched())]
    assert pa.concat_tables([g.events for g in groups]).combine_chunks() == pa.Table.from_batches([BATCH])
    assert sum(g.size_bytes for g in groups) == SIZES.sum()
    for group in groups[:-1]:
        rows = group.events.column("seq").to_numpy() - 1
        assert group.size_bytes == SIZES[rows].sum()
        # Full by rows, or by the one event that reached the size.
        assert len(rows) == 12 or (group.size_bytes >= 1000 > SIZES[rows[:-1]].sum())


def test_row_groups_are_cut_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 15)
    assert [g.events.num_rows for g in cut_row_groups(batched(7, 20))] == [15, 15, 10]


def test_an_event_larger_than_the_limit_is_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES_MAX", 50)
    assert [g.events.num_rows for g in cut_row_groups(batched())] == [1] * 40


def test_nothing_makes_no_group() -> None:
    assert list(cut_row_groups([])) == []
    assert list(cut_row_groups([(BATCH.slice(0, 0), SIZES[:0])])) == []


def test_a_segment_is_full_by_rows_or_by_size() -> None:
    assert not segment_is_full(parquet.SEGMENT_ROWS_MAX - 1, parquet.SEGMENT_BYTES_MAX - 1)
    assert segment_is_full(parquet.SEGMENT_ROWS_MAX, 0)
    assert segment_is_full(0, parquet.SEGMENT_BYTES_MAX)


def write(path: Path, *cuts: int) -> bytes:
    with SegmentWriter(path, rows_left=40) as writer:
        for group in cut_row_groups(batched(*cuts)):
            writer.write(group)
        writer.finish(RANGE)
    return path.read_bytes()


@pytest.mark.usefixtures("small_limits")
def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    expected = write(tmp_path / "one")
    for index, cuts in enumerate([(1,), (12, 24), tuple(range(1, 40))]):
        assert write(tmp_path / str(index), *cuts) == expected


@pytest.mark.usefixtures("small_limits")
def test_a_segment_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    write(path)
    file = pq.ParquetFile(path)
    assert read_range(file, "k") == RANGE
    assert file.num_row_groups == 5
    table = as_events(file.read())
    assert table is not None
    assert table.combine_chunks() == pa.Table.from_batches([BATCH])
    group = file.metadata.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert list(by_name) == EVENT_SCHEMA.names
    assert by_name["seq"].statistics.max == group.num_rows
    assert by_name["entity_id"].compression == "ZSTD"
    assert by_name["hash"].compression == "UNCOMPRESSED"
    assert all(column.has_offset_index for column in by_name.values())  # the page index
    assert group.sorting_columns[0].column_index == 0


def test_a_file_of_other_columns_holds_no_events() -> None:
    assert as_events(pa.table({"seq": [1]})) is None
    assert as_events(pa.Table.from_batches([BATCH])) is None  # event_id must be told to be a UUID


def test_a_file_without_the_metadata_is_no_segment(tmp_path: Path) -> None:
    pq.write_table(pa.table({"seq": [1]}), tmp_path / "x")
    with pytest.raises(ArchiveDamageError, match="does not carry a segment's metadata") as caught:
        read_range(pq.ParquetFile(tmp_path / "x"), "the-key")
    assert caught.value.key == "the-key"


@pytest.mark.parametrize(
    ("name", "value"), [("part", b"x"), ("hash_after", b"zz"), ("first_seq", b""), ("tenant_id", b"\xff")]
)
def test_broken_metadata_is_damage(tmp_path: Path, name: str, value: bytes) -> None:
    metadata = {**parquet._to_metadata(RANGE), b"eventstore." + name.encode(): value}
    with pq.ParquetWriter(tmp_path / "x", pa.schema([("seq", pa.int64())])) as writer:
        writer.add_key_value_metadata(metadata)
    with pytest.raises(ArchiveDamageError):
        read_range(pq.ParquetFile(tmp_path / "x"), "k")


def test_a_writer_left_by_an_error_removes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "segment"

    def write_half() -> None:
        with SegmentWriter(path, rows_left=40) as writer:
            writer.write(next(cut_row_groups(batched())))
            assert path.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert not path.exists()
