"""Columns of events as text: the same as one event at a time would give, and cells that are no formulas."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.clock import to_iso
from eventstore.columns.text import formula_safe, json_string, time_text
from eventstore.model.event import TEXT_FIELDS, Event
from eventstore.query.render import csv_header, csv_lines, event_views, json_array, to_json_lines
from tests.property.strategies import FIRST_US, LAST_US, events, examples, texts, times
from tests.unit.helpers import as_batch

# What a spreadsheet would take for the beginning of a formula, wherever it may have a cell begin.
FORMULA = re.compile('(^|[;\\t\\r\\n])[ "]*[=+\\-@＝＋－＠]|^[ "]*[\\t\\r\\n]')

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "export.md"
_DOCUMENTED: dict[str, Any] = {}
exec(_PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], _DOCUMENTED)

risky = st.text(st.sampled_from("=+-@\t\r\n;,'\"  a＝－｜é0"), max_size=8)


def undo(text: str) -> str:
    """As the documentation gives it."""
    found: str = _DOCUMENTED["undo"](text)
    return found


def safe(*values: str | None) -> list[str | None]:
    found: list[str | None] = formula_safe(pa.array(values, pa.string())).to_pylist()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\r", "'\r"),
        ("\nx", "'\nx"),
        ("＝1", "'＝1"),
        ('"=1"', '"\'=1"'),
        ("'=1", "''=1"),
        ("  =1", "  '=1"),
        ('"\' " =1', "\"' \" '=1"),
        ("a;=cmd|' /C calc'!A0", "a;'=cmd|' /C calc'!A0"),
        ("a\n-1;@x", "a\n'-1;'@x"),
        # These begin no cell, wherever the line is split.
        ("a=1", "a=1"),
        ("[1,-2]", "[1,-2]"),
        ("a; b", "a; b"),
        ("\ufeffx", "\ufeffx"),
        ("|x", "|x"),
        ("", ""),
        ("'", "'"),
        ("   ", "   "),
        (" " * 50 + "=1", " " * 50 + "'=1"),
    ],
)
def test_signs_that_begin_a_formula_get_an_apostrophe(text: str, expected: str) -> None:
    # Between others, and at another place in its column's bytes.
    assert safe("before", text, None, text, "after") == ["before", expected, None, expected, "after"]
    assert formula_safe(pa.array(["=", text, None])[1:]).to_pylist() == [expected, None]
    assert undo(expected) == text


@examples(300)
@given(st.lists(st.none() | risky | texts, max_size=6))
def test_no_cell_is_a_formula_and_each_can_be_undone(values: list[str | None]) -> None:
    for value, shown in zip(values, safe(*values), strict=True):
        if value is None or shown is None:
            assert value == shown
            continue
        assert not FORMULA.search(shown)
        assert undo(shown) == value
        if not FORMULA.search(value.replace("'", "")):
            assert shown == value


@examples(300)
@given(st.lists(st.none() | risky | st.text(st.characters(max_codepoint=0x7F)) | texts, max_size=6))
def test_json_strings_are_escaped_as_one_by_one(values: list[str | None]) -> None:
    found = json_string(pa.array(["\0", *values], pa.string())[1:]).to_pylist()
    assert found == [None if v is None else msgspec.json.encode(v)[1:-1].decode() for v in values]


@examples(100)
@given(st.lists(times, min_size=1, max_size=20))
def test_times_are_shown_as_one_by_one(given_us: list[int]) -> None:
    column = pa.array([FIRST_US, *given_us, LAST_US, 0, -1], pa.timestamp("us", tz="UTC"))[1:]
    found = [row.tobytes().decode() for row in time_text(column)]
    assert found == [to_iso(us) for us in (*given_us, LAST_US, 0, -1)]


@examples(60)
@given(st.lists(events, max_size=8), st.integers(0, 3))
def test_json_lines_are_those_of_the_views(found: list[Event], start: int) -> None:
    table = pa.Table.from_batches([as_batch(found), as_batch(found[::-1])]).slice(start)
    views = list(event_views(table))
    assert to_json_lines(table) == msgspec.json.Encoder().encode_lines(views)
    assert json_array(table) == msgspec.Raw(msgspec.json.encode(views))


@examples(60)
@given(st.lists(events, max_size=8))
def test_csv_is_read_as_it_was_written(found: list[Event]) -> None:
    """Quotes, line ends and NULs in texts; null is told from an empty text by its quotes."""
    table = pa.Table.from_batches([as_batch(found)])
    data = csv_header() + b"".join(csv_lines(table))
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert len(rows) == len(found)
    for event, view, row in zip(found, event_views(table), rows, strict=True):
        assert row["seq"] == str(event.seq)
        for name in ("event_id", "recorded_at", "occurred_at", "hash"):
            assert row[name] == getattr(view, name)
        assert {name: undo(row[name]) for name in TEXT_FIELDS} == {
            name: getattr(event, name) or "" for name in TEXT_FIELDS
        }
    if found:
        empty = pa.Table.from_batches([as_batch(found[:1])])
        for name, value in (("workspace_id", None), ("metadata", "")):
            at = empty.schema.get_field_index(name)
            empty = empty.set_column(at, empty.field(at), pa.array([value], pa.string()))
        assert b"".join(csv_lines(empty)).endswith(b',,"","%s"\n' % found[0].hash.hex().encode())
