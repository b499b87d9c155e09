"""One ordered log over both tiers: every event exactly once, at any instant of a compaction.

The log is read in steps by seq, each from its own snapshot. Events never change and seqs have no gap, so
the steps join without one, as long as each takes its seqs from the right tier: at or below the watermark
from the archive, above it from Postgres. A hot step looks at the watermark again after it has its rows;
if the watermark has moved past the step's start, a window may have been dropped under it, and the step is
taken anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from eventstore.clock import clamp_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError, CoverageError, EventNotFoundError, InputError
from eventstore.model.event import uuid7_time_us
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment
from eventstore.query.coverage import Coverage, Unreadable
from eventstore.query.tiers import LogState, Tiers

__all__ = ["LogReader", "Page"]

# A hot step looks at no more than this many seqs: a long statement would hold up the drop of a window.
_HOT_SPAN = 100_000
# An archive step takes as many segments as hold about this many events, so that memory stays bounded.
_ARCHIVE_EVENTS = 250_000
# Where Bloom filters help, each further step may look at this many times more segments than the last.
_SELECTIVE_GROWTH = 16
# Steps are sized by what events turn out to take in memory: a first small one, then about this much.
_STEP_BYTES = 32 * 2**20
_STEP_ROWS_FIRST = 256
_STEP_ROWS_MAX = 50_000
# A page ends early rather than be larger than about this.
_PAGE_BYTES_MAX = 32 * 2**20
_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order, the seq to go on after (None: the end of what was asked), and what was covered."""

    events: pa.Table
    next_after: int | None
    coverage: Coverage


class LogReader:
    """Reads logs across tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def page(
        self,
        tenant_id: str,
        wanted: EventFilter,
        *,
        order: Order = Order.ASC,
        after: int | None = None,
        limit: int,
        partial: bool = False,
    ) -> Page:
        """One page of at most `limit` events, fewer if they are very large. `after` is the seq at which
        the page before ended.

        Raises:
            ArchiveDamageError: a segment that had to be read cannot be (unless `partial`: it is then
                named in the coverage).
            TenantNotFoundError, TargetUnavailableError
        """
        coverage = Coverage()
        steps = self.stream(
            tenant_id, wanted, order=order, after=after, limit=limit + 1, partial=partial, coverage=coverage
        )
        tables, size_bytes = [EVENT_SCHEMA.empty_table()], 0
        for events in steps:
            tables.append(events)
            size_bytes += events.nbytes
            if size_bytes > _PAGE_BYTES_MAX:
                limit = min(limit, sum(table.num_rows for table in tables) - 1)
                break
        found = pa.concat_tables(tables).combine_chunks()
        if found.num_rows <= limit:
            return Page(found, None, coverage)
        limit = max(limit, 1)
        return Page(found.slice(0, limit), found.column("seq")[limit - 1].as_py(), coverage)

    def stream(
        self,
        tenant_id: str,
        wanted: EventFilter,
        *,
        order: Order = Order.ASC,
        after: int | None = None,
        limit: int | None = None,
        partial: bool = False,
        coverage: Coverage | None = None,
    ) -> Iterator[pa.Table]:
        """All matching events in order, in tables of bounded size, up to the log's end as it is now."""
        walk = _Walk(
            self._tiers,
            tenant_id,
            wanted,
            descending=order is Order.DESC,
            remaining=_NO_LIMIT if limit is None else limit,
            partial=partial,
            coverage=coverage or Coverage(),
        )
        return walk.run(after)

    def event(self, tenant_id: str, *, seq: int | None = None, event_id: bytes | None = None) -> Page:
        """One event, by seq or by event_id, as a page of one.

        Raises:
            EventNotFoundError: there is none.
        """
        if (seq is None) == (event_id is None):
            raise InputError("name an event by its seq or by its event_id")
        page = self.page(
            tenant_id,
            EventFilter(seq_from=seq, seq_to=seq, event_id=event_id),
            order=Order.DESC,
            limit=1,
        )
        if page.events.num_rows == 0:
            named = f"seq {seq}" if event_id is None else f"event_id {event_id.hex()}"
            raise EventNotFoundError(f"{tenant_id!r} has no event with {named}")
        return page

    def archived_versions(
        self, tenant_id: str, entities: Collection[tuple[str, str]], through: int
    ) -> Mapping[tuple[str, str], int]:
        """The last archived seq of each entity, up to a seq; 0 where there is none."""
        versions = {}
        for entity_type, entity_id in entities:
            page = self.page(
                tenant_id,
                EventFilter(entity_type=entity_type, entity_id=entity_id, seq_to=through),
                order=Order.DESC,
                limit=1,
            )
            versions[(entity_type, entity_id)] = (
                page.events.column("seq")[0].as_py() if page.events.num_rows else 0
            )
        return versions


