"""Peak memory of compacting a large window over a small one, and the time of dropping it over a tiny one."""

from __future__ import annotations

import json
import sys
from statistics import median

from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import Policy
from eventstore.model.window import Window, WindowUnit
from tests.bench.events import load_window
from tests.bench.lab import Lab, Site
from tests.bench.measure import Measured, Row, amount

__all__ = ["ROWS", "run"]

_DAY = Window.containing(WindowUnit.DAY, 1_760_000_000_000_000)

ROWS = (
    Row("peak memory of compacting 5 M rows", "of compacting 0.5 M rows", "MB", at_most=1.2),
    Row("peak memory of compacting 5 M rows", "a fixed limit", "MB", at_most=400, absolute=True),
    Row("reclaiming a 5 M-row window", "reclaiming a 10 k-row window", "ms", at_most=3),
)


def run(lab: Lab) -> list[Measured]:
    """A fresh process compacts each window of a copy of the same database, and times its drop."""
    sizes = {
        "large": lab.size(5_000_000, 300_000),
        "small": lab.size(500_000, 150_000),
        "tiny": lab.size(10_000, 2_000),
    }

    def build(database: Database) -> None:
        for name, rows in sizes.items():
            create_tenant(database, name, Policy(WindowUnit.DAY, 0))
            load_window(database, name, _DAY, rows)

    lab.say(f"loading {sum(sizes.values()):,} events")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sizes}
    for number in lab.rounds():
        with lab.site("big-windows", build) as site:
            for name in sizes if number % 2 else reversed(sizes):
                lab.checkpoint()
                found[name].append(_compact(site, name))
                assert found[name][-1]["events"] == sizes[name]
    lab.forget("big-windows")

    def values(name: str, key: str) -> list[float]:
        return [run[key] for run in found[name]]

    def parts(name: str) -> str:
        keys = {"drop_statement_ms": "DROP TABLE", "commit_ms": "COMMIT", "other_statements_ms": "the rest"}
        return ", ".join(f"{told} {amount(median(values(name, key)))} ms" for key, told in keys.items())

    memory = [
        f"{sizes['large']:,} and {sizes['small']:,} events. Of the peak, "
        f"{amount(median(values('large', 'idle_mb')))} MB is the process with the store open, before it "
        f"begins (Python, libraries); Arrow's pool (row groups, Parquet) peaked at "
        f"{amount(median(values('large', 'arrow_peak_mb')))} MB. The compaction ran at "
        f"{amount(sizes['large'] / median(values('large', 'elapsed_s')))} events/s.",
    ]
    reclaim = [f"{sizes['large']:,} events: {parts('large')}. {sizes['tiny']:,} events: {parts('tiny')}."]
    return [
        Measured(ROWS[0], values("large", "peak_mb"), values("small", "peak_mb"), memory),
        Measured(ROWS[1], values("large", "peak_mb")),
        Measured(ROWS[2], values("large", "total_ms"), values("tiny", "total_ms"), reclaim),
    ]


def _compact(site: Site, tenant: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.compact", tenant]
    answer: dict[str, float] = json.loads(Lab.finish(command, site, timeout_s=600))
    return answer
