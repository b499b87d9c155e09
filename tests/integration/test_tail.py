"""`eventstore tail`: the newest events, what comes after them, and a quiet end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from eventstore.app import Store
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.settings import Settings
from tests.unit.helpers import DAY_US, START_US, append, fill_days, make_tenant, new_event, run_retention


@pytest.fixture
def environment(store: Store, settings: Settings, clock: FixedClock) -> dict[str, str]:
    """The tenant acme with two archived days of five events, and a hot one."""
    make_tenant(store, "acme")
    fill_days(store, clock, "acme", 3)
    run_retention(store, START_US + 2 * DAY_US)
    return {
        "EVENTSTORE_DATABASE_URL": str(settings.database_url),
        "EVENTSTORE_HOME": str(settings.home),
        "EVENTSTORE_ARCHIVE_URL": str(settings.archive_url),
    }


def test_the_newest_come_oldest_first(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def seqs(*options: str) -> list[int]:
        result = CliRunner().invoke(app, ["tail", "acme", "--format", "csv", *options])
        assert result.exit_code == 0, result.output
        return [int(row["seq"]) for row in csv.DictReader(io.StringIO(result.stdout))]

    assert seqs() == list(range(6, 16))
    assert seqs("-n", "3") == [13, 14, 15]
    assert seqs("-n", "0") == []
    assert seqs("-n", "4", "--entity-id", "2") == [3, 8, 13]


def test_it_follows_and_ends_quietly(store: Store, environment: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "eventstore.cli.main",
        "tail",
        "-f",
        "-n",
        "2",
        "acme",
        "--entity-id",
        "1",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSTORE_")}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=kept | environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None

        def seqs(count: int) -> list[int]:
            assert process.stdout is not None
            return [json.loads(process.stdout.readline())["seq"] for _ in range(count)]

        assert seqs(2) == [12, 15]
        # Another process' commit, of which nobody tells: it is looked at every second.
        append(store, "acme", new_event("2"), new_event("1"))
        assert seqs(1) == [17]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
