"""Row-level security: raw SQL under the application's role sees one tenant, and changes no event.

The generated queries are the default's three hundred; EXAMPLES multiplies them.
"""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.db.engine import Database
from eventstore.db.migrate import upgrade
from eventstore.db.roles import APP_ROLE, make_login, with_login
from eventstore.db.tables import metadata
from eventstore.errors import SetupError, TenantNotFoundError
from eventstore.hot.append import Appender, AppendRequest
from eventstore.hot.wake import Wakes
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.query.stats import log_stats
from eventstore.query.tiers import Tiers
from eventstore.settings import Settings
from tests.conftest import TODAY_US, create_database
from tests.property.strategies import examples
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
    seqs,
)

OPEN = (
    "certificates",
    "checkpoints",
    "events",
    "heads",
    "segments",
    "tenants",
    "tree_subtrees",
    "tree_tiles",
    "trees",
    "watermarks",
    "windows",
)
# Of these the logs here, which are short and of which nothing was destroyed, have no rows.
NONE_HERE = ("certificates", "tree_subtrees", "tree_tiles", "trees")
FOREIGN = ("globex", "initech")


@dataclasses.dataclass(frozen=True)
class Site:
    """A store of several tenants whose application has a login of its own, and a twin in which the first
    tenant is alone."""

    store: Store
    app_url: str
    twin_url: str
    twin_scope: str

    def scope(self, tenant: str) -> str:
        return self.store.database.app.scope(tenant)

    @contextmanager
    def raw(self, tenant: str | None = "acme") -> Iterator[psycopg.Connection[Any]]:
        """What smuggled SQL has: the application's login, in a transaction of a tenant."""
        with psycopg.connect(self.app_url) as conn:
            if tenant is not None:
                conn.execute(self.scope(tenant).encode())
            yield conn
            conn.rollback()


def fill(store: Store, clock: FixedClock, *tenants: str) -> None:
    """The same log of two windows, one archived, for each tenant; texts and ids tell whose they are."""
    for tenant in tenants:
        made = make_tenant(store, tenant)
        for day in range(2):
            clock.move_to(START_US + day * DAY_US)
            events = [
                new_event(
                    str(n % 3),
                    actor=f"{tenant}-{n}",
                    source=tenant,
                    new_value={"of": tenant, "n": n},
                    event_id=uuid.UUID(int=made.tenant_no << 32 | day << 16 | n),
                )
                for n in range(5)
            ]
            append(store, tenant, *events)
        make_checkpoint(store.database, store.tiers, store.key, tenant)
    run_retention(store, START_US + DAY_US)


