"""An entity's fields as the log says they were at a time: a fold of its events, newest first.

- An event on a field sets it to its `new_value`; null clears it.
- An event on `*` whose `new_value` is an object does so for each of its members; any other value sets `*`
  itself; null says nothing of any value, and changes nothing.
- One on `*` whose action is one of `DELETE_ACTIONS` ends the entity: nothing before it counts.

Newest first, what is said of a field first stands. So one event a field is kept, however long the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.clock import clamp_us, to_iso
from eventstore.columns.canonical import int64_values
from eventstore.errors import InputError
from eventstore.model.event import WHOLE_ENTITY
from eventstore.model.query import EventFilter, Order
from eventstore.model.records import DELETE_ACTIONS
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.render import format_uuid

__all__ = ["EntityState", "Origin", "Setting", "entity_as_of", "fold_state"]

# Values of one entity that are kept in memory, in bytes of JSON.
_STATE_BYTES_MAX = 64 * 2**20
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ORIGIN = ("seq", "event_id", "recorded_at", "actor")
_ENDS = pa.array(sorted(DELETE_ACTIONS))


@dataclass(frozen=True, slots=True)
class Origin:
    """The event that something comes from."""

    seq: int
    event_id: str
    recorded_at: str
    actor: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A field's value as JSON text, and the event that set it. None: that event cleared it."""

    value: str | None
    origin: Origin


@dataclass(slots=True)
class EntityState:
    """What a log says of an entity. `entity_type` is as asked, or as found (None: neither).

    `version` is the seq of its last event (0: it has none), `ended` the event that ended it, if none came
    after. `fields` has those that are set.
    """

    entity_type: str | None
    entity_id: str
    version: int = 0
    ended: Origin | None = None
    fields: dict[str, Setting] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)

    @property
    def exists(self) -> bool:
        return self.version > 0 and self.ended is None

    @property
    def is_incomplete(self) -> bool:
        """Whether events of it may be missing: a part of the log was destroyed, or could not be read."""
        return bool(self.coverage.expired or self.coverage.unreadable)


def entity_as_of(
    reader: LogReader,
    tenant_id: str,
    entity_id: str,
    *,
    entity_type: str | None = None,
    as_of_us: int | None = None,
    partial: bool = False,
) -> EntityState:
    """An entity as its events up to a recorded time (inclusive; None: all of them) leave it.

    Raises:
        InputError: no `entity_type` is given, and entities of several types have this id; or its fields are
            larger than can be held at once.
        ArchiveDamageError, TargetUnavailableError: a segment cannot be read (unless `partial`).
        TenantNotFoundError
    """
    wanted = EventFilter(
        entity_type=entity_type,
        entity_id=entity_id,
        recorded_to_us=None if as_of_us is None else clamp_us(as_of_us + 1),
    )
    fold = _Fold(EntityState(entity_type, entity_id))
    coverage = fold.state.coverage
    for events in reader.stream(tenant_id, wanted, order=Order.DESC, partial=partial, coverage=coverage):
        if entity_type is None:
            _note_type(fold.state, events)
        fold.add(events)
        if fold.over and entity_type is not None:
            break  # what came before the entity's end changes nothing (but might be of another type)
    return fold.finish()


def fold_state(entity_type: str, entity_id: str, newest_first: Iterable[pa.Table]) -> EntityState:
    """The state that an entity's events leave, where these are at hand; without a coverage.

    Raises:
        InputError: its fields are larger than can be held at once.
    """
    fold = _Fold(EntityState(entity_type, entity_id))
    for events in newest_first:
        if events.num_rows:
            fold.add(events)
    return fold.finish()


def _note_type(state: EntityState, events: pa.Table) -> None:
    found = {state.entity_type, *pc.unique(events.column("entity_type")).to_pylist()} - {None}
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise InputError(
            f"entities of several types have the id {state.entity_id!r}: {names}",
            hint="name one: entity_type=…",
        )
    (state.entity_type,) = found


class _Fold:
    """Takes in an entity's events, newest first."""

    def __init__(self, state: EntityState) -> None:
        self.state = state
        self.over = False  # its end was found: what is older does not count
        self._said: dict[str, Setting] = {}
        self._size_bytes = 0

    def add(self, events: pa.Table) -> None:
        if self.over:
            return
        batch = events.select([*_ORIGIN, "action", "field", "new_value"]).combine_chunks().to_batches()[0]
        if self.state.version == 0:
            self.state.version = batch.column("seq")[0].as_py()
        whole = pc.equal(batch.column("field"), WHOLE_ENTITY)
        ends = pc.and_(whole, pc.is_in(batch.column("action"), value_set=_ENDS))
        end = pc.index(ends, True).as_py()
        if end >= 0:
            self.over = True
            (origin,) = _origins(batch.slice(end, 1))
            if origin.seq == self.state.version:
                self.state.ended = origin
            batch = batch.slice(0, end)
        self._take(batch.take(_telling(batch)))

    def finish(self) -> EntityState:
        said = sorted(self._said.items())
        self.state.fields = {name: setting for name, setting in said if setting.value is not None}
        return self.state

    def _take(self, batch: pa.RecordBatch) -> None:
        names = batch.column("field").to_pylist()
        values = batch.column("new_value").to_pylist()
        for name, value, origin in zip(names, values, _origins(batch), strict=True):
            if name == WHOLE_ENTITY and value[:1] == "{":
                for member, raw in _MEMBERS.decode(value).items():
                    self._say(member, bytes(raw).decode(), origin)
            else:
                self._say(name, value, origin)

    def _say(self, name: str, value: str | None, origin: Origin) -> None:
        if name in self._said:
            return
        self._said[name] = Setting(None if value == "null" else value, origin)
        self._size_bytes += len(name) + len(value or "")
        if self._size_bytes > _STATE_BYTES_MAX:
            raise InputError(
                f"the fields of {self.state.entity_id!r} take more than {_STATE_BYTES_MAX} bytes",
                hint="read its history instead, a page at a time",
            )


def _telling(batch: pa.RecordBatch) -> pa.Array:
    """The rows, in order, that may say something new: the first of each field, and every value of `*`."""
    whole = pc.equal(batch.column("field"), WHOLE_ENTITY).to_numpy(zero_copy_only=False)
    given = pc.fill_null(pc.not_equal(batch.column("new_value"), "null"), False).to_numpy(
        zero_copy_only=False
    )
    codes = batch.column("field").dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.zeros(batch.num_rows, dtype=np.bool_)
    first[np.unique(codes, return_index=True)[1]] = True
    return pa.array(np.flatnonzero((first & ~whole) | (whole & given)))


def _origins(batch: pa.RecordBatch) -> Iterator[Origin]:
    seqs, ids, _, actors = (batch.column(name).to_pylist() for name in _ORIGIN)
    times = int64_values(batch.column("recorded_at")).tolist()
    for seq, event_id, recorded_us, actor in zip(seqs, ids, times, actors, strict=True):
        yield Origin(seq, format_uuid(event_id), to_iso(recorded_us), actor)
