"""Running the server on a cluster: start, adopt, recover, stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import socket
import tempfile
import time
from pathlib import Path

from psycopg import pq

from eventstore.db.embedded.cluster import (
    ORPHAN_TIMEOUT_S,
    Cluster,
    private_folder,
    reaches,
    write_durably,
)
from eventstore.db.embedded.home import Home, tail
from eventstore.db.embedded.processes import (
    Postmaster,
    main_pid,
    processes_in,
    signal_all,
    wait_process_end,
)
from eventstore.errors import EmbeddedPostgresError

__all__ = ["ensure_running", "stop"]

SOCKET_PATH_BYTES_MAX = 103  # sun_path less its terminating zero: 107 on Linux, 103 on macOS
PORT_ATTEMPTS_MAX = 10
STOP_TIMEOUT_S = 60
LOG_AGE_S_MAX = 8 * 86_400

SETTINGS = """\
# Written anew at every start. For settings of your own use ALTER SYSTEM, which wins over this file.
include_if_exists {initdb_conf}
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = {socket_folder}
unix_socket_permissions = 0700
max_connections = 120
max_locks_per_transaction = 512
shared_buffers = '256MB'
max_wal_size = '4GB'
min_wal_size = '256MB'
wal_compression = {wal_compression}
fsync = on
synchronous_commit = on
autovacuum = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_destination = 'stderr'
logging_collector = on
log_directory = {log_folder}
log_filename = 'postgres-%a.log'
log_file_mode = 0600
log_rotation_age = '1d'
log_rotation_size = 0
log_truncate_on_rotation = on
log_min_messages = warning
log_line_prefix = '%m [%p] %q%u@%d '
"""


def ensure_running(files: Home, cluster: Cluster, deadline: float) -> Postmaster:
    """Adopt the server that runs, or start one (after a crash: this is the same way); wait until it answers.

    Raises:
        EmbeddedPostgresError: it did not start, or did not answer until `deadline` (time.monotonic()).
    """
    orphans_since: float | None = None  # None: no orphans seen yet
    while True:
        pid = main_pid(cluster.data)
        processes = processes_in(cluster.data)
        if pid in processes:
            postmaster = Postmaster.read(cluster.data)
            if postmaster is not None and postmaster.ping(files) is pq.Ping.OK:
                return postmaster
        elif processes:
            # The main process was killed; its children leave by themselves, but a busy one takes its time.
            # No second server may start before they are gone.
            orphans_since = orphans_since or time.monotonic()
            if time.monotonic() - orphans_since > ORPHAN_TIMEOUT_S:
                signal_all(processes, signal.SIGKILL)
        else:
            _start(files, cluster, deadline)
            continue
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"the embedded Postgres did not accept connections in time:\n{_log_tail(cluster)}",
                hint="recovery after a crash can take minutes: allow a longer start time-out",
            )
        wait_process_end(processes[0], 0.05)


def _start(files: Home, cluster: Cluster, deadline: float) -> None:
    data_fd = _claim_data(files)
    try:
        _start_claimed(files, cluster, deadline, data_fd)
    finally:
        os.close(data_fd)  # the server has inherited it, and with it the lock


def _claim_data(files: Home) -> int:
    """The descriptor of the data lock, taken: proof that no server is alive, seen or unseen."""
    fd = os.open(files.data_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise EmbeddedPostgresError(
            f"a server that cannot be seen from here is still working on {files.path}",
            hint="this home is in use in another container; give each its own, or use one Postgres server",
        ) from None
    return fd


def _start_claimed(files: Home, cluster: Cluster, deadline: float, data_fd: int) -> None:
    _clear_leftovers(files, cluster)
    _prune_logs(cluster)
    port = _last_port(cluster)
    for _ in range(PORT_ATTEMPTS_MAX):
        port = _free_port(port)
        write_durably(cluster.settings_file, _settings(files, cluster, port), 0o644)
        cluster.start_log.unlink(missing_ok=True)
        left_s = max(1, int(deadline - time.monotonic()))
        # The data folder goes through -o and the environment: pg_ctl's own -D reaches a shell half quoted.
        options = shlex.join(["-D", str(cluster.data), "-c", f"config_file={cluster.settings_file}"])
        started = cluster.run(
            *("pg_ctl", "start", "-w", "-s", "-t", str(left_s), "-l", "log/start.log", "-o", options),
            timeout_s=left_s + 30,
            pass_fds=(data_fd,),
        )
        if started.returncode == 0 or main_pid(cluster.data) in processes_in(cluster.data):
            return  # in the second case it is slow, not dead
        if "Address already in use" not in tail(cluster.start_log):
            break
        port = None
    raise EmbeddedPostgresError(
        f"the embedded Postgres did not start: {started.stderr.strip()}\n{_log_tail(cluster)}",
        hint=f"what it says itself comes last; its logs are in {cluster.log}",
    )


def _clear_leftovers(files: Home, cluster: Cluster) -> None:
    """Remove the lock files and sockets of a killed server; called when nobody works in the data folder.

    Postgres would do it itself, unless it takes the dead server for alive: as long as init has not reaped it,
    or when its number was given to another process of this account (as in a container that is restarted).
    """
    if Path("/proc/self/cwd").exists():  # else we are no better judge than Postgres
        (cluster.data / "postmaster.pid").unlink(missing_ok=True)
        for leftover in _socket_folder(files, cluster).glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)


def _settings(files: Home, cluster: Cluster, port: int) -> str:
    lz4 = cluster.run("postgres", "-C", "wal_compression", "-c", "wal_compression=lz4", timeout_s=30)
    return SETTINGS.format(
        initdb_conf=_quoted(str(cluster.data / "postgresql.conf")),
        port=port,
        # A list of folders: each is quoted once more, for commas and blanks.
        socket_folder=_quoted('"' + str(_socket_folder(files, cluster)).replace('"', '""') + '"'),
        wal_compression="lz4" if lz4.returncode == 0 else "on",
        log_folder=_quoted(str(cluster.log)),
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _last_port(cluster: Cluster) -> int | None:
    """The port of the last start, so that URLs stay right over a restart; None at the first."""
    if not cluster.settings_file.exists():
        return None
    found = re.search(r"^port = (\d+)$", cluster.settings_file.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found.group(1)) if found else None


def _free_port(preferred: int | None) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
            if port is not None:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise EmbeddedPostgresError("there is no free port on 127.0.0.1", hint="is the loopback interface up?")


def _socket_folder(files: Home, cluster: Cluster) -> Path:
    """The cluster's own folder, or a private one for temporary files if the path is too long for a socket."""
    bases = (cluster.folder, Path(tempfile.gettempdir()).resolve(), Path("/tmp"))
    for base in bases:
        folder = base / ("socket" if base == cluster.folder else f"eventstore-{files.digest}")
        fits = len(os.fsencode(folder / ".s.PGSQL.65535")) <= SOCKET_PATH_BYTES_MAX
        if fits and reaches(cluster.account, base):
            private_folder(folder, cluster.account)
            return folder
    raise EmbeddedPostgresError(
        f"no folder with a short enough path for the server's socket among {', '.join(map(str, bases))}",
        hint="use a home with a shorter path",
    )


