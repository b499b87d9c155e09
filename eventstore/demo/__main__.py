"""The demo: import histories, archive what is old, look at one entity across both tiers, verify, serve.

`DATA=folder` takes that folder's Parquet files, a tenant each, instead of the generated histories.
`SERVE=0` ends without serving. Running it again finds everything done and goes on from there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
from rich.table import Table

from eventstore.app import Store, open_store
from eventstore.cli.event_output import write_events
from eventstore.cli.importing import import_progress, report_text
from eventstore.cli.main import run_reporting_errors
from eventstore.cli.output import Format, bytes_text, console
from eventstore.cli.reading import verify_with_progress
from eventstore.cli.retention import run_with_progress, show_report
from eventstore.cli.serving import listen, serve_store
from eventstore.clock import US_PER_S, SystemClock
from eventstore.demo.histories import GENERATED, write_generated, write_git_history
from eventstore.errors import SetupError, TenantExistsError
from eventstore.governance.tenants import create_tenant
from eventstore.intake.importer import import_file
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunStatus
from eventstore.query.stats import log_stats
from eventstore.settings import load_settings

_DAY_US = 86_400 * US_PER_S


def main() -> None:
    """Run the demo from the environment."""
    started = time.monotonic()
    settings = load_settings()
    data = os.environ.get("DATA")
    console.print(
        "[bold]1. Postgres[/]", "of your own" if settings.database_url else "embedded, starting ..."
    )
    with open_store(settings) as store, tempfile.TemporaryDirectory() as folder:
        console.print("\n[bold]2. Import[/] histories with their own times, a tenant each")
        files = list(_data_files(Path(data)) if data else _made_files(Path(folder)))
        tenants = [_import(store, tenant, path) for tenant, path in files]
        console.print(
            "\n[bold]3. Retention:[/] windows that ended more than 90 days ago go to Parquet, are read back "
            "and compared, and only then leave Postgres"
        )
        report = run_with_progress(store, None, SystemClock().now_us())
        show_report(report)
        console.print("\n[bold]4. One entity[/] across both tiers")
        _show_entity(store, tenants)
        console.print("\n[bold]5. Verify:[/] recompute every hash of every log, archive and hot")
        whole = [verify_with_progress(store, tenant).ok for tenant in tenants]
        console.print("\n[bold]What the store holds now[/]")
        _show_summary(store, tenants, whole)
        console.print(f"Done in {time.monotonic() - started:.0f} s.", highlight=False)
        if report.status is not RunStatus.COMPLETED or not all(whole):
            sys.exit(1)
        if os.environ.get("SERVE", "1") != "0":
            console.print(
                f"\nTry: curl 'http://{settings.host}:{settings.port}/v1/tenants/{tenants[0]}/recent?limit=2'"
            )
            with listen(store, settings.host, settings.port) as listener:
                serve_store(store, listener)


def _data_files(folder: Path) -> Iterator[tuple[str, Path]]:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SetupError(f"DATA={folder} has no *.parquet files", hint="leave DATA out to use generated ones")
    for path in files:
        yield path.stem.split("__")[-1].lower().replace("_", "-"), path


def _made_files(folder: Path) -> Iterator[tuple[str, Path]]:
    path = folder / "checkout.parquet"
    if write_git_history(Path.cwd(), path):
        yield "this-checkout", path
    else:
        console.print("[yellow]This folder has no git history; only generated histories are shown.[/]")
    # A whole day, so that a second run on the same day finds the same files imported already.
    until_us = SystemClock().now_us() // _DAY_US * _DAY_US
    for tenant in GENERATED:
        path = folder / f"{tenant}.parquet"
        write_generated(tenant, path, until_us=until_us)
        yield tenant, path


def _import(store: Store, tenant: str, path: Path) -> str:
    try:
        create_tenant(store.database, tenant, DEFAULT_POLICY)
    except TenantExistsError:
        if store.tiers.state(tenant).last_seq:
            console.print(f"  {tenant}: here from an earlier run.", highlight=False)
            return tenant
    started = time.monotonic()
    with import_progress(tenant) as progress:
        report = import_file(
            store.database,
            tenant,
            path,
            recorded_at_column="occurred_at",
            value_bytes_max=store.settings.value_bytes_max,
            progress=progress,
        )
    rate = report.rows_stored / (time.monotonic() - started)
    console.print(f"  {tenant}: {report_text(report)} {rate:,.0f} events/s", highlight=False)
    return tenant


def _show_entity(store: Store, tenants: list[str]) -> None:
    """The history of an entity that has events in both tiers, if there is one: its oldest and newest."""
    for tenant in reversed(tenants):
        entity_id = _entity_in_both_tiers(store, tenant)
        if entity_id is None:
            continue
        page = store.reader.page(tenant, EventFilter(entity_id=entity_id), limit=10_000)
        rows, coverage = page.events, page.coverage
        boundary = max((last for _, last in coverage.archive), default=0)
        archived = pc.sum(pc.less_equal(rows.column("seq"), boundary)).as_py()
        console.print(
            f"  {tenant}: {entity_id} has {rows.num_rows} events, {archived} in the archive "
            f"({len(coverage.windows)} windows looked at), {rows.num_rows - archived} hot. "
            "The first and last three:",
            highlight=False,
        )
        write_events([rows.slice(0, 3), rows.slice(max(3, rows.num_rows - 3))], Format.TABLE)
        console.print(f"  [dim]eventstore history {tenant} {entity_id}[/]", highlight=False)
        return
    console.print("  No entity has events in both tiers (all is hot, or all archived).")


def _entity_in_both_tiers(store: Store, tenant: str) -> str | None:
    state = store.tiers.state(tenant)
    if not 0 < state.archived_through < state.last_seq:
        return None
    recent = store.reader.page(tenant, EventFilter(), order=Order.DESC, limit=50).events
    for entity_id in pc.unique(recent.column("entity_id")).to_pylist():
        archived = store.reader.page(
            tenant, EventFilter(entity_id=entity_id, seq_to=state.archived_through), order=Order.DESC, limit=3
        )
        if archived.events.num_rows == 3:
            return str(entity_id)
    return None


def _show_summary(store: Store, tenants: list[str], whole: list[bool]) -> None:
    table = Table("tenant", "events", "hot", "archived", "files", "size", "B/event", "chain", box=None)
    for column in table.columns[1:7]:
        column.justify = "right"
    for tenant, ok in zip(tenants, whole, strict=True):
        stats = log_stats(store.database, tenant)
        per_event = stats.archive.size_bytes / stats.archive.events if stats.archive.events else 0
        table.add_row(
            tenant,
            f"{stats.last_seq:,}",
            f"{stats.hot.events:,}",
            f"{stats.archive.events:,}",
            f"{stats.segments:,}",
            bytes_text(stats.archive.size_bytes),
            f"{per_event:.0f}" if per_event else "–",
            "[green]whole[/]" if ok else "[red]BROKEN[/]",
        )
    console.print(table)


if __name__ == "__main__":
    run_reporting_errors(main)
