"""A fresh process that compacts one tenant, and says what that took: `big_windows` runs it."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from eventstore.app import open_store
from eventstore.clock import SystemClock
from eventstore.hot import drop as hot_drop
from eventstore.model.run import RunStatus
from eventstore.retention import archiving
from eventstore.settings import load_settings


def _peak_mb() -> float:
    """The process's greatest resident size so far.

    Not ru_maxrss where there is /proc: that includes what the parent had before exec (vfork shares it).
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def _main(tenant: str) -> None:
    statements: list[tuple[str, float]] = []
    drops: list[dict[str, float]] = []
    drop_window = hot_drop.drop_window

    def timed_drop(*arguments: Any, **options: Any) -> None:
        statements.clear()
        started = time.perf_counter()
        drop_window(*arguments, **options)
        total_ms = (time.perf_counter() - started) * 1000
        dropping_ms = sum(ms for statement, ms in statements if "DROP TABLE" in statement)
        other_ms = sum(ms for _, ms in statements) - dropping_ms
        drops.append(
            {
                "total_ms": total_ms,
                "drop_statement_ms": dropping_ms,
                "other_statements_ms": other_ms,
                # What is left is COMMIT above all, in which Postgres removes the files.
                "commit_ms": total_ms - dropping_ms - other_ms,
            }
        )

    # Where archiving looks it up.
    setattr(archiving, drop_window.__name__, timed_drop)
    with open_store(load_settings()) as store:
        began = 0.0

        def before(*_: Any) -> None:
            nonlocal began
            began = time.perf_counter()

        def after(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append((statement, (time.perf_counter() - began) * 1000))

        sa.event.listen(store.database.engine, "before_cursor_execute", before)
        sa.event.listen(store.database.engine, "after_cursor_execute", after)
        tenants = store.compactor.tenants(tenant)
        idle_mb = _peak_mb()
        started = time.perf_counter()
        report = store.compactor.run(tenants, SystemClock().now_us())
        elapsed_s = time.perf_counter() - started
    assert report.status is RunStatus.COMPLETED, report.outcomes
    answer = {
        "events": report.outcomes[0].events,
        "elapsed_s": elapsed_s,
        "idle_mb": idle_mb,
        "peak_mb": _peak_mb(),
        "arrow_peak_mb": pa.default_memory_pool().max_memory() / 1e6,
        **drops[0],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(sys.argv[1])
