"""What a window costs in a run, as the number of tenants of whom nothing is due grows."""

from __future__ import annotations

import time
from functools import partial

from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.run import RunStatus
from eventstore.model.window import Window, WindowUnit
from tests.bench.events import load_window
from tests.bench.lab import Lab
from tests.bench.measure import Measured, Row

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)
_DAY_US = 86_400_000_000
_LATER = Window(_DAY.from_us + 9 * _DAY_US, _DAY.to_us + 9 * _DAY_US)

ROWS = (Row("a run's cost per window with 5,000 tenants", "with 100 tenants", "ms", at_most=1.3),)


def run(lab: Lab) -> list[Measured]:
    """100 windows that are due, of as many tenants, among others of whom nothing is."""
    few, many = 100, lab.size(5_000, 500)
    due, rows = 100, 20

    def build(database: Database, *, tenants: int) -> None:
        for number in range(tenants):
            name = f"t-{number}"
            create_tenant(database, name, Policy(WindowUnit.DAY, 0))
            # By name, those that are due lie among the others, whose windows are still open.
            is_due = number < due
            load_window(database, name, _DAY if is_due else _LATER, rows)

    found: dict[int, list[float]] = {few: [], many: []}
    for tenants in (few, many):
        lab.say(f"making {tenants:,} tenants, {due} of them with a window that is due")
        with lab.site(f"runs-{tenants}", partial(build, tenants=tenants)) as site, site.store() as store:
            lab.checkpoint()
            # Copying a database of so many tables takes minutes: one run, in as many parts as there are runs.
            every = store.compactor.tenants()
            for part in range(lab.runs):
                started = time.perf_counter()
                report = store.compactor.run(every[part :: lab.runs], _DAY.to_us + 3600 * 10**6)
                elapsed_ms = (time.perf_counter() - started) * 1000
                found[tenants].append(elapsed_ms / sum(o.windows for o in report.outcomes))
                assert report.status is RunStatus.COMPLETED, report.outcomes[:3]
        lab.forget(f"runs-{tenants}")
    notes = [f"{due} windows of {rows} events are due, of as many tenants; planning included."]
    return [Measured(ROWS[0], found[many], found[few], notes)]
