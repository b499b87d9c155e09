"""The feed over real sockets: both seams while everything moves, resuming, resets, errors, slow consumers.

By default with 12,000 events and 25 cuts. The long form:

    FEED_EVENTS=1000000 FEED_CUTS=1000 python -m pytest tests/integration/test_feed.py
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventstore.api import feed
from eventstore.api.feed_hub import FeedHub, Follower
from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.errors import TargetUnavailableError
from eventstore.governance.holds import place_hold
from eventstore.governance.keys import create_key, revoke_key
from eventstore.governance.tenants import create_tenant
from eventstore.hot.wake import Wakes
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter
from eventstore.model.run import RunKind, RunStatus
from eventstore.model.window import WindowUnit
from eventstore.query.feed import FeedReader
from eventstore.query.feed_ring import Form, Framing
from eventstore.query.tiers import Tiers
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from eventstore.testing.faulty import FaultyTarget
from tests.conftest import create_database
from tests.integration.following import TIMEOUT_S, Chain, Consumer, Served, serving
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, execute, fill_days, new_event

EVENTS = int(os.environ.get("FEED_EVENTS", "12000"))
CUTS = int(os.environ.get("FEED_CUTS", "25"))
LONG = EVENTS > 12_000 or CUTS > 25
# Hot for no longer than the hour itself, near for three, then deep.
MOVING = Policy(WindowUnit.HOUR, 0, (ArchiveTier("near", 3 * HOUR_US), ArchiveTier("deep")))
EXPIRING = Policy(WindowUnit.DAY, 0, (ArchiveTier("near", DAY_US),), Ending.EXPIRE)
EXPIRY = RunOrder(RunKind.EXPIRY, "test")
_names = (f"feed-{n}" for n in itertools.count())

pytestmark = pytest.mark.timeout(7200 if LONG else 300)


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for the module; each test has a tenant of its own."""
    folder = tmp_path_factory.mktemp("feed")
    name = f"feed_{folder.name}"
    url = create_database(server_url, name, template=template_database)
    settings = Settings(
        database_url=url,
        home=folder,
        archive_url=(folder / "archive").as_uri(),
        targets={tier: (folder / tier).as_uri() for tier in ("near", "deep")},
        feed_keepalive="0.2s",
    )
    with open_store(settings, clock=FixedClock(START_US)) as store:
        impatient = Compactor(store.database, store.targets, store.key, retry_pauses_s=())
        with serving(replace(store, compactor=impatient)) as found:
            yield found
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def clock(served: Served) -> FixedClock:
    found = served.store.appender._clock
    assert isinstance(found, FixedClock)
    found.move_to(START_US)
    return found


def tenant_of(served: Served, policy: Policy = EXPIRING) -> str:
    name = next(_names)
    create_tenant(served.store.database, name, policy)
    return name


def run(store: Store, tenant: str, at_us: int, order: RunOrder | None = None) -> None:
    report = store.compactor.run(store.compactor.tenants(tenant), at_us, order=order)
    assert report.status is RunStatus.COMPLETED, report


def post(served: Served, tenant: str, *events: dict[str, Any]) -> None:
    answer = httpx.post(f"http://127.0.0.1:{served.port}/v1/tenants/{tenant}/events", json=list(events))
    assert answer.status_code == 201, answer.text


def raw_event(entity_id: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "entity_type": "order",
        "entity_id": entity_id,
        "action": "a",
        "actor": "ann",
        "source": "s",
        **more,
    }


def ids(messages: Iterator[Any]) -> list[int | None]:
    return [message.id for message in messages]


def read_until(consumer: Consumer, last_seq: int) -> list[int]:
    """The ids of events up to a seq."""
    found = []
    for message in consumer.events():
        assert message.event == "message", message
        assert json.loads(message.data)["seq"] == message.id
        found.append(message.id)
        if message.id == last_seq:
            break
    return found


# --- without a gap or a repeat --------------------------------------------------------------------------


