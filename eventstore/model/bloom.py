"""Parquet's split block Bloom filters, as far as a reader needs them.

A segment's own filter over entity_id says which entities it cannot hold. Kept beside the segment in the
catalog, it spares a query the opening of most files.

Format: https://github.com/apache/parquet-format/blob/master/BloomFilter.md (blocks of eight 32-bit words,
one bit set in each word by a value; the block is chosen by the upper half of XXH64). XXH64:
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BLOCK_BYTES", "BloomProbe", "join_filters", "xxh64"]

BLOCK_BYTES = 32
_SALTS = (
    0x47B6137B,
    0x44974D91,
    0x8824AD5B,
    0xA2B7289D,
    0x705495C7,
    0x2DF1424B,
    0x9EFC4947,
    0x5C6BFB31,
)
_M64 = 2**64 - 1
_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


class BloomProbe:
    """One value, hashed once, to be looked for in many filters."""

    def __init__(self, value: bytes) -> None:
        hashed = xxh64(value)
        self._upper, lower = hashed >> 32, hashed & 0xFFFFFFFF
        mask = 0
        for word, salt in enumerate(_SALTS):
            mask |= 1 << (32 * word + (lower * salt & 0xFFFFFFFF) // 2**27)
        self._mask = mask

    def may_be_in(self, joined: bytes) -> bool:
        """False: certainly in none of the joined filters."""
        count = joined[0] if joined else 0
        if count == 0:
            return True  # not a filter of ours: it denies nothing
        size = (len(joined) - 1) // count
        block = (self._upper * (size // BLOCK_BYTES) >> 32) * BLOCK_BYTES
        for start in range(1 + block, len(joined), size):
            bits = int.from_bytes(joined[start : start + BLOCK_BYTES], "little")
            if bits & self._mask == self._mask:
                return True
        return False


def join_filters(filters: Sequence[bytes]) -> bytes:
    """Bitsets of equal size side by side: their number in one byte, then each (a power of two of blocks).

    A value is in the whole if it is in any.
    """
    assert 0 < len(filters) < 256
    assert len({len(bits) for bits in filters}) == 1
    return bytes([len(filters)]) + b"".join(filters)


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _M64


def _round(accumulator: int, lane: int) -> int:
    return _rotate((accumulator + lane * _P2) & _M64, 31) * _P1 & _M64


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0."""
    length, at = len(data), 0
    if length >= 32:
        lanes = [(_P1 + _P2) & _M64, _P2, 0, -_P1 & _M64]
        while at + 32 <= length:
            for n in range(4):
                lane = int.from_bytes(data[at + 8 * n : at + 8 * n + 8], "little")
                lanes[n] = _round(lanes[n], lane)
            at += 32
        h = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _M64
        for lane in lanes:
            h = ((h ^ _round(0, lane)) * _P1 + _P4) & _M64
    else:
        h = _P5
    h = (h + length) & _M64
    while at + 8 <= length:
        h ^= _round(0, int.from_bytes(data[at : at + 8], "little"))
        h = (_rotate(h, 27) * _P1 + _P4) & _M64
        at += 8
    if at + 4 <= length:
        h ^= int.from_bytes(data[at : at + 4], "little") * _P1 & _M64
        h = (_rotate(h, 23) * _P2 + _P3) & _M64
        at += 4
    for byte in data[at:]:
        h = _rotate(h ^ (byte * _P5 & _M64), 11) * _P1 & _M64
    h = (h ^ h >> 33) * _P2 & _M64
    h = (h ^ h >> 29) * _P3 & _M64
    return h ^ h >> 32
