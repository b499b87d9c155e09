"""An entity's life, as far as it is looked at: its newest events, and what they say together.

However long a history, no more of it is read than was asked for, or some megabytes (`Depth`); whatever is
counted is then of that part, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

from eventstore.clock import clamp_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.model.query import EventFilter, Order
from eventstore.query.as_of import EntityState, entity_as_of, fold_state
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader, Page

__all__ = ["Depth", "Life", "Touch", "entity_life", "entity_page", "merge_coverage", "state_at"]


class Depth(StrEnum):
    """How far back an entity's life is read: an archived history lies scattered over segments, each of which
    takes its time."""

    GLANCE = ""  # what a page shows at once
    PART = "part"  # what is said of most entities, and of the busy ones lately
    ALL = "all"  # as far as memory allows


# The most events of each depth, and the most bytes.
EVENTS_MAX = {Depth.GLANCE: 50, Depth.PART: 500, Depth.ALL: 100_000}
_BYTES_MAX = {Depth.GLANCE: 16 * 2**20, Depth.PART: 16 * 2**20, Depth.ALL: 64 * 2**20}
# A type that nobody named is that of so many events, if they agree.
_UNTYPED_EVENTS = 300
# Events of one field are picked out of so many: a look for a field that an entity hardly ever has does not
# read its whole history at once.
_PICKED_FROM_MAX = 1_000
_FIRST_EVENTS = 100


@dataclass(frozen=True, slots=True)
class Touch:
    """Somebody who has touched an entity: how often, and when first and last, in µs."""

    actor: str
    events: int
    first_us: int
    last_us: int


@dataclass(slots=True)
class Life:
    """`events` are the newest ones, newest first; `complete` says that these are all there are.

    `types` counts them by type: more than one where no type was asked for and several have the id.
    """

    entity_id: str
    entity_type: str | None
    events: pa.Table
    complete: bool
    types: Mapping[str, int]
    coverage: Coverage

    @property
    def last_seq(self) -> int:
        return int(self.events.column("seq")[0].as_py())

    @property
    def last_us(self) -> int:
        """When it was last changed."""
        return int(self.events.column("recorded_at").cast(pa.int64())[0].as_py())

    def touches(self) -> list[Touch]:
        """Who has touched it, the most active first."""
        found = self.events.group_by("actor").aggregate(
            [("seq", "count"), ("recorded_at", "min"), ("recorded_at", "max")]
        )
        found = found.sort_by([("seq_count", "descending"), ("recorded_at_max", "descending")])
        first, last = (
            found.column(name).cast(pa.int64()).to_pylist() for name in ("recorded_at_min", "recorded_at_max")
        )
        rows = zip(
            found.column("actor").to_pylist(), found.column("seq_count").to_pylist(), first, last, strict=True
        )
        return [Touch(*row) for row in rows]

    def fields(self) -> list[tuple[str, int]]:
        """The fields that were changed, by name, with the number of events."""
        return sorted(_counts(self.events.column("field")).items())

    def tiers(self) -> dict[str, int]:
        """How many of the events came from each tier."""
        seqs = self.events.column("seq").to_numpy()
        hot = sum(int(((seqs >= a) & (seqs <= b)).sum()) for a, b in self.coverage.hot)
        return {"hot": hot, "archive": len(seqs) - hot}


def entity_life(
    reader: LogReader,
    tenant_id: str,
    entity_id: str,
    *,
    entity_type: str | None = None,
    depth: Depth = Depth.PART,
) -> Life:
    """The newest events of an entity. What cannot be read is named in the coverage.

    Raises:
        RateLimitedError: the meter has come to its end.
        TenantNotFoundError
    """
    wanted = EventFilter(entity_type=entity_type, entity_id=entity_id)
    tables, after, coverage = [EVENT_SCHEMA.empty_table()], None, Coverage()
    most = max(EVENTS_MAX[depth], _UNTYPED_EVENTS if entity_type is None else 0)
    rows, limit = 0, min(most, _FIRST_EVENTS)
    while True:
        page = reader.page(tenant_id, wanted, order=Order.DESC, after=after, limit=limit, partial=True)
        merge_coverage(coverage, page.coverage)
        tables.append(page.events)
        rows, after = rows + page.events.num_rows, page.next_after
        if after is None or rows >= most or page.events.num_rows < limit:
            break
        # The size of the first ones says how many more are to be taken into memory.
        per_event = max(1, page.events.nbytes // page.events.num_rows)
        limit = min(most, _BYTES_MAX[depth] // per_event) - rows
        if limit < 1:
            break
    events = pa.concat_tables(tables).combine_chunks()
    types = _counts(events.column("entity_type"))
    if entity_type is None and len(types) == 1:
        (entity_type,) = types
    return Life(entity_id, entity_type, events, after is None, types, coverage)


def entity_page(
    reader: LogReader,
    tenant_id: str,
    wanted: EventFilter,
    *,
    order: Order,
    after: int | None,
    limit: int,
) -> Page:
    """A page of an entity's events, of one `field` if that is wanted. Such a page may have fewer events than
    `limit`, even none, although there are more: it goes on after `next_after`."""
    if wanted.field is None:
        return reader.page(tenant_id, wanted, order=order, after=after, limit=limit, partial=True)
    every = replace(wanted, field=None)
    page = reader.page(tenant_id, every, order=order, after=after, limit=_PICKED_FROM_MAX, partial=True)
    found = page.events.filter(pc.equal(page.events.column("field"), wanted.field))
    if found.num_rows <= limit:
        return Page(found, page.next_after, page.coverage)
    return Page(found.slice(0, limit), found.column("seq")[limit - 1].as_py(), page.coverage)


def state_at(
    reader: LogReader, tenant_id: str, life: Life, as_of_us: int | None, *, depth: Depth = Depth.PART
) -> tuple[EntityState, bool]:
    """The entity as its events up to a recorded time (inclusive; None: now) leave it, and whether as many of
    them were looked at as count: if not, fields that were set before are missing.

    Raises:
        InputError: its fields are larger than can be held at once.
        RateLimitedError, TenantNotFoundError
    """
    assert life.entity_type is not None
    if depth is Depth.ALL and not life.complete:
        state = entity_as_of(
            reader,
            tenant_id,
            life.entity_id,
            entity_type=life.entity_type,
            as_of_us=as_of_us,
            partial=True,
        )
        merge_coverage(life.coverage, state.coverage)
        return state, True
    events, complete = life.events, life.complete
    if as_of_us is not None and complete:
        events = events.filter(pc.less_equal(events.column("recorded_at").cast(pa.int64()), as_of_us))
    elif as_of_us is not None:
        wanted = EventFilter(
            entity_type=life.entity_type,
            entity_id=life.entity_id,
            recorded_to_us=clamp_us(as_of_us + 1),
        )
        page = reader.page(tenant_id, wanted, order=Order.DESC, limit=EVENTS_MAX[depth], partial=True)
        merge_coverage(life.coverage, page.coverage)
        events, complete = page.events, page.next_after is None
    state = fold_state(life.entity_type, life.entity_id, [events])
    return state, complete or state.ended is not None  # what came before an end does not count


def merge_coverage(into: Coverage, more: Coverage) -> None:
    """Add what another look at the same log has covered."""
    for first, last in more.hot:
        into.add_hot(first, last)
    for first, last in more.archive:
        into.add_archive(first, last)
    for first, last, number in more.expired:
        into.add_expired(first, last, number)
    into.windows |= more.windows
    into.unreadable += [one for one in more.unreadable if one not in into.unreadable]
    into.archive_bytes += more.archive_bytes


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    found = pc.value_counts(column.combine_chunks())
    return {one["values"]: one["counts"] for one in found.to_pylist()}
