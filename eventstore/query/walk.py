"""One ordered log over both tiers: every event exactly once, at any instant of a compaction.

The log is read in steps by seq, each from its own snapshot. Events never change and seqs have no gap, so
the steps join without one, as long as each takes its seqs from the right tier: at or below the watermark
from the archive, above it from Postgres. A hot step looks at the watermark again after it has its rows;
if the watermark has moved past the step's start, a window may have been dropped under it, and the step is
taken anew. An archive step that fails looks at the catalog's version again: if a segment was moved, repaired
or destroyed after it had been listed, that step is taken anew too.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeGuard

import numpy as np
import pyarrow as pa

from eventstore.clock import clamp_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError, CoverageError, TargetUnavailableError
from eventstore.model.event import uuid7_time_us
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.query.coverage import Coverage, Meter, Unreadable, opened_bytes
from eventstore.query.tiers import ArchivePart, ExpiredRange, LogState, Tiers, span

__all__ = ["Walk"]

# A hot step looks at no more than this many seqs: a long statement would hold up the drop of a window.
_HOT_SPAN = 100_000
# An archive step takes as many segments as hold about this many events, so that memory stays bounded.
_ARCHIVE_EVENTS = 250_000
# A brisk walk begins with smaller steps, and doubles or halves them by how long they take.
_BRISK_SPAN = 4_000
_BRISK_EVENTS = 32_000
_BRISK_S = (0.06, 0.2)
# No step is made smaller than for this many.
_STEP_EVENTS_MIN = 1000
# Where Bloom filters help, each further step may look at this many times more segments than the last, unless
# it has to be brisk.
_SELECTIVE_GROWTH = 16
# Where a few events of an entity are wanted, a first step looks at so many segments, or one for each eight of
# the events; each further step at so many times more. Small windows have many: opening each takes its time.
_FILES_FIRST = 8
_EVENTS_A_FILE = 8
_FILES_GROWTH = 4
# Steps are sized by what events turn out to take in memory: a first small one, then about this much.
_STEP_BYTES = 32 * 2**20
_STEP_ROWS_FIRST = 256
_STEP_ROWS_MAX = 50_000
# A step in the archive is taken anew at most so often; each time, the catalog must have changed meanwhile.
_ANEW_MAX = 5
_VERIFY = "run eventstore verify"


@dataclass(slots=True)
class Walk:
    """One pass over a log. `lower` and `upper` are the seqs that are still to be looked at."""

    tiers: Tiers
    tenant_id: str
    wanted: EventFilter
    descending: bool
    remaining: int
    partial: bool
    coverage: Coverage
    meter: Meter | None = None
    lower: int = 1
    upper: int = 0
    step_rows: int = _STEP_ROWS_FIRST
    step_bytes: int = _STEP_BYTES  # about what a step takes in memory
    every_step: bool = False  # tell of steps that found nothing, too: of how far the walk has come
    brisk: bool = False  # no step takes long: for whoever stops by the clock, and for costly conditions
    hot_span: int = 0  # of seqs, for the next hot step
    budget: int = 0  # of events, for the next archive step
    files: int = 0  # of segments that may hold what is looked for, for the next archive step
    listed: LogState | None = None  # the state for which `parts` and `without` were listed
    parts: Sequence[ArchivePart] = ()
    without: set[int] = field(default_factory=set)  # segments that cannot hold the entity, by first seq
    away: dict[str, TargetUnavailableError] = field(default_factory=dict)  # targets that did not answer
    anew_left: int = _ANEW_MAX

    def run(self, after: int | None) -> Iterator[pa.Table]:
        state = self.tiers.state(self.tenant_id)
        self._bound(state, after)
        self.brisk = self.brisk or self.wanted.text is not None
        self.hot_span = _BRISK_SPAN if self.brisk else _HOT_SPAN
        self.budget = _BRISK_EVENTS if self.brisk else _ARCHIVE_EVENTS
        few = self.remaining // _EVENTS_A_FILE
        self.files = max(_FILES_FIRST, few) if self.wanted.is_selective else sys.maxsize
        while self.lower <= self.upper and self.remaining > 0:
            at = self.upper if self.descending else self.lower
            if at <= state.archived_through:
                events, state = self._archive(state)
            else:
                events, state = self._hot(state)
            if events is not None and (events.num_rows or self.every_step):
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
                first = max(first, last - self.hot_span + 1)
            else:
                last = min(last, first + self.hot_span - 1)
        limit = min(self.remaining, self.step_rows)
        begun_s = time.monotonic()
        events = self._query_hot(first, last, limit)
        after = self.tiers.state(self.tenant_id)
        if after.archived_through >= first:
            return None, after
        first, last = self._looked_at(events, first, last, full=events.num_rows == limit)
        self._check_range(events, [(first, last)])
        self._advance(events, first, last)
        self.coverage.add_hot(first, last)
        self.hot_span = min(_HOT_SPAN, max(_STEP_EVENTS_MIN, self._paced(self.hot_span, begun_s)))
        return events, after

    def _archive(self, state: LogState) -> tuple[pa.Table, LogState]:
        """One archive step, taken anew where it failed over a catalog that has changed since."""
        self.anew_left = _ANEW_MAX
        while True:
            try:
                return self._archive_step(state), state
            except (ArchiveDamageError, CoverageError, TargetUnavailableError):
                newer = self._newer(state)
                if newer is None:
                    raise
                self.anew_left -= 1
                state = newer

    def _newer(self, state: LogState) -> LogState | None:
        """The log's state now, if another catalog than that of `state` is to be tried; None: what failed
        stands."""
        if self.anew_left == 0:
            return None
        now = self.tiers.state(self.tenant_id)
        moved = (now.catalog_version, now.archived_through) != (state.catalog_version, state.archived_through)
        return now if moved else None

    def _archive_step(self, state: LogState) -> pa.Table:
        """Changes nothing of this walk unless it succeeds."""
        self._list(state)
        begun_s = time.monotonic()
        end = min(self.upper, state.archived_through)
        group = self._next_parts(end)
        first, last = self._group_span(group, end)
        limit = min(self.remaining, self.step_rows)
        if self.wanted.is_range:
            first, last = self._cut(group, first, last, limit)
            group = [part for part in group if span(part)[0] <= last and span(part)[1] >= first]
        events, first, last, unreadable = self._read_group(state, group, first, last, limit)
        first, last = self._looked_at(events, first, last, full=events.num_rows == limit)
        group = [part for part in group if span(part)[0] <= last and span(part)[1] >= first]
        expired = [part for part in group if isinstance(part, ExpiredRange)]
        unreadable = [u for u in unreadable if u.first_seq <= last and u.last_seq >= first]
        archived = _outside(first, last, [span(part) for part in expired])
        damaged = [(u.first_seq, u.last_seq) for u in unreadable]
        self._check_range(events, [whole for a, b in archived for whole in _outside(a, b, damaged)])
        self._advance(events, first, last)
        for a, b in reversed(archived) if self.descending else archived:
            self.coverage.add_archive(a, b)
        for part in expired:
            self.coverage.add_expired(
                max(first, part.first_seq), min(last, part.last_seq), part.certificate_no
            )
        self.coverage.add_windows(part for part in group if isinstance(part, Segment))
        away = {(u.target, u.key) for u in unreadable}
        self._count([p for p in group if self._may_match(p) and (p.target, p.key) not in away], first, last)
        self.coverage.unreadable += [u for u in unreadable if u not in self.coverage.unreadable]
        if self.wanted.is_selective:
            self.files *= _FILES_GROWTH
            grown = self.budget * _SELECTIVE_GROWTH
            self.budget = max(_STEP_EVENTS_MIN, self._paced(self.budget, begun_s)) if self.brisk else grown
        else:
            self.budget = min(_ARCHIVE_EVENTS, max(_STEP_EVENTS_MIN, self._paced(self.budget, begun_s)))
        return events

    def _paced(self, size: int, begun_s: float) -> int:
        """How large the next step is to be, after one of a size that began then."""
        if not self.brisk:
            return size
        took_s = time.monotonic() - begun_s
        return size * 2 if took_s < _BRISK_S[0] else size // 2 if took_s > _BRISK_S[1] else size

    def _count(self, read: Sequence[Segment], first: int, last: int) -> None:
        """Count what a step has opened of its segments: the row groups that hold what was looked at."""
        opened = sum(opened_bytes(segment, first, last) for segment in read)
        self.coverage.archive_bytes += opened
        if self.meter is not None and opened:
            self.meter.add(opened)

    def _list(self, state: LogState) -> None:
        """List the archive as of a state, unless it is listed."""
        if self.listed is state:
            return
        self.parts = self.tiers.archive(self.tenant_id, state)
        if self.wanted.entity_id is not None:
            self.without = self.tiers.without_entity(
                self.tenant_id, state.archived_through, self.wanted.entity_id
            )
        self.listed = state

    def _next_parts(self, end: int) -> list[ArchivePart]:
        """The next parts in reading order that hold about `budget` events, in at most `files` segments; those
        that recorded times or the entity exclude cost nothing, and expired ones hold none."""
        begin = bisect_left(self.parts, self.lower, key=lambda part: span(part)[1])
        stop = bisect_right(self.parts, end, key=lambda part: span(part)[0])
        inside = range(begin, stop)
        group: list[ArchivePart] = []
        events = files = 0
        most = min(self.budget, max(self.remaining, 1)) if self.wanted.is_range else self.budget
        for index in reversed(inside) if self.descending else inside:
            part = self.parts[index]
            group.append(part)
            if self._may_match(part):
                events += part.range.event_count
                files += 1
            if events >= most or files >= self.files:
                break
        return group

    def _group_span(self, group: Sequence[ArchivePart], end: int) -> tuple[int, int]:
        if not group:
            raise CoverageError(
                f"no segment of {self.tenant_id!r} covers seq {self.lower} to {end}, though archived",
                hint=_VERIFY,
            )
        ordered = group[::-1] if self.descending else group
        first = max(self.lower, span(ordered[0])[0])
        last = min(end, span(ordered[-1])[1])
        expected = end if self.descending else self.lower
        if expected != (last if self.descending else first):
            raise CoverageError(f"no segment of {self.tenant_id!r} covers seq {expected}", hint=_VERIFY)
        for one, following in pairwise(ordered):
            if span(one)[1] + 1 != span(following)[0]:
                raise CoverageError(
                    f"no segment of {self.tenant_id!r} covers seq {span(one)[1] + 1}, or two do", hint=_VERIFY
                )
        return first, last

    def _cut(self, group: Sequence[ArchivePart], first: int, last: int, limit: int) -> tuple[int, int]:
        """Where every seq is wanted, the range within which `limit` events lie: what is behind them need not
        be sorted."""
        left = limit
        for part in group:
            start, end = max(first, span(part)[0]), min(last, span(part)[1])
            if isinstance(part, ExpiredRange):
                continue
            if end - start + 1 >= left:
                return (end - left + 1, last) if self.descending else (first, start + left - 1)
            left -= end - start + 1
        return first, last

    def _may_match(self, part: ArchivePart) -> TypeGuard[Segment]:
        if isinstance(part, ExpiredRange) or part.range.first_seq in self.without:
            return False
        start, end = self.wanted.recorded_from_us, self.wanted.recorded_to_us
        return (start is None or part.max_recorded_at_us >= start) and (
            end is None or part.min_recorded_at_us < end
        )

    def _read_group(
        self, state: LogState, group: Sequence[ArchivePart], first: int, last: int, limit: int
    ) -> tuple[pa.Table, int, int, list[Unreadable]]:
        """Matching events of the group, and the seqs that were looked at: all of the range, or, if a
        segment cannot be read, those before it in reading order. Only what needs that one fails; for a
        partial answer it is passed over, and named."""
        readable = [part for part in group if self._may_match(part)]
        if not readable:
            return EVENT_SCHEMA.empty_table(), first, last, []
        if self.meter is not None:
            self.meter.check()
        if not any(map(self._is_away, readable)):
            try:
                return self._query(readable, first, last, limit), first, last, []
            except (ArchiveDamageError, TargetUnavailableError):
                if (len(group) == 1 and not self.partial) or self._newer(state) is not None:
                    raise
        tables, rows, unreadable = [EVENT_SCHEMA.empty_table()], 0, []
        for segment in readable:
            if rows == limit:
                break
            try:
                if self._is_away(segment):
                    raise self.away[segment.target]
                tables.append(self._query([segment], first, last, limit - rows))
            except (ArchiveDamageError, TargetUnavailableError) as e:
                if isinstance(e, TargetUnavailableError):
                    self.away[segment.target] = e
                if self._newer(state) is not None:
                    raise
                if self.partial:
                    unreadable.append(_unreadable(segment, e))
                    continue
                if segment is group[0]:
                    raise
                r = segment.range
                first, last = (r.last_seq + 1, last) if self.descending else (first, r.first_seq - 1)
                break
            rows += tables[-1].num_rows
        return pa.concat_tables(tables), first, last, unreadable

    def _is_away(self, segment: Segment) -> bool:
        """Whether a segment needs a target that did not answer this walk before: to ask it again for each
        of its segments would take a time-out each."""
        return segment.target in self.away and not self.tiers.at_hand(segment)

    def _query_hot(self, first: int, last: int, limit: int) -> pa.Table:
        return self.tiers.hot(
            self.tenant_id, self.wanted, first, last, descending=self.descending, limit=limit
        )

    def _query(self, segments: Sequence[Segment], first: int, last: int, limit: int) -> pa.Table:
        return self.tiers.archived(
            segments, self.wanted, first, last, descending=self.descending, limit=limit
        )

    def _looked_at(self, events: pa.Table, first: int, last: int, *, full: bool) -> tuple[int, int]:
        """The range that a step has looked at; a full one may have more behind its last event."""
        if not full:
            return first, last
        at = events.column("seq")[events.num_rows - 1].as_py()
        return (at, last) if self.descending else (first, at)

    def _advance(self, events: pa.Table, first: int, last: int) -> None:
        """Move past what a step has looked at."""
        if events.num_rows:
            per_event = max(1, events.nbytes // events.num_rows)
            self.step_rows = min(_STEP_ROWS_MAX, max(16, self.step_bytes // per_event))
        if self.descending:
            self.upper = first - 1
        else:
            self.lower = last + 1

    def _check_range(self, events: pa.Table, ranges: Sequence[tuple[int, int]]) -> None:
        """Where no condition leaves events out, the step must hold every seq of its ranges (in the order of
        seq, each with its ends)."""
        if not self.wanted.is_range:
            return
        seqs = events.column("seq").to_numpy()
        pieces = [np.arange(first, last + 1) for first, last in ranges]
        expected = np.concatenate(pieces) if pieces else np.arange(0)
        if not np.array_equal(seqs, expected[::-1] if self.descending else expected):
            named = ", ".join(f"{first} to {last}" for first, last in ranges) or "nothing"
            raise CoverageError(
                f"{self.tenant_id!r} should hold seq {named}, but {len(seqs)} events were found", hint=_VERIFY
            )


def _outside(first: int, last: int, holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of a range lies in none of the holes, in the order of seq."""
    found = []
    for start, end in sorted(holes):
        if start > first:
            found.append((first, min(last, start - 1)))
        first = max(first, end + 1)
    if first <= last:
        found.append((first, last))
    return found


def _unreadable(segment: Segment, error: ArchiveDamageError | TargetUnavailableError) -> Unreadable:
    r = segment.range
    return Unreadable(
        segment.target,
        segment.key,
        r.first_seq,
        r.last_seq,
        r.window.from_us,
        r.window.to_us,
        error.message,
    )