def stop(files: Home, cluster: Cluster) -> None:
    """Stop the server fast, then harder if it takes too long, and wait until all its processes are gone."""
    # Signals instead of pg_ctl stop: the same ones, but to a process that we know to be the server.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        pid = main_pid(cluster.data)
        if pid is None or pid not in processes_in(cluster.data):
            break
        signal_all([pid], number)
        wait_process_end(pid, STOP_TIMEOUT_S)
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    for pid in processes_in(cluster.data):
        if not wait_process_end(pid, max(0.0, deadline - time.monotonic())):
            signal_all([pid], signal.SIGKILL)
            wait_process_end(pid, ORPHAN_TIMEOUT_S)
    if not processes_in(cluster.data):
        _clear_leftovers(files, cluster)
    for base in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):
        with contextlib.suppress(OSError):  # it is elsewhere, or not empty after a kill
            (base / f"eventstore-{files.digest}").rmdir()


def _logs(cluster: Cluster) -> list[Path]:
    """The server's logs, the one last written to at the end."""
    return sorted(cluster.log.glob("postgres-*.log"), key=lambda path: path.lstat().st_mtime)


def _prune_logs(cluster: Cluster) -> None:
    """Postgres itself reuses a log of last week only if it runs at midnight; so remove the old ones here."""
    for log in _logs(cluster):
        if time.time() - log.lstat().st_mtime > LOG_AGE_S_MAX:
            log.unlink(missing_ok=True)


def _log_tail(cluster: Cluster) -> str:
    return "\n".join(filter(None, map(tail, (*_logs(cluster)[-1:], cluster.start_log))))
