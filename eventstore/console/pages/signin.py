"""Signing in, by a key or at the issuer; signing out; and saying why one reads."""

from __future__ import annotations

import secrets
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from eventstore.access.reads import REASON_CHARACTERS_MAX
from eventstore.api.problems import status_of
from eventstore.console.door import NOBODY, Door
from eventstore.console.forms import checked_form, form
from eventstore.console.problems import own_page
from eventstore.console.view import render
from eventstore.console.visit import Visit, anyone
from eventstore.errors import EventStoreError, InputError, RateLimitedError, UnauthenticatedError
from eventstore.governance.sessions import csrf_of

__all__ = ["router"]

router = APIRouter()

_Anyone = Annotated[Visit, Depends(anyone)]
_Next = Annotated[str, Query(alias="next")]
_KEY_CHARACTERS_MAX = 1000


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


def _sign_in_page(request: Request, back_to: str, error: EventStoreError | None = None) -> Response:
    """The page with the form, under a name that the browser keeps and the form shows it knows."""
    door = _door(request)
    name = door.begun(request) or secrets.token_urlsafe(32)
    status = 200 if error is None else status_of(error)[0]
    answer = render(
        request,
        None,
        "signin.html",
        status,
        token=csrf_of(name),
        back_to=back_to,
        issuer=door.oidc is not None,
        error=error,
    )
    if not door.begun(request):
        door.begin(request, answer, name)
    if isinstance(error, RateLimitedError):
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


@router.get("/sign-in")
def show(request: Request, back_to: _Next = "") -> Response:
    """The page; who is signed in goes on to where they wanted."""
    back_to = own_page(back_to)
    try:
        visit = _door(request).visit(request)
    except HTTPException as e:
        if e.status_code != NOBODY:
            raise
    else:
        if visit.session is not None:
            return RedirectResponse(back_to, 303)
    return _sign_in_page(request, back_to)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Sign in by a key. Whatever is wrong with it is answered alike, and it is never shown again."""
    door = _door(request)
    name = door.begun(request)
    fields = await checked_form(request, csrf_of(name) if name else "")
    back_to = own_page(fields.get("next", ""))
    key = fields.get("key", "")
    try:
        door.admit_attempt(request)
        if len(key) > _KEY_CHARACTERS_MAX:
            raise _no_key()
        session = await anyio.to_thread.run_sync(door.by_key, request, key, limiter=door.lookups)
    except UnauthenticatedError:
        return _sign_in_page(request, back_to, _no_key())
    except EventStoreError as e:
        return _sign_in_page(request, back_to, e)
    answer = RedirectResponse(back_to, 303)
    await run_in_threadpool(door.let_in, request, answer, session)
    return answer


def _no_key() -> UnauthenticatedError:
    return UnauthenticatedError(
        "this is no key that is in force", hint="paste the whole key, from es_ to its last character"
    )


@router.get("/sign-in/issuer")
async def to_issuer(request: Request, back_to: _Next = "") -> Response:
    """Go to the issuer. A link, and no form: the issuer's address could not be the target of one."""
    door = _door(request)
    if door.oidc is None:
        raise HTTPException(404)
    door.admit_attempt(request)
    url, pending = await anyio.to_thread.run_sync(door.oidc.begin, limiter=door.at_issuer)
    answer = RedirectResponse(url, 303)
    door.keep_pending(request, answer, pending, own_page(back_to))
    return answer


@router.get("/sign-in/done")
async def from_issuer(request: Request) -> Response:
    """Come back from the issuer."""
    door = _door(request)
    if door.oidc is None:
        raise HTTPException(404)
    door.admit_attempt(request)
    try:
        pending, back_to = door.pending(request)
        answered = dict(request.query_params)
        session = await anyio.to_thread.run_sync(door.by_issuer, pending, answered, limiter=door.at_issuer)
    except UnauthenticatedError:
        error = UnauthenticatedError("you were not signed in there", hint="try again from here")
        return _sign_in_page(request, own_page(""), error)
    answer = RedirectResponse(own_page(back_to), 303)
    await run_in_threadpool(door.let_in, request, answer, session)
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, me: _Anyone) -> Response:
    """End the session, here and in the browser."""
    await form(request, me)
    answer = RedirectResponse("/console/sign-in", 303)
    await run_in_threadpool(_door(request).let_out, request, answer)
    return answer


@router.get("/reason")
def ask_reason(request: Request, me: _Anyone, back_to: _Next = "") -> Response:
    """The page that asks why one reads."""
    return render(request, me, "reason.html", back_to=own_page(back_to), most=REASON_CHARACTERS_MAX)


@router.post("/reason")
async def give_reason(request: Request, me: _Anyone) -> Response:
    """Keep why one reads, from now on; an empty one: no reason."""
    fields = await form(request, me)
    reason = fields.get("reason", "").strip()
    if me.session is None:
        raise InputError("no reason can be kept while nobody is signed in", hint=me.begin or "")
    if len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        raise InputError(f"the reason is no line of at most {REASON_CHARACTERS_MAX} characters")
    sessions = _door(request).sessions
    await run_in_threadpool(sessions.give_reason, me.session, reason or None)
    return RedirectResponse(own_page(fields.get("next", "")), 303)
