"""Offboarding: refused, undone, killed anywhere and taken up again; what is exported is the log, what is left
are certificates."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from eventstore.app import Store, open_store
from eventstore.archive import parquet
from eventstore.archive.file import FileTarget
from eventstore.archive.layout import certificate_key, tenant_prefix
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.errors import (
    BusyError,
    ConfirmationError,
    EventNotFoundError,
    EventStoreError,
    HeldError,
    InputError,
    IntegrityError,
    StateError,
    TargetUnavailableError,
    TenantClosedError,
    TenantExistsError,
)
from eventstore.governance.certificates import check_certificates, list_certificates, trusted_keys
from eventstore.governance.holds import place_hold, release_hold
from eventstore.governance.tenants import create_tenant
from eventstore.integrity.verify import verify_log
from eventstore.model.certificate import CertificateKind
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.retention import clearing, destroying, exporting, offboarding
from eventstore.retention.compactor import RunOrder
from eventstore.retention.export_manifest import Export, decode_manifest
from eventstore.retention.offboarding import Offboarding, OffboardReport, offboard, reopen, survey
from eventstore.retention.task import Stopped, Workshop
from eventstore.settings import Settings
from tests.conftest import TODAY_US, create_database
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    fill_days,
    leaves,
    make_tenant,
    new_event,
    read,
    run_retention,
    seqs,
)

DAYS, PER_DAY = 5, 6
EVENTS = DAYS * PER_DAY
ARCHIVED_DAYS = 3
HOT_EVENTS = "SELECT count(*) FROM events WHERE tenant_id = 'acme'"


def shop(store: Store) -> Workshop:
    return Workshop(store.database, store.targets, store.key, store.compactor.stop)


def run(
    store: Store, folder: Path, *, tenant: str = "acme", confirm: int | None = EVENTS, **more: Any
) -> OffboardReport:
    order = Offboarding(tenant, folder, "carla", "contract 17 has ended", confirm)
    return offboard(shop(store), store.tiers, order, TODAY_US, **more)


@dataclass(frozen=True)
class Template:
    """A filled database and its archive, to be copied: quicker than filling one for each test."""

    database: str
    archive: Path


@pytest.fixture(scope="module")
def template(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Template]:
    """acme and other: three archived days, two hot ones. Segments are small."""
    folder = tmp_path_factory.mktemp("offboarding")
    url = create_database(server_url, folder.name, template=template_database)
    clock = FixedClock(START_US)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with pytest.MonkeyPatch.context() as patched, open_store(settings, clock=clock) as store:
        small_parts(patched)
        for name in ("acme", "other"):
            make_tenant(store, name)
            fill_days(store, clock, name, DAYS, per_day=PER_DAY)
        run_retention(store, START_US + ARCHIVED_DAYS * DAY_US)
    yield Template(folder.name, folder / "archive")
    execute(server_url, f'DROP DATABASE "{folder.name}" WITH (FORCE)')


def small_parts(patched: pytest.MonkeyPatch) -> None:
    """Make segments, and the parts of exports, of four events."""
    patched.setattr(parquet, "GROUP_ROWS_MAX", 4)
    patched.setattr(parquet, "SEGMENT_ROWS_MAX", 4)


@pytest.fixture
def filled(
    server_url: str, template: Template, tmp_path: Path, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store of its own with what the template has."""
    small_parts(monkeypatch)
    name = f"test_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=template.database)
    shutil.copytree(template.archive, tmp_path / "archive")
    settings = Settings(database_url=url, home=tmp_path / "home", archive_url=(tmp_path / "archive").as_uri())
    with open_store(settings, clock=clock) as store:
        yield store
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "export"


def exported(folder: Path) -> list[dict[str, Any]]:
    """The events of an export, in the order of its manifest, as the reader gives events."""
    rows: list[dict[str, Any]] = []
    for part in manifest(folder).parts:
        rows += pq.read_table(folder / part.file).to_pylist()
    return [{**row, "event_id": row["event_id"].bytes} for row in rows]


def manifest(folder: Path) -> Export:
    return decode_manifest((folder / "manifest.json").read_bytes(), folder)


