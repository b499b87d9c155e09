"""Exports that are made in the background: the files are those of the streamed exports, made once however
often their makers die, seen by whoever may see them, and gone when their time has come."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest

from eventstore.api import export_worker
from eventstore.api.export_worker import ExportWorker
from eventstore.app import Store, export_folder, tidy_host
from eventstore.clock import FixedClock
from eventstore.errors import EventStoreError, RateLimitedError
from eventstore.governance.export_making import (
    Making,
    claim_export,
    fail_export,
    finish_export,
    fits,
    keep_making,
    prune_exports,
)
from eventstore.governance.exports import ExportLimits, Wish, ask_export, get_export
from eventstore.governance.keys import revoke_key, rotate_key
from eventstore.model.access import Principal, Role
from eventstore.model.export import BackgroundExport, ExportState, FileFormat
from eventstore.model.query import EventFilter
from eventstore.model.tenant import READS_TENANT
from eventstore.query import export_files
from eventstore.query.export import Export, export_events
from eventstore.query.export_files import ExportFolder
from eventstore.settings import Settings
from tests.integration.callers import calling
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
)
from tests.waiting import until

PATH = "/v1/tenants/acme/exports"
WAIT_S = 20.0
ADMIN = Principal("ann", Role.ADMINISTRATOR)
LIMITS = ExportLimits(caller_max=2, tenant_max=3)


@pytest.fixture
def settings(database_url: str, archive_dir: Path, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        home=tmp_path / "home",
        archive_url=archive_dir.as_uri(),
        lease="1s",
        exports_per_caller_max=LIMITS.caller_max,
        exports_per_tenant_max=LIMITS.tenant_max,
    )


@pytest.fixture
def log(store: Store, clock: FixedClock) -> Store:
    """Three archived days and a hot one, with a text that a spreadsheet would take for a formula."""
    make_tenant(store)
    fill_days(store, clock, "acme", 4)
    append(store, "acme", new_event("=1+1", actor="@bea", old_value="é", workspace_id="-1"))
    run_retention(store, START_US + 3 * DAY_US)
    assert store.tiers.state("acme").archived_through == 15
    return store


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


def folder_of(store: Store) -> ExportFolder:
    return export_folder(store.settings)


def files(store: Store) -> list[str]:
    path = store.settings.resolved_exports_dir
    return sorted(os.listdir(path)) if path.exists() else []


def asked(store: Store, *, by: Principal = ADMIN, form: FileFormat = FileFormat.NDJSON) -> BackgroundExport:
    return ask_export(store.database, "acme", Wish(EventFilter(), form), by=by, limits=LIMITS)


def now(store: Store, export: BackgroundExport) -> BackgroundExport:
    return get_export(store.database, "acme", export.export_id, by=ADMIN)


def ended(client: httpx.Client, asking: httpx.Response) -> dict[str, Any]:
    """The export when nothing goes on any more."""
    assert asking.status_code == 202, asking.text

    def look() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(asking.headers["location"]).json()
        return shown if shown["state"] not in ("waiting", "making") else None

    found: dict[str, Any] = until(look, "the export ends")
    return found


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(export_worker, "export_events", made.export_events)
    yield made
    made.open.set()


class Gate:
    """Holds exports up when the first bytes are in their files: `reached` is set, and they wait for `open`.
    Then they go on, one piece every look."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def export_events(self, *args: Any, **options: Any) -> Export:
        begun = export_events(*args, **options)

        def pieces() -> Generator[bytes]:
            while not (piece := next(begun.pieces)):
                yield piece
            yield piece
            yield b""
            self.reached.set()
            assert self.open.wait(WAIT_S)
            yield b""
            yield from begun.pieces

        return replace(begun, pieces=pieces())


# --- files ----------------------------------------------------------------------------------------------


