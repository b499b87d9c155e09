"""Calls to a remote target: what a failure means, and how often and how soon to try again.

Here is the layer of retries. The libraries beneath have theirs switched off where they let us, because a
repeated PUT is no repetition: between two attempts the target has to be asked whether the first was stored.
And what the libraries swallow, the run journal cannot tell, and the governor cannot heed. (aiohttp repeats a
request once when a kept connection breaks. That cannot be switched off, and does no harm to a create.)
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from eventstore.archive.address import clean
from eventstore.errors import EventStoreError, TargetUnavailableError

__all__ = ["Attempts", "Failure", "classify", "server_code"]

_T = TypeVar("_T")

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 10.0
_PUSHBACK_CODES = {
    "BandwidthLimitExceeded", "RequestLimitExceeded", "ServerBusy", "ServiceUnavailable", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException",
}  # fmt: skip
# Answered with a status of 4xx, though the same request may succeed.
_PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_PASSING_STATUS = {408, 409, 412, 425}
_NO_CONTAINER_CODES = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
# Without an answer of the server, and yet no use in trying again.
_CREDENTIAL_NAMES = {
    "ClientAuthenticationError", "CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError",
    "PartialCredentialsError", "PermissionError", "ProfileNotFound", "RefreshError", "TokenRetrievalError",
}  # fmt: skip
_USELESS_NAMES = {
    "AttributeError", "ImportError", "InvalidRegionError", "IsADirectoryError", "NotADirectoryError",
    "NotImplementedError", "ParamValidationError", "TypeError", "ValueError",
}  # fmt: skip
_CREDENTIALS_HINT = "check the credentials, and that they may read, write, list and delete there"
_CONTAINER_HINT = "create the bucket, or mend the target's URL"
_AWAY_HINT = (
    "see whether it is up and can be reached; the next run tries again, and nothing is dropped meanwhile"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a library's exception means to us. `reason` is fit for a journal: short, without credentials."""

    reason: str
    hint: str = _AWAY_HINT
    missing: bool = False  # the server says that there is no such object
    refused: bool = False  # the server answered that it did not do it
    pushback: bool = False  # the server asks for less
    fatal: bool = False  # no use in trying again


def classify(error: BaseException) -> Failure:
    """Read an exception and those behind it. Errors of the store's own are raised as they are."""
    if isinstance(error, EventStoreError):
        raise error
    chain = list(_chain(error))
    status = next((s for e in chain if (s := _status(e)) is not None), None)
    code = server_code(error)
    words = clean(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    named = [str(word) for word in (status, code) if word and str(word) not in words]
    reason = f"{words} [{' '.join(named)}]" if named else words
    if code in _NO_CONTAINER_CODES:
        return Failure(reason, _CONTAINER_HINT, refused=True, fatal=True)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Failure(reason, _CONTAINER_HINT, missing=True, refused=True, fatal=True)
    if status in (429, 503) or code in _PUSHBACK_CODES:
        return Failure(reason, pushback=True)
    if isinstance(error, FileExistsError):
        return Failure(reason, refused=True)
    if status is not None and 400 <= status < 500 and status != 408 and code != "RequestTimeout":
        fatal = status not in _PASSING_STATUS and code not in _PASSING_CODES
        hint = _CREDENTIALS_HINT if status in (401, 403) else _AWAY_HINT
        return Failure(reason, hint, refused=True, fatal=fatal)
    names = {type(e).__name__ for e in chain}
    if names & _CREDENTIAL_NAMES:
        return Failure(reason, _CREDENTIALS_HINT, fatal=True)
    return Failure(reason, fatal=status is None and bool(names & _USELESS_NAMES))


def server_code(error: BaseException) -> str:
    """The error code in the server's answer (`NoSuchKey`, `BlobAlreadyExists`); '' if there is none."""
    for e in _chain(error):
        response = getattr(e, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None
        code = code or getattr(e, "error_code", None)
        if code:
            return str(getattr(code, "value", code))
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    # Causes alone: what a library was handling when it failed otherwise says nothing about this failure.
    for _ in range(10):  # causes may go round in circles
        if error is None:
            return
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if type(error).__module__.startswith("aiohttp"):
        return None  # it has statuses for what it finds wrong itself, such as an answer that is cut off
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = (
            getattr(error, "status_code", None)
            or getattr(error, "status", None)
            or getattr(error, "code", None)
        )
    return int(found) if str(found).isdigit() else None


class Attempts:
    """Bounded attempts with exponential backoff and full jitter; counts what the server asked us to lessen.

    `on_retry(attempt, reason, backoff_s)` is told of each retry before it waits; `attempt` is the one that
    failed, from 1. Safe for many threads.
    """

    def __init__(self, where: str, count: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self.on_retry: Callable[[int, str, float], None] | None = None
        self._where, self._count, self._sleep = where, count, sleep
        self._pushback = 0
        self._lock = threading.Lock()

    @property
    def pushback(self) -> int:
        """How often the server asked for less, ever."""
        return self._pushback

    def run(self, what: str, call: Callable[[], _T]) -> _T:
        """Make a call that may be repeated as it is.

        Raises:
            FileNotFoundError: the server says that there is no such object.
            TargetUnavailableError: every attempt failed, or it is no use to try again.
        """
        attempt = 1
        while True:
            try:
                return call()
            except Exception as e:  # noqa: BLE001 - the libraries' exceptions have no common root
                failure = classify(e)
            # Out of the handler: what is raised from here has no cause, whose text nobody has cleaned.
            if failure.missing:
                raise FileNotFoundError(failure.reason)
            self.again(what, attempt, failure)
            attempt += 1

    def again(self, what: str, attempt: int, failure: Failure) -> None:
        """Wait before the next attempt.

        Raises:
            TargetUnavailableError: there is to be none.
        """
        if failure.pushback:
            with self._lock:
                self._pushback += 1
        if failure.fatal or attempt >= self._count:
            tried = f" after {attempt} attempts" if attempt > 1 else ""
            raise TargetUnavailableError(
                f"{self._where}: cannot {what}{tried}: {failure.reason}", hint=failure.hint
            )
        longest_s = min(_FIRST_BACKOFF_S * 2 ** (attempt - 1), _LONGEST_BACKOFF_S)
        backoff_s = random.uniform(longest_s / 4, longest_s)
        if self.on_retry is not None:
            self.on_retry(attempt, failure.reason, backoff_s)
        self._sleep(backoff_s)
