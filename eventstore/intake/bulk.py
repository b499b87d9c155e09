"""Request bodies of columns → events: an Arrow IPC stream, or a Parquet file.

The columns are those of events, under their names; JSON values are texts of JSON, as segments hold them,
or columns of numbers, truth values and times. The body is bounded by what it takes once it is decoded:
that is read from its own tables first, and a dictionary is never written out before its length is known.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eventstore.errors import InputError, InvalidEventError, Place, TooLargeError
from eventstore.intake.columns import map_whole
from eventstore.intake.ipc import declared_bytes
from eventstore.intake.raw import RawChunk
from eventstore.intake.schema import FIELDS, ImportOptions, check_columns, is_bytes, is_string
from eventstore.intake.values import compact_texts, json_column, text_bytes
from eventstore.intake.verdicts import Verdicts, as_mask
from eventstore.model.event import VALUE_FIELDS

__all__ = ["DECODED_FACTOR", "EVENTS_MAX", "parse_arrow", "parse_parquet"]

# A body may take this many times EVENTSTORE_BODY_BYTES_MAX once it is decoded.
DECODED_FACTOR = 4
EVENTS_MAX = 1_000_000  # of one request: they keep other writers of the tenant waiting
_TEXT_BYTES_MAX = 2**31 - 1  # an Arrow string column has offsets of 32 bits
_BATCH_ROWS = 16_384
_RAW = msgspec.json.Decoder(msgspec.Raw)
_SPLIT_HINT = "send it in several requests"


def parse_arrow(body: bytes, *, value_bytes_max: int, decoded_bytes_max: int) -> pa.RecordBatch:
    """The events of an Arrow IPC stream, as pending events.

    Raises:
        InvalidEventError: names the column, and the event if it is one's fault.
        TooLargeError: it is too large once it is decoded.
    """
    source = pa.py_buffer(body)
    try:
        if declared_bytes(source) > decoded_bytes_max:
            raise _too_large(decoded_bytes_max)
        with pa.ipc.open_stream(source) as stream:
            _check(stream.schema)
            return _events(_checked(stream), stream.schema, value_bytes_max, decoded_bytes_max)
    except (pa.ArrowException, OSError, EOFError, MemoryError) as e:
        raise InvalidEventError(f"the body is no Arrow IPC stream: {_first_line(e)}") from e


def parse_parquet(body: bytes, *, value_bytes_max: int, decoded_bytes_max: int) -> pa.RecordBatch:
    """The events of a Parquet file, as pending events; raises as `parse_arrow` does."""
    source = pa.BufferReader(body)
    try:
        described = pq.ParquetFile(source).metadata
        groups = [described.row_group(i) for i in range(described.num_row_groups)]
        sizes = [
            group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)
        ]
        if sum(sizes) > decoded_bytes_max or any(size < 0 for size in sizes):
            raise _too_large(decoded_bytes_max)
        if described.num_rows > EVENTS_MAX:
            raise _too_many()
        schema = described.schema.to_arrow_schema()
        _check(schema)
        # Texts stay in their dictionaries: written out they may be any number of times larger.
        texts = [field.name for field in schema if is_string(field.type) or is_bytes(field.type)]
        file = pq.ParquetFile(source, read_dictionary=texts, pre_buffer=False)
        batches = file.iter_batches(_BATCH_ROWS, use_threads=False)
        return _events(batches, schema, value_bytes_max, decoded_bytes_max)
    except (pa.ArrowException, OSError, EOFError, MemoryError) as e:
        raise InvalidEventError(f"the body is no Parquet file: {_first_line(e)}") from e


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _too_large(limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the body takes more than {limit_bytes} bytes once it is decoded",
        limit_bytes=limit_bytes,
        hint=_SPLIT_HINT,
    )


def _too_many() -> InvalidEventError:
    return InvalidEventError(f"the body has more than {EVENTS_MAX} events", hint=_SPLIT_HINT)


def _check(schema: pa.Schema) -> None:
    """Refuse columns that are no event's, and types that its fields cannot have."""
    for field in schema:
        place = Place(field=field.name)
        if field.name not in FIELDS:
            raise InvalidEventError(
                f"{place}: an event has no such field",
                place=place,
                hint="leave out what the store gives (seq, recorded_at, hash); see docs/reference/events.md",
            )
        kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
            raise InvalidEventError(
                f"{place}: columns of {kind} are not taken", place=place, hint="write it as texts of JSON"
            )
    try:
        check_columns(schema, "the body", ImportOptions(None, 0))
    except InputError as e:
        raise InvalidEventError(e.message, hint=e.hint) from e


