"""Connections that answer as Arrow: what they read first, and how they are kept and lost."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterator

import adbc_driver_manager
import adbc_driver_postgresql.dbapi
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from eventstore.db import arrow_connections
from eventstore.db.arrow_connections import ArrowConnections
from eventstore.db.engine import Database
from eventstore.errors import BusyError
from tests.unit.helpers import execute


@pytest.fixture
def stranger(database: Database) -> Iterator[str]:
    """The URL of a login that may not read which columns there are in the database."""
    name = f"stranger_{secrets.token_hex(4)}"
    with database.connection() as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(sql.Identifier(name)))
        conn.execute("REVOKE SELECT ON pg_catalog.pg_attribute FROM PUBLIC")
    yield make_url(database.url).set(username=name, password="p").render_as_string(hide_password=False)
    with database.connection() as conn:
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _one(connections: ArrowConnections, query: str) -> object:
    with connections.connection() as conn, conn.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        assert row is not None
        return row[0]


def test_the_columns_of_all_tables_are_not_read_first(stranger: str, database: Database) -> None:
    with pytest.raises(adbc_driver_manager.Error, match="pg_attribute"):
        adbc_driver_postgresql.dbapi.connect(stranger)
    connections = ArrowConnections(stranger, {"TimeZone": "Asia/Tokyo"}, 4)
    try:
        here = execute(database.url, "SELECT current_database()")[0][0]
        assert _one(connections, "SELECT current_database()::text") == here
        assert _one(connections, "SELECT current_setting('TimeZone')") == "Asia/Tokyo"
        with connections.connection() as first, connections.connection() as second:
            pids = set()
            for conn in (first, second):
                with conn.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid(), gen_random_uuid(), now(), 'x'::bytea, 1::bigint")
                    found = cursor.fetch_arrow_table()
                    pids.add(found.column(0)[0].as_py())
                    assert [str(t) for t in found.schema.types[2:]] == [
                        "timestamp[us, tz=UTC]",
                        "binary",
                        "int64",
                    ]
            assert len(pids) == 2
        assert _one(connections, "SELECT pg_backend_pid()") in pids  # kept for the next
    finally:
        connections.close()


def test_where_there_is_no_empty_database_ours_is_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_connections, "_EMPTY_DATABASE", "no_such_database")
    connections = ArrowConnections(database.url, {}, 4)
    assert _one(connections, "SELECT count(*) FROM tenants") == 0
    connections.close()


def test_a_lost_connection_is_not_given_out_again(database: Database) -> None:
    with database.arrow() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()
    execute(database.url, "SELECT pg_terminate_backend(%s)", pid)
    with pytest.raises(BusyError, match="lost"), database.arrow() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1")
    with database.arrow() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() != pid


def test_postgres_that_is_away_is_told_as_such(database: Database) -> None:
    away = Database(make_url(database.url).set(database="nowhere").render_as_string(hide_password=False))
    with pytest.raises(BusyError, match="lost"), away.arrow():
        pass
    away.close()


def test_one_in_use_outlives_the_close(database: Database) -> None:
    connections = ArrowConnections(database.url, {}, 4)
    with connections.connection() as conn:
        connections.close()
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
    connections.close()
    del conn
    gc.collect()  # what it finds unclosed fails the run
