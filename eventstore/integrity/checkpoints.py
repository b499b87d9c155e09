"""Signed checkpoints of each log: how many events it had, and the root of their Merkle tree.

A checkpoint is a note (`model.note`) under the key that signs certificates. Before one is signed, what was
signed last is compared with the log as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.tables import deployment
from eventstore.db.tables_tree import checkpoints
from eventstore.errors import CheckpointNotFoundError, IntegrityError, StateError
from eventstore.governance.certificates import refuse_strange_key, remember_key, trusted_keys
from eventstore.governance.signing import SigningKey, VerifyKey, verify_note
from eventstore.integrity.merkle import is_consistent
from eventstore.integrity.tree import Progress, Tree
from eventstore.model.note import Checkpoint, origin_of, parse_note, verifier_key
from eventstore.query.tiers import Tiers

__all__ = [
    "SignedCheckpoint",
    "get_checkpoint",
    "latest",
    "list_checkpoints",
    "log_origin",
    "log_verifier_keys",
    "make_checkpoint",
    "of_row",
    "read_checkpoint",
]

_HINT = "history was changed after it was signed: compare with a backup, and with who keeps its checkpoints"


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint as it was signed: `note` is its text with the signature, `made_us` when, by the database's
    clock; `last_hash` is the hash of the event `size`."""

    tenant_id: str
    size: int
    root: bytes
    last_hash: bytes
    note: str
    made_us: int


# --- what was signed --------------------------------------------------------------------------------------


def latest(database: Database, tenant_id: str) -> SignedCheckpoint | None:
    """A tenant's largest checkpoint; None: it has none. Its signature has not been looked at."""
    found = list_checkpoints(database, tenant_id, limit=1)
    return found[0] if found else None


def list_checkpoints(
    database: Database, tenant_id: str, *, below: int | None = None, limit: int | None = None
) -> list[SignedCheckpoint]:
    """A tenant's checkpoints, the largest first; those of fewer than `below` events."""
    query = sa.select(checkpoints).where(checkpoints.c.tenant_id == tenant_id)
    if below is not None:
        query = query.where(checkpoints.c.size < below)
    with database.app.transaction(tenant_id) as conn:
        return [of_row(row) for row in conn.execute(query.order_by(checkpoints.c.size.desc()).limit(limit))]


def get_checkpoint(database: Database, tenant_id: str, size: int | None = None) -> SignedCheckpoint:
    """The checkpoint of exactly `size` events; None: the largest.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    found = (
        list_checkpoints(database, tenant_id, limit=1)
        if size is None
        else list_checkpoints(database, tenant_id, below=size + 1, limit=1)
    )
    if not found or (size is not None and found[0].size != size):
        what = "no checkpoint" if size is None else f"no checkpoint of {size} events"
        raise CheckpointNotFoundError(
            f"{tenant_id!r} has {what}", hint="eventstore checkpoint makes one; the scheduler does regularly"
        )
    return found[0]


def of_row(row: sa.Row[tuple[object, ...]]) -> SignedCheckpoint:
    """A row of `checkpoints`."""
    return SignedCheckpoint(
        row.tenant_id, row.size, bytes(row.root), bytes(row.last_hash), row.note, row.made_us
    )


def log_origin(database: Database, tenant_id: str) -> str:
    """What the tenant's log is called in its checkpoints."""
    with database.transaction() as conn:
        return origin_of(str(conn.execute(sa.select(deployment.c.store_id)).scalar_one()), tenant_id)


def log_verifier_keys(database: Database, tenant_id: str) -> list[str]:
    """The keys by which the tenant's checkpoints can be verified, as those who keep them need them."""
    origin = log_origin(database, tenant_id)
    with database.transaction() as conn:
        return [verifier_key(origin, key.raw) for key in trusted_keys(conn).values()]


def read_checkpoint(document: str, origin: str, keys: Sequence[VerifyKey]) -> Checkpoint:
    """A checkpoint from its note, once its signature was found right and it is of that log.

    Raises:
        InputError: it is no note, or no checkpoint.
        IntegrityError: it is not signed by one of the keys, or is of another log.
    """
    found = Checkpoint.parse(verify_note(parse_note(document), origin, keys))
    if found.origin != origin:
        raise IntegrityError(f"it is a checkpoint of {found.origin!r}, not of {origin!r}")
    return found


# --- making -----------------------------------------------------------------------------------------------


