"""The writing side of a recorder: events of many threads become groups, each with one write and one sync."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eventstore.client.outbox import Outbox
from eventstore.errors import BusyError, RetryError, SetupError, TooLargeError

__all__ = ["Full", "Spool"]

Full = Literal["block", "raise"]
# What may wait in memory for the disk.
_PENDING_BYTES_MAX = 8 * 2**20
_DISK_PAUSE_S = 0.5
_LOOK_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Group:
    """Events that are written together. Those of `waited` have a caller who is told if it fails."""

    lines: list[bytes] = field(default_factory=list)
    waited: list[bool] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class Spool:
    """Owns the thread that writes an outbox.

    `written` is called after each group. `why_full` adds to what is said when there is no room.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        max_bytes: int,
        line_bytes_max: int,
        full: Full,
        written: Callable[[], None],
        why_full: Callable[[], str],
    ) -> None:
        self._outbox = outbox
        self._max_bytes, self._line_bytes_max, self._full = max_bytes, line_bytes_max, full
        self._written, self._why_full = written, why_full
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)  # something was written, given up, or made room for
        self._group = _Group()
        self._pending_bytes = 0  # taken, and neither written nor given up
        self._taken = self._settled = 0  # how many events ever were
        self._closing = False
        self.error: Exception | None = None  # of the disk, while events wait for it
        self._thread = threading.Thread(target=self._run, name="eventstore-outbox", daemon=True)
        self._thread.start()

    def take(
        self, lines: Sequence[bytes], *, wait: bool, full: Full | None = None, timeout_s: float | None = None
    ) -> None:
        """Take events in; with `wait`, return when they are durable.

        Raises:
            TooLargeError, BusyError, RetryError, SetupError: as `Recorder.record` says.
        """
        size = sum(map(len, lines))
        if size > self._line_bytes_max:
            limit = self._line_bytes_max
            raise TooLargeError(f"{size} bytes of JSON, the outbox takes {limit}", limit_bytes=limit)
        with self._lock:
            self._admit(size, full or self._full, timeout_s)
            group = self._group
            group.lines += lines
            group.waited += [wait] * len(lines)
            self._pending_bytes += size
            self._taken += len(lines)
            self._work.notify()
        if wait:
            group.done.wait()
            if group.error is not None:
                raise RetryError(
                    f"the outbox could not be written: {group.error}", hint="look at the disk of the outbox"
                ) from group.error

    def _admit(self, size: int, full: Full, timeout_s: float | None) -> None:
        """Wait, under the lock, until there is room."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._closing:
                raise SetupError("the recorder is closed")
            stuck = self.error is not None
            fits = self._fits(size)
            if not fits:
                self._outbox.count_rejected()
                fits = self._fits(size)
            if fits and not stuck and self._pending_bytes + size <= _PENDING_BYTES_MAX:
                return
            left_s = None if deadline is None else deadline - time.monotonic()
            # A queue for a disk that works is no full outbox: it moves at once.
            if (full == "raise" and (stuck or not fits)) or (left_s is not None and left_s <= 0):
                raise self._no_room()
            # Nobody tells us when rejected events are removed.
            look_s = None if fits else _LOOK_S
            self._room.wait(min((s for s in (left_s, look_s) if s is not None), default=None))

    def _fits(self, size: int) -> bool:
        return self._outbox.size_bytes + self._pending_bytes + size <= self._max_bytes

    def _no_room(self) -> BusyError:
        if self.error is not None:
            return BusyError(f"the outbox cannot be written: {self.error}", hint="look at its disk")
        return BusyError(
            f"the outbox {self._outbox.folder} has reached its {self._max_bytes} bytes{self._why_full()}",
            hint="what the store takes makes room again; rejected events stay until somebody removes them",
        )

    def made_room(self) -> None:
        """Something was acknowledged."""
        with self._lock:
            self._room.notify_all()

    def sync(self) -> None:
        """Wait until everything taken so far is durable (or its caller was told that it is not)."""
        with self._lock:
            through = self._taken
            while self._settled < through:
                self._room.wait()

    def close(self) -> None:
        """Take no more, and write what was taken."""
        with self._lock:
            self._closing = True
            self._work.notify_all()
            self._room.notify_all()
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._group.lines and not self._closing:
                    self._work.wait()
                group, self._group = self._group, _Group()
            if not group.lines:
                return
            while group.lines:
                group = self._write(group)

    def _write(self, group: _Group) -> _Group:
        """Write a group; what is left of it to be tried again."""
        try:
            self._outbox.append(group.lines)
        except Exception as e:  # noqa: BLE001 - told to those who wait, and in `error` to the others
            return self._failed(group, e)
        with self._lock:
            self.error = None
            self._settle(group.lines)
        group.done.set()
        self._written()
        return _Group()

    def _settle(self, lines: Sequence[bytes]) -> None:
        self._pending_bytes -= sum(map(len, lines))
        self._settled += len(lines)
        self._room.notify_all()

    def _failed(self, group: _Group, error: Exception) -> _Group:
        """Who waits and chose to be told, is told; nobody else's event is dropped."""
        with self._lock:
            if self.error is None:
                _log.warning("the outbox %s cannot be written: %s", self._outbox.folder, error)
            if self._full == "raise" or self._closing:
                # Those that came meanwhile wait for the same disk.
                following, self._group = self._group, _Group()
                group = self._tell(error, group, following)
            if self._closing and group.lines:
                _log.error("%d events could not be written, and are lost: %s", len(group.lines), error)
                self._settle(group.lines)
                group = _Group()
            # Once nothing waits for the disk, the next event finds out whether it works again.
            self.error = error if group.lines else None
            if group.lines:
                self._work.wait(_DISK_PAUSE_S)
            return group

    def _tell(self, error: Exception, *groups: _Group) -> _Group:
        """Give up the events whose callers wait; the others."""
        kept = _Group()
        for group in groups:
            told = [line for line, waited in zip(group.lines, group.waited, strict=True) if waited]
            kept.lines += [line for line, waited in zip(group.lines, group.waited, strict=True) if not waited]
            self._settle(told)
            group.error = error
            group.done.set()
        kept.waited = [False] * len(kept.lines)
        return kept
