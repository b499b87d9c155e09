"""The command line. Each command opens the store, calls one part, and shows the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from eventstore import __version__
from eventstore.cli.lazy import add_command
from eventstore.cli.output import errors
from eventstore.errors import EventStoreError, InputError, IntegrityError, RetryError, SetupError, StateError

__all__ = ["app", "main", "run_reporting_errors"]

app = typer.Typer(
    name="eventstore",
    help="A multi-tenant event store: one ordered, hash-chained log per tenant, hot in Postgres, "
    "archived as Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Each command: its name, the module that has it, and how its help begins (held to it by a test).
_COMMANDS = (
    ("import", "importing", "Load a file's rows as events, in order."),
    ("events", "reading", "Show the events that meet all conditions."),
    ("history", "reading", "Show everything that happened to one entity, across both tiers."),
    ("recent", "reading", "Show the newest events."),
    ("stats", "reading", "Show how much a log holds, by tier and by state of its windows."),
    ("verify", "reading", "Recompute the whole chain over both tiers; says at which seq it first breaks."),
    ("tail", "tailing", "Show the newest events, oldest first; with -f, and then each as it comes."),
    (
        "export",
        "exporting",
        "Write all events that meet the conditions into a file that other programs read.",
    ),
    (
        "explain",
        "governance",
        "Say why a tenant, a window or an event is where it is, what comes next, and what blocks that.",
    ),
    (
        "checkpoint",
        "checkpoint",
        "Sign logs as they are now, and publish that where somebody else keeps it.",
    ),
    (
        "verify-checkpoint",
        "checkpoint",
        "Check a checkpoint's signature, and that it goes on from an earlier one. Needs no store.",
    ),
    (
        "bundle",
        "evidence",
        "Write all events that meet the conditions, with their proofs, into a file that anybody can verify.",
    ),
    (
        "verify-bundle",
        "evidence",
        "Check an evidence bundle offline: no server, no database. Exit status 70 when it does not hold.",
    ),
    ("serve", "serving", "Serve the HTTP API until it is told to stop (SIGINT or SIGTERM)."),
    (
        "scheduler",
        "unattended",
        "Run the jobs when their time has come: retention, expiry, scrub, tables made ahead.",
    ),
    (
        "worker",
        "unattended",
        "Work on the tasks of runs, until told to stop (SIGTERM or SIGINT). Any number may run, anywhere.",
    ),
    ("db", "database", "The database's schema."),
    ("tenants", "admin", "Tenants: the owners of logs."),
    ("policy", "policy", "Policies: how long what is kept where, and what then."),
    ("retention", "retention", "Moving windows through their tiers, and destroying what has expired."),
    ("runs", "runs", "Runs: what was planned, done, and why it took so long."),
    ("archive", "archive", "The archive: what lies where, and its repair."),
    ("keys", "keys", "API keys: who may ask for what."),
    ("holds", "governance", "Legal holds: cases that stop destruction."),
    ("certificates", "governance", "Certificates: what stands for destroyed history."),
)
for _name, _module, _line in _COMMANDS:
    add_command(app, _name, f"eventstore.cli.{_module}", _line)


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
