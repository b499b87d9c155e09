"""What the store answers about a run: planned, happened, degraded, outcome, the longest window and why.

Nothing in it is guessed. Where a value cannot be derived from what was written down, an `Unknown` stands in
its place and says why. Lists are bounded: `Listed` has the first entries, and how many more there are.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from eventstore.model.run import RunKind, RunStatus

__all__ = [
    "ENTRIES_MAX",
    "LATEST",
    "LIST_MAX",
    "RUNS_MAX",
    "Degraded",
    "EntriesPage",
    "Files",
    "Happened",
    "JournalEntry",
    "KindCount",
    "Listed",
    "LongestWindow",
    "Outcome",
    "Planned",
    "PlannedAction",
    "Progress",
    "Reconciled",
    "RetryGroup",
    "RunSummary",
    "RunView",
    "TenantPlanned",
    "Unknown",
    "WindowCounts",
]

# How many entries a list of an answer has at the most; paging through the journal gives the rest.
LIST_MAX = 200
# How many runs, and how many entries of a journal, are answered at once.
RUNS_MAX = 200
ENTRIES_MAX = 1000
# What stands for the newest run where a run is asked for.
LATEST = "latest"


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """The root of the answers' parts."""


class Unknown(_View, frozen=True, kw_only=True):
    """In the place of a value that cannot be derived; `why` says what is missing."""

    why: str
    answer: Literal["unknown"] = "unknown"


class JournalEntry(_View, frozen=True, kw_only=True):
    """An entry as the journal keeps it. `entry_no` rises within a run, with gaps. `tenant_id` None: about the
    whole run; `window_from` None: about no one window."""

    entry_no: int
    at: str
    kind: str
    tenant_id: str | None
    window_from: str | None
    detail: dict[str, Any]


class Listed(_View, frozen=True, kw_only=True):
    """The first `LIST_MAX` of `count` entries, in their order; `more` are left out."""

    count: int = 0
    items: list[JournalEntry] = []
    more: int = 0


class RunSummary(_View, frozen=True, kw_only=True):
    """A run in a list. `now` is the (perhaps simulated) time for which it was planned.

    Until it has ended, `finished_at` is None, and `duration_ms`, `windows`, `windows_failed` and `events` are
    what it has come to so far; `tasks` counts its windows, and `at_work` those in the hands of a worker that
    is alive and whose lease holds. Both are None once it has ended. `error` None: none is known.
    """

    run_id: str
    kind: RunKind
    status: RunStatus
    requested_by: str
    now: str
    started_at: str
    finished_at: str | None
    duration_ms: int
    windows: int
    windows_failed: int
    events: int
    error: str | None
    tasks: int | None
    at_work: int | None


class PlannedAction(_View, frozen=True, kw_only=True):
    """How many windows and events were to be archived, moved or expired."""

    windows: int
    events: int


class TenantPlanned(_View, frozen=True, kw_only=True):
    """A tenant's plan as it was written down: what was due under which policy, and what was to stay.

    `due` has the first of `due_count` windows (`model.run.PlannedWindow`); `more` are left out.
    """

    entry_no: int
    at: str
    tenant_id: str | None
    policy_no: int
    policy: str
    due_count: int
    due_events: int
    due: list[dict[str, Any]]
    more: int
    hot_windows: int
    archived_windows: int


class Planned(_View, frozen=True, kw_only=True):
    """What was planned. `actions` counts each window once, as last planned. `note`: what is missing."""

    tenant_count: int
    tenants: list[TenantPlanned]
    more_tenants: int
    actions: dict[str, PlannedAction]
    windows: int
    events: int
    warnings: Listed
    note: str | None


class WindowCounts(_View, frozen=True, kw_only=True):
    """Windows by how far they came; each counts once, however often it was tried.

    `unfinished` were started and have not ended: being worked on, waiting for another try, or left behind;
    its items are their latest starts. The sums are of the completed ones.
    """

    started: int
    completed: int
    failed: int
    unfinished: Listed
    events: int
    segments: int
    size_bytes: int


