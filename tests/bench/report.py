"""The table on the terminal, and docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Measured, amount, spread

__all__ = ["console", "document", "kept_commentary", "known_figures", "machine", "remeasured", "show"]

console = Console()

_LIBRARIES = ("psycopg", "sqlalchemy", "pyarrow", "adbc-driver-postgresql", "duckdb", "fastapi", "uvicorn")
_BEGIN, _END = "<!-- commentary: what stands from here … -->", "<!-- … to here is kept by a re-run -->"
_NO_COMMENTARY = "(none yet)"


def machine(postgres: str) -> dict[str, str]:
    """What was measured on."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "PostgreSQL": postgres,
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size_bytes / 2**30:.0f} GiB"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = ", with uncommitted changes" if git("status", "--porcelain", "eventstore") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _name(measured: Measured) -> str:
    return f"{measured.row.what} / {measured.row.against}"


def _reached(measured: Measured) -> str:
    if measured.error is not None:
        return "failed"
    return {True: "yes", False: "**no**", None: "–"}[measured.reached]


def _figure(measured: Measured) -> str:
    figure = measured.figure
    if figure is None:
        return "–"
    return f"{amount(figure)} {measured.row.unit}" if measured.row.absolute else f"{figure:.2f}"


def _before(measured: Measured, before: Mapping[str, float]) -> str:
    known = before.get(_name(measured))
    if known is None:
        return "–"
    fell = measured.is_worse_than(known)
    text = f"{amount(known)} {measured.row.unit}" if measured.row.absolute else f"{known:.2f}"
    return f"{text}: fell" if fell else text


def show(results: Sequence[Measured], before: Mapping[str, float]) -> None:
    """Print the table; `before` are the figures of the run that the document tells of."""
    table = Table("what", "against", "goal", "figure", "reached", "before", box=None)
    for measured in results:
        colour = {True: "green", False: "red", None: "red" if measured.error else ""}[measured.reached]
        table.add_row(
            measured.row.what,
            measured.row.against,
            measured.row.goal,
            _figure(measured),
            f"[{colour}]{_reached(measured).strip('*')}[/]" if colour else _reached(measured),
            _before(measured, before),
        )
    console.print(table)
    for measured in results:
        console.print("\n" + _measurement(measured).replace("**", ""), highlight=False, markup=False)


def kept_commentary(document_text: str) -> str:
    """The hand-written part of a document made before."""
    _, found, rest = document_text.partition(_BEGIN)
    return rest.partition(_END)[0].strip() if found else _NO_COMMENTARY


def known_figures(document_text: str) -> dict[str, float]:
    """The figures in the table of a document made before, by row."""
    figures = {}
    for line in document_text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        number = re.match(r"[\d.,]+", cells[3]) if len(cells) == 6 else None
        if number:
            figures[f"{cells[0]} / {cells[1]}"] = float(number[0].replace(",", ""))
    return figures


def document(
    results: Sequence[Measured],
    machine_lines: Mapping[str, str],
    *,
    before: Mapping[str, float],
    commentary: str,
    elapsed_s: float,
) -> str:
    """The text of docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "Made by `make bench`. Each figure is the median of what was measured over the median of its limit, "
        "taken in the same run on the same machine in alternating runs; a ratio says more than a number "
        "taken elsewhere. A goal that was not reached is told as it is. *Before* is what this table said "
        "until then.",
        "\n".join(
            [
                "| what | against | goal | figure | reached | before |",
                "|---|---|---|---|---|---|",
                *(_line(m, before) for m in results),
            ]
        ),
        "## Machine",
        "\n".join(f"- {name}: {value}" for name, value in machine_lines.items())
        + f"\n- the whole run took {elapsed_s / 60:.0f} minutes",
        "## Measurements",
        "Medians, and in brackets the least and the greatest run.",
        "\n".join(_measurement(m) for m in results),
        "## Commentary",
        f"{_BEGIN}\n\n{commentary}\n\n{_END}",
    ]
    return "\n\n".join(parts) + "\n"


def remeasured(
    document_text: str,
    results: Sequence[Measured],
    machine_lines: Mapping[str, str],
    *,
    before: Mapping[str, float],
    names: Sequence[str],
) -> str:
    """A document made before, with the rows of some benchmarks that were carried out apart: in place of what
    it had of them, or behind the others. The machine's section says which, when, and of which commit."""
    text = document_text
    for one in results:
        text = _put(
            text, one, f"| {one.row.what} | {one.row.against} |", _line(one, before), "\n\n## Machine"
        )
        text = _put(text, one, f"- **{one.row.what}**", _measurement(one), "\n\n## Commentary")
    head, section, rest = text.partition("\n\n## Measurements")
    apart = f"- {', '.join(names)}: measured apart, {machine_lines['date']}, commit {machine_lines['commit']}"
    return f"{head}\n{apart}{section}{rest}"


def _put(text: str, measured: Measured, start: str, new: str, end: str) -> str:
    """Put what is new of a row in place of what begins so, or before the end of its section."""
    # A measurement's notes are indented below it. Two rows may have one name and different limits.
    pattern = rf"^{re.escape(start)}.*(?:\n  .*)*"
    for found in re.finditer(pattern, text, re.MULTILINE):
        if _is_of(measured, found[0]):
            return text[: found.start()] + new + text[found.end() :]
    return text.replace(end, f"\n{new}{end}", 1)


def _is_of(measured: Measured, found: str) -> bool:
    """Whether what begins with a row's name in the document is of this row, not of one with another limit."""
    row, first = measured.row, found.partition("\n")[0]
    if first.startswith("|") or ": failed: " in first:
        return first.startswith("|") or f", against {row.against}: failed: " in first
    return "; " not in first if row.absolute else f"; {row.against}: " in first


def _line(measured: Measured, before: Mapping[str, float]) -> str:
    """A line of the table."""
    row = measured.row
    cells = (
        row.what,
        row.against,
        row.goal,
        _figure(measured),
        _reached(measured),
        _before(measured, before),
    )
    return f"| {' | '.join(cells)} |"


def _measurement(measured: Measured) -> str:
    row = measured.row
    if measured.error is not None:
        return f"- **{row.what}**, against {row.against}: failed: {measured.error}"
    text = f"- **{row.what}**: {spread(measured.what, row.unit)}"
    if measured.against:
        text += f"; {row.against}: {spread(measured.against, row.unit)}"
    return "\n".join([f"{text}. {len(measured.what)} runs.", *(f"  {note}" for note in measured.notes)])
