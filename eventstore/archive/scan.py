"""Queries over segments, in DuckDB: one process-wide instance, a cursor a query.

No row is taken from a segment whose bytes are not those that were verified: each segment's SHA-256 is
compared with the catalog's before its first use, and again whenever its file has changed. A segment that is
no local file is fetched into the cache for that; while it is right there, its target is not asked at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedIOBase
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from eventstore.archive.cache import SegmentCache
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.archive.verify import digest_segment
from eventstore.columns.canonical import fixed_bytes
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError, BusyError, TargetUnavailableError
from eventstore.model.segment import Segment

if TYPE_CHECKING:
    import duckdb

__all__ = ["ArchiveScan"]

_MEMORY_LIMIT = "1GB"
_KNOWN_MAX = 100_000

# A segment, and where it lies as a local file; None: it is read from the cache.
_Placed = tuple[Segment, str | None]


class ArchiveScan:
    """Reads events from segments in any of the targets. Safe for use by many threads."""

    def __init__(self, targets: Targets, cache: SegmentCache) -> None:
        self._targets = targets
        self._cache = cache
        self._duck: duckdb.DuckDBPyConnection | None = None  # None: nothing was asked yet
        # (target, key) → version and digest found right
        self._intact: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._duck is not None:
            self._duck.close()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._duck is None:
                self._duck = _connect()
            return self._duck.cursor()

    def at_hand(self, segment: Segment) -> bool:
        """Whether a segment can be read without its target, from the cache."""
        return self._cache.has(segment)

    def query(
        self, segments: Sequence[Segment], where: str, *, descending: bool, limit: int | None
    ) -> pa.Table:
        """The events of these segments that meet a condition, in the order of seq.

        Raises:
            ArchiveDamageError: a segment is missing, or its bytes are not the cataloged ones.
            TargetUnavailableError: a target that is needed did not answer.
            BusyError: memory or room for queries is used up.
            SetupError: a segment lies in a target that the settings do not name.
        """
        tables: list[pa.Table] = []
        rows = 0
        for portion in self._portions(self._place(segments), descending):
            if limit is not None and rows >= limit:
                break
            left = "" if limit is None else f" LIMIT {int(limit) - rows}"
            condition = f"{where} ORDER BY seq {'DESC' if descending else 'ASC'}{left}"
            table = _as_events(self._query(portion, ", ".join(EVENT_FIELDS), condition))
            tables.append(table)
            rows += table.num_rows
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def tally(self, segments: Sequence[Segment], where: str, by: str) -> dict[int, int]:
        """How many events of these segments meet a condition, by the whole number that the SQL expression
        `by` gives for each. Raises as `query`."""
        found: dict[int, int] = {}
        for portion in self._portions(self._place(segments), False):
            table = self._query(portion, f"({by})::INTEGER, count(*)", f"{where} GROUP BY 1")
            for number, events in zip(*(column.to_pylist() for column in table.columns), strict=True):
                found[number] = found.get(number, 0) + events
        return found

    def hashes(self, segments: Sequence[Segment], first_seq: int, last_seq: int) -> Iterator[bytes]:
        """The hashes of a seq range of these segments' events, in the order of seq, joined: a piece for each
        row group. Nothing else of the segments is decoded, and DuckDB is not asked.

        Raises:
            ArchiveDamageError: a segment is missing, or its bytes are not the cataloged ones.
            TargetUnavailableError: a target that is needed did not answer.
            SetupError: a segment lies in a target that the settings do not name.
        """
        for one in self._place(segments):
            at = one[0].range.first_seq
            first, last = max(first_seq, at), min(last_seq, one[0].range.last_seq)
            with self._files([one]) as (path,):
                try:
                    yield from _hashes(path, at, first, last)
                except FileNotFoundError as e:
                    raise TargetUnavailableError(
                        f"cannot read {one[0].key}: {e}", hint="try again in a moment"
                    ) from e
                except (pa.ArrowException, OSError) as e:
                    raise ArchiveDamageError(
                        f"cannot read {one[0].key}: {e}", key=one[0].key, hint="run eventstore verify"
                    ) from e

    def _place(self, segments: Sequence[Segment]) -> list[_Placed]:
        targets: dict[str, ArchiveTarget | None] = {}
        placed: list[_Placed] = []
        for segment in segments:
            if self._cache.is_known(segment):
                placed.append((segment, None))
                continue
            if segment.target not in targets:
                try:
                    targets[segment.target] = self._targets[segment.target]
                except TargetUnavailableError:
                    targets[segment.target] = None  # the cache may have it; if not, fetching it fails
            target = targets[segment.target]
            path = None if target is None else target.local_path(segment.key)
            placed.append((segment, None if path is None else str(path)))
        return placed

    def _portions(self, placed: list[_Placed], descending: bool) -> Iterator[list[_Placed]]:
        """In reading order, as much at once as fits into half of the cache: what a query reads is pinned,
        and there may be others. Local files take no room there."""
        if all(path is not None for _, path in placed):
            yield placed
            return
        placed = sorted(placed, key=lambda p: p[0].range.first_seq, reverse=descending)
        portion: list[_Placed] = []
        size_bytes = 0
        for segment, path in placed:
            needed = segment.size_bytes if path is None else 0
            if portion and size_bytes + needed > self._cache.size_bytes_max // 2:
                yield portion
                portion, size_bytes = [], 0
            portion.append((segment, path))
            size_bytes += needed
        yield portion

    def _query(self, placed: Sequence[_Placed], columns: str, condition: str) -> pa.Table:
        import duckdb

        # Between the look at the files and DuckDB's, one may vanish: evicted from the cache by another
        # process, or moved to another target. The second look says which, or fetches it again.
        for attempt in (1, 2):
            with self._files(placed) as files:
                sql = (
                    f"SELECT {columns}"
                    f" FROM read_parquet([{', '.join(map(_quote, files))}], hive_partitioning = false)"
                    f" WHERE {condition}"
                )
                try:
                    with self._cursor() as cursor:
                        return cursor.sql(sql).to_arrow_table()
                except duckdb.OutOfMemoryException as e:
                    raise BusyError("too many large reads at once", hint="try again, or ask for less") from e
                except duckdb.IOException as e:
                    if attempt == 2:
                        raise TargetUnavailableError(
                            f"cannot read segments: {e}", hint="try again in a moment"
                        ) from e
                except duckdb.Error as e:
                    keys = ", ".join(s.key for s, _ in placed[:3])
                    raise ArchiveDamageError(
                        f"cannot read {keys}{' …' if len(placed) > 3 else ''}: {e}",
                        key=placed[0][0].key,
                        hint="run eventstore verify, which names what is damaged",
                    ) from e
        raise AssertionError("unreachable")

    @contextmanager
    def _files(self, placed: Sequence[_Placed]) -> Iterator[list[str]]:
        """The paths of files with the cataloged bytes, in the order given."""
        remote = [segment for segment, path in placed if path is None]
        self._ensure_intact([segment for segment, path in placed if path is not None])
        if not remote:
            yield [path for _, path in placed if path is not None]
            return
        with self._cache.pinned(remote, self._open) as copies:
            rest = iter(copies)
            yield [next(rest) if path is None else path for _, path in placed]

    def _open(self, segment: Segment) -> BufferedIOBase:
        return self._targets[segment.target].open(segment.key)

    def _ensure_intact(self, segments: Sequence[Segment]) -> None:
        """Digest those local segments whose present version has not been found right yet.

        Raises:
            ArchiveDamageError: a segment is missing, or its bytes are not the cataloged ones.
        """
        unknown = []
        for segment in segments:
            version = self._targets[segment.target].stat(segment.key).version
            if self._intact.get((segment.target, segment.key)) != (version, segment.sha256):
                unknown.append((segment, version))
        if not unknown:
            return
        with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
            digests = executor.map(
                lambda found: digest_segment(self._targets[found[0].target], found[0]), unknown
            )
            for (segment, version), digest in zip(unknown, digests, strict=True):
                with self._lock:
                    if len(self._intact) >= _KNOWN_MAX:
                        self._intact.clear()
                    self._intact[(segment.target, segment.key)] = (version, digest)


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


def _hashes(path: str, at: int, first_seq: int, last_seq: int) -> Iterator[bytes]:
    """The hashes of a seq range of a segment's file, whose first event is `at`."""
    with pq.ParquetFile(path, memory_map=True) as file:
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if at <= last_seq and at + rows > first_seq:
                column = file.read_row_group(index, columns=["hash"], use_threads=False).column(0)
                start, end = max(first_seq - at, 0), min(last_seq + 1 - at, rows)
                hashes = column.slice(start, end - start).cast(EVENT_SCHEMA.field("hash").type)
                yield b"".join(fixed_bytes(chunk, 32).tobytes() for chunk in hashes.chunks)
            at += rows


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
