"""What is loaded when: the list of commands waits for no part of the store, and no command for what few need.

Asserted of the modules that are loaded, in a process of its own; how long that takes differs by machine.
"""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer.main

from eventstore.cli.lazy import LaterCommand
from eventstore.cli.main import app

# What only some commands need: to serve, to migrate, to publish, to read the archive. pandas and polars are
# used by nothing at all; Arrow and its drivers load them where they are installed, as they are here.
OF_SOME = {
    *("alembic", "authlib", "duckdb", "fastapi", "fsspec", "httpx", "jinja2", "jwt", "mako", "pandas"),
    *("polars", "structlog", "uvicorn"),
}
# What nobody needs to list the commands.
OF_THE_STORE = {
    *("cryptography", "numpy", "psycopg", "pyarrow", "pydantic_settings", "sqlalchemy"),
    *("eventstore.app", "eventstore.client", "eventstore.db", "eventstore.settings"),
}

COMMANDS: dict[str, LaterCommand] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def loaded(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(); print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import eventstore.cli.main", OF_SOME | OF_THE_STORE),
        ("import eventstore.app", OF_SOME),
        (
            "import eventstore.opening, eventstore.db.migrate, eventstore.query.runs",
            OF_SOME | {"cryptography", "eventstore.app", "numpy", "pyarrow"},
        ),
    ],
    ids=["the command line", "the store", "the database alone"],
)
def test_what_is_imported_loads_no_more_than_it_needs(program: str, unwanted: set[str]) -> None:
    assert loaded(program) & unwanted == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_all_commands_says_of_each_what_its_help_begins_with(name: str) -> None:
    begins, _, _ = inspect.cleandoc(COMMANDS[name].load().help).partition("\n\n")
    assert COMMANDS[name].help == begins.replace("\n", " ")
