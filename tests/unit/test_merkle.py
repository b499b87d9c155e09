"""The Merkle tree against the recursive definition of RFC 6962, section 2.1, written down word for word."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.integrity.merkle import (
    BLOCK_LEAVES,
    EMPTY_ROOT,
    NodeSource,
    block_roots,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    nodes_over,
    root_at,
    root_from_consistency,
    root_from_inclusion,
)

VALUES = [sha256(str(n).encode()).digest() for n in range(1100)]


def power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(values: list[bytes]) -> bytes:
    if not values:
        return sha256(b"").digest()
    if len(values) == 1:
        return sha256(b"\x00" + values[0]).digest()
    k = power_below(len(values))
    return sha256(b"\x01" + mth(values[:k]) + mth(values[k:])).digest()


def path(m: int, values: list[bytes]) -> list[bytes]:
    n = len(values)
    if n == 1:
        return []
    k = power_below(n)
    if m < k:
        return [*path(m, values[:k]), mth(values[k:])]
    return [*path(m - k, values[k:]), mth(values[:k])]


def subproof(m: int, values: list[bytes], whole: bool) -> list[bytes]:
    n = len(values)
    if m == n:
        return [] if whole else [mth(values)]
    k = power_below(n)
    if m <= k:
        return [*subproof(m, values[:k], whole), mth(values[k:])]
    return [*subproof(m - k, values[k:], False), mth(values[:k])]


def nothing_beneath(level: int, index: int) -> bytes:
    raise AssertionError(f"node {index} of level {level} was not to be asked for")


def tree(size: int) -> NodeSource:
    return nodes_over(0, [leaf_hash(v) for v in VALUES[:size]], nothing_beneath)


sizes = st.one_of(st.integers(1, 70), st.integers(250, 520), st.integers(1000, 1100))


@given(sizes, st.data())
def test_a_leaf_is_proven(size: int, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaf, size, tree(size))
    root = mth(VALUES[:size])
    assert root_at(size, tree(size)) == root
    assert proof == path(leaf, VALUES[:size])
    assert root_from_inclusion(leaf, size, leaf_hash(VALUES[leaf]), proof) == root


@given(sizes, st.data())
def test_nothing_else_is_proven(size: int, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaf, size, tree(size))
    root, hashed = mth(VALUES[:size]), leaf_hash(VALUES[leaf])
    assert root_from_inclusion(leaf, size, leaf_hash(b"no leaf"), proof) != root
    assert root_from_inclusion(leaf, size, hashed, [*proof, root]) is None
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != leaf)) if size > 1 else size
    assert root_from_inclusion(other, size, hashed, proof) != root
    if proof:
        assert root_from_inclusion(leaf, size, hashed, proof[:-1]) is None
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = bytes(b ^ (1 << bit % 8 if n == bit // 8 else 0) for n, b in enumerate(proof[at]))
        assert root_from_inclusion(leaf, size, hashed, [*proof[:at], flipped, *proof[at + 1 :]]) != root


@given(sizes, st.data())
def test_a_beginning_is_proven(second: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, second))
    roots = mth(VALUES[:first]), mth(VALUES[:second])
    proof = consistency_proof(first, second, tree(second))
    assert proof == subproof(first, VALUES[:second], True)
    assert root_from_consistency(first, second, roots[0], proof) == roots
    forged = mth([b"another" + bytes(25), *VALUES[1:first]])
    found = root_from_consistency(first, second, forged, proof)
    assert found is None or found != (forged, roots[1])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_blocks_are_subtrees(blocks: int) -> None:
    values = VALUES[: blocks * BLOCK_LEAVES]
    roots = block_roots(b"".join(values))
    assert len(roots) == 32 * blocks
    for n in range(blocks):
        assert roots[32 * n : 32 * n + 32] == mth(values[n * BLOCK_LEAVES : (n + 1) * BLOCK_LEAVES])
    with pytest.raises(ValueError, match="whole number of blocks"):
        block_roots(b"".join(values)[:-1])


def test_one_block_is_enough_for_a_leaf_within_it() -> None:
    """What lies outside the leaf's own block is asked for by its nodes alone."""
    size, leaf = 1100, 300
    asked: list[tuple[int, int]] = []
    whole = tree(size)

    def beneath(level: int, index: int) -> bytes:
        asked.append((level, index))
        return whole(level, index)

    block = [leaf_hash(v) for v in VALUES[256:512]]
    assert inclusion_proof(leaf, size, nodes_over(256, block, beneath)) == path(leaf, VALUES[:size])
    assert len(asked) <= 12


def test_edges() -> None:
    assert root_at(0, nothing_beneath) == EMPTY_ROOT == mth([])
    for leaf, size in ((0, 0), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(leaf, size, nothing_beneath)
        assert root_from_inclusion(leaf, size, EMPTY_ROOT, []) is None
    for first, second in ((0, 1), (2, 1)):
        with pytest.raises(ValueError, match="no proof"):
            consistency_proof(first, second, nothing_beneath)
        assert root_from_consistency(first, second, EMPTY_ROOT, []) is None
    assert root_from_consistency(2, 2, EMPTY_ROOT, [EMPTY_ROOT]) is None
    assert root_from_consistency(3, 4, EMPTY_ROOT, []) is None
