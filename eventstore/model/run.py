"""Runs, and the typed entries of their journals.

An entry says one thing that happened. Its type is its kind in the journal (`kind_of`), its fields are the
detail; `detail_of` and `entry_from` turn it into JSON and back.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

__all__ = [
    "Entry",
    "FileRemoved",
    "FileWritten",
    "ParallelismAdjusted",
    "PlanResolved",
    "PlanWarning",
    "PlannedWindow",
    "QualityIssue",
    "ReconciliationResult",
    "Retry",
    "RunCompleted",
    "RunKind",
    "RunReport",
    "RunStatus",
    "SchemaChanged",
    "TaskAction",
    "TaskState",
    "TenantOutcome",
    "ValidationResult",
    "Warned",
    "WindowCompleted",
    "WindowFailed",
    "WindowStarted",
    "detail_of",
    "entry_from",
    "kind_of",
]


class RunKind(StrEnum):
    """What a run is for: moving windows through their tiers, or destroying what has expired, or re-reading
    segments."""

    RETENTION = "retention"
    EXPIRY = "expiry"
    SCRUB = "scrub"


class RunStatus(StrEnum):
    """planning → running → completed, failed or interrupted. A run whose processes were killed stays running
    until its tasks have been done by others. interrupted: told to stop; what it left is done by the next."""

    PLANNING = "planning"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class TaskAction(StrEnum):
    """What a task does to its window: hot → archive, target → next target, or destruction."""

    ARCHIVE = "archive"
    MOVE = "move"
    EXPIRE = "expire"


class TaskState(StrEnum):
    """waiting → running → done or failed; back to waiting for another attempt. blocked: an older window of
    the tenant failed, so that this one could not be archived."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The root of all journal entries."""


class PlannedWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A window in a plan. `events` is exact, as of the plan. `to_target` None: it is to be destroyed."""

    window_from: str
    window_to: str
    action: TaskAction
    state: str
    events: int
    first_seq: int
    to_target: str | None = None
    from_target: str | None = None
    held_by: list[str] = []


class PlanResolved(Entry, frozen=True, kw_only=True):
    """A tenant's whole plan: what is due, under which policy, and how many windows stay as they are."""

    policy_no: int
    policy: str
    due: list[PlannedWindow]
    hot_windows: int
    archived_windows: int


class PlanWarning(Entry, frozen=True, kw_only=True):
    """Something that the plan leaves out, or that will be in its way, and why. `failed`: the tenant could not
    be planned at all, and the run fails."""

    message: str
    failed: bool = False


class WindowStarted(Entry, frozen=True, kw_only=True):
    """A worker took a window up. `attempt` counts from 1; more than 1: an earlier one did not finish.
    `events` None: not known yet, because the window is not sealed."""

    action: TaskAction
    state: str
    events: int | None
    worker: str
    attempt: int
    target: str | None = None


class WindowCompleted(Entry, frozen=True, kw_only=True):
    """All that was planned for a window is done. `steps_ms` is how long each step took."""

    action: TaskAction
    events: int
    segments: int
    size_bytes: int
    duration_ms: int
    steps_ms: dict[str, int]


class WindowFailed(Entry, frozen=True, kw_only=True):
    """A window was given up in this run. Nothing of it was lost or dropped before its time."""

    action: TaskAction
    error: str
    code: str
    attempts: int
    duration_ms: int


class FileWritten(Entry, frozen=True, kw_only=True):
    """A segment lies verified in a target. `created` False: it was found there, from an earlier attempt."""

    target: str
    name: str
    part: int
    rows: int
    size_bytes: int
    created: bool


class FileRemoved(Entry, frozen=True, kw_only=True):
    """An object that the catalog no longer names was deleted from a target."""

    target: str
    name: str
    size_bytes: int
    reason: str


class Retry(Entry, frozen=True, kw_only=True):
    """Something is tried again, after a pause."""

    attempt: int
    reason: str
    backoff_s: float
    what: str = "window"


class QualityIssue(Entry, frozen=True, kw_only=True):
    """A rule of the policy is broken. `level` FAIL: it stopped the window; WARN: it did not.
    `count` and `first_seq` None: the rule is about the window as a whole."""

    rule: str
    level: str
    message: str
    count: int | None = None
    first_seq: int | None = None


class SchemaChanged(Entry, frozen=True, kw_only=True):
    """What is recorded has another shape than in the window before. `type_changed`: name, types before, types
    now."""

    added: list[str]
    removed: list[str]
    type_changed: list[tuple[str, str, str]]


class Warned(Entry, frozen=True, kw_only=True):
    """Something that somebody should look at, though the run goes on."""

    message: str


class ParallelismAdjusted(Entry, frozen=True, kw_only=True):
    """The governor changed how many tasks may be worked on at once."""

    from_: int = msgspec.field(name="from")
    to: int
    reason: str


class ValidationResult(Entry, frozen=True, kw_only=True):
    """What was read back from the target was compared with its source, value by value or byte by byte."""

    passed: bool
    segments: int
    compared: str


class ReconciliationResult(Entry, frozen=True, kw_only=True):
    """Events counted at the source and in the archive."""

    source_count: int
    archived_rows: int
    matched: bool


class RunCompleted(Entry, frozen=True, kw_only=True):
    """The run has ended. `error` None unless it failed; then it is the first failure's."""

    status: RunStatus
    duration_ms: int
    windows: int
    windows_failed: int
    events: int
    error: str | None = None


_ENTRIES: tuple[type[Entry], ...] = (
    PlanResolved,
    PlanWarning,
    WindowStarted,
    WindowCompleted,
    WindowFailed,
    FileWritten,
    FileRemoved,
    Retry,
    QualityIssue,
    SchemaChanged,
    Warned,
    ParallelismAdjusted,
    ValidationResult,
    ReconciliationResult,
    RunCompleted,
)


def _kind(entry: type[Entry]) -> str:
    """`WindowStarted` → `window_started`; what warns is a `warning`."""
    if entry is Warned:
        return "warning"
    name = entry.__name__
    return name[0].lower() + "".join(f"_{c.lower()}" if c.isupper() else c for c in name[1:])


_BY_KIND = {_kind(entry): entry for entry in _ENTRIES}


def kind_of(entry: Entry) -> str:
    """The kind under which the journal keeps an entry."""
    return _kind(type(entry))


def detail_of(entry: Entry) -> dict[str, Any]:
    """An entry's fields as JSON values."""
    found: dict[str, Any] = msgspec.to_builtins(entry)
    return found


def entry_from(kind: str, detail: Mapping[str, Any]) -> Entry | None:
    """The entry that the journal keeps; None if it is of a kind or form that this program does not know."""
    known = _BY_KIND.get(kind)
    if known is None:
        return None
    try:
        return msgspec.convert(dict(detail), known)
    except msgspec.ValidationError:
        return None


@dataclass(slots=True)
class TenantOutcome:
    """What a run did for one tenant. `error` is None when all that was planned was done."""

    tenant_id: str
    windows: int = 0
    events: int = 0
    segments: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended: failed as soon as one window did; the other tenants were worked on all the same."""

    run_id: uuid.UUID
    status: RunStatus
    outcomes: list[TenantOutcome]
