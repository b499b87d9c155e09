"""`eventstore` as a process of its own, as an operator starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from eventstore.settings import Settings
from tests.waiting import until

__all__ = ["has_ended", "port_of", "serving", "started"]

_PROGRAM = """
import sys
from eventstore.cli.main import main
from eventstore.retention import scheduler
scheduler._STALE_S = 2.0
sys.argv = ["eventstore", *sys.argv[1:]]
main()
"""


def started(settings: Settings, name: str, *arguments: str, out: Path) -> subprocess.Popen[bytes]:
    """A command; Postgres knows it by the name. What it says goes to the file `out`."""
    environment = {
        **os.environ,
        "PGAPPNAME": name,
        "EVENTSTORE_DATABASE_URL": str(settings.database_url),
        "EVENTSTORE_HOME": str(settings.home),
        "EVENTSTORE_ARCHIVE_URL": settings.resolved_archive_url,
    }
    with out.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments], env=environment, stdout=file, stderr=file
        )


@contextmanager
def serving(settings: Settings, out: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`eventstore serve` on a port of its own choice; killed at the end."""
    process = started(settings, "serve", "serve", "--port", "0", *more, out=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def port_of(out: Path) -> int:
    """The port that a server says it serves."""
    found = until(
        lambda: re.search(r"Serving http://[^:]+:(\d+)/", out.read_text()), "it says where it serves"
    )
    return int(found[1])


def has_ended(process: psutil.Process) -> bool:
    """Gone, or only waiting for somebody to ask how it ended: its parent is gone."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
