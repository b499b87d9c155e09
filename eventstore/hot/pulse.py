"""How appends feel, told to whoever shares the database: the governor of retention heeds it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.db.engine import Database
from eventstore.db.tables import pulses
from eventstore.errors import EventStoreError

__all__ = ["Pulse"]

_log = logging.getLogger(__name__)

_KEPT = 4096
_EVERY_S = 2.0


class Pulse:
    """Collects how long commits of appends take in this process, and writes a row every two seconds in which
    there were any. Safe for many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = uuid.uuid4()
        self._took_s: deque[float] = deque(maxlen=_KEPT)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and leave no row behind."""
        self._over.set()
        self._thread.join()
        self._tell(sa.delete(pulses).where(pulses.c.process == self._process))

    def add(self, took_s: float) -> None:
        """One group of appends was committed after so many seconds."""
        self._took_s.append(took_s)

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            took_ms = np.array([self._took_s.popleft() for _ in range(len(self._took_s))]) * 1000
            if not len(took_ms):
                continue
            p50, p99 = (float(v) for v in np.percentile(took_ms, [50, 99]))
            values = {"at": sa.func.clock_timestamp(), "appends": len(took_ms), "p50_ms": p50, "p99_ms": p99}
            statement = insert(pulses).values(process=self._process, **values)
            self._tell(statement.on_conflict_do_update(index_elements=["process"], set_=values))

    def _tell(self, statement: sa.Executable) -> None:
        try:
            with self._database.transaction() as conn:
                conn.execute(statement)
        except (EventStoreError, sa.exc.SQLAlchemyError) as e:
            # A pulse that is missing only leaves the governor without this process's word.
            _log.info("the pulse could not be written: %s", e)
