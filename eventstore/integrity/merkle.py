"""The Merkle tree over a tenant's log, after RFC 6962 section 2.1 (the same in RFC 9162).

Leaf number `seq - 1` is the event's own 32-byte hash. Trees of all sizes share their full subtrees, so those
are what is kept: blocks of 256 leaves (level 8), and whatever lies above is hashed when it is asked for. The
cut at 256 is that of https://c2sp.org/tlog-tiles.

Everything here works over `NodeSource`, which gives the hash of a full subtree by its level and index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

__all__ = [
    "BLOCK_LEAVES",
    "BLOCK_LEVEL",
    "EMPTY_ROOT",
    "HASH_BYTES",
    "NodeSource",
    "block_roots",
    "consistency_proof",
    "inclusion_proof",
    "is_consistent",
    "leaf_hash",
    "node_hash",
    "nodes_over",
    "root_at",
    "root_from_consistency",
    "root_from_inclusion",
]

BLOCK_LEVEL = 8
BLOCK_LEAVES = 1 << BLOCK_LEVEL
HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()

# The hash of the full subtree of 2^level leaves that begins at leaf index * 2^level.
NodeSource = Callable[[int, int], bytes]


def leaf_hash(value: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 ‖ value)."""
    return sha256(b"\0" + value).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return sha256(b"\1" + left + right).digest()


def block_roots(values: bytes | memoryview) -> bytes:
    """The roots of whole blocks of leaves, one after another; `values` are their events' hashes, joined.

    Raises:
        ValueError: it is not a whole number of blocks.
    """
    if len(values) % (BLOCK_LEAVES * HASH_BYTES):
        raise ValueError(f"{len(values)} bytes are no whole number of blocks")
    octets = bytes(values)
    level = b"".join(
        sha256(b"\0" + octets[at : at + HASH_BYTES]).digest() for at in range(0, len(octets), HASH_BYTES)
    )
    for _ in range(BLOCK_LEVEL):
        level = b"".join(
            sha256(b"\1" + level[at : at + 2 * HASH_BYTES]).digest()
            for at in range(0, len(level), 2 * HASH_BYTES)
        )
    return level


def nodes_over(first_leaf: int, leaves: Sequence[bytes], beneath: NodeSource) -> NodeSource:
    """A source that knows the leaf hashes of one stretch, and asks `beneath` for what lies outside it."""

    def node(level: int, index: int) -> bytes:
        begin, end = index << level, (index + 1) << level
        if begin < first_leaf or end > first_leaf + len(leaves):
            return beneath(level, index)
        if level == 0:
            return leaves[begin - first_leaf]
        return node_hash(node(level - 1, 2 * index), node(level - 1, 2 * index + 1))

    return node


def _full_subtrees(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The full subtrees (level, index), from the left, that make the range of leaves; `begin` has to be
    where a subtree as large as the range's first begins, as all ranges below are."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


def _range_hash(begin: int, end: int, node: NodeSource) -> bytes:
    """MTH over leaves [begin, end)."""
    parts = [node(level, index) for level, index in _full_subtrees(begin, end)]
    result = parts.pop()
    while parts:
        result = node_hash(parts.pop(), result)
    return result


def root_at(size: int, node: NodeSource) -> bytes:
    """The root of the tree of the first `size` leaves."""
    return _range_hash(0, size, node) if size else EMPTY_ROOT


def _split(count: int) -> int:
    """The largest power of two below `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def inclusion_proof(leaf: int, size: int, node: NodeSource) -> list[bytes]:
    """PATH(leaf, D[size]): the hashes beside the way from a leaf to the root, from the leaf upwards.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= leaf < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {leaf}")
    path: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if leaf < middle:
            path.append(_range_hash(middle, end, node))
            end = middle
        else:
            path.append(_range_hash(begin, middle, node))
            begin = middle
    return path[::-1]


def consistency_proof(first: int, second: int, node: NodeSource) -> list[bytes]:
    """PROOF(first, D[second]): shows that the tree of `first` leaves is the beginning of the one of `second`.

    Raises:
        ValueError: not 0 < first <= second.
    """
    if not 0 < first <= second:
        raise ValueError(f"there is no proof from {first} to {second} leaves")
    proof: list[bytes] = []
    begin, end = 0, second
    while first != end:
        middle = begin + _split(end - begin)
        if first <= middle:
            proof.append(_range_hash(middle, end, node))
            end = middle
        else:
            proof.append(_range_hash(begin, middle, node))
            begin = middle
    if begin:  # else the verifier knows it: it is the first root itself
        proof.append(_range_hash(begin, end, node))
    return proof[::-1]


def root_from_inclusion(leaf: int, size: int, hashed: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to from a leaf's hash, by RFC 9162 section 2.1.3.2; None if the proof has
    not the length that it has to have."""
    if not 0 <= leaf < size:
        return None
    at, last, result = leaf, size - 1, hashed
    for beside in proof:
        if last == 0:
            return None
        if at & 1 or at == last:
            result = node_hash(beside, result)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            result = node_hash(result, beside)
        at, last = at >> 1, last >> 1
    return result if last == 0 else None


def is_consistent(
    first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether a proof shows that the tree of `first` leaves is the beginning of that of `second`."""
    return root_from_consistency(first, second, first_root, proof) == (first_root, second_root)


def root_from_consistency(
    first: int, second: int, first_root: bytes, proof: Sequence[bytes]
) -> tuple[bytes, bytes] | None:
    """The roots of the first and the second tree that a proof leads to, by RFC 9162 section 2.1.4.2; None if
    it has not the length that it has to have. It holds if both are the roots that were signed."""
    if not 0 < first <= second:
        return None
    if first == second:
        return None if proof else (first_root, first_root)
    # A first tree that is a full subtree is not repeated in the proof.
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        return None
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    one = two = path[0]
    for beside in path[1:]:
        if last == 0:
            return None
        if at & 1 or at == last:
            one, two = node_hash(beside, one), node_hash(beside, two)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            two = node_hash(two, beside)
        at, last = at >> 1, last >> 1
    return (one, two) if last == 0 else None
