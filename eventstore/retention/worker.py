"""A worker: claims tasks, one at a time, and brings each window to its end.

Its liveness is an advisory lock on a connection of its own; its claim is renewed by a thread while it works.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import Self

import psycopg
import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.catalog.windows import get_window
from eventstore.db.tables import runs
from eventstore.errors import CoverageError, EventStoreError, LeaseLostError, RetryError
from eventstore.governance.policies import policy_of
from eventstore.model.run import (
    Retry,
    TaskAction,
    Warned,
    WindowCompleted,
    WindowFailed,
    WindowStarted,
)
from eventstore.retention.archiving import archive
from eventstore.retention.expiring import expire
from eventstore.retention.journal import Journal
from eventstore.retention.moving import move
from eventstore.retention.report import summary_of
from eventstore.retention.task import Stopped, TaskContext, Workshop
from eventstore.retention.tasks import Claim, Tasks

__all__ = ["OnDone", "Worker", "finish_runs"]

_log = logging.getLogger(__name__)

# Told after each task: the claim, and how it ended (None: it did not end here).
OnDone = Callable[[Claim, WindowCompleted | None], None]

_DO: dict[TaskAction, Callable[[TaskContext], None]] = {
    TaskAction.ARCHIVE: archive,
    TaskAction.MOVE: move,
    TaskAction.EXPIRE: expire,
}


class Worker:
    """One worker. Use it as a context manager, from one thread.

    `retry_pauses_s`: a task whose failure may pass is tried again after each of these pauses, then given up.
    """

    def __init__(
        self,
        shop: Workshop,
        board: Tasks,
        *,
        retry_pauses_s: Collection[float] = (1.0, 4.0, 15.0),
        on_done: OnDone | None = None,
    ) -> None:
        self._shop = shop
        self._board = board
        self._pauses = tuple(retry_pauses_s)
        self._on_done = on_done
        self.holder = secrets.randbits(62)
        self.name = f"{socket.gethostname()}/{os.getpid()}/{self.holder:x}"
        self._alive: psycopg.Connection[tuple[object, ...]] | None = None

    def __enter__(self) -> Self:
        self._be_alive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alive is not None:
            with suppress(psycopg.Error):
                self._alive.close()

    def _be_alive(self) -> None:
        """Hold the advisory lock that says so, on a connection that lives as long as we do."""
        if self._alive is not None:
            try:
                self._alive.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                self._alive.close()
        self._alive = self._shop.database.connect_apart()
        self._alive.execute("SELECT pg_advisory_lock(%s)", [self.holder])

    def do_next(self, tenants: Collection[str] | None = None) -> bool:
        """Claim the next task (of these tenants) and work on it; False: there was none to be had.

        Raises:
            Stopped: the worker was told to stop; the task was given back.
            BusyError: Postgres is away.
        """
        if self._shop.stop.is_set():
            raise Stopped
        self._be_alive()
        claim = self._board.claim(self.holder, tenants=tenants)
        if claim is None:
            return False
        completed = None
        try:
            with _Renewal(self._board, claim):
                completed = self._do(claim)
        except LeaseLostError as e:
            _log.warning("%s", e.message)
        finally:
            if self._on_done is not None:
                self._on_done(claim, completed)
        finish_runs(self._shop, self._board)
        return True

    def _do(self, claim: Claim) -> WindowCompleted | None:
        try:
            task = self._context(claim)
        except EventStoreError as e:
            failed = WindowFailed(
                action=claim.action, error=str(e), code=e.code, attempts=claim.attempt, duration_ms=0
            )
            journal = Journal(self._shop.database, claim.run_id)
            self._board.fail(
                claim, str(e), lambda conn: journal.record_in(conn, failed, tenant_id=claim.tenant_id)
            )
            return None
        try:
            return self._bring(task)
        except Stopped:
            if not self._board.give_back(claim, counted=False):
                task.take_back()
            raise
        except LeaseLostError:
            task.take_back()
            raise

    def _bring(self, task: TaskContext) -> WindowCompleted | None:
        claim = task.claim
        task.tell_soon(
            WindowStarted(
                action=claim.action,
                state=task.record.state.value,
                events=task.record.event_count,
                worker=self.name,
                attempt=claim.attempt,
                target=task.record.target,
            )
        )
        try:
            _DO[claim.action](task)
        except (LeaseLostError, Stopped):
            raise
        except Exception as e:  # noqa: BLE001 - whatever it is, it is recorded, and other windows go on
            self._failed(task, e)
            return None
        completed = task.completed()
        # Dying before this commit repeats the task, and it finds that there is nothing left to do.
        if not self._board.done(claim, lambda conn: task.tell_in(conn, completed)):
            raise LeaseLostError(f"another worker has taken over window {task.window}")
        return completed

    def _failed(self, task: TaskContext, error: Exception) -> None:
        claim = task.claim
        words = str(error) if isinstance(error, EventStoreError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, EventStoreError):
            _log.error("%s of %s failed", claim.action, claim.tenant_id, exc_info=error)
        # A target or Postgres was away, or somebody held a lock for too long.
        if isinstance(error, RetryError) and claim.attempt <= len(self._pauses):
            pause_s = self._pauses[claim.attempt - 1]
            ours = self._board.give_back(claim, pause_s=pause_s)
            if ours:
                task.tell(Retry(attempt=claim.attempt, reason=words, backoff_s=pause_s))
        else:
            failed = WindowFailed(
                action=claim.action,
                error=words,
                code=error.code if isinstance(error, EventStoreError) else "internal",
                attempts=claim.attempt,
                duration_ms=task.completed().duration_ms,
            )
            ours = self._board.fail(claim, words, lambda conn: task.tell_in(conn, failed))
        if not ours:
            raise LeaseLostError(
                f"another worker has taken over window {task.window} after this one failed: {words}"
            ) from error

    def _context(self, claim: Claim) -> TaskContext:
        database = self._shop.database
        with database.transaction() as conn:
            run = conn.execute(sa.select(runs).where(runs.c.run_id == claim.run_id)).one()
            tenant = get_tenant(conn, claim.tenant_id)
            policy = policy_of(conn, claim.tenant_id, run.now_us)
            record = get_window(conn, claim.tenant_id, claim.window_from_us)
        if record is None:
            raise CoverageError(
                f"a task names a window of {claim.tenant_id!r} that the catalog does not have",
                hint="run eventstore verify",
            )
        return TaskContext(
            shop=self._shop,
            claim=claim,
            fence=self._board.guard(claim),
            journal=Journal(database, claim.run_id),
            tenant=tenant,
            policy=policy,
            now_us=run.now_us,
            requested_by=run.requested_by,
            record=record,
        )


class _Renewal:
    """Renews a claim from a thread of its own, until the block is left."""

    def __init__(self, board: Tasks, claim: Claim) -> None:
        self._board = board
        self._claim = claim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._board.lease_s / 3):
            try:
                if not self._board.renew(self._claim):
                    return  # taken over: the next guard says so
            except (EventStoreError, sa.exc.SQLAlchemyError) as e:
                # Not renewed, the lease runs out, and another worker may take over: guards keep that safe.
                _log.warning("a lease could not be renewed: %s", e)


def finish_runs(shop: Workshop, board: Tasks) -> None:
    """Complete every run whose last task has ended, whoever worked on it."""
    planning, finished = board.ended_runs()
    if planning:
        board.release_planning(planning)
        for run_id in planning:
            Journal(shop.database, run_id).record(
                Warned(
                    message="its process died while planning; what it had not planned is left for the next "
                    "run"
                )
            )
        finished = board.ended_runs()[1]
    for run_id in finished:
        Journal(shop.database, run_id).finish(summary_of(shop.database, run_id))
