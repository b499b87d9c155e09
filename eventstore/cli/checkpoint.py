"""The commands of checkpoints: making and publishing them, and checking one that was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from eventstore.app import checkpoint_tenant, open_store
from eventstore.cli.output import console, errors
from eventstore.cli.rebuilding import progress_bar
from eventstore.clock import to_iso
from eventstore.errors import EventStoreError, InputError, IntegrityError
from eventstore.governance.signing import VerifyKey
from eventstore.integrity.checkpoints import log_verifier_keys, read_checkpoint
from eventstore.integrity.merkle import is_consistent
from eventstore.integrity.publishing import list_digest, tenants_behind
from eventstore.model.note import Checkpoint, parse_verifier_key
from eventstore.settings import load_settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("checkpoint")(checkpoint)
    app.command("verify-checkpoint")(verify_checkpoint)


def checkpoint(
    tenants: Annotated[list[str] | None, typer.Argument(help="The tenants' names.")] = None,
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="Every tenant whose last checkpoint is older than its log, or not everywhere."
        ),
    ] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="A path, or a file or http(s) URL; {tenant} stands for the name. Default: settings."
        ),
    ] = None,
    show_key: Annotated[
        bool, typer.Option("--key", help="Only show the keys with which checkpoints are verified.")
    ] = False,
) -> None:
    """Sign logs as they are now, and publish that where somebody else keeps it."""
    if bool(tenants) == all_:
        raise typer.BadParameter("say which: TENANT…, or --all")
    if to and len(tenants or ()) != 1 and not all("{tenant}" in place for place in to):
        raise typer.BadParameter("write {tenant} into --to: each log has a checkpoint of its own")
    failed = False
    with open_store(load_settings()) as store:
        places = to or store.settings.checkpoint_to
        chosen = tenants or tenants_behind(store.database, list_digest(places))
        if show_key:
            for name in chosen:
                for line in log_verifier_keys(store.database, name):
                    typer.echo(line)
            return
        with progress_bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
            for name in chosen:
                task = bar.add_task(name, total=None)
                try:
                    found = checkpoint_tenant(
                        store,
                        name,
                        to=to or None,
                        progress=lambda done, total, task=task: bar.update(  # type: ignore[misc]
                            task, completed=done, total=total
                        ),
                    )
                except EventStoreError as e:
                    if len(chosen) == 1:
                        raise
                    failed = True
                    _complain(name, e)
                    continue
                finally:
                    bar.remove_task(task)
                for where, problem in found.failed:
                    failed = True
                    _complain(f"{name}: {where}", problem)
                if found.checkpoint is None:
                    console.print(f"{name}: no events yet, and no checkpoint.", highlight=False)
                else:
                    made = to_iso(found.checkpoint.made_us)[:19].replace("T", " ")
                    root = found.checkpoint.root.hex()
                    console.print(
                        f"{name}: {found.checkpoint.size:,} events, root {root}, signed {made} UTC.",
                        highlight=False,
                        soft_wrap=True,
                    )
    if failed:
        raise typer.Exit(75)


def _complain(what: str, error: EventStoreError) -> None:
    errors.print(f"[red]error:[/] {escape(what)}: {escape(str(error))}", highlight=False, soft_wrap=True)


def verify_checkpoint(
    file: Annotated[Path, typer.Argument(help="The checkpoint that was kept.")],
    key: Annotated[str | None, typer.Option(help="The verifier key, or a file that holds it.")] = None,
    previous: Annotated[Path | None, typer.Option(help="An earlier checkpoint of the same log.")] = None,
    proof: Annotated[
        Path | None, typer.Option(help="The consistency proof between the two, as the API answers it.")
    ] = None,
) -> None:
    """Check a checkpoint's signature, and that it goes on from an earlier one. Needs no store."""
    name, public = parse_verifier_key(_key_text(key))
    later = read_checkpoint(_read(file), name, [VerifyKey.from_raw(public)])
    console.print(f"{later.origin}: {later.size:,} events, signed by that key.", highlight=False)
    if previous is None:
        return
    earlier = read_checkpoint(_read(previous), name, [VerifyKey.from_raw(public)])
    if earlier.size > later.size:
        raise IntegrityError(
            f"the earlier one has {earlier.size} events, more than the later one's {later.size}",
            hint="swap them if they are the other way round; else the log was cut",
        )
    path = [] if proof is None else _proof(proof, earlier, later)
    if proof is None and earlier.size < later.size:
        raise InputError(
            "to compare them, give the consistency proof between the two",
            hint=f"GET /v1/tenants/…/consistency?first={earlier.size}&second={later.size}",
        )
    if not is_consistent(earlier.size, later.size, earlier.root, later.root, path):
        raise IntegrityError(
            f"the log of {later.size} events does not go on from that of {earlier.size}",
            hint="the proof is another one's, or history was rewritten: keep both checkpoints",
        )
    console.print(f"It goes on from the {earlier.size:,} events of the earlier one.", highlight=False)


def _key_text(key: str | None) -> str:
    if key is None:
        raise InputError(
            "a checkpoint is checked with its log's verifier key: give --key",
            hint="eventstore checkpoint TENANT --key shows it; keep it apart from the checkpoints",
        )
    return key if "+" in key else _read(Path(key))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise InputError(f"cannot read {path}: {e}") from e


def _proof(path: Path, earlier: Checkpoint, later: Checkpoint) -> list[bytes]:
    try:
        found = json.loads(_read(path))
        sizes, hashes = (found["first"], found["second"]), [bytes.fromhex(h) for h in found["proof"]]
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} is no consistency proof", hint="JSON with first, second and proof") from e
    if sizes != (earlier.size, later.size):
        raise InputError(f"{path} is a proof from {sizes[0]} to {sizes[1]} events, between other checkpoints")
    return hashes
