"""JSON lines as chunks of rows. A line that is no JSON object is a reject, with its number."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from eventstore.hot.batch import PENDING_SCHEMA
from eventstore.intake.raw import RawChunk, line_data
from eventstore.intake.rejects import Reject
from eventstore.intake.schema import ImportOptions
from eventstore.intake.source import Source
from eventstore.model.event import VALUE_FIELDS

__all__ = ["JsonlReader"]

EXTRA_FIELDS_MAX = 200
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_ODD = re.compile(r'["\\\x00-\x1f]')
_PATH = re.compile(r"(.*) - at `\$\.(.*)`", re.DOTALL)
_BOM = b"\xef\xbb\xbf"


class JsonlReader:
    """Lines are decoded into a struct made for this file: the event fields, and whatever else its objects
    are found to have. Empty lines are passed over."""

    def __init__(self, source: Source, options: ImportOptions, block_bytes: int) -> None:
        self._source = source
        self._block_bytes = block_bytes
        self._line_bytes_max = 8 * options.value_bytes_max + block_bytes
        texts = [name for name in PENDING_SCHEMA.names if name not in VALUE_FIELDS]
        if options.recorded_at_column is not None and options.recorded_at_column not in texts:
            texts.append(options.recorded_at_column)
        self._texts = texts
        self._raws = list(VALUE_FIELDS)
        self._decoder = self._make_decoder()

    def chunks(self, rows_read: int) -> Iterator[RawChunk]:
        row, line = 0, 0
        for lines, bytes_read in self._blocks():
            kept = [(number, text) for number, text in enumerate(lines, line + 1) if text and text.strip()]
            line += len(lines)
            first, row = row + 1, row + len(kept)
            if row > rows_read:
                skipped = max(0, rows_read - first + 1)
                yield self._decode(kept[skipped:], first + skipped, bytes_read)

    def _blocks(self) -> Iterator[tuple[Sequence[bytes], int]]:
        """Whole lines, about a block at a time; of a line beyond all bounds only its beginning."""
        file = self._source.file
        file.seek(0)
        rest, dropping, read = b"", False, 0
        while block := file.read(self._block_bytes):
            if read == 0:
                block = block.removeprefix(_BOM)
            read = file.tell()
            if dropping:
                end = block.find(b"\n")
                if end < 0:
                    continue
                block, dropping = block[end:], False
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > self._line_bytes_max:
                rest, dropping = rest[: self._line_bytes_max], True
            if lines:
                yield lines, read
        if rest:
            yield [rest], read

    def _decode(self, numbered: Sequence[tuple[int, bytes]], first_row: int, bytes_read: int) -> RawChunk:
        good: list[Any] = []
        while True:
            known = len(self._raws)
            try:
                good = [self._decoder.decode(text) for _, text in numbered]
                bad: dict[int, tuple[str | None, str]] = {}
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                good, bad = self._one_by_one([text for _, text in numbered])
            if len(self._raws) == known:
                break
            # A field not met before: the struct has it now, so the block is decoded again.
        count = len(numbered)
        rows = np.arange(first_row, first_row + count, dtype=np.int64)
        lines = np.fromiter((number for number, _ in numbered), dtype=np.int64, count=count)
        readable = np.ones(count, dtype=np.bool_)
        readable[list(bad)] = False
        rejects = [
            Reject(
                int(rows[i]),
                int(lines[i]),
                column,
                reason,
                line_data(numbered[i][1]),
            )
            for i, (column, reason) in bad.items()
        ]
        return RawChunk(
            self._columns(good),
            rows[readable],
            lines[readable],
            rejects,
            first_row + count - 1,
            bytes_read,
            text_only=True,
            json=True,
            texts=[text for i, (_, text) in enumerate(numbered) if i not in bad],
        )

    def _one_by_one(self, texts: Sequence[bytes]) -> tuple[list[Any], dict[int, tuple[str | None, str]]]:
        good: list[Any] = []
        bad: dict[int, tuple[str | None, str]] = {}
        for index, text in enumerate(texts):
            try:
                good.append(self._decoder.decode(text))
            except msgspec.ValidationError as e:
                if (unknown := _UNKNOWN.search(str(e))) is None:
                    bad[index] = _place(str(e))
                elif _ODD.search(unknown[1]):
                    # msgspec knows no struct fields of such names.
                    bad[index] = (
                        unknown[1],
                        "is a field's name with a quote, a backslash or a control character; rename it",
                    )
                elif len(self._raws) < EXTRA_FIELDS_MAX + len(VALUE_FIELDS):
                    self._raws.append(unknown[1])
                    self._decoder = self._make_decoder()
                    return [], {}
                else:
                    bad[index] = (
                        unknown[1],
                        f"is one more than {EXTRA_FIELDS_MAX} different fields that are no event field;"
                        f" put such fields into metadata",
                    )
            except msgspec.DecodeError as e:
                if len(text) >= self._line_bytes_max:
                    bad[index] = (None, f"is longer than {self._line_bytes_max} bytes")
                else:
                    bad[index] = (None, f"is not JSON: {str(e).removeprefix('JSON is malformed: ')}")
            except UnicodeDecodeError:
                bad[index] = (None, "is not UTF-8; save the file in that encoding")
            except RecursionError:
                bad[index] = (None, "is nested too deeply")
        return good, bad

    def _make_decoder(self) -> msgspec.json.Decoder[Any]:
        fields: list[Any] = [(f"t{i}", str | None, None) for i in range(len(self._texts))]
        fields += [(f"r{i}", msgspec.Raw, msgspec.Raw()) for i in range(len(self._raws))]
        rename = {f"t{i}": name for i, name in enumerate(self._texts)}
        rename |= {f"r{i}": name for i, name in enumerate(self._raws)}
        row = msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, gc=False)
        return msgspec.json.Decoder(row)

    def _columns(self, decoded: Sequence[Any]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {}
        for i, name in enumerate(self._texts):
            columns[name] = pa.array(list(map(operator.attrgetter(f"t{i}"), decoded)), pa.string())
        for i, name in enumerate(self._raws):
            values = [
                None if data == b"null" else data or None
                for data in map(bytes, map(operator.attrgetter(f"r{i}"), decoded))
            ]
            columns[name] = pa.array(values, pa.binary())
        return pa.RecordBatch.from_pydict(columns)


def _place(message: str) -> tuple[str | None, str]:
    """The column and the reason in a message of msgspec's, such as "Expected `str`, got `int` - at `$.a`"."""
    found = _PATH.fullmatch(message)
    if found is None:
        return None, f"is not an event: {message}"
    return found[2], f"is of the wrong type: {found[1]}"
