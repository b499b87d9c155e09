"""What readers hand on: rows as the file has them, each with its number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.intake.rejects import Reject
from eventstore.intake.times import iso_texts

__all__ = ["RawChunk", "line_data"]

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Consecutive rows of a file: those that could be read, as columns, and those that could not.

    `text_only`: every column is binary, holding text (CSV, JSONL). `json`: columns other than text fields
    and times are JSON (JSONL). `bytes_read` is how far in the file this chunk ends, for progress.
    """

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]  # the number of each row of the batch, from 1
    lines: npt.NDArray[np.int64] | None  # and its line; None: the format has no lines
    unreadable: Sequence[Reject]
    rows_through: int  # the last row this covers
    bytes_read: int
    text_only: bool = False
    json: bool = False
    texts: Sequence[bytes] | None = None  # JSONL: each row's own text

    def reject(self, index: int, column: str | None, reason: str) -> Reject:
        """The reject of one row of the batch."""
        line = None if self.lines is None else int(self.lines[index])
        return Reject(int(self.rows[index]), line, column, reason, self._data(index))

    def split(self, rows_max: int) -> Iterator[RawChunk]:
        """The same rows in chunks of at most so many."""
        count = self.batch.num_rows
        if count <= rows_max:
            yield self
            return
        taken = 0
        for start in range(0, count, rows_max):
            stop = min(start + rows_max, count)
            through = self.rows_through if stop == count else int(self.rows[stop]) - 1
            rejects_from = taken
            while taken < len(self.unreadable) and self.unreadable[taken].row <= through:
                taken += 1
            yield RawChunk(
                self.batch.slice(start, stop - start),
                self.rows[start:stop],
                None if self.lines is None else self.lines[start:stop],
                self.unreadable[rejects_from:taken],
                through,
                self.bytes_read,
                self.text_only,
                self.json,
                None if self.texts is None else self.texts[start:stop],
            )

    def after(self, rows_read: int) -> RawChunk | None:
        """What is left when the rows up to that number are done; None for nothing."""
        if self.rows_through <= rows_read:
            return None
        start = int(np.searchsorted(self.rows, rows_read, side="right"))
        return RawChunk(
            self.batch.slice(start),
            self.rows[start:],
            None if self.lines is None else self.lines[start:],
            [reject for reject in self.unreadable if reject.row > rows_read],
            self.rows_through,
            self.bytes_read,
            self.text_only,
            self.json,
            None if self.texts is None else self.texts[start:],
        )

    def through(self, row: int) -> RawChunk:
        """The same chunk, covering rows up to that number only."""
        return replace(self, rows_through=row)

    def _data(self, index: int) -> Any:
        if self.texts is not None:
            return line_data(self.texts[index])
        return {
            name: _plain(column.slice(index, 1))
            for name, column in zip(self.batch.schema.names, self.batch.columns, strict=True)
        }


def line_data(text: bytes) -> Any:
    """A line of JSON for a reject: as JSON if it is in order, else as a string."""
    try:
        _OBJECT.decode(text)
        return msgspec.Raw(text.decode().strip().encode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text.decode(errors="replace")


def _plain(column: pa.Array) -> Any:
    if pa.types.is_timestamp(column.type):
        return iso_texts(column)[0].as_py()
    try:
        value = column[0].as_py()
    except (ValueError, OverflowError, UnicodeDecodeError) as e:
        return f"unreadable: {e}"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
