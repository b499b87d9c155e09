"""Everybody who follows logs in this process: one reader a tenant at the log's end, shared by all its feeds.

The event loop only moves bytes: reading and framing happens in threads. A consumer holds its cursor and what
is being written to it. At the log's end it takes batches that were read and framed once for all; behind that,
after a pause or at its beginning, it reads by its cursor, on its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

from eventstore.errors import BusyError
from eventstore.hot.wake import Wakes
from eventstore.query.feed import FeedReader, Look
from eventstore.query.feed_ring import Batch, Form, Part, Ring, framed, joined

__all__ = ["FeedHub", "Follower"]

T = TypeVar("T")

# Threads at the ends of logs, and threads that read by cursors: a long replay holds no live feed up.
_TAIL_THREADS = 2
_REPLAY_THREADS = 4
# Threads of subscriptions, which look through logs and write to their slots: those hold no feed up.
_SUBSCRIPTION_THREADS = 4
# How often an end is looked at without being woken, in seconds; less often where there are many.
_POLL_S = 1.0
_POLL_EACH_S = 0.002
# Writing to a consumer takes about so long, much of it the system's. After a batch the end is left alone for
# about as long as all its consumers take: however many they are, half of the loop is the others'.
_EACH_S = 0.0001
_TOLD_AT_ONCE = 32
_FEEDS_MAX = 5_000
# What is kept of the end of one log, and of all of them together.
_RING_BYTES_MAX = 8 * 2**20
_RINGS_BYTES_MAX = 256 * 2**20
_NO_LIMIT = 2**62


class FeedHub:
    """The feeds of one event loop. `ring_bytes_max` bounds what is kept of each log's end, `rings_bytes_max`
    what is kept of all of them."""

    def __init__(
        self,
        reader: FeedReader,
        wakes: Wakes,
        *,
        ring_bytes_max: int = _RING_BYTES_MAX,
        rings_bytes_max: int = _RINGS_BYTES_MAX,
    ) -> None:
        self.reader = reader
        self.ending = False  # the process stops: every feed ends, to be resumed elsewhere
        self._wakes = wakes
        self._ring_bytes_max = ring_bytes_max
        self._rings_bytes_max = rings_bytes_max
        self._loop = asyncio.get_running_loop()
        self._tails: dict[str, _Tail] = {}
        self._followers = 0
        self._tail_threads = ThreadPoolExecutor(_TAIL_THREADS, "feed-tail")
        self._replay_threads = ThreadPoolExecutor(_REPLAY_THREADS, "feed-replay")
        self._subscription_threads = ThreadPoolExecutor(_SUBSCRIPTION_THREADS, "subscription")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks after the feeds inside."""
        async with AsyncExitStack() as stack:
            stack.callback(self._tail_threads.shutdown, cancel_futures=True)
            stack.callback(self._replay_threads.shutdown, cancel_futures=True)
            stack.callback(self._subscription_threads.shutdown, cancel_futures=True)
            stack.enter_context(self._wakes.listening(self._on_commit))
            polling = asyncio.create_task(self._poll())
            stack.callback(polling.cancel)
            try:
                yield
            finally:
                self.end()

    def end(self) -> None:
        """End every feed, now and from now on."""
        self.ending = True
        for tail in self._tails.values():
            tail.tell()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Something that waits for a database, a disk or the interpreter, done for one feed."""
        return await self._loop.run_in_executor(self._replay_threads, work)

    async def in_tail_thread(self, work: Callable[[], T]) -> T:
        """Something of a log's end that takes a moment: no replay stands before it."""
        return await self._loop.run_in_executor(self._tail_threads, work)

    async def in_subscription_thread(self, work: Callable[[], T]) -> T:
        """As `in_thread`, done for a member of a subscription."""
        return await self._loop.run_in_executor(self._subscription_threads, work)

    @asynccontextmanager
    async def following(
        self, tenant_id: str, form: Form, since: int, reader: FeedReader | None = None
    ) -> AsyncIterator[Follower]:
        """A consumer of a log from a cursor on. `reader` is its own, with its own meter.

        Raises:
            BusyError: this process has as many feeds as it can bear.
            InputError: the cursor lies beyond the log's end.
            TenantNotFoundError
        """
        if self._followers >= _FEEDS_MAX:
            raise BusyError(
                f"{_FEEDS_MAX} feeds are open in this process", hint="try another, or again later"
            )
        self._followers += 1
        try:
            reader = reader or self.reader
            own = reader
            last_seq = await self.in_thread(lambda: own.check_cursor(tenant_id, since))
            with self._joined(tenant_id, form, last_seq) as tail:
                yield Follower(self, tail, own, form, since)
        finally:
            self._followers -= 1

    @contextmanager
    def _joined(self, tenant_id: str, form: Form, last_seq: int) -> Iterator[_Tail]:
        tail = self._tails.get(tenant_id)
        if tail is None:
            ring = Ring(last_seq, size_bytes_max=self._ring_bytes_max)
            tail = self._tails[tenant_id] = _Tail(tenant_id, self.reader, ring)
            tail.task = asyncio.create_task(self._keep_reading(tail))
        tail.forms[form] += 1
        try:
            yield tail
        finally:
            tail.forms[form] -= 1
            if not tail.forms[form]:
                del tail.forms[form]
            if not tail.forms:
                if self._tails.get(tenant_id) is tail:
                    del self._tails[tenant_id]
                assert tail.task is not None
                tail.task.cancel()

    def _on_commit(self, tenant_id: str | None) -> None:
        """From any thread. Logs that nobody follows cost a look into a dictionary."""
        if tenant_id is None or tenant_id in self._tails:
            self._loop.call_soon_threadsafe(self._wake, tenant_id)

    def _wake(self, tenant_id: str | None) -> None:
        found = self._tails.get(tenant_id) if tenant_id is not None else None
        for tail in list(self._tails.values()) if tenant_id is None else [found] if found else []:
            tail.woken.set()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(max(_POLL_S, _POLL_EACH_S * len(self._tails)))
            self._wake(None)

    async def _keep_reading(self, tail: _Tail) -> None:
        try:
            await tail.run(self._tail_threads, self._bound_rings)
        except Exception as e:  # noqa: BLE001 - handed to each consumer, when it has come so far
            tail.error = e
            if self._tails.get(tail.tenant_id) is tail:
                del self._tails[tail.tenant_id]  # whoever comes next begins anew
            tail.tell()

    def _bound_rings(self) -> None:
        """Drop batches, of the largest rings first, until all of them together are within their bound."""
        rings = [tail.ring for tail in self._tails.values()]
        too_many = sum(ring.size_bytes for ring in rings) - self._rings_bytes_max
        while too_many > 0:
            largest = max(rings, key=lambda ring: ring.size_bytes)
            too_many -= largest.size_bytes
            largest.drop_oldest()
            too_many += largest.size_bytes