@dataclass(slots=True)
class _Walk:
    """One pass over a log. `lower` and `upper` are the seqs that are still to be looked at."""

    tiers: Tiers
    tenant_id: str
    wanted: EventFilter
    descending: bool
    remaining: int
    partial: bool
    coverage: Coverage
    lower: int = 1
    upper: int = 0
    step_rows: int = _STEP_ROWS_FIRST
    without: set[int] = field(default_factory=set)  # segments that cannot hold the entity, by first seq

    def run(self, after: int | None) -> Iterator[pa.Table]:
        state = self.tiers.state(self.tenant_id)
        self._bound(state, after)
        while self.lower <= self.upper and self.remaining > 0:
            at = self.upper if self.descending else self.lower
            if at <= state.archived_through:
                yield from self._archive(state.archived_through)
                state = self.tiers.state(self.tenant_id)
            else:
                events, state = self._hot(state)
                if events is not None and events.num_rows:
                    self.remaining -= events.num_rows
                    yield events

    def _bound(self, state: LogState, after: int | None) -> None:
        self.lower = max(1, self.wanted.seq_from or 1)
        self.upper = min(
            state.last_seq, self.wanted.seq_to if self.wanted.seq_to is not None else state.last_seq
        )
        if after is not None:
            if self.descending:
                self.upper = min(self.upper, after - 1)
            else:
                self.lower = max(self.lower, after + 1)
        if self.wanted.event_id is not None and self.wanted.recorded_from_us is None:
            at_us = uuid7_time_us(self.wanted.event_id)
            if at_us is not None:
                self.wanted = replace(self.wanted, recorded_from_us=clamp_us(at_us - state.id_lead_us))

    def _hot(self, state: LogState) -> tuple[pa.Table | None, LogState]:
        """One hot step. None: a window moved under it, and the step has to be taken anew."""
        first, last = max(self.lower, state.archived_through + 1), self.upper
        if not self.wanted.is_selective:
            if self.descending:
                first = max(first, last - _HOT_SPAN + 1)
            else:
                last = min(last, first + _HOT_SPAN - 1)
        limit = min(self.remaining, self.step_rows)
        events = self.tiers.hot(
            self.tenant_id, self.wanted, first, last, descending=self.descending, limit=limit
        )
        after = self.tiers.state(self.tenant_id)
        if after.archived_through >= first:
            return None, after
        first, last = self._advance(events, first, last, full=events.num_rows == limit)
        self._check_range(events, first, last)
        self.coverage.add_hot(first, last)
        return events, after

    def _archive(self, archived_through: int) -> Iterator[pa.Table]:
        """Everything that is wanted from the archive, step by step."""
        budget = _ARCHIVE_EVENTS
        segments = self.tiers.segments(self.tenant_id, archived_through)
        if self.wanted.entity_id is not None:
            self.without = self.tiers.without_entity(self.tenant_id, archived_through, self.wanted.entity_id)
        end = min(self.upper, archived_through)
        while self.remaining > 0 and self.lower <= end and (not self.descending or self.upper >= self.lower):
            group = self._next_segments(segments, end, budget)
            first, last = self._group_span(group, end)
            limit = min(self.remaining, self.step_rows)
            events, first, last = self._read_group(group, first, last, limit)
            first, last = self._advance(events, first, last, full=events.num_rows == limit)
            if self.descending:
                end = self.upper
            if not self.coverage.unreadable:
                self._check_range(events, first, last)
            looked_at = [s for s in group if s.range.first_seq <= last and s.range.last_seq >= first]
            self.coverage.add_archive(first, last, looked_at)
            budget *= _SELECTIVE_GROWTH if self.wanted.is_selective else 1
            if events.num_rows:
                self.remaining -= events.num_rows
                yield events

    def _next_segments(self, segments: Sequence[Segment], end: int, budget: int) -> list[Segment]:
        """The next segments in reading order that hold about `budget` events; those that recorded times
        or the entity exclude cost nothing."""
        inside = [s for s in segments if s.range.last_seq >= self.lower and s.range.first_seq <= end]
        if self.descending:
            inside.reverse()
        group: list[Segment] = []
        events = 0
        most = min(budget, max(self.remaining, 1)) if self.wanted.is_range else budget
        for segment in inside:
            group.append(segment)
            events += segment.range.event_count if self._may_match(segment) else 0
            if events >= most:
                break
        return group

    def _group_span(self, group: Sequence[Segment], end: int) -> tuple[int, int]:
        if not group:
            raise CoverageError(
                f"no segment of {self.tenant_id!r} covers seq {self.lower} to {end}, though archived",
                hint="run eventstore verify",
            )
        first = max(self.lower, min(s.range.first_seq for s in group))
        last = min(end, max(s.range.last_seq for s in group))
        expected = end if self.descending else self.lower
        if expected != (last if self.descending else first):
            raise CoverageError(
                f"no segment of {self.tenant_id!r} covers seq {expected}", hint="run eventstore verify"
            )
        ordered = group[::-1] if self.descending else group
        for one, following in pairwise(ordered):
            if one.range.last_seq + 1 != following.range.first_seq:
                raise CoverageError(
                    f"no segment of {self.tenant_id!r} covers seq {one.range.last_seq + 1}",
                    hint="run eventstore verify",
                )
        return first, last

    def _may_match(self, segment: Segment) -> bool:
        if segment.range.first_seq in self.without:
            return False
        start, end = self.wanted.recorded_from_us, self.wanted.recorded_to_us
        return (start is None or segment.max_recorded_at_us >= start) and (
            end is None or segment.min_recorded_at_us < end
        )

    def _read_group(
        self, group: Sequence[Segment], first: int, last: int, limit: int
    ) -> tuple[pa.Table, int, int]:
        """Matching events of the group, and the seqs that were looked at: all of the range, or, if a
        segment is damaged, those before it in reading order. Only what needs the damaged one fails."""
        readable = [s for s in group if self._may_match(s)]
        if not readable:
            return EVENT_SCHEMA.empty_table(), first, last
        try:
            return self._query(readable, first, last, limit), first, last
        except ArchiveDamageError:
            if len(group) == 1 and not self.partial:
                raise
        tables, rows = [EVENT_SCHEMA.empty_table()], 0
        for segment in group:
            if rows == limit or not self._may_match(segment):
                continue
            try:
                tables.append(self._query([segment], first, last, limit - rows))
            except ArchiveDamageError as e:
                if self.partial:
                    self._note_unreadable(segment, e)
                    continue
                if segment is group[0]:
                    raise
                r = segment.range
                first, last = (r.last_seq + 1, last) if self.descending else (first, r.first_seq - 1)
                break
            rows += tables[-1].num_rows
        return pa.concat_tables(tables), first, last

    def _query(self, segments: Sequence[Segment], first: int, last: int, limit: int) -> pa.Table:
        return self.tiers.archived(
            segments, self.wanted, first, last, descending=self.descending, limit=limit
        )

    def _note_unreadable(self, segment: Segment, error: ArchiveDamageError) -> None:
        r = segment.range
        found = Unreadable(
            segment.key, r.first_seq, r.last_seq, r.window.from_us, r.window.to_us, error.message
        )
        if found not in self.coverage.unreadable:
            self.coverage.unreadable.append(found)

    def _advance(self, events: pa.Table, first: int, last: int, *, full: bool) -> tuple[int, int]:
        """Move past what a step has looked at; a full step may have more behind its last event."""
        if events.num_rows:
            per_event = max(1, events.nbytes // events.num_rows)
            self.step_rows = min(_STEP_ROWS_MAX, max(16, _STEP_BYTES // per_event))
        if full:
            at = events.column("seq")[events.num_rows - 1].as_py()
            first, last = (at, last) if self.descending else (first, at)
        if self.descending:
            self.upper = first - 1
        else:
            self.lower = last + 1
        return first, last

    def _check_range(self, events: pa.Table, first: int, last: int) -> None:
        """Where no condition leaves events out, the step must hold every seq of its range."""
        if not self.wanted.is_range or first > last:
            return
        seqs = events.column("seq").to_numpy()
        expected = np.arange(first, last + 1)
        if not np.array_equal(seqs, expected[::-1] if self.descending else expected):
            raise CoverageError(
                f"{self.tenant_id!r} should hold seq {first} to {last}, but {len(seqs)} events were found",
                hint="run eventstore verify",
            )
