"""A file's columns as events: fields by name, values as JSON, everything else into metadata.

Rows are checked a column at a time; only rows that are refused are ever looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.columns.schema import TIMESTAMP
from eventstore.errors import InvalidEventError, Place
from eventstore.hot.batch import PENDING_SCHEMA
from eventstore.intake.raw import RawChunk
from eventstore.intake.rejects import Reject
from eventstore.intake.schema import FIELDS, REQUIRED_FIELDS, ImportOptions, is_bytes, is_string
from eventstore.intake.times import time_column, uuid_texts
from eventstore.intake.values import (
    compact_texts,
    json_column,
    merge_metadata,
    object_texts,
    refuse_unstorable,
    text_bytes,
)
from eventstore.intake.verdicts import Verdicts, as_mask
from eventstore.model.event import TEXT_LIMITS, VALUE_FIELDS, WHOLE_ENTITY

__all__ = ["MappedChunk", "map_chunk", "map_whole"]


@dataclass(frozen=True, slots=True)
class MappedChunk:
    """Rows of a file as pending events (`PENDING_SCHEMA`), and the rows that cannot be any.

    `index` says for each event which row of `raw` it is. `recorded_us` is None when the file does not
    bring recorded times.
    """

    raw: RawChunk
    pending: pa.RecordBatch
    index: npt.NDArray[np.int64]
    recorded_us: npt.NDArray[np.int64] | None
    rejects: Sequence[Reject]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row number of each event."""
        return self.raw.rows[self.index]


def map_chunk(raw: RawChunk, options: ImportOptions) -> MappedChunk:
    """Map and check the rows of a chunk."""
    mapper, columns, recorded_us = _map(raw, options)
    return mapper.finish(columns, recorded_us)


def map_whole(raw: RawChunk, options: ImportOptions) -> pa.RecordBatch:
    """Map and check rows of which all have to be right, as pending events.

    Raises:
        InvalidEventError: names the first that is not, counted from 0, and its column.
    """
    mapper, columns, _ = _map(raw, options)
    found = mapper.first_refused()
    if found is not None:
        index, name, reason = found
        place = Place(field=name, index=index)
        raise InvalidEventError(f"{place}: {reason}", place=place, hint="see docs/reference/events.md")
    return mapper.finish(columns, None).pending


def _map(
    raw: RawChunk, options: ImportOptions
) -> tuple[_Mapper, dict[str, pa.Array], npt.NDArray[np.int64] | None]:
    mapper = _Mapper(raw, options)
    columns = {name: mapper.text(name) for name in TEXT_LIMITS}
    columns["event_id"] = mapper.event_ids()
    columns["occurred_at"], recorded_us = mapper.times()
    columns["old_value"], columns["new_value"] = mapper.value("old_value"), mapper.value("new_value")
    columns["metadata"] = mapper.metadata()
    for name in VALUE_FIELDS:
        mapper.check_value(columns[name], name)
    return mapper, columns, recorded_us


