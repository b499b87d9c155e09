"""How far an import has come, in the table `imports`; it moves in the transaction of the events it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = ["Done", "store_progress", "stored_progress"]


@dataclass(frozen=True, slots=True)
class Done:
    """The row of `imports`."""

    rows_read: int = 0
    rows_stored: int = 0
    rows_rejected: int = 0
    finished: bool = False


def stored_progress(conn: psycopg.Connection[Any], tenant_id: str, identity: bytes) -> Done | None:
    row = conn.execute(
        "SELECT rows_read, rows_stored, rows_rejected, finished FROM imports"
        " WHERE tenant_id = %s AND source_sha256 = %s",
        [tenant_id, identity],
    ).fetchone()
    return None if row is None else Done(*row)


def store_progress(conn: psycopg.Connection[Any], tenant_id: str, identity: bytes, done: Done) -> None:
    conn.execute(
        "INSERT INTO imports (tenant_id, source_sha256, rows_read, rows_stored, rows_rejected, finished)"
        " VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, source_sha256) DO UPDATE SET rows_read = excluded.rows_read,"
        " rows_stored = excluded.rows_stored, rows_rejected = excluded.rows_rejected,"
        " finished = excluded.finished, updated_at = now()",
        [tenant_id, identity, done.rows_read, done.rows_stored, done.rows_rejected, done.finished],
    )
