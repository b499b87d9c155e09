"""How many events meet conditions, by spans of recorded time: counted where they lie, never fetched.

A histogram walks the log as a reader does (`query.walk`), newest first, so every event is counted once at any
instant of a compaction; what comes back from a step are counts. Where time and seq are the only conditions, a
segment that lies within one span is not opened: the catalog says how many events it has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import pairwise

import pyarrow as pa

from eventstore.clock import US_PER_S, from_us, to_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.query.coverage import Coverage, Meter, opened_bytes
from eventstore.query.tiers import ExpiredRange, Tiers, span
from eventstore.query.walk import Walk

__all__ = ["BARS_MAX", "Histogram", "count_by_time", "edges_between", "extent", "recorded_by"]

BARS_MAX = 60
_NO_LIMIT = 2**62

_S, _M, _H, _D = US_PER_S, 60 * US_PER_S, 3600 * US_PER_S, 86_400 * US_PER_S
_STEPS_US = [_S, 5 * _S, 15 * _S, _M, 5 * _M, 15 * _M, _H, 3 * _H, 6 * _H, 12 * _H, _D, 7 * _D]
_STEPS_MONTHS = [1, 3, 6, 12, 24, 60, 120, 300, 600, 1200, 3000, 12_000]
# A Monday, from which weeks are counted.
_MONDAY_US = -3 * _D


@dataclass(slots=True)
class Histogram:
    """Counts of matching events by the spans between `edges_us` (rising, in µs; one more than counts).

    Counted from the newest down to `next_after`, which goes on from there; None: all of it. The spans that
    begin at or before `unsure_us` may have more events than were counted (None: no span has). To go on may
    open `left_bytes` of the archive, and no more.
    `expired` and `unreadable` are the spans of which something was destroyed, or could not be read.
    """

    edges_us: list[int]
    counts: list[int]
    next_after: int | None = None
    unsure_us: int | None = None
    left_bytes: int = 0
    expired: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    coverage: Coverage = field(default_factory=Coverage)

    def is_counted(self, index: int) -> bool:
        """Whether every event of a span was counted."""
        return self.unsure_us is None or self.edges_us[index] > self.unsure_us


def edges_between(from_us: int, to_us_: int, most: int = BARS_MAX) -> list[int]:
    """The edges of at most so many spans of [from, to): the ends themselves, and between them round times
    in UTC (hours, days, Mondays, months, years), as close as they may be."""
    inner: list[int] = []
    for step_us in _STEPS_US:
        if (to_us_ - from_us) // step_us < most - 1:
            origin = _MONDAY_US if step_us == 7 * _D else 0
            first = from_us + (origin - from_us) % step_us
            inner = list(range(first, to_us_, step_us))
            break
    else:
        first_month, last_month = _month(from_us), _month(to_us_ - 1)
        step = next(n for n in _STEPS_MONTHS if (last_month - first_month) // n < most - 1)
        inner = [_begin(month) for month in range(-(-first_month // step) * step, last_month + 1, step)]
    return [from_us, *(us for us in inner if from_us < us < to_us_), to_us_]


def _month(us: int) -> int:
    """Months since the year 0."""
    moment = from_us(us)
    return moment.year * 12 + moment.month - 1


def _begin(month: int) -> int:
    year, rest = divmod(month, 12)
    return to_us(datetime(max(year, 1), rest + 1, 1, tzinfo=UTC))


def extent(tiers: Tiers, tenant_id: str, wanted: EventFilter) -> tuple[int, int] | None:
    """The recorded times that a histogram of a filter is to show, in µs, to exclusive: those that are asked
    for, as far as the log reaches. None: there is nothing to show.

    Raises:
        TenantNotFoundError
    """
    state = tiers.state(tenant_id)
    if state.last_seq == 0:
        return None
    start_us: int | None = None
    end_us = tiers.last_recorded_us(tenant_id) + 1
    parts = tiers.archive(tenant_id, state)
    if parts:
        first = parts[0]
        start_us = first.window_from_us if isinstance(first, ExpiredRange) else first.min_recorded_at_us
    else:
        start_us = tiers.recorded_us(tenant_id, 1)
    if start_us is None:  # archived since it was asked, or offboarded: what is left says when
        start_us = next((p.min_recorded_at_us for p in parts if isinstance(p, Segment)), end_us - 1)
    if wanted.recorded_from_us is not None:
        start_us = max(start_us, wanted.recorded_from_us)
    if wanted.recorded_to_us is not None:
        end_us = min(end_us, wanted.recorded_to_us)
    return (start_us, end_us) if start_us < end_us else None


def count_by_time(
    tiers: Tiers,
    tenant_id: str,
    wanted: EventFilter,
    edges_us: Sequence[int],
    *,
    after: int | None = None,
    counts: Sequence[int] | None = None,
    budget_s: float | None = None,
    budget_bytes: int | None = None,
    meter: Meter | None = None,
) -> Histogram:
    """Count what matches by time. `after` and `counts` go on from a histogram of the same edges that was not
    finished. It ends with the first step after `budget_s`, or after `budget_bytes` of the archive if more
    would have to be opened; at least one is taken.

    Raises:
        RateLimitedError: the meter has come to its end.
        TenantNotFoundError
    """
    found = Histogram(list(edges_us), list(counts or [0] * (len(edges_us) - 1)))
    bounded = _within(wanted, edges_us[0], edges_us[-1])
    walk = _Tally(
        tiers,
        tenant_id,
        bounded,
        descending=True,
        remaining=_NO_LIMIT,
        partial=True,
        coverage=found.coverage,
        meter=meter,
        step_rows=_NO_LIMIT,
        every_step=True,
        brisk=True,
        edges_us=list(edges_us[1:-1]),
        counts=found.counts,
    )
    deadline_s = None if budget_s is None else time.monotonic() + budget_s
    for _ in walk.run(after):
        if walk.lower > walk.upper:
            continue
        late = deadline_s is not None and time.monotonic() >= deadline_s
        dear = budget_bytes is not None and found.coverage.archive_bytes >= budget_bytes
        if late or (dear and walk.left_bytes()):
            found.next_after = walk.upper + 1
            found.unsure_us = recorded_by(tiers, tenant_id, walk.upper)
            found.left_bytes = walk.left_bytes()
            break
    _mark(found, tiers, tenant_id)
    return found


def _within(wanted: EventFilter, from_us_: int, to_us_: int) -> EventFilter:
    """The filter within the histogram's own ends."""
    values = {f.name: getattr(wanted, f.name) for f in fields(wanted)}
    start = from_us_ if wanted.recorded_from_us is None else max(wanted.recorded_from_us, from_us_)
    end = to_us_ if wanted.recorded_to_us is None else min(wanted.recorded_to_us, to_us_)
    return EventFilter(**values | {"recorded_from_us": start, "recorded_to_us": end})


