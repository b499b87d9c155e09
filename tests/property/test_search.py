"""Free text means the same in Postgres, in DuckDB, and to a person who typed it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import duckdb
import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventstore.errors import InputError
from eventstore.model.query import TEXT_CHARACTERS_MAX, EventFilter
from eventstore.query.conditions import Dialect, DuckDialect, PostgresDialect, conditions
from eventstore.query.free_text import pattern
from tests.property.strategies import examples

# Whatever is special somewhere: to JSON, SQL, LIKE, regular expressions, or in how it changes its case.
_CHARS = "aAbkKsS0 \"'\\/%_.*+?()[]{}|^$<>&`~:,-\n\t\r\b\x1f\x7fäÄßẞéÉµμΜσςΣıİKÅſÿŸǅ東\u2028😀𐐀𐐨"
_chars = st.sampled_from(_CHARS) | st.characters(codec="utf-8", exclude_characters="\0")
_texts = st.text(_chars, max_size=8)
_needles = st.text(_chars, min_size=1, max_size=5)


def _raw(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return json.dumps(text)


def _shouted(text: str) -> str:
    """Every character as an escape, in upper-case digits."""
    units = text.encode("utf-16-be").hex().upper()
    return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'


def _for_the_web(text: str) -> str:
    found = _raw(text).replace("/", "\\/")
    for char in "<>&'+`":
        found = found.replace(char, f"\\u{ord(char):04x}")
    return found


_WRITERS = (_raw, _escaped, _for_the_web)


@pytest.fixture(scope="module")
def engines(server_url: str) -> Iterator[tuple[psycopg.Connection, duckdb.DuckDBPyConnection]]:
    with psycopg.connect(server_url, autocommit=True) as postgres, duckdb.connect() as duck:
        yield postgres, duck


Engines = tuple[psycopg.Connection, duckdb.DuckDBPyConnection]


def _found(engines: Engines, values: list[str], text: str) -> set[int]:
    """Which of the values hold the text; both engines must say the same, of old values and of new ones."""
    postgres, duck = engines

    def asked(dialect: Dialect) -> str:
        rows = ", ".join(f"({n}, {dialect.text(v)}, NULL)" for n, v in enumerate(values))
        mirrored = ", ".join(f"({n + 1000}, NULL, {dialect.text(v)})" for n, v in enumerate(values))
        where = conditions(EventFilter(text=text), dialect, seq_from=0, seq_to=9999)
        return f"SELECT seq FROM (VALUES {rows}, {mirrored}) AS e(seq, old_value, new_value) WHERE {where}"

    one = {row[0] for row in postgres.execute(asked(PostgresDialect()).encode()).fetchall()}
    other = {row[0] for row in duck.execute(asked(DuckDialect())).fetchall()}
    assert one == other, (values, text)
    assert {n - 1000 for n in one if n >= 1000} == {n for n in one if n < 1000}
    return {n for n in one if n < 1000}


def _swapped(text: str) -> str:
    """The other case of each character that has one, there and back."""

    def swapped(char: str) -> str:
        other = char.swapcase()
        is_pair = len(other) == 1 and other.swapcase() == char and other.isascii() == char.isascii()
        return other if is_pair else char

    return "".join(map(swapped, text))


@examples(150)
@given(before=_texts, needle=_needles, after=_texts, others=st.lists(_texts, max_size=3))
@example(before="", needle='"', after="", others=[])
@example(before="C:", needle="\\temp", after="", others=["C:/temp"])
@example(before="", needle="100%", after="", others=["1000"])
@example(before="", needle="a_b", after="", others=["axb"])
@example(before="", needle="😀", after="", others=["😁"])
@example(before="", needle="it's", after="", others=["its"])
def test_a_person_finds_what_they_see(
    engines: Engines, before: str, needle: str, after: str, others: list[str]
) -> None:
    shown = before + needle + after
    values = [write(shown) for write in _WRITERS] + [json.dumps({"k": [shown]})]
    # Escapes of letters that no writer makes are not looked for.
    if not any(c.isascii() and (c.isalnum() or c in "!#$%()*,-.:;=?@[]^_{|}~ ") for c in needle):
        values.append(_shouted(shown))
    values += [_raw(other) for other in others]
    certain = len(values) - len(others)
    for text in {needle, _swapped(needle)}:
        found = _found(engines, values, text)
        assert found >= set(range(certain)), (values, text)
        for n, other in enumerate(others, certain):
            if n in found:  # as it is read, as it is stored, or between a string and the quotes around it
                seen = {_folded(other), _folded(_raw(other)), f'"{_folded(other)}"'}
                assert any(_folded(text) in one for one in seen), (other, text)


def _folded(text: str) -> str:
    """A fold that is wider than the search's: what it tells apart, the search must not find."""
    return text.casefold().upper().casefold()


@examples(60)
@given(text=_needles)
def test_the_pattern_is_what_the_engines_do(engines: Engines, text: str) -> None:
    """What rows mark as found is what was found: Python reads the pattern as they do."""
    values = [_raw(text), _raw("x" + text), _raw("aä\n\\n"), _escaped(text.upper())]
    expected = {n for n, value in enumerate(values) if re.search(pattern(text), value)}
    assert _found(engines, values, text) == expected


@pytest.mark.parametrize("text", ["", "x" * (TEXT_CHARACTERS_MAX + 1), "a\0b", "\ud800"])
def test_what_no_search_can_be_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        EventFilter(text=text)


def test_the_longest_text_is_searched_for(engines: Engines) -> None:
    text = "Ä😀" * (TEXT_CHARACTERS_MAX // 2)
    assert _found(engines, [_raw(text), _escaped(text.lower()), _raw(text[:-1])], text) == {0, 1}
