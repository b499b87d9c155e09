"""The parent's side: a store with a past, the processes that work on it, and the judgement after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from eventstore.app import open_store
from eventstore.clock import US_PER_S, parse_time_us
from eventstore.db.engine import Database
from eventstore.governance.tenants import create_tenant
from eventstore.hot.batch import pending_batch
from eventstore.hot.log import log_transaction
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from eventstore.settings import Settings
from eventstore.testing.invariants import Report, check_store
from tests.crash.child import FURTHER_TARGETS, Acks, new_event
from tests.waiting import DEADLINE_S, until

__all__ = ["BASE_US", "HOUR_US", "TENANTS", "TIERED", "UNTIERED", "Host", "Process", "World", "seed"]

TENANTS = ("alpha", "beta")
HOUR_US = 3600 * US_PER_S
BASE_US = parse_time_us("2024-03-01T00:00:00Z")
SEED_HOURS = 2
SEED_EVENTS = 40  # a tenant and hour

# Windows are due as soon as they end. Ten hours in each tier, and then no more.
UNTIERED = Policy(WindowUnit.HOUR, 0)
TIERED = Policy(
    WindowUnit.HOUR,
    0,
    tuple(ArchiveTier(name, 10 * HOUR_US) for name in ("archive", *FURTHER_TARGETS)),
    Ending.EXPIRE,
)


class Process:
    """A child of the host. `status` is None while it lives, then its exit code (-9: SIGKILL)."""

    def __init__(self, name: str, pid: int, out: Path, ended: threading.Event, log: Path) -> None:
        self.name, self.pid, self.out, self.log = name, pid, out, log
        self.status: int | None = None
        self.ended = ended

    def kill(self) -> None:
        """SIGKILL, and wait until the host has reaped it."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def is_stopped(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0] == "T"

    def end(self) -> None:
        """SIGTERM, and wait until it has ended well."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.wait() == 0, self.log.read_text()

    def wait(self) -> int:
        assert self.ended.wait(DEADLINE_S), f"{self.name} did not end; {self.log.read_text()}"
        assert self.status is not None
        return self.status

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.exists() else []


class Host:
    """The client of `tests.crash.host`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.host"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        self._lock = threading.Lock()
        self._started: list[int] = []
        self._came = threading.Condition()
        self._processes: dict[int, Process] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(self, name: str, out: Path, argv: list[str]) -> Process:
        with self._lock:
            assert self._popen.stdin is not None
            self._popen.stdin.write(json.dumps({"argv": argv, "name": name}) + "\n")
            self._popen.stdin.flush()
            with self._came:
                assert self._came.wait_for(lambda: self._started, DEADLINE_S), self.log.read_text()
                process = self._processes[self._started.pop()]
                process.name, process.out = name, out
                return process

    def close(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait(DEADLINE_S)
        self._thread.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            message: dict[str, int] = json.loads(line)
            with self._came:
                if "status" in message:
                    process = self._processes.pop(message["pid"])
                    process.status = message["status"]
                    process.ended.set()
                else:
                    pid = message["pid"]
                    self._processes[pid] = Process("", pid, Path(), threading.Event(), self.log)
                    self._started.append(pid)
                self._came.notify_all()


def seed(
    url: str, policy: Policy = UNTIERED, *, start_us: int = BASE_US, hours: int = SEED_HOURS
) -> dict[str, list[tuple[int, bytes]]]:
    """Tenants with hourly windows, so many of them closed."""
    database = Database(url)
    database.open()
    stored: dict[str, list[tuple[int, bytes]]] = {}
    try:
        for tenant in TENANTS:
            create_tenant(database, tenant, policy)
            count = hours * SEED_EVENTS
            times = start_us + np.arange(count, dtype=np.int64) * (HOUR_US // SEED_EVENTS)
            with database.connection() as conn, log_transaction(conn, tenant, {}) as log:
                ids = log.write(pending_batch([new_event(n, None) for n in range(count)]), times)
            stored[tenant] = list(enumerate(ids.to_pylist(), start=1))
    finally:
        database.close()
    return stored


class World:
    """One store, and everyone at work on it."""

    def __init__(
        self, host: Host, url: str, folder: Path, seeded: dict[str, list[tuple[int, bytes]]]
    ) -> None:
        self.host, self.url, self.folder, self.seeded = host, url, folder, seeded
        self.archive = folder / "archive"
        self.archive.mkdir(exist_ok=True)
        self.stop = folder / "stop"
        self._acks: dict[Path, Acks] = {}
        self.processes: list[Process] = []

    # --- processes ------------------------------------------------------------------------------------

    def start(self, job: str, name: str, *more: object, stoppable: bool = True) -> Process:
        out = self.folder / f"{name}.lines"
        argv = [job, "--url", self.url, "--archive", str(self.archive), "--out", str(out)]
        argv += ["--stop", str(self.stop)] if stoppable else []
        process = self.host.start(name, out, [*argv, *map(str, more)])
        self.processes.append(process)
        return process

    def appender(
        self, name: str, *more: object, clock_us: int, tenants: tuple[str, ...] = TENANTS
    ) -> Process:
        path = self.folder / f"{name}.lines"
        self._acks.setdefault(path, Acks(path))
        return self.start("append", name, "--tenants", ",".join(tenants), "--clock", clock_us, *more)

    def reader(self, name: str = "reader") -> Process:
        return self.start("read", name, "--tenants", ",".join(TENANTS), "--acks", *map(str, self._acks))

    def retention(self, name: str, now_us: int, *more: object) -> Process:
        return self.start("retain", name, "--now", now_us, *more, stoppable=False)

    def worker(self, name: str, *more: object, lease_s: float = 0.5) -> Process:
        """A worker; Postgres soon ends its transactions if it is stopped in one. Ready when this returns."""
        process = self.start("work", name, "--lease", lease_s, "--idle", "700ms", *more, stoppable=False)
        until(lambda: process.lines() or process.status is not None, f"{name} is ready")
        assert process.status is None, self.host.log.read_text()
        return process

    def plan(self, now_us: int, kind: RunKind = RunKind.RETENTION) -> None:
        """Plan a run, and leave the work to the workers."""
        settings = Settings(
            database_url=self.url,
            home=self.folder,
            archive_url=self.archive.as_uri(),
            targets={name: (self.folder / name).as_uri() for name in FURTHER_TARGETS},
        )
        with open_store(settings) as store:
            store.compactor.start(store.compactor.tenants(), now_us, order=RunOrder(kind))

    def run_retention(self, name: str, now_us: int, *more: object) -> dict[str, Any]:
        """A whole run that nothing disturbs; its report."""
        process = self.retention(name, now_us, *more)
        assert process.wait() == 0, f"{name} failed: {self.host.log.read_text()}"
        report: dict[str, Any] = json.loads(process.lines()[-1])
        return report

    def finish(self) -> None:
        """Ask everybody to stop; nobody may have ended by an error (a reader's assertion is one)."""
        self.stop.touch()
        for process in self.processes:
            assert process.wait() in (0, -signal.SIGKILL), f"{process.name}: {self.host.log.read_text()}"

    def end(self) -> None:
        """Kill what is left, after a test that failed."""
        for process in self.processes:
            process.kill()

    # --- conditions -----------------------------------------------------------------------------------

    def acknowledged(self) -> dict[str, list[tuple[int, bytes]]]:
        """Every acknowledged event, whoever appended it."""
        found = {tenant: list(pairs) for tenant, pairs in self.seeded.items()}
        for acks in self._acks.values():
            for tenant, pairs in acks.refresh().items():
                found.setdefault(tenant, []).extend(pairs)
        return found

    def wait_progress(self, *processes: Process, lines: int = 1) -> None:
        """Until each has reported that many more lines than it has now."""
        targets = [(p, len(p.lines()) + lines) for p in processes]
        for process, target in targets:
            until(
                lambda p=process, t=target: len(p.lines()) >= t or p.status is not None,
                f"{process.name} goes on",
            )
            assert process.status is None, f"{process.name} ended: {self.host.log.read_text()}"

    def wait_gone(self, *names: str) -> None:
        """Until Postgres has noticed that the connections of killed processes are dead. Their locks and
        open transactions go with them."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            until(
                lambda: conn.execute(
                    "SELECT NOT EXISTS (SELECT FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = ANY(%s))",
                    [list(names)],
                ).fetchone()[0],
                f"the connections of {names} are gone",
            )

    def query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            return conn.execute(query.encode(), parameters).fetchall()

    def first_window(self) -> tuple[str, str | None]:
        """The state of the first tenant's first window, and its target."""
        query = "SELECT state, target FROM windows WHERE tenant_id = %s ORDER BY window_from LIMIT 1"
        ((state, target),) = self.query(query, TENANTS[0])
        return state, target

    def first_window_state(self) -> str:
        return self.first_window()[0]

    def unfinished(self) -> int:
        """How many tasks are waiting or worked on."""
        ((count,),) = self.query("SELECT count(*) FROM tasks WHERE state IN ('waiting', 'running')")
        return int(count)

    # --- judgement ------------------------------------------------------------------------------------

    def check(self, *, orphans_allowed: bool = True) -> Report:
        """The independent checker's word, on the store as it is now, appends in flight or not."""
        acknowledged = self.acknowledged()
        folders = {path.name: path for path in (self.archive, *(self.folder / n for n in FURTHER_TARGETS))}
        report = check_store(self.url, folders, acknowledged=acknowledged)
        assert not report.violations, str(report)
        assert orphans_allowed or not report.orphans, str(report)
        return report

    def check_completed_once(self) -> int:
        """No action on a window was completed twice, whatever was in the way; how many were."""
        rows = self.query(
            "SELECT tenant_id, window_from, detail ->> 'action', count(*) FROM run_entries"
            " WHERE kind = 'window_completed' GROUP BY 1, 2, 3"
        )
        assert all(count == 1 for *_, count in rows), rows
        return len(rows)


@contextmanager
def a_world(
    host: Host, url: str, folder: Path, seeded: dict[str, list[tuple[int, bytes]]]
) -> Iterator[World]:
    world = World(host, url, folder, seeded)
    try:
        yield world
    finally:
        world.end()
