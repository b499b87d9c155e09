"""The Merkle tree of a log over both tiers, against the recursive definition over the events' hashes.

The random logs are the default's few; EXAMPLES multiplies them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.errors import InputError, IntegrityError
from eventstore.integrity.merkle import is_consistent, leaf_hash, root_from_inclusion
from eventstore.integrity.tree import Tree
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
)
from tests.unit.test_merkle import mth


def hashes(store: Store, tenant: str = "acme") -> list[bytes]:
    return [row["hash"] for row in read(store, tenant)]


def tree_of(store: Store) -> Tree:
    return Tree(store.database, store.tiers)


def check(store: Store, values: Sequence[bytes], sizes: Sequence[int], seqs: Sequence[int]) -> None:
    """Roots, proofs and consistency at some sizes are those of the definition over all hashes."""
    tree = tree_of(store)
    roots = {size: mth(list(values[:size])) for size in sizes}
    for size, root in roots.items():
        assert tree.root("acme", size) == root
        wanted = [seq for seq in seqs if seq <= size]
        for seq, path in zip(wanted, tree.prove("acme", wanted, size, root=root), strict=True):
            assert root_from_inclusion(seq - 1, size, leaf_hash(values[seq - 1]), path) == root
        for first in sizes:
            if first <= size:
                proof = tree.consistency("acme", first, size)
                assert is_consistent(first, size, roots[first], root, proof)


def test_the_tree_over_both_tiers(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 4, per_day=330)
    run_retention(store, START_US + 2 * DAY_US)
    values, tree = hashes(store), tree_of(store)
    tree.grow("acme", 700)
    tree.grow("acme", 1320)
    check(store, values, [1, 255, 256, 257, 660, 1024, 1320], [1, 256, 257, 660, 661, 1024, 1025, 1320])
