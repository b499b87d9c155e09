"""A segment's Bloom filter over entity_id, taken out of its Parquet file and folded to a small size.

Parquet keeps a filter a row group, each sized for the most different ids it might see. Folding a filter
in halves keeps every promise ("not in here" stays true) at a smaller size; the row groups' filters are
then laid over each other where that leaves them telling, or kept side by side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.bloom import BLOCK_BYTES, join_filters

__all__ = ["entity_filter"]

# A value sets eight bits, so at this share of set bits one in sixty absent ids is taken for present.
_FILL_MAX = 0.6
_WORDS = BLOCK_BYTES // 8
_COLUMN = EVENT_FIELDS.index("entity_id")


def entity_filter(file: pq.ParquetFile, data: bytes) -> bytes | None:
    """A segment's filter, in the form that `model.bloom.BloomProbe` reads; as small as it can be and
    still tell ids apart.

    None: a row group has no filter, or one so full that it tells nothing. The segment must then be looked at.
    """
    groups = [_bitset(file, data, index) for index in range(file.num_row_groups)]
    if not groups or any(group is None for group in groups):
        return None
    bits = [group for group in groups if group is not None]
    smallest = min(len(b) for b in bits)
    bits = [_folded_to(b, smallest) for b in bits]
    joined = bits[0]
    for b in bits[1:]:
        joined = joined | b
    # Too many different ids for one filter of that size: the row groups' filters stay side by side.
    kept = [joined] if _fill(joined) <= _FILL_MAX else bits
    if max(_fill(b) for b in kept) > _FILL_MAX:
        return None
    while len(kept[0]) > 1:
        folded = [_folded_to(b, len(b) // 2) for b in kept]
        if max(_fill(b) for b in folded) > _FILL_MAX:
            break
        kept = folded
    return join_filters([b.tobytes() for b in kept])


def _bitset(file: pq.ParquetFile, data: bytes, group: int) -> npt.NDArray[np.uint64] | None:
    column = file.metadata.row_group(group).column(_COLUMN)
    offset, length = column.bloom_filter_offset, column.bloom_filter_length
    if offset is None or length is None or length <= BLOCK_BYTES:
        return None
    # A short header comes before the bitset, whose size is a power of two.
    size_bytes = 1 << (length - 1).bit_length() - 1
    end = offset + length
    if not BLOCK_BYTES <= size_bytes < length or end > len(data):
        return None
    return np.frombuffer(data[end - size_bytes : end], dtype=np.uint64).reshape(-1, _WORDS)


def _folded_to(bits: npt.NDArray[np.uint64], blocks: int) -> npt.NDArray[np.uint64]:
    """The filter in fewer blocks: a value's block is chosen by the upper bits of its hash, so neighbours
    merge."""
    while len(bits) > blocks:
        bits = bits[0::2] | bits[1::2]
    return bits


def _fill(bits: npt.NDArray[np.uint64]) -> float:
    return float(np.unpackbits(bits.view(np.uint8)).mean())
