"""The routes of subscriptions: made once, polled and acknowledged by members that share the work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow, check, principal_of, recheck
from eventstore.api.feed_hub import FeedHub, Follower
from eventstore.api.governed import read_json
from eventstore.api.limits import feed_slot
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import accepts, answers
from eventstore.api.shapes import EVENT_EXAMPLE, StoredEvent, Time
from eventstore.api.waiting import unless_gone
from eventstore.clock import to_iso
from eventstore.errors import EventStoreError
from eventstore.governance.slots import Held, acknowledge, claim_slots, leave, note_delivered, renew
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
from eventstore.query.delivery import Delivery, next_delivery
from eventstore.query.feed_ring import Form, Framing
from eventstore.query.render import event_views

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(
    prefix="/v1/tenants/{tenant}/subscriptions",
    dependencies=[allow(Permission.READ), Depends(known_parameters)],
)

Body = TypeVar("Body")

_BODY_BYTES_MAX = 65_536
_LIMIT_MAX = 1000
_LOOKS_APART_S = 0.15  # between two looks of a member that waits, however often the log grows
_CLAIMS_APART_S = 10.0  # at the most, and a third of the lease: a waiting member renews, and finds free slots
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


class Poll(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who asks, for at most how many events, and how many seconds it waits for the first."""

    member: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=_LIMIT_MAX)] = 100
    wait: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0


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


class Delivered(msgspec.Struct, forbid_unknown_fields=True):
    """The next events of the member's slots by seq, and the receipt to acknowledge them with."""

    events: list[StoredEvent]
    receipt: str
    slots: list[int]
    through: int


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
    """Its cursors are gone; its members are told at their next poll."""
    store = _store(request)
    await run_in_threadpool(delete_subscription, store.database, tenant, subscription)
    return Response(status_code=204)


@router.post(
    "/{subscription}/seek",
    summary="Go on elsewhere in the log",
    responses=answers(SubscriptionView, example=_VIEW),
    openapi_extra=accepts(Seek, example={"after": 0}),
)
async def move(tenant: str, subscription: str, request: Request) -> Response:
    """What members were given before can no longer be acknowledged."""
    given = await read_json(request, Seek)
    store = _store(request)
    return await run_in_threadpool(
        lambda: _json(_view(seek(store.database, tenant, subscription, given.after)))
    )


@router.post(
    "/{subscription}/poll",
    summary="The next events for a member",
    responses=answers(Delivered, 410, example=_DELIVERED),
    openapi_extra=accepts(Poll, example={"member": "host-1:77", "limit": 100, "wait": 20}),
)
async def poll(
    tenant: str, subscription: str, request: Request, read: Annotated[Read, reading(ReadAction.FEED)]
) -> Response:
    """Claims or renews the member's share of slots. What was given and not acknowledged is given again."""
    given = await read_json(request, Poll)
    polling = _Polling(request, tenant, subscription, given, read)
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
    responses=answers(Kept, example={"slots": 4}),
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


class _Polling:
    """One poll: claims, looks, and while there is nothing waits without writing. What waits is a consumer of
    the feed, which all who follow the log share; it looks where that has something of the filter."""

    def __init__(self, request: Request, tenant: str, name: str, given: Poll, read: Read) -> None:
        self._hub: FeedHub = request.app.state.feeds
        self._database = _store(request).database
        self._reader = self._hub.reader.metered(read.meter)
        self._request, self._tenant, self._name, self._given, self._read = request, tenant, name, given, read
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Held] = {}
        self._at: dict[
            int, int
        ] = {}  # of each slot held, up to where nothing is to be given; not written yet
        self._claim_s = 0.0  # when to claim again, by the loop's clock

    async def run(self) -> Response:
        until = self._loop.time() + self._given.wait
        await self._claim()
        response = await self._hub.in_subscription_thread(self._look)
        if response is None and self._given.wait and not self._hub.ending:
            response = await self._wait(until)
        if response is None:
            response = await self._hub.in_subscription_thread(self._nothing)
        return response

    async def _wait(self, until: float) -> Response | None:
        if self._at:
            since = min(self._at.values())
        else:  # others have all slots; one of them may leave
            since = await self._hub.in_subscription_thread(lambda: self._reader.head(self._tenant))
        form = Form(self._subscription.wanted, Framing.LINES)
        async with self._hub.following(self._tenant, form, since, self._reader) as follower:
            while not self._hub.ending and (looked_s := self._loop.time()) < until:
                await self._come(follower, min(until, self._claim_s))
                await asyncio.sleep(max(0.0, looked_s + _LOOKS_APART_S - self._loop.time()))
                # Its key may have been revoked meanwhile.
                check(await recheck(self._request), Permission.READ, self._tenant)
                if self._loop.time() >= self._claim_s:
                    await self._claim()
                if self._at:
                    response = await self._hub.in_subscription_thread(self._look)
                    if response is not None:
                        return response
        return None

    async def _come(self, follower: Follower, until: float) -> None:
        """Wait for something that the filter wants; at most until a time of the loop's clock."""
        while self._loop.time() < until:
            part = await follower.next(until)
            if part is None:
                return
            if all(follower.cursor <= at for at in self._at.values()):
                continue  # looked at already
            if part.count:
                return
            self._at = {slot: max(at, follower.cursor) for slot, at in self._at.items()}

    async def _claim(self) -> None:
        def claim() -> None:
            self._subscription, held = claim_slots(
                self._database, self._tenant, self._name, self._given.member
            )
            known = {
                s: at
                for s, at in self._at.items()
                if s in held and held[s].generation == self._held[s].generation
            }
            self._held, self._at = held, {s: max(h.cursor, known.get(s, 0)) for s, h in held.items()}

        await self._hub.in_subscription_thread(claim)
        self._claim_s = self._loop.time() + min(self._subscription.lease_s / 3, _CLAIMS_APART_S)

    def _look(self) -> Response | None:
        """Read once, and note what is to be given; None: there is nothing yet."""
        if not self._at:
            return None
        wanted, slots = self._subscription.wanted, self._subscription.slots
        found = next_delivery(self._reader, self._tenant, wanted, slots, self._at, self._given.limit)
        if not found.events.num_rows:
            self._at = {slot: max(at, found.scanned) for slot, at in self._at.items()}
            return None
        receipt = self._note(set(found.slot.tolist()), found.scanned)
        if not receipt.slots:
            self._at, self._claim_s = {}, 0.0  # all were lost: claim anew
            return None
        return self._answer(found, receipt)

    def _note(self, given: set[int], scanned: int) -> Receipt:
        return note_delivered(
            self._database, self._subscription, self._given.member, self._held, given, scanned
        )

    def _answer(self, found: Delivery, receipt: Receipt) -> Response:
        events = found.kept(receipt.slots)
        self._read.covers(events=events.num_rows, seqs=(found.after + 1, found.scanned))
        views = list(event_views(events))
        answer = {
            "events": views,
            "receipt": receipt.encode(),
            "slots": list(self._held),
            "through": found.scanned,
        }
        return _json(answer)

    def _nothing(self) -> Response:
        """Where nothing was wanted, the cursors move on: it is not looked at again."""
        through = min(self._at.values(), default=0)
        if any(held.cursor < through for held in self._held.values()):
            self._note(set(), through)
        return _json(Delivered([], Receipt({}).encode(), list(self._held), through))


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
