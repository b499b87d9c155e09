"""The commands that make an evidence bundle, and verify one without any store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eventstore import verifier
from eventstore.app import keepers_of, open_store
from eventstore.cli.filters import with_filter
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.cli.policy import ByOption
from eventstore.cli.reading import TenantArgument
from eventstore.errors import InputError, IntegrityError
from eventstore.integrity.bundle import BundleSummary, write_bundle
from eventstore.model.query import EventFilter
from eventstore.settings import load_settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("bundle")(bundle)
    app.command("verify-bundle")(verify_bundle)


@with_filter()
def bundle(
    tenant: TenantArgument,
    output: Annotated[Path, typer.Option(help="The file, replaced when the bundle is complete.")],
    reason: Annotated[str | None, typer.Option(help="What it is for; stands in the bundle.")] = None,
    *,
    wanted: EventFilter,
    by: ByOption,
) -> None:
    """Write all events that meet the conditions, with their proofs, into a file that anybody can verify."""
    summary = _with_progress(tenant, wanted, output, by, reason)
    gone = sum(last - first + 1 for first, last in summary.expired)
    console.print(
        f"{plural(summary.events, 'event')} of {tenant} with their proofs"
        f"{f' ({gone:,} destroyed before)' if gone else ''}, "
        f"under a checkpoint of {summary.log_size:,}: "
        f"{bytes_text(summary.size_bytes)} in {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )


def _with_progress(
    tenant: str, wanted: EventFilter, output: Path, by: str, reason: str | None
) -> BundleSummary:
    with (
        open_store(load_settings()) as store,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("finding events", total=None)

        def progress(done: int, total: int | None) -> None:
            title = "finding events" if total is None else "proving them"
            bar.update(task, completed=done, total=total, description=title)

        try:
            return write_bundle(
                store.database,
                store.tiers,
                store.key,
                tenant,
                wanted,
                output,
                reader=store.reader,
                keepers=keepers_of(store.settings, tenant),
                asked_by=by,
                reason=reason,
                progress=progress,
            )
        except OSError as e:
            raise InputError(
                f"cannot write {output}: {e.strerror or e}", hint="name another file, or make room"
            ) from e


def verify_bundle(
    file: Annotated[Path, typer.Argument(help="The bundle.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="A public key (name+hash+key) to trust and no other, or a file of them; repeatable."
        ),
    ] = None,
) -> None:
    """Check an evidence bundle offline: no server, no database. Exit status 70 when it does not hold."""
    try:
        with file.open("rb") as opened:
            about, *found = verifier.verify(opened, [one for text in key or () for one in _keys(text)])
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}", hint="give the bundle, as one file") from e
    except verifier.REFUSED as e:
        raise IntegrityError(
            f"{file} is refused: {e or 'a signature does not fit'}",
            hint="what is in it proves nothing: ask for it again, from whom it came",
        ) from e
    console.print(f"[green]Verified:[/] {escape(about)}", highlight=False, soft_wrap=True)
    for line in found:
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _keys(text: str) -> list[verifier.Key]:
    """The keys of an option's value, or of the file that it names."""
    try:
        return verifier.read_keys(Path(text).read_text() if Path(text).is_file() else text)
    except (OSError, *verifier.REFUSED) as e:
        hint = "it reads name+hash+key, as eventstore checkpoint --key shows it"
        raise InputError(f"--key {text!r} is no public key: {e}", hint=hint) from e
