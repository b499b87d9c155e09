"""Group commit over an appender that a test holds up: what shares a commit, in which order, its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from eventstore.errors import BusyError, EventStoreError, StateError
from eventstore.hot.append import AppendRequest, AppendResult, Outcome
from eventstore.hot.group import GroupCommitter, settle
from tests.unit.helpers import new_event

WAIT_S = 30


class HeldAppender:
    """Each call says that it has begun, then waits until the test lets it go on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[AppendRequest]]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.refused: dict[int, EventStoreError] = {}
        self._lock = threading.Lock()

    def append(self, tenant_id: str, requests: Sequence[AppendRequest]) -> list[Outcome]:
        with self._lock:
            self.calls.append((tenant_id, list(requests)))
        self.begun.release()
        assert self.go.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        return [self.refused.get(id(r)) or result(r) for r in requests]

    def wait_for_call(self) -> None:
        assert self.begun.acquire(timeout=WAIT_S)


def request(count: int = 1, size_bytes: int = 10) -> AppendRequest:
    return AppendRequest([new_event()] * count, None, size_bytes)


def result(of: AppendRequest) -> AppendResult:
    return AppendResult(None, None, 0, 0, [id(of)], [])


def answers(futures: Sequence[Future[AppendResult]]) -> list[int]:
    return [future.result(WAIT_S).seqs[0] for future in futures]


@pytest.fixture
def appender() -> HeldAppender:
    return HeldAppender()


@pytest.fixture
def committer(appender: HeldAppender) -> Iterator[GroupCommitter]:
    made = GroupCommitter(appender, workers=2, queue_bytes_max=1000)
    yield made
    for _ in range(100):
        appender.go.release()
    made.close()


def test_requests_that_arrive_during_a_commit_share_the_next_one(
    appender: HeldAppender, committer: GroupCommitter
) -> None:
    requests = [request() for _ in range(4)]
    futures = [committer.submit("a", requests[0])]
    appender.wait_for_call()
    futures += [committer.submit("a", r) for r in requests[1:]]
    assert not any(f.done() for f in futures)
    appender.go.release()
    appender.wait_for_call()
    appender.go.release()
    assert answers(futures) == [id(r) for r in requests]  # each its own outcome
    assert appender.calls == [("a", requests[:1]), ("a", requests[1:])]  # in the order they came


def test_a_tenant_has_one_commit_at_a_time_and_many_tenants_go_at_once(
    appender: HeldAppender, committer: GroupCommitter
) -> None:
    futures = [committer.submit("a", request()), committer.submit("a", request())]
    appender.wait_for_call()
    # The second worker is idle, yet must not take tenant a: b's call comes next.
    futures.append(committer.submit("b", request()))
    appender.wait_for_call()
    tenants = [tenant for tenant, _ in appender.calls]
    assert tenants in (["a", "b"],)
    for _ in range(3):
        appender.go.release()
    answers(futures)


def test_a_tenant_with_more_gives_way_to_one_that_waits(appender: HeldAppender) -> None:
    committer = GroupCommitter(appender, workers=1)
    try:
        futures = [committer.submit("a", request())]
        appender.wait_for_call()
        futures += [committer.submit("a", request()), committer.submit("b", request())]
        for _ in range(3):
            appender.go.release()
        answers(futures)
        assert [tenant for tenant, _ in appender.calls] == ["a", "b", "a"]
    finally:
        committer.close()


def test_a_group_is_bounded_by_its_events(appender: HeldAppender, committer: GroupCommitter) -> None:
    first = committer.submit("a", request())
    appender.wait_for_call()
    sizes = [12_000, 8_000, 1, 30_000]  # 20,000 is the most; what is larger alone goes alone
    futures = [committer.submit("a", request(count)) for count in sizes]
    for _ in range(10):
        appender.go.release()
    answers([first, *futures])
    groups = [[len(r.events) for r in requests] for _, requests in appender.calls]
    assert groups == [[1], [12_000, 8_000], [1], [30_000]]


