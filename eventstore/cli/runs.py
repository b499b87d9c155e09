"""Commands about runs: what retention, expiry and scrubs were to do, did, and are doing."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer

from eventstore.cli.output import console, errors
from eventstore.cli.run_text import entry_line, run_page, runs_table
from eventstore.db.engine import Database
from eventstore.db.migrate import check_schema
from eventstore.model.run import RunKind, RunStatus
from eventstore.opening import open_database
from eventstore.query.run_view import ENTRIES_MAX, LATEST, RUNS_MAX, EntriesPage
from eventstore.query.runs import find_run, list_runs, read_entries, read_run
from eventstore.settings import load_settings

__all__ = ["app", "register"]

_POLL_S = 0.5
# How often a follower looks whether anybody is at the run, in polls without news.
_IDLE_POLLS = 10

app = typer.Typer(help="Runs: what was planned, done, and why it took so long.", no_args_is_help=True)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="runs")


RunArgument = Annotated[str, typer.Argument(help="Its id, the beginning of it, or 'latest'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As the API gives it.")]


@contextmanager
def _open() -> Iterator[Database]:
    """The database alone: runs can be looked at while an archive target is away."""
    with open_database(load_settings()) as database:
        check_schema(database)
        yield database


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=RUNS_MAX, help="At most this many.")] = 20,
    status: Annotated[RunStatus | None, typer.Option(help="Only runs with this status.")] = None,
    kind: Annotated[RunKind | None, typer.Option(help="Only runs of this kind.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only runs that had to do with this tenant.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier list ended.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show runs, newest first."""
    with _open() as database:
        found, following = list_runs(
            database, limit=limit, cursor=cursor, status=status, kind=kind, tenant=tenant
        )
    if as_json:
        _write_json({"runs": found, "next_cursor": following})
        return
    console.print(runs_table(found) if found else "No such run yet.")
    if following:
        console.print(f"[dim]older ones: --cursor {following}[/]", highlight=False)


@app.command("show")
def show(run_id: RunArgument = LATEST, as_json: JsonOption = False) -> None:
    """Show what a run planned, what happened, what degraded, how it ended, and its longest window."""
    with _open() as database:
        view = read_run(database, find_run(database, run_id))
    if as_json:
        _write_json(view)
    else:
        console.print(run_page(view), highlight=False)


@app.command("follow")
def follow(run_id: RunArgument = LATEST, as_json: JsonOption = False) -> None:
    """Print a run's journal as it is written, until the run has ended.

    Exit status 0: it was completed. 1: it failed or was interrupted.
    """
    with _open() as database:
        found = find_run(database, run_id)
        if not as_json:
            console.print(f"Run [bold]{found}[/]", highlight=False)
        for page in _pages(database, found):
            for entry in page.entries:
                if as_json:
                    _write_json(entry)
                else:
                    time_of_day = entry.at[11:19]
                    console.print(
                        f"[dim]{time_of_day}[/]  {entry_line(entry)}", highlight=False, soft_wrap=True
                    )
            sys.stdout.flush()
    if page.status is not RunStatus.COMPLETED:
        raise typer.Exit(1)


def _pages(database: Database, run_id: uuid.UUID) -> Iterator[EntriesPage]:
    """The journal in pages, waiting for more until the run has ended."""
    after, idle = 0, 0
    while True:
        page = read_entries(database, run_id, after=after, limit=ENTRIES_MAX)
        yield page
        after = page.next_after
        if page.entries:
            idle = 0
            continue
        if page.ended:
            return
        idle += 1
        if idle == _IDLE_POLLS:
            activity = read_run(database, run_id).outcome.activity
            errors.print(f"[dim]nothing new: {activity}[/]", highlight=False)
        time.sleep(_POLL_S)


def _write_json(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