@pytest.fixture(scope="module")
def site(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, login = tmp_path_factory.mktemp("rows"), f"app_{secrets.token_hex(4)}"
    urls = [
        create_database(server_url, f"rows_{secrets.token_hex(4)}", template=template_database)
        for _ in range(2)
    ]
    with psycopg.connect(urls[0]) as conn:
        make_login(conn, login, "hush")
    app_url = with_login(urls[0], login, "hush")
    both = [
        Settings(
            database_url=url,
            app_database_url=app_url if url == urls[0] else None,
            home=folder / str(number),
            archive_url=(folder / str(number) / "archive").as_uri(),
        )
        for number, url in enumerate(urls)
    ]
    clock = FixedClock(TODAY_US)
    with open_store(both[1], clock=clock) as twin:
        fill(twin, clock, "acme")
        twin_scope = twin.database.app.scope("acme")
    with open_store(both[0], clock=clock) as store:
        fill(store, clock, "acme", *FOREIGN)
        yield Site(store, app_url, urls[1], twin_scope)
    for url in urls:
        execute(server_url, f'DROP DATABASE "{url.rsplit("/", 1)[1].split("?")[0]}" WITH (FORCE)')
    execute(server_url, f"DROP ROLE {login}")


def leaf_of(site: Site, tenant: str) -> str:
    """The open leaf of a tenant."""
    query = "SELECT leaf FROM windows WHERE state = 'open' AND tenant_id = %s"
    return str(execute(site.store.database.url, query, [tenant])[0][0])


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", OPEN)
def test_one_tenant_is_seen(site: Site, table: str) -> None:
    owner = dict(
        execute(site.store.database.url, f"SELECT tenant_id, count(*) FROM {table} GROUP BY tenant_id")
    )
    for tenant in ("acme", *FOREIGN):
        with site.raw(tenant) as conn:
            seen = dict(conn.execute(f"SELECT tenant_id, count(*) FROM {table} GROUP BY 1").fetchall())
        assert seen == {name: count for name, count in owner.items() if name == tenant}
    assert table in NONE_HERE or set(owner) == {"acme", *FOREIGN}


def test_without_a_tenant_or_with_a_forged_one_nothing_is_seen(site: Site) -> None:
    token = site.scope("acme").split("'")[3]
    proof = token.partition(":")[2]
    forged = [
        None,
        "",
        ":",
        "acme",
        "acme:",
        f"globex:{proof}",
        f"acme:{proof[:-1]}",
        f"acme:{proof.upper()}",
    ]
    forged += [f"{token}{proof}", f" {token}", f"globex:{proof}:acme", "*", "%"]
    for value in forged:
        with site.raw(None) as conn:
            if value is not None:
                conn.execute("SELECT set_config('eventstore.tenant', %s, true)", [value])
            for table in OPEN:
                assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), (value, table)
            assert conn.execute("SELECT hot.entity_seqs(NULL, '1', 1, 99, false, NULL)").fetchall() == []
            assert conn.execute("SELECT * FROM hot.entity_versions('{order}', '{1}')").fetchall() == []
    with site.raw(None) as conn:  # and the true one is seen, or this would show nothing
        conn.execute("SELECT set_config('eventstore.tenant', %s, true)", [token])
        assert conn.execute("SELECT count(*) > 0 FROM events").fetchone() == (True,)


def test_everything_else_is_closed(site: Site) -> None:
    closed = sorted({table.name for table in metadata.sorted_tables} - set(OPEN))
    assert {"scope_key", "policies", "holds", "governance", "runs", "imports"} <= set(closed)
    leaf = leaf_of(site, "acme")
    for table in [*closed, f"hot.{leaf}", "hot.events_1", "hot.events_2", "pg_authid", "pg_statistic"]:
        for statement in (f"SELECT FROM {table}", f"COPY {table} TO STDOUT"):
            with site.raw() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())
    with site.raw() as conn:
        assert (
            conn.execute(
                "SELECT tablename FROM pg_stats WHERE schemaname = 'hot' OR tablename = 'events'"
            ).fetchall()
            == []
        )


def test_statements_of_other_sessions_are_not_shown(site: Site) -> None:
    """They are of one role, and hold other tenants' values and proofs."""
    with site.raw("globex") as other:
        other.execute("SELECT 'value of globex'")
        with site.raw() as conn:
            shown = conn.execute("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
            assert not [query for (query,) in shown if query and "globex" in query]


def test_what_processes_say_of_commits_is_sealed(site: Site) -> None:
    """LISTEN takes no privilege."""
    wakes = Wakes(site.store.database)
    with psycopg.connect(site.app_url, autocommit=True) as conn:
        conn.execute("LISTEN eventstore_commits")
        wakes.start()
        try:
            wakes.committed("globex")
            heard = [notice.payload for notice in conn.notifies(timeout=30, stop_after=1)]
        finally:
            wakes.close()
    assert len(heard) == 1
    assert "globex" not in heard[0]


# --- changing -----------------------------------------------------------------------------------------

ATTEMPTS = [
    "UPDATE {table} SET tenant_id = 'acme'",
    "DELETE FROM {table}",
    "DELETE FROM {table} WHERE false",
    "TRUNCATE {table}",
    "DROP TABLE {table}",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} OWNER TO CURRENT_USER",
    "CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION hot.refuse_foreign()",
    "MERGE INTO {table} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
]


