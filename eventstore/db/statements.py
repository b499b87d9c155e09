"""Statements on the shortest way to Postgres: no cursor, no parameters, no adaptation."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

__all__ = ["run_together"]

_DONE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


def run_together(conn: psycopg.Connection[Any], statements: str) -> PGresult:
    """Run statements in one round trip; the last one's result, in text format.

    The library waits for them itself (libpq's `PQexec`), without the interpreter's lock: a cursor would take
    that lock several times, each time behind the threads that serve, and three times the CPU.

    Raises:
        psycopg.Error: as a cursor raises it, of the first statement that failed; none after it was run.
    """
    if conn.closed:
        raise psycopg.OperationalError("the connection is closed")
    try:
        result = conn.pgconn.exec_(statements.encode())
    except MemoryError:
        # What it makes of "no answer": the statements could not even be sent.
        if conn.pgconn.status == ConnStatus.OK:
            raise
        raise psycopg.OperationalError(conn.pgconn.get_error_message()) from None
    if result.status in _DONE:
        return result
    error = psycopg.errors.error_from_result(result)
    if error.sqlstate is None and conn.pgconn.status != ConnStatus.OK:
        # Lost on the way: what is said is the library's word, not the server's.
        raise psycopg.OperationalError(str(error))
    raise error
