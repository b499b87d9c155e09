"""How commands show events: tables for people, lines for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from eventstore.cli.output import Format, console
from eventstore.query.render import csv_header, csv_lines, event_views, json_lines

__all__ = ["write_events"]


def write_events(tables: Iterable[pa.Table], form: Format) -> int:
    """Write a stream of events to standard output; how many there were."""
    match form:
        case Format.JSONL:
            return _write_jsonl(tables)
        case Format.CSV:
            return _write_csv(tables)
        case Format.TABLE:
            return _write_table(tables)


def _write_jsonl(tables: Iterable[pa.Table]) -> int:
    return _write_lines(tables, json_lines)


def _write_csv(tables: Iterable[pa.Table]) -> int:
    # An answer without events has its header all the same.
    sys.stdout.buffer.write(csv_header())
    return _write_lines(tables, csv_lines)


def _write_lines(tables: Iterable[pa.Table], lines: Callable[[pa.Table], Iterator[bytes]]) -> int:
    count = 0
    for table in tables:
        for piece in lines(table):
            sys.stdout.buffer.write(piece)
        count += table.num_rows
    sys.stdout.buffer.flush()
    return count


def _write_table(tables: Iterable[pa.Table]) -> int:
    """A table a screenful at a time, so that a long answer shows at once and memory stays bounded."""
    count = 0
    for events in tables:
        for start in range(0, events.num_rows, 500):
            table = _event_table(events, header=count + start == 0)
            for view in event_views(events.slice(start, 500)):
                old, new = (bytes(v).decode() for v in (view.old_value, view.new_value))
                table.add_row(
                    str(view.seq),
                    view.recorded_at[:16].replace("T", " "),
                    escape(view.action),
                    escape(view.entity_id),
                    escape(view.field),
                    escape(f"{_short(old)} → {_short(new)}"),
                    escape(view.actor),
                )
            console.print(table)
        count += events.num_rows
    return count


def _event_table(events: pa.Table, *, header: bool) -> Table:
    """An empty table whose columns share the terminal's width; what does not fit is cut or folded."""

    def widest(name: str, least: int, most: int) -> int:
        longest = pc.max(pc.utf8_length(events.column(name).cast(pa.string()))).as_py() or 0
        return int(min(max(longest, least), most))

    fixed = {"seq": widest("seq", 3, 18), "action": widest("action", 6, 10), "field": widest("field", 5, 16)}
    rest = max(36, console.width - sum(fixed.values()) - 16 - 6 * 2)
    actor = widest("actor", 5, rest // 5)
    entity = widest("entity_id", 6, (rest - actor) * 2 // 5)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    table.add_column("seq", justify="right", style="cyan", width=fixed["seq"], no_wrap=True)
    table.add_column("recorded (UTC)", width=16, no_wrap=True)
    table.add_column("action", style="green", width=fixed["action"], no_wrap=True)
    table.add_column("entity", width=entity, overflow="fold")
    table.add_column("field", width=fixed["field"], no_wrap=True)
    table.add_column("old → new", width=rest - actor - entity, no_wrap=True)
    table.add_column("actor", style="magenta", width=actor, no_wrap=True)
    return table


def _short(value: str, width: int = 30) -> str:
    if value == "null":
        return "–"
    return value if len(value) <= width else value[: width - 1] + "…"
