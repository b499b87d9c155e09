"""A process's use of the embedded server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from psycopg import pq

from eventstore.db.embedded.home import Home, lock_within, tail
from eventstore.db.embedded.processes import Postmaster, is_readable
from eventstore.errors import EmbeddedPostgresError

__all__ = ["EmbeddedServer", "start_embedded"]

# The supervisor's own time-out comes first, with the better message; this is how much later ours is.
REPLY_GRACE_S = 15.0
SUPERVISOR_LOG_BYTES_MAX = 1_000_000


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
    if pid and not _is_supervisor(pid):
        raise EmbeddedPostgresError(
            f"the supervisor of {files.path} is process {pid} of another container",
            hint="give each container a home of its own, or use one Postgres server",
        )
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.close(lock_within(files.supervisor_lock, fcntl.LOCK_EX, deadline))


def _is_supervisor(pid: int) -> bool:
    """Whether the process of that number, as seen from here, is a supervisor; believed without /proc."""
    if not Path("/proc/self/cmdline").exists():
        return True
    try:
        return b"eventstore.db.embedded.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


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
    package_root = str(Path(__file__).resolve().parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [package_root, environment.get("PYTHONPATH")]),
    )
    log_mode = "ab" if _size(files.supervisor_log) < SUPERVISOR_LOG_BYTES_MAX else "wb"
    with open(files.supervisor_log, log_mode) as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "eventstore.db.embedded.supervisor", str(files.path)),
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
    while is_readable(fd, deadline - time.monotonic()):
        chunk = os.read(fd, 65536)
        if not chunk:
            return reply
        reply += chunk
    return None
