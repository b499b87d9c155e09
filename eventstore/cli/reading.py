"""Commands that read a log: events, history, recent, stats, verify."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eventstore.app import Store, open_store, verify_tenant
from eventstore.cli.event_output import write_events
from eventstore.cli.filters import with_filter
from eventstore.cli.output import Format, bytes_text, console, errors, plural, resolve_format
from eventstore.clock import to_iso
from eventstore.integrity.verify import VerifyReport
from eventstore.model.query import EventFilter, Order
from eventstore.query.coverage import Coverage
from eventstore.query.stats import log_stats
from eventstore.settings import load_settings

__all__ = ["OrderOption", "TenantArgument", "register", "verify_with_progress"]

TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Default: table on a terminal, jsonl in a pipe.")
]
OrderOption = Annotated[Order, typer.Option(help="asc: oldest first.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most this many; default all.")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="Go on where a segment cannot be read, and say which.")
]


def register(app: typer.Typer) -> None:
    """Add the reading commands."""
    app.command("events")(events)
    app.command("history")(history)
    app.command("recent")(recent)
    app.command("stats")(stats)
    app.command("verify")(verify)


def _write(
    store: Store,
    tenant: str,
    wanted: EventFilter,
    *,
    order: Order,
    limit: int | None,
    form: Format | None,
    partial: bool,
) -> None:
    coverage = Coverage()
    tables = store.reader.stream(tenant, wanted, order=order, limit=limit, partial=partial, coverage=coverage)
    resolved = resolve_format(form)
    count = write_events(tables, resolved)
    hot = sum(last - first + 1 for first, last in coverage.hot)
    archived = sum(last - first + 1 for first, last in coverage.archive)
    # For a program beside the answer, not in it: what it reads from the pipe are events alone.
    (console if resolved is Format.TABLE else errors).print(
        f"[dim]{plural(count, 'event')}; looked at {archived:,} archived in "
        f"{plural(len(coverage.windows), 'window')}, {hot:,} hot[/]",
        highlight=False,
    )
    for missing in coverage.unreadable:
        errors.print(
            f"[red]not read:[/] seq {missing.first_seq} to {missing.last_seq}: {escape(missing.error)}",
            highlight=False,
        )
    if coverage.unreadable:
        raise typer.Exit(70)


@with_filter()
def events(
    tenant: TenantArgument,
    wanted: EventFilter,
    order: OrderOption = Order.ASC,
    limit: LimitOption = None,
    form: FormatOption = None,
    partial: PartialOption = False,
) -> None:
    """Show the events that meet all conditions."""
    with open_store(load_settings()) as store:
        _write(store, tenant, wanted, order=order, limit=limit, form=form, partial=partial)


def history(
    tenant: TenantArgument,
    entity_id: Annotated[str, typer.Argument(help="The entity's id.")],
    entity_type: str | None = None,
    order: OrderOption = Order.ASC,
    limit: LimitOption = None,
    form: FormatOption = None,
    partial: PartialOption = False,
) -> None:
    """Show everything that happened to one entity, across both tiers."""
    wanted = EventFilter(entity_type=entity_type, entity_id=entity_id)
    with open_store(load_settings()) as store:
        _write(store, tenant, wanted, order=order, limit=limit, form=form, partial=partial)


def recent(
    tenant: TenantArgument,
    order: OrderOption = Order.DESC,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    form: FormatOption = None,
) -> None:
    """Show the newest events."""
    with open_store(load_settings()) as store:
        wanted = EventFilter()
        if order is Order.ASC:
            # The newest ones all the same, only shown the other way round.
            wanted = EventFilter(seq_from=max(1, store.tiers.state(tenant).last_seq - limit + 1))
        _write(store, tenant, wanted, order=order, limit=limit, form=form, partial=False)


def stats(tenant: TenantArgument, form: FormatOption = None) -> None:
    """Show how much a log holds, by tier and by state of its windows."""
    with open_store(load_settings()) as store:
        found = log_stats(store.database, tenant)
    rows: list[tuple[str, object]] = [
        ("hot_events", found.hot.events),
        ("hot_bytes", found.hot.size_bytes),
        ("archive_events", found.archive.events),
        ("archive_bytes", found.archive.size_bytes),
        ("archive_segments", found.segments),
        *((f"archive_bytes_in_{name}", tier.size_bytes) for name, tier in found.targets.items()),
        ("expired_events", found.expired_events),
        *((f"windows_{state}", count) for state, count in found.windows.items()),
        ("last_seq", found.last_seq),
        ("last_hash", found.last_hash.hex()),
        ("clock", None if found.clock_us is None else to_iso(found.clock_us)),
    ]
    match resolve_format(form):
        case Format.JSONL:
            typer.echo(json.dumps({"tenant": tenant, **dict(rows)}))
        case Format.CSV:
            typer.echo(",".join(["tenant", *(name for name, _ in rows)]))
            typer.echo(",".join([tenant, *("" if v is None else str(v) for _, v in rows)]))
        case Format.TABLE:
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for name, value in rows:
                shown = f"{value:,}" if isinstance(value, int) else str(value)
                if "_bytes" in name and isinstance(value, int):
                    shown = bytes_text(value)
                table.add_row(name.replace("_", " "), shown)
            console.print(table)


def verify_with_progress(store: Store, tenant: str) -> VerifyReport:
    """Verify a log with a progress bar, on a terminal."""
    with Progress(
        TextColumn(f"verifying {tenant}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task("verify", total=None)
        return verify_tenant(
            store,
            tenant,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def verify(tenant: TenantArgument) -> None:
    """Recompute the whole chain over both tiers; says at which seq it first breaks."""
    with open_store(load_settings()) as store:
        report = verify_with_progress(store, tenant)
    if report.ok:
        typer.echo(
            f"{tenant}: whole. {report.events:,} events, {report.segments:,} segments; "
            f"the chain holds from its start to seq {report.last_seq}."
        )
        if report.expired_events:
            typer.echo(f"{report.expired_events:,} events were destroyed; their certificates hold.")
        return
    typer.echo(f"{tenant}: BROKEN at seq {report.first_break}.")
    for problem in report.problems:
        typer.echo(f"  seq {problem.seq}: {problem.message}" + (f" [{problem.key}]" if problem.key else ""))
    raise typer.Exit(70)
