"""Processes beside the one that serves: it starts them, again should they end, and takes them along."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import typer

__all__ = ["Beside", "end_with"]

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_RESTART_S = 5.0
_PATIENCE_S = 60.0


class Beside:
    """Keeps a process of `eventstore` going, with these arguments and file descriptors. A context manager;
    the command must take `--with-parent` (`end_with`)."""

    def __init__(self, name: str, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        self._name = name
        command = [sys.executable, "-m", "eventstore.cli.main", *arguments]
        self._command = [*command, "--with-parent", str(os.getpid())]
        self._pass_fds = pass_fds
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        # The kernel takes the end of the thread that started a process for the end of its parent.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tell_to_end()
        process = self._process
        if process is not None:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                # In the middle of a long step; whoever comes next finds everything as it must be.
                process.kill()
        self._thread.join()

    def tell_to_end(self) -> None:
        """Have it end, and not begin again. Does not wait; a second time it does nothing."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._over.is_set():
                    return
                self._process = subprocess.Popen(self._command, pass_fds=self._pass_fds)
            status = self._process.wait()
            if self._over.is_set():
                return
            _log.warning("%s ended with status %d; it is started again", self._name, status)
            self._over.wait(_RESTART_S)


def end_with(parent: int) -> None:
    """Have this process told to stop when the one that started it ends, however that does.

    Raises:
        typer.Exit: it has ended already.
    """
    if sys.platform == "linux":
        # Ordered of the kernel first, and looked at after: it may have ended in between.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise typer.Exit
