"""The database itself refuses to change or delete an event, whoever asks and however."""

from __future__ import annotations

import psycopg
import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from tests.unit.helpers import START_US, append, execute, leaves, make_tenant, new_event, read

STATEMENTS = {
    "update": "UPDATE {table} SET actor = 'eve'",
    "update of nothing": "UPDATE {table} SET actor = 'eve' WHERE false",
    "update only": "UPDATE ONLY {table} SET actor = 'eve'",
    "update with": "WITH x AS (UPDATE {table} SET actor = 'eve' RETURNING 1) SELECT * FROM x",
    "delete": "DELETE FROM {table}",
    "delete one": "DELETE FROM {table} WHERE seq = 1",
    "truncate": "TRUNCATE {table}",
    "truncate cascade": "TRUNCATE {table} CASCADE",
    "merge update": "MERGE INTO {table} t USING (SELECT 1 AS seq) s ON t.seq = s.seq"
    " WHEN MATCHED THEN UPDATE SET actor = 'eve'",
    "merge delete": "MERGE INTO {table} t USING (SELECT 1 AS seq) s ON t.seq = s.seq"
    " WHEN MATCHED THEN DELETE",
}
SESSIONS = {
    "plain": "SELECT 1",
    "as a replica": "SET session_replication_role = 'replica'",
    "local": "SET session_replication_role = 'local'",
}


@pytest.fixture
def stored(store: Store, clock: FixedClock) -> Store:
    clock.move_to(START_US)
    make_tenant(store)
    append(store, "acme", new_event("1"), new_event("2"))
    return store


def tables(url: str) -> dict[str, str]:
    (leaf,) = leaves(url)
    return {"root": "events", "tenant": "hot.events_1", "leaf": leaf}


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("table", ["root", "tenant", "leaf"])
def test_changes_are_refused(stored: Store, table: str, session: str) -> None:
    url = stored.database.url
    name = tables(url)[table]
    before = read(stored, "acme")
    for label, statement in STATEMENTS.items():
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(SESSIONS[session].encode())
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege, match="never modified or deleted"
            ) as caught:
                conn.execute(statement.format(table=name).encode())
            assert caught.value.diag.message_hint, label
        assert read(stored, "acme") == before, label


def test_on_conflict_do_update_is_refused(stored: Store) -> None:
    leaf = tables(stored.database.url)["leaf"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(
            stored.database.url,
            f"INSERT INTO {leaf} SELECT * FROM {leaf} ON CONFLICT (seq) DO UPDATE SET actor = 'eve'",
        )


def test_deferred_ways_are_refused_inside_a_transaction_too(stored: Store) -> None:
    with psycopg.connect(stored.database.url) as conn:
        conn.execute("SELECT 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            conn.execute("DELETE FROM events")
        assert conn.execute("SELECT count(*) FROM events").fetchone() == (2,)


def test_every_table_of_the_tree_carries_the_trigger(stored: Store, clock: FixedClock) -> None:
    """Also those made later: tenants and leaves. 'A' is ALWAYS, which replicas obey too."""
    make_tenant(stored, "b-2")
    append(stored, "b-2", new_event())
    rows = execute(
        stored.database.url,
        "SELECT c.oid::regclass::text, t.tgenabled FROM pg_class c"
        " LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'refuse_change'"
        " WHERE c.relname = 'events' OR (c.relnamespace = 'hot'::regnamespace AND c.relkind IN ('r', 'p'))",
    )
    assert len(rows) == 5
    assert {enabled for _, enabled in rows} in ({"A"}, {b"A"})


def test_two_events_never_share_a_seq_or_an_id(stored: Store) -> None:
    leaf = tables(stored.database.url)["leaf"]
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(stored.database.url, f"INSERT INTO {leaf} SELECT * FROM {leaf} WHERE seq = 1")
