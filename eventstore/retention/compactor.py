"""A run of retention: plan each tenant, then bring its due windows, oldest first, to their end.

Resuming is not a mode: a window that an earlier run left half-way is due, and is taken up in its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
import sqlalchemy as sa

from eventstore.archive.target import ArchiveTarget
from eventstore.catalog.tenants import get_tenant, list_tenants
from eventstore.catalog.windows import list_windows, read_watermark
from eventstore.clock import SystemClock, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.db.locks import DROP_LAST_LOCK_TIMEOUT_MS, DROP_LOCK_TIMEOUT_MS, retention_key
from eventstore.db.partitions import list_leaves
from eventstore.db.tables import heads
from eventstore.errors import BusyError, EventStoreError, InputError
from eventstore.model.run import EntryKind, RunReport, RunStatus, TenantOutcome
from eventstore.model.segment import VerifiedSegment
from eventstore.model.tenant import Head, Tenant
from eventstore.model.window import WindowRecord
from eventstore.retention.journal import Journal
from eventstore.retention.planner import FoundLeaf, TenantPlan, WindowPlan, plan_tenant
from eventstore.retention.steps import (
    FileWritten,
    archive_window,
    cut_over_window,
    drop_window,
    seal_window,
)

__all__ = ["Compactor", "Progress", "check_now"]

# Called with the tenant, the windows done and to be done, and the events done.
Progress = Callable[[str, int, int, int], None]

# A drop that readers hold up is tried again after these pauses, in seconds; then it waits for the next run.
_DROP_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


def check_now(now_us: int) -> int:
    """A time to run retention at: the past may be simulated, the future not.

    Raises:
        InputError: it lies beyond the real clock; sealing there would push every later event's time.
    """
    real_us = SystemClock().now_us()
    if now_us > real_us:
        raise InputError(
            f"{to_iso(now_us)} lies in the future", hint="a simulated time may only lie in the past"
        )
    return now_us


class Compactor:
    """Runs retention over tenants, one after the other."""

    def __init__(self, database: Database, target: ArchiveTarget) -> None:
        self._database = database
        self._target = target

    def tenants(self, only: str | None = None) -> list[Tenant]:
        """The tenants of a run: all, or the one named."""
        with self._database.transaction() as conn:
            return list_tenants(conn) if only is None else [get_tenant(conn, only)]

    def plan(self, tenant: Tenant, now_us: int) -> TenantPlan:
        """What a run at that time would do for a tenant. Changes nothing.

        Raises:
            CoverageError: its partitions and the catalog disagree.
        """
        # One snapshot for the catalog and the partitions: an append may make a window at any moment.
        with self._database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant.tenant_id)).one()
            windows = list_windows(conn, tenant.tenant_id)
            watermark = read_watermark(conn, tenant.tenant_id)
            driver = conn.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            leaves = [FoundLeaf(leaf.name, leaf.window) for leaf in list_leaves(driver, tenant.tenant_no)]
        return plan_tenant(
            tenant,
            leaves=leaves,
            windows=windows,
            head=Head(head.last_seq, head.last_hash, head.last_recorded_us, head.id_lead_us),
            archived_through=watermark.archived_through,
            now_us=now_us,
        )

    def run(self, tenants: Sequence[Tenant], now_us: int, *, progress: Progress | None = None) -> RunReport:
        """Run retention. An error stops the tenant it concerns, is recorded, and never the others."""
        now_us = min(check_now(now_us), self._database_now_us())
        journal = Journal.begin(self._database, now_us=now_us)
        outcomes = [self._run_tenant(journal, tenant, now_us, progress) for tenant in tenants]
        failed = [o for o in outcomes if o.error is not None]
        status = RunStatus.FAILED if failed else RunStatus.COMPLETED
        journal.finish(
            status,
            {
                "tenants": len(outcomes),
                "tenants_failed": len(failed),
                "windows": sum(o.windows for o in outcomes),
                "events": sum(o.events for o in outcomes),
            },
        )
        return RunReport(journal.run_id, status, outcomes)

    def _database_now_us(self) -> int:
        """Postgres' clock, by which events are recorded: this machine's may be ahead of it."""
        with self._database.transaction() as conn:
            return to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())

    def _run_tenant(
        self, journal: Journal, tenant: Tenant, now_us: int, progress: Progress | None
    ) -> TenantOutcome:
        outcome = TenantOutcome(tenant.tenant_id)
        started = time.monotonic()
        try:
            with self._exclusive(tenant):
                plan = self.plan(tenant, now_us)
                if plan.due:
                    journal.record(EntryKind.PLAN_RESOLVED, _plan_detail(plan), tenant_id=tenant.tenant_id)
                for done, window in enumerate(plan.due):
                    if progress is not None:
                        progress(tenant.tenant_id, done, len(plan.due), outcome.events)
                    self._finish_window(journal, tenant, window, outcome)
                if progress is not None:
                    progress(tenant.tenant_id, len(plan.due), len(plan.due), outcome.events)
        except Exception as e:  # noqa: BLE001 - whatever it is, it is recorded, and the other tenants go on
            outcome.error = str(e) if isinstance(e, EventStoreError) else f"{type(e).__name__}: {e}"
            journal.record(EntryKind.TENANT_FAILED, {"error": outcome.error}, tenant_id=tenant.tenant_id)
        outcome.duration_s = time.monotonic() - started
        return outcome

    def _finish_window(
        self, journal: Journal, tenant: Tenant, window: WindowPlan, outcome: TenantOutcome
    ) -> None:
        started = time.monotonic()

        def record(kind: EntryKind, detail: dict[str, object]) -> None:
            journal.record(kind, detail, tenant_id=tenant.tenant_id, window=window.record.window)

        def on_file(file: FileWritten) -> None:
            segment = file.verified.segment
            outcome.segments += 1
            outcome.size_bytes += segment.size_bytes
            record(
                EntryKind.FILE_WRITTEN,
                {
                    "key": segment.key,
                    "part": segment.range.part,
                    "rows": segment.range.event_count,
                    "bytes": segment.size_bytes,
                    "created": file.created,
                },
            )

        record(EntryKind.WINDOW_STARTED, {"state": window.record.state.value, "events": window.event_count})
        sealed = seal_window(self._database, tenant, window.record)
        verified = archive_window(self._database, self._target, tenant, sealed, on_file=on_file)
        cut_over_window(self._database, sealed, verified)
        dropped = self._drop(tenant, sealed, verified, record, outcome)
        outcome.windows += 1
        outcome.events += window.event_count
        record(
            EntryKind.WINDOW_COMPLETED,
            {
                "events": window.event_count,
                "segments": len(verified),
                "dropped": dropped,
                "duration_ms": round((time.monotonic() - started) * 1000),
            },
        )

    def _drop(
        self,
        tenant: Tenant,
        sealed: WindowRecord,
        verified: list[VerifiedSegment],
        record: Callable[[EntryKind, dict[str, object]], None],
        outcome: TenantOutcome,
    ) -> bool:
        for attempt, pause_s in enumerate((*_DROP_PAUSES_S, None), start=1):
            try:
                timeout_ms = DROP_LOCK_TIMEOUT_MS if pause_s is not None else DROP_LAST_LOCK_TIMEOUT_MS
                drop_window(self._database, tenant, sealed, verified, lock_timeout_ms=timeout_ms)
                return True
            except BusyError as e:
                if pause_s is None:
                    # Archived and verified, so nothing is at risk: the next run finds it due and drops it.
                    outcome.warnings.append(f"window {sealed.window} not dropped yet: {e}")
                    record(EntryKind.WARNING, {"warning": str(e), "attempts": attempt})
                    return False
                record(EntryKind.RETRY, {"attempt": attempt, "reason": str(e), "backoff_s": pause_s})
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    @contextmanager
    def _exclusive(self, tenant: Tenant) -> Iterator[None]:
        """Hold the tenant's retention lock; it goes with the connection, so a killed run holds nothing."""
        key = retention_key(tenant.tenant_id)
        with self._database.connection() as conn:
            row = conn.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
            if row is None or not row[0]:
                raise BusyError(
                    f"another run is working on {tenant.tenant_id!r}", hint="wait for it, then run again"
                )
            try:
                yield
            finally:
                # A lost connection has lost the lock as well.
                with suppress(psycopg.OperationalError):
                    conn.execute("SELECT pg_advisory_unlock(%s)", [key])


def _plan_detail(plan: TenantPlan) -> dict[str, object]:
    return {
        "due": [
            {
                "from": to_iso(w.record.window.from_us),
                "to": to_iso(w.record.window.to_us),
                "state": w.record.state.value,
                "events": w.event_count,
                "first_seq": w.record.first_seq,
            }
            for w in plan.due
        ],
        "hot_windows": plan.hot_windows,
    }
