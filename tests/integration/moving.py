"""A log with a window that is about to go, and every way of reading it; for `test_interleaving`."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg

from eventstore.app import Store
from eventstore.clock import US_PER_S, parse_time_us
from eventstore.errors import EventNotFoundError
from eventstore.governance.tenants import create_tenant
from eventstore.hot.batch import pending_batch
from eventstore.hot.log import log_transaction
from eventstore.model.event import NewEvent
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowUnit
from eventstore.retention.steps import archive_window, cut_over_window, drop_window, seal_window

__all__ = ["ALL", "BASE_US", "DEADLINE_S", "EVENTS", "HOUR_US", "OLD", "READS", "WINDOW_EVENTS"]
__all__ += ["Moving", "event", "read_stream"]

BASE_US = parse_time_us("2024-03-01T00:00:00Z")
HOUR_US = 3600 * US_PER_S
WINDOW_EVENTS = 10  # seq 1 to 10 lie in the window that goes
EVENTS = 3 * WINDOW_EVENTS
GONE_ID = 3  # an event of that window
DEADLINE_S = 30.0
_numbers = itertools.count(1)


def event(number: int, **more: Any) -> NewEvent:
    """Entity `old` occurs in the first window only."""
    return NewEvent(
        entity_type="account",
        entity_id="old" if number <= WINDOW_EVENTS else "new",
        action="update",
        actor="a",
        source="s",
        **{"event_id": uuid.UUID(int=number), **more},
    )


class Moving:
    """A log whose first window is archived but for its cutover and its drop, which a test places."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = f"acme-{next(_numbers)}"  # a tenant of its own is quicker than a database of its own
        self.tenant: Tenant = create_tenant(store.database, self.name, Policy(WindowUnit.HOUR, 0))
        times = BASE_US + np.arange(EVENTS, dtype=np.int64) * (HOUR_US // WINDOW_EVENTS)
        with store.database.connection() as conn, log_transaction(conn, self.name, {}) as log:
            log.write(pending_batch([event(n) for n in range(1, EVENTS + 1)]), times)
        plan = store.compactor.plan(self.tenant, BASE_US + HOUR_US)
        assert [w.event_count for w in plan.due] == [WINDOW_EVENTS]
        self.record = seal_window(store.database, self.tenant, plan.due[0].record, target="archive")
        self.verified = archive_window(
            store.database, store.target, self.tenant, self.record, on_file=lambda _: None
        )

    def cut_over(self) -> None:
        cut_over_window(self.store.database, self.record, self.verified)

    def drop(self) -> None:
        drop_window(self.store.database, self.tenant, self.record, self.verified)

    @property
    def parent(self) -> str:
        return f"hot.events_{self.tenant.tenant_no}"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        return psycopg.connect(self.store.database.url, autocommit=autocommit)

    def until_waiting(self, statement: str) -> None:
        """Until a statement like this waits for a lock."""
        deadline = time.monotonic() + DEADLINE_S
        with self.connect() as conn:
            while not conn.execute(
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s",
                [statement],
            ).fetchone():
                assert time.monotonic() < deadline, f"nothing like {statement} waits for a lock"
                time.sleep(0.002)

    def drop_under(self, work: Callable[[], Any], statement: str) -> Any:
        """Start `work`, whose statement takes its snapshot and then waits for the partitions; commit the
        cutover meanwhile, and drop the window before the statement gets on. What `work` gave."""
        with ThreadPoolExecutor(1) as executor, self.connect(autocommit=False) as dropper:
            dropper.execute(f"LOCK TABLE {self.parent} IN ACCESS EXCLUSIVE MODE")
            future = executor.submit(work)
            self.until_waiting(statement)
            self.cut_over()
            # What hot.drop does, on the connection that already has the lock for which the reader queues.
            dropper.execute(f"DROP TABLE hot.{self.record.leaf}")
            dropper.execute(
                "UPDATE windows SET state = 'dropped' WHERE state = 'archived' AND tenant_id = %s",
                [self.name],
            )
            dropper.commit()
            return future.result(DEADLINE_S)


def read_page(moving: Moving, order: Order, limit: int) -> list[int]:
    seqs: list[int] = []
    after = None
    while True:
        page = moving.store.reader.page(moving.name, EventFilter(), order=order, after=after, limit=limit)
        seqs += page.events.column("seq").to_pylist()
        after = page.next_after
        if after is None:
            return sorted(seqs)


def read_stream(moving: Moving, wanted: EventFilter, order: Order) -> list[int]:
    tables = moving.store.reader.stream(moving.name, wanted, order=order)
    return sorted(seq for table in tables for seq in table.column("seq").to_pylist())


def read_event(moving: Moving, **named: Any) -> list[int]:
    try:
        return moving.store.reader.event(moving.name, **named).events.column("seq").to_pylist()
    except EventNotFoundError:
        return []


ALL = list(range(1, EVENTS + 1))
OLD = ALL[:WINDOW_EVENTS]
READS: dict[str, tuple[Callable[[Moving], list[int]], list[int]]] = {
    "page-asc": (lambda m: read_page(m, Order.ASC, 7), ALL),
    "page-desc": (lambda m: read_page(m, Order.DESC, 7), ALL),
    "page-whole": (lambda m: read_page(m, Order.DESC, EVENTS), ALL),
    "stream-asc": (lambda m: read_stream(m, EventFilter(), Order.ASC), ALL),
    "stream-desc": (lambda m: read_stream(m, EventFilter(), Order.DESC), ALL),
    "entity": (lambda m: read_stream(m, EventFilter(entity_type="account", entity_id="old"), Order.ASC), OLD),
    "event-by-seq": (lambda m: read_event(m, seq=GONE_ID), [GONE_ID]),
    "event-by-id": (lambda m: read_event(m, event_id=uuid.UUID(int=GONE_ID).bytes), [GONE_ID]),
}
