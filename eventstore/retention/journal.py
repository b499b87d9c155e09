"""The run journal: appended as a run goes, each entry committed on its own and readable at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping

import sqlalchemy as sa

from eventstore.clock import from_us
from eventstore.db.engine import Database
from eventstore.db.tables import run_entries, runs
from eventstore.model.run import EntryKind, RunStatus
from eventstore.model.window import Window

__all__ = ["Journal"]


class Journal:
    """One run's journal. Entries are numbered from 1."""

    def __init__(self, database: Database, run_id: uuid.UUID) -> None:
        self._database = database
        self.run_id = run_id
        self._lock = threading.Lock()
        self._entry_no = 0

    @classmethod
    def begin(cls, database: Database, *, now_us: int) -> Journal:
        """Start a run at a (perhaps simulated) time."""
        run_id = uuid.uuid4()
        with database.transaction() as conn:
            conn.execute(sa.insert(runs).values(run_id=run_id, now_us=now_us, status=RunStatus.RUNNING.value))
        return cls(database, run_id)

    def record(
        self,
        kind: EntryKind,
        detail: Mapping[str, object],
        *,
        tenant_id: str | None = None,
        window: Window | None = None,
    ) -> None:
        """Append an entry; when this returns it is durable."""
        with self._lock, self._database.transaction() as conn:
            conn.execute(
                sa.insert(run_entries).values(
                    run_id=self.run_id,
                    entry_no=self._entry_no + 1,
                    kind=kind.value,
                    tenant_id=tenant_id,
                    window_from=None if window is None else from_us(window.from_us),
                    detail=dict(detail),
                )
            )
            self._entry_no += 1

    def finish(self, status: RunStatus, detail: Mapping[str, object]) -> None:
        """Record how the run ended."""
        self.record(EntryKind.RUN_COMPLETED, {"status": status.value, **detail})
        with self._database.transaction() as conn:
            conn.execute(
                sa.update(runs)
                .where(runs.c.run_id == self.run_id)
                .values(status=status.value, finished_at=sa.func.now())
            )