@pytest.mark.parametrize("table", ["events", "hot.events_1", "leaf", "windows", "segments", "watermarks"])
def test_nothing_is_changed_or_removed(site: Site, table: str) -> None:
    name = f"hot.{leaf_of(site, 'acme')}" if table == "leaf" else table
    before = {tenant: read(site.store, tenant) for tenant in ("acme", *FOREIGN)}
    for attempt in ATTEMPTS:
        with site.raw() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(attempt.format(table=name).encode())
    assert {tenant: read(site.store, tenant) for tenant in before} == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.mine (a int)",
        "CREATE TABLE hot.mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE mine",
        "SET session_replication_role = 'replica'",
        "SET track_activities = on",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT hot.make_leaf('mine')",
        "SELECT hot.add_leaf(2, 'mine', '2031-01-01Z', '2031-01-02Z')",
        "SELECT hot.admit_leaf('acme', 'mine')",
        "SELECT hot.admit_own_leaf('{foreign}')",
        "SELECT hot.add_own_leaf('events_2_20310101t000000', '2031-01-01Z', '2031-01-02Z')",
        "SELECT hot.add_own_leaf('events_1_20240301t120000', '2024-03-01T12:00Z', '2024-03-01T13:00Z')",
        "SELECT hot.add_own_leaf('events_1_20310101t000000', '2031-01-01Z', '2033-01-01Z')",
        "UPDATE heads SET closed = true",
        "INSERT INTO heads SELECT * FROM heads",
        "INSERT INTO windows SELECT * FROM windows",
        "INSERT INTO events SELECT * FROM events",
        "SET ROLE {owner}",
        "SET SESSION AUTHORIZATION {owner}",
    ],
)
def test_the_role_owns_nothing_and_may_make_nothing(site: Site, statement: str) -> None:
    owner = execute(site.store.database.url, "SELECT quote_ident(current_user)")[0][0]
    with site.raw() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement.format(owner=owner, foreign=leaf_of(site, "globex")).encode())


def test_another_tenants_head_stays_as_it_is(site: Site) -> None:
    with site.raw() as conn:
        assert conn.execute("UPDATE heads SET last_seq = last_seq WHERE tenant_id <> 'acme'").rowcount == 0
        assert conn.execute("UPDATE heads SET last_seq = last_seq").rowcount == 1
        assert conn.execute("SELECT 1 FROM heads WHERE tenant_id <> 'acme' FOR UPDATE").fetchall() == []


_COPIED = (
    "INSERT INTO hot.{leaf} SELECT '{tenant}', {seq}, gen_random_uuid(), recorded_at, recorded_at, 'a', 'b',"
    " 'c', '*', NULL, NULL, 'd', 'e', NULL, NULL, hash FROM events LIMIT {count}"
)


def test_a_foreign_leaf_takes_nothing(site: Site) -> None:
    """And says nothing: it is refused before the first row is looked at, so no id can be tried out there:
    seq 6 is taken in it."""
    leaf = leaf_of(site, "globex")
    for tenant in ("acme", None):
        for count in (0, 1):
            with site.raw(tenant) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                conn.execute(_COPIED.format(leaf=leaf, tenant="globex", seq=6, count=count).encode())
            assert "another tenant" in str(caught.value)
        with (
            site.raw(tenant) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            conn.cursor().copy(f"COPY hot.{leaf} FROM STDIN") as copy,
        ):
            copy.write(b"")
    own = leaf_of(site, "acme")
    with site.raw() as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(_COPIED.format(leaf=own, tenant="globex", seq=99, count=1).encode())
    with site.raw() as conn:
        assert conn.execute(_COPIED.format(leaf=own, tenant="acme", seq=99, count=1).encode()).rowcount == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute((_COPIED.format(leaf=own, tenant="acme", seq=99, count=0) + " RETURNING *").encode())


