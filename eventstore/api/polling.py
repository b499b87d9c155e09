"""One poll of a member of a subscription: claims, looks, and while there is nothing waits without writing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Request, Response

from eventstore.api.access import check, recheck
from eventstore.api.feed_hub import FeedHub, Follower
from eventstore.api.reads import Read
from eventstore.api.shapes import StoredEvent
from eventstore.db.engine import Database
from eventstore.governance.slots import Held, claim_slots, note_delivered
from eventstore.model.access import Permission
from eventstore.model.subscription import Receipt
from eventstore.query.delivery import Delivery, next_delivery
from eventstore.query.feed_ring import Form, Framing
from eventstore.query.render import event_views

__all__ = ["Delivered", "Poll", "Polling"]

_LIMIT_MAX = 1000
_LOOKS_APART_S = 0.15  # between two looks of a member that waits, however often the log grows
_CLAIMS_APART_S = 10.0  # at the most, and a third of the lease: a waiting member renews, and finds free slots
_ENCODER = msgspec.json.Encoder()


class Poll(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who asks, for at most how many events, and how many seconds it waits for the first."""

    member: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=_LIMIT_MAX)] = 100
    wait: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0


class Delivered(msgspec.Struct, forbid_unknown_fields=True):
    """The next events of the member's slots by seq, and the receipt to acknowledge them with."""

    events: list[StoredEvent]
    receipt: str
    slots: list[int]
    through: int


class Polling:
    """One poll: claims, looks, and while there is nothing waits without writing. What waits is a consumer of
    the feed, which all who follow the log share; it looks where that has something of the filter."""

    def __init__(self, request: Request, tenant: str, name: str, given: Poll, read: Read) -> None:
        self._hub: FeedHub = request.app.state.feeds
        self._database: Database = request.app.state.store.database
        self._reader = self._hub.reader.metered(read.meter)
        self._request, self._tenant, self._name, self._given, self._read = request, tenant, name, given, read
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Held] = {}
        # Of each slot held, up to where there is nothing to give; not written yet.
        self._at: dict[int, int] = {}
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
            before = follower.cursor
            if any(at < before for at in self._at.values()):
                return  # a look ended before it had come so far: what lies between is not known
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
                slot: at
                for slot, at in self._at.items()
                if slot in held and held[slot].generation == self._held[slot].generation
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
            self._at = dict(found.through)
            return None
        receipt = self._note(set(found.slot.tolist()), found.through)
        if not receipt.slots:
            self._at, self._claim_s = {}, 0.0  # all were lost: claim anew
            return None
        return self._answer(found, receipt)

    def _note(self, given: set[int], through: Mapping[int, int]) -> Receipt:
        return note_delivered(
            self._database, self._subscription, self._given.member, self._held, given, through
        )

    def _answer(self, found: Delivery, receipt: Receipt) -> Response:
        events = found.kept(receipt.slots)
        through = max(found.through.values())
        self._read.covers(events=events.num_rows, seqs=(found.after + 1, through))
        views = list(event_views(events))
        answer = {
            "events": views,
            "receipt": receipt.encode(),
            "slots": list(self._held),
            "through": through,
        }
        return _answered(answer)

    def _nothing(self) -> Response:
        """Where nothing was wanted, the cursors move on: it is not looked at again."""
        if any(held.cursor < self._at.get(slot, 0) for slot, held in self._held.items()):
            self._note(set(), self._at)
        through = max(self._at.values(), default=0)
        return _answered(Delivered([], Receipt({}).encode(), list(self._held), through))


def _answered(value: Any) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")
