"""The sender against a store in memory that loses answers, refuses, and is away: once each, in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from eventstore.client.attempts import Retry
from eventstore.client.calls import Calls
from eventstore.client.cursor import Cursor
from eventstore.client.outbox import Outbox
from eventstore.client.sender import Rejected, Sender
from eventstore.client.sync import Client
from eventstore.errors import EventStoreError, InvalidEventError, RetryError, TenantClosedError

Handler = Callable[[httpx.Request], httpx.Response]


def event_id(n: int) -> str:
    return f"019a48f1-d680-7000-8000-{n:012d}"


def line(n: int, entity: str = "1") -> bytes:
    return b'{"event_id":"%s","entity_id":"%s"}\n' % (event_id(n).encode(), entity.encode())


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    body = {"type": f"urn:eventstore:{code}", "title": code, "status": status, "detail": code, **more}
    return httpx.Response(status, json=body)


class FakeStore:
    """What a store does with a request, without a memory for repeated ids: what arrives twice is there twice.

    `faults` are taken one a request: None lets it pass; a response stands for the answer; an exception is
    raised before the request is handled, or after it as `("after", …)`.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.requests: list[str] = []
        self.faults: list[httpx.Response | Exception | tuple[str, httpx.Response | Exception] | None] = []
        self.bad: set[str] = set()  # event_ids that are refused by name
        self.unnamed: set[str] = set()  # event_ids that are refused without saying where
        self.lines_max = 10**9

    def __call__(self, request: httpx.Request) -> httpx.Response:
        fault = self.faults.pop(0) if self.faults else None
        self.requests.append(f"{request.method} {request.url.path.rpartition('/')[2]}")
        if isinstance(fault, tuple):
            self._handle(request)
            fault = fault[1]
        if isinstance(fault, Exception):
            raise fault
        return self._handle(request) if fault is None else fault

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            wanted = request.url.path.rpartition("/")[2]
            if wanted not in self.log:
                return problem(404, "event-not-found")
            return httpx.Response(200, json={"seq": self.log.index(wanted) + 1, "event_id": wanted})
        ids = [msgspec.json.decode(part)["event_id"] for part in request.content.splitlines()]
        for number, found in enumerate(ids, 1):
            if found in self.bad:
                return problem(422, "invalid-event", line=number)
        if len(ids) > self.lines_max or self.unnamed & set(ids):
            return problem(413, "too-large", limit_bytes=1)
        self.log += ids
        counts = {"first_seq": 1, "last_seq": 1, "count": len(ids), "duplicates": 0}
        return httpx.Response(201, json=counts)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


class Box:
    """An outbox with its sender, which can be made anew as after a kill."""

    def __init__(self, folder: Path, store: FakeStore) -> None:
        self.folder, self.store = folder, store
        self.rejected: list[Rejected] = []
        self.client = Client("http://store", "acme", transport=httpx.MockTransport(store))
        self.outbox = Outbox(folder, roll_bytes=400, fsync=False)
        self.sender = self._make()

    def _make(self) -> Sender:
        return Sender(
            self.outbox,
            Calls("acme"),
            self.client.attempt,
            batch_events=4,
            retry=Retry(first_s=0.0),
            on_rejected=self.rejected.append,
        )

    def restart(self) -> None:
        """As if killed: nothing that was only in memory is left."""
        self.outbox.close()
        self.outbox = Outbox(self.folder, roll_bytes=400, fsync=False)
        self.sender = self._make()

    def drain(self, steps_max: int = 200) -> None:
        for _ in range(steps_max):
            if self.sender.waiting == 0:
                self.sender.settle()
                return
            self.sender.step()
        raise AssertionError(f"not sent after {steps_max} steps: {self.sender.error}")


@pytest.fixture
def box(tmp_path: Path, store: FakeStore) -> Iterator[Box]:
    made = Box(tmp_path, store)
    yield made
    made.outbox.close()
    made.client.close()


def ids(first: int, last: int) -> list[str]:
    return [event_id(n) for n in range(first, last + 1)]


def test_batches_go_in_order_and_their_files_are_pruned(box: Box, store: FakeStore) -> None:
    for n in range(1, 11):
        box.outbox.append([line(n)])
    box.drain()
    assert store.log == ids(1, 10)
    assert box.outbox.cursor == Cursor(10, 10)
    assert len(list(box.folder.glob("events-*"))) == 1


def test_a_lost_answer_is_asked_for_before_anything_is_sent_again(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(n) for n in range(1, 7)])
    store.faults = [("after", httpx.ReadTimeout("no answer"))]
    pause_s = box.sender.step()
    assert pause_s is not None
    assert isinstance(box.sender.error, RetryError)
    box.restart()
    box.drain()
    assert store.log == ids(1, 6)
    asked = [f"GET {event_id(1)}", f"GET {event_id(4)}"]
    assert store.requests == ["POST events", *asked, "POST events"]


@pytest.mark.parametrize("stored", range(6))
def test_of_events_in_doubt_the_stored_ones_are_found(box: Box, store: FakeStore, stored: int) -> None:
    """As after a lost cursor: any number of the first ones may be there."""
    box.outbox.append([line(n) for n in range(1, 6)])
    store.log = ids(1, stored)
    box.outbox.move(Cursor(0, 5))
    box.restart()
    box.drain()
    assert store.log == ids(1, 5)