# --- connections --------------------------------------------------------------------------------------


@pytest.fixture
def single(site: Site) -> Iterator[Database]:
    """One connection of each kind for the application: whoever comes next gets what the last one used."""
    database = Database(site.store.database.url, app_url=site.app_url, max_connections=1)
    database.open()
    yield database
    database.close()


COUNT = "SELECT coalesce(string_agg(DISTINCT tenant_id, ','), '') FROM events"


def test_a_connection_carries_no_tenant_over(single: Database) -> None:
    app, inner = single.app, single.app._connections
    with app.connection() as conn:
        process = conn.info.backend_pid
    for tenant in ("acme", "globex", "acme"):
        assert app.row(tenant, COUNT) == (tenant,)
        with app.connection() as conn:
            assert conn.info.backend_pid == process
            assert conn.execute(COUNT).fetchone() == ("",)
        with app.arrow(tenant) as adbc, adbc.cursor() as cursor:
            cursor.execute(COUNT)
            assert cursor.fetchone() == (tenant,)
        with inner.arrow() as adbc, adbc.cursor() as cursor:
            cursor.execute(COUNT)
            assert cursor.fetchone() == ("",)
        with app.transaction(tenant, one_snapshot=tenant == "globex") as alchemy:
            assert alchemy.exec_driver_sql(COUNT).scalar_one() == tenant
        with inner.transaction() as alchemy:
            assert alchemy.exec_driver_sql(COUNT).scalar_one() == ""
    with pytest.raises(psycopg.errors.DivisionByZero):
        app.row("acme", "SELECT 1/0")
    with app.connection() as conn:
        assert conn.execute(COUNT).fetchone() == ("",)


def test_what_smuggled_sql_leaves_on_a_connection_does_no_harm(single: Database, site: Site) -> None:
    """A setting for the session, and temporary tables that go by the names of ours."""
    token = site.scope("acme").split("'")[3]
    with single.app.connection() as conn:
        conn.execute("SELECT set_config('eventstore.tenant', %s, false)", [token])
        conn.execute("SET search_path = pg_temp, public")
        for table in ("heads", "events", "tenants", "windows", "watermarks"):
            conn.execute(f"CREATE TEMP TABLE {table} (LIKE public.{table})".encode())
    appender = Appender(
        single,
        archived_versions=site.store.reader.archived_versions,
        clock=FixedClock(START_US + DAY_US),
    )
    (outcome,) = appender.append("initech", [AppendRequest([new_event("smuggled")])])
    assert not isinstance(outcome, Exception), outcome
    assert outcome.first_seq == 11
    tiers = Tiers(single, site.store.tiers._scan)
    assert tiers.state("initech").last_seq == 11
    with single.app.connection() as conn:
        assert conn.execute("SELECT count(*) FROM pg_temp.heads").fetchone() == (0,)
        # What the smuggler set for the session is its own tenant's.
        assert conn.execute("SELECT DISTINCT tenant_id FROM public.events").fetchall() == [("acme",)]


def test_without_a_login_of_its_own_the_application_takes_on_the_role(site: Site) -> None:
    database = Database(site.store.database.url)
    database.open()
    try:
        database.check_app()
        assert database.app.row("acme", "SELECT current_user") == (APP_ROLE,)
        assert database.app.row("globex", COUNT) == ("globex",)
        with database.app.arrow("globex") as adbc, adbc.cursor() as cursor:
            cursor.execute(f"SELECT current_user || ' ' || ({COUNT})")
            assert cursor.fetchone() == (f"{APP_ROLE} globex",)
        with pytest.raises(TenantNotFoundError):
            Tiers(database, site.store.tiers._scan).state("nobody")
    finally:
        database.close()


