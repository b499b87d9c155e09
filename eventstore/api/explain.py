"""The route that explains: why a tenant, a window or an event is where it is, and what comes next."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from eventstore.api.access import allow
from eventstore.api.governed import answering
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, ReadAction, reading
from eventstore.api.schemas import answers
from eventstore.api.shapes import Time
from eventstore.clock import parse_time_us
from eventstore.errors import InputError
from eventstore.model.access import Permission
from eventstore.query.explain import explain_event, explain_tenant, explain_window

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])


class NextStep(msgspec.Struct, forbid_unknown_fields=True):
    """What happens next. `due`: its time has come. `target` null: it is about no target."""

    what: str
    at: Time
    due: bool
    target: str | None


class Blocker(msgspec.Struct, forbid_unknown_fields=True):
    """What is in the way of a step."""

    kind: str
    blocks: str
    message: str


class ExplanationView(msgspec.Struct, forbid_unknown_fields=True):
    """Where something is, why, and what comes. `changes`: what policies in their grace time will do to it."""

    subject: str
    place: str
    because: list[str]
    next: list[NextStep]
    blocked_by: list[Blocker]
    changes: list[str]
    in_words: str


_VIEW = {
    "subject": "the window 2025-11-01 of acme",
    "place": "hot",
    "because": ["the policy keeps it hot for 90d after its end"],
    "next": [
        {"what": "archive", "at": "2026-03-01T00:00:00.000000Z", "due": False, "target": "archive"},
    ],
    "blocked_by": [],
    "changes": [],
    "in_words": "the window 2025-11-01 of acme: hot\nWhy: …",
}


@router.get(
    "/explain",
    dependencies=[allow(Permission.EXPLAIN)],
    summary="Why something is where it is, what comes next, and what is in the way",
    responses=answers(ExplanationView, example=_VIEW),
)
async def explain(
    tenant: str,
    request: Request,
    read: Annotated[Read, reading(ReadAction.SEARCH)],
    window: Annotated[str | None, Query(description="A time in the window that is meant, RFC 3339")] = None,
    seq: Annotated[int | None, Query(ge=1, lt=10**18, description="The event of this seq")] = None,
    event_id: Annotated[str | None, Query(description="The event of this id")] = None,
) -> Response:
    """One of the three, or none of them: then the whole tenant is explained."""
    if sum(given is not None for given in (window, seq, event_id)) > 1:
        raise InputError("one thing at a time", hint="give window, seq or event_id, or none of them")
    at_us = None if window is None else parse_time_us(window.replace(" ", "+") if "T" in window else window)
    which = None if event_id is None else _uuid(event_id)

    def find(store: Store) -> dict[str, Any]:
        now_us, names = store.database.now_us(), store.targets.names
        with read:
            if at_us is not None:
                found = explain_window(
                    store.database, tenant, at_us, now_us=now_us, known_targets=names, reader=read.reader
                )
            elif seq is not None or which is not None:
                found = explain_event(
                    store.database,
                    read.reader,
                    tenant,
                    now_us=now_us,
                    known_targets=names,
                    seq=seq,
                    event_id=which,
                )
            else:
                found = explain_tenant(store.database, tenant, now_us=now_us, known_targets=names)
        return {**found.as_json(), "in_words": found.in_words()}

    return await answering(request, find)


def _uuid(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError as e:
        raise InputError(f"{text!r} is no event_id", hint="an event_id is a UUID") from e
