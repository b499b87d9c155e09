"""Exports: asked for, made in the background, and downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from eventstore.access.limits import CallerLimits
from eventstore.access.reads import REASON_CHARACTERS_MAX, ReadAction
from eventstore.api.export_worker import ExportWorker
from eventstore.api.exports import Download, ask, export_id_of, ready_file
from eventstore.api.problems import status_of
from eventstore.clock import to_iso
from eventstore.console.asked import CONDITIONS, Asked, asked_of, conditions
from eventstore.console.forms import form
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import Visit, visit
from eventstore.console.words import duration
from eventstore.errors import EventStoreError, InputError, RateLimitedError, StateError
from eventstore.governance.exports import Wish, cancel_export, get_export, list_exports
from eventstore.model.access import Permission, Role
from eventstore.model.export import BackgroundExport, ExportState, FileFormat, filter_json
from eventstore.model.policy import parse_duration_us
from eventstore.model.query import Order

__all__ = ["router"]

router = APIRouter()

Exporter = Annotated[Visit, visit(Permission.EXPORT)]
Typed = Annotated[dict[str, str], Depends(conditions)]

_PAGE = 20
_HOUR_US = 3600 * 10**6
_LABELS: Mapping[str, str] = {
    "text": "Text in values",
    "entity_type": "Entity type",
    "entity_id": "Entity id",
    "actor": "Actor",
    "action": "Action",
    "field": "Field",
    "source": "Source",
    "workspace_id": "Workspace",
    "recorded_from": "Recorded from",
    "recorded_to": "Recorded before",
    "occurred_from": "Occurred from",
    "occurred_to": "Occurred before",
    "seq_from": "From seq",
    "seq_to": "To seq",
}
# Behind a fold.
_MORE = ("text", "source", "workspace_id", "occurred_from", "occurred_to", "seq_from", "seq_to")
_FORMATS: Mapping[FileFormat, str] = {
    FileFormat.CSV: "CSV, for spreadsheets",
    FileFormat.NDJSON: "NDJSON, an event a line",
    FileFormat.PARQUET: "Parquet, for data tools",
    FileFormat.BUNDLE: "Evidence bundle, events with their proofs",
}
_SHOWN = {
    **{form: form.value.upper() for form in FileFormat},
    FileFormat.PARQUET: "Parquet",
    FileFormat.BUNDLE: "Evidence bundle",
}
_PILLS: Mapping[ExportState, str] = {
    ExportState.WAITING: "",
    ExportState.MAKING: "archive",
    ExportState.READY: "ok",
    ExportState.FAILED: "bad",
    ExportState.EXPIRED: "expired",
    ExportState.CANCELLED: "",
}


@dataclass(frozen=True, slots=True)
class Line:
    """An export as the list shows it. `percent` None: it is not known how far it is. `left` says how long its
    file stays; None: it has none."""

    export: BackgroundExport
    pill: str
    format: str
    conditions: list[tuple[str, str]]
    percent: int | None
    left: str | None
    gone: int


@router.get("/t/{tenant}/exports")
def show(
    tenant: str,
    request: Request,
    me: Exporter,
    typed: Typed,
    format: str = FileFormat.CSV.value,  # noqa: A002 - as the address has it
    order: str = Order.ASC.value,
    before: Annotated[str, Query(max_length=36)] = "",
    asked: Annotated[str, Query(max_length=36)] = "",
) -> Response:
    """The form, filled in as the address says, and the list. htmx is given the list alone."""
    shown = _list(me, tenant, before)
    if is_fragment(request):
        return render(request, me, "_exports.html", **shown, asked=asked)
    wanted = asked_of(request, typed, ("format", "order", "before", "asked"))
    filled = {"format": format, "order": order, "reason": me.reason or ""}
    return _page(request, me, tenant, wanted, filled, 200, shown=shown, asked_id=asked)


@router.post("/t/{tenant}/exports")
async def ask_for(tenant: str, request: Request, me: Exporter) -> Response:
    """Ask for one."""
    fields = await form(request, me)
    typed = {name: fields[name] for name in CONDITIONS if fields.get(name, "").strip()}

    def make() -> Response:
        wanted = asked_of(request, typed)
        if wanted.wanted is None:
            return _page(request, me, tenant, wanted, fields, 400)
        try:
            made = ask(me.store, _worker(me), tenant, _wish(me, tenant, wanted, fields), me.principal)
        except (InputError, StateError, RateLimitedError) as e:
            return _page(request, me, tenant, wanted, fields, status_of(e)[0], error=e)
        return RedirectResponse(f"/console/t/{tenant}/exports?asked={made.export_id}", 303)

    return await run_in_threadpool(make)


@router.post("/t/{tenant}/exports/{export_id}/cancel")
async def cancel(tenant: str, export_id: str, request: Request, me: Exporter) -> Response:
    """Cancel it, or remove its file."""
    await form(request, me)

    def end() -> Response:
        which = export_id_of(export_id)
        _worker(me).ended(cancel_export(me.store.database, tenant, which, by=me.principal))
        return RedirectResponse(f"/console/t/{tenant}/exports", 303)

    return await run_in_threadpool(end)


@router.get("/t/{tenant}/exports/{export_id}/file")
def file(tenant: str, export_id: str, request: Request, me: Exporter) -> Response:
    """Its file; a read like every other."""
    found = get_export(me.store.database, tenant, export_id_of(export_id), by=me.principal)
    path = ready_file(_worker(me), found)
    limits: CallerLimits = me.state.limits
    slot = limits.feed(me.principal)
    try:
        route = "GET /console/t/{tenant}/exports/{export_id}/file"
        read = me.read(tenant, route, {"export_id": export_id}, action=ReadAction.EXPORT)
        read.begin()
    except BaseException:
        slot.leave()
        raise
    return Download(path, found, read, slot)


def _worker(me: Visit) -> ExportWorker:
    worker: ExportWorker = me.state.exports
    return worker


def _wish(me: Visit, tenant: str, wanted: Asked, fields: Mapping[str, str]) -> Wish:
    """What a form asks for.

    Raises:
        InputError: of what cannot be chosen, or a reason that is none.
    """
    assert wanted.wanted is not None
    try:
        form, order = FileFormat(fields.get("format", "")), Order(fields.get("order", ""))
    except ValueError as e:
        raise InputError("choose one of the formats, and one of the orders") from e
    if form not in _FORMATS:
        raise InputError("choose one of the formats")
    reason = fields.get("reason", "").strip() or me.reason
    if reason is not None and len(reason) > REASON_CHARACTERS_MAX:
        raise InputError(f"the reason is longer than {REASON_CHARACTERS_MAX} characters")
    return Wish(wanted.wanted, form, order, form is FileFormat.CSV and "bom" in fields, reason)


# --- the page -------------------------------------------------------------------------------------------


def _page(
    request: Request,
    me: Visit,
    tenant: str,
    wanted: Asked,
    filled: Mapping[str, str],
    status: int,
    *,
    error: EventStoreError | None = None,
    shown: dict[str, Any] | None = None,
    asked_id: str = "",
) -> Response:
    return render(
        request,
        me,
        "exports.html",
        status,
        wanted=wanted,
        filled=filled,
        labels=_LABELS,
        more=_MORE,
        more_open=any(name in wanted.typed for name in _MORE),
        formats=_FORMATS,
        error=error,
        kept=duration(parse_duration_us(me.store.settings.exports_kept)),
        asked=asked_id,
        **(shown or _list(me, tenant, "")),
    )


def _list(me: Visit, tenant: str, before: str) -> dict[str, Any]:
    store = me.store
    exports, following = list_exports(
        store.database, tenant, by=me.principal, before=_cursor(before), limit=_PAGE
    )
    now_us = store.database.now_us()
    lines = [_line(export, now_us) for export in exports]
    return {
        "lines": lines,
        "base": f"/console/t/{tenant}/exports",
        "before": before,
        "following": following,
        "going_on": sum(line.export.state.is_going_on for line in lines),
        "everybodys": me.principal.role is Role.ADMINISTRATOR,
    }


def _cursor(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError as e:
        raise InputError("before: is of no page", hint="begin with the first page") from e


def _line(export: BackgroundExport, now_us: int) -> Line:
    left = None
    if export.state is ExportState.READY and export.expires_us is not None:
        left = _left(export.expires_us - now_us)
    progress = export.progress
    return Line(
        export,
        _PILLS[export.state],
        _SHOWN[export.form],
        list(_conditions(export).items()),
        None if progress is None else int(progress * 100),
        left,
        sum(last - first + 1 for first, last in export.gone),
    )


def _conditions(export: BackgroundExport) -> dict[str, str]:
    """What was asked for, by the names that the form has."""
    given = {}
    for name, value in filter_json(export.wanted).items():
        known = name.removesuffix("_us")
        shown = to_iso(value)[:19].replace("T", " ") if name.endswith("_us") else str(value)
        given[_LABELS.get(known, known)] = shown
    return given


def _left(us: int) -> str:
    """How long a file stays, as long as people plan: in days, then hours, then minutes."""
    for unit_us in (24 * _HOUR_US, _HOUR_US, _HOUR_US // 60):
        if us >= unit_us:
            return duration(us // unit_us * unit_us)
    return "less than a minute"
