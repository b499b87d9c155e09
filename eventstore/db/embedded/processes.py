"""The server's processes as the operating system knows them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from psycopg import pq

from eventstore.db.embedded.home import Home

__all__ = [
    "Postmaster",
    "is_readable",
    "main_pid",
    "processes_in",
    "server_processes",
    "signal_all",
    "wait_process_end",
]

PING_TIMEOUT_S = 5


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
                return is_readable(fd, timeout_s)
            finally:
                os.close(fd)
    deadline = time.monotonic() + timeout_s
    while _is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_readable(fd: int, timeout_s: float) -> bool:
    """Whether a descriptor has something to read within that many seconds."""
    poll = select.poll()  # not select(), which refuses descriptors above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def main_pid(data: Path) -> int | None:
    """The process id in `postmaster.pid`, dead or alive; None if there is none."""
    try:
        return abs(int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]))
    except (FileNotFoundError, ValueError, IndexError):
        return None


def processes_in(data: Path) -> list[int]:
    """The server's live processes; where there is no /proc, its main process alone."""
    if Path("/proc/self/cwd").exists():
        return server_processes(data)
    return server_processes(data, main_pid(data))


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
