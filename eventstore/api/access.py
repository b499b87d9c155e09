"""What each route asks of its caller."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from eventstore.errors import ForbiddenError, TenantNotFoundError
from eventstore.model.access import Permission, Principal, Role

__all__ = ["allow", "check", "principal_of"]


def principal_of(request: Request) -> Principal:
    """The caller of a request.

    Raises:
        UnauthenticatedError: no valid credentials.
    """
    return Principal("loopback", Role.ADMINISTRATOR, limits=None)


def check(principal: Principal, permission: Permission, tenant: str | None) -> None:
    """Let a caller pass, or not. `tenant` None is the deployment itself.

    Another's tenant is answered exactly as one that does not exist, whatever the caller's role: so this is
    asked first, and before anything is looked up.

    Raises:
        TenantNotFoundError: the tenant is not the caller's.
        ForbiddenError: the caller's role does not permit it.
    """
    if tenant is not None and not principal.sees(tenant):
        raise TenantNotFoundError(tenant)
    if not principal.may(permission) or (tenant is None and principal.tenant is not None):
        whose = "deployment" if tenant is None else "tenant"
        raise ForbiddenError(
            f"the role {principal.role.value!r} does not permit this",
            hint=f"it takes a key of the {whose} that may {permission.value}",
        )


def allow(permission: Permission) -> Any:
    """The dependency of a route: its caller, who may do this to the `tenant` of the path (to the deployment
    where the path has none)."""

    def permitted(request: Request) -> Principal:
        principal = principal_of(request)
        check(principal, permission, request.path_params.get("tenant"))
        return principal

    permitted.permission = permission  # type: ignore[attr-defined]  # tests read it from the routes
    return Depends(permitted)
