"""Legal holds: cases, what they cover, placing one after a look at what that means, and its end."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from eventstore.catalog.tenants import get_tenant
from eventstore.catalog.windows import entity_filters_bytes
from eventstore.console.forms import form
from eventstore.console.holdform import HoldForm, empty_form, read_form
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import ASK_REASON, Visit, visit
from eventstore.console.words import scope_words
from eventstore.errors import HoldNotFoundError, InputError, StateError, TenantClosedError
from eventstore.governance.holds import (
    get_hold,
    get_hold_by_id,
    holds_in_force,
    list_holds,
    place_hold,
    release_hold,
)
from eventstore.governance.record import EntryKind, mirror_or_warn, required_text, unmirrored
from eventstore.governance.scopes import preview_scopes
from eventstore.model.access import Permission
from eventstore.model.hold import Hold, HoldScope
from eventstore.query.scope import ScopeMeasure, measure_release, measure_scope

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter()

Holder = Annotated[Visit, visit(Permission.HOLD)]
HoldId = Annotated[uuid.UUID, Path()]

_PAGE = 20
_OF_HOLDS = (EntryKind.HOLD_PLACED.value, EntryKind.HOLD_RELEASED.value)
_ENTITIES_SHOWN = 200
# In a list, holds over more entities than this are counted by their times alone; and all of them, where the
# filters of the archive take more bytes than these.
_ENTITIES_LOOKED_FOR = 100
_FILTER_BYTES_MAX = 8 * 2**20


# --- cases --------------------------------------------------------------------------------------------


@router.get("/t/{tenant}/holds")
def show(
    tenant: str,
    request: Request,
    me: Holder,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """The cases: those in force first, the newest of each first."""
    with me.store.database.transaction() as conn:
        get_tenant(conn, tenant)
        every = list_holds(conn, tenant)
        every.sort(key=lambda hold: (not hold.in_force, -(hold.released_us or hold.placed_us)))
        shown = every[(page - 1) * _PAGE : page * _PAGE]
        counting = [hold for hold in shown if hold.in_force]
        by_entity = any(hold.scope.entities for hold in counting)
        filtered = not by_entity or entity_filters_bytes(conn, tenant) <= _FILTER_BYTES_MAX
        scopes = [_quick(hold.scope) if filtered else _by_times(hold.scope) for hold in counting]
        counts = zip(counting, preview_scopes(conn, tenant, scopes), strict=True)
    events = {hold.hold_id: sum(count.events for count in found) for hold, found in counts}
    return render(
        request,
        me,
        "holds.html",
        cases=[(hold, events.get(hold.hold_id)) for hold in shown],
        filtered=filtered,
        in_force=sum(hold.in_force for hold in every),
        released=sum(not hold.in_force for hold in every),
        page=page,
        more=len(every) > page * _PAGE,
        scope_words=scope_words,
        uncopied=_uncopied(me.store, tenant),
    )


def _quick(scope: HoldScope) -> HoldScope:
    return scope if len(scope.entities) <= _ENTITIES_LOOKED_FOR else _by_times(scope)


def _by_times(scope: HoldScope) -> HoldScope:
    """The same for every entity: it covers no less, and is counted without the archive's filters."""
    return replace(scope, entities=())


def _uncopied(store: Store, tenant: str) -> bool:
    """Whether a hold of this tenant's was placed or released of which the archive has no copy yet."""
    with store.database.transaction() as conn:
        return any(entry.tenant_id == tenant and entry.kind in _OF_HOLDS for entry in unmirrored(conn))


# --- placing ------------------------------------------------------------------------------------------


