"""The routes of proof: signed checkpoints of a log, that one goes on from another, and that an event is in
one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from eventstore.api.access import allow
from eventstore.api.conditional import NOT_MODIFIED, IfNoneMatch, etag_of, is_match, not_modified
from eventstore.api.governed import answering, encoded
from eventstore.api.limits import meter_of
from eventstore.api.parameters import known_parameters
from eventstore.api.reads import Read, reading
from eventstore.api.schemas import answers
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_iso
from eventstore.errors import InputError
from eventstore.integrity.checkpoints import (
    SignedCheckpoint,
    get_checkpoint,
    list_checkpoints,
    log_verifier_keys,
)
from eventstore.integrity.tree import Tree
from eventstore.model.access import Permission
from eventstore.model.query import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from eventstore.app import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/tenants/{tenant}", dependencies=[Depends(known_parameters)])

CHECKPOINTS_MAX = 1000
_SIZE_MAX = 2**62
_Size = Annotated[int, Query(ge=1, lt=_SIZE_MAX)]


class CheckpointView(msgspec.Struct, forbid_unknown_fields=True):
    """A signed checkpoint: the log had `size` events, and its Merkle tree that root (hex). `note` is what was
    signed, with its signature; `keys` are the keys by which it is verified, as notes have them."""

    size: int
    root: str
    made_at: str
    note: str
    keys: list[str]


class CheckpointPage(msgspec.Struct, forbid_unknown_fields=True):
    """Checkpoints, the largest first. `next_cursor` null: there are no more."""

    checkpoints: list[CheckpointView]
    next_cursor: str | None


class ConsistencyView(msgspec.Struct, forbid_unknown_fields=True):
    """The proof (RFC 6962, 2.1.2; hashes as hex) that the log of `second` events begins with that of `first`;
    the roots are those that the tree has now."""

    first: int
    second: int
    first_root: str
    second_root: str
    proof: list[str]


class EventProofView(msgspec.Struct, forbid_unknown_fields=True):
    """The proof that an event is in the log that a checkpoint signs: from its `hash`, by the hashes in `path`
    (RFC 6962, 2.1.1; from the leaf upwards, as hex), to the root in `checkpoint`."""

    seq: int
    hash: str
    prev_hash: str
    size: int
    path: list[str]
    checkpoint: str


_KEY = "eventstore/019a48f1-d680-7000-8000-0368969ec29a/acme+5f1c0c2e+AT1AF8PoQ4lakrcKp00bfryY…"
_NOTE = (
    "eventstore/019a48f1-d680-7000-8000-0368969ec29a/acme\n1200\n"
    "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=\n\n"
    "— eventstore/019a48f1-d680-7000-8000-0368969ec29a/acme Xxw…\n"
)
_ROOT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_VIEW: dict[str, Any] = {
    "size": 1200,
    "root": _ROOT,
    "made_at": "2026-03-01T12:00:00.000000Z",
    "note": _NOTE,
    "keys": [_KEY],
}


def _view(found: SignedCheckpoint, keys: list[str]) -> dict[str, Any]:
    return {
        "size": found.size,
        "root": found.root.hex(),
        "made_at": to_iso(found.made_us),
        "note": found.note,
        "keys": keys,
    }


def _require(store: Store, tenant: str) -> None:
    """Raises TenantNotFoundError: there is no such tenant."""
    with store.database.transaction() as conn:
        get_tenant(conn, tenant)


@router.get(
    "/checkpoint",
    dependencies=[allow(Permission.READ)],
    summary="The latest signed checkpoint of a log",
    responses={
        **answers(CheckpointView, example=_VIEW, media={"text/plain": ("The note alone", _NOTE)}),
        **NOT_MODIFIED,
    },
)
async def checkpoint(
    tenant: str,
    request: Request,
    size: Annotated[int | None, Query(ge=1, lt=_SIZE_MAX, description="That of so many events")] = None,
    note: Annotated[bool, Query(description="The note alone, as text/plain")] = False,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """`note=true` gives exactly what somebody who keeps checkpoints wants in a file. It changes when the next
    one is signed."""

    def read() -> Response:
        store: Store = request.app.state.store
        _require(store, tenant)
        found = get_checkpoint(store.database, tenant, size)
        etag = etag_of(found.root.hex())
        if is_match(if_none_match, etag):
            return not_modified(etag)
        if note:
            answer = Response(found.note, media_type="text/plain; charset=utf-8")
        else:
            answer = encoded(_view(found, log_verifier_keys(store.database, tenant)))
        answer.headers["ETag"] = etag
        return answer

    return await run_in_threadpool(read)


@router.get(
    "/checkpoints",
    dependencies=[allow(Permission.READ)],
    summary="A log's signed checkpoints, a page at a time",
    responses=answers(CheckpointPage, example={"checkpoints": [_VIEW], "next_cursor": None}),
)
async def checkpoints(
    tenant: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=CHECKPOINTS_MAX)] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """The largest first."""
    below = None if cursor is None else decode_cursor(cursor)

    def read(store: Store) -> dict[str, Any]:
        _require(store, tenant)
        found = list_checkpoints(store.database, tenant, below=below, limit=limit + 1)
        keys = log_verifier_keys(store.database, tenant)
        following = encode_cursor(found[limit - 1].size) if len(found) > limit else None
        return {"checkpoints": [_view(one, keys) for one in found[:limit]], "next_cursor": following}

    return await answering(request, read)


@router.get(
    "/consistency",
    dependencies=[allow(Permission.READ)],
    summary="The proof that a log goes on from an earlier state",
    responses=answers(
        ConsistencyView,
        example={
            "first": 1024,
            "second": 1200,
            "first_root": _ROOT,
            "second_root": _ROOT,
            "proof": [_ROOT],
        },
    ),
)
async def consistency(tenant: str, request: Request, first: _Size, second: _Size) -> Response:
    """Who keeps two checkpoints compares them with it, and needs to trust nobody. `second` has to be the size
    of a checkpoint; `first` may be any."""

    def read(store: Store) -> dict[str, Any]:
        _require(store, tenant)
        if first > second:
            raise InputError(f"first is {first}, and second {second}: the smaller one comes first")
        later = get_checkpoint(store.database, tenant, second)
        tree = Tree(store.database, store.tiers.metered(meter_of(request)))
        proof = tree.consistency(tenant, first, second)
        return {
            "first": first,
            "second": second,
            "first_root": tree.root(tenant, first).hex(),
            "second_root": later.root.hex(),
            "proof": [one.hex() for one in proof],
        }

    return await answering(request, read)


@router.get(
    "/events/{seq}/proof",
    dependencies=[allow(Permission.READ)],
    summary="The proof that an event is in the log that was signed",
    responses=answers(
        EventProofView,
        example={
            "seq": 17,
            "hash": _ROOT,
            "prev_hash": _ROOT,
            "size": 1200,
            "path": [_ROOT],
            "checkpoint": _NOTE,
        },
    ),
)
async def event_proof(
    tenant: str,
    seq: Annotated[int, Path(ge=1, lt=_SIZE_MAX)],
    request: Request,
    read: Annotated[Read, reading()],
    size: Annotated[
        int | None, Query(ge=1, lt=_SIZE_MAX, description="Of which checkpoint; default the latest")
    ] = None,
) -> Response:
    """A few hundred bytes that lead from the event to what was signed. An event that came after the latest
    checkpoint is provable with the next one."""

    def answer() -> Response:
        store: Store = request.app.state.store
        with read:
            page = read.reader.event(tenant, seq=seq)
            event = page.events.to_pylist()[0]
            signed = get_checkpoint(store.database, tenant, size)
            if seq > signed.size:
                raise InputError(
                    f"event {seq} came after the checkpoint of {signed.size} events",
                    hint="it is provable with the next one; eventstore checkpoint makes one at once",
                )
            tree = Tree(store.database, store.tiers.metered(read.meter))
            (path,) = tree.prove(tenant, [seq], signed.size, root=signed.root)
            read.covers(page.coverage, events=1)
            return encoded(
                {
                    "seq": seq,
                    "hash": event["hash"].hex(),
                    "prev_hash": tree.hash_before(tenant, seq).hex(),
                    "size": signed.size,
                    "path": [one.hex() for one in path],
                    "checkpoint": signed.note,
                }
            )

    return await run_in_threadpool(answer)
