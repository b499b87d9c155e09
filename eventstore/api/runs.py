"""The routes of runs: what retention, expiry and scrubs were to do, did, and are doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.parameters import known_parameters
from eventstore.api.run_example import ENTRIES_EXAMPLE, RUN_EXAMPLE, RUNS_EXAMPLE
from eventstore.api.schemas import answers
from eventstore.api.shapes import Time, Uuid
from eventstore.errors import InputError
from eventstore.model.access import Permission
from eventstore.model.run import RunKind, RunStatus
from eventstore.query.run_view import EntriesPage, RunSummary
from eventstore.query.runs import ENTRIES_MAX, RUNS_MAX, list_runs, read_entries, read_run

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/runs", dependencies=[allow(Permission.OPERATE), Depends(known_parameters)])

_ENCODER = msgspec.json.Encoder()


_Part = dict[str, Any]


class RunShown(msgspec.Struct, forbid_unknown_fields=True):
    """A run. What is in its parts is written in docs/reference/api.md; wherever something is not known,
    `{"answer": "unknown", "why": …}` stands in its place."""

    run_id: Uuid
    kind: RunKind
    requested_by: str
    now: Time
    started_at: Time
    planned: _Part
    happened: _Part
    degraded: _Part
    outcome: _Part
    longest_window: _Part
    entries: _Part
    not_understood: _Part


class RunsPage(msgspec.Struct):
    """Runs, newest first. `next_cursor` null: there are no more."""

    runs: list[RunSummary]
    next_cursor: str | None


def _json(value: Any) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")


def _run_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as e:
        raise InputError(f"{text!r} is not the id of a run", hint="ids are UUIDs, as in /v1/runs") from e


@router.get(
    "",
    summary="Runs, newest first, a page at a time",
    responses=answers(RunsPage, 404, example=RUNS_EXAMPLE),
)
async def runs(
    request: Request,
    status: RunStatus | None = None,
    kind: RunKind | None = None,
    tenant: Annotated[str | None, Query(description="Only runs that had to do with it")] = None,
    limit: Annotated[int, Query(ge=1, le=RUNS_MAX)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """A run that has not ended is listed with what it has come to so far."""
    store: Store = request.app.state.store

    def read() -> Response:
        found, following = list_runs(
            store.database, limit=limit, cursor=cursor, status=status, kind=kind, tenant=tenant
        )
        return _json({"runs": found, "next_cursor": following})

    return await run_in_threadpool(read)


@router.get(
    "/{run_id}",
    summary="One run: planned, happened, degraded, outcome",
    responses=answers(RunShown, 404, example=RUN_EXAMPLE),
)
async def one_run(run_id: str, request: Request) -> Response:
    """All of one moment, also while the run goes on. Unknown is `{"answer": "unknown", "why": …}`."""
    store: Store = request.app.state.store
    which = _run_id(run_id)
    return await run_in_threadpool(lambda: _json(read_run(store.database, which)))


@router.get(
    "/{run_id}/entries",
    summary="A run's journal in order",
    responses=answers(EntriesPage, 404, example=ENTRIES_EXAMPLE),
)
async def entries(
    run_id: str,
    request: Request,
    after: Annotated[int, Query(ge=0, lt=2**63, description="`next_after` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=ENTRIES_MAX)] = 200,
) -> Response:
    """To follow a run: ask again with `next_after` until it has `ended` and nothing more comes."""
    store: Store = request.app.state.store
    which = _run_id(run_id)
    return await run_in_threadpool(
        lambda: _json(read_entries(store.database, which, after=after, limit=limit))
    )
