"""docs/benchmarks.md keeps what was measured: of a whole run, or of parts that were measured again."""

from __future__ import annotations

import pytest

from tests.bench.measure import Measured, Row
from tests.bench.report import document, known_figures, remeasured

ROWS = (
    Row("compaction", "a copy", "events/s", at_least=0.4),
    Row("compaction", "a loop", "events/s", at_least=4),
    Row("memory", "of less", "MB", at_most=1.2),
    Row("memory", "a fixed limit", "MB", at_most=400, absolute=True),
)
MACHINE = {"date": "2026-01-01 00:00 UTC", "commit": "aaaaaaa", "CPU": "one"}


def measured(row: Row, what: float, note: str) -> Measured:
    return Measured(row, [what] * 3, [] if row.absolute else [10.0], [note])


def whole(results: list[Measured]) -> str:
    return document(results, MACHINE, before={}, commentary="Words.", elapsed_s=60)


@pytest.mark.parametrize("failed", [False, True])
def test_rows_that_are_measured_again_take_the_place_of_theirs(failed: bool) -> None:
    first = [
        Measured(row, error="RuntimeError: no") if failed else measured(row, 5, f"note {number}")
        for number, row in enumerate(ROWS)
    ]
    text = whole(first)
    again = [measured(row, 7, f"note {number} again") for number, row in enumerate(ROWS[1:], 1)]
    now = {"date": "2026-02-02 00:00 UTC", "commit": "bbbbbbb"}
    made = remeasured(text, again, now, before=known_figures(text), names=["parts"])
    assert known_figures(made) == {
        **({} if failed else {"compaction / a copy": 0.5}),
        "compaction / a loop": 0.7,
        "memory / of less": 0.7,
        "memory / a fixed limit": 7,
    }
    assert [made.count(f"note {number} again") for number in range(4)] == [0, 1, 1, 1]
    assert made.count("failed") == (2 if failed else 0)
    assert "- parts: measured apart, 2026-02-02 00:00 UTC, commit bbbbbbb\n\n## Measurements" in made
    assert made.endswith(text[text.index("## Commentary") :])


def test_rows_that_the_document_does_not_have_come_behind_the_others() -> None:
    text = whole([measured(ROWS[0], 5, "old")])
    new = Row("nothing", "of it", "ms")
    made = remeasured(text, [measured(new, 1, "new")], MACHINE, before={}, names=["strange"])
    assert known_figures(made) == {"compaction / a copy": 0.5, "nothing / of it": 0.1}
    assert made.index("old") < made.index("- **nothing**") < made.index("  new\n\n## Commentary")
    assert made.index("| compaction |") < made.index("| nothing |") < made.index("## Machine")
