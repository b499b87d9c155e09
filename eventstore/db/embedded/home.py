"""The files of an embedded Postgres that all its users share: paths, locks, logs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from eventstore.errors import EmbeddedPostgresError

__all__ = ["DATABASE", "ROLE", "Home", "lock_within", "tail"]

ROLE = "eventstore"
DATABASE = "eventstore"


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one embedded Postgres that every user of it reads or locks."""

    path: Path

    @property
    def users_lock(self) -> Path:
        return self.path / "postgres.users.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.path / "postgres.supervisor.lock"

    @property
    def start_lock(self) -> Path:
        return self.path / "postgres.start.lock"

    @property
    def data_lock(self) -> Path:
        """Held by every process of the running server itself, through a descriptor that it inherits."""
        return self.path / "postgres.data.lock"

    @property
    def password_file(self) -> Path:
        return self.path / "postgres.password"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "postgres.supervisor.log"

    @property
    def location_file(self) -> Path:
        """Names the cluster's folder when the server's account cannot reach the home itself."""
        return self.path / "postgres.location"

    @property
    def digest(self) -> str:
        """16 hex digits that stand for this home in paths outside of it."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]

    def cluster(self) -> Path:
        """The folder that holds data, logs and socket, whether or not it exists yet."""
        try:
            return Path(self.location_file.read_text(encoding="utf-8").strip()).resolve()
        except FileNotFoundError:
            return (self.path / "postgres").resolve()

    def url(self, socket_folder: str, port: int, database: str = DATABASE) -> str:
        """A libpq URL that psycopg, SQLAlchemy and ADBC understand. It contains the password."""
        password = self.password_file.read_text(encoding="ascii").strip()
        return f"postgresql://{ROLE}:{password}@/{database}?host={quote(socket_folder, safe='')}&port={port}"


def lock_within(path: Path, operation: int, deadline: float) -> int:
    """Open a lock file and lock it (LOCK_SH or LOCK_EX); returns the descriptor, which is the lock.

    Raises:
        EmbeddedPostgresError: still taken at `deadline` (seconds of time.monotonic()).
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    else:
        return fd
    # flock has no time-out, so a thread waits. If it is given up, it closes what it gets in the end.
    waiter = _LockWaiter(fd, operation)
    waiter.start()
    if not waiter.taken_within(deadline - time.monotonic()):
        raise EmbeddedPostgresError(
            f"another process holds {path} for too long",
            hint=f"it may be starting or stopping the server: see `fuser {path}`, or allow more time",
        )
    return fd


class _LockWaiter(threading.Thread):
    def __init__(self, fd: int, operation: int) -> None:
        super().__init__(name="embedded-postgres-lock", daemon=True)
        self._fd = fd
        self._operation = operation
        self._mutex = threading.Lock()
        self._finished = threading.Event()
        self._given_up = False
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            fcntl.flock(self._fd, self._operation)
        except OSError as error:
            self._error = error
        with self._mutex:
            self._finished.set()
            if self._given_up:
                os.close(self._fd)

    def taken_within(self, timeout_s: float) -> bool:
        """True: the caller owns the locked descriptor. False, or an exception: it is closed in time."""
        owned = False
        try:
            owned = self._finished.wait(max(0.0, timeout_s)) and self._error is None
        finally:
            if not owned:
                with self._mutex:
                    self._given_up = True
                    if self._finished.is_set():
                        os.close(self._fd)
        if self._error is not None:
            raise self._error
        return owned


def tail(path: Path, lines_max: int = 20) -> str:
    """The last lines of a log; empty if it cannot be read. Never follows a symbolic link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, "rb") as log:
        log.seek(max(0, os.fstat(fd).st_size - 8192))
        return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines_max:])
