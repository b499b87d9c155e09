"""Subscriptions: at least once, in order per entity, shared by members that come, go, sleep and die."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from eventstore.access.limits import FeedSlot
from eventstore.api import feed, polling
from eventstore.api.access import principal_of
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.db.tables import governance
from eventstore.db.tables_subscriptions import subscriptions
from eventstore.errors import ConfirmationError, FeedResetError, ForbiddenError, UnauthenticatedError
from eventstore.governance import slots
from eventstore.governance.policies import apply_change
from eventstore.governance.subscriptions import delete_subscription, seek, subscription_row
from eventstore.model.access import Principal, Role
from eventstore.model.policy import ArchiveTier, Ending, PolicyOverride
from eventstore.model.query import EventFilter
from eventstore.model.run import RunKind
from eventstore.model.subscription import Receipt, slot_of
from eventstore.query.delivery import next_delivery
from eventstore.query.feed import FeedReader, Look
from eventstore.retention.compactor import RunOrder
from tests.integration.apiserver import Served, Tenant, event, is_problem, served_api
from tests.unit.helpers import DAY_US, START_US, execute


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("subscriptions")
    with served_api(server_url, template_database, folder) as api:
        yield api


class Group:
    """A subscription of a new tenant, seen through the API."""

    def __init__(self, served: Served, **terms: Any) -> None:
        self.served, self.tenant = served, Tenant(served)
        self.path = f"{self.tenant.path}/subscriptions"
        self.made = self.post("", name="sub", **terms)
        assert self.made.status_code == 201, self.made.text

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.served.client.post(f"{self.path}{path}", json=body)

    def poll(self, member: str = "one", **more: Any) -> dict[str, Any]:
        response = self.post("/sub/poll", member=member, **more)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def ack(self, given: dict[str, Any], member: str = "one", **more: Any) -> httpx.Response:
        return self.post("/sub/ack", member=member, receipt=given["receipt"], **more)

    def show(self) -> dict[str, Any]:
        response = self.served.client.get(f"{self.path}/sub")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def sql(self, statement: str) -> None:
        execute(self.served.store.database.url, statement + f" WHERE tenant_id = '{self.tenant.name}'")

    def lose(self, member: str) -> None:
        """Its lease runs out, and it was not seen for as long."""
        past = "clock_timestamp() - interval '1 hour'"
        for table, column in (("slots", "leased_until"), ("members", "seen_at")):
            lost = f"CASE member WHEN '{member}' THEN {past} ELSE {column} END"
            self.sql(f"UPDATE subscription_{table} SET {column} = {lost}")


def seqs(given: dict[str, Any]) -> list[int]:
    return [e["seq"] for e in given["events"]]


def entities(given: dict[str, Any]) -> set[str]:
    return {e["entity_id"] for e in given["events"]}


def test_what_is_not_acknowledged_comes_again(served: Served) -> None:
    group = Group(served)
    group.tenant.append(*(event(entity_id=str(n)) for n in range(5)))
    first = group.poll(limit=2)
    assert seqs(first) == [1, 2]
    assert first["events"][0] == group.tenant.found("events/1")["event"]
    assert seqs(group.poll(limit=3)) == [1, 2, 3]
    assert group.ack(first).json() == {"cursors": {"0": 2}, "lost": []}
    rest = group.poll()
    assert seqs(rest) == [3, 4, 5]
    assert group.ack(rest, through=4).json()["cursors"] == {"0": 4}
    assert seqs(group.poll()) == [5]
    assert group.ack(group.poll()).status_code == 200
    assert group.poll()["events"] == []
    assert group.show()["cursor"] == 5
    assert group.show()["behind"] == 0


def test_from_the_archive_through_hot(served: Served) -> None:
    group = Group(served)
    group.tenant.fill()
    found: list[int] = []
    while (given := group.poll(limit=3))["events"]:
        found += seqs(given)
        assert group.ack(given).status_code == 200
    assert found == list(range(1, 17))


def test_a_filter_and_a_start(served: Served) -> None:
    group = Group(served, actor="ann", after=None)
    group.tenant.append(event(actor="bob"), event(actor="ann"), event(actor="bob"))
    assert seqs(group.poll()) == [2]
    late = group.post("", name="late", after=2)
    assert late.status_code == 201
    assert seqs(group.served.client.post(f"{group.path}/late/poll", json={"member": "m"}).json()) == [3]
    # What is not wanted is not looked at again.
    assert group.ack(group.poll()).status_code == 200
    group.tenant.append(*(event(actor="bob") for _ in range(5)))
    assert group.poll()["events"] == []
    assert group.show()["cursor"] == 8


def test_members_share_the_slots_and_entities_stay_with_one(served: Served) -> None:
    group = Group(served, slots=8)
    group.tenant.append(*(event(entity_id=f"e{n % 40}", action=str(n)) for n in range(400)))
    names = ["a", "b", "c"]
    for _ in range(3):  # the first takes all; then each gives back what is more than its share
        for name in names:
            given = group.poll(name, limit=1)
            assert group.ack(given, name).status_code == 200 or not given["slots"]
    given = {name: group.poll(name, limit=1000) for name in names}
    assert sorted(len(given[name]["slots"]) for name in names) == [2, 3, 3]
    everything = [seq for name in names for seq in seqs(given[name])]
    assert len(everything) == len(set(everything)), "two members were given one event"
    for one in names:
        assert seqs(given[one]) == sorted(seqs(given[one]))
        for other in names:
            assert one == other or not entities(given[one]) & entities(given[other])


def test_who_sleeps_over_its_lease_can_undo_nothing(served: Served) -> None:
    group = Group(served, slots=4)
    group.tenant.append(*(event(entity_id=f"e{n}") for n in range(20)))
    slow = group.poll("slow")
    assert len(slow["slots"]) == 4
    assert group.poll("quick")["slots"] == []
    group.lose("slow")
    again = group.poll("quick")
    assert seqs(again) == seqs(slow) == list(range(1, 21))
    is_problem(group.ack(slow, "slow"), 409, type="urn:eventstore:lease-lost")
    assert group.show()["cursor"] == 0
    assert group.ack(again, "quick").json()["lost"] == []
    assert group.show()["behind"] == 0


def test_slots_with_unacknowledged_events_are_not_given_back(served: Served) -> None:
    group = Group(served, slots=4)
    group.tenant.append(*(event(entity_id=f"e{n}") for n in range(40)))
    first = group.poll("one")
    assert group.poll("two")["slots"] == []
    assert sorted(group.poll("one")["slots"]) == [0, 1, 2, 3]
    group.ack(first, "one")
    assert len(group.poll("one")["slots"]) == 2
    assert len(group.poll("two")["slots"]) == 2
    assert group.post("/sub/leave", member="one").json() == {"slots": 2}
    assert sorted(group.poll("two")["slots"]) == [0, 1, 2, 3]
    assert group.post("/sub/heartbeat", member="two").json() == {"slots": 4}


def test_a_poll_waits_for_the_next_commit(served: Served) -> None:
    group = Group(served)
    found: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: found.append(group.poll(wait=30)))
    waiting.start()
    group.tenant.append(event())
    waiting.join(25)
    assert [seqs(given) for given in found] == [[1]]


def test_a_slot_that_stays_behind_keeps_no_other_waiting(served: Served) -> None:
    group = Group(served, slots=2)
    a, b = (
        next(f"e{n}" for n in range(99) if slot_of(f"order\0e{n}".encode(), 2) == slot) for slot in (0, 1)
    )
    group.tenant.append(*(event(entity_id=a) for _ in range(10)))
    group.tenant.append(*(event(entity_id=b) for _ in range(10)))
    held = Receipt.decode(group.poll()["receipt"]).slots
    assert group.ack({"receipt": Receipt({1: held[1]}).encode()}).json()["cursors"] == {"1": 20}
    group.tenant.append(*(event(entity_id=b) for _ in range(3)))
    given = group.poll(limit=4)
    assert seqs(given) == [1, 2, 21, 22]
    assert group.ack(given).json()["cursors"] == {"0": 2, "1": 22}
    assert seqs(group.poll()) == [*range(3, 11), 23]


def test_what_exists_before_destroyed_events_is_given_first() -> None:
    class Torn(FeedReader):
        def __init__(self) -> None:
            pass

        def read(self, tenant_id: str, after: int, *_: Any, **__: Any) -> Iterator[Look]:
            if after < 7:
                yield Look(EVENT_SCHEMA.empty_table(), 7)
            raise FeedResetError("gone", oldest_seq=9, since=8, expired=[])

    assert next_delivery(Torn(), "t", EventFilter(), 2, {0: 3, 1: 5}, 9).through == {0: 7, 1: 7}
    with pytest.raises(FeedResetError):
        next_delivery(Torn(), "t", EventFilter(), 2, {0: 7, 1: 7}, 9)


def test_who_waits_writes_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the log grows by what it does not want."""
    group = Group(served, actor="ann")
    wrote: list[str] = []
    claimed = threading.Event()

    def counting(work: Any) -> Any:
        def counted(*args: Any) -> Any:
            wrote.append(work.__name__)
            done = work(*args)
            claimed.set()
            return done

        return counted

    for work in (polling.claim_slots, polling.note_delivered):
        monkeypatch.setattr(polling, work.__name__, counting(work))
    found: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: found.append(group.poll(wait=30)))
    waiting.start()
    assert claimed.wait(20)
    for _ in range(15):
        group.tenant.append(event(actor="bob"))
    group.tenant.append(event(actor="ann"))
    waiting.join(25)
    assert [seqs(given) for given in found] == [[16]]
    assert wrote == ["claim_slots", "note_delivered"]