def _checked(stream: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a stream, which may come from anybody: none of its offsets is to be followed before
    all have been checked."""
    for batch in stream:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as e:
                place = Place(field=name)
                raise InvalidEventError(f"{place}: {_first_line(e)}", place=place) from e
        yield batch


def _events(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, value_bytes_max: int, decoded_bytes_max: int
) -> pa.RecordBatch:
    plain: list[list[pa.Array]] = [[] for _ in schema]
    count = size_bytes = 0
    limit_bytes = min(decoded_bytes_max, _TEXT_BYTES_MAX)
    for batch in batches:
        count += batch.num_rows
        size_bytes += sum(map(_written_out_bytes, batch.columns))
        if count > EVENTS_MAX:
            raise _too_many()
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        for parts, column in zip(plain, batch.columns, strict=True):
            parts.append(_written_out(column))
    if count == 0:
        raise InvalidEventError("the body has no events", hint="send at least one")
    columns = {
        name: pa.concat_arrays(parts) if len(parts) > 1 else parts[0]
        for name, parts in zip(schema.names, plain, strict=True)
    }
    for name in VALUE_FIELDS:
        if name in columns:
            columns[name] = _json_texts(columns[name], name, value_bytes_max)
    raw = RawChunk(
        pa.RecordBatch.from_pydict(columns),
        np.arange(1, count + 1, dtype=np.int64),
        lines=None,
        unreadable=(),
        rows_through=count,
        bytes_read=0,
        json=True,
    )
    return map_whole(raw, ImportOptions(None, value_bytes_max))


def _written_out_bytes(column: pa.Array) -> int:
    """What a column takes without dictionaries and shared texts."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        lengths = _lengths(column.dictionary)
        if lengths is None:
            return int(8 * len(column))
        return int(lengths[pc.drop_null(column.indices).to_numpy(zero_copy_only=False)].sum())
    lengths = _lengths(column)
    return int(column.nbytes) if lengths is None else int(lengths.sum())


def _lengths(column: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """The bytes of each text; None: they are no texts."""
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        views = np.frombuffer(column.buffers()[1] or b"", dtype=np.int32)[::4]
        found = views[column.offset : column.offset + len(column)].astype(np.int64)
        return np.where(as_mask(column.is_valid()), found, 0)
    if not (is_string(column.type) or is_bytes(column.type)) or pa.types.is_null(column.type):
        return None
    return np.asarray(
        pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False), dtype=np.int64
    )


def _written_out(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    return column.cast(pa.binary()) if pa.types.is_binary_view(kind) else column


def _json_texts(column: pa.Array, name: str, value_bytes_max: int) -> pa.Array:
    """A column of values as compact texts of JSON; the null of JSON is none."""
    if not pa.types.is_string(column.type):
        verdicts = Verdicts(len(column))
        texts = json_column(column, name, verdicts)
        if verdicts.reasons:
            index = min(verdicts.reasons)
            raise _invalid(index, *verdicts.reasons[index])
        return texts
    _check_sizes(column, name, value_bytes_max)
    _check_json(column, name)
    texts = compact_texts(column)
    return pc.if_else(pc.equal(texts, "null"), pa.scalar(None, pa.string()), texts)


def _check_sizes(texts: pa.Array, name: str, value_bytes_max: int) -> None:
    over = as_mask(pc.greater(pc.binary_length(texts), value_bytes_max))
    if over.any():
        index = int(np.flatnonzero(over)[0])
        place = Place(field=name, index=index)
        raise TooLargeError(
            f"{place}: has more than {value_bytes_max} bytes of JSON, which is the limit",
            limit_bytes=value_bytes_max,
            place=place,
            hint="store large values elsewhere and record a reference and a digest",
        )


def _check_json(texts: pa.Array, name: str) -> None:
    """Each text has to be one JSON value. All are decoded in one go, as lines: what the decoder found is
    right if every value is as long as the text that it has to be. (A text with white space might hide the
    end of its line, so those are looked at one by one.)"""
    given = texts.drop_null()
    if not (text_bytes(given) <= ord(" ")).any():
        lines = pc.binary_join_element_wise(given, "", "\n")
        try:
            found = [len(value) for value in _RAW.decode_lines(text_bytes(lines).tobytes())]
        except (msgspec.DecodeError, RecursionError):
            found = []
        if np.array_equal(found, pc.binary_length(given).to_numpy(zero_copy_only=False)):
            return
    for index, text in enumerate(texts.to_pylist()):
        if text is not None:
            try:
                _RAW.decode(text)
            except RecursionError as e:
                raise _invalid(index, name, "is nested too deeply; flatten it") from e
            except msgspec.DecodeError as e:
                raise _invalid(index, name, f"is not JSON: {e}") from e


def _invalid(index: int, name: str, reason: str) -> InvalidEventError:
    place = Place(field=name, index=index)
    return InvalidEventError(
        f"{place}: {reason}", place=place, hint='values are texts of JSON: a text is "in quotes"'
    )
