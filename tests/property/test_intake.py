"""Arbitrary bodies: nothing but errors of input comes out, and what is accepted is what was sent."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eventstore.errors import InputError
from eventstore.intake.json import parse_array_or_object, parse_lines
from eventstore.model.event import NewEvent
from tests.property.strategies import examples

LIMIT = 2000
characters = st.characters() | st.sampled_from('\0"\\\ud800\udfff\u2028é😀\n')
strings = st.text(characters, max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=8,
)
required = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)
good = st.fixed_dictionaries(
    dict.fromkeys(("entity_type", "entity_id", "action", "actor", "source"), required),
    optional={
        "old_value": values,
        "new_value": values,
        "metadata": st.dictionaries(strings, values, max_size=3),
    },
)
NAMES = (
    "entity_type",
    "entity_id",
    "action",
    "actor",
    "source",
    "field",
    "old_value",
    "new_value",
    "metadata",
)
anything = good | st.dictionaries(
    st.sampled_from([*NAMES, "event_id", "occurred_at", "expected_version", "x"]), values
)


def storable(value: Any) -> bool:
    """No NUL and no lone surrogate in any string."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return all(storable(k) and storable(v) for k, v in value.items())
    return all(map(storable, value)) if isinstance(value, list) else True


def check(event: NewEvent, sent: dict[str, Any]) -> None:
    for name in NAMES:
        kept, given_value = getattr(event, name), sent.get(name)
        if name in ("old_value", "new_value", "metadata"):
            text = bytes(kept).decode()
            assert (json.loads(text) if text else None) == given_value
            assert given_value is not None or text == ""
        elif name != "field" or "field" in sent:
            assert kept == given_value
    assert storable(sent)


def dump(value: Any, ascii_only: bool, indent: int | None) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")


@examples(400)
@given(st.lists(anything, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 0, 2]))
def test_what_is_accepted_is_what_was_sent(
    sent: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    for body, expected in (
        (dump(sent, ascii_only, indent), sent),
        (dump(sent[0], ascii_only, indent), sent[:1]),
    ):
        try:
            events = parse_array_or_object(body, value_bytes_max=LIMIT)
        except InputError:
            continue
        assert len(events) == len(expected)
        for event, original in zip(events, json.loads(body) if len(expected) > 1 else expected, strict=False):
            check(event, original)


@examples(200)
@given(st.lists(good, min_size=1, max_size=4), st.booleans())
def test_good_events_are_accepted(sent: list[dict[str, Any]], ascii_only: bool) -> None:
    body = dump(sent, ascii_only, None)
    lines = b"\n".join(dump(e, ascii_only, None) for e in sent)
    if all(map(storable, sent)):
        for events in (
            parse_array_or_object(body, value_bytes_max=LIMIT),
            parse_lines(lines, value_bytes_max=LIMIT)[0],
        ):
            for event, original in zip(events, sent, strict=True):
                check(event, original)
        return
    for parse, data in ((parse_array_or_object, body), (parse_lines, lines)):
        try:
            parse(data, value_bytes_max=LIMIT)
        except InputError:
            continue
        raise AssertionError("something that cannot be stored was accepted")


@examples(600)
@given(st.lists(good, min_size=1, max_size=2), st.data())
def test_a_body_with_a_few_bytes_changed_is_refused_or_still_json(
    sent: list[dict[str, Any]], data: st.DataObject
) -> None:
    body = bytearray(dump(sent, data.draw(st.booleans()), None))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(
            st.binary(max_size=2)
            | st.sampled_from(
                [b"\\", b'"', b"\\u0000", b"\\ud800", b"[", b"\n", b"\t", b"\0", b"1", b"-", b"."]
            )
        )
        body[at : at + data.draw(st.integers(0, 2))] = piece
        if not body:
            return
    accepted = None
    with contextlib.suppress(InputError):
        accepted = parse_array_or_object(bytes(body), value_bytes_max=LIMIT)
    if accepted is not None:
        whole = json.loads(bytes(body))
        for event, original in zip(accepted, whole if isinstance(whole, list) else [whole], strict=True):
            check(event, original)
    with contextlib.suppress(InputError):
        parse_lines(bytes(body), value_bytes_max=LIMIT)


@examples(300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes(body: bytes) -> None:
    for parse in (parse_array_or_object, parse_lines):
        try:
            parse(body, value_bytes_max=LIMIT)
        except InputError:
            continue
        raise AssertionError("no event was in there")
