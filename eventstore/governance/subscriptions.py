"""Subscriptions as stored: made, listed, deleted; their slots claimed, delivered and acknowledged.

Every change of slots is one transaction that locks the rows of the subscription's slots, in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.tables import heads
from eventstore.db.tables_subscriptions import subscription_members, subscription_slots, subscriptions
from eventstore.errors import InputError, LeaseLostError, StateError, SubscriptionNotFoundError
from eventstore.model.query import EventFilter
from eventstore.model.subscription import Receipt, Subscription, check_member, fair_share

__all__ = [
    "Held",
    "SlotState",
    "SubscriptionState",
    "acknowledge",
    "claim_slots",
    "create_subscription",
    "delete_subscription",
    "get_subscription",
    "leave",
    "list_subscriptions",
    "note_delivered",
    "renew",
    "seek",
]

_SUBSCRIPTIONS_MAX = 1000
_FORGOTTEN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot: acknowledged up to `cursor`; `member` None: it is free."""

    slot: int
    cursor: int
    delivered: int
    member: str | None
    leased_until_us: int | None


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """A subscription, its slots, and how many events of the log lie behind its lowest cursor."""

    subscription: Subscription
    created_by: str
    created_at_us: int
    last_seq: int
    slots: tuple[SlotState, ...]

    @property
    def cursor(self) -> int:
        return min(slot.cursor for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Held:
    """A slot in a member's hands: read on behind `cursor`, under `generation`."""

    cursor: int
    generation: int


def create_subscription(
    database: Database, wanted: Subscription, *, after: int | None, by: str
) -> Subscription:
    """Make a subscription whose first event is the one behind seq `after` (None: those that are yet to come).
    One that exists already with the same terms is returned as it is, wherever it has come to.

    Raises:
        InputError: `after` lies beyond the log's end.
        StateError: it exists with other terms, or the tenant has too many.
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, wanted.tenant_id)
        last_seq = _last_seq(conn, wanted.tenant_id)
        start = last_seq if after is None else after
        _check_seek(wanted.tenant_id, start, last_seq)
        count = conn.execute(
            sa.select(sa.func.count()).where(subscriptions.c.tenant_id == wanted.tenant_id)
        ).scalar_one()
        made = conn.execute(
            insert(subscriptions)
            .values(
                tenant_id=wanted.tenant_id,
                name=wanted.name,
                wanted=_filter_json(wanted.wanted),
                slots=wanted.slots,
                lease_s=wanted.lease_s,
                created_by=by,
            )
            .on_conflict_do_nothing()
            .returning(subscriptions.c.name)
        ).scalar()
        if made is None:
            found = _subscription(_row(conn, wanted.tenant_id, wanted.name))
            if found != wanted:
                raise StateError(
                    f"there is a subscription {wanted.name!r} with other terms",
                    hint="its filter, slots and lease stay as they were made: use another name, or delete it",
                )
            return found
        if count >= _SUBSCRIPTIONS_MAX:
            raise StateError(
                f"{wanted.tenant_id!r} has {_SUBSCRIPTIONS_MAX} subscriptions", hint="delete one first"
            )
        conn.execute(
            sa.insert(subscription_slots),
            [
                {
                    "tenant_id": wanted.tenant_id,
                    "name": wanted.name,
                    "slot": n,
                    "cursor": start,
                    "delivered": start,
                }
                for n in range(wanted.slots)
            ],
        )
    return wanted


def get_subscription(database: Database, tenant_id: str, name: str) -> SubscriptionState:
    """A subscription and where it is.

    Raises:
        SubscriptionNotFoundError, TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        return _state(conn, _row(conn, tenant_id, name))


def list_subscriptions(database: Database, tenant_id: str) -> list[SubscriptionState]:
    """All of a tenant's, by name.

    Raises:
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        query = sa.select(subscriptions).where(subscriptions.c.tenant_id == tenant_id)
        return [_state(conn, row) for row in conn.execute(query.order_by(subscriptions.c.name)).all()]


def delete_subscription(database: Database, tenant_id: str, name: str) -> None:
    """Forget a subscription and its cursors.

    Raises:
        SubscriptionNotFoundError, TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        _row(conn, tenant_id, name)
        conn.execute(
            sa.delete(subscriptions).where(
                subscriptions.c.tenant_id == tenant_id, subscriptions.c.name == name
            )
        )


def seek(database: Database, tenant_id: str, name: str, after: int | None) -> SubscriptionState:
    """Let every slot go on behind a seq (None: the log's end). What members hold is taken from them: what
    they were given can no longer be acknowledged.

    Raises:
        InputError: it lies beyond the log's end.
        SubscriptionNotFoundError, TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = _row(conn, tenant_id, name)
        last_seq = _last_seq(conn, tenant_id)
        to = last_seq if after is None else after
        _check_seek(tenant_id, to, last_seq)
        conn.execute(
            sa.update(subscription_slots)
            .where(*_slots_of(tenant_id, name))
            .values(
                cursor=to,
                delivered=to,
                generation=subscription_slots.c.generation + 1,
                member=None,
                leased_until=None,
            )
        )
        return _state(conn, row)


def claim_slots(
    database: Database, tenant_id: str, name: str, member: str
) -> tuple[Subscription, dict[int, Held]]:
    """Renew a member's slots, give back what is more than its share, and claim what is free of it.

    Raises:
        SubscriptionNotFoundError, TenantNotFoundError
        InputError: no member can have that name.
    """
    check_member(member)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription = _subscription(_row(conn, tenant_id, name))
        slots = _locked(conn, tenant_id, name)
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
    scanned: int,
) -> Receipt:
    """Note that a member is about to be given all that is wanted up to seq `scanned` of the slots `given`;
    the others of `held` have nothing up to there, and move on. The receipt leaves out slots that were lost
    meanwhile: their events must not be given."""
    tenant_id, name = subscription.tenant_id, subscription.name
    receipt: dict[int, tuple[int, int]] = {}
    with database.transaction() as conn:
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        until = now + timedelta(seconds=subscription.lease_s)
        idle = []
        for slot in _locked(conn, tenant_id, name):
            ours = held.get(slot.slot)
            if ours is None or slot.member != member or slot.generation != ours.generation:
                continue
            if slot.slot in given:
                receipt[slot.slot] = (slot.generation, scanned)
            elif slot.cursor < scanned:
                idle.append(slot.slot)
        delivered = sa.func.greatest(subscription_slots.c.delivered, scanned)
        if receipt:
            _update(conn, tenant_id, name, receipt, delivered=delivered, leased_until=until)
        if idle:
            _update(conn, tenant_id, name, idle, cursor=scanned, delivered=delivered, leased_until=until)
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
        subscription = _subscription(_row(conn, tenant_id, name))
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        until = now + timedelta(seconds=subscription.lease_s)
        for slot in _locked(conn, tenant_id, name):
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
        SubscriptionNotFoundError, TenantNotFoundError
    """
    check_member(member)
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        subscription = _subscription(_row(conn, tenant_id, name))
        now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        lease = timedelta(seconds=subscription.lease_s)
        mine = [s.slot for s in _locked(conn, tenant_id, name) if s.member == member and s.leased_until > now]
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
        _row(conn, tenant_id, name)
        mine = [s.slot for s in _locked(conn, tenant_id, name) if s.member == member]
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
    """Note that a member was seen; how many were within a lease."""
    statement = insert(subscription_members).values(
        tenant_id=tenant_id, name=name, member=member, seen_at=now
    )
    conn.execute(
        statement.on_conflict_do_update(index_elements=["tenant_id", "name", "member"], set_={"seen_at": now})
    )
    seen = subscription_members.c.seen_at
    conn.execute(
        sa.delete(subscription_members).where(
            *_members_of(tenant_id, name), seen < now - max(_FORGOTTEN, lease)
        )
    )
    count = sa.select(sa.func.count()).where(*_members_of(tenant_id, name), seen > now - lease)
    return int(conn.execute(count).scalar_one())


def _row(conn: sa.Connection, tenant_id: str, name: str) -> sa.Row[Any]:
    row = conn.execute(
        sa.select(subscriptions).where(subscriptions.c.tenant_id == tenant_id, subscriptions.c.name == name)
    ).one_or_none()
    if row is None:
        raise SubscriptionNotFoundError(
            f"there is no subscription {name!r}", hint="make it with POST …/subscriptions"
        )
    return row


def _locked(conn: sa.Connection, tenant_id: str, name: str) -> list[sa.Row[Any]]:
    query = sa.select(subscription_slots).where(*_slots_of(tenant_id, name))
    return list(conn.execute(query.order_by(subscription_slots.c.slot).with_for_update()).all())


def _update(conn: sa.Connection, tenant_id: str, name: str, slots: Collection[int], **values: Any) -> None:
    conn.execute(
        sa.update(subscription_slots)
        .where(*_slots_of(tenant_id, name), subscription_slots.c.slot.in_(slots))
        .values(**values)
    )


def _slots_of(tenant_id: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return subscription_slots.c.tenant_id == tenant_id, subscription_slots.c.name == name


def _members_of(tenant_id: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return subscription_members.c.tenant_id == tenant_id, subscription_members.c.name == name


def _last_seq(conn: sa.Connection, tenant_id: str) -> int:
    return int(conn.execute(sa.select(heads.c.last_seq).where(heads.c.tenant_id == tenant_id)).scalar_one())


def _check_seek(tenant_id: str, after: int, last_seq: int) -> None:
    if not 0 <= after <= last_seq:
        raise InputError(
            f"after: {after} is not within the log of {tenant_id!r}, which ends at seq {last_seq}",
            hint="0 is the beginning, null the end",
        )


def _state(conn: sa.Connection, row: sa.Row[Any]) -> SubscriptionState:
    query = sa.select(subscription_slots).where(*_slots_of(row.tenant_id, row.name))
    now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    slots = []
    for slot in conn.execute(query.order_by(subscription_slots.c.slot)).all():
        alive = slot.member is not None and slot.leased_until > now
        slots.append(
            SlotState(
                slot.slot,
                slot.cursor,
                slot.delivered,
                slot.member if alive else None,
                to_us(slot.leased_until) if alive else None,
            )
        )
    return SubscriptionState(
        _subscription(row),
        row.created_by,
        to_us(row.created_at),
        _last_seq(conn, row.tenant_id),
        tuple(slots),
    )


def _subscription(row: sa.Row[Any]) -> Subscription:
    return Subscription(row.tenant_id, row.name, EventFilter(**row.wanted), row.slots, row.lease_s)


def _filter_json(wanted: EventFilter) -> dict[str, str]:
    names = ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")
    return {name: value for name in names if (value := getattr(wanted, name)) is not None}
