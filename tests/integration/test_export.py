"""Exports: the reader's events in every format, of one moment, in bounded memory, and never broken off
unnoticed."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from eventstore.access.limits import FeedSlot
from eventstore.api import export as api_export
from eventstore.app import Store
from eventstore.cli.main import app as cli
from eventstore.clock import FixedClock
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.errors import ArchiveDamageError, InputError, StateError
from eventstore.governance.keys import revoke_key
from eventstore.governance.tenants import create_tenant
from eventstore.model.access import Role
from eventstore.model.event import TEXT_FIELDS
from eventstore.model.limits import Limits
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.query import export as export_module
from eventstore.query import walk as walk_module
from eventstore.query.coverage import Coverage
from eventstore.query.export import MEDIA_TYPES, Export, ExportFormat, Progress, export_events
from eventstore.query.render import event_views, to_json_lines
from eventstore.retention.compactor import RunOrder
from tests.integration.callers import Callers, calling
from tests.property.strategies import examples
from tests.unit.helpers import (
    DAY_US,
    HOUR_US,
    START_US,
    append,
    fill_days,
    make_tenant,
    new_event,
    run_retention,
)
from tests.unit.test_text_columns import undo

TEXTS = ["1", "=1+1", "é\u2028😀", "'\";--\n@x", "\\", "\t-1\r\n", "-"]
WAIT_S = 30.0
PATH = "/v1/tenants/acme/export"


@pytest.fixture
def log(store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three archived days and a hot one, read in steps of a few events."""
    for name, value in (("_STEP_ROWS_FIRST", 3), ("_STEP_ROWS_MAX", 5), ("_HOT_SPAN", 4)):
        monkeypatch.setattr(walk_module, name, value)
    make_tenant(store)
    for day in range(4):
        clock.move_to(START_US + day * DAY_US + HOUR_US)
        append(
            store,
            "acme",
            *(
                new_event(
                    text,
                    actor=TEXTS[(n + day) % 3],
                    workspace_id=text if n % 2 else None,
                    old_value=None if n % 3 else text,
                    new_value={"k": [text, 10**25, -1.5, None]},
                    metadata={text: n} if n % 4 else None,
                )
                for n, text in enumerate(TEXTS)
            ),
        )
    run_retention(store, START_US + 3 * DAY_US)
    assert store.tiers.state("acme").archived_through == 3 * len(TEXTS)
    return store


def exported(store: Store, form: ExportFormat, wanted: EventFilter, order: Order = Order.ASC) -> bytes:
    return b"".join(export_events(store.reader, "acme", wanted, form, order=order).pieces)


def parsed(form: ExportFormat, data: bytes) -> pa.Table:
    """An export as other programs read it; of the two texts the rows as the reader's would be shown."""
    if form is ExportFormat.PARQUET:
        found = pq.read_table(pa.BufferReader(data))
        assert found.schema.field("event_id").type == pa.uuid()
        return found.cast(EVENT_SCHEMA)
    return pa.ipc.open_stream(data).read_all().cast(EVENT_SCHEMA)


def csv_rows(data: bytes) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
    return [{name: undo(v) if name in TEXT_FIELDS else v for name, v in row.items()} for row in rows]


def shown(events: pa.Table) -> list[dict[str, str]]:
    """What CSV shows of events, without apostrophes."""
    rows = []
    for view, row in zip(event_views(events), events.to_pylist(), strict=True):
        texts = {name: row[name] or "" for name in TEXT_FIELDS}
        rows.append({n: texts[n] if n in texts else str(getattr(view, n)) for n in EVENT_FIELDS})
    return rows