class Files(_View, frozen=True, kw_only=True):
    """Objects written or removed. `found` of the written were there already, from an earlier attempt."""

    count: int
    rows: int
    size_bytes: int
    found: int
    items: list[JournalEntry]
    more: int


class Reconciled(_View, frozen=True, kw_only=True):
    """Source and archive compared by value, and by count. What differed is listed in `degraded`."""

    validations_passed: int
    validations_failed: int
    counts_matched: int
    counts_mismatched: int
    source_count: int
    archived_rows: int


class Happened(_View, frozen=True, kw_only=True):
    """What was done, as far as the journal has come."""

    windows: WindowCounts
    files_written: Files
    files_removed: Files
    retries: Listed
    parallelism: Listed
    compared: Reconciled


class RetryGroup(_View, frozen=True, kw_only=True):
    """Retries of the same thing for the same reason. `pauses_s` is the sum of the pauses before them."""

    what: str
    reason: str
    count: int
    windows: int
    pauses_s: float


class Degraded(_View, frozen=True, kw_only=True):
    """What did not go as it should. `failed_tenants` could not be planned. `held` are windows that a plan
    left alone for a legal hold: planned windows, each with its `tenant_id`."""

    anything: bool
    retries: int
    retry_reasons: list[RetryGroup]
    failed_windows: Listed
    failed_tenants: Listed
    warnings: Listed
    quality_fail: int
    quality_warn: int
    quality: Listed
    schema_changes: Listed
    lowered_parallelism: Listed
    failed_validations: Listed
    mismatches: Listed
    held_count: int
    held: list[dict[str, Any]]


class Progress(_View, frozen=True, kw_only=True):
    """The run's tasks, by state. Of the running ones, `at_work` are in the hands of a worker that is alive
    and whose lease holds; the others are `abandoned`. `next_try_at`: when the first of the waiting may be
    taken; None where one may be at once, or none waits."""

    total: int
    waiting: int
    running: int
    done: int
    failed: int
    blocked: int
    at_work: int
    abandoned: int
    next_try_at: str | None


class Outcome(_View, frozen=True, kw_only=True):
    """How the run ended or, if it has not (`ended` False), what it has come to so far.

    `activity` says in words whether anybody is at it; None once it has ended. `error` None: there was none.
    """

    status: RunStatus
    ended: bool
    finished_at: str | None
    duration_ms: int
    windows: int
    windows_failed: int
    events: int
    error: str | Unknown | None
    progress: Progress
    activity: str | None


class LongestWindow(_View, frozen=True, kw_only=True):
    """The window that took longest of those that ended, and why.

    `result` is `completed` or `failed`. `step` is the step that took most of it. `caveat`: what may turn out
    to have taken longer. `window_to` None: the catalog no longer has it.
    """

    tenant_id: str | None
    window_from: str | None
    window_to: str | None
    action: str
    result: str
    duration_ms: int
    events: int | Unknown
    attempts: int | Unknown
    step: str | Unknown
    steps_ms: dict[str, int]
    retries: list[RetryGroup]
    why: str | Unknown
    caveat: str | None


class KindCount(_View, frozen=True, kw_only=True):
    """How many entries the journal has, by kind."""

    count: int
    last_entry_no: int | None
    last_at: str | None
    by_kind: dict[str, int]


class RunView(_View, frozen=True, kw_only=True):
    """Everything about one run, of one moment. `not_understood`: entries of a kind or form that this program
    does not know, as they are."""

    run_id: str
    kind: RunKind
    requested_by: str
    now: str
    started_at: str
    planned: Planned
    happened: Happened
    degraded: Degraded
    outcome: Outcome
    longest_window: LongestWindow | Unknown
    entries: KindCount
    not_understood: Listed


class EntriesPage(_View, frozen=True, kw_only=True):
    """A part of a journal in order. Ask again with `next_after` as `after`. An empty page of a run that has
    `ended` is the end."""

    entries: list[JournalEntry]
    next_after: int
    status: RunStatus
    ended: bool
