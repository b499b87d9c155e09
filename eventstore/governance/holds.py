"""Legal holds as stored: placing, releasing, and which of them cover something.

A hold is in force from the commit of the transaction that places it. That transaction holds the tenant's
destruction lock, which everything that destroys holds too while it looks at the holds: so a hold either waits
for a destruction that has begun, and that one object is gone, or is seen by it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_iso
from eventstore.db.engine import Database
from eventstore.db.locks import destruction_key
from eventstore.db.tables import holds
from eventstore.errors import (
    EventStoreError,
    HeldError,
    HoldNotFoundError,
    StateError,
    TenantClosedError,
)
from eventstore.governance.record import EntryKind, record, required_text, take_lock
from eventstore.model.bloom import BloomProbe
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.tenant import TenantState

__all__ = [
    "Contains",
    "Hold",
    "assert_not_held",
    "covering_holds",
    "get_hold",
    "get_hold_by_id",
    "holds_in_force",
    "list_holds",
    "lock_destruction",
    "may_cover",
    "may_hold",
    "place_hold",
    "release_hold",
]

NAME_CHARACTERS_MAX = 200

# Which of these entities (type, id) have an event in a segment.
Contains = Callable[[set[tuple[str, str]]], set[tuple[str, str]]]


def lock_destruction(conn: sa.Connection, tenant_id: str) -> None:
    """Keep others from destroying anything of a tenant, or placing a hold over it, until the transaction
    ends.

    Raises:
        BusyError: it was held for longer than the lock time-out.
    """
    take_lock(
        conn,
        destruction_key(tenant_id),
        f"something of {tenant_id!r} is being destroyed, or held, right now",
    )


def place_hold(
    database: Database,
    tenant_id: str,
    name: str,
    reason: str,
    placed_by: str,
    scope: HoldScope,
    now_us: int,
    *,
    hold_id: uuid.UUID | None = None,
) -> Hold:
    """Place a hold. When this returns, nothing that it covers and that is still there will be destroyed.

    A request that may come twice brings the `hold_id`: the second time it finds the hold placed, as it is by
    then, and nothing is recorded again.

    Raises:
        InputError: the name, the reason or who is missing, or too long.
        StateError: the tenant has, or had, a hold of that name; or the `hold_id` is another case's.
        TenantNotFoundError, TenantClosedError
        BusyError: a destruction of the tenant's took too long to wait for. The hold is not placed.
    """
    hold = Hold(
        hold_id or uuid.uuid4(),
        tenant_id,
        required_text("the hold's name", name, most=NAME_CHARACTERS_MAX),
        required_text("the reason", reason),
        required_text("who places it", placed_by),
        now_us,
        scope,
    )
    for kind, entity_id in scope.entities:
        required_text("an entity's type", kind)
        required_text("an entity's id", entity_id)
    with database.transaction() as conn:
        lock_destruction(conn, tenant_id)
        if get_tenant(conn, tenant_id).state is TenantState.CLOSED:
            raise TenantClosedError(
                f"{tenant_id!r} was offboarded", hint="its history is destroyed; there is nothing to hold"
            )
        placed = None if hold_id is None else _placed_before(conn, hold)
        if placed is not None:
            return placed
        try:
            conn.execute(
                sa.insert(holds).values(
                    hold_id=hold.hold_id,
                    tenant_id=tenant_id,
                    name=hold.name,
                    reason=hold.reason,
                    placed_by=hold.placed_by,
                    placed_us=now_us,
                    scope=scope.as_json(),
                )
            )
        except sa.exc.IntegrityError as e:
            raise StateError(
                f"{tenant_id!r} has, or had, a hold named {hold.name!r}",
                hint="a name is one case for good: choose another name",
            ) from e
        document = {
            "hold_id": str(hold.hold_id),
            "name": hold.name,
            "reason": hold.reason,
            "scope": scope.as_json(),
        }
        record(conn, EntryKind.HOLD_PLACED, tenant_id, hold.placed_by, document, now_us)
        # Dying before the commit leaves no hold and no entry; after it, both.
    return hold


def _placed_before(conn: sa.Connection, hold: Hold) -> Hold | None:
    """The hold that this very request has placed already; None: it has not."""
    row = conn.execute(sa.select(holds).where(holds.c.hold_id == hold.hold_id)).one_or_none()
    if row is None:
        return None
    found = _hold(row)
    if (found.tenant_id, found.name, found.reason, found.placed_by, found.scope) != (
        hold.tenant_id,
        hold.name,
        hold.reason,
        hold.placed_by,
        hold.scope,
    ):
        raise StateError("this request has placed another hold before", hint="begin again")
    return found


def release_hold(database: Database, tenant_id: str, name: str, by: str, reason: str, now_us: int) -> Hold:
    """End a hold. What other holds cover as well stays held.

    Raises:
        HoldNotFoundError
        InputError: the reason or who is missing.
        StateError: it was released already.
        TenantNotFoundError
    """
    who, why = required_text("who releases it", by), required_text("the reason", reason)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = conn.execute(
            sa.select(holds).where(holds.c.tenant_id == tenant_id, holds.c.name == name).with_for_update()
        ).one_or_none()
        if row is None:
            raise _no_hold(tenant_id, name)
        found = _hold(row)
        if found.released_us is not None:
            raise StateError(
                f"hold {name!r} was released by {found.released_by} on {to_iso(found.released_us)[:10]}",
                hint="there is nothing to do",
            )
        released = {"released_us": now_us, "released_by": who, "release_reason": why}
        conn.execute(sa.update(holds).where(holds.c.hold_id == found.hold_id).values(released))
        document = {"hold_id": str(found.hold_id), "name": name, "reason": why}
        record(conn, EntryKind.HOLD_RELEASED, tenant_id, who, document, now_us)
    return Hold(
        found.hold_id,
        tenant_id,
        found.name,
        found.reason,
        found.placed_by,
        found.placed_us,
        found.scope,
        now_us,
        who,
        why,
    )


def get_hold(conn: sa.Connection, tenant_id: str, name: str) -> Hold:
    """A tenant's hold, in force or released.

    Raises:
        TenantNotFoundError, HoldNotFoundError
    """
    get_tenant(conn, tenant_id)
    query = sa.select(holds).where(holds.c.tenant_id == tenant_id, holds.c.name == name)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise _no_hold(tenant_id, name)
    return _hold(row)


def get_hold_by_id(conn: sa.Connection, tenant_id: str, hold_id: uuid.UUID) -> Hold:
    """A tenant's hold, in force or released.

    Raises:
        TenantNotFoundError, HoldNotFoundError
    """
    get_tenant(conn, tenant_id)
    query = sa.select(holds).where(holds.c.tenant_id == tenant_id, holds.c.hold_id == hold_id)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise _no_hold(tenant_id, str(hold_id))
    return _hold(row)


def _no_hold(tenant_id: str, name: str) -> HoldNotFoundError:
    return HoldNotFoundError(
        f"{tenant_id!r} has no hold named {name!r}", hint=f"eventstore holds list {tenant_id}"
    )


def list_holds(
    conn: sa.Connection, tenant_id: str | None = None, *, in_force_only: bool = False
) -> list[Hold]:
    """Holds of a tenant, or of all (None), by tenant and in the order in which they were placed."""
    query = sa.select(holds).order_by(holds.c.tenant_id, holds.c.placed_us, holds.c.name)
    if tenant_id is not None:
        query = query.where(holds.c.tenant_id == tenant_id)
    if in_force_only:
        query = query.where(holds.c.released_us.is_(None))
    return [_hold(row) for row in conn.execute(query)]


def holds_in_force(conn: sa.Connection, tenant_id: str) -> list[Hold]:
    """A tenant's holds that have not been released, as this statement's snapshot sees them."""
    return list_holds(conn, tenant_id, in_force_only=True)


# --- what a hold covers -------------------------------------------------------------------------------


def covering_holds(
    found: Iterable[Hold],
    *,
    first_us: int,
    last_us: int,
    entity_filter: bytes | None,
    contains: Contains,
    on_unreadable: Callable[[EventStoreError], None] | None = None,
) -> list[Hold]:
    """The holds that cover an event of a segment, whose events were recorded from `first_us` to `last_us`
    (both inclusive).

    First by time, then by the segment's Bloom filter over entity_id (None: it has none), and what these leave
    open by `contains`, asked once, about all entities that are still in question. What cannot be read may
    hold anything: if `contains` raises an error of the store, every hold in question counts as covering,
    because destruction cannot be taken back; `on_unreadable` is told why. Where a hold is of entities and of
    a time range that the segment crosses, an event of the entity counts at whichever side.
    """
    covering, in_question = [], []
    for hold in found:
        if not hold.scope.touches(first_us, last_us):
            continue
        if not hold.scope.entities:
            covering.append(hold)
            continue
        asked = {entity for entity in hold.scope.entities if _may_be_in(entity[1], entity_filter)}
        if asked:
            in_question.append((hold, asked))
    if not in_question:
        return covering
    try:
        present = contains(set().union(*(asked for _, asked in in_question)))
    except EventStoreError as e:
        if on_unreadable is not None:
            on_unreadable(e)
        return covering + [hold for hold, _ in in_question]
    return covering + [hold for hold, asked in in_question if asked & present]


def may_hold(hold: Hold, *, first_us: int, last_us: int, entity_filter: bytes | None) -> bool:
    """Whether a hold may cover a segment, by its times and its filter alone: False is certain."""
    return may_cover(hold.scope, first_us=first_us, last_us=last_us, entity_filter=entity_filter)


def may_cover(scope: HoldScope, *, first_us: int, last_us: int, entity_filter: bytes | None) -> bool:
    """As `may_hold`, for a scope."""
    return scope.touches(first_us, last_us) and (
        not scope.entities or any(_may_be_in(entity_id, entity_filter) for _, entity_id in scope.entities)
    )


def _may_be_in(entity_id: str, entity_filter: bytes | None) -> bool:
    return entity_filter is None or _probe(entity_id).may_be_in(entity_filter)


@lru_cache(maxsize=20_000)
def _probe(entity_id: str) -> BloomProbe:
    """Hashing takes longer than looking, and a hold's entities are looked for in every segment."""
    return BloomProbe(entity_id.encode())


def assert_not_held(
    conn: sa.Connection,
    tenant_id: str,
    what: str,
    *,
    covering: Callable[[list[Hold]], list[Hold]] | None = None,
) -> None:
    """Take the tenant's destruction lock, and see that no hold in force covers what is about to be destroyed
    in this transaction. `covering` tells which of them do (None: each one does, as for a whole tenant).

    Raises:
        HeldError: some do; it names them.
        BusyError: the lock was not to be had in time.
    """
    lock_destruction(conn, tenant_id)
    found = holds_in_force(conn, tenant_id)
    if covering is not None and found:
        found = covering(found)
    if found:
        names = [hold.name for hold in found]
        raise HeldError(
            f"{what} of {tenant_id!r} is held: {', '.join(names)}",
            holds=names,
            hint=f"nothing was destroyed; eventstore holds list {tenant_id}",
        )


def _hold(row: sa.Row[tuple[object, ...]]) -> Hold:
    return Hold(
        row.hold_id,
        row.tenant_id,
        row.name,
        row.reason,
        row.placed_by,
        row.placed_us,
        HoldScope.from_json(row.scope),
        row.released_us,
        row.released_by,
        row.release_reason,
    )