def test_what_was_never_sent_is_in_no_doubt(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(1)])
    store.faults = [httpx.ConnectError("refused"), problem(429, "rate-limited", retry_after_s=7)]
    for _ in range(2):
        assert box.sender.step() is not None
        assert not box.outbox.cursor.in_doubt
    box.restart()
    box.drain()
    assert (store.log, store.requests) == (ids(1, 1), ["POST events"] * 3)


def test_a_retry_after_is_waited_for(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(1)])
    busy = problem(503, "busy")
    busy.headers["retry-after"] = "7"
    store.faults = [busy]
    assert box.sender.step() == 7


def test_an_answer_that_is_not_the_stores_acknowledges_nothing(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(1)])
    wrong = {"first_seq": 1, "last_seq": 1, "count": 0, "duplicates": 0}
    store.faults = [
        httpx.Response(200, text="<html>Welcome to the hotel"),
        None,
        httpx.Response(201, json=wrong),
    ]
    assert box.sender.step() is not None
    assert box.sender.acknowledged == 0
    box.drain()
    assert store.log == ids(1, 1)


@pytest.mark.parametrize("bad", [{1}, {4}, {2, 3}, {5, 6}, {1, 2, 3, 4, 5, 6}])
@pytest.mark.parametrize("named", [True, False])
def test_a_poison_event_is_put_aside_and_the_others_pass_it(
    box: Box, store: FakeStore, bad: set[int], named: bool
) -> None:
    box.outbox.append([line(n) for n in range(1, 7)])
    (store.bad if named else store.unnamed).update(event_id(n) for n in bad)
    box.drain()
    assert store.log == [event_id(n) for n in range(1, 7) if n not in bad]
    assert [r.number for r in box.rejected] == sorted(bad)
    aside = [
        msgspec.json.decode(entry)
        for p in box.folder.glob("rejected-*")
        for entry in p.read_bytes().splitlines()
    ]
    assert sorted(a["number"] for a in aside) == sorted(bad)
    assert all(a["reason"]["detail"] for a in aside)


def test_a_request_that_is_too_large_is_halved(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(n) for n in range(1, 7)])
    store.lines_max = 1
    box.drain()
    assert (store.log, box.rejected) == (ids(1, 6), [])


def test_the_size_that_is_taken_is_kept(box: Box, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.client.sender._GROW_AFTER", 3)
    box.outbox.append([line(n) for n in range(1, 13)])  # a file holds four
    store.lines_max = 1
    for _ in range(5):
        box.sender.step()
    assert (store.log, len(store.requests)) == (ids(1, 3), 5), "halved twice, and not anew"
    store.lines_max = 4
    box.drain()
    assert store.log == ids(1, 12)
    assert len(store.requests) < 5 + 9, "and grown again"


@pytest.mark.parametrize("status", [401, 403, 404, 409, 500])
def test_what_is_no_fault_of_an_event_keeps_all_of_them(box: Box, store: FakeStore, status: int) -> None:
    box.outbox.append([line(1)])
    code = {404: "tenant-not-found", 409: "tenant-closed"}.get(status, "x")
    store.faults = [problem(status, code)] * 20
    while store.faults:
        assert box.sender.step() is not None
    assert box.sender.failures == 20
    box.drain()
    assert (store.log, box.rejected, box.sender.error) == (ids(1, 1), [], None)


def test_the_errors_are_the_stores_own(box: Box, store: FakeStore) -> None:
    box.outbox.append([line(1)])
    store.faults = [problem(409, "tenant-closed")]
    box.sender.step()
    assert isinstance(box.sender.error, TenantClosedError)
    assert isinstance(InvalidEventError("x"), EventStoreError)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_event_arrives_once_and_in_order(box: Box, store: FakeStore, seed: int) -> None:
    """The store here has no look for repeated ids at all, as where an outage outlasts the hot tier."""
    chosen = random.Random(seed)
    faults: list[Callable[[], Any]] = [
        lambda: None,
        lambda: None,
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ReadTimeout("no answer"),
        lambda: ("after", httpx.ReadTimeout("no answer")),
        lambda: ("after", httpx.RemoteProtocolError("cut")),
        lambda: ("after", httpx.Response(502, text="bad gateway")),
        lambda: problem(503, "busy"),
        lambda: problem(429, "rate-limited"),
    ]
    store.bad = {event_id(n) for n in range(1, 31) if chosen.random() < 0.1}
    recorded = 0
    for _ in range(60):
        if recorded < 30 and chosen.random() < 0.6:
            count = chosen.randint(1, 4)
            box.outbox.append([line(n) for n in range(recorded + 1, recorded + count + 1)])
            recorded += count
        store.faults = [chosen.choice(faults)() for _ in range(2)]
        box.sender.step()
        if chosen.random() < 0.3:
            box.restart()
    store.faults = []
    box.drain()
    assert store.log == [i for i in ids(1, recorded) if i not in store.bad]
    assert {event_id(r.number) for r in box.rejected} == store.bad & set(ids(1, recorded))