def objects(store: Store, tenant: str) -> list[str]:
    return [info.key for info in store.target.list(tenant_prefix(tenant))]


def snapshot(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All that an offboarding changes, as it is."""
    names = (
        "tenants",
        "heads",
        "windows",
        "segments",
        "removals",
        "certificates",
        "governance",
        "watermarks",
    )
    found = {n: execute(store.settings.database_url or "", f"SELECT * FROM {n} ORDER BY 1, 2") for n in names}
    return {**found, "leaves": [(leaf,) for leaf in url_leaves(store)]}


def url_leaves(store: Store) -> list[str]:
    return leaves(store.settings.database_url or "")


def assert_gone(store: Store, log: list[dict[str, Any]], folder: Path) -> None:
    """acme is destroyed, its export is the log as it was, its certificates hold; other is untouched."""
    assert exported(folder) == log
    assert objects(store, "acme") == [certificate_key("acme", n + 1) for n in range(certificates(store))]
    assert [leaf for leaf in url_leaves(store) if "events_1" in leaf] == []
    assert execute(store.database.url, "SELECT to_regclass('hot.events_1')") == [(None,)]
    assert read(store, "acme") == []
    assert execute(store.database.url, HOT_EVENTS) == [(0,)]
    assert execute(store.database.url, "SELECT state FROM tenants ORDER BY 1") == [("active",), ("closed",)]
    for tenant in ("acme", "other"):
        assert verified(store, tenant) == []
    assert seqs(read(store, "other")) == list(range(1, EVENTS + 1))
    append(store, "other", new_event())


def certificates(store: Store) -> int:
    with store.database.transaction() as conn:
        found = list_certificates(conn, "acme")
    assert found[-1].certificate.kind is CertificateKind.OFFBOARDED
    return len(found)


def verified(store: Store, tenant: str) -> list[str]:
    """Every problem of a log, and of its certificates."""

    def check(name: str, hash_at: Callable[[int], bytes | None]) -> list[str]:
        with store.database.transaction() as conn:
            return check_certificates(conn, name, trusted_keys(conn), hash_at=hash_at)

    report = verify_log(store.tiers, store.targets, tenant, certificates=check)
    return [problem.message for problem in report.problems]


# --- the whole way --------------------------------------------------------------------------------------


def test_it_exports_destroys_and_certifies_both_tiers(filled: Store, folder: Path) -> None:
    log = read(filled, "acme")
    steps: list[tuple[str, int, int]] = []
    report = run(filled, folder, progress=lambda *step: steps.append(step))
    assert report.complete, report.left
    assert report.objects == 2 * ARCHIVED_DAYS
    assert_gone(filled, log, folder)
    assert dict.fromkeys(name for name, _, _ in steps) == dict.fromkeys(
        ["close", "export", "read back", "destroy", "delete objects", "look again"]
    )
    found = report.certificate.certificate
    assert (found.first_seq, found.last_seq, found.hash_after) == (1, EVENTS, log[-1]["hash"])
    assert (found.decided_by, found.reason) == ("carla", "contract 17 has ended")
    assert len(found.segments) == 2 * ARCHIVED_DAYS
    assert (folder / "certificate.json").read_bytes() == report.certificate.envelope
    with filled.target.open(certificate_key("acme", 1)) as copy:
        assert copy.read() == report.certificate.envelope
    export = manifest(folder)
    assert report.export == export
    assert (export.events, export.first_hash) == (EVENTS, log[0]["hash"].hex())
    assert len(export.parts) > 3
    assert list(export.public_keys) == list(report.certificate.key_ids)
    with pytest.raises(TenantClosedError):
        append(filled, "acme", new_event())
    with pytest.raises(TenantExistsError):
        make_tenant(filled, "acme")
    with pytest.raises(TenantClosedError):
        hold(filled)
    with pytest.raises(EventNotFoundError, match="destroyed under certificate 1"):
        filled.reader.event("acme", seq=3)
    again = run(filled, folder, confirm=None)
    assert (again.complete, again.objects, again.certificate) == (True, 0, again.certificate)
    removed = execute(
        filled.database.url,
        "SELECT reason, count(removed_at), count(entity_filter) FROM removals GROUP BY reason",
    )
    assert removed == [("offboarded", 2 * ARCHIVED_DAYS, 0)]
    states = execute(
        filled.database.url,
        "SELECT document->>'state' FROM governance WHERE kind = 'tenant_offboarded' ORDER BY entry_no",
    )
    assert states == [("closing",), ("closed",)]


def test_windows_that_had_expired_are_bridged_by_their_certificates(
    store: Store, clock: FixedClock, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = (ArchiveTier("archive", DAY_US),)
    create_tenant(store.database, "acme", Policy(WindowUnit.DAY, 0, tiers, Ending.EXPIRE))
    make_tenant(store, "other")
    for name in ("acme", "other"):
        fill_days(store, clock, name, DAYS, per_day=PER_DAY)
    run_retention(store, START_US + 4 * DAY_US, "acme")
    # The first and the third window expire, the second is held.
    second = HoldScope(from_us=START_US + DAY_US, to_us=START_US + 2 * DAY_US)
    place_hold(store.database, "acme", "case", "a claim", "lea", second, TODAY_US)
    store.compactor.run(
        store.compactor.tenants("acme"), START_US + 4 * DAY_US, order=RunOrder(RunKind.EXPIRY, "test")
    )
    release_hold(store.database, "acme", "case", "lea", "settled", TODAY_US)
    log = read(store, "acme")
    assert seqs(log) == [*range(7, 13), *range(19, EVENTS + 1)]
    killed(store, folder, monkeypatch, offboarding, "export_log", confirm=len(log))
    copy = folder / "certificates" / "00000002.json"
    envelope = copy.read_bytes()
    copy.write_bytes(envelope + b" ")
    with pytest.raises(IntegrityError, match=r"00000002\.json was altered"):
        run(store, folder, confirm=len(log))
    copy.write_bytes(envelope)
    report = run(store, folder, confirm=len(log))
    assert report.complete, report.left
    assert_gone(store, log, folder)
    assert report.certificate.certificate.number == 3
    export = manifest(folder)
    assert [(g.first_seq, g.last_seq, g.certificate) for g in export.gaps] == [(1, 6, 1), (13, 18, 2)]
    with store.database.transaction() as conn:
        found = list_certificates(conn, "acme")
    assert [(folder / c.file).read_bytes() for c in export.certificates] == [c.envelope for c in found[:2]]
    covered = store.reader.page("acme", EventFilter(), limit=10).coverage.expired
    assert covered == [(1, 6, 1), (7, 12, 3), (13, 18, 2), (19, EVENTS, 3)]


def test_an_empty_log(store: Store, folder: Path) -> None:
    make_tenant(store, "acme")
    report = run(store, folder, confirm=0)
    assert report.complete, report.left
    assert report.certificate.certificate.event_count == 0
    assert exported(folder) == []
    assert verified(store, "acme") == []


# --- refused, or undone ---------------------------------------------------------------------------------


def hold(store: Store, scope: HoldScope = HoldScope(), name: str = "case-7") -> None:  # noqa: B008 - frozen
    place_hold(store.database, "acme", name, "a claim", "lea", scope, TODAY_US)


@pytest.mark.parametrize(
    "scope",
    [HoldScope(), HoldScope(entities=(("order", "nobody"),)), HoldScope(to_us=0)],
    ids=["all", "of-nothing-there", "of-no-time"],
)
def test_any_hold_refuses_it_and_nothing_is_changed(filled: Store, folder: Path, scope: HoldScope) -> None:
    hold(filled, scope)
    before = snapshot(filled)
    with pytest.raises(HeldError, match="case-7"):
        run(filled, folder)
    assert snapshot(filled) == before
    assert not folder.exists()
    assert survey(filled.database, "acme").holds == ("case-7",)


@pytest.mark.parametrize("confirm", [None, 0, EVENTS - 1])
def test_without_the_right_count_nothing_is_changed(filled: Store, folder: Path, confirm: int | None) -> None:
    before = snapshot(filled)
    with pytest.raises(ConfirmationError) as refused:
        run(filled, folder, confirm=confirm)
    assert refused.value.events == EVENTS == survey(filled.database, "acme").events
    assert snapshot(filled) == before
    assert not folder.exists()


def test_a_hold_placed_between_export_and_destruction_stops_it(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read(filled, "acme")
    real = offboarding.destroy

    def held(*arguments: Any, **named: Any) -> None:
        hold(filled)
        real(*arguments, **named)

    monkeypatch.setattr(offboarding, "destroy", held)
    with pytest.raises(HeldError, match="case-7"):
        run(filled, folder)
    monkeypatch.undo()
    assert read(filled, "acme") == log
    assert verified(filled, "acme") == []
    with pytest.raises(HeldError):
        run(filled, folder)
    release_hold(filled.database, "acme", "case-7", "lea", "settled", TODAY_US)
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


class Died(BaseException):
    """Stands for the end of the process."""


def die_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *, after: int | None) -> None:
    """Die before the first call of a function (`after` None), or after that many."""
    real, calls = getattr(module, name), iter(range(1, 1000))

    def dying(*arguments: Any, **named: Any) -> Any:
        if after is None:
            raise Died
        answer = real(*arguments, **named)
        if next(calls) == after:
            raise Died
        return answer

    monkeypatch.setattr(module, name, dying)


def killed(
    store: Store,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    after: int | None = 1,
    *,
    confirm: int = EVENTS,
) -> None:
    """Offboard, and die on the way."""
    with monkeypatch.context() as patched:
        die_at(patched, module, name, after=after)
        with pytest.raises(Died):
            run(store, folder, confirm=confirm)


def test_a_closing_log_takes_no_events_and_can_be_opened_again(
    filled: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(filled, folder, monkeypatch, offboarding, "export_log")
    with pytest.raises(TenantClosedError):
        append(filled, "acme", new_event())
    assert len(read(filled, "acme")) == EVENTS
    reopen(filled.database, "acme", by="carla", reason="they stay", now_us=TODAY_US)
    with pytest.raises(StateError, match="not being offboarded"):
        reopen(filled.database, "acme", by="carla", reason="they stay", now_us=TODAY_US)
    assert append(filled, "acme", new_event()).last_seq == EVENTS + 1
    # The export is of the log as it was: it is neither taken for this one, nor touched.
    before = snapshot(filled)
    with pytest.raises(InputError, match=f"up to seq {EVENTS}"):
        run(filled, folder, confirm=EVENTS + 1)
    assert snapshot(filled) == before
    assert manifest(folder).events == EVENTS
    assert run(filled, tmp_path / "anew", confirm=EVENTS + 1).complete
    with pytest.raises(TenantClosedError, match="destroyed"):
        reopen(filled.database, "acme", by="carla", reason="they stay", now_us=TODAY_US)


def test_opened_again_between_export_and_destruction(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = offboarding.destroy

    def meanwhile(*arguments: Any, **named: Any) -> None:
        reopen(filled.database, "acme", by="carla", reason="they stay", now_us=TODAY_US)
        real(*arguments, **named)

    monkeypatch.setattr(offboarding, "destroy", meanwhile)
    with pytest.raises(StateError, match="opened again"):
        run(filled, folder)
    assert len(read(filled, "acme")) == EVENTS


def test_a_folder_that_is_no_export_of_this_log_is_refused(filled: Store, folder: Path) -> None:
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    before = snapshot(filled)
    with pytest.raises(InputError, match=r"letter\.txt"):
        run(filled, folder)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    (folder / "letter.txt").rename(folder / "part-00000.parquet")
    with pytest.raises(InputError, match="no export of 'acme'"):
        run(filled, folder)
    (folder / "part-00000.parquet").rename(folder / "manifest.json")
    with pytest.raises(InputError, match="cannot be read"):
        run(filled, folder)
    assert snapshot(filled) == before
    assert run(filled, folder / "other", tenant="other").complete
    with pytest.raises(InputError, match="export of 'other'"):
        run(filled, folder / "other")


# --- killed, and taken up again -------------------------------------------------------------------------

BOUNDARIES: list[tuple[Any, str, int | None]] = [
    (offboarding, "_close", 1),
    (exporting, "_write_part", 2),
    (exporting, "_describe", 1),
    (exporting, "_verify", 1),
    (exporting, "encode_manifest", 1),
    (offboarding, "export_log", 1),
    (destroying, "store_certificate", 1),
    (destroying, "_take_out", 1),
    (destroying, "_detach", 1),
    (offboarding, "destroy", 1),
    (clearing, "_drop_tables", None),
    (clearing, "_copy_records", None),
    (clearing, "_remove_objects", None),
    (FileTarget, "delete", 1),
    (clearing, "_remove_one", 2),
    (clearing, "_remove_strays", 1),
    (clearing, "_verify_rest", None),
]


def test_killed_at_each_step_it_goes_on(filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each call a step further than the one before."""
    log = read(filled, "acme")
    destroyed = False
    for module, name, after in BOUNDARIES:
        killed(filled, folder, monkeypatch, module, name, after)
        destroyed = destroyed or name == "destroy"
        assert read(filled, "acme") == ([] if destroyed else log), name
        if destroyed:
            assert execute(filled.database.url, HOT_EVENTS) == [(0,)], name
        assert verified(filled, "acme") == [], name
        with pytest.raises(TenantClosedError):
            append(filled, "acme", new_event())
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)
    assert not (folder / "export.incomplete").exists()


