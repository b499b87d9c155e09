"""Errors as pages; and the ways to what has to come first: signing in, and saying why one reads."""

from __future__ import annotations

import logging
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from eventstore.api.problems import status_of
from eventstore.console.door import NOBODY
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import ASK_REASON, Visit
from eventstore.errors import EventStoreError, IntegrityError, RetryError, TenantNotFoundError

__all__ = ["HOME", "install", "own_page"]

_log = logging.getLogger(__name__)

HOME = "/console/"
_ADDRESS_CHARACTERS_MAX = 4000
_FIRST = {NOBODY: "/console/sign-in", ASK_REASON: "/console/reason"}
_WORDS = {
    404: "There is no such page.",
    405: "This address is not asked in this way.",
}


def own_page(address: str) -> str:
    """A page of the console to go on to; its beginning for whatever is none."""
    ours = (
        address.startswith(HOME)
        and len(address) <= _ADDRESS_CHARACTERS_MAX
        and address.isascii()
        and address.isprintable()
        and "\\" not in address
        and ".." not in address
    )
    return address if ours else HOME


def _page(
    request: Request, status: int, title: str, message: str, hint: str | None, *, tenant: str | None = None
) -> Response:
    """An error's page. It knows the visitor, if there is one, but repeats nothing of the address: so what is
    foreign and what does not exist look alike."""
    visit = getattr(request.state, "visit", None)
    known = {"path": None, "here": HOME, "tenant": tenant}
    return render(request, visit, "problem.html", status, title=title, message=message, hint=hint, **known)


def _first(request: Request, where: str, status: int) -> Response:
    """The way to a page that has to come first, and from there back. For htmx it is a header: it would follow
    a redirect by itself, and put the other page into a part of this one."""
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if is_fragment(request):
        back = _shown(request.headers.get("HX-Current-URL", ""))
    elif request.method != "GET":
        back = HOME
    address = f"{where}?next={quote(own_page(back), safe='/')}"
    if is_fragment(request):
        return Response(status_code=status, headers={"HX-Redirect": address})
    return RedirectResponse(address, 303)


def _shown(url: str) -> str:
    """The page of an address that a browser says it shows; its beginning for what is no address."""
    try:
        shown = urlsplit(url)
    except ValueError:
        return HOME
    return shown.path + (f"?{shown.query}" if shown.query else "")


def _own_tenant(request: Request) -> str | None:
    """The tenant of the path, if the visitor may know of it."""
    visit: Visit | None = getattr(request.state, "visit", None)
    tenant: str | None = request.path_params.get("tenant")
    return tenant if visit is not None and tenant is not None and visit.principal.sees(tenant) else None


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EventStoreError)
    status, title = status_of(error)
    if isinstance(error, TenantNotFoundError):
        return _page(request, status, title, "There is no tenant of this name.", None)
    if isinstance(error, IntegrityError):
        _log.error("damaged history: %s", error)
    answer = _page(request, status, title, error.message, error.hint, tenant=_own_tenant(request))
    if isinstance(error, RetryError):
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in _FIRST:
        return _first(request, _FIRST[error.status_code], error.status_code)
    words = _WORDS.get(error.status_code, str(error.detail))
    answer = _page(request, error.status_code, str(error.detail), words, None)
    answer.headers.update(error.headers or {})
    return answer


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{first['loc'][-1]}: {first['msg']}"
    return _page(request, 400, "Invalid request", message, None, tenant=_own_tenant(request))


async def _on_other(request: Request, error: Exception) -> Response:
    _log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    message = "The store met an error of its own; its log says more."
    return _page(request, 500, "Internal error", message, None)


def install(app: FastAPI) -> None:
    """Make every error of the console a page."""
    app.add_exception_handler(EventStoreError, _on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(Exception, _on_other)
