"""What runs unattended: workers that take tasks until they are stopped, and the jobs of the scheduler."""

from __future__ import annotations

import logging

import psycopg
import sqlalchemy as sa

from eventstore.db.engine import Database
from eventstore.db.partitions import drop_unused_leaves, prepare_leaf
from eventstore.db.tables import heads, tenants
from eventstore.errors import EventStoreError
from eventstore.model.run import RunKind
from eventstore.model.schedule import Schedule
from eventstore.model.window import Window, WindowUnit
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.retention.governor import Governor
from eventstore.retention.scheduler import Job
from eventstore.retention.task import Stopped

__all__ = ["precreate", "retention_jobs", "work_until_stopped"]

_log = logging.getLogger(__name__)

_IDLE_S = 1.0
_GOVERN_US = 2_000_000
_LOST_S = 2.0
_REQUESTED_BY = "scheduler"
# A table is made ahead this long before its window begins (in µs), at the most; and removed, if nothing
# came, this long after it began.
_AHEAD_US = 3_600_000_000
_UNUSED_US = 40 * 86_400_000_000
# Tenants without events for this long get no tables ahead.
_QUIET_US = 40 * 86_400_000_000


def work_until_stopped(compactor: Compactor) -> None:
    """Take tasks, one at a time, until the compactor's `stop` is set. What it holds is then given back."""
    with compactor.worker() as worker:
        while not compactor.stop.is_set():
            try:
                if not worker.do_next():
                    compactor.stop.wait(_IDLE_S)
            except Stopped:
                return
            except (EventStoreError, psycopg.Error, sa.exc.SQLAlchemyError) as e:
                _log.warning("the worker cannot go on now: %s", e)
                compactor.stop.wait(_LOST_S)


def retention_jobs(
    database: Database,
    compactor: Compactor,
    *,
    retention: Schedule,
    expiry: Schedule,
    precreation: Schedule,
    notice_us: int,
    governor: Governor,
) -> dict[str, Job]:
    """The scheduler's jobs that plan runs (workers do the work), the one that makes tables ahead, and the
    governor."""

    def plan(kind: RunKind, now_us: int) -> object:
        order = RunOrder(kind, _REQUESTED_BY, notice_us)
        return compactor.start(compactor.tenants(), now_us, order=order)

    return {
        "retention": Job(retention, lambda now_us: plan(RunKind.RETENTION, now_us)),
        "expiry": Job(expiry, lambda now_us: plan(RunKind.EXPIRY, now_us)),
        "precreate": Job(precreation, lambda now_us: precreate(database, now_us)),
        "governor": Job(Schedule(every_us=_GOVERN_US), lambda _: governor.step()),
    }


def precreate(database: Database, now_us: int) -> int:
    """Make the tables of windows that begin within the hour, for tenants that were written to lately, and
    remove those into which nothing came; how many were made."""
    query = sa.select(tenants.c.tenant_no, tenants.c.window_unit).join(
        heads, heads.c.tenant_id == tenants.c.tenant_id
    )
    query = query.where(heads.c.last_recorded_us > now_us - _QUIET_US, ~heads.c.closed)
    with database.transaction() as conn:
        found = conn.execute(query).all()
    made = 0
    with database.connection() as driver:
        for tenant_no, unit in found:
            ahead = Window.containing(WindowUnit(unit), now_us + _AHEAD_US)
            if ahead.from_us > now_us:
                with driver.transaction():
                    made += prepare_leaf(driver, tenant_no, ahead)
        try:
            drop_unused_leaves(driver, now_us - _UNUSED_US)
        except psycopg.errors.LockNotAvailable as e:
            _log.info("a table made ahead is in use, and looked at again next time: %s", e)
    return made
