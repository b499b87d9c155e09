"""Importing files into a real log: every format, every reject, and kill -9 at chosen and random moments."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventstore.clock import SystemClock, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.errors import InputError, StateError, TenantNotFoundError
from eventstore.governance.tenants import create_tenant
from eventstore.intake import readers
from eventstore.intake.importer import ImportFormat, ImportProgress, ImportReport, import_file
from eventstore.model.event import Event, canonical_bytes, chain_hash, chain_start
from eventstore.model.policy import Policy
from eventstore.model.window import WindowUnit

TENANT = "acme"
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00:00Z
HOUR_US = 3_600_000_000

CHILD = """
import os, signal, sys
from pathlib import Path
from eventstore.db.engine import Database
from eventstore.hot.log import LogTransaction
from eventstore.intake import importer
from eventstore.intake.importer import import_file

url, path, moment, count = sys.argv[1:]
left = int(count)

def die(at):
    global left
    if at == moment:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, at):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        result = real(*args, **kwargs)
        die(at)
        return result
    setattr(owner, name, wrapped)

after(importer.RejectFile, "append", "rejects written")
after(importer.RejectFile, "rewind", "rejects rewound")
after(LogTransaction, "write", "events written")
after(importer, "store_progress", "before the commit")
after(LogTransaction, "_commit", "after the commit")

def progress(at):
    if not at.hashing:
        print(at.rows_read, flush=True)

