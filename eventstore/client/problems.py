"""The store's errors, made again from its answers: one table from a problem's code to its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from eventstore import errors
from eventstore.errors import (
    ArchiveDamageError,
    ConfirmationError,
    EventStoreError,
    FeedResetError,
    HeldError,
    InputError,
    InvalidEventError,
    Place,
    RetryError,
    StateError,
    TenantNotFoundError,
    TooLargeError,
    VersionConflict,
    VersionConflictError,
)

__all__ = ["error_from_answer", "error_from_problem"]

_PREFIX = "urn:eventstore:"
_DETAIL_CHARS_MAX = 500  # of an answer that is not the store's own


def _subclasses(kind: type[EventStoreError]) -> Iterator[type[EventStoreError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)


_KINDS = {kind.code: kind for kind in _subclasses(EventStoreError) if kind.__module__ == errors.__name__}


def _place(problem: Mapping[str, Any]) -> Place:
    return Place(problem.get("field"), problem.get("index"), problem.get("line"))


def _conflicts(problem: Mapping[str, Any]) -> list[VersionConflict]:
    return [
        VersionConflict(
            c["entity_type"],
            c["entity_id"],
            c["expected_version"],
            c["actual_version"],
            Place("expected_version", c.get("index"), c.get("line")),
        )
        for c in problem["conflicts"]
    ]


# The classes that have fields of their own; a child is made as its nearest ancestor here is.
_MAKERS: dict[type[EventStoreError], Callable[[Any, Mapping[str, Any]], EventStoreError]] = {
    EventStoreError: lambda kind, p: kind(p["detail"]),
    InvalidEventError: lambda kind, p: kind(p["detail"], place=_place(p)),
    TooLargeError: lambda kind, p: kind(p["detail"], limit_bytes=p["limit_bytes"], place=_place(p)),
    TenantNotFoundError: lambda kind, p: kind(str(p.get("tenant", ""))),
    ConfirmationError: lambda kind, p: kind(p["detail"], events=p["events"]),
    FeedResetError: lambda kind, p: kind(
        p["detail"],
        oldest_seq=p["oldest_seq"],
        since=p["since"],
        expired=[(e["certificate"], e["first_seq"], e["last_seq"]) for e in p["expired"]],
    ),
    HeldError: lambda kind, p: kind(p["detail"], holds=p["holds"]),
    VersionConflictError: lambda kind, p: kind(_conflicts(p)),
    RetryError: lambda kind, p: kind(p["detail"], retry_after_s=p.get("retry_after_s", 1)),
    ArchiveDamageError: lambda kind, p: kind(p["detail"], key=str(p.get("key", ""))),
}


def error_from_problem(problem: Mapping[str, Any], *, tenant: str = "") -> EventStoreError:
    """The error that a problem tells of.

    A code that this version does not know becomes the general class of its status, and keeps its code.
    """
    problem = {"detail": problem.get("title", "no detail was given"), "tenant": tenant, **problem}
    code = str(problem.get("type", "")).removeprefix(_PREFIX)
    kind = _KINDS.get(code) or _by_status(problem.get("status"))
    maker = next(_MAKERS[base] for base in kind.__mro__ if base in _MAKERS)
    try:
        error = maker(kind, problem)
    except (KeyError, IndexError, TypeError):
        # A problem without the members that its code has: the family and the words are still right.
        error = _by_status(problem.get("status"))(str(problem["detail"]))
    error.message, error.hint = str(problem["detail"]), str(problem.get("hint", ""))
    error.args = (error.message,)
    if code and error.code != code:
        error.code = code
    return error


def _by_status(status: Any) -> type[EventStoreError]:
    if status in (429, 502, 503, 504):
        return RetryError
    if status == 409:
        return StateError
    return InputError if isinstance(status, int) and 400 <= status < 500 else EventStoreError


def error_from_answer(status: int, body: bytes, *, tenant: str, retry_after_s: int | None) -> EventStoreError:
    """The error of an answer that is no success: the store's own problem, or that of something between."""
    try:
        problem = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = None
    if not isinstance(problem, dict) or "type" not in problem:
        text = body[:_DETAIL_CHARS_MAX].decode("utf-8", "replace").strip()
        problem = {"detail": f"the answer is {status}, and none of the store's: {text or 'empty'}"}
    if retry_after_s is not None:
        problem.setdefault("retry_after_s", retry_after_s)
    return error_from_problem({**problem, "status": status}, tenant=tenant)
