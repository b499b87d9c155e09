"""The command that makes the catalog anew from the archive targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from eventstore.archive.targets import Targets
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.db.migrate import check_schema, current_version, upgrade
from eventstore.errors import InputError
from eventstore.governance.signing import SigningKey, VerifyKey
from eventstore.model.policy import DEFAULT_TARGET
from eventstore.opening import open_database
from eventstore.repair.rebuild import RebuildReport, rebuild
from eventstore.settings import load_settings

__all__ = ["progress_bar", "register"]


@contextmanager
def progress_bar(*columns: ProgressColumn) -> Iterator[Progress]:
    """A progress bar on a terminal, nothing elsewhere."""
    with Progress(
        *columns, TimeElapsedColumn(), console=errors, transient=True, disable=not errors.is_terminal
    ) as bar:
        yield bar


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rebuild")(rebuild_)


def rebuild_(
    trust_key: Annotated[
        list[Path] | None,
        typer.Option(help="A public key (PEM) that signed certificates, besides this store's. Repeatable."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="A tenant that cannot be rebuilt; the rebuild ends without it. Repeatable."),
    ] = None,
) -> None:
    """Rebuild the catalog from the archive targets alone, into an empty database, after Postgres was lost.

    Exit status 1 when a tenant could not be rebuilt. Killed, run it again: it goes on. Until it has come to
    its end, every other command refuses the database.
    """
    settings = load_settings()
    trusted = [_public_key(path) for path in trust_key or ()]
    targets = Targets(settings.target_urls, default=DEFAULT_TARGET)
    with (
        open_database(settings) as database,
        progress_bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[events]}"),
        ) as bar,
    ):
        if settings.database_url is None and current_version(database) is None:
            upgrade(database)
        check_schema(database)
        task = bar.add_task("listing", total=None, events="")
        try:
            report = rebuild(
                database,
                targets,
                key=SigningKey.load_or_create(settings.resolved_key_file),
                trusted=trusted,
                leave_out=leave_out or (),
                progress=lambda tenant, done, total, events: bar.update(
                    task, description=tenant, completed=done, total=total, events=f"{events:,} events"
                ),
                listing=lambda name, count: bar.update(task, description=f"listing {name}", completed=count),
            )
        finally:
            targets.close()
    _show_rebuild(report)
    if report.stopped:
        raise typer.Exit(1)


def _public_key(path: Path) -> VerifyKey:
    try:
        return VerifyKey.from_pem(path.read_bytes())
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}", hint="--trust-key names a PEM file") from e


def _show_rebuild(report: RebuildReport) -> None:
    table = Table("tenant", "events", "through seq", "windows", "destroyed", "holds", "quarantined")
    table.box, table.pad_edge = None, False
    for column in table.columns[1:]:
        column.justify = "right"
    for t in report.tenants:
        table.add_row(
            t.tenant_id,
            f"{t.events:,}",
            f"{t.last_seq:,}",
            f"{t.windows:,}",
            f"{t.expired_windows:,}",
            f"{t.holds + (t.held_by is not None):,}",
            f"{t.quarantined:,}",
        )
    if table.row_count:
        console.print(table)
    for t in report.tenants:
        if t.lost is not None:
            _warn(f"{t.tenant_id}: seq {t.lost[0]:,} to {t.lost[1]:,} were in Postgres only, and are lost")
    for key_id in report.strange_keys:
        _warn(f"certificates are trusted by key {key_id}, which was found in a target: compare it with yours")
    for warning in report.warnings:
        _warn(warning)
    if report.held:
        _warn("every tenant is under the hold 'rebuild' until you release it: eventstore holds release")
        for problem in report.held:
            _warn(f"  {problem}")
    for tenant, why in report.stopped.items():
        errors.print(f"[red]{tenant}:[/] not rebuilt: {escape(why)}", highlight=False, soft_wrap=True)
    rate = report.events / report.duration_s if report.duration_s > 0 else 0.0
    again = f", {plural(len(report.present), 'tenant')} there before" if report.present else ""
    console.print(
        f"{plural(len(report.tenants), 'tenant')} rebuilt{again}; {plural(report.events, 'event')} verified, "
        f"{bytes_text(report.size_bytes)}, {rate:,.0f} events/s.",
        highlight=False,
    )


def _warn(message: str) -> None:
    errors.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)
