"""Bytes of the archive that callers scan in a day, counted for all processes together, in Postgres.

What was scanned is added up in memory, and written once a second for all callers in one statement, which
gives back what the others have counted meanwhile. So a budget may be overrun by what the processes scan
within about two seconds, and by the look into segments that is under way. A process that is killed takes
with it what it had not written yet: one second's worth.

A key that replaces another goes on with that one's budget: both count for the first of their line.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.clock import US_PER_S, Clock, SystemClock
from eventstore.db.engine import Database
from eventstore.db.tables_access import usage
from eventstore.errors import EventStoreError, RateLimitedError

__all__ = ["ArchiveUsage", "CallerMeter"]

_log = logging.getLogger(__name__)

_EVERY_S = 1.0
_KEPT = timedelta(days=90)
_LINES_MAX = 10_000
# Of the keys that a key goes back to, the one that replaces none.
_FIRST = sa.text(
    "WITH RECURSIVE line AS ("
    "SELECT key_id, replaces FROM api_keys WHERE key_id = :key_id"
    " UNION SELECT k.key_id, k.replaces FROM api_keys k JOIN line ON k.key_id = line.replaces"
    ") SELECT key_id FROM line WHERE replaces IS NULL"
)


@dataclass(slots=True)
class _Used:
    """A caller's bytes of a day: `written` by all processes when last seen, `pending` here."""

    day: date
    written: int
    seen_s: float
    pending: int = 0


class ArchiveUsage:
    """Counts for all callers of a process. Safe for many threads."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._used: dict[str, _Used] = {}
        self._lines: dict[str, str] = {}  # by caller: for whom it counts
        self._tidied: date | None = None  # the day on which this process last removed old rows
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and write what is left."""
        self._over.set()
        self._thread.join()
        self.write()

    def used(self, subject: str) -> int:
        """What a caller has scanned today, as far as this process knows; never older than a second."""
        today = self._today()
        subject = self._line(subject)
        with self._lock:
            known = self._used.get(subject)
            if known is not None and known.day == today and self._monotonic_s() - known.seen_s < _EVERY_S:
                return known.written + known.pending
        with self._database.transaction() as conn:
            written = conn.execute(
                sa.select(usage.c.archive_bytes).where(usage.c.subject == subject, usage.c.day == today)
            ).scalar_one_or_none()
        with self._lock:
            known = self._of(subject, today)
            # A row only grows: what was read here may be older than what another thread has seen.
            known.written, known.seen_s = max(known.written, written or 0), self._monotonic_s()
            return known.written + known.pending

    def add(self, subject: str, archive_bytes: int) -> None:
        """Count bytes that were scanned just now."""
        today = self._today()
        with self._lock:
            self._of(self._lines.get(subject, subject), today).pending += archive_bytes

    def seconds_left(self) -> int:
        """Until midnight of UTC, when every budget is whole again; at least 1."""
        now = self._now()
        tomorrow = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
        return max(1, round((tomorrow - now).total_seconds()))

    def _line(self, subject: str) -> str:
        """For whom a caller counts: the first key that it, one after the other, replaces; or itself."""
        with self._lock:
            known = self._lines.get(subject)
        if known is not None:
            return known
        key_id = subject.removeprefix("key:")
        first = None
        if key_id != subject:
            with self._database.transaction() as conn:
                first = conn.execute(_FIRST, {"key_id": key_id}).scalar_one_or_none()
        found = subject if first is None else f"key:{first}"
        with self._lock:
            if len(self._lines) >= _LINES_MAX:
                self._lines.clear()
            self._lines[subject] = found
        return found

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_us() / US_PER_S, UTC)

    def _today(self) -> date:
        return self._now().date()

    def _of(self, subject: str, today: date) -> _Used:
        """The caller's entry of today. Called under the lock."""
        known = self._used.get(subject)
        if known is None or known.day != today:
            # What of yesterday is not written yet counts for today: nothing that was scanned is free.
            left = known.pending if known is not None else 0
            known = self._used[subject] = _Used(today, 0, float("-inf"), left)
        return known

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.write()

    def write(self) -> None:
        """Write what was scanned since the last time, and learn what the others have counted."""
        today = self._today()
        with self._lock:
            idle_s = self._monotonic_s() - 60
            self._used = {
                who: known for who, known in self._used.items() if known.pending or known.seen_s > idle_s
            }
            taken = {who: known.pending for who, known in self._used.items() if known.pending}
        if not taken:
            return
        rows = [{"subject": who, "day": today, "archive_bytes": n} for who, n in sorted(taken.items())]
        statement = insert(usage).values(rows)
        try:
            with self._database.transaction() as conn:
                written = conn.execute(
                    statement.on_conflict_do_update(
                        index_elements=["subject", "day"],
                        set_={"archive_bytes": usage.c.archive_bytes + statement.excluded.archive_bytes},
                    ).returning(usage.c.subject, usage.c.archive_bytes)
                ).all()
                if self._tidied != today:
                    conn.execute(sa.delete(usage).where(usage.c.day < today - _KEPT))
        except (EventStoreError, sa.exc.SQLAlchemyError) as e:
            # It stays pending, counts against the budget here, and is written with the next.
            _log.warning("what callers scanned could not be written: %s", e)
            return
        self._tidied = today
        with self._lock:
            for who, total in written:
                known = self._of(who, today)
                known.pending -= taken[who]
                known.written, known.seen_s = max(known.written, total), self._monotonic_s()


@dataclass(frozen=True, slots=True)
class CallerMeter:
    """The meter (`query.coverage.Meter`) of one caller. It may scan `bytes_max` a day; None: any number."""

    usage: ArchiveUsage
    subject: str
    bytes_max: int | None

    def check(self) -> None:
        """Refuses when the day's budget is used up.

        Raises:
            RateLimitedError: until midnight of UTC.
        """
        if self.bytes_max is not None and self.usage.used(self.subject) >= self.bytes_max:
            raise RateLimitedError(
                f"{self.bytes_max} bytes of the archive were scanned today, and no more may be",
                hint="narrow the times or name an entity, so that fewer segments are opened; recent events, "
                "which are not archived yet, can still be read",
                retry_after_s=self.usage.seconds_left(),
            )

    def add(self, archive_bytes: int) -> None:
        self.usage.add(self.subject, archive_bytes)
