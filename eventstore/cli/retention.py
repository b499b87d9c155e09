"""Commands of retention: runs now, and what works unattended."""

from __future__ import annotations

import _thread
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from eventstore.app import Store, open_store, tidy_host
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.cli.policy import ByOption, mirror_change
from eventstore.clock import SystemClock, parse_time_us, to_iso
from eventstore.errors import ConfirmationError, EventStoreError
from eventstore.governance.quality import accept_window
from eventstore.model.run import RunKind, RunReport, RunStatus
from eventstore.retention.compactor import RunOrder, check_now
from eventstore.settings import load_settings

_NICENESS = 19

__all__ = ["app", "register", "run_with_progress", "show_report", "stopping_on_signals"]

app = typer.Typer(
    help="Moving windows through their tiers, and destroying what has expired.", no_args_is_help=True
)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="retention")


TenantOption = Annotated[str | None, typer.Option(help="Only this tenant; default all.")]
NowOption = Annotated[str | None, typer.Option(help="A simulated time, in the past.")]


@app.callback()
def _group() -> None:
    pass


@app.command("run")
def run(
    tenant: TenantOption = None,
    now: NowOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and touch nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Windows worked on at once.")] = 1,
) -> None:
    """Archive every window past its tenant's policy, and move archived ones to their next tier.

    Exit status 0: all that was due is done. 1: at least one window was stopped; the table says why.
    SIGTERM ends the run between two steps; the next run goes on from there.
    """
    _run(RunKind.RETENTION, tenant, now, dry_run=dry_run, workers=workers)


@app.command("expire")
def expire(
    tenant: TenantOption = None,
    now: NowOption = None,
    confirm: Annotated[
        int | None, typer.Option(help="Destroy what is listed: how many events that is, as the listing says.")
    ] = None,
) -> None:
    """List the windows that have expired under their tenant's policy; with --confirm, destroy them.

    Each destroyed window leaves a signed certificate. What a legal hold covers is kept.
    """
    now_us = SystemClock().now_us() if now is None else check_now(parse_time_us(now))
    with open_store(load_settings()) as store:
        listed, only = _show_plan(store, tenant, now_us, RunKind.EXPIRY)
        if confirm is None or confirm != listed:
            if listed:
                console.print(f"To destroy them: --confirm {listed}", highlight=False)
            if confirm is not None:
                raise ConfirmationError(
                    f"{plural(listed, 'event')} would be destroyed, not {confirm:,}",
                    events=listed,
                    hint="look at the listing again",
                )
            return
        # What has come to be due since the listing is not destroyed with it.
        order = RunOrder(RunKind.EXPIRY, _who(), only=frozenset(only))
        report = run_with_progress(store, tenant, now_us, order=order)
        tidy_host(store, SystemClock().now_us())
    _end(report)


@app.command("accept")
def accept(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    window: Annotated[str, typer.Argument(help="A time in the window that is meant.")],
    reason: Annotated[str, typer.Option(help="Why its quality issues are accepted.")],
    *,
    by: ByOption,
) -> None:
    """Let one window pass that a quality rule has stopped; recorded. The next run archives it."""
    with open_store(load_settings()) as store:
        found = accept_window(
            store.database,
            tenant,
            parse_time_us(window),
            actor=by,
            reason=reason,
            now_us=store.database.now_us(),
        )
        mirror_change(store)
    console.print(f"Window {found} of {tenant} goes on with the next run.", highlight=False)


def _run(kind: RunKind, tenant: str | None, now: str | None, *, dry_run: bool, workers: int) -> None:
    now_us = SystemClock().now_us() if now is None else check_now(parse_time_us(now))
    with open_store(load_settings()) as store:
        if dry_run:
            _show_plan(store, tenant, now_us, kind)
            return
        # Whoever appends or reads goes first; retention has time.
        os.nice(_NICENESS)
        report = run_with_progress(store, tenant, now_us, order=RunOrder(kind, _who()), workers=workers)
        tidy_host(store, SystemClock().now_us())
    _end(report)


def _end(report: RunReport) -> None:
    show_report(report)
    if report.status is not RunStatus.COMPLETED:
        raise typer.Exit(1)


def _who() -> str:
    import getpass

    return f"{getpass.getuser()} on the command line"


@contextmanager
def stopping_on_signals(store: Store) -> Iterator[None]:
    """SIGTERM and SIGINT end retention between two steps; a second SIGINT at once."""

    def stop(number: int, _: object) -> None:
        if store.compactor.stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        # In a thread of its own: the main thread may be at the event right now and hold its lock, and would
        # wait here for itself.
        _thread.start_new_thread(stop_soon, ())

    def stop_soon() -> None:
        store.compactor.stop.set()
        errors.print("stopping after this step …", highlight=False)

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_with_progress(
    store: Store, tenant: str | None, now_us: int, *, order: RunOrder | None = None, workers: int = 1
) -> RunReport:
    """Run retention with a progress bar a tenant, on a terminal."""
    tenants = store.compactor.tenants(tenant)
    with (
        stopping_on_signals(store),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("windows"),
            TextColumn("{task.fields[events]:,} events"),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as bar,
    ):
        tasks = {t.tenant_id: bar.add_task(t.tenant_id, total=None, events=0, visible=False) for t in tenants}

        def progress(tenant_id: str, done: int, total: int, events: int) -> None:
            bar.update(tasks[tenant_id], completed=done, total=total, events=events, visible=total > 0)

        return store.compactor.run(tenants, now_us, order=order, progress=progress, workers=workers)


def _show_plan(
    store: Store, tenant: str | None, now_us: int, kind: RunKind
) -> tuple[int, set[tuple[str, int]]]:
    """Print what a run would do; the events of the windows that it would take up, and these windows."""
    listed: set[tuple[str, int]] = set()
    table = Table("tenant", "window", "state", "events", "from", "to", "steps", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    due = failed = events = 0
    for found in store.compactor.tenants(tenant):
        try:
            plan = store.compactor.plan(found, now_us, kind)
        except EventStoreError as e:
            failed += 1
            table.add_row(found.tenant_id, "[red]cannot be planned[/]", "", "", "", "", escape(str(e)))
            continue
        for window in plan.due:
            held = f"[yellow]held by {escape(', '.join(window.held_by))}[/]" if window.held_by else ""
            due += not held
            if not held:
                listed.add((found.tenant_id, window.record.window.from_us))
            events += 0 if held else window.event_count
            table.add_row(
                found.tenant_id,
                f"{_day(window.record.window.from_us)} … {_day(window.record.window.to_us)}",
                window.record.state.value,
                f"{window.event_count:,}",
                window.record.target or "Postgres",
                window.target or "[red]destroyed[/]",
                held or " → ".join(window.steps),
            )
            for target, key in () if held else window.quarantined:
                table.add_row("", "", "[yellow]quarantined[/]", "", target, "[red]destroyed[/]", escape(key))
        for warning in plan.warnings:
            errors.print(f"[yellow]{found.tenant_id}:[/] {escape(warning)}", highlight=False)
    if table.row_count:
        console.print(table)
    console.print(
        f"At {to_iso(now_us)[:19]}Z, due: {plural(due, 'window')} with {plural(events, 'event')}. "
        "Nothing was touched.",
        highlight=False,
    )
    if failed:
        raise typer.Exit(1)
    return events, listed


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
