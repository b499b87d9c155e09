"""A segment's Bloom filter over entity_id, taken out of its Parquet file and folded to a small size.

Parquet keeps a filter a row group, each sized for the most different ids it might see. Folding a filter
in halves keeps every promise ("not in here" stays true) at a smaller size; the row groups' filters are
then laid over each other, so that a segment has one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from eventstore.columns.schema import EVENT_FIELDS
from eventstore.model.bloom import BLOCK_BYTES

__all__ = ["entity_filter"]

# A value sets eight bits, so at this share of set bits one in sixty absent ids is taken for present.
_FILL_MAX = 0.6
_WORDS = BLOCK_BYTES // 8
_COLUMN = EVENT_FIELDS.index("entity_id")


def entity_filter(file: pq.ParquetFile, data: bytes) -> bytes | None:
    """The bitset of one filter for all of a segment, as small as it can be and still tell ids apart.

    None: the segment has a row group without a filter, or so many different ids that one filter would
    not tell them apart. It must then be looked at.
    """
    groups = [_bitset(file, data, index) for index in range(file.num_row_groups)]
    if not groups or any(group is None for group in groups):
        return None
    bits = [group for group in groups if group is not None]
    smallest = min(len(b) for b in bits)
    joined = np.zeros((smallest, _WORDS), dtype=np.uint64)
    for b in bits:
        while len(b) > smallest:
            b = _fold(b)
        joined |= b
    if _fill(joined) > _FILL_MAX:
        return None
    while len(joined) > 1:
        folded = _fold(joined)
        if _fill(folded) > _FILL_MAX:
            break
        joined = folded
    return joined.tobytes()


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


def _fold(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Half the size: a value's block is chosen by the upper bits of its hash, so neighbours merge."""
    return bits[0::2] | bits[1::2]


def _fill(bits: npt.NDArray[np.uint64]) -> float:
    return float(np.unpackbits(bits.view(np.uint8)).mean())
