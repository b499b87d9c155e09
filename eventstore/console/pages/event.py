"""One event: all its fields, its place in the chain, and its proof."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from eventstore.access.reads import ReadAction
from eventstore.app import Store, checkpoint_tenant
from eventstore.console.difference import difference
from eventstore.console.evidence import (
    certificate_of,
    find_event,
    link_of,
    neighbours,
    proof_of,
    standing_of,
)
from eventstore.console.forms import form
from eventstore.console.links import entity_address, event_address, with_query
from eventstore.console.values import laid_out, visible
from eventstore.console.view import render
from eventstore.console.visit import Visit, visit
from eventstore.errors import EventNotFoundError, StateError
from eventstore.integrity.tree import Tree
from eventstore.model.access import Permission
from eventstore.model.certificate import payload_sha256, to_payload
from eventstore.model.event import VALUE_FIELDS, Event

__all__ = ["router"]

router = APIRouter()

_ROUTE = "GET /console/t/{tenant}/event/{seq}"
_RAW_CHARACTERS_MAX = 20_000
# What the tree grows over while a person waits, some seconds long.
_GROWTH_MAX = 2_000_000
Seq = Annotated[int, Path(ge=1, lt=10**18)]


@router.get("/t/{tenant}/event/{seq}")
def show(request: Request, me: Annotated[Visit, visit(Permission.READ)], tenant: str, seq: Seq) -> Response:
    """The page; of an event that was destroyed, the certificate that stands for it."""
    store = me.store
    with me.read(tenant, _ROUTE, {"seq": seq}, action=ReadAction.READ) as read:
        found = find_event(read.reader, tenant, seq)
        event = found.event
        around = (None, None) if event is None else neighbours(read.reader, tenant, event, found.coverage)
        proof = None if event is None else proof_of(store, tenant, event, read.meter)
        read.covers(found.coverage, events=int(event is not None))
    if found.expired_no is not None:
        return _destroyed(request, me, tenant, seq, found.expired_no, found.last_seq)
    if event is None:
        ends = f"the log ends at event {found.last_seq:,}" if found.last_seq else "the log has no event yet"
        return render(request, me, "event_absent.html", 404, seq=seq, last_seq=found.last_seq, ends=ends)
    return render(
        request,
        me,
        "event.html",
        event=event,
        event_id=str(UUID(bytes=event.event_id)),
        change=difference(event.old_value, event.new_value),
        values=[_shown(name, getattr(event, name)) for name in VALUE_FIELDS],
        entity=entity_address(tenant, event.entity_type, event.entity_id),
        before=event.seq - 1 or None,
        after=event.seq + 1 if event.seq < found.last_seq else None,
        entity_before=around[0],
        entity_after=around[1],
        link=link_of(store, tenant, found),
        standing=standing_of(
            store,
            tenant,
            event,
            with_holds=me.may(Permission.HOLD, tenant),
            with_plan=me.may(Permission.EXPLAIN, tenant),
        ),
        proof=proof,
        bundle=_bundle(me, tenant, event),
        may_sign=me.may(Permission.EXPORT, tenant),
    )


def _shown(name: str, value: str | None) -> dict[str, Any]:
    """A value laid out, and as it is stored, as far as it is shown."""
    if value is None:
        return {"name": name, "given": False}
    raw = visible(value[:_RAW_CHARACTERS_MAX])
    return {
        "name": name,
        "given": True,
        "laid_out": laid_out(value),
        "raw": raw,
        "is_raw": raw == value,  # nothing was cut or made visible: it can be copied from here
        "size_bytes": len(value.encode()),
    }


def _bundle(me: Visit, tenant: str, event: Event) -> str | None:
    """Where a bundle with this event's proof is asked for; None: not by this visitor."""
    if not me.may(Permission.EXPORT, tenant):
        return None
    path = f"/console/t/{tenant}/exports"
    return with_query(path, seq_from=event.seq, seq_to=event.seq, format="bundle")


def _destroyed(request: Request, me: Visit, tenant: str, seq: int, number: int, last_seq: int) -> Response:
    stored, problem = certificate_of(me.store, tenant, number)
    certificate = stored.certificate
    return render(
        request,
        me,
        "event_destroyed.html",
        seq=seq,
        certificate=certificate,
        sha256=payload_sha256(to_payload(certificate)),
        stored=stored,
        problem=problem,
        policy=laid_out(certificate.policy),
        before=certificate.first_seq - 1 or None,
        after=certificate.last_seq + 1 if certificate.last_seq < last_seq else None,
    )


@router.get("/t/{tenant}/event/{seq}/value")
def value(
    me: Annotated[Visit, visit(Permission.READ)],
    tenant: str,
    seq: Seq,
    of: Annotated[Literal["old_value", "new_value", "metadata"], Query()],
) -> Response:
    """One value as it is stored, whole, as a file."""
    with me.read(tenant, f"{_ROUTE}/value", {"seq": seq, "of": of}, action=ReadAction.READ) as read:
        found = find_event(read.reader, tenant, seq)
        read.covers(found.coverage, events=int(found.event is not None))
        text = None if found.event is None else getattr(found.event, of)
        if text is None:
            raise EventNotFoundError(f"there is no {of} of event {seq} of {tenant!r}")
    name = f"{tenant}-{seq}-{of}.json"
    disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode(), media_type="application/json", headers=disposition)


@router.post("/t/{tenant}/event/{seq}/checkpoint")
async def checkpoint(
    request: Request, me: Annotated[Visit, visit(Permission.EXPORT)], tenant: str, seq: Seq
) -> Response:
    """Sign the log as it is now, so that the event has a proof. Whoever may take evidence out may have it
    signed: it changes nothing that was recorded."""
    await form(request, me)
    await run_in_threadpool(_sign, me.store, tenant)
    return RedirectResponse(f"{event_address(tenant, seq)}#proof", 303)


def _sign(store: Store, tenant: str) -> None:
    left = Tree(store.database, store.tiers).left_to_grow(tenant)
    if left > _GROWTH_MAX:
        raise StateError(
            f"{left:,} events came since the log's tree has grown: that takes too long for a page",
            hint=f"run eventstore checkpoint {tenant}, or wait for the scheduler's next checkpoint",
        )
    checkpoint_tenant(store, tenant).log_failures(tenant)
