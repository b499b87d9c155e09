"""Proof of a whole log: every event of both tiers is there once, and the chain holds from its start to
the head. Reads everything; trusts neither the catalog nor the segments more than the chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from eventstore.archive.bloom import entity_filter
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.verify import read_segment
from eventstore.columns.canonical import first_chain_break, int64_values
from eventstore.errors import EventStoreError, IntegrityError
from eventstore.model.event import chain_start
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.query.tiers import LogState, Tiers

__all__ = ["Problem", "VerifyReport", "verify_log"]

_HOT_STEP = 50_000


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it has to be. `seq` is where, `key` the segment it lies in (None: hot)."""

    seq: int
    key: str | None
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What was verified: `events` whose place in the chain was recomputed, up to `last_seq`."""

    tenant_id: str
    last_seq: int = 0
    events: int = 0
    segments: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def first_break(self) -> int | None:
        """The first seq at which the log is not whole; None when it is."""
        return min((p.seq for p in self.problems), default=None)


def verify_log(
    tiers: Tiers,
    target: ArchiveTarget,
    tenant_id: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Recompute a tenant's chain over both tiers, up to its head as it is when this begins.

    After a damaged segment the check goes on from the hash that the catalog says it ends with, so that
    every damage is named, not the first alone.

    Raises:
        TenantNotFoundError, TargetUnavailableError
    """
    state = tiers.state(tenant_id)
    head_seq, head_hash = state.last_seq, state.last_hash
    report = VerifyReport(tenant_id, last_seq=head_seq)
    chain = _Chain(report, chain_start(tenant_id))
    while chain.next_seq <= head_seq:
        if chain.next_seq <= state.archived_through:
            known = tiers.segments(tenant_id, state.archived_through)
            filters = tiers.entity_filters(tenant_id, state.archived_through)
            for segment in [s for s in known if s.range.last_seq >= chain.next_seq]:
                _verify_segment(chain, target, segment, filters.get(segment.range.first_seq))
                if progress is not None:
                    progress(min(chain.next_seq - 1, head_seq), head_seq)
            if chain.next_seq <= state.archived_through:
                chain.skip(state.archived_through, "the catalog names no segment for it", key=None)
            state = tiers.state(tenant_id)
        else:
            state = _verify_hot(chain, tiers, tenant_id, state, head_seq)
            if progress is not None:
                progress(min(chain.next_seq - 1, head_seq), head_seq)
    # The head is the log's end: without this, cutting off its last events would go unseen.
    if chain.next_seq == head_seq + 1 and chain.last_hash is not None and chain.last_hash != head_hash:
        chain.problem(head_seq, None, "the chain does not end with the head's hash")
    # And a head that was set back would hide what lies above it. (Appends go on: look at it again.)
    above = tiers.hot(tenant_id, EventFilter(), head_seq + 1, 2**62, descending=True, limit=1)
    if above.num_rows and above.column("seq")[0].as_py() > tiers.state(tenant_id).last_seq:
        chain.problem(head_seq + 1, None, "there are events above the head")
    return report


class _Chain:
    """The recomputed end of the chain. `last_hash` is None where it is unknown: behind lost hot events."""

    def __init__(self, report: VerifyReport, start: bytes) -> None:
        self.report = report
        self.next_seq = 1
        self.last_hash: bytes | None = start

    def problem(self, seq: int, key: str | None, message: str) -> None:
        self.report.problems.append(Problem(seq, key, message))

    def add(self, events: pa.RecordBatch, key: str | None) -> bool:
        """Check the next events; False if one is wrong (it is then in the report)."""
        seqs = int64_values(events.column("seq"))
        expected = np.arange(self.next_seq, self.next_seq + len(seqs))
        if not np.array_equal(seqs, expected):
            at = self.next_seq + int(np.argmin(seqs == expected))
            self.problem(at, key, f"seq {at} does not follow; found {seqs[at - self.next_seq]}")
            return False
        if self.last_hash is None:
            self.last_hash = events.column("hash")[0].as_py()
            self.next_seq += 1
            return events.num_rows == 1 or self.add(events.slice(1), key)
        broken, last = first_chain_break(self.last_hash, events)
        if broken is not None:
            self.problem(self.next_seq + broken, key, "the chain breaks here: the event was altered")
            return False
        self.last_hash = last
        self.next_seq += len(seqs)
        self.report.events += len(seqs)
        return True

    def skip(self, through: int, why: str, *, key: str | None, hash_after: bytes | None = None) -> None:
        """Report that everything up to a seq cannot be verified, and go on behind it."""
        self.problem(self.next_seq, key, why)
        self.next_seq, self.last_hash = through + 1, hash_after


def _verify_segment(
    chain: _Chain, target: ArchiveTarget, segment: Segment, cataloged_filter: bytes | None
) -> None:
    r, before = segment.range, len(chain.report.problems)
    chain.report.segments += 1
    if r.first_seq != chain.next_seq:
        chain.skip(r.first_seq - 1, "no segment covers it", key=None, hash_after=r.hash_before)
    try:
        content = read_segment(target, segment.key, sha256=segment.sha256)
        if content.range != r:
            raise IntegrityError(f"{segment.key} says of itself {content.range}, the catalog {r}")
        if cataloged_filter not in (None, entity_filter(content.file, content.data)):
            raise IntegrityError(
                "its entity filter in the catalog is not the file's: queries may miss events"
            )
        if chain.last_hash is not None and chain.last_hash != r.hash_before:
            raise IntegrityError("its hash_before is not the end of what lies before it")
        for events in content.row_groups():
            if not chain.add(events, segment.key):
                break
        if len(chain.report.problems) == before and (chain.next_seq, chain.last_hash) != (
            r.last_seq + 1,
            r.hash_after,
        ):
            raise IntegrityError(f"it does not end at seq {r.last_seq} with the cataloged hash")
    except IntegrityError as e:
        chain.problem(max(chain.next_seq, r.first_seq), segment.key, e.message)
    if len(chain.report.problems) > before:
        chain.next_seq, chain.last_hash = r.last_seq + 1, r.hash_after


def _verify_hot(chain: _Chain, tiers: Tiers, tenant_id: str, state: LogState, head_seq: int) -> LogState:
    """One step of hot events; the same second look at the watermark as the reader takes."""
    first, last = chain.next_seq, min(head_seq, chain.next_seq + _HOT_STEP - 1)
    try:
        events = tiers.hot(tenant_id, EventFilter(), first, last, descending=False, limit=last - first + 1)
    except EventStoreError as e:
        chain.skip(last, e.message, key=None)
        return state
    after = tiers.state(tenant_id)
    if after.archived_through >= first:
        return after
    for batch in events.combine_chunks().to_batches():
        if not chain.add(batch, None):
            chain.next_seq, chain.last_hash = last + 1, None
            return after
    if chain.next_seq <= last:
        chain.skip(last, f"seq {chain.next_seq} is missing from the hot tier", key=None)
    return after
