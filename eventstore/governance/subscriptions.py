"""Subscriptions as stored: made, listed, moved, deleted. What their members do is in `governance.slots`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.tables import heads
from eventstore.db.tables_subscriptions import subscription_slots, subscriptions
from eventstore.errors import ForbiddenError, InputError, StateError, SubscriptionNotFoundError
from eventstore.governance.record import EntryKind, record
from eventstore.model.access import Permission, Principal
from eventstore.model.query import EventFilter
from eventstore.model.subscription import Subscription

__all__ = [
    "SlotState",
    "SubscriptionState",
    "create_subscription",
    "delete_subscription",
    "get_subscription",
    "list_subscriptions",
    "locked_slots",
    "seek",
    "slots_of",
    "subscription_of",
    "subscription_row",
]

_SUBSCRIPTIONS_MAX = 1000


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
            found = subscription_of(subscription_row(conn, wanted.tenant_id, wanted.name))
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
        return _state(conn, subscription_row(conn, tenant_id, name))


def list_subscriptions(database: Database, tenant_id: str) -> list[SubscriptionState]:
    """All of a tenant's, by name.

    Raises:
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        query = sa.select(subscriptions).where(subscriptions.c.tenant_id == tenant_id)
        return [_state(conn, row) for row in conn.execute(query.order_by(subscriptions.c.name)).all()]


def delete_subscription(database: Database, tenant_id: str, name: str, *, by: Principal) -> None:
    """Forget a subscription and its cursors.

    Raises:
        ForbiddenError: neither its maker nor an administrator asks.
        SubscriptionNotFoundError, TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = subscription_row(conn, tenant_id, name, lock="goes")
        _check_maker(row, by)
        conn.execute(
            sa.delete(subscriptions).where(
                subscriptions.c.tenant_id == tenant_id, subscriptions.c.name == name
            )
        )
        _record(conn, EntryKind.SUBSCRIPTION_DELETED, row, by, {})


def seek(
    database: Database, tenant_id: str, name: str, after: int | None, *, by: Principal
) -> SubscriptionState:
    """Let every slot go on behind a seq (None: the log's end). What members hold is taken from them: what
    they were given can no longer be acknowledged.

    Raises:
        ForbiddenError: neither its maker nor an administrator asks.
        InputError: it lies beyond the log's end.
        SubscriptionNotFoundError, TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = subscription_row(conn, tenant_id, name, lock="stays")
        _check_maker(row, by)
        locked_slots(conn, tenant_id, name)
        last_seq = _last_seq(conn, tenant_id)
        to = last_seq if after is None else after
        _check_seek(tenant_id, to, last_seq)
        conn.execute(
            sa.update(subscription_slots)
            .where(*slots_of(tenant_id, name))
            .values(
                cursor=to,
                delivered=to,
                generation=subscription_slots.c.generation + 1,
                member=None,
                leased_until=None,
            )
        )
        _record(conn, EntryKind.SUBSCRIPTION_MOVED, row, by, {"after": to})
        return _state(conn, row)


def subscription_row(
    conn: sa.Connection, tenant_id: str, name: str, *, lock: Literal["stays", "goes"] | None = None
) -> sa.Row[Any]:
    """A subscription's row. Who changes its slots or members locks it before those, so that it "stays"; who
    deletes it, as it "goes": each waits for the other, in one order.

    Raises:
        SubscriptionNotFoundError
    """
    query = sa.select(subscriptions).where(
        subscriptions.c.tenant_id == tenant_id, subscriptions.c.name == name
    )
    if lock is not None:
        stays = lock == "stays"
        query = query.with_for_update(read=stays, key_share=stays)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise SubscriptionNotFoundError(
            f"there is no subscription {name!r}", hint="make it with POST …/subscriptions"
        )
    return row


def locked_slots(conn: sa.Connection, tenant_id: str, name: str) -> list[sa.Row[Any]]:
    """A subscription's slots, locked in their order."""
    query = sa.select(subscription_slots).where(*slots_of(tenant_id, name))
    return list(conn.execute(query.order_by(subscription_slots.c.slot).with_for_update()).all())


def slots_of(tenant_id: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition for a subscription's slots."""
    return subscription_slots.c.tenant_id == tenant_id, subscription_slots.c.name == name


def _check_maker(row: sa.Row[Any], by: Principal) -> None:
    if by.subject != row.created_by and not by.may(Permission.ADMINISTER):
        raise ForbiddenError(
            f"{row.name!r} was made by somebody else",
            hint="its maker, or an administrator, moves and deletes it; or make one of your own",
        )


def _record(
    conn: sa.Connection, kind: EntryKind, row: sa.Row[Any], by: Principal, more: dict[str, object]
) -> None:
    """Record what an administrator did to somebody else's subscription: events may be passed over by it."""
    if by.subject == row.created_by:
        return
    now = to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
    document = {"subscription": row.name, "created_by": row.created_by, **more}
    record(conn, kind, row.tenant_id, by.subject, document, now)


def _last_seq(conn: sa.Connection, tenant_id: str) -> int:
    return int(conn.execute(sa.select(heads.c.last_seq).where(heads.c.tenant_id == tenant_id)).scalar_one())


def _check_seek(tenant_id: str, after: int, last_seq: int) -> None:
    if not 0 <= after <= last_seq:
        raise InputError(
            f"after: {after} is not within the log of {tenant_id!r}, which ends at seq {last_seq}",
            hint="0 is the beginning, null the end",
        )


def _state(conn: sa.Connection, row: sa.Row[Any]) -> SubscriptionState:
    query = sa.select(subscription_slots).where(*slots_of(row.tenant_id, row.name))
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
        subscription_of(row),
        row.created_by,
        to_us(row.created_at),
        _last_seq(conn, row.tenant_id),
        tuple(slots),
    )


def subscription_of(row: sa.Row[Any]) -> Subscription:
    """The subscription of a row."""
    return Subscription(row.tenant_id, row.name, EventFilter(**row.wanted), row.slots, row.lease_s)


def _filter_json(wanted: EventFilter) -> dict[str, str]:
    names = ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")
    return {name: value for name in names if (value := getattr(wanted, name)) is not None}
