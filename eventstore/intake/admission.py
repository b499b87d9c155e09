"""Which mapped rows the log takes, given where it stands: times that go back, ids that it has already.

Runs under the head's lock, so what it finds stays true until the commit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.clock import US_PER_S, Clock, to_iso
from eventstore.columns.canonical import fixed_bytes
from eventstore.hot.ids import stored_ids
from eventstore.hot.log import LogTransaction
from eventstore.intake.columns import MappedChunk
from eventstore.intake.rejects import Reject
from eventstore.intake.times import TIME_MIN_US
from eventstore.intake.verdicts import Mask
from eventstore.model.window import WindowUnit

__all__ = ["WINDOWS_MAX", "Admission", "admit", "pieces"]

# Windows that one transaction may make or write: each new leaf holds about six of Postgres' locks until
# the commit, and there are a few thousand (max_locks_per_transaction × max_connections).
WINDOWS_MAX = 64

_SPAN_US = {
    WindowUnit.HOUR: 3600 * US_PER_S,
    WindowUnit.DAY: 86400 * US_PER_S,
    WindowUnit.WEEK: 7 * 86400 * US_PER_S,
}


@dataclass(frozen=True, slots=True)
class Admission:
    """What is to be stored of a chunk, and at which times; and all of its rejects, in the order of rows."""

    pending: pa.RecordBatch
    recorded_us: npt.NDArray[np.int64]
    rejects: Sequence[Reject]


def admit(
    log: LogTransaction, chunk: MappedChunk, recorded_at_column: str | None, clock: Clock | None
) -> Admission:
    """Choose the rows of a chunk that go into the log now. Duplicates are neither stored nor rejects."""
    now_us = log.database_us if clock is None else clock.now_us()
    floor_us = log.head.last_recorded_at_us
    count = chunk.pending.num_rows
    times = chunk.recorded_us
    if times is None:
        times = np.full(count, max(now_us, floor_us), dtype=np.int64)
        latest_us = max(now_us, floor_us)
    else:
        latest_us = now_us
    stored, repeated = _known_ids(log, chunk.pending.column("event_id"))
    if stored or repeated:
        taken, reasons = _one_by_one(chunk, times, floor_us, latest_us, stored)
    else:
        taken, reasons = _all_at_once(times, floor_us, latest_us)
    if taken.all():
        return Admission(chunk.pending, times, chunk.rejects)
    rejects = [chunk.raw.reject(int(chunk.index[i]), recorded_at_column, reason) for i, reason in reasons]
    merged = sorted([*chunk.rejects, *rejects], key=lambda reject: reject.row)
    return Admission(chunk.pending.filter(pa.array(taken)), times[taken], merged)


_Verdict = tuple[Mask, list[tuple[int, str]]]  # rows taken; rows rejected, with the reason


def _all_at_once(times: npt.NDArray[np.int64], floor_us: int, latest_us: int) -> _Verdict:
    # A row is held against the latest row taken before it. Rows that go back do not raise that maximum,
    # and rows in the future are kept from raising it.
    future = times > latest_us
    reached = np.maximum.accumulate(np.concatenate([[floor_us], np.where(future, floor_us, times)]))[:-1]
    taken = ~future & (times >= reached)
    return taken, [
        (i, _reason(int(times[i]), int(reached[i]), latest_us)) for i in np.flatnonzero(~taken).tolist()
    ]


def _one_by_one(
    chunk: MappedChunk, times: npt.NDArray[np.int64], floor_us: int, latest_us: int, stored: set[bytes]
) -> _Verdict:
    """With repeated ids around: a row counts as stored before only if that earlier row was taken."""
    taken = np.zeros(len(times), dtype=np.bool_)
    reasons: list[tuple[int, str]] = []
    reached = floor_us
    ids = chunk.pending.column("event_id").to_pylist()
    for i, (event_id, at_us) in enumerate(zip(ids, times.tolist(), strict=True)):
        if event_id in stored:
            continue
        if at_us > latest_us or at_us < reached:
            reasons.append((i, _reason(at_us, reached, latest_us)))
            continue
        taken[i], reached = True, at_us
        if event_id is not None:
            stored.add(event_id)
    return taken, reasons


def _reason(at_us: int, reached_us: int, latest_us: int) -> str:
    if at_us > latest_us:
        return f"{to_iso(at_us)} lies in the future"
    return (
        f"{to_iso(at_us)} lies before {to_iso(reached_us)}, to which the log has come;"
        f" sort the file by that time, and import older files first"
    )


def _known_ids(log: LogTransaction, ids: pa.Array) -> tuple[set[bytes], bool]:
    """Which of these ids the hot tier has, and whether any comes twice."""
    if ids.null_count == len(ids):
        return set(), False
    given = ids.drop_null() if ids.null_count else ids
    repeated = pc.count_distinct(given).as_py() < len(given)
    return set(stored_ids(log, fixed_bytes(given, 16).tobytes())), repeated


def pieces(chunk: MappedChunk, unit: WindowUnit, now_us: int) -> Iterator[MappedChunk]:
    """A chunk in pieces that touch no more than `WINDOWS_MAX` windows each."""
    times = chunk.recorded_us
    if times is None or not len(times):
        yield chunk
        return
    # Rows in the future or back in time will be rejected, and touch none.
    reached = np.maximum.accumulate(np.where(times > now_us, TIME_MIN_US, times))
    windows = _window_numbers(reached, unit)
    changes = np.flatnonzero(np.diff(windows)) + 1
    cuts = [0, *changes[WINDOWS_MAX - 1 :: WINDOWS_MAX].tolist(), len(times)]
    if len(cuts) == 2:
        yield chunk
        return
    rejected = 0
    for start, stop in itertools.pairwise(cuts):
        # A piece covers the rows up to the one that begins the next.
        last = stop == len(times)
        through = chunk.raw.rows_through if last else int(chunk.raw.rows[chunk.index[stop]]) - 1
        first = rejected
        while rejected < len(chunk.rejects) and chunk.rejects[rejected].row <= through:
            rejected += 1
        yield MappedChunk(
            chunk.raw.through(through),
            chunk.pending.slice(start, stop - start),
            chunk.index[start:stop],
            times[start:stop],
            chunk.rejects[first:rejected],
        )


def _window_numbers(times: npt.NDArray[np.int64], unit: WindowUnit) -> npt.NDArray[np.int64]:
    if unit is WindowUnit.MONTH:
        return times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    # 1970-01-01 was a Thursday: three days on, weeks begin with Mondays.
    shift_us = 3 * 86400 * US_PER_S if unit is WindowUnit.WEEK else 0
    return (times + shift_us) // _SPAN_US[unit]
