"""Commands about API keys. They work on the database itself: whoever may do that needs no key."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eventstore.app import open_store
from eventstore.catalog.tenants import get_tenant
from eventstore.cli.output import console, errors
from eventstore.cli.policy import ByOption, JsonOption, mirror_change
from eventstore.clock import to_iso
from eventstore.governance.keys import create_key, list_keys, revoke_key, rotate_key
from eventstore.model.access import Role
from eventstore.model.apikey import ApiKey, KeyState
from eventstore.model.limits import Limits
from eventstore.model.policy import parse_duration_us
from eventstore.settings import load_settings

__all__ = ["app", "register"]

app = typer.Typer(help="API keys: who may ask for what.", no_args_is_help=True)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="keys")


_PAGE = 1000
_COLOUR = {KeyState.ACTIVE: "green", KeyState.EXPIRED: "yellow", KeyState.REVOKED: "red"}

KeyArgument = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
ExpiresInOption = Annotated[str | None, typer.Option(help="How long it holds, e.g. 90d.")]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="NAME=NUMBER, where it differs from the deployment's.")
]


@app.command("create")
def create(
    role: Annotated[Role, typer.Option(help="What it permits.")],
    tenant: Annotated[
        str | None, typer.Option(help="The tenant that it is of; none: the whole deployment.")
    ] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: ExpiresInOption = None,
    limit: LimitOption = None,
    *,
    by: ByOption,
) -> None:
    """Make a key, and print it. It is shown this once."""
    limits = Limits.of_json(dict(_limit(text) for text in limit or ()))
    with open_store(load_settings()) as store:
        now_us = store.database.now_us()
        key, text = create_key(
            store.database,
            role=role,
            tenant_id=tenant,
            by=by,
            now_us=now_us,
            label=label,
            expires_us=None if expires_in is None else now_us + parse_duration_us(expires_in),
            limits=limits,
        )
        mirror_change(store)
    _show(key, text)


def _limit(text: str) -> tuple[str, object]:
    name, _, number = text.partition("=")
    return name, int(number) if number.isascii() and number.isdigit() else number


def _show(key: ApiKey, text: str) -> None:
    whose = "the whole deployment" if key.tenant_id is None else f"tenant {key.tenant_id}"
    until = "" if key.expires_us is None else f", until {_minute(key.expires_us)} UTC"
    errors.print(
        f"Key {key.key_id}: {key.role.value} of {whose}{until}. Keep it now, it is not shown again:",
        highlight=False,
        soft_wrap=True,
    )
    typer.echo(text)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's name; none: all keys.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Those that expired or were revoked, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show keys; never their text."""
    found: list[ApiKey] = []
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        now_us = store.database.now_us()
        if tenant is not None:
            get_tenant(conn, tenant)
        after: int | None = 0
        while after is not None:
            page, after = list_keys(
                conn, tenant_id=tenant, now_us=now_us, ended=all_, after=after, limit=_PAGE
            )
            found += page
    if as_json:
        typer.echo(json.dumps([_key_json(key, now_us) for key in found], indent=2, ensure_ascii=False))
        return
    if not found:
        console.print("No keys." if all_ else "No keys in force.")
        return
    table = Table(
        "key", "tenant", "state", "expires (UTC)", "last used (UTC)", "label", box=None, pad_edge=False
    )
    for key in found:
        state = key.state(now_us)
        table.add_row(
            key.key_id,
            key.tenant_id or "[dim]deployment[/]",
            f"[{_COLOUR[state]}]{state.value}[/]",
            "never" if key.expires_us is None else _minute(key.expires_us),
            "never" if key.last_used_us is None else _minute(key.last_used_us),
            escape(key.label),
        )
    console.print(table)


@app.command("revoke")
def revoke(key_id: KeyArgument, *, by: ByOption) -> None:
    """End a key, at once and everywhere."""
    with open_store(load_settings()) as store:
        key = revoke_key(store.database, key_id, by=by, now_us=store.database.now_us())
        mirror_change(store)
    typer.echo(f"Key {key.key_id} is revoked.")


@app.command("rotate")
def rotate(
    key_id: KeyArgument,
    overlap: Annotated[str, typer.Option(help="How long the old key still holds, e.g. 1d or 0s.")] = "1d",
    expires_in: ExpiresInOption = None,
    *,
    by: ByOption,
) -> None:
    """Replace a key by a new one, and print that. Both hold until the overlap is over.

    The new key lasts as long as the old one was made to, unless --expires-in says else.
    """
    overlap_us = parse_duration_us(overlap)
    with open_store(load_settings()) as store:
        now_us = store.database.now_us()
        key, text, old = rotate_key(
            store.database,
            key_id,
            by=by,
            now_us=now_us,
            overlap_us=overlap_us,
            expires_us=None if expires_in is None else now_us + parse_duration_us(expires_in),
        )
        mirror_change(store)
    assert old.expires_us is not None
    errors.print(f"Key {old.key_id} holds until {_minute(old.expires_us)} UTC.", highlight=False)
    _show(key, text)


def _minute(us: int) -> str:
    return to_iso(us)[:16].replace("T", " ")


def _key_json(key: ApiKey, now_us: int) -> dict[str, object]:
    times = {
        "created": key.created_us,
        "expires": key.expires_us,
        "last_used": key.last_used_us,
        "revoked": key.revoked_us,
    }
    return {
        "key_id": key.key_id,
        "tenant": key.tenant_id,
        "role": key.role.value,
        "label": key.label,
        "state": key.state(now_us).value,
        "limits": key.limits.as_json(),
        **{name: None if us is None else to_iso(us) for name, us in times.items()},
        "created_by": key.created_by,
        "revoked_by": key.revoked_by,
        "replaces": key.replaces,
    }
