"""Commands about tenants."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eventstore.app import open_store
from eventstore.catalog.tenants import list_tenants
from eventstore.cli.offboard import register as register_offboard
from eventstore.cli.output import console
from eventstore.cli.policy import (
    ByOption,
    HotForOption,
    ThenOption,
    TierOption,
    WindowOption,
    change_from,
    mirror_change,
)
from eventstore.clock import to_iso
from eventstore.governance.policies import policies_of_all, policy_of
from eventstore.governance.tenants import create_tenant
from eventstore.settings import load_settings

__all__ = ["app", "register"]

app = typer.Typer(help="Tenants: the owners of logs.", no_args_is_help=True)
register_offboard(app)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="tenants")


@app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-'.")],
    window: WindowOption = None,
    hot_for: HotForOption = None,
    tier: TierOption = None,
    then: ThenOption = None,
    *,
    by: ByOption,
) -> None:
    """Make a tenant, with an empty log. What is not given follows the deployment's default policy."""
    change = change_from(window=window, hot_for=hot_for, tiers=tier, then=then)
    with open_store(load_settings()) as store:
        now_us = store.database.now_us()
        made = create_tenant(
            store.database, tenant, change, actor=by, now_us=now_us, known_targets=store.targets.names
        )
        mirror_change(store)
        with store.database.transaction() as conn:
            policy = policy_of(conn, tenant, now_us).policy
    typer.echo(f"Tenant {made.tenant_id}: {policy.in_words()}.")


@app.command("list")
def list_() -> None:
    """Show all tenants and their policies."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        found = list_tenants(conn)
        policies = policies_of_all(conn, store.database.now_us())
    table = Table("tenant", "state", "created (UTC)", "policy", box=None, pad_edge=False)
    for tenant in found:
        table.add_row(
            tenant.tenant_id,
            tenant.state.value,
            to_iso(tenant.created_at_us)[:16].replace("T", " "),
            escape(policies[tenant.tenant_id].policy.in_words()),
        )
    console.print(table if found else "No tenants yet. Make one: eventstore tenants create NAME")
