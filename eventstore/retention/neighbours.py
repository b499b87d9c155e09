"""Each event of a stream compared with the one before it that has the same key, whole batches at a time.

Within a batch neighbours are found by sorting. From one batch to the next a hash table holds one number for
each key. It knows a key by 128 bits of a hash under a secret of the process, so that neither chance nor
anybody's design lets one key pass for another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.columns.canonical import int64_values

__all__ = ["SLICE_ROWS", "Column", "Flags", "Ints", "Neighbours", "Words", "text_hashes"]

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_ROW_BITS = 15  # of a sort key; it leaves 48 for three codes, each at most the number of rows
SLICE_ROWS = 1 << _ROW_BITS
_BLOCK_BYTES = 256 * 1024  # of text hashed at once: what is made of it stays in the processor's cache
_TABLE_WORDS = 4096
_SLOTS_MIN = 4096
_NAME_CHARS_MAX = 80  # of an entity's id in a message

_HALF, _ODD = np.uint64(32), np.uint64(0xD6E8FEB86659FD93)
_TAIL_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
_SECRET = np.frombuffer(os.urandom(8), dtype="<u8")[0]
_LANES = np.frombuffer(os.urandom(2 * 8 * _TABLE_WORDS), dtype="<u8").reshape(2, -1) | np.uint64(1)


def text_hashes(column: pa.Array, lanes: int) -> list[Words]:
    """So many independent 64-bit hashes (1 or 2) of each text. Equal texts have equal hashes; those of a null
    mean nothing."""
    stored = np.frombuffer(column.buffers()[1], dtype=np.int32)
    offsets = stored[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(column.buffers()[2] or b"", dtype=np.uint8)
    blocks = [_hash_block(data, block, lanes) for block in _blocks(offsets)]
    return [np.concatenate([block[lane] for block in blocks]) for lane in range(lanes)]


def _blocks(offsets: Ints) -> Iterator[Ints]:
    """The texts in pieces of limited size, and of one text at least."""
    start = 0
    while start < len(offsets) - 1:
        fits = int(np.searchsorted(offsets, offsets[start] + _BLOCK_BYTES, side="right")) - 1
        end = max(fits, start + 1)
        yield offsets[start : end + 1]
        start = end


def _hash_block(data: npt.NDArray[np.uint8], offsets: Ints, lanes: int) -> list[Words]:
    base, lengths = int(offsets[0]), np.diff(offsets)
    starts = offsets[:-1] - base
    size = int(offsets[-1]) - base
    # Texts begin anywhere. Eight copies, each shifted by a byte, make every word of theirs an aligned one:
    # gathering those takes half the time.
    stride = size // 8 + 2
    padded = np.zeros(8 * stride + 8, dtype=np.uint8)
    padded[:size] = data[base : base + size]
    shifted = np.empty((8, stride), dtype=np.uint64)
    for shift in range(8):
        shifted[shift] = padded[shift : shift + 8 * stride].view("<u8")

    words = np.maximum((lengths + 7) >> 3, 1)
    ends = np.cumsum(words)
    first = ends - words
    number = np.arange(ends[-1])
    at = np.repeat((starts & 7) * stride + (starts >> 3) - first, words)
    at += number
    text = shifted.reshape(-1).take(at)
    text[ends - 1] &= _TAIL_MASKS[lengths - 8 * (words - 1)]
    text ^= _SECRET
    text ^= text >> _HALF
    number -= np.repeat(first, words)  # of each word in its text
    if int(words.max()) > _TABLE_WORDS:
        text += (number // _TABLE_WORDS).astype(np.uint64) * _ODD
        number %= _TABLE_WORDS
    hashes = []
    for lane in range(lanes):
        mixed = _LANES[lane].take(number)
        mixed *= text
        mixed ^= mixed >> _HALF
        hashes.append(_mix(np.add.reduceat(mixed, first) + lengths.astype(np.uint64)))
    return hashes


def _mix(words: Words) -> Words:
    """Spread every bit over the whole word. No two words become the same."""
    words = (words ^ words >> _HALF) * _ODD
    return words ^ words >> _HALF


class Column:
    """A text column without nulls as codes into its distinct texts."""

    def __init__(self, column: pa.Array) -> None:
        if column[1:].equals(column[:-1]):  # all the same, as types and fields often are: ten times faster
            self.codes: Ints = np.zeros(len(column), dtype=np.int64)
            self.names: pa.StringArray = column[:1]
            return
        encoded = column.dictionary_encode()
        self.codes = encoded.indices.to_numpy().astype(np.int64)
        self.names = encoded.dictionary

    @cached_property
    def hashes(self) -> list[Words]:
        """Two of each distinct text."""
        return text_hashes(self.names, 2)


class LastValues:
    """A hash table of at most `keys_max` keys (two words, 128 bits) and the value each had last: 24 bytes a
    slot, two to four slots a key."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._count = 0
        self._reserve(_SLOTS_MIN)

    def _reserve(self, slots: int) -> None:
        self._last_slot = np.uint64(slots - 1)
        self._keys = np.zeros(slots, dtype=np.uint64)  # 0: an empty slot
        self._checks = np.empty(slots, dtype=np.uint64)
        self._values = np.empty(slots, dtype=np.uint64)

    def exchange(self, keys: Words, checks: Words, values: Words, order: Ints) -> tuple[Words, Flags, Flags]:
        """Give the last value of each key and put the new one in its place. No key comes twice.

        Returns the last values, which of them there were, and which keys have a value now: when the table
        is full no key is added; the first in `order` come first.
        """
        keys = keys | np.uint64(1)
        slots, found = self._find(keys, checks)
        before = self._values.take(slots)
        self._values[slots[found]] = values[found]
        new = np.flatnonzero(~found)
        room = self._keys_max - self._count
        if len(new) > room:
            new = new[np.argsort(order[new])[:room]]
        kept = found.copy()
        kept[new] = True
        if len(new):
            self._add(keys[new], checks[new], values[new])
        return before, found, kept

    def _find(self, keys: Words, checks: Words) -> tuple[Ints, Flags]:
        """The slot of each key and True, or an empty one and False."""
        slots = (keys >> np.uint64(1) & self._last_slot).view(np.int64)
        found = np.zeros(len(keys), dtype=np.bool_)
        pending = np.arange(len(keys))
        at = slots
        while len(pending):
            there = self._keys.take(at)
            same = (there == keys.take(pending)) & (self._checks.take(at) == checks.take(pending))
            found[pending] = same
            pending = pending[~same & (there != 0)]
            at = slots[pending] + 1 & int(self._last_slot)
            slots[pending] = at
        return slots, found

    def _add(self, keys: Words, checks: Words, values: Words) -> None:
        """Add keys that are not there. At least half of the slots stay empty."""
        self._count += len(keys)
        size = len(self._keys)
        if size < 2 * self._count:
            while size < 2 * self._count:
                size *= 2
            used = self._keys != 0
            old = self._keys[used], self._checks[used], self._values[used]
            self._reserve(size)
            self._place(*old)
        self._place(keys, checks, values)

    def _place(self, keys: Words, checks: Words, values: Words) -> None:
        slots = (keys >> np.uint64(1) & self._last_slot).view(np.int64)
        pending = np.arange(len(keys))
        while len(pending):
            free = self._keys.take(slots) == 0
            # Where several want one slot, the last of them gets it, and the others look on.
            self._keys[slots[free]] = keys[pending[free]]
            self._checks[slots[free]] = checks[pending[free]]
            won = free & (self._keys.take(slots) == keys.take(pending))
            won &= self._checks.take(slots) == checks.take(pending)
            self._values[slots[won]] = values[pending[won]]
            pending = pending[~won]
            slots = slots[~won] + 1 & int(self._last_slot)