def write_history(served: Served, tenant: str, clock: FixedClock, numbers: range, *, step_us: int) -> None:
    """Events in batches, hours apart now and then."""
    size = max(100, EVENTS // 200)
    for start in range(numbers.start, numbers.stop, size):
        clock.move_to(clock.now_us() + step_us)
        events = [
            new_event(str(n % 97), new_value={"n": n, "text": 'é"\\\n' * (n % 3)})
            for n in range(start, min(start + size, numbers.stop))
        ]
        append(served.store, tenant, *events)


def test_a_replay_through_both_seams_while_everything_moves(served: Served, clock: FixedClock) -> None:
    """Half of the history is there at the beginning, most of it archived; the rest is appended, archived and
    moved to another tier while the consumer reads. It recomputes the chain, to the tenant's own end."""
    tenant = tenant_of(served, MOVING)
    store = served.store
    step_us = HOUR_US // 7
    write_history(served, tenant, clock, range(EVENTS // 2), step_us=step_us)
    run(store, tenant, clock.now_us() - 2 * HOUR_US)
    moved_before = states(store, tenant)
    assert moved_before["open"]
    assert moved_before["near"] or moved_before["deep"]
    written = threading.Event()

    def write() -> None:
        try:
            write_history(served, tenant, clock, range(EVENTS // 2, EVENTS), step_us=step_us)
        finally:
            written.set()

    def compact() -> int:
        runs = 0
        while not written.is_set():
            run(store, tenant, clock.now_us())
            runs += 1
        return runs

    chain = Chain(tenant)
    with (
        ThreadPoolExecutor(2) as executor,
        Consumer(served.port, served.path(tenant, since=0)) as consumer,
    ):
        started = time.perf_counter()
        writing, compacting = executor.submit(write), executor.submit(compact)
        for message in consumer.events():
            assert message.event == "message", message
            chain.add(message.data)
            if message.id == EVENTS:
                break
        chain.settle()
        took_s = time.perf_counter() - started
        writing.result(TIMEOUT_S)
        assert compacting.result(TIMEOUT_S)
    state = store.tiers.state(tenant)
    assert (chain.count, chain.last_hash) == (state.last_seq, state.last_hash) == (EVENTS, state.last_hash)
    after = states(store, tenant)
    assert after["deep"] > moved_before["deep"]
    if LONG:
        sys.stderr.write(f"\n{EVENTS:,} events in {took_s:.0f} s, {dict(moved_before)} to {dict(after)}\n")


def states(store: Store, tenant: str) -> Counter[str]:
    rows = execute(
        store.database.url,
        "SELECT CASE WHEN state IN ('dropped', 'archived') THEN target ELSE state END FROM windows"
        " WHERE tenant_id = %s",
        [tenant],
    )
    return Counter(place for (place,) in rows)


def test_killed_and_resumed_without_a_gap(served: Served, clock: FixedClock) -> None:
    """A consumer that is cut off anywhere, in the middle of an event too, and goes on by Last-Event-ID."""
    tenant = tenant_of(served, MOVING)
    total = CUTS * 100
    events = [[new_event(str(n), new_value="x" * (n % 300)) for n in range(100)] for _ in range(CUTS)]
    for batch in events[: CUTS // 2]:
        clock.move_to(clock.now_us() + HOUR_US // 5)
        append(served.store, tenant, *batch)
    run(served.store, tenant, clock.now_us())
    done = threading.Event()

    def write() -> None:
        for batch in events[CUTS // 2 :]:
            clock.move_to(clock.now_us() + HOUR_US // 5)
            append(served.store, tenant, *batch)
        done.set()

    rng = random.Random(1)
    received: list[int] = []
    last_id, cuts = 0, 0
    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(write)
        while last_id < total:
            consumer = Consumer(served.port, served.path(tenant, since=7), last_event_id=last_id)
            enough = rng.randrange(0, 16 * total // CUTS // 10) if cuts < CUTS else total
            # Small pieces, so that most connections end within an event.
            for message in consumer.messages(piece_bytes=rng.choice([300, 5000])):
                if message.data:
                    assert message.event == "message", message
                    received.append(json.loads(message.data)["seq"])
                if enough <= 0 or consumer.last_id == total:
                    break
                enough -= 1
            assert consumer.last_id is not None
            last_id = consumer.last_id
            consumer.kill()
            cuts += 1
        writing.result(TIMEOUT_S)
    assert cuts >= CUTS
    assert received == list(range(1, total + 1))


def test_the_last_id_wins_over_since_and_neither_may_lie_ahead(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 2)
    with Consumer(served.port, served.path(tenant, since=2), last_event_id=7) as consumer:
        assert consumer.headers["content-type"].startswith("text/event-stream")
        assert ids(consumer.events(3)) == [8, 9, 10]
    with Consumer(served.port, served.path(tenant, since=11)) as consumer:
        assert consumer.status == 400
    with Consumer(served.port, served.path("nobody")) as consumer:
        assert consumer.status == 404
    url = f"http://127.0.0.1:{served.port}{served.path(tenant)}"
    for headers in ({"Last-Event-ID": "x"}, {"Accept": "image/png"}):
        assert httpx.get(url, headers=headers).status_code == 400
    assert httpx.get(url, params={"limit": 3}).status_code == 400  # of a long poll


# --- what does not exist any more -----------------------------------------------------------------------


@pytest.fixture
def expired(served: Served, clock: FixedClock) -> str:
    """Six days of five events: day 1 destroyed (day 0 is held), day 2 and 3 destroyed, 4 archived, 5 hot."""
    tenant = tenant_of(served)
    store = served.store
    fill_days(store, clock, tenant, 6)
    place_hold(
        store.database,
        tenant,
        "case",
        "a reason",
        "lea",
        HoldScope(from_us=START_US, to_us=START_US + DAY_US),
        START_US,
    )
    run(store, tenant, START_US + 5 * DAY_US)
    run(store, tenant, START_US + 5 * DAY_US, EXPIRY)
    gone = "SELECT window_from FROM windows WHERE tenant_id = %s AND state = 'expired'"
    assert len(execute(store.database.url, gone, [tenant])) == 3
    return tenant


@pytest.mark.parametrize("since", [5, 6, 12, 19])
def test_a_cursor_below_what_exists_is_told_so(served: Served, expired: str, since: int) -> None:
    with Consumer(served.port, served.path(expired, since=since)) as consumer:
        assert consumer.status == 200
        (message,) = consumer.events()
        assert (message.event, message.id, consumer.ended_well) == ("feed_reset", 20, True)
        told = message.json
        assert (told["oldest_seq"], told["since"], told["status"]) == (21, 20, 410)
        gone = [(e["first_seq"], e["last_seq"]) for e in told["expired"]]
        assert gone == [r for r in [(6, 10), (11, 15), (16, 20)] if r[1] > since] or gone[0][0] == since + 1
    # As an event source does by itself: it resumes with the id that it was told.
    with Consumer(served.port, served.path(expired), last_event_id=20) as consumer:
        assert read_until(consumer, 30) == list(range(21, 31))


def test_events_before_a_hole_are_given_and_none_behind_it(served: Served, expired: str) -> None:
    with Consumer(served.port, served.path(expired, since=0)) as consumer:
        *before, last = consumer.events()
        assert ids(iter(before)) == [1, 2, 3, 4, 5]
        assert (last.event, last.json["oldest_seq"]) == ("feed_reset", 21)
    # A filter that wants nothing of what is gone cannot know that it does not.
    with Consumer(served.port, served.path(expired, since=0, action="day-4")) as consumer:
        (message,) = consumer.events()
        assert message.event == "feed_reset"


def test_a_log_of_which_nothing_is_left(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 2)
    run(served.store, tenant, START_US + 5 * DAY_US)
    run(served.store, tenant, START_US + 5 * DAY_US, EXPIRY)
    with Consumer(served.port, served.path(tenant, since=0)) as consumer:
        (message,) = consumer.events()
        assert message.event == "feed_reset"
        assert (message.json["oldest_seq"], message.json["since"]) == (None, 10)
    answer = poll(served, tenant, since=0)
    assert (answer.status_code, answer.json()["since"]) == (410, 10)
    with Consumer(served.port, served.path(tenant, since=10)) as consumer:
        post(served, tenant, raw_event())
        assert read_until(consumer, 11) == [11]


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["away", "damaged"])
def test_a_read_error_is_an_error_on_the_stream(served: Served, clock: FixedClock, fault: str) -> None:
    """Never an end that looks like the log's: what could be read comes first, then the error."""
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 4)
    run(served.store, tenant, START_US + 4 * DAY_US)
    sound = served.store.targets["near"]
    broken = True

    def opened(key: str, data: bytes) -> bytes:
        # The third day cannot be read.
        if not broken or ".20240303" not in key:
            return data
        if fault == "away":
            raise TargetUnavailableError("503 SlowDown", hint="try again")
        return data[:-1] + bytes([data[-1] ^ 1])

    served.store.targets._open["near"] = FaultyTarget(sound, opened=opened)
    try:
        with Consumer(served.port, served.path(tenant, since=0)) as consumer:
            *before, last = consumer.events()
            assert ids(iter(before)) == list(range(1, 11))
            assert last.event == "error"
            expected = ("target-unavailable", 503) if fault == "away" else ("archive-damage", 500)
            assert (last.json["type"].rpartition(":")[2], last.json["status"]) == expected
            assert consumer.last_id == 10
        broken = False
        with Consumer(served.port, served.path(tenant), last_event_id=10) as consumer:
            assert read_until(consumer, 20) == list(range(11, 21))
    finally:
        served.store.targets._open["near"] = sound


def test_an_error_at_the_logs_end_reaches_all_who_wait_there(
    served: Served, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 1)
    consumers = [Consumer(served.port, served.path(tenant, since=5)) for _ in range(3)]

    def fails(*_: object, **__: object) -> None:
        raise TargetUnavailableError("no answer")

    try:
        for consumer in consumers:
            next(consumer.messages())  # the greeting: it waits at the end now, or will
        with monkeypatch.context() as patch:
            patch.setattr(Tiers, "hot", fails)
            post(served, tenant, raw_event())
            assert [m.event for c in consumers for m in c.events()] == ["error"] * 3
        with Consumer(served.port, served.path(tenant), last_event_id=5) as again:
            assert read_until(again, 6) == [6]
    finally:
        for consumer in consumers:
            consumer.kill()


# --- live -----------------------------------------------------------------------------------------------


def test_many_at_the_end_cost_one_read(
    served: Served, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = tenant_of(served)
    reads: Counter[str] = Counter()
    hot = Tiers.hot

    def counted(self: Tiers, tenant_id: str, *rest: Any, **more: Any) -> Any:
        reads[tenant_id] += 1
        return hot(self, tenant_id, *rest, **more)

    monkeypatch.setattr(Tiers, "hot", counted)
    consumers = [Consumer(served.port, served.path(tenant)) for _ in range(40)]
    try:
        for consumer in consumers:
            assert next(consumer.messages()).data == b""
        for n in range(3):
            post(served, tenant, raw_event(str(n)), raw_event(str(n)))
            for consumer in consumers:
                assert ids(consumer.events(2)) == [2 * n + 1, 2 * n + 2]
    finally:
        for consumer in consumers:
            consumer.kill()
    assert reads[tenant] <= 6, "a read a commit, not one a consumer"


def test_filters_apply_to_what_was_and_to_what_comes(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 2)  # entities 0, 1, 2, 0, 1 a day
    run(served.store, tenant, START_US + DAY_US)
    with (
        Consumer(served.port, served.path(tenant, entity_id="1")) as of_entity,
        Consumer(served.port, served.path(tenant, since=10, actor="bob", source="s")) as of_actor,
    ):
        assert ids(of_entity.events(4)) == [2, 5, 7, 10]
        post(served, tenant, raw_event("1"), raw_event("2", actor="bob"), raw_event("1", actor="bob"))
        assert ids(of_entity.events(2)) == [11, 13]
        assert ids(of_actor.events(2)) == [12, 13]
        post(served, tenant, raw_event("7"))
        # Nothing is wanted of this one, but the id moves on: who resumes need not look at it again.
        assert next(m for m in of_entity.messages() if m.id == 14).data == b""


def test_a_silent_feed_gives_signs_of_life(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    with Consumer(served.port, served.path(tenant)) as consumer:
        messages = consumer.messages()
        assert [(next(messages).data, consumer.last_id) for _ in range(4)] == [(b"", None)] * 4


def poll(served: Served, tenant: str, **params: Any) -> httpx.Response:
    return httpx.get(
        f"http://127.0.0.1:{served.port}/v1/tenants/{tenant}/feed",
        params=params,
        headers={"Accept": "application/x-ndjson"},
        timeout=TIMEOUT_S,
    )


def test_long_polls(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    fill_days(served.store, clock, tenant, 4)
    run(served.store, tenant, START_US + 2 * DAY_US)
    since, found = 0, []
    while True:
        answer = poll(served, tenant, since=since, limit=3, wait=0)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = answer.text.splitlines()
        assert len(lines) <= 3
        found += [json.loads(line)["seq"] for line in lines]
        since = int(answer.headers["eventstore-next-since"])
        if not lines:
            break
        assert since == found[-1]
    assert found == list(range(1, 21))
    assert since == 20
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(poll, served, tenant, since=20, wait=50, actor="bob")
        post(served, tenant, raw_event(), raw_event(actor="bob"))
        answer = waiting.result(TIMEOUT_S)
    assert [json.loads(line)["seq"] for line in answer.text.splitlines()] == [22]
    assert answer.headers["eventstore-next-since"] == "22"
    # Nothing wanted: the cursor moves on all the same.
    answer = poll(served, tenant, since=0, wait=0, actor="nobody")
    assert (answer.text, answer.headers["eventstore-next-since"]) == ("", "22")
    assert poll(served, tenant, since=23).status_code == 400
    assert poll(served, tenant, wait=61).status_code == 400


def test_a_revoked_keys_feed_ends(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    database = served.store.database
    now_us = database.now_us()
    key, text = create_key(database, role=Role.READER, tenant_id=tenant, by="lea", now_us=now_us)
    with Consumer(served.port, served.path(tenant), bearer=text) as consumer:
        next(consumer.messages())
        revoke_key(database, key.key_id, by="lea", now_us=now_us)
        (message,) = consumer.events()
        assert (message.event, message.json["status"]) == ("error", 401)


# --- slow consumers -------------------------------------------------------------------------------------


def test_a_consumer_that_takes_nothing_is_not_read_ahead_for_and_resumes(
    served: Served, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MB of events, of which a stalled consumer makes the store read a few, until it is disconnected."""
    tenant = tenant_of(served)
    text = "x" * 40_000
    for _ in range(10):
        append(served.store, tenant, *(new_event(metadata=text) for _ in range(100)))
    read_rows = 0
    hot = Tiers.hot

    def counted(self: Tiers, tenant_id: str, *rest: Any, **more: Any) -> Any:
        nonlocal read_rows
        found = hot(self, tenant_id, *rest, **more)
        read_rows += found.num_rows if tenant_id == tenant else 0
        return found

    monkeypatch.setattr(Tiers, "hot", counted)
    closed = threading.Event()
    monkeypatch.setattr(feed._log, "warning", lambda *_: closed.set())
    impatient = served.store.settings.model_copy(update={"feed_stall": "0.5s"})
    # Not on the state itself, whose attributes a monkeypatch would delete when it is undone.
    monkeypatch.setitem(served.app.state._state, "store", replace(served.store, settings=impatient))
    with Consumer(served.port, served.path(tenant), receive_bytes=4096) as consumer:
        assert closed.wait(TIMEOUT_S)  # it takes nothing in, and waits to be disconnected
        # What is on the way at the most: the first step of 256, one of 4 MB, and what the sockets hold.
        assert read_rows < 600
        received = ids(consumer.events())
        assert not consumer.ended_well
        assert consumer.last_id == len(received) < 600
        last_id = consumer.last_id
    with Consumer(served.port, served.path(tenant), last_event_id=last_id) as consumer:
        assert read_until(consumer, 1000) == list(range(last_id + 1, 1001))


def test_who_falls_behind_the_ring_reads_by_its_cursor(served: Served, clock: FixedClock) -> None:
    tenant = tenant_of(served)
    most = 20_000

    async def seqs(follower: Follower, last_seq: int) -> list[int]:
        found: list[int] = []
        while not found or found[-1] < last_seq:
            part = await follower.next(asyncio.get_running_loop().time() + TIMEOUT_S)
            assert part is not None
            found += [json.loads(line)["seq"] for line in part.data.splitlines()]
        return found

    async def follow() -> None:
        wakes = Wakes(served.store.database)
        hub = FeedHub(FeedReader(served.store.tiers), wakes, ring_bytes_max=most)
        form = Form(EventFilter(), Framing.LINES)
        async with (
            hub.running(),
            hub.following(tenant, form, 0) as slow,
            hub.following(tenant, form, 0) as quick,
        ):
            for n in range(40):
                append(served.store, tenant, *(new_event(new_value="x" * 1000) for _ in range(5)))
                wakes.committed(tenant)
                assert await seqs(quick, 5 * n + 5) == list(range(5 * n + 1, 5 * n + 6))
            ring = hub._tails[tenant].ring
            assert sum(batch.size_bytes for batch in ring._batches) <= most
            assert not ring.holds(slow.cursor)
            assert await seqs(slow, 200) == list(range(1, 201))

    asyncio.run(follow())


# --- several processes ----------------------------------------------------------------------------------


def test_a_commit_in_another_process_is_heard_of(
    served: Served, clock: FixedClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without looking by itself (the poll is off), so that it is the NOTIFY. And a process that is told to
    stop ends its feeds at once."""
    hub: FeedHub = served.app.state.feeds
    wake = hub._wake
    monkeypatch.setattr(hub, "_wake", lambda name: None if name is None else wake(name))
    tenant = tenant_of(served)
    settings = served.store.settings
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("EVENTSTORE_")},
        "EVENTSTORE_DATABASE_URL": str(settings.database_url),
        "EVENTSTORE_HOME": str(settings.home),
        "EVENTSTORE_ARCHIVE_URL": str(settings.archive_url),
        "EVENTSTORE_TARGETS": json.dumps(settings.targets),
    }
    command = [sys.executable, "-m", "eventstore.cli.main", "serve", "--port", "0", "--no-scheduler"]
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other,
        ExitStack() as stack,
    ):
        stack.callback(other.kill)  # or its end would be waited for, whatever fails here
        assert other.stdout is not None
        port = int(other.stdout.readline().split("http://127.0.0.1:")[1].split("/")[0])
        with (
            Consumer(served.port, served.path(tenant)) as here,
            Consumer(port, served.path(tenant)) as there,
        ):
            next(here.messages())
            next(there.messages())
            latencies_ms = []
            for n in range(20):
                began = time.perf_counter()
                post(replace(served, port=port), tenant, raw_event(str(n)))
                assert ids(here.events(1)) == [n + 1]
                latencies_ms.append((time.perf_counter() - began) * 1000)
            assert ids(there.events(20)) == list(range(1, 21))
            other.send_signal(signal.SIGTERM)
            assert list(there.events()) == []
            assert there.ended_well
        assert other.wait(10) in (0, -signal.SIGTERM)
    median_ms = sorted(latencies_ms)[10]
    assert median_ms < 500, "told by the poll, not by the commit"
