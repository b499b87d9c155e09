"""Who calls, and what each route asks of its caller.

`Gate` stands before everything: a request without valid credentials reaches no route, whether that asks for a
permission or was forgotten. `allow` is the permission that a route asks for.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from eventstore.access.authenticator import Authenticator, bearer_of
from eventstore.access.limits import CallerLimits
from eventstore.access.refusal import refused
from eventstore.api import problems
from eventstore.errors import EventStoreError, ForbiddenError, TenantNotFoundError
from eventstore.model.access import Permission, Principal
from eventstore.model.tenant import RESERVED_PREFIX, is_tenant_id

__all__ = ["Authentication", "Gate", "allow", "check", "principal_of", "recheck"]

# What anybody may ask: whether the process serves, and how the API is used.
_OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})
# Mounted beside the API: has a gate of its own.
_CONSOLE = "/console"
# Of either kind so many credentials are looked at at once: however many wrong ones come, threads and database
# connections are left for the others; and an issuer that hangs holds up no API key.
_LOOKUPS = 4


class Authentication:
    """Authenticates requests of one event loop."""

    def __init__(self, authenticator: Authenticator) -> None:
        self.authenticator = authenticator
        self._keys = anyio.CapacityLimiter(_LOOKUPS)
        self._tokens = anyio.CapacityLimiter(_LOOKUPS)

    async def caller(self, scope: Scope) -> Principal:
        """Who sent a request.

        Raises:
            UnauthenticatedError: no credentials, or none that hold.
            RetryError: whoever could tell does not answer.
        """
        headers = scope["headers"]
        peer = scope["client"][0] if scope["client"] else None
        bearer = bearer_of(headers)
        known = self.authenticator.remembered(bearer, peer, headers)
        if known is not None:
            return known
        limiter = self._tokens if self.authenticator.asks_issuer(bearer) else self._keys
        return await anyio.to_thread.run_sync(
            self.authenticator.authenticate, bearer, peer, headers, limiter=limiter
        )


class Gate:
    """ASGI middleware that lets nobody pass of whom it does not know who it is; `principal_of` tells the
    others who that is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            authentication: Authentication = scope["app"].state.authentication
            limits: CallerLimits = scope["app"].state.limits
            try:
                principal = await authentication.caller(scope)
                limits.admit(principal)
                scope.setdefault("state", {})["principal"] = principal
            except EventStoreError as e:
                await problems.from_error(e)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN or path == _CONSOLE or path.startswith(f"{_CONSOLE}/")


def principal_of(request: Request) -> Principal:
    """The caller of a request.

    Raises:
        UnauthenticatedError: the gate did not let it pass.
    """
    principal = request.scope.get("state", {}).get("principal")
    if not isinstance(principal, Principal):
        raise refused()
    return principal


async def recheck(request: Request) -> Principal:
    """The caller of a request that is being answered for a long time, asked again.

    Raises:
        UnauthenticatedError: its credentials hold no more.
        RetryError: whoever could tell does not answer.
    """
    authentication: Authentication = request.app.state.authentication
    return await authentication.caller(request.scope)


def check(principal: Principal, permission: Permission, tenant: str | None) -> None:
    """Let a caller pass, or not. `tenant` None is the deployment itself.

    Another's tenant is answered exactly as one that does not exist, whatever the caller's role: so this is
    asked first, and before anything is looked up.

    Raises:
        TenantNotFoundError: the tenant is not the caller's, or no tenant could have that name.
        ForbiddenError: the caller's role does not permit it.
    """
    if tenant is not None and not (principal.sees(tenant) and is_tenant_id(tenant)):
        raise TenantNotFoundError(tenant)
    if not principal.may(permission) or (tenant is None and principal.tenant is not None):
        whose = "deployment" if tenant is None else "tenant"
        raise ForbiddenError(
            f"the role {principal.role.value!r} does not permit this",
            hint=f"it takes a key of the {whose} that may {permission.value}",
        )
    if permission is Permission.APPEND and tenant is not None and tenant.startswith(RESERVED_PREFIX):
        raise ForbiddenError(f"nobody but the store itself appends to {tenant!r}")


def allow(permission: Permission) -> Any:
    """The dependency of a route: its caller, who may do this to the `tenant` of the path (to the deployment
    where the path has none)."""

    async def permitted(request: Request) -> Principal:
        principal = principal_of(request)
        check(principal, permission, request.path_params.get("tenant"))
        return principal

    permitted.permission = permission  # type: ignore[attr-defined]  # tests read it from the routes
    return Depends(permitted)
