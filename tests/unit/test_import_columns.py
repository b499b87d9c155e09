"""The columnar mapping of imported rows against a plain row-by-row reference of the same rules."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.clock import from_us, parse_time_us, to_us
from eventstore.errors import InputError
from eventstore.intake.columns import MappedChunk, map_chunk
from eventstore.intake.jsonl import JsonlReader
from eventstore.intake.raw import RawChunk
from eventstore.intake.readers import CsvReader
from eventstore.intake.schema import REQUIRED_FIELDS, ImportOptions, check_columns, check_recorded_at
from eventstore.intake.source import ImportFormat, open_source
from eventstore.intake.times import TIME_MAX_US, TIME_MIN_US
from eventstore.model.event import TEXT_LIMITS

VALUE_BYTES_MAX = 60
OPTIONS = ImportOptions(None, VALUE_BYTES_MAX)
REQUIRED = {"entity_type": "file", "entity_id": "a.c", "action": "update", "actor": "me", "source": "git"}


def raw_chunk(columns: dict[str, Any], *, text_only: bool = False) -> RawChunk:
    batch = pa.RecordBatch.from_pydict(columns)
    rows = np.arange(1, batch.num_rows + 1, dtype=np.int64)
    return RawChunk(batch, rows, None, (), batch.num_rows, 0, text_only=text_only)


def mapped(options: ImportOptions = OPTIONS, **columns: Any) -> MappedChunk:
    """Map rows with those columns, and the required ones filled in where they are not given."""
    count = len(next(iter(columns.values())))
    return map_chunk(raw_chunk({name: [v] * count for name, v in REQUIRED.items()} | columns), options)


def only_reason(chunk: MappedChunk) -> tuple[str | None, str]:
    (reject,) = chunk.rejects
    return reject.column, reject.reason


# --- the reference: one row, plain Python -----------------------------------------------------------


class RefusedError(Exception):
    pass


def reference_text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        if name in REQUIRED_FIELDS:
            raise RefusedError
        return "*" if name == "field" else None
    if not 1 <= len(value) <= TEXT_LIMITS[name] or "\0" in value:
        raise RefusedError
    return str(value)


def reference_time(value: Any) -> int | None:
    if value is None:
        return None
    try:
        at_us = parse_time_us(value) if isinstance(value, str) else to_us(value)
    except InputError:
        raise RefusedError from None
    if not TIME_MIN_US <= at_us <= TIME_MAX_US:
        raise RefusedError
    return at_us


def reference_id(value: str | None) -> bytes | None:
    if value is None:
        return None
    if len(value) not in (32, 36):
        raise RefusedError
    try:
        return uuid.UUID(value).bytes
    except ValueError:
        raise RefusedError from None


def reference_values(row: dict[str, Any], own: dict[str, Any] | None) -> dict[str, Any]:
    """old_value, new_value and metadata as decoded values; None for absent."""
    fields = {*TEXT_LIMITS, "event_id", "occurred_at", "old_value", "new_value", "metadata"}
    extras = {k: v for k, v in row.items() if k not in fields and v is not None}
    if set(extras) & set(own or ()):
        raise RefusedError
    merged = (own or {}) | dict(sorted(extras.items()))
    values = {
        "old_value": row.get("old_value"),
        "new_value": row.get("new_value"),
        "metadata": merged if extras or own is not None else None,
    }
    for value in values.values():
        text = msgspec.json.encode(value)
        if len(text) > VALUE_BYTES_MAX or "\0" in decoded_text(value) or has_nonfinite(value):
            raise RefusedError
    return values


def decoded_text(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(map(decoded_text, [*value.keys(), *value.values()]))
    if isinstance(value, list):
        return "".join(map(decoded_text, value))
    return value if isinstance(value, str) else ""


def has_nonfinite(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_nonfinite, value.values()))
    return isinstance(value, float) and not math.isfinite(value)


def reference(rows: list[dict[str, Any]], own: Any) -> dict[int, dict[str, Any]]:
    """The rows that are taken, by row number."""
    taken = {}
    for number, row in enumerate(rows, start=1):
        try:
            event: dict[str, Any] = {name: reference_text(row, name) for name in TEXT_LIMITS}
            event["event_id"] = reference_id(row.get("event_id"))
            at_us = reference_time(row.get("occurred_at"))
            event["occurred_at"] = None if at_us is None else from_us(at_us)
            event |= reference_values(row, own(row.get("metadata")))
        except RefusedError:
            continue
        taken[number] = event
    return taken


def own_from_text(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        raise RefusedError from None
    if not isinstance(value, dict):
        raise RefusedError
    return value


def own_from_json(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise RefusedError
    return value


def taken_of(chunk: MappedChunk) -> dict[int, dict[str, Any]]:
    """What the mapping took, decoded, by row number; and it must be compact and cover every row."""
    taken = {}
    for number, event in zip(chunk.rows.tolist(), chunk.pending.to_pylist(), strict=True):
        for name in ("old_value", "new_value", "metadata"):
            if event[name] is not None:
                assert msgspec.json.format(event[name], indent=-1) == event[name]
                event[name] = json.loads(event[name])
        taken[number] = event
    rejected = [reject.row for reject in chunk.rejects]
    assert sorted([*taken, *rejected]) == list(range(1, chunk.raw.rows_through + 1))
    assert rejected == sorted(rejected)
    return taken


# --- strategies -------------------------------------------------------------------------------------

ALPHABET = st.sampled_from('ab"\\ \n\t\x01é漢😀,{}:\x00')
SHORT = st.text(ALPHABET, max_size=6)
LONG = st.integers(255, 257).map(lambda n: "é" * n)
TEXTS = st.one_of(st.none(), SHORT, st.sampled_from(["file", "a.c", "me"]), LONG)
SOLID = st.one_of(st.sampled_from(["file", "a.c", "me", "git"]), TEXTS)
IDS = st.one_of(
    st.none(),
    st.uuids().map(str),
    st.uuids().map(lambda u: u.hex.upper()),
    st.sampled_from(["", "x", "{00000000-0000-0000-0000-000000000000}", "0" * 31, "g" * 32]),
)
TIMES = st.one_of(
    st.none(),
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.sampled_from(
        [
            "2020-02-30T00:00:00Z",
            "2020-02-03T04:05:06",
            "2020-02-03 04:05:06.123456789+02:00",
            "2020-02-03",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "soon",
            "",
        ]
    ),
)
OBJECTS = st.sampled_from(
    [
        None,
        "{}",
        '{"k": 1}',
        '{"x": 2}',
        '{"\\u0078":2}',
        '{ "a" : " b " }',
        "[1]",
        "{",
        "",
        "7",
        '{"k":"\\u0000"}',
    ]
)


def column(strategy: Any, count: int) -> Any:
    return st.lists(strategy, min_size=count, max_size=count)


@st.composite
def tables(draw: Any) -> dict[str, list[Any]]:
    count = draw(st.integers(1, 5))
    columns = {name: draw(column(SOLID, count)) for name in REQUIRED_FIELDS}
    value = draw(
        st.sampled_from(
            [
                SHORT | st.none(),
                st.integers(-(2**63), 2**63 - 1) | st.none(),
                st.booleans(),
                st.floats() | st.none(),
            ]
        )
    )
    optional = {
        "field": TEXTS,
        "workspace_id": TEXTS,
        "event_id": IDS,
        "occurred_at": TIMES,
        "old_value": value,
        "new_value": SHORT | st.none(),
        "metadata": OBJECTS,
        "x": SHORT | st.none(),
        'q"': st.integers(0, 9) | st.none(),
    }
    for name, strategy in optional.items():
        if draw(st.booleans()):
            columns[name] = draw(column(strategy, count))
    return columns


def as_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@given(tables())
@settings(max_examples=120, deadline=None)
def test_typed_columns_map_like_the_reference(columns: dict[str, list[Any]]) -> None:
    chunk = map_chunk(raw_chunk(columns), OPTIONS)
    assert taken_of(chunk) == reference(as_rows(columns), own_from_text)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | SHORT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(SHORT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def json_rows(draw: Any) -> list[dict[str, Any]]:
    optional = {
        "field": TEXTS,
        "workspace_id": TEXTS,
        "event_id": IDS,
        "occurred_at": TIMES,
        "old_value": JSON_VALUES,
        "new_value": JSON_VALUES,
        "metadata": st.sampled_from([None, {}, {"k": 1}, {"x": 2}, {"a": " b "}, [1], 7, "{}"]),
        "x": JSON_VALUES,
        "q é": JSON_VALUES,
    }
    row = st.fixed_dictionaries(dict.fromkeys(REQUIRED_FIELDS, SOLID), optional=optional)
    return draw(st.lists(row, min_size=1, max_size=4))


def read_file(path: Path, options: ImportOptions = OPTIONS, *, block_bytes: int = 1 << 20) -> list[RawChunk]:
    with open_source(path, None, lambda done, total: None) as source:
        if source.format is ImportFormat.CSV:
            return list(CsvReader(source, options, block_bytes).chunks(0))
        return list(JsonlReader(source, options, block_bytes).chunks(0))


@given(json_rows(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_json_lines_map_like_the_reference(rows: list[dict[str, Any]], spaced: bool) -> None:
    separators = (" , ", " : ") if spaced else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text("".join(json.dumps(row, separators=separators) + "\n" for row in rows))
        (raw,) = read_file(path)
    assert taken_of(map_chunk(raw, OPTIONS)) == reference(rows, own_from_json)


CSV_TEXTS = st.text(st.sampled_from('ab"\n, é'), min_size=1, max_size=5).filter(str.strip)


@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"entity_id": CSV_TEXTS, "old_value": CSV_TEXTS | st.none(), "x": CSV_TEXTS | st.none()}
            ),
            st.sampled_from(["", "a,b", '"x\ny",b', "1,2,3,4,5,6,7,8,9"]),
        ),
        max_size=40,
    ),
    st.integers(60, 400),
)
@settings(max_examples=80, deadline=None)
def test_csv_rows_and_lines_are_numbered_whatever_lies_between(rows: list[Any], block_bytes: int) -> None:
    text, line, expected = "entity_type,entity_id,action,actor,source,old_value,x\n", 2, []
    for row in rows:
        if isinstance(row, str):
            record, kind = row, "blank" if not row else "bad"
        else:
            fields = ["file", row["entity_id"], "update", "me", "git", row["old_value"], row["x"]]
            record = ",".join("" if f is None else '"' + f.replace('"', '""') + '"' for f in fields)
            kind = "good"
        if kind != "blank":
            expected.append((kind, line, row))
        text += record + "\n"
        line += record.count("\n") + 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        path.write_text(text, newline="")
        chunks = read_file(path, block_bytes=block_bytes)
    found: dict[int, tuple[Any, ...]] = {}
    for raw in chunks:
        chunk = map_chunk(raw, OPTIONS)
        for reject in chunk.rejects:
            found[reject.row] = ("bad", reject.line, reject.data)
        lines = raw.lines[chunk.index].tolist()
        for number, at, event in zip(chunk.rows.tolist(), lines, chunk.pending.to_pylist(), strict=True):
            old, extra = event["old_value"], event["metadata"]
            row = {
                "entity_id": event["entity_id"],
                "old_value": None if old is None else json.loads(old),
                "x": None if extra is None else json.loads(extra)["x"],
            }
            found[number] = ("good", at, row)
    assert found == dict(enumerate(expected, start=1))


# --- single rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", 'b"c', None]), ['"a"', '"b\\"c"', None]),
        (pa.array(["a", "b"]).dictionary_encode(), ['"a"', '"b"']),
        (pa.array(["é"], pa.large_string()), ['"é"']),
        (pa.array([1, -5], pa.int8()), ["1", "-5"]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([0.1, 1.0, 1e300], pa.float64()), ["0.1", "1", "1e+300"]),
        (pa.array([0.1], pa.float32()), ["0.1"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([0], pa.timestamp("ns", "Europe/Zurich")), ['"1970-01-01T00:00:00.000000Z"']),
        (pa.array([1], pa.date32()), ['"1970-01-02"']),
        (pa.array([b"\x00\xff"]), ['"00ff"']),
        (pa.array([[1, None], []]), ["[1,null]", "[]"]),
        (pa.array([{"a": "b"}]), ['{"a":"b"}']),
        (pa.nulls(2), [None, None]),
    ],
)
def test_values_of_every_type(values: pa.Array, expected: list[str | None]) -> None:
    assert mapped(old_value=values).pending.column("old_value").to_pylist() == expected


def test_values_that_json_has_not_are_refused() -> None:
    assert only_reason(mapped(old_value=[math.nan])) == (
        "old_value",
        "is not a finite number, and JSON has no other",
    )


def test_other_columns_go_into_metadata_beside_its_own_members() -> None:
    chunk = mapped(
        metadata=['{"a": 1}', "{}", "{}", None, None, '{"note":"x"}'],
        note=["n", "n", None, "n", None, None],
        age=[3, None, None, None, None, 4],
    )
    assert chunk.pending.column("metadata").to_pylist() == [
        '{"a":1,"age":3,"note":"n"}',
        '{"note":"n"}',
        "{}",
        '{"note":"n"}',
        None,
        '{"note":"x","age":4}',
    ]


def test_a_column_and_a_member_of_one_name_are_refused() -> None:
    column_name, reason = only_reason(mapped(metadata=['{"note":1}'], note=["n"]))
    assert column_name == "note"
    assert "has a member 'note' already" in reason


@pytest.mark.parametrize(
    ("columns", "expected_column", "expected_reason"),
    [
        ({"actor": [None]}, "actor", "is missing"),
        ({"actor": [""]}, "actor", "is empty"),
        ({"workspace_id": [""]}, "workspace_id", "is empty"),
        ({"action": ["é" * 101]}, "action", "more than 100 characters"),
        ({"entity_id": ["a\0b"]}, "entity_id", "NUL"),
        ({"old_value": ["a\0b"]}, "old_value", "NUL"),
        ({"new_value": ["x" * 59]}, "new_value", "more than 60 bytes"),
        ({"event_id": ["x"]}, "event_id", "not a UUID"),
        ({"event_id": [b"123"]}, "event_id", "16 bytes"),
        ({"occurred_at": ["2020-01-01T00:00:00"]}, "occurred_at", "zone"),
        ({"occurred_at": pa.array([2**62], pa.timestamp("s"))}, "occurred_at", "years 1 to 9999"),
        ({"metadata": ["[]"]}, "metadata", "not a JSON object"),
    ],
)
def test_refusals_name_the_column_and_the_reason(
    columns: dict[str, Any], expected_column: str, expected_reason: str
) -> None:
    column_name, reason = only_reason(mapped(**columns))
    assert column_name == expected_column
    assert expected_reason in reason


def test_text_that_is_not_utf8_is_refused_alone() -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )
    chunk = mapped(entity_id=bad)
    assert [reject.row for reject in chunk.rejects] == [2]
    assert chunk.pending.column("entity_id").to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("values", "expected_us"),
    [
        (pa.array([1], pa.timestamp("s")), 1_000_000),
        (pa.array([1500], pa.timestamp("ms", "UTC")), 1_500_000),
        (pa.array([-1], pa.timestamp("ns")), -1),
        (pa.array([1], pa.date32()), 86_400_000_000),
        (pa.array(["1970-01-01T01:00:00.5+01:00"]), 500_000),
    ],
)
def test_times_of_every_type(values: pa.Array, expected_us: int) -> None:
    chunk = mapped(ImportOptions("at", VALUE_BYTES_MAX), at=values, occurred_at=values)
    assert chunk.recorded_us is not None
    assert chunk.recorded_us.tolist() == [expected_us]
    assert chunk.pending.column("occurred_at").cast(pa.int64()).to_pylist() == [expected_us]
    assert chunk.pending.column("metadata").to_pylist() == [None]


def test_a_missing_recorded_time_is_refused() -> None:
    chunk = mapped(ImportOptions("occurred_at", 60), occurred_at=["2020-01-01T00:00:00Z", None])
    assert only_reason(chunk) == ("occurred_at", "is missing; it is to be the recorded time")


def test_ids_of_16_bytes_and_of_the_uuid_type() -> None:
    event_id = uuid.uuid4()
    storage = pa.array([event_id.bytes], pa.binary(16))
    for values in (storage, storage.cast(pa.binary()), pa.ExtensionArray.from_storage(pa.uuid(), storage)):
        assert mapped(event_id=values).pending.column("event_id").to_pylist() == [event_id.bytes]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"actor": None}, "no column 'actor'"),
        ({"action": pa.float64()}, "column 'action' of f is double, not text"),
        ({"occurred_at": pa.int64()}, "column 'occurred_at' of f is int64, not a time"),
        ({"event_id": pa.int64()}, "column 'event_id' of f is int64, not a UUID"),
    ],
)
def test_unusable_columns_are_refused_at_once(columns: dict[str, Any], message: str) -> None:
    types = {name: pa.string() for name in REQUIRED_FIELDS} | columns
    schema = pa.schema([(name, kind) for name, kind in types.items() if kind is not None])
    with pytest.raises(InputError, match=message):
        check_columns(schema, "f", OPTIONS)


def test_two_columns_of_one_name_are_refused() -> None:
    schema = pa.schema([(name, pa.string()) for name in (*REQUIRED_FIELDS, "x", "x")])
    with pytest.raises(InputError, match="two columns named 'x'"):
        check_columns(schema, "f", OPTIONS)


def test_recorded_times_need_a_column_that_exists_and_holds_times() -> None:
    schema = pa.schema([(name, pa.string()) for name in REQUIRED_FIELDS])
    with pytest.raises(InputError, match="no column 'at' for the recorded times"):
        check_columns(schema, "f", ImportOptions("at", 60))
    with pytest.raises(InputError, match="holds no times"):
        check_recorded_at("actor")


@pytest.mark.parametrize("rows_max", [1, 2, 3, 100])
def test_a_split_chunk_covers_the_same_rows(tmp_path: Path, rows_max: int) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(REQUIRED | {"entity_id": str(n)}) if n % 3 else "{" for n in range(1, 12)]
    path.write_text("".join(line + "\n" for line in lines))
    (raw,) = read_file(path)
    parts = list(raw.split(rows_max))
    assert all(part.batch.num_rows <= rows_max for part in parts)
    assert [row for part in parts for row in part.rows.tolist()] == raw.rows.tolist()
    assert [reject.row for part in parts for reject in part.unreadable] == [3, 6, 9]
    for part, following in itertools.pairwise(parts):
        assert part.rows_through == following.rows.tolist()[0] - 1
        assert all(reject.row <= part.rows_through for reject in part.unreadable)
    assert parts[-1].rows_through == 11


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("{", None, "is not JSON"),
        ("7", None, "is not an event: Expected `object`, got `int`"),
        ('{"actor":5}', "actor", "is of the wrong type: Expected `str | null`, got `int`"),
        ('{"actor":5, oops', "actor", "is of the wrong type"),
        (r'{"a\"b":1}', 'a"b', "rename it"),
        ('{"x":' + "[" * 3000 + "]" * 3000 + "}", None, "is nested too deeply"),
        (r'{"x":"\ud800"}', None, "is not JSON"),
    ],
)
def test_lines_that_are_no_event(tmp_path: Path, line: str, column: str | None, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n\n" + json.dumps(REQUIRED) + "\n")
    (raw,) = read_file(path)
    (reject,) = raw.unreadable
    assert (reject.row, reject.line, reject.column) == (1, 1, column)
    assert reason in reject.reason
    assert (raw.rows.tolist(), raw.lines.tolist()) == ([2], [3])
    json.loads(reject.to_json())


def test_more_extra_fields_than_can_be_columns_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(REQUIRED | {f"x{n}": n}) + "\n" for n in range(201)))
    (raw,) = read_file(path)
    assert [(r.row, r.column) for r in raw.unreadable] == [(201, "x200")]
    assert map_chunk(raw, OPTIONS).pending.column("metadata")[199].as_py() == '{"x199":199}'


def test_a_line_beyond_all_bounds_is_rejected_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(REQUIRED)
    path.write_text("\n".join([good, '{"a":"' + "x" * 5000 + '"}', good]))
    chunks = read_file(path, block_bytes=100)
    rejects = [(r.row, r.line, r.reason) for chunk in chunks for r in chunk.unreadable]
    assert rejects == [(2, 2, "is longer than 580 bytes")]
    assert [row for chunk in chunks for row in chunk.rows.tolist()] == [1, 3]
