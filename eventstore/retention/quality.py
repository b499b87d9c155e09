"""The quality rules, over a window's events as they stream by in the order of seq.

Everything goes column by column; nothing depends on how the events are cut into batches. Memory is bounded:
a rule that has to remember entities keeps 128 bits of hash for each instead of its name, and only so many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from eventstore.columns.canonical import int64_values
from eventstore.model.quality import (
    DEFAULT_QUALITY,
    JSON_TYPES,
    PROFILE_FIELDS_MAX,
    Profile,
    QualityAction,
    QualityFinding,
    QualityRule,
    SchemaChange,
    compare,
    volume_fall,
)
from eventstore.retention.neighbours import SLICE_ROWS, Column, Flags, Ints, Neighbours, Words, text_hashes

__all__ = ["KEYS_MAX", "WindowQuality"]

KEYS_MAX = 1_000_000  # that a rule remembers in one window: 48 MB, and 24 more while it grows
_WAITING_BYTES_MAX = 16 * 2**20
_JUDGED = ["seq", "occurred_at", "entity_type", "entity_id", "field", "old_value", "new_value"]

_NULL, _UNKNOWN = np.uint64(0), np.uint64(1)  # instead of the hash of a value

_NO_TYPE = len(JSON_TYPES)
_TYPE_OF_BYTE = np.full(256, _NO_TYPE, dtype=np.int64)  # of a JSON text, by its first byte
for _type, _first in zip(JSON_TYPES, (b"[", b"tf", b"n", b"-0123456789", b"{", b'"'), strict=True):
    _TYPE_OF_BYTE[list(_first)] = JSON_TYPES.index(_type)


class WindowQuality:
    """Judges one window. Give it all the window's events, then ask for what was found.

    Rules that are off cost nothing; a rule that `policy` does not name does what the default says.

    continuity: an event is compared with the one before it of the same entity_type, entity_id and field
    ('*', the whole entity, counts as a field of its own), whatever its action. The first of a window has
    nothing before it here and is not judged. Values are equal if their stored JSON texts are: 1 and 1.0
    differ, two nulls do not. An event with neither value says nothing about values (it may be a visit, or a
    deletion): it is not judged, and neither is the next one of its key.
    time_order: an event is compared with the one before it of the same entity_type and entity_id.
    Both know a key by 128 bits of a keyed hash, so that one is not taken for another, and continuity knows a
    value by 64: a break between two values that share them is missed. Keys that come after the first
    `keys_max` of a window are not judged, and a finding says so.

    `previous_profile` is that of the window before (None: none is known, nothing is compared),
    `previous_counts` the events of the closed windows before, oldest first.
    """

    def __init__(
        self,
        policy: Mapping[QualityRule, QualityAction],
        *,
        previous_profile: Profile | None,
        previous_counts: Sequence[int],
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._actions = {**DEFAULT_QUALITY, **policy}
        self._previous_profile = previous_profile
        self._previous_counts = previous_counts
        self._count = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._shape = _Shape() if self._is_on(QualityRule.SCHEMA) else None
        self._continuity = Neighbours(keys_max) if self._is_on(QualityRule.CONTINUITY) else None
        self._time_order = Neighbours(keys_max) if self._is_on(QualityRule.TIME_ORDER) else None

    def _is_on(self, rule: QualityRule) -> bool:
        return self._actions[rule] is not QualityAction.OFF

    def add(self, batch: pa.RecordBatch) -> None:
        """The next events of the window (`EVENT_SCHEMA`, in the order of seq)."""
        self._count += batch.num_rows
        if self._continuity is None and self._time_order is None:
            if self._shape is not None and batch.num_rows:
                self._shape.add(_Columns(batch))
            return
        for start in range(0, batch.num_rows, SLICE_ROWS):
            self._gather(batch.slice(start, SLICE_ROWS).select(_JUDGED))

    def _gather(self, events: pa.RecordBatch) -> None:
        """Small batches wait for the next ones: an entity that comes in several is then looked up once."""
        if self._waiting_rows + events.num_rows > SLICE_ROWS:
            self._judge()
        self._waiting.append(events)
        self._waiting_rows += events.num_rows
        self._waiting_bytes += events.nbytes
        if self._waiting_bytes > _WAITING_BYTES_MAX:
            self._judge()

    def _judge(self) -> None:
        if not self._waiting:
            return
        columns = _Columns(self._waiting[0] if len(self._waiting) == 1 else pa.concat_batches(self._waiting))
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        if self._shape is not None:
            self._shape.add(columns)
        if self._continuity is not None:
            _judge_continuity(self._continuity, columns)
        if self._time_order is not None:
            _judge_time_order(self._time_order, columns)

    @property
    def profile(self) -> Profile | None:
        """The shape of the events so far, to compare the next window with. None: the schema rule is off."""
        self._judge()
        return None if self._shape is None else self._shape.profile()

    @property
    def schema_change(self) -> SchemaChange | None:
        """Against the window before. None: unknown (it has no profile, or one is truncated), or the rule
        is off. False if nothing has changed."""
        now, previous = self.profile, self._previous_profile
        return None if now is None or previous is None else compare(previous, now)

    def finish(self) -> list[QualityFinding]:
        """What was found in all events added, at most two findings a rule, in the order of the rules."""
        self._judge()
        found: list[QualityFinding] = []
        if self._continuity is not None:
            broken = "{} events begin with another old_value than the new_value before, first {}"
            found += self._broken(QualityRule.CONTINUITY, self._continuity, broken)
        if self._time_order is not None:
            broken = "{} events occurred before the one recorded before them of their entity, first {}"
            found += self._broken(QualityRule.TIME_ORDER, self._time_order, broken)
        if self._is_on(QualityRule.VOLUME):
            fall = volume_fall(self._count, self._previous_counts)
            if fall is not None:
                message = "{:,} events, fewer than a fifth of {:,.10g}, the median of the {} windows before"
                found.append(self._whole(QualityRule.VOLUME, message.format(self._count, fall[1], fall[0])))
        if self._shape is not None and self._previous_profile is not None:
            change = self.schema_change
            if change is None:
                message = f"not compared with the window before: more than {PROFILE_FIELDS_MAX:,} fields"
                found.append(_unknown(QualityRule.SCHEMA, None, message))
            elif change:
                found.append(self._whole(QualityRule.SCHEMA, str(change)))
        return found

    def _whole(self, rule: QualityRule, message: str) -> QualityFinding:
        return QualityFinding(rule, self._actions[rule], None, None, message)

    def _broken(self, rule: QualityRule, judged: Neighbours, message: str) -> list[QualityFinding]:
        found = []
        if judged.first is not None:
            seq, place = judged.first
            text = message.format(f"{judged.count:,}", f"seq {seq}: {place}")
            found.append(QualityFinding(rule, self._actions[rule], judged.count, seq, text))
        if judged.unknown_from is not None:
            text = (
                f"unknown beyond seq {judged.unknown_from} for what first comes there: more than "
                f"{judged.keys_max:,} keys"
            )
            found.append(_unknown(rule, judged.unknown_from, text))
        return found


def _unknown(rule: QualityRule, first_seq: int | None, message: str) -> QualityFinding:
    return QualityFinding(rule, QualityAction.WARN, None, first_seq, message)


class _Columns:
    """Some events, of which each column is encoded once, when the first rule asks for it."""

    def __init__(self, events: pa.RecordBatch) -> None:
        self.events = events

    @cached_property
    def entity_type(self) -> Column:
        return Column(self.events.column("entity_type"))

    @cached_property
    def entity_id(self) -> Column:
        return Column(self.events.column("entity_id"))

    @cached_property
    def field(self) -> Column:
        return Column(self.events.column("field"))


class _Shape:
    """Collects a profile."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], int] = {}  # a bit for each of JSON_TYPES
        self._truncated = False

    def add(self, columns: _Columns) -> None:
        if self._truncated:
            return
        kinds, fields = columns.entity_type, columns.field
        cells = (kinds.codes * len(fields.names) + fields.codes) * 8
        cells += _json_types(columns.events.column("new_value"))
        size = len(kinds.names) * len(fields.names) * 8
        if size <= 2**20:
            present = np.zeros(size, dtype=np.bool_)
            present[cells] = True
            distinct = np.flatnonzero(present)
        else:
            distinct = np.unique(cells)
        kind_names, field_names = kinds.names.to_pylist(), fields.names.to_pylist()
        for cell in distinct.tolist():
            pair, json_type = divmod(cell, 8)
            kind, name = divmod(pair, len(field_names))
            key = (kind_names[kind], field_names[name])
            self._seen[key] = self._seen.get(key, 0) | (1 << json_type)
            if len(self._seen) > PROFILE_FIELDS_MAX:
                self._truncated = True
                self._seen.clear()
                return

    def profile(self) -> Profile:
        fields: dict[str, dict[str, tuple[str, ...]]] = {}
        for (kind, name), bits in sorted(self._seen.items()):
            types = tuple(t for n, t in enumerate(JSON_TYPES) if bits >> n & 1)
            fields.setdefault(kind, {})[name] = types
        return Profile(fields, self._truncated)


