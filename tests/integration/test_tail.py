"""`eventstore tail`: the newest events, what comes after them, and a quiet end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from eventstore.app import Store
from eventstore.cli import tailing
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.governance.keys import create_key
from eventstore.model.access import Role
from eventstore.settings import Settings
from tests.integration.apiserver import Tenant, served_api
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


def test_over_http_a_readers_key_is_enough(
    server_url: str, template_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of the store is opened here: no home, no database."""
    with served_api(server_url, template_database, tmp_path) as api:
        tenant = Tenant(api)
        tenant.fill()
        now_us = api.store.database.now_us()
        create_key(api.store.database, role=Role.ADMINISTRATOR, tenant_id=None, by="ann", now_us=now_us)
        _, key = create_key(
            api.store.database, role=Role.READER, tenant_id=tenant.name, by="ann", now_us=now_us
        )
        monkeypatch.setenv("EVENTSTORE_KEY", key)
        monkeypatch.setenv("EVENTSTORE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
        arguments = ["tail", tenant.name, "--url", f"http://127.0.0.1:{api.address[1]}", "--format", "jsonl"]
        result = CliRunner().invoke(app, [*arguments, "-n", "5"])
        assert result.exit_code == 0, result.output
        found = [json.loads(line) for line in result.stdout.splitlines()]
        with_key = {"authorization": f"Bearer {key}"}
        page = api.client.get(f"{tenant.path}/events", params={"seq_from": 12}, headers=with_key).json()
        assert found == page["events"]
        # The first that comes shows that it follows; then the consumer has had enough.
        shown: list[int] = []

        def enough(events: Iterable[pa.Table], _form: object) -> int:
            for table in events:
                shown.extend(table.column("seq").to_pylist())
                if len(shown) == 2:
                    append(api.store, tenant.name, new_event())
                if len(shown) == 3:
                    raise KeyboardInterrupt
            raise AssertionError("it ended")

        monkeypatch.setattr(tailing, "write_events", enough)
        assert CliRunner().invoke(app, [*arguments, "-f", "-n", "2"]).exit_code == 130
        assert shown == [15, 16, 17]


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
