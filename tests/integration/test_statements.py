"""`db.statements`: several statements in one round trip, and how they fail."""

from __future__ import annotations

import psycopg
import pytest

from eventstore.app import Store
from eventstore.db.statements import run_together
from tests.unit.helpers import execute


def test_the_last_result_is_answered(store: Store) -> None:
    with store.database.connection() as conn:
        found = run_together(conn, "SELECT 1; SELECT 'ä', NULL, 2; ")
        assert (found.ntuples, found.nfields) == (1, 3)
        assert [found.get_value(0, column) for column in range(3)] == ["ä".encode(), None, b"2"]
        assert run_together(conn, "BEGIN; COMMIT").ntuples == 0


def test_of_statements_that_fail_none_is_left(store: Store) -> None:
    with store.database.connection() as conn:
        conn.execute("CREATE TABLE kept (n integer)")
        with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero") as caught:
            run_together(conn, "INSERT INTO kept VALUES (1); SELECT 1/0; INSERT INTO kept VALUES (2)")
        assert caught.value.sqlstate == "22012"
        assert conn.execute("SELECT * FROM kept").fetchall() == []
        with pytest.raises(psycopg.errors.NotNullViolation):
            run_together(conn, "INSERT INTO policies (document) VALUES (NULL)")


def test_a_connection_that_is_lost_says_so(store: Store) -> None:
    with store.database.connect_apart() as conn:
        execute(store.database.url, "SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError) as caught:
            run_together(conn, "SELECT 1")
        assert caught.value.sqlstate in (None, "57P01")
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError, match="connection"):
                run_together(conn, "SELECT 1")
        conn.close()
        with pytest.raises(psycopg.OperationalError, match="closed"):
            run_together(conn, "SELECT 1")


def test_a_socket_that_is_gone_is_a_loss_too(store: Store) -> None:
    """Nothing can be sent, before the library knows."""
    conn = store.database.connect_apart()
    conn.pgconn.finish()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        run_together(conn, "SELECT 1")