database = Database(url)
database.open()
import_file(
    database,
    "acme",
    Path(path),
    recorded_at_column="at",
    value_bytes_max=1000,
    chunk_rows=50,
    progress=progress,
)
database.close()
"""


@pytest.fixture
def tenant(database: Database) -> Database:
    create_tenant(database, TENANT, Policy(WindowUnit.MONTH, HOUR_US))
    return database


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "entity_type": "file",
        "entity_id": f"src/{number}.c",
        "action": "update",
        "actor": "me",
        "source": "git",
        "new_value": f"v{number}",
        **fields,
    }


def dated(number: int, **fields: Any) -> dict[str, Any]:
    return row(number, at=to_iso(START_US + number * HOUR_US), **fields)


def load(database: Database, source: Path | BinaryIO, **options: Any) -> ImportReport:
    return import_file(database, TENANT, source, **{"value_bytes_max": 1000, **options})


def stored(database: Database) -> list[Event]:
    """The whole log in order, after checking its numbers, its times and its chain."""
    columns = (
        "seq, event_id, recorded_at, occurred_at, entity_type, entity_id, action, field,"
        " old_value, new_value, actor, source, workspace_id, metadata, hash"
    )
    with database.connection() as conn:
        rows = conn.execute(f"SELECT {columns} FROM events WHERE tenant_id = %s ORDER BY seq", [TENANT])  # type: ignore[arg-type]
        events = [Event(r[0], r[1].bytes, to_us(r[2]), to_us(r[3]), *r[4:14], bytes(r[14])) for r in rows]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    times = [event.recorded_at_us for event in events]
    assert times == sorted(times)
    last = chain_start(TENANT)
    for event in events:
        last = chain_hash(last, canonical_bytes(event))
        assert event.hash == last
    return events


def rejected(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_every_format_gives_the_same_log(tenant: Database, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows.{suffix}", [dated(n, ticket=f"T{n}") for n in range(20)])
    seen: list[ImportProgress] = []
    report = load(tenant, path, recorded_at_column="at", chunk_rows=6, progress=seen.append)
    assert report == ImportReport(20, 20, 0, 0, 1, 20, 0, None, 0, False)
    events = stored(tenant)
    assert [event.entity_id for event in events] == [f"src/{n}.c" for n in range(20)]
    assert [event.recorded_at_us for event in events] == [START_US + n * HOUR_US for n in range(20)]
    assert {event.field for event in events} == {"*"}
    assert events[3].new_value == '"v3"'
    assert events[3].metadata == '{"ticket":"T3"}'
    assert events[3].occurred_at_us == events[3].recorded_at_us
    assert not list(tmp_path.glob("*.rejects.jsonl"))
    assert seen[0].hashing
    assert (seen[-1].rows_read, seen[-1].bytes_done) == (20, path.stat().st_size)


def test_standard_input_and_its_rejects(
    tenant: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = b'\xef\xbb\xbf{"oops"\n' + json.dumps(row(1)).encode()
    report = load(tenant, io.BytesIO(data), file_format=ImportFormat.JSONL)
    assert (report.rows_read, report.rows_stored, report.rejects_path) == (2, 1, Path("stdin.rejects.jsonl"))
    assert rejected(tmp_path / "stdin.rejects.jsonl")[0]["line"] == 1
    again = load(tenant, io.BytesIO(data), file_format=ImportFormat.JSONL)
    assert (again.already_finished, again.rows_read, again.first_seq) == (True, 2, None)
    assert len(stored(tenant)) == 1


def test_the_same_file_read_otherwise_is_another_import(tenant: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [dated(1)])
    assert load(tenant, path, recorded_at_column="at").rows_stored == 1
    assert load(tenant, path.rename(tmp_path / "b.jsonl"), recorded_at_column="at").already_finished
    assert load(tenant, tmp_path / "b.jsonl").rows_stored == 1
    assert stored(tenant)[1].metadata == f'{{"at":"{to_iso(START_US + HOUR_US)}"}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [("e.jsonl", b""), ("e.csv", b""), ("e.csv", b"entity_type,entity_id,action,actor,source\n")],
)
def test_an_empty_file_is_an_empty_import(
    tenant: Database, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert load(tenant, path) == ImportReport(0, 0, 0, 0, None, None, 0, None, 0, False)
    assert load(tenant, path).already_finished


def test_a_parquet_file_without_rows(tenant: Database, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.Table.from_pylist([row(1)]).slice(0, 0), path)
    assert load(tenant, path).rows_read == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.parquet", b"entity_type,", "is not a Parquet file"),
        ("a.parquet", b"PAR1" + bytes(100), "cannot be read as Parquet"),
        ("a.csv", b"PAR1....", "is a Parquet file, not csv"),
        ("a.jsonl", b"\x1f\x8b\x08", "is compressed"),
        ("a.jsonl", b"\n [{}]", "is one JSON array"),
        ("a.csv", b"entity_type,entity_id\n", "no column 'action'"),
        ("a.txt", b"", "does not tell its format"),
    ],
)
def test_wrong_files_are_refused_with_what_to_do(
    tenant: Database, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tenant, path)
    assert caught.value.hint
    assert stored(tenant) == []


def test_wrong_callers_are_refused(tenant: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    with pytest.raises(InputError, match="cannot read"):
        load(tenant, tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no name to tell its format"):
        load(tenant, io.BytesIO(b""))
    with pytest.raises(InputError, match="both the import and its rejects"):
        load(tenant, path, rejects=path)
    with pytest.raises(TenantNotFoundError):
        import_file(tenant, "nobody", path, value_bytes_max=100)
    precious = tmp_path / "thesis.txt"
    precious.write_text("the only copy\n")
    with pytest.raises(InputError, match="is no file of rejected rows"):
        load(tenant, path, rejects=precious)
    assert precious.read_text() == "the only copy\n"


def test_an_open_quote_is_an_error_that_says_where(
    tenant: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 10_000)
    path = write(tmp_path / "rows.csv", [row(n) for n in range(1000)])
    with open(path, "a") as file:
        file.write('file,"never closed' + "x\n" * 20_000)
    with pytest.raises(InputError, match=r"after row \d+ comes one of over 10000 bytes") as caught:
        load(tenant, path)
    assert "quote" in caught.value.hint
    assert stored(tenant)


def test_a_file_that_changes_meanwhile_is_an_error(tenant: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(n) for n in range(30)])

    def grow(at: ImportProgress) -> None:
        if at.rows_read == 10:
            with open(path, "a") as file:
                file.write("{}\n")

    with pytest.raises(StateError, match="was changed while it was being imported"):
        load(tenant, path, chunk_rows=10, progress=grow)


# --- rejects ----------------------------------------------------------------------------------------


def test_rejected_json_lines_say_row_line_column_and_reason(tenant: Database, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(row(1)),
        "",
        "{broken",
        json.dumps(row(3, actor=None)),
        json.dumps(row(4, action=7)),
        json.dumps(row(5, new_value="x" * 2000)),
        json.dumps(row(6)),
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"actor":"\xff"}\n')
    report = load(tenant, path, chunk_rows=2)
    assert (report.rows_read, report.rows_stored, report.rows_rejected) == (7, 2, 5)
    assert report.rejects_path is not None
    entries = rejected(report.rejects_path)
    assert [(e["row"], e["line"], e.get("column")) for e in entries] == [
        (2, 3, None),
        (3, 4, "actor"),
        (4, 5, "action"),
        (5, 6, "new_value"),
        (7, 8, None),
    ]
    assert entries[0]["data"] == "{broken"
    assert entries[1]["data"] == row(3, actor=None)
    assert "UTF-8" in entries[4]["reason"]


def test_rejected_csv_rows_say_row_line_column_and_reason(tenant: Database, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"entity_type,entity_id,action,actor,source,old_value,metadata\n"
        b'file,a,update,me,git,"two\nlines",\n'
        b"file,b\n"
        b"\n"
        b'file,"",update,me,git,,\n'
        b"file,\xff,update,me,git,,\n"
        b"file,c,update,me,git,,[1]\n"
        b'file,d,update,me,git,"","{""k"": 1}"\n'
    )
    report = load(tenant, path)
    assert report.rejects_path is not None
    entries = rejected(report.rejects_path)
    assert [(e["row"], e["line"], e.get("column")) for e in entries] == [
        (2, 4, None),
        (3, 6, "entity_id"),
        (4, 7, "entity_id"),
        (5, 8, "metadata"),
    ]
    assert entries[0]["reason"] == "has 2 fields where the header has 7"
    assert entries[3]["data"]["entity_id"] == "c"
    events = stored(tenant)
    assert [(e.entity_id, e.old_value, e.metadata) for e in events] == [
        ("a", '"two\\nlines"', None),
        ("d", '""', '{"k":1}'),
    ]


def test_rejected_parquet_rows_carry_their_data(tenant: Database, tmp_path: Path) -> None:
    rows = [row(n, when=None, blob=b"\xff") for n in range(30)]
    rows[11]["entity_id"] = ""
    rows[22]["source"] = None
    report = load(tenant, write(tmp_path / "rows.parquet", rows), chunk_rows=8, rejects=tmp_path / "bad")
    assert report.rejects_path == tmp_path / "bad"
    entries = rejected(tmp_path / "bad")
    assert [(e["row"], e["column"]) for e in entries] == [(12, "entity_id"), (23, "source")]
    assert "line" not in entries[0]
    assert entries[1]["data"]["entity_id"] == "src/22.c"
    assert len(stored(tenant)) == 28


def test_times_that_go_back_or_lie_ahead_are_rejected(tenant: Database, tmp_path: Path) -> None:
    hours = [5, 6, 3, 6, 10**6, 7, 4, 8]
    rows = [row(n, at=to_iso(START_US + hour * HOUR_US)) for n, hour in enumerate(hours)]
    path = write(tmp_path / "rows.jsonl", rows)
    report = load(tenant, path, recorded_at_column="at", chunk_rows=3)
    assert report.rejects_path is not None
    entries = rejected(report.rejects_path)
    assert [(e["row"], e["column"]) for e in entries] == [(3, "at"), (5, "at"), (7, "at")]
    assert "lies before 2020-01-01T06:00:00.000000Z" in entries[0]["reason"]
    assert "lies in the future" in entries[1]["reason"]
    assert [e.entity_id for e in stored(tenant)] == [f"src/{n}.c" for n in (0, 1, 3, 5, 7)]


def test_a_history_older_than_the_log_is_rejected(tenant: Database, tmp_path: Path) -> None:
    load(tenant, write(tmp_path / "now.jsonl", [row(1)]))
    report = load(tenant, write(tmp_path / "old.jsonl", [dated(1)]), recorded_at_column="at")
    assert (report.rows_stored, report.rows_rejected) == (0, 1)
    assert report.rejects_path is not None
    assert "to which the log has come" in rejected(report.rejects_path)[0]["reason"]


@pytest.mark.parametrize("version", [4, 7])
def test_repeated_ids_are_stored_once(tenant: Database, tmp_path: Path, version: int) -> None:
    ids = [str(uuid.UUID(int=uuid.uuid4().int & ~(15 << 76) | version << 76)) for _ in range(12)]
    if version == 7:
        ids = [f"0{identity[1:]}" for identity in ids]
    load(
        tenant,
        write(tmp_path / "a.jsonl", [dated(n, event_id=ids[n]) for n in range(5)]),
        recorded_at_column="at",
    )
    rows = [dated(10 + n, event_id=ids[n]) for n in range(3, 12)]
    rows += [dated(1, event_id=ids[9]), dated(30, event_id=ids[7]), dated(31)]
    # A refused row's id is not taken: the row after it with the same id is stored.
    fresh = str(uuid.uuid4())
    rows += [dated(0, event_id=fresh), dated(32, event_id=fresh)]
    report = load(tenant, write(tmp_path / "b.jsonl", rows), recorded_at_column="at", chunk_rows=4)
    assert (report.rows_read, report.duplicates, report.rows_rejected) == (14, 4, 1)
    assert report.rows_stored == 9
    found = [str(uuid.UUID(bytes=event.event_id)) for event in stored(tenant)]
    assert found[:12] == ids
    assert found[13] == fresh


def test_many_windows_in_one_chunk_are_stored_in_pieces(database: Database, tmp_path: Path) -> None:
    create_tenant(database, TENANT, Policy(WindowUnit.HOUR, HOUR_US))
    rows = [dated(n // 2) for n in range(300)]
    rows[129]["actor"] = rows[128]["actor"] = rows[299]["actor"] = None
    seen: list[int] = []
    path = write(tmp_path / "rows.jsonl", rows)
    report = load(database, path, recorded_at_column="at", progress=lambda at: seen.append(at.rows_read))
    assert seen[1:] == [130, 258, 300, 300]
    assert (report.rows_stored, report.rows_rejected) == (297, 3)
    assert report.rejects_path is not None
    assert [e["row"] for e in rejected(report.rejects_path)] == [129, 130, 300]
    assert len(stored(database)) == 297


# --- resuming ---------------------------------------------------------------------------------------


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Rows of which some are refused by the mapping, some by their time, some repeat an id."""
    rows = [dated(n, event_id=str(uuid.UUID(int=n + 1))) for n in range(count)]
    for n in range(10, count, 37):
        rows[n]["actor"] = ""
    for n in range(20, count, 41):
        rows[n]["at"] = to_iso(START_US - HOUR_US)
    for n in range(30, count, 43):
        rows[n]["event_id"] = rows[n - 5]["event_id"]
    return rows


