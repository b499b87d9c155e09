"""The catalog made anew from the archive targets alone, into an empty database, after Postgres was lost.

Every segment is read whole, and each tenant's chain followed from its start, across what certificates stand
for, before anything of the tenant is stored: in one transaction. A tenant of which something is missing is
named and left out; the others go on. Killed, it goes on with the tenants that are not there yet.

What was in Postgres only (hot events) is gone; the log goes on behind the last archived event.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from eventstore.archive.copy import copy_segment
from eventstore.archive.layout import parse_segment_key, repaired_key
from eventstore.archive.targets import Targets
from eventstore.archive.verify import read_segment
from eventstore.clock import SystemClock
from eventstore.db.engine import Database
from eventstore.db.locks import close_unlocked, rebuild_key
from eventstore.errors import (
    ArchiveConflictError,
    ArchiveDamageError,
    BusyError,
    EventStoreError,
    IntegrityError,
    SetupError,
    TargetUnavailableError,
)
from eventstore.governance.certificates import store_copies
from eventstore.governance.record import mirror
from eventstore.governance.signing import SigningKey, VerifyKey, verify
from eventstore.model.certificate import from_payload
from eventstore.model.certificate_chain import check_chain
from eventstore.model.event import chain_start
from eventstore.model.segment import Segment
from eventstore.repair.adopt import (
    Adopted,
    Found,
    FoundCertificate,
    adopt_tenant,
    begin_rebuild,
    finish_rebuild,
    is_registered,
    preferred_targets,
)
from eventstore.repair.chain import ChosenWindow, choose_log
from eventstore.repair.content import check_content
from eventstore.repair.replay import LAST_WORDS, Record, read_record
from eventstore.repair.survey import Held, Survey, read_object, survey_targets

__all__ = ["RebuildProgress", "RebuildReport", "rebuild"]

_READERS = 4
_REPAIRS_MAX = 1000

# Told how far it has come: the tenant, its objects read, how many it has, and events verified in all.
RebuildProgress = Callable[[str, int, int, int], None]


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild made. `stopped`: tenants that were left out, and why. `present`: tenants that an earlier
    run of it had made. `held`: why every tenant was put under a legal hold; empty: none was. `strange_keys`:
    ids of public keys that were found in a target, and are not among those given."""

    store_id: str
    tenants: list[Adopted] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    strange_keys: list[str] = field(default_factory=list)
    entries: int = 0
    events: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0


def rebuild(
    database: Database,
    targets: Targets,
    *,
    key: SigningKey,
    trusted: Sequence[VerifyKey] = (),
    leave_out: Collection[str] = (),
    now_us: int | None = None,
    progress: RebuildProgress | None = None,
    listing: Callable[[str, int], None] | None = None,
) -> RebuildReport:
    """Rebuild the catalog. `targets` are all that the store had, under the names they had, opened without
    being bound to the database. `key` signs what has to be certified; certificates signed with it or
    with one of `trusted` are trusted. Tenants in `leave_out` are not rebuilt, and not waited for; their
    objects stay as they are. `listing` is told a target, and how many of its objects were listed.

    Raises:
        StateError: the database is not empty; says what is in it.
        SetupError: the targets are not those of one store, or not all that its policies name.
        TargetUnavailableError: a target did not answer; run it again.
        BusyError: another rebuild of this database is at work.
    """
    started = time.monotonic()
    now_us = SystemClock().now_us() if now_us is None else now_us
    with _alone(database):
        survey = survey_targets(targets, listing)
        report = RebuildReport(survey.store_id)
        known = _trusted(targets, survey, (key.verify_key, *trusted), report)
        record = read_record(targets, survey)
        missing = sorted(record.targets - set(targets.names))
        if missing:
            raise SetupError(
                f"policies of this store name the target {missing[0]!r}, which is not configured",
                hint="set EVENTSTORE_TARGETS to all that it had: what lies there would be taken for lost",
            )
        record.problems.append(LAST_WORDS)
        report.entries, report.held = len(record.entries), list(record.problems)
        # Dying before this leaves the database empty; after it, its store and what is common to all tenants.
        begin_rebuild(database, survey, record, known, now_us)
        names = sorted(survey.segments.keys() | survey.certificates.keys() | record.tenants.keys())
        for name in names:
            if name in leave_out:
                report.warnings.append(f"{name} was left out; its objects stay where they are")
                continue
            if is_registered(database, name):
                report.present.append(name)
                continue
            try:
                one = _Tenant(database, targets, survey, record, known, key, report, name, now_us, progress)
                report.tenants.append(one.run())
            except IntegrityError as e:
                report.stopped[name] = str(e)
            # Dying here leaves whole tenants, and the next run goes on with the others.
        if not report.stopped:
            finish_rebuild(database)
        try:
            mirror(database, targets[targets.default])
            store_copies(database, targets)
        except (TargetUnavailableError, ArchiveConflictError, BusyError) as e:
            report.warnings.append(f"not everything that was recorded is copied to a target yet: {e}")
    report.duration_s = time.monotonic() - started
    return report


