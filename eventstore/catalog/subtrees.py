"""The subtrees of destroyed ranges, where proofs find them; certificates have them too, signed."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.db.tables_tree import tree_subtrees
from eventstore.model.subtrees import Subtree

__all__ = ["keep_subtrees"]


def keep_subtrees(conn: sa.Connection, tenant_id: str, subtrees: Iterable[Subtree]) -> None:
    """Keep what a certificate says of its log's tree. Idempotent."""
    rows = [{"tenant_id": tenant_id, "level": s.level, "number": s.index, "hash": s.hash} for s in subtrees]
    if rows:
        conn.execute(insert(tree_subtrees).on_conflict_do_nothing(), rows)
