"""The process that starts the embedded Postgres, waits for its last user to go, and stops it.

Run by `server.start_embedded` as `python -m eventstore.db.embedded.supervisor HOME …`; not by hand.
It never looks at a clock to learn whether users are left: it waits in flock (see `__init__.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import psycopg
from psycopg import sql

from eventstore.db.embedded.cluster import Cluster, prepare
from eventstore.db.embedded.home import DATABASE, Home, lock_within
from eventstore.db.embedded.postmaster import ensure_running, stop
from eventstore.db.embedded.processes import Postmaster, processes_in
from eventstore.errors import EmbeddedPostgresError

__all__ = ["main"]


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

    if cluster is not None and processes_in(cluster.data):
        # Here the supervisor spends its life. Granted when the last user has closed the lock or is dead.
        fcntl.flock(users_fd, fcntl.LOCK_EX)
        stop(files, cluster)
    os.close(supervisor_fd)
    os.close(users_fd)


def _described(error: Exception) -> dict[str, str]:
    if isinstance(error, EmbeddedPostgresError):
        return {"error": error.message, "hint": error.hint}
    return {"error": f"the embedded Postgres could not be started: {error!r}", "hint": "see its logs"}


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


if __name__ == "__main__":
    main()
