"""The routes of subscriptions: made once, polled and acknowledged by members that share the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow, principal_of
from eventstore.api.governed import read_json
from eventstore.api.limits import feed_slot
from eventstore.api.parameters import known_parameters
from eventstore.api.polling import Delivered, Poll, Polling
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import EVENT_EXAMPLE, Time
from eventstore.api.waiting import unless_gone
from eventstore.clock import to_iso
from eventstore.errors import EventStoreError
from eventstore.governance.slots import acknowledge, leave, renew
from eventstore.governance.subscriptions import (
    SubscriptionState,
    create_subscription,
    delete_subscription,
    get_subscription,
    list_subscriptions,
    seek,
)
from eventstore.model.access import Permission
from eventstore.model.query import EventFilter
from eventstore.model.subscription import LEASE_S, LEASE_S_MAX, SLOTS_MAX, Receipt, Subscription

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(
    prefix="/v1/tenants/{tenant}/subscriptions",
    dependencies=[allow(Permission.READ), Depends(known_parameters)],
)

Body = TypeVar("Body")

_BODY_BYTES_MAX = 65_536
_ENCODER = msgspec.json.Encoder()
_Seq = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]


class NewSubscription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is subscribed to: every event that meets all conditions, behind seq `after` (0: from the
    beginning, null: only those to come). `slots` is how many members can share the work; an entity's events
    all go to one slot, in their order."""

    name: str
    entity_type: str | None = None
    entity_id: str | None = None
    actor: str | None = None
    action: str | None = None
    field: str | None = None
    source: str | None = None
    workspace_id: str | None = None
    after: _Seq | None = 0
    slots: Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)] = 1
    lease_s: Annotated[int, msgspec.Meta(ge=1, le=LEASE_S_MAX)] = LEASE_S


