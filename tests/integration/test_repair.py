"""What lies in the archive targets is listed, checked, read again, mended, and brought back."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventstore.app import Store, open_store
from eventstore.archive.layout import certificate_key, repaired_key, segment_key
from eventstore.archive.registry import open_target
from eventstore.archive.target import ArchiveTarget
from eventstore.catalog.windows import list_segments, list_windows
from eventstore.clock import FixedClock, from_us
from eventstore.db.locks import scrub_key
from eventstore.errors import ArchiveDamageError, InputError, StateError
from eventstore.governance.tenants import create_tenant
from eventstore.hot.seal import seal_window
from eventstore.integrity.verify import verify_log
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import Entry, RunKind, RunStatus, ValidationResult
from eventstore.model.segment import Segment
from eventstore.model.window import WindowUnit
from eventstore.repair import mend as mend_module
from eventstore.repair.check import FindingKind, check_archive
from eventstore.repair.listing import list_archive
from eventstore.repair.restore import MANIFEST, list_restores, purge_restores, restore_window
from eventstore.repair.scrub import ScrubReport, scrub
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from eventstore.testing.faulty import FaultyTarget
from tests.conftest import create_database
from tests.unit.helpers import DAY_US, START_US, execute, fill_days, read

# Day 0 to 4 have left Postgres on day 6: the first two for `deep`, which is in memory, then for a folder.
POLICY = Policy(
    WindowUnit.DAY,
    DAY_US,
    (ArchiveTier("archive", 3 * DAY_US), ArchiveTier("deep", 10 * DAY_US)),
    Ending.EXPIRE,
)
NOW_US = START_US + 6 * DAY_US


@pytest.fixture(scope="module")
def template(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A database with six days of a tenant, and the folder of its targets; each test gets a copy of both."""
    folder, name = tmp_path_factory.mktemp("filled"), f"repair_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=template_database)
    clock = FixedClock(START_US)
    with open_store(_settings(url, folder, (folder / "deep").as_uri()), clock=clock) as store:
        create_tenant(store.database, "acme", POLICY, now_us=START_US)
        fill_days(store, clock, "acme", 6)
        for day in (4, 6):
            done = store.compactor.run(store.compactor.tenants(), START_US + day * DAY_US)
            assert done.status is RunStatus.COMPLETED
        assert [s.target for s in segments(store)] == ["deep", "deep", "archive", "archive", "archive"]
    # Time is simulated here, and the database stamps by its own: nothing was read yet.
    execute(url, "UPDATE segments SET scrubbed_at = NULL")
    yield name, folder
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _settings(url: str, folder: Path, deep: str) -> Settings:
    for name in ("archive", "deep"):
        (folder / name).mkdir(exist_ok=True)
    return Settings(
        database_url=url,
        home=folder / "home",
        archive_url=(folder / "archive").as_uri(),
        targets={"deep": deep},
    )


