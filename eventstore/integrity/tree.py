"""The Merkle tree of each log: how it grows, and what is proven with it.

One tree over the whole log (`integrity.merkle`). Hashes of full subtrees, which never change, are stored as
tiles when whole blocks of 256 leaves are there; leaves are not stored, they are the events' hashes, in
whichever tier. Of a destroyed window its certificate's subtrees are left, and the leaves of blocks in which a
checkpoint ends (docs/design/0030-merkle-tree-and-checkpoints.md).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.archive.cache import SegmentCache
from eventstore.archive.scan import ArchiveScan
from eventstore.archive.targets import Targets
from eventstore.db.engine import Database
from eventstore.db.tables_tree import checkpoints, tree_tiles, trees
from eventstore.errors import InputError, IntegrityError, StateError, TargetUnavailableError
from eventstore.integrity.merkle import (
    BLOCK_LEAVES,
    BLOCK_LEVEL,
    HASH_BYTES,
    block_roots,
    consistency_proof,
    inclusion_proof,
    node_hash,
    root_at,
    root_from_inclusion,
)
from eventstore.integrity.nodes import UNKNOWN, Nodes, is_known, load_nodes
from eventstore.integrity.seams import check_seams
from eventstore.model.event import chain_start
from eventstore.model.subtrees import Subtree, cover, lost_hash
from eventstore.query.tiers import Tiers, list_expired

__all__ = ["Kept", "Tree", "keep", "tree_of"]

# Called with the seq that was reached, and the one to be reached.
Progress = Callable[[int, int], None]

_TILE_BYTES = BLOCK_LEAVES * HASH_BYTES
_TILE_LEAVES = BLOCK_LEAVES * BLOCK_LEAVES
# Leaves of so many blocks are in memory at once while events are proven; what lies between two blocks that
# are both wanted is read as well, up to a number of blocks, as one read costs more than a few hashes.
_RUN_BLOCKS = 256
_GAP_BLOCKS = 32
# Leaves of so many blocks are stored at once.
_AHEAD_BLOCKS = 64
_TEMPORARY_BYTES_MAX = 2**30
# What fails when something was destroyed or moved meanwhile is done anew, so often at the most.
_ANEW_MAX = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of the tree over a range that is to be destroyed: the subtrees that make it, and by its
    number the leaves of each block in which a checkpoint ends."""

    subtrees: tuple[Subtree, ...]
    blocks: dict[int, bytes]


@contextmanager
def tree_of(database: Database, targets: Targets) -> Iterator[Tree]:
    """A tree for who has no reader of the log at hand; remote segments are fetched into a folder that goes
    when the block ends."""
    with TemporaryDirectory(prefix="eventstore-tree-") as folder:
        cache = SegmentCache(Path(folder), size_bytes_max=_TEMPORARY_BYTES_MAX)
        scan = ArchiveScan(targets, cache)
        try:
            yield Tree(database, Tiers(database, scan))
        finally:
            scan.close()


