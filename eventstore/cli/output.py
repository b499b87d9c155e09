"""How commands speak: tables on a terminal, JSON lines or CSV elsewhere; errors in one form."""

from __future__ import annotations

import sys
from enum import StrEnum

from rich.console import Console

__all__ = ["Format", "bytes_text", "console", "errors", "plural", "resolve_format"]

console = Console()
errors = Console(stderr=True)


class Format(StrEnum):
    """table for people, jsonl and csv for programs."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


def resolve_format(chosen: Format | None) -> Format:
    """The format asked for; else a table on a terminal and JSON lines in a pipe."""
    if chosen is not None:
        return chosen
    return Format.TABLE if sys.stdout.isatty() else Format.JSONL


def bytes_text(size_bytes: float) -> str:
    """A size for people, e.g. `12.3 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def plural(count: int, noun: str) -> str:
    """A count and its noun: `1 window`, `1,200 windows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
