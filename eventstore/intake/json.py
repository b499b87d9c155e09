"""Request bodies → events: one JSON object, an array, or a stream of lines (application/x-ndjson).

The quick path decodes the whole body at once in C. Only when that fails is it gone through piece by
piece, to say where the fault lies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from eventstore.errors import InvalidEventError, Place, TooLargeError
from eventstore.model.event import VALUE_FIELDS, NewEvent
from eventstore.model.records import RecordIngest, RecordInsert, RecordUpdate

__all__ = ["all_text", "parse_array_or_object", "parse_lines", "parse_record"]

_MANY = msgspec.json.Decoder(list[NewEvent])
_ONE = msgspec.json.Decoder(NewEvent)
_RAW_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])

_Record = RecordInsert | RecordUpdate | RecordIngest

_NULL = b"null"
_WHITESPACE = (b" ", b"\n", b"\t", b"\r")
# Within valid UTF-8 only escapes can bring in what Postgres or a hash cannot take: NUL, lone surrogates.
_SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
_FIELD = re.compile(r"`\$(?:\[\.\.\.\])?\.?([A-Za-z_]+)")


def parse_array_or_object(body: bytes, *, value_bytes_max: int) -> Sequence[NewEvent]:
    """The events of a body that is one JSON object or an array of them.

    Raises:
        InvalidEventError: names the event (from 0) and the field.
    """
    _check_utf8(body, lines=False)
    stripped = body.lstrip()
    if not stripped:
        raise InvalidEventError("the body is empty", hint="send an event as a JSON object")
    single = stripped[:1] != b"["
    try:
        events = [_ONE.decode(body)] if single else _MANY.decode(body)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _locate_item(body, single, e) from e
    if not events:
        raise InvalidEventError("the array is empty", hint="send at least one event")
    _finish(events, body, value_bytes_max, lines=None)
    return events


def parse_lines(body: bytes, *, value_bytes_max: int) -> tuple[Sequence[NewEvent], Sequence[int]]:
    """The events of a stream of JSON objects, and the line of each; empty lines are passed over.

    Raises:
        InvalidEventError: names the line (from 1) and the field.
    """
    _check_utf8(body, lines=True)
    numbered = [(n, line) for n, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    if not numbered:
        raise InvalidEventError("the stream has no events", hint="send one JSON object a line")
    events = []
    for number, line in numbered:
        try:
            events.append(_ONE.decode(line))
        except (msgspec.DecodeError, RecursionError) as e:
            raise _invalid(e, index=None, line=number) from e
    lines = [number for number, _ in numbered]
    _finish(events, body, value_bytes_max, lines)
    return events, lines


def parse_record(body: bytes, kind: type[_Record], *, value_bytes_max: int) -> Sequence[NewEvent]:
    """The events of a body that says what happened to a record (`model.records`).

    Raises:
        InvalidEventError: names the member, or the field of the event that it becomes.
    """
    _check_utf8(body, lines=False)
    if not body.strip():
        raise InvalidEventError("the body is empty", hint="send a JSON object")
    try:
        record = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _invalid(e, index=None, line=None) from e
    if isinstance(record, RecordInsert) and bytes(record.fields)[:1] != b"{":
        place = Place(field="fields")
        raise InvalidEventError(f"{place}: must be a JSON object", place=place)
    events = record.events()
    if isinstance(record, RecordUpdate):
        place = Place(field="changes")
        if not events:
            raise InvalidEventError(f"{place}: is empty", place=place, hint="name at least one field")
        if len({event.field for event in events}) < len(events):
            raise InvalidEventError(f"{place}: name a field twice", place=place, hint="one change a field")
    _finish(events, body, value_bytes_max, lines=None)
    return events


def _check_utf8(body: bytes, *, lines: bool) -> None:
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as e:
        line = body.count(b"\n", 0, e.start) + 1 if lines else None
        raise InvalidEventError(
            f"byte {e.start} of the body (0x{body[e.start]:02x}) is not UTF-8",
            place=Place(line=line),
            hint="send the body encoded as UTF-8",
        ) from e


def _finish(
    events: Sequence[NewEvent], body: bytes, value_bytes_max: int, lines: Sequence[int] | None
) -> None:
    """What the decoder does not check: characters that cannot be stored, compact values, sizes.

    One look at the whole body tells whether each value needs one.
    """
    suspect = b"\\u" in body and _SUSPECT.search(body) is not None
    loose = b"null" in body or any(space in body for space in _WHITESPACE)
    oversize = len(body) > value_bytes_max
    for index, event in enumerate(events):
        try:
            if loose:
                _compact_values(event)
            if oversize:
                _check_sizes(event, value_bytes_max, index, lines)
            if event.metadata and bytes(event.metadata)[:1] != b"{":
                place = _place(index, lines, "metadata")
                raise InvalidEventError(f"{place}: must be a JSON object", place=place)
            if suspect:
                _check_characters(event, index, lines)
        except RecursionError as e:
            # What the decoder has passed over as deep as it can, is too deep to be looked into.
            line = None if lines is None else lines[index]
            raise _invalid(e, index=None if lines else index, line=line) from e
        if event.occurred_at is not None:
            _check_year(event.occurred_at, _place(index, lines, "occurred_at"))


def _compact_values(event: NewEvent) -> None:
    for name in VALUE_FIELDS:
        raw = bytes(getattr(event, name))
        if raw:
            setattr(event, name, _compact(raw))


def _check_sizes(event: NewEvent, value_bytes_max: int, index: int, lines: Sequence[int] | None) -> None:
    for name in VALUE_FIELDS:
        size_bytes = len(getattr(event, name))
        if size_bytes > value_bytes_max:
            raise _too_large(_place(index, lines, name), size_bytes, value_bytes_max)


def _compact(raw: bytes) -> msgspec.Raw:
    """A value without white space outside its texts; null is the same as absent."""
    if raw == _NULL:
        return msgspec.Raw()
    if raw[:1] in b"{[" and any(space in raw for space in _WHITESPACE):
        raw = msgspec.json.format(raw, indent=-1)
    return msgspec.Raw(raw)


def _too_large(place: Place, size_bytes: int, limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"{place}: {size_bytes} bytes of JSON, the limit is {limit_bytes}",
        limit_bytes=limit_bytes,
        place=place,
        hint="store large values elsewhere and record a reference and a digest",
    )


def _place(index: int, lines: Sequence[int] | None, name: str) -> Place:
    return Place(field=name, index=index) if lines is None else Place(field=name, line=lines[index])


def _check_characters(event: NewEvent, index: int, lines: Sequence[int] | None) -> None:
    for name in NewEvent.__struct_fields__:
        value = getattr(event, name)
        text = bytes(value).decode() if isinstance(value, msgspec.Raw) else value
        if not isinstance(text, str):
            continue
        decoded = all_text(text) if isinstance(value, msgspec.Raw) and text else text
        place = _place(index, lines, name)
        if "\0" in decoded:
            raise InvalidEventError(f"{place}: has a NUL character", place=place, hint="remove \\u0000")
        try:
            decoded.encode()
        except UnicodeEncodeError as e:
            raise InvalidEventError(
                f"{place}: has a lone surrogate, which is no character",
                place=place,
                hint="send valid Unicode",
            ) from e


def all_text(raw: str) -> str:
    """Every string inside a JSON value, decoded and run together. (The standard library's decoder, because
    it lets lone surrogates through, so that they can be seen. Members stay pairs, because a key may come
    twice, and numbers stay texts, because they may be longer than Python would convert.)"""
    import json

    found: list[str] = []
    pending: list[Any] = [json.loads(raw, object_pairs_hook=list, parse_int=str, parse_float=str)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list | tuple):
            pending += value
    return "\x01".join(found)


def _check_year(moment: datetime, place: Place) -> None:
    offset = moment.utcoffset()
    try:
        assert offset is not None
        moment.replace(tzinfo=None) - offset
    except OverflowError as e:
        raise InvalidEventError(f"{place}: {moment} is outside the years 1 to 9999", place=place) from e


def _locate_item(body: bytes, single: bool, error: Exception) -> InvalidEventError:
    if single:
        return _invalid(error, index=0, line=None)
    try:
        items = _RAW_ITEMS.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _invalid(error, index=None, line=None)
    for index, item in enumerate(items):
        try:
            _ONE.decode(item)
        except (msgspec.DecodeError, RecursionError) as e:
            return _invalid(e, index=index, line=None)
    return _invalid(error, index=None, line=None)


def _invalid(error: Exception, *, index: int | None, line: int | None) -> InvalidEventError:
    if isinstance(error, RecursionError):
        return InvalidEventError(
            "the JSON is nested too deeply", place=Place(index=index, line=line), hint="flatten the value"
        )
    text = str(error)
    found = _FIELD.search(text)
    named = found[1] if found else _missing_field(text)
    place = Place(field=named, index=index, line=line)
    reason = text.split(" - at `")[0]
    where = f"{place}: " if str(place) else ""
    return InvalidEventError(f"{where}{reason}", place=place, hint="see docs/reference/events.md")


def _missing_field(text: str) -> str | None:
    found = re.search(r"(?:required|unknown) field `([^`]*)`", text)
    return found[1] if found else None
