"""The slots of subscriptions: claimed, delivered and acknowledged by members.

Every change is one transaction that locks the row of the subscription, so that it stays, and the rows of its
slots, in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.catalog.tenants import get_tenant
from eventstore.db.engine import Database
from eventstore.db.tables_subscriptions import subscription_members, subscription_slots
from eventstore.errors import LeaseLostError, StateError
from eventstore.governance.subscriptions import locked_slots, slots_of, subscription_of, subscription_row
from eventstore.model.subscription import Receipt, Subscription, check_member, fair_share

__all__ = ["Held", "acknowledge", "claim_slots", "leave", "note_delivered", "renew"]

# Four times as many as there can be slots: the rest are to step in.
_MEMBERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Held:
    """A slot in a member's hands: read on behind `cursor`, under `generation`."""

    cursor: int
    generation: int


def claim_slots(
    database: Database, tenant_id: str, name: str, member: str
) -> tuple[Subscription, dict[int, Held]]:
    """Renew a member's slots, give back what is more than its share, and claim what is free of it.

    Raises:
        SubscriptionNotFoundError, TenantNotFoundError
        InputError: no member can have that name.
        StateError: there are too many members.
    """
    check_member(member)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription = subscription_of(subscription_row(conn, tenant_id, name, lock="stays"))
        slots = locked_slots(conn, tenant_id, name)
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        lease = timedelta(seconds=subscription.lease_s)
        share = fair_share(len(slots), _members(conn, tenant_id, name, member, now, lease))
        mine = [s for s in slots if s.member == member and s.leased_until > now]
        # Those with something unacknowledged are kept: nobody else may work at their entities meanwhile.
        surplus = [s.slot for s in mine if s.delivered <= s.cursor][: max(0, len(mine) - share)]
        free = [s.slot for s in slots if s.member is None or s.leased_until <= now]
        taken = free[: max(0, share - (len(mine) - len(surplus)))]
        kept = [s.slot for s in mine if s.slot not in surplus]
        if surplus:
            _update(conn, tenant_id, name, surplus, member=None, leased_until=None)
        if taken:
            _update(
                conn,
                tenant_id,
                name,
                taken,
                member=member,
                leased_until=now + lease,
                generation=subscription_slots.c.generation + 1,
                delivered=subscription_slots.c.cursor,
            )
        if kept:
            _update(conn, tenant_id, name, kept, leased_until=now + lease)
        held = {
            s.slot: Held(s.cursor, s.generation + (s.slot in taken))
            for s in slots
            if s.slot in {*kept, *taken}
        }
    return subscription, held


def note_delivered(
    database: Database,
    subscription: Subscription,
    member: str,
    held: Mapping[int, Held],
    given: Collection[int],
    through: Mapping[int, int],
) -> Receipt:
    """Note that a member is about to be given all that is wanted of the slots `given` up to the seq in
    `through`; the others of `held` have nothing up to theirs, and move on. The receipt leaves out slots that
    were lost meanwhile: their events must not be given.

    Raises:
        SubscriptionNotFoundError: it was deleted meanwhile.
    """
    tenant_id, name = subscription.tenant_id, subscription.name
    receipt: dict[int, tuple[int, int]] = {}
    with database.transaction() as conn:
        subscription_row(conn, tenant_id, name, lock="stays")
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        until = now + timedelta(seconds=subscription.lease_s)
        moved: dict[tuple[int, bool], list[int]] = {}  # slots that go to the same place
        for slot in locked_slots(conn, tenant_id, name):
            ours = held.get(slot.slot)
            if ours is None or slot.member != member or slot.generation != ours.generation:
                continue
            to = through[slot.slot]
            if slot.slot in given:
                receipt[slot.slot] = (slot.generation, to)
            if slot.slot in given or slot.cursor < to:
                moved.setdefault((to, slot.slot in given), []).append(slot.slot)
        for (to, is_given), slots in moved.items():
            delivered = sa.func.greatest(subscription_slots.c.delivered, to)
            cursor = {} if is_given else {"cursor": to}
            _update(conn, tenant_id, name, slots, delivered=delivered, leased_until=until, **cursor)
    return Receipt(receipt)


