"""Request bodies: what is understood, what is kept byte for byte, and where a fault is said to lie."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eventstore.errors import InputError, InvalidEventError, TooLargeError
from eventstore.intake.json import parse_array_or_object, parse_lines
from eventstore.model.event import NewEvent

REQUIRED = {"entity_type": "order", "entity_id": "1", "action": "changed", "actor": "ann", "source": "web"}


def body(value: str = "7", **fields: Any) -> bytes:
    """An event whose new_value is this JSON text, as it stands."""
    text = json.dumps({**REQUIRED, **fields, "new_value": "@"}, ensure_ascii=False)
    return text.replace('"@"', value).encode()


def one(data: bytes, *, limit: int = 100_000) -> NewEvent:
    (event,) = parse_array_or_object(data, value_bytes_max=limit)
    return event


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("1.50", "1.50"),
        ("1e400", "1e400"),
        ("-0", "-0"),
        ('"a b"', '"a b"'),
        ('"\\u00e9"', '"\\u00e9"'),  # an escape is not undone
        ('{ "b" : 1,\n "a" : [ ] }', '{"b":1,"a":[]}'),
        ('{"a":1,"a":2}', '{"a":1,"a":2}'),  # neither is a key given twice
        ('[ "x  y" ]', '["x  y"]'),
        ("9" * 5000, "9" * 5000),
        ("null", ""),
        (" null ", ""),
        ("[null]", "[null]"),
        ("false", "false"),
    ],
)
@pytest.mark.parametrize("actor", ["ann", "\U0001f600"])
def test_values_are_kept_as_compact_text(sent: str, kept: str, actor: str) -> None:
    assert bytes(one(body(sent, actor=actor)).new_value) == kept.encode()


@pytest.mark.parametrize("escaped", [False, True])
def test_a_number_longer_than_python_would_convert(escaped: bool) -> None:
    """Python refuses to convert more than 4300 digits; here nobody has to."""
    text = json.dumps({**REQUIRED, "actor": "\U0001f600", "new_value": 7}, ensure_ascii=escaped).encode()
    assert bytes(one(text.replace(b"7", b"1" * 5000)).new_value) == b"1" * 5000


def test_an_absent_value_and_null_are_the_same() -> None:
    event = one(
        body("null", old_value=None, metadata=None, workspace_id=None, occurred_at=None, event_id=None)
    )
    assert not any(bytes(getattr(event, name)) for name in ("old_value", "new_value", "metadata"))
    assert (event.workspace_id, event.occurred_at, event.event_id, event.field) == (None, None, None, "*")


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("blank", ["", " "])
def test_depth_is_refused_wherever_it_is_met(escaped: bool, blank: str) -> None:
    """By the decoder, by compacting, or by the look at characters: each can go a little less deep."""
    accepted, refused = [], []
    for depth in [*range(1, 900, 100), *range(900, 1010), 5000, 200_000]:
        text = json.dumps({**REQUIRED, "actor": "\U0001f600", "new_value": 7}, ensure_ascii=escaped)
        value = f"[{blank}" * depth + "]" * depth
        try:
            one(text.replace("7", value).encode(), limit=10**6)
            accepted.append(depth)
        except InvalidEventError as e:
            refused.append((depth, "nested too deeply" in e.message))
    assert refused[0][0] > 500
    assert all(named for _, named in refused)
    assert accepted
    assert 5000 not in accepted


def test_limits_are_inclusive_and_count_compact_bytes() -> None:
    assert one(body('"' + "é" * 4 + '"'), limit=10)
    with pytest.raises(TooLargeError, match=r"new_value.*11 bytes"):
        one(body('"' + "é" * 4 + 'x"'), limit=10)
    assert one(body("[ 1 ,    2,     3     ]"), limit=7)


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    line = body()
    events, lines = parse_lines(b"\r\n" + line + b"\r\n\n  \n" + line + b"\n" + line, value_bytes_max=99)
    assert (len(events), list(lines)) == (3, [2, 5, 6])
    with pytest.raises(InvalidEventError) as caught:
        parse_lines(b"\n" + line + b"\n\n{", value_bytes_max=99)
    assert (caught.value.place.line, caught.value.place.index) == (4, None)


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbf" + body(), b"", b"[", b"{", b"]", b"\0", b"nul", b"[null]", b'"x"']
)
def test_what_is_no_event(data: bytes) -> None:
    for parse in (parse_array_or_object, parse_lines):
        with pytest.raises(InputError):
            parse(data, value_bytes_max=99)


@pytest.mark.parametrize(
    "value", ['"\\u0000"', '{"\\u0000":1}', '{"a":"\\u0000","a":1}', '["\\ud800"]', '"\\uDFFF"']
)
def test_characters_that_nobody_can_store(value: str) -> None:
    for parse in (parse_array_or_object, parse_lines):
        with pytest.raises(InvalidEventError):
            parse(body(value), value_bytes_max=99)


@pytest.mark.parametrize("value", ['"\\\\u0000"', '"\\ud83d\\ude00"', '"\\\\ud800"', '"\\u00e9"'])
def test_what_only_looks_like_such_a_character_is_kept(value: str) -> None:
    assert bytes(one(body(value)).new_value) == value.encode()
