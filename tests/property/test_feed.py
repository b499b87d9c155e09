"""The feed against a plain list: appends, compactions, moves, holds and expiry, read from any cursor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from eventstore.app import Store, open_store
from eventstore.archive import parquet
from eventstore.clock import FixedClock
from eventstore.errors import FeedResetError, InputError
from eventstore.governance.holds import place_hold
from eventstore.governance.tenants import create_tenant
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter
from eventstore.model.run import RunKind, RunStatus
from eventstore.model.window import WindowUnit
from eventstore.query import feed as feed_module
from eventstore.query.feed import FeedReader
from eventstore.query.feed_ring import Batch, Form, Framing, Ring, framed, joined
from eventstore.query.render import EventView
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.property.strategies import examples
from tests.unit.helpers import DAY_US, START_US, append, execute, new_event

# Near for a day, deep for another, then destroyed.
POLICY = Policy(WindowUnit.DAY, 0, (ArchiveTier("near", DAY_US), ArchiveTier("deep", DAY_US)), Ending.EXPIRE)
EXPIRY = RunOrder(RunKind.EXPIRY, "test")
ACTORS = ("ann", "bob")
actors = st.none() | st.sampled_from(ACTORS)
_names = (f"feed-{n}" for n in count())


class FeedMachine(RuleBasedStateMachine):
    """Each example has a tenant of its own in one shared store."""

    store: ClassVar[Store]
    clock: ClassVar[FixedClock]

    @initialize(history=st.lists(st.sampled_from(ACTORS), min_size=4, max_size=8))
    def begin(self, history: list[str]) -> None:
        self.tenant = next(_names)
        self.day = 0
        self.clock.move_to(START_US)
        create_tenant(self.store.database, self.tenant, POLICY)
        self.reader = FeedReader(self.store.tiers)
        self.events: list[tuple[int, str]] = []  # day and actor of each
        self.expired: set[int] = set()  # days
        self.held: set[int] = set()
        for actor in history:  # a day each, so that there is something to be destroyed from the start
            self.append([actor] * 2, 1)
        self.following = 0  # a consumer that reads now and then, in batches as the hub makes them

    # --- what changes the log -------------------------------------------------------------------------

    @rule(by=st.lists(st.sampled_from(ACTORS), min_size=1, max_size=7), days=st.integers(0, 2))
    def append(self, by: list[str], days: int) -> None:
        self.day += days
        self.clock.move_to(START_US + self.day * DAY_US)
        append(self.store, self.tenant, *(new_event(str(n), actor=a) for n, a in enumerate(by)))
        self.events += [(self.day, actor) for actor in by]

    @rule(back=st.integers(1, 5))
    def hold(self, back: int) -> None:
        day = self.day - back
        if day < 0 or day in self.held or day in self.expired:
            return
        scope = HoldScope(from_us=START_US + day * DAY_US, to_us=START_US + (day + 1) * DAY_US)
        place_hold(self.store.database, self.tenant, f"day {day}", "test", "lea", scope, START_US)
        self.held.add(day)

    @rule()
    def retain(self) -> None:
        """Archive, move, and destroy what is due now."""
        for order in (None, EXPIRY):
            tenants = self.store.compactor.tenants(self.tenant)
            report = self.store.compactor.run(tenants, self.clock.now_us(), order=order)
            assert report.status is RunStatus.COMPLETED, report
        # A window is archived at its end, destroyed two days later.
        self.expired |= {day for day, _ in self.events if day + 3 <= self.day and day not in self.held}

    # --- what reads it --------------------------------------------------------------------------------

    def expected(self, after: int, actor: str | None) -> tuple[list[int], int | None]:
        """The seqs that a feed gives, and the cursor of the reset that ends it; None: it comes to the end."""
        found = []
        for seq in range(after + 1, len(self.events) + 1):
            day, who = self.events[seq - 1]
            if day in self.expired:
                while seq <= len(self.events) and self.events[seq - 1][0] in self.expired:
                    seq += 1
                return found, seq - 1
            if actor in (None, who):
                found.append(seq)
        return found, None

    @rule(
        data=st.data(),
        actor=actors,
        limit=st.none() | st.integers(1, 5),
        framing=st.sampled_from(Framing),
    )
    def read(self, data: st.DataObject, actor: str | None, limit: int | None, framing: Framing) -> None:
        after = data.draw(st.integers(0, len(self.events)), label="after")
        expected, reset = self.expected(after, actor)
        found: list[int] = []
        through = after
        ended: FeedResetError | None = None
        try:
            for look in self.reader.read(self.tenant, after, EventFilter(actor=actor), limit=limit):
                assert look.through > through
                through = look.through
                given = seqs_in(joined(framed(look.events, framing)), framing)
                assert given == look.events.column("seq").to_pylist()
                found += given
        except FeedResetError as e:
            ended = e
        if ended is not None:
            assert (found, ended.since) == (expected, reset)
            assert ended.oldest_seq == (None if reset == len(self.events) else ended.since + 1)
            assert ended.expired[-1][2] == reset
            return
        if limit is not None and len(found) == limit:
            assert found == expected[:limit]
            return
        assert (found, reset, through) == (expected, None, max(after, len(self.events)))

    @rule(ahead=st.integers(1, 3))
    def read_beyond_the_end(self, ahead: int) -> None:
        with pytest.raises(InputError):
            self.reader.check_cursor(self.tenant, len(self.events) + ahead)

    @rule(
        actor=st.none() | st.sampled_from(ACTORS), framing=st.sampled_from(Framing), limit=st.integers(1, 4)
    )
    def follow(self, actor: str | None, framing: Framing, limit: int) -> None:
        """What the hub does: batches of a ring, in parts."""
        form = Form(EventFilter(actor=actor), framing)
        expected, reset = self.expected(self.following, actor)
        found: list[int] = []
        try:
            for look in self.reader.read(self.tenant, self.following):
                ring = Ring(self.following, size_bytes_max=1)
                ring.add(Batch(self.following, look, [form]))
                whole = ring.after(self.following)
                assert whole is not None
                shared = whole.shared(form)
                assert shared is not None
                parts = b""
                while (batch := ring.after(self.following)) is not None:
                    part = batch.part(form, after=self.following, limit=limit)
                    assert self.following < part.through
                    assert part.count <= limit
                    parts += part.data
                    self.following = part.through
                assert parts == shared.data
                found += seqs_in(parts, framing)
        except FeedResetError as e:
            self.following = e.since
        assert found == expected
        assert self.following == (reset or len(self.events))


def seqs_in(data: bytes, framing: Framing) -> list[int]:
    if framing is Framing.LINES:
        return [msgspec.json.decode(line, type=EventView).seq for line in data.splitlines()]
    seqs = []
    for block in data.split(b"\n\n")[:-1]:
        number, event = block.split(b"\n")
        assert event.startswith(b"data: ")
        seqs.append(int(number.removeprefix(b"id: ")))
        assert msgspec.json.decode(event[6:], type=EventView).seq == seqs[-1]
    return seqs


@pytest.fixture(scope="module")
def machine(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[type[FeedMachine]]:
    folder = tmp_path_factory.mktemp("feeds")
    url = create_database(server_url, folder.name, template=template_database)
    clock = FixedClock(START_US)
    targets = {name: (folder / name).as_uri() for name in ("near", "deep")}
    settings = Settings(
        database_url=url, home=folder, archive_url=(folder / "archive").as_uri(), targets=targets
    )
    with open_store(settings, clock=clock) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "GROUP_ROWS_MAX", 3)  # several row groups and segments in a small window
        patch.setattr(parquet, "SEGMENT_ROWS_MAX", 6)
        patch.setattr(feed_module, "_STEP_BYTES", 1)  # and many steps
        impatient = Compactor(store.database, store.targets, store.key, retry_pauses_s=())
        FeedMachine.store, FeedMachine.clock = replace(store, compactor=impatient), clock
        yield FeedMachine
    execute(server_url, f'DROP DATABASE "{folder.name}" WITH (FORCE)')


def test_a_feed_is_the_list_from_its_cursor_on(machine: type[FeedMachine]) -> None:
    settings: Any = hypothesis.settings(examples(8), stateful_step_count=14)
    run_state_machine_as_test(machine, settings=settings)
