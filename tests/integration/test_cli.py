"""The command line as a program: output in each format, exit statuses, no traceback ever."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eventstore.app import open_store
from eventstore.clock import FixedClock, to_iso
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    fill_days,
    leaves,
    make_tenant,
    new_event,
    run_retention,
)

PROGRAM = str(Path(sys.executable).parent / "eventstore")
FOLDED = "x" * 40 + 'é, "quoted"\n'


# Importing the program takes a second. So one process imports it, and each call runs in a fork of that: a
# process of its own with its own environment, output and exit status.
ZYGOTE = """
import json, os, sys
from eventstore.cli.main import main
for line in sys.stdin:
    arguments, environment, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder + "/" + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["eventstore", *arguments]
        status = 0
        try:
            main()
        except SystemExit as e:
            status = e.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "250"},
    ) as process:
        yield process


@dataclass
class Shell:
    """A database and an archive, and the program to work on them."""

    url: str
    archive: Path
    home: Path
    zygote: subprocess.Popen[str]

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "EVENTSTORE_DATABASE_URL": self.url,
            "EVENTSTORE_ARCHIVE_URL": self.archive.as_uri(),
            "EVENTSTORE_HOME": str(self.home),
            "COLUMNS": "250",
            **more,
        }

    def __call__(self, *arguments: str, status: int = 0, **more: str) -> str:
        """Run it; its standard output, or its standard error where it fails."""
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        print(
            json.dumps([arguments, self.environment(**more), str(self.home)]),
            file=self.zygote.stdin,
            flush=True,
        )
        found = int(self.zygote.stdout.readline())
        out, err = ((self.home / name).read_text() for name in ("out", "err"))
        assert "Traceback" not in err, err
        assert found == status, (found, out, err)
        return out if status == 0 else out + err


@pytest.fixture(scope="module")
def shell(
    server_url: str,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    zygote: subprocess.Popen[str],
) -> Iterator[Shell]:
    """acme: two archived days and a hot one, five events each. Tests of this module only read it."""
    folder = tmp_path_factory.mktemp("cli")
    url = create_database(server_url, folder.name, template=template_database)
    clock = FixedClock(START_US)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with open_store(settings, clock=clock) as store:
        make_tenant(store)
        fill_days(store, clock, "acme", 2)
        run_retention(store, START_US + 2 * DAY_US)
        clock.move_to(START_US + 2 * DAY_US)
        append(store, "acme", *(new_event(str(n % 3), new_value=FOLDED) for n in range(5)))
        make_tenant(store, "many")
        clock.move_to(START_US)
        append(store, "many", *(new_event(str(n), new_value="x" * 100) for n in range(5000)))
    yield Shell(url, folder / "archive", folder, zygote)
    execute(server_url, f'DROP DATABASE "{folder.name}" WITH (FORCE)')


def test_events_as_json_lines(shell: Shell) -> None:
    """The default in a pipe."""
    rows = [json.loads(line) for line in shell("events", "acme").splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, 16))
    assert list(rows[0]) == list(EVENT_FIELDS)
    assert rows[0]["recorded_at"] == to_iso(START_US + DAY_US // 2)
    assert rows[-1]["new_value"] == FOLDED
    assert (
        shell("events", "acme", "--format", "jsonl", "--order", "desc")
        .splitlines()[0]
        .startswith('{"seq":15,')
    )


def test_events_as_csv(shell: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(shell("events", "acme", "--format", "csv", "--entity-id", "1"))))
    assert list(rows[0]) == list(EVENT_FIELDS)
    assert [int(row["seq"]) for row in rows] == [2, 5, 7, 10, 12, 15]
    assert json.loads(rows[-1]["new_value"]) == FOLDED
    assert len(bytes.fromhex(rows[0]["hash"])) == 32


