"""Appending requests to a tenant's log: idempotency, expected versions, all or nothing per request.

Several requests share one transaction (`hot.group`); one that is refused leaves the others untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from eventstore.clock import Clock
from eventstore.db.engine import Database
from eventstore.errors import BusyError, EventStoreError, Place, VersionConflict, VersionConflictError
from eventstore.hot.batch import pending_batch
from eventstore.hot.few import FEW_BYTES_MAX, FEW_MAX
from eventstore.hot.ids import stored_ids
from eventstore.hot.log import LeafCache, LogTransaction, log_transaction
from eventstore.model.event import NewEvent

__all__ = ["AppendRequest", "AppendResult", "Appender", "Entity", "Outcome"]

Entity = tuple[str, str]  # entity_type, entity_id
# The last seq of each entity in the archive (0 for none), looking at seqs up to the one given.
ArchivedVersions = Callable[[str, Collection[Entity], int], Mapping[Entity, int]]

_ARCHIVE_TRIES = 5


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Events to be stored together or not at all: as objects, or as columns (`hot.batch.PENDING_SCHEMA`).
    `lines` are theirs if they came as a stream, from 1.

    `size_bytes` is what they take in memory, about; queues are bounded by it.
    """

    events: Sequence[NewEvent] | pa.RecordBatch
    lines: Sequence[int] | None = None
    size_bytes: int = 0

    def place(self, index: int, field: str) -> Place:
        if self.lines is not None:
            return Place(field=field, line=self.lines[index])
        return Place(field=field, index=index)


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of a request. `seqs` and `event_ids` are per event, in the request's order.

    `count` events are new and have the seqs `first_seq` to `last_seq` (None when none is new);
    `duplicates` were stored before and are answered with their original seq.
    """

    first_seq: int | None
    last_seq: int | None
    count: int
    duplicates: int
    seqs: Sequence[int]
    event_ids: Sequence[bytes]


Outcome = AppendResult | EventStoreError


class _ArchiveNeededError(Exception):
    def __init__(self, entities: Collection[Entity], through: int) -> None:
        super().__init__()
        self.entities, self.through = entities, through


@dataclass(frozen=True, slots=True)
class _Planned:
    """A request that may be stored: its new events, and per event of the request its seq."""

    request: AppendRequest
    first_seq: int
    new: Sequence[NewEvent] | pa.RecordBatch
    seqs: Sequence[int]


class Appender:
    """Writes requests to logs. `clock` None takes Postgres' own clock, which every writer shares."""

    def __init__(
        self, database: Database, *, archived_versions: ArchivedVersions, clock: Clock | None = None
    ) -> None:
        self._app = database.app
        self._archived_versions = archived_versions
        self._clock = clock
        self._leaves: LeafCache = {}

    def append(self, tenant_id: str, requests: Sequence[AppendRequest]) -> list[Outcome]:
        """Store the requests of one tenant in one transaction, in order; when this returns they are durable.

        An outcome is an `AppendResult`, or the error for which that request alone was refused.

        Raises:
            TenantNotFoundError: it is not registered.
            BusyError: no connection, or the archive moved on too often while versions were looked up.
        """
        archived: dict[Entity, int] = {}
        through = 0
        for _ in range(_ARCHIVE_TRIES):
            try:
                scope = self._app.scope(tenant_id)
                with (
                    self._app.connection() as conn,
                    log_transaction(conn, tenant_id, self._leaves, scope=scope) as log,
                ):
                    return self._store(log, requests, archived, through)
            except _ArchiveNeededError as needed:
                # Outside the head's lock: nobody waits while the archive is read.
                through = needed.through
                try:
                    archived = dict(self._archived_versions(tenant_id, needed.entities, through))
                except EventStoreError as e:
                    if len(requests) == 1:
                        return [e]
                    # Whose entities they were is not told apart: each request is tried on its own.
                    return [self.append(tenant_id, [request])[0] for request in requests]
        raise BusyError("the archive kept moving on while versions were looked up", hint="send it again")

    def _store(
        self,
        log: LogTransaction,
        requests: Sequence[AppendRequest],
        archived: Mapping[Entity, int],
        through: int,
    ) -> list[Outcome]:
        given = {key for request in requests for key in _given_ids(request) if key is not None}
        stored = stored_ids(log, b"".join(given))
        conditional = {
            (e.entity_type, e.entity_id)
            for r in requests
            if not isinstance(r.events, pa.RecordBatch)
            for e in r.events
            if e.expected_version is not None
        }
        versions = _versions(log, conditional, archived, through) if conditional else {}
        outcomes: list[Outcome | _Planned] = []
        next_seq = log.head.last_seq + 1
        for request in requests:
            planned = _plan(request, next_seq, stored, versions)
            outcomes.append(planned)
            if isinstance(planned, _Planned):
                next_seq += len(planned.new)
        new = [planned.new for planned in outcomes if isinstance(planned, _Planned) and len(planned.new)]
        ids: list[bytes] = []
        if new:
            now_us = log.database_us if self._clock is None else self._clock.now_us()
            recorded_us = max(now_us, log.head.last_recorded_at_us)
            few = sum(r.size_bytes for r in requests) <= FEW_BYTES_MAX and _few(new)
            if few:
                ids = log.write_few(few, recorded_us)
            else:
                pending = pa.concat_batches(_columns(new))
                times = np.full(pending.num_rows, recorded_us, dtype=np.int64)
                ids = log.write(pending, times).to_pylist()
        return _results(outcomes, ids)


def _few(new: Sequence[Sequence[NewEvent] | pa.RecordBatch]) -> list[NewEvent]:
    """All the new events, if they are few and none came as columns; else none."""
    if sum(map(len, new)) > FEW_MAX or any(isinstance(part, pa.RecordBatch) for part in new):
        return []
    return [event for part in new for event in part]