class _Mapper:
    def __init__(self, raw: RawChunk, options: ImportOptions) -> None:
        self._raw = raw
        self._options = options
        self._count = raw.batch.num_rows
        self._verdicts = Verdicts(self._count)
        self._columns = dict(zip(raw.batch.schema.names, raw.batch.columns, strict=True))

    def text(self, name: str) -> pa.Array:
        column = self._texts(name)
        verdicts = self._verdicts
        if column.null_count == len(column) and name not in REQUIRED_FIELDS:
            return pa.repeat(pa.scalar(WHOLE_ENTITY), self._count) if name == "field" else column
        sizes = pc.binary_length(column)
        if name in REQUIRED_FIELDS and column.null_count:
            verdicts.refuse(column.is_null(), name, "is missing; every event needs it")
        required = "every event needs it" if name in REQUIRED_FIELDS else "leave it out if there is none"
        verdicts.refuse(pc.equal(sizes, 0), name, f"is empty; {required}")
        limit = TEXT_LIMITS[name]
        if (pc.max(sizes).as_py() or 0) > limit:  # bytes are never fewer than characters
            over = pc.greater(pc.utf8_length(column), limit)
            verdicts.refuse(over, name, f"has more than {limit} characters, which is the limit")
        if not text_bytes(column).all():
            verdicts.refuse(pc.match_substring(column, "\0"), name, "has a NUL character; remove it")
        return pc.fill_null(column, WHOLE_ENTITY) if name == "field" else column

    def event_ids(self) -> pa.Array:
        column = self._plain("event_id")
        if not is_bytes(column.type) or self._raw.text_only:
            return uuid_texts(self._texts("event_id"), "event_id", self._verdicts)
        data = column.cast(pa.binary())
        fits = pc.equal(pc.binary_length(data), 16)
        self._verdicts.refuse(pc.invert(fits), "event_id", "is not a UUID; it has to be 16 bytes long")
        return pc.if_else(fits, data, pa.scalar(None, pa.binary())).cast(pa.binary(16))

    def times(self) -> tuple[pa.Array, npt.NDArray[np.int64] | None]:
        """occurred_at, and the recorded times if the file brings them."""
        us, given = time_column(self._timed("occurred_at"), "occurred_at", self._verdicts)
        occurred = pa.array(us, pa.int64(), mask=~given).cast(TIMESTAMP)
        name = self._options.recorded_at_column
        if name is None:
            return occurred, None
        if name != "occurred_at":
            us, given = time_column(self._timed(name), name, self._verdicts)
        self._verdicts.refuse(~given, name, "is missing; it is to be the recorded time")
        return occurred, us

    def value(self, name: str) -> pa.Array:
        if self._raw.json:
            return compact_texts(self._texts(name))
        column = self._plain(name)
        return json_column(self._decoded(column, name), name, self._verdicts)

    def metadata(self) -> pa.Array:
        if self._raw.json:
            own = compact_texts(self._texts("metadata"))
            is_object = pc.starts_with(own, "{")
            self._verdicts.refuse(pc.invert(is_object), "metadata", "is not a JSON object")
            own = pc.if_else(is_object, own, pa.scalar(None, pa.string()))
        else:
            column = self._plain("metadata")
            is_text = self._raw.text_only or is_string(column.type)
            texts = self._texts("metadata") if is_text else json_column(column, "metadata", self._verdicts)
            own = object_texts(texts, "metadata", self._verdicts)
        extras = {
            name: self.value(name)
            for name in self._columns
            if name not in FIELDS and name != self._options.recorded_at_column
        }
        return merge_metadata(own, extras, self._verdicts)

    def check_value(self, texts: pa.Array, name: str) -> None:
        limit = self._options.value_bytes_max
        over = pc.greater(pc.binary_length(texts), limit)
        self._verdicts.refuse(
            over, name, f"has more than {limit} bytes of JSON; store it elsewhere and record a reference"
        )
        refuse_unstorable(texts, name, self._verdicts)

    def first_refused(self) -> tuple[int, str, str] | None:
        """The first row that cannot be taken, the column, and why."""
        reasons = self._verdicts.reasons
        return (first := min(reasons), *reasons[first]) if reasons else None

    def finish(self, columns: dict[str, pa.Array], recorded_us: npt.NDArray[np.int64] | None) -> MappedChunk:
        raw, verdicts = self._raw, self._verdicts
        pending = pa.RecordBatch.from_arrays(
            [columns[name] for name in PENDING_SCHEMA.names],
            schema=pa.schema([field.with_nullable(True) for field in PENDING_SCHEMA]),
        )
        index = np.arange(self._count, dtype=np.int64)
        rejects = list(raw.unreadable)
        if verdicts.reasons:
            pending, index = pending.filter(verdicts.kept()), index[~verdicts.refused]
            recorded_us = None if recorded_us is None else recorded_us[~verdicts.refused]
            rejects += [raw.reject(i, *reason) for i, reason in verdicts.reasons.items()]
            rejects.sort(key=lambda reject: reject.row)
        pending = pa.RecordBatch.from_arrays(pending.columns, schema=PENDING_SCHEMA)
        return MappedChunk(raw, pending, index, recorded_us, rejects)

    def _plain(self, name: str) -> pa.Array:
        """The column without encodings that mean nothing here; nulls where the file has none."""
        column = self._columns.get(name)
        if column is None:
            return pa.nulls(self._count)
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column

    def _decoded(self, column: pa.Array, name: str) -> pa.Array:
        """Anything that is text as `string`, checked to be UTF-8; other types as they are."""
        kind = column.type
        if pa.types.is_null(kind):
            return column.cast(pa.string())
        if is_bytes(kind):
            if not self._raw.text_only:
                hexadecimal = [None if data is None else data.hex() for data in column.to_pylist()]
                return pa.array(hexadecimal, pa.string())
        elif not is_string(kind):
            return column
        try:
            if not pa.types.is_string(kind):
                column = column.cast(pa.string())
            column.validate(full=True)
        except pa.ArrowInvalid:
            return self._utf8_alone(column.cast(pa.binary()), name)
        return column

    def _utf8_alone(self, column: pa.Array, name: str) -> pa.Array:
        texts: list[str | None] = []
        for index, data in enumerate(column.to_pylist()):
            try:
                texts.append(None if data is None else data.decode())
            except UnicodeDecodeError:
                self._verdicts.refuse_row(index, name, "is not UTF-8; save the file in that encoding")
                texts.append(None)
        return pa.array(texts, pa.string())

    def _texts(self, name: str) -> pa.Array:
        column = self._plain(name)
        if pa.types.is_integer(column.type):
            return column.cast(pa.string())
        texts = self._decoded(column, name)
        # CSV cannot tell an empty text from none; only values keep the difference.
        return _null_if_empty(texts) if self._raw.text_only and not self._raw.json else texts

    def _timed(self, name: str) -> pa.Array:
        column = self._plain(name)
        is_text = is_string(column.type) or is_bytes(column.type) or pa.types.is_null(column.type)
        return self._texts(name) if is_text else column


def _null_if_empty(texts: pa.Array) -> pa.Array:
    empty = pc.equal(pc.binary_length(texts), 0)
    if not as_mask(empty).any():
        return texts
    return pc.if_else(empty, pa.scalar(None, pa.string()), texts)
