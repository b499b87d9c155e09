"""The routes of exports that are made in the background: asked for, looked at, downloaded, cancelled."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from eventstore.access.limits import FeedSlot
from eventstore.api.access import allow, principal_of
from eventstore.api.conditional import NOT_MODIFIED, IfNoneMatch, is_match, not_modified
from eventstore.api.events import Wanted
from eventstore.api.export_worker import ExportWorker
from eventstore.api.governed import encoded
from eventstore.api.limits import feed_slot
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import answers
from eventstore.api.shapes import Time, Uuid
from eventstore.app import Store
from eventstore.clock import to_iso
from eventstore.errors import ExportNotFoundError, InputError, RetryError, StateError
from eventstore.governance.exports import (
    EXPORTS_LISTED_MAX,
    ExportLimits,
    Wish,
    ask_export,
    cancel_export,
    get_export,
    list_exports,
)
from eventstore.model.access import Permission, Principal
from eventstore.model.export import BackgroundExport, ExportState, FileFormat, filter_json
from eventstore.model.query import Order

__all__ = ["Download", "ask", "export_id_of", "limits_of", "ready_file", "router"]

router = APIRouter(
    prefix="/v1/tenants/{tenant}/exports",
    dependencies=[allow(Permission.EXPORT), Depends(known_parameters)],
)

# Not text/csv or the like: such answers are compressed on their way, which leaves no length to tell and no
# range to ask for.
_MEDIA_TYPE = "application/octet-stream"
_RETRY_S = 5


class SeqSpan(msgspec.Struct, forbid_unknown_fields=True):
    """Seqs, first and last."""

    first_seq: int
    last_seq: int


class ExportShown(msgspec.Struct, forbid_unknown_fields=True):
    """An export. What is null is not known yet, or was not given. `events` and `size_bytes` grow while it is
    made; `progress` is how much of the log that it covers was looked at, from 0 to 1. `expired` are the seqs
    that it should hold and that were destroyed before."""

    export_id: Uuid
    state: ExportState
    format: FileFormat
    order: Order
    filter: dict[str, Any]
    reason: str | None
    asked_by: str
    asked_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time | None
    events: int
    size_bytes: int
    progress: float | None
    through_seq: int | None
    expired: list[SeqSpan]
    error: str | None
    file_name: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None


class ExportPage(msgspec.Struct, forbid_unknown_fields=True):
    """Exports, newest first. `next_cursor` null: there are no more."""

    exports: list[ExportShown]
    next_cursor: str | None


_EXAMPLE: dict[str, Any] = {
    "export_id": "019a48f1-d680-7000-8000-0368969ec29a",
    "state": "ready",
    "format": "csv",
    "order": "asc",
    "filter": {"entity_type": "contract", "recorded_from": "2026-01-01T00:00:00.000000Z"},
    "reason": "audit of the year",
    "asked_by": "key:compliance-0r8pn2yq4t",
    "asked_at": "2026-11-21T09:00:00.000000Z",
    "started_at": "2026-11-21T09:00:00.310554Z",
    "finished_at": "2026-11-21T09:00:04.120000Z",
    "expires_at": "2026-11-28T09:00:04.120000Z",
    "events": 450000,
    "size_bytes": 229500000,
    "progress": 1.0,
    "through_seq": 1250000,
    "expired": [],
    "error": None,
    "file_name": "acme-0368969ec29a.csv",
    "sha256": "fac4dad1d8da161fc7174574f3214101f3c62b8cfd0d37c3e6a7999bc2bffb87",
}
_ASKED = _EXAMPLE | {
    "state": "waiting",
    "started_at": None,
    "finished_at": None,
    "expires_at": None,
    "events": 0,
    "size_bytes": 0,
    "progress": None,
    "through_seq": None,
    "sha256": None,
}


def _iso(us: int | None) -> str | None:
    return None if us is None else to_iso(us)


def _shown(export: BackgroundExport) -> ExportShown:
    conditions = {
        name.removesuffix("_us"): to_iso(value) if name.endswith("_us") else value
        for name, value in filter_json(export.wanted).items()
    }
    return ExportShown(
        export_id=str(export.export_id),
        state=export.state,
        format=export.form,
        order=export.order,
        filter=conditions,
        reason=export.reason,
        asked_by=export.asked_by,
        asked_at=to_iso(export.asked_us),
        started_at=_iso(export.started_us),
        finished_at=_iso(export.finished_us),
        expires_at=_iso(export.expires_us),
        events=export.events,
        size_bytes=export.size_bytes,
        progress=export.progress,
        through_seq=export.through_seq,
        expired=[SeqSpan(first, last) for first, last in export.gone],
        error=export.error,
        file_name=export.file_name,
        sha256=None if export.sha256 is None else export.sha256.hex(),
    )


def export_id_of(text: str) -> UUID:
    """The id in a path.

    Raises:
        ExportNotFoundError: no export can have it.
    """
    try:
        return UUID(text)
    except ValueError:
        raise ExportNotFoundError(f"there is no export {text!r}", hint="ids are UUIDs") from None


def limits_of(store: Store) -> ExportLimits:
    """How many exports may be going on at once."""
    settings = store.settings
    return ExportLimits(settings.exports_per_caller_max, settings.exports_per_tenant_max)


def ask(store: Store, worker: ExportWorker, tenant: str, wish: Wish, by: Principal) -> BackgroundExport:
    """Ask for an export, and let this process look for it at once.

    Raises:
        RateLimitedError, StateError, TenantClosedError, TenantNotFoundError
    """
    asked = ask_export(store.database, tenant, wish, by=by, limits=limits_of(store))
    worker.wake()
    return asked


@router.post(
    "",
    status_code=202,
    summary="Ask for an export that is made in the background",
    responses=answers(
        ExportShown,
        409,
        status=202,
        example=_ASKED,
        description="It waits to be made",
        headers={"Location": "Where it is looked at"},
    ),
)
async def ask_for(
    tenant: str,
    request: Request,
    wanted: Wanted,
    read: Annotated[Read, reading(ReadAction.EXPORT)],
    form: Annotated[FileFormat, Query(alias="format", description="What the file is")] = FileFormat.NDJSON,
    order: Order = Order.ASC,
    bom: Annotated[
        bool, Query(description="CSV begins with a byte order mark, by which Excel knows UTF-8")
    ] = False,
) -> Response:
    """Of one moment: when its making begins. The reason stands with it, and in the log of reads."""
    store: Store = request.app.state.store
    wish = Wish(wanted, form, order, bom, read.asked.reason)
    worker: ExportWorker = request.app.state.exports
    asked = await run_in_threadpool(ask, store, worker, tenant, wish, principal_of(request))
    answer = encoded(_shown(asked), 202)
    answer.headers["Location"] = f"/v1/tenants/{tenant}/exports/{asked.export_id}"
    return answer


@router.get(
    "",
    summary="Exports that are made in the background, newest first",
    responses=answers(ExportPage, example={"exports": [_EXAMPLE], "next_cursor": None}),
)
async def listed(
    tenant: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=EXPORTS_LISTED_MAX)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """The caller's own; for administrators, all of the tenant."""
    store: Store = request.app.state.store
    before = _decode_cursor(cursor)

    def read() -> Response:
        found, following = list_exports(
            store.database, tenant, by=principal_of(request), before=before, limit=limit
        )
        following_text = None if following is None else str(following)
        return encoded(ExportPage([_shown(export) for export in found], following_text))

    return await run_in_threadpool(read)


