"""When a request is sent again, and after what pause. No input or output here."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
import msgspec

from eventstore.client.calls import Call
from eventstore.client.problems import error_from_answer
from eventstore.errors import EventStoreError, RetryError

__all__ = ["RETRY_STATUSES", "Attempts", "Retry", "error_of", "read_answer", "retry_after_s", "unreachable"]

T = TypeVar("T")

RETRY_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `attempts` in all. Pauses double from `first_s` up to `longest_s`, each cut by chance to half
    at the least. A Retry-After is waited for if it is at most `retry_after_max_s`; beyond that the error is
    raised at once, with its `retry_after_s`."""

    attempts: int = 5
    first_s: float = 0.2
    longest_s: float = 10.0
    retry_after_max_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row (from 1)."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)


def retry_after_s(response: httpx.Response) -> int | None:
    """The seconds of a Retry-After header, which may be a date; None if there is none that can be read."""
    text = response.headers.get("retry-after")
    if text is None:
        return None
    if text.strip().isdigit():
        return int(text)
    try:
        return max(0, round(parsedate_to_datetime(text).timestamp() - time.time()))
    except ValueError:
        return None


def error_of(response: httpx.Response, tenant: str) -> EventStoreError:
    """The error that an answer tells of."""
    return error_from_answer(
        response.status_code, response.content, tenant=tenant, retry_after_s=retry_after_s(response)
    )


def read_answer(call: Call[T], response: httpx.Response) -> T:
    """The value of a successful answer.

    Raises:
        EventStoreError: it is none of the store's; something between may answer 200 to anything.
    """
    try:
        return call.read(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise EventStoreError(
            f"the answer to {call.method} {call.path} ({response.status_code}) is none of the store's: {e}",
            hint="look whether the address is the store's, and whether the client is as new as the store",
        ) from e


def unreachable(error: httpx.TransportError) -> RetryError:
    """What a failed connection is to a caller."""
    what = str(error) or type(error).__name__
    return RetryError(f"the store did not answer: {what}", hint="look whether it runs, and at the address")


class Attempts:
    """The attempts at one call: told how each ended, it says how long to wait before the next one."""

    def __init__(self, retry: Retry, tenant: str) -> None:
        self._retry = retry
        self._tenant = tenant
        self._made = 0

    def failed(self, error: httpx.TransportError) -> float:
        """The pause in seconds after no answer came.

        Raises:
            RetryError: that was the last attempt, or the request could never be sent as it is.
        """
        self._made += 1
        hopeless = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
        if hopeless or self._made >= self._retry.attempts:
            raise unreachable(error) from error
        return self._retry.pause_s(self._made)

    def answered(self, response: httpx.Response) -> float | None:
        """None after a success, else the pause in seconds.

        Raises:
            EventStoreError: what the answer says, if it is final or this was the last attempt.
        """
        if response.is_success:
            return None
        self._made += 1
        error = error_of(response, self._tenant)
        if response.status_code not in RETRY_STATUSES or self._made >= self._retry.attempts:
            raise error
        asked_s = retry_after_s(response)
        if asked_s is None:
            return self._retry.pause_s(self._made)
        if asked_s > self._retry.retry_after_max_s:
            raise error
        return asked_s + self._retry.first_s * random.random()
