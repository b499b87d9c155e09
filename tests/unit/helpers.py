"""What tests of several folders share: events, tenants, a filled log, a target with injected faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pyarrow as pa

from eventstore.app import Store
from eventstore.archive.target import ArchiveTarget, ObjectInfo
from eventstore.clock import US_PER_S, FixedClock, parse_time_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.governance.tenants import create_tenant
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.model.event import TEXT_FIELDS, Event, NewEvent
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunReport
from eventstore.model.tenant import Tenant
from eventstore.model.window import WindowUnit

HOUR_US = 3600 * US_PER_S
DAY_US = 24 * HOUR_US
# A Friday. Well in the past, so that retention may run at any simulated time after it.
START_US = parse_time_us("2024-03-01T00:00:00Z")


def new_event(entity_id: str = "1", **values: Any) -> NewEvent:
    """A valid event; `old_value`, `new_value` and `metadata` are given as Python values."""
    for name in ("old_value", "new_value", "metadata"):
        if name in values:
            values[name] = msgspec.Raw(json.dumps(values[name], separators=(",", ":")).encode())
    defaults = {"entity_type": "order", "action": "changed", "actor": "ann", "source": "test"}
    return NewEvent(entity_id=entity_id, **{**defaults, **values})


def make_tenant(
    store: Store, name: str = "acme", *, unit: WindowUnit = WindowUnit.DAY, hot_for_us: int = 0
) -> Tenant:
    return create_tenant(store.database, name, Policy(unit, hot_for_us))


def append(store: Store, tenant: str, *events: NewEvent) -> AppendResult:
    """Append one request; raises the error for which it was refused."""
    (outcome,) = store.appender.append(tenant, [AppendRequest(events)])
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def fill_days(store: Store, clock: FixedClock, tenant: str, days: int, *, per_day: int = 5) -> None:
    """Events at noon of each of some days from START_US on; entity ids go round 0, 1, 2."""
    for day in range(days):
        clock.move_to(START_US + day * DAY_US + 12 * HOUR_US)
        append(
            store,
            tenant,
            *(new_event(str(n % 3), action=f"day-{day}", new_value={"n": n}) for n in range(per_day)),
        )


def run_retention(store: Store, now_us: int, tenant: str | None = None) -> RunReport:
    return store.compactor.run(store.compactor.tenants(tenant), now_us)


def read(store: Store, tenant: str, *, order: Order = Order.ASC, **wanted: Any) -> list[dict[str, Any]]:
    """All matching events of the log, through the reader."""
    tables = store.reader.stream(tenant, EventFilter(**wanted), order=order)
    return [row for table in tables for row in table.to_pylist()]


def seqs(rows: Sequence[dict[str, Any]]) -> list[int]:
    return [row["seq"] for row in rows]


def execute(url: str, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """A statement of its own connection, committed."""
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as conn:
        cursor = conn.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def tamper(url: str, table: str, statement: str) -> None:
    """What somebody does who may do everything: switch the trigger off, change the table, switch it on."""
    execute(url, f"ALTER TABLE {table} DISABLE TRIGGER refuse_change")
    execute(url, statement)
    execute(url, f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER refuse_change")


def leaves(url: str) -> list[str]:
    """The leaves that exist, with their schema, oldest first."""
    rows = execute(
        url,
        "SELECT 'hot.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'hot' AND c.relkind = 'r' ORDER BY c.relname",
    )
    return [name for (name,) in rows]


def as_batch(events: Sequence[Event]) -> pa.RecordBatch:
    """Reference events as `EVENT_SCHEMA`."""
    columns: dict[str, list[Any]] = {
        "seq": [e.seq for e in events],
        "event_id": [e.event_id for e in events],
        "recorded_at": [e.recorded_at_us for e in events],
        "occurred_at": [e.occurred_at_us for e in events],
        **{name: [getattr(e, name) for e in events] for name in TEXT_FIELDS},
        "hash": [e.hash for e in events],
    }
    arrays = []
    for field in EVENT_SCHEMA:
        values = columns[field.name]
        if pa.types.is_timestamp(field.type):
            arrays.append(pa.array(values, pa.int64()).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)


def uuid_text(octets: bytes) -> str:
    return str(UUID(bytes=octets))


def _is_segment(key: str) -> bool:
    return key.endswith(".parquet")


class FaultyTarget:
    """A real target, into whose verbs a test puts faults when they are about segments. `opened` alters what
    `open` gives, `after_put` is called when an object has been stored, `before_open` when it is about to be
    read."""

    def __init__(
        self,
        inner: ArchiveTarget,
        *,
        opened: Callable[[str, bytes], bytes] | None = None,
        after_put: Callable[[str], None] | None = None,
        before_open: Callable[[str], None] | None = None,
        stage: Callable[[str], Path] | None = None,
    ) -> None:
        self._inner = inner
        self._opened, self._after_put, self._before_open = opened, after_put, before_open
        self._stage = stage

    def stage(self, key: str) -> Path:
        return self._inner.stage(key) if self._stage is None or not _is_segment(key) else self._stage(key)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        created = self._inner.put(key, staged, retain_until_us=retain_until_us)
        if self._after_put is not None and _is_segment(key):
            self._after_put(key)
        return created

    def open(self, key: str) -> BufferedIOBase:
        if self._before_open is not None and _is_segment(key):
            self._before_open(key)
        file = self._inner.open(key)
        if self._opened is None or not _is_segment(key):
            return file
        with file:
            return BytesIO(self._opened(key, file.read()))

    def stat(self, key: str) -> ObjectInfo:
        return self._inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def local_path(self, key: str) -> Path | None:
        return self._inner.local_path(key)

    def describe(self) -> str:
        return f"faulty {self._inner.describe()}"