def _columns(new: Sequence[Sequence[NewEvent] | pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The new events as columns, those that came as objects side by side put into one batch."""
    batches: list[pa.RecordBatch] = []
    for as_columns, together in groupby(new, key=lambda part: isinstance(part, pa.RecordBatch)):
        parts = list(together)
        batches += parts if as_columns else [pending_batch([event for part in parts for event in part])]
    return batches


def _given_ids(request: AppendRequest) -> list[bytes | None]:
    """The event_id that the caller gave to each event."""
    if not isinstance(request.events, pa.RecordBatch):
        return [None if e.event_id is None else e.event_id.bytes for e in request.events]
    ids: list[bytes | None] = request.events.column("event_id").to_pylist()
    return ids


def _versions(
    log: LogTransaction, entities: Collection[Entity], archived: Mapping[Entity, int], through: int
) -> dict[Entity, int]:
    """The last seq of each entity. Watermark and rows come from one statement, hence one snapshot."""
    rows = log.conn.execute(
        "SELECT u.entity_type, u.entity_id, u.archived_through, u.seq"
        " FROM hot.entity_versions(%s::text[], %s::text[]) u",
        [[t for t, _ in entities], [i for _, i in entities]],
    ).fetchall()
    versions: dict[Entity, int] = {}
    unknown: list[Entity] = []
    watermark = 0
    for entity_type, entity_id, watermark, seq in rows:
        entity = (entity_type, entity_id)
        if seq is not None:
            versions[entity] = seq
        elif watermark == 0:
            versions[entity] = 0
        elif entity in archived and through == watermark:
            versions[entity] = archived[entity]
        else:
            unknown.append(entity)
    if unknown:
        raise _ArchiveNeededError([*unknown, *archived], watermark)
    return versions


def _plan(
    request: AppendRequest, next_seq: int, stored: dict[bytes, int], versions: dict[Entity, int]
) -> _Planned | EventStoreError:
    """Which events of a request are new, and their seqs; or why it is refused.

    Accepting a request adds its ids and versions, so that the next request of the group sees them.
    """
    if isinstance(request.events, pa.RecordBatch):
        return _plan_columns(request, request.events, next_seq, stored, versions)
    new: list[NewEvent] = []
    seqs: list[int] = []
    ids: dict[bytes, int] = {}
    conflicts: list[VersionConflict] = []
    for index, event in enumerate(request.events):
        key = event.event_id.bytes if event.event_id is not None else None
        if key is not None and (original := stored.get(key) or ids.get(key)) is not None:
            seqs.append(original)
            continue
        if event.expected_version is not None:
            actual = versions[(event.entity_type, event.entity_id)]
            if actual != event.expected_version:
                conflicts.append(
                    VersionConflict(
                        event.entity_type,
                        event.entity_id,
                        event.expected_version,
                        actual,
                        request.place(index, "expected_version"),
                    )
                )
        seq = next_seq + len(new)
        if key is not None:
            ids[key] = seq
        new.append(event)
        seqs.append(seq)
    if conflicts:
        return VersionConflictError(conflicts)
    stored.update(ids)
    if versions:
        _raise_versions(versions, [(event.entity_type, event.entity_id) for event in new], next_seq)
    return _Planned(request, next_seq, new, seqs)


def _raise_versions(versions: dict[Entity, int], new: Iterable[Entity], next_seq: int) -> None:
    """Note the new events of entities whose versions are asked for. A repeated event changes none: it is what
    its id was first stored for, and that may have been another entity."""
    for seq, entity in enumerate(new, next_seq):
        if entity in versions:
            versions[entity] = seq


def _plan_columns(
    request: AppendRequest,
    events: pa.RecordBatch,
    next_seq: int,
    stored: dict[bytes, int],
    versions: dict[Entity, int],
) -> _Planned:
    """`_plan` for events as columns, which expect no versions. Rows are looked at one by one only if they
    bring ids of their own, or other requests of the group expect versions."""
    count = events.num_rows
    seqs: Sequence[int] = range(next_seq, next_seq + count)
    new = events
    if events.column("event_id").null_count < count:
        fresh = np.zeros(count, dtype=np.bool_)
        seqs, following = [], next_seq
        for index, key in enumerate(_given_ids(request)):
            seq = None if key is None else stored.get(key)
            if seq is None:
                seq, fresh[index] = following, True
                following += 1
                if key is not None:
                    stored[key] = seq
            seqs.append(seq)
        new = events if fresh.all() else events.filter(pa.array(fresh))
    if versions:
        names = (new.column(name).to_pylist() for name in ("entity_type", "entity_id"))
        _raise_versions(versions, zip(*names, strict=True), next_seq)
    return _Planned(request, next_seq, new, seqs)


def _results(outcomes: Sequence[Outcome | _Planned], new_ids: list[bytes]) -> list[Outcome]:
    results: list[Outcome] = []
    start = 0
    for outcome in outcomes:
        if not isinstance(outcome, _Planned):
            results.append(outcome)
            continue
        count, first_seq = len(outcome.new), outcome.first_seq
        ids = new_ids[start : start + count]
        start += count
        results.append(
            AppendResult(
                first_seq=first_seq if count else None,
                last_seq=first_seq + count - 1 if count else None,
                count=count,
                duplicates=len(outcome.seqs) - count,
                seqs=outcome.seqs,
                event_ids=[
                    ids[seq - first_seq] if key is None else key
                    for key, seq in zip(_given_ids(outcome.request), outcome.seqs, strict=True)
                ],
            )
        )
    return results
