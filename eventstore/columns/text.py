"""Columns of events as text, whole columns at once: times, ids, JSON strings, cells of CSV.

A loop over rows costs ten microseconds an event; this costs about one. What most columns do not need
(escaping) is looked for in their bytes first, which costs next to nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.columns.canonical import fixed_bytes, int64_values

__all__ = [
    "fixed_text",
    "formula_safe",
    "hash_text",
    "json_string",
    "text_parts",
    "time_text",
    "uuid_text",
]

Octets = npt.NDArray[np.uint8]

_TIME_WIDTH, _UUID_WIDTH, _HASH_WIDTH = 27, 36, 64

# The two digits of a number below 100, and those of a byte in hexadecimal; two octets each.
_DIGITS = np.frombuffer(b"".join(b"%02d" % n for n in range(100)), dtype=np.uint16)
_HEX = np.frombuffer(b"".join(b"%02x" % n for n in range(256)), dtype=np.uint16)

_TIME = np.dtype(
    {
        "names": ["date", "hours", "minutes", "seconds", "us_high", "us_middle", "us_low"],
        "formats": ["S10", "u2", "u2", "u2", "u2", "u2", "u2"],
        "offsets": [0, 11, 14, 17, 20, 22, 24],
        "itemsize": _TIME_WIDTH,
    }
)
_TIME_FORM = np.void(b"yyyy-mm-ddThh:mm:ss.ffffffZ")
_US_PER_DAY = 86_400_000_000
_QUOTE, _BACKSLASH, _CONTROLS = 0x22, 0x5C, 0x20
_SHORT_ESCAPES = {8: r"\b", 9: r"\t", 10: r"\n", 12: r"\f", 13: r"\r"}


# --- columns of one width -----------------------------------------------------------------------------


def time_text(column: pa.Array) -> Octets:
    """Times as `clock.to_iso` writes them: 27 octets a row."""
    days, rest_us = np.divmod(int64_values(column), _US_PER_DAY)
    distinct, which = np.unique(days, return_inverse=True)
    dates = np.datetime_as_string(distinct.astype("datetime64[D]")).astype("S10")
    seconds, us = np.divmod(rest_us, 1_000_000)
    minutes, seconds = np.divmod(seconds.astype(np.int32), 60)
    hours, minutes = np.divmod(minutes, 60)
    us_rest, us_low = np.divmod(us.astype(np.int32), 100)
    us_high, us_middle = np.divmod(us_rest, 100)
    rows = np.full(len(column), _TIME_FORM).view(_TIME)
    rows["date"] = dates[which]
    rows["hours"], rows["minutes"], rows["seconds"] = _DIGITS[hours], _DIGITS[minutes], _DIGITS[seconds]
    rows["us_high"], rows["us_middle"], rows["us_low"] = _DIGITS[us_high], _DIGITS[us_middle], _DIGITS[us_low]
    return rows.view(np.uint8).reshape(len(column), _TIME_WIDTH)


def uuid_text(column: pa.Array) -> Octets:
    """UUIDs of 16 bytes in their text form: 36 octets a row."""
    digits = _hexadecimal(column, 16)
    rows = np.full((len(column), _UUID_WIDTH), b"-"[0], dtype=np.uint8)
    for at, start, end in ((0, 0, 8), (9, 8, 12), (14, 12, 16), (19, 16, 20), (24, 20, 32)):
        rows[:, at : at + end - start] = digits[:, start:end]
    return rows


def hash_text(column: pa.Array) -> Octets:
    """Hashes of 32 bytes in hexadecimal: 64 octets a row."""
    return _hexadecimal(column, 32)


def _hexadecimal(column: pa.Array, width: int) -> Octets:
    digits: Octets = _HEX[fixed_bytes(column, width).view(np.uint8)].view(np.uint8)
    return digits.reshape(len(column), 2 * width)


def fixed_text(*parts: Octets | bytes, rows: int) -> pa.StringArray:
    """A text column that has in each row these parts one after the other: octets of the row's own, or text
    that is the same in all."""
    widths = [len(part) if isinstance(part, bytes) else part.shape[1] for part in parts]
    whole = np.empty((rows, sum(widths)), dtype=np.uint8)
    start = 0
    for part, width in zip(parts, widths, strict=True):
        whole[:, start : start + width] = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        start += width
    offsets = np.arange(0, (rows + 1) * start, start, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(whole.reshape(-1).data))


# --- text of any width --------------------------------------------------------------------------------


def text_parts(column: pa.Array) -> tuple[npt.NDArray[np.int64], Octets]:
    """Where the rows of a text column begin and end, and its octets. A null may have any."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    octets = np.frombuffer(b"" if data is None else data, np.uint8)[ends[0] : ends[-1]]
    return ends.astype(np.int64) - int(ends[0]), octets


