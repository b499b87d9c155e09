"""Quality of what a tenant records: which rules there are, what a break of one leads to, what was found.

The rules look at closed windows on their way into the archive. They never change an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

__all__ = [
    "DEFAULT_QUALITY",
    "JSON_TYPES",
    "PROFILE_FIELDS_MAX",
    "Profile",
    "QualityAction",
    "QualityFinding",
    "QualityRule",
    "SchemaChange",
    "compare",
    "volume_fall",
]

PROFILE_FIELDS_MAX = 2_000  # (entity type, field) pairs; a profile is stored with every window
JSON_TYPES = ("array", "bool", "null", "number", "object", "string")  # sorted; null is also "not given"

VOLUME_WINDOWS_MIN = 3
VOLUME_WINDOWS_MAX = 12
VOLUME_MEDIAN_MIN = 100  # events; smaller windows swing by chance
VOLUME_FALL = 5  # so many times smaller than the median


class QualityRule(StrEnum):
    """What is looked for.

    continuity: an event whose old_value is not what the event before it of the same entity_type,
    entity_id and field left as new_value.
    time_order: occurred_at earlier than that of the event before it of the same entity.
    volume: far fewer events in a window than in the windows before it.
    schema: other fields, or other types of their values, than in the window before it.
    """

    CONTINUITY = "continuity"
    TIME_ORDER = "time_order"
    VOLUME = "volume"
    SCHEMA = "schema"


class QualityAction(StrEnum):
    """What a broken rule leads to. off: it is not even looked at. warn: it is told. stop: it is told, and
    the window stays in the hot tier until somebody has decided."""

    OFF = "off"
    WARN = "warn"
    STOP = "stop"


# The two that need to remember entities cost time and memory, and not every caller sends old values.
DEFAULT_QUALITY: dict[QualityRule, QualityAction] = {
    QualityRule.CONTINUITY: QualityAction.OFF,
    QualityRule.TIME_ORDER: QualityAction.OFF,
    QualityRule.VOLUME: QualityAction.WARN,
    QualityRule.SCHEMA: QualityAction.WARN,
}


@dataclass(frozen=True, slots=True)
class QualityFinding:
    """A rule that a window breaks, or that could not be judged for all of it (then `action` is warn).

    `count`: how many events break it; None where it is not about single events, or not known.
    `first_seq`: the first of them; None where it is about the window as a whole.
    `message`: what and where, in one line for people.
    """

    rule: QualityRule
    action: QualityAction
    count: int | None
    first_seq: int | None
    message: str

    @property
    def level(self) -> str:
        """`FAIL` if it stops the window, else `WARN`."""
        return "FAIL" if self.action is QualityAction.STOP else "WARN"


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """How a window's profile differs from the one before. All three empty: not at all.

    Fields are named `<entity type>.<field>`, and an entity type that is new by its name alone. Each of
    `type_changed` is (name, JSON types before, JSON types now). Everything is sorted.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    type_changed: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.type_changed)

    def __str__(self) -> str:
        parts = [
            _list("added", self.added),
            _list("removed", self.removed),
            _list(
                "type changed",
                [f"{name} ({'|'.join(old)} → {'|'.join(new)})" for name, old, new in self.type_changed],
            ),
        ]
        return "; ".join(part for part in parts if part)


def _list(title: str, names: Sequence[str], most: int = 5) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{title} {', '.join(names[:most])}{more}"


@dataclass(frozen=True, slots=True)
class Profile:
    """The shape of a window: entity type → field → the JSON types of its new_value, sorted.

    `truncated`: there were more than `PROFILE_FIELDS_MAX` fields. Then none is kept, and nothing can be
    said about the window.
    """

    fields: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        """A document for JSON; `from_json` makes an equal profile of it."""
        return {
            "fields": {
                kind: {name: list(types) for name, types in sorted(fields.items())}
                for kind, fields in sorted(self.fields.items())
            },
            "truncated": self.truncated,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Profile:
        """Read what `to_json` wrote."""
        return Profile(
            {
                kind: {name: tuple(types) for name, types in fields.items()}
                for kind, fields in document["fields"].items()
            },
            bool(document["truncated"]),
        )


def compare(previous: Profile, now: Profile) -> SchemaChange | None:
    """What has changed since the window before; None: unknown, one of the two is truncated.

    An entity type is compared field by field if both windows have events of it. One that only the window
    before had says nothing (it may just have been quiet), one that only this window has is added.
    A field's type has changed if there is a type now that was not there before: one that held strings and
    numbers, and now holds numbers alone, only shows less of itself. Null (a value deleted, or not given)
    is not counted as a type.
    """
    if previous.truncated or now.truncated:
        return None
    added = [kind for kind in now.fields if kind not in previous.fields]
    removed: list[str] = []
    changed: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    for kind in previous.fields.keys() & now.fields.keys():
        before, after = previous.fields[kind], now.fields[kind]
        added += [f"{kind}.{name}" for name in after.keys() - before.keys()]
        removed += [f"{kind}.{name}" for name in before.keys() - after.keys()]
        for name in before.keys() & after.keys():
            old, new = ({*types} - {"null"} for types in (before[name], after[name]))
            if old and not new <= old:
                changed.append((f"{kind}.{name}", before[name], after[name]))
    return SchemaChange(tuple(sorted(added)), tuple(sorted(removed)), tuple(sorted(changed)))


def volume_fall(count: int, previous_counts: Sequence[int]) -> tuple[int, float] | None:
    """Whether a window of `count` events has suddenly far fewer than those before it: less than a fifth of
    their median. Gives how many windows it was compared with and their median; None: it has not fallen, or
    there are too few windows, or too small ones, to say.

    `previous_counts` are the events of the closed windows before, oldest first; the last 12 are used.
    """
    recent = previous_counts[-VOLUME_WINDOWS_MAX:]
    if len(recent) < VOLUME_WINDOWS_MIN:
        return None
    middle = float(median(recent))
    fallen = middle >= VOLUME_MEDIAN_MIN and count * VOLUME_FALL < middle
    return (len(recent), middle) if fallen else None