def make_checkpoint(
    database: Database,
    tiers: Tiers,
    key: SigningKey,
    tenant_id: str,
    *,
    progress: Progress | None = None,
    before: Callable[[Tree, int], None] | None = None,
) -> SignedCheckpoint | None:
    """Sign the log as it is now and store that; the last checkpoint, if the log has not grown since. None:
    the log is empty.

    Only `publishing.checkpoint_and_publish` calls this, no two of the same log at once. `before` is called
    when the tree has grown, with the size that is to be signed, and may raise: then nothing is signed.

    Raises:
        IntegrityError: what was signed is not the beginning of the log as it is now. Nothing is signed; the
            message says up to where the log is still what was signed.
        SetupError: this host's key is none of the deployment's.
        TenantNotFoundError, TargetUnavailableError
    """
    tree = Tree(database, tiers)
    # In this order: what somebody else signs meanwhile is not larger than the log is then.
    last = latest(database, tenant_id)
    state = tiers.state(tenant_id)
    origin = log_origin(database, tenant_id)
    if last is not None:
        _check_signed(database, origin, last)
        if state.last_seq < last.size:
            raise IntegrityError(
                f"the log of {tenant_id!r} ends at seq {state.last_seq}, and {last.size} events were signed",
                hint=_HINT,
            )
    if state.last_seq == 0:
        return None
    tree.grow(tenant_id, state.last_seq, progress=progress)
    if last is not None:
        _check_still_holds(database, tree, last)
    if before is not None:
        before(tree, state.last_seq)
    if last is not None and last.size == state.last_seq:
        return last
    if tree.event_hash(tenant_id, state.last_seq) not in (None, state.last_hash):
        raise IntegrityError(
            f"the event {state.last_seq} of {tenant_id!r} is not the one that its log ends with",
            hint="run eventstore verify",
        )
    root = tree.root(tenant_id, state.last_seq)
    if last is not None:
        proof = tree.consistency(tenant_id, last.size, state.last_seq)
        if not is_consistent(last.size, state.last_seq, last.root, root, proof):
            raise IntegrityError(
                f"the tree of {tenant_id!r} does not go on from its checkpoint of {last.size} events",
                hint=_HINT,
            )
    note = key.sign_note(origin, Checkpoint(origin, state.last_seq, root).text())
    return _store(database, key, tenant_id, state.last_seq, root, state.last_hash, str(note))


def _store(
    database: Database,
    key: SigningKey,
    tenant_id: str,
    size: int,
    root: bytes,
    last_hash: bytes,
    note: str,
) -> SignedCheckpoint:
    with database.transaction() as conn:
        refuse_strange_key(conn, key.verify_key)
        remember_key(conn, key.verify_key)
        made_us = to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
        conn.execute(
            insert(checkpoints)
            .values(
                tenant_id=tenant_id, size=size, root=root, last_hash=last_hash, note=note, made_us=made_us
            )
            .on_conflict_do_nothing()
        )
        query = sa.select(checkpoints).where(checkpoints.c.tenant_id == tenant_id, checkpoints.c.size == size)
        stored = of_row(conn.execute(query).one())
    # Dying before the commit leaves nothing signed that anybody has seen.
    if stored.root != root:
        raise IntegrityError(
            f"another root of {size} events of {tenant_id!r} was signed at the same time", hint=_HINT
        )
    return stored


def _check_signed(database: Database, origin: str, stored: SignedCheckpoint) -> None:
    """See that a stored checkpoint is what was signed."""
    with database.transaction() as conn:
        keys = list(trusted_keys(conn).values())
    signed = read_checkpoint(stored.note, origin, keys)
    if (signed.size, signed.root) != (stored.size, stored.root):
        raise IntegrityError(
            f"the checkpoint of {stored.size} events of {stored.tenant_id!r} was altered in the database",
            hint=_HINT,
        )


def _check_still_holds(database: Database, tree: Tree, last: SignedCheckpoint) -> None:
    """See that the log still begins with what was signed last: the tree by its root, the events by the hash
    of the last of them, which the chain binds to all before it."""
    if _difference(tree, last) is None:
        return
    # From where on? Whatever holds at a size holds at all smaller ones.
    held = 0
    sizes = list_checkpoints(database, last.tenant_id)[::-1]
    low, high = 0, len(sizes) - 1
    while low <= high:
        middle = (low + high) // 2
        if _difference(tree, sizes[middle]) is None:
            held, low = sizes[middle].size, middle + 1
        else:
            high = middle - 1
    raise IntegrityError(
        f"the log of {last.tenant_id!r} is not what was signed: {_difference(tree, last)}; "
        + (f"up to seq {held} it still is, not from seq {held + 1} on" if held else "no checkpoint holds"),
        hint=_HINT,
    )


def _difference(tree: Tree, signed: SignedCheckpoint) -> str | None:
    """In what a log's beginning differs from a checkpoint; None: in nothing."""
    try:
        if tree.root(signed.tenant_id, signed.size) != signed.root:
            return f"the tree of {signed.size} events has another root"
        if tree.event_hash(signed.tenant_id, signed.size) not in (None, signed.last_hash):
            return f"event {signed.size} has another hash"
    except (IntegrityError, StateError) as e:
        return e.message
    return None
