"""Objects that the catalog names no longer, and that are to be deleted from their targets.

A row outlives its object: what was once removed is never written again under that key in that target, so a
deletion that comes late, from a worker that was stopped in the middle, can only find nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.clock import from_us, to_us
from eventstore.db.tables import removals, segments, windows

__all__ = [
    "Removal",
    "RemovalReason",
    "list_removals",
    "lock_removal",
    "mark_removed",
    "no_longer_elsewhere",
    "note_copying",
    "remove_again",
    "removed_keys",
    "request_removal",
]

_COPIED = (
    "target",
    "key",
    "tenant_id",
    "window_from",
    "first_seq",
    "last_seq",
    "min_recorded_at",
    "max_recorded_at",
    "size_bytes",
    "sha256",
    "entity_filter",
)


class RemovalReason(StrEnum):
    """moved: a verified copy is elsewhere. expired, offboarded: a certificate stands for its events."""

    MOVED = "moved"
    EXPIRED = "expired"
    OFFBOARDED = "offboarded"


@dataclass(frozen=True, slots=True)
class Removal:
    """An object to be removed, and what it held (times in µs, both inclusive)."""

    target: str
    key: str
    tenant_id: str
    window_from_us: int
    reason: RemovalReason
    first_seq: int
    last_seq: int
    min_recorded_at_us: int
    max_recorded_at_us: int
    size_bytes: int
    sha256: bytes
    entity_filter: bytes | None

    @property
    def destroys(self) -> bool:
        """Whether its events are nowhere else, so that a hold must stop it."""
        return self.reason is not RemovalReason.MOVED


def request_removal(
    conn: sa.Connection,
    tenant_id: str,
    first_seq: int,
    last_seq: int,
    reason: RemovalReason,
    *,
    but_not_in: str | None = None,
) -> None:
    """Note that the objects of the segments in a seq range, as the catalog has them, are to be removed, and
    with them the copies of moves that were begun and given up; those in the target `but_not_in` stay."""
    values = [segments.c[name] for name in _COPIED[1:]] + [sa.literal(reason.value).label("reason")]
    in_range = sa.and_(
        segments.c.tenant_id == tenant_id, segments.c.first_seq >= first_seq, segments.c.last_seq <= last_seq
    )
    named = sa.select(segments.c.target, *values).where(in_range)
    moves = (
        sa.select(windows.c.window_from, sa.func.unnest(windows.c.copying_to).label("target"))
        .where(windows.c.tenant_id == tenant_id)
        .subquery()
    )
    left = (
        sa.select(moves.c.target, *values)
        .join_from(segments, moves, moves.c.window_from == segments.c.window_from)
        .where(in_range, moves.c.target != segments.c.target)
    )
    if but_not_in is not None:
        named, left = named.where(segments.c.target != but_not_in), left.where(moves.c.target != but_not_in)
    statement = insert(removals).from_select([*_COPIED, "reason"], named.union_all(left))
    again = {"removed_at": sa.null(), "reason": statement.excluded.reason}
    conn.execute(statement.on_conflict_do_update(index_elements=["target", "key"], set_=again))


def note_copying(conn: sa.Connection, tenant_id: str, window_from_us: int, target: str) -> None:
    """A window's segments are about to be copied to a target. If that is given up, by a worker's end and
    because the window is wanted elsewhere by then, what it wrote is removed as a former copy is."""
    conn.execute(
        sa.update(windows)
        .where(
            windows.c.tenant_id == tenant_id,
            windows.c.window_from == from_us(window_from_us),
            sa.literal(target) != sa.all_(windows.c.copying_to),
        )
        .values(copying_to=sa.func.array_append(windows.c.copying_to, target))
    )


def no_longer_elsewhere(conn: sa.Connection, tenant_id: str, window_from_us: int) -> None:
    """A window is being destroyed: its former copies that are not removed yet are no spare ones any more, and
    holds stop their deletion as well."""
    conn.execute(
        sa.update(removals)
        .where(
            removals.c.tenant_id == tenant_id,
            removals.c.window_from == from_us(window_from_us),
            removals.c.removed_at.is_(None),
            removals.c.reason == RemovalReason.MOVED.value,
        )
        .values(reason=RemovalReason.EXPIRED.value)
    )


def list_removals(
    conn: sa.Connection,
    *,
    tenant_id: str | None = None,
    window_from_us: int | None = None,
    limit: int | None = None,
) -> list[Removal]:
    """What is still to be removed, oldest request first."""
    query = sa.select(removals).where(removals.c.removed_at.is_(None)).order_by(removals.c.requested_at)
    if tenant_id is not None:
        query = query.where(removals.c.tenant_id == tenant_id)
    if window_from_us is not None:
        query = query.where(removals.c.window_from == from_us(window_from_us))
    return [_removal(row) for row in conn.execute(query.limit(limit))]


def lock_removal(conn: sa.Connection, target: str, key: str) -> Removal | None:
    """A removal that is still to be done, its row locked until the transaction ends; None: it is done."""
    row = conn.execute(
        sa.select(removals)
        .where(removals.c.target == target, removals.c.key == key, removals.c.removed_at.is_(None))
        .with_for_update()
    ).one_or_none()
    return None if row is None else _removal(row)


def mark_removed(conn: sa.Connection, target: str, key: str) -> None:
    """Record that an object is gone from its target."""
    conn.execute(
        sa.update(removals)
        .where(removals.c.target == target, removals.c.key == key)
        .values(removed_at=sa.func.now())
    )


def remove_again(conn: sa.Connection, target: str, key: str) -> bool:
    """An object was put under a removed key after all: it is to be removed once more. False: no removal
    stands there. Waits for a removal that is under way."""
    changed = conn.execute(
        sa.update(removals).where(removals.c.target == target, removals.c.key == key).values(removed_at=None)
    )
    return bool(changed.rowcount)


def removed_keys(conn: sa.Connection, target: str, keys: Sequence[str]) -> set[str]:
    """Those of the keys that were removed from a target, or are to be: never written there again."""
    query = sa.select(removals.c.key).where(removals.c.target == target, removals.c.key.in_(keys))
    return set(conn.execute(query).scalars())


def _removal(row: sa.Row[tuple[object, ...]]) -> Removal:
    return Removal(
        row.target,
        row.key,
        row.tenant_id,
        to_us(row.window_from),
        RemovalReason(row.reason),
        row.first_seq,
        row.last_seq,
        to_us(row.min_recorded_at),
        to_us(row.max_recorded_at),
        row.size_bytes,
        bytes(row.sha256),
        None if row.entity_filter is None else bytes(row.entity_filter),
    )
