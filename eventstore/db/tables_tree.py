"""The tables of each log's Merkle tree, and of its signed checkpoints."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA

from eventstore.db.tables import metadata

__all__ = ["checkpoints", "tree_subtrees", "tree_tiles", "trees"]


def _tenant_key() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), primary_key=True)


# How far each tree has grown. Its row lock orders the growing.
trees = sa.Table(
    "trees",
    metadata,
    _tenant_key(),
    # whole blocks of 256 leaves: the events 1 to `size` are in the tiles
    sa.Column("size", sa.BigInteger, nullable=False),
    # the hash of the event `size`, as it was read; null: none, or it was destroyed before it was read
    sa.Column("last_hash", BYTEA),
    sa.CheckConstraint("size % 256 = 0", name="blocks"),
)

# Hashes of full subtrees, up to 256 of a level in a row, from the left: row `tile` has those with the numbers
# 256 * tile and on. Levels 8, 16, 24, … of the whole tree; a hash of 32 zeros is not known (what lies beneath
# was destroyed before the tree was made anew). Level 0, leaves, only for blocks that a checkpoint ends in and
# whose events were destroyed, or are all about to be, when their log is.
tree_tiles = sa.Table(
    "tree_tiles",
    metadata,
    _tenant_key(),
    sa.Column("level", sa.Integer, primary_key=True),
    sa.Column("tile", sa.BigInteger, primary_key=True),
    sa.Column("hashes", BYTEA, nullable=False),
    sa.CheckConstraint("level >= 0 AND level % 8 = 0", name="level"),
    sa.CheckConstraint("length(hashes) BETWEEN 32 AND 8192 AND length(hashes) % 32 = 0", name="hashes"),
)

# The full subtrees that make the ranges of destroyed windows, as their certificates have them.
tree_subtrees = sa.Table(
    "tree_subtrees",
    metadata,
    _tenant_key(),
    sa.Column("level", sa.Integer, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("hash", BYTEA, nullable=False),
)

# What was signed. `note` is the checkpoint as it was published; `last_hash` the hash of the event `size`.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    _tenant_key(),
    sa.Column("size", sa.BigInteger, primary_key=True),
    sa.Column("root", BYTEA, nullable=False),
    sa.Column("last_hash", BYTEA, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("made_us", sa.BigInteger, nullable=False),
    # the digest of the settings' list of places that all have it; null: of none yet
    sa.Column("published_to", BYTEA),
    sa.CheckConstraint("size > 0", name="size"),
)
