"""Commands about the database's schema."""

from __future__ import annotations

import typer

from eventstore.db.migrate import current_version, required_version, upgrade
from eventstore.opening import open_database
from eventstore.settings import load_settings

__all__ = ["register"]

app = typer.Typer(help="The database's schema.", no_args_is_help=True)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="db")


@app.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to this program's version."""
    with open_database(load_settings()) as database:
        typer.echo(f"The schema is at version {upgrade(database)}.")


@app.command("version")
def db_version() -> None:
    """Show the schema's version, and the one that this program needs."""
    with open_database(load_settings()) as database:
        current, required = current_version(database), required_version()
    typer.echo(f"database: {current or 'none'}\nprogram:  {required}")
    if current != required:
        raise typer.Exit(1)