def _decode_cursor(text: str | None) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError as e:
        raise InputError(
            f"{text!r} is not a cursor", hint="take it from next_cursor of the page before"
        ) from e


@router.get("/{export_id}", summary="One export", responses=answers(ExportShown, example=_EXAMPLE))
async def one(tenant: str, export_id: str, request: Request) -> Response:
    """How far it is, and when it is gone."""
    store: Store = request.app.state.store
    which = export_id_of(export_id)
    return encoded(
        _shown(await run_in_threadpool(get_export, store.database, tenant, which, by=principal_of(request)))
    )


@router.delete(
    "/{export_id}",
    status_code=204,
    summary="Cancel an export, or remove its file",
    response_class=Response,
    responses={204: {"description": "It has ended"}},
)
async def cancel(tenant: str, export_id: str, request: Request) -> Response:
    """One that has ended already stays as it is."""
    store: Store = request.app.state.store
    worker: ExportWorker = request.app.state.exports
    which = export_id_of(export_id)
    ended = await run_in_threadpool(cancel_export, store.database, tenant, which, by=principal_of(request))
    await run_in_threadpool(worker.ended, ended)
    return Response(status_code=204)


@router.get(
    "/{export_id}/file",
    summary="Download an export",
    response_class=Response,
    responses=answers(
        None,
        409,
        media={_MEDIA_TYPE: ("The file", "seq,event_id,…")},
        description="The file, or with 206 a part of it",
        headers={
            "Content-Disposition": "A name for the file",
            "Repr-Digest": "The SHA-256 of the whole file, as RFC 9530 has it",
            "ETag": "The same, for ranges",
        },
    )
    | {
        206: {
            "description": "The part that was asked for",
            "content": {_MEDIA_TYPE: {"schema": {"type": "string"}, "example": "seq,eve"}},
        },
        416: {
            "description": "The range lies beyond the file",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "Range Not Satisfiable"}},
        },
    }
    | NOT_MODIFIED,
)
async def file(
    tenant: str,
    export_id: str,
    request: Request,
    read: Annotated[Read, reading(ReadAction.EXPORT)],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Whole, or with Range in parts. It is a read like every other, and written down as one."""
    store: Store = request.app.state.store
    worker: ExportWorker = request.app.state.exports
    which = export_id_of(export_id)
    found = await run_in_threadpool(get_export, store.database, tenant, which, by=principal_of(request))
    if found.state is ExportState.READY and is_match(if_none_match, Download.etag_of(found)):
        return not_modified(Download.etag_of(found))
    path = ready_file(worker, found)
    slot = feed_slot(request)
    try:
        await run_in_threadpool(read.begin)
    except BaseException:
        slot.leave()
        raise
    return Download(path, found, read, slot)


def ready_file(worker: ExportWorker, export: BackgroundExport) -> Path:
    """Where the file of an export lies that is ready.

    Raises:
        StateError: it is not ready, or no more.
        RetryError: it is on another machine.
    """
    match export.state:
        case ExportState.READY:
            pass
        case ExportState.EXPIRED:
            raise StateError("the file was removed, its time has come", hint="ask for the export again")
        case ExportState.FAILED | ExportState.CANCELLED:
            why = f": {export.error}" if export.error else ""
            raise StateError(f"the export is {export.state.value}{why}", hint="ask for it again")
        case _:
            raise StateError("the export is not ready yet", hint="look at it until its state is ready")
    path = worker.folder.path_of(export)
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        size_bytes = -1
    if size_bytes != export.size_bytes:
        raise RetryError(
            f"the file is not on this machine; {export.host} has made it",
            hint="API processes on several machines need one folder that they share: EVENTSTORE_EXPORTS_DIR",
            retry_after_s=_RETRY_S,
        )
    return path


class Download(FileResponse):
    """The file of an export. It counts as an open feed, and its end is written down."""

    def __init__(self, path: Path, export: BackgroundExport, read: Read, slot: FeedSlot) -> None:
        assert export.sha256 is not None
        digest = base64.b64encode(export.sha256).decode()
        super().__init__(
            path,
            headers={
                "ETag": self.etag_of(export),
                "Repr-Digest": f"sha-256=:{digest}:",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            },
            media_type=_MEDIA_TYPE,
            filename=export.file_name,
        )
        self._export, self._read, self._slot = export, read, slot

    @staticmethod
    def etag_of(export: BackgroundExport) -> str:
        return '"' + ("" if export.sha256 is None else export.sha256.hex()) + '"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: BaseException | None = None
        try:
            with self._slot:
                await super().__call__(scope, receive, send)
        except BaseException as e:
            error = e
            raise
        finally:
            self._read.covers(events=self._export.events)
            self._read.end(error)
