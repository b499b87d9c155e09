"""Commands of retention."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from eventstore.app import Store, open_store
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.clock import SystemClock, parse_time_us, to_iso
from eventstore.errors import EventStoreError
from eventstore.model.run import RunReport, RunStatus
from eventstore.retention.compactor import check_now
from eventstore.settings import load_settings

_NICENESS = 19

__all__ = ["app", "run_with_progress", "show_report"]

app = typer.Typer(help="Moving windows from Postgres to the archive.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("run")
def run(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant; default all.")] = None,
    now: Annotated[str | None, typer.Option(help="A simulated time, in the past.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and touch nothing.")] = False,
) -> None:
    """Archive every window past its tenant's policy, and drop it from Postgres.

    Exit status 0: all that was due is done. 1: at least one tenant was stopped; the table says why.
    """
    now_us = SystemClock().now_us() if now is None else check_now(parse_time_us(now))
    with open_store(load_settings()) as store:
        if dry_run:
            _show_plan(store, tenant, now_us)
            return
        # Whoever appends or reads goes first; retention has time.
        os.nice(_NICENESS)
        report = run_with_progress(store, tenant, now_us)
    show_report(report)
    if report.status is not RunStatus.COMPLETED:
        raise typer.Exit(1)


def run_with_progress(store: Store, tenant: str | None, now_us: int) -> RunReport:
    """Run retention with a progress bar a tenant, on a terminal."""
    tenants = store.compactor.tenants(tenant)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows"),
        TextColumn("{task.fields[events]:,} events"),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        tasks = {t.tenant_id: bar.add_task(t.tenant_id, total=None, events=0, visible=False) for t in tenants}

        def progress(tenant_id: str, done: int, total: int, events: int) -> None:
            bar.update(tasks[tenant_id], completed=done, total=total, events=events, visible=total > 0)

        return store.compactor.run(tenants, now_us, progress=progress)


def _show_plan(store: Store, tenant: str | None, now_us: int) -> None:
    table = Table("tenant", "window", "state", "events", "steps", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    due = failed = 0
    for found in store.compactor.tenants(tenant):
        try:
            plan = store.compactor.plan(found, now_us)
        except EventStoreError as e:
            failed += 1
            table.add_row(found.tenant_id, "[red]cannot be planned[/]", "", "", escape(str(e)))
            continue
        for window in plan.due:
            due += 1
            table.add_row(
                found.tenant_id,
                f"{_day(window.record.window.from_us)} … {_day(window.record.window.to_us)}",
                window.record.state.value,
                f"{window.event_count:,}",
                " → ".join(window.steps),
            )
    if due or failed:
        console.print(table)
    console.print(
        f"At {to_iso(now_us)[:19]}Z, due: {plural(due, 'window')}. Nothing was touched.", highlight=False
    )
    if failed:
        raise typer.Exit(1)


def _day(us: int) -> str:
    text = to_iso(us)
    return text[:10] if text[11:19] == "00:00:00" else text[:16].replace("T", " ")


def show_report(report: RunReport) -> None:
    """Print what a run did for each tenant."""
    table = Table(
        "tenant", "windows", "events", "segments", "size", "time", "outcome", box=None, pad_edge=False
    )
    for column in table.columns[1:6]:
        column.justify = "right"
    for o in report.outcomes:
        state = "[red]stopped[/]" if o.error else "[green]done[/]" if o.windows else "nothing due"
        table.add_row(
            o.tenant_id,
            f"{o.windows:,}",
            f"{o.events:,}",
            f"{o.segments:,}",
            bytes_text(o.size_bytes),
            f"{o.duration_s:.1f} s",
            state,
        )
    console.print(table)
    for o in report.outcomes:
        if o.error:
            errors.print(f"[red]{o.tenant_id}:[/] {escape(o.error)}", highlight=False)
        for warning in o.warnings:
            errors.print(f"[yellow]{o.tenant_id}:[/] {escape(warning)}", highlight=False)
    console.print(f"Run {report.run_id} {report.status}.", highlight=False)