def test_every_format_holds_what_the_reader_gives(log: Store) -> None:
    """Random filters over both tiers; every value of every event."""
    options = st.fixed_dictionaries(
        {},
        optional={
            "entity_id": st.sampled_from([*TEXTS, "nobody"]),
            "actor": st.sampled_from(TEXTS[:4]),
            "workspace_id": st.sampled_from(TEXTS),
            "seq_from": st.integers(0, 30),
            "seq_to": st.integers(0, 30),
            "recorded_from_us": st.integers(0, 4).map(lambda day: START_US + day * DAY_US),
            "recorded_to_us": st.integers(0, 4).map(lambda day: START_US + day * DAY_US),
        },
    )
    found = set()

    @examples(40)
    @given(options, st.sampled_from(Order))
    def run(wanted: dict[str, Any], order: Order) -> None:
        conditions = EventFilter(**wanted)
        events = log.reader.page("acme", conditions, order=order, limit=1000).events
        found.add(events.num_rows)
        for form in ExportFormat:
            data = exported(log, form, conditions, order)
            match form:
                case ExportFormat.NDJSON:
                    assert data == to_json_lines(events)
                case ExportFormat.CSV:
                    assert csv_rows(data) == shown(events)
                case _:
                    assert parsed(form, data) == events

    run()
    assert {0, 4 * len(TEXTS)} <= found
    assert len(found) > 5


def test_an_export_is_of_one_moment(log: Store) -> None:
    """Neither what is appended while it is made, nor a compaction, changes it."""
    expected = {form: exported(log, form, EventFilter()) for form in ExportFormat}
    begun = {form: export_events(log.reader, "acme", EventFilter(), form) for form in ExportFormat}
    append(log, "acme", new_event("late"))
    first = {form: next(export.pieces) for form, export in begun.items()}
    append(log, "acme", new_event("later"))
    run_retention(log, START_US + 4 * DAY_US)
    assert log.tiers.state("acme").archived_through == 30
    for form, export in begun.items():
        assert export.through_seq == 28
        data = first[form] + b"".join(export.pieces)
        if form in (ExportFormat.NDJSON, ExportFormat.CSV):
            assert data == expected[form]
        else:
            assert parsed(form, data) == parsed(form, expected[form])
        assert (export.progress.events, export.progress.at_seq) == (28, 28)
        assert export.coverage.archive == [(1, 28)]
    (batches, parquet) = (pa.ipc.open_stream(expected[ExportFormat.ARROW]), expected[ExportFormat.PARQUET])
    for schema in (batches.schema, pq.read_schema(pa.BufferReader(parquet))):
        assert schema.metadata[b"eventstore.through_seq"] == b"28"
        assert schema.metadata[b"eventstore.tenant_id"] == b"acme"


def test_a_search_that_finds_nothing_gives_control_back(log: Store) -> None:
    """Whoever takes the pieces can stop although there is nothing to give out yet."""
    for form in ExportFormat:
        pieces = list(export_events(log.reader, "acme", EventFilter(actor="nobody"), form).pieces)
        assert len(pieces) > 3
        assert sum(map(bool, pieces)) <= 2


