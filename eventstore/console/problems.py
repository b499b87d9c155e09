"""Errors as pages."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from eventstore.api.problems import status_of
from eventstore.console.view import render
from eventstore.errors import EventStoreError

__all__ = ["install"]


def _page(request: Request, status: int, title: str, message: str, hint: str | None) -> Response:
    return render(request, None, "problem.html", status, title=title, message=message, hint=hint)


def install(app: FastAPI) -> None:
    """Make every error of the console a page."""

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, EventStoreError)
        status, title = status_of(error)
        return _page(request, status, title, error.message, error.hint)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _page(request, error.status_code, str(error.detail), "There is no such page.", None)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return _page(request, 400, "Invalid request", f"{first['loc'][-1]}: {first['msg']}", None)

    app.add_exception_handler(EventStoreError, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
