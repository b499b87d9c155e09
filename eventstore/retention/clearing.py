"""What remains to be done when a log has been destroyed: its detached tables and its objects go, and then
both tiers are searched for anything that is left. Each step finds what an earlier call has done, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import sqlalchemy as sa
from psycopg import sql

from eventstore.archive.layout import parse_certificate_key, parse_segment_key, tenant_prefix
from eventstore.archive.target import ArchiveTarget, ObjectInfo
from eventstore.catalog.removals import Removal, list_removals, lock_removal, mark_removed
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_iso
from eventstore.db.engine import Database, kept_alive
from eventstore.db.locks import DROP_LOCK_TIMEOUT_MS
from eventstore.db.partitions import SCHEMA
from eventstore.db.tables import removals, restores
from eventstore.errors import (
    ArchiveDamageError,
    EventStoreError,
    SetupError,
    StateError,
    TargetUnavailableError,
)
from eventstore.governance.certificates import store_copies
from eventstore.governance.holds import assert_not_held
from eventstore.governance.record import mirror_or_warn
from eventstore.model.query import EventFilter
from eventstore.model.tenant import Tenant, TenantState
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from eventstore.retention.task import Stopped, Workshop

__all__ = ["Cleared", "clear"]

# Tables dropped in one transaction: each takes some twenty of Postgres' locks.
_DROPPED_AT_ONCE = 20
# A drop that somebody holds up is tried again after these pauses, in seconds, then left to the next call.
_PAUSES_S = (0.1, 0.5, 2.0)

# Told of each object: what is being done, how many are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Cleared:
    """What a call has removed, and what is left, in words: empty when nothing is."""

    tables: int = 0
    objects: int = 0
    size_bytes: int = 0
    left: list[str] = field(default_factory=list)


def clear(shop: Workshop, tiers: Tiers, tenant: Tenant, progress: Progress) -> Cleared:
    """Remove what is left of a destroyed log in both tiers, and verify that nothing is.

    What cannot be removed now (a target is away, or keeps an object under lock) is told in `left`; a later
    call does it.

    Raises:
        StateError: the log has not been destroyed.
        Stopped: told to stop between two objects.
    """
    with shop.database.transaction() as conn:
        if get_tenant(conn, tenant.tenant_id).state is not TenantState.CLOSED:
            raise StateError(f"the log of {tenant.tenant_id!r} is not destroyed", hint="nothing was removed")
    cleared = Cleared()
    _drop_tables(shop, tenant, cleared)
    _copy_records(shop, tenant.tenant_id, cleared)
    _remove_objects(shop, tenant.tenant_id, cleared, progress)
    _remove_strays(shop, tenant.tenant_id, cleared)
    _verify_removed(shop, tenant.tenant_id, cleared, progress)
    _verify_rest(shop.database, tiers, tenant, cleared)
    return cleared


# --- tables -------------------------------------------------------------------------------------------


def _tables(conn: psycopg.Connection[tuple[object, ...]], tenant_no: int) -> list[str]:
    """Every table of the tenant that still exists, prepared ones too; the parent last."""
    rows = conn.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND c.relname ~ %s ORDER BY c.relkind DESC, 1",
        [SCHEMA, f"^events_{tenant_no}(_|$)"],
    ).fetchall()
    return [str(name) for (name,) in rows]


def _drop_tables(shop: Workshop, tenant: Tenant, cleared: Cleared) -> None:
    """Drop them, a few in a transaction. No query comes to them any more, but one that began before may still
    read them."""
    pauses = iter(_PAUSES_S)
    with shop.database.connection() as conn:
        while names := _tables(conn, tenant.tenant_no)[:_DROPPED_AT_ONCE]:
            _check_stop(shop)
            try:
                with conn.transaction():
                    conn.execute(f"SET LOCAL lock_timeout = {DROP_LOCK_TIMEOUT_MS}".encode())
                    tables = sql.SQL(", ").join(sql.Identifier(SCHEMA, name) for name in names)
                    conn.execute(sql.SQL("DROP TABLE {}").format(tables))
                cleared.tables += len(names)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                pause_s = next(pauses, None)
                if pause_s is None:
                    cleared.left.append(
                        f"table {SCHEMA}.{names[0]}: a transaction that is open still reads it"
                    )
                    return
                shop.stop.wait(pause_s)


# --- objects ------------------------------------------------------------------------------------------


def _copy_records(shop: Workshop, tenant_id: str, cleared: Cleared) -> None:
    try:
        store_copies(shop.database, shop.targets, tenant_id)
        warning = mirror_or_warn(shop.database, shop.targets)
    except EventStoreError as e:
        warning = f"a copy of the certificate is not stored yet: {e}"
    if warning is not None:
        cleared.left.append(warning)


def _remove_objects(shop: Workshop, tenant_id: str, cleared: Cleared, progress: Progress) -> None:
    """Delete what the catalog has given up, one object at a time, each under the destruction lock."""
    with shop.database.transaction() as conn:
        pending = list_removals(conn, tenant_id=tenant_id)
    away: dict[str, str] = {}
    for number, removal in enumerate(pending, start=1):
        _check_stop(shop)
        if removal.target not in away:
            try:
                _remove_one(shop, removal)
                cleared.objects += 1
                cleared.size_bytes += removal.size_bytes
                progress("delete objects", number, len(pending))
                continue
            except StateError as e:
                cleared.left.append(f"{removal.key} in {removal.target!r}: {e}")
                continue
            except (TargetUnavailableError, SetupError) as e:
                # To ask it again for each object would take a time-out each.
                away[removal.target] = str(e)
        cleared.left.append(f"{removal.key} in {removal.target!r}: {away[removal.target]}")


def _remove_one(shop: Workshop, removal: Removal) -> None:
    target = shop.targets[removal.target]
    with shop.database.transaction() as conn:
        assert_not_held(conn, removal.tenant_id, removal.key)
        if lock_removal(conn, removal.target, removal.key) is not None:
            with kept_alive(conn):
                target.delete(removal.key)
            # Dying here leaves the row; the object is then deleted again, and is not there.
            mark_removed(conn, removal.target, removal.key)


def _remove_strays(shop: Workshop, tenant_id: str, cleared: Cleared) -> None:
    """Delete segments of the tenant that no catalog has ever named: a worker that was killed in the middle of
    archiving leaves such. What is neither a segment nor a certificate is left, and named."""
    for name, target in _each_target(shop, cleared):
        try:
            for info in list(target.list(tenant_prefix(tenant_id))):
                _check_stop(shop)
                if _is_certificate(info.key, tenant_id) or _is_pending(shop.database, name, info.key):
                    continue
                if _is_segment(info.key, tenant_id):
                    _remove_stray(shop, tenant_id, name, info, cleared)
                else:
                    cleared.left.append(
                        f"{info.key} in {name!r}: the store did not make it; look at it yourself"
                    )
        except TargetUnavailableError as e:
            cleared.left.append(f"target {name!r}: {e}")


def _remove_stray(shop: Workshop, tenant_id: str, name: str, info: ObjectInfo, cleared: Cleared) -> None:
    try:
        with shop.database.transaction() as conn:
            assert_not_held(conn, tenant_id, info.key)
            shop.targets[name].delete(info.key)
    except StateError as e:
        cleared.left.append(f"{info.key} in {name!r}: {e}")
    else:
        cleared.objects += 1
        cleared.size_bytes += info.size_bytes


def _each_target(shop: Workshop, cleared: Cleared) -> Iterator[tuple[str, ArchiveTarget]]:
    for name in shop.targets.names:
        try:
            target = shop.targets[name]
        except (TargetUnavailableError, SetupError) as e:
            cleared.left.append(f"target {name!r} could not be looked at: {e}")
            continue
        yield name, target


def _is_segment(key: str, tenant_id: str) -> bool:
    found = parse_segment_key(key)
    return found is not None and found.tenant_id == tenant_id


def _is_certificate(key: str, tenant_id: str) -> bool:
    found = parse_certificate_key(key)
    return found is not None and found[0] == tenant_id


def _is_pending(database: Database, target: str, key: str) -> bool:
    """Whether an object is still to be removed, so that it is told of already."""
    pending = (removals.c.target == target) & (removals.c.key == key) & removals.c.removed_at.is_(None)
    with database.transaction() as conn:
        return bool(conn.execute(sa.select(sa.exists().where(pending))).scalar_one())


# --- is anything left? --------------------------------------------------------------------------------


def _verify_removed(shop: Workshop, tenant_id: str, cleared: Cleared, progress: Progress) -> None:
    """Ask each target for every key that was removed from it (a listing may be out of date), and list it."""
    query = sa.select(removals.c.target, removals.c.key).where(
        removals.c.tenant_id == tenant_id, removals.c.removed_at.is_not(None)
    )
    with shop.database.transaction() as conn:
        removed: dict[str, list[str]] = {}
        for row in conn.execute(query.order_by(removals.c.target, removals.c.key)):
            removed.setdefault(row.target, []).append(row.key)
    total, done = sum(map(len, removed.values())), 0
    for name, target in _each_target(shop, Cleared()):  # what is away has been told
        try:
            for key in removed.pop(name, ()):
                _check_stop(shop)
                if _exists(target, key):
                    target.delete(key)  # written again by a worker that had been asleep
                    if _exists(target, key):
                        cleared.left.append(f"{key} in {name!r}: it was deleted, and is still there")
                done += 1
                progress("look again", done, total)
            told = {line.partition(" in ")[0] for line in cleared.left}
            for info in target.list(tenant_prefix(tenant_id)):
                if info.key not in told and not _is_certificate(info.key, tenant_id):
                    cleared.left.append(f"{info.key} in {name!r}: it is still listed")
        except (TargetUnavailableError, StateError) as e:
            cleared.left.append(f"target {name!r}: {e}")
    cleared.left += [
        f"target {name!r} is not known any more: whether {len(keys)} objects are gone cannot be seen"
        for name, keys in removed.items()
        if name not in shop.targets
    ]


def _exists(target: ArchiveTarget, key: str) -> bool:
    try:
        target.stat(key)
    except ArchiveDamageError:
        return False
    return True


def _verify_rest(database: Database, tiers: Tiers, tenant: Tenant, cleared: Cleared) -> None:
    """No table is left, no restored copy, and the reader finds nothing but certificates."""
    with database.connection() as conn:
        tables = _tables(conn, tenant.tenant_no)
    if tables and not any(line.startswith("table ") for line in cleared.left):
        cleared.left.append(f"table {SCHEMA}.{tables[0]}: it is still there")
    query = sa.select(restores).where(
        restores.c.tenant_id == tenant.tenant_id, restores.c.removed_at.is_(None)
    )
    with database.transaction() as conn:
        cleared.left += [
            f"a restored window lies in {row.place}, until {to_iso(row.expires_us)}"
            for row in conn.execute(query)
        ]
        # A filter tells of entities that it once held; what is removed needs none.
        conn.execute(
            sa.update(removals)
            .where(removals.c.tenant_id == tenant.tenant_id, removals.c.removed_at.is_not(None))
            .values(entity_filter=None)
        )
    coverage = Coverage()
    last_seq = tiers.state(tenant.tenant_id).last_seq
    found = sum(
        table.num_rows
        for table in LogReader(tiers).stream(tenant.tenant_id, EventFilter(), coverage=coverage)
    )
    gone = sum(last - first + 1 for first, last, _ in coverage.expired)
    if found or gone != last_seq:
        cleared.left.append(
            f"the reader finds {found:,} events, and certificates for {gone:,} of {last_seq:,}"
        )


def _check_stop(shop: Workshop) -> None:
    if shop.stop.is_set():
        raise Stopped
