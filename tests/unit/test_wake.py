"""What a process says of its commits, and to whom."""

from __future__ import annotations

import json
import queue

import psycopg
import pytest
from cryptography.fernet import Fernet

from eventstore.db.engine import Database
from eventstore.hot import wake
from eventstore.hot.wake import Wakes, payload_of

WAIT_S = 30


@pytest.mark.parametrize("count", [1, 80, 91, 92, 2_000, 100_000])
def test_a_payload_is_one_that_postgres_takes(count: int) -> None:
    tenants = {f"{n:0>60}" for n in range(count)}
    seal = Fernet(Fernet.generate_key())
    payload = payload_of(seal, "process", tenants)
    assert len(payload.encode()) < 8000
    said = json.loads(seal.decrypt(payload))
    assert said["tenants"] is None or set(said["tenants"]) == tenants
    assert (said["tenants"] is None) == (count > 91)


def test_one_process_hears_of_anothers_commits_but_not_of_its_own(
    database: Database, database_url: str
) -> None:
    heard: dict[str, queue.Queue[str | None]] = {"here": queue.Queue(), "there": queue.Queue()}
    here, there = Wakes(database), Wakes(database)
    with here.listening(heard["here"].put), there.listening(heard["there"].put):
        try:
            for wakes in (here, there):
                wakes.start()
                assert wakes.is_listening(WAIT_S)
            for name in heard:
                assert heard[name].get(timeout=WAIT_S) is None  # whatever was said before
            here.committed("acme")
            assert heard["here"].get(timeout=WAIT_S) == "acme"
            assert heard["there"].get(timeout=WAIT_S) == "acme"
            there.committed("beta")
            assert heard["here"].get(timeout=WAIT_S) == "beta"
            assert heard["there"].get(timeout=WAIT_S) == "beta"
            assert heard["here"].empty()
            # What another version says is not understood, and so may be about any tenant.
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute("SELECT pg_notify('eventstore_commits', '[7]')")
            assert heard["here"].get(timeout=WAIT_S) is None
        finally:
            here.close()
            there.close()


def test_a_lost_connection_is_made_anew_and_says_that_anything_may_have_happened(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "_PAUSE_S", 0.01)
    heard: queue.Queue[str | None] = queue.Queue()
    wakes = Wakes(database)
    with wakes.listening(heard.put):
        wakes.start()
        try:
            assert heard.get(timeout=WAIT_S) is None
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
                )
            assert heard.get(timeout=WAIT_S) is None
        finally:
            wakes.close()