def recorded_by(tiers: Tiers, tenant_id: str, seq: int) -> int:
    """A time by which the event with a seq was recorded, in µs."""
    state = tiers.state(tenant_id)
    if seq > state.archived_through:
        at_us = tiers.recorded_us(tenant_id, seq)
        if at_us is not None:
            return at_us
        state = tiers.state(tenant_id)
    for part in reversed(tiers.archive(tenant_id, state)):
        if span(part)[0] <= seq and isinstance(part, Segment):
            return part.max_recorded_at_us
    return tiers.last_recorded_us(tenant_id)


def _mark(found: Histogram, tiers: Tiers, tenant_id: str) -> None:
    """Say in which spans something is missing."""
    for missing in found.coverage.unreadable:
        found.unreadable.update(_spans(found.edges_us, missing.window_from_us, missing.window_to_us))
    if not found.coverage.expired:
        return
    parts = tiers.archive(tenant_id, tiers.state(tenant_id))
    for index, part in enumerate(parts):
        if isinstance(part, ExpiredRange) and part.window_from_us is not None:
            following = parts[index + 1] if index + 1 < len(parts) else None
            end_us = _start_us(following) or part.window_from_us + 1
            found.expired.update(_spans(found.edges_us, part.window_from_us, end_us))


def _start_us(part: Segment | ExpiredRange | None) -> int | None:
    if part is None:
        return None
    return part.range.window.from_us if isinstance(part, Segment) else part.window_from_us


