"""Shared fixtures: one real Postgres for the whole run, a fresh migrated database for each test that asks."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.db.embedded import start_embedded
from eventstore.db.embedded.home import Home, lock_within
from eventstore.db.engine import Database
from eventstore.db.migrate import upgrade
from eventstore.retention.compactor import Compactor
from eventstore.settings import Settings

# Set by whoever runs the tests in parallel, and kept for ever by consoles made meanwhile: each test says
# how wide its terminal is.
os.environ.pop("COLUMNS", None)

# A shell that runs this beside something else has it ignore SIGINT, and so would every process that a test
# starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# 2026-11-21T00:00:00Z in microseconds: the day on which simulated runs take place.
TODAY_US = 1_795_219_200_000_000


# What the databases of tests may take at a time, with plenty to spare.
_ROOM_BYTES = 8 * 1024**3

# Folders of tests, the longest tests first. Processes that share a run then end with short ones, together.
_FOLDERS = ("crash", "browser", "property", "integration", "console", "contract", "migration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.parent.name
        place = _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)
        return item.get_closest_marker("slow") is None, place

    items.sort(key=turn)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A Postgres server: the one EVENTSTORE_TEST_DATABASE_URL names, else an embedded one."""
    given = os.environ.get("EVENTSTORE_TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Not pytest's own folder, which only its owner may enter: the server may have another account.
    with tempfile.TemporaryDirectory(prefix="eventstore-tests-", dir=_quick_folder()) as folder:
        os.chmod(folder, 0o711)
        with start_embedded(Path(folder)) as server:
            _hurry(server.url)
            yield server.url
        # Granted when the server has been stopped; only then can its folder be removed.
        os.close(lock_within(Home(Path(folder)).supervisor_lock, fcntl.LOCK_EX, time.monotonic() + 60))


def _quick_folder() -> str | None:
    """A folder in memory where there is room: on a disk, the hundreds of files of each test's database are
    a quarter of a run's time. None: where temporary files usually are."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM_BYTES
    return str(memory) if roomy else None


def _hurry(server: str) -> None:
    """Let the server not wait for its disk, for the thousand databases that come and go. What tests kill is
    processes: what they had written stays in the system's memory. No test takes the power away."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET fsync = off")
        conn.execute("ALTER SYSTEM SET full_page_writes = off")
        conn.execute("SELECT pg_reload_conf()")


def create_database(server: str, name: str, *, template: str | None = None) -> str:
    """Create a database on the server; its URL."""
    with psycopg.connect(server, autocommit=True) as conn:
        # The quickest way to copy a small one.
        like = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        conn.execute(f'CREATE DATABASE "{name}"{like}')
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def template_database(server_url: str) -> str:
    """The name of a migrated, empty database that others are copied from (quicker than migrating each)."""
    name = f"template_{secrets.token_hex(4)}"
    database = Database(create_database(server_url, name))
    database.open()
    upgrade(database)
    database.close()
    return name


@pytest.fixture
def database_url(server_url: str, template_database: str) -> Iterator[str]:
    """The URL of a fresh, migrated database; dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    yield create_database(server_url, name, template=template_database)
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open `Database` on a fresh, migrated database."""
    opened = Database(database_url)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def archive_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(database_url: str, archive_dir: Path, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, home=tmp_path / "home", archive_url=archive_dir.as_uri())


@pytest.fixture
def clock() -> FixedClock:
    """The clock that `store` appends by; tests move it."""
    return FixedClock(TODAY_US)


@pytest.fixture
def store(settings: Settings, clock: FixedClock) -> Iterator[Store]:
    """A whole store on a fresh database and an empty archive folder, with a clock that stands still."""
    with open_store(settings, clock=clock) as opened:
        # What fails is not tried again after a pause: a test that wants that makes its own compactor.
        impatient = Compactor(opened.database, opened.targets, opened.key, retry_pauses_s=())
        yield replace(opened, compactor=impatient)
