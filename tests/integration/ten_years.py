"""A deployment under its scheduler on a simulated clock, and what people do to it.

`ten_years_judge` judges each of its days.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eventstore.app import Store, scheduler_of
from eventstore.clock import FixedClock, to_iso
from eventstore.errors import ConfirmationError
from eventstore.governance.holds import place_hold, release_hold
from eventstore.governance.policies import apply_change
from eventstore.governance.tenants import create_tenant, override_of
from eventstore.intake.importer import import_file
from eventstore.model.hold import HoldScope
from eventstore.model.policy import Policy
from eventstore.testing.faulty import FaultyTarget
from tests.integration.ten_years_judge import Figures, History, Judge, lifetime_us
from tests.unit.helpers import DAY_US, HOUR_US

__all__ = ["GRACE_DAYS", "Life"]

# When the scheduler's jobs are due each day.
RETENTION_AT_US, EXPIRY_AT_US = HOUR_US, 3 * HOUR_US
GRACE_DAYS = 7


class Life:
    """The deployment: its store, its scheduler, and its tenants' histories as the judge knows them."""

    def __init__(
        self, store: Store, clock: FixedClock, folders: Mapping[str, Path], histories: Sequence[History]
    ) -> None:
        self.store, self.clock, self.folders = store, clock, dict(folders)
        self.histories = {history.name: history for history in histories}
        self.figures = Figures()
        self._judge = Judge(store, folders, self.histories, self.figures)
        for history in histories:
            create_tenant(store.database, history.name, history.policies[0][1], now_us=clock.now_us())
        self._scheduler = scheduler_of(store, clock=clock)
        assert self._scheduler.lead()
        self._scheduler.tick(wait=True)  # from here on the jobs' times are counted

    def close(self) -> None:
        self._scheduler.close()
        self._judge.close()

    # --- what people do ---------------------------------------------------------------------------------

    def hold(self, tenant: str, name: str, **scope: Any) -> None:
        self.histories[tenant].holds[name] = HoldScope(**scope)
        now_us = self.clock.now_us()
        place_hold(self.store.database, tenant, name, "a court asked", "counsel", HoldScope(**scope), now_us)

    def release(self, tenant: str, name: str) -> None:
        del self.histories[tenant].holds[name]
        release_hold(self.store.database, tenant, name, "counsel", "settled", self.clock.now_us())

    def change_policy(self, tenant: str, policy: Policy) -> None:
        """Take a change; one that destroys sooner is refused without the count, and waits its grace."""
        history, now_us = self.histories[tenant], self.clock.now_us()
        before = history.policy_at(now_us)

        def apply(confirm: int | None = None) -> int:
            return apply_change(
                self.store.database,
                tenant,
                override_of(policy),
                actor="operator",
                reason="decided",
                now_us=now_us,
                known_targets=self.store.targets.names,
                confirm=confirm,
            ).effective_us

        if lifetime_us(policy) < lifetime_us(before):
            count = history.events_ended(now_us)
            for wrong in (None, count + 1):
                with pytest.raises(ConfirmationError) as refused:
                    apply(wrong)
                assert refused.value.events == count
            effective_us = apply(count)
            assert effective_us == now_us + GRACE_DAYS * DAY_US
        else:
            effective_us = apply()
            assert effective_us == now_us
        history.policies.append((effective_us, policy))

    def switch_off(self, target: str) -> None:
        faulty = FaultyTarget(self.store.targets[target])
        faulty.refused = True
        self.store.targets._open[target] = faulty
        self._judge.away = target

    def switch_on(self) -> None:
        name = self._judge.away
        assert name is not None
        faulty = self.store.targets._open[name]
        assert isinstance(faulty, FaultyTarget)
        self.store.targets._open[name] = faulty.inner
        self._judge.away = None

    def look_deep(self) -> None:
        """Read everything, unless a target is away."""
        self._judge.look_deep()

    @property
    def whole(self) -> bool:
        """Whether every target answers."""
        return self._judge.away is None

    # --- a day ------------------------------------------------------------------------------------------

    def day(self, midnight_us: int, *, led: bool = True, apart: bool = False) -> list[str]:
        """What came before this day is imported; then the scheduler does its work (unless nobody leads), at
        each job's own time (`apart`) or once, when both are due. Then the judge looks."""
        started = time.perf_counter()
        self.clock.move_to(midnight_us)
        for history in self.histories.values():
            self._import(history, midnight_us)
        imported = time.perf_counter()
        begun = []
        for at_us in (RETENTION_AT_US, EXPIRY_AT_US) if apart else (EXPIRY_AT_US,):
            self.clock.move_to(midnight_us + at_us)
            if led:
                begun += self._tick()
        worked = time.perf_counter()
        self._judge.look(self.clock.now_us(), led=led)
        self.figures.days += 1
        self.figures.spent("import", imported - started)
        self.figures.spent("scheduler and workers", worked - imported)
        self.figures.spent("judge", time.perf_counter() - worked)
        return begun

    def _import(self, history: History, before_us: int) -> None:
        end = bisect_left(history.times, before_us)
        if end == history.imported:
            return
        path = self.store.settings.resolved_home / f"{history.name}.{history.imported}.parquet"
        pq.write_table(history.rows.slice(history.imported, end - history.imported), path)
        report = import_file(
            self.store.database,
            history.name,
            path,
            recorded_at_column="occurred_at",
            value_bytes_max=self.store.settings.value_bytes_max,
            clock=self.clock,
        )
        path.unlink()
        assert (report.first_seq, report.last_seq) == (history.imported + 1, end)
        self.figures.events += end - history.imported
        history.imported = end

    def _tick(self) -> list[str]:
        started, done = time.perf_counter(), 0
        begun = self._scheduler.tick(wait=True)
        ticked = time.perf_counter()
        with self.store.compactor.worker() as worker:
            while worker.do_next():
                done += 1
        took_s = time.perf_counter() - started
        if not done:
            self.figures.idle_ms.append((ticked - started) * 1000)
        if took_s > self.figures.slowest_s:
            self.figures.slowest_s = took_s
            self.figures.slowest = f"{to_iso(self.clock.now_us())[:10]}, {done} windows"
        self._judge.look_at_runs(self.clock.now_us(), begun)
        return begun
