"""The run journal: appended as a run goes, each entry committed on its own and readable at once.

Any process that works on a run writes its journal: entries are numbered by the database.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import sqlalchemy as sa

from eventstore.clock import from_us
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs
from eventstore.model.run import Entry, RunCompleted, RunKind, RunStatus, detail_of, kind_of
from eventstore.model.window import Window

__all__ = ["Journal"]


class Journal:
    """One run's journal."""

    def __init__(self, database: Database, run_id: uuid.UUID) -> None:
        self._database = database
        self.run_id = run_id

    @classmethod
    def begin(
        cls, database: Database, *, kind: RunKind, now_us: int, requested_by: str, holder: int
    ) -> Journal:
        """Start a run at a (perhaps simulated) time. It is in planning until `set_running`, or until nobody
        holds the advisory lock `holder` any more."""
        run_id = uuid.uuid4()
        with database.transaction() as conn:
            conn.execute(
                sa.insert(runs).values(
                    run_id=run_id,
                    kind=kind.value,
                    now_us=now_us,
                    requested_by=requested_by,
                    holder=holder,
                    status=RunStatus.PLANNING.value,
                )
            )
        return cls(database, run_id)

    @classmethod
    def record_whole(
        cls,
        conn: sa.Connection,
        *,
        kind: RunKind,
        now_us: int,
        requested_by: str,
        completed: RunCompleted,
    ) -> uuid.UUID:
        """A run that has ended where it began, because there was nothing to do; in one transaction, so that
        nobody has to live for it."""
        run_id = uuid.uuid4()
        values = {
            "run_id": run_id,
            "kind": kind.value,
            "now_us": now_us,
            "requested_by": requested_by,
            "holder": 0,
            "status": completed.status.value,
            "finished_at": sa.func.clock_timestamp(),
        }
        conn.execute(sa.insert(runs).values(values))
        conn.execute(
            sa.insert(run_entries),
            {"run_id": run_id, "kind": kind_of(completed), "detail": detail_of(completed)},
        )
        return run_id

    def record(self, entry: Entry, *, tenant_id: str | None = None, window: Window | None = None) -> None:
        """Append an entry; when this returns it is durable."""
        with self._database.transaction() as conn:
            self.record_in(conn, entry, tenant_id=tenant_id, window=window)

    def record_in(
        self,
        conn: sa.Connection,
        entry: Entry,
        *,
        tenant_id: str | None = None,
        window: Window | None = None,
    ) -> None:
        """Append an entry in the transaction that does what it tells."""
        self.record_all_in(conn, [entry], tenant_id=tenant_id, window=window)

    def record_all_in(
        self,
        conn: sa.Connection,
        entries: Sequence[Entry],
        *,
        tenant_id: str | None = None,
        window: Window | None = None,
    ) -> None:
        """Append entries, in their order."""
        rows = [
            {
                "run_id": self.run_id,
                "kind": kind_of(entry),
                "tenant_id": tenant_id,
                "window_from": None if window is None else from_us(window.from_us),
                "detail": detail_of(entry),
            }
            for entry in entries
        ]
        conn.execute(sa.insert(run_entries), rows)

    def set_running(self) -> None:
        """Planning is over; the run ends with its last task."""
        with self._database.transaction() as conn:
            conn.execute(
                sa.update(runs)
                .where(runs.c.run_id == self.run_id, runs.c.status == RunStatus.PLANNING.value)
                .values(status=RunStatus.RUNNING.value)
            )

    def finish(self, completed: RunCompleted) -> bool:
        """Record how the run ended, once: False if somebody else has."""
        with self._database.transaction() as conn:
            moved = conn.execute(
                sa.update(runs)
                .where(
                    runs.c.run_id == self.run_id,
                    runs.c.status.in_([RunStatus.PLANNING.value, RunStatus.RUNNING.value]),
                )
                .values(status=completed.status.value, finished_at=sa.func.now())
            )
            if moved.rowcount == 1:
                self.record_in(conn, completed)
        return moved.rowcount == 1
