"""Events to measure with: about 400 bytes of JSON each, some entities much busier than others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.columns.schema import TIMESTAMP
from eventstore.db.engine import Database
from eventstore.hot.batch import PENDING_SCHEMA
from eventstore.hot.log import LeafCache, log_transaction
from eventstore.model.event import VALUE_FIELDS
from eventstore.model.window import Window

__all__ = ["entity_name", "json_bodies", "load_window", "pending_events", "ranks", "spread_times"]

_ENTITIES = 100_000
_ACTIONS = pa.array(["created", "updated", "approved", "shipped", "cancelled"])
_STATES = pa.array(["draft", "placed", "paid", "packed", "shipped", "delivered", "returned", "cancelled"])
_SOURCES = pa.array(["checkout", "warehouse", "back-office", "import"])
_CHUNK_ROWS = 50_000


def ranks(rng: np.random.Generator, count: int, population: int = _ENTITIES) -> npt.NDArray[np.int64]:
    """Numbers from 0, each drawn in inverse proportion to its rank (Zipf's law)."""
    weights = np.cumsum(1.0 / np.arange(1, population + 1))
    found: npt.NDArray[np.int64] = np.searchsorted(weights, rng.random(count) * weights[-1])
    return found


def entity_name(rank: int) -> str:
    """The id of the entity of a rank."""
    return f"order-{rank + 10_000_000}"


def spread_times(window: Window, rows: int) -> npt.NDArray[np.int64]:
    """Recorded times that fill a window evenly."""
    return window.from_us + np.arange(rows, dtype=np.int64) * ((window.to_us - window.from_us) // rows)


def pending_events(
    rng: np.random.Generator, rows: int, recorded_us: npt.NDArray[np.int64] | None = None
) -> pa.RecordBatch:
    """Pending events (`PENDING_SCHEMA`); without `recorded_us`, they have no time of their own."""

    def numbers(low: int, high: int) -> pa.Array:
        return pa.array(rng.integers(low, high, rows, dtype=np.int64)).cast(pa.string())

    def pick(values: pa.Array) -> pa.Array:
        return values.take(pa.array(rng.integers(0, len(values), rows)))

    def join(*parts: pa.Array | str) -> pa.Array:
        return pc.binary_join_element_wise(*parts, "")

    def order() -> pa.Array:
        return join(
            *('{"state":"', pick(_STATES), '","total":', numbers(100, 999_999), ',"currency":"EUR",'),
            *('"customer":"c-', numbers(100_000, 999_999), '"}'),
        )

    occurred = pa.nulls(rows, TIMESTAMP)
    if recorded_us is not None:
        occurred = pa.array(recorded_us - rng.integers(0, 2_000_000, rows)).cast(TIMESTAMP)
    columns = {
        "event_id": pa.nulls(rows, pa.binary(16)),
        "occurred_at": occurred,
        "entity_type": pa.repeat("order", rows),
        "entity_id": join("order-", pa.array(ranks(rng, rows) + 10_000_000).cast(pa.string())),
        "action": pick(_ACTIONS),
        "field": pa.repeat("status", rows),
        "old_value": order(),
        "new_value": order(),
        "actor": join("user-", numbers(1000, 4000), "@example.com"),
        "source": pick(_SOURCES),
        "workspace_id": join("ws-", numbers(10, 60)),
        "metadata": join(
            *('{"request_id":"', numbers(2**61, 2**63 - 1), '","address":"10.0.', numbers(1, 255), "."),
            *(numbers(1, 255), '"}'),
        ),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in PENDING_SCHEMA.names], schema=PENDING_SCHEMA)


def json_bodies(batch: pa.RecordBatch, rows_each: int, event_ids: list[str] | None = None) -> list[bytes]:
    """Request bodies: arrays of so many events, or single objects if it is one."""
    names = [name for name in batch.schema.names if name not in ("event_id", "occurred_at")]
    quote = ["" if name in VALUE_FIELDS else '"' for name in names]
    events = [
        "{"
        + ",".join(f'"{n}":{q}{v}{q}' for n, q, v in zip(names, quote, values, strict=True))
        + (f',"event_id":"{event_ids[index]}"' if event_ids is not None else "")
        + "}"
        for index, values in enumerate(zip(*(batch.column(name).to_pylist() for name in names), strict=True))
    ]
    if rows_each == 1:
        return [event.encode() for event in events]
    return [
        f"[{','.join(events[start : start + rows_each])}]".encode()
        for start in range(0, len(events), rows_each)
    ]


def load_window(database: Database, tenant_id: str, window: Window, rows: int) -> None:
    """Fill a window of a tenant's log, oldest first, the way an import does."""
    rng = np.random.default_rng(rows)
    times = spread_times(window, rows)
    leaves: LeafCache = {}
    for start in range(0, rows, _CHUNK_ROWS):
        recorded = times[start : start + _CHUNK_ROWS]
        batch = pending_events(rng, len(recorded), recorded)
        with database.connection() as conn, log_transaction(conn, tenant_id, leaves) as log:
            log.write(batch, recorded)
