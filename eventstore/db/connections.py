"""Connections to Postgres under one login: SQLAlchemy for the catalog, psycopg for COPY, ADBC for Arrow.

Every connection plans each statement anew: a generic plan over every partition of every tenant has been
seen to take minutes (docs/design/0005-custom-plans.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import adbc_driver_manager
import psycopg
import sqlalchemy as sa
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy.engine import make_url

from eventstore.db.arrow_connections import ArrowConnections
from eventstore.errors import BusyError, SetupError

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi as adbc

__all__ = ["SESSION", "Connections"]

_log = logging.getLogger(__name__)

SESSION = {
    "plan_cache_mode": "force_custom_plan",
    "synchronous_commit": "on",
    "TimeZone": "UTC",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    # A head that somebody holds (a stopped process, a dead network) must not hold every worker for ever.
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class Connections:
    """Connections to one database under one login. `url` is a libpq URL; nothing is connected before it is
    needed. `session` are settings of each of them, beside those that all have."""

    def __init__(self, url: str, *, max_connections: int, session: Mapping[str, str] | None = None) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() != "postgresql":
            raise SetupError(
                f"{parsed.get_backend_name()!r} is not a Postgres URL",
                hint="set EVENTSTORE_DATABASE_URL to postgresql://user:password@host/database",
            )
        # The libpq form for psycopg and ADBC; SQLAlchemy wants its driver in the scheme.
        self.url = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        self._session = {**SESSION, **(session or {})}
        options = " ".join(f"-c {name}={value}" for name, value in self._session.items())
        connect_args = {"options": options, "prepare_threshold": None, "connect_timeout": 10, **_KEEPALIVE}
        self._connect_args: dict[str, Any] = connect_args
        self.engine: sa.Engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args=connect_args,
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=max_connections,
        )
        self.pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]] = ConnectionPool(
            self.url,
            kwargs={**connect_args, "autocommit": True},
            min_size=0,
            max_size=max_connections,
            open=False,
            timeout=30,
            name="eventstore",
        )
        self._arrow = ArrowConnections(self.url, self._session, max_connections)

    def open(self) -> None:
        """Let the pool connect from now on, when it is asked."""
        self.pool.open()

    def close(self) -> None:
        """Close every connection."""
        self.pool.close()
        self.engine.dispose()
        self._arrow.close()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A SQLAlchemy connection in one transaction (READ COMMITTED): commits, or rolls back.

        Raises:
            BusyError: none came free in time, the connection was lost, or somebody else held a lock.
        """
        with _reporting_loss(), self.engine.begin() as conn:
            yield conn

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A psycopg connection in autocommit mode from the pool.

        Raises:
            BusyError: none came free within the pool's time-out.
        """
        try:
            conn = self.pool.getconn()
        except PoolTimeout as e:
            raise BusyError("no database connection came free", hint="try again in a moment") from e
        try:
            with _reporting_loss():
                yield conn
        finally:
            # A connection given back inside a transaction is rolled back by the pool, a broken one closed.
            self.pool.putconn(conn)

    def connect_apart(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection outside the pool, in autocommit mode, for a lock that lasts; the caller closes it.

        Raises:
            BusyError: Postgres is away.
        """
        try:
            return psycopg.connect(self.url, **self._connect_args, autocommit=True)
        except psycopg.OperationalError as e:
            raise _away(e) from e

    @contextmanager
    def arrow(self) -> Iterator[adbc.Connection]:
        """An ADBC connection (autocommit) that answers queries as Arrow batches.

        Raises:
            BusyError: Postgres is away.
        """
        with _reporting_loss(), self._arrow.connection() as conn:
            yield conn


@contextmanager
def _reporting_loss() -> Iterator[None]:
    """Turn a lost connection, a lock or a connection that was not to be had, in whichever library's words,
    into the error that says what to do."""
    try:
        yield
    except sa.exc.TimeoutError as e:
        raise BusyError("no database connection came free", hint="try again in a moment") from e
    except (
        psycopg.OperationalError,
        psycopg.errors.IdleInTransactionSessionTimeout,
        sa.exc.OperationalError,
        sa.exc.InternalError,
        adbc_driver_manager.OperationalError,
    ) as e:
        cause = e.orig if isinstance(e, sa.exc.DBAPIError) else e
        if getattr(cause, "sqlstate", None) in _IN_THE_WAY:
            raise BusyError(
                "readers, or another change, held in the database what this needs for too long",
                hint="try again in a moment",
            ) from e
        if not _is_loss(cause):
            raise
        raise _away(
            e, "try again; an append whose answer was lost may have been stored: send the same event_ids"
        ) from e


# A lock was not had within its time-out; a deadlock, of which this was the one to give way.
_IN_THE_WAY = ("55P03", "40P01")


def _away(error: Exception, hint: str = "try again in a moment") -> BusyError:
    """What callers are told when Postgres is away. Where it is, and under which login, is in what the library
    says, which is for the log alone."""
    _log.warning("the connection to Postgres was lost: %s", error)
    return BusyError("the connection to Postgres was lost", hint=hint)


def _is_loss(error: BaseException | None) -> bool:
    """Connection failures have no SQLSTATE, class 08, say that the server is going or coming (57P0x), or that
    it ended a transaction in which nothing happened for too long (25P03)."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return True
    # ADBC gives five NULs where there is none.
    return not sqlstate.strip("\0 ") or sqlstate.startswith(("08", "57P0", "25P03"))