def run_child(url: str, path: Path, moment: str = "-", count: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(path), moment, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def check_whole(database: Database, path: Path, reference: Path) -> None:
    """After any number of kills: finish the import, and compare all of it with one that nobody killed."""
    report = load(database, path, recorded_at_column="at", chunk_rows=50)
    events = stored(database)
    create_tenant(database, "unharmed", Policy(WindowUnit.MONTH, HOUR_US))
    expected = import_file(
        database, "unharmed", path, value_bytes_max=1000, recorded_at_column="at", rejects=reference
    )
    assert (report.rows_read, report.rows_stored, report.rows_rejected, report.duplicates) == (
        expected.rows_read,
        expected.rows_stored,
        expected.rows_rejected,
        expected.duplicates,
    )
    with database.connection() as conn:
        unharmed = conn.execute(
            "SELECT event_id, recorded_at, entity_id, new_value FROM events WHERE tenant_id = 'unharmed'"
            " ORDER BY seq"
        ).fetchall()
    assert [(e.event_id, e.recorded_at_us, e.entity_id, e.new_value) for e in events] == [
        (r[0].bytes, to_us(r[1]), r[2], r[3]) for r in unharmed
    ]
    assert path.with_name(f"{path.name}.rejects.jsonl").read_bytes() == reference.read_bytes()
    assert report.rejects_missing == 0


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("rejects rewound", 1),
        ("rejects written", 1),
        ("rejects written", 4),
        ("events written", 3),
        ("before the commit", 1),
        ("before the commit", 5),
        ("after the commit", 2),
        ("after the commit", 9),
    ],
)
def test_killed_at_a_chosen_moment(
    tenant: Database, database_url: str, tmp_path: Path, moment: str, count: int
) -> None:
    path = write(tmp_path / "rows.jsonl", mixed_rows(400))
    child = run_child(database_url, path, moment, count)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    check_whole(tenant, path, tmp_path / "reference")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_killed_again_and_again_at_random_moments(
    tenant: Database, database_url: str, tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"rows.{suffix}", mixed_rows(1200))
    dice = random.Random(suffix)
    kills = 0
    for _ in range(3):
        child = run_child(database_url, path)
        assert child.stdout is not None
        for _ in range(dice.randrange(1, 7)):
            child.stdout.readline()
        child.kill()
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    assert kills
    check_whole(tenant, path, tmp_path / "reference")


