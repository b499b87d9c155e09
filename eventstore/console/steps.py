"""Events as steps of a life: what each changed, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eventstore.console.difference import Difference, difference
from eventstore.model.event import WHOLE_ENTITY
from eventstore.query.places import Place

__all__ = ["Step", "lacks_old_values", "steps_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """One event as a timeline shows it. Times are µs. `compared_with`: it says no old value, and its new one
    is compared with what the event of this seq had set the field to; None: with its own old value."""

    seq: int
    recorded_us: int
    occurred_us: int
    action: str
    actor: str
    source: str
    field: str
    difference: Difference
    compared_with: int | None
    place: Place


def lacks_old_values(events: pa.Table) -> bool:
    """Whether some event sets a field without saying what it was."""
    rows = events.select(["field", "old_value", "new_value"]).to_pylist()
    return any(map(_lacks, rows))


def _lacks(row: dict[str, Any]) -> bool:
    return row["old_value"] is None and row["new_value"] is not None and row["field"] != WHOLE_ENTITY


def steps_of(events: pa.Table, places: Sequence[Place], known: pa.Table | None = None) -> list[Step]:
    """The steps of one entity's events, in their order. `known` are these and others of its events, without a
    gap between them, from which old values are taken that events do not say themselves."""
    before = {} if known is None else _values_before(known)
    times = [events.column(name).cast(pa.int64()).to_pylist() for name in ("recorded_at", "occurred_at")]
    names = ["seq", "action", "actor", "source", "field", "old_value", "new_value"]
    found = []
    for row, place, recorded_us, occurred_us in zip(
        events.select(names).to_pylist(), places, *times, strict=True
    ):
        old, compared_with = row.pop("old_value"), None
        new = row.pop("new_value")
        if row["seq"] in before:
            compared_with, old = before[row["seq"]]
        found.append(
            Step(
                **row,
                recorded_us=recorded_us,
                occurred_us=occurred_us,
                difference=difference(old, new),
                compared_with=compared_with,
                place=place,
            )
        )
    return found


def _values_before(events: pa.Table) -> dict[int, tuple[int, str]]:
    """For each event that sets a field and does not say what it was: the seq of the one that had set it, and
    the value. An event about the whole entity may have set anything: nothing before it is known."""
    columns = ["seq", "field", "old_value", "new_value"]
    rows = {row["seq"]: row for row in events.select(columns).to_pylist()}
    last: dict[str, tuple[int, str]] = {}
    found = {}
    for seq in sorted(rows):
        row = rows[seq]
        if row["field"] == WHOLE_ENTITY:
            last.clear()
            continue
        if _lacks(row) and row["field"] in last:
            found[seq] = last[row["field"]]
        last.pop(row["field"], None)
        if row["new_value"] is not None:
            last[row["field"]] = (seq, row["new_value"])
    return found
