"""The schema's version: migrate to it, or refuse to work on another one.

Every program looks at the version before it works, and hardly one migrates: looking is done without Alembic,
which takes longer to load than most commands to run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from eventstore.db import (  # their tables belong to the metadata
    tables_access,  # noqa: F401
    tables_console,  # noqa: F401
    tables_subscriptions,  # noqa: F401
    tables_tree,  # noqa: F401
)
from eventstore.db.engine import Database
from eventstore.errors import SchemaVersionError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["check_schema", "current_version", "migrations_path", "required_version", "upgrade"]

_PACKAGE = Path(__file__).resolve().parents[1]


def migrations_path() -> Path:
    """Where the migrations are: inside an installed wheel, or at the top of a checkout."""
    packaged = _PACKAGE / "_alembic"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "alembic"


def _config(database: Database) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.attributes["engine"] = database.engine
    return config


@cache
def required_version() -> str:
    """The schema version this program works on: the newest migration's, which its file is named by."""
    found = [path.name.partition("_")[0] for path in (migrations_path() / "versions").glob("[0-9]*_*.py")]
    assert found, "the program ships without migrations"
    return max(found)


def current_version(database: Database) -> str | None:
    """The schema version of the database; None when it has none."""
    with database.engine.connect() as conn:
        if conn.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
            return None
        found: str | None = conn.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def upgrade(database: Database) -> str:
    """Bring the schema to this program's version; returns it.

    Raises:
        SchemaVersionError: the database was made by a later program.
    """
    from alembic import command

    try:
        command.upgrade(_config(database), "head")
    except sa.exc.OperationalError as e:
        raise SchemaVersionError(
            f"the migration could not get a lock: {e.orig}", hint="stop long transactions, then run it again"
        ) from e
    except Exception as e:
        if "Can't locate revision" in str(e):
            _refuse(current_version(database), required_version(), e)
        raise
    return required_version()


def check_schema(database: Database) -> None:
    """Refuse a schema of another version.

    Raises:
        SchemaVersionError: names both versions and the command that mends it.
    """
    current, required = current_version(database), required_version()
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