def test_rejects_that_were_taken_away_are_missed(tenant: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", mixed_rows(200))
    rejects = tmp_path / "rows.jsonl.rejects.jsonl"

    def stop(at: ImportProgress) -> None:
        if at.rows_read == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tenant, path, recorded_at_column="at", chunk_rows=50, progress=stop)
    before = len(rejected(rejects))
    assert before
    rejects.unlink()
    report = load(tenant, path, recorded_at_column="at", chunk_rows=50)
    assert (report.resumed_from, report.rejects_missing) == (100, before)
    assert len(rejected(rejects)) == report.rows_rejected - before


def test_two_imports_of_one_file_at_once_store_it_once(
    tenant: Database, database_url: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", mixed_rows(400))
    inside, go_on = threading.Event(), threading.Event()
    errors: list[StateError] = []

    def wait(at: ImportProgress) -> None:
        if at.rows_read == 50:
            inside.set()
            assert go_on.wait(60)

    def slow() -> None:
        try:
            load(tenant, path, recorded_at_column="at", chunk_rows=50, progress=wait)
        except StateError as e:
            errors.append(e)

    thread = threading.Thread(target=slow)
    thread.start()
    assert inside.wait(60)
    # The other one goes on where the first has come to, and the first finds that out.
    report = load(tenant, path, recorded_at_column="at", chunk_rows=50)
    go_on.set()
    thread.join()
    assert report.resumed_from == 50
    assert len(errors) == 1
    assert "another process is importing" in errors[0].message
    check_whole(tenant, path, tmp_path / "reference")


# --- real histories ---------------------------------------------------------------------------------


def test_a_real_history(tenant: Database) -> None:
    folder = Path(os.environ.get("DATA") or Path(__file__).parents[2] / "../shared/data")
    path = folder / "git-history" / "pallets__flask.parquet"
    if not path.exists():
        pytest.skip(f"no {path}: set DATA to the folder that holds git-history")
    before = SystemClock().now_us()
    report = load(tenant, path, recorded_at_column="occurred_at", rejects=Path("unused"))
    rows = pq.read_table(path).to_pylist()
    assert report.rows_stored == len(rows)
    events = stored(tenant)
    assert [(e.entity_id, e.recorded_at_us, e.metadata) for e in events] == [
        (
            r["entity_id"],
            to_us(r["occurred_at"]),
            json.dumps({"change_id": r["change_id"]}, separators=(",", ":")),
        )
        for r in rows
    ]
    assert events[-1].recorded_at_us < before
