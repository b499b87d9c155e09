"""The partitions of `events`: a table a tenant (LIST), below it a leaf a window (RANGE).

A partition is created apart and then attached: ATTACH takes a lock that neither readers nor writers of
the parent wait for, whereas CREATE TABLE … PARTITION OF would stop them all. Leaves are made by functions
of the database: the application's role, which may make no tables, needs one in the middle of an append.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from eventstore.clock import from_us, parse_time_us
from eventstore.db.locks import leaf_key
from eventstore.errors import CoverageError
from eventstore.model.window import Window

__all__ = [
    "SCHEMA",
    "Leaf",
    "admit_own_leaf",
    "create_leaf",
    "create_tenant_table",
    "drop_unused_leaves",
    "leaf_name",
    "list_leaves",
    "prepare_leaf",
]

SCHEMA = "hot"

# Statement triggers do not come down to partitions, so each table of the tree carries its own. ALWAYS:
# session_replication_role does not switch it off.
_TENANT_TABLE = """
CREATE TABLE {table} (LIKE events) PARTITION BY RANGE (recorded_at);
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE events ATTACH PARTITION {table} FOR VALUES IN ({tenant_id});
"""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf as Postgres' own catalog describes it: its name and its bounds."""

    name: str
    window: Window


def _tenant_table(tenant_no: int) -> sql.Identifier:
    return sql.Identifier(SCHEMA, f"events_{tenant_no}")


def leaf_name(tenant_no: int, window: Window) -> str:
    """The name a new leaf gets (in the schema `hot`). Nothing ever reads meaning back out of it."""
    return f"events_{tenant_no}_{from_us(window.from_us):%Y%m%dt%H%M%S}"


def create_tenant_table(conn: psycopg.Connection[Any], tenant_no: int, tenant_id: str) -> None:
    """Make a tenant's own partitioned table, in the connection's transaction."""
    conn.execute(
        sql.SQL(_TENANT_TABLE).format(table=_tenant_table(tenant_no), tenant_id=sql.Literal(tenant_id))
    )


def create_leaf(conn: psycopg.Connection[Any], tenant_no: int, window: Window, *, own: bool = False) -> str:
    """Make a window's leaf, in the connection's transaction; returns its name. A table that was made ahead
    (`prepare_leaf`) only has to be attached.

    `own`: for a connection of the application's role, whose transaction holds the tenant's head. The window
    is then registered too; it begins behind the head's last seq.
    """
    name = leaf_name(tenant_no, window)
    _be_alone(conn, name)
    times = [from_us(window.from_us), from_us(window.to_us)]
    if own:
        conn.execute("SELECT hot.add_own_leaf(%s, %s, %s)", [name, *times])
    else:
        conn.execute("SELECT hot.add_leaf(%s, %s, %s, %s)", [tenant_no, name, *times])
    return name


def admit_own_leaf(conn: psycopg.Connection[Any], leaf: str) -> None:
    """Let the application's role write into the tenant's open leaf, if it was made before there was that
    role. In the role's transaction, under the head's lock."""
    row = conn.execute("SELECT has_table_privilege(%s, 'INSERT')", [f'{SCHEMA}."{leaf}"']).fetchone()
    if row != (True,):
        conn.execute("SELECT hot.admit_own_leaf(%s)", [leaf])


def prepare_leaf(conn: psycopg.Connection[Any], tenant_no: int, window: Window) -> bool:
    """Make the table of a window that is still to come, in the connection's transaction. It is no partition
    yet, so nobody sees it. False: it is there already."""
    name = leaf_name(tenant_no, window)
    _be_alone(conn, name)
    row = conn.execute("SELECT to_regclass(%s) IS NULL", [f"{SCHEMA}.{name}"]).fetchone()
    if row != (True,):
        return False
    conn.execute("SELECT hot.make_leaf(%s)", [name])
    return True


def drop_unused_leaves(conn: psycopg.Connection[Any], ended_before_us: int) -> list[str]:
    """Drop tables that were made ahead for windows into which no event came (autocommit connection); returns
    their names. They are no partitions, and empty: both is looked at under their locks.

    Only those made for a window that began before `ended_before_us` are looked at.
    """
    stamp = f"{from_us(ended_before_us):%Y%m%dt%H%M%S}"
    found = conn.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND NOT c.relispartition"
        " AND c.relname ~ '^events_[0-9]+_[0-9]{8}t[0-9]{6}$' AND right(c.relname, 15) < %s",
        [SCHEMA, stamp],
    ).fetchall()
    dropped = []
    for (name,) in found:
        table = sql.Identifier(SCHEMA, name)
        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '200ms'")
            conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            row = conn.execute(
                sql.SQL(
                    "SELECT NOT c.relispartition AND NOT EXISTS (SELECT 1 FROM {table})"
                    " FROM pg_class c WHERE c.oid = to_regclass({name})"
                ).format(table=table, name=sql.Literal(f"{SCHEMA}.{name}"))
            ).fetchone()
            if row is not None and row[0]:
                conn.execute(sql.SQL("DROP TABLE {}").format(table))
                dropped.append(name)
    return dropped


def _be_alone(conn: psycopg.Connection[Any], name: str) -> None:
    """Whoever makes a table ahead, and the first event of its window, may come at the same moment."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", [leaf_key(name)])


_BOUNDS = re.compile(r"FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)")


def list_leaves(conn: psycopg.Connection[Any], tenant_no: int) -> list[Leaf]:
    """A tenant's leaves, oldest first, by their partition bounds.

    Raises:
        CoverageError: a partition whose bounds are not a plain range (nothing of ours).
    """
    rows = conn.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass(%s)",
        [f"{SCHEMA}.events_{tenant_no}"],
    ).fetchall()
    leaves = []
    for name, bounds in rows:
        if bounds is None:
            continue  # dropped since the statement's snapshot: only its bounds are looked up as they are now
        match = _BOUNDS.fullmatch(bounds)
        if match is None:
            raise CoverageError(
                f"partition {SCHEMA}.{name} has bounds {bounds!r}",
                hint="it was not made by the store; look at what it holds before detaching it",
            )
        leaves.append(Leaf(name, Window(parse_time_us(match[1]), parse_time_us(match[2]))))
    return sorted(leaves, key=lambda leaf: leaf.window)
