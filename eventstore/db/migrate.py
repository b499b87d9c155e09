"""The schema's version: migrate to it, or refuse to work on another one."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from alembic import command
from eventstore.db import (  # their tables belong to the metadata
    tables_access,  # noqa: F401
    tables_console,  # noqa: F401
    tables_subscriptions,  # noqa: F401
    tables_tree,  # noqa: F401
)
from eventstore.db.engine import Database
from eventstore.errors import SchemaVersionError

__all__ = ["check_schema", "current_version", "migrations_path", "required_version", "upgrade"]

_PACKAGE = Path(__file__).resolve().parents[1]


def migrations_path() -> Path:
    """Where the migrations are: inside an installed wheel, or at the top of a checkout."""
    packaged = _PACKAGE / "_alembic"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "alembic"


def _config(database: Database) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.attributes["engine"] = database.engine
    return config


def required_version(database: Database) -> str:
    """The schema version this program works on."""
    head = ScriptDirectory.from_config(_config(database)).get_current_head()
    assert head is not None, "the program ships without migrations"
    return head


def current_version(database: Database) -> str | None:
    """The schema version of the database; None when it has none."""
    with database.engine.connect() as conn:
        return MigrationContext.configure(conn).get_current_revision()


def upgrade(database: Database) -> str:
    """Bring the schema to this program's version; returns it.

    Raises:
        SchemaVersionError: the database was made by a later program.
    """
    try:
        command.upgrade(_config(database), "head")
    except sa.exc.OperationalError as e:
        raise SchemaVersionError(
            f"the migration could not get a lock: {e.orig}", hint="stop long transactions, then run it again"
        ) from e
    except Exception as e:
        if "Can't locate revision" in str(e):
            _refuse(current_version(database), required_version(database), e)
        raise
    return required_version(database)


def check_schema(database: Database) -> None:
    """Refuse a schema of another version.

    Raises:
        SchemaVersionError: names both versions and the command that mends it.
    """
    current, required = current_version(database), required_version(database)
    if current != required:
        _refuse(current, required, None)


def _refuse(current: str | None, required: str, cause: Exception | None) -> None:
    known = current is None or current < required
    raise SchemaVersionError(
        f"the database's schema is {current or 'missing'}, this program needs {required}",
        hint="run: eventstore db upgrade"
        if known
        else "the database is newer: upgrade the eventstore program",
    ) from cause
