"""JSON texts from columns: old and new values, and the metadata object that takes a file's other columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.intake.json import all_text
from eventstore.intake.times import iso_texts
from eventstore.intake.verdicts import Verdicts, as_mask

__all__ = [
    "compact_texts",
    "json_column",
    "json_strings",
    "merge_metadata",
    "object_texts",
    "refuse_unstorable",
    "text_bytes",
]

# Characters that a JSON string cannot hold as they are (RFC 8259, 7).
_ESCAPED_PATTERN = r'["\\\x00-\x1f]'
_SPACE_PATTERN = r"[ \t\r\n]"
# \\u0000 after an even number of backslashes.
_NUL_PATTERN = r"(^|[^\\])(\\\\)*\\u0000"
# Members stay undecoded: a number may be out of a float's range.
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def text_bytes(texts: pa.Array) -> Any:
    """All bytes of a text column as one numpy array, without copying."""
    _, offsets_buffer, data = texts.buffers()
    if data is None or len(texts) == 0:
        return np.empty(0, dtype=np.uint8)
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)
    start, end = offsets[texts.offset], offsets[texts.offset + len(texts)]
    return np.frombuffer(data, dtype=np.uint8)[start:end]


def json_strings(texts: pa.Array) -> pa.Array:
    """Each text as a JSON string. Most need no escaping, and are only put in quotes."""
    quoted = pc.binary_join_element_wise('"', texts, '"', "")
    data = text_bytes(texts)
    if not ((data < 32).any() or (data == ord('"')).any() or (data == ord("\\")).any()):
        return quoted
    escaped = pc.match_substring_regex(texts, _ESCAPED_PATTERN)
    encoded = [msgspec.json.encode(text).decode() for text in texts.filter(escaped).to_pylist()]
    return pc.replace_with_mask(quoted, pc.fill_null(escaped, False), pa.array(encoded, pa.string()))


def compact_texts(texts: pa.Array) -> pa.Array:
    """JSON texts without the space between their tokens."""
    if not (text_bytes(texts) <= ord(" ")).any():
        return texts
    spaced = pc.match_substring_regex(texts, _SPACE_PATTERN)
    compact = [msgspec.json.format(text, indent=-1) for text in texts.filter(spaced).to_pylist()]
    return pc.replace_with_mask(texts, pc.fill_null(spaced, False), pa.array(compact, pa.string()))


def json_column(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """A typed column as JSON texts: numbers, booleans and strings as such, times in RFC 3339, bytes in
    hexadecimal, lists and structs as they are nested."""
    kind = column.type
    if pa.types.is_string(kind):
        return json_strings(column)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        numbers = column.cast(pa.float32()) if pa.types.is_float16(kind) else column
        verdicts.refuse(
            pc.invert(pc.is_finite(numbers)), name, "is not a finite number, and JSON has no other"
        )
        return numbers.cast(pa.string())
    if pa.types.is_timestamp(kind):
        texts = iso_texts(column)
        verdicts.refuse(pc.and_(texts.is_null(), column.is_valid()), name, "lies outside the years 1 to 9999")
        return json_strings(texts)
    if pa.types.is_date(kind):
        return json_strings(column.cast(pa.string()))
    return _nested(column, name, verdicts)


def _nested(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    texts: list[str | None] = []
    for index, scalar in enumerate(column):
        try:
            value = scalar.as_py()
            if isinstance(value, list) and pa.types.is_map(column.type):
                value = dict(value)
            elif isinstance(value, bytes):
                value = value.hex()
            texts.append(None if value is None else msgspec.json.encode(value, enc_hook=str).decode())
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            verdicts.refuse_row(index, name, f"cannot be written as JSON: {e}")
            texts.append(None)
    return pa.array(texts, pa.string())


def object_texts(texts: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """Texts that have to be JSON objects, compact. Each different text is looked at once."""
    if texts.null_count == len(texts):
        return texts
    encoded = texts.dictionary_encode()
    checked: list[str | None] = []
    for text in encoded.dictionary.to_pylist():
        try:
            _OBJECT.decode(text)
            checked.append(text)
        except (msgspec.DecodeError, RecursionError):
            checked.append(None)
    objects = compact_texts(pa.array(checked, pa.string())).take(encoded.indices)
    verdicts.refuse(
        pc.and_(objects.is_null(), texts.is_valid()), name, 'is not a JSON object such as {"k": 1}'
    )
    return objects


def merge_metadata(own: pa.Array, extras: Mapping[str, pa.Array], verdicts: Verdicts) -> pa.Array:
    """One object a row: the metadata's own members, then `"column": value` of each other column.

    Nulls are left out; a row without any member and without metadata of its own has none (null).
    """
    if not extras:
        return own
    fragments = []
    for name in sorted(extras):
        key = msgspec.json.encode(name).decode()
        _refuse_taken(own, name, key, extras[name], verdicts)
        fragments.append(pc.fill_null(pc.binary_join_element_wise(f",{key}:", extras[name], ""), ""))
    members = pc.binary_join_element_wise(*fragments, "") if len(fragments) > 1 else fragments[0]
    some = pc.greater(pc.binary_length(members), 0)
    # Each fragment begins with a comma: the first one's goes where nothing stands before it.
    # (binary_slice fails in pyarrow 26 with "Negative buffer resize".)
    first_comma_gone = pc.replace_substring(members, ",", "", max_replacements=1)
    alone = pc.binary_join_element_wise("{", first_comma_gone, "}", "")
    merged = pc.if_else(some, alone, pa.scalar(None, pa.string()))
    if own.null_count == len(own):
        return merged
    opened = pc.utf8_slice_codeunits(own, 0, -1)  # less its closing brace
    joined = pc.binary_join_element_wise(opened, members, "}", "")
    result = pc.if_else(pc.equal(own, "{}"), pc.coalesce(merged, own), joined)
    return pc.if_else(own.is_valid(), result, merged)


def _refuse_taken(own: pa.Array, name: str, key: str, values: pa.Array, verdicts: Verdicts) -> None:
    """Refuse rows whose own metadata has a member of that name already: one of the two would be lost."""
    if own.null_count == len(own):
        return
    # An escaped character may hide the name.
    maybe = pc.or_(pc.match_substring(own, key), pc.match_substring(own, "\\"))
    both = as_mask(pc.and_(maybe, values.is_valid()))
    for index in np.flatnonzero(both).tolist():
        if name in _OBJECT.decode(own[index].as_py()):
            verdicts.refuse_row(
                index, name, f"metadata has a member {name!r} already; rename the column or the member"
            )


def refuse_unstorable(texts: pa.Array, name: str, verdicts: Verdicts) -> None:
    """Refuse JSON that, decoded, has a NUL character or half of a surrogate pair."""
    if not (text_bytes(texts) == ord("\\")).any():
        return
    verdicts.refuse(
        pc.match_substring_regex(texts, _NUL_PATTERN), name, "has a NUL character; remove \\u0000"
    )
    suspect = as_mask(pc.match_substring_regex(texts, r"\\u[dD][89a-fA-F]"))
    for index in np.flatnonzero(suspect).tolist():
        try:
            all_text(texts[index].as_py()).encode()
        except RecursionError:
            verdicts.refuse_row(index, name, "is nested too deeply; flatten it")
        except UnicodeEncodeError:
            verdicts.refuse_row(
                index, name, "has a lone surrogate, which is no character; send valid Unicode"
            )
