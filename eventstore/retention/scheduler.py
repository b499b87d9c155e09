"""The scheduler: one leader among any number runs each job when its time has come.

When a job last began is in the database, so what was missed while nobody led is caught up once. A leader
that dies loses its advisory lock with its connection. One that only sleeps keeps it; so it also leaves a
heartbeat, and whoever finds that stale ends its connection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
import sqlalchemy as sa
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.dialects.postgresql import insert

from eventstore.clock import US_PER_S, Clock, from_us, to_us
from eventstore.db.engine import Database
from eventstore.db.locks import close_unlocked, scheduler_key
from eventstore.db.tables import jobs
from eventstore.errors import EventStoreError, InputError
from eventstore.model.schedule import Schedule

__all__ = ["Job", "Scheduler", "next_fire_us", "trigger_of"]

_log = logging.getLogger(__name__)

_HEARTBEAT = "leader"
_POLL_S = 1.0
_STALE_S = 15.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is done when; `work` is called with the time, in µs."""

    schedule: Schedule
    work: Callable[[int], object]


def trigger_of(schedule: Schedule) -> BaseTrigger | None:
    """APScheduler's trigger of a schedule; None: never.

    Raises:
        InputError: a cron line whose fields make no sense.
    """
    if schedule.every_us is not None:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        return IntervalTrigger(seconds=schedule.every_us / US_PER_S, start_date=epoch, timezone=UTC)
    if schedule.cron is not None:
        try:
            return CronTrigger.from_crontab(schedule.cron, timezone=UTC)
        except ValueError as e:
            raise InputError(
                f"{schedule.cron!r} is no cron line: {e}", hint="write minute, hour, day, month, weekday"
            ) from e
    return None


def next_fire_us(trigger: BaseTrigger, last_us: int) -> int | None:
    """The first time after `last_us` at which a trigger fires, in µs; None: never again."""
    found = trigger.get_next_fire_time(None, from_us(last_us) + timedelta(microseconds=1))
    return None if found is None else to_us(found)


def _is_waiting(trigger: BaseTrigger, last_us: int | None, now_us: int) -> bool:
    """Whether a job's record says that there is nothing to do about it."""
    if last_us is None or last_us > now_us:
        return False
    fire_us = next_fire_us(trigger, last_us)
    return fire_us is None or fire_us > now_us


class Scheduler:
    """Runs jobs while it leads. `tick` is one look, at the clock's time; `run` ticks until it is stopped."""

    def __init__(self, database: Database, jobs: Mapping[str, Job], clock: Clock) -> None:
        """
        Raises:
            InputError: a schedule makes no sense.
        """
        self._database = database
        self._clock = clock
        self._jobs = dict(jobs)
        self._triggers = {
            name: trigger for name, job in jobs.items() if (trigger := trigger_of(job.schedule)) is not None
        }
        self._leading: psycopg.Connection[tuple[object, ...]] | None = None
        self._running: dict[str, Future[object]] = {}
        self._executor = ThreadPoolExecutor(max(1, len(jobs)), "job")

    def run(self, stop: threading.Event) -> None:
        """Lead if nobody else does, and run what is due, until `stop` is set; then wait for what runs."""
        while not stop.is_set():
            try:
                if self.lead():
                    self.tick()
            except (EventStoreError, psycopg.Error, sa.exc.SQLAlchemyError) as e:
                # Postgres is away: whoever reaches it first when it is back leads.
                _log.warning("the scheduler cannot reach Postgres: %s", e)
                self._step_down()
            stop.wait(_POLL_S)
        self.close()

    def close(self) -> None:
        """Wait for the jobs that run, and let another lead."""
        self._executor.shutdown(wait=True)
        self._step_down()

    def lead(self) -> bool:
        """Lead if nobody else does; whether this one leads now."""
        if self._leading is not None:
            self._leading.execute("SELECT 1")
        else:
            conn = self._database.connect_apart()
            row = conn.execute("SELECT pg_try_advisory_lock(%s)", [scheduler_key()]).fetchone()
            if row is None or not row[0]:
                self._end_sleeper(conn)
                conn.close()
                return False
            self._leading = conn
            _log.info("this scheduler leads")
        self._leading.execute(
            "INSERT INTO jobs (job, last_started_us)"
            " VALUES (%s, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
            " ON CONFLICT (job) DO UPDATE SET last_started_us = excluded.last_started_us",
            [_HEARTBEAT],
        )
        return True

    def _end_sleeper(self, conn: psycopg.Connection[tuple[object, ...]]) -> None:
        """End the connection of a leader whose heartbeat has stopped: it lives, but does nothing."""
        conn.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l, jobs j"
            " WHERE j.job = %s AND j.last_started_us <"
            " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - %s"
            " AND l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
            [_HEARTBEAT, int(_STALE_S * US_PER_S), scheduler_key()],
        )

    def _step_down(self) -> None:
        if self._leading is not None:
            close_unlocked(self._leading)
            self._leading = None

    def tick(self, *, wait: bool = False) -> list[str]:
        """Begin every job whose time has come, once however often it was missed; their names. A job that
        still runs is not begun again. `wait`: until they have ended."""
        now_us = self._clock.now_us()
        begun = []
        with self._database.transaction() as conn:
            last = {row.job: row.last_started_us for row in conn.execute(sa.select(jobs))}
        for name, trigger in self._triggers.items():
            running = self._running.get(name)
            if running is not None and not running.done():
                continue
            # Most looks find nothing: no row is locked for that.
            if _is_waiting(trigger, last.get(name), now_us):
                continue
            if self._take(name, trigger, now_us):
                begun.append(name)
                self._running[name] = self._executor.submit(self._work, name, now_us)
                if wait:
                    self._running[name].result()
        return begun

    def _take(self, name: str, trigger: BaseTrigger, now_us: int) -> bool:
        """Whether a job is due; it counts as begun from here on. One that was never run is due at its next
        time."""
        with self._database.transaction() as conn:
            query = sa.select(jobs.c.last_started_us).where(jobs.c.job == name).with_for_update()
            last_us = conn.execute(query).scalar_one_or_none()
            if last_us is not None and last_us > now_us:
                # A clock was ahead once: without this the job would not run before that time has come.
                _log.warning("job %s began in the future, by its record; it counts as begun now", name)
                last_us = now_us
                conn.execute(sa.update(jobs).where(jobs.c.job == name).values(last_started_us=now_us))
            fire_us = None if last_us is None else next_fire_us(trigger, last_us)
            if last_us is None or (fire_us is not None and fire_us <= now_us):
                values = {"last_started_us": now_us}
                conn.execute(
                    insert(jobs)
                    .values(job=name, **values)
                    .on_conflict_do_update(index_elements=["job"], set_=values)
                )
        return last_us is not None and fire_us is not None and fire_us <= now_us

    def _work(self, name: str, now_us: int) -> object:
        try:
            return self._jobs[name].work(now_us)
        except Exception:  # noqa: BLE001 - the job's own journal or log says more; the others go on
            _log.exception("job %s failed", name)
            return None
