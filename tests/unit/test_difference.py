"""Differences of values: what they say, that they are bounded, and that nothing makes them fail."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.console.difference import Difference, Piece, PieceKind, difference
from eventstore.console.values import laid_out, readable, reveal, same_to_the_eye, visible

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
_TEXTS = st.one_of(
    st.none(),
    _VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)),
    _VALUES.map(json.dumps),  # half of a surrogate pair stays an escape
    st.text(),  # no JSON at all
)


def _said(old: Any, new: Any) -> list[str]:
    """The changes in one line each: `path: -old +new`, or the pieces."""
    found = difference(*(None if v is _NONE else json.dumps(v) for v in (old, new)))
    return [f"{c.path}: {_pieces(c.pieces) or _ends(c.old, c.new)}" for c in found.changes]


_NONE = object()
_SIGNS = {PieceKind.SAME: "{}", PieceKind.GONE: "[-{}]", PieceKind.NEW: "[+{}]", PieceKind.CUT: "<{}>"}


def _pieces(pieces: tuple[Piece, ...]) -> str:
    return "".join(_SIGNS[p.kind].format(p.text) for p in pieces)


def _ends(old: str | None, new: str | None) -> str:
    return " ".join(f"{sign}{text}" for sign, text in (("-", old), ("+", new)) if text is not None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (_NONE, "draft", [": +draft"]),
        ("draft", _NONE, [": -draft"]),
        ("draft", "final", [": -draft +final"]),
        ("sent to Ann on Monday", "sent to Bob on Monday", [": sent to [-Ann ][+Bob ]on Monday"]),
        ("https://x.org/a?y", "https://x.org/b?y", [": https://x.org/[-a][+b]?y"]),
        ("2024-01-01", "2024-01-02", [": -2024-01-01 +2024-01-02"]),
        (1, 1.0, [": -1 +1.0"]),
        ("1", 1, [': -"1" +1']),
        ("", "x", [': -"" +x']),
        (True, None, [": -true +null"]),
        ("a b c", "a  b c", [": [-a·][+a··]b c"]),
        ("a", "a ", [": [-a][+a·]"]),
        ("ab", "a\u200bb", [": [-ab][+a⟦U+200B⟧b]"]),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": [1]}, ["b: -2 +3", "c: +[1]"]),
        ({"a": {"b c": 1}}, {"a": {}}, ['a["b c"]: -1']),
        ([1, 2, 3], [2, 3, 4], ["[0]: -1", "[2]: +4"]),
        ([{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 5}], ["[1].x: -2 +5"]),
        (_NONE, {"name": "Ann", "tags": []}, ["name: +Ann", "tags: +[]"]),
        ({"a": 1}, [1], [': -{"a": 1} +[1]']),
        ("same", "same", []),
    ],
)
def test_what_is_said(old: Any, new: Any, expected: list[str]) -> None:
    assert _said(old, new) == expected


def test_another_spelling_of_the_same_value_is_said_to_be_one() -> None:
    for old, new in (('"A"', '"\\u0041"'), ('{"a":1,"b":2}', '{"b":2,"a":1}')):
        found = difference(old, new)
        assert found.notes[0] == "the same value, written in another way"
        assert found.changes


def test_a_member_given_twice_is_not_overlooked() -> None:
    found = difference('{"a":1,"a":2}', '{"a":2}')
    assert _pieces(found.changes[0].pieces) == '{"a":[-1,"a":]2}'


def test_numbers_are_as_they_are_written() -> None:
    assert difference("1" * 5000, "1" * 4999 + "2").changes[0].old is not None
    found = difference("0.1000000000000000055", "0.1")
    assert (found.changes[0].old, found.changes[0].new) == ("0.1000000000000000055", "0.1")


def test_long_parts_that_stayed_are_cut_out() -> None:
    text = "the first word and " * 500
    found = difference(json.dumps(text + "Ann"), json.dumps(text + "Bob"))
    (change,) = found.changes
    assert [p.kind for p in change.pieces] == [
        PieceKind.CUT,
        PieceKind.SAME,
        PieceKind.GONE,
        PieceKind.NEW,
    ]
    assert change.pieces[0].text == "9,380 characters the same"
    assert _pieces(change.pieces[2:]) == "[-Ann][+Bob]"


def test_one_character_in_a_word_without_end_is_found() -> None:
    found = difference(json.dumps("x" * 1_000_000), json.dumps("x" * 999_999 + "y"))
    assert found.changes[0].pieces[-1].text.endswith("xy")


def _shown(found: Difference) -> int:
    texts = [
        text or "" for c in found.changes for text in (c.path, c.old, c.new, *(p.text for p in c.pieces))
    ]
    return sum(map(len, texts))


_LARGE = {
    "alternating words": ("a b " * 1000, "b a " * 1000),
    "few words, shuffled": tuple(" ".join(str(i * n % 61) for i in range(1000)) for n in (3, 7)),
    "a million characters": ("x " * 500_000, "y " * 500_000),
    "many members": ({str(i): i for i in range(5000)}, {str(i): -i for i in range(5000)}),
    "large arrays": ([[i] for i in range(8000)], [[i + 1] for i in range(8000)]),
    "equal items": ([0] * 199 + [1], [1] + [0] * 199),
    "a long name": ({"n" * 60_000: 1}, {"n" * 60_000: 2}),
    "white space": (" " * 3000, "\t" * 3000),
}


@pytest.mark.parametrize("name", _LARGE)
def test_large_values_take_little(name: str) -> None:
    old, new = (json.dumps(value) for value in _LARGE[name])
    began = time.process_time()
    found = difference(old, new)
    assert found.changes
    assert _shown(found) < 15_000
    assert time.process_time() - began < 0.5  # some ten times what it takes


@pytest.mark.parametrize("text", ["[" * 60_000, "[" * 900 + "]" * 900, '{"a":' * 20_000])
def test_nesting_without_end_is_compared_as_text(text: str) -> None:
    assert difference(text, text + " ").changes
    assert difference(text, "1").changes
    assert len(laid_out(text).text) < 100_000


@given(_TEXTS, _TEXTS)
def test_everything_can_be_compared_with_everything(old: str | None, new: str | None) -> None:
    found = difference(old, new)
    assert (not found.changes) == (old == new)
    for change in found.changes:
        for text in (change.path, change.old, change.new, *(p.text for p in change.pieces)):
            (text or "").encode()  # no half of a surrogate pair is left, which no page could be sent with
            assert "\x00" not in (text or "")
            assert "\u202e" not in (text or "")


_WRITTEN = st.text(st.sampled_from("ab .,-é中"), max_size=60)


@given(_WRITTEN, _WRITTEN)
def test_pieces_are_both_texts(old: str, new: str) -> None:
    for change in difference(json.dumps(old), json.dumps(new)).changes:
        if change.pieces:
            for kind, text in ((PieceKind.NEW, old), (PieceKind.GONE, new)):
                found = "".join(p.text for p in change.pieces if p.kind is not kind)
                assert found.replace("·", " ") == text


@given(_TEXTS)
def test_every_value_can_be_shown(value: str | None) -> None:
    for shown in (readable(value or ""), laid_out(value or "")):
        shown.text.encode()
        assert "\u202e" not in shown.text


def test_json_is_laid_out_as_it_is_written() -> None:
    text = '{"a":[1.0,{"b":"x, {y}: \\"z\\""}],"e":{},"l":[],"a":2}'
    shown = laid_out(text)
    assert shown.text.splitlines()[:4] == ["{", '  "a": [', "    1.0,", "    {"]
    assert "".join(shown.text.split()) == "".join(text.split())
    assert laid_out('"x"', 2).left_out == 1


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible("a\u202eb\0c\ud800\r\nd\te\u200d") == "a⟦U+202E⟧b⟦U+0000⟧c⟦U+D800⟧\nd\te\u200d"
    assert reveal("a \t\u00a0e\u0301") == "a·⇥⟦U+00A0⟧e⟦U+0301⟧"
    assert same_to_the_eye("café au", "cafe\u0301au\u200b")
    assert not same_to_the_eye("a", "b")
