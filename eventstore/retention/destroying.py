"""The transaction that destroys a whole log: a certificate takes its place.

Everything is decided and changed in this one transaction, under the lock that placing a hold takes as well.
The tenant's table is detached in it, so that from the commit on no query finds an event; the detached tables
and the objects are removed afterwards (retention.clearing). They are not dropped here: a drop takes some
twenty locks a leaf, detaching takes one, and Postgres' table of locks is bounded for all sessions together.

Locks are taken in this order: the tenant's tasks → its destruction lock → governance → its head → watermark →
`events` itself, last and for a moment, because every reader of every tenant waits for that one.
"""

from __future__ import annotations

import json
import uuid

import sqlalchemy as sa

from eventstore.catalog.removals import RemovalReason, request_removal
from eventstore.catalog.tenants import get_tenant
from eventstore.catalog.windows import (
    list_segments,
    list_windows,
    raise_catalog_version,
    read_watermark,
)
from eventstore.clock import from_us
from eventstore.db.locks import DROP_LAST_LOCK_TIMEOUT_MS, DROP_LOCK_TIMEOUT_MS, busy_when_locked
from eventstore.db.partitions import SCHEMA
from eventstore.db.tables import deployment, heads, segments, tasks, tenants, watermarks, windows
from eventstore.errors import BusyError, CoverageError, StateError
from eventstore.governance.certificates import next_certificate, signing_time_us, store_certificate
from eventstore.governance.holds import assert_not_held
from eventstore.governance.policies import policy_of
from eventstore.governance.record import EntryKind, record
from eventstore.integrity.tree import Kept, tree_of
from eventstore.model.certificate import Certificate, CertificateKind, DestroyedSegment
from eventstore.model.event import chain_start
from eventstore.model.run import TaskState
from eventstore.model.tenant import Tenant, TenantState
from eventstore.model.window import WindowState
from eventstore.retention.export_manifest import Export
from eventstore.retention.task import Stopped, Workshop
from eventstore.retention.tasks import Tasks

__all__ = ["destroy"]

# What is in the way (readers, a worker) is waited for with these pauses, in seconds, then given up.
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


def destroy(shop: Workshop, tenant_id: str, export: Export, *, by: str, reason: str, now_us: int) -> None:
    """Destroy the closed log that was exported, unless it is destroyed already.

    Raises:
        HeldError: a hold is in force. Nothing was changed.
        StateError: the log was opened again, or is not the exported one.
        BusyError: readers or a worker were in the way for too long. Nothing was changed.
        ArchiveDamageError, TargetUnavailableError: its tree cannot be made whole. Nothing was changed.
        Stopped: told to stop.
    """
    # The log is closed: what is kept of its tree can be read before anything is locked.
    with tree_of(shop.database, shop.targets) as tree:
        tree.grow(tenant_id, export.last_seq)
        # Leaves, of which there are 8 KiB for each checkpoint, are stored by this.
        kept = tree.to_keep(tenant_id, 1, export.last_seq, ahead=True)
    for pause_s in (*_PAUSES_S, None):
        if shop.stop.is_set():
            raise Stopped
        # What nobody alive works on goes; if one of those wakes up, its guard refuses it.
        Tasks(shop.database).adopt(uuid.uuid4(), [tenant_id])
        try:
            timeout_ms = DROP_LOCK_TIMEOUT_MS if pause_s is not None else DROP_LAST_LOCK_TIMEOUT_MS
            _destroy_once(
                shop, tenant_id, export, kept, by=by, reason=reason, now_us=now_us, timeout_ms=timeout_ms
            )
            return
        except BusyError:
            if pause_s is None:
                raise
        shop.stop.wait(pause_s)


def _destroy_once(
    shop: Workshop,
    tenant_id: str,
    export: Export,
    kept: Kept,
    *,
    by: str,
    reason: str,
    now_us: int,
    timeout_ms: int,
) -> None:
    with (
        shop.database.transaction() as conn,
        busy_when_locked(
            f"readers hold the tables of events, or somebody else works on {tenant_id!r}",
            hint="nothing was destroyed; run the same command again",
        ),
    ):
        _end_tasks(conn, tenant_id)
        assert_not_held(conn, tenant_id, "the log")
        tenant = get_tenant(conn, tenant_id)
        if tenant.state is TenantState.CLOSED:
            return
        if tenant.state is not TenantState.CLOSING:
            raise StateError(f"the log of {tenant_id!r} was opened again", hint="nothing was destroyed")
        number, previous = next_certificate(conn, tenant_id)
        document = {"state": TenantState.CLOSED.value, "reason": reason, "certificate": number}
        record(conn, EntryKind.TENANT_OFFBOARDED, tenant_id, by, document, now_us)
        certificate = _certificate(
            conn, tenant, export, kept, number=number, previous=previous, by=by, reason=reason, now_us=now_us
        )
        store_certificate(conn, certificate, shop.key)
        _take_out(conn, tenant_id, certificate)
        _detach(conn, tenant, timeout_ms)
    # Dying before the commit leaves the log whole and closed. After it, the log is destroyed: the certificate
    # stands for it, and no reader finds an event any more. What is left are detached tables, under their
    # tenant's number, and objects, in `removals`.


