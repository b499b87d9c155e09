"""The database: the owner's connections, and the application's, which see one tenant at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import sqlalchemy as sa

from eventstore.clock import to_us
from eventstore.db.connections import Connections
from eventstore.db.roles import APP_ROLE, THIS_DATABASE, TenantConnections, scope_key
from eventstore.errors import SetupError

__all__ = ["Database", "Guard", "kept_alive"]

# Looks, at the beginning of a transaction, whether it may still change what it is about to change, and holds
# that true until the transaction ends; raises if not.
Guard = Callable[[sa.Connection], None]

_MIN_SERVER = 150000


class Database(Connections):
    """One Postgres database, by its owner's connections. `url` is a libpq URL; nothing is connected before it
    is needed.

    `app` are the connections for work on one tenant's log. They log in as `app_url` says; without it they are
    the owner's login that has taken on the application's role.
    """

    def __init__(self, url: str, *, app_url: str | None = None, max_connections: int = 16) -> None:
        super().__init__(url, max_connections=max_connections)
        self.app_login = app_url is not None  # the application has a login of its own
        role = None if app_url else {"role": APP_ROLE}
        app = Connections(app_url or url, max_connections=max_connections, session=role)
        self.app = TenantConnections(app, self._scope_key)

    def open(self) -> None:
        """Connect once and check the server.

        Raises:
            SetupError: cannot connect, or the server is older than Postgres 15.
        """
        try:
            with psycopg.connect(self.url, connect_timeout=10, autocommit=True) as conn:
                version = conn.info.server_version
        except psycopg.OperationalError as e:
            raise SetupError(
                f"cannot connect to Postgres: {e}", hint="look at EVENTSTORE_DATABASE_URL"
            ) from e
        if version < _MIN_SERVER:
            raise SetupError(f"Postgres {version // 10000} is too old", hint="use Postgres 15 or later")
        super().open()
        self.app.open()

    def close(self) -> None:
        """Close every connection."""
        self.app.close()
        super().close()

    def check_app(self) -> None:
        """See that the application's connections work, and that row-level security holds them.

        Raises:
            SetupError: says what is wrong with its login.
        """
        with self.connection() as conn:
            here = conn.execute(THIS_DATABASE).fetchone()
        self.app.check(here)

    def now_us(self) -> int:
        """The database's clock, in µs: the one that decisions and events are stamped by."""
        with self.transaction() as conn:
            return to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())

    def _scope_key(self) -> bytes:
        with self.transaction() as conn:
            return bytes(conn.execute(sa.select(scope_key.c.key)).scalar_one())


@contextmanager
def kept_alive(conn: sa.Connection, *, every_s: float = 10.0) -> Iterator[None]:
    """Keep a transaction from being ended as idle while its owner waits for something else, e.g. a target
    that deletes an object under the transaction's locks. A process that is stopped does not keep it: its
    locks go, as they must."""
    driver = conn.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every_s):
            with suppress(psycopg.Error):  # whoever owns it meets the error with the next statement
                driver.execute("SELECT 1")

    thread = threading.Thread(target=beat, name="kept-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
