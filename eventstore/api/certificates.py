"""The routes of certificates: what stands for destroyed history."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.governed import answering, encoded
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import answers
from eventstore.catalog.tenants import get_tenant
from eventstore.governance.certificates import (
    StoredCertificate,
    get_certificate,
    list_certificates,
    trusted_keys,
)
from eventstore.governance.envelope import CERTIFICATE_TYPE
from eventstore.governance.signing import verify
from eventstore.model.access import Permission
from eventstore.model.certificate import payload_sha256, to_payload
from eventstore.model.query import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}/certificates", dependencies=[Depends(known_parameters)])

CERTIFICATES_MAX = 1000
_ENVELOPE = "application/vnd.dsse.envelope.v1+json"


class CertificateView(msgspec.Struct, forbid_unknown_fields=True):
    """A certificate: what it says, the SHA-256 of the bytes that are signed, the keys that signed it, and the
    target that has a copy (null: none yet)."""

    certificate: Annotated[
        dict[str, Any], msgspec.Meta(description="see the reference of the certificate format")
    ]
    sha256: str
    key_ids: list[str]
    stored_in: str | None


class CertificatePage(msgspec.Struct, forbid_unknown_fields=True):
    """Certificates by number. `next_cursor` null: there are no more."""

    certificates: list[CertificateView]
    next_cursor: str | None


_VIEW: dict[str, Any] = {
    "certificate": {"format_version": 1, "number": 1, "tenant_id": "acme", "kind": "expired", "first_seq": 1},
    "sha256": "fac4dad1d8da161fc7174574f3214101f3c62b8cfd0d37c3e6a7999bc2bffb87",
    "key_ids": ["5f1c0c2e"],
    "stored_in": "archive",
}
_SIGNED = json.dumps(
    {
        "payload": base64.b64encode(json.dumps(_VIEW["certificate"]).encode()).decode(),
        "payloadType": CERTIFICATE_TYPE,
        "signatures": [{"keyid": "5f1c0c2e", "sig": "S+1YLF+MTDwYkxXi4CHKIwgQudVeoUVh…"}],
    }
)


def _view(stored: StoredCertificate) -> dict[str, Any]:
    payload = to_payload(stored.certificate)
    return {
        "certificate": msgspec.Raw(payload),
        "sha256": payload_sha256(payload).hex(),
        "key_ids": list(stored.key_ids),
        "stored_in": stored.stored_in,
    }


@router.get(
    "",
    dependencies=[allow(Permission.READ)],
    summary="A tenant's certificates, a page at a time",
    responses=answers(CertificatePage, example={"certificates": [_VIEW], "next_cursor": None}),
)
async def certificates(
    tenant: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=CERTIFICATES_MAX)] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """By number. Their signatures have not been looked at; ask for one of them."""
    after = 0 if cursor is None else decode_cursor(cursor)

    def read(store: Store) -> dict[str, Any]:
        with store.database.transaction() as conn:
            get_tenant(conn, tenant)
            found = [c for c in list_certificates(conn, tenant) if c.certificate.number > after]
        page = found[:limit]
        following = encode_cursor(page[-1].certificate.number) if len(found) > limit else None
        return {"certificates": [_view(stored) for stored in page], "next_cursor": following}

    return await answering(request, read)


@router.get(
    "/{number}",
    dependencies=[allow(Permission.READ)],
    summary="One certificate, its signature verified",
    responses=answers(
        CertificateView, example=_VIEW, media={_ENVELOPE: ("The signed envelope (DSSE)", _SIGNED)}
    ),
)
async def one_certificate(
    tenant: str,
    number: Annotated[int, Path(ge=1, lt=2**31)],
    request: Request,
    envelope: Annotated[bool, Query(description="The signed envelope as it is stored")] = False,
) -> Response:
    """`envelope=true` gives exactly the bytes that are stored, for a verifier of the caller's own."""

    def read() -> Response:
        store: Store = request.app.state.store
        with store.database.transaction() as conn:
            get_tenant(conn, tenant)
            stored, keys = get_certificate(conn, tenant, number), trusted_keys(conn)
        verify(stored.envelope, keys)
        if envelope:
            return Response(stored.envelope, media_type=_ENVELOPE)
        return encoded(_view(stored))

    return await run_in_threadpool(read)
