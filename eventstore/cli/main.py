"""The command line. Each command opens the store, calls one part, and shows the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from eventstore import __version__
from eventstore.app import open_database
from eventstore.cli import (
    admin,
    archive,
    checkpoint,
    evidence,
    exporting,
    governance,
    importing,
    keys,
    policy,
    reading,
    retention,
    runs,
    serving,
    tailing,
    unattended,
)
from eventstore.cli.output import errors
from eventstore.db.migrate import current_version, required_version, upgrade
from eventstore.errors import EventStoreError, InputError, IntegrityError, RetryError, SetupError, StateError
from eventstore.settings import load_settings

__all__ = ["app", "main", "run_reporting_errors"]

app = typer.Typer(
    name="eventstore",
    help="A multi-tenant event store: one ordered, hash-chained log per tenant, hot in Postgres, "
    "archived as Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(admin.app, name="tenants")
app.add_typer(policy.app, name="policy")
app.add_typer(retention.app, name="retention")
app.add_typer(runs.app, name="runs")
app.add_typer(archive.app, name="archive")
app.add_typer(keys.app, name="keys")
importing.register(app)
reading.register(app)
tailing.register(app)
exporting.register(app)
governance.register(app)
checkpoint.register(app)
evidence.register(app)
serving.register(app)
unattended.register(app)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to this program's version."""
    with open_database(load_settings()) as database:
        typer.echo(f"The schema is at version {upgrade(database)}.")


@db.command("version")
def db_version() -> None:
    """Show the schema's version, and the one that this program needs."""
    with open_database(load_settings()) as database:
        current, required = current_version(database), required_version(database)
    typer.echo(f"database: {current or 'none'}\nprogram:  {required}")
    if current != required:
        raise typer.Exit(1)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"eventstore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


# What an error means for a script: sysexits(3) where it has a word for it.
_EXIT_STATUS: tuple[tuple[type[EventStoreError], int], ...] = (
    (InputError, 65),
    (StateError, 65),
    (RetryError, 75),
    (SetupError, 78),
    (IntegrityError, 70),
)


def main() -> None:
    """The console script."""
    run_reporting_errors(app)


def run_reporting_errors(command: Callable[[], object]) -> None:
    """Run a program; errors of the store are shown in words, and their kind is the exit status."""
    try:
        command()
    except EventStoreError as e:
        errors.print(f"[red]error:[/] {escape(e.message)}", highlight=False)
        if e.hint:
            errors.print(f"  [dim]→[/] {escape(e.hint)}", highlight=False)
        sys.exit(next((status for kind, status in _EXIT_STATUS if isinstance(e, kind)), 70))
    except BrokenPipeError:
        # The reader of our output has seen enough (head, less). Nothing may be flushed into it any more.
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