def test_a_complete_export_is_read_back_and_not_made_again(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(filled, folder, monkeypatch, offboarding, "export_log")
    monkeypatch.setattr(exporting, "_write_parts", None)
    assert run(filled, folder).complete


def forge(folder: Path) -> None:
    """Hide the last part behind a gap for which no certificate stands."""
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    last = found["parts"].pop()
    found["events"] -= last["rows"]
    names = ("first_seq", "last_seq", "hash_before", "hash_after")
    found["gaps"] = [{"certificate": 1, **{name: last[name] for name in names}}]
    path.write_text(json.dumps(found))


def flip(folder: Path) -> None:
    path = folder / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(folder: Path) -> None:
    """A part that is itself whole, in the place of another, and the manifest says so."""
    (folder / "part-00001.parquet").write_bytes((folder / "part-00000.parquet").read_bytes())
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    found["parts"][1]["sha256"] = found["parts"][0]["sha256"]
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("damage", [forge, flip, swap, lambda f: (f / "part-00002.parquet").unlink()])
def test_nothing_is_destroyed_for_an_export_that_is_not_whole(
    filled: Store, folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(filled, folder, monkeypatch, offboarding, "export_log")
    damage(folder)
    before = snapshot(filled)
    with pytest.raises(IntegrityError):
        run(filled, folder)
    assert snapshot(filled) == before
    assert len(read(filled, "acme")) == EVENTS


def test_a_damaged_log_is_not_exported_and_not_destroyed(filled: Store, folder: Path) -> None:
    key = next(key for key in objects(filled, "acme") if key.endswith("p001.parquet"))
    path = filled.target.local_path(key)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(EventStoreError):
        run(filled, folder)
    assert execute(filled.database.url, "SELECT state FROM tenants WHERE tenant_id = 'acme'") == [
        ("closing",)
    ]
    assert path.exists()


# Importing the program takes a second: so one process does it, and forks one that is killed for each line.
KILLED = """
import importlib, json, os, signal, sys
from pathlib import Path
from eventstore.app import open_store
from eventstore.archive import parquet
from eventstore.retention.offboarding import Offboarding, offboard
from eventstore.retention.task import Workshop
from eventstore.settings import load_settings

parquet.GROUP_ROWS_MAX = parquet.SEGMENT_ROWS_MAX = 4
for line in sys.stdin:
    module, name, after, folder, events, now_us = json.loads(line)
    child = os.fork()
    if child == 0:
        module = importlib.import_module(f"eventstore.retention.{module}")
        real, calls = getattr(module, name), iter(range(1, 1000))

        def kill(*arguments, **named):
            answer = real(*arguments, **named)
            if next(calls) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        setattr(module, name, kill)
        with open_store(load_settings()) as store:
            shop = Workshop(store.database, store.targets, store.key, store.compactor.stop)
            order = Offboarding("acme", Path(folder), "carla", "contract 17 has ended", events)
            offboard(shop, store.tiers, order, now_us)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_by_the_system_it_goes_on(filled: Store, folder: Path) -> None:
    log = read(filled, "acme")
    environment = {
        **os.environ,
        "EVENTSTORE_DATABASE_URL": filled.settings.database_url or "",
        "EVENTSTORE_ARCHIVE_URL": filled.settings.resolved_archive_url,
        "EVENTSTORE_HOME": str(filled.settings.home),
    }
    points = [("exporting", "_write_part", 3), ("destroying", "_detach", 1), ("clearing", "mark_removed", 2)]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for point in points:
            print(json.dumps([*point, str(folder), EVENTS, TODAY_US]), file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == -signal.SIGKILL
            assert read(filled, "acme") == ([] if point[0] == "clearing" else log)
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


# --- what is in the way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tenant", ["acme", "other"])
def test_a_long_reader_of_events_holds_it_up(
    filled: Store, folder: Path, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read(filled, "acme")
    monkeypatch.setattr(destroying, "_PAUSES_S", ())
    monkeypatch.setattr(destroying, "DROP_LAST_LOCK_TIMEOUT_MS", 50)
    with psycopg.connect(filled.database.url) as reader:
        reader.execute("SELECT count(*) FROM events WHERE tenant_id = %s", [tenant])
        with pytest.raises(BusyError, match="hold the tables of events, or somebody else works on"):
            run(filled, folder)
        assert read(filled, "acme") == log
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


def test_a_table_that_is_read_itself_is_dropped_later(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read(filled, "acme")
    execute(filled.database.url, "CREATE TABLE hot.events_1_20990101t000000 (LIKE events)")  # made ahead
    leaf = next(name for name in url_leaves(filled) if name.startswith("hot.events_1_2024"))
    real = clearing._drop_tables
    with psycopg.connect(filled.database.url) as reader, monkeypatch.context() as patched:
        patched.setattr(clearing, "_PAUSES_S", ())

        def read_first(*arguments: Any) -> None:
            reader.execute(f"SELECT count(*) FROM {leaf}".encode())
            real(*arguments)

        patched.setattr(clearing, "_drop_tables", read_first)
        report = run(filled, folder)
        assert [line.partition(":")[0] for line in report.left] == [f"table {leaf}"]
        assert read(filled, "acme") == []
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


def test_a_living_worker_is_waited_for_and_a_dead_one_loses_its_task(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = execute(filled.database.url, "SELECT run_id FROM runs")[0][0]
    execute(
        filled.database.url,
        "INSERT INTO tasks (run_id, tenant_id, window_from, action, state, fence, holder, leased_until)"
        " SELECT %s, 'acme', max(window_from), 'archive', 'running', 1, 4711, now() + interval '1 hour'"
        " FROM windows WHERE tenant_id = 'acme'",
        [run_id],
    )
    monkeypatch.setattr(destroying, "_PAUSES_S", ())
    with psycopg.connect(filled.database.url, autocommit=True) as worker:
        worker.execute("SELECT pg_advisory_lock(4711)")
        with pytest.raises(BusyError, match="a worker"):
            run(filled, folder)
        assert len(read(filled, "acme")) == EVENTS
    assert run(filled, folder).complete
    unfinished = "SELECT count(*) FROM tasks WHERE tenant_id = 'acme' AND state IN ('waiting', 'running')"
    assert execute(filled.database.url, unfinished) == [(0,)]


def test_objects_that_cannot_be_deleted_now_are_told_and_go_later(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read(filled, "acme")
    locked, *rest = [key for key in objects(filled, "acme") if key.endswith(".parquet")]
    real = FileTarget.delete

    def refuse(self: FileTarget, key: str) -> None:
        if key == locked:
            raise StateError(f"{key} is kept until 2030", hint="wait")
        real(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(FileTarget, "delete", refuse)
        report = run(filled, folder)
    assert [line.partition(" in ")[0] for line in report.left] == [locked]
    assert objects(filled, "acme") == [certificate_key("acme", 1), locked]
    assert report.objects == len(rest)

    def away(self: FileTarget, key: str) -> None:
        raise TargetUnavailableError("the disk is gone", hint="mount it")

    with monkeypatch.context() as patched:
        patched.setattr(FileTarget, "delete", away)
        assert not run(filled, folder).complete
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


def test_what_no_catalog_names_goes_too_unless_it_is_no_segment(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed worker and a repair have left segments, someone else a file; a sleeping worker stores one
    afterwards, which the target does not list yet."""
    log = read(filled, "acme")
    key = next(key for key in objects(filled, "acme") if key.endswith("p000.parquet"))
    for name in ("p007.parquet", "p001.r2.parquet", "txt"):
        staged = filled.target.stage(key)
        staged.write_bytes(b"left")
        assert filled.target.put(key.replace("p000.parquet", name), staged)
    stranger = key.replace("p000.parquet", "txt")
    report = run(filled, folder)
    assert [line.partition(" in ")[0] for line in report.left] == [stranger]
    assert report.objects == 2 * ARCHIVED_DAYS + 2
    filled.target.delete(stranger)
    staged = filled.target.stage(key)
    staged.write_bytes(b"late")
    filled.target.put(key, staged)
    with monkeypatch.context() as patched:
        patched.setattr(FileTarget, "list", lambda *_: iter(()))
        assert run(filled, folder).complete
    assert_gone(filled, log, folder)


def test_a_restored_copy_is_told(filled: Store, folder: Path) -> None:
    execute(
        filled.database.url,
        "INSERT INTO restores (restore_id, tenant_id, window_from, place, events, expires_us)"
        " VALUES (gen_random_uuid(), 'acme', now(), '/restored/acme', 6, %s)",
        [TODAY_US],
    )
    assert run(filled, folder).left == (
        "a restored window lies in /restored/acme, until 2026-11-21T00:00:00.000000Z",
    )
    execute(filled.database.url, "UPDATE restores SET removed_at = now()")
    assert run(filled, folder).complete


def test_told_to_stop_it_stops_and_goes_on(filled: Store, folder: Path) -> None:
    log = read(filled, "acme")

    def stop_at(step: str) -> Callable[[str, int, int], None]:
        return lambda name, done, _: filled.compactor.stop.set() if (name, done > 0) == (step, True) else None

    for step in ("export", "read back", "delete objects"):
        with pytest.raises(Stopped):
            run(filled, folder, progress=stop_at(step))
        filled.compactor.stop.clear()
    assert run(filled, folder).complete
    assert_gone(filled, log, folder)


# --- on the command line --------------------------------------------------------------------------------


def test_the_command_lists_then_destroys_what_is_confirmed(
    filled: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTSTORE_DATABASE_URL", filled.settings.database_url or "")
    monkeypatch.setenv("EVENTSTORE_ARCHIVE_URL", filled.settings.resolved_archive_url)
    monkeypatch.setenv("EVENTSTORE_HOME", str(filled.settings.home))
    log = read(filled, "acme")
    command = ["tenants", "offboard", "acme", "--reason", "over", "--by", "carla", "--export", str(folder)]
    listed = CliRunner().invoke(app, command)
    assert isinstance(listed.exception, ConfirmationError)
    assert f"--confirm {EVENTS}" in listed.exception.hint
    assert f"acme has {EVENTS} events up to seq {EVENTS}." in listed.stdout
    assert "target archive      18" in listed.stdout
    assert read(filled, "acme") == log
    reopened = CliRunner().invoke(app, [*command, "--reopen"])
    assert isinstance(reopened.exception, StateError)
    done = CliRunner().invoke(app, [*command, "--confirm", str(EVENTS)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "gone, from Postgres and from every target." in " ".join(done.stdout.split())
    assert "certificate.json" in done.stdout
    assert_gone(filled, log, folder)