class Acknowledgement(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was done: all that the poll with this receipt gave, or of it what is up to seq `through`."""

    member: str
    receipt: str
    through: _Seq | None = None


class Member(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who it is."""

    member: str


class Seek(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The seq behind which to go on; 0: the beginning, null: the end."""

    after: _Seq | None


class SlotView(msgspec.Struct, forbid_unknown_fields=True):
    """A slot: acknowledged up to `cursor`, given up to `delivered`; `member` null: nobody holds it."""

    slot: int
    cursor: int
    delivered: int
    member: str | None
    leased_until: Time | None


class SubscriptionView(msgspec.Struct, forbid_unknown_fields=True):
    """A subscription. `cursor` is the lowest of its slots', `behind` how many events the log has after it."""

    name: str
    wanted: dict[str, str]
    slots: list[SlotView]
    lease_s: int
    cursor: int
    behind: int
    created_by: str
    created: Time


class Subscriptions(msgspec.Struct, forbid_unknown_fields=True):
    """A tenant's subscriptions, by name."""

    subscriptions: list[SubscriptionView]


class Acknowledged(msgspec.Struct, forbid_unknown_fields=True):
    """The new cursors by slot, and the slots that the member had lost: theirs are given again."""

    cursors: dict[str, int]
    lost: list[int]


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """How many slots it was about."""

    slots: int


_VIEW = {
    "name": "billing",
    "wanted": {"entity_type": "order"},
    "slots": [{"slot": 0, "cursor": 41, "delivered": 42, "member": "host-1:77",
               "leased_until": "2026-01-31T12:00:30.000000Z"}],
    "lease_s": 30,
    "cursor": 41,
    "behind": 1,
    "created_by": "key:reader-7k3m9q2xa4",
    "created": "2026-01-31T12:00:00.000000Z",
}  # fmt: skip
_DELIVERED = {"events": [EVENT_EXAMPLE], "receipt": "W1swLDEsNDJdXQ", "slots": [0], "through": 42}


@router.get(
    "",
    summary="A tenant's subscriptions",
    responses=answers(Subscriptions, example={"subscriptions": [_VIEW]}),
)
async def list_all(tenant: str, request: Request) -> Response:
    """Each with its slots, and who holds them."""
    store = _store(request)
    return await run_in_threadpool(
        lambda: _json(Subscriptions([_view(s) for s in list_subscriptions(store.database, tenant)]))
    )


@router.post(
    "",
    status_code=201,
    summary="Make a subscription",
    responses=answers(SubscriptionView, 409, status=201, example=_VIEW),
    openapi_extra=accepts(NewSubscription, example={"name": "billing", "entity_type": "order", "slots": 8}),
)
async def create(tenant: str, request: Request) -> Response:
    """Making one again with the same terms changes nothing, and shows where it is."""
    given = await read_json(request, NewSubscription)
    store, by = _store(request), principal_of(request).subject

    def make() -> Response:
        wanted = EventFilter(
            **{n: getattr(given, n) for n in ("entity_type", "entity_id", "actor", "action", "field")},
            source=given.source,
            workspace_id=given.workspace_id,
        )
        subscription = Subscription(tenant, given.name, wanted, given.slots, given.lease_s)
        create_subscription(store.database, subscription, after=given.after, by=by)
        return _json(_view(get_subscription(store.database, tenant, given.name)), 201)

    return await run_in_threadpool(make)


@router.get("/{subscription}", summary="One subscription", responses=answers(SubscriptionView, example=_VIEW))
async def show(tenant: str, subscription: str, request: Request) -> Response:
    """Where it is, slot by slot."""
    store = _store(request)
    return await run_in_threadpool(
        lambda: _json(_view(get_subscription(store.database, tenant, subscription)))
    )


@router.delete(
    "/{subscription}", status_code=204, summary="Forget a subscription", responses=answers(None, status=204)
)
async def delete(tenant: str, subscription: str, request: Request) -> Response:
    """For its maker, or an administrator. Its cursors are gone; its members are told at their next poll."""
    store, by = _store(request), principal_of(request)
    await run_in_threadpool(lambda: delete_subscription(store.database, tenant, subscription, by=by))
    return Response(status_code=204)


@router.post(
    "/{subscription}/seek",
    summary="Go on elsewhere in the log",
    responses=answers(SubscriptionView, example=_VIEW),
    openapi_extra=accepts(Seek, example={"after": 0}),
)
async def move(tenant: str, subscription: str, request: Request) -> Response:
    """For its maker, or an administrator. What members were given before can no longer be acknowledged."""
    given = await read_json(request, Seek)
    store, by = _store(request), principal_of(request)
    return await run_in_threadpool(
        lambda: _json(_view(seek(store.database, tenant, subscription, given.after, by=by)))
    )


@router.post(
    "/{subscription}/poll",
    summary="The next events for a member",
    responses=answers(Delivered, 409, 410, example=_DELIVERED),
    openapi_extra=accepts(Poll, example={"member": "host-1:77", "limit": 100, "wait": 20}),
)
async def poll(
    tenant: str, subscription: str, request: Request, read: Annotated[Read, reading(ReadAction.FEED)]
) -> Response:
    """Claims or renews the member's share of slots. What was given and not acknowledged is given again."""
    given = await read_json(request, Poll)
    polling = Polling(request, tenant, subscription, given, read)
    try:
        with feed_slot(request):
            response = await unless_gone(request.receive, polling.run())
    except EventStoreError as e:
        error = e
        await run_in_threadpool(lambda: read.answered(error))
        raise
    await run_in_threadpool(read.answered)
    return response or Response(status_code=204)  # to nobody


@router.post(
    "/{subscription}/ack",
    summary="Acknowledge what a poll gave",
    responses=answers(Acknowledged, 409, example={"cursors": {"0": 42}, "lost": []}),
    openapi_extra=accepts(Acknowledgement, example={"member": "host-1:77", "receipt": "W1swLDEsNDJdXQ"}),
)
async def ack(tenant: str, subscription: str, request: Request) -> Response:
    """Moves the cursors, and keeps the slots for another lease."""
    given = await read_json(request, Acknowledgement)
    receipt = Receipt.decode(given.receipt)
    store = _store(request)

    def move() -> Response:
        moved = acknowledge(store.database, tenant, subscription, given.member, receipt, given.through)
        lost = [slot for slot in receipt.slots if slot not in moved]
        return _json(Acknowledged({str(slot): cursor for slot, cursor in moved.items()}, lost))

    return await run_in_threadpool(move)


@router.post(
    "/{subscription}/heartbeat",
    summary="Keep a member's slots while it works",
    responses=answers(Kept, 409, example={"slots": 4}),
    openapi_extra=accepts(Member, example={"member": "host-1:77"}),
)
async def heartbeat(tenant: str, subscription: str, request: Request) -> Response:
    """For work that takes longer than the lease."""
    given = await read_json(request, Member)
    store = _store(request)
    return await run_in_threadpool(
        lambda: _json(Kept(renew(store.database, tenant, subscription, given.member)))
    )


@router.post(
    "/{subscription}/leave",
    summary="Give a member's slots back",
    responses=answers(Kept, example={"slots": 4}),
    openapi_extra=accepts(Member, example={"member": "host-1:77"}),
)
async def depart(tenant: str, subscription: str, request: Request) -> Response:
    """At once, where silence would take a lease."""
    given = await read_json(request, Member)
    store = _store(request)
    return await run_in_threadpool(
        lambda: _json(Kept(leave(store.database, tenant, subscription, given.member)))
    )


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _view(state: SubscriptionState) -> SubscriptionView:
    subscription = state.subscription
    names = ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")
    return SubscriptionView(
        subscription.name,
        {n: v for n in names if (v := getattr(subscription.wanted, n)) is not None},
        [
            SlotView(
                s.slot,
                s.cursor,
                s.delivered,
                s.member,
                None if s.leased_until_us is None else to_iso(s.leased_until_us),
            )
            for s in state.slots
        ],
        subscription.lease_s,
        state.cursor,
        state.last_seq - state.cursor,
        state.created_by,
        to_iso(state.created_at_us),
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(_ENCODER.encode(value), status, media_type="application/json")
