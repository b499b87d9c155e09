"""The recorder: takes events into a durable outbox at once, and sends them to the store in the background.

`record` returns when the event is on this machine's disk, whether or not the store is there. A thread
writes what has come together as one group with one sync (`client.spool`); another takes it to the store
(`client.sender`). Events arrive exactly once and in the order in which they were recorded, though the store
is away for hours, answers get lost and this process is killed at any point.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from eventstore.client.attempts import Retry
from eventstore.client.calls import common_fields, raw_json, update_of
from eventstore.client.events import EventIds, Recordable, encode_event, validate_line
from eventstore.client.outbox import ROLL_BYTES, Outbox
from eventstore.client.sender import Rejected, Sender
from eventstore.client.spool import Full, Spool
from eventstore.client.sync import Client
from eventstore.errors import InputError, SetupError
from eventstore.model.records import RecordIngest, RecordInsert, RecordUpdate

__all__ = ["Full", "Recorder", "Rejected", "Status"]

_DISK_PAUSE_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """Where a recorder stands.

    The events up to number `recorded` are durable in the outbox; `waiting` of them are not yet in the store.
    `rejected` lie aside because the store refuses them. `error` is what stands in the way now (None:
    nothing), and `failures` how often in a row sending failed.
    """

    recorded: int
    waiting: int
    rejected: int
    size_bytes: int
    failures: int
    error: Exception | None


class Recorder:
    """The one owner of an outbox.

    Args:
        client: where events go. It is not closed with the recorder.
        folder: of the outbox; each process needs its own.
        flush_events, flush_s: events are sent when so many wait, or when the oldest has waited so long.
        batch_events: the most that one request takes.
        max_bytes: of disk that the outbox may take, rejected events included.
        roll_bytes: the size at which a file is followed by the next; an event may have half of it.
        full: what `record` does when `max_bytes` is reached, or the disk is full: `block` until there is
        room,
            or `raise`. No event is ever dropped in silence.
        fsync: False: `record` returns when the operating system has the event. It then outlives this process,
            not the machine.
        on_rejected: told of each event that the store refuses for ever, after it was put aside.
        on_error: told each time that sending fails; the recorder tries again by itself.
        retry: the pauses after failures; its `attempts` does not matter here.

    Raises:
        BusyError: another recorder owns the folder.
        IntegrityError: its files are damaged.
    """

    def __init__(
        self,
        client: Client,
        folder: str | Path,
        *,
        flush_events: int = 100,
        flush_s: float = 1.0,
        batch_events: int = 1000,
        max_bytes: int = 2**30,
        roll_bytes: int = ROLL_BYTES,
        full: Full = "block",
        fsync: bool = True,
        on_rejected: Callable[[Rejected], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        retry: Retry | None = None,
    ) -> None:
        if max_bytes < 2 * roll_bytes:
            raise InputError(f"max_bytes is {max_bytes}", hint=f"give at least {2 * roll_bytes}: two files")
        self._flush_events, self._flush_s = flush_events, flush_s
        self._on_rejected, self._on_error = on_rejected, on_error
        self._ids, self._pid = EventIds(), os.getpid()
        self._outbox = Outbox(Path(folder), roll_bytes=roll_bytes, fsync=fsync)
        self._sender = Sender(
            self._outbox,
            client.calls,
            client.attempt,
            batch_events=batch_events,
            retry=retry,
            on_rejected=self._put_aside,
        )
        self._rejected = self._outbox.rejected()
        self._trouble: Exception | None = None
        self._lock = threading.Lock()
        self._to_send = threading.Condition(self._lock)
        self._sent = threading.Condition(self._lock)
        # What has waited long enough, and since when the oldest of the others waits (None: there is none).
        self._due_through = self._outbox.last
        self._oldest_s: float | None = None
        self._closed = self._stopping = False
        self._spool = Spool(
            self._outbox,
            max_bytes=max_bytes,
            line_bytes_max=roll_bytes // 2,
            full=full,
            written=self._written,
            why_full=lambda: f"; sending fails: {self._trouble}" if self._trouble else "",
        )
        self._thread = threading.Thread(target=self._run, name="eventstore-sender", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"Recorder({str(self._outbox.folder)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- recording --------------------------------------------------------------------------------------

    def record(
        self,
        event: Recordable,
        *,
        wait: bool = True,
        full: Full | None = None,
        timeout_s: float | None = None,
    ) -> uuid.UUID:
        """Record an event; its event_id. An absent `occurred_at` becomes this moment.

        Returns when the event is durable; with `wait=False` at once, and it is durable milliseconds later
        (`sync` waits for that). `full` overrides the recorder's choice.

        Raises:
            InvalidEventError, TooLargeError: it breaks a rule; nothing was recorded.
            BusyError: the outbox is full, or stayed so for `timeout_s`; nothing was recorded.
            RetryError: the disk failed; nothing was recorded, as far as the disk tells.
            SetupError: the recorder is closed, or this is a fork of its process.
        """
        line = encode_event(event, self._ids, occurred_now=True) + b"\n"
        event_id = validate_line(line)
        self._take([line], wait=wait, full=full, timeout_s=timeout_s)
        return event_id

    async def arecord(self, event: Recordable, **options: Any) -> uuid.UUID:
        """`record` in a thread, for programs with an event loop."""
        return await asyncio.to_thread(self.record, event, **options)

    def record_insert(
        self,
        entity_type: str,
        entity_id: str,
        fields: Mapping[str, Any],
        *,
        wait: bool = True,
        full: Full | None = None,
        **common: Any,
    ) -> None:
        """As `Client.record_insert`, through the outbox."""
        made = RecordInsert(
            entity_type=entity_type,
            entity_id=entity_id,
            fields=raw_json(fields),
            **common_fields(common, self._ids),
        )
        self._record(made, wait, full)

    def record_update(
        self,
        entity_type: str,
        entity_id: str,
        changes: Mapping[str, tuple[Any, Any]],
        *,
        wait: bool = True,
        full: Full | None = None,
        **common: Any,
    ) -> None:
        """As `Client.record_update`, through the outbox. No changes are no event."""
        made = update_of(entity_type, entity_id, changes, **common_fields(common, self._ids))
        self._record(made, wait, full)

    async def arecord_update(
        self, entity_type: str, entity_id: str, changes: Mapping[str, tuple[Any, Any]], **options: Any
    ) -> None:
        """`record_update` in a thread."""
        await asyncio.to_thread(self.record_update, entity_type, entity_id, changes, **options)

    def record_ingest(
        self, dataset: str, count: int, *, wait: bool = True, full: Full | None = None, **common: Any
    ) -> None:
        """As `Client.record_ingest`, through the outbox."""
        made = RecordIngest(dataset=dataset, count=count, **common_fields(common, self._ids))
        self._record(made, wait, full)

    def _record(
        self, record: RecordInsert | RecordUpdate | RecordIngest, wait: bool, full: Full | None
    ) -> None:
        lines = []
        for event in record.events():
            given = {name: getattr(event, name) for name in event.__struct_fields__}
            fields = {name: value for name, value in given.items() if not _is_absent(value)}
            lines.append(encode_event(fields, self._ids, occurred_now=True) + b"\n")
            validate_line(lines[-1])
        if lines:
            self._take(lines, wait=wait, full=full)

    def _take(self, lines: list[bytes], **options: Any) -> None:
        if os.getpid() != self._pid:
            raise SetupError(
                "this recorder belongs to the process that this one was forked from",
                hint="open a recorder in each process, with a folder of its own",
            )
        self._spool.take(lines, **options)

    # --- waiting ----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Wait until everything recorded so far is durable in the outbox."""
        self._spool.sync()

    def flush(self, timeout_s: float | None = None) -> int:
        """Send what was recorded so far, and wait until the store has it; how many events it still has not
        after `timeout_s`."""
        self._spool.sync()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            through = self._due_through = self._outbox.last
            self._to_send.notify()
            while self._sender.acknowledged < through:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._sent.wait(left_s)
            return max(0, through - self._sender.acknowledged)

    def status(self) -> Status:
        """Where it stands."""
        return Status(
            recorded=self._outbox.last,
            waiting=self._sender.waiting,
            rejected=self._rejected,
            size_bytes=self._outbox.size_bytes,
            failures=self._sender.failures,
            error=self._spool.error or self._trouble,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Take no more events, make durable what was taken, try for so long to send it, and let go of the
        outbox. What is left is sent by the next recorder on that folder."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        self._spool.close()
        self.flush(timeout_s)
        with self._lock:
            self._stopping = True
            self._to_send.notify_all()
        self._thread.join()
        self._outbox.close()
        atexit.unregister(self.close)

    # --- the thread that sends --------------------------------------------------------------------------

    def _written(self) -> None:
        with self._lock:
            if self._oldest_s is None:
                self._oldest_s = time.monotonic()
            self._to_send.notify()

    def _run(self) -> None:
        while self._await_due():
            pause_s: float | None
            try:
                pause_s = self._sender.step()
                error: Exception | None = self._sender.error
                if self._sender.waiting == 0:
                    self._sender.settle()
            except Exception as e:  # noqa: BLE001 - told below; without this thread nothing would be sent
                pause_s, error = _DISK_PAUSE_S, e
            with self._lock:
                self._trouble = error
                self._sent.notify_all()
            self._spool.made_room()
            if pause_s is not None and error is not None:
                self._failed(error)
                self._pause(pause_s)
        try:
            self._sender.settle()
        except OSError as e:
            # The events would be asked for by the next owner, and found.
            _log.warning("the outbox %s did not keep how far it came: %s", self._outbox.folder, e)

    def _await_due(self) -> bool:
        """Wait until there is something to send; False: it is time to stop."""
        with self._lock:
            while not self._stopping:
                acknowledged, last = self._sender.acknowledged, self._outbox.last
                if acknowledged < self._due_through:
                    return True
                left_s = None
                if acknowledged < last and self._oldest_s is not None:
                    left_s = self._oldest_s + self._flush_s - time.monotonic()
                    if left_s <= 0 or last - acknowledged >= self._flush_events:
                        self._due_through, self._oldest_s = last, None
                        return True
                self._to_send.wait(left_s)
            return False

    def _failed(self, error: Exception) -> None:
        failures = self._sender.failures
        if failures & (failures - 1) == 0:  # 1, 2, 4, 8, …: the outage of a night is a handful of lines
            _log.warning("sending failed (%d times in a row), and is tried again: %s", failures, error)
        _tell(self._on_error, error)

    def _pause(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        with self._lock:
            while not self._stopping and (left_s := until - time.monotonic()) > 0:
                self._to_send.wait(left_s)

    def _put_aside(self, rejected: Rejected) -> None:
        self._rejected += 1
        _log.error("the store refuses event %d of the outbox: %s", rejected.number, rejected.error)
        _tell(self._on_rejected, rejected)


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, msgspec.Raw) and not value)


def _tell(callback: Callable[[Any], None] | None, what: object) -> None:
    if callback is None:
        return
    try:
        callback(what)
    except Exception:  # noqa: BLE001 - the application's own; sending goes on
        _log.exception("a callback of the recorder failed")
