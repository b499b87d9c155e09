"""Everything at once, for a while. TORTURE_SECONDS is how long (12), TORTURE_SEED repeats a run's choices."""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

import psycopg
import pytest

from eventstore.clock import US_PER_S
from tests.conftest import create_database
from tests.crash.torture import POLICY, SEEDED_HOURS, SETTINGS, Torture
from tests.crash.world import HOUR_US, Host, a_world, seed


def test_torture(
    server_url: str, template_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = float(os.environ.get("TORTURE_SECONDS", "12"))
    chosen = int(os.environ.get("TORTURE_SEED", str(random.SystemRandom().randrange(2**32))))
    print(f"TORTURE_SEED={chosen}")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"EVENTSTORE_{name.upper()}", value)
    # A year ago, so that the simulated time stays behind the real one.
    start_us = (int(time.time()) * US_PER_S - 365 * 24 * HOUR_US) // HOUR_US * HOUR_US
    url = create_database(server_url, f"torture_{secrets.token_hex(6)}", template=template_database)
    seeded = seed(url, POLICY, start_us=start_us, hours=SEEDED_HOURS)
    host = Host(tmp_path / "log")  # of its own: what it starts has other settings
    try:
        with a_world(host, url, tmp_path, seeded) as world:
            torture = Torture(world, start_us + SEEDED_HOURS * HOUR_US, seconds, chosen)
            try:
                print(torture.run())
            except BaseException:
                print(f"{torture}\n{host.log.read_text()[-20_000:]}")
                for row in world.query("SELECT * FROM tasks WHERE state <> 'done'") + world.query(
                    "SELECT * FROM governor"
                ):
                    print(*row)
                raise
    finally:
        host.close()
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{psycopg.conninfo.conninfo_to_dict(url)["dbname"]}" WITH (FORCE)')
