"""The composition root: the only place where the parts are put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa

from eventstore.archive.registry import open_target
from eventstore.archive.scan import ArchiveScan
from eventstore.archive.target import ArchiveTarget
from eventstore.clock import Clock
from eventstore.db.embedded import start_embedded
from eventstore.db.engine import Database
from eventstore.db.migrate import check_schema, current_version, upgrade
from eventstore.hot.append import Appender
from eventstore.integrity.binding import bind_archive
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from eventstore.retention.compactor import Compactor
from eventstore.settings import Settings

__all__ = ["Store", "open_database", "open_store"]


@dataclass(frozen=True, slots=True)
class Store:
    """Every part of a running store."""

    settings: Settings
    database: Database
    target: ArchiveTarget
    tiers: Tiers
    reader: LogReader
    appender: Appender
    compactor: Compactor


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The database of the settings: the server they name, or the embedded one, started if need be.

    Raises:
        SetupError: it cannot be started or reached.
    """
    with ExitStack() as stack:
        url = settings.database_url
        if url is None:
            server = start_embedded(settings.resolved_home)
            stack.callback(server.close)
            url = server.url
        database = Database(url)
        stack.callback(database.close)
        database.open()
        yield database


@contextmanager
def open_store(settings: Settings, *, clock: Clock | None = None) -> Iterator[Store]:
    """Open everything. An embedded database that is still empty gets its schema.

    Raises:
        SchemaVersionError: the database's schema is of another version.
        SetupError: something cannot be opened.
    """
    _keep_freed_memory()
    with ExitStack() as stack:
        database = stack.enter_context(open_database(settings))
        if settings.database_url is None and current_version(database) is None:
            upgrade(database)
        check_schema(database)
        target = open_target(settings.resolved_archive_url)
        bind_archive(database, target)
        scan = ArchiveScan(target)
        stack.callback(scan.close)
        tiers = Tiers(database, scan)
        reader = LogReader(tiers)
        yield Store(
            settings=settings,
            database=database,
            target=target,
            tiers=tiers,
            reader=reader,
            appender=Appender(database, archived_versions=reader.archived_versions, clock=clock),
            compactor=Compactor(database, target),
        )


def _keep_freed_memory() -> None:
    """Let Arrow reuse what it has freed for a second before it goes back to the system.

    Batches of tens of megabytes come and go; with Arrow's default allocator each one's pages were faulted
    in anew, which took more time than decoding the Parquet that filled them.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
