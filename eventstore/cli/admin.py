"""Commands about tenants."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from eventstore.app import open_store
from eventstore.catalog.tenants import create_tenant, list_tenants
from eventstore.cli.output import console
from eventstore.clock import to_iso
from eventstore.model.policy import Policy, format_duration, parse_duration_us
from eventstore.model.window import WindowUnit
from eventstore.settings import load_settings

__all__ = ["app"]

app = typer.Typer(help="Tenants: the owners of logs.", no_args_is_help=True)


@app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-'.")],
    window: Annotated[WindowUnit, typer.Option(help="What its windows are aligned to.")] = WindowUnit.MONTH,
    hot_for: Annotated[
        str, typer.Option(help="How long a window stays in Postgres after its end, e.g. 90d or 12h.")
    ] = "90d",
) -> None:
    """Make a tenant, with an empty log."""
    policy = Policy(window, parse_duration_us(hot_for))
    with open_store(load_settings()) as store:
        made = create_tenant(store.database, tenant, policy)
    typer.echo(
        f"Tenant {made.tenant_id}: windows of one {made.policy.unit}, "
        f"hot for {format_duration(made.policy.hot_for_us)}."
    )


@app.command("list")
def list_() -> None:
    """Show all tenants."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        found = list_tenants(conn)
    table = Table("tenant", "window", "hot for", "created (UTC)", box=None, pad_edge=False)
    for tenant in found:
        table.add_row(
            tenant.tenant_id,
            tenant.policy.unit,
            format_duration(tenant.policy.hot_for_us),
            to_iso(tenant.created_at_us)[:19].replace("T", " "),
        )
    console.print(table if found else "No tenants yet. Make one: eventstore tenants create NAME")