class _Tail:
    """The end of one log. `forms` counts who wants what."""

    def __init__(self, tenant_id: str, reader: FeedReader, ring: Ring) -> None:
        self.tenant_id = tenant_id
        self.ring = ring
        self.forms: Counter[Form] = Counter()
        self.woken = asyncio.Event()
        self.woken.set()  # something may have been committed since the ring's beginning was looked up
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self._reader = reader
        self._waiting: set[asyncio.Future[None]] = set()

    async def run(self, threads: ThreadPoolExecutor, on_more: Callable[[], None]) -> None:
        """Read what comes, batch by batch, and tell those who wait. `on_more`: the ring has grown.

        Raises:
            FeedResetError: it was destroyed before it was read here.
            EventStoreError: it cannot be read.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self.woken.wait()
            self.woken.clear()
            looks = self._reader.read(self.tenant_id, self.ring.through)
            while (batch := await loop.run_in_executor(threads, self._next, looks)) is not None:
                self.ring.add(batch)
                on_more()
                await self._tell_by_and_by()
                await asyncio.sleep(sum(self.forms.values()) * _EACH_S)

    def _next(self, looks: Iterator[Look]) -> Batch | None:
        look = next(looks, None)
        if look is None or look.through == self.ring.through:
            return None
        return Batch(self.ring.through, look, list(self.forms))

    def tell(self) -> None:
        """Wake all who wait here."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _tell_by_and_by(self) -> None:
        """Wake all who wait here, and let the loop do other things between: each will write to a socket."""
        waiting, self._waiting = list(self._waiting), set()
        for start in range(0, len(waiting), _TOLD_AT_ONCE):
            for future in waiting[start : start + _TOLD_AT_ONCE]:
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(0)

    async def wait(self, until: float) -> None:
        """Wait until something has happened here, or for a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.add(future)
        timer = loop.call_at(until, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)


class Follower:
    """One consumer: `cursor` is the seq up to which it was given everything."""

    def __init__(self, hub: FeedHub, tail: _Tail, reader: FeedReader, form: Form, since: int) -> None:
        self.cursor = since
        self._hub, self._tail, self._reader, self._form = hub, tail, reader, form
        self._looks: Iterator[Look] | None = None  # while it reads by its cursor

    @property
    def is_ending(self) -> bool:
        """Whether this process stops."""
        return self._hub.ending

    async def next(self, until: float, *, limit: int = _NO_LIMIT) -> Part | None:
        """What follows the cursor, at most `limit` events. Perhaps none of it is wanted: the cursor has moved
        all the same. None: nothing came until a time of the loop's clock, or the process stops.

        Raises:
            FeedResetError: the next events were destroyed.
            EventStoreError: the log cannot be read.
        """
        loop = asyncio.get_running_loop()
        while not self._hub.ending:
            if self._looks is None and not self._tail.ring.holds(self.cursor):
                most = None if limit == _NO_LIMIT else limit
                wanted = self._form.wanted
                self._looks = self._reader.read(self._tail.tenant_id, self.cursor, wanted, limit=most)
            if self._looks is not None:
                part = await self._hub.in_thread(self._replay)
                if part is None:
                    self._looks = None
                    continue
            else:
                batch = self._tail.ring.after(self.cursor)
                if batch is None:
                    if self._tail.error is not None:
                        raise self._tail.error
                    if loop.time() >= until:
                        return None
                    await self._tail.wait(until)
                    continue
                part = batch.shared(self._form) if batch.after == self.cursor else None
                if part is None or part.count > limit:
                    part = await self._part(batch, limit)
            self.cursor = part.through
            return part
        return None

    def _replay(self) -> Part | None:
        assert self._looks is not None
        look = next(self._looks, None)
        if look is None:
            return None
        return Part(joined(framed(look.events, self._form.framing)), look.events.num_rows, look.through)

    async def _part(self, batch: Batch, limit: int) -> Part:
        after = self.cursor
        return await self._hub.in_tail_thread(lambda: batch.part(self._form, after=after, limit=limit))
