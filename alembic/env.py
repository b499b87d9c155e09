"""Runs migrations: online only, in one transaction, never stalling a site for long."""

from alembic import context
from eventstore.db import (  # their tables belong to the metadata
    tables_access,  # noqa: F401
    tables_console,  # noqa: F401
    tables_exports,  # noqa: F401
    tables_subscriptions,  # noqa: F401
    tables_tree,  # noqa: F401
)
from eventstore.db.locks import migration_key
from eventstore.db.tables import metadata


def run(connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({migration_key()})")
        # A migration that cannot get its lock at once gives up rather than queue in front of everyone.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        connection.exec_driver_sql("SET LOCAL statement_timeout = '10min'")
        context.run_migrations()


def main() -> None:
    engine = context.config.attributes.get("engine")
    if engine is not None:
        with engine.connect() as connection:
            run(connection)
        return
    # Called by the alembic command line: the database is the one the settings name.
    from eventstore.opening import open_database
    from eventstore.settings import load_settings

    with open_database(load_settings()) as database, database.engine.connect() as connection:
        run(connection)


main()
