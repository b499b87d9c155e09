"""Where a visitor begins: the tenants they may see; their own one; or, without any, the runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import RedirectResponse

from eventstore.catalog.tenants import browse_tenants
from eventstore.console.view import render
from eventstore.console.visit import Visit, anyone
from eventstore.errors import ForbiddenError
from eventstore.model.access import Permission
from eventstore.model.tenant import TenantState

__all__ = ["router"]

router = APIRouter()

_PAGE = 50
_NAME_CHARACTERS_MAX = 63


@router.get("/")
def show(
    request: Request,
    me: Annotated[Visit, Depends(anyone)],
    containing: Annotated[str, Query(max_length=_NAME_CHARACTERS_MAX)] = "",
    after: Annotated[str, Query(max_length=_NAME_CHARACTERS_MAX)] = "",
) -> Response:
    """The page. What it shows depends on who asks, so it asks for no permission of its own."""
    own = me.principal.tenant
    if own is not None and me.may(Permission.READ, own):
        return RedirectResponse(f"/console/t/{own}", 303)
    if not me.may(Permission.READ):
        if me.may(Permission.OPERATE):
            return RedirectResponse("/console/runs", 303)
        raise ForbiddenError(f"the role {me.principal.role.value!r} has nothing to do in the console")
    wanted = containing.strip().lower()
    with me.store.database.transaction() as conn:
        found = browse_tenants(conn, containing=wanted, after=after, limit=_PAGE + 1)
    page = found[:_PAGE]
    return render(
        request,
        me,
        "home.html",
        tenants=page,
        containing=wanted,
        after=after,
        next_after=page[-1].tenant_id if len(found) > _PAGE else None,
        TenantState=TenantState,
    )
