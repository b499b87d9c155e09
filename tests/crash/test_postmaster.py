"""kill -9 of Postgres itself, with appends, retention and a reader under way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg

from eventstore.db.embedded import start_embedded
from eventstore.db.engine import Database
from eventstore.db.migrate import upgrade
from tests.crash.world import BASE_US, HOUR_US, Host, a_world, seed


def test_postgres_killed(host: Host, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start_embedded(home) as server:
        database = Database(server.url)
        database.open()
        upgrade(database)
        database.close()
        with a_world(host, server.url, tmp_path, seed(server.url)) as world:
            start_us = BASE_US + 3 * HOUR_US
            appender = world.appender("appender", "--persist", "--step", HOUR_US // 60, clock_us=start_us)
            killed_reader = world.reader("killed-reader")
            retention = world.start("retain", "retention", "--loop")
            for _ in range(2):
                world.wait_progress(appender, killed_reader, retention)
                os.kill(_main_process(server.url), signal.SIGKILL)
                # Whoever has no way of going on without the server ends with an error; the appender persists.
                retention.kill()
                killed_reader.kill()
                with start_embedded(home) as restarted:
                    assert restarted.url == server.url
                    world.check()
                    world.wait_progress(appender)
                retention = world.start("retain", "retention", "--loop")
                killed_reader = world.reader("killed-reader")
            world.wait_progress(appender, killed_reader, retention, lines=2)
            world.stop.touch()
            assert [p.wait() for p in (appender, killed_reader, retention)] == [0, 0, 0]
            world.check()
            last = world.run_retention("last", start_us + 10_000 * HOUR_US)
            assert (last["status"], last["errors"]) == ("completed", [])
            world.check(orphans_allowed=False)


def _main_process(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute("SHOW data_directory").fetchone()
    assert row is not None
    return int((Path(row[0]) / "postmaster.pid").read_text().splitlines()[0])
