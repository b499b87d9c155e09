"""Takes events from an outbox to the store: one at a time, in order, each exactly once.

One `step` sends one batch and returns. Whether a batch that got no answer was stored, the store is asked
before anything is sent again: its own look for repeated event_ids goes to the hot tier only, and an outage
may last longer than a window stays there. A batch is stored whole or not at all, and the next one goes out
only after it, so of the events in doubt the stored ones are the first ones.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from eventstore.client.attempts import Retry, error_of, retry_after_s, unreachable
from eventstore.client.calls import Call, Calls
from eventstore.client.cursor import Cursor
from eventstore.client.outbox import Outbox
from eventstore.errors import (
    EventNotFoundError,
    EventStoreError,
    InvalidEventError,
    RetryError,
    TooLargeError,
)

__all__ = ["Rejected", "Sender"]

_RETRY_AFTER_MAX_S = 300.0
# After so many batches of a size that had to be found, one of twice as many events is tried.
_GROW_AFTER = 100
# Raised before a byte of the request was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that the store refuses for ever: its number in the outbox, its JSON, and why."""

    number: int
    line: bytes
    error: EventStoreError


class _Line(msgspec.Struct):
    event_id: uuid.UUID


class Sender:
    """`post` carries out one call, once. `on_rejected` is told of each event that was put aside."""

    def __init__(
        self,
        outbox: Outbox,
        calls: Calls,
        post: Callable[[Call[Any]], httpx.Response],
        *,
        batch_events: int = 1000,
        batch_bytes: int = 4 * 2**20,
        retry: Retry | None = None,
        on_rejected: Callable[[Rejected], None] = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._calls = calls
        self._post = post
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes
        self._retry = retry or Retry(longest_s=30.0)
        self._on_rejected = on_rejected
        # What is acknowledged may be ahead of the cursor, which is written with the next mark or by `settle`.
        self._acknowledged = outbox.cursor.acknowledged
        self._count_max = batch_events
        self._taken = 0  # batches since that changed
        self._refused: Rejected | None = None
        self._asked_s = 0  # by a Retry-After
        self.failures = 0
        self.error: EventStoreError | None = None

    @property
    def acknowledged(self) -> int:
        """The number of the last event that is stored, or put aside."""
        return self._acknowledged

    @property
    def waiting(self) -> int:
        return self._outbox.last - self._acknowledged

    def step(self) -> float | None:
        """Send the next batch, or find out about the last; the pause in seconds before the next step.

        None after a success. What stands in the way is in `error`, until a step succeeds.

        Raises:
            OSError: the outbox could not be read or written; nothing is lost by trying again.
        """
        if self.waiting == 0:
            self.settle()
            return None
        self._asked_s = 0
        try:
            if self._outbox.cursor.marked > self._acknowledged:
                self._ask()
            else:
                self._send()
        except EventStoreError as e:
            self.failures += 1
            self.error = e
            return max(self._retry.pause_s(self.failures), min(self._asked_s, _RETRY_AFTER_MAX_S))
        self.failures, self.error = 0, None
        return None

    def settle(self) -> None:
        """Make durable what is acknowledged, and free its room.

        Raises:
            OSError: it is not; the events would be asked for after a crash.
        """
        self._outbox.move(Cursor(self._acknowledged, max(self._acknowledged, self._outbox.cursor.marked)))

    # --- sending ----------------------------------------------------------------------------------------

    def _send(self) -> None:
        first = self._acknowledged + 1
        if self._refused is not None and self._refused.number == first:
            self._put_aside(self._refused)
            return
        lines = self._outbox.read(first, count_max=self._count_max, bytes_max=self._batch_bytes)
        last = self._acknowledged + len(lines)
        # Durable before the first byte goes out: if we die from here on, the store is asked.
        self._outbox.move(Cursor(self._acknowledged, last))
        try:
            response = self._post(self._calls.append_lines(b"".join(lines)))
        except _NOT_SENT as e:
            self._unmark()
            raise unreachable(e) from e
        except httpx.TransportError as e:
            raise unreachable(e) from e
        if response.is_success:
            self._check(response, len(lines))
            self._acknowledged = last
            self._grow()
            return
        if response.status_code < 500:
            self._unmark()  # refused, so nothing of it is stored
        self._refusal(response, lines)

    def _grow(self) -> None:
        """Keep the size that was taken, for the next batches are as large; yet not for ever."""
        self._taken += 1
        if self._taken >= _GROW_AFTER:
            self._taken, self._count_max = 0, min(2 * self._count_max, self._batch_events)

    def _unmark(self) -> None:
        self._outbox.move(Cursor(self._acknowledged, self._acknowledged))

    def _check(self, response: httpx.Response, count: int) -> None:
        """Whatever stands between us and the store may answer 200 to anything."""
        try:
            appended = self._calls.read_appended(response.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RetryError(f"the answer {response.status_code} is none of the store's") from e
        if appended.count + appended.duplicates != count:
            raise RetryError(
                f"{count} events were sent, and {appended.count + appended.duplicates} answered for"
            )

    def _refusal(self, response: httpx.Response, lines: list[bytes]) -> None:
        """Find the event for which a batch was refused, if that is why; the others are sent without it."""
        error = self._error_of(response)
        if not isinstance(error, InvalidEventError | TooLargeError) and response.status_code != 413:
            raise error
        line = error.place.line if isinstance(error, InvalidEventError | TooLargeError) else None
        if line is None and len(lines) > 1:
            self._taken, self._count_max = 0, len(lines) // 2
            return
        index = 0 if line is None else min(line, len(lines)) - 1
        self._refused = Rejected(self._acknowledged + 1 + index, lines[index], error)
        self._count_max = max(index, 1)

    def _put_aside(self, refused: Rejected) -> None:
        reason: dict[str, object] = {"code": refused.error.code, "detail": refused.error.message}
        self._outbox.reject(refused.number, refused.line, reason)
        # It lies aside durably, so the others need not wait for it.
        self._acknowledged = refused.number
        self._refused, self._count_max = None, self._batch_events
        self._unmark()
        self._on_rejected(refused)

    # --- finding out ------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Find the last of the events in doubt that is stored: mostly none is, or all are."""
        low, high = self._acknowledged, self._outbox.cursor.marked
        probe = low + 1
        while low < high:
            if self._is_stored(probe):
                low = probe
                probe = high if probe == self._acknowledged + 1 else (low + high + 1) // 2
            else:
                high = probe - 1
                probe = (low + high + 1) // 2
        self._acknowledged = low
        self._unmark()

    def _is_stored(self, number: int) -> bool:
        (line,) = self._outbox.read(number, count_max=1, bytes_max=1)
        event_id = msgspec.json.decode(line, type=_Line).event_id
        try:
            response = self._post(self._calls.stored(event_id))
        except httpx.TransportError as e:
            raise unreachable(e) from e
        if response.is_success:
            self._calls.read_stored(response.content)
            return True
        error = self._error_of(response)
        if isinstance(error, EventNotFoundError):
            return False
        raise error

    def _error_of(self, response: httpx.Response) -> EventStoreError:
        self._asked_s = retry_after_s(response) or 0
        return error_of(response, self._calls.tenant)