def test_memory_does_not_grow_with_the_log(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8,000 events of 16 MB, half of them archived, in steps and row groups of a few hundred."""
    for name, value in (("_STEP_ROWS_MAX", 200), ("_HOT_SPAN", 200)):
        monkeypatch.setattr(walk_module, name, value)
    monkeypatch.setattr(export_module, "_GROUP_ROWS", 200)
    make_tenant(store)
    for day in range(2):
        clock.move_to(START_US + day * DAY_US)
        append(store, "acme", *(new_event(str(n), new_value="x" * 2000) for n in range(4_000)))
    run_retention(store, START_US + DAY_US)
    list(store.reader.stream("acme", EventFilter(seq_to=1)))  # DuckDB is there
    for form in ExportFormat:
        before = pa.total_allocated_bytes()
        most, longest, total = 0, 0, 0
        for piece in export_events(store.reader, "acme", EventFilter(), form).pieces:
            most = max(most, pa.total_allocated_bytes() - before)
            longest, total = max(longest, len(piece)), total + len(piece)
        assert most < 4 * 2**20, form
        assert longest < 2 * 2**20, form
        assert total > 16 * 2**20 or form is ExportFormat.PARQUET


# --- over HTTP ----------------------------------------------------------------------------------------


@pytest.fixture
def callers(log: Store) -> Iterator[Callers]:
    with calling(log) as found:
        yield found


def test_the_route_streams_each_format(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    for form in ExportFormat:
        for order in Order:
            asked: dict[str, Any] = {"format": form.value, "order": order.value, "seq_to": 20, "reason": "x"}
            response = client.get(PATH, params=asked)
            assert response.status_code == 200
            assert response.content == exported(callers.store, form, EventFilter(seq_to=20), order)
            assert response.headers["content-type"] == MEDIA_TYPES[form]
            assert response.headers["eventstore-through-seq"] == "28"
            assert response.headers["content-disposition"].startswith('attachment; filename="acme.')
            assert "content-length" not in response.headers
    marked = client.get(PATH, params={"format": "csv", "bom": True, "seq_to": 0}).content
    assert marked == b"\xef\xbb\xbf" + exported(callers.store, ExportFormat.CSV, EventFilter(seq_to=0))
    assert client.get(PATH, params={"seq_to": 0}).content == b""


def test_only_who_may_export_does(callers: Callers) -> None:
    for role, status in (
        (Role.WRITER, 403),
        (Role.READER, 403),
        (Role.OPERATOR, 403),
        (Role.COMPLIANCE, 200),
    ):
        assert callers.as_role(role).get(PATH).status_code == status
    assert callers.as_role(Role.COMPLIANCE, None).get("/v1/tenants/nobody/export").status_code == 404
    for wrong in ({"format": "xml"}, {"entity": "1"}, {"recorded_from": "yesterday"}, {"limit": "1"}):
        response = callers.as_role(Role.COMPLIANCE).get(PATH, params=wrong)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"


def segments(store: Store) -> list[Path]:
    return sorted(Path(store.settings.archive_url.removeprefix("file://")).rglob("*.parquet"))


def taken_in(response: httpx.Response) -> tuple[bytes, httpx.TransportError | None]:
    """What arrives of an answer, and the error that ends it (None: it is whole)."""
    arrived = b""
    try:
        for piece in response.iter_bytes():
            arrived += piece
    except httpx.TransportError as e:
        return arrived, e
    return arrived, None


def test_one_that_breaks_off_is_not_taken_for_a_whole_one(callers: Callers) -> None:
    """The second segment is damaged: the transfer is incomplete, and so is what has arrived of it."""
    good = {form: exported(callers.store, form, EventFilter()) for form in ExportFormat}
    damaged = segments(callers.store)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    client = callers.as_role(Role.COMPLIANCE)
    for form in ExportFormat:
        with client.stream("GET", PATH, params={"format": form.value}) as response:
            assert response.status_code == 200
            arrived, error = taken_in(response)
        assert isinstance(error, httpx.RemoteProtocolError)
        match form:
            case ExportFormat.NDJSON:
                *lines, last = arrived.splitlines()
                assert good[form].splitlines()[:7] == lines
                assert json.loads(last)["problem"]["type"] == "urn:eventstore:archive-damage"
            case ExportFormat.CSV:
                assert arrived.startswith(b"".join(good[form].splitlines(keepends=True)[:7]))
                with pytest.raises(csv.Error):
                    csv_rows(arrived)
                with pytest.raises(pa.ArrowInvalid):
                    pa.csv.read_csv(
                        pa.BufferReader(arrived), parse_options=pa.csv.ParseOptions(newlines_in_values=True)
                    )
            case _:
                with pytest.raises((pa.ArrowInvalid, OSError)):
                    parsed(form, arrived)
    first = segments(callers.store)[0]
    first.write_bytes(b"?")
    assert client.get(PATH).status_code == 500
    assert client.get(PATH, params={"seq_from": 22}).status_code == 200


def test_what_was_destroyed_is_named_and_what_is_destroyed_meanwhile_breaks_it_off(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_STEP_ROWS_FIRST", "_STEP_ROWS_MAX", "_HOT_SPAN"):
        monkeypatch.setattr(walk_module, name, 3)
    expiring = Policy(WindowUnit.DAY, 0, (ArchiveTier("archive", DAY_US),), Ending.EXPIRE)
    create_tenant(store.database, "acme", expiring)
    fill_days(store, clock, "acme", 4)
    tenants = store.compactor.tenants()
    run_retention(store, START_US + 3 * DAY_US)

    def expire(days: int) -> None:
        at_us = START_US + (days + 1) * DAY_US
        store.compactor.run(tenants, at_us, order=RunOrder(RunKind.EXPIRY, "test"))

    expire(1)
    with calling(store) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        assert client.get(PATH).headers["eventstore-expired"] == "1-5"
        assert "eventstore-expired" not in client.get(PATH, params={"seq_from": 6}).headers
    begun = export_events(store.reader, "acme", EventFilter(), ExportFormat.NDJSON, order=Order.DESC)
    assert any(begun.pieces)
    expire(2)
    with pytest.raises(StateError, match=r"destroyed under certificate 2"):
        list(begun.pieces)
    again = export_events(store.reader, "acme", EventFilter(), ExportFormat.NDJSON)
    assert len(b"".join(again.pieces).splitlines()) == 10
    assert again.expired == [(1, 10)]


class Endless:
    """An export without an end, that says when it is closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = threading.Event()

    def pieces(self) -> Generator[bytes, None, None]:
        try:
            while True:
                self.made += 1
                yield b"x" * 2**18
        finally:
            self.closed.set()

    def begin(self, *_: object, **__: object) -> Export:
        return Export("acme.ndjson", "application/x-ndjson", 1, Progress(), Coverage(), self.pieces())


def test_a_client_that_goes_away_ends_the_work(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    monkeypatch.setattr(api_export, "export_events", endless.begin)
    with callers.as_role(Role.COMPLIANCE).stream("GET", PATH) as response:
        assert response.status_code == 200, response.read()
        arriving = response.iter_bytes()  # kept: it closes the connection when it goes
        assert len(next(arriving)) > 0
        assert not endless.closed.is_set()
    assert endless.closed.wait(WAIT_S)
    made = endless.made
    monkeypatch.undo()
    assert callers.as_role(Role.COMPLIANCE).get(PATH).status_code == 200
    assert endless.made == made


def test_a_key_that_is_revoked_ends_its_exports(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    monkeypatch.setattr(api_export, "export_events", endless.begin)
    monkeypatch.setattr(api_export, "_RECHECK_S", 0.0)
    subject, text = callers.key(Role.COMPLIANCE)
    with callers.client(text).stream("GET", PATH) as response:
        revoke_key(callers.store.database, subject.removeprefix("key:"), by="test", now_us=START_US)
        _, error = taken_in(response)
    assert isinstance(error, httpx.RemoteProtocolError)
    assert endless.closed.wait(WAIT_S)


def test_a_client_that_takes_nothing_in_stops_the_work() -> None:
    """One piece is being sent, one is ready, and no more is made until the first has been taken in."""
    endless = Endless()

    class Unread:
        asked = None

        def covers(self, *_: object, **__: object) -> None: ...
        def end(self, *_: object) -> None: ...

    async def run() -> None:
        begun = endless.begin()
        slot = FeedSlot()
        stream = api_export._Stream(
            begun,
            next(begun.pieces),
            ExportFormat.NDJSON,
            Unread(),  # type: ignore[arg-type]
            anyio.CapacityLimiter(1),
            anyio.lowlevel.checkpoint,
            slot,
            WAIT_S,
        )
        take, gone = anyio.Semaphore(0), anyio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await take.acquire()

        async with anyio.create_task_group() as group:
            group.start_soon(stream, {"type": "http"}, receive, send)
            for taken in range(3):
                with anyio.fail_after(WAIT_S):
                    while endless.made < taken + 2:
                        await anyio.lowlevel.checkpoint()
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                await anyio.wait_all_tasks_blocked()
                assert endless.made == taken + 2
                take.release()
            gone.set()
        assert endless.closed.is_set()

    anyio.run(run)


def test_a_client_that_stalls_is_disconnected(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_export, "export_events", (endless := Endless()).begin)
    monkeypatch.setattr(api_export, "parse_duration_us", lambda _: 50_000)
    plain = {"accept-encoding": "identity"}
    with callers.as_role(Role.COMPLIANCE).stream("GET", PATH, headers=plain) as response:
        assert endless.closed.wait(WAIT_S)
        _, error = taken_in(response)
    assert isinstance(error, httpx.RemoteProtocolError)


def test_exports_are_counted_among_the_feeds(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    client = callers.client(callers.key(Role.COMPLIANCE, limits=Limits(feeds_max=1))[1])
    assert client.get("/v1/tenants/acme/export", params={"seq_to": 3}).status_code == 200
    monkeypatch.setattr(api_export, "export_events", (endless := Endless()).begin)
    with client.stream("GET", PATH):
        assert client.get(PATH).status_code == 429
    assert endless.closed.wait(WAIT_S)
    monkeypatch.undo()
    until = time.monotonic() + WAIT_S
    while client.get(PATH).status_code == 429:
        assert time.monotonic() < until


def test_an_export_is_written_into_the_log_of_reads(callers: Callers) -> None:
    callers.as_role(Role.COMPLIANCE).get(PATH, params={"reason": "case 7", "seq_from": 5, "seq_to": 9})
    views = []
    for _ in range(2):
        page = callers.store.reader.page("eventstore-reads", EventFilter(action="export"), limit=10)
        views = [json.loads(bytes(view.new_value)) for view in event_views(page.events)]
    assert views[0]["state"] == "begun"
    assert views[0]["query"] == {"seq_from": "5", "seq_to": "9"}


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def command(log: Store) -> Callable[..., Result]:
    """`eventstore export acme` with further arguments; raises what it would report."""
    environment = {
        "EVENTSTORE_DATABASE_URL": log.settings.database_url,
        "EVENTSTORE_ARCHIVE_URL": log.settings.archive_url,
        "EVENTSTORE_HOME": str(log.settings.home),
    }

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(
            cli, ["export", "acme", *arguments], env=environment, catch_exceptions=False
        )

    return run


def test_the_command_writes_a_file_of_the_format_that_its_name_says(
    log: Store, command: Callable[..., Result], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    names = {"a.csv": ExportFormat.CSV, "a.arrows": ExportFormat.ARROW}
    (folder / "a.csv").write_text("an older one")
    wanted = EventFilter(seq_from=5, actor="1")
    for name, form in names.items():
        said = command("--output", str(folder / name), "--seq-from", "5", "--actor", "1", "--order", "desc")
        data = exported(log, form, wanted, Order.DESC)
        assert (folder / name).read_bytes() == data
        assert "as of seq 28" in said.stderr
    assert {path.name for path in folder.iterdir()} == names.keys()
    assert command().stdout_bytes == exported(log, ExportFormat.NDJSON, EventFilter())


def test_a_command_that_fails_changes_no_file(
    log: Store, command: Callable[..., Result], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.csv").write_text("an older one")
    damaged = segments(log)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ArchiveDamageError):
        command("--output", str(folder / "a.csv"))
    assert [path.read_text() for path in folder.iterdir()] == ["an older one"]
    with pytest.raises(InputError, match="cannot write"):
        command("--output", str(folder / "missing" / "a.csv"))


def test_a_failure_is_no_part_of_an_event() -> None:
    error = ArchiveDamageError('a "quoted" reason\n', key="k")
    assert json.loads(export_module.failure(ExportFormat.NDJSON, error))["problem"]["detail"] == error.message
    assert export_module.failure(ExportFormat.CSV, error).count(b'"') == 1
    assert "own" in export_module.failure(ExportFormat.CSV, RuntimeError("secret")).decode()
    assert b"secret" not in export_module.failure(ExportFormat.NDJSON, RuntimeError("secret"))
    assert math.isclose(len(export_module.failure(ExportFormat.PARQUET, error)), 0)