def acknowledge(
    database: Database, tenant_id: str, name: str, member: str, receipt: Receipt, through: int | None
) -> dict[int, int]:
    """Move the cursors of what a receipt was given for, up to seq `through` if that is not None; the slots'
    new cursors. Slots that the member has lost meanwhile are not moved, and not in the answer.

    Raises:
        LeaseLostError: it has lost all of them.
        SubscriptionNotFoundError, TenantNotFoundError
    """
    check_member(member)
    moved: dict[int, int] = {}
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription = subscription_of(subscription_row(conn, tenant_id, name, lock="stays"))
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        until = now + timedelta(seconds=subscription.lease_s)
        for slot in locked_slots(conn, tenant_id, name):
            given = receipt.slots.get(slot.slot)
            if given is None or slot.member != member or slot.generation != given[0]:
                continue
            # Not beyond what was delivered, whatever the receipt says.
            to = min(given[1] if through is None else min(given[1], through), slot.delivered)
            cursor = max(slot.cursor, to)
            _update(conn, tenant_id, name, [slot.slot], cursor=cursor, leased_until=until)
            moved[slot.slot] = cursor
    if receipt.slots and not moved:
        raise LeaseLostError(
            f"{member!r} holds none of these slots any more",
            hint="its lease ran out, or the subscription was moved: what was given is given again; poll",
        )
    return moved


def renew(database: Database, tenant_id: str, name: str, member: str) -> int:
    """Keep a member's slots for another lease; how many they are.

    Raises:
        StateError: there are too many members.
        SubscriptionNotFoundError, TenantNotFoundError
    """
    check_member(member)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription = subscription_of(subscription_row(conn, tenant_id, name, lock="stays"))
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        lease = timedelta(seconds=subscription.lease_s)
        mine = [
            s.slot for s in locked_slots(conn, tenant_id, name) if s.member == member and s.leased_until > now
        ]
        _members(conn, tenant_id, name, member, now, lease)
        if mine:
            _update(conn, tenant_id, name, mine, leased_until=now + lease)
    return len(mine)


def leave(database: Database, tenant_id: str, name: str, member: str) -> int:
    """Give all of a member's slots back at once; how many they were.

    Raises:
        SubscriptionNotFoundError, TenantNotFoundError
    """
    check_member(member)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription_row(conn, tenant_id, name, lock="stays")
        mine = [s.slot for s in locked_slots(conn, tenant_id, name) if s.member == member]
        if mine:
            _update(conn, tenant_id, name, mine, member=None, leased_until=None)
        conn.execute(
            sa.delete(subscription_members).where(
                *_members_of(tenant_id, name), subscription_members.c.member == member
            )
        )
    return len(mine)


def _members(
    conn: sa.Connection, tenant_id: str, name: str, member: str, now: datetime, lease: timedelta
) -> int:
    """Note that a member was seen; how many were within a lease.

    Raises:
        StateError: there are too many.
    """
    seen = subscription_members.c.seen_at
    conn.execute(sa.delete(subscription_members).where(*_members_of(tenant_id, name), seen <= now - lease))
    statement = insert(subscription_members).values(
        tenant_id=tenant_id, name=name, member=member, seen_at=now
    )
    conn.execute(
        statement.on_conflict_do_update(index_elements=["tenant_id", "name", "member"], set_={"seen_at": now})
    )
    count = sa.select(sa.func.count()).where(*_members_of(tenant_id, name))
    members = int(conn.execute(count).scalar_one())
    if members > _MEMBERS_MAX:
        raise StateError(
            f"{_MEMBERS_MAX} members of {name!r} were seen within its lease",
            hint="a member keeps its name from poll to poll; those that are silent are forgotten",
        )
    return members


def _update(conn: sa.Connection, tenant_id: str, name: str, slots: Collection[int], **values: Any) -> None:
    conn.execute(
        sa.update(subscription_slots)
        .where(*slots_of(tenant_id, name), subscription_slots.c.slot.in_(slots))
        .values(**values)
    )


def _members_of(tenant_id: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return subscription_members.c.tenant_id == tenant_id, subscription_members.c.name == name
