"""Starts children quickly: imports everything once, then forks a child for each line it is given.

A child is a process of its own like any other (own connections, own memory, killed by SIGKILL); only the
second of importing pyarrow and the rest is saved. Protocol, a JSON object a line:
in  {"argv": [...], "name": "..."}; out {"pid": n} at once, later {"pid": n, "status": code} (-9: killed).
When its input ends, it kills the children that are left, and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback

from tests.crash import child

__all__ = ["serve"]


def serve() -> None:
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    alive: set[int] = set()
    buffered = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            while alive:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                alive.discard(pid)
                _say({"pid": pid, "status": os.waitstatus_to_exitcode(status)})
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                pid = _fork(**json.loads(line))
                alive.add(pid)
                _say({"pid": pid})
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _say(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _fork(argv: list[str], name: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ["PGAPPNAME"] = name  # so that its connections can be told from others
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        status = child.main(argv)
    except BaseException:  # noqa: BLE001 - the last frame of a process
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
