"""The command that offboards a tenant: what it would destroy, the way there, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from eventstore.app import Store, open_store, tidy_host
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.cli.policy import ByOption, mirror_change
from eventstore.cli.retention import stopping_on_signals
from eventstore.model.tenant import TenantState
from eventstore.retention.offboarding import (
    Offboarding,
    OffboardReport,
    OffboardSurvey,
    offboard,
    reopen,
    survey,
)
from eventstore.retention.task import Stopped, Workshop
from eventstore.settings import load_settings

__all__ = ["register"]

_STEPS = {
    "close": "closing the log",
    "export": "exporting",
    "read back": "reading the export back",
    "destroy": "destroying",
    "delete objects": "deleting objects",
    "look again": "looking again",
}
_LEFT_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command to the group of tenants."""
    app.command("offboard")(_offboard)


def _offboard(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the certificate.")],
    by: ByOption,
    export: Annotated[
        Path | None, typer.Option(help="A new folder for the export: all events, as Parquet.")
    ] = None,
    confirm: Annotated[
        int | None, typer.Option(min=0, help="How many events are destroyed, as the listing says.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--reopen", help="Undo: open the log again, if nothing is destroyed yet.")
    ] = False,
) -> None:
    """End a tenant: close its log, export it, destroy it in both tiers, and leave a signed certificate.

    Without --confirm it lists what would be destroyed. Killed or stopped anywhere, the same command goes on.
    Exit status 1: it was stopped, or something could not be removed yet; run it again.
    """
    with open_store(load_settings()) as store:
        now_us = store.database.now_us()
        if again:
            reopen(store.database, tenant, by=by, reason=reason, now_us=now_us)
            mirror_change(store)
            console.print(f"{tenant} takes events again.", highlight=False)
            return
        if export is None:
            raise typer.BadParameter("say where the export goes", param_hint="--export")
        found = survey(store.database, tenant)
        if found.state is not TenantState.CLOSED:
            _show(found)
        order = Offboarding(tenant, export.expanduser().resolve(), by, reason, confirm)
        try:
            report = _with_progress(store, order, now_us)
        except Stopped:
            errors.print("Stopped. Run the same command again to go on.", highlight=False)
            raise typer.Exit(1) from None
    _show_report(report, order.export_to)
    if not report.complete:
        raise typer.Exit(1)


def _with_progress(store: Store, order: Offboarding, now_us: int) -> OffboardReport:
    shop = Workshop(store.database, store.targets, store.key, store.compactor.stop)
    with (
        stopping_on_signals(store),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as bar,
    ):
        task = bar.add_task(order.tenant_id, total=1)

        def progress(step: str, done: int, total: int) -> None:
            bar.update(task, description=f"{order.tenant_id}: {_STEPS[step]}", completed=done, total=total)

        def forget() -> None:
            tidy_host(store, now_us, tenant_id=order.tenant_id)

        return offboard(shop, store.tiers, order, now_us, progress, forget=forget)


def _show(found: OffboardSurvey) -> None:
    stats = found.stats
    table = Table("where", "events", "size", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("Postgres", f"{stats.hot.events:,}", bytes_text(stats.hot.size_bytes))
    for name, target in stats.targets.items():
        table.add_row(f"target {name}", f"{target.events:,}", bytes_text(target.size_bytes))
    console.print(table)
    closing = " Its log is closed." if found.state is TenantState.CLOSING else ""
    gone = ""
    if stats.expired_events:
        gone = f" {plural(stats.expired_events, 'event')} expired before, under certificates."
    console.print(
        f"{found.tenant_id} has {plural(found.events, 'event')} up to seq {stats.last_seq:,}.{gone}{closing}",
        highlight=False,
    )
    if found.holds:
        console.print(f"[yellow]Held by {escape(', '.join(found.holds))}.[/]", highlight=False)


def _show_report(report: OffboardReport, folder: Path) -> None:
    certificate = report.certificate.certificate
    say = (
        f"{report.tenant_id} is offboarded: {plural(certificate.event_count, 'event')} up to its end are gone"
    )
    if certificate.event_count == 1:
        say = f"{report.tenant_id} is offboarded: its event is gone"
    console.print(
        f"{say}, from Postgres and from every target." if report.complete else f"{say}.", highlight=False
    )
    if report.objects:
        console.print(
            f"Deleted now: {plural(report.objects, 'object')}, {bytes_text(report.size_bytes)}.",
            highlight=False,
        )
    keys = ", ".join(report.certificate.key_ids)
    console.print(
        f"Certificate {certificate.number}, signed with key {keys}: {escape(str(folder))}/certificate.json",
        highlight=False,
        soft_wrap=True,
    )
    if report.export is not None:
        console.print(
            f"Export: {plural(report.export.events, 'event')} in {plural(len(report.export.parts), 'file')}, "
            f"{bytes_text(report.export.size_bytes)}, read back and found whole: {escape(str(folder))}",
            highlight=False,
            soft_wrap=True,
        )
    if report.left:
        errors.print("[red]Not removed yet:[/]", highlight=False)
        for line in report.left[:_LEFT_SHOWN]:
            errors.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
        if len(report.left) > _LEFT_SHOWN:
            errors.print(f"  … and {len(report.left) - _LEFT_SHOWN:,} more", highlight=False)
        errors.print("  [dim]→[/] mend what is in the way, and run the same command again", highlight=False)
