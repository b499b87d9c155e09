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
from eventstore.errors import FeedResetError
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
    """Events by seq, and the slot of each: of each slot all that is wanted behind its cursor up to
    `through[slot]`. What was looked at begins behind `after`."""

    events: pa.Table
    slot: npt.NDArray[np.int64]
    after: int
    through: Mapping[int, int]

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

    Slots that lie behind the others take half of what there is room and time for at the most: what one of
    them does not acknowledge, or has to catch up with, does not keep the others waiting. (With a limit of 1
    there is nothing to part.)

    Raises:
        FeedResetError: the events behind the lowest cursor were destroyed.
        ArchiveDamageError, TargetUnavailableError, RateLimitedError, TenantNotFoundError
    """
    left = dict(cursors)
    through = dict(cursors)
    found = [EVENT_SCHEMA.empty_table()]
    of = [np.empty(0, dtype=np.int64)]
    room = _Room(limit, _BYTES_MAX, time.monotonic() + _SEARCH_S)
    while left:
        try:
            scanned, is_over = _read_on(reader, tenant_id, wanted, slots, left, room, found, of)
        except FeedResetError:
            if len(left) < len(cursors):
                break  # told when those that lie behind have come so far: `seek` moves all of them
            raise
        for slot in [slot for slot, cursor in left.items() if cursor <= scanned or is_over]:
            through[slot] = max(through[slot], scanned)
            del left[slot]
    return Delivery(pa.concat_tables(found), np.concatenate(of), min(cursors.values()), through)


@dataclass(slots=True)
class _Room:
    """What an answer still has room for, and until when it is searched for, by the monotonic clock."""

    events: int
    size_bytes: int
    until: float

    def half(self) -> _Room:
        now = time.monotonic()
        return _Room(max(1, self.events // 2), self.size_bytes // 2, now + (self.until - now) / 2)

    @property
    def is_over(self) -> bool:
        return self.events <= 0 or self.size_bytes <= 0 or time.monotonic() >= self.until

    def take(self, events: pa.Table) -> None:
        self.events -= events.num_rows
        self.size_bytes -= events.nbytes


def _read_on(
    reader: FeedReader,
    tenant_id: str,
    wanted: EventFilter,
    slots: int,
    cursors: Mapping[int, int],
    room: _Room,
    found: list[pa.Table],
    of: list[npt.NDArray[np.int64]],
) -> tuple[int, bool]:
    """Read behind the lowest cursor, and add what is found. Up to where it was read; and whether that is all
    that this answer can have: else half of the room was taken before the next of the cursors."""
    after = min(cursors.values())
    following = min((cursor for cursor in cursors.values() if cursor > after), default=-1)
    behind = np.full(slots, np.iinfo(np.int64).max)
    for slot, cursor in cursors.items():
        behind[slot] = cursor
    early = room.half()
    scanned = after
    try:
        for look in reader.read(tenant_id, after, wanted):
            events, theirs = _of_slots(look.events, slots, behind)
            before = int(np.searchsorted(_seqs(events), following, side="right"))
            most = early.events if before > max(early.events, 0) else room.events
            scanned = look.through
            if len(theirs) > most:
                events, theirs = events.slice(0, most), theirs[:most]
                scanned = int(events.column("seq")[-1].as_py())
            found.append(events)
            of.append(theirs)
            room.take(events)
            early.take(events)
            if room.is_over:
                break
            if early.is_over and scanned < following:
                return scanned, False
    except FeedResetError:
        if scanned == after:
            raise
        # Told by the next poll behind this: what exists before is given first.
    return scanned, True


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
