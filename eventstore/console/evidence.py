"""What can be said and proven of one event: its place in the chain, where it lies, what holds it, its proof.

Everything is computed when it is asked for, from what the tiers hold now: the page says what was found, not
what was once noted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eventstore.app import Store
from eventstore.catalog.windows import list_segments
from eventstore.errors import EventStoreError, IntegrityError, RateLimitedError
from eventstore.governance.certificates import StoredCertificate, get_certificate, trusted_keys
from eventstore.governance.holds import holds_in_force
from eventstore.governance.signing import verify
from eventstore.integrity.checkpoints import SignedCheckpoint, latest, log_origin, read_checkpoint
from eventstore.integrity.merkle import leaf_hash, root_from_inclusion
from eventstore.integrity.tree import Tree
from eventstore.model.event import TEXT_FIELDS, Event, canonical_bytes, chain_hash, chain_start
from eventstore.model.explain import Explanation
from eventstore.model.hold import Hold
from eventstore.model.query import EventFilter, Order
from eventstore.model.segment import Segment
from eventstore.query.coverage import Coverage, Meter
from eventstore.query.explain import explain_window
from eventstore.query.life import merge_coverage
from eventstore.query.places import Place, places_of
from eventstore.query.reader import LogReader

__all__ = [
    "Found",
    "Link",
    "Proof",
    "Standing",
    "certificate_of",
    "find_event",
    "link_of",
    "neighbours",
    "proof_of",
    "standing_of",
]


@dataclass(frozen=True, slots=True)
class Found:
    """An event, and the one before it as far as that can be read. `expired_no` is the certificate under which
    it was destroyed; there is no event then. `last_seq` is where the log ends."""

    event: Event | None
    before: Event | None
    last_seq: int
    expired_no: int | None
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Link:
    """An event's place in the chain, computed anew. `previous` None: what it chains onto cannot be read now;
    `matches` is None then. `onto` says what `previous` is of."""

    previous: bytes | None
    onto: str
    canonical_size: int
    canonical_sha256: bytes
    computed: bytes | None
    hash: bytes

    @property
    def matches(self) -> bool | None:
        return None if self.computed is None else self.computed == self.hash


@dataclass(frozen=True, slots=True)
class Proof:
    """The proof that an event is in the log that a checkpoint signs. `problem` None: it holds. `checkpoint`
    None: there is none yet; `covers` False: it was made before the event."""

    checkpoint: SignedCheckpoint | None
    covers: bool
    leaf: bytes
    path: tuple[bytes, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an event lies, and what is about to happen to it. None: not for this visitor to see."""

    place: Place
    segment: Segment | None
    holds: tuple[Hold, ...] | None
    explained: Explanation | None


def find_event(reader: LogReader, tenant_id: str, seq: int) -> Found:
    """An event and the one before it, in one look.

    Raises:
        ArchiveDamageError, TargetUnavailableError: the event exists, and cannot be read now.
        RateLimitedError, TenantNotFoundError
    """
    wanted = EventFilter(seq_from=max(1, seq - 1), seq_to=seq)
    page = reader.page(tenant_id, wanted, order=Order.ASC, limit=2, partial=True)
    found = {event.seq: event for event in _events(page.events)}
    expired_no = next((number for a, b, number in page.coverage.expired if a <= seq <= b), None)
    last_seq = reader.last_seq(tenant_id)
    if seq not in found and expired_no is None and seq <= last_seq:
        reader.event(tenant_id, seq=seq)  # says why it cannot be read
    return Found(found.get(seq), found.get(seq - 1), last_seq, expired_no, page.coverage)


def neighbours(
    reader: LogReader, tenant_id: str, event: Event, coverage: Coverage
) -> tuple[int | None, int | None]:
    """The seqs of the events of the same entity before and after an event. None: there is none."""
    seqs: list[int | None] = []
    for order in (Order.DESC, Order.ASC):
        wanted = EventFilter(entity_type=event.entity_type, entity_id=event.entity_id)
        page = reader.page(tenant_id, wanted, order=order, after=event.seq, limit=1, partial=True)
        merge_coverage(coverage, page.coverage)
        seqs.append(page.events.column("seq")[0].as_py() if page.events.num_rows else None)
    return seqs[0], seqs[1]


