"""A task in a worker's hands: everything that its steps need, and how they tell of themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa

from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.catalog.removals import remove_again
from eventstore.catalog.windows import get_window
from eventstore.db.engine import Database, Guard
from eventstore.errors import CoverageError, EventStoreError, LeaseLostError
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
    """One claimed task. `now_us` is the (perhaps simulated) time of its run."""

    shop: Workshop
    claim: Claim
    guard: Guard
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

    @property
    def database(self) -> Database:
        return self.shop.database

    @property
    def window(self) -> Window:
        return self.record.window

    def tell(self, entry: Entry) -> None:
        """Write into the run's journal, about this window."""
        self.journal.record(entry, tenant_id=self.tenant.tenant_id, window=self.window)

    def tell_in(self, conn: sa.Connection, entry: Entry) -> None:
        """Write into the run's journal, about this window, in the transaction that does what it tells."""
        self.journal.record_in(conn, entry, tenant_id=self.tenant.tenant_id, window=self.window)

    def warn(self, error: EventStoreError) -> None:
        """Something that somebody should look at, though the task goes on."""
        self.tell(Warned(message=str(error)))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step: not begun when the worker is to stop; its time goes into the journal."""
        self.check_stop()
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
            self._check_ours(segment)
        self.segments += 1
        self.size_bytes += segment.size_bytes
        self.tell(
            FileWritten(
                target=segment.target,
                name=segment.key,
                part=segment.range.part,
                rows=segment.range.event_count,
                size_bytes=segment.size_bytes,
                created=stored.created,
            )
        )
        self.check_stop()

    def _check_ours(self, segment: Segment) -> None:
        """A put cannot be fenced. If this worker slept before it for so long that others have brought the
        window on, and removed the object since, then it has come back: it is to be removed again."""
        try:
            with self.database.transaction() as conn:
                self.guard(conn)
        except LeaseLostError:
            with self.database.transaction() as conn:
                remove_again(conn, segment.target, segment.key)
            raise

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