def test_one_refused_request_leaves_the_others(appender: HeldAppender, committer: GroupCommitter) -> None:
    first = committer.submit("a", request())
    appender.wait_for_call()
    good, bad = request(), request()
    appender.refused[id(bad)] = StateError("not so")
    futures = [committer.submit("a", r) for r in (bad, good)]
    for _ in range(2):
        appender.go.release()
    answers([first, futures[1]])
    with pytest.raises(StateError, match="not so"):
        futures[0].result(WAIT_S)


@pytest.mark.parametrize("error", [BusyError("no connection"), ValueError("a bug"), KeyboardInterrupt()])
def test_an_error_of_the_commit_goes_to_all_of_its_group(
    appender: HeldAppender, committer: GroupCommitter, error: BaseException
) -> None:
    futures = [committer.submit("a", request())]
    appender.wait_for_call()
    futures += [committer.submit("a", request()) for _ in range(2)]
    appender.error = error
    appender.go.release()
    appender.wait_for_call()
    appender.go.release()
    assert [f.exception(WAIT_S) for f in futures] == [error] * 3
    # And the worker lives on.
    appender.error = None
    later = request()
    appender.go.release()
    assert answers([committer.submit("a", later)]) == [id(later)]


def test_the_queue_is_bounded_by_bytes(appender: HeldAppender, committer: GroupCommitter) -> None:
    futures = [committer.submit("a", request(size_bytes=5000))]  # over the bound, but nothing else waits
    appender.wait_for_call()
    futures.append(committer.submit("a", request(size_bytes=600)))
    with pytest.raises(BusyError, match="waiting"):
        committer.submit("b", request(size_bytes=401))
    futures.append(committer.submit("b", request(size_bytes=400)))
    for _ in range(3):
        appender.go.release()
    answers(futures)
    # What was committed no longer counts.
    appender.go.release()
    answers([committer.submit("a", request(size_bytes=999))])


def test_close_finishes_what_is_queued_and_refuses_what_comes(appender: HeldAppender) -> None:
    before = set(threading.enumerate())
    committer = GroupCommitter(appender, workers=3)
    futures = [committer.submit(tenant, request()) for tenant in "abcde" for _ in range(3)]
    appender.wait_for_call()
    closing = threading.Thread(target=committer.close)
    closing.start()
    for _ in range(len(futures)):
        appender.go.release()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert all(f.done() for f in futures)
    answers(futures)
    assert not any(t.name.startswith("append-") for t in set(threading.enumerate()) - before)
    with pytest.raises(BusyError, match="shutting down"):
        committer.submit("a", request())
    committer.close()  # again: nothing happens


def test_settle_gives_each_future_its_outcome() -> None:
    futures: list[Future[AppendResult]] = [Future(), Future()]
    outcome = result(request())
    settle(lambda: [StateError("no"), outcome], futures)
    assert isinstance(futures[0].exception(0), StateError)
    assert futures[1].result(0) is outcome


def test_a_flush_waits_for_what_came_before_and_for_nothing_else(
    appender: HeldAppender, committer: GroupCommitter
) -> None:
    assert committer.flush("a").result(WAIT_S) == 0
    under_way = committer.submit("a", request(3))
    appender.wait_for_call()
    waiting = committer.submit("a", request(2))
    flushed = committer.flush("a")
    assert committer.flush("b").result(WAIT_S) == 0  # another tenant's queue is empty
    assert not flushed.done()
    appender.go.release()
    appender.wait_for_call()
    assert under_way.done()
    assert not flushed.done()
    appender.go.release()
    assert flushed.result(WAIT_S) == 5
    assert waiting.done()


def test_a_flush_has_the_error_of_the_commit_that_it_waited_for(
    appender: HeldAppender, committer: GroupCommitter
) -> None:
    committer.submit("a", request())
    appender.wait_for_call()
    flushed = committer.flush("a")
    appender.go.release()
    appender.wait_for_call()
    appender.error = BusyError("no connection")
    appender.go.release()
    with pytest.raises(BusyError):
        flushed.result(WAIT_S)
