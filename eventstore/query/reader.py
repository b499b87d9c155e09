"""The reader: one ordered log over both tiers, in pages or as a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.errors import EventNotFoundError, InputError
from eventstore.model.query import EventFilter, Order
from eventstore.query.coverage import Coverage, Meter
from eventstore.query.tiers import ExpiredRange, Tiers
from eventstore.query.walk import Walk

__all__ = ["LogReader", "Page"]

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
    """Reads logs across tiers. `meter` counts what is scanned of the archive."""

    def __init__(self, tiers: Tiers, meter: Meter | None = None) -> None:
        self._tiers = tiers
        self._meter = meter

    def metered(self, meter: Meter) -> LogReader:
        """The same reader, with another meter."""
        return LogReader(self._tiers, meter)

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
        the page before ended. Ranges that were destroyed hold no events; the coverage names them.

        Raises:
            ArchiveDamageError, TargetUnavailableError: a segment that had to be read cannot be (unless
                `partial`: it is then named in the coverage).
            RateLimitedError: the meter has come to its end.
            TenantNotFoundError
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
        every_step: bool = False,
        brisk: bool = False,
    ) -> Iterator[pa.Table]:
        """All matching events in order, in tables of bounded size, up to the log's end as it is now.

        With `every_step` there is an empty table for each step that found nothing, so that whoever reads can
        stop there. `brisk` steps take no long time each.
        """
        walk = Walk(
            self._tiers,
            tenant_id,
            wanted,
            descending=order is Order.DESC,
            remaining=_NO_LIMIT if limit is None else limit,
            partial=partial,
            coverage=Coverage() if coverage is None else coverage,
            meter=self._meter,
            every_step=every_step,
            brisk=brisk,
        )
        return walk.run(after)

    def last_seq(self, tenant_id: str) -> int:
        """The seq at which the log ends now; 0: it is empty.

        Raises:
            TenantNotFoundError
        """
        return self._tiers.state(tenant_id).last_seq

    def expired(self, tenant_id: str, first_seq: int, last_seq: int) -> list[tuple[int, int, int]]:
        """What of a range was destroyed by now: first and last seqs, with the certificates' numbers.

        Raises:
            TenantNotFoundError
        """
        return [
            (max(part.first_seq, first_seq), min(part.last_seq, last_seq), part.certificate_no)
            for part in self._tiers.archive(tenant_id, self._tiers.state(tenant_id))
            if isinstance(part, ExpiredRange) and part.first_seq <= last_seq and part.last_seq >= first_seq
        ]

    def event(self, tenant_id: str, *, seq: int | None = None, event_id: bytes | None = None) -> Page:
        """One event, by seq or by event_id, as a page of one.

        Raises:
            EventNotFoundError: there is none; says so if it was destroyed, and under which certificate.
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
            raise _not_found(tenant_id, seq, event_id, page.coverage)
        return page

    def archived_versions(
        self, tenant_id: str, entities: Collection[tuple[str, str]], through: int
    ) -> Mapping[tuple[str, str], int]:
        """The last archived seq of each entity, up to a seq; 0 where there is none (any more): an entity
        whose events have all been destroyed begins anew, as the log shows it."""
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


def _not_found(
    tenant_id: str, seq: int | None, event_id: bytes | None, coverage: Coverage
) -> EventNotFoundError:
    numbers = sorted({number for _, _, number in coverage.expired})
    if event_id is not None:
        hint = f"it may be among those destroyed under certificate {', '.join(map(str, numbers))}"
        return EventNotFoundError(
            f"{tenant_id!r} has no event with event_id {event_id.hex()}", hint=hint if numbers else ""
        )
    if numbers:
        return EventNotFoundError(
            f"the event with seq {seq} of {tenant_id!r} was destroyed under certificate {numbers[0]}",
            hint="the certificate says what was destroyed with it, when, why, and who decided it",
        )
    return EventNotFoundError(f"{tenant_id!r} has no event with seq {seq}")