def _spans(edges_us: Sequence[int], from_us_: int, to_us_: int) -> list[int]:
    """The spans that [from, to) touches."""
    return [
        index for index, (start, end) in enumerate(pairwise(edges_us)) if start < to_us_ and end > from_us_
    ]


@dataclass(slots=True)
class _Tally(Walk):
    """A walk whose steps count. A step is taken anew where a compaction came in between, so what it counts is
    added when it has succeeded."""

    edges_us: list[int] = field(default_factory=list)  # the inner ones
    counts: list[int] = field(default_factory=list)
    pending: dict[int, int] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)  # the segments that were read, by first seq

    def left_bytes(self) -> int:
        """What of the archive the rest of the walk may open, at the most."""
        self._list(self.tiers.state(self.tenant_id))
        return sum(
            opened_bytes(part, self.lower, self.upper)
            for part in self.parts
            if span(part)[0] <= self.upper
            and span(part)[1] >= self.lower
            and self._may_match(part)
            and self._whole(part, self.lower, self.upper) is None
        )

    # super() does not know a dataclass with slots, which is made anew of its class.

    def _query_hot(self, first: int, last: int, limit: int) -> pa.Table:
        self.pending = self.tiers.tally_hot(self.tenant_id, self.wanted, first, last, self.edges_us)
        return EVENT_SCHEMA.empty_table()

    def _archive_step(self, state: object) -> pa.Table:
        self.pending, self.opened = {}, set()
        return Walk._archive_step(self, state)  # type: ignore[arg-type]

    def _query(self, segments: Sequence[Segment], first: int, last: int, limit: int) -> pa.Table:
        unknown = []
        known: dict[int, int] = {}
        for segment in segments:
            index = self._whole(segment, first, last)
            if index is None:
                unknown.append(segment)
            else:
                known[index] = known.get(index, 0) + segment.range.event_count
        if unknown:
            read = self.tiers.tally_archived(unknown, self.wanted, first, last, self.edges_us)
            self.opened.update(segment.range.first_seq for segment in unknown)
            _add(known, read)
        _add(self.pending, known)
        return EVENT_SCHEMA.empty_table()

    def _whole(self, segment: Segment, first: int, last: int) -> int | None:
        """The span in which all of a segment lies and counts; None: it has to be read."""
        wanted, r = self.wanted, segment.range
        start, end = wanted.recorded_from_us, wanted.recorded_to_us
        assert start is not None
        assert end is not None
        within = EventFilter(
            recorded_from_us=start, recorded_to_us=end, seq_from=wanted.seq_from, seq_to=wanted.seq_to
        )
        if wanted != within or r.first_seq < first or r.last_seq > last:
            return None
        low, high = segment.min_recorded_at_us, segment.max_recorded_at_us
        if low < start or high >= end:
            return None
        index = _index(self.edges_us, low)
        return index if index == _index(self.edges_us, high) else None

    def _count(self, read: Sequence[Segment], first: int, last: int) -> None:
        Walk._count(self, [s for s in read if s.range.first_seq in self.opened], first, last)

    def _advance(self, events: pa.Table, first: int, last: int) -> None:
        for index, events_counted in self.pending.items():
            self.counts[index] += events_counted
        Walk._advance(self, events, first, last)


def _add(counts: dict[int, int], more: dict[int, int]) -> None:
    for index, events in more.items():
        counts[index] = counts.get(index, 0) + events


def _index(edges_us: Sequence[int], at_us: int) -> int:
    return sum(1 for edge in edges_us if edge <= at_us)
