"""The one place where errors become HTTP: RFC 9457 problem details."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from eventstore.errors import (
    CertificateNotFoundError,
    CheckpointNotFoundError,
    ConfirmationError,
    EventNotFoundError,
    EventStoreError,
    ExportNotFoundError,
    FeedResetError,
    ForbiddenError,
    HeldError,
    HoldNotFoundError,
    InputError,
    IntegrityError,
    InvalidEventError,
    KeyNotFoundError,
    MediaTypeError,
    RateLimitedError,
    RetryError,
    RunNotFoundError,
    StateError,
    SubscriptionNotFoundError,
    TenantNotFoundError,
    TooLargeError,
    UnauthenticatedError,
    VersionConflictError,
)

__all__ = ["MEDIA_TYPE", "from_error", "install", "problem", "status_of"]

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)

# By class, most particular first.
_STATUS: tuple[tuple[type[EventStoreError], int, str], ...] = (
    (TenantNotFoundError, 404, "No such tenant"),
    (EventNotFoundError, 404, "No such event"),
    (RunNotFoundError, 404, "No such run"),
    (KeyNotFoundError, 404, "No such key"),
    (HoldNotFoundError, 404, "No such hold"),
    (CertificateNotFoundError, 404, "No such certificate"),
    (CheckpointNotFoundError, 404, "No such checkpoint"),
    (SubscriptionNotFoundError, 404, "No such subscription"),
    (ExportNotFoundError, 404, "No such export"),
    (UnauthenticatedError, 401, "Unauthenticated"),
    (ForbiddenError, 403, "Forbidden"),
    (TooLargeError, 413, "Too large"),
    (InvalidEventError, 422, "Invalid event"),
    (MediaTypeError, 415, "Unsupported media type"),
    (InputError, 400, "Invalid request"),
    (VersionConflictError, 409, "Version conflict"),
    (FeedResetError, 410, "Gone"),
    (StateError, 409, "Conflict"),
    (RateLimitedError, 429, "Too many requests"),
    (RetryError, 503, "Unavailable for the moment"),
    (IntegrityError, 500, "Stored history is damaged"),
    (EventStoreError, 500, "Internal error"),
)


def problem(status: int, title: str, detail: str, *, code: str, **more: object) -> Response:
    """A problem+json response."""
    body = {"type": f"urn:eventstore:{code}", "title": title, "status": status, "detail": detail, **more}
    headers = {"Retry-After": str(more["retry_after_s"])} if "retry_after_s" in more else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def status_of(error: EventStoreError) -> tuple[int, str]:
    """The HTTP status of an error, and its title."""
    return next((status, title) for kind, status, title in _STATUS if isinstance(error, kind))


def from_error(error: EventStoreError) -> Response:
    """The problem that tells a caller of an error."""
    if isinstance(error, IntegrityError):
        _log.error("damaged history: %s", error)
    status, title = status_of(error)
    more: dict[str, object] = {"hint": error.hint} if error.hint else {}
    if isinstance(error, InvalidEventError | TooLargeError):
        place = error.place
        found = {"field": place.field, "index": place.index, "line": place.line}
        more |= {name: value for name, value in found.items() if value is not None}
    if isinstance(error, TooLargeError):
        more["limit_bytes"] = error.limit_bytes
    if isinstance(error, ConfirmationError):
        more["events"] = error.events
    if isinstance(error, HeldError):
        more["holds"] = error.holds
    if isinstance(error, FeedResetError):
        more |= {"oldest_seq": error.oldest_seq, "since": error.since}
        more["expired"] = [
            {"certificate": number, "first_seq": first, "last_seq": last}
            for number, first, last in error.expired
        ]
    if isinstance(error, RetryError):
        more["retry_after_s"] = error.retry_after_s
    if isinstance(error, VersionConflictError):
        more["conflicts"] = [
            {
                "entity_type": c.entity_type,
                "entity_id": c.entity_id,
                "expected_version": c.expected,
                "actual_version": c.actual,
                **({"line": c.place.line} if c.place.line is not None else {"index": c.place.index}),
            }
            for c in error.conflicts
        ]
    return problem(status, title, error.message, code=error.code, **more)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    async def on_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, EventStoreError)
        return from_error(error)

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = problem(error.status_code, str(error.detail), str(error.detail), code="http")
        answer.headers.update(error.headers or {})
        return answer

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(
            400,
            "Invalid request",
            f"{where}: {first['msg']}",
            code="invalid-request",
            field=str(first["loc"][-1]),
        )

    async def on_other(request: Request, error: Exception) -> Response:
        _log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(
            500, "Internal error", "the store met an error of its own; its log says more", code="internal"
        )

    app.add_exception_handler(EventStoreError, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_other)