def _json_types(column: pa.Array) -> Ints:
    """The place in `JSON_TYPES` of each JSON text, by its first byte."""
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)
    starts = offsets[column.offset : column.offset + len(column)]
    data = column.buffers()[2]
    if data is None or data.size == 0:
        return np.full(len(column), JSON_TYPES.index("null"), dtype=np.int64)
    types = _TYPE_OF_BYTE[np.frombuffer(data, dtype=np.uint8).take(starts, mode="clip")]
    if column.null_count:
        types[column.is_null().to_numpy(zero_copy_only=False)] = JSON_TYPES.index("null")
    return types


def _values(column: pa.Array) -> Words:
    hashes = text_hashes(column, 1)[0]
    if column.null_count:
        hashes[column.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hashes


def _judge_continuity(rule: Neighbours, columns: _Columns) -> None:
    old, new = (_values(columns.events.column(name)) for name in ("old_value", "new_value"))
    silent = (old == _NULL) & (new == _NULL)
    new[silent] = _UNKNOWN

    def breaks(rows: Ints, previous: Words) -> Flags:
        broken: Flags = (old[rows] != previous) & (previous != _UNKNOWN) & ~silent[rows]
        return broken

    key = {"entity_type": columns.entity_type, "entity_id": columns.entity_id, "field": columns.field}
    rule.judge(columns.events, key, new, breaks)


def _judge_time_order(rule: Neighbours, columns: _Columns) -> None:
    times = int64_values(columns.events.column("occurred_at"))
    key = {"entity_type": columns.entity_type, "entity_id": columns.entity_id}
    rule.judge(
        columns.events,
        key,
        times.view(np.uint64),
        lambda rows, previous: times[rows] < previous.view(np.int64),
    )