class Tree:
    """The trees of all tenants. Safe for many threads and processes."""

    def __init__(self, database: Database, tiers: Tiers) -> None:
        self._database = database
        self._tiers = tiers

    # --- growing --------------------------------------------------------------------------------------

    def grow(self, tenant_id: str, to_seq: int, *, progress: Progress | None = None) -> None:
        """Store the tiles of all whole blocks up to an event. What is there already is not done again; any
        number of callers may do it at once, and one that dies leaves what it has stored.

        Raises:
            InputError: the log does not reach so far.
            IntegrityError: the events do not go on from where they were when the tree last grew.
            TenantNotFoundError, TargetUnavailableError
        """
        last_seq = self._tiers.state(tenant_id).last_seq
        if to_seq > last_seq:
            raise InputError(f"the log of {tenant_id!r} ends at seq {last_seq}, before {to_seq}")
        end = to_seq // BLOCK_LEAVES * BLOCK_LEAVES
        while True:
            size, last_hash = self._grown(tenant_id)
            if progress is not None:
                progress(min(size, end), end)
            if size >= end:
                return
            to = min(end, (size // _TILE_LEAVES + 1) * _TILE_LEAVES)
            roots, new_hash = self._anew(tenant_id, partial(self._step, tenant_id, size, to, last_hash))
            self._store_step(tenant_id, size, to, roots, new_hash)

    def left_to_grow(self, tenant_id: str) -> int:
        """How many events the tree has not grown over yet.

        Raises:
            TenantNotFoundError
        """
        return self._tiers.state(tenant_id).last_seq - self._grown(tenant_id)[0]

    def _grown(self, tenant_id: str) -> tuple[int, bytes | None]:
        """How far the tree has grown, and the hash of the event at its end (None: not known)."""
        with self._database.transaction() as conn:
            query = sa.select(trees.c.size, trees.c.last_hash).where(trees.c.tenant_id == tenant_id)
            row = conn.execute(query).one_or_none()
        if row is None:
            return 0, None
        return row.size, None if row.last_hash is None else bytes(row.last_hash)

    def _step(
        self, tenant_id: str, begin: int, end: int, last_hash: bytes | None
    ) -> tuple[bytes, bytes | None]:
        """The roots of the blocks over leaves [begin, end), and the hash of the last event."""
        nodes = self._nodes(tenant_id)
        if nodes.expired.over(max(begin, 1), end):
            return self._step_over_gaps(nodes, begin, end, last_hash)
        before = begin > 0 and last_hash is not None
        hashes = self._tiers.hashes(tenant_id, begin if before else begin + 1, end)
        if before:
            _check_goes_on(tenant_id, begin, hashes[:HASH_BYTES], last_hash)
            hashes = hashes[HASH_BYTES:]
        return block_roots(hashes), hashes[-HASH_BYTES:]

    def _step_over_gaps(
        self, nodes: Nodes, begin: int, end: int, last_hash: bytes | None
    ) -> tuple[bytes, bytes | None]:
        """Where something was destroyed before the tree had grown over it (it is made anew, after the catalog
        was rebuilt): what certificates do not say stays unknown. What they say has to fit to what is left."""
        tenant_id = nodes.tenant_id
        if begin and not nodes.expired.over(begin, begin):
            _check_goes_on(tenant_id, begin, self._tiers.hashes(tenant_id, begin, begin), last_hash)
        check_seams(self._database, self._tiers, self.hash_before, tenant_id, begin, end)
        roots = []
        blocks = range(begin // BLOCK_LEAVES, end // BLOCK_LEAVES)
        for start in range(blocks.start, blocks.stop, _RUN_BLOCKS):
            run = range(start, min(start + _RUN_BLOCKS, blocks.stop))
            nodes.load(run)
            roots += [nodes.find(BLOCK_LEVEL, block) or UNKNOWN for block in run]
            nodes.unload()
        last = None if nodes.expired.over(end, end) else self._tiers.hashes(tenant_id, end, end)
        return b"".join(roots), last

    def _store_step(
        self, tenant_id: str, begin: int, end: int, roots: bytes, last_hash: bytes | None
    ) -> None:
        with self._database.transaction() as conn:
            conn.execute(insert(trees).values(tenant_id=tenant_id, size=0).on_conflict_do_nothing())
            query = sa.select(trees.c.size).where(trees.c.tenant_id == tenant_id).with_for_update()
            if conn.execute(query).scalar_one() != begin:
                return  # somebody else was here; what they stored is the same
            _add_to_tile(conn, tenant_id, BLOCK_LEVEL, begin // BLOCK_LEAVES, roots)
            conn.execute(
                sa.update(trees).where(trees.c.tenant_id == tenant_id).values(size=end, last_hash=last_hash)
            )
        # Dying before the commit leaves the tree as it was; after it, a tree that ends with whole blocks.

    # --- proving --------------------------------------------------------------------------------------

    def root(self, tenant_id: str, size: int) -> bytes:
        """The root of the tree of the first `size` events.

        Raises:
            InputError: the tree has not grown so far.
            StateError: something that it is made of was destroyed.
            IntegrityError: something that it is made of is not there.
            TenantNotFoundError, TargetUnavailableError
        """
        return self._anew(tenant_id, lambda: root_at(size, self._nodes(tenant_id, size)))

    def event_hash(self, tenant_id: str, seq: int) -> bytes | None:
        """The stored hash of an event; None: it was destroyed.

        Raises:
            IntegrityError: there is no such event.
            TenantNotFoundError, TargetUnavailableError
        """

        def find() -> bytes | None:
            with self._database.app.transaction(tenant_id) as conn:
                gone = any(e.first_seq <= seq <= e.last_seq for e in list_expired(conn, tenant_id))
            return None if gone else self._tiers.hashes(tenant_id, seq, seq)

        return self._anew(tenant_id, find)

    def hash_before(self, tenant_id: str, seq: int) -> bytes:
        """The hash that an event is chained to, also where what lies before it was destroyed.

        Raises:
            IntegrityError: there is no event before it.
            TenantNotFoundError, TargetUnavailableError
        """
        if seq == 1:
            return chain_start(tenant_id)

        def find() -> bytes:
            with self._database.app.transaction(tenant_id) as conn:
                expired = list_expired(conn, tenant_id)
            known = next((e.hash_after for e in expired if e.last_seq == seq - 1), None)
            return known or self._tiers.hashes(tenant_id, seq - 1, seq - 1)

        return self._anew(tenant_id, find)

    def prove(
        self, tenant_id: str, seqs: Sequence[int], size: int, *, root: bytes | None = None
    ) -> list[list[bytes]]:
        """The inclusion proof of each event in the tree of the first `size`, in the order given: the hashes
        beside its way to the root, from the leaf upwards. Each one was found to lead there. `root` is what
        was signed for that size (None: whatever the tree has now).

        Raises:
            InputError: the tree has not grown so far, or an event lies beyond `size`, or was destroyed.
            IntegrityError: a proof does not hold: a tile, or an event, was changed.
            TenantNotFoundError, TargetUnavailableError
        """
        for seq in seqs:
            if not 1 <= seq <= size:
                raise InputError(f"a checkpoint of {size} events does not hold event {seq}")
        return self._anew(tenant_id, lambda: self._prove(tenant_id, seqs, size, root))

    def _prove(self, tenant_id: str, seqs: Sequence[int], size: int, root: bytes | None) -> list[list[bytes]]:
        blocks = sorted({(seq - 1) // BLOCK_LEAVES for seq in seqs})
        nodes = self._nodes(tenant_id, size, blocks)
        found = root_at(size, nodes)
        if root not in (None, found):
            raise IntegrityError(
                f"the tree of the first {size} events of {tenant_id!r} has not the root that was signed",
                hint="history or a tile was changed: run eventstore verify",
            )
        ordered = sorted(set(seqs))
        proofs: dict[int, list[bytes]] = {}
        for run in _runs(blocks):
            nodes.load(run, blocks[bisect_left(blocks, run.start) : bisect_left(blocks, run.stop)])
            first, last = run.start * BLOCK_LEAVES + 1, run.stop * BLOCK_LEAVES
            for seq in ordered[bisect_left(ordered, first) : bisect_right(ordered, last)]:
                if nodes.expired.over(seq, seq):
                    raise InputError(f"event {seq} was destroyed", hint="its certificate stands for it")
                proof = inclusion_proof(seq - 1, size, nodes)
                if root_from_inclusion(seq - 1, size, nodes(0, seq - 1), proof) != found:
                    raise IntegrityError(
                        f"the proof of event {seq} of {tenant_id!r} does not lead to the root of its tree",
                        hint="an event or a tile was changed: run eventstore verify",
                    )
                proofs[seq] = proof
            nodes.unload()
        return [proofs[seq] for seq in seqs]

    def consistency(self, tenant_id: str, first: int, second: int) -> list[bytes]:
        """The proof that the tree of the first `first` events is the beginning of that of `second`.

        Raises:
            InputError: not 0 < first <= second, or the tree has not grown so far.
            IntegrityError: something that the tree is made of is not there.
            TenantNotFoundError, TargetUnavailableError
        """
        if not 0 < first <= second:
            raise InputError(f"there is no proof from {first} to {second} events")

        def prove() -> list[bytes]:
            nodes = self._nodes(tenant_id, second, [first // BLOCK_LEAVES])
            return consistency_proof(first, second, nodes)

        return self._anew(tenant_id, prove)

    def to_keep(
        self, tenant_id: str, first_seq: int, last_seq: int, *, damaged: bool = False, ahead: bool = False
    ) -> Kept:
        """What is to be kept of a range that is about to be destroyed; the tree has grown over it. `damaged`:
        it may not have, and what cannot be read any more stands there as lost. `ahead`: leaves are stored
        while they are read, a few blocks at a time, and not answered. They are what the events have, so it
        does not matter if these stay.

        Raises:
            InputError, IntegrityError, TenantNotFoundError, TargetUnavailableError: as `root`.
        """
        return self._anew(tenant_id, lambda: self._to_keep(tenant_id, first_seq, last_seq, damaged, ahead))

    def _to_keep(self, tenant_id: str, first_seq: int, last_seq: int, damaged: bool, ahead: bool) -> Kept:
        with self._database.transaction() as conn:
            query = sa.select(checkpoints.c.size).where(
                checkpoints.c.tenant_id == tenant_id,
                checkpoints.c.size.between(first_seq, last_seq - 1),
                checkpoints.c.size % BLOCK_LEAVES != 0,
            )
            ends = sorted({n // BLOCK_LEAVES for n in conn.execute(query).scalars()})
        edges = [(first_seq - 1) // BLOCK_LEAVES, last_seq // BLOCK_LEAVES]
        nodes = self._nodes(
            tenant_id, 0 if damaged else last_seq, sorted({*ends, *edges}), damaged_too=damaged
        )

        def known(level: int, index: int) -> bytes:
            if not damaged:
                return nodes(level, index)
            found = nodes.find(level, index)
            if found is None:
                found = (
                    node_hash(known(level - 1, 2 * index), known(level - 1, 2 * index + 1))
                    if level
                    else lost_hash(0)
                )
            if level == BLOCK_LEVEL:
                nodes.unload()
            return found

        cut = cover(first_seq - 1, last_seq)
        found = tuple(Subtree(level, index, known(level, index)) for level, index in cut)
        blocks: dict[int, bytes] = {}
        for block in ends:
            # From the block's beginning: what it had lost before is among the leaves that were kept then.
            begin = block * BLOCK_LEAVES
            leaves = range(begin, min(begin + BLOCK_LEAVES, last_seq))
            blocks[block] = b"".join(nodes.find(0, leaf) or UNKNOWN for leaf in leaves)
            nodes.unload()
            if ahead and (len(blocks) >= _AHEAD_BLOCKS or block == ends[-1]):
                with self._database.transaction() as conn:
                    keep(conn, tenant_id, Kept((), blocks))
                blocks = {}
        return Kept(found, blocks)

    def _anew(self, tenant_id: str, make: Callable[[], T]) -> T:
        """Make something of the tree; once more, a few times, when it failed and a part of the archive was
        destroyed or moved meanwhile: what is looked up first then says so."""
        for anew_left in reversed(range(_ANEW_MAX + 1)):
            version = self._tiers.state(tenant_id).catalog_version
            try:
                return make()
            except (IntegrityError, StateError, TargetUnavailableError):
                if not anew_left or self._tiers.state(tenant_id).catalog_version == version:
                    raise
        raise AssertionError("unreachable")

    def _nodes(
        self, tenant_id: str, size: int = 0, blocks: Sequence[int] = (), *, damaged_too: bool = False
    ) -> Nodes:
        """The tree's nodes up to a size; what those of some blocks are made of is looked up at once."""
        nodes = load_nodes(self._database, self._tiers, tenant_id, size, blocks, damaged_too=damaged_too)
        if size > nodes.grown + BLOCK_LEAVES - 1:
            raise InputError(
                f"the tree of {tenant_id!r} has grown over {nodes.grown} events, not {size}",
                hint="make a checkpoint: eventstore checkpoint",
            )
        return nodes


def _check_goes_on(tenant_id: str, seq: int, found: bytes, last_hash: bytes | None) -> None:
    """See that the event at which a tree ends is still the one that it was made of (None: nobody knows)."""
    if last_hash not in (None, found):
        raise IntegrityError(
            f"the event {seq} of {tenant_id!r} is not the one that its tree was made of",
            hint="the log was changed: run eventstore verify, and compare it with a backup",
        )


def keep(conn: sa.Connection, tenant_id: str, kept: Kept) -> None:
    """Keep the leaves of blocks in which checkpoints end, at the latest in the transaction that destroys
    them. (The subtrees are the certificate's, and kept with it.) What was kept of a block when another window
    was destroyed stays; two that are destroyed at once add to each other."""
    tile = tree_tiles.c
    for block, leaves in kept.blocks.items():
        values = {"tenant_id": tenant_id, "level": 0, "tile": block, "hashes": leaves}
        stored = insert(tree_tiles).values(values).on_conflict_do_nothing().returning(tile.tile)
        if conn.execute(stored).one_or_none() is not None:
            continue
        where = (tile.tenant_id == tenant_id, tile.level == 0, tile.tile == block)
        before = bytes(conn.execute(sa.select(tile.hashes).where(*where).with_for_update()).scalar_one())
        conn.execute(sa.update(tree_tiles).where(*where).values(hashes=_merge(before, leaves)))


def _merge(before: bytes, found: bytes) -> bytes:
    """The leaves of a block as they were kept before, and where they were not known, as they were found."""
    merged = bytearray(before.ljust(len(found), b"\0"))
    for at in range(0, len(found), HASH_BYTES):
        if not is_known(bytes(merged[at : at + HASH_BYTES])):
            merged[at : at + HASH_BYTES] = found[at : at + HASH_BYTES]
    return bytes(merged)


def _add_to_tile(conn: sa.Connection, tenant_id: str, level: int, first: int, hashes: bytes) -> None:
    """Add hashes of a level, from the number `first` on, to their tile; and the hash of a tile that is full
    by that to the one above."""
    tile, at = divmod(first, BLOCK_LEAVES)
    where = (tree_tiles.c.tenant_id == tenant_id, tree_tiles.c.level == level, tree_tiles.c.tile == tile)
    before = conn.execute(sa.select(tree_tiles.c.hashes).where(*where)).scalar_one_or_none()
    found = (b"" if before is None else bytes(before)) + hashes
    if len(found) != at * HASH_BYTES + len(hashes):
        raise IntegrityError(
            f"tile {tile} of level {level} of the tree of {tenant_id!r} does not end where the tree does",
            hint="it was changed: run eventstore verify",
        )
    values = {"tenant_id": tenant_id, "level": level, "tile": tile, "hashes": found}
    conn.execute(
        insert(tree_tiles)
        .values(values)
        .on_conflict_do_update(index_elements=["tenant_id", "level", "tile"], set_={"hashes": found})
    )
    if len(found) == _TILE_BYTES:
        _add_to_tile(conn, tenant_id, level + 8, tile, _fold(found))


def _fold(hashes: bytes) -> bytes:
    """The root of a full tile; unknown if one of its hashes is."""
    nodes = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
    while len(nodes) > 1:
        nodes = [
            node_hash(left, right) if is_known(left) and is_known(right) else UNKNOWN
            for left, right in zip(nodes[::2], nodes[1::2], strict=True)
        ]
    return nodes[0]


def _runs(blocks: Sequence[int]) -> Iterator[range]:
    """Ranges that hold all of the blocks (rising), each to be read at once."""
    start = 0
    for index in range(1, len(blocks) + 1):
        ends = index == len(blocks)
        if (
            ends
            or blocks[index] - blocks[index - 1] > _GAP_BLOCKS
            or blocks[index] - blocks[start] >= _RUN_BLOCKS
        ):
            yield range(blocks[start], blocks[index - 1] + 1)
            start = index
