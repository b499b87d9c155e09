"""ADBC connections to one database, kept for reuse.

Before its first connection the driver reads all columns of all tables of the database, to know their types as
rows: with 5,000 tenants that takes 4 s and more (https://github.com/apache/arrow-adbc/issues/1755). We ask
for columns of built-in types only, which are the same in every database of a server. So the driver is shown
the one that every server has and that holds nothing, and is told of ours afterwards.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import adbc_driver_manager
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi as adbc

__all__ = ["ArrowConnections"]

_log = logging.getLogger(__name__)

# Made with every server for tools to connect to; unlike template1 nobody copies it, which takes it alone.
_EMPTY_DATABASE = "postgres"


class ArrowConnections:
    """Connections with these settings of the session, of which at most `kept_max` are kept. Safe for many
    threads."""

    def __init__(self, url: str, session: Mapping[str, str], kept_max: int) -> None:
        self._url, self._session = url, session
        self._idle: queue.LifoQueue[adbc.Connection] = queue.LifoQueue(kept_max)
        self._lock = threading.Lock()
        self._driver: adbc_driver_manager.AdbcDatabase | None = None

    @contextmanager
    def connection(self) -> Iterator[adbc.Connection]:
        """A connection in autocommit mode.

        Raises:
            adbc_driver_manager.Error: none can be made.
        """
        try:
            conn = self._idle.get_nowait()
        except queue.Empty:
            conn = self._connect()
        try:
            yield conn
        except BaseException:
            conn.close()
            # If the server went away, the idle connections are as dead as this one.
            self._close_idle()
            raise
        try:
            self._idle.put_nowait(conn)
        except queue.Full:
            conn.close()

    def close(self) -> None:
        """Close what is not in use."""
        self._close_idle()
        with self._lock:
            driver, self._driver = self._driver, None
        if driver is not None:
            with suppress(RuntimeError):  # a connection that is in use keeps it, and takes it along
                driver.close()

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _connect(self) -> adbc.Connection:
        # Most programs read no events as Arrow; this loads all that could take them, polars where it is.
        from adbc_driver_manager import dbapi as adbc

        with self._lock:
            if self._driver is None:
                self._driver = self._open_driver()
            driver = self._driver
        conn = adbc.Connection(
            cast(Any, _Borrowed()), adbc_driver_manager.AdbcConnection(driver), autocommit=True
        )
        with conn.cursor() as cursor:
            for name, value in self._session.items():
                cursor.execute(f"SET {name} = '{value}'")
        return conn

    def _open_driver(self) -> adbc_driver_manager.AdbcDatabase:
        import adbc_driver_postgresql

        empty = make_url(self._url).set(database=_EMPTY_DATABASE)
        driver: adbc_driver_manager.AdbcDatabase
        try:
            driver = adbc_driver_postgresql.connect(empty.render_as_string(hide_password=False))
        except adbc_driver_manager.Error as e:
            _log.info("the database %r does not let us in: reads begin slowly: %s", _EMPTY_DATABASE, e)
            driver = adbc_driver_postgresql.connect(self._url)
        else:
            driver.set_options(uri=self._url)
        return driver


class _Borrowed:
    """In the place of a driver's database, which other connections use as well: one that is closed must not
    close it."""

    def close(self) -> None:
        """Leave it open."""
