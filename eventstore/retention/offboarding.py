"""Offboarding a tenant: its log is closed, exported, destroyed in both tiers, and a certificate is left.

    close ─▶ export, read back ─▶ destroy (one transaction) ─▶ remove tables and objects, look again

Until it is destroyed, it can be opened again.

There is no state but the store's own: the tenant's (active, closing, closed), the folder's (an export is
complete or not), and what is still to be removed. Whoever was killed runs the same command again, and it goes
on there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.db.engine import Database
from eventstore.db.tables import deployment, heads, tenants
from eventstore.errors import (
    ConfirmationError,
    CoverageError,
    EventStoreError,
    StateError,
    TenantClosedError,
)
from eventstore.governance.certificates import StoredCertificate, list_certificates
from eventstore.governance.holds import assert_not_held, holds_in_force, lock_destruction
from eventstore.governance.record import EntryKind, record, required_text
from eventstore.model.certificate import CertificateKind
from eventstore.model.tenant import TenantState, check_not_own
from eventstore.query.stats import LogStats, log_stats
from eventstore.query.tiers import Tiers, list_expired
from eventstore.retention.clearing import clear
from eventstore.retention.destroying import destroy
from eventstore.retention.export_manifest import MANIFEST_FILE, Export, files_of
from eventstore.retention.exporting import ExportOrder, check_folder, export_log, put_certificate_file
from eventstore.retention.task import Stopped, Workshop

__all__ = ["OffboardReport", "OffboardSurvey", "Offboarding", "offboard", "reopen", "survey"]

# As many characters as a certificate takes of who decided it, in bytes at the worst.
_BY_CHARACTERS_MAX = 250

# Told of the step (close, export, read back, destroy, delete objects, look again), and how far it has come.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Offboarding:
    """What is asked for. `confirm` is how many events still exist, as whoever asks has been told (None: to be
    told)."""

    tenant_id: str
    export_to: Path
    by: str
    reason: str
    confirm: int | None


@dataclass(frozen=True, slots=True)
class OffboardSurvey:
    """What would be destroyed: `events` still exist, and lie where `stats` says. `holds` stop it."""

    tenant_id: str
    state: TenantState
    events: int
    holds: tuple[str, ...]
    stats: LogStats


@dataclass(frozen=True, slots=True)
class OffboardReport:
    """An offboarded tenant. `left` says what could not be removed yet: the same command does that later.

    `export` is what the folder holds (None: it holds the certificate alone, because the log had been
    destroyed before with another folder). `objects` and `size_bytes` were deleted by this call.
    """

    tenant_id: str
    certificate: StoredCertificate
    export: Export | None
    objects: int
    size_bytes: int
    left: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.left


def survey(database: Database, tenant_id: str) -> OffboardSurvey:
    """What an offboarding would destroy, and what stops it. Changes nothing.

    Raises:
        TenantNotFoundError
    """
    stats = log_stats(database, tenant_id)
    with database.transaction() as conn:
        names = tuple(hold.name for hold in holds_in_force(conn, tenant_id))
        events = _existing(conn, tenant_id, stats.last_seq)
    return OffboardSurvey(tenant_id, stats.tenant.state, events, names, stats)


def offboard(
    shop: Workshop,
    tiers: Tiers,
    order: Offboarding,
    now_us: int,
    progress: Progress | None = None,
    *,
    forget: Callable[[], object] | None = None,
) -> OffboardReport:
    """Close a tenant's log, export it, destroy it in both tiers, and leave a certificate. May be killed
    anywhere: the same call goes on. `forget` is called when the log is destroyed, and removes what this host
    keeps of the tenant beside the archive.

    Raises:
        HeldError: a hold is in force on the tenant. What is not destroyed yet stays.
        ConfirmationError: `confirm` is not how many events exist. Nothing was changed.
        InputError: something else is in the folder, or who or why is missing, or the tenant is the store's
            own. Nothing was changed.
        TenantNotFoundError
        IntegrityError: the log, or its export, is not whole. Nothing was destroyed.
        BusyError, TargetUnavailableError: something is in the way now; the same call goes on later.
        Stopped: told to stop.
    """
    tell = progress or _silent
    check_not_own(order.tenant_id, "be offboarded")  # nobody could read anything without the log of reads
    by = required_text("who offboards it", order.by, most=_BY_CHARACTERS_MAX)
    reason = required_text("the reason", order.reason)
    database, tenant_id, folder = shop.database, order.tenant_id, order.export_to
    with database.transaction() as conn:
        store_id = str(conn.execute(sa.select(deployment.c.store_id)).scalar_one())
        tenant = get_tenant(conn, tenant_id)
    export: Export | None = None
    if tenant.state is not TenantState.CLOSED:
        found = check_folder(folder, store_id, tenant_id)
        tell("close", 0, 1)
        export_order = _close(shop, order, store_id, found, by=by, reason=reason, now_us=now_us)
        # Dying here leaves a closed log: nothing is destroyed, and it may be opened again.
        export = export_log(database, tiers, export_order, shop.stop, tell)
        # Dying here leaves a complete export, which the next call reads back and takes.
        if shop.stop.is_set():
            raise Stopped
        tell("destroy", 0, 1)
        destroy(shop, tenant_id, export, by=by, reason=reason, now_us=now_us)
        # From here on there is no way back: the next call goes on with what is left to be removed.
    elif MANIFEST_FILE in files_of(folder):
        export = check_folder(folder, store_id, tenant_id)
    certificate = _certificate_of(database, tenant_id)
    left = _keep_certificate(folder, certificate)
    if forget is not None:
        forget()
    cleared = clear(shop, tiers, tenant, tell)
    return OffboardReport(
        tenant_id, certificate, export, cleared.objects, cleared.size_bytes, (*left, *cleared.left)
    )


def _close(
    shop: Workshop,
    order: Offboarding,
    store_id: str,
    found: Export | None,
    *,
    by: str,
    reason: str,
    now_us: int,
) -> ExportOrder:
    """Refuse appends from now on (active → closing), unless it is so already; what is to be exported.

    Raises:
        HeldError, ConfirmationError: nothing was changed.
        InputError: the complete export in the folder is of another state of the log. Nothing was changed.
    """
    tenant_id = order.tenant_id
    with shop.database.transaction() as conn:
        assert_not_held(conn, tenant_id, "the log")
        state = get_tenant(conn, tenant_id).state
        if state is TenantState.CLOSED:
            raise TenantClosedError(f"{tenant_id!r} has been offboarded meanwhile", hint="run it again")
        if state is TenantState.ACTIVE:
            # Before the head: nobody is kept from appending while this waits for its turn.
            document = {"state": TenantState.CLOSING.value, "reason": reason}
            record(conn, EntryKind.TENANT_OFFBOARDED, tenant_id, by, document, now_us)
        # Whoever appends has this lock until it has committed, and sees `closed` when it gets it after us.
        head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant_id).with_for_update()).one()
        events = _existing(conn, tenant_id, head.last_seq)
        if order.confirm != events:
            raise _unconfirmed(tenant_id, events, order.confirm)
        wanted = ExportOrder(
            folder=order.export_to,
            store_id=store_id,
            tenant_id=tenant_id,
            last_seq=head.last_seq,
            last_hash=bytes(head.last_hash),
            events=events,
            key=shop.key.verify_key,
            now_us=now_us,
        )
        if found is not None:
            wanted.check_is_of(found)
        if state is TenantState.ACTIVE:
            _set_state(conn, tenant_id, TenantState.CLOSING, closed=True)
    return wanted


def reopen(database: Database, tenant_id: str, *, by: str, reason: str, now_us: int) -> None:
    """Undo the closing of a log (closing → active), as long as nothing is destroyed. Its export stays.

    Raises:
        TenantClosedError: it is destroyed.
        StateError: it is not being offboarded.
        InputError: who or why is missing.
        TenantNotFoundError
    """
    who, why = required_text("who opens it again", by), required_text("the reason", reason)
    with database.transaction() as conn:
        lock_destruction(conn, tenant_id)
        state = get_tenant(conn, tenant_id).state
        if state is TenantState.CLOSED:
            raise TenantClosedError(
                f"the log of {tenant_id!r} is destroyed", hint="its export can be imported under another name"
            )
        if state is TenantState.ACTIVE:
            raise StateError(f"{tenant_id!r} is not being offboarded", hint="there is nothing to do")
        document = {"state": TenantState.ACTIVE.value, "reason": why}
        record(conn, EntryKind.TENANT_OFFBOARDED, tenant_id, who, document, now_us)
        conn.execute(sa.select(heads.c.closed).where(heads.c.tenant_id == tenant_id).with_for_update())
        _set_state(conn, tenant_id, TenantState.ACTIVE, closed=False)


def _set_state(conn: sa.Connection, tenant_id: str, state: TenantState, *, closed: bool) -> None:
    conn.execute(sa.update(heads).where(heads.c.tenant_id == tenant_id).values(closed=closed))
    conn.execute(sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(state=state.value))


def _existing(conn: sa.Connection, tenant_id: str, last_seq: int) -> int:
    """How many events of a log still exist, in whichever tier."""
    return last_seq - sum(e.last_seq - e.first_seq + 1 for e in list_expired(conn, tenant_id))


def _unconfirmed(tenant_id: str, events: int, confirm: int | None) -> ConfirmationError:
    said = "" if confirm is None else f", not {confirm:,}"
    count = f"{events:,} event{'' if events == 1 else 's'}"
    return ConfirmationError(
        f"offboarding {tenant_id!r} destroys all of its history: {count}{said}",
        events=events,
        hint=f"if that is meant, confirm the count: --confirm {events}; nothing was changed",
    )


def _certificate_of(database: Database, tenant_id: str) -> StoredCertificate:
    with database.transaction() as conn:
        found = list_certificates(conn, tenant_id)
    if not found or found[-1].certificate.kind is not CertificateKind.OFFBOARDED:
        raise CoverageError(
            f"{tenant_id!r} is closed, and no certificate says so", hint="run eventstore certificates verify"
        )
    return found[-1]


def _keep_certificate(folder: Path, certificate: StoredCertificate) -> list[str]:
    """Store the certificate beside the export; what is wrong with that. The database has it in any case."""
    try:
        put_certificate_file(folder, certificate.envelope)
    except EventStoreError as e:
        return [f"the certificate is not in {folder}: {e}"]
    return []


def _silent(_step: str, _done: int, _total: int) -> None:
    pass
