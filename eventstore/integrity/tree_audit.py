"""What `verify` asks of a log's Merkle tree: every tile and every signed checkpoint against the hashes of all
events, as they come by. Where events were destroyed, against what their certificates say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from eventstore.db.engine import Database
from eventstore.db.tables_tree import checkpoints, tree_subtrees
from eventstore.errors import EventStoreError
from eventstore.governance.certificates import list_certificates, trusted_keys
from eventstore.governance.signing import VerifyKey
from eventstore.integrity.checkpoints import SignedCheckpoint, log_origin, of_row, read_checkpoint
from eventstore.integrity.merkle import (
    BLOCK_LEAVES,
    BLOCK_LEVEL,
    HASH_BYTES,
    block_roots,
    leaf_hash,
    node_hash,
    root_at,
)
from eventstore.integrity.nodes import Nodes, load_nodes
from eventstore.query.tiers import Tiers

__all__ = ["TreeAudit"]

_BLOCK_BYTES = BLOCK_LEAVES * HASH_BYTES


class _UnknownNode(Exception):  # noqa: N818 - no error: that root cannot be compared
    """A node that nothing is left of."""


class TreeAudit:
    """The tree of one log, made anew beside a walk over its events. Memory: an eighth of a byte an event.

    Made before the walk begins: checkpoints that are signed meanwhile are not looked at.
    """

    def __init__(self, database: Database, tiers: Tiers, tenant_id: str) -> None:
        self.found: list[tuple[int, str]] = []  # seqs, and what is wrong there, in words
        self._origin = log_origin(database, tenant_id)
        with database.transaction() as conn:
            self._keys: Sequence[VerifyKey] = list(trusted_keys(conn).values())
            query = sa.select(checkpoints).where(checkpoints.c.tenant_id == tenant_id)
            self._signed = [of_row(row) for row in conn.execute(query.order_by(checkpoints.c.size))]
            self._check_subtrees(conn, tenant_id)
        self._stored: Nodes = load_nodes(database, tiers, tenant_id, 0, ())
        self._size = 0
        self._next = 0  # of the checkpoints, the one that is to be compared next
        self._stopped = False
        # The current block's hashes of events; empty where some of them were destroyed.
        self._block = bytearray()
        self._whole = True
        self._levels: dict[int, list[bytes | None]] = {}

    # --- the walk -------------------------------------------------------------------------------------

    def add(self, hashes: bytes) -> None:
        """The next events' hashes, joined: their place in the chain was found right."""
        at = 0
        while at < len(hashes) and not self._stopped:
            room = _BLOCK_BYTES - self._size % BLOCK_LEAVES * HASH_BYTES
            piece = hashes[at : at + room]
            if self._whole:
                self._block += piece
            self._advance(self._size + len(piece) // HASH_BYTES, piece)
            at += len(piece)

    def bridge(self, last_seq: int) -> None:
        """The next events, up to this one, were destroyed; a certificate stands for them."""
        while self._size < last_seq and not self._stopped:
            self._whole = False
            to = min(last_seq, (self._size // BLOCK_LEAVES + 1) * BLOCK_LEAVES)
            self._advance(to, None)

    def stop(self) -> None:
        """The walk has found something that is wrong with the events: there is nothing more to compare."""
        self._stopped = True

    def finish(self, last_seq: int) -> None:
        """The walk has come to the log's end."""
        for signed in self._signed:
            if signed.size > last_seq:
                self._problem(last_seq, f"{signed.size} events were signed, and the log has {last_seq}")
        if self._stored.grown > last_seq:
            self._problem(last_seq, f"the tree has grown over {self._stored.grown} events, beyond the log")

    def _problem(self, seq: int, message: str) -> None:
        self.found.append((max(seq, 1), message))

    def _advance(self, to: int, piece: bytes | None) -> None:
        """Go on to a size within the current block, or to its end."""
        before = self._size
        self._size = to
        while self._next < len(self._signed) and self._signed[self._next].size < to:
            self._compare(self._signed[self._next], before, piece)
            self._next += 1
        if to % BLOCK_LEAVES == 0:
            self._end_block(to // BLOCK_LEAVES - 1)
        while self._next < len(self._signed) and self._signed[self._next].size == to:
            self._compare(self._signed[self._next], before, piece)
            self._next += 1
        if to % BLOCK_LEAVES == 0:
            self._block.clear()
            self._whole = True

    def _end_block(self, block: int) -> None:
        if self._whole:
            root: bytes | None = block_roots(bytes(self._block))
        else:
            root = self._stored.find(BLOCK_LEVEL, block)
            self._stored.unload()
        self._push(BLOCK_LEVEL, root)

    def _push(self, level: int, found: bytes | None) -> None:
        """Add a full subtree, compare it with the tile that has it, and make the one above if it is the right
        one of two."""
        known = self._levels.setdefault(level, [])
        index = len(known)
        known.append(found)
        if level % BLOCK_LEVEL == 0 and found is not None:
            in_tile = self._stored.in_tile(level, index)
            last = (index + 1) << level
            if in_tile is not None and in_tile != found:
                self._problem(last, f"the tile of level {level} has another hash for subtree {index}")
            if in_tile is None and last <= self._stored.grown:
                self._problem(last, f"the tile of level {level} lacks subtree {index}")
        if index % 2:
            left, right = known[-2], known[-1]
            above = None if left is None or right is None else node_hash(left, right)
            self._push(level + 1, above or self._stored.kept(level + 1, index // 2))

    # --- checkpoints ----------------------------------------------------------------------------------

    def _compare(self, signed: SignedCheckpoint, before: int, piece: bytes | None) -> None:
        for message in self._differences(signed, before, piece):
            self._problem(signed.size, f"checkpoint of {signed.size} events: {message}")

    def _differences(self, signed: SignedCheckpoint, before: int, piece: bytes | None) -> Iterator[str]:
        try:
            said = read_checkpoint(signed.note, self._origin, self._keys)
        except EventStoreError as e:
            yield e.message
            return
        if (said.size, said.root) != (signed.size, signed.root):
            yield "its row in the database says something else than what was signed"
        try:
            if root_at(signed.size, self._node) != said.root:
                yield "the events have another root than the one that was signed"
        except _UnknownNode:
            pass  # it ends within what was destroyed before the catalog was rebuilt: nothing is left of that
        if piece is not None:
            at = (signed.size - 1 - before) * HASH_BYTES
            if at >= 0 and piece[at : at + HASH_BYTES] != signed.last_hash:
                yield f"event {signed.size} has another hash than when it was signed"

    def _node(self, level: int, index: int) -> bytes:
        found: bytes | None
        if level >= BLOCK_LEVEL:
            found = self._levels[level][index]
            found = self._stored.kept(level, index) if found is None else found
        elif self._whole:
            begin = (index << level) % BLOCK_LEAVES
            found = self._beneath(level, begin)
        else:
            found = self._stored.find(level, index)
        if found is None:
            raise _UnknownNode
        return found

    def _beneath(self, level: int, begin: int) -> bytes:
        """A full subtree within the current block."""
        at = begin * HASH_BYTES
        if level == 0:
            return leaf_hash(bytes(self._block[at : at + HASH_BYTES]))
        half = 1 << (level - 1)
        return node_hash(self._beneath(level - 1, begin), self._beneath(level - 1, begin + half))

    def _check_subtrees(self, conn: sa.Connection, tenant_id: str) -> None:
        """What is kept of destroyed ranges is what their certificates say."""
        try:
            certified = {
                (s.level, s.index): s.hash
                for stored in list_certificates(conn, tenant_id)
                for s in stored.certificate.subtrees
            }
        except EventStoreError:
            return  # the check of certificates says what is wrong with them
        query = sa.select(tree_subtrees).where(tree_subtrees.c.tenant_id == tenant_id)
        kept = {(row.level, row.number): bytes(row.hash) for row in conn.execute(query)}
        for (level, index), value in certified.items():
            if kept.pop((level, index), None) != value:
                self._problem(index << level, f"subtree {index} of level {level} is not as it was certified")
        for level, index in kept:
            self._problem(index << level, f"no certificate has subtree {index} of level {level}")