class _alone:  # noqa: N801 - used as a function
    """No other rebuild of this database until the block is left."""

    def __init__(self, database: Database) -> None:
        self._conn = database.connect_apart()
        row = self._conn.execute("SELECT pg_try_advisory_lock(%s)", [rebuild_key()]).fetchone()
        if row is None or not row[0]:
            self._conn.close()
            raise BusyError("another rebuild of this database is at work", hint="wait for it to end")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *rest: object) -> None:
        close_unlocked(self._conn)


def _trusted(
    targets: Targets, survey: Survey, keys: Sequence[VerifyKey], report: RebuildReport
) -> dict[str, VerifyKey]:
    """The keys given, and those whose public halves lie in the targets."""
    known = {key.key_id: key for key in keys}
    for held in survey.keys:
        try:
            found = VerifyKey.from_pem(read_object(targets, held))
        except (SetupError, ArchiveDamageError) as e:
            report.warnings.append(f"{held.key} in {held.target!r}: {e.message}")
            continue
        if found.key_id not in known:
            known[found.key_id] = found
            report.strange_keys.append(found.key_id)
    return known


class _Tenant:
    """One tenant's log, from its objects to the catalog."""

    def __init__(
        self,
        database: Database,
        targets: Targets,
        survey: Survey,
        record: Record,
        keys: Mapping[str, VerifyKey],
        key: SigningKey,
        report: RebuildReport,
        tenant_id: str,
        now_us: int,
        progress: RebuildProgress | None,
    ) -> None:
        self._database, self._targets, self._survey = database, targets, survey
        self._record, self._keys, self._key, self._report = record, keys, key, report
        self._tenant_id, self._now_us = tenant_id, now_us
        self._progress = progress or (lambda tenant, done, total, events: None)
        self._damaged: list[tuple[Held, str]] = []
        self._moved: list[tuple[Segment, str]] = []

    def run(self) -> Adopted:
        """Verify the log and store it.

        Raises:
            IntegrityError: something of it is missing or contradicts itself; nothing was stored.
        """
        certificates = self._certificates()
        found = self._read()
        preferred = preferred_targets(self._record, self._tenant_id, self._now_us)
        log = choose_log(
            chain_start(self._tenant_id),
            [f.segment for f in found.values()],
            [c.certificate for c in certificates],
            preferred,
        )
        if log.problem is not None:
            raise IntegrityError(
                "; ".join([log.problem, *(f"{h.key} in {h.target!r}: {why}" for h, why in self._damaged)]),
                hint="bring what is missing back into a target, and run it again",
            )
        log.windows = [self._in_one_target(window, found) for window in log.windows]
        left = [(Held(s.target, s.key, s.size_bytes), why) for s, why in (*log.left, *self._moved)]
        return adopt_tenant(
            self._database,
            self._record,
            self._tenant_id,
            log,
            found,
            certificates,
            [*self._damaged, *left],
            self._problems(certificates),
            self._key,
            self._now_us,
        )

    def _problems(self, certificates: Sequence[FoundCertificate]) -> list[str]:
        """What the record of governance lacks, as far as this tenant shows."""
        known = self._record.policy_no_max
        if any(c.certificate.policy_version > known for c in certificates):
            unknown = f"a certificate of {self._tenant_id!r} names a policy that the record does not have"
            self._report.held.append(unknown)
            return [*self._record.problems, unknown]
        return self._record.problems

    # --- certificates ---------------------------------------------------------------------------------

    def _certificates(self) -> list[FoundCertificate]:
        found = []
        by_number = self._survey.certificates.get(self._tenant_id, {})
        for number in sorted(by_number):
            found.append(self._certificate(by_number[number]))
        problems = check_chain(
            [(c.certificate, c.payload) for c in found],
            store_id=self._survey.store_id,
            tenant_id=self._tenant_id,
        )
        if problems:
            raise IntegrityError(
                "; ".join(problems), hint="bring the missing certificates back, and run again"
            )
        return found

    def _certificate(self, copies: Sequence[Held]) -> FoundCertificate:
        failure: EventStoreError | None = None
        for held in copies:
            try:
                envelope = read_object(self._targets, held)
                payload = verify(envelope, self._keys)
                return FoundCertificate(from_payload(payload), payload, envelope, held.target)
            except IntegrityError as e:
                failure = failure or IntegrityError(
                    f"{held.key} in {held.target!r}: {e.message}", hint=e.hint
                )
        assert failure is not None
        raise failure

    # --- segments -------------------------------------------------------------------------------------

    def _read(self) -> dict[tuple[str, str], Found]:
        """The tenant's segments that are whole, by target and key; the others are noted as damaged."""
        objects = self._survey.segments.get(self._tenant_id, [])
        found: dict[tuple[str, str], Found] = {}
        for done, (held, result) in enumerate(self._read_ahead(objects), start=1):
            if isinstance(result, ArchiveDamageError):
                self._damaged.append((held, result.message))
            else:
                found[held.target, held.key] = result
                self._report.events += result.segment.range.event_count
                self._report.size_bytes += result.segment.size_bytes
            self._progress(self._tenant_id, done, len(objects), self._report.events)
        return found

    def _read_ahead(self, objects: Sequence[Held]) -> Iterator[tuple[Held, Found | ArchiveDamageError]]:
        """Read and check, a few at a time: as many segments are in memory."""
        waiting: deque[tuple[Held, Future[Found | ArchiveDamageError]]] = deque()
        with ThreadPoolExecutor(_READERS, "rebuild") as executor:
            for held in objects:
                waiting.append((held, executor.submit(self._read_one, held)))
                if len(waiting) == _READERS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()

    def _read_one(self, held: Held) -> Found | ArchiveDamageError:
        named = parse_segment_key(held.key)
        assert named is not None
        try:
            content = read_segment(self._targets[held.target], held.key)
            r = content.range
            if (r.tenant_id, r.window, r.part) != (named.tenant_id, named.window, named.part):
                raise ArchiveDamageError(f"it says of itself {r}, which its key does not", key=held.key)
            checked = check_content(content, target_name=held.target)
        except ArchiveDamageError as e:
            return e
        return Found(checked.verified.segment, checked.verified.entity_filter, checked.id_lead_us)

    def _in_one_target(self, window: ChosenWindow, found: dict[tuple[str, str], Found]) -> ChosenWindow:
        """Copy segments of a window that no one target has whole to where most of it is: a window is in one
        target, and moves as a whole."""
        name = window.target
        segments = []
        for segment in window.segments:
            if segment.target == name:
                segments.append(segment)
                continue
            assert name is not None
            copy = self._copy(segment, name)
            old = found[segment.target, segment.key]
            found[copy.target, copy.key] = replace(old, segment=copy)
            self._moved.append((segment, f"the rest of its window is in {name!r}, and it was copied there"))
            self._report.warnings.append(
                f"{segment.key} was copied from {segment.target!r} to {name!r} as {copy.key}"
            )
            segments.append(copy)
        return replace(window, segments=tuple(segments))

    def _copy(self, segment: Segment, to: str) -> Segment:
        """A copy under the first key that is free, or holds it already. Nothing is overwritten."""
        for repair in range(_REPAIRS_MAX):
            key = repaired_key(segment.key, repair)
            if any((h.target, h.key) == (to, key) for h, _ in self._damaged):
                continue
            try:
                copied = copy_segment(
                    self._targets[segment.target], self._targets[to], segment, to=to, key=key
                )
            except ArchiveConflictError:
                continue
            return copied.verified.segment
        raise IntegrityError(f"no key is left in {to!r} for a copy of {segment.key}")
