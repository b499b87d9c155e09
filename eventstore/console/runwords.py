"""Runs in plain words: an entry of a journal in a line, and the answers about a run in sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass

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
    RunView,
    Unknown,
)

__all__ = ["Line", "Section", "entry_line", "plural", "sections", "window_text"]

# How many lines a list of an answer has on the page; the journal has them all.
_SHOWN = 10
_TEXT_MAX = 600


@dataclass(frozen=True, slots=True)
class Line:
    """A line. `mark` is `warn`, `bad`, `ok` or ''. `about` names the tenant and the window; '': neither."""

    text: str
    mark: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """An answer about a run, by its question."""

    key: str
    title: str
    lines: list[Line]


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def window_text(iso: str | None) -> str:
    """The beginning of a window: a day, or a day and its hour."""
    if iso is None:
        return ""
    return iso[:10] if iso[10:19] in ("", "T00:00:00") else iso[:16].replace("T", " ")


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


# --- an entry -------------------------------------------------------------------------------------------


def entry_line(entry: JournalEntry) -> Line:
    """An entry in one line, without its time."""
    about = " ".join(part for part in (entry.tenant_id, window_text(entry.window_from)) if part)
    text, mark = _words(entry)
    return Line(text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…", mark, about)


def _words(entry: JournalEntry) -> tuple[str, str]:
    known = model.entry_from(entry.kind, entry.detail)
    match known:
        case model.PlanResolved(due=due):
            events = sum(window.events for window in due)
            stay = f"{plural(known.hot_windows, 'window')} stay hot, {known.archived_windows:,} are archived"
            return f"Planned: {plural(len(due), 'window')} due, {plural(events, 'event')}; {stay}", ""
        case model.PlanWarning(message=message, failed=failed):
            return (f"Cannot be planned: {message}", "bad") if failed else (f"Plan: {message}", "warn")
        case model.WindowStarted():
            again = f", attempt {known.attempt}" if known.attempt > 1 else ""
            to = f" to {known.target}" if known.target else ""
            size = f", {plural(known.events, 'event')}" if known.events else ""
            return f"Begun: {known.action.value}{to}{size}{again}, by {known.worker}", ""
        case model.WindowCompleted():
            sizes = f"{plural(known.segments, 'segment')}, {_bytes(known.size_bytes)}"
            took = seconds(known.duration_ms)
            return f"Done: {known.action.value} in {took}, {plural(known.events, 'event')}, {sizes}", "ok"
        case model.WindowFailed(action=action, attempts=attempts, error=error):
            return f"Failed: {action.value} after {plural(attempts, 'attempt')}: {error}", "bad"
        case model.FileWritten():
            verb = "Written to" if known.created else "Found in"
            size = f"{plural(known.rows, 'row')}, {_bytes(known.size_bytes)}"
            return f"{verb} {known.target}: {known.name}, {size}", ""
        case model.FileRemoved():
            size = _bytes(known.size_bytes)
            return f"Removed from {known.target} ({known.reason}): {known.name}, {size}", ""
        case _:
            return _odd_words(entry, known)


def _odd_words(entry: JournalEntry, known: model.Entry | None) -> tuple[str, str]:
    match known:
        case model.Retry(attempt=attempt, reason=reason, backoff_s=backoff_s, what=what):
            when = f"in {seconds(backoff_s * 1000)}" if backoff_s else "at once"
            return f"Tried again {when}: {what}; try {attempt} failed: {reason}", "warn"
        case model.QualityIssue(rule=rule, level=level, message=message):
            return f"Quality {level}, {rule}: {message}", "bad" if level == "FAIL" else "warn"
        case model.SchemaChanged(added=added, removed=removed, type_changed=changed):
            parts = [f"added {', '.join(added)}"] if added else []
            parts += [f"removed {', '.join(removed)}"] if removed else []
            parts += [f"{name} was {before}, is {now}" for name, before, now in changed]
            return f"The shape of events changed: {'; '.join(parts)}", "warn"
        case model.Warned(message=message):
            return f"Warning: {message}", "warn"
        case model.ParallelismAdjusted(from_=before, to=after, reason=reason):
            return f"Windows at once: {before}, now {after}: {reason}", "warn" if after < before else ""
        case model.ValidationResult(passed=passed, segments=segments, compared=compared):
            what = f"{plural(segments, 'segment')} compared ({compared})"
            return (f"Read back: {what}, equal", "") if passed else (f"Not equal: {what}", "bad")
        case model.ReconciliationResult(source_count=source, archived_rows=rows, matched=matched):
            what = f"{source:,} at the source, {rows:,} in the archive"
            return (f"Counted: {what}", "") if matched else (f"Counts differ: {what}", "bad")
        case model.RunCompleted(status=status, error=error):
            mark = {"completed": "ok", "failed": "bad"}.get(status.value, "warn")
            return f"The run is {status.value}" + (f": {error}" if error else ""), mark
        case _:
            return f"{entry.kind} {json.dumps(entry.detail, ensure_ascii=False)}", ""


# --- the answers ----------------------------------------------------------------------------------------


def sections(view: RunView) -> list[Section]:
    """What was planned, what happened, what degraded, what the outcome is, and the longest window and why."""
    found = [
        Section("planned", "What was planned", _planned(view.planned)),
        Section("happened", "What happened", _happened(view.happened)),
        Section("degraded", "What degraded", _degraded(view.degraded)),
        Section("outcome", "What the outcome is", _outcome(view.outcome)),
        Section("longest", "Which window took longest, and why", _longest(view.longest_window)),
    ]
    if view.not_understood.count:
        odd = _items(view.not_understood)
        found.append(Section("odd", "What this version does not understand", odd))
    return found


def _planned(planned: Planned) -> list[Line]:
    lines = [
        Line(f"To {action}: {plural(sums.windows, 'window')} with {plural(sums.events, 'event')}.")
        for action, sums in planned.actions.items()
    ]
    if not lines:
        lines.append(Line("Nothing is due so far." if planned.note else "Nothing was due."))
    for tenant in planned.tenants[:_SHOWN]:
        due = f"{plural(tenant.due_count, 'window')} due, {plural(tenant.due_events, 'event')}"
        stay = f"{tenant.hot_windows:,} stay hot, {tenant.archived_windows:,} are archived"
        lines.append(
            Line(f"{due}; {stay}. Policy {tenant.policy_no}: {tenant.policy}.", about=tenant.tenant_id or "")
        )
    lines += _more(planned.tenant_count - min(len(planned.tenants), _SHOWN), "tenant")
    lines += _items(planned.warnings)
    if planned.note:
        lines.append(Line(planned.note, "warn"))
    return lines


def _happened(happened: Happened) -> list[Line]:
    windows, written, removed = happened.windows, happened.files_written, happened.files_removed
    segments = f"{plural(windows.segments, 'segment')}, {_bytes(windows.size_bytes)}"
    sizes = f"{plural(windows.events, 'event')} in {segments}"
    lines = [Line(f"{plural(windows.completed, 'window')} completed: {sizes}.")]
    if windows.failed:
        lines.append(Line(f"{plural(windows.failed, 'window')} failed.", "bad"))
    if windows.unfinished.count:
        lines.append(Line(f"{plural(windows.unfinished.count, 'window')} begun and not ended:", "warn"))
        lines += _items(windows.unfinished)
    if written.count:
        found = f"; {written.found:,} were there already" if written.found else ""
        sizes = f"{plural(written.rows, 'row')}, {_bytes(written.size_bytes)}"
        lines.append(Line(f"{plural(written.count, 'file')} written: {sizes}{found}."))
    if removed.count:
        lines.append(Line(f"{plural(removed.count, 'file')} removed: {_bytes(removed.size_bytes)}."))
    compared = happened.compared
    if compared.validations_passed:
        lines.append(Line(f"Read back and found equal {plural(compared.validations_passed, 'time')}.", "ok"))
    if compared.counts_matched:
        lines.append(Line(f"Counted and found equal {plural(compared.counts_matched, 'time')}.", "ok"))
    return lines + _items(happened.parallelism)


def _degraded(degraded: Degraded) -> list[Line]:
    if not degraded.anything:
        return [Line("Nothing.", "ok")]
    lines = []
    for group in degraded.retry_reasons[:_SHOWN]:
        of = f" of {plural(group.windows, 'window')}" if group.windows > 1 else ""
        pauses = seconds(group.pauses_s * 1000)
        tried = f"{group.what}{of} tried again {plural(group.count, 'time')}, pauses {pauses}"
        lines.append(Line(f"{tried}: {group.reason}", "warn"))
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
        about = f"{window['tenant_id']} {window_text(str(window.get('window_from')))}"
        lines.append(Line(f"Held by {', '.join(map(str, window['held_by']))}", "warn", about))
    return lines + _more(degraded.held_count - min(len(degraded.held), _SHOWN), "held window")


def _outcome(outcome: Outcome) -> list[Line]:
    so_far = "" if outcome.ended else " so far"
    did = f"{plural(outcome.windows, 'window')} completed, {plural(outcome.events, 'event')}"
    mark = {"completed": "ok", "failed": "bad", "interrupted": "warn"}.get(outcome.status.value, "")
    lines = [Line(f"The run is {outcome.status.value}, {seconds(outcome.duration_ms)}{so_far}: {did}.", mark)]
    if outcome.windows_failed:
        lines.append(Line(f"{plural(outcome.windows_failed, 'window')} failed.", "bad"))
    if isinstance(outcome.error, str):
        lines.append(Line(f"Why: {outcome.error}", "bad"))
    elif isinstance(outcome.error, Unknown) and outcome.ended:
        lines.append(Line(f"Why is unknown: {outcome.error.why}", "warn"))
    if outcome.activity:
        lines.append(
            Line(f"Now: {outcome.activity}.", "warn" if outcome.activity.startswith("no worker") else "")
        )
    return lines


def _longest(longest: LongestWindow | Unknown) -> list[Line]:
    if isinstance(longest, Unknown):
        return [Line(f"Unknown: {longest.why}")]
    about = " ".join(part for part in (longest.tenant_id, window_text(longest.window_from)) if part)
    lines = [Line(f"{longest.action} {longest.result} in {seconds(longest.duration_ms)}.", about=about)]
    why = longest.why
    lines.append(Line(f"Why is unknown: {why.why}" if isinstance(why, Unknown) else f"Why: {why}"))
    if longest.caveat:
        lines.append(Line(longest.caveat, "warn"))
    return lines


def _items(listed: Listed) -> list[Line]:
    shown = listed.items[:_SHOWN]
    return [*map(entry_line, shown), *_more(listed.count - len(shown), "entry")]


def _more(count: int, noun: str) -> list[Line]:
    if count <= 0:
        return []
    nouns = {"entry": "entries"}.get(noun, f"{noun}s") if count > 1 else noun
    return [Line(f"And {count:,} more {nouns}; the journal has them.")]