class Neighbours:
    """Judges each event by the one before it of the same key. The first of a key is not judged.

    `count`: how many events break the rule. `first`: the first one's seq, and its key in words.
    `unknown_from`: the first seq whose key was one too many (None: none was). Keys that first come from
    there on are not judged, those known before are.
    """

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.count = 0
        self.first: tuple[int, str] | None = None
        self.unknown_from: int | None = None
        self._last = LastValues(keys_max)

    def judge(
        self,
        events: pa.RecordBatch,
        key: Mapping[str, Column],
        values: Words,
        breaks: Callable[[Ints, Words], Flags],
    ) -> None:
        """The next events, at most `SLICE_ROWS`, with the columns that make the key. `values` are what is
        remembered of each; `breaks` says which of some rows break the rule, given the values before them."""
        rows, heads, keys, checks = _group(list(key.values()))
        sizes = np.diff(heads, append=len(rows))
        last, found, kept = self._last.exchange(keys, checks, values[rows[heads + sizes - 1]], rows[heads])
        previous = np.empty(len(rows), dtype=np.uint64)
        previous[1:] = values[rows[:-1]]
        previous[heads] = last
        known = np.repeat(kept, sizes)
        known[heads] = found

        seqs = int64_values(events.column("seq"))
        if self.unknown_from is None and not kept.all():
            self.unknown_from = int(seqs[rows[heads[~kept]].min()])
        broken = rows[known & breaks(rows, previous)]
        self.count += len(broken)
        if self.first is None and len(broken):
            row = int(broken.min())
            names = (events.column(name)[row].as_py() for name in key)
            self.first = (int(seqs[row]), " ".join(_shorten(name) for name in names))


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_CHARS_MAX else name[:_NAME_CHARS_MAX] + "…"


def _group(key: list[Column]) -> tuple[Ints, Ints, Words, Words]:
    """The rows sorted by key and then in their order, where each key begins among them, and two hashes of
    each key."""
    code = key[0].codes
    for column in key[1:]:
        code = code * len(column.names) + column.codes
    # Key and row in one number: to sort those is several times faster than a stable argsort.
    packed = code << _ROW_BITS | np.arange(len(code))
    packed.sort()
    rows = packed & (SLICE_ROWS - 1)
    packed >>= _ROW_BITS
    heads = np.flatnonzero(np.append(True, packed[1:] != packed[:-1]))
    hashes = [np.zeros(len(heads), dtype=np.uint64) for _ in range(2)]
    for column in key:
        codes = column.codes[rows[heads]]
        for lane, of_names in enumerate(column.hashes):
            hashes[lane] = _mix(hashes[lane] + of_names[codes])
    return rows, heads, hashes[0], hashes[1]
