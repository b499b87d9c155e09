"""Objects in quarantine whose key names a window: what was that window's data goes when the window goes.

A damaged copy that was mended elsewhere, or one that no catalog row names, may hold the very events that a
policy has destroyed. Its key says whose and which window's it is. An object whose key says nothing of the
kind, or names a window that the catalog does not have, is told of, and never deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.archive.layout import parse_segment_key
from eventstore.catalog.removals import RemovalReason
from eventstore.clock import from_us
from eventstore.db.tables import quarantine, removals
from eventstore.model.window import Window, WindowRecord

__all__ = ["Quarantined", "quarantined_of", "request_quarantined"]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A tenant's objects in quarantine, as (target, key): by window, and those of no window."""

    by_window: Mapping[Window, list[tuple[str, str]]]
    others: list[tuple[str, str]]


def quarantined_of(conn: sa.Connection, tenant_id: str, windows: Collection[Window]) -> Quarantined:
    """What lies in quarantine of a tenant. `windows` are those that the catalog has."""
    query = sa.select(quarantine.c.target, quarantine.c.key).where(quarantine.c.tenant_id == tenant_id)
    by_window: dict[Window, list[tuple[str, str]]] = {}
    others: list[tuple[str, str]] = []
    for target, key in conn.execute(query.order_by(quarantine.c.target, quarantine.c.key)):
        named = parse_segment_key(key)
        if named is not None and named.tenant_id == tenant_id and named.window in windows:
            by_window.setdefault(named.window, []).append((target, key))
        else:
            others.append((target, key))
    return Quarantined(by_window, others)


def request_quarantined(conn: sa.Connection, tenant_id: str, record: WindowRecord) -> int:
    """A window is being destroyed, or was: note its objects in quarantine as to be removed with it, in the
    connection's transaction; how many there are. Holds are looked at before each is deleted, as ever."""
    assert record.last_seq is not None
    found = quarantined_of(conn, tenant_id, {record.window}).by_window.get(record.window, [])
    for target, key in found:
        values = {
            "target": target,
            "key": key,
            "tenant_id": tenant_id,
            "window_from": from_us(record.window.from_us),
            "reason": RemovalReason.EXPIRED.value,
            "first_seq": record.first_seq,
            "last_seq": record.last_seq,
            # Nobody has read it: it counts as if it held all that the window may have held.
            "min_recorded_at": from_us(record.window.from_us),
            "max_recorded_at": from_us(record.window.to_us),
            "size_bytes": 0,
            "sha256": b"",
        }
        again = {"removed_at": sa.null(), "reason": RemovalReason.EXPIRED.value}
        conn.execute(
            insert(removals)
            .values(values)
            .on_conflict_do_update(index_elements=["target", "key"], set_=again)
        )
        conn.execute(sa.delete(quarantine).where(quarantine.c.target == target, quarantine.c.key == key))
    return len(found)