def test_a_file_is_the_streamed_export_of_the_same_moment(log: Store) -> None:
    """In each format, from both tiers, by conditions and orders; several are made at once."""
    quick = replace(log, settings=log.settings.model_copy(update={"export_workers": 2}))
    conditions: list[dict[str, str]] = [
        {},
        {"actor": "ann", "order": "desc", "seq_to": "18", "bom": "true"},
        {"entity_id": "nobody"},
        {"recorded_from": "2024-03-02T00:00:00Z", "recorded_to": "2024-03-04T12:00:00Z"},
    ]
    texts = (FileFormat.NDJSON, FileFormat.CSV)
    with calling(quick) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        for form in (*texts, FileFormat.PARQUET, FileFormat.ARROW):
            for wanted in conditions if form in texts else conditions[:2]:
                shown = ended(client, client.post(PATH, params={"format": form, **wanted, "reason": "audit"}))
                assert shown["state"] == "ready", shown
                got = client.get(f"{PATH}/{shown['export_id']}/file")
                streamed = client.get("/v1/tenants/acme/export", params={"format": form, **wanted})
                assert got.content == streamed.content
                assert len(got.content) == shown["size_bytes"]
                assert hashlib.sha256(got.content).hexdigest() == shown["sha256"]
                assert (shown["through_seq"], shown["reason"]) == (21, "audit")
                assert shown["filter"].keys() == wanted.keys() - {"order", "bom"}
                if form is FileFormat.NDJSON:
                    assert shown["events"] == len(got.content.splitlines())
                if form is FileFormat.CSV and not wanted:
                    assert b'"\'=1+1"' in got.content
                    assert b'"\'@bea"' in got.content
    assert [name for name in files(log) if name.endswith(".part")] == []
    assert log.settings.resolved_exports_dir.stat().st_mode & 0o777 == 0o700


def test_a_download_says_what_it_is_and_goes_on_where_it_broke_off(log: Store) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH, params={"format": "csv"}))
        path = f"{PATH}/{shown['export_id']}/file"
        whole = client.get(path)  # it takes gzip, as every browser does
        digest = base64.b64encode(bytes.fromhex(shown["sha256"])).decode()
        assert whole.headers["content-length"] == str(shown["size_bytes"])
        assert "content-encoding" not in whole.headers
        assert whole.headers["content-disposition"] == f'attachment; filename="{shown["file_name"]}"'
        assert whole.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert whole.headers["etag"] == f'"{shown["sha256"]}"'
        rest = client.get(path, headers={"range": "bytes=100-", "if-range": whole.headers["etag"]})
        assert rest.status_code == 206
        assert rest.content == whole.content[100:]
        assert client.get(path, headers={"range": "bytes=9999999-"}).status_code == 416
        assert client.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


def test_making_and_downloading_are_written_down(log: Store) -> None:
    with calling(log) as callers:
        subject, text = callers.key(Role.COMPLIANCE)
        client = callers.client(text)
        asking = client.post(PATH, params={"entity_id": "0", "reason": "case 7"})
        shown = ended(client, asking)
        assert client.get(f"{PATH}/{shown['export_id']}/file").status_code == 200
        until(lambda: len(read(log, READS_TENANT)) >= 4, "reads are written down")
        entries = read(log, READS_TENANT)
        until(lambda: callers.app.state.usage.used(subject) > 0, "the archive's bytes are counted")
    assert {(e["actor"], e["action"], e["entity_id"]) for e in entries} == {(subject, "export", "acme")}
    values = [json.loads(e["new_value"]) for e in entries]
    assert [v["state"] for v in values] == ["begun", "ended", "begun", "ended"]
    assert values[0]["query"]["entity_id"] == "0"
    assert values[1]["covered"]["archive"], "what was read of the archive is not in the log"
    assert [values[1]["events"], values[3]["events"]] == [8, 8]
    assert json.loads(entries[0]["metadata"]) == {"reason": "case 7"}


