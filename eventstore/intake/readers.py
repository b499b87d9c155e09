"""Files as chunks of rows, streamed: Parquet and CSV by Arrow, JSON lines in `intake.jsonl`.

Rows are numbered from 1. What cannot even be read as a row is a reject of its own and stops nothing else.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from eventstore.errors import InputError
from eventstore.intake.jsonl import JsonlReader
from eventstore.intake.raw import RawChunk
from eventstore.intake.rejects import Reject
from eventstore.intake.schema import ImportOptions, check_columns
from eventstore.intake.source import ImportFormat, Source
from eventstore.intake.values import text_bytes

__all__ = ["CHUNK_BYTES", "CsvReader", "ParquetReader", "Reader", "open_reader"]

# About how much of a file is taken at a time. With a chunk in the database and two being made ready this
# bounds the memory.
CHUNK_BYTES = 8 << 20


class Reader(Protocol):
    """Reads a file from some row on."""

    def chunks(self, rows_read: int) -> Iterator[RawChunk]:
        """The rows after the first `rows_read`, in order, in chunks of bounded size."""
        ...


def open_reader(source: Source, options: ImportOptions, chunk_rows: int) -> Reader:
    """The reader for a source's format, its columns checked.

    Raises:
        InputError: the file cannot be read, or its columns cannot become events.
    """
    match source.format:
        case ImportFormat.PARQUET:
            return ParquetReader(source, options, chunk_rows)
        case ImportFormat.CSV:
            return CsvReader(source, options, CHUNK_BYTES)
        case ImportFormat.JSONL:
            return JsonlReader(source, options, CHUNK_BYTES)


class ParquetReader:
    """Row groups that were done before are not read again."""

    def __init__(self, source: Source, options: ImportOptions, chunk_rows: int) -> None:
        self._source = source
        try:
            self._file = pq.ParquetFile(source.file)
        except (pa.ArrowInvalid, OSError) as e:
            raise InputError(
                f"{source.name} cannot be read as Parquet: {e}", hint="it may be cut off; get it again"
            ) from e
        check_columns(self._file.schema_arrow, source.name, options)
        described = self._file.metadata
        groups = [described.row_group(i) for i in range(described.num_row_groups)]
        self._group_rows = [group.num_rows for group in groups]
        size_bytes = sum(group.total_byte_size for group in groups)
        row_bytes = size_bytes // max(1, described.num_rows) + 1
        self._batch_rows = max(1, min(chunk_rows, CHUNK_BYTES * 4 // row_bytes))

    def chunks(self, rows_read: int) -> Iterator[RawChunk]:
        total, row, group = sum(self._group_rows), 0, 0
        while group < len(self._group_rows) and row + self._group_rows[group] <= rows_read:
            row += self._group_rows[group]
            group += 1
        remaining = list(range(group, len(self._group_rows)))
        try:
            for batch in self._file.iter_batches(self._batch_rows, row_groups=remaining):
                first, row = row + 1, row + batch.num_rows
                chunk = RawChunk(
                    batch,
                    np.arange(first, row + 1, dtype=np.int64),
                    lines=None,
                    unreadable=(),
                    rows_through=row,
                    bytes_read=self._source.size_bytes * row // max(1, total),
                )
                if (left := chunk.after(rows_read)) is not None:
                    yield left
        except (pa.ArrowInvalid, OSError) as e:
            raise InputError(
                f"{self._source.name} is damaged after row {row}: {e}", hint="get the file again"
            ) from e


class CsvReader:
    """Columns stay bytes until they are checked, so that one row of another encoding stops nothing.

    An unquoted empty field is null. An empty line, or one of nothing but commas, is no row.
    """

    def __init__(self, source: Source, options: ImportOptions, block_bytes: int) -> None:
        self._source = source
        # A row has to fit into a block, whatever its values.
        self._block_bytes = max(block_bytes, 8 * options.value_bytes_max)
        self._invalid: list[pa.csv.InvalidRow] = []
        self._names: list[str] = []
        if source.size_bytes:
            self._names = _header(source)
            check_columns(pa.schema([(name, pa.string()) for name in self._names]), source.name, options)

    def _open(self) -> pa.csv.CSVStreamingReader:
        def keep(row: pa.csv.InvalidRow) -> str:
            self._invalid.append(row)
            return "skip"

        self._invalid = []
        self._source.file.seek(0)
        try:
            return pa.csv.open_csv(
                pa.PythonFile(_Unclosed(self._source.file), mode="r"),
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=self._block_bytes),
                parse_options=pa.csv.ParseOptions(
                    newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(self._names, pa.binary()),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=[""],
                ),
            )
        except pa.ArrowInvalid as e:
            raise self._damaged(0, e) from e

    def chunks(self, rows_read: int) -> Iterator[RawChunk]:
        if not self._source.size_bytes:
            return
        reader = self._open()
        numbers = _CsvNumbers(header_lines=1 + sum(name.count("\n") for name in self._names))
        done = False
        while not done:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                batch, done = pa.RecordBatch.from_pylist([], reader.schema), True
            except pa.ArrowInvalid as e:
                raise self._damaged(numbers.row, e) from e
            chunk = numbers.number(batch, self._invalid, self._source.file.tell(), last=done)
            if (left := chunk.after(rows_read)) is not None:
                yield left

    def _damaged(self, row: int, error: Exception) -> InputError:
        if "straddl" in str(error):
            return InputError(
                f"{self._source.name}: after row {row} comes one of over {self._block_bytes} bytes",
                hint="a quote that is opened there is perhaps never closed",
            )
        return InputError(
            f"{self._source.name} cannot be read as CSV after row {row}: {error}",
            hint="it needs a header line, commas between fields, and double quotes around fields with commas",
        )


def _header(source: Source) -> list[str]:
    """The names of the columns, from the first record."""
    source.file.seek(0)
    first = source.file.read(3)
    source.file.seek(3 if first == codecs.BOM_UTF8 else 0)
    try:
        return next(csv.reader(line.decode() for line in source.file), [])
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(
            f"the header line of {source.name} cannot be read: {e}", hint="save the file as UTF-8 text"
        ) from e


class _Unclosed:
    """Lets Arrow read a file without closing it at the end."""

    closed = False

    def __init__(self, file: object) -> None:
        self.read = file.read  # type: ignore[attr-defined]

    def close(self) -> None: ...


class _CsvNumbers:
    """Numbers rows and lines. Arrow gives readable rows in batches, and apart from them the unreadable
    ones by their position, counted from 1 with the header and with empty lines."""

    def __init__(self, header_lines: int) -> None:
        self.row = 0
        self._position = 1
        self._line = header_lines
        self._invalid_done = 0

    def number(
        self, batch: pa.RecordBatch, invalid: list[pa.csv.InvalidRow], bytes_read: int, *, last: bool
    ) -> RawChunk:
        waiting = invalid[self._invalid_done :]
        # The positions of this batch's rows: the next ones that are not unreadable.
        positions = np.arange(1, batch.num_rows + 1, dtype=np.int64) + self._position
        taken = 0
        for bad in waiting:
            place = bad.number - self._position - 1 - taken
            if place >= batch.num_rows and not last:
                break
            positions[max(0, place) :] += 1
            taken += 1
        waiting = waiting[:taken]
        self._invalid_done += taken
        self._position += batch.num_rows + taken

        blank = _blank(batch)
        bad_positions = np.array([bad.number for bad in waiting], dtype=np.int64)
        bad_lines = np.array([1 + bad.text.count("\n") for bad in waiting], dtype=np.int64)
        bad_blank = np.array([not bad.text.strip() for bad in waiting], dtype=np.bool_)
        order = np.argsort(np.concatenate([positions, bad_positions]), kind="stable")
        heights = np.concatenate([_heights(batch), bad_lines])[order]
        counted = np.concatenate([~blank, ~bad_blank])[order]
        lines, rows = np.empty(len(order), dtype=np.int64), np.empty(len(order), dtype=np.int64)
        lines[order] = self._line + 1 + np.cumsum(heights) - heights
        rows[order] = self.row + np.cumsum(counted)
        self._line += int(heights.sum())
        self.row += int(counted.sum())

        count = batch.num_rows
        rejects = [
            Reject(
                int(row),
                int(line),
                None,
                f"has {bad.actual_columns} fields where the header has {bad.expected_columns}",
                bad.text,
            )
            for bad, row, line, empty in zip(waiting, rows[count:], lines[count:], bad_blank, strict=True)
            if not empty
        ]
        kept = batch.filter(pa.array(~blank)) if blank.any() else batch
        return RawChunk(
            kept, rows[:count][~blank], lines[:count][~blank], rejects, self.row, bytes_read, text_only=True
        )


def _blank(batch: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    blank = np.ones(batch.num_rows, dtype=np.bool_)
    for column in batch.columns:
        if not blank.any():
            break
        blank &= column.is_null().to_numpy(zero_copy_only=False)
    return blank


def _heights(batch: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many lines each row takes."""
    heights = np.ones(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if (text_bytes(column) == ord("\n")).any():
            breaks = pc.fill_null(pc.count_substring(column, "\n"), 0)
            heights += breaks.to_numpy(zero_copy_only=False)
    return heights
