"""The command that imports a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from eventstore.app import open_store
from eventstore.cli.output import errors
from eventstore.intake.importer import ImportProgress, ImportReport, import_file
from eventstore.intake.source import ImportFormat
from eventstore.settings import load_settings

__all__ = ["import_progress", "register", "report_text"]


def register(app: typer.Typer) -> None:
    """Add the importing command."""
    app.command("import")(import_)


def import_(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    file: Annotated[str, typer.Argument(help="A Parquet, JSONL or CSV file; - for standard input.")],
    form: Annotated[
        ImportFormat | None, typer.Option("--format", help="Default: by the file's suffix.")
    ] = None,
    recorded_at: Annotated[
        str | None,
        typer.Option(help="Column with the times at which an older history was recorded; default: now."),
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rows that cannot be taken go; default FILE.rejects.jsonl.")
    ] = None,
) -> None:
    """Load a file's rows as events, in order.

    A killed import goes on where it stopped when it is run again, without duplicates. Columns that are no
    event field go into metadata.

    Exit status 0: every row is stored. 1: some rows were rejected, and lie in the reject file.
    """
    settings = load_settings()
    with open_store(settings) as store, import_progress(tenant) as progress:
        report = import_file(
            store.database,
            tenant,
            sys.stdin.buffer if file == "-" else Path(file),
            file_format=form,
            recorded_at_column=recorded_at,
            rejects=rejects,
            value_bytes_max=settings.value_bytes_max,
            progress=progress,
        )
    typer.echo(f"{tenant}: {report_text(report)}")
    if report.rows_rejected:
        errors.print(f"[yellow]Rejected rows are in[/] {escape(str(report.rejects_path))}", highlight=False)
        raise typer.Exit(1)


@contextmanager
def import_progress(label: str) -> Iterator[Callable[[ImportProgress], None]]:
    """A progress bar on a terminal, for `import_file`."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} events"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=None, rows=0)

        def update(now: ImportProgress) -> None:
            bar.update(
                task,
                description=f"{label}: {'reading the file' if now.hashing else 'importing'}",
                completed=now.bytes_done,
                total=now.bytes_total,
                rows=now.rows_stored,
            )

        yield update


def report_text(report: ImportReport) -> str:
    """What became of a file, in a sentence."""
    if report.already_finished:
        return f"this file was imported before ({report.rows_stored:,} events); nothing to do."
    text = f"{report.rows_stored:,} of {report.rows_read:,} rows stored"
    if report.first_seq is not None:
        text += f", seq {report.first_seq} to {report.last_seq}"
    if report.resumed_from:
        text += f" (resumed behind row {report.resumed_from:,})"
    if report.duplicates:
        text += f"; {report.duplicates:,} were there already"
    if report.rows_rejected:
        text += f"; {report.rows_rejected:,} rejected"
    return text + "."
