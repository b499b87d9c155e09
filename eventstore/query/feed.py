"""The feed: a log read forward from a cursor, up to its end as it is, without a gap or a repeat.

It is the reader's walk (`query.walk`) in small steps, with one thing more: where the walk comes upon events
that were destroyed, the feed stops and says so, where a page would pass over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from eventstore.errors import FeedResetError, InputError
from eventstore.model.query import FEED_FILTERS, EventFilter
from eventstore.query.coverage import Coverage, Meter
from eventstore.query.tiers import ExpiredRange, Tiers, span
from eventstore.query.walk import Walk

__all__ = ["FeedReader", "Look", "matching"]

# A step takes about this much in memory. Every consumer that reads by itself holds one.
_STEP_BYTES = 2 * 2**20
_NO_LIMIT = 2**62
_NAMED_MAX = 1000  # certificates that one reset names


@dataclass(frozen=True, slots=True)
class Look:
    """What a step found: the matching events from behind the step before up to seq `through`; often none."""

    events: pa.Table
    through: int


class FeedReader:
    """Reads feeds. `meter` counts what is scanned of the archive."""

    def __init__(self, tiers: Tiers, meter: Meter | None = None) -> None:
        self._tiers = tiers
        self._meter = meter

    def metered(self, meter: Meter) -> FeedReader:
        """The same reader, with another meter."""
        return FeedReader(self._tiers, meter)

    def head(self, tenant_id: str) -> int:
        """The log's last seq now.

        Raises:
            TenantNotFoundError
        """
        return self._tiers.state(tenant_id).last_seq

    def check_cursor(self, tenant_id: str, since: int) -> int:
        """The log's last seq now, if a feed can go on after `since`.

        Raises:
            InputError: it lies beyond the log's end. What comes next would have seqs that the consumer
                believes it has: it is of another log, or the store was brought back to an earlier time.
            TenantNotFoundError
        """
        last_seq = self.head(tenant_id)
        if since > last_seq:
            raise InputError(
                f"the cursor {since} lies beyond the log of {tenant_id!r}, which ends at seq {last_seq}",
                hint="a cursor is the seq of the last event that was received, 0 for the beginning",
            )
        return last_seq

    def read(
        self, tenant_id: str, after: int, wanted: EventFilter | None = None, *, limit: int | None = None
    ) -> Iterator[Look]:
        """The matching events behind a seq up to the log's end as it is at the first step, in steps, at most
        `limit` of them. Each step takes its own snapshot; nothing is held between two.

        Raises:
            FeedResetError: the next events were destroyed. All before them were given.
            ArchiveDamageError, TargetUnavailableError, CoverageError: a step cannot be read.
            RateLimitedError: the meter has come to its end.
            TenantNotFoundError
        """
        coverage = Coverage()
        walk = Walk(
            self._tiers,
            tenant_id,
            wanted or EventFilter(),
            descending=False,
            remaining=_NO_LIMIT if limit is None else limit,
            partial=False,
            coverage=coverage,
            meter=self._meter,
            step_bytes=_STEP_BYTES,
            every_step=True,
        )
        at = after
        for events in walk.run(after):
            if coverage.expired:
                gone = min(first for first, _, _ in coverage.expired)
                if gone > at + 1:
                    yield Look(events.filter(pc.less(events.column("seq"), gone)), gone - 1)
                raise self._reset(tenant_id, gone)
            at = walk.lower - 1
            yield Look(events, at)

    def _reset(self, tenant_id: str, gone: int) -> FeedResetError:
        """What to say where the event `gone` is the first that was destroyed."""
        state = self._tiers.state(tenant_id)
        expired: list[tuple[int, int, int]] = []
        at = gone
        for part in self._tiers.archive(tenant_id, state):
            first, last = span(part)
            if last < at:
                continue
            if not isinstance(part, ExpiredRange):
                break
            expired.append((part.certificate_no, max(first, gone), last))
            at = last + 1
        exists = at <= state.last_seq
        found = f"the oldest behind them is seq {at}" if exists else "there is none behind them yet"
        return FeedResetError(
            f"the events of {tenant_id!r} from seq {gone} to {at - 1} were destroyed; {found}",
            oldest_seq=at if exists else None,
            since=at - 1,
            expired=expired[:_NAMED_MAX],
            hint=f"go on with since={at - 1}; the certificates say what is gone, why, and who decided it",
        )


def matching(events: pa.Table, wanted: EventFilter) -> pa.Array | None:
    """Which events a filter of `FEED_FILTERS` wants, as booleans; None: all."""
    mask = None
    for name in FEED_FILTERS:
        value: str | None = getattr(wanted, name)
        if value is None:
            continue
        equal = pc.fill_null(pc.equal(events.column(name), value), False)
        mask = equal if mask is None else pc.and_(mask, equal)
    return mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask
