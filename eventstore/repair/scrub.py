"""Reading segments again, one by one and slowly, so that rot is found while there is still a good copy.

Those that were not read for longest come first. Bytes, content and chain are compared with the catalog. A
damaged or missing segment is mended if a good copy is anywhere (`repair.mend`). What a target holds and
nobody knows is noted in `quarantine`; nothing is ever deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import sqlalchemy as sa

from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.archive.verify import digest_segment
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import from_us
from eventstore.db.engine import Database
from eventstore.db.locks import close_unlocked, scrub_key
from eventstore.db.tables import segments, windows
from eventstore.errors import (
    ArchiveDamageError,
    IntegrityError,
    NoCopyError,
    SetupError,
    TargetUnavailableError,
)
from eventstore.model.run import Entry, FileWritten, ValidationResult, Warned
from eventstore.model.segment import Segment
from eventstore.model.window import Window, WindowState
from eventstore.repair.check import Finding, FindingKind, check_target, see_marker
from eventstore.repair.content import Interrupted, Pace, check_segment, paced
from eventstore.repair.listing import chosen_targets, segment_from
from eventstore.repair.mend import mend, put_in_quarantine, still_cataloged

__all__ = ["ScrubProgress", "ScrubReport", "Tell", "anything_due", "scrub"]

_AT_ONCE = 500


class Tell(Protocol):
    """Takes an entry for a run's journal (`Journal.record` is one)."""

    def __call__(
        self, entry: Entry, *, tenant_id: str | None = None, window: Window | None = None
    ) -> None: ...


# Told after each segment: how many were read, how many are due in all (bytes), and how many bytes were read.
ScrubProgress = Callable[[int, int], None]


@dataclass(slots=True)
class ScrubReport:
    """What a scrub did. `mended`, `lost` and `waiting` name segments by target and key: of lost ones there is
    no good copy, waiting ones are written anew by retention. `away`: targets that did not answer, and why;
    `busy`: targets at which another scrub is. `due` counts segments that are still due at the end."""

    segments: int = 0
    size_bytes: int = 0
    due: int = 0
    mended: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    waiting: list[tuple[str, str, str]] = field(default_factory=list)
    quarantined: list[Finding] = field(default_factory=list)
    away: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    stopped: bool = False
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all that was read is right now, and no target was left out for not answering."""
        return not (self.lost or self.waiting or self.away)


def scrub(
    database: Database,
    targets: Targets,
    *,
    now_us: int,
    older_than_us: int = 0,
    bytes_per_s: int | None = None,
    stop: threading.Event | None = None,
    budget_s: float | None = None,
    progress: ScrubProgress | None = None,
    tell: Tell | None = None,
    tenant_id: str | None = None,
    target: str | None = None,
) -> ScrubReport:
    """Read again every segment that was not for `older_than_us`, until all are done, `budget_s` is over, or
    `stop` is set.

    Any number may run at once: each target is one scrub's at a time. A target that does not answer stops its
    own segments only. `progress` is told the bytes read, and those that were due at the beginning.

    Raises:
        InputError: there is no such target.
        TenantNotFoundError
    """
    return _Scrub(
        database,
        targets,
        now_us=now_us,
        before_us=now_us - older_than_us,
        pace=Pace(bytes_per_s, stop or threading.Event()),
        budget_s=budget_s,
        progress=progress or (lambda read, due: None),
        tell=tell or _say_nothing,
    ).run(tenant_id, chosen_targets(targets, target))


def anything_due(database: Database, before_us: int) -> bool:
    """Whether there is a segment that was not read since a time, in µs."""
    unread = sa.or_(segments.c.scrubbed_at.is_(None), segments.c.scrubbed_at < from_us(before_us))
    with database.transaction() as conn:
        return bool(conn.execute(sa.select(sa.exists().where(unread))).scalar_one())


def _say_nothing(entry: Entry, *, tenant_id: str | None = None, window: Window | None = None) -> None:
    pass


class _Scrub:
    def __init__(
        self,
        database: Database,
        targets: Targets,
        *,
        now_us: int,
        before_us: int,
        pace: Pace,
        budget_s: float | None,
        progress: ScrubProgress,
        tell: Tell,
    ) -> None:
        self._database, self._targets, self._pace = database, targets, pace
        self._now_us, self._before_us = now_us, before_us
        self._end = None if budget_s is None else time.monotonic() + budget_s
        self._progress, self._tell = progress, tell
        self.report = ScrubReport()

    def run(self, tenant_id: str | None, names: Sequence[str]) -> ScrubReport:
        report, started = self.report, time.monotonic()
        if tenant_id is not None:
            with self._database.transaction() as conn:
                get_tenant(conn, tenant_id)
        with _only_scrub_of(self._database, names) as mine:
            report.busy = [name for name in names if name not in mine]
            for name in mine:
                self._note_orphans(name, tenant_id)
            try:
                self._read_all(tenant_id, set(mine))
            except Interrupted:
                report.stopped = True
        report.size_bytes = self._pace.size_bytes
        report.due = self._due(tenant_id, names)[0]
        report.duration_s = time.monotonic() - started
        self._tell(
            ValidationResult(
                passed=report.ok,
                segments=report.segments,
                compared="every byte of every segment, and its chain, with the catalog",
            )
        )
        return report

    # --- segments -------------------------------------------------------------------------------------

    def _read_all(self, tenant_id: str | None, names: set[str]) -> None:
        _, due_bytes = self._due(tenant_id, names)
        for segment, state in self._longest_unread(tenant_id, names):
            if self._end is not None and time.monotonic() >= self._end:
                self.report.stopped = True
                return
            if segment.target in self.report.away:
                continue
            try:
                self._one(self._targets[segment.target], segment, state)
            except (TargetUnavailableError, SetupError) as e:
                self._away(segment.target, e)
            self._progress(self._pace.size_bytes, due_bytes)

    def _one(self, target: ArchiveTarget, segment: Segment, state: WindowState) -> None:
        problem = self._problem(target, segment)
        if problem is None:
            self.report.segments += 1
            self._mark(segment)
            return
        see_marker(target)
        if not still_cataloged(self._database, segment):
            return  # moved or destroyed while it was read
        self.report.segments += 1
        name = (segment.target, segment.key)
        window = segment.range.window
        if not isinstance(problem, ArchiveDamageError):
            self._lost(segment, problem.message)
        elif state is WindowState.ARCHIVED:
            # Its events are still in Postgres, and whoever drops them writes and compares it first.
            self.report.waiting.append((*name, problem.message))
            hint = "retention writes it again from Postgres; move a damaged object away first"
            self._warn(f"{problem.message}; {hint}", segment.range.tenant_id, window)
        else:
            self._mend(target, segment, problem)

    def _problem(self, target: ArchiveTarget, segment: Segment) -> IntegrityError | None:
        """What is wrong with a segment. An `ArchiveDamageError` is about its object: a copy can mend it."""
        slow = paced(target, self._pace)
        try:
            check_segment(slow, segment)
            return None
        except ArchiveDamageError:
            pass
        except IntegrityError as e:
            return e
        # Once more before anything is done about it: not every wrong byte is in the target.
        try:
            digest_segment(slow, segment)
            check_segment(slow, segment)
        except ArchiveDamageError as e:
            return e
        except IntegrityError as e:
            return e
        self._warn(
            f"{segment.key} was read wrong from {target.describe()}, and right the second time: look at "
            "network and memory",
            segment.range.tenant_id,
            segment.range.window,
        )
        return None

    def _mend(self, target: ArchiveTarget, segment: Segment, problem: ArchiveDamageError) -> None:
        r = segment.range
        try:
            target.stat(segment.key)
            lies_there = True
        except ArchiveDamageError:
            lies_there = False
        try:
            mended = mend(
                self._database,
                self._targets,
                segment,
                problem.message,
                lies_there=lies_there,
                now_us=self._now_us,
            )
        except NoCopyError as e:
            self._lost(segment, e.message)
            return
        if mended is None:
            return
        good = mended.verified.segment
        self.report.mended.append((segment.target, segment.key))
        self._warn(f"{problem.message}; mended from {mended.source}", r.tenant_id, r.window)
        self._tell(
            FileWritten(
                target=good.target,
                name=good.key,
                part=r.part,
                rows=r.event_count,
                size_bytes=good.size_bytes,
                created=mended.created,
            ),
            tenant_id=r.tenant_id,
            window=r.window,
        )

    def _lost(self, segment: Segment, message: str) -> None:
        self.report.lost.append((segment.target, segment.key, message))
        self._warn(message, segment.range.tenant_id, segment.range.window)

    def _mark(self, segment: Segment) -> None:
        with self._database.transaction() as conn:
            conn.execute(
                sa.update(segments)
                .where(
                    segments.c.tenant_id == segment.range.tenant_id,
                    segments.c.first_seq == segment.range.first_seq,
                    segments.c.target == segment.target,
                    segments.c.key == segment.key,
                )
                .values(scrubbed_at=from_us(self._now_us))
            )

    # --- the catalog ----------------------------------------------------------------------------------

    def _is_due(self, tenant_id: str | None, names: Collection[str]) -> sa.ColumnElement[bool]:
        due = [
            segments.c.target.in_(sorted(names)),
            sa.or_(segments.c.scrubbed_at.is_(None), segments.c.scrubbed_at < from_us(self._before_us)),
        ]
        return sa.and_(*due) if tenant_id is None else sa.and_(*due, segments.c.tenant_id == tenant_id)

    def _due(self, tenant_id: str | None, names: Collection[str]) -> tuple[int, int]:
        """How many segments are due, and their bytes."""
        count = sa.select(
            sa.func.count(), sa.cast(sa.func.coalesce(sa.func.sum(segments.c.size_bytes), 0), sa.BigInteger)
        )
        with self._database.transaction() as conn:
            row = conn.execute(count.where(self._is_due(tenant_id, names))).one()
        return row[0], row[1]

    def _longest_unread(
        self, tenant_id: str | None, names: Collection[str]
    ) -> Iterator[tuple[Segment, WindowState]]:
        """What is due with the state of its window, the longest unread first; each once."""
        since = sa.func.coalesce(segments.c.scrubbed_at, sa.cast("-infinity", segments.c.scrubbed_at.type))
        place = (since, segments.c.tenant_id, segments.c.first_seq)
        query = (
            sa.select(segments, windows.c.window_to, windows.c.state, sa.cast(since, sa.Text).label("since"))
            .join(
                windows,
                sa.and_(
                    windows.c.tenant_id == segments.c.tenant_id,
                    windows.c.window_from == segments.c.window_from,
                ),
            )
            .where(self._is_due(tenant_id, names))
            .order_by(*place)
            .limit(_AT_ONCE)
        )
        last: tuple[str, str, int] | None = None
        while True:
            page = query
            if last is not None:
                after = sa.tuple_(
                    sa.cast(sa.cast(last[0], sa.Text), segments.c.scrubbed_at.type), last[1], last[2]
                )
                page = query.where(sa.tuple_(*place) > after)
            with self._database.transaction() as conn:
                rows = conn.execute(page).all()
            for row in rows:
                yield segment_from(row), WindowState(row.state)
            if len(rows) < _AT_ONCE:
                return
            last = (rows[-1].since, rows[-1].tenant_id, rows[-1].first_seq)

    # --- what nobody knows ----------------------------------------------------------------------------

    def _note_orphans(self, name: str, tenant_id: str | None) -> None:
        try:
            found = [
                finding
                for finding in check_target(self._database, self._targets, name, tenant_id=tenant_id)
                if finding.kind is FindingKind.ORPHAN
            ]
        except (TargetUnavailableError, SetupError) as e:
            self._away(name, e)
            return
        for orphan in found:
            assert orphan.key is not None
            with self._database.transaction() as conn:
                new = put_in_quarantine(conn, name, orphan.key, orphan.tenant_id, orphan.message)
            if new:
                self.report.quarantined.append(orphan)
                self._warn(f"{orphan.key} in {name!r}: {orphan.message}; put in quarantine", orphan.tenant_id)

    def _away(self, name: str, error: TargetUnavailableError | SetupError) -> None:
        self.report.away[name] = error.message
        self._warn(f"target {name!r} does not answer: {error.message}")

    def _warn(self, message: str, tenant_id: str | None = None, window: Window | None = None) -> None:
        self._tell(Warned(message=message), tenant_id=tenant_id, window=window)


@contextmanager
def _only_scrub_of(database: Database, names: Sequence[str]) -> Iterator[list[str]]:
    """Those of the targets at which no other scrub is; none comes to them before the block is left. (Two do
    each other no harm, but they would read everything twice.)"""
    with ExitStack() as stack:
        conn = database.connect_apart()
        stack.callback(close_unlocked, conn)
        mine = []
        for name in names:
            row = conn.execute("SELECT pg_try_advisory_lock(%s)", [scrub_key(name)]).fetchone()
            if row is not None and row[0]:
                mine.append(name)
        yield mine
