"""What the processes do that are killed: append, retain, work, read, schedule, or a command of the program
itself, until they are told to stop or die.

`python -m tests.crash.child append|… --url … --archive … [--crash POINT]`. A process reports by writing
lines into its file, each with one write(2): what was written outlives kill -9, and a line is never half
there. A line in an ack file says that the append had returned.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from eventstore.app import Store, open_store, scheduler_of
from eventstore.archive import parquet
from eventstore.cli import main as cli
from eventstore.clock import US_PER_S, Clock, FixedClock
from eventstore.db import connections
from eventstore.errors import EventStoreError
from eventstore.hot import append as append_module
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.hot.group import GroupCommitter
from eventstore.model.event import NewEvent, uuid7
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunKind
from eventstore.retention import daemon, tasks
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from eventstore.testing.reference import chain_start, link
from tests.crash.injection import arm, halt

__all__ = ["FURTHER_TARGETS", "Acks", "Simulated", "main", "new_event"]

# Beside the archive's folder; nothing is in them unless a policy says so.
FURTHER_TARGETS = ("near", "deep")

_PACE_S = 0.02  # between two rounds of a worker: leaves the two cores to the others, nothing waits for it


class Lines:
    """An append-only file of lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *lines: str) -> None:
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())


class Acks:
    """The acknowledged events of one process: `tenant seq event_id` a line. Reads on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.events: dict[str, list[tuple[int, bytes]]] = {}

    def refresh(self) -> dict[str, list[tuple[int, bytes]]]:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            # What is being written at this moment may be seen in part.
            data = data[: data.rfind(b"\n") + 1]
            for line in data.decode().splitlines():
                tenant, seq, event_id = line.split()
                self.events.setdefault(tenant, []).append((int(seq), bytes.fromhex(event_id)))
            self._offset += len(data)
        return self.events


def new_event(number: int, event_id: bytes | None) -> NewEvent:
    return NewEvent(
        entity_type="account",
        entity_id=f"acc-{number % 7}",
        action="update",
        field="balance",
        old_value=msgspec.Raw(b"null" if number % 3 else b'{"a":1}'),
        new_value=msgspec.Raw(f'{{"n":{number},"t":"\u00e4\U0001f600"}}'.encode()),
        actor="crash",
        source="test",
        workspace_id=None if number % 2 else "w",
        event_id=None if event_id is None else uuid.UUID(bytes=event_id),
    )


def append(args: argparse.Namespace) -> None:
    """Rounds of appends, one request a tenant. An id whose append was not acknowledged before (because this
    process, or the server, died) is sent again first: it must be stored once, whether or not it was."""
    intents_path = args.out.with_suffix(".intents")
    rounds = list(_read_intents(intents_path))
    clock = args.simulated or FixedClock(args.clock + len(rounds) * args.step)
    with _store(args, clock) as store:
        committer = GroupCommitter(store.appender, workers=2)
        intents, acks = Lines(intents_path), Lines(args.out)
        acknowledged = {event_id for pairs in Acks(args.out).refresh().values() for _, event_id in pairs}
        for ids in rounds:
            _append_round(committer, acks, ids, {i for i in ids.values() if i not in acknowledged}, args)
        number = len(rounds)
        while not _stopped(args) and (args.count is None or number < args.count):
            if isinstance(clock, FixedClock):
                clock.move_to(args.clock + number * args.step)
            ids = {tenant: uuid7(clock.now_us()) for tenant in args.tenants}
            intents.write(" ".join(f"{tenant}={event_id.hex()}" for tenant, event_id in ids.items()))
            _append_round(committer, acks, ids, set(ids.values()), args)
            number += 1
        committer.close()


def _append_round(
    committer: GroupCommitter,
    acks: Lines,
    ids: dict[str, bytes],
    wanted: set[bytes],
    args: argparse.Namespace,
) -> None:
    waiting = {tenant: event_id for tenant, event_id in ids.items() if event_id in wanted}
    while waiting:
        futures = {
            tenant: committer.submit(
                tenant, AppendRequest([new_event(n, event_id if n == 0 else None) for n in range(args.batch)])
            )
            for tenant, event_id in waiting.items()
        }
        for tenant, future in futures.items():
            try:
                result: AppendResult = future.result()
            except (psycopg.Error, EventStoreError):
                if not args.persist or _stopped(args):
                    raise
                continue  # the server is gone: send it again
            acks.write(
                *(
                    f"{tenant} {seq} {event_id.hex()}"
                    for seq, event_id in zip(result.seqs, result.event_ids, strict=True)
                )
            )
            del waiting[tenant]
        _pace()


def _read_intents(path: Path) -> Iterator[dict[str, bytes]]:
    if path.exists():
        for line in path.read_text().splitlines():
            yield {t: bytes.fromhex(i) for t, i in (pair.split("=") for pair in line.split())}


def retain(args: argparse.Namespace) -> None:
    """Retention at a simulated time; with --loop over and over, behind the logs' own clocks."""
    out = Lines(args.out)
    with _store(args, None) as store:
        while True:
            now_us = args.now if args.now is not None else _behind_heads(store)
            order = RunOrder(RunKind(args.kind))
            report = store.compactor.run(store.compactor.tenants(), now_us, order=order)
            out.write(
                msgspec.json.encode(
                    {
                        "status": report.status.value,
                        "windows": sum(o.windows for o in report.outcomes),
                        "errors": [o.error for o in report.outcomes if o.error],
                        "warnings": [w for o in report.outcomes for w in o.warnings],
                    }
                ).decode()
            )
            if not args.loop or _stopped(args):
                return
            _pace()