@router.get("/t/{tenant}/holds/new")
def begin(
    tenant: str,
    request: Request,
    me: Holder,
    entity_type: Annotated[str, Query(max_length=200)] = "",
    entity_id: Annotated[str, Query(max_length=1024)] = "",
    from_: Annotated[str, Query(alias="from", max_length=64)] = "",
    to: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The form; an entity and times may be given by whoever leads here."""
    _reasoned(me)
    with me.store.database.transaction() as conn:
        get_tenant(conn, tenant)
    entities = f"{entity_type}/{entity_id}" if entity_type and entity_id else ""
    return _form_page(request, me, empty_form({"entities": entities, "from": from_, "to": to}), 200)


@router.post("/t/{tenant}/holds/edit")
async def edit(tenant: str, request: Request, me: Holder) -> Response:
    """The form again, with what was typed."""
    typed = read_form(await form(request, me))
    typed.problems.clear()
    return await run_in_threadpool(_form_page, request, me, typed, 200)


@router.post("/t/{tenant}/holds/preview")
async def preview(tenant: str, request: Request, me: Holder) -> Response:
    """What the hold would cover and stop. Nothing is held."""
    fields = await form(request, me)
    wanted, fragment = read_form(fields), is_fragment(request)

    def look() -> Response:
        if "name" not in wanted.problems:
            _refuse_name(me.store, tenant, wanted)
        if wanted.problems or wanted.scope is None:
            return _form_page(request, me, wanted, 400)
        _reasoned(me)
        certain = not wanted.scope.entities
        store = me.store
        if fragment or fields.get("counted"):
            measure = _measure(me, tenant, wanted.scope, "POST /console/t/{tenant}/holds/preview")
        else:
            now_us = store.database.now_us()
            measure = measure_scope(store.database, None, tenant, wanted.scope, now_us=now_us)
        if fragment:
            return render(request, me, "_hold_counts.html", measure=measure, certain=certain, titled=True)
        with store.database.transaction() as conn:
            others = len(holds_in_force(conn, tenant))
        return render(
            request,
            me,
            "hold_preview.html",
            form=wanted,
            words=scope_words(wanted.scope),
            measure=measure,
            certain=certain,
            uncounted=not measure.exact and not fields.get("counted"),
            others=others,
        )

    return await run_in_threadpool(look)


@router.post("/t/{tenant}/holds")
async def place(tenant: str, request: Request, me: Holder) -> Response:
    """Place it. The same form sent twice places one hold."""
    wanted = read_form(await form(request, me))

    def make() -> Response:
        if wanted.problems or wanted.scope is None:
            return _form_page(request, me, wanted, 400)
        store = me.store
        try:
            hold = place_hold(
                store.database,
                tenant,
                wanted.name,
                wanted.reason,
                me.principal.subject,
                wanted.scope,
                store.database.now_us(),
                hold_id=wanted.case,
            )
        except TenantClosedError:
            raise
        except StateError as e:
            wanted.problems["name"] = InputError(e.message, hint=e.hint)
            return _form_page(request, me, wanted, 409)
        mirror_or_warn(store.database, store.targets)  # the page says so while there is no copy
        return _to_case(tenant, hold, "placed")

    return await run_in_threadpool(make)


def _refuse_name(store: Store, tenant: str, wanted: HoldForm) -> None:
    with store.database.transaction() as conn:
        try:
            get_hold(conn, tenant, wanted.name)
        except HoldNotFoundError:
            return
    wanted.problems["name"] = InputError(
        "there is, or was, a case of that name", hint="a name is one case for good: choose another name"
    )


def _form_page(request: Request, me: Visit, typed: HoldForm, status: int) -> Response:
    return render(request, me, "hold_form.html", status, form=typed)


def _measure(me: Visit, tenant: str, scope: HoldScope, page: str) -> ScopeMeasure:
    """Count what a scope covers, as a read of this visitor's."""
    store = me.store
    with me.read(tenant, page, {"tenant": tenant, "scope": scope_words(scope, most=20)}) as read:
        return measure_scope(store.database, read.reader, tenant, scope, now_us=store.database.now_us())


def _reasoned(me: Visit) -> None:
    """See that a reason is given where one is needed, before anything is typed that would be lost."""
    if me.lacks_reason:
        raise HTTPException(ASK_REASON, "Say why you read")


def _to_case(tenant: str, hold: Hold, done: str) -> Response:
    return RedirectResponse(f"/console/t/{tenant}/holds/{hold.hold_id}?done={done}", 303)


# --- one case -----------------------------------------------------------------------------------------


@router.get("/t/{tenant}/holds/{hold_id}")
def case(
    tenant: str,
    request: Request,
    me: Holder,
    hold_id: HoldId,
    done: Annotated[str, Query(max_length=16)] = "",
    counted: Annotated[bool, Query()] = False,
) -> Response:
    """One case. Its events are counted where htmx, or `counted`, asks for it."""
    _reasoned(me)
    hold = _found(me, tenant, hold_id)
    fragment = is_fragment(request)
    measure = None
    if fragment or counted:
        measure = _measure(me, tenant, hold.scope, "GET /console/t/{tenant}/holds/{hold_id}")
    if fragment:
        return render(
            request, me, "_hold_counts.html", measure=measure, certain=not hold.scope.entities, titled=False
        )
    return render(request, me, "hold.html", **_case_context(me, tenant, hold), measure=measure, done=done)


@router.get("/t/{tenant}/holds/{hold_id}/release")
def ask_release(tenant: str, request: Request, me: Holder, hold_id: HoldId) -> Response:
    """What its end would mean, and the form for it."""
    hold = _found(me, tenant, hold_id)
    if not hold.in_force:
        return _to_case(tenant, hold, "")
    return _release_page(request, me, tenant, hold, {}, {}, 200)


@router.post("/t/{tenant}/holds/{hold_id}/release")
async def release(tenant: str, request: Request, me: Holder, hold_id: HoldId) -> Response:
    """End it. Others stay in force."""
    fields = await form(request, me)

    def end() -> Response:
        hold = _found(me, tenant, hold_id)
        problems: dict[str, InputError] = {}
        try:
            reason = required_text("the reason", fields.get("reason", ""))
        except InputError as e:
            problems["reason"] = e
        if fields.get("confirm") != "yes":
            problems["confirm"] = InputError("not confirmed", hint="tick the box if the case is over")
        if problems:
            return _release_page(request, me, tenant, hold, fields, problems, 400)
        store = me.store
        try:
            hold = release_hold(
                store.database, tenant, hold.name, me.principal.subject, reason, store.database.now_us()
            )
        except StateError as e:
            hold = _found(me, tenant, hold_id)
            if (hold.released_by, hold.release_reason) == (me.principal.subject, reason):
                return _to_case(tenant, hold, "released")  # the form came twice
            problems["reason"] = InputError(e.message, hint=e.hint)
            return _release_page(request, me, tenant, hold, fields, problems, 409)
        mirror_or_warn(store.database, store.targets)
        return _to_case(tenant, hold, "released")

    return await run_in_threadpool(end)


def _found(me: Visit, tenant: str, hold_id: uuid.UUID) -> Hold:
    with me.store.database.transaction() as conn:
        return get_hold_by_id(conn, tenant, hold_id)


def _case_context(me: Visit, tenant: str, hold: Hold) -> dict[str, Any]:
    with me.store.database.transaction() as conn:
        counts = preview_scopes(conn, tenant, [_quick(hold.scope)])[0]
        others = [one for one in holds_in_force(conn, tenant) if one.hold_id != hold.hold_id]
    return {
        "hold": hold,
        "words": scope_words(hold.scope),
        "counts": counts,
        "certain": not hold.scope.entities,
        "others": others,
        "entities": hold.scope.entities[:_ENTITIES_SHOWN],
        "uncopied": _uncopied(me.store, tenant),
    }


def _release_page(
    request: Request,
    me: Visit,
    tenant: str,
    hold: Hold,
    fields: Any,
    problems: dict[str, InputError],
    status: int,
) -> Response:
    now_us = me.store.database.now_us()
    return render(
        request,
        me,
        "hold_release.html",
        status,
        **_case_context(me, tenant, hold),
        freed=measure_release(me.store.database, tenant, hold, now_us=now_us),
        typed=fields.get("reason", ""),
        problems=problems,
    )
