"""Writing a rebuilt catalog: what is common to all tenants first, then each tenant in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.catalog.subtrees import keep_subtrees
from eventstore.catalog.tenants import BEGINNING_US, add_tenant, set_unit
from eventstore.clock import US_PER_S, from_us
from eventstore.db import locks
from eventstore.db.engine import Database
from eventstore.db.partitions import leaf_name
from eventstore.db.tables import (
    certificates,
    deployment,
    events,
    governance,
    heads,
    holds,
    jobs,
    policies,
    quarantine,
    removals,
    restores,
    segments,
    tenants,
    watermarks,
    windows,
)
from eventstore.errors import SetupError, StateError
from eventstore.governance.certificates import remember_key
from eventstore.governance.policies import policy_of
from eventstore.governance.record import EntryKind, take_lock
from eventstore.governance.signing import SigningKey, VerifyKey
from eventstore.model.certificate import Certificate, payload_sha256
from eventstore.model.policy import PolicyOverride, PolicyVersion, policy_in_force
from eventstore.model.policy_change import standing
from eventstore.model.segment import Segment
from eventstore.model.tenant import Tenant, TenantState
from eventstore.model.window import WindowState, WindowUnit
from eventstore.repair.chain import ChosenWindow, Log
from eventstore.repair.lost import certify_lost, lost_end
from eventstore.repair.replay import Record, hold_everything, replay_defaults, replay_tenant
from eventstore.repair.survey import Held, Survey

__all__ = [
    "Adopted",
    "Found",
    "FoundCertificate",
    "adopt_tenant",
    "begin_rebuild",
    "finish_rebuild",
    "is_registered",
    "preferred_targets",
    "refuse_unfinished_rebuild",
]

# A row in `jobs` that is there from a rebuild's beginning to its end.
_JOB = "rebuild"
_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Found:
    """A segment that is whole in itself, where it was found."""

    segment: Segment
    entity_filter: bytes | None
    id_lead_us: int


@dataclass(frozen=True, slots=True)
class FoundCertificate:
    """A certificate whose signature is right, and the target where it was found."""

    certificate: Certificate
    payload: bytes
    envelope: bytes
    target: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """A tenant as it was rebuilt. `lost`: the first and the last seq that a certificate saw and that were in
    Postgres only; None: nothing is known to be lost. `held_by`: the hold that the rebuild
    itself placed (None: none)."""

    tenant_id: str
    last_seq: int
    windows: int
    expired_windows: int
    segments: int
    events: int
    holds: int
    quarantined: int
    lost: tuple[int, int] | None
    held_by: str | None


# --- what is common to all ------------------------------------------------------------------------------


def begin_rebuild(
    database: Database, survey: Survey, record: Record, keys: Mapping[str, VerifyKey], now_us: int
) -> None:
    """Make an empty database that of the targets' store, in one transaction; or see that an earlier run did.

    Raises:
        StateError: it is not empty; says what is in it.
    """
    with database.transaction() as conn:
        take_lock(conn, locks.governance_key(), "a change of policies or holds is being recorded")
        store_id = str(conn.execute(sa.select(deployment.c.store_id)).scalar_one())
        begun = conn.execute(sa.select(sa.exists().where(jobs.c.job == _JOB))).scalar_one()
        if begun and store_id == survey.store_id:
            return
        _refuse_unless_empty(conn)
        conn.execute(sa.update(deployment).values(store_id=survey.store_id))
        conn.execute(sa.insert(jobs).values(job=_JOB, last_started_us=now_us))
        replay_defaults(conn, record, now_us)
        for key in keys.values():
            remember_key(conn, key)
        _quarantine(conn, None, [(held, "its key is none that the store makes") for held in survey.unknown])


def _refuse_unless_empty(conn: sa.Connection) -> None:
    held = []
    for table in (tenants, events, governance, policies, holds, certificates, removals, quarantine, restores):
        count = conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        if count:
            held.append(f"{count:,} in {table.name}")
    if held:
        raise StateError(
            f"the database is not empty: {', '.join(held)}",
            hint="a catalog is rebuilt into a fresh database only: name another in EVENTSTORE_DATABASE_URL, "
            "and run eventstore db upgrade",
        )


def finish_rebuild(database: Database) -> None:
    """All tenants are there: from now on the database is as any other."""
    with database.transaction() as conn:
        conn.execute(sa.delete(jobs).where(jobs.c.job == _JOB))


def refuse_unfinished_rebuild(database: Database) -> None:
    """
    Raises:
        SetupError: a rebuild of the catalog was begun and has not come to its end: some tenants are not there
            yet, and would seem never to have been.
    """
    with database.transaction() as conn:
        begun = conn.execute(sa.select(sa.exists().where(jobs.c.job == _JOB))).scalar_one()
    if begun:
        raise SetupError(
            "the catalog of this database is being rebuilt",
            hint="finish it: eventstore archive rebuild (--leave-out for a tenant that cannot be)",
        )


def is_registered(database: Database, tenant_id: str) -> bool:
    with database.transaction() as conn:
        return bool(conn.execute(sa.select(sa.exists().where(tenants.c.tenant_id == tenant_id))).scalar_one())


def preferred_targets(record: Record, tenant_id: str, now_us: int) -> list[str]:
    """The targets of the tenant's policy, the first tier first: a window that is whole in two of them had not
    left the earlier one."""
    versions = [
        PolicyVersion(
            entry.document["policy_no"],
            entry.tenant_id,
            PolicyOverride.from_json(entry.document["policy"]),
            entry.at_us,
            entry.at_us,
            entry.actor,
            "",
        )
        for entry in record.entries
        if entry.kind == EntryKind.POLICY.value
    ]
    defaults = standing([v for v in versions if v.tenant_id is None])
    own = standing([v for v in versions if v.tenant_id == tenant_id])
    return [tier.target for tier in policy_in_force(defaults, own, now_us).policy.tiers]


# --- a tenant -------------------------------------------------------------------------------------------


def adopt_tenant(
    database: Database,
    record: Record,
    tenant_id: str,
    log: Log,
    found: Mapping[tuple[str, str], Found],
    certified: Sequence[FoundCertificate],
    left: Sequence[tuple[Held, str]],
    problems: Sequence[str],
    key: SigningKey,
    now_us: int,
) -> Adopted:
    """Store a verified log as a tenant, in one transaction: catalog, head, policies, holds, certificates, and
    what of its objects is not part of it. With `problems` in the record of governance, all of it is held."""
    seen = lost_end(log, [c.certificate for c in certified])
    lost = None if seen is None else (log.last_seq + 1, seen.head_seq)
    chosen = [found[s.target, s.key] for window in log.windows for s in window.segments]
    created = record.tenants.get(tenant_id)
    with database.transaction() as conn:
        unit = WindowUnit.MONTH if created is None else WindowUnit(created.document["unit"])
        tenant = add_tenant(conn, tenant_id, unit)
        in_force = replay_tenant(conn, record, tenant_id)
        set_unit(conn, tenant_id, policy_of(conn, tenant_id, now_us).policy.unit)
        values: dict[str, object] = {} if created is None else {"created_at": from_us(created.at_us)}
        if log.offboarded is not None:
            values["state"] = TenantState.CLOSED.value
        if values:
            conn.execute(sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(values))
        _store_certificates(conn, certified)
        if seen is not None:
            certify_lost(conn, tenant_id, log, seen, key, now_us)
        _store_end(conn, tenant_id, log, chosen, certified, now_us)
        _store_windows(conn, tenant, log.windows, now_us)
        _store_segments(conn, tenant_id, chosen, now_us)
        _quarantine(conn, tenant_id, left)
        held_by = None
        if problems and log.offboarded is None:
            held_by = hold_everything(conn, tenant_id, problems, now_us)
        # Dying before the commit leaves nothing of the tenant; after it, all.
    return Adopted(
        tenant_id=tenant_id,
        last_seq=log.last_seq,
        windows=sum(window.certificate is None for window in log.windows),
        expired_windows=sum(window.certificate is not None for window in log.windows),
        segments=len(chosen),
        events=sum(f.segment.range.event_count for f in chosen),
        holds=in_force,
        quarantined=len(left),
        lost=lost,
        held_by=held_by,
    )


def _store_end(
    conn: sa.Connection,
    tenant_id: str,
    log: Log,
    chosen: Sequence[Found],
    certified: Sequence[FoundCertificate],
    now_us: int,
) -> None:
    """Head and watermark. The tenant's clock goes to the latest time that anything proves it had reached."""
    times = [BEGINNING_US, *(window.window.to_us for window in log.windows)]
    times += [found.segment.max_recorded_at_us for found in chosen]
    times += [found.certificate.head_recorded_at_us for found in certified]
    conn.execute(
        sa.update(heads)
        .where(heads.c.tenant_id == tenant_id)
        .values(
            last_seq=log.last_seq,
            last_hash=log.last_hash,
            last_recorded_us=max(times),
            id_lead_us=max((found.id_lead_us for found in chosen), default=0),
            closed=log.offboarded is not None,
        )
    )
    conn.execute(
        sa.update(watermarks)
        .where(watermarks.c.tenant_id == tenant_id)
        .values(
            archived_through=log.last_seq,
            archived_hash=log.last_hash,
            # A process that was not started anew must not take what it knows of the lost catalog for this.
            catalog_version=now_us // US_PER_S,
        )
    )


