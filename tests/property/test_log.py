"""The whole store against a plain list: appends, moving clocks, compactions, pages, look-ups, proofs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventstore.app import Store, open_store
from eventstore.archive import parquet
from eventstore.clock import FixedClock, from_us, to_us
from eventstore.errors import EventNotFoundError, VersionConflictError
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.integrity.verify import verify_log
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunStatus
from eventstore.settings import Settings
from eventstore.testing.invariants import check_store
from tests.conftest import create_database
from tests.property.model import TEXTS, ModelStore, Stored, pooled_id
from tests.property.strategies import examples
from tests.unit.helpers import DAY_US, HOUR_US, START_US, execute, make_tenant, new_event

IDS = ("1", "2", "é/3", "it's")
ACTIONS = ("made", "changed")

new_events = st.fixed_dictionaries(
    {
        "entity_type": st.sampled_from(["order", "invoice"]),
        "entity_id": st.sampled_from(IDS),
        "action": st.sampled_from(ACTIONS),
        "actor": st.sampled_from(["ann", "bob"]),
        "new_value": st.none() | st.text('ab\u00e9"\\ ', max_size=4),
        "id_number": st.none() | st.integers(0, 9),
        # None: no condition. 0: the right one. Else off by that much.
        "condition": st.sampled_from([None, None, None, 0, 0, 1, -1, 7]),
        "occurred": st.none() | st.integers(-3, 3),
    }
)
requests = st.lists(st.lists(new_events, min_size=1, max_size=4), min_size=1, max_size=3)
days = st.integers(-2, 8).map(lambda n: START_US + n * DAY_US) | st.integers(0, 200).map(
    lambda n: START_US + n * HOUR_US
)
CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "entity_type": st.sampled_from(["order", "invoice"]),
    "entity_id": st.sampled_from([*IDS, "nobody"]),
    "action": st.sampled_from(ACTIONS),
    "actor": st.sampled_from(["ann", "bob", "eve"]),
    "recorded_from_us": days,
    "recorded_to_us": days,
    "occurred_from_us": days,
    "occurred_to_us": days,
    "seq_from": st.integers(0, 40),
    "seq_to": st.integers(0, 40),
}
# Few at a time, often none: with many nothing is left to be found.
filters = st.lists(st.sampled_from(sorted(CONDITIONS)), max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CONDITIONS[name] for name in names})
)


def stored(row: dict[str, Any]) -> Stored:
    value = row["new_value"]
    return Stored(
        row["seq"],
        row["event_id"],
        to_us(row["recorded_at"]),
        to_us(row["occurred_at"]),
        *(row[name] for name in TEXTS),
        value,
    )


_names = (f"log-{n}" for n in count())


class LogMachine(RuleBasedStateMachine):
    """Each example has a tenant of its own in one shared store."""

    store: ClassVar[Store]
    clock: ClassVar[FixedClock]

    @initialize(history=st.lists(requests, min_size=1, max_size=5))
    def begin(self, history: list[list[list[dict[str, Any]]]]) -> None:
        self.tenant = next(_names)
        self.clock.move_to(START_US)
        self.registered = make_tenant(self.store, self.tenant)
        self.model = ModelStore()
        for groups in history:  # days of some events, so that there is something to be read from the start
            self.append(groups)
            self.clock.move_to(self.clock.now_us() + DAY_US)

    # --- what changes the log -------------------------------------------------------------------------

    @rule(groups=requests)
    def append(self, groups: list[list[dict[str, Any]]]) -> None:
        given = [[self._resolve(event) for event in group] for group in groups]
        expected = self.model.append(given, self.clock.now_us())
        outcomes = self.store.appender.append(
            self.tenant, [AppendRequest([self._new_event(event) for event in group]) for group in given]
        )
        for answer, outcome in zip(expected, outcomes, strict=True):
            if answer is None:
                assert isinstance(outcome, VersionConflictError)
                continue
            assert isinstance(outcome, AppendResult), outcome
            assert list(outcome.seqs) == answer
            for seq, event_id in zip(outcome.seqs, outcome.event_ids, strict=True):
                known = self.model.events[seq - 1]
                known.event_id = known.event_id or event_id  # one that the store gave
                assert known.event_id == event_id

    def _resolve(self, event: dict[str, Any]) -> dict[str, Any]:
        number, condition, occurred = event["id_number"], event["condition"], event["occurred"]
        version = self.model.version(event["entity_type"], event["entity_id"])
        value = event["new_value"]
        return {
            **{name: event[name] for name in TEXTS},
            "given_value": value,
            "new_value": None if value is None else encoded(value),
            "event_id": None if number is None else pooled_id(number, START_US),
            "expected_version": None if condition is None else max(0, version + condition),
            "occurred_at_us": None if occurred is None else START_US + occurred * DAY_US,
        }

    def _new_event(self, event: dict[str, Any]) -> Any:
        values = {name: event[name] for name in (*TEXTS, "event_id", "expected_version")}
        if event["given_value"] is not None:
            values["new_value"] = event["given_value"]
        if event["occurred_at_us"] is not None:
            values["occurred_at"] = from_us(event["occurred_at_us"])
        return new_event(**values)

    @rule(step=st.sampled_from([1, HOUR_US, DAY_US - 1, DAY_US, 3 * DAY_US, -HOUR_US, -2 * DAY_US]))
    def move_clock(self, step: int) -> None:
        self.clock.move_to(self.clock.now_us() + step)

    @rule(ahead=st.sampled_from([-DAY_US, 0, 1, DAY_US, 4 * DAY_US]))
    def compact(self, ahead: int) -> None:
        now_us = self.clock.now_us() + ahead
        windows = self.model.compact(now_us)
        report = self.store.compactor.run([self.registered], now_us)
        assert report.status is RunStatus.COMPLETED, report
        assert report.outcomes[0].windows == windows

    # --- what reads it --------------------------------------------------------------------------------

    @rule(wanted=filters, order=st.sampled_from(Order), limit=st.integers(1, 7))
    def pages(self, wanted: dict[str, Any], order: Order, limit: int) -> None:
        expected = self.model.query(wanted, descending=order is Order.DESC)
        found: list[Stored] = []
        after: int | None = None
        while True:
            page = self.store.reader.page(
                self.tenant, EventFilter(**wanted), order=order, after=after, limit=limit
            )
            found += [stored(row) for row in page.events.to_pylist()]
            if page.next_after is None:
                break
            assert page.events.num_rows == limit
            assert len(found) <= len(expected)  # rather than going round for ever
            after = page.next_after
        assert found == expected
        assert page.events.num_rows > 0 or not expected

    @rule(seq=st.integers(0, 60))
    def event_by_seq(self, seq: int) -> None:
        self._one([e for e in self.model.events if e.seq == seq], seq=seq)

    @rule(number=st.integers(0, 10))
    def event_by_id(self, number: int) -> None:
        event_id = pooled_id(number, START_US)
        self._one([e for e in self.model.events if e.event_id == event_id.bytes], event_id=event_id.bytes)

    @precondition(lambda self: self.model.events)
    @rule(data=st.data())
    def event_by_given_id(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.model.events))
        same = [e for e in self.model.events if e.event_id == event.event_id]
        self._one(same, event_id=event.event_id)
        assert UUID(bytes=event.event_id)

    def _one(self, expected: list[Stored], **by: Any) -> None:
        """An id that came again after its first window had left the hot tier is there twice: the newest."""
        try:
            page = self.store.reader.event(self.tenant, **by)
        except EventNotFoundError:
            assert not expected
            return
        assert [stored(row) for row in page.events.to_pylist()] == expected[-1:]

    @rule()
    def verify(self) -> None:
        report = verify_log(self.store.tiers, self.store.targets, self.tenant)
        assert report.ok, report.problems
        assert report.events == len(self.model.events)

    # --- after each step ------------------------------------------------------------------------------

    @invariant()
    def the_log_is_the_list(self) -> None:
        if not hasattr(self, "model"):
            return
        state = self.store.tiers.state(self.tenant)
        assert (state.last_seq, state.archived_through) == (
            len(self.model.events),
            self.model.archived_through,
        )
        tables = self.store.reader.stream(self.tenant, EventFilter())
        assert [stored(row) for table in tables for row in table.to_pylist()] == self.model.events


def encoded(value: str) -> str:
    import json

    return json.dumps(value)


@pytest.fixture(scope="module")
def machine(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[type[LogMachine], str, Path]]:
    folder = tmp_path_factory.mktemp("model")
    url = create_database(server_url, folder.name, template=template_database)
    clock = FixedClock(START_US)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with open_store(settings, clock=clock) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "GROUP_ROWS_MAX", 3)  # several row groups and segments in a small window
        patch.setattr(parquet, "SEGMENT_ROWS_MAX", 6)
        LogMachine.store, LogMachine.clock = store, clock
        yield LogMachine, url, folder / "archive"
    execute(server_url, f'DROP DATABASE "{folder.name}" WITH (FORCE)')


def test_the_store_is_a_list(machine: tuple[type[LogMachine], str, Path]) -> None:
    kind, url, archive = machine
    settings = hypothesis.settings(examples(30), stateful_step_count=25)
    run_state_machine_as_test(kind, settings=settings)
    report = check_store(url, archive)  # and all logs together, by the independent checker
    assert not report.violations, report
