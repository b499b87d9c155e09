"""Queries over segments, in DuckDB: one process-wide instance, a cursor a query.

No row is taken from a segment whose bytes are not those that were verified: each segment's SHA-256 is
compared with the catalog's before its first use, and again whenever its version in the target changes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from eventstore.archive.target import ArchiveTarget
from eventstore.archive.verify import digest_segment
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError, BusyError, TargetUnavailableError
from eventstore.model.segment import Segment

if TYPE_CHECKING:
    import duckdb

__all__ = ["ArchiveScan"]

_MEMORY_LIMIT = "1GB"
_KNOWN_MAX = 100_000


class ArchiveScan:
    """Reads events from segments of one target. Safe for use by many threads."""

    def __init__(self, target: ArchiveTarget) -> None:
        self._target = target
        self._duck: duckdb.DuckDBPyConnection | None = None  # None: nothing was asked yet
        self._intact: dict[str, tuple[str, bytes]] = {}  # key → version and digest found right
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._duck is not None:
            self._duck.close()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._duck is None:
                self._duck = _connect()
            return self._duck.cursor()

    def query(
        self, segments: Sequence[Segment], where: str, *, descending: bool, limit: int | None
    ) -> pa.Table:
        """The events of these segments that meet a condition, in the order of seq.

        Raises:
            ArchiveDamageError: a segment is missing, or its bytes are not the cataloged ones.
            TargetUnavailableError: the target did not answer.
            BusyError: memory for queries is used up.
        """
        import duckdb

        self.ensure_intact(segments)
        files = ", ".join(_quote(self._target.location(s.key)) for s in segments)
        sql = (
            f"SELECT {', '.join(EVENT_FIELDS)} FROM read_parquet([{files}], hive_partitioning = false)"
            f" WHERE {where} ORDER BY seq {'DESC' if descending else 'ASC'}"
        )
        if limit is not None:
            sql += f" LIMIT {int(limit)}"
        try:
            with self._cursor() as cursor:
                table = cursor.sql(sql).to_arrow_table()
        except duckdb.OutOfMemoryException as e:
            raise BusyError("too many large reads at once", hint="try again, or ask for less") from e
        except duckdb.IOException as e:
            raise TargetUnavailableError(
                f"cannot read from {self._target.describe()}: {e}", hint="try again in a moment"
            ) from e
        except duckdb.Error as e:
            keys = ", ".join(s.key for s in segments[:3])
            raise ArchiveDamageError(
                f"cannot read {keys}{' …' if len(segments) > 3 else ''}: {e}",
                key=segments[0].key,
                hint="run eventstore verify, which names what is damaged",
            ) from e
        return _as_events(table)

    def ensure_intact(self, segments: Sequence[Segment]) -> None:
        """Digest those segments whose present version has not been found right yet.

        Raises:
            ArchiveDamageError: a segment is missing, or its bytes are not the cataloged ones.
        """
        unknown = []
        for segment in segments:
            version = self._target.stat(segment.key).version
            if self._intact.get(segment.key) != (version, segment.sha256):
                unknown.append((segment, version))
        if not unknown:
            return
        with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
            for (segment, version), digest in zip(
                unknown, executor.map(lambda u: digest_segment(self._target, u[0]), unknown), strict=True
            ):
                with self._lock:
                    if len(self._intact) >= _KNOWN_MAX:
                        self._intact.clear()
                    self._intact[segment.key] = (version, digest)


def _connect() -> duckdb.DuckDBPyConnection:
    # Loaded with the first query: it takes time and some forty megabytes, and what only writes or archives
    # has no use for it.
    import duckdb

    duck = duckdb.connect(
        ":memory:",
        config={
            "threads": os.cpu_count() or 1,
            "memory_limit": _MEMORY_LIMIT,
            "autoinstall_known_extensions": False,
        },
    )
    duck.execute("SET TimeZone = 'UTC'")
    duck.execute("SET arrow_lossless_conversion = true")  # a UUID as 16 bytes, not as text
    duck.execute("SET parquet_metadata_cache = true")
    return duck


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _as_events(table: pa.Table) -> pa.Table:
    columns = []
    for field in EVENT_SCHEMA:
        column = table.column(field.name)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], field.type)
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)
