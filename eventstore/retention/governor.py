"""The governor: how many windows may be worked on at once, so that whoever appends does not suffer.

Additive increase, multiplicative decrease, as TCP does it: half as many at once when something is under
pressure, one more after a time of calm. Every change is written into the journals of the runs under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.archive.targets import Targets
from eventstore.db.engine import Database
from eventstore.db.tables import governor, pulses, run_entries, runs, tasks
from eventstore.model.run import ParallelismAdjusted, RunStatus, TaskState
from eventstore.retention.journal import Journal

__all__ = ["Governor", "Signals", "next_parallelism"]

# Appends are slow when their p99 is this many times what it is at rest, and this much more.
_SLOW_RATIO, _SLOW_MS = 2.0, 5.0
# So many checkpoints that were asked for, rather than timed, within the last minute crowd.
_CHECKPOINTS_CROWD, _CHECKPOINTS_WITHIN_S = 2, 60
_CALM_STEPS = 5
_PULSE_AGE_S = 10
_RESTS_KEPT = 30

_PG17 = 170000


@dataclass(frozen=True, slots=True)
class Signals:
    """What is felt at a moment. `append_p99_ms` None: nobody appends. `rest_p99_ms` None: not known yet."""

    append_p99_ms: float | None
    rest_p99_ms: float | None
    checkpoints: int
    pushback: int

    def pressure(self) -> str | None:
        """What is under pressure, in words; None: nothing is."""
        if self.append_p99_ms is not None and self.rest_p99_ms is not None:
            slow_ms = max(self.rest_p99_ms * _SLOW_RATIO, self.rest_p99_ms + _SLOW_MS)
            if self.append_p99_ms > slow_ms:
                return (
                    f"appends slowed down: p99 {self.append_p99_ms:.0f} ms, {self.rest_p99_ms:.0f} ms at rest"
                )
        if self.checkpoints >= _CHECKPOINTS_CROWD:
            return f"checkpoints crowd: {self.checkpoints} asked for within a minute"
        if self.pushback:
            return f"a target pushed back {self.pushback} times"
        return None


def next_parallelism(now: int, most: int, signals: Signals, calm_steps: int) -> tuple[int, str | None]:
    """How many next, and why (None: no change)."""
    pressure = signals.pressure()
    if pressure is not None:
        return max(1, now // 2), pressure if now > 1 else None
    if now > most:
        return most, "the settings allow no more"
    if calm_steps >= _CALM_STEPS and now < most:
        return now + 1, "calm again"
    return now, None


class Governor:
    """Feels and steers, a step at a time. `most` is the upper limit. One at a time for a deployment."""

    def __init__(self, database: Database, targets: Targets, *, most: int) -> None:
        self._database = database
        self._targets = targets
        self._most = most
        self._calm = 0
        self._rests: deque[float] = deque(maxlen=_RESTS_KEPT)
        self._checkpoints: deque[tuple[float, int]] = deque()
        self._pushback = 0
        self._last_entry = 0

    def step(self) -> int:
        """Look once, and change the limit if need be; the limit."""
        signals = self._feel()
        self._calm = 0 if signals.pressure() else self._calm + 1
        with self._database.transaction() as conn:
            now = conn.execute(sa.select(governor.c.parallelism).with_for_update()).scalar_one_or_none()
            if now is None:
                conn.execute(
                    insert(governor)
                    .values(parallelism=self._most, reason="at the start")
                    .on_conflict_do_nothing()
                )
                return self._most
            conn.execute(sa.update(governor).values(felt_at=sa.func.clock_timestamp()))
            to, reason = next_parallelism(now, self._most, signals, self._calm)
            if to == now or reason is None:
                return int(now)
            conn.execute(sa.update(governor).values(parallelism=to, reason=reason, changed_at=sa.func.now()))
            adjusted = ParallelismAdjusted(from_=now, to=to, reason=reason)
            active = sa.select(runs.c.run_id).where(runs.c.status == RunStatus.RUNNING.value)
            for run_id in conn.execute(active).scalars().all():
                Journal(self._database, run_id).record_in(conn, adjusted)
        self._calm = 0
        return to

    def _feel(self) -> Signals:
        with self._database.transaction() as conn:
            p99 = conn.execute(
                sa.select(sa.func.max(pulses.c.p99_ms)).where(
                    pulses.c.at
                    > sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, _PULSE_AGE_S)
                )
            ).scalar_one()
            working = conn.execute(
                sa.select(sa.func.count()).where(tasks.c.state == TaskState.RUNNING.value)
            ).scalar_one()
            checkpoints, now_s = self._checkpoints_asked(conn)
            pushback = self._pushback_since(conn)
        if p99 is not None and not working:
            self._rests.append(p99)
        self._checkpoints.append((now_s, checkpoints))
        while now_s - self._checkpoints[0][0] > _CHECKPOINTS_WITHIN_S:
            self._checkpoints.popleft()
        return Signals(
            append_p99_ms=p99,
            rest_p99_ms=median(self._rests) if self._rests else None,
            checkpoints=checkpoints - self._checkpoints[0][1],
            pushback=pushback,
        )

    def _checkpoints_asked(self, conn: sa.Connection) -> tuple[int, float]:
        version = conn.exec_driver_sql("SELECT current_setting('server_version_num')::int").scalar_one()
        view = (
            "SELECT num_requested FROM pg_stat_checkpointer"
            if version >= _PG17
            else "SELECT checkpoints_req FROM pg_stat_bgwriter"
        )
        asked = conn.exec_driver_sql(view).scalar_one()
        now_s = conn.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float").scalar_one()
        return int(asked), float(now_s)

    def _pushback_since(self, conn: sa.Connection) -> int:
        """How often targets pushed back since the last look: as felt here, and as journals tell it."""
        here = sum(int(getattr(t, "pushback", 0)) for t in self._targets.opened().values())
        felt, self._pushback = here - self._pushback, here
        last = conn.execute(sa.select(sa.func.coalesce(sa.func.max(run_entries.c.entry_no), 0))).scalar_one()
        told = conn.execute(
            sa.select(sa.func.count()).where(
                run_entries.c.entry_no > (self._last_entry or last),
                run_entries.c.kind == "retry",
                run_entries.c.detail["what"].astext == "target",
            )
        ).scalar_one()
        self._last_entry = last
        return max(0, felt) + int(told)