def test_a_bundle_is_made_and_verifies(log: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    written_bytes = ExportFolder.written_bytes

    def noted(self: ExportFolder, part: Path) -> int:
        sizes.append(written_bytes(self, part))
        return sizes[-1]

    monkeypatch.setattr(ExportFolder, "written_bytes", noted)
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(
            client, client.post(PATH, params={"format": "bundle", "entity_id": "1", "reason": "case 7"})
        )
        assert shown["state"] == "ready", shown
        assert (shown["events"], shown["through_seq"], shown["progress"]) == (8, 21, 1.0)
        got = client.get(f"{PATH}/{shown['export_id']}/file")
    assert 0 < sizes[-1] < len(got.content)  # it grows as it is written
    bundle = tmp_path / shown["file_name"]
    bundle.write_bytes(got.content)
    program = [sys.executable, "-m", "eventstore.verifier", str(bundle)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files(log) == [f"{shown['export_id']}.1.evidence.zip"]


# --- makers that die, stop or sleep -----------------------------------------------------------------------


def test_the_export_of_a_killed_process_is_taken_over(log: Store) -> None:
    """kill -9 of a served process in the middle of a file."""
    export = asked(log)
    where = log.settings
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.integration.exporting_child"),
            *(where.database_url or "", str(where.home), where.archive_url or ""),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout:
        assert any(line == "making\n" for line in child.stdout)
        child.send_signal(signal.SIGKILL)
        child.wait(WAIT_S)
    assert now(log, export).state is ExportState.MAKING
    (part,) = files(log)
    assert part.endswith(".1.ndjson.part")
    with calling(log) as callers:
        until(lambda: now(log, export).state is ExportState.READY, "somebody takes it over")
        found = now(log, export)
        client = callers.as_role(Role.ADMINISTRATOR)
        got = client.get(f"{PATH}/{export.export_id}/file")
        assert got.content == client.get("/v1/tenants/acme/export").content
        folder_of(log).sweep(log.database)
    assert (found.attempt, found.events) == (2, 21)
    assert files(log) == [found.stored_name]


def test_a_process_that_stops_gives_its_export_back(log: Store, gate: Gate) -> None:
    with calling(log) as callers:
        worker: ExportWorker = callers.app.state.exports
        export = asked(log)
        worker.wake()
        assert gate.reached.wait(WAIT_S)
        closing = threading.Thread(target=worker.close)
        closing.start()
        until(lambda: not worker._thread.is_alive(), "it stops looking")
        gate.open.set()
        closing.join(WAIT_S)
        found = now(log, export)
        assert (found.state, found.attempt, found.events) == (ExportState.WAITING, 1, 0)
        assert files(log) == []
    with calling(log):
        until(lambda: now(log, export).state is ExportState.READY, "somebody takes it up again")


def test_one_who_was_taken_for_dead_changes_nothing(log: Store) -> None:
    export = asked(log)
    first = claim_export(log.database, lease_us=0, host="a")
    second = claim_export(log.database, lease_us=60_000_000, host="b")
    assert first is not None
    assert second is not None
    assert (first.export_id, first.attempt, second.attempt) == (export.export_id, 1, 2)
    assert claim_export(log.database, lease_us=0, host="c") is None
    folder = folder_of(log)
    for one in (first, second):
        folder.write(one, lambda part: folder.write_pieces(part, [b"x"], lambda _: None))
    assert not keep_making(log.database, first, Making(events=9), lease_us=0)
    assert not finish_export(log.database, first, Making(), sha256=bytes(32), kept_us=1)
    assert not fail_export(log.database, first, Making(), "late")
    assert now(log, export).state is ExportState.MAKING
    assert folder.sweep(log.database) == [first.stored_name]
    assert finish_export(log.database, second, Making(size_bytes=1), sha256=bytes(32), kept_us=10**12)
    assert folder.sweep(log.database) == []
    assert files(log) == [second.stored_name]


def test_what_kills_its_makers_is_given_up(log: Store) -> None:
    export = asked(log)
    for attempt in range(1, 5):
        claimed = claim_export(log.database, lease_us=0, host="a")
        assert claimed is not None
        assert claimed.attempt == attempt
    assert claim_export(log.database, lease_us=0, host="a") is None
    found = now(log, export)
    assert found.state is ExportState.FAILED
    assert "died" in (found.error or "")


def test_no_tenant_keeps_the_others_waiting(log: Store) -> None:
    make_tenant(log, "rival")
    first, second = asked(log), asked(log)
    other = ask_export(
        log.database,
        "rival",
        Wish(EventFilter(), FileFormat.CSV),
        by=replace(ADMIN, subject="bea"),
        limits=LIMITS,
    )
    claimed = [claim_export(log.database, lease_us=60_000_000, host="a") for _ in range(3)]
    assert [c.export_id for c in claimed if c] == [first.export_id, other.export_id, second.export_id]


# --- ended before its end ---------------------------------------------------------------------------------


def test_a_making_is_cancelled(log: Store, gate: Gate) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        asking = client.post(PATH)
        assert gate.reached.wait(WAIT_S)
        until(lambda: client.get(asking.headers["location"]).json()["size_bytes"] > 0, "progress is shown")
        assert client.get(asking.headers["location"]).json()["state"] == "making"
        assert client.get(f"{asking.headers['location']}/file").status_code == 409
        assert client.delete(asking.headers["location"]).status_code == 204
        gate.open.set()
        shown = ended(client, asking)
        assert shown["state"] == "cancelled"
        until(lambda: files(log) == [], "its file is gone")
        assert client.get(f"{asking.headers['location']}/file").status_code == 409


def test_a_waiting_one_and_a_ready_one_are_removed(log: Store) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        asking = client.post(PATH)
        assert ended(client, asking)["state"] == "ready"
        assert len(files(log)) == 1
        assert client.delete(asking.headers["location"]).status_code == 204
        assert files(log) == []
        assert client.get(asking.headers["location"]).json()["state"] == "expired"
        assert client.delete(asking.headers["location"]).status_code == 204


def test_a_revoked_key_gets_no_file(log: Store, gate: Gate) -> None:
    with calling(log) as callers:
        subject, text = callers.key(Role.COMPLIANCE)
        asking = callers.client(text).post(PATH)
        assert gate.reached.wait(WAIT_S)
        key_id = subject.removeprefix("key:")
        revoke_key(log.database, key_id, by="ann", now_us=log.database.now_us())
        gate.open.set()
        shown = ended(callers.as_role(Role.ADMINISTRATOR), asking)
        assert shown["state"] == "failed"
        assert "may not export" in shown["error"]
        assert files(log) == []


def test_what_expires_goes_and_nothing_else(log: Store) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        kept, gone = (ended(client, client.post(PATH)) for _ in range(2))
        assert kept["expires_at"][:8] == "2026-11-" or kept["expires_at"] > kept["finished_at"]
        where = log.settings.resolved_exports_dir
        stranger = "019a48f1-d680-7000-8000-0368969ec29a.1.ndjson"
        for name in (stranger, "notes.txt", f"{gone['export_id']}.txt"):
            (where / name).write_text("somebody's")
        url = log.database.url
        execute(url, "UPDATE exports SET expires_at = now() WHERE export_id = %s", [gone["export_id"]])
        tidy_host(log, START_US)
        assert client.get(f"{PATH}/{gone['export_id']}").json()["state"] == "expired"
        answer = client.get(f"{PATH}/{gone['export_id']}/file")
        assert answer.status_code == 409
        assert "removed" in answer.json()["detail"]
        assert client.get(f"{PATH}/{kept['export_id']}/file").status_code == 200
        left = {f"{kept['export_id']}.1.ndjson", stranger, "notes.txt", f"{gone['export_id']}.txt"}
        assert set(files(log)) == left
        execute(url, "UPDATE tenants SET state = 'closed'")  # offboarded
        tidy_host(log, START_US)
        assert set(files(log)) == left - {f"{kept['export_id']}.1.ndjson"}
        assert client.post(PATH).status_code == 409
    assert prune_exports(log.database, START_US) == 0
    assert prune_exports(log.database, log.database.now_us() + 1) == 2


@pytest.mark.parametrize("by_command", [False, True])
def test_files_that_no_row_knows_go_when_they_are_old(log: Store, by_command: bool) -> None:
    """After the database was restored from an older copy, say."""
    where = log.settings.resolved_exports_dir
    where.mkdir(parents=True)
    unknown = "019a48f1-d680-7000-8000-0368969ec29a"
    ours = [
        f"{unknown}.1.ndjson",
        f"{unknown}.2.csv.part",
        f"{unknown}.3.evidence.zip",
        f".{unknown}.3.evidence.zip.part.0123abcd.part",
    ]
    others = [
        f"{unknown}.1.ndjson.gz",
        f"{unknown}.0.ndjson",
        f"{unknown}.1.txt",
        f".{unknown}.1.ndjson",
        f"{unknown}.3.evidence.zip.part.0123abcd.part",
        f"{unknown.upper()}.1.ndjson",
        f"a{unknown}.1.ndjson",
        "notes.txt",
    ]
    now_s = time.time()
    kept_s = (7 + 1) * 86_400  # as the settings say, and a day
    for name in [*ours, *others]:
        (where / name).write_text("somebody's")
        os.utime(where / name, (now_s, now_s - kept_s - 60))
    young = f"{unknown}.9.csv"
    (where / young).write_text("somebody's")
    os.utime(where / young, (now_s, now_s - kept_s + 60))
    (where / f"{unknown}.4.csv").mkdir()
    (where / f"{unknown}.5.csv").symlink_to(where / "notes.txt")
    if by_command:  # as on a machine that serves no API
        tidy_host(log, START_US)
    else:
        with calling(log):
            until(lambda: not set(ours) & set(files(log)), "old files are gone")
    assert set(files(log)) == {*others, young, f"{unknown}.4.csv", f"{unknown}.5.csv"}
    assert folder_of(log).sweep(log.database) == []


def test_a_file_that_lies_elsewhere_is_said_to(log: Store) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH))
        (log.settings.resolved_exports_dir / files(log)[0]).unlink()
        answer = client.get(f"{PATH}/{shown['export_id']}/file")
    assert answer.status_code == 503
    assert "not on this machine" in answer.json()["detail"]
    assert "EVENTSTORE_EXPORTS_DIR" in answer.json()["hint"]