@pytest.mark.parametrize(
    ("login", "said"), [("owner", "does not hold"), ("stranger", "cannot work"), ("elsewhere", "another")]
)
def test_a_login_that_is_not_bound_is_refused(site: Site, login: str, said: str, server_url: str) -> None:
    name = f"stranger_{secrets.token_hex(4)}"
    url = {
        "owner": site.store.database.url,
        "stranger": with_login(site.app_url, name, "hush"),
        "elsewhere": site.app_url,
    }[login]
    # For the twin, the right login comes from elsewhere.
    owner = site.twin_url if login == "elsewhere" else site.store.database.url
    execute(server_url, f"CREATE ROLE {name} LOGIN PASSWORD 'hush'")
    database = Database(owner, app_url=url)
    database.open()
    try:
        with pytest.raises(SetupError, match=said):
            database.check_app()
    finally:
        database.close()
        execute(server_url, f"DROP ROLE {name}")


def test_an_owner_who_is_no_superuser(server_url: str, template_database: str, tmp_path: Path) -> None:
    """As on a managed server. The role is there already, so somebody has to let the owner have it."""
    owner, name = f"owner_{secrets.token_hex(4)}", f"owned_{secrets.token_hex(4)}"
    execute(server_url, f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD 'hush'")
    try:
        execute(server_url, f"CREATE DATABASE {name} OWNER {owner}")
        url = make_url(server_url).set(database=name, username=owner, password="hush")
        database = Database(url.render_as_string(hide_password=False))
        database.open()
        try:
            with psycopg.connect(server_url) as conn:
                # Up to Postgres 15 whoever may make roles gives itself any role.
                grants_itself = conn.info.server_version < 160_000
            if not grants_itself:
                with pytest.raises(SetupError, match="cannot be made") as caught:
                    upgrade(database)
                assert f"GRANT {APP_ROLE}" in caught.value.hint
                execute(server_url, f"GRANT {APP_ROLE} TO {owner}")
            upgrade(database)
        finally:
            database.close()
        settings = Settings(database_url=database.url, home=tmp_path, archive_url=tmp_path.as_uri())
        with open_store(settings, clock=FixedClock(START_US)) as store:
            for tenant in ("acme", "globex"):
                make_tenant(store, tenant)
                append(store, tenant, new_event("1"))
                append(store, tenant, new_event("1", expected_version=1))
            assert seqs(read(store, "acme", entity_id="1")) == [1, 2]
            assert store.database.app.row("acme", f"SELECT ({COUNT}), current_user") == ("acme", APP_ROLE)
            assert log_stats(store.database, "acme").hot.events == 2
    finally:
        execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        execute(server_url, f"DROP ROLE {owner}")


# --- plans, and the way of an event -------------------------------------------------------------------


def test_plans_touch_the_tenants_own_leaves_and_use_their_indexes(site: Site) -> None:
    leaf = leaf_of(site, "acme")
    queries = {
        "page": "seq BETWEEN 1 AND 99 ORDER BY seq DESC LIMIT 50",
        "history": "seq BETWEEN 1 AND 99 AND entity_id = '1' AND seq = ANY (ARRAY(SELECT hot.entity_seqs("
        "NULL, '1', 1, 99, true, 50))) ORDER BY seq DESC LIMIT 50",
        "repeat": f"event_id = '{uuid.UUID(int=7)}' AND recorded_at >= '2024-03-02Z'",
    }
    with site.raw() as conn:
        conn.execute("SET LOCAL enable_seqscan = off")  # the tables are small
        for name, query in queries.items():
            rows = conn.execute(
                f"EXPLAIN SELECT * FROM events WHERE tenant_id = 'acme' AND {query}".encode()
            ).fetchall()
            plan = "\n".join(line for (line,) in rows)
            assert f" on {leaf} " in plan, plan
            assert "Index Scan" in plan, (name, plan)
            assert "events_2" not in plan
            assert "events_3" not in plan


def test_from_append_to_archive_under_a_login_that_owns_nothing(
    database_url: str, server_url: str, tmp_path: Path
) -> None:
    """Also into a leaf that was made before there was the role."""
    login = f"life_{secrets.token_hex(4)}"
    with psycopg.connect(database_url) as conn:
        make_login(conn, login, "hush")
    settings = Settings(
        database_url=database_url,
        app_database_url=with_login(database_url, login, "hush"),
        home=tmp_path,
        archive_url=(tmp_path / "archive").as_uri(),
    )
    clock = FixedClock(START_US)
    try:
        with open_store(settings, clock=clock) as store:
            make_tenant(store)
            fill_days(store, clock, "acme", 3)
            execute(
                database_url,
                "DO $$ DECLARE leaf text; BEGIN FOR leaf IN SELECT w.leaf FROM windows w LOOP"
                " EXECUTE format('DROP TRIGGER refuse_foreign ON hot.%I', leaf);"
                f" EXECUTE format('REVOKE INSERT ON hot.%I FROM {APP_ROLE}', leaf); END LOOP; END $$",
            )
        with open_store(settings, clock=clock) as store:
            append(store, "acme", new_event("1", expected_version=15))
            report = run_retention(store, START_US + 2 * DAY_US)
            assert report.outcomes[0].windows == 2
            append(store, "acme", *(new_event(str(n)) for n in range(60)))
            append(store, "acme", new_event("only-archived", expected_version=0))
            assert seqs(read(store, "acme")) == list(range(1, 78))
            assert seqs(read(store, "acme", entity_id="1", entity_type="order"))[-2:] == [16, 18]
            assert store.appender._app.row("acme", "SELECT session_user") == (login,)
    finally:
        execute(server_url, f"DROP ROLE {login}")


# --- generated queries --------------------------------------------------------------------------------

TEXTS = ("tenant_id", "entity_type", "entity_id", "action", "field", "actor", "source", "new_value")
literals = st.sampled_from(["'acme'", "'globex'", "'initech'", "'1'", "'order'", "'globex-1'", "'%'", "''"])
numbers = st.integers(-1, 12).map(str)
texts = st.sampled_from(TEXTS)
comparisons = st.one_of(
    st.tuples(texts, st.sampled_from(["=", "<>", "<", "LIKE", "~"]), literals).map(" ".join),
    st.tuples(st.just("seq"), st.sampled_from(["=", "<>", "<", ">="]), numbers).map(" ".join),
    st.tuples(texts, st.just("IS NOT DISTINCT FROM"), texts).map(" ".join),
    st.sampled_from(
        [
            "true",
            "length(actor) / (seq - 3) > 0",
            "(new_value::json ->> 'of') <> 'acme'",
            "(new_value::json ->> 'n')::int > 2",
            "substr(source, 1, 1)::int = 1",
            "1 / (length(source) - 6) = 0",
            "tenant_id <> 'acme' AND 1 / (seq - seq) = 0",
            "tenant_id <> 'acme' AND source::int = 0",
            "hot.current_tenant() <> 'acme'",
            "row_security_active('events')",
            "hashtextextended(entity_id, 0) % 2 = 0",
            "event_id IN (SELECT event_id FROM events)",
        ]
    ),
)
FIELDS = "tenant_id, seq, event_id, recorded_at, entity_id, actor, source, new_value, hash"
BESIDE = ("heads", "watermarks", "windows", "segments", "tenants")


def _deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    beside = st.sampled_from(BESIDE)
    return st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda p: f"NOT ({p})"),
        inner.map(lambda p: f"seq IN (SELECT seq FROM events WHERE {p})"),
        inner.map(lambda p: f"EXISTS (SELECT FROM events WHERE {p})"),
        st.tuples(beside, inner).map(
            lambda t: f"tenant_id IN (SELECT b.tenant_id FROM {t[0]} b, events WHERE {t[1]})"
        ),
        inner.map(lambda p: f"CASE WHEN {p} THEN true ELSE tenant_id <> 'acme' END"),
    )


