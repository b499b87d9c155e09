"""What a member of a subscription is to be given next: the feed, cut to the member's slots."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.columns.canonical import int64_values
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.model.query import EventFilter
from eventstore.model.subscription import slot_of
from eventstore.query.feed import FeedReader

__all__ = ["Delivery", "next_delivery"]

# An answer is no larger than about this.
_BYTES_MAX = 8 * 2**20
# A search through a long log ends after so many seconds, with how far it has come.
_SEARCH_S = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """Events by seq, and the slot of each: all that is wanted behind the cursors up to `scanned`. What was
    looked at begins behind `after`."""

    events: pa.Table
    slot: npt.NDArray[np.int64]
    after: int
    scanned: int

    def kept(self, slots: Collection[int]) -> pa.Table:
        """The events of some slots alone."""
        return self.events.filter(pa.array(np.isin(self.slot, list(slots))))


def next_delivery(
    reader: FeedReader,
    tenant_id: str,
    wanted: EventFilter,
    slots: int,
    cursors: Mapping[int, int],
    limit: int,
) -> Delivery:
    """At most `limit` events behind the cursors of some slots, of those slots alone.

    Raises:
        FeedResetError: the events behind the lowest cursor were destroyed.
        ArchiveDamageError, TargetUnavailableError, RateLimitedError, TenantNotFoundError
    """
    after = min(cursors.values())
    behind = np.full(slots, np.iinfo(np.int64).max)
    for slot, cursor in cursors.items():
        behind[slot] = cursor
    until = time.monotonic() + _SEARCH_S
    found = [EVENT_SCHEMA.empty_table()]
    of = [np.empty(0, dtype=np.int64)]
    count = size_bytes = 0
    scanned = after
    for look in reader.read(tenant_id, after, wanted):
        events, theirs = _of_slots(look.events, slots, behind)
        room = limit - count
        scanned = look.through
        if len(theirs) > room:
            events, theirs = events.slice(0, room), theirs[:room]
            scanned = int(events.column("seq")[-1].as_py())
        found.append(events)
        of.append(theirs)
        count += len(theirs)
        size_bytes += events.nbytes
        if count >= limit or size_bytes >= _BYTES_MAX or time.monotonic() >= until:
            break
    return Delivery(pa.concat_tables(found), np.concatenate(of), after, scanned)


def _seqs(events: pa.Table) -> list[int]:
    return [seq for chunk in events.column("seq").chunks for seq in int64_values(chunk).tolist()]


def _of_slots(
    events: pa.Table, slots: int, behind: npt.NDArray[np.int64]
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Those events that lie behind the cursor of their slot, and their slots."""
    names = pc.binary_join_element_wise(events.column("entity_type"), events.column("entity_id"), "\0")
    slot = np.fromiter(
        (slot_of(name.encode(), slots) for name in names.to_pylist()), dtype=np.int64, count=events.num_rows
    )
    seqs = np.array(_seqs(events), dtype=np.int64)
    ours = seqs > behind[slot]
    return events.filter(pa.array(ours)), slot[ours]
