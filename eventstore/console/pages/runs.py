"""Runs: what is going on, and what went on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from eventstore.clock import US_PER_S, parse_time_us
from eventstore.console.links import with_query
from eventstore.console.runchart import HEIGHT, WIDTH, Measure, chart_of
from eventstore.console.runwords import entry_line, sections
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import Visit, visit
from eventstore.errors import InputError, RunNotFoundError
from eventstore.model.access import Permission
from eventstore.model.run import RunKind, RunStatus
from eventstore.query.run_longest import seconds
from eventstore.query.run_view import EntriesPage, RunView, Unknown
from eventstore.query.runs import before_last_entries, list_runs, read_entries, read_run

__all__ = ["router"]

router = APIRouter()

Choice = TypeVar("Choice", bound=StrEnum)
Operator = Annotated[Visit, visit(Permission.OPERATE)]

_BASE = "/console/runs"
_PAGE = 50
_ENTRIES = 100
# So many entries in one page of the browser's; then it asks to go on.
_SHOWN_MAX = 2000
_PILLS = {
    RunStatus.PLANNING: "archive",
    RunStatus.RUNNING: "archive",
    RunStatus.COMPLETED: "ok",
    RunStatus.FAILED: "bad",
    RunStatus.INTERRUPTED: "warn",
}
# A run that was planned for another time than its own was simulated.
_SIMULATED_US = 60 * US_PER_S


@router.get("/runs")
def show(
    request: Request,
    me: Operator,
    kind: str = "",
    status: str = "",
    cursor: str = "",
    chart: str = Measure.DURATION.value,
) -> Response:
    """Runs, newest first, under a chart of them. htmx is given the list and the chart alone."""
    kinds, statuses, measure = _choice(RunKind, kind), _choice(RunStatus, status), _choice(Measure, chart)
    runs, following = list_runs(
        me.store.database, limit=_PAGE, cursor=cursor or None, kind=kinds, status=statuses
    )
    asked = {"kind": kind, "status": status}
    context: dict[str, Any] = {
        "base": _BASE,
        "runs": runs,
        "drawn": chart_of(runs, measure or Measure.DURATION),
        "size": (WIDTH, HEIGHT),
        "pills": _PILLS,
        "seconds": seconds,
        "asked": asked,
        "cursor": cursor,
        "going_on": any(run.finished_at is None for run in runs) and not cursor,
        "here": with_query(_BASE, **asked, cursor=cursor, chart=chart),
        "older": with_query(_BASE, **asked, chart=chart, cursor=following) if following else None,
        "newest": with_query(_BASE, **asked, chart=chart),
        "measures": [(m.value, with_query(_BASE, **asked, cursor=cursor, chart=m.value)) for m in Measure],
    }
    if is_fragment(request):
        return render(request, me, "_runs.html", **context)
    return render(request, me, "runs.html", **context, kinds=list(RunKind), statuses=list(RunStatus))


def _choice(choices: type[Choice], text: str) -> Choice | None:
    if not text:
        return None
    try:
        return choices(text)
    except ValueError as e:
        raise InputError(f"{text[:60]!r} is none of what can be chosen here") from e


@router.get("/runs/{run_id}")
def one(
    run_id: str,
    request: Request,
    me: Operator,
    part: str = "",
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    shown: Annotated[int, Query(ge=0, le=_SHOWN_MAX)] = 0,
) -> Response:
    """One run: the answers about it, and its journal from `after` on. htmx is given the `answers` or what
    follows in the `journal`. A journal that is still written is shown from its last entries on."""
    which = _run_id(run_id)
    database = me.store.database
    base = f"{_BASE}/{which}"
    if is_fragment(request) and part == "journal":
        return render(request, me, "_run_entries.html", **_journal(me, which, after or 0, shown), base=base)
    view = read_run(database, which)
    answers = _answers(view) | {"base": base}
    if is_fragment(request) and part == "answers":
        return render(request, me, "_run_answers.html", **answers)
    if part:
        raise InputError("part: is none of this page", hint="load the page again")
    start = after
    if start is None:
        start = 0 if view.outcome.ended else before_last_entries(database, which, _ENTRIES)
    return render(request, me, "run.html", **answers, **_journal(me, which, start, 0), start=start)


def _run_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RunNotFoundError(f"there is no run {text!r}", hint="look at the list of runs") from None


def _answers(view: RunView) -> dict[str, Any]:
    progress = view.outcome.progress
    finished = progress.done + progress.failed + progress.blocked
    working = next(
        (entry for entry in reversed(view.happened.windows.unfinished.items) if entry.window_from), None
    )
    longest = view.longest_window
    return {
        "view": view,
        "sections": sections(view),
        "mark": _PILLS[view.outcome.status],
        "seconds": seconds,
        "finished": finished,
        "simulated": abs(parse_time_us(view.started_at) - parse_time_us(view.now)) > _SIMULATED_US,
        "working": None if working is None or view.outcome.ended else entry_line(working),
        "steps": {} if isinstance(longest, Unknown) else longest.steps_ms,
    }


def _journal(me: Visit, run_id: UUID, after: int, shown: int) -> dict[str, Any]:
    """The entries that follow, and how the page goes on from there: at once if there may be more, in a while
    if the run goes on, not at all if it has ended or shows enough."""
    page: EntriesPage = read_entries(me.store.database, run_id, after=after, limit=_ENTRIES)
    shown += len(page.entries)
    full = len(page.entries) == _ENTRIES
    return {
        "entries": [(entry, entry_line(entry)) for entry in page.entries],
        "next_after": page.next_after,
        "shown": shown,
        "at_once": full,
        "is_over": page.ended and not full,
        "is_enough": shown + _ENTRIES > _SHOWN_MAX,
    }
