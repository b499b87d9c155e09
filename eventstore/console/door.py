"""The door of the console: which cookie names a session, who comes with it, and how many may try.

Cookies go over https alone, under a name (`__Host-…`) that no other host can set. On plain http there are
sessions only where the way from the browser lies on one machine: for requests made on this machine itself, or
when the settings say that people reach the console on loopback. No header that a proxy adds, or a caller
makes up, has a say in this.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import secrets
from dataclasses import asdict, replace
from urllib.parse import urlsplit

import anyio
from fastapi import Request, Response
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from eventstore.access.authenticator import HOW_TO_BEGIN, Authenticator
from eventstore.access.limits import CallerLimits
from eventstore.access.loopback import is_from_here
from eventstore.access.oidc import OidcVerifier
from eventstore.access.oidc_signin import OidcSignIn, Pending
from eventstore.access.refusal import refused
from eventstore.console.visit import Visit
from eventstore.errors import ForbiddenError, UnauthenticatedError
from eventstore.governance.sessions import Session, Sessions, csrf_of
from eventstore.model.access import Permission, Principal, Role
from eventstore.model.limits import Limits
from eventstore.settings import Settings

__all__ = ["NOBODY", "Door"]

# Nobody is signed in: answered by the way to the sign-in page.
NOBODY = 401
# What one address may try in a second, and how many keys are looked at, and answers of the issuer waited for,
# at the same time: the threads that pages and the API need are left for whoever is let in.
_ATTEMPTS_PER_S = 5
_LOOKUPS = 4
# Of the things that a sign-in leaves with the browser until it is done.
_PENDING_S = 600
_PENDING_CHARACTERS_MAX = 4000


class Door:
    """One console's. `state` is the API's; it is whole once the application has started."""

    def __init__(self, state: State, settings: Settings, sessions: Sessions) -> None:
        self._state = state
        self._console_url = settings.console_url
        self.sessions = sessions
        self.oidc = _oidc(settings)
        self.lookups = anyio.CapacityLimiter(_LOOKUPS)
        # Apart from those: an issuer that hangs holds up nobody who has a key.
        self.at_issuer = anyio.CapacityLimiter(_LOOKUPS)
        self._attempts = CallerLimits(replace(settings.default_limits, requests_per_s=_ATTEMPTS_PER_S))
        self._token_here = secrets.token_urlsafe(32)

    @property
    def _authenticator(self) -> Authenticator:
        found: Authenticator = self._state.authentication.authenticator
        return found

    # --- who comes -------------------------------------------------------------------------------------

    def visit(self, request: Request) -> Visit:
        """Who asks for this page; asks Postgres.

        Raises:
            HTTPException: 401, nobody is signed in.
            UnauthenticatedError: only this machine is served yet.
            RateLimitedError: they ask for too much.
        """
        self._authenticator.check_open(*_from(request))
        found = self._of_session(request) or self._of_this_machine(request)
        if found is None:
            raise HTTPException(NOBODY, "Sign in")
        limits: CallerLimits = self._state.limits
        limits.admit(found.principal)
        request.state.visit = found
        return found

    def _of_session(self, request: Request) -> Visit | None:
        name = request.cookies.get(self._cookie(request))
        session = None if name is None else self.sessions.find(name)
        if session is None:
            return None
        principal = session.person
        if session.key_id is not None:
            try:
                holder = self._authenticator.holder_of(session.key_id)
            except UnauthenticatedError:
                self.sessions.end(session.name)  # its key has ended
                return None
            principal = replace(holder, person=True)
        assert principal is not None
        return Visit(principal, self._state, session.reason, csrf_of(session.name), session=session.name)

    def _of_this_machine(self, request: Request) -> Visit | None:
        if self._authenticator.is_administered():
            return None
        if self._is_https(request):
            # A proxy stands before us, perhaps on this machine: whoever comes through it looks like us.
            raise UnauthenticatedError(
                "there is no administrator yet, and nobody is let in from elsewhere", hint=HOW_TO_BEGIN
            )
        principal = self._authenticator.authenticate(None, *_from(request))
        return Visit(principal, self._state, None, csrf_of(self._token_here), begin=HOW_TO_BEGIN)

    # --- signing in --------------------------------------------------------------------------------------

    def admit_attempt(self, request: Request) -> None:
        """Count a try to sign in, by the address that it comes from.

        Raises:
            RateLimitedError: too many came from there.
            ForbiddenError: no session can be kept on this way.
        """
        if not (self._is_https(request) or self._is_on_one_machine(request)):
            raise ForbiddenError(
                "nobody signs in here: the way to this console is not encrypted",
                hint="reach it over https, and set EVENTSTORE_CONSOLE_URL to that address",
            )
        self._attempts.admit(Principal(f"from:{_network(_from(request)[0])}", Role.READER, limits=Limits()))

    def by_key(self, request: Request, text: str) -> Session:
        """A session of the key with this text; asks Postgres.

        Raises:
            UnauthenticatedError: it does not hold, whatever is wrong with it.
            ForbiddenError: its role has nothing to do here.
        """
        given = text.strip().encode(errors="replace")
        peer, headers = _from(request)
        if not given.startswith(b"es_"):
            raise refused()  # a token of the issuer's comes by the issuer alone
        principal = self._authenticator.authenticate(given, peer, headers)
        _refuse_useless(principal)
        return self.sessions.begin(principal.subject.removeprefix("key:"))

    def by_issuer(self, pending: Pending, answer: dict[str, str]) -> Session:
        """A session of the person who comes back from the issuer; asks the issuer and Postgres.

        Raises:
            UnauthenticatedError, ForbiddenError, RetryError
        """
        if self.oidc is None:
            raise refused()
        principal, ends_us = self.oidc.finish(pending, answer)
        _refuse_useless(principal)
        return self.sessions.begin(principal, ends_us=ends_us)

    def let_in(self, request: Request, response: Response, session: Session) -> None:
        """Give the browser its session, and end the one that it had."""
        had = request.cookies.get(self._cookie(request))
        if had is not None:
            self.sessions.end(had)
        self._set(request, response, "", session.name)
        self._drop(request, response, "-begin")
        self._drop(request, response, "-issuer")

    def let_out(self, request: Request, response: Response) -> None:
        """End the browser's session."""
        had = request.cookies.get(self._cookie(request))
        if had is not None:
            self.sessions.end(had)
        self._drop(request, response, "")

    # --- what a browser keeps before it has a session ----------------------------------------------------

    def begun(self, request: Request) -> str:
        """The name of the sign-in page that this browser has open; "": none."""
        return request.cookies.get(self._cookie(request, "-begin"), "")

    def begin(self, request: Request, response: Response, name: str) -> None:
        """Keep the name of the sign-in page with the browser."""
        self._set(request, response, "-begin", name, max_age=_PENDING_S * 6)

    def keep_pending(self, request: Request, response: Response, pending: Pending, back_to: str) -> None:
        """Keep with the browser what its way over the issuer is to be compared with."""
        text = json.dumps({**asdict(pending), "back_to": back_to})
        value = base64.urlsafe_b64encode(text.encode()).decode()
        self._set(request, response, "-issuer", value, max_age=_PENDING_S)

    def pending(self, request: Request) -> tuple[Pending, str]:
        """What was kept, and where to go on afterwards.

        Raises:
            UnauthenticatedError: this browser is on no way over the issuer.
        """
        value = request.cookies.get(self._cookie(request, "-issuer"), "")
        try:
            if len(value) > _PENDING_CHARACTERS_MAX:
                raise ValueError("too long")
            kept = json.loads(base64.urlsafe_b64decode(value))
            return Pending(kept["state"], kept["nonce"], kept["verifier"]), str(kept["back_to"])
        except (binascii.Error, ValueError, TypeError, KeyError) as e:
            raise refused() from e

    # --- cookies -----------------------------------------------------------------------------------------

    def _is_https(self, request: Request) -> bool:
        url = self._console_url
        return request.scope["scheme"] == "https" or (url is not None and url.startswith("https:"))

    def _is_on_one_machine(self, request: Request) -> bool:
        url = self._console_url
        if url is not None and request.headers.get("host", "").lower() == urlsplit(url).netloc:
            return True  # plain http on loopback, as the settings say
        return is_from_here(*_from(request))

    def _cookie(self, request: Request, which: str = "") -> str:
        # Only a host that is this one itself can set a name with the prefix, and only by https. Without it
        # whoever has a neighbouring name could plant a session of theirs here.
        return f"__Host-eventstore{which}" if self._is_https(request) else f"eventstore{which}"

    def _set(
        self, request: Request, response: Response, which: str, value: str, *, max_age: int | None = None
    ) -> None:
        response.set_cookie(
            self._cookie(request, which),
            value,
            max_age=max_age,
            path="/",
            secure=self._is_https(request),
            httponly=True,
            samesite="lax",
        )

    def _drop(self, request: Request, response: Response, which: str) -> None:
        response.delete_cookie(
            self._cookie(request, which),
            path="/",
            secure=self._is_https(request),
            httponly=True,
            samesite="lax",
        )


def _oidc(settings: Settings) -> OidcSignIn | None:
    client = settings.oidc_client
    if client is None or settings.oidc is None:
        return None
    return OidcSignIn(client, OidcVerifier(settings.oidc))


def _from(request: Request) -> tuple[str | None, list[tuple[bytes, bytes]]]:
    return (request.client.host if request.client else None), request.headers.raw


def _network(peer: str | None) -> str:
    """The address, or of IPv6 the network, which is one household's."""
    try:
        found = ipaddress.ip_address(peer or "")
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _refuse_useless(principal: Principal) -> None:
    if principal.may(Permission.READ) or (principal.may(Permission.OPERATE) and principal.tenant is None):
        return
    raise ForbiddenError(
        f"the role {principal.role.value!r} has nothing to do in the console",
        hint="it takes one that may read, or an operator of the whole deployment",
    )
