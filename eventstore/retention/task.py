"""A task in a worker's hands: everything that its steps need, and how they tell of themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa

from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.catalog.removals import remove_again
from eventstore.catalog.windows import get_window
from eventstore.db.engine import Database, Guard
from eventstore.errors import CoverageError, EventStoreError
from eventstore.governance.signing import SigningKey
from eventstore.model.policy import PolicyInForce
from eventstore.model.run import Entry, FileWritten, Retry, Warned, WindowCompleted
from eventstore.model.segment import Segment
from eventstore.model.tenant import Tenant
from eventstore.model.window import Window, WindowRecord
from eventstore.retention.journal import Journal
from eventstore.retention.steps import Stored
from eventstore.retention.tasks import Claim

__all__ = ["Stopped", "TaskContext", "Workshop"]


# A target is shared by all workers of a process; what it tries again is told by the task of its thread.
_telling = threading.local()


def _tell_retry(attempt: int, reason: str, backoff_s: float) -> None:
    tell: Callable[[Entry], None] | None = getattr(_telling, "tell", None)
    if tell is not None:
        tell(Retry(attempt=attempt, reason=reason, backoff_s=backoff_s, what="target"))


# How long an entry waits for the next transaction of its task, at the most: then it gets one of its own.
_SOON_S = 0.5


class Stopped(Exception):  # noqa: N818 - no error: the worker was told to stop, and does so between two steps
    """The worker is to stop. What was done so far is found by whoever takes the task up again."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all tasks of a worker share. `key` signs certificates; `stop` is set when the worker is to end."""

    database: Database
    targets: Targets
    key: SigningKey
    stop: threading.Event


@dataclass(slots=True)
class TaskContext:
    """One claimed task. `now_us` is the (perhaps simulated) time of its run; `fence` looks whether the claim
    still stands."""

    shop: Workshop
    claim: Claim
    fence: Guard
    journal: Journal
    tenant: Tenant
    policy: PolicyInForce
    now_us: int
    requested_by: str
    record: WindowRecord
    steps_ms: dict[str, int] = field(default_factory=dict)
    copied: bool = False  # what counts now was read back within this task
    kept: bool = False  # a hold stopped it
    segments: int = 0
    size_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    _waiting: list[Entry] = field(default_factory=list)
    _put: list[Segment] = field(default_factory=list)  # what this task has put into targets
    _told: float = field(default_factory=time.monotonic)

    @property
    def database(self) -> Database:
        return self.shop.database

    @property
    def window(self) -> Window:
        return self.record.window

    def guard(self, conn: sa.Connection) -> None:
        """What each transaction that changes something begins with: that the claim still stands. What waits
        to be told goes with it.

        Raises:
            LeaseLostError: another worker has taken the window over.
        """
        self.fence(conn)
        self._write(conn, ())

    def tell(self, entry: Entry) -> None:
        """Write into the run's journal, about this window; durable when this returns."""
        with self.database.transaction() as conn:
            self._write(conn, [entry])

    def tell_in(self, conn: sa.Connection, entry: Entry) -> None:
        """Write into the run's journal, about this window, in the transaction that does what it tells."""
        self._write(conn, [entry])

    def tell_soon(self, entry: Entry) -> None:
        """Write into the run's journal with the next transaction of this task; by itself if the last one was
        half a second ago. For small windows commits are most of what they cost.

        Raises:
            LeaseLostError: another worker has taken the window over.
        """
        self._waiting.append(entry)
        if time.monotonic() - self._told >= _SOON_S:
            self.tell_waiting()

    def tell_waiting(self) -> None:
        """Write what waits, if anything does: before something that may take long.

        Raises:
            LeaseLostError: another worker has taken the window over.
        """
        if self._waiting:
            with self.database.transaction() as conn:
                self.guard(conn)

    def _write(self, conn: sa.Connection, entries: Sequence[Entry]) -> None:
        waiting = len(self._waiting)
        if waiting or entries:
            self.journal.record_all_in(
                conn, [*self._waiting, *entries], tenant_id=self.tenant.tenant_id, window=self.window
            )

        def committed(_: sa.Connection) -> None:
            del self._waiting[:waiting]
            self._told = time.monotonic()

        # Rolled back, they still wait.
        if waiting:
            sa.event.listen(conn, "commit", committed)

    def warn(self, error: EventStoreError) -> None:
        """Something that somebody should look at, though the task goes on."""
        self.tell(Warned(message=str(error)))

    @contextmanager
    def step(self, name: str, *, at_once: bool = False) -> Iterator[None]:
        """A step: not begun when the worker is to stop; its time goes into the journal. `at_once`: it begins
        with a transaction, which takes what waits to be told."""
        self.check_stop()
        if not at_once:
            self.tell_waiting()
        started = time.monotonic()
        try:
            yield
        finally:
            took_ms = round((time.monotonic() - started) * 1000)
            self.steps_ms[name] = self.steps_ms.get(name, 0) + took_ms

    def check_stop(self) -> None:
        """Raise `Stopped` if the worker is to end."""
        if self.shop.stop.is_set():
            raise Stopped

    def target(self, name: str) -> ArchiveTarget:
        """The target of that name, whose retries go into the journal while this task uses it.

        Raises:
            SetupError, TargetUnavailableError
        """
        found = self.shop.targets[name]
        _telling.tell = self.tell
        if hasattr(found, "on_retry"):
            found.on_retry = _tell_retry
        return found

    def on_file(self, stored: Stored) -> None:
        """A segment lies verified in its target.

        Raises:
            LeaseLostError: another worker has taken the window over.
            Stopped: the worker is to end.
        """
        segment = stored.verified.segment
        if stored.created:
            self._put.append(segment)
        self.segments += 1
        self.size_bytes += segment.size_bytes
        self.tell_soon(
            FileWritten(
                target=segment.target,
                name=segment.key,
                part=segment.range.part,
                rows=segment.range.event_count,
                size_bytes=segment.size_bytes,
                created=stored.created,
            )
        )
        if self.segments > 1:  # a window of one file is soon cut over; of a larger one each is told at once
            self.tell_waiting()
        self.check_stop()

    def take_back(self) -> None:
        """The claim is lost. A put cannot be fenced: if this worker slept before one for so long that others
        have brought the window on, and removed the object since, then it has come back, and is to be removed
        again."""
        if self._put:
            with self.database.transaction() as conn:
                for segment in self._put:
                    remove_again(conn, segment.target, segment.key)

    def reread(self) -> WindowRecord:
        """The window as the catalog has it now."""
        with self.database.transaction() as conn:
            record = get_window(conn, self.tenant.tenant_id, self.claim.window_from_us)
        if record is None:
            raise CoverageError(
                f"the catalog has no window of {self.tenant.tenant_id!r} that begins there any more",
                hint="run eventstore verify",
            )
        self.record = record
        return record

    def completed(self) -> WindowCompleted:
        """The journal's word for the end of the task."""
        return WindowCompleted(
            action=self.claim.action,
            events=0 if self.kept else self.record.event_count or 0,
            segments=self.segments,
            size_bytes=self.size_bytes,
            duration_ms=round((time.monotonic() - self.started) * 1000),
            steps_ms=self.steps_ms,
        )
