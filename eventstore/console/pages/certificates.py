"""Certificates: what stands for destroyed history, as a list and to take away."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from eventstore.catalog.tenants import get_tenant
from eventstore.console.view import render
from eventstore.console.visit import Visit, visit
from eventstore.governance.certificates import get_certificate, newest_certificates, trusted_keys
from eventstore.governance.envelope import CERTIFICATE_TYPE
from eventstore.governance.signing import verify
from eventstore.model.access import Permission
from eventstore.model.certificate import payload_sha256, to_payload

__all__ = ["router"]

router = APIRouter()

_PAGE = 50
_ENVELOPE = "application/vnd.dsse.envelope.v1+json"


@router.get("/t/{tenant}/certificates")
def show(
    tenant: str,
    request: Request,
    me: Annotated[Visit, visit(Permission.READ)],
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> Response:
    """The newest certificates, or the newest with numbers below `before`."""
    with me.store.database.transaction() as conn:
        get_tenant(conn, tenant)
        found = newest_certificates(conn, tenant, before=before, limit=_PAGE + 1)
    return render(
        request,
        me,
        "certificates.html",
        found=found[:_PAGE],
        digest=lambda certificate: payload_sha256(to_payload(certificate)).hex(),
        next_before=found[_PAGE - 1].certificate.number if len(found) > _PAGE else None,
        first_page=before is None,
        type=CERTIFICATE_TYPE,
    )


@router.get("/t/{tenant}/certificates/{number}")
def download(
    tenant: str,
    me: Annotated[Visit, visit(Permission.READ)],
    number: Annotated[int, Path(ge=1, lt=2**31)],
) -> Response:
    """The signed envelope exactly as it is stored, its signature verified."""
    with me.store.database.transaction() as conn:
        get_tenant(conn, tenant)
        stored, keys = get_certificate(conn, tenant, number), trusted_keys(conn)
    verify(stored.envelope, keys)
    name = f"certificate.{tenant}.{number:08d}.json"
    return Response(
        stored.envelope,
        media_type=_ENVELOPE,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
