"""A search: what matches newest first, for a bounded time, and where each event lies.

A search over a long archive may find little for a long time. It ends with a page of events or when its time
is up, whichever comes first, and says how far it has come; it goes on from there.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import sqlalchemy as sa

from eventstore.clock import from_us, to_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.db.engine import Database
from eventstore.db.tables import windows
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers, span

__all__ = ["Origin", "Searched", "places", "search", "windows_between"]

# With so few seqs left a search takes its last step, whatever the clock says.
_LAST_SEQS = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event was read: in Postgres (`target` None) or in an archive target, and its window in µs
    (None: the catalog names it no more)."""

    target: str | None
    window: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found, newest first. Seqs from `top` down to `low` were looked at (None: there was nothing to
    look at). `next_after` goes on from here; None: all of it was searched. `is_full`: it
    ended because its page was full."""

    events: pa.Table
    top: int | None
    low: int | None
    next_after: int | None
    is_full: bool
    coverage: Coverage


def search(
    reader: LogReader,
    tenant_id: str,
    wanted: EventFilter,
    *,
    after: int | None = None,
    limit: int,
    budget_s: float,
) -> Searched:
    """One page of a search. It ends with the first step after `budget_s`, unless next to nothing is left; at
    least one is taken. Segments that cannot be read are named in the coverage.

    Raises:
        RateLimitedError: the reader's meter has come to its end.
        TenantNotFoundError
    """
    deadline_s = time.monotonic() + budget_s
    coverage = Coverage()
    tables, rows, finished = [EVENT_SCHEMA.empty_table()], 0, True
    steps = reader.stream(
        tenant_id,
        wanted,
        order=Order.DESC,
        after=after,
        limit=limit + 1,
        partial=True,
        coverage=coverage,
        every_step=True,
        brisk=True,
    )
    end = max(1, wanted.seq_from or 1)
    for events in steps:
        tables.append(events)
        rows += events.num_rows
        is_late = time.monotonic() >= deadline_s and (_looked_at(coverage)[1] or 0) > end + _LAST_SEQS
        if rows > limit or is_late:
            finished = False
            break
    found = pa.concat_tables(tables).combine_chunks()
    top, low = _looked_at(coverage)
    if rows > limit:
        found = found.slice(0, limit)
        last: int = found.column("seq")[limit - 1].as_py()
        return Searched(found, top, last, last, True, coverage)
    return Searched(found, top, low, None if finished else low, False, coverage)


def _looked_at(coverage: Coverage) -> tuple[int | None, int | None]:
    """The highest and the lowest seq of a coverage; what expired or could not be read was passed, too."""
    ranges = [*coverage.hot, *coverage.archive, *((a, b) for a, b, _ in coverage.expired)]
    if not ranges:
        return None, None
    return max(b for _, b in ranges), min(a for a, _ in ranges)


def places(database: Database, tiers: Tiers, tenant_id: str, found: Searched) -> list[Origin]:
    """Where each event that was found was read, in their order.

    An event that was archived since is shown where it was read, in Postgres; one that was moved since, in
    its new target.
    """
    seqs: list[int] = found.events.column("seq").to_pylist()
    if not seqs:
        return []
    times: list[int] = found.events.column("recorded_at").cast(pa.int64()).to_pylist()
    spans = _windows_of(database, tenant_id, times)
    parts = tiers.archive(tenant_id, tiers.state(tenant_id))
    origins = []
    for seq, at_us in zip(seqs, times, strict=True):
        window = spans.get(at_us)
        if any(first <= seq <= last for first, last in found.coverage.hot):
            origins.append(Origin(None, window))
            continue
        index = bisect_right(parts, seq, key=lambda part: span(part)[0]) - 1
        part = parts[index] if index >= 0 else None
        origins.append(Origin(part.target if isinstance(part, Segment) else "archive", window))
    return origins


def _windows_of(database: Database, tenant_id: str, times_us: Sequence[int]) -> dict[int, tuple[int, int]]:
    """The window in which each of these moments lies, in µs."""
    moments = sa.func.unnest(
        sa.cast([from_us(us) for us in set(times_us)], sa.ARRAY(windows.c.window_from.type))
    )
    at = sa.select(moments.label("at")).subquery()
    latest = (
        sa.select(windows.c.window_from, windows.c.window_to)
        .where(windows.c.tenant_id == tenant_id, windows.c.window_from <= at.c.at)
        .order_by(windows.c.window_from.desc())
        .limit(1)
        .lateral()
    )
    query = sa.select(at.c.at, latest.c.window_from, latest.c.window_to).join(latest, sa.true())
    with database.app.transaction(tenant_id) as conn:
        return {to_us(moment): (to_us(start), to_us(end)) for moment, start, end in conn.execute(query)}


def windows_between(tiers: Tiers, tenant_id: str, low: int, top: int) -> int:
    """How many windows of the archive, of those with segments, lie between `top` and `low`."""
    parts = tiers.archive(tenant_id, tiers.state(tenant_id))
    return len(
        {
            part.range.window
            for part in parts
            if isinstance(part, Segment) and part.range.first_seq <= top and part.range.last_seq >= low
        }
    )
