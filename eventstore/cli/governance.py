"""Commands about legal holds and certificates, and the one that explains."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eventstore.app import open_store
from eventstore.catalog.tenants import get_tenant
from eventstore.cli.output import console, errors, plural
from eventstore.cli.policy import ByOption, JsonOption, mirror_change
from eventstore.clock import parse_time_us, to_iso
from eventstore.errors import EventNotFoundError, InputError, IntegrityError
from eventstore.governance.certificates import (
    add_key,
    check_certificates,
    get_certificate,
    list_certificates,
    trusted_keys,
)
from eventstore.governance.holds import list_holds, place_hold, release_hold
from eventstore.governance.scopes import preview_scope
from eventstore.governance.signing import SigningKey, VerifyKey, verify
from eventstore.model.certificate import payload_sha256, to_payload
from eventstore.model.explain import at_text
from eventstore.model.hold import Hold, HoldScope
from eventstore.query.explain import explain_event, explain_tenant, explain_window
from eventstore.query.reader import LogReader
from eventstore.settings import load_settings

__all__ = ["certificates", "holds", "register"]

holds = typer.Typer(help="Legal holds: cases that stop destruction.", no_args_is_help=True)
certificates = typer.Typer(help="Certificates: what stands for destroyed history.", no_args_is_help=True)

TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(holds, name="holds")
    app.add_typer(certificates, name="certificates")
    app.command("explain")(explain)


# --- holds --------------------------------------------------------------------------------------------


@holds.command("place")
def place(
    tenant: TenantArgument,
    name: Annotated[str, typer.Argument(help="The case's name; it is never used again.")],
    reason: Annotated[str, typer.Option(help="Why it is held.")],
    entity: Annotated[
        list[str] | None, typer.Option("--entity", help="TYPE/ID; default all entities. Repeatable.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="Events recorded from this time on.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Events recorded before this time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it may cover, and stop.")] = False,
    *,
    by: ByOption,
) -> None:
    """Place a legal hold. When this returns, nothing that it covers and that is there will be destroyed."""
    scope = HoldScope(
        tuple(_entity(text) for text in entity or ()),
        None if from_ is None else parse_time_us(from_),
        None if to is None else parse_time_us(to),
    )
    with open_store(load_settings()) as store:
        if not dry_run:
            placed = place_hold(
                store.database, tenant, name, reason, by, scope, now_us=store.database.now_us()
            )
            mirror_change(store)
        with store.database.transaction() as conn:
            counts = preview_scope(conn, tenant, scope)
    if dry_run:
        console.print(f"A hold on {escape(scope.in_words())} of {tenant} may cover:", highlight=False)
    else:
        console.print(
            f"Hold {escape(repr(placed.name))} on {escape(scope.in_words())} of {tenant} is in force. "
            "It may cover:",
            highlight=False,
        )
    table = Table("place", "windows", "events in them", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for count in counts:
        table.add_row(count.place, f"{count.windows:,}", f"{count.events:,}")
    console.print(table if counts else "  nothing that is stored now; later events count too")
    if dry_run:
        console.print("Nothing was held.")


def _entity(text: str) -> tuple[str, str]:
    kind, slash, entity_id = text.partition("/")
    if not slash or not kind or not entity_id:
        raise InputError(f"--entity {text!r} names no entity", hint="write TYPE/ID, e.g. contract/c-1")
    return kind, entity_id


@holds.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's name; none: all tenants.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Those that were released, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show holds."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        if tenant is not None:
            get_tenant(conn, tenant)
        found = list_holds(conn, tenant, in_force_only=not all_)
    if as_json:
        typer.echo(json.dumps([_hold_json(hold) for hold in found], indent=2, ensure_ascii=False))
        return
    if not found:
        console.print("No holds." if all_ else "No holds in force.")
        return
    table = Table("tenant", "name", "covers", "reason", "placed (UTC)", "by", box=None, pad_edge=False)
    if all_:
        table.add_column("released (UTC)")
    for hold in found:
        row = [
            hold.tenant_id,
            escape(hold.name),
            escape(hold.scope.in_words()),
            escape(hold.reason),
            to_iso(hold.placed_us)[:16].replace("T", " "),
            escape(hold.placed_by),
        ]
        if hold.released_us is not None:
            released = to_iso(hold.released_us)[:16].replace("T", " ")
            row.append(f"{released} by {escape(hold.released_by or '')}: {escape(hold.release_reason or '')}")
        elif all_:
            row.append("[green]in force[/]")
        table.add_row(*row)
    console.print(table)


def _hold_json(hold: Hold) -> dict[str, object]:
    return {
        "hold_id": str(hold.hold_id),
        "tenant": hold.tenant_id,
        "name": hold.name,
        "reason": hold.reason,
        "placed_by": hold.placed_by,
        "placed": to_iso(hold.placed_us),
        "scope": hold.scope.as_json(),
        "released": None if hold.released_us is None else to_iso(hold.released_us),
        "released_by": hold.released_by,
        "release_reason": hold.release_reason,
    }


@holds.command("release")
def release(
    tenant: TenantArgument,
    name: Annotated[str, typer.Argument(help="The case's name.")],
    reason: Annotated[str, typer.Option(help="Why it ends.")],
    *,
    by: ByOption,
) -> None:
    """End a hold. What other holds cover as well stays held."""
    with open_store(load_settings()) as store:
        released = release_hold(store.database, tenant, name, by, reason, store.database.now_us())
        mirror_change(store)
        with store.database.transaction() as conn:
            left = list_holds(conn, tenant, in_force_only=True)
    console.print(
        f"Hold {escape(repr(released.name))} of {tenant} is released; "
        f"{plural(len(left), 'hold')} of the tenant still in force.",
        highlight=False,
    )


# --- explain ------------------------------------------------------------------------------------------


def explain(
    tenant: TenantArgument,
    window: Annotated[str | None, typer.Option(help="A time in the window that is meant.")] = None,
    seq: Annotated[int | None, typer.Option(min=1, help="The event of this seq.")] = None,
    event_id: Annotated[str | None, typer.Option(help="The event of this id.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a tenant, a window or an event is where it is, what comes next, and what blocks that."""
    if sum(given is not None for given in (window, seq, event_id)) > 1:
        raise InputError("one thing at a time", hint="give --window, --seq or --event-id, or none of them")
    with open_store(load_settings()) as store:
        now_us, names = store.database.now_us(), store.targets.names
        if window is not None:
            found = explain_window(
                store.database,
                tenant,
                parse_time_us(window),
                now_us=now_us,
                known_targets=names,
                reader=store.reader,
            )
        elif seq is not None or event_id is not None:
            found = explain_event(
                store.database,
                store.reader,
                tenant,
                now_us=now_us,
                known_targets=names,
                seq=seq,
                event_id=None if event_id is None else _uuid(event_id),
            )
        else:
            found = explain_tenant(store.database, tenant, now_us=now_us, known_targets=names)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        console.print(escape(found.in_words()), highlight=False, soft_wrap=True)