def _store_windows(conn: sa.Connection, tenant: Tenant, found: Sequence[ChosenWindow], now_us: int) -> None:
    now = from_us(now_us)
    rows = []
    for window in found:
        c = window.certificate
        rows.append(
            {
                "tenant_id": tenant.tenant_id,
                "window_from": from_us(window.window.from_us),
                "window_to": from_us(window.window.to_us),
                "state": (WindowState.DROPPED if c is None else WindowState.EXPIRED).value,
                "leaf": leaf_name(tenant.tenant_no, window.window),
                "first_seq": window.first_seq,
                "last_seq": window.last_seq,
                "hash_before": window.hash_before,
                "hash_after": window.hash_after,
                "sealed_at": now,
                "archived_at": now,
                "dropped_at": now,
                "expired_at": None if c is None else from_us(c.issued_at_us),
                "target": window.target,
            }
        )
    for start in range(0, len(rows), _ROWS):
        conn.execute(sa.insert(windows), rows[start : start + _ROWS])


def _store_segments(conn: sa.Connection, tenant_id: str, chosen: Sequence[Found], now_us: int) -> None:
    rows = [
        {
            "tenant_id": tenant_id,
            "first_seq": found.segment.range.first_seq,
            "last_seq": found.segment.range.last_seq,
            "window_from": from_us(found.segment.range.window.from_us),
            "part": found.segment.range.part,
            "target": found.segment.target,
            "key": found.segment.key,
            "hash_before": found.segment.range.hash_before,
            "hash_after": found.segment.range.hash_after,
            "min_recorded_at": from_us(found.segment.min_recorded_at_us),
            "max_recorded_at": from_us(found.segment.max_recorded_at_us),
            "size_bytes": found.segment.size_bytes,
            "sha256": found.segment.sha256,
            "schema_version": found.segment.range.schema_version,
            "entity_filter": found.entity_filter,
            "scrubbed_at": from_us(now_us),  # it was read whole just now
        }
        for found in chosen
    ]
    for start in range(0, len(rows), _ROWS):
        conn.execute(sa.insert(segments), rows[start : start + _ROWS])


def _store_certificates(conn: sa.Connection, certified: Sequence[FoundCertificate]) -> None:
    for found in certified:
        c = found.certificate
        conn.execute(
            sa.insert(certificates).values(
                tenant_id=c.tenant_id,
                number=c.number,
                kind=c.kind.value,
                window_from=None if c.window_from_us is None else from_us(c.window_from_us),
                first_seq=c.first_seq,
                last_seq=c.last_seq,
                hash_before=c.hash_before,
                hash_after=c.hash_after,
                payload_sha256=payload_sha256(found.payload),
                envelope=found.envelope,
                issued_us=c.issued_at_us,
                stored_in=found.target,
            )
        )
        keep_subtrees(conn, c.tenant_id, c.subtrees)


def _quarantine(conn: sa.Connection, tenant_id: str | None, left: Sequence[tuple[Held, str]]) -> None:
    rows = [
        {"target": held.target, "key": held.key, "tenant_id": tenant_id, "reason": reason}
        for held, reason in left
    ]
    for start in range(0, len(rows), _ROWS):
        conn.execute(insert(quarantine).on_conflict_do_nothing(), rows[start : start + _ROWS])
