"""Says how long what was read of the keys may be believed without asking again.

A connection of its own listens for changes, and asks once a second which was the last. Each answer is good
for three seconds from when it was asked for. So a change is heard of with its commit; a notice that went
astray is made good within a second; and a process whose network is dead, or that was stopped for a while,
believes nothing that is older than three seconds.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

import psycopg

from eventstore.db.engine import Database
from eventstore.errors import EventStoreError
from eventstore.governance.keys import KEYS_CHANNEL, last_change

__all__ = ["BELIEVED_S", "KeyWatch"]

_log = logging.getLogger(__name__)

_BEAT_S = 1.0
BELIEVED_S = 3.0


class KeyWatch:
    """Follows the changes of keys in a thread of its own. `on_change` is called before anything that it made
    wrong would be believed again; `on_beat` about once a second, while Postgres answers."""

    def __init__(
        self, database: Database, *, on_change: Callable[[], None], on_beat: Callable[[], None]
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._on_beat = on_beat
        # In the time of time.monotonic(). Only the thread writes it.
        self.believed_until = 0.0
        self._told = False
        self._over = threading.Event()
        self._wake: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._wake, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(woken,), name="key-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; from here on nothing is believed."""
        self._over.set()
        if self._thread is None or self._wake is None:
            return
        self._wake.close()  # which the thread waits for
        self._thread.join()

    def _run(self, woken: socket.socket) -> None:
        with woken:
            self._follow_until_over(woken)

    def _follow_until_over(self, woken: socket.socket) -> None:
        while not self._over.is_set():
            try:
                with self._database.connect_apart() as conn:
                    self._follow(conn, woken)
            except (EventStoreError, psycopg.Error) as e:
                if self.believed_until or not self._told:
                    _log.warning("changes of keys are not heard of, each request looks its key up: %s", e)
                    self._told = True
            finally:
                self.believed_until = 0.0
            self._over.wait(_BEAT_S)

    def _follow(self, conn: psycopg.Connection[tuple[object, ...]], woken: socket.socket) -> None:
        conn.execute(f"LISTEN {KEYS_CHANNEL}".encode())
        newest = str(last_change())
        known: object = ()  # equal to no answer: whatever was believed before is looked up again
        with selectors.DefaultSelector() as selector:
            selector.register(conn.fileno(), selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while not self._over.is_set():
                asked_s = time.monotonic()
                row = conn.execute(newest.encode()).fetchone()
                if row != known:
                    known = row
                    self._on_change()
                self.believed_until = asked_s + BELIEVED_S
                # A notice may have come with the answer, of a change that the answer does not know of.
                if any(True for _ in conn.notifies(timeout=0)):
                    continue
                self._on_beat()
                selector.select(_BEAT_S)
