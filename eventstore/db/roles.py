"""The application's role, which owns nothing, and its connections: each transaction sees one tenant.

Row-level security compares each row's tenant with the setting `eventstore.tenant`, which holds the tenant's
name and a proof made with a key that the role cannot read (docs/design/0024-row-level-security.md).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.engine import make_url

from eventstore.db.connections import Connections
from eventstore.db.locks import app_login_key
from eventstore.db.tables import metadata
from eventstore.errors import BusyError, SetupError
from eventstore.model.tenant import check_tenant_id

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi as adbc

__all__ = [
    "APP_ROLE",
    "EMBEDDED_LOGIN",
    "THIS_DATABASE",
    "TenantConnections",
    "kept_password",
    "make_login",
    "scope_key",
    "with_login",
]

APP_ROLE = "eventstore_app"
EMBEDDED_LOGIN = "eventstore_app_login"

# One row: what a transaction proves with that it may act for a tenant. Nobody but the owner reads it.
scope_key = sa.Table(
    "scope_key",
    metadata,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("key", BYTEA, nullable=False),
    sa.CheckConstraint("one", name="one"),
)


# Tells a database from every other, its own copies among them.
THIS_DATABASE = "SELECT oid, pg_postmaster_start_time() FROM pg_database WHERE datname = current_database()"

# Who it is, whether the key fits, and whether the policies bind it.
_LOGIN = """
SELECT current_user, hot.current_tenant(), row_security_active(oid), pg_has_role(relowner, 'MEMBER')
  FROM pg_class WHERE oid = 'public.events'::regclass
"""


class TenantConnections:
    """Connections as the application's role. What is read and written through them belongs to the tenant of
    the transaction; without one there is nothing to be seen. Safe for many threads."""

    def __init__(self, connections: Connections, read_key: Callable[[], bytes]) -> None:
        self._connections = connections
        self._read_key = read_key
        self._key: bytes | None = None  # None: not read yet
        self._lock = threading.Lock()

    def open(self) -> None:
        self._connections.open()

    def close(self) -> None:
        self._connections.close()

    def scope(self, tenant_id: str) -> str:
        """The statement that makes a transaction the tenant's, up to its end. It begins every one: what a
        connection was used for before has no say. `pg_temp` comes last, so that no temporary table passes
        for one of ours.

        Raises:
            InputError: not a slug.
        """
        return (
            f"SELECT set_config('eventstore.tenant', '{self._token(tenant_id)}', true),"
            " set_config('search_path', 'public, pg_temp', true);\n"
        )

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A psycopg connection in autocommit mode; a transaction on it begins with `scope`.

        Raises:
            BusyError: none came free within the pool's time-out.
        """
        with self._connections.connection() as conn:
            yield conn

    def row(self, tenant_id: str, query: str) -> tuple[Any, ...] | None:
        """The first row of a query, in a transaction of its own and one round trip; None: it has none."""
        with self.connection() as conn:
            cursor = conn.execute((self.scope(tenant_id) + query).encode())
            cursor.nextset()
            return cursor.fetchone()

    @contextmanager
    def transaction(self, tenant_id: str, *, one_snapshot: bool = False) -> Iterator[sa.Connection]:
        """A SQLAlchemy connection in one transaction of the tenant's: commits, or rolls back. READ
        COMMITTED; `one_snapshot`: REPEATABLE READ and read-only."""
        with self._connections.transaction() as conn:
            if one_snapshot:
                conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            conn.exec_driver_sql(self.scope(tenant_id))
            yield conn

    @contextmanager
    def arrow(self, tenant_id: str) -> Iterator[adbc.Connection]:
        """An ADBC connection in one transaction of the tenant's (READ COMMITTED), for reading."""
        with self._connections.arrow() as conn:
            # Pages are wanted in the order of seq, which an index gives. A leaf that nobody has analyzed yet
            # looks so small to the planner that it would rather fetch and sort all of it.
            _run(
                conn,
                f"BEGIN; SET LOCAL eventstore.tenant = '{self._token(tenant_id)}';"
                " SET LOCAL search_path = public, pg_temp; SET LOCAL enable_bitmapscan = off",
            )
            yield conn
            _run(conn, "COMMIT")

    def check(self, database: object) -> None:
        """Refuse a login of the application that may do more than it should, or less than it must.
        `database` is what `THIS_DATABASE` gives the owner.

        Raises:
            SetupError: says what is wrong with it.
            BusyError: Postgres is away.
        """
        hint = "look at EVENTSTORE_APP_DATABASE_URL and docs/howto/database-roles.md"
        probe = "probe"
        scope = self.scope(probe)
        try:
            with self._connections.connect_apart() as conn:
                cursor = conn.execute((scope + _LOGIN).encode())
                cursor.nextset()
                found = cursor.fetchone()
                here = conn.execute(THIS_DATABASE).fetchone()
        except (BusyError, psycopg.Error) as e:
            cause = e.__cause__ or e
            raise SetupError(f"the application cannot work on the database: {cause}", hint=hint) from e
        assert found is not None
        name, tenant, guarded, owning = found
        if tenant != probe or here != database:
            raise SetupError("the application's login is for another database", hint=hint)
        if not guarded or owning:
            raise SetupError(f"row-level security does not hold the login {name!r}", hint=hint)

    def derived_key(self, purpose: str) -> bytes:
        """32 bytes that every process of the database has, and no SQL of the application's role."""
        return hmac.digest(self._scope_key(), purpose.encode(), "sha256")

    def _token(self, tenant_id: str) -> str:
        check_tenant_id(tenant_id)
        key = self._scope_key()
        proof = hashlib.sha256(key + tenant_id.encode()).digest()
        return f"{tenant_id}:{hashlib.sha256(key + proof).hexdigest()}"

    def _scope_key(self) -> bytes:
        if self._key is None:
            with self._lock:
                self._key = self._key or self._read_key()
        return self._key


def _run(conn: adbc.Connection, script: str) -> None:
    """Several statements in one round trip, whose results nobody wants."""
    with conn.cursor() as cursor:
        cursor.executescript(script)


def with_login(url: str, name: str, password: str) -> str:
    """A libpq URL of the same database for another login."""
    changed = make_url(url).set(username=name, password=password)
    return changed.render_as_string(hide_password=False)


def kept_password(path: Path) -> str:
    """A password that only the file's owner can read, made at the first call; any number of processes may
    call it at once."""
    if not path.exists():
        work = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        work.touch(0o600)
        work.write_text(secrets.token_hex(24), encoding="ascii")
        with suppress(FileExistsError):
            path.hardlink_to(work)
        work.unlink()
    return path.read_text(encoding="ascii")


def make_login(conn: psycopg.Connection[Any], name: str, password: str) -> None:
    """Make a login for the application, or give it this password, in a superuser's transaction.

    What its sessions are doing is not shown: they are all of one role, and would see each other's statements,
    with the values of other tenants in them.
    """
    conn.execute("SELECT pg_advisory_xact_lock(%s)", [app_login_key()])
    exists = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    secret = conn.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    for statement in (
        f"{'ALTER' if exists else 'CREATE'} ROLE {{name}} LOGIN PASSWORD {{secret}}",
        "GRANT {app} TO {name}",
        "ALTER ROLE {name} SET track_activities = off",
    ):
        conn.execute(
            sql.SQL(statement).format(
                name=sql.Identifier(name), app=sql.Identifier(APP_ROLE), secret=sql.Literal(secret)
            )
        )
