"""The command that exports a log, or a part of it, into a file."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from eventstore.app import open_store
from eventstore.cli.filters import with_filter
from eventstore.cli.output import errors, plural
from eventstore.cli.reading import OrderOption, TenantArgument
from eventstore.errors import InputError
from eventstore.model.export import ExportFormat
from eventstore.model.query import EventFilter, Order
from eventstore.query.export import Export, export_events, failure
from eventstore.settings import load_settings

__all__ = ["register"]

_ENDINGS = {
    ".ndjson": ExportFormat.NDJSON,
    ".jsonl": ExportFormat.NDJSON,
    ".csv": ExportFormat.CSV,
    ".parquet": ExportFormat.PARQUET,
    ".arrow": ExportFormat.ARROW,
    ".arrows": ExportFormat.ARROW,
}
_TEXTS = (ExportFormat.NDJSON, ExportFormat.CSV)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


@with_filter()
def export(
    tenant: TenantArgument,
    form: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="Default: what the file's ending says; else ndjson."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The file, replaced when the export is complete; - is standard output.")
    ] = Path("-"),
    *,
    wanted: EventFilter,
    order: OrderOption = Order.ASC,
    bom: Annotated[
        bool, typer.Option("--bom", help="Begin CSV with a byte order mark, by which Excel knows UTF-8.")
    ] = False,
) -> None:
    """Write all events that meet the conditions into a file that other programs read."""
    chosen = form or _ENDINGS.get(output.suffix.lower(), ExportFormat.NDJSON)
    to_stdout = output == Path("-")
    if to_stdout and chosen not in _TEXTS and sys.stdout.isatty():
        raise InputError(f"{chosen.value} is nothing for a terminal", hint="give --output FILE")
    with open_store(load_settings()) as store:
        begun = export_events(store.reader, tenant, wanted, chosen, order=order, byte_order_mark=bom)
        if to_stdout:
            _to_stdout(begun, chosen)
        else:
            with _replacing(output) as file:
                for piece in _with_progress(begun, f"exporting {tenant}", order):
                    file.write(piece)
    where = "" if to_stdout else f", in {output}"
    errors.print(
        f"{plural(begun.progress.events, 'event')} of {tenant} as of seq {begun.through_seq:,}{where}",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    destroyed = sum(last - first + 1 for first, last, _ in begun.coverage.expired)
    if destroyed:
        numbers = ", ".join(map(str, sorted({number for _, _, number in begun.coverage.expired})))
        errors.print(
            f"[yellow]{plural(destroyed, 'event')} destroyed[/], under certificate {numbers}: not in it.",
            highlight=False,
            soft_wrap=True,
        )


def _to_stdout(begun: Export, form: ExportFormat) -> None:
    try:
        for piece in begun.pieces:
            sys.stdout.buffer.write(piece)
    except BrokenPipeError:
        raise
    except Exception as e:
        # In a pipe nobody looks at our exit status.
        sys.stdout.buffer.write(failure(form, e))
        raise
    finally:
        sys.stdout.buffer.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that comes to be at `path` when the block ends well; otherwise nothing changes there.

    Raises:
        InputError: it cannot be written there.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with staged.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as e:
        raise InputError(
            f"cannot write {path}: {e.strerror or e}", hint="name another file, or make room"
        ) from e
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _with_progress(begun: Export, title: str, order: Order) -> Iterator[bytes]:
    """The pieces, and a bar over the seqs that they have come to, on a terminal."""
    with Progress(
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task("export", total=begun.through_seq, events=0)
        for piece in begun.pieces:
            yield piece
            at = begun.progress.at_seq
            if at:
                done = at if order is Order.ASC else begun.through_seq - at + 1
                bar.update(task, completed=done, events=begun.progress.events)
