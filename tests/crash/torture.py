"""Workers and a scheduler at work on a store that lives fast, all killed and stopped at random.

Four `eventstore worker` and a scheduler, whose clock goes a quarter of an hour a second: each hour a window
of each tenant begins, and an older one is archived, moved, moved on, and destroyed. Appenders and a reader
are at work; they are not killed. At the end every window was done once, nothing was lost, nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from tests.crash.child import FURTHER_TARGETS, Simulated
from tests.crash.world import HOUR_US, Process, World
from tests.waiting import until

__all__ = ["POLICY", "SEEDED_HOURS", "Torture"]

SEEDED_HOURS = 5
SPEED = 900.0
WORKERS = 4
# Long enough to outlast a lease (1 s), and short enough to wake up in the window's same tier.
SLEEP_S = (1.2, 2.5)
# Each strike has a process start anew, which takes a core for a second or two: with more of them nobody would
# be at work.
PAUSE_S_MAX = 2.4
# A run as long as this has to show each kind of step.
_LONG_S = 60.0
POLICY = Policy(
    WindowUnit.HOUR,
    HOUR_US,
    tuple(ArchiveTier(name, 2 * HOUR_US) for name in ("archive", *FURTHER_TARGETS)),
    Ending.EXPIRE,
)
SETTINGS = {
    "lease": "1s",
    "workers_max": "4",
    "retention_schedule": "every 30m",
    "expiry_schedule": "every 30m",
    "precreate_schedule": "every 30m",
    "expiry_notice": "0s",
    "scrub_schedule": "never",
}


@dataclass
class Torture:
    """One run. `start_us` is the simulated time at which it begins: the end of what was seeded."""

    world: World
    start_us: int
    seconds: float
    seed: int
    kills: int = 0
    stops: int = 0
    lives: int = 0
    working: dict[str, Process] = field(default_factory=dict)
    wake_at: dict[str, float] = field(default_factory=dict)

    def run(self) -> str:
        """All of it; a line that sums it up."""
        clock = Simulated(f"{time.time()},{self.start_us},{SPEED}")
        world = self.world
        appenders = [world.appender(n, "--simulated", clock, clock_us=0) for n in ("first", "second")]
        reader = world.reader()
        for name in [*(f"worker-{n}" for n in range(WORKERS)), "scheduler"]:
            self._start(name, clock)
        world.wait_progress(*appenders, reader)
        chosen = random.Random(self.seed)
        ends = time.monotonic() + self.seconds
        while time.monotonic() < ends:
            # This sleep is the experiment: the moment of death.
            time.sleep(chosen.random() * PAUSE_S_MAX)
            self._strike(chosen, clock)
            for process in (*appenders, reader):
                assert process.status is None, f"{process.name} ended: {world.host.log.read_text()[-5000:]}"
        self._calm_down(clock)
        return self._judge()

    def _start(self, name: str, clock: Simulated) -> None:
        self.lives += 1
        job = ("schedule", "--simulated", clock) if name == "scheduler" else ("command", "--argv", "worker")
        self.working[name] = self.world.start(job[0], name, *job[1:], stoppable=False)

    def _strike(self, chosen: random.Random, clock: Simulated) -> None:
        now = time.monotonic()
        for name in [name for name, at in self.wake_at.items() if at <= now]:
            self._wake(name)
        victim = chosen.choice(sorted(self.working))
        assert self.working[victim].status is None, self.world.host.log.read_text()[-5000:]
        if chosen.random() < 0.3:
            if victim not in self.wake_at:
                os.kill(self.working[victim].pid, signal.SIGSTOP)
                self.stops += 1
                self.wake_at[victim] = now + chosen.uniform(*SLEEP_S)
            return
        self.working[victim].kill()  # also one that is stopped
        self.kills += 1
        self.wake_at.pop(victim, None)
        self._start(victim, clock)

    def _wake(self, name: str) -> None:
        del self.wake_at[name]
        os.kill(self.working[name].pid, signal.SIGCONT)

    def _calm_down(self, clock: Simulated) -> None:
        """Nobody is killed any more: what is left is done, and everybody goes."""
        world = self.world
        for name in list(self.wake_at):
            self._wake(name)
        world.stop.touch()
        for process in world.processes:
            if process not in self.working.values():
                assert process.wait() in (0, -signal.SIGKILL), f"{process.name}: {world.host.log.read_text()}"
        self.working.pop("scheduler").end()
        now_us = clock.now_us()
        for kind in (RunKind.RETENTION, RunKind.EXPIRY, RunKind.RETENTION):
            world.plan(now_us, kind)
            while self._unfinished():
                # A governor that has gone may have left a low limit, and the store has lived fast.
                done = self._done()
                until(lambda done=done: self._done() > done or not self._unfinished(), "the workers go on")
        for process in self.working.values():
            process.end()

    def _unfinished(self) -> int:
        """How many tasks are left; each worker is there."""
        for name, process in self.working.items():
            assert process.status is None, f"{name}: {self.world.host.log.read_text()[-5000:]}"
        return self.world.unfinished()

    def _done(self) -> int:
        """How many tasks have ended."""
        ((count,),) = self.world.query("SELECT count(*) FROM tasks WHERE state NOT IN ('waiting', 'running')")
        return int(count)

    def _judge(self) -> str:
        world = self.world
        report = world.check(orphans_allowed=False)
        done = self._completed()
        statuses = dict(world.query("SELECT status, count(*) FROM runs GROUP BY 1"))
        assert statuses.keys() <= {"completed", "interrupted", "failed"}, statuses
        ((unfinished, states),) = world.query(
            "SELECT count(*) FILTER (WHERE state IN ('sealed', 'archived')),"
            " json_object_agg(state, found)::text"
            " FROM (SELECT state, count(*) AS found FROM windows GROUP BY 1) s"
        )
        assert unfinished == 0, states
        if self.seconds >= _LONG_S:
            assert all(done.values()), f"too slow a machine for this: {done} windows"
        acknowledged = sum(len(pairs) for pairs in world.acknowledged().values())
        errors = world.query(
            "SELECT DISTINCT detail ->> 'error' FROM run_entries WHERE kind = 'window_failed'"
        )
        return (
            f"torture: {self.seconds:.0f} s, seed {self.seed}: {self.kills} kills, {self.stops} stops, "
            f"{self.lives} lives; {json.dumps(done)} windows done once; {acknowledged} events acknowledged, "
            f"{report.events} there, {report.destroyed} certified as destroyed; runs {statuses}; "
            f"windows {states}; failures {[error for (error,) in errors]}"
        )

    def _completed(self) -> Mapping[str, int]:
        """How many windows were archived, moved and destroyed: each once, as the journals tell."""
        told = self.world.query(
            "SELECT tenant_id, window_from, detail ->> 'action', count(*) FROM run_entries"
            " WHERE kind = 'window_completed' GROUP BY 1, 2, 3"
        )
        by_window = {(tenant, start, action): count for tenant, start, action, count in told}
        expected = self.world.query(
            "SELECT tenant_id, window_from, 'archive', 1 FROM windows WHERE state <> 'open'"
            " UNION ALL SELECT tenant_id, window_from, 'expire', 1 FROM windows WHERE state = 'expired'"
            " UNION ALL SELECT tenant_id, window_from, 'move', count(DISTINCT target) FROM removals"
            " WHERE reason = 'moved' GROUP BY 1, 2"
        )
        wanted = {(tenant, start, action): count for tenant, start, action, count in expected}
        odd = {k for k in by_window.keys() | wanted.keys() if by_window.get(k, 0) != wanted.get(k, 0)}
        assert not odd, {k: f"told {by_window.get(k, 0)} times, done {wanted.get(k, 0)} times" for k in odd}
        return {
            action: sum(count for (*_, one), count in wanted.items() if one == action)
            for action in ("archive", "move", "expire")
        }