predicates = st.recursive(comparisons, _deeper, max_leaves=5)
SHAPES = st.sampled_from(
    [
        "SELECT {fields} FROM events WHERE {p}",
        "SELECT {fields} FROM (SELECT * FROM events WHERE {p} OFFSET 0) e WHERE {q}",
        "WITH e AS MATERIALIZED (SELECT * FROM events WHERE {p}) SELECT {fields} FROM e WHERE {q}",
        "SELECT count(*), min(seq), max(actor), sum(seq) FROM events WHERE {p}",
        "SELECT tenant_id, count(*), string_agg(actor, ',' ORDER BY seq) FROM events WHERE {p} GROUP BY 1",
        "SELECT {fields} FROM events WHERE {p} UNION SELECT {fields} FROM events WHERE {q}",
        "SELECT {fields} FROM events WHERE {p} EXCEPT ALL SELECT {fields} FROM events WHERE {q}",
        "SELECT a.seq, b.actor FROM (SELECT * FROM events WHERE {p}) a FULL JOIN"
        " (SELECT * FROM events WHERE {q}) b USING (tenant_id)",
        "SELECT w.tenant_id, w.first_seq, e.* FROM windows w LEFT JOIN LATERAL"
        " (SELECT {fields} FROM events WHERE tenant_id = w.tenant_id AND {p}) e ON true",
        "SELECT tenant_id, last_seq, encode(last_hash, 'hex') FROM heads WHERE EXISTS"
        " (SELECT FROM events WHERE {p})",
        "SELECT tenant_id, seq, rank() OVER (PARTITION BY source ORDER BY seq) FROM events WHERE {p}",
        "SELECT s.tenant_id, s.first_seq, s.key, w.leaf FROM segments s NATURAL FULL JOIN windows w"
        " WHERE EXISTS (SELECT FROM events WHERE {p})",
        "SELECT tenant_id, tenant_no FROM tenants WHERE EXISTS (SELECT FROM events WHERE {p})",
        "SELECT hot.entity_seqs(NULL, entity_id, 0, seq, true, NULL) FROM events WHERE {p}",
        "SELECT query_to_xml('SELECT {fields} FROM events ORDER BY tenant_id, seq', false, true, '')::text"
        " FROM events WHERE {p}",
    ]
)


