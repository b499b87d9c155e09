"""The history of runs as a chart: a bar a run, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from eventstore.console.runwords import plural
from eventstore.model.run import RunStatus
from eventstore.query.run_longest import seconds
from eventstore.query.run_view import RunSummary

__all__ = ["HEIGHT", "WIDTH", "Bar", "Measure", "RunChart", "chart_of"]

WIDTH = 1000
HEIGHT = 160
_GAP = 0.2
_WIDTH_MAX = 40.0
# A run of nothing is seen, and one that failed more so.
_HEIGHT_MIN = 3.0
_CLASSES = {
    RunStatus.COMPLETED: "bar",
    RunStatus.FAILED: "bad",
    RunStatus.INTERRUPTED: "warn",
    RunStatus.RUNNING: "hot",
    RunStatus.PLANNING: "hot",
}


class Measure(StrEnum):
    """What the bars show."""

    DURATION = "duration"
    EVENTS = "events"


@dataclass(frozen=True, slots=True)
class Bar:
    """A run's bar, in units of the chart, and what it says. `cross` marks one that failed, for who sees no
    colours."""

    run_id: str
    x: float
    width: float
    y: float
    height: float
    kind: str
    label: str
    cross: bool


@dataclass(frozen=True, slots=True)
class RunChart:
    """A chart. `most` is what the highest bar stands for; `summary` says in a sentence what it shows."""

    bars: list[Bar]
    measure: Measure
    most: str
    first: str
    last: str
    summary: str


def chart_of(runs: Sequence[RunSummary], measure: Measure) -> RunChart | None:
    """The chart of runs, given newest first; None: there are none."""
    if not runs:
        return None
    values = [float(run.duration_ms if measure is Measure.DURATION else run.events) for run in runs]
    most = max(values) or 1.0
    width = min(WIDTH / len(runs), _WIDTH_MAX)
    bars = []
    for index, (run, value) in enumerate(zip(reversed(runs), reversed(values), strict=True)):
        failed = run.status is RunStatus.FAILED
        height = max(_HEIGHT_MIN * (3 if failed else 1), value / most * (HEIGHT - 16))
        bars.append(
            Bar(
                run.run_id,
                round(index * width + width * _GAP / 2, 2),
                round(width * (1 - _GAP), 2),
                round(HEIGHT - height, 2),
                round(height, 2),
                _CLASSES[run.status],
                f"{run.started_at[:16].replace('T', ' ')}, {run.kind.value}, {run.status.value}: "
                f"{seconds(run.duration_ms)}, {plural(run.windows, 'window')}, {plural(run.events, 'event')}",
                failed,
            )
        )
    shown = seconds(max(values)) if measure is Measure.DURATION else plural(int(max(values)), "event")
    failures = sum(run.status is RunStatus.FAILED for run in runs)
    said = f"{plural(len(runs), 'run')}, {failures:,} failed. The highest bar is {shown}."
    days = (runs[-1].started_at[:16].replace("T", " "), runs[0].started_at[:16].replace("T", " "))
    return RunChart(bars, measure, shown, *days, said)