def link_of(store: Store, tenant_id: str, found: Found) -> Link:
    """The event's place in the chain, from its canonical bytes and what comes before it."""
    event = found.event
    assert event is not None
    previous, onto = None, f"the event #{event.seq - 1:,}, which cannot be read now"
    if event.seq == 1:
        previous, onto = chain_start(tenant_id), "the start of this tenant's chain"
    elif found.before is not None:
        previous, onto = found.before.hash, f"the event #{event.seq - 1:,}"
    else:
        number = next((n for a, b, n in found.coverage.expired if a <= event.seq - 1 <= b), None)
        if number is not None:
            stored, _ = certificate_of(store, tenant_id, number)
            previous, onto = stored.certificate.hash_after, f"what certificate {number} stands for"
    canonical = canonical_bytes(event)
    return Link(
        previous,
        onto,
        len(canonical),
        hashlib.sha256(canonical).digest(),
        None if previous is None else chain_hash(previous, canonical),
        event.hash,
    )


def certificate_of(store: Store, tenant_id: str, number: int) -> tuple[StoredCertificate, str | None]:
    """A certificate, and what is wrong with its signatures (None: nothing).

    Raises:
        CertificateNotFoundError, IntegrityError: it cannot be read.
    """
    with store.database.transaction() as conn:
        stored, keys = get_certificate(conn, tenant_id, number), trusted_keys(conn)
    try:
        verify(stored.envelope, keys)
    except IntegrityError as e:
        return stored, e.message
    return stored, None


def standing_of(store: Store, tenant_id: str, event: Event, *, with_holds: bool, with_plan: bool) -> Standing:
    """Where an event lies now; the holds that cover it, and what comes next, for whom may see them. The
    window's other events, for which it may be held too, are not read."""
    (place,) = places_of(store.database, tenant_id, [event.recorded_at_us])
    segment, holds, explained = None, None, None
    with store.database.transaction() as conn:
        if place.tier == "archive":
            segments = list_segments(conn, tenant_id, seq_from=event.seq, seq_to=event.seq)
            segment = segments[0] if segments else None
        if with_holds:
            holds = tuple(hold for hold in holds_in_force(conn, tenant_id) if _covers(hold, event))
    if with_plan:
        explained = explain_window(
            store.database,
            tenant_id,
            event.recorded_at_us,
            now_us=store.database.now_us(),
            known_targets=store.targets.names,
        )
    return Standing(place, segment, holds, explained)


def _covers(hold: Hold, event: Event) -> bool:
    scope = hold.scope
    is_named = not scope.entities or (event.entity_type, event.entity_id) in scope.entities
    return is_named and scope.touches(event.recorded_at_us, event.recorded_at_us)


def proof_of(store: Store, tenant_id: str, event: Event, meter: Meter) -> Proof:
    """The inclusion proof of an event in the latest checkpoint, verified from the event as it was read. The
    meter counts what is read of the archive for it.

    Raises:
        RateLimitedError: the meter has come to its end.
    """
    leaf = leaf_hash(event.hash)
    checkpoint = latest(store.database, tenant_id)
    if checkpoint is None or checkpoint.size < event.seq:
        return Proof(checkpoint, False, leaf)
    try:
        _check_signature(store, checkpoint)
        tree = Tree(store.database, store.tiers.metered(meter))
        (path,) = tree.prove(tenant_id, [event.seq], checkpoint.size)
    except RateLimitedError:
        raise  # says nothing about the proof
    except EventStoreError as e:
        return Proof(checkpoint, True, leaf, problem=str(e))
    root = root_from_inclusion(event.seq - 1, checkpoint.size, leaf, path)
    problem = None if root == checkpoint.root else "the proof does not lead to the root that was signed"
    return Proof(checkpoint, True, leaf, tuple(path), problem)


def _check_signature(store: Store, checkpoint: SignedCheckpoint) -> None:
    """Raises IntegrityError if a checkpoint is not what one of the deployment's keys has signed."""
    with store.database.transaction() as conn:
        keys = list(trusted_keys(conn).values())
    signed = read_checkpoint(checkpoint.note, log_origin(store.database, checkpoint.tenant_id), keys)
    if (signed.size, signed.root) != (checkpoint.size, checkpoint.root):
        raise IntegrityError("the checkpoint is not the one that was signed", hint="run eventstore verify")


# --- rows -------------------------------------------------------------------------------------------------


def _events(table: pa.Table) -> list[Event]:
    """A few rows as events of the model."""
    columns: Mapping[str, list[Any]] = {
        "recorded_at_us": table.column("recorded_at").cast(pa.int64()).to_pylist(),
        "occurred_at_us": table.column("occurred_at").cast(pa.int64()).to_pylist(),
        **{name: table.column(name).to_pylist() for name in ("seq", "event_id", *TEXT_FIELDS, "hash")},
    }
    return [Event(**{name: values[n] for name, values in columns.items()}) for n in range(table.num_rows)]