def _answer(conn: psycopg.Connection[Any], scope: str, query: str) -> tuple[list[str] | None, str]:
    """The sorted rows as text, or None, and what the error says."""
    try:
        conn.execute(scope.encode())
        rows = conn.execute(query.encode()).fetchall()
    except psycopg.Error as e:
        return None, f"{e} {e.diag.message_detail}"
    finally:
        conn.rollback()
    return sorted(map(repr, rows)), ""


@pytest.fixture(scope="module")
def pair(site: Site) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """The application's connection, and the owner's to the database in which the tenant is alone."""
    with (
        psycopg.connect(site.app_url, options="-c TimeZone=UTC") as bound,
        psycopg.connect(site.twin_url, options="-c TimeZone=UTC") as alone,
    ):
        yield bound, alone


@hypothesis.given(shape=SHAPES, p=predicates, q=predicates)
@examples(300)
def test_generated_queries_cannot_tell_whether_others_are_there(
    site: Site,
    pair: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
    shape: str,
    p: str,
    q: str,
) -> None:
    """The answer is the one of a database in which the tenant is alone; and where it is an error, that
    database gives one too: no function meets a foreign row."""
    query = shape.format(fields=FIELDS, p=p, q=q)
    found, said = _answer(pair[0], site.scope("acme"), query)
    # The owner is bound by no policy.
    expected, _ = _answer(pair[1], site.twin_scope, query.replace("row_security_active('events')", "true"))
    assert not [name for name in FOREIGN if name in said and name not in query], said
    if found is None:
        assert expected is None, said
    elif expected is not None:
        assert found == expected