# --- what goes wrong --------------------------------------------------------------------------------------


class FullDisk(io.RawIOBase):
    """A file on a disk that takes so many bytes and no more."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("xb")

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self._file.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def test_a_full_disk_leaves_nothing_half(log: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_files, "_create", FullDisk)
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH))
        assert shown["state"] == "failed"
        assert shown["error"] == "the disk on which exports are put is full"
        assert client.get(f"{PATH}/{shown['export_id']}/file").status_code == 409
        assert files(log) == []


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_disk_that_fails_at_the_end_leaves_nothing(
    log: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, export = folder_of(log), asked(log)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(export_files.os, name, fails)
    with pytest.raises(OSError, match="Input/output"):
        folder.write(export, lambda part: folder.write_pieces(part, [b"x"], lambda _: None))
    assert files(log) == []


def test_a_file_that_is_too_large_is_not_made(log: Store) -> None:
    small = replace(log, settings=log.settings.model_copy(update={"export_bytes_max": 1000}))
    with calling(small) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH))
        assert shown["state"] == "failed"
        assert "larger than 1000 bytes" in shown["error"]
        assert files(log) == []


def test_all_files_together_are_bounded(log: Store) -> None:
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        kept = ended(client, client.post(PATH))
    tight = {"exports_kept_bytes_max": kept["size_bytes"] + 1000}
    with calling(replace(log, settings=log.settings.model_copy(update=tight))) as callers:
        client = callers.as_role(Role.ADMINISTRATOR)
        shown = ended(client, client.post(PATH))
        assert shown["state"] == "failed"
        assert "take as much together as they may" in shown["error"]
        assert files(log) == [f"{kept['export_id']}.1.ndjson"]
        assert client.get(f"{PATH}/{kept['export_id']}/file").status_code == 200
        assert ended(client, client.post(PATH, params={"seq_from": 21}))["state"] == "ready"  # it is small
        assert client.delete(f"{PATH}/{kept['export_id']}").status_code in (200, 204)
        assert ended(client, client.post(PATH))["state"] == "ready"


def test_of_those_that_are_made_at_once_the_largest_gives_way(log: Store) -> None:
    database = log.database
    small, large = asked(log), asked(log)
    for size_bytes in (10, 100):
        made = claim_export(database, lease_us=10**9, host="a")
        assert made is not None
        assert keep_making(database, made, Making(size_bytes=size_bytes), lease_us=10**9)
    assert [fits(database, small, 10, bytes_max=n) for n in (110, 109, 10, 9)] == [True, True, True, False]
    assert [fits(database, large, 100, bytes_max=n) for n in (110, 109)] == [True, False]


def test_a_bundle_that_is_too_large_ends_while_it_is_written(
    log: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def endless(*given: Any, progress: Callable[[int, int | None], None], **_: Any) -> None:
        nonlocal written
        path: Path = given[5]
        staged = path.with_name(f".{path.name}.0123abcd.part")
        try:
            with staged.open("xb", buffering=0) as file:
                for events in range(100):
                    written += file.write(b"x" * 300)
                    progress(events, None)
        finally:
            staged.unlink()

    monkeypatch.setattr(export_worker, "write_bundle", endless)
    small = replace(log, settings=log.settings.model_copy(update={"export_bytes_max": 1000}))
    with calling(small) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH, params={"format": "bundle"}))
    assert (shown["state"], shown["size_bytes"], written) == ("failed", 1200, 1200)
    assert "larger than 1000 bytes" in shown["error"]
    assert files(log) == []


@pytest.mark.parametrize("form", ["ndjson", "bundle"])
@pytest.mark.parametrize("looks", [0, 1], ids=["before", "meanwhile"])
def test_the_disk_is_never_filled_up(
    log: Store, monkeypatch: pytest.MonkeyPatch, form: str, looks: int
) -> None:
    free = [2**40] * looks
    total = 2**40

    def usage(_: Path) -> DiskUsage:
        return DiskUsage(total, 0, free.pop() if free else 2**30 - 1)

    monkeypatch.setattr(export_files.shutil, "disk_usage", usage)
    monkeypatch.setattr(export_files, "_ROOM_LOOK_BYTES", 1)
    with calling(log) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        shown = ended(client, client.post(PATH, params={"format": form}))
        assert shown["state"] == "failed"
        assert "too little room is left on the disk" in shown["error"]
        assert files(log) == []
        total = 20 * 2**29  # of a small disk less is enough
        assert ended(client, client.post(PATH, params={"format": form}))["state"] == "ready"


# --- how many, and whose ----------------------------------------------------------------------------------


def test_so_many_at_once_and_no_more(log: Store) -> None:
    idle = replace(log, settings=log.settings.model_copy(update={"export_workers": 0}))
    with calling(idle) as callers:
        ann, bea = callers.as_role(Role.COMPLIANCE), callers.as_role(Role.COMPLIANCE)
        first = ann.post(PATH)
        assert [ann.post(PATH).status_code for _ in range(2)] == [202, 429]
        assert [bea.post(PATH).status_code for _ in range(2)] == [202, 429]
        refused = bea.post(PATH)
        assert "this tenant" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "60"
        assert ann.delete(first.headers["location"]).status_code == 204
        assert bea.post(PATH).status_code == 202
        for seen in (ann.get(PATH), bea.get(PATH)):
            assert {e["state"] for e in seen.json()["exports"]} <= {"waiting", "cancelled"}


def test_asking_at_once_does_not_go_past_the_limit(log: Store) -> None:
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(asked(log))
        except RateLimitedError as e:
            outcomes.append(e)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(o, EventStoreError) for o in outcomes) == 4


def test_who_sees_which(log: Store) -> None:
    """The own ones, those of the keys that one's key replaces, and for administrators all: of the tenant."""
    make_tenant(log, "rival")
    with calling(log) as callers:
        subject, text = callers.key(Role.COMPLIANCE)
        ann, bea = callers.client(text), callers.as_role(Role.COMPLIANCE)
        shown = ended(ann, ann.post(PATH))
        where = f"{PATH}/{shown['export_id']}"
        key_id = subject.removeprefix("key:")
        _, newer, _ = rotate_key(
            log.database, key_id, by="ann", now_us=log.database.now_us(), overlap_us=10**9
        )
        for client in (
            ann,
            callers.client(newer),
            callers.as_role(Role.ADMINISTRATOR),
            callers.as_role(Role.ADMINISTRATOR, None),
        ):
            assert client.get(f"{where}/file").status_code == 200
            assert [e["export_id"] for e in client.get(PATH).json()["exports"]] == [shown["export_id"]]
        rival = callers.as_role(Role.ADMINISTRATOR, "rival")
        unknown = f"{PATH}/{UUID(int=7)}"
        for method, end in (("GET", ""), ("GET", "/file"), ("DELETE", "")):
            other, nothing = bea.request(method, where + end), bea.request(method, unknown + end)
            assert other.status_code == nothing.status_code == 404
            assert other.text.replace(shown["export_id"], "") == nothing.text.replace(str(UUID(int=7)), "")
            moved = rival.request(method, where.replace("acme", "rival") + end)
            assert moved.status_code == 404
            assert rival.request(method, where + end).status_code == 404
        assert bea.get(PATH).json()["exports"] == []
        assert ann.get(where).json()["state"] == "ready"


def test_a_list_goes_in_pages(log: Store) -> None:
    everybody = [replace(ADMIN, subject=f"p{n}") for n in range(3)]
    made = [str(asked(log, by=by).export_id) for by in everybody]
    with calling(log) as callers:
        client = callers.as_role(Role.ADMINISTRATOR)
        first = client.get(PATH, params={"limit": 2}).json()
        rest = client.get(PATH, params={"limit": 2, "cursor": first["next_cursor"]}).json()
        assert client.get(PATH, params={"cursor": "x"}).status_code == 400
    found = [e["export_id"] for e in first["exports"] + rest["exports"]]
    assert found == made[::-1]
    assert rest["next_cursor"] is None


def test_a_reason_may_be_required(log: Store) -> None:
    strict = replace(log, settings=log.settings.model_copy(update={"reason_required": True}))
    with calling(strict) as callers:
        client = callers.as_role(Role.COMPLIANCE)
        assert client.post(PATH).status_code == 400
        shown = ended(client, client.post(PATH, params={"reason": "why"}))
        assert client.get(f"{PATH}/{shown['export_id']}/file").status_code == 400
        assert client.get(f"{PATH}/{shown['export_id']}/file", params={"reason": "why"}).status_code == 200
