"""The task that destroys an expired window: a certificate takes its place in the log.

In one transaction, under the lock that placing a hold takes as well, policy and holds are looked at again,
the certificate is signed and stored, and the window leaves the log. Only after that its objects are deleted
(retention.removing), each under the same lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.catalog.windows import (
    expire_window,
    list_entity_filters,
    list_segments,
)
from eventstore.clock import to_us
from eventstore.db.tables import deployment, heads
from eventstore.errors import ArchiveDamageError, StateError
from eventstore.governance.certificates import (
    next_certificate,
    signing_time_us,
    store_certificate,
    store_copies,
)
from eventstore.governance.holds import holds_in_force, lock_destruction
from eventstore.governance.policies import policy_of
from eventstore.integrity.tree import Kept, keep, tree_of
from eventstore.model.certificate import Certificate, CertificateKind, DestroyedSegment
from eventstore.model.hold import Hold
from eventstore.model.policy import PolicyInForce, longest_kept
from eventstore.model.run import Warned
from eventstore.model.segment import Segment
from eventstore.model.window import WindowState
from eventstore.retention.holding import HeldSegment, holds_over
from eventstore.retention.quarantined import request_quarantined
from eventstore.retention.removing import remove_objects
from eventstore.retention.task import TaskContext

__all__ = ["expire"]


def expire(task: TaskContext) -> None:
    """Destroy the window, unless a hold covers it.

    Raises:
        StateError: under the policy as it is now, the window has not expired.
        TargetUnavailableError: a target did not answer; what is left is done by a later run.
    """
    if task.record.state is WindowState.DROPPED:
        with task.step("certify and take out of the log", at_once=True):
            holds = _take_out(task)
        if holds:
            task.kept = True
            names = ", ".join(hold.name for hold in holds)
            task.tell(Warned(message=f"window {task.window} is kept: held by {names}"))
            return
        # Dying here leaves the objects, which no reader sees any more, in `removals`.
        task.reread()
    with task.step("store certificate"):
        store_copies(task.database, task.shop.targets, task.tenant.tenant_id)
    with task.step("destroy"):
        remove_objects(task)


@dataclass(frozen=True, slots=True)
class _Unjudged:
    """What decides whether holds cover the window, as one transaction saw it."""

    in_force: Sequence[Hold]
    segments: Sequence[Segment]
    filters: Mapping[int, bytes]

    @property
    def known(self) -> frozenset[object]:
        return frozenset(hold.hold_id for hold in self.in_force)


def _take_out(task: TaskContext) -> list[Hold]:
    """Put a certificate in the window's place; or the holds that stop it."""
    judged: dict[frozenset[object], list[Hold]] = {}
    kept: Kept | None = None
    while True:
        found = _certify_unless_held(task, judged, kept)
        if isinstance(found, list):
            return found
        if found is None:
            # Nothing holds it. What is kept of the tree is read from the events, while they are there.
            kept = _to_keep(task)
            continue
        # What the holds cover may take reading the segments: not in a transaction that others wait for.
        held = [HeldSegment.of_segment(s, found.filters.get(s.range.first_seq)) for s in found.segments]
        judged[found.known] = holds_over(found.in_force, held, task.shop.targets, on_unreadable=task.warn)


def _certify_unless_held(
    task: TaskContext, judged: Mapping[frozenset[object], list[Hold]], kept: Kept | None
) -> list[Hold] | _Unjudged | None:
    """The one transaction that takes the window out: an empty list, it did; a list, the holds that stop it.
    `_Unjudged`: it is to be judged first what they cover. None: `kept` is wanted first."""
    tenant_id, record = task.tenant.tenant_id, task.record
    assert record.last_seq is not None
    with task.database.transaction() as conn:
        task.guard(conn)
        lock_destruction(conn, tenant_id)
        # Under the policy at the run's time, and under the one that is in force by now: whoever has made
        # it longer since was told that nothing is destroyed under the former one.
        present_us = to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
        policy = longest_kept(policy_of(conn, tenant_id, task.now_us), policy_of(conn, tenant_id, present_us))
        expires_us = policy.policy.expires_at(record.window)
        if expires_us is None or expires_us > task.now_us:
            raise StateError(
                f"window {record.window} has not expired under policy {policy.policy_no}",
                hint="the policy was changed after the plan; nothing was destroyed",
            )
        segments = list_segments(conn, tenant_id, seq_from=record.first_seq, seq_to=record.last_seq)
        in_force = holds_in_force(conn, tenant_id)
        covering = [] if not in_force else judged.get(frozenset(hold.hold_id for hold in in_force))
        if covering is None:
            seqs = (record.first_seq, record.last_seq)
            filters = list_entity_filters(conn, tenant_id, seq_from=seqs[0], seq_to=seqs[1])
            return _Unjudged(in_force, segments, filters)
        if covering:
            return covering
        if kept is None:
            return None
        _certify(conn, task, policy, segments, kept)
        keep(conn, tenant_id, kept)
        expire_window(conn, tenant_id, record)
        request_quarantined(conn, tenant_id, record)
        return []


def _to_keep(task: TaskContext) -> Kept:
    """Let the log's tree grow over the window, and take of it what has to outlive the events."""
    tenant_id, record = task.tenant.tenant_id, task.record
    assert record.last_seq is not None
    with tree_of(task.database, task.shop.targets) as tree:
        try:
            tree.grow(tenant_id, record.last_seq)
            return tree.to_keep(tenant_id, record.first_seq, record.last_seq)
        except ArchiveDamageError as e:
            # What is rotten is past its policy like everything else; but the tree has a hole where it was. It
            # may lie in another window, over which the tree does not grow: of this one nothing is lost then.
            task.warn(e)
            return tree.to_keep(tenant_id, record.first_seq, record.last_seq, damaged=True)


def _certify(
    conn: sa.Connection, task: TaskContext, policy: PolicyInForce, segments: list[Segment], kept: Kept
) -> None:
    record, tenant_id = task.record, task.tenant.tenant_id
    assert record.last_seq is not None
    assert record.hash_before is not None
    assert record.hash_after is not None
    assert record.event_count is not None
    head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant_id)).one()
    store_id = conn.execute(sa.select(deployment.c.store_id)).scalar_one()
    number, previous = next_certificate(conn, tenant_id)
    certificate = Certificate(
        store_id=str(store_id),
        tenant_id=tenant_id,
        number=number,
        previous_sha256=previous,
        kind=CertificateKind.EXPIRED,
        window_from_us=record.window.from_us,
        window_to_us=record.window.to_us,
        first_seq=record.first_seq,
        last_seq=record.last_seq,
        event_count=record.event_count,
        hash_before=record.hash_before,
        hash_after=record.hash_after,
        segments=tuple(
            DestroyedSegment(
                key=s.key,
                target=s.target,
                part=s.range.part,
                first_seq=s.range.first_seq,
                last_seq=s.range.last_seq,
                size_bytes=s.size_bytes,
                sha256=s.sha256,
            )
            for s in segments
        ),
        subtrees=kept.subtrees,
        policy_version=policy.policy_no,
        policy=json.dumps(policy.policy.as_json(), sort_keys=True),
        head_seq=head.last_seq,
        head_hash=bytes(head.last_hash),
        head_recorded_at_us=head.last_recorded_us,
        decided_by=task.requested_by,
        reason=f"expired under policy {policy.policy_no}: {policy.policy.in_words()}",
        issued_at_us=task.now_us,
        signed_at_us=signing_time_us(conn),
    )
    store_certificate(conn, certificate, task.shop.key)
