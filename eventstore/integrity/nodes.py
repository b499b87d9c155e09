"""The nodes of one log's Merkle tree, wherever they come from: tiles, what was kept of destroyed windows, and
the hashes of events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.db.engine import Database
from eventstore.db.tables_tree import tree_subtrees, tree_tiles, trees
from eventstore.errors import ArchiveDamageError, IntegrityError, StateError
from eventstore.integrity.merkle import BLOCK_LEAVES, BLOCK_LEVEL, HASH_BYTES, leaf_hash, node_hash
from eventstore.query.tiers import Tiers, list_expired, span

__all__ = ["UNKNOWN", "Expired", "Nodes", "is_known", "load_nodes"]

# Stands in a tile for a hash that is not known.
UNKNOWN = bytes(HASH_BYTES)


def is_known(found: bytes) -> bool:
    return found != UNKNOWN


@dataclass(frozen=True, slots=True)
class Expired:
    """The seq ranges of a log that were destroyed, in order."""

    ranges: tuple[tuple[int, int], ...]

    def over(self, first_seq: int, last_seq: int) -> bool:
        """Whether anything of a range was destroyed."""
        index = bisect_left(self.ranges, first_seq, key=lambda r: r[1])
        return index < len(self.ranges) and self.ranges[index][0] <= last_seq

    def between(self, first_seq: int, last_seq: int) -> list[tuple[int, int]]:
        """What of a range is still there, as ranges."""
        found, at = [], first_seq
        for first, last in self.ranges[bisect_left(self.ranges, first_seq, key=lambda r: r[1]) :]:
            if first > last_seq:
                break
            if first > at:
                found.append((at, first - 1))
            at = max(at, last + 1)
        if at <= last_seq:
            found.append((at, last_seq))
        return found


class Nodes:
    """The node source of `integrity.merkle` for one log, as one call sees it. `grown`: how many leaves are in
    whole blocks whose roots are stored. `damaged_too`: leaves that cannot be read any more are not known;
    else they are an error."""

    def __init__(
        self,
        database: Database,
        tiers: Tiers,
        tenant_id: str,
        *,
        grown: int,
        expired: Expired,
        kept: dict[tuple[int, int], bytes],
        tiles: dict[tuple[int, int], bytes],
        damaged_too: bool = False,
    ) -> None:
        self.tenant_id, self.grown, self.expired = tenant_id, grown, expired
        self._database, self._tiers = database, tiers
        self._kept, self._tiles = kept, tiles
        self._last_seq = tiers.state(tenant_id).last_seq
        self._damaged_too = damaged_too
        self._unreadable: set[tuple[int, int]] = set()  # parts of the archive, by their seqs
        # Leaves of blocks, and what was made of them; the nodes above blocks.
        self._leaves: dict[int, list[bytes]] = {}
        self._low: dict[int, dict[tuple[int, int], bytes | None]] = {}
        self._high: dict[tuple[int, int], bytes | None] = {}

    def __call__(self, level: int, index: int) -> bytes:
        """The hash of a full subtree.

        Raises:
            StateError: it is not known: events beneath it were destroyed.
            IntegrityError: it is not known, though nothing of it was destroyed.
            ArchiveDamageError, CoverageError, TargetUnavailableError
        """
        found = self.find(level, index)
        if found is not None:
            return found
        first, last = (index << level) + 1, (index + 1) << level
        what = f"the tree of {self.tenant_id!r} over seq {first} to {last} is not known"
        if self.expired.over(first, last):
            raise StateError(
                f"{what}: something of it was destroyed and not kept",
                hint="use a checkpoint that does not end within what was destroyed",
            )
        raise IntegrityError(what, hint="events or tiles are lost: run eventstore verify")

    def find(self, level: int, index: int) -> bytes | None:
        """The hash of a full subtree; None: it is not known."""
        kept = self._kept.get((level, index))
        if kept is not None:
            return kept
        below = level < BLOCK_LEVEL
        memo = self._low.setdefault(index >> (BLOCK_LEVEL - level), {}) if below else self._high
        if (level, index) not in memo:
            memo[level, index] = self._make(level, index)
        return memo[level, index]

    def _make(self, level: int, index: int) -> bytes | None:
        if level >= BLOCK_LEVEL and level % BLOCK_LEVEL == 0:
            stored = self._stored(level, index)
            if stored is not None:
                return stored
        if level == 0:
            return self._leaf(index)
        left = self.find(level - 1, 2 * index)
        right = None if left is None else self.find(level - 1, 2 * index + 1)
        return None if left is None or right is None else node_hash(left, right)

    def kept(self, level: int, index: int) -> bytes | None:
        """What was kept of a destroyed range; None: nothing."""
        return self._kept.get((level, index))

    def in_tile(self, level: int, index: int) -> bytes | None:
        """The hash of a full subtree as its tile has it; None: it has not, or it is not known there."""
        return self._stored(level, index)

    def _stored(self, level: int, index: int) -> bytes | None:
        if (index + 1) << level > self.grown:
            return None
        hashes = self._tile(level, index // BLOCK_LEAVES)
        at = index % BLOCK_LEAVES * HASH_BYTES
        found = hashes[at : at + HASH_BYTES]
        return found if found and is_known(found) else None

    def _tile(self, level: int, tile: int) -> bytes:
        if (level, tile) not in self._tiles:
            with self._database.app.transaction(self.tenant_id) as conn:
                self._tiles.update(_tiles(conn, self.tenant_id, level, [tile]))
            self._tiles.setdefault((level, tile), b"")
        return self._tiles[level, tile]

    # --- leaves ---------------------------------------------------------------------------------------

    def _leaf(self, leaf: int) -> bytes | None:
        block, at = divmod(leaf, BLOCK_LEAVES)
        if block not in self._leaves:
            self.load(range(block, block + 1))
        leaves = self._leaves[block]
        found = leaves[at] if at < len(leaves) else UNKNOWN
        return found if is_known(found) else None

    def load(self, blocks: range, wanted: Collection[int] | None = None) -> None:
        """Read the hashes of blocks that follow one another, as far as the log has them, and make the leaves
        of those that are wanted (None: of all)."""
        if all(block in self._leaves for block in (blocks if wanted is None else wanted)):
            return  # those at the tree's end are read for its root already
        first, last = blocks.start * BLOCK_LEAVES + 1, min(blocks.stop * BLOCK_LEAVES, self._last_seq)
        if first > last or not (self._damaged_too or self.expired.over(first, last)):
            values = self._tiers.hashes(self.tenant_id, first, last) if first <= last else b""
            gone: list[tuple[int, int]] = []
        else:
            values, gone = self._with_gaps(first, last)
        for block in blocks if wanted is None else sorted(wanted):
            at = (block - blocks.start) * BLOCK_LEAVES * HASH_BYTES
            leaves = _leaf_hashes(values[at : at + BLOCK_LEAVES * HASH_BYTES])
            begin = block * BLOCK_LEAVES + 1
            lacking = [
                seq - begin
                for start, end in gone
                for seq in range(max(start, begin), min(end, begin + BLOCK_LEAVES - 1) + 1)
            ]
            for index in lacking:
                leaves[index] = UNKNOWN
            self._leaves[block] = leaves
            if lacking:
                self._fill(block)

    def _with_gaps(self, first: int, last: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The hashes of a range, zeros where events were destroyed (or are damaged), and these ranges."""
        values = bytearray((last - first + 1) * HASH_BYTES)
        gone, at = [], first
        pieces = self.expired.between(first, last)
        if self._damaged_too:
            pieces = [part for begin, end in pieces for part in self._readable(begin, end)]
        for begin, end in [*pieces, (last + 1, last)]:
            if begin > at:
                gone.append((at, begin - 1))
            if begin <= end:
                found = self._tiers.hashes(self.tenant_id, begin, end)
                values[(begin - first) * HASH_BYTES : (end - first + 1) * HASH_BYTES] = found
            at = end + 1
        return bytes(values), gone

    def _readable(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What of a range can be read, as ranges. A part that is damaged is not read for each block again."""
        state = self._tiers.state(self.tenant_id)
        at = first
        for whole in map(span, self._tiers.archive(self.tenant_id, state)):
            begin, end = max(first, whole[0]), min(last, whole[1])
            if begin > end:
                continue
            at = end + 1
            if whole in self._unreadable:
                continue
            try:
                self._tiers.hashes(self.tenant_id, begin, end)
            except ArchiveDamageError:
                self._unreadable.add(whole)
            else:
                yield begin, end
        if at <= last:
            yield at, last  # hot

    def _fill(self, block: int) -> None:
        """Put the leaves that were kept of a block where its events are gone."""
        kept = self._tile(0, block)
        leaves = self._leaves[block]
        for at in range(min(len(kept) // HASH_BYTES, len(leaves))):
            if not is_known(leaves[at]):
                leaves[at] = kept[at * HASH_BYTES : (at + 1) * HASH_BYTES]

    def unload(self) -> None:
        """Forget the leaves of whole blocks: of these only the roots are wanted again."""
        tail = self._last_seq if self._damaged_too else self.grown // BLOCK_LEAVES
        for block in [block for block in self._leaves if block < tail]:
            del self._leaves[block]
            self._low.pop(block, None)


def load_nodes(
    database: Database,
    tiers: Tiers,
    tenant_id: str,
    size: int,
    blocks: Iterable[int],
    *,
    damaged_too: bool = False,
) -> Nodes:
    """The nodes of a log's tree, for a tree of `size` leaves and some of its blocks.

    Raises:
        TenantNotFoundError
    """
    # One snapshot: what a window was replaced by is there if it is gone.
    with database.app.transaction(tenant_id, one_snapshot=True) as conn:
        grown = conn.execute(
            sa.select(trees.c.size).where(trees.c.tenant_id == tenant_id)
        ).scalar_one_or_none()
        expired = Expired(tuple((e.first_seq, e.last_seq) for e in list_expired(conn, tenant_id)))
        kept: dict[tuple[int, int], bytes] = {}
        if expired.ranges:
            rows = conn.execute(sa.select(tree_subtrees).where(tree_subtrees.c.tenant_id == tenant_id))
            kept = {(row.level, row.number): bytes(row.hash) for row in rows}
        tiles: dict[tuple[int, int], bytes] = {}
        level = BLOCK_LEVEL
        wanted = {size >> BLOCK_LEVEL, *blocks}
        while grown and grown >> level:
            tiles |= _tiles(conn, tenant_id, level, sorted({index // BLOCK_LEAVES for index in wanted}))
            wanted = {index >> BLOCK_LEVEL for index in wanted}
            level += BLOCK_LEVEL
    return Nodes(
        database,
        tiers,
        tenant_id,
        grown=grown or 0,
        expired=expired,
        kept=kept,
        tiles=tiles,
        damaged_too=damaged_too,
    )


def _tiles(
    conn: sa.Connection, tenant_id: str, level: int, numbers: Sequence[int]
) -> dict[tuple[int, int], bytes]:
    query = sa.select(tree_tiles.c.tile, tree_tiles.c.hashes).where(
        tree_tiles.c.tenant_id == tenant_id,
        tree_tiles.c.level == level,
        tree_tiles.c.tile == sa.func.any(sa.cast(list(numbers), sa.ARRAY(sa.BigInteger))),
    )
    return {(level, row.tile): bytes(row.hashes) for row in conn.execute(query)}


def _leaf_hashes(values: bytes) -> list[bytes]:
    return [leaf_hash(values[at : at + HASH_BYTES]) for at in range(0, len(values), HASH_BYTES)]
