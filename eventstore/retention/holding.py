"""Which legal holds cover a segment: by its times, then its entity filter, then its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from eventstore.archive.targets import Targets
from eventstore.archive.verify import read_segment
from eventstore.catalog.removals import Removal
from eventstore.errors import EventStoreError
from eventstore.governance.holds import covering_holds
from eventstore.model.hold import Hold
from eventstore.model.segment import Segment

__all__ = ["HeldSegment", "holds_over"]


@dataclass(frozen=True, slots=True)
class HeldSegment:
    """As much of a segment as deciding on holds needs (times in µs, both inclusive)."""

    target: str
    key: str
    sha256: bytes
    first_us: int
    last_us: int
    entity_filter: bytes | None

    @staticmethod
    def of_segment(segment: Segment, entity_filter: bytes | None) -> HeldSegment:
        return HeldSegment(
            segment.target,
            segment.key,
            segment.sha256,
            segment.min_recorded_at_us,
            segment.max_recorded_at_us,
            entity_filter,
        )

    @staticmethod
    def of_removal(removal: Removal) -> HeldSegment:
        return HeldSegment(
            removal.target,
            removal.key,
            removal.sha256,
            removal.min_recorded_at_us,
            removal.max_recorded_at_us,
            removal.entity_filter,
        )


def holds_over(
    holds: Sequence[Hold],
    segments: Sequence[HeldSegment],
    targets: Targets,
    *,
    on_unreadable: Callable[[EventStoreError], None] | None = None,
) -> list[Hold]:
    """The holds that cover an event of any of the segments. A segment that cannot be read counts as held;
    `on_unreadable` is told why."""
    found: dict[object, Hold] = {}
    for segment in segments:
        left = [hold for hold in holds if hold.hold_id not in found]
        for hold in covering_holds(
            left,
            first_us=segment.first_us,
            last_us=segment.last_us,
            entity_filter=segment.entity_filter,
            contains=partial(_present, segment, targets),
            on_unreadable=on_unreadable,
        ):
            found[hold.hold_id] = hold
    return list(found.values())


def _present(segment: HeldSegment, targets: Targets, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the entities (type, id) that have an event in the segment."""
    content = read_segment(targets[segment.target], segment.key, sha256=segment.sha256)
    found: set[tuple[str, str]] = set()
    for events in content.row_groups():
        pairs = events.select(["entity_type", "entity_id"])
        distinct = pa.Table.from_batches([pairs]).group_by(["entity_type", "entity_id"]).aggregate([])
        found.update(zip(*(distinct.column(i).to_pylist() for i in (0, 1)), strict=True))
    return found & wanted
