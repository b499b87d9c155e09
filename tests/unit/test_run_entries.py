"""Entries of run journals: their form in JSON, and the words in which they are told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from rich.text import Text

from eventstore.cli.run_text import entry_line
from eventstore.model import run as model
from eventstore.model.run import Entry, RunStatus, TaskAction, detail_of, entry_from, kind_of
from eventstore.query.run_entries import ENTRY_CLASSES
from eventstore.query.run_longest import seconds, why_so_long
from eventstore.query.run_view import JournalEntry, RetryGroup, Unknown

WINDOW = model.PlannedWindow(
    window_from="2024-03-01T00:00:00.000000Z",
    window_to="2024-03-02T00:00:00.000000Z",
    action=TaskAction.ARCHIVE,
    state="sealed",
    events=1000,
    first_seq=1,
    to_target="near",
)
# Every kind of entry, and words of the line that tells it.
ENTRIES: list[tuple[Entry, str]] = [
    (
        model.PlanResolved(policy_no=3, policy="by day", due=[WINDOW], hot_windows=2, archived_windows=5),
        "planned: 1 window due, 1,000 events; 2 windows stay hot, 5 archived",
    ),
    (model.PlanWarning(message="[red] is in the way"), "plan: [red] is in the way"),
    (
        model.WindowStarted(
            action=TaskAction.MOVE, state="dropped", events=7, worker="h/1", attempt=2, target="deep"
        ),
        "move to deep started: dropped, 7 events, attempt 2, by h/1",
    ),
    (
        model.WindowCompleted(
            action=TaskAction.ARCHIVE,
            events=1000,
            segments=1,
            size_bytes=12_345,
            duration_ms=44_000,
            steps_ms={"drop": 41_200},
        ),
        "archive completed in 44.0 s: 1,000 events, 1 segment, 12.3 kB",
    ),
    (
        model.WindowFailed(
            action=TaskAction.EXPIRE, error="away", code="target-unavailable", attempts=3, duration_ms=9
        ),
        "expire failed after 3 attempts: away",
    ),
    (
        model.FileWritten(target="near", name="k.p000", part=0, rows=10, size_bytes=999, created=False),
        "found in near: k.p000, 10 rows, 999 B",
    ),
    (
        model.FileRemoved(target="near", name="k.p000", size_bytes=999, reason="moved"),
        "removed from near (moved): k.p000, 999 B",
    ),
    (
        model.Retry(attempt=2, reason="readers held the table", backoff_s=0.5, what="drop"),
        "drop is tried again in 500 ms; try 2 failed: readers held the table",
    ),
    (
        model.QualityIssue(rule="volume", level="FAIL", message="a tenth of the usual", count=1),
        "quality FAIL, volume: a tenth of the usual",
    ),
    (
        model.SchemaChanged(added=["a", "b"], removed=["c"], type_changed=[("d", "int", "text")]),
        "shape changed: added a, b; removed c; d was int, is text",
    ),
    (model.Warned(message="look here"), "warning: look here"),
    (
        model.ParallelismAdjusted(from_=4, to=2, reason="appends are slow"),
        "parallelism 4 → 2: appends are slow",
    ),
    (model.ValidationResult(passed=False, segments=2, compared="values"), "NOT EQUAL: 2 segments"),
    (model.ReconciliationResult(source_count=10, archived_rows=9, matched=False), "COUNTS DIFFER: 10 at"),
    (
        model.RunCompleted(
            status=RunStatus.FAILED, duration_ms=1, windows=2, windows_failed=1, events=3, error="away"
        ),
        "run failed: away",
    ),
]
IDS = [kind_of(entry) for entry, _ in ENTRIES]


def line_of(kind: str, detail: dict[str, Any]) -> str:
    entry = JournalEntry(
        entry_no=1,
        at="2024-03-05T10:00:00.000000Z",
        kind=kind,
        tenant_id=None,
        window_from=None,
        detail=detail,
    )
    return Text.from_markup(entry_line(entry)).plain


def test_the_entries_here_are_all_there_are() -> None:
    assert {type(entry) for entry, _ in ENTRIES} == set(Entry.__subclasses__())
    assert {kind_of(entry): type(entry) for entry, _ in ENTRIES} == ENTRY_CLASSES


@pytest.mark.parametrize(("entry", "words"), ENTRIES, ids=IDS)
def test_an_entry_survives_json_and_is_told_in_words(entry: Entry, words: str) -> None:
    kept = msgspec.json.decode(msgspec.json.encode(detail_of(entry)))
    assert entry_from(kind_of(entry), kept) == entry
    assert words in line_of(kind_of(entry), kept)


def test_what_is_not_known_is_told_as_it_is() -> None:
    assert entry_from("quantum_leap", {"a": 1}) is None
    assert line_of("quantum_leap", {"a": "[b]"}) == 'quantum_leap {"a": "[b]"}'
    assert entry_from("retry", {"attempt": "x"}) is None
    assert line_of("retry", {"attempt": "x"}) == 'retry {"attempt": "x"}'


def test_an_entry_says_what_it_is_about() -> None:
    entry = JournalEntry(
        entry_no=1,
        at="2024-03-05T10:00:00.000000Z",
        kind="warning",
        tenant_id="acme",
        window_from="2024-03-01T07:00:00.000000Z",
        detail={"message": "m"},
    )
    assert Text.from_markup(entry_line(entry)).plain == "acme 2024-03-01 07:00  warning: m"


def group(what: str, count: int = 3, pauses_s: float = 6.0) -> RetryGroup:
    return RetryGroup(what=what, reason="readers held the table", count=count, windows=1, pauses_s=pauses_s)


def test_why_names_the_step_and_its_retries() -> None:
    steps = {"write": 2_000, "drop": 41_200}
    assert why_so_long(44_000, steps, [group("drop"), group("window", 1, 0)], 10, None) == (
        "drop took 41.2 s of 44.0 s (94 %): tried again 3 times (pauses of 6.0 s), readers held the table; "
        "window: tried again once, readers held the table"
    )


@pytest.mark.parametrize(
    ("events", "median", "words"),
    [
        (1000, 100, "it held 1,000 events, 10 times the median window's 100"),
        (200, 100, None),
        (1000, None, None),
        (5, 0, "it held 5 events, while the median window's were 0"),
    ],
)
def test_why_says_that_a_window_is_large(events: int, median: int | None, words: str | None) -> None:
    why = why_so_long(1000, {"write": 900}, [], events, median)
    assert why == "write took 900 ms of 1.0 s (90 %)" + (f"; {words}" if words else "")


def test_why_is_honest() -> None:
    assert isinstance(why_so_long(1000, {}, [group("drop")], 1, None), Unknown)
    assert isinstance(why_so_long(1000, {"write": 0}, [], 1, None), Unknown)
    assert why_so_long(1000, {"write": 300, "drop": 100}, [], 1, None) == (
        "write took 300 ms of 1.0 s (30 %); its steps explain 400 ms of it, the rest is unknown"
    )


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (12_340, "12.3 s"),
        (99_949, "99.9 s"),
        (99_950, "1 min 40 s"),
        (3_599_600, "1 h 0 min"),
        (7_800_000, "2 h 10 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_lengths_of_time(ms: float, text: str) -> None:
    assert seconds(ms) == text
