"""The answers about one run, from aggregates over its journal: planned, happened, degraded, outcome."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from eventstore.model.run import RunStatus
from eventstore.query.run_entries import (
    ENTRY_COLUMNS,
    HELD_LOCKS,
    IS_UNDERSTOOD,
    entry_view,
    iso,
    list_entries,
    number_sql,
)
from eventstore.query.run_longest import retry_groups
from eventstore.query.run_view import (
    LIST_MAX,
    Degraded,
    Files,
    Happened,
    JournalEntry,
    KindCount,
    Listed,
    Outcome,
    Planned,
    PlannedAction,
    Progress,
    Reconciled,
    TenantPlanned,
    Unknown,
    WindowCounts,
)

__all__ = ["Journaled"]

# What is summed up, and over which kinds of entries.
_SUMMED = {
    "events": "'window_completed'",
    "segments": "'window_completed'",
    "size_bytes": "'window_completed', 'file_written', 'file_removed'",
    "rows": "'file_written'",
    "source_count": "'reconciliation_result'",
    "archived_rows": "'reconciliation_result'",
}
# Which entries of a kind are counted, and listed, apart from the others.
_ODD = {
    "file_written": "detail->'created' = 'false'",
    "validation_result": "detail->'passed' = 'false'",
    "reconciliation_result": "detail->'matched' = 'false'",
    "quality_issue": "detail->>'level' = 'FAIL'",
    "plan_warning": "detail->'failed' = 'true'",
    "parallelism_adjusted": f"{number_sql('to')} < {number_sql('from')}",
}
_DUE = "CASE WHEN jsonb_typeof(detail->'due') = 'array' THEN detail->'due' ELSE '[]' END"
_HELD = "jsonb_typeof(d->'held_by') = 'array' AND d->'held_by' <> '[]'"
_EVENTS_DUE = "CASE WHEN jsonb_typeof(d->'events') = 'number' THEN CAST(d->'events' AS numeric) END"

# Each planned window as it was planned last.
_LAST_PLANNED = (
    "(SELECT DISTINCT ON (tenant_id, d->>'window_from', d->>'action') tenant_id, d"
    f" FROM run_entries, jsonb_array_elements({_DUE}) d"
    f" WHERE run_id = :run_id AND kind = 'plan_resolved' AND {IS_UNDERSTOOD}"
    " ORDER BY tenant_id, d->>'window_from', d->>'action', entry_no DESC) AS due"
)


@dataclass(frozen=True, slots=True)
class _Sums:
    """The understood entries of one kind: how many, how many of them are odd, the sums of their numbers."""

    count: int = 0
    odd: int = 0
    sums: dict[str, int] | None = None

    def __getitem__(self, member: str) -> int:
        return (self.sums or {}).get(member, 0)


class Journaled:
    """One run, read through one connection. Its transaction has to have one snapshot, so that the answers
    agree."""

    def __init__(self, conn: sa.Connection, run: sa.Row[Any]) -> None:
        self._conn = conn
        self._run = run
        self.run_id: uuid.UUID = run.run_id
        self.ended = run.finished_at is not None
        self._by_kind: dict[str, _Sums] = {}
        self._not_understood = 0
        self._held_count = 0
        self.entries = self._count()

    def _execute(self, query: str, **parameters: Any) -> sa.CursorResult[Any]:
        return self._conn.execute(sa.text(query), {"run_id": self.run_id, **parameters})

    def _count(self) -> KindCount:
        """One pass over the journal: how many entries of each kind, and the sums of what they say."""
        sums = ", ".join(
            f"coalesce(sum({number_sql(name)}) FILTER (WHERE kind IN ({kinds})), 0) AS {name}"
            for name, kinds in _SUMMED.items()
        )
        odd = " ".join(f"WHEN '{kind}' THEN {condition}" for kind, condition in _ODD.items())
        rows = self._execute(
            f"SELECT kind, {IS_UNDERSTOOD} AS understood, count(*) AS entries, max(entry_no) AS last_no,"
            f" max(at) AS last_at, count(*) FILTER (WHERE CASE kind {odd} END) AS odd, {sums}"
            " FROM run_entries WHERE run_id = :run_id GROUP BY 1, 2 ORDER BY min(entry_no)"
        ).all()
        by_kind: dict[str, int] = {}
        for row in rows:
            by_kind[row.kind] = by_kind.get(row.kind, 0) + row.entries
            if row.understood:
                found = {name: int(getattr(row, name)) for name in _SUMMED}
                self._by_kind[row.kind] = _Sums(row.entries, row.odd, found)
            else:
                self._not_understood += row.entries
        last = max(rows, key=lambda row: row.last_no, default=None)
        return KindCount(
            count=sum(by_kind.values()),
            last_entry_no=None if last is None else last.last_no,
            last_at=None if last is None else iso(last.last_at),
            by_kind=by_kind,
        )

    def _of(self, kind: str) -> _Sums:
        return self._by_kind.get(kind, _Sums())

    def _list(self, kind: str, condition: str = "true", *, count: int | None = None) -> Listed:
        return list_entries(
            self._conn,
            self.run_id,
            f"kind = '{kind}' AND {IS_UNDERSTOOD} AND {condition}",
            count=self._of(kind).count if count is None else count,
        )

    def _odd(self, kind: str) -> Listed:
        return self._list(kind, f"({_ODD[kind]})", count=self._of(kind).odd)

    def not_understood(self) -> Listed:
        """Entries of a kind or form that this program does not know."""
        return list_entries(self._conn, self.run_id, f"NOT {IS_UNDERSTOOD}", count=self._not_understood)

    # --- planned ------------------------------------------------------------------------------------

    def planned(self) -> Planned:
        """What was planned, tenant by tenant, and as sums over all windows."""
        tenants, actions = self._tenants(), self._actions()
        return Planned(
            tenant_count=self._of("plan_resolved").count,
            tenants=tenants,
            more_tenants=self._of("plan_resolved").count - len(tenants),
            actions=actions,
            windows=sum(action.windows for action in actions.values()),
            events=sum(action.events for action in actions.values()),
            warnings=self._list("plan_warning"),
            note=self._plan_note(),
        )

    def _actions(self) -> dict[str, PlannedAction]:
        """The windows that were planned, by what was to be done with them."""
        if not self._of("plan_resolved").count:
            return {}
        rows = self._execute(
            f"SELECT coalesce(d->>'action', 'unknown') AS action, count(*) AS windows,"
            f" coalesce(sum({_EVENTS_DUE}), 0) AS events, count(*) FILTER (WHERE {_HELD}) AS held"
            f" FROM {_LAST_PLANNED} GROUP BY 1 ORDER BY 1"
        ).all()
        self._held_count = sum(row.held for row in rows)
        return {row.action: PlannedAction(windows=row.windows, events=int(row.events)) for row in rows}

    def _plan_note(self) -> str | None:
        if self._run.status == RunStatus.PLANNING:
            return "planning has not ended: more tenants may follow"
        if self._of("plan_resolved").count:
            return None
        if self._run.status == RunStatus.COMPLETED:
            return "the journal has no plan: nothing was due"
        return "the journal has no plan"

    def _tenants(self) -> list[TenantPlanned]:
        """The plans of the first tenants, with `LIST_MAX` of their windows in all."""
        if not self._of("plan_resolved").count:
            return []
        rows = self._execute(
            "WITH plans AS ("
            f" SELECT entry_no, at, tenant_id, detail - 'due' AS detail, {_DUE} AS due,"
            f"  sum(jsonb_array_length({_DUE})) OVER (ORDER BY entry_no) AS through"
            f" FROM run_entries WHERE run_id = :run_id AND kind = 'plan_resolved' AND {IS_UNDERSTOOD}"
            " ORDER BY entry_no LIMIT :most)"
            " SELECT plans.*, jsonb_array_length(due) AS due_count,"
            f" (SELECT coalesce(sum({_EVENTS_DUE}), 0) FROM jsonb_array_elements(due) d) AS due_events,"
            " (SELECT coalesce(jsonb_agg(d ORDER BY n), '[]') FROM jsonb_array_elements(due)"
            "  WITH ORDINALITY AS each(d, n) WHERE n <= :most - (through - jsonb_array_length(due))) AS first"
            " FROM plans ORDER BY entry_no",
            most=LIST_MAX,
        ).all()
        return [
            TenantPlanned(
                entry_no=row.entry_no,
                at=iso(row.at),
                tenant_id=row.tenant_id,
                policy_no=int(row.detail["policy_no"]),
                policy=row.detail["policy"],
                due_count=row.due_count,
                due_events=int(row.due_events),
                due=row.first,
                more=row.due_count - len(row.first),
                hot_windows=int(row.detail["hot_windows"]),
                archived_windows=int(row.detail["archived_windows"]),
            )
            for row in rows
        ]

    # --- happened -----------------------------------------------------------------------------------

    def happened(self, windows: WindowCounts) -> Happened:
        """What was done. `windows` is what `window_counts` gives."""
        validations, counts = self._of("validation_result"), self._of("reconciliation_result")
        return Happened(
            windows=windows,
            files_written=self._files("file_written"),
            files_removed=self._files("file_removed"),
            retries=self._list("retry"),
            parallelism=self._list("parallelism_adjusted"),
            compared=Reconciled(
                validations_passed=validations.count - validations.odd,
                validations_failed=validations.odd,
                counts_matched=counts.count - counts.odd,
                counts_mismatched=counts.odd,
                source_count=counts["source_count"],
                archived_rows=counts["archived_rows"],
            ),
        )

    def _files(self, kind: str) -> Files:
        sums, listed = self._of(kind), self._list(kind)
        return Files(
            count=sums.count,
            rows=sums["rows"],
            size_bytes=sums["size_bytes"],
            found=sums.odd,
            items=listed.items,
            more=listed.more,
        )

    def window_counts(self) -> WindowCounts:
        """Each window by its last entry: a start that nothing followed is unfinished."""
        row = self._execute(
            "WITH each AS (SELECT"
            " max(entry_no) FILTER (WHERE kind = 'window_started') AS started,"
            " max(entry_no) FILTER (WHERE kind = 'window_completed') AS completed,"
            " max(entry_no) FILTER (WHERE kind = 'window_failed') AS failed"
            " FROM run_entries WHERE run_id = :run_id"
            f" AND kind IN ('window_started', 'window_completed', 'window_failed') AND {IS_UNDERSTOOD}"
            " GROUP BY tenant_id, window_from, detail->>'action')"
            " SELECT count(started) AS started,"
            " count(*) FILTER (WHERE completed > greatest(started, failed, 0)) AS completed,"
            " count(*) FILTER (WHERE failed > greatest(started, completed, 0)) AS failed,"
            " array_agg(started ORDER BY started)"
            "  FILTER (WHERE started > greatest(completed, failed, 0)) AS unfinished FROM each"
        ).one()
        unfinished = row.unfinished or []
        done = self._of("window_completed")
        return WindowCounts(
            started=row.started,
            completed=row.completed,
            failed=row.failed,
            unfinished=Listed(
                count=len(unfinished),
                items=self._entries(unfinished[:LIST_MAX]),
                more=max(0, len(unfinished) - LIST_MAX),
            ),
            events=done["events"],
            segments=done["segments"],
            size_bytes=done["size_bytes"],
        )

    def _entries(self, numbers: list[int]) -> list[JournalEntry]:
        if not numbers:
            return []
        rows = self._execute(
            f"SELECT {ENTRY_COLUMNS} FROM run_entries WHERE run_id = :run_id AND entry_no = ANY(:numbers)"
            " ORDER BY entry_no",
            numbers=numbers,
        )
        return [entry_view(row) for row in rows]

    # --- degraded -----------------------------------------------------------------------------------

    def degraded(self) -> Degraded:
        """Everything that did not go as it should. Ask for `planned` first: it counts the windows held."""
        retries = self._of("retry").count
        failed = self._list("window_failed")
        unplanned = self._odd("plan_warning")
        warnings, quality = self._list("warning"), self._list("quality_issue")
        schema_changes, lowered = self._list("schema_changed"), self._odd("parallelism_adjusted")
        unequal, miscounted = self._odd("validation_result"), self._odd("reconciliation_result")
        lists = (failed, unplanned, warnings, quality, schema_changes, lowered, unequal, miscounted)
        return Degraded(
            anything=bool(retries or self._held_count or any(listed.count for listed in lists)),
            retries=retries,
            retry_reasons=retry_groups(self._conn, self.run_id) if retries else [],
            failed_windows=failed,
            failed_tenants=unplanned,
            warnings=warnings,
            quality_fail=self._of("quality_issue").odd,
            quality_warn=quality.count - self._of("quality_issue").odd,
            quality=quality,
            schema_changes=schema_changes,
            lowered_parallelism=lowered,
            failed_validations=unequal,
            mismatches=miscounted,
            held_count=self._held_count,
            held=self._held(),
        )

    def _held(self) -> list[dict[str, Any]]:
        if not self._held_count:
            return []
        rows = self._execute(
            f"SELECT tenant_id, d FROM {_LAST_PLANNED} WHERE {_HELD}"
            " ORDER BY tenant_id, d->>'window_from' LIMIT :most",
            most=LIST_MAX,
        )
        return [{"tenant_id": row.tenant_id, **row.d} for row in rows]

    # --- outcome ------------------------------------------------------------------------------------

    def outcome(self, windows: WindowCounts) -> Outcome:
        """How it ended, or what it has come to so far."""
        status = RunStatus(self._run.status)
        last = self._list("run_completed", count=self._of("run_completed").count)
        said = last.items[-1].detail if self.ended and last.items else {}
        progress = self._progress()
        return Outcome(
            status=status,
            ended=self.ended,
            finished_at=None if self._run.finished_at is None else iso(self._run.finished_at),
            duration_ms=self._run.elapsed_ms,
            # The entry that ends a run taken over by another says 0, whatever had been done.
            windows=max(windows.completed, int(said.get("windows", 0))),
            windows_failed=max(windows.failed, int(said.get("windows_failed", 0))),
            events=max(windows.events, int(said.get("events", 0))),
            error=self._error(said),
            progress=progress,
            activity=None if self.ended else self._activity(status, progress),
        )

    def _error(self, said: dict[str, Any]) -> str | Unknown | None:
        if said:
            error: str | None = said.get("error")
            return error
        if not self.ended:
            return Unknown(why="the run has not ended")
        if self._run.status == RunStatus.COMPLETED:
            return None
        return Unknown(why="the journal does not say how the run ended (no run_completed)")

    def _progress(self) -> Progress:
        row = self._execute(
            "SELECT count(*) AS total,"
            " count(*) FILTER (WHERE state = 'waiting') AS waiting,"
            " count(*) FILTER (WHERE state = 'running') AS running,"
            " count(*) FILTER (WHERE state = 'done') AS done,"
            " count(*) FILTER (WHERE state = 'failed') AS failed,"
            " count(*) FILTER (WHERE state = 'blocked') AS blocked,"
            " count(*) FILTER (WHERE state = 'running' AND leased_until >= now()"
            f" AND holder IN {HELD_LOCKS}) AS at_work,"
            " min(not_before) FILTER (WHERE state = 'waiting') AS next_try, now() AS now"
            " FROM tasks WHERE run_id = :run_id"
        ).one()
        later = row.next_try is not None and row.next_try > row.now
        return Progress(
            total=row.total,
            waiting=row.waiting,
            running=row.running,
            done=row.done,
            failed=row.failed,
            blocked=row.blocked,
            at_work=row.at_work,
            abandoned=row.running - row.at_work,
            next_try_at=iso(row.next_try) if later else None,
        )

    def _activity(self, status: RunStatus, tasks: Progress) -> str:
        if tasks.at_work:
            one = tasks.at_work == 1
            return "1 window is being worked on" if one else f"{tasks.at_work:,} windows are being worked on"
        if status is RunStatus.PLANNING:
            held = f"SELECT holder IN {HELD_LOCKS} FROM runs WHERE run_id = :run_id"
            if self._execute(held).scalar_one():
                return "it is being planned"
            return "no worker is at it: the process that planned it is gone"
        if tasks.abandoned:
            some = "1 window" if tasks.abandoned == 1 else f"{tasks.abandoned:,} windows"
            return f"no worker is at it: those that had {some} in hand are gone, or their leases have run out"
        if tasks.waiting and tasks.next_try_at is not None:
            return f"no worker is at it: the next try is due at {tasks.next_try_at}"
        if tasks.waiting:
            return "no worker is at it: what waits is done by the next worker that runs"
        return "no worker is at it: every task has ended, but nobody has recorded how the run did"
