"""The person at a page: who it is, what the page may ask of the store on its behalf."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from eventstore.access.reads import Asked, Read, ReadAction, ReadsLog, is_logged
from eventstore.api.access import check
from eventstore.api.limits import meter_of_principal
from eventstore.app import Store
from eventstore.model.access import Permission, Principal

__all__ = ["ASK_REASON", "Visit", "anyone", "visit"]

# A reason is wanted first: answered by the way to the page that asks for it.
ASK_REASON = 428
_READING = frozenset({Permission.READ, Permission.EXPORT})
_OF_TENANT = (
    ("Overview", "", Permission.READ),
    ("Search", "/search", Permission.READ),
    ("Holds", "/holds", Permission.HOLD),
    ("Exports", "/exports", Permission.EXPORT),
)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a page by somebody who is signed in."""

    principal: Principal
    state: State  # of the API: `store`, `reads`, `limits`, …
    reason: str | None  # why they read, for the log of reads
    csrf: str
    begin: str | None = None  # how to make the first administrator, while there is none
    session: str | None = field(default=None, repr=False)  # None: of this machine itself, without one

    @property
    def store(self) -> Store:
        store: Store = self.state.store
        return store

    def may(self, permission: Permission, tenant: str | None = None) -> bool:
        """Whether to show what takes a permission; the deployment's own where `tenant` is None."""
        if tenant is None:
            return self.principal.tenant is None and self.principal.may(permission)
        return self.principal.sees(tenant) and self.principal.may(permission)

    @property
    def reads_are_logged(self) -> bool:
        """Whether what is read is written down, with the reason."""
        return is_logged(self.principal)

    @property
    def lacks_reason(self) -> bool:
        """Whether nothing may be read before a reason is given."""
        reads: ReadsLog = self.state.reads
        return reads.reason_required and self.reason is None and self.reads_are_logged

    def places(self, tenant: str | None) -> list[tuple[str, str]]:
        """The pages that this visitor may open, by name and address: of a tenant, and of the deployment."""
        found = []
        if self.may(Permission.READ):
            found.append(("Tenants", "/console/"))
        if tenant is not None:
            base = f"/console/t/{tenant}"
            found += [(name, base + path) for name, path, asks in _OF_TENANT if self.may(asks, tenant)]
        if self.may(Permission.OPERATE):
            found.append(("Runs", "/console/runs"))
        return found

    def check(self, permission: Permission, tenant: str | None = None) -> None:
        """Raises:
        TenantNotFoundError, ForbiddenError
        """
        check(self.principal, permission, tenant)

    def read(
        self, tenant: str, page: str, query: dict[str, object], *, action: ReadAction = ReadAction.SEARCH
    ) -> Read:
        """A read that begins: its reader counts against the caller's limits, and leaving its block writes it
        down where the caller is a person. `page` names it in the log, as `GET /console/…`."""
        reads: ReadsLog = self.state.reads
        asked = Asked(self.principal, tenant, action, page, query, self.reason)
        return reads.read(asked, self.store.reader, meter_of_principal(self.state, self.principal))


def anyone(request: Request) -> Visit:
    """Whoever is signed in; asks Postgres.

    Raises:
        HTTPException: 401, nobody is.
        UnauthenticatedError: only this machine is served yet.
        RateLimitedError: they ask for too much.
    """
    found: Visit = request.app.state.door.visit(request)
    return found


def visit(permission: Permission) -> Any:
    """The dependency of a page: its visitor, who may do this to the `tenant` of the path (to the deployment
    where the path has none)."""

    def permitted(request: Request, whoever: Annotated[Visit, Depends(anyone)]) -> Visit:
        tenant = request.path_params.get("tenant")
        whoever.check(permission, tenant)
        if tenant is not None and permission in _READING and whoever.lacks_reason:
            raise HTTPException(ASK_REASON, "Say why you read")
        return whoever

    permitted.permission = permission  # type: ignore[attr-defined]  # tests read it from the routes
    return Depends(permitted)
