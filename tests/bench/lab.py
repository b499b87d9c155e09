"""The laboratory: a Postgres of its own under a temporary home, databases in it, and processes beside it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import psycopg
from psycopg import sql
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy.engine import make_url

from eventstore.app import Store, open_store
from eventstore.db.embedded import start_embedded
from eventstore.db.embedded.home import Home, lock_within
from eventstore.db.engine import Database
from eventstore.db.migrate import upgrade
from eventstore.settings import Settings
from tests.bench.report import console

__all__ = ["ROOT", "Lab", "Site"]

ROOT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Site:
    """A database and an archive folder: what a store needs."""

    url: str
    archive: Path

    @property
    def settings(self) -> Settings:
        return Settings(database_url=self.url, home=self.archive, archive_url=self.archive.as_uri())

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that works on this site."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSTORE_")}
        return kept | {
            "EVENTSTORE_DATABASE_URL": self.url,
            "EVENTSTORE_HOME": str(self.archive),
            "EVENTSTORE_ARCHIVE_URL": self.archive.as_uri(),
        }

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, opened in this process."""
        with open_store(self.settings) as store:
            yield store

    def command(self, *arguments: str) -> list[str]:
        """The `eventstore` command as this interpreter runs it."""
        return [sys.executable, "-c", "from eventstore.cli.main import main; main()", *arguments]


class Lab:
    """Everything that benchmarks share. A context manager."""

    def __init__(self, *, quick: bool, home: Path | None) -> None:
        self.quick = quick
        self.runs = 2 if quick else 5
        self._parent = home
        self._templates: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="eventstore-bench-", dir=self._parent))
        self._stack.callback(self._clear)
        self._home.chmod(0o755)  # the server may work under another account
        self.exchange = self._home / "exchange"
        self.exchange.mkdir()
        self.exchange.chmod(0o777)
        self._server_url = self._stack.enter_context(start_embedded(self._home / "server")).url
        self._progress = self._stack.enter_context(
            Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )
        self._task = self._progress.add_task("starting")
        self._title = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _clear(self) -> None:
        """Remove everything, once the server has stopped (its supervisor holds a lock for its whole life)."""
        lock = Home(self._home / "server").supervisor_lock
        if lock.exists():
            os.close(lock_within(lock, fcntl.LOCK_EX, time.monotonic() + _STOP_TIMEOUT_S))
        shutil.rmtree(self._home)

    # --- telling --------------------------------------------------------------------------------------

    def begin(self, title: str) -> None:
        """A benchmark begins."""
        self._title = title
        self._progress.reset(self._task, description=title)

    def say(self, doing: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, description=f"{self._title}: {doing}")

    def rounds(self) -> Iterator[int]:
        """The numbers of the runs, told as they go."""
        for number in range(self.runs):
            self.say(f"run {number + 1} of {self.runs}")
            yield number

    def size(self, full: int, quick: int) -> int:
        """A size for this run."""
        return quick if self.quick else full

    # --- databases ------------------------------------------------------------------------------------

    @contextmanager
    def admin(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A superuser's connection to the server, in autocommit mode."""
        with psycopg.connect(self._server_url, autocommit=True) as conn:
            yield conn

    def checkpoint(self) -> None:
        """Have the server write out what earlier work left behind, so that it burdens no later run."""
        with self.admin() as conn:
            conn.execute("CHECKPOINT")

    def versions(self) -> str:
        """The server's version."""
        with self.admin() as conn:
            row = conn.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0]).split()[0]

    @contextmanager
    def site(self, key: str = "empty", build: Callable[[Database], None] | None = None) -> Iterator[Site]:
        """A fresh database and archive. `build` fills the database the first time that the key is asked
        for; later sites of the key are copies of its files."""
        name = f"bench_{secrets.token_hex(4)}"
        self._copy(name, self._template(key, build))
        archive = Path(tempfile.mkdtemp(prefix="archive-", dir=self._home))
        try:
            yield Site(self._url(name), archive)
        finally:
            shutil.rmtree(archive)
            self._drop(name)

    def forget(self, key: str) -> None:
        """Drop what `site` keeps for a key: a large one takes room on the disk."""
        name = self._templates.pop(key, None)
        if name is not None:
            self._drop(name)

    def _template(self, key: str, build: Callable[[Database], None] | None) -> str:
        if key not in self._templates:
            name = f"template_{secrets.token_hex(4)}"
            if build is None:
                with self.admin() as conn:
                    conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            else:
                self._copy(name, self._template("empty", None))
            database = Database(self._url(name))
            database.open()
            try:
                upgrade(database)
                if build is not None:
                    build(database)
                    # As a window is that has grown old: autovacuum sees to inserted rows.
                    with database.connection() as conn:
                        conn.execute("VACUUM (ANALYZE)")
            finally:
                database.close()
            self._templates[key] = name
        return self._templates[key]

    def _copy(self, name: str, template: str) -> None:
        with self.admin() as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )

    def _drop(self, name: str) -> None:
        with self.admin() as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _url(self, name: str) -> str:
        return make_url(self._server_url).set(database=name).render_as_string(hide_password=False)

    # --- processes ------------------------------------------------------------------------------------

    @staticmethod
    def finish(command: list[str], site: Site, *, timeout_s: float) -> str:
        """Run a process on a site to its end; what it printed.

        Raises:
            RuntimeError: it failed; with the end of what it said.
        """
        done = subprocess.run(
            command, env=site.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode != 0:
            raise RuntimeError(f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-1000:]}")
        return done.stdout

    @contextmanager
    def serving(self, command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, int]]:
        """A server process that prints `… http://host:port…` when it listens: its port and process id."""
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                raise RuntimeError(f"{command[-1]} did not start (status {process.wait(_STOP_TIMEOUT_S)})")
            yield int(line.split("http://")[1].split("/")[0].split(":")[1]), process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @contextmanager
    def api(self, site: Site, *, processes: int = 1) -> Iterator[tuple[int, int]]:
        """`eventstore serve` on a site, by so many processes: its port and the first one's id."""
        command = site.command("serve", "--port", "0", "--no-scheduler", "--processes", str(processes))
        with self.serving(command, site.environment) as found:
            _await_answers(*found, processes)
            yield found


def _await_answers(port: int, pid: int, processes: int) -> None:
    """Until each of the processes on a port has taken a connection."""
    taken: set[int] = set()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while len(taken) < processes:
        if time.monotonic() > deadline:
            raise RuntimeError(f"of {processes} processes {len(taken)} answer")
        with socket.create_connection(("127.0.0.1", port)) as conn:
            conn.sendall(b"GET /healthz HTTP/1.1\r\nhost: bench\r\n\r\n")
            conn.recv(4096)
            ours = conn.getsockname()
            for process in (psutil.Process(pid), *psutil.Process(pid).children()):
                if any(found.raddr == ours for found in process.net_connections("tcp")):
                    taken.add(process.pid)