def _uuid(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise InputError(f"{text!r} is no event_id", hint="an event_id is a UUID") from None


# --- certificates -------------------------------------------------------------------------------------


@certificates.command("list")
def list_certificates_(tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Show a tenant's certificates."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        get_tenant(conn, tenant)
        found = list_certificates(conn, tenant)
    if as_json:
        members = [json.loads(to_payload(stored.certificate)) for stored in found]
        typer.echo(json.dumps(members, indent=2, ensure_ascii=False))
        return
    if not found:
        console.print("No certificates: nothing of this tenant was destroyed.")
        return
    table = Table("number", "issued (UTC)", "kind", "window", "seq", "events", "sha256", "copy in")
    table.box, table.pad_edge = None, False
    for index in (0, 5):
        table.columns[index].justify = "right"
    for stored in found:
        c = stored.certificate
        span = "the whole log"
        if c.window_from_us is not None and c.window_to_us is not None:
            span = f"{at_text(c.window_from_us)} … {at_text(c.window_to_us)}"
        table.add_row(
            str(c.number),
            to_iso(c.issued_at_us)[:16].replace("T", " "),
            c.kind.value,
            span,
            f"{c.first_seq:,} … {c.last_seq:,}",
            f"{c.event_count:,}",
            payload_sha256(to_payload(c)).hex()[:16],
            stored.stored_in or "[yellow]none yet[/]",
        )
    console.print(table)


@certificates.command("show")
def show(
    tenant: TenantArgument,
    number: Annotated[int, typer.Argument(min=1, help="The certificate's number.")],
    envelope: Annotated[
        bool, typer.Option("--envelope", help="The signed envelope (DSSE), as it is stored.")
    ] = False,
) -> None:
    """Show what a certificate says, as JSON, and whether its signature is right."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        get_tenant(conn, tenant)
        stored, keys = get_certificate(conn, tenant, number), trusted_keys(conn)
    if envelope:
        typer.echo(stored.envelope.decode())
        return
    payload = verify(stored.envelope, keys)
    typer.echo(json.dumps(json.loads(payload), indent=2, ensure_ascii=False))
    errors.print(
        f"[green]Signed[/] with key {', '.join(stored.key_ids)}; "
        f"SHA-256 of the payload {payload_sha256(payload).hex()}.",
        highlight=False,
        soft_wrap=True,
    )


@certificates.command("verify")
def verify_(
    tenant: TenantArgument,
    noted: Annotated[
        str | None,
        typer.Option(
            help="NUMBER:SHA256 of a certificate, noted elsewhere; shows that none were taken away."
        ),
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="A public key (PEM) to trust, and no other; repeatable.")
    ] = None,
) -> None:
    """Check every signature, the chain of certificates, and both against the log.

    With --key, the keys that the database knows count for nothing. Exit status 70 when something is wrong.
    """
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        get_tenant(conn, tenant)
        count = len(list_certificates(conn, tenant))
        problems = check_certificates(
            conn,
            tenant,
            trusted_keys(conn) if key is None else _public_keys(key),
            hash_at=lambda seq: _hash_at(store.reader, tenant, seq),
            noted=None if noted is None else _noted(noted),
        )
    for problem in problems:
        errors.print(f"[red]wrong:[/] {escape(problem)}", highlight=False)
    if problems:
        raise IntegrityError(
            f"the certificates of {tenant!r} do not hold: {plural(len(problems), 'problem')}",
            hint="compare them with their copies in the archive target",
        )
    console.print(
        f"{plural(count, 'certificate')} of {tenant}: signatures, chain and log agree.", highlight=False
    )


@certificates.command("new-key")
def new_key(
    reason: Annotated[str, typer.Option(help="Why this host has a key of its own.")], *, by: ByOption
) -> None:
    """Let this host sign with a key of its own, beside those that the deployment has; recorded.

    The usual way is to copy the key file of the host that has it.
    """
    settings = load_settings()
    with open_store(settings) as store:
        made = SigningKey.load_or_create(settings.resolved_key_file)
        add_key(store.database, made.verify_key, actor=by, reason=reason, now_us=store.database.now_us())
        mirror_change(store)
    console.print(f"This host signs with key {made.key_id}.", highlight=False)


def _public_keys(paths: list[Path]) -> dict[str, VerifyKey]:
    found = {}
    for path in paths:
        try:
            key = VerifyKey.from_pem(path.read_bytes())
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror}", hint="--key names a PEM file") from e
        found[key.key_id] = key
    return found


def _noted(text: str) -> tuple[int, bytes]:
    number, _, digest = text.partition(":")
    try:
        noted = int(number), bytes.fromhex(digest)
    except ValueError:
        noted = 0, b""
    if noted[0] < 1 or len(noted[1]) != 32:
        raise InputError(f"--noted {text!r} is not NUMBER:SHA256", hint="as `certificates show` prints it")
    return noted


def _hash_at(reader: LogReader, tenant: str, seq: int) -> bytes | None:
    try:
        return bytes(reader.event(tenant, seq=seq).events.column("hash")[0].as_py())
    except EventNotFoundError:
        return None