def _end_tasks(conn: sa.Connection, tenant_id: str) -> None:
    """Take the tenant's tasks away. First of all, as a worker's guard is in its transactions.

    Raises:
        BusyError: a worker that is alive works on one: it might still store an object.
    """
    query = (
        sa.select(tasks.c.task_id, tasks.c.state, tasks.c.window_from)
        .where(
            tasks.c.tenant_id == tenant_id,
            tasks.c.state.in_([TaskState.WAITING.value, TaskState.RUNNING.value]),
        )
        .with_for_update()
    )
    found = conn.execute(query).all()
    for task in found:
        if task.state == TaskState.RUNNING.value:
            raise BusyError(
                f"a worker is at the window of {tenant_id!r} from {task.window_from:%Y-%m-%d %H:%M} on",
                hint="nothing was destroyed; run the same command again when it is through",
            )
    conn.execute(sa.delete(tasks).where(tasks.c.task_id.in_([task.task_id for task in found])))


def _certificate(
    conn: sa.Connection,
    tenant: Tenant,
    export: Export,
    kept: Kept,
    *,
    number: int,
    previous: bytes,
    by: str,
    reason: str,
    now_us: int,
) -> Certificate:
    tenant_id = tenant.tenant_id
    head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant_id).with_for_update()).one()
    read_watermark(conn, tenant_id, for_update=True)
    if not head.closed or (head.last_seq, bytes(head.last_hash).hex()) != (export.last_seq, export.last_hash):
        raise StateError(
            f"the log of {tenant_id!r} is not the one that was exported",
            hint="nothing was destroyed; run the same command again with another folder",
        )
    policy = policy_of(conn, tenant_id, now_us)
    return Certificate(
        store_id=str(conn.execute(sa.select(deployment.c.store_id)).scalar_one()),
        tenant_id=tenant_id,
        number=number,
        previous_sha256=previous,
        kind=CertificateKind.OFFBOARDED,
        window_from_us=None,
        window_to_us=None,
        first_seq=1,
        last_seq=head.last_seq,
        event_count=head.last_seq,
        hash_before=chain_start(tenant_id),
        hash_after=bytes(head.last_hash),
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
            for s in list_segments(conn, tenant_id)
        ),
        subtrees=kept.subtrees,
        policy_version=policy.policy_no,
        policy=json.dumps(policy.policy.as_json(), sort_keys=True),
        head_seq=head.last_seq,
        head_hash=bytes(head.last_hash),
        head_recorded_at_us=head.last_recorded_us,
        decided_by=by,
        reason=reason,
        issued_at_us=now_us,
        signed_at_us=signing_time_us(conn),
    )


def _take_out(conn: sa.Connection, tenant_id: str, certificate: Certificate) -> None:
    """Change the catalog: every window has expired, up to the head, and its objects are to be removed."""
    _freeze_open(conn, tenant_id, certificate)
    conn.execute(
        sa.update(windows)
        .where(windows.c.tenant_id == tenant_id, windows.c.state != WindowState.EXPIRED.value)
        .values(state=WindowState.EXPIRED.value, expired_at=sa.func.now())
    )
    # The shape of events tells of them; no window follows that would be compared with it.
    conn.execute(sa.update(windows).where(windows.c.tenant_id == tenant_id).values(profile=sa.null()))
    request_removal(conn, tenant_id, 1, certificate.last_seq, RemovalReason.OFFBOARDED)
    conn.execute(sa.delete(segments).where(segments.c.tenant_id == tenant_id))
    conn.execute(
        sa.update(watermarks)
        .where(watermarks.c.tenant_id == tenant_id)
        .values(archived_through=certificate.last_seq, archived_hash=certificate.hash_after)
    )
    raise_catalog_version(conn, tenant_id)
    conn.execute(
        sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(state=TenantState.CLOSED.value)
    )


def _freeze_open(conn: sa.Connection, tenant_id: str, certificate: Certificate) -> None:
    """Give windows that are still open their ends. (Sealing would move the tenant's clock.)"""
    found = list_windows(conn, tenant_id)
    last_hash = certificate.hash_before
    for index, window in enumerate(found):
        if window.state is WindowState.OPEN:
            later = found[index + 1 :]
            last_seq = later[0].first_seq - 1 if later else certificate.last_seq
            hash_after = _hash_at(conn, window.leaf, last_seq)
            conn.execute(
                sa.update(windows)
                .where(
                    windows.c.tenant_id == tenant_id,
                    windows.c.window_from == from_us(window.window.from_us),
                )
                .values(
                    state=WindowState.SEALED.value,
                    last_seq=last_seq,
                    hash_before=last_hash,
                    hash_after=hash_after,
                )
            )
            last_hash = hash_after
        else:
            assert window.hash_after is not None
            last_hash = window.hash_after
    if last_hash != certificate.hash_after:
        raise CoverageError(
            f"the windows of {tenant_id!r} do not end with the head's hash",
            hint="nothing was destroyed; run eventstore verify",
        )


def _hash_at(conn: sa.Connection, leaf: str, seq: int) -> bytes:
    table = sa.table(leaf, sa.column("seq"), sa.column("hash"), schema=SCHEMA)
    found = conn.execute(sa.select(table.c.hash).where(table.c.seq == seq)).scalar_one_or_none()
    if found is None:
        raise CoverageError(
            f"partition {SCHEMA}.{leaf} does not end at seq {seq}",
            hint="nothing was destroyed; run eventstore verify",
        )
    return bytes(found)


def _detach(conn: sa.Connection, tenant: Tenant, timeout_ms: int) -> None:
    """Take the tenant's table out of `events`. Readers of other tenants wait for this commit, and this waits
    for them `timeout_ms` at the most."""
    conn.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout_ms}")
    # This one first: who reads the tenant's table has it already, so the other way round they might meet.
    conn.exec_driver_sql("LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE")
    conn.exec_driver_sql(f"ALTER TABLE events DETACH PARTITION {SCHEMA}.events_{tenant.tenant_no}")