def work(args: argparse.Namespace) -> None:
    """A worker, until SIGTERM. Its lines are what it logs."""
    out = Lines(args.out)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: out.write(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("eventstore").addHandler(handler)
    if not args.patient:
        daemon._IDLE_S = daemon._LOST_S = _PACE_S
    with _store(args, None) as store:
        # Not within the handler: it may have interrupted this very thread at the event's lock.
        stop = store.compactor.stop.set
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop).start())
        out.write("ready")
        daemon.work_until_stopped(store.compactor)


def command(args: argparse.Namespace) -> int:
    """A command of the program, such as `worker`, with settings from the environment as in life."""
    os.environ["EVENTSTORE_DATABASE_URL"] = args.url
    os.environ["EVENTSTORE_HOME"] = str(args.archive.parent)
    os.environ["EVENTSTORE_ARCHIVE_URL"] = args.archive.as_uri()
    os.environ["EVENTSTORE_TARGETS"] = json.dumps(_further_targets(args))
    sys.argv = ["eventstore", *args.argv]
    try:
        cli.main()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


def schedule(args: argparse.Namespace) -> None:
    """The scheduler by a simulated clock, until SIGTERM; others do the work."""
    with _store(args, None) as store:
        stop = store.compactor.stop
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop.set).start())
        scheduler_of(store, clock=args.simulated).run(stop)


def _behind_heads(store: Store) -> int:
    """Hours behind the logs' clocks, so that an id which is sent again is still in the hot tier."""
    with store.database.connection() as conn:
        row = conn.execute("SELECT max(last_recorded_us) FROM heads").fetchone()
    assert row is not None
    return int(row[0]) - 4 * 3600 * US_PER_S


def read(args: argparse.Namespace) -> None:
    """Read every log from end to end, over and over, in every way there is. A line a pass; an assertion that
    fails ends the process, and its last words are in the log."""
    out = Lines(args.out)
    with _store(args, None) as store:
        acks = [Acks(path) for path in args.acks]
        number = 0
        while not _stopped(args):
            for tenant in args.tenants:
                before = [pair for ack in acks for pair in ack.refresh().get(tenant, [])]
                rows = _read_log(store, tenant, number)
                _check_pass(tenant, rows, before, _destroyed(store, tenant))
            number += 1
            out.write(f"pass {number}")
            _pace()


def _read_log(store: Store, tenant: str, number: int) -> list[dict[str, Any]]:
    match number % 4:
        case 0:
            tables = list(store.reader.stream(tenant, EventFilter()))
        case 1:
            tables = list(store.reader.stream(tenant, EventFilter(), order=Order.DESC))
        case 2 | 3:
            order = Order.ASC if number % 4 == 2 else Order.DESC
            tables, after = [], None
            while True:
                page = store.reader.page(tenant, EventFilter(), order=order, after=after, limit=61)
                tables.append(page.events)
                after = page.next_after
                if after is None:
                    break
    rows = []
    for table in tables:
        for name in ("recorded_at", "occurred_at"):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast("int64"))
        rows += table.to_pylist()
    return rows if number % 2 == 0 else rows[::-1]


def _destroyed(store: Store, tenant: str) -> list[tuple[int, int]]:
    """The seq ranges that certificates stand for."""
    with store.database.connection() as conn:
        query = "SELECT first_seq, last_seq FROM certificates WHERE tenant_id = %s ORDER BY first_seq"
        return conn.execute(query, [tenant]).fetchall()


