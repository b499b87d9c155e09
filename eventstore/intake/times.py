"""Columns of times, and of ids, from whatever type a file has them in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.clock import parse_time_us
from eventstore.columns.schema import TIMESTAMP
from eventstore.errors import InputError
from eventstore.intake.verdicts import Mask, Verdicts, as_mask

__all__ = ["TIME_MAX_US", "TIME_MIN_US", "iso_texts", "time_column", "timestamp_us", "uuid_texts"]

TIME_MIN_US = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
TIME_MAX_US = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z

_UNIT_US = {"s": 1_000_000, "ms": 1000, "us": 1}
_DAY_US = 86_400_000_000
# Below this many texts they are read one by one instead of being halved again.
_HALVE_MIN = 64
_UUID = r"^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32})$"
_NIBBLES = np.zeros(256, dtype=np.uint8)
for _digit, _value in zip(b"0123456789abcdefABCDEF", [*range(16), *range(10, 16)], strict=True):
    _NIBBLES[_digit] = _value


def time_column(column: pa.Array, name: str, verdicts: Verdicts) -> tuple[npt.NDArray[np.int64], Mask]:
    """A column of timestamps, dates or texts as microseconds since 1970 UTC, and where there is a time.

    A timestamp without a zone is taken as UTC; finer ones are cut to microseconds. A text needs a zone.
    """
    given = as_mask(column.is_valid())
    if pa.types.is_string(column.type):
        us, failed = _parse(column)
        verdicts.refuse(failed, name, "is not a time with a zone; write it like 2026-01-31T12:00:00Z")
    else:
        us, failed = timestamp_us(column)
        failed = failed & given
        verdicts.refuse(failed, name, "lies outside the years 1 to 9999")
    given = given & ~failed
    outside = given & ((us < TIME_MIN_US) | (us > TIME_MAX_US))
    verdicts.refuse(outside, name, "lies outside the years 1 to 9999")
    return us, given & ~outside


def timestamp_us(column: pa.Array) -> tuple[npt.NDArray[np.int64], Mask]:
    """A column of timestamps or dates in microseconds, and which of them the store cannot hold."""
    kind = column.type
    if pa.types.is_date32(kind):
        raw, unit_us = column.cast(pa.int32()).cast(pa.int64()), _DAY_US
    elif pa.types.is_date64(kind):
        raw, unit_us = column.cast(pa.int64()), 1000
    else:
        raw, unit_us = column.cast(pa.int64()), _UNIT_US.get(kind.unit, 0)
    values: npt.NDArray[np.int64] = pc.fill_null(raw, 0).to_numpy(zero_copy_only=False)
    if unit_us == 0:  # nanoseconds
        return values // 1000, np.zeros(len(values), dtype=np.bool_)
    outside = (values < TIME_MIN_US // unit_us) | (values > TIME_MAX_US // unit_us)
    return np.where(outside, 0, values) * unit_us, outside


def iso_texts(column: pa.Array) -> pa.Array:
    """A timestamp column as `clock.to_iso` writes it (null where the year is not of four digits)."""
    us, outside = timestamp_us(column)
    outside = outside | (us < TIME_MIN_US) | (us > TIME_MAX_US) | as_mask(column.is_null())
    texts = pa.array(us, pa.int64(), mask=outside).cast(pa.timestamp("us")).cast(pa.string())
    return pc.binary_join_element_wise(pc.replace_substring(texts, " ", "T"), "Z", "")


def _parse(texts: pa.Array) -> tuple[npt.NDArray[np.int64], Mask]:
    """Times in microseconds, and which texts are none. Good texts are read by Arrow, all at once."""
    try:
        parsed = pc.fill_null(pc.cast(texts, TIMESTAMP).cast(pa.int64()), 0)
        return parsed.to_numpy(zero_copy_only=False), np.zeros(len(texts), dtype=np.bool_)
    except pa.ArrowInvalid:
        if len(texts) > _HALVE_MIN:
            half = len(texts) // 2
            left, right = _parse(texts.slice(0, half)), _parse(texts.slice(half))
            return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    us = np.zeros(len(texts), dtype=np.int64)
    failed = np.zeros(len(texts), dtype=np.bool_)
    for index, text in enumerate(texts.to_pylist()):
        if text is not None:
            try:
                us[index] = parse_time_us(text)
            except InputError:
                failed[index] = True
    return us, failed


def uuid_texts(texts: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """UUIDs written in hexadecimal, with hyphens or without, as their 16 bytes."""
    given = as_mask(texts.is_valid())
    if not given.any():
        return pa.nulls(len(texts), pa.binary(16))
    good = as_mask(pc.match_substring_regex(texts, _UUID))
    verdicts.refuse(given & ~good, name, "is not a UUID; write it as 32 hexadecimal digits")
    digits = pc.replace_substring(texts.filter(pa.array(good)), "-", "").cast(pa.binary())
    characters = np.frombuffer(b"".join(digits.to_pylist()), dtype=np.uint8).reshape(-1, 32)
    nibbles = _NIBBLES[characters]
    octets = np.zeros((len(texts), 16), dtype=np.uint8)
    octets[good] = nibbles[:, 0::2] << 4 | nibbles[:, 1::2]
    valid = pa.py_buffer(np.packbits(good, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(texts), [valid, pa.py_buffer(octets.tobytes())]
    )
