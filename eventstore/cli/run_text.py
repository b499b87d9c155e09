"""Runs in words: one line for an entry of a journal, and a page for everything about a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from eventstore.cli.output import bytes_text, plural
from eventstore.clock import US_PER_S, parse_time_us
from eventstore.model import run as model
from eventstore.query.run_longest import seconds
from eventstore.query.run_view import (
    Degraded,
    Happened,
    JournalEntry,
    Listed,
    LongestWindow,
    Outcome,
    Planned,
    RunSummary,
    RunView,
    Unknown,
)

__all__ = ["entry_line", "run_page", "runs_table"]

# How many lines a list has on the page; the journal has them all.
_SHOWN = 10
_FILES_SHOWN = 3
# How an activity begins that is none.
_IDLE = "no worker"
_COLOURS = {"completed": "green", "failed": "red", "interrupted": "yellow"}


# --- an entry -------------------------------------------------------------------------------------------


def entry_line(entry: JournalEntry) -> str:
    """An entry in one line of markup, without its time."""
    about = " ".join(part for part in (entry.tenant_id, _window(entry.window_from)) if part)
    words = _entry_words(entry)
    return f"[cyan]{escape(about)}[/]  {words}" if about else words


def _entry_words(entry: JournalEntry) -> str:
    known = model.entry_from(entry.kind, entry.detail)
    match known:
        case model.PlanResolved(due=due):
            events = sum(window.events for window in due)
            stay = f"{plural(known.hot_windows, 'window')} stay hot, {known.archived_windows:,} archived"
            return escape(f"planned: {plural(len(due), 'window')} due, {plural(events, 'event')}; {stay}")
        case model.PlanWarning(message=message, failed=failed):
            return f"[red]cannot be planned:[/] {escape(message)}" if failed else _warned(message, "plan: ")
        case model.WindowStarted():
            again = f", attempt {known.attempt}" if known.attempt > 1 else ""
            to = f" to {known.target}" if known.target else ""
            # How many an open window has is known once it is sealed.
            size = f", {plural(known.events, 'event')}" if known.events else ""
            return escape(f"{known.action}{to} started: {known.state}{size}{again}, by {known.worker}")
        case model.WindowCompleted():
            return escape(
                f"{known.action} completed in {seconds(known.duration_ms)}: {plural(known.events, 'event')},"
                f" {plural(known.segments, 'segment')}, {bytes_text(known.size_bytes)}"
            )
        case model.WindowFailed(action=action, attempts=attempts, error=error):
            return f"[red]{action} failed[/] after {plural(attempts, 'attempt')}: {escape(error)}"
        case model.FileWritten():
            verb = "written" if known.created else "found"
            size = f"{plural(known.rows, 'row')}, {bytes_text(known.size_bytes)}"
            return escape(f"{verb} in {known.target}: {known.name}, {size}")
        case model.FileRemoved():
            size = bytes_text(known.size_bytes)
            return escape(f"removed from {known.target} ({known.reason}): {known.name}, {size}")
        case _:
            return _odd_words(entry, known)


def _odd_words(entry: JournalEntry, known: model.Entry | None) -> str:
    match known:
        case model.Retry(attempt=attempt, reason=reason, backoff_s=backoff_s, what=what):
            when = f"in {seconds(backoff_s * 1000)}" if backoff_s else "at once"
            return f"[yellow]{escape(what)} is tried again[/] {when}; try {attempt} failed: {escape(reason)}"
        case model.QualityIssue(rule=rule, level=level, message=message):
            colour = "red" if level == "FAIL" else "yellow"
            return f"[{colour}]quality {escape(level)}, {escape(rule)}:[/] {escape(message)}"
        case model.SchemaChanged(added=added, removed=removed, type_changed=changed):
            parts = [f"added {', '.join(added)}"] if added else []
            parts += [f"removed {', '.join(removed)}"] if removed else []
            parts += [f"{name} was {before}, is {now}" for name, before, now in changed]
            return _warned("; ".join(parts), "shape changed: ")
        case model.Warned(message=message):
            return _warned(message, "")
        case model.ParallelismAdjusted(from_=before, to=after, reason=reason):
            return escape(f"parallelism {before} → {after}: {reason}")
        case model.ValidationResult(passed=passed, segments=segments, compared=compared):
            what = f"{plural(segments, 'segment')} compared ({compared})"
            return escape(f"read back: {what}, equal") if passed else f"[red]NOT EQUAL:[/] {escape(what)}"
        case model.ReconciliationResult(source_count=source, archived_rows=rows, matched=matched):
            what = f"{source:,} at the source, {rows:,} in the archive"
            return f"counted: {what}" if matched else f"[red]COUNTS DIFFER:[/] {what}"
        case model.RunCompleted(status=status, error=error):
            colour = _COLOURS.get(status.value, "yellow")
            return f"[{colour}]run {status.value}[/]" + (f": {escape(error)}" if error else "")
        case _:
            return escape(f"{entry.kind} {json.dumps(entry.detail, ensure_ascii=False)}")


def _warned(message: str, prefix: str) -> str:
    return f"[yellow]{prefix or 'warning: '}[/]{escape(message)}"


# --- the list -------------------------------------------------------------------------------------------


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """A line a run."""
    table = Table(
        "run",
        "started (UTC)",
        "kind",
        "status",
        "windows",
        "events",
        "duration",
        "requested by",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[:3]:
        column.no_wrap = True
    for column in table.columns[4:7]:
        column.justify = "right"
    for run in runs:
        ended = run.finished_at is not None
        windows = f"{run.windows:,}" if ended or not run.tasks else f"{run.windows:,} of {run.tasks:,}"
        table.add_row(
            run.run_id[:8],
            _time(run.started_at),
            run.kind.value,
            _status(run.status, worked_on=ended or bool(run.at_work) or run.status != "running"),
            windows + (f" [red]({run.windows_failed:,} failed)[/]" if run.windows_failed else ""),
            f"{run.events:,}",
            seconds(run.duration_ms) + ("" if ended else " …"),
            escape(run.requested_by),
        )
    return table


def _status(status: model.RunStatus, *, worked_on: bool = True) -> str:
    text = f"[{_COLOURS.get(status.value, 'cyan')}]{status.value}[/]"
    return text if worked_on else f"{text} [yellow](no worker)[/]"


# --- the page -------------------------------------------------------------------------------------------


def run_page(view: RunView) -> RenderableType:
    """Everything about a run, for a person."""
    idle = (view.outcome.activity or "").startswith(_IDLE)
    simulated = abs(parse_time_us(view.started_at) - parse_time_us(view.now)) > 60 * US_PER_S
    as_of = f", as if it were {_time(view.now)} UTC" if simulated else ""
    parts: list[RenderableType] = [
        f"Run [bold]{view.run_id}[/]: {view.kind.value}, {_status(view.outcome.status, worked_on=not idle)}",
        f"[dim]started {_time(view.started_at)} UTC by {escape(view.requested_by)}{as_of}[/]",
    ]
    for title, lines in (
        ("Planned", _planned(view.planned)),
        ("Happened", _happened(view.happened)),
        ("Degraded", _degraded(view.degraded)),
        ("Outcome", _outcome(view.outcome)),
        ("Longest window", _longest(view.longest_window)),
        ("Not understood", _items(view.not_understood)),
    ):
        if lines:
            parts += ["", f"[bold]{title}[/]", *(Padding(line, (0, 0, 0, 2), expand=False) for line in lines)]
    return Group(*parts)


def _planned(planned: Planned) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for action, sums in planned.actions.items():
        lines.append(f"{action}: {plural(sums.windows, 'window')}, {plural(sums.events, 'event')}")
    if planned.tenants:
        table = Table(
            "tenant", "due", "events", "oldest", "stay hot", "archived", "policy", box=None, pad_edge=False
        )
        for column in (*table.columns[1:3], *table.columns[4:6]):
            column.justify = "right"
        for tenant in planned.tenants[:_SHOWN]:
            table.add_row(
                escape(tenant.tenant_id or "?"),
                f"{tenant.due_count:,}",
                f"{tenant.due_events:,}",
                _window(str(tenant.due[0].get("window_from"))) if tenant.due else "",
                f"{tenant.hot_windows:,}",
                f"{tenant.archived_windows:,}",
                escape(f"{tenant.policy_no}: {tenant.policy}"),
            )
        lines.append(table)
        lines += _more(planned.tenant_count - min(len(planned.tenants), _SHOWN), "tenant")
    lines += _items(planned.warnings)
    if planned.note:
        lines.append(escape(planned.note))
    return lines


def _happened(happened: Happened) -> list[RenderableType]:
    windows, written, removed = happened.windows, happened.files_written, happened.files_removed
    parts = [f"{windows.completed:,} completed"]
    parts += [f"[red]{windows.failed:,} failed[/]"] if windows.failed else []
    parts += (
        [f"[yellow]{windows.unfinished.count:,} begun and not ended[/]"] if windows.unfinished.count else []
    )
    lines: list[RenderableType] = [
        f"windows: {', '.join(parts)}; {plural(windows.events, 'event')},"
        f" {plural(windows.segments, 'segment')}, {bytes_text(windows.size_bytes)}"
    ]
    lines += _items(windows.unfinished)
    if written.count:
        found = f"; {written.found:,} already there" if written.found else ""
        size = f"{plural(written.rows, 'row')}, {bytes_text(written.size_bytes)}"
        lines.append(f"{plural(written.count, 'file')} written: {size}{found}")
        lines += [_short(str(entry.detail.get("name"))) for entry in written.items[:_FILES_SHOWN]]
        lines += _more(written.count - min(len(written.items), _FILES_SHOWN), "file")
    if removed.count:
        lines.append(f"{plural(removed.count, 'file')} removed: {bytes_text(removed.size_bytes)}")
    compared = happened.compared
    if compared.validations_passed or compared.counts_matched:
        lines.append(
            f"read back and equal: {plural(compared.validations_passed, 'time')};"
            f" counts equal: {plural(compared.counts_matched, 'time')}"
        )
    lines += _items(happened.parallelism)
    return lines


def _degraded(degraded: Degraded) -> list[RenderableType]:
    if not degraded.anything:
        return ["[green]nothing[/]"]
    lines: list[RenderableType] = []
    for group in degraded.retry_reasons[:_SHOWN]:
        of = f" of {plural(group.windows, 'window')}" if group.windows > 1 else ""
        lines.append(
            f"[yellow]{escape(group.what)} tried again {plural(group.count, 'time')}[/]{of}"
            f" (pauses {seconds(group.pauses_s * 1000)}): {escape(group.reason)}"
        )
    for listed in (
        degraded.failed_tenants,
        degraded.failed_windows,
        degraded.failed_validations,
        degraded.mismatches,
        degraded.quality,
        degraded.schema_changes,
        degraded.warnings,
        degraded.lowered_parallelism,
    ):
        lines += _items(listed)
    for window in degraded.held[:_SHOWN]:
        holds = ", ".join(map(str, window["held_by"]))
        about = f"{window['tenant_id']} {_window(str(window.get('window_from')))}"
        lines.append(f"[cyan]{escape(about)}[/]  [yellow]held by {escape(holds)}[/]")
    return lines + _more(degraded.held_count - min(len(degraded.held), _SHOWN), "held window")


def _outcome(outcome: Outcome) -> list[RenderableType]:
    so_far = "" if outcome.ended else " so far"
    failed = f", [red]{outcome.windows_failed:,} failed[/]" if outcome.windows_failed else ""
    lines: list[RenderableType] = [
        f"{_status(outcome.status)}, {seconds(outcome.duration_ms)}{so_far}:"
        f" {plural(outcome.windows, 'window')} completed{failed}, {plural(outcome.events, 'event')}"
    ]
    if isinstance(outcome.error, str):
        lines.append(f"[red]{escape(outcome.error)}[/]")
    elif isinstance(outcome.error, Unknown) and outcome.ended:
        lines.append(f"why: unknown; {outcome.error.why}")
    progress = outcome.progress
    if not outcome.ended and progress.total:
        states = ("done", "running", "waiting", "failed", "blocked")
        counts = [(state, getattr(progress, state)) for state in states]
        lines.append(
            f"of {plural(progress.total, 'task')}: "
            + ", ".join(f"{count:,} {state}" for state, count in counts if count)
        )
    if outcome.activity:
        idle = outcome.activity.startswith(_IDLE)
        lines.append(f"[yellow]{outcome.activity}[/]" if idle else outcome.activity)
    return lines


def _longest(longest: LongestWindow | Unknown) -> list[RenderableType]:
    if isinstance(longest, Unknown):
        return [f"unknown: {longest.why}"]
    about = " ".join(part for part in (longest.tenant_id, _window(longest.window_from)) if part)
    lines: list[RenderableType] = [
        f"[cyan]{escape(about)}[/]  {longest.action} {longest.result}, {seconds(longest.duration_ms)}"
    ]
    why = longest.why
    lines.append(f"why: unknown; {why.why}" if isinstance(why, Unknown) else escape(why))
    if longest.caveat:
        lines.append(f"[yellow]{escape(longest.caveat)}[/]")
    return lines


def _items(listed: Listed) -> list[RenderableType]:
    shown = listed.items[:_SHOWN]
    lines: list[RenderableType] = [entry_line(entry) for entry in shown]
    return lines + _more(listed.count - len(shown), "more")


def _more(count: int, noun: str) -> list[RenderableType]:
    if count <= 0:
        return []
    return [f"[dim]… and {count:,} more[/]" if noun == "more" else f"[dim]… and {count:,} more {noun}s[/]"]


def _short(name: str) -> str:
    return f"[dim]{escape(name)}[/]"


def _time(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _window(iso: str | None) -> str:
    """The beginning of a window: a day, or a day and its hour."""
    if iso is None:
        return ""
    return iso[:10] if iso[10:19] in ("", "T00:00:00") else iso[:16].replace("T", " ")