def json_string(column: pa.Array) -> pa.Array:
    """What stands between the quotes of a JSON string, for each text; null stays null."""
    if not len(column):
        return column
    _, octets = text_parts(column)
    special = octets[(octets < _CONTROLS) | (octets == _QUOTE) | (octets == _BACKSLASH)]
    if not len(special):
        return column
    present = set(np.unique(special).tolist())
    # The backslash first: the others bring new ones.
    for octet in sorted(present, key=lambda o: o != _BACKSLASH):
        text = chr(octet)
        if octet in (_QUOTE, _BACKSLASH):
            escaped = "\\" + text
        else:
            escaped = _SHORT_ESCAPES.get(octet, f"\\u{octet:04x}")
        column = pc.replace_substring(column, text, escaped)
    return column


# --- cells that no spreadsheet takes for a formula ----------------------------------------------------

# What a formula begins with; the last four are the wide forms of the first four.
_STARTERS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_SAFE = (
    # At the beginning of a cell, where TAB and line ends count too: a spreadsheet may drop them.
    (f"^([ \"']*)([{_STARTERS}\\t\\r\\n])", "\\1'\\2"),
    # Where a program that splits at other places than commas would have a cell begin.
    (f"([;\\t\\r\\n][ \"']*)([{_STARTERS}])", "\\1'\\2"),
)


def _set_of(octets: bytes) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, dtype=np.bool_)
    table[list(octets)] = True
    return table


_PASSED_OVER = _set_of(b" \"'")
# The wide forms begin with 0xEF: these rows are looked at, and most of them left as they are.
_SUSPECT = _set_of(b"=+-@\t\r\n\xef")
_SEMICOLON, _CARRIAGE_RETURN = 0x3B, 0x0D
# Rows that begin with more blanks and quotes than this are looked at without further search.
_BLANKS_MAX = 3


def formula_safe(column: pa.Array) -> pa.Array:
    """Texts with an apostrophe before each sign with which a spreadsheet could take them for a formula.

    A sign counts at the beginning of a text and behind `;`, TAB, CR or LF, blanks and quotes between not
    counted. Nothing else is changed, and exactly one apostrophe is put before each: so it can be undone.
    """
    if len(column) == column.null_count:
        return column
    ends, octets = text_parts(column)
    rows = _suspects(ends, octets)
    if not rows.any():
        return column
    mask = pa.array(rows)
    found = column.filter(mask)
    for pattern, replacement in _SAFE:
        found = pc.replace_substring_regex(found, pattern, replacement)
    return pc.replace_with_mask(column, mask, found)


def _suspects(ends: npt.NDArray[np.int64], octets: Octets) -> npt.NDArray[np.bool_]:
    """The rows that may need an apostrophe; the others do not."""
    rows = np.zeros(len(ends) - 1, dtype=np.bool_)
    # A few more octets than TAB, LF and CR: one comparison is quicker than three.
    places = np.flatnonzero((octets == _SEMICOLON) | (octets <= _CARRIAGE_RETURN))
    rows[np.searchsorted(ends, places, side="right") - 1] = True
    at, left = ends[:-1], np.flatnonzero(ends[:-1] < ends[1:])
    for passed in range(_BLANKS_MAX + 1):
        octet = octets[at[left] + passed]
        rows[left[_SUSPECT[octet]]] = True
        left = left[_PASSED_OVER[octet]]
        left = left[at[left] + passed + 1 < ends[left + 1]]
    rows[left] = True
    return rows
