"""Makes exports in the background, beside the requests of an API process.

One thread looks: it claims what waits, renews the leases of what is being made and hears whether somebody
cancelled it, and clears the folder up. Each export is made in a thread of its own, and may be stopped between
any two of its pieces. A process that is told to stop gives its exports back; the exports of one that died are
taken over when their leases have run out. Both are then made anew: an export is of one moment.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path

import psycopg
import sqlalchemy as sa

from eventstore.access.reads import Asked, Read, ReadAction, ReadsLog
from eventstore.app import Store, export_folder, keepers_of
from eventstore.clock import to_iso
from eventstore.db.engine import Database
from eventstore.errors import EventStoreError, StateError
from eventstore.governance.export_making import (
    Making,
    asker_of,
    claim_export,
    fail_export,
    finish_export,
    fits,
    give_back,
    keep_making,
)
from eventstore.integrity.bundle import write_bundle
from eventstore.model.access import Principal
from eventstore.model.export import BackgroundExport, FileFormat, filter_json
from eventstore.model.policy import parse_duration_us
from eventstore.query.coverage import Meter
from eventstore.query.export import ExportFormat, export_events

__all__ = ["ROUTE", "ExportWorker", "asked_query"]

_log = logging.getLogger(__name__)

# What stands in the log of reads for an export that is made.
ROUTE = "POST /v1/tenants/{tenant}/exports"
_LOOK_S = 1.0
_SWEEP_S = 60.0
# How often it is asked whether whoever asked still may.
_RECHECK_S = 5.0
_REFUSED = "whoever asked for it may not export this tenant's events any more"
_FULL = (
    "the files of exports that are kept take as much together as they may;"
    " remove some that nobody needs, narrow the times, or ask for Parquet, which is smaller"
)
_ERRORS = (EventStoreError, psycopg.Error, sa.exc.SQLAlchemyError)


class _End(StrEnum):
    """Why a making stops before its end."""

    LOST = "lost"  # cancelled, or taken over
    GIVEN_BACK = "given back"
    REFUSED = "refused"
    FULL = "full"  # there is no room for it beside the others


# What whoever asked is told; of the others they need not know.
_TOLD = {_End.REFUSED: _REFUSED, _End.FULL: _FULL}


class _StoppedError(Exception):
    """Raised between two pieces of an export whose making is to stop."""


class _Job:
    """An export that is being made here. `made` is written by its thread, and read by the one that looks."""

    def __init__(self, export: BackgroundExport) -> None:
        self.export = export
        self.made = Making()
        self.end: _End | None = None  # None: it goes on

    def look(self, events: int, size_bytes: int, looked_at: int) -> None:
        """Note how far it is.

        Raises:
            _StoppedError: it is to stop.
        """
        self.made.events, self.made.size_bytes, self.made.looked_at = events, size_bytes, looked_at
        if self.end is not None:
            raise _StoppedError(self.end.value)


class ExportWorker:
    """Makes up to `store.settings.export_workers` exports at once. `meter_of` gives what counts a caller's
    archive budget."""

    def __init__(
        self,
        store: Store,
        reads: ReadsLog,
        meter_of: Callable[[Principal], Meter | None],
        *,
        host: str | None = None,
    ) -> None:
        settings = store.settings
        self._kept_us = parse_duration_us(settings.exports_kept)
        self.folder = export_folder(settings)
        self._store, self._reads, self._meter_of = store, reads, meter_of
        self._host = host or socket.gethostname()
        self._lease_us = parse_duration_us(settings.lease)
        self._jobs: dict[threading.Thread, _Job] = {}
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="exports", daemon=True)
        self._swept_s = self._rechecked_s = float("-inf")

    @property
    def _database(self) -> Database:
        return self._store.database

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was asked for, or cancelled: look now."""
        self._wake.set()

    def ended(self, export: BackgroundExport) -> None:
        """An export was cancelled, or its file given up: what of it lies here goes now."""
        if not export.state.is_going_on:
            self.folder.remove(export)
        self.wake()

    def close(self) -> None:
        """Stop after the piece under way, and give back what is not finished."""
        self._over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        for thread, job in self._jobs.items():
            job.end = job.end or _End.GIVEN_BACK
            thread.join()

    # --- the thread that looks ----------------------------------------------------------------------------

    def _run(self) -> None:
        told = False
        while not self._over:
            try:
                self._look()
                told = False
            except (*_ERRORS, OSError) as e:
                if not told:
                    _log.warning("exports in the background cannot be looked after now: %s", e)
                told = True
            self._wake.wait(_LOOK_S)
            self._wake.clear()

    def _look(self) -> None:
        self._jobs = {thread: job for thread, job in self._jobs.items() if thread.is_alive()}
        for job in self._jobs.values():
            if not keep_making(self._database, job.export, job.made, lease_us=self._lease_us):
                job.end = job.end or _End.LOST
            elif not self._fits(job):
                job.end = job.end or _End.FULL
        now_s = time.monotonic()
        if now_s - self._rechecked_s >= _RECHECK_S:
            self._rechecked_s = now_s
            for job in self._jobs.values():
                if self._asker(job.export) is None:
                    job.end = job.end or _End.REFUSED
        while len(self._jobs) < self._store.settings.export_workers and not self._over:
            export = claim_export(self._database, lease_us=self._lease_us, host=self._host)
            if export is None:
                break
            job = _Job(export)
            thread = threading.Thread(target=self._make, args=(job,), name="export", daemon=True)
            self._jobs[thread] = job
            thread.start()
        if now_s - self._swept_s >= _SWEEP_S:
            self._swept_s = now_s
            self.folder.sweep(self._database)

    def _fits(self, job: _Job) -> bool:
        bytes_max = self._store.settings.exports_kept_bytes_max
        return fits(self._database, job.export, job.made.size_bytes, bytes_max=bytes_max)

    def _asker(self, export: BackgroundExport) -> Principal | None:
        with self._database.transaction() as conn:
            return asker_of(conn, export)

    # --- the thread of an export --------------------------------------------------------------------------

    def _make(self, job: _Job) -> None:
        """Make an export, and say how it ended. Nothing leaves this: the thread has nobody to tell."""
        try:
            error = self._made(job)
            if error is not None:
                _log.info("the export %s failed: %s", job.export.export_id, error)
                fail_export(self._database, job.export, job.made, error)
            elif job.end is _End.GIVEN_BACK:
                give_back(self._database, job.export)
        except _ERRORS as e:
            # Its lease runs out; whoever takes it over finds out what became of it, and the next sweep what
            # of its file is wanted.
            _log.warning("what became of the export %s could not be stored: %s", job.export.export_id, e)
        self._wake.set()  # there is room for the next

    def _made(self, job: _Job) -> str | None:
        """Make an export; None: it is ready, or to stop; else why it failed.

        Raises:
            EventStoreError, psycopg.Error, SQLAlchemyError: whether it is ready could not be stored.
        """
        export, folder = job.export, self.folder
        try:
            principal = self._asker(export)
            if principal is None:
                return _REFUSED
            sha256 = folder.write(export, partial(self._fill, job, principal))
        except _StoppedError:
            return None if job.end is None else _TOLD.get(job.end)
        except EventStoreError as e:
            return str(e)
        except OSError as e:
            _log.exception("the file of the export %s could not be written", export.export_id)
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            return (
                "the disk on which exports are put is full"
                if full
                else f"no file can be written: {e.strerror}"
            )
        except Exception:  # noqa: BLE001 - whoever asked is told; the log says more
            _log.exception("the export %s failed", export.export_id)
            return "the store met an error of its own; its log says more"
        if finish_export(self._database, export, job.made, sha256=sha256, kept_us=self._kept_us):
            return None
        folder.remove(export)
        # If it is another's by now, this changes nothing.
        return _REFUSED

    def _fill(self, job: _Job, principal: Principal, part: Path) -> None:
        """Write the file, as a read of whoever asked."""
        export = job.export
        asked = Asked(
            principal, export.tenant_id, ReadAction.EXPORT, ROUTE, asked_query(export), export.reason
        )
        read = self._reads.read(asked, self._store.reader, self._meter_of(principal))
        read.begin()
        error: BaseException | None = None
        try:
            self._fill_with(job, read, part)
            job.made.size_bytes = part.stat().st_size
            if not self._fits(job):
                job.end = job.end or _End.FULL
                raise _StoppedError(job.end.value)
        except _StoppedError as e:
            error = StateError(f"the making of the export was stopped: {e}")
            raise
        except BaseException as e:
            error = e
            raise
        finally:
            read.end(error)

    def _fill_with(self, job: _Job, read: Read, part: Path) -> None:
        export, made = job.export, job.made
        if export.form is FileFormat.BUNDLE:
            self._bundle(job, read, part)
            return
        begun = export_events(
            read.reader,
            export.tenant_id,
            export.wanted,
            ExportFormat(export.form.value),
            order=export.order,
            byte_order_mark=export.byte_order_mark,
        )
        made.through_seq, made.gone = begun.through_seq, begun.expired

        def look(size_bytes: int) -> None:
            read.covers(begun.coverage, events=begun.progress.events)
            job.look(begun.progress.events, size_bytes, begun.coverage.seqs)

        try:
            self.folder.write_pieces(part, begun.pieces, look)
        finally:
            begun.pieces.close()

    def _bundle(self, job: _Job, read: Read, part: Path) -> None:
        export, made, store = job.export, job.made, self._store

        def progress(done: int, _: int | None) -> None:
            size_bytes = self.folder.written_bytes(part)
            job.look(done, size_bytes, 0)
            self.folder.check_size(size_bytes)
            self.folder.check_room()

        summary = write_bundle(
            store.database,
            store.tiers,
            store.key,
            export.tenant_id,
            export.wanted,
            part,
            reader=read.reader,
            keepers=keepers_of(store.settings, export.tenant_id),
            asked_by=export.asked_by,
            reason=export.reason,
            now_us=export.asked_us,
            progress=progress,
        )
        read.covers(events=summary.events, seqs=(1, summary.log_size))
        made.through_seq, made.gone = summary.log_size, summary.expired
        job.look(summary.events, summary.size_bytes, summary.log_size)


def asked_query(export: BackgroundExport) -> dict[str, object]:
    """What the log of reads shows of what an export was asked for."""
    conditions = {
        name.removesuffix("_us"): to_iso(value) if name.endswith("_us") else value
        for name, value in filter_json(export.wanted).items()
    }
    return {
        "export": str(export.export_id),
        "format": export.form.value,
        "order": export.order.value,
        **conditions,
    }
