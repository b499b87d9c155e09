"""A feed as the client follows it: where it stands, what each message means, when to connect again. No
input or output here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

import httpx
import msgspec
from httpx_sse import ServerSentEvent, SSEError

from eventstore.client.answers import FeedReset
from eventstore.client.attempts import RETRY_STATUSES, Retry, error_of, retry_after_s, unreachable
from eventstore.client.calls import Calls, parameters
from eventstore.client.events import Event, decode_event
from eventstore.client.problems import error_from_problem
from eventstore.errors import CoverageError, EventStoreError, FeedResetError, RetryError

__all__ = ["Following", "OnReset"]

OnReset = Literal["raise", "yield"]
# Longer than the pauses between the server's keep-alives: silence means that the connection is gone.
READ_TIMEOUT_S = 60.0
# A feed that went on for so long was no failure, though a quiet log gave it nothing to bring.
_LASTED_S = 10.0


class Following:
    """The state of one feed. `attempts` bounds the failures in a row; None: it is tried for ever."""

    def __init__(
        self,
        calls: Calls,
        since: int,
        filters: Mapping[str, object],
        *,
        on_reset: OnReset,
        retry: Retry,
        attempts: int | None,
    ) -> None:
        self.since = since
        self._calls = calls
        self._filters = parameters(**filters)
        self._on_reset = on_reset
        self._retry = retry
        self._attempts = attempts
        self._failures = 0
        self._began_s: float | None = None  # when this connection brought its first message
        self._hint_s = 0.0  # the pause that the server asks for
        self.over = False  # this connection has said what it had to say

    @property
    def path(self) -> str:
        return self._calls.path("feed")

    def connect(self) -> tuple[dict[str, str], dict[str, str]]:
        """The parameters and headers with which the feed goes on."""
        self.over, self._began_s = False, None
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        return {"since": str(self.since), **self._filters}, headers

    def take(self, message: ServerSentEvent) -> Event | FeedReset | None:
        """What a message brings; None: nothing for the consumer.

        Raises:
            EventStoreError: an error of the feed's.
        """
        if self._began_s is None:
            self._began_s = time.monotonic()
        if message.retry is not None:
            self._hint_s = message.retry / 1000
        if message.event in ("feed_reset", "error"):
            return self._told(
                error_from_problem(msgspec.json.decode(message.data), tenant=self._calls.tenant)
            )
        if message.data == "":
            if message.id.isdigit() and int(message.id) > self.since:
                self.since = int(message.id)  # looked at, and not wanted
                self._failures = 0
            return None
        event = decode_event(message.data)
        self._failures = 0
        if event.seq <= self.since:
            return None
        if not self._filters and event.seq != self.since + 1:
            raise CoverageError(f"the feed went from seq {self.since} to {event.seq}")
        self.since = event.seq
        return event

    def _told(self, error: EventStoreError) -> FeedReset | None:
        if isinstance(error, FeedResetError) and self._on_reset == "yield":
            self.over, self.since = True, error.since
            return FeedReset(since=error.since, oldest_seq=error.oldest_seq, expired=error.expired)
        self._forgive()
        if isinstance(error, RetryError) and not self._is_last():
            self.over = True  # `ended` counts it
            return None
        raise error

    def refused(self, response: httpx.Response) -> tuple[FeedReset | None, float]:
        """What an answer that is no stream means, and the pause before the next connection.

        Raises:
            EventStoreError: it is final.
        """
        error = error_of(response, self._calls.tenant)
        if isinstance(error, FeedResetError):
            return self._told(error), 0.0
        if response.status_code not in RETRY_STATUSES:
            raise error
        return None, max(
            self._failed(error), min(retry_after_s(response) or 0, self._retry.retry_after_max_s)
        )

    def lost(self, error: httpx.TransportError) -> float:
        """The pause after a connection broke, or could not be made.

        Raises:
            RetryError: that was the last attempt, or what answers is no feed.
        """
        if isinstance(error, SSEError | httpx.UnsupportedProtocol):
            raise unreachable(error) from error
        if not isinstance(error, httpx.ReadTimeout):  # silence lasts, too
            self._forgive()
        return self._failed(unreachable(error))

    def ended(self) -> float:
        """The pause after a connection that the server closed."""
        self._forgive()
        return self._failed(RetryError("the feed ends each time before it brings anything"))

    def _forgive(self) -> None:
        """Forget the failures before a connection that lasted."""
        if self._began_s is not None and time.monotonic() - self._began_s >= _LASTED_S:
            self._failures = 0

    def _is_last(self) -> bool:
        """Whether one more failure is one too many."""
        return self._attempts is not None and self._failures + 1 >= self._attempts

    def _failed(self, error: EventStoreError) -> float:
        if self._is_last():
            raise error
        self._failures += 1
        return max(self._retry.pause_s(self._failures), self._hint_s)
