"""What a run did for each tenant, as its journal says: several processes may have had a hand in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import sqlalchemy as sa

from eventstore.clock import US_PER_S, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs, tasks
from eventstore.model.run import (
    FileWritten,
    PlanWarning,
    RunCompleted,
    RunReport,
    RunStatus,
    TaskState,
    TenantOutcome,
    Warned,
    WindowCompleted,
    WindowFailed,
    entry_from,
)

__all__ = ["report_of", "summary_of"]


def report_of(database: Database, run_id: uuid.UUID, tenants: Iterable[str]) -> RunReport:
    """The outcome of a run for these tenants, those without anything due included."""
    outcomes = {tenant_id: TenantOutcome(tenant_id) for tenant_id in tenants}
    query = (
        sa.select(run_entries.c.tenant_id, run_entries.c.kind, run_entries.c.detail)
        .where(run_entries.c.run_id == run_id, run_entries.c.tenant_id.is_not(None))
        .order_by(run_entries.c.entry_no)
    )
    with database.transaction() as conn:
        status = RunStatus(conn.execute(sa.select(runs.c.status).where(runs.c.run_id == run_id)).scalar_one())
        for tenant_id, kind, detail in conn.execute(query):
            outcome = outcomes.setdefault(tenant_id, TenantOutcome(tenant_id))
            match entry_from(kind, detail):
                case WindowCompleted() as done:
                    outcome.windows += 1
                    outcome.events += done.events
                    outcome.duration_s += done.duration_ms / 1000
                case FileWritten() as file:
                    outcome.segments += 1
                    outcome.size_bytes += file.size_bytes
                case WindowFailed(error=error) | PlanWarning(message=error, failed=True):
                    outcome.error = outcome.error or error
                case Warned(message=message) | PlanWarning(message=message):
                    outcome.warnings.append(message)
    return RunReport(run_id, status, list(outcomes.values()))


def summary_of(database: Database, run_id: uuid.UUID) -> RunCompleted:
    """How a run ended, as its tasks and its journal say."""
    detail = run_entries.c.detail
    with database.transaction() as conn:
        run = conn.execute(
            sa.select(runs.c.started_at, sa.func.clock_timestamp().label("now")).where(
                runs.c.run_id == run_id
            )
        ).one()
        counts: dict[str, int] = {
            row.state: row.found
            for row in conn.execute(
                sa.select(tasks.c.state, sa.func.count().label("found"))
                .where(tasks.c.run_id == run_id)
                .group_by(tasks.c.state)
            )
        }
        events = conn.execute(
            sa.select(sa.func.coalesce(sa.func.sum(detail["events"].astext.cast(sa.BigInteger)), 0)).where(
                run_entries.c.run_id == run_id, run_entries.c.kind == "window_completed"
            )
        ).scalar_one()
        error = conn.execute(
            sa.select(sa.func.coalesce(detail["error"].astext, detail["message"].astext))
            .where(
                run_entries.c.run_id == run_id,
                sa.or_(
                    run_entries.c.kind == "window_failed",
                    sa.and_(run_entries.c.kind == "plan_warning", detail["failed"].astext.cast(sa.Boolean)),
                ),
            )
            .order_by(run_entries.c.entry_no)
            .limit(1)
        ).scalar_one_or_none()
    failed = counts.get(TaskState.FAILED.value, 0) + counts.get(TaskState.BLOCKED.value, 0)
    return RunCompleted(
        status=RunStatus.FAILED if error is not None or failed else RunStatus.COMPLETED,
        duration_ms=(to_us(run.now) - to_us(run.started_at)) * 1000 // US_PER_S,
        windows=counts.get(TaskState.DONE.value, 0),
        windows_failed=failed,
        events=int(events),
        error=error,
    )