@pytest.fixture
def filled(server_url: str, template: tuple[str, Path], tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(template[1], tmp_path, dirs_exist_ok=True)
    name = f"test_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=template[0])
    settings = _settings(url, tmp_path, f"memory://{name}")
    deep = open_target(settings.targets["deep"])
    for path in (tmp_path / "deep").rglob("*"):
        if path.is_file():
            key = path.relative_to(tmp_path / "deep").as_posix()
            staged = deep.stage(key)
            shutil.copy(path, staged)
            deep.put(key, staged)
    with open_store(settings) as store:
        yield replace(store, compactor=Compactor(store.database, store.targets, store.key))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def segments(store: Store) -> list[Segment]:
    with store.database.transaction() as conn:
        return list_segments(conn, "acme")


def read_bytes(store: Store, target: str, key: str) -> bytes:
    with store.targets[target].open(key) as file:
        return file.read()


def put(store: Store, target: str, key: str, data: bytes) -> None:
    staged = store.targets[target].stage(key)
    staged.write_bytes(data)
    assert store.targets[target].put(key, staged)


def spoil(store: Store, segment: Segment) -> None:
    """Turn a byte in the middle of an object: rot. (No verb of a target can do that.)"""
    data = bytearray(read_bytes(store, segment.target, segment.key))
    data[len(data) // 2] ^= 1
    store.targets[segment.target].delete(segment.key)
    put(store, segment.target, segment.key, bytes(data))


def findings(store: Store, **more: Any) -> list[tuple[str, str, str | None]]:
    return [(f.kind.value, f.target, f.key) for f in check_archive(store.database, store.targets, **more)]


def scrub_all(store: Store, **more: Any) -> ScrubReport:
    return scrub(store.database, store.targets, **{"now_us": NOW_US, **more})


def quarantine(store: Store) -> list[tuple[Any, ...]]:
    return execute(store.database.url, "SELECT target, key, reason FROM quarantine ORDER BY 1, 2")


def put_before(store: Store, name: str, faulty: ArchiveTarget) -> None:
    store.targets._open[name] = faulty


# --- listing and checking -------------------------------------------------------------------------------


def test_a_whole_archive_has_nothing_wrong_and_lists_every_segment(filled: Store) -> None:
    assert findings(filled) == []
    listed = list(list_archive(filled.database))
    assert [(one.segment, one.scrubbed_us) for one in listed] == [(s, None) for s in segments(filled)]
    assert len(list(list_archive(filled.database, target="deep"))) == 2


def test_a_check_tells_what_is_missing_cut_off_unknown_and_away(filled: Store) -> None:
    gone, cut, other = segments(filled)[1], segments(filled)[2], segments(filled)[3]
    filled.targets["deep"].delete(gone.key)
    path = filled.target.local_path(cut.key)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    stray = repaired_key(other.key, 7)
    put(filled, "archive", stray, b"whatever")
    unknown = certificate_key("acme", 9)
    put(filled, "archive", unknown, b"{}")
    assert sorted(findings(filled)) == sorted(
        [
            ("missing", "deep", gone.key),
            ("wrong size", "archive", cut.key),
            ("orphan", "archive", stray),
            ("unknown record", "archive", unknown),
        ]
    )
    assert findings(filled, target="deep") == [("missing", "deep", gone.key)]
    assert findings(filled, tenant_id="acme", target="deep") == findings(filled, target="deep")
    (filled.target.local_path("eventstore.json") or path).unlink()
    # A disk that is not mounted is not a disk on which everything is lost.
    assert findings(filled, target="archive") == [("target away", "archive", None)]
    report = scrub_all(filled, target="archive")
    assert (list(report.away), report.lost, report.segments) == (["archive"], [], 0)


def test_a_stale_listing_does_not_make_anything_missing(filled: Store) -> None:
    faulty = FaultyTarget(filled.targets["deep"])
    lost = segments(filled)[0]
    data = read_bytes(filled, "deep", lost.key)
    faulty.inner.delete(lost.key)
    faulty.freeze_listing()
    put(filled, "deep", lost.key, data)
    put_before(filled, "deep", faulty)
    assert lost.key not in [info.key for info in faulty.list()]
    assert findings(filled) == []
    assert faulty.calls["stat"] == 2  # the marker, and the one that is not listed
    # Nor does it make an orphan of what was removed since.
    faulty.heal()
    faulty.inner.delete(lost.key)
    put(filled, "deep", repaired_key(lost.key, 1), data)
    faulty.freeze_listing()
    faulty.inner.delete(repaired_key(lost.key, 1))
    assert findings(filled) == [("missing", "deep", lost.key)]


def test_what_a_retry_would_take_up_is_unfinished_work_and_no_orphan(filled: Store) -> None:
    with filled.database.transaction() as conn:
        record = list_windows(conn, "acme")[5]
    seal_window(filled.database, filled.compactor.tenants()[0], record, target="archive")
    put(filled, "archive", segment_key("acme", record.window, 0), b"being written")
    moving = segments(filled)[2]
    put(filled, "deep", moving.key, read_bytes(filled, "archive", moving.key))
    found = findings(filled)
    assert sorted(kind for kind, *_ in found) == ["unfinished work", "unfinished work"]
    assert scrub_all(filled).quarantined == []
    filled.compactor.run(filled.compactor.tenants(), START_US + 7 * DAY_US)
    assert [f for f in findings(filled) if f[0] != "unfinished work"] == []


def test_pending_removals_and_quarantine_are_told_and_are_not_wrong(filled: Store) -> None:
    moved = segments(filled)[2]
    execute(
        filled.database.url,
        "INSERT INTO removals (target, key, tenant_id, window_from, reason, first_seq, last_seq,"
        " min_recorded_at, max_recorded_at, size_bytes, sha256)"
        " VALUES ('deep', %s, 'acme', %s, 'moved', 1, 5, now(), now(), 1, '')",
        [moved.key, from_us(moved.range.window.from_us)],
    )
    put(filled, "deep", moved.key, read_bytes(filled, "archive", moved.key))
    put(filled, "archive", "tenant_id=acme/x", b"x")
    assert findings(filled) == [
        ("orphan", "archive", "tenant_id=acme/x"),
        ("removal pending", "deep", moved.key),
    ]
    assert [f.key for f in scrub_all(filled).quarantined] == ["tenant_id=acme/x"]
    found = list(check_archive(filled.database, filled.targets))
    assert [f.kind for f in found] == [FindingKind.QUARANTINED, FindingKind.PENDING]
    assert not any(f.kind.is_wrong for f in found)


# --- scrubbing ------------------------------------------------------------------------------------------


def test_a_scrub_reads_everything_once_and_the_longest_unread_first(filled: Store) -> None:
    told: list[Entry] = []

    def tell(entry: Entry, **about: object) -> None:
        told.append(entry)

    report = scrub_all(filled, tell=tell)
    sizes = sum(s.size_bytes for s in segments(filled))
    assert (report.ok, report.segments, report.size_bytes, report.due) == (True, 5, sizes, 0)
    assert told == [
        ValidationResult(
            passed=True,
            segments=5,
            compared="every byte of every segment, and its chain, with the catalog",
        )
    ]
    assert scrub_all(filled).segments == 0
    assert scrub_all(filled, now_us=NOW_US + DAY_US, older_than_us=2 * DAY_US).segments == 0
    second = segments(filled)[1]
    execute(
        filled.database.url,
        "UPDATE segments SET scrubbed_at = scrubbed_at - interval '5 days' WHERE first_seq = %s",
        [second.range.first_seq],
    )
    # A byte a second and no time: the first segment is read, and it is the one that has waited longest.
    late = scrub_all(filled, now_us=NOW_US + DAY_US, budget_s=1e-9)
    assert (late.segments, late.stopped, late.due) == (0, True, 5)
    assert scrub_all(filled, now_us=NOW_US + DAY_US, older_than_us=3 * DAY_US).segments == 1
    assert {one.scrubbed_us for one in list_archive(filled.database)} == {NOW_US, NOW_US + DAY_US}


def test_a_scrub_keeps_to_its_rate_and_stops_when_told(filled: Store) -> None:
    sizes = sum(s.size_bytes for s in segments(filled))
    started = time.monotonic()
    assert scrub_all(filled, bytes_per_s=2 * sizes).ok
    assert time.monotonic() - started > 0.4
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    report = scrub_all(filled, now_us=NOW_US + 1, bytes_per_s=100, stop=stop)
    assert (report.stopped, report.segments, report.lost) == (True, 0, [])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("damage", ["rotten", "missing"])
def test_a_damaged_segment_is_mended_from_another_target(filled: Store, damage: str) -> None:
    before, damaged = read(filled, "acme"), segments(filled)[2]
    put(filled, "deep", damaged.key, read_bytes(filled, "archive", damaged.key))
    spoil(filled, damaged)
    rotten = read_bytes(filled, "archive", damaged.key)
    if damage == "missing":
        filled.target.delete(damaged.key)
    report = scrub_all(filled)
    assert (report.ok, report.mended) == (True, [("archive", damaged.key)])
    mended = segments(filled)[2]
    new = repaired_key(damaged.key, 1)
    assert mended == replace(damaged, key=new)
    # A reader that had the list notices, and nothing was overwritten or deleted.
    assert read(filled, "acme") == before
    assert verify_log(filled.tiers, filled.targets, "acme").ok
    noted = [(target, key) for target, key, _ in quarantine(filled)]
    if damage == "rotten":
        assert read_bytes(filled, "archive", damaged.key) == rotten
        assert noted == [("archive", damaged.key)]
    else:
        assert noted == []
    # The mended one is as any other: damaged in its turn, the next number is taken; and it moves on.
    spoil(filled, mended)
    execute(filled.database.url, "UPDATE segments SET scrubbed_at = NULL")
    assert scrub_all(filled, now_us=NOW_US + DAY_US).mended == [("archive", new)]
    assert segments(filled)[2].key == repaired_key(damaged.key, 2)
    done = filled.compactor.run(filled.compactor.tenants(), START_US + 10 * DAY_US)
    assert done.status is RunStatus.COMPLETED
    assert {s.target for s in segments(filled)} == {"deep"}
    assert [row for row in read(filled, "acme") if row["seq"] <= 25] == [
        row for row in before if row["seq"] <= 25
    ]


def test_without_a_good_copy_nothing_is_changed_and_it_is_said(filled: Store) -> None:
    damaged = segments(filled)[3]
    spoil(filled, damaged)
    copy = bytearray(read_bytes(filled, "archive", damaged.key))
    put(filled, "deep", damaged.key, bytes(copy))  # as damaged as the other one
    before = segments(filled)
    report = scrub_all(filled)
    assert [(target, key) for target, key, _ in report.lost] == [("archive", damaged.key)]
    assert not report.ok
    assert "no target has a good copy" in report.lost[0][2]
    assert segments(filled) == before
    assert (report.segments, quarantine(filled)) == (5, [])
    # It stays the first to be looked at, and brought back from a backup it is found right.
    assert [one.segment for one in list_archive(filled.database) if one.scrubbed_us is None] == [damaged]


def test_what_was_read_wrong_once_is_not_damaged(filled: Store) -> None:
    wrong: list[str] = []

    def flip_once(key: str, data: bytes) -> bytes:
        if key.endswith(".parquet") and not wrong:
            wrong.append(key)
            return b"?" + data[1:]
        return data

    put_before(filled, "archive", FaultyTarget(filled.target, opened=flip_once))
    report = scrub_all(filled)
    assert (report.ok, report.mended, report.segments, len(wrong)) == (True, [], 5, 1)


def test_a_target_that_is_away_stops_its_own_segments_only(filled: Store) -> None:
    faulty = FaultyTarget(filled.targets["deep"])
    put_before(filled, "deep", faulty)
    faulty.refused = True
    report = scrub_all(filled)
    assert (report.segments, list(report.away), report.due, report.ok) == (3, ["deep"], 2, False)
    # And a good copy that could not be asked for is told of.
    spoil(filled, segments(filled)[2])
    late = scrub_all(filled, now_us=NOW_US + DAY_US)
    assert "could not be asked: deep" in late.lost[0][2]


def test_a_window_that_is_still_in_postgres_is_left_to_retention(filled: Store) -> None:
    damaged = segments(filled)[4]
    execute(
        filled.database.url,
        "UPDATE windows SET state = 'archived' WHERE window_from = %s",
        [from_us(damaged.range.window.from_us)],
    )
    put(filled, "deep", damaged.key, read_bytes(filled, "archive", damaged.key))
    filled.target.delete(damaged.key)
    report = scrub_all(filled)
    assert [(target, key) for target, key, _ in report.waiting] == [("archive", damaged.key)]
    assert (report.mended, segments(filled)[4]) == ([], damaged)


def test_a_segment_that_moves_while_it_is_mended_is_left_alone(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = segments(filled)[2]
    put(filled, "deep", damaged.key, read_bytes(filled, "archive", damaged.key))
    spoil(filled, damaged)
    bring = mend_module._bring

    def moved_meanwhile(*args: Any) -> Any:
        copied = bring(*args)
        execute(
            filled.database.url,
            "UPDATE segments SET target = 'deep' WHERE first_seq = %s",
            [damaged.range.first_seq],
        )
        return copied

    monkeypatch.setattr(mend_module, "_bring", moved_meanwhile)
    report = scrub_all(filled)
    assert (report.ok, report.mended, report.lost) == (True, [], [])
    assert segments(filled)[2] == replace(damaged, target="deep")
    # What was copied for nothing is an object that nobody knows: noted the next time, and left there.
    monkeypatch.undo()
    noted = [finding.key for finding in scrub_all(filled, now_us=NOW_US + 1).quarantined]
    assert noted == [repaired_key(damaged.key, 1)]


def test_a_target_is_one_scrubs_at_a_time(filled: Store) -> None:
    with filled.database.connect_apart() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [scrub_key("deep")])
        report = scrub_all(filled)
        assert (report.busy, report.segments) == (["deep"], 3)
        other.execute("SELECT pg_advisory_unlock_all()")
    assert scrub_all(filled).segments == 2


def test_a_scrub_gives_its_locks_back_before_it_hangs_up(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes a closed connection's locks back a moment later, and the next scrub would find its
    targets busy."""
    held: list[Any] = []
    close = psycopg.Connection.close

    def watched(conn: psycopg.Connection[Any]) -> None:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        held.append(conn.execute(query.encode()).fetchone())
        close(conn)

    monkeypatch.setattr(psycopg.Connection, "close", watched)
    assert scrub_all(filled).segments == 5
    monkeypatch.undo()
    assert held == [(0,)]


def test_a_catalog_that_was_altered_is_told_from_a_damaged_object(filled: Store) -> None:
    execute(filled.database.url, "UPDATE segments SET hash_after = '\\x00' WHERE first_seq = 11")
    report = scrub_all(filled)
    assert (len(report.lost), report.mended) == (1, [])
    assert "the catalog says of" in report.lost[0][2]


# --- bringing back --------------------------------------------------------------------------------------


def test_a_window_is_brought_back_for_a_time(filled: Store, tmp_path: Path) -> None:
    home, at_us = tmp_path / "home", START_US + DAY_US + 1
    found = restore_window(
        filled.database,
        filled.targets,
        "acme",
        at_us,
        home=home,
        now_us=NOW_US,
        expires_us=NOW_US + DAY_US,
    )
    segment = segments(filled)[1]
    (file,) = (p for p in found.place.iterdir() if p.name != MANIFEST)
    assert found.place == home / "restored" / "acme" / "20240302T000000Z"
    assert file.read_bytes() == read_bytes(filled, segment.target, segment.key)
    manifest = json.loads((found.place / MANIFEST).read_text())
    assert (manifest["first_seq"], manifest["last_seq"], found.events) == (6, 10, 5)
    assert manifest["files"][0]["sha256"] == segment.sha256.hex()
    with filled.database.transaction() as conn:
        assert list_restores(conn) == [found]
    assert purge_restores(filled.database, NOW_US + DAY_US - 1) == []
    (found.place / "notes.txt").write_text("mine")
    (purged,) = purge_restores(filled.database, NOW_US + DAY_US)
    assert (purged.removed, purged.left) == (1, ("notes.txt",))
    assert [p.name for p in found.place.iterdir()] == ["notes.txt"]
    with filled.database.transaction() as conn:
        assert list_restores(conn) == []
        assert [one.removed_us for one in list_restores(conn, every=True)] == [NOW_US + DAY_US]
    assert purge_restores(filled.database, NOW_US + DAY_US) == []


def test_a_purge_removes_only_what_the_manifest_of_that_very_restore_names(
    filled: Store, tmp_path: Path
) -> None:
    def bring(place: Path) -> Any:
        return restore_window(
            filled.database,
            filled.targets,
            "acme",
            START_US,
            place,
            home=tmp_path,
            now_us=NOW_US,
            expires_us=NOW_US,
        )

    outside = tmp_path / "precious.parquet"
    outside.write_text("precious")
    first = bring(tmp_path / "first")
    manifest = json.loads((first.place / MANIFEST).read_text())
    manifest["files"] += [{"name": "../precious.parquet"}, {"name": str(outside)}]
    (first.place / MANIFEST).write_text(json.dumps(manifest))
    second = bring(tmp_path / "second")
    (second.place / MANIFEST).write_text(json.dumps({**manifest, "restore_id": "another"}))
    third = bring(tmp_path / "third")
    execute(
        filled.database.url,
        "UPDATE restores SET place = 'file://elsewhere' || %s WHERE restore_id = %s",
        ["/nowhere", third.restore_id],
    )
    assert [p.restore.restore_id for p in purge_restores(filled.database, NOW_US)] == [first.restore_id]
    assert outside.read_text() == "precious"
    assert len(list(second.place.iterdir())) == 2
    with filled.database.transaction() as conn:
        assert {one.restore_id for one in list_restores(conn)} == {second.restore_id, third.restore_id}


def test_only_an_archived_window_can_be_brought_back_and_whole(filled: Store, tmp_path: Path) -> None:
    def bring(at_us: int, place: Path | None = None) -> Any:
        more = {"home": tmp_path, "now_us": NOW_US, "expires_us": NOW_US}
        return restore_window(filled.database, filled.targets, "acme", at_us, place, **more)

    with pytest.raises(InputError, match="no window at 2024-02-29"):
        bring(START_US - 1)
    with pytest.raises(InputError, match="is in Postgres"):
        bring(START_US + 5 * DAY_US)
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        bring(START_US, place)
    spoil(filled, segments(filled)[2])
    with pytest.raises(ArchiveDamageError):
        bring(START_US + 2 * DAY_US, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    filled.compactor.run(
        filled.compactor.tenants(), START_US + 15 * DAY_US, order=RunOrder(RunKind.EXPIRY, "test")
    )
    with pytest.raises(StateError, match="certificate 1"):
        bring(START_US)


def test_the_commands_say_with_their_status_whether_something_is_wrong(
    filled: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from contextlib import nullcontext

    from typer.testing import CliRunner

    from eventstore.cli import archive

    monkeypatch.setattr(archive, "open_store", lambda settings: nullcontext(filled))
    monkeypatch.setenv("EVENTSTORE_HOME", str(tmp_path / "home"))

    def run(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(archive.app, list(args), catch_exceptions=False)
        return done.exit_code, done.output

    assert run("check") == (0, "Nothing is wrong.\n")
    status, text = run("ls", "--json")
    assert (status, len(text.splitlines()), json.loads(text.splitlines()[0])["first_seq"]) == (0, 5, 1)
    assert "5 segments, 25 events" in run("ls")[1]
    assert "eventstore.json" in run("ls", "--objects")[1]
    assert run("scrub")[0] == 0
    spoil(filled, segments(filled)[2])
    status, text = run("scrub", "--older-than", "0s")
    assert status == 1
    assert "1 damaged for good" in text.replace("\n", " ")
    filled.target.delete(segments(filled)[2].key)
    status, text = run("check", "--json")
    assert (status, json.loads(text)["kind"]) == (1, "missing")
    status, text = run("restore", "acme", "--window", "2024-03-02", "--to", str(tmp_path / "back"))
    assert (status, "5 events of acme" in text) == (0, True)
    assert json.loads(run("restores", "--json")[1])["events"] == 5
