"""Loading a file into a tenant's log: in order, exactly once, resumable after a kill at any point.

Each chunk is one append transaction, which also moves the file's row in `imports`: the events and the
knowledge that they are stored become durable together. A rerun reads that row and goes on behind it;
there is no other code for recovery.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import psycopg

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import Clock, SystemClock
from eventstore.db.engine import Database
from eventstore.errors import BusyError, InputError, StateError
from eventstore.hot.log import LeafCache, LogTransaction, log_transaction
from eventstore.intake.admission import Admission, admit, pieces
from eventstore.intake.columns import MappedChunk, map_chunk
from eventstore.intake.done import Done, store_progress, stored_progress
from eventstore.intake.readers import Reader, open_reader
from eventstore.intake.rejects import RejectFile
from eventstore.intake.schema import ImportOptions, check_recorded_at
from eventstore.intake.source import ImportFormat, Source, open_source
from eventstore.model.tenant import check_not_own
from eventstore.model.window import WindowUnit

__all__ = ["CHUNK_ROWS", "ImportFormat", "ImportProgress", "ImportReport", "import_file"]

CHUNK_ROWS = 50_000  # how long other writers of the tenant wait at the most: about half a second
_AHEAD = 2  # chunks made ready while Postgres takes one in


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is. `hashing`: the file is read through once, to know it again.

    `bytes_total` is None while it is not known (a stream).
    """

    hashing: bool
    bytes_done: int
    bytes_total: int | None
    rows_read: int
    rows_stored: int
    rows_rejected: int


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a file. Counts are of the whole import, earlier attempts included; seqs are of this
    attempt alone (None: it stored nothing).

    `duplicates` are rows whose event_id was stored before. `rejects_missing` are rejected rows of earlier
    attempts that the reject file no longer has. `already_finished`: this call did nothing.
    """

    rows_read: int
    rows_stored: int
    rows_rejected: int
    duplicates: int
    first_seq: int | None
    last_seq: int | None
    resumed_from: int  # rows done by earlier attempts
    rejects_path: Path | None  # None: there are no rejects
    rejects_missing: int
    already_finished: bool


def import_file(
    database: Database,
    tenant_id: str,
    source: Path | BinaryIO,
    *,
    value_bytes_max: int,
    file_format: ImportFormat | None = None,
    recorded_at_column: str | None = None,
    rejects: Path | None = None,
    clock: Clock | None = None,
    progress: Callable[[ImportProgress], None] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> ImportReport:
    """Load a file or a stream into a tenant's log.

    The same bytes read in the same way are one import, whatever the file's name: called again it goes on
    where it was stopped, and does nothing when it was finished.

    Args:
        file_format: None takes it from the file's suffix; a stream needs it.
        recorded_at_column: the column with an older history's own recorded times, which must not decrease.
            None: events are recorded when they are stored.
        rejects: the file for rows that cannot be taken; None: `<file>.rejects.jsonl` beside the file, or
            `stdin.rejects.jsonl` in the working folder. It exists afterwards only if there are any.
        clock: None takes Postgres' own.
        progress: called after each commit, and while the file is hashed.

    Raises:
        TenantNotFoundError: it is not registered.
        InputError: the file, its columns or the options are wrong; nothing more was stored.
        StateError: another process imports the same file, or it was changed meanwhile.
        BusyError: the connection to Postgres was lost; the same call goes on.
    """
    check_recorded_at(recorded_at_column)
    check_not_own(tenant_id, "be imported into")
    with database.transaction() as conn:
        unit = get_tenant(conn, tenant_id).unit
    options = ImportOptions(recorded_at_column, value_bytes_max)
    report = progress or _silent

    def hashed(done: int, total: int | None) -> None:
        report(ImportProgress(True, done, total, 0, 0, 0))

    with open_source(source, file_format, hashed) as opened:
        path = rejects or _rejects_path(source)
        if isinstance(source, Path) and path.resolve() == source.resolve():
            raise InputError(f"{path} cannot be both the import and its rejects", hint="name another file")
        run = _Import(database, tenant_id, unit, opened, options, RejectFile(path), clock, report)
        return run.run(chunk_rows)


def _silent(progress: ImportProgress) -> None:
    pass


def _rejects_path(source: Path | BinaryIO) -> Path:
    if isinstance(source, Path):
        return source.with_name(f"{source.name}.rejects.jsonl")
    return Path("stdin.rejects.jsonl")


class _Import:
    def __init__(
        self,
        database: Database,
        tenant_id: str,
        unit: WindowUnit,
        source: Source,
        options: ImportOptions,
        rejects: RejectFile,
        clock: Clock | None,
        report: Callable[[ImportProgress], None],
    ) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._unit = unit
        self._source = source
        self._options = options
        self._rejects = rejects
        self._clock = clock
        self._report = report
        self._leaves: LeafCache = {}
        self._identity = _identity(source, options)
        self._done: Done | None = None  # None: no row yet
        self._rewound = False
        self._rejects_missing = 0
        self._seqs: tuple[int, int] | None = None  # first and last stored by this attempt

    def run(self, chunk_rows: int) -> ImportReport:
        with self._database.connection() as conn:
            self._done = stored_progress(conn, self._tenant_id, self._identity)
        before = self._done or Done()
        if not before.finished:
            self._rejects.check()
            reader = open_reader(self._source, self._options, chunk_rows)
            with closing(_ahead(reader, self._options, before.rows_read, chunk_rows)) as chunks:
                for chunk in chunks:
                    for piece in pieces(chunk, self._unit, (self._clock or SystemClock()).now_us()):
                        self._commit(piece)
            self._commit(None)
        done = self._done or Done()
        first_seq, last_seq = self._seqs or (None, None)
        return ImportReport(
            rows_read=done.rows_read,
            rows_stored=done.rows_stored,
            rows_rejected=done.rows_rejected,
            duplicates=done.rows_read - done.rows_stored - done.rows_rejected,
            first_seq=first_seq,
            last_seq=last_seq,
            resumed_from=before.rows_read,
            rejects_path=self._rejects.path if done.rows_rejected else None,
            rejects_missing=self._rejects_missing,
            already_finished=before.finished,
        )

    def _commit(self, chunk: MappedChunk | None) -> None:
        """Store a chunk, or (None) the fact that there are no more, in one transaction."""
        self._source.check_unchanged()
        try:
            with (
                self._database.connection() as conn,
                log_transaction(conn, self._tenant_id, self._leaves) as log,
            ):
                self._guard(log)
                done, seqs = self._done or Done(), self._seqs
                if chunk is None:
                    done = replace(done, finished=True)
                else:
                    admission = admit(log, chunk, self._options.recorded_at_column, self._clock)
                    if admission.rejects:
                        self._rejects.append(admission.rejects)
                    # Dying here leaves rejects that no commit counts: `rewind` drops them.
                    seqs = _write(log, admission) or seqs
                    done = Done(
                        chunk.raw.rows_through,
                        done.rows_stored + admission.pending.num_rows,
                        done.rows_rejected + len(admission.rejects),
                    )
                store_progress(conn, self._tenant_id, self._identity, done)
        except psycopg.OperationalError as e:
            raise BusyError(
                f"the connection to Postgres was lost: {e}",
                hint="run the same import again; it goes on from here",
            ) from e
        # Dying from here on, the rerun begins behind this chunk.
        self._done = done
        if seqs is not None:
            self._seqs = (self._seqs or seqs)[0], seqs[1]
        size = self._source.size_bytes
        at = size if chunk is None else chunk.raw.bytes_read
        self._report(ImportProgress(False, at, size, done.rows_read, done.rows_stored, done.rows_rejected))

    def _guard(self, log: LogTransaction) -> None:
        """Under the head's lock: nobody else may have moved this import on. Only then is the reject file,
        which another attempt may share, brought back to what is committed."""
        if stored_progress(log.conn, self._tenant_id, self._identity) != self._done:
            raise StateError(
                f"another process is importing {self._source.name} into {self._tenant_id!r}",
                hint="let it finish; run the import again only if that process is gone",
            )
        if not self._rewound:
            done = self._done or Done()
            self._rejects_missing = done.rows_rejected - self._rejects.rewind(done.rows_read)
            self._rewound = True


def _write(log: LogTransaction, admission: Admission) -> tuple[int, int] | None:
    if not admission.pending.num_rows:
        return None
    first_seq = log.head.last_seq + 1
    log.write(admission.pending, admission.recorded_us)
    return first_seq, log.head.last_seq


def _ahead(
    reader: Reader, options: ImportOptions, rows_read: int, chunk_rows: int
) -> Generator[MappedChunk, None, None]:
    """Mapped chunks; while one is being stored the next are read and mapped in a thread, in order."""
    raws = (part for chunk in reader.chunks(rows_read) for part in chunk.split(chunk_rows))

    def make() -> MappedChunk | None:
        raw = next(raws, None)
        return None if raw is None else map_chunk(raw, options)

    waiting: deque[Future[MappedChunk | None]] = deque()
    with ThreadPoolExecutor(1, "import") as executor:
        try:
            waiting.extend(executor.submit(make) for _ in range(_AHEAD))
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(executor.submit(make))
                yield chunk
        finally:
            for future in waiting:
                future.cancel()


def _identity(source: Source, options: ImportOptions) -> bytes:
    """Of the bytes and of how they are read: read otherwise it is another import."""
    reading = msgspec.json.encode([source.format, options.recorded_at_column])
    return hashlib.sha256(b"eventstore/import/v1" + source.sha256 + reading).digest()