def _polling(served: Served, target: str, body: bytes) -> socket.socket:
    conn = socket.create_connection(served.address, timeout=20)
    method = "POST" if body else "GET"
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/x-ndjson\r\n"
    conn.sendall(
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    return conn


@pytest.mark.parametrize("what", ["subscription", "feed"])
def test_a_poll_ends_with_its_client(served: Served, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Its place among its caller's feeds is free again at once, not when it would have waited long enough."""
    group = Group(served)
    taken, left = threading.Event(), threading.Event()
    enter, leave = FeedSlot.__enter__, FeedSlot.leave

    def entered(slot: FeedSlot) -> FeedSlot:
        taken.set()
        return enter(slot)

    def gone(slot: FeedSlot) -> None:
        left.set()
        leave(slot)

    monkeypatch.setattr(FeedSlot, "__enter__", entered)
    monkeypatch.setattr(FeedSlot, "leave", gone)
    if what == "feed":
        conn = _polling(served, f"{group.tenant.path}/feed?wait=60", b"")
    else:
        conn = _polling(served, f"{group.path}/sub/poll", b'{"member": "one", "wait": 60}')
    with conn:
        assert taken.wait(20)
        assert not left.is_set()
    assert left.wait(10)


@pytest.mark.parametrize("what", ["subscription", "feed"])
def test_a_poll_ends_with_its_key(served: Served, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What is revoked while it waits is given nothing, and nothing is noted as given."""
    group = Group(served)
    waits, revoked = threading.Event(), threading.Event()
    ask = FeedReader.check_cursor

    def asked(*args: Any) -> int:
        waits.set()
        return ask(*args)

    async def again(request: Any) -> Any:
        if revoked.is_set():
            raise UnauthenticatedError("revoked")
        return principal_of(request)

    monkeypatch.setattr(FeedReader, "check_cursor", asked)
    for module in (polling, feed):
        monkeypatch.setattr(module, "recheck", again)
    found: list[httpx.Response] = []

    def poll() -> None:
        if what == "feed":
            accept = {"accept": "application/x-ndjson"}
            found.append(served.client.get(f"{group.tenant.path}/feed?wait=20", headers=accept))
        else:
            found.append(group.post("/sub/poll", member="one", wait=20))

    waiting = threading.Thread(target=poll)
    waiting.start()
    assert waits.wait(20)
    revoked.set()
    group.tenant.append(event())
    waiting.join(25)
    is_problem(found[0], 401)
    assert group.show()["slots"][0]["delivered"] == 0


def test_destroyed_events_are_told_and_sought_over(served: Served) -> None:
    group = Group(served)
    group.tenant.fill()
    store = served.store
    name, now_us = group.tenant.name, START_US + 3 * DAY_US
    change: dict[str, Any] = {"actor": "ann", "reason": "a test", "now_us": now_us, "grace_us": 0}
    change["known_targets"] = store.targets.names
    expiring = PolicyOverride(tiers=(ArchiveTier("archive", DAY_US),), ending=Ending.EXPIRE)
    with pytest.raises(ConfirmationError) as asked:
        apply_change(store.database, name, expiring, **change)
    apply_change(store.database, name, expiring, **change, confirm=asked.value.events)
    compactor = store.compactor
    report = compactor.run(compactor.tenants(name), now_us, order=RunOrder(RunKind.EXPIRY, "test"))
    gone = 4 * report.outcomes[0].windows
    assert gone
    problem = is_problem(group.post("/sub/poll", member="one"), 410, type="urn:eventstore:feed-reset")
    assert problem["oldest_seq"] == gone + 1
    assert group.post("/sub/seek", after=problem["since"]).json()["cursor"] == gone
    held = group.poll()
    assert seqs(held)[0] == gone + 1
    assert group.post("/sub/seek", after=None).json()["behind"] == 0
    is_problem(group.ack(held), 409)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"name": "Bad Name"}, 400),
        ("", {"name": "x", "slots": 0}, 400),
        ("", {"name": "x", "slots": 65}, 400),
        ("", {"name": "x", "after": 99}, 400),
        ("", {"name": "x", "nothing": 1}, 400),
        ("", {"name": "sub", "slots": 2}, 409),
        ("/sub/poll", {"member": "a b"}, 400),
        ("/sub/poll", {"member": "a", "limit": 0}, 400),
        ("/sub/ack", {"member": "a", "receipt": "x"}, 400),
        ("/sub/ack", {"member": "a", "receipt": "W1swLDEsOTk5OTk5XV0"}, 409),
        ("/sub/seek", {"after": 99}, 400),
        ("/none/poll", {"member": "a"}, 404),
        ("/none/ack", {"member": "a", "receipt": "W10"}, 404),
        ("/none/seek", {"after": 0}, 404),
        ("/none/leave", {"member": "a"}, 404),
    ],
)
def test_wrong_requests(served: Served, path: str, body: dict[str, Any], status: int) -> None:
    group = Group(served)
    is_problem(group.post(path, **body), status)
    assert [s["name"] for s in served.client.get(group.path).json()["subscriptions"]] == ["sub"]


def test_made_twice_and_forgotten(served: Served) -> None:
    group = Group(served)
    group.tenant.append(event())
    assert group.ack(group.poll()).status_code == 200
    assert group.post("", name="sub").json()["cursor"] == 1
    assert served.client.delete(f"{group.path}/sub").status_code == 204
    is_problem(served.client.delete(f"{group.path}/sub"), 404, type="urn:eventstore:subscription-not-found")


def test_forgotten_while_it_is_polled(served: Served) -> None:
    """No deadlock: whoever claims has the subscription itself first, as whoever deletes it."""
    group = Group(served, slots=8)
    database = served.store.database
    found: list[httpx.Response] = []
    with database.transaction() as conn:
        # Where a deletion stands before it comes to the slots.
        subscription_row(conn, group.tenant.name, "sub", lock="goes")
        claiming = threading.Thread(target=lambda: found.append(group.post("/sub/poll", member="one")))
        claiming.start()
        with database.connection() as watch:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until = time.monotonic() + 20
            while watch.execute(waits).fetchone() == (0,):
                assert time.monotonic() < until
                time.sleep(0.01)
        conn.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
        conn.execute(sa.delete(subscriptions).where(subscriptions.c.tenant_id == group.tenant.name))
    claiming.join(20)
    is_problem(found[0], 404, type="urn:eventstore:subscription-not-found")


def test_its_maker_or_an_administrator_moves_it(served: Served) -> None:
    group = Group(served)
    database = served.store.database
    for subject, role, allowed in (
        ("key:other", Role.READER, False),
        ("loopback", Role.READER, True),  # who made it
        ("key:other", Role.ADMINISTRATOR, True),
    ):
        who = Principal(subject, role, group.tenant.name)
        with nullcontext() if allowed else pytest.raises(ForbiddenError):
            seek(database, group.tenant.name, "sub", 0, by=who)
        if not allowed:
            with pytest.raises(ForbiddenError):
                delete_subscription(database, group.tenant.name, "sub", by=who)
    assert group.show()["name"] == "sub"
    delete_subscription(
        database, group.tenant.name, "sub", by=Principal("key:other", Role.ADMINISTRATOR, group.tenant.name)
    )
    with database.transaction() as conn:
        entries = conn.execute(
            sa.select(governance.c.kind, governance.c.actor, governance.c.document)
            .where(governance.c.tenant_id == group.tenant.name, governance.c.kind.like("subscription%"))
            .order_by(governance.c.entry_no)
        ).all()
    # What the maker does to its own is not recorded.
    assert [tuple(entry) for entry in entries] == [
        ("subscription_moved", "key:other", {"subscription": "sub", "created_by": "loopback", "after": 0}),
        ("subscription_deleted", "key:other", {"subscription": "sub", "created_by": "loopback"}),
    ]


def test_members_are_not_without_number(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_MEMBERS_MAX", 2)
    group = Group(served)
    for name in ("a", "b", "a"):
        group.poll(name)
    is_problem(group.post("/sub/poll", member="c"), 409)
    group.lose("a")
    group.poll("c")
    is_problem(group.post("/sub/heartbeat", member="a"), 409)


def test_members_that_die_and_come_back(served: Served) -> None:
    """Members at random poll, acknowledge, acknowledge in part, sleep over their lease or die, while events
    come: in the end everything was done at least once, and of each entity in order."""
    group = Group(served, slots=5)
    choose = random.Random(7)
    done: dict[str, list[int]] = defaultdict(list)
    written = 0
    for turn in range(120):
        if turn < 60:
            group.tenant.append(*(event(entity_id=f"e{choose.randrange(12)}") for _ in range(4)))
            written += 4
        member = choose.choice(["a", "b", "c"])
        given = group.poll(member, limit=choose.choice([1, 5, 50]))
        act = choose.random() if turn < 90 else 1.0
        if act < 0.2:
            group.lose(member)
            continue
        if not given["events"]:
            continue
        upto = choose.randrange(len(given["events"])) if act < 0.4 else len(given["events"]) - 1
        through = given["events"][upto]["seq"]
        answer = group.ack(given, member, through=through)
        assert answer.status_code == 200
        for e in given["events"][: upto + 1]:
            done[e["entity_id"]].append(e["seq"])
    for member in ("a", "b", "c", "d"):
        group.lose(member)
    while (given := group.poll("d"))["events"]:
        assert group.ack(given, "d").status_code == 200
        for e in given["events"]:
            done[e["entity_id"]].append(e["seq"])
    assert sorted({seq for found in done.values() for seq in found}) == list(range(1, written + 1))
    for found in done.values():
        assert found == sorted(found), "an entity's events were acknowledged out of order"
