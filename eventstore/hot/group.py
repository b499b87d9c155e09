"""Group commit: requests that arrive while a tenant's commit is under way share the next one.

A tenant is written by one worker at a time (its head's lock would queue the others anyhow); many tenants
are written at once, one connection each.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from eventstore.errors import BusyError, EventStoreError
from eventstore.hot.append import AppendRequest, AppendResult, Outcome

__all__ = ["GroupCommitter", "OnCommit"]

_GROUP_EVENTS_MAX = 20_000
_GROUP_BYTES_MAX = 64 * 2**20
_STOP = ""  # no tenant has an empty name


OnCommit = Callable[[str, int | None, float], None]


class _Appends(Protocol):
    def append(self, tenant_id: str, requests: Sequence[AppendRequest]) -> list[Outcome]: ...


class GroupCommitter:
    """Queues requests per tenant and hands them to `appender` in groups, in the order they came.

    `queue_bytes_max` bounds what waits in memory, by the requests' own `size_bytes`. `on_commit` is told of
    each group: the tenant, the last seq of what it stored (None: nothing new), and how many seconds it took.
    """

    def __init__(
        self,
        appender: _Appends,
        *,
        workers: int = 4,
        queue_bytes_max: int = 256 * 2**20,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._appender = appender
        self._on_commit = on_commit
        self._queue_bytes_max = queue_bytes_max
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[tuple[AppendRequest, Future[AppendResult]]]] = {}
        self._waiting_bytes = 0
        self._committing: dict[str, int] = {}  # how many events of a tenant are under way
        self._closed = False
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"append-{n}", daemon=True) for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tenant_id: str, request: AppendRequest) -> Future[AppendResult]:
        """Queue a request; the future resolves once its events are durable, or with the error.

        Raises:
            BusyError: too much is waiting already, or the store is closing.
        """
        future: Future[AppendResult] = Future()
        future.set_running_or_notify_cancel()  # from here on it will be carried out
        with self._lock:
            if self._closed:
                raise BusyError("the store is shutting down", hint="send it to another process")
            if self._waiting_bytes + request.size_bytes > self._queue_bytes_max and self._waiting_bytes:
                raise BusyError("too many events are waiting to be stored", hint="send it again later")
            self._waiting_bytes += request.size_bytes
            queued = self._waiting.get(tenant_id)
            if queued is not None:
                queued.append((request, future))
                return future
            self._waiting[tenant_id] = deque([(request, future)])
        self._ready.put(tenant_id)
        return future

    def flush(self, tenant_id: str) -> Future[int]:
        """A future that resolves once everything submitted before for a tenant is settled: with how many
        events that were, when this was called; or with the error that the last of it had as a whole.
        """
        flushed: Future[int] = Future()
        flushed.set_running_or_notify_cancel()  # nobody who waits for it can take it back
        with self._lock:
            queued = self._waiting.get(tenant_id)
            count = self._committing.get(tenant_id, 0) + sum(len(r.events) for r, _ in queued or ())
            if queued is None:
                flushed.set_result(count)
                return flushed
            # Nothing to store, behind all that waits: its turn comes when that is done.
            last: Future[AppendResult] = Future()
            queued.append((AppendRequest(()), last))

        def settled(done: Future[AppendResult]) -> None:
            error = done.exception()
            if error is None:
                flushed.set_result(count)
            else:
                flushed.set_exception(error)

        last.add_done_callback(settled)
        return flushed

    def close(self) -> None:
        """Refuse new requests, finish the queued ones, and stop the workers."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop_workers()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            tenant_id = self._ready.get()
            if tenant_id == _STOP:
                with self._lock:
                    if not self._waiting:
                        return
                continue
            while self._commit_group(tenant_id):
                pass

    def _commit_group(self, tenant_id: str) -> bool:
        """Commit what waits of a tenant. Whether this thread goes on with it: more has come meanwhile, and
        no other tenant waits for a thread. Another thread would have to be woken first."""
        self._commit(tenant_id, self._take(tenant_id))
        with self._lock:
            del self._committing[tenant_id]
            if self._waiting[tenant_id]:
                if self._ready.empty():
                    return True
                self._ready.put(tenant_id)
                return False
            del self._waiting[tenant_id]
            if self._closed and not self._waiting:
                self._stop_workers()
            return False

    def _stop_workers(self) -> None:
        for _ in self._threads:
            self._ready.put(_STOP)

    def _take(self, tenant_id: str) -> list[tuple[AppendRequest, Future[AppendResult]]]:
        group: list[tuple[AppendRequest, Future[AppendResult]]] = []
        events = size_bytes = 0
        with self._lock:
            queued = self._waiting[tenant_id]
            while queued:
                request = queued[0][0]
                events += len(request.events)
                size_bytes += request.size_bytes
                if group and (events > _GROUP_EVENTS_MAX or size_bytes > _GROUP_BYTES_MAX):
                    break
                group.append(queued.popleft())
                self._waiting_bytes -= request.size_bytes
            self._committing[tenant_id] = sum(len(request.events) for request, _ in group)
        return group

    def _commit(self, tenant_id: str, group: list[tuple[AppendRequest, Future[AppendResult]]]) -> None:
        started = time.monotonic()
        last_seq = settle(
            lambda: self._appender.append(tenant_id, [request for request, _ in group]),
            [future for _, future in group],
        )
        if self._on_commit is not None:
            self._on_commit(tenant_id, last_seq, time.monotonic() - started)


def settle(work: Callable[[], list[Outcome]], futures: list[Future[AppendResult]]) -> int | None:
    """Run the work and give each future its outcome; an error of the whole work goes to all of them. Returns
    the last seq that was stored; None: nothing new was."""
    try:
        outcomes = work()
    except BaseException as e:  # noqa: BLE001 - handed to every caller, who must hear of it
        for future in futures:
            future.set_exception(e)
        return None
    last_seq: int | None = None
    for future, outcome in zip(futures, outcomes, strict=True):
        if isinstance(outcome, EventStoreError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
            last_seq = outcome.last_seq or last_seq
    return last_seq
