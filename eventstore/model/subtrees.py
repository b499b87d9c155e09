"""Full subtrees of a log's Merkle tree, by which a certificate says what the tree was over a range that is
gone (docs/design/0030-merkle-tree-and-checkpoints.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

__all__ = ["LOST_VALUE", "Subtree", "cover", "lost_hash", "lost_subtrees"]

# Stands in the tree for the hash of an event of which nothing is known any more, not even that.
LOST_VALUE = bytes(32)


@dataclass(frozen=True, slots=True)
class Subtree:
    """The full subtree of 2^`level` leaves that begins at leaf `index` * 2^`level`, and its hash."""

    level: int
    index: int
    hash: bytes


def cover(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The largest full subtrees (level, index), from the left, that together are the leaves [begin, end)."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            level = min(level, (begin & -begin).bit_length() - 1)
        yield level, begin >> level
        begin += 1 << level


def lost_hash(level: int) -> bytes:
    """The hash of a full subtree over events whose hashes are not known: each is `LOST_VALUE`."""
    found = sha256(b"\0" + LOST_VALUE).digest()
    for _ in range(level):
        found = sha256(b"\1" + found + found).digest()
    return found


def lost_subtrees(first_seq: int, last_seq: int) -> tuple[Subtree, ...]:
    """The subtrees over a range of events whose hashes are not known."""
    return tuple(Subtree(level, index, lost_hash(level)) for level, index in cover(first_seq - 1, last_seq))