def _check_pass(
    tenant: str,
    rows: list[dict[str, Any]],
    acknowledged: list[tuple[int, bytes]],
    destroyed: list[tuple[int, int]],
) -> None:
    """A pass shows all that is there; what it does not show had been destroyed when it was over."""
    gone = {seq for first, last in destroyed for seq in range(first, last + 1)}
    seqs = [row["seq"] for row in rows]
    assert all(one < other for one, other in pairwise(seqs)), f"{tenant}: seqs not in order: {seqs}"
    missing = set(range(1, max(seqs, default=0) + 1)) - set(seqs) - gone
    assert not missing, f"{tenant}: seqs are missing: {sorted(missing)}"
    by_seq = {row["seq"]: row["event_id"] for row in rows}
    for seq, event_id in acknowledged:
        assert by_seq.get(seq) == event_id or (seq in gone and seq not in by_seq), (
            f"{tenant}: acknowledged seq {seq} is not there"
        )
    assert len(set(by_seq.values())) == len(by_seq), f"{tenant}: an event_id twice"
    last_seq, last_hash, last_us = 0, chain_start(tenant), -(2**63)
    for row in rows:
        if row["seq"] == last_seq + 1:
            assert row["hash"] == link(last_hash, row), f"{tenant}: the chain breaks at seq {row['seq']}"
        last_seq, last_hash = row["seq"], row["hash"]
        assert row["recorded_at"] >= last_us, f"{tenant}: time goes back at seq {row['seq']}"
        last_us = row["recorded_at"]


@contextmanager
def _store(args: argparse.Namespace, clock: Clock | None) -> Iterator[Store]:
    folder: Path = args.archive.parent
    settings = Settings(
        database_url=args.url,
        home=folder,
        archive_url=args.archive.as_uri(),
        targets=_further_targets(args),
    )
    with open_store(settings, clock=clock) as store:
        if args.lease is not None:
            compactor = Compactor(store.database, store.targets, store.key, lease_s=args.lease)
            store = replace(store, compactor=compactor)
        yield store


def _further_targets(args: argparse.Namespace) -> dict[str, str]:
    return {name: (args.archive.parent / name).as_uri() for name in FURTHER_TARGETS}


class Simulated:
    """A clock that goes faster than time: at `real_s` it was `start_us`; `speed` µs of it are one of ours."""

    def __init__(self, text: str) -> None:
        real_s, start_us, speed = text.split(",")
        self.real_s, self.start_us, self.speed = float(real_s), int(start_us), float(speed)

    def __str__(self) -> str:
        return f"{self.real_s},{self.start_us},{self.speed}"

    def now_us(self) -> int:
        return self.start_us + int((time.time() - self.real_s) * self.speed * US_PER_S)


def _stopped(args: argparse.Namespace) -> bool:
    return args.stop is not None and args.stop.exists()


def _pace() -> None:
    # Leaves the cores to the other processes. Nothing relies on its length.
    time.sleep(_PACE_S)


JOBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "append": append,
    "retain": retain,
    "work": work,
    "read": read,
    "schedule": schedule,
    "command": command,
}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.crash.child")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file for this process's lines")
    parser.add_argument("--stop", type=Path, help="end when this file exists")
    parser.add_argument("--crash", help="see tests.crash.injection")
    parser.add_argument("--halt", help="the same, but stopped (SIGSTOP) instead of killed")
    parser.add_argument("--lease", type=float, help="retain, work: how long a claim lasts, in seconds")
    parser.add_argument("--patient", action="store_true", help="work: look for tasks as seldom as in life")
    parser.add_argument("--idle", help="Postgres ends a transaction in which nothing happened for so long")
    parser.add_argument("--tenants", type=lambda text: text.split(","), default=[])
    parser.add_argument("--clock", type=int, default=0, help="append: time of the first round")
    parser.add_argument("--step", type=int, default=US_PER_S, help="append: time between rounds")
    parser.add_argument("--count", type=int, help="append: rounds in all, those of earlier lives included")
    parser.add_argument("--batch", type=int, default=2, help="append: events of a request")
    parser.add_argument("--persist", action="store_true", help="append: send again when the server is gone")
    parser.add_argument("--simulated", type=Simulated, help="append, schedule: a clock that goes fast")
    parser.add_argument("--argv", nargs="+", help="command: its arguments")
    parser.add_argument("--now", type=int, help="retain: the simulated time")
    parser.add_argument("--kind", default="retention", help="retain: retention or expiry")
    parser.add_argument("--loop", action="store_true", help="retain: run again and again")
    parser.add_argument("--acks", type=Path, nargs="*", default=[], help="read: ack files of the appenders")
    return parser


def main(argv: list[str]) -> int:
    args = _arguments().parse_args(argv)
    # Small segments of small row groups, so that a window of a test has several. Every process that archives
    # must cut alike: a retry makes the same bytes.
    parquet.GROUP_ROWS_MAX, parquet.SEGMENT_ROWS_MAX = 16, 32
    if args.crash:
        if "_copy" in args.crash:
            append_module.FEW_MAX = 0
        arm(args.crash)
    if args.halt:
        arm(args.halt, halt)
    if args.idle:
        connections.SESSION["idle_in_transaction_session_timeout"] = tasks._CLAIM_IDLE = args.idle
    return JOBS[args.job](args) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
