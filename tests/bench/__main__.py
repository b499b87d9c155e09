"""`python -m tests.bench`: run the benchmarks, print the table, and keep it in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from tests.bench.lab import ROOT, Lab
from tests.bench.measure import Measured, Row
from tests.bench.report import (
    console,
    document,
    kept_commentary,
    known_figures,
    machine,
    remeasured,
    show,
)

_DOCUMENT = ROOT / "docs" / "benchmarks.md"

# In the order of the table.
_BENCHMARKS = {
    "batches": "tests.bench.http_batches",
    "singles": "tests.bench.http_singles",
    "compaction": "tests.bench.compaction",
    "windows": "tests.bench.big_windows",
    "queries": "tests.bench.archive_queries",
    "export": "tests.bench.export",
    "tenants": "tests.bench.many_tenants",
    "retention": "tests.bench.during_retention",
    "fleet": "tests.bench.fleet",
    "runs": "tests.bench.runs",
    "feed": "tests.bench.feed",
    "rls": "tests.bench.rls",
    "client": "tests.bench.client",
    "console": "tests.bench.console",
}


class _Benchmark(Protocol):
    ROWS: Sequence[Row]

    def run(self, lab: Lab) -> list[Measured]: ...


def main() -> int:
    """Exit status 1 only if a benchmark could not be carried out; a goal not reached is no failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_BENCHMARKS, default=list(_BENCHMARKS), metavar="NAME")
    parser.add_argument("--keep", action="store_true", help="with --only: renew those rows of the document")
    parser.add_argument("--quick", action="store_true", help="small sizes, two runs: to try the suite out")
    parser.add_argument("--home", type=Path, help="where to work (20 GB); the system's temporary folder")
    given = parser.parse_args()
    text = _DOCUMENT.read_text(encoding="utf-8") if _DOCUMENT.exists() else ""
    before = known_figures(text)
    started = time.monotonic()
    results: list[Measured] = []
    with Lab(quick=given.quick, home=given.home) as lab:
        description = machine(lab.versions())
        try:
            for name in given.only:
                results += _carry_out(name, lab)
        except KeyboardInterrupt:
            console.print("Stopped; what follows is what was done by then.")
    show(results, before)
    full = len(results) == sum(len(_load(name).ROWS) for name in _BENCHMARKS)
    if given.quick or not (full or given.keep):
        console.print(f"Not kept in {_DOCUMENT.relative_to(ROOT)}: a full run is, or one with --keep.")
    elif not full:
        made = remeasured(text, results, description, before=before, names=given.only)
        _DOCUMENT.write_text(made, encoding="utf-8")
        console.print(f"Kept in {_DOCUMENT.relative_to(ROOT)}, beside what it has.")
    else:
        made = document(
            results,
            description,
            before=before,
            commentary=kept_commentary(text),
            elapsed_s=time.monotonic() - started,
        )
        _DOCUMENT.write_text(made, encoding="utf-8")
        console.print(f"Kept in {_DOCUMENT.relative_to(ROOT)}.")
    return 1 if any(measured.error is not None for measured in results) else 0


def _load(name: str) -> _Benchmark:
    return cast(_Benchmark, import_module(_BENCHMARKS[name]))


def _carry_out(name: str, lab: Lab) -> list[Measured]:
    """One benchmark's rows; if it fails, they say so, and the others go on."""
    benchmark = _load(name)
    lab.begin(name)
    started = time.monotonic()
    try:
        found = benchmark.run(lab)
    except Exception as e:  # noqa: BLE001 - told in the table
        traceback.print_exc()
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        found = [Measured(row, error=reason) for row in benchmark.ROWS]
    console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)
    return found


if __name__ == "__main__":
    sys.exit(main())