def test_events_as_a_table(shell: Shell) -> None:
    shown = shell("events", "acme", "--format", "table", "--limit", "3")
    lines = shown.splitlines()
    assert lines[0].split()[:2] == ["seq", "recorded"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[-1].startswith("3 events; looked at 3 archived")
    # A value with a line break stays within its row's cell.
    last = shell("events", "acme", "--format", "table", "--seq-from", "15")
    assert "…" in last


def test_conditions_and_history(shell: Shell) -> None:
    def found(*arguments: str) -> list[int]:
        return [json.loads(line)["seq"] for line in shell(*arguments).splitlines()]

    assert found("history", "acme", "1") == [2, 5, 7, 10, 12, 15]
    assert found("history", "acme", "1", "--order", "desc", "--limit", "2") == [15, 12]
    assert found("history", "acme", "nobody") == []
    assert found(
        "events", "acme", "--recorded-from", "2024-03-02", "--recorded-to", "2024-03-03", "--actor", "ann"
    ) == [6, 7, 8, 9, 10]
    assert found("recent", "acme", "--limit", "3") == [15, 14, 13]
    assert found("recent", "acme", "--limit", "3", "--order", "asc") == [13, 14, 15]


def test_stats_in_each_format(shell: Shell) -> None:
    as_json = json.loads(shell("stats", "acme"))
    assert (as_json["tenant"], as_json["hot_events"], as_json["archive_events"]) == ("acme", 5, 10)
    assert (as_json["windows_dropped"], as_json["windows_open"], as_json["last_seq"]) == (2, 1, 15)
    (as_csv,) = csv.DictReader(io.StringIO(shell("stats", "acme", "--format", "csv")))
    assert as_csv == {name: "" if value is None else str(value) for name, value in as_json.items()}
    shown = shell("stats", "acme", "--format", "table")
    assert "archive events" in shown
    assert as_json["last_hash"] in shown


def test_the_program_itself() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("eventstore ")


def test_verify(shell: Shell) -> None:
    assert "acme: whole. 15 events, 2 segments" in shell("verify", "acme")


def test_tenants_are_created_and_listed(shell: Shell) -> None:
    made = shell("tenants", "create", "new-one", "--window", "week", "--hot-for", "1d12h")
    assert "new-one: windows of one week, hot for 1d12h" in made
    shown = shell("tenants", "list")
    (line,) = (line for line in shown.splitlines() if line.startswith("new-one"))
    assert "week" in line
    assert "1d12h" in line
    assert "exists already" in shell("tenants", "create", "new-one", status=65)
    assert "is no tenant name" in shell("tenants", "create", "New_One", status=65)
    assert "is not a duration" in shell("tenants", "create", "other", "--hot-for", "soon", status=65)
    assert "other" not in shell("tenants", "list")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["events", "nobody"], 65, "there is no tenant 'nobody'"),
        (["history", "nobody", "1"], 65, "there is no tenant"),
        (["recent", "nobody"], 65, "there is no tenant"),
        (["stats", "nobody"], 65, "there is no tenant"),
        (["verify", "nobody"], 65, "there is no tenant"),
        (["retention", "run", "--tenant", "nobody"], 65, "there is no tenant"),
        (["events", "acme", "--recorded-from", "yesterday"], 65, "is not a time"),
        (["retention", "run", "--now", "2999-01-01"], 65, "lies in the future"),
        (["retention", "run", "--now", "2999-01-01", "--dry-run"], 65, "lies in the future"),
        (["events"], 2, "Missing argument"),
        (["events", "acme", "--order", "sideways"], 2, "sideways"),
        (["events", "acme", "--limit", "0"], 2, "--limit"),
        (["nonsense"], 2, "nonsense"),
    ],
)  # fmt: skip
def test_exit_statuses(shell: Shell, arguments: list[str], status: int, said: str) -> None:
    assert said in shell(*arguments, status=status)


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"EVENTSTORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, 78, "cannot connect to Postgres"),
        ({"EVENTSTORE_DATABASE_URL": "mysql://x/y"}, 78, "is not a Postgres URL"),
        ({"EVENTSTORE_ARCHIVE_URL": "ftp://x/y"}, 78, "no archive target for ftp://"),
        ({"EVENTSTORE_PORT": "x"}, 78, "EVENTSTORE_PORT"),
    ],
)
def test_a_wrong_installation(shell: Shell, more: dict[str, str], status: int, said: str) -> None:
    assert said in shell("stats", "acme", status=status, **more)


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_piping_into_head_is_quiet(shell: Shell, form: str) -> None:
    with subprocess.Popen(
        [PROGRAM, "events", "many", "--format", form],
        env=shell.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline()
        program.stdout.close()  # what head does when it has its lines
        said = program.stderr.read().decode()
    assert "Traceback" not in said
    assert "Exception" not in said
    assert program.returncode in (1, 141, -13)


def snapshot(shell: Shell) -> object:
    """Everything that a run could change."""
    names = ("tenants", "heads", "watermarks", "windows", "segments", "runs", "run_entries")
    tables = [execute(shell.url, f"SELECT * FROM {name} ORDER BY 1, 2") for name in names]
    files = sorted((str(p), p.stat().st_ctime_ns) for p in shell.archive.rglob("*") if p.is_file())
    return tables, leaves(shell.url), files


def test_a_dry_run_touches_nothing(shell: Shell) -> None:
    before = snapshot(shell)
    shown = shell("retention", "run", "--dry-run", "--tenant", "acme", "--now", to_iso(START_US + 3 * DAY_US))
    assert snapshot(shell) == before
    assert "due: 1 window with 5 events. Nothing was touched." in shown
    assert "2024-03-03 … 2024-03-04" in shown
    assert "seal → write → verify → cut over → drop" in shown
    nothing = shell(
        "retention", "run", "--dry-run", "--tenant", "acme", "--now", to_iso(START_US + 3 * DAY_US - 1)
    )
    assert "due: 0 windows" in nothing
    assert snapshot(shell) == before


@pytest.fixture
def own(
    settings: Settings,
    clock: FixedClock,
    archive_dir: Path,
    tmp_path: Path,
    zygote: subprocess.Popen[str],
) -> Shell:
    """A store that the test may change: two tenants with two days each."""
    with open_store(settings, clock=clock) as store:
        for name in ("acme", "b"):
            clock.move_to(START_US)
            make_tenant(store, name)
            fill_days(store, clock, name, 2)
    assert settings.database_url is not None
    return Shell(settings.database_url, archive_dir, tmp_path, zygote)


def test_retention_runs_and_says_what_it_did(own: Shell) -> None:
    shown = own("retention", "run", "--now", to_iso(START_US + DAY_US))
    lines = [line.split() for line in shown.splitlines()]
    assert [line[:4] for line in lines if line[:1] in (["acme"], ["b"])] == [
        ["acme", "1", "5", "1"],
        ["b", "1", "5", "1"],
    ]
    assert shown.rstrip().endswith("completed.")
    again = own("retention", "run")
    assert "done" in again
    assert "nothing due" in own("retention", "run")
    assert [json.loads(line)["seq"] for line in own("events", "b").splitlines()] == list(range(1, 11))


def test_a_stopped_tenant_is_exit_status_1_and_in_the_record(own: Shell) -> None:
    leaf = leaves(own.url)[0]
    execute(own.url, f"ALTER TABLE {leaf} RENAME TO renamed_by_hand")
    planned = own("retention", "run", "--dry-run", status=1)
    assert "cannot be planned" in planned
    assert "due: 2 windows" in planned
    shown = own("retention", "run", status=1)
    assert "renamed_by_hand" in shown or leaf.removeprefix("hot.") in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line[:2] in ("ac", "b ")}
    assert "stopped" in lines["acme"] or "acme:" in lines
    assert "done" in lines["b"]
    assert execute(own.url, "SELECT status FROM runs") == [("failed",)]
    failed = "SELECT tenant_id FROM run_entries WHERE kind = 'plan_warning' AND (detail->>'failed')::bool"
    assert execute(own.url, failed) == [("acme",)]


def test_damage_is_exit_status_70(own: Shell) -> None:
    own("retention", "run")
    path = sorted(own.archive.rglob("*acme*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-9])
    broken = own("verify", "acme", status=70)
    assert "BROKEN at seq 6" in broken
    assert path.name in broken
    assert path.name in own("events", "acme", status=70)
    partial = own("events", "acme", "--partial", status=70)
    assert [json.loads(line)["seq"] for line in partial.splitlines() if line.startswith("{")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert "not read: seq 6 to 10" in partial
    assert "b: whole" in own("verify", "b")
