"""Proof of a whole log: every event of both tiers is there once, and the chain holds from its start to
the head. Reads everything, from the targets themselves; trusts neither the catalog nor the segments more than
the chain. Across what was destroyed the chain is bridged by the certificates that stand for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from eventstore.archive.bloom import entity_filter
from eventstore.archive.targets import Targets
from eventstore.archive.verify import SegmentContent, read_segment
from eventstore.columns.canonical import first_chain_break, fixed_bytes, int64_values
from eventstore.errors import (
    EventNotFoundError,
    EventStoreError,
    IntegrityError,
    TargetUnavailableError,
)
from eventstore.integrity.tree_audit import TreeAudit
from eventstore.model.event import chain_start
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.query.reader import LogReader
from eventstore.query.tiers import ArchivePart, ExpiredRange, LogState, Tiers, span

__all__ = ["CertificateCheck", "HashAt", "Problem", "VerifyReport", "verify_log"]

_HOT_STEP = 50_000
# A segment that cannot be read is looked up anew at most so often, if the catalog has changed meanwhile.
_ANEW_MAX = 5

# The stored hash of an event by its seq; None: no tier has the event.
HashAt = Callable[[int], bytes | None]
# Says in words what is wrong with a tenant's certificates: their signatures, their chain, and what they say
# of the log. An empty answer: nothing.
CertificateCheck = Callable[[str, HashAt], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it has to be. `seq` is where, `key` the segment it lies in (None: in none).

    What certificates contradict has the log's last seq: they vouch for all of it, and for its end.
    """

    seq: int
    key: str | None
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What was verified: `events` whose place in the chain was recomputed, up to `last_seq`, and
    `expired_events` that were destroyed, each under a certificate."""

    tenant_id: str
    last_seq: int = 0
    events: int = 0
    expired_events: int = 0
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
    targets: Targets,
    tenant_id: str,
    *,
    certificates: CertificateCheck | None = None,
    tree: TreeAudit | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Recompute a tenant's chain over both tiers, up to its head as it is when this begins.

    After a damaged segment the check goes on from the hash that the catalog says it ends with, so that
    every damage is named, not the first alone. Across an expired range it goes on from the hash of the
    certificate, which `certificates` has to find right at the end (None: certificates are taken at the
    catalog's word, and an end of the log that was cut off together with its head goes unseen).
    `tree` compares the log's Merkle tree and its checkpoints with the events, as they come by (None: not
    looked at). `progress` is called with the seq that was reached, and the last one.

    Raises:
        TenantNotFoundError, TargetUnavailableError
    """
    state = tiers.state(tenant_id)
    head_seq, head_hash = state.last_seq, state.last_hash
    report = VerifyReport(tenant_id, last_seq=head_seq)
    chain = _Chain(report, chain_start(tenant_id), tree)
    while chain.next_seq <= head_seq:
        if chain.next_seq <= state.archived_through:
            state = _verify_archived(chain, tiers, targets, tenant_id, state)
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
    if certificates is not None:
        for message in certificates(tenant_id, lambda seq: _hash_at(tiers, tenant_id, seq)):
            chain.problem(head_seq, None, message)
    if tree is not None:
        tree.finish(head_seq)
        report.problems += [Problem(seq, None, f"Merkle tree: {message}") for seq, message in tree.found]
    return report


def _hash_at(tiers: Tiers, tenant_id: str, seq: int) -> bytes | None:
    try:
        events = LogReader(tiers).event(tenant_id, seq=seq).events
    except (EventNotFoundError, IntegrityError):  # what is damaged is in the report already
        return None
    found: bytes = events.column("hash")[0].as_py()
    return found


class _Chain:
    """The recomputed end of the chain. `last_hash` is None where it is unknown: behind lost hot events."""

    def __init__(self, report: VerifyReport, start: bytes, tree: TreeAudit | None) -> None:
        self.report = report
        self._tree = tree
        self.next_seq = 1
        self.last_hash: bytes | None = start

    def problem(self, seq: int, key: str | None, message: str) -> None:
        self.report.problems.append(Problem(seq, key, message))
        if self._tree is not None:
            self._tree.stop()

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
        if self._tree is not None:
            self._tree.add(fixed_bytes(events.column("hash"), 32).tobytes())
        self.report.events += len(seqs)
        return True

    def bridge(self, expired: ExpiredRange) -> None:
        """Go on behind what was destroyed; what lies before it must be what the certificate says."""
        if self.last_hash is not None and self.last_hash != expired.hash_before:
            self.problem(
                expired.first_seq,
                None,
                f"what lies before it is not what certificate {expired.certificate_no} says",
            )
        self.next_seq, self.last_hash = expired.last_seq + 1, expired.hash_after
        if self._tree is not None:
            self._tree.bridge(expired.last_seq)
        self.report.expired_events += expired.last_seq - expired.first_seq + 1

    def skip(self, through: int, why: str, *, key: str | None, hash_after: bytes | None = None) -> None:
        """Report that everything up to a seq cannot be verified, and go on behind it."""
        self.problem(self.next_seq, key, why)
        self.next_seq, self.last_hash = through + 1, hash_after


def _verify_archived(
    chain: _Chain, tiers: Tiers, targets: Targets, tenant_id: str, state: LogState
) -> LogState:
    """The next part of the archive, as the state that is returned sees it."""
    following, content, state = _next_parts(chain, tiers, targets, tenant_id, state)
    if not following:
        chain.skip(state.archived_through, "the catalog names no segment for it", key=None)
        return tiers.state(tenant_id)
    part = following[0]
    first_seq, last_seq = span(part)
    if first_seq > chain.next_seq:
        before = part.hash_before if isinstance(part, ExpiredRange) else part.range.hash_before
        chain.skip(first_seq - 1, "no segment covers it", key=None, hash_after=before)
    if isinstance(part, ExpiredRange):
        chain.bridge(part)
    else:
        assert content is not None
        filters = tiers.entity_filters(tenant_id, state.archived_through)
        _verify_segment(chain, part, content, filters.get(first_seq))
    for other in following[1:]:
        if span(other)[0] <= last_seq:
            chain.problem(span(other)[0], None, "the catalog has two segments or certificates for it")
    return state


def _next_parts(
    chain: _Chain, tiers: Tiers, targets: Targets, tenant_id: str, state: LogState
) -> tuple[Sequence[ArchivePart], SegmentContent | IntegrityError | None, LogState]:
    """The part that comes next and the one after it, as far as there are any; and if the next one is a
    segment, its content or what is wrong with that. One that was moved or destroyed after it had been listed
    is looked up anew."""
    for anew_left in reversed(range(_ANEW_MAX + 1)):
        parts = tiers.archive(tenant_id, state)
        index = bisect_left(parts, chain.next_seq, key=lambda part: span(part)[1])
        following = parts[index : index + 2]
        if not following or not isinstance(segment := following[0], Segment):
            return following, None, state
        failure: IntegrityError | TargetUnavailableError
        try:
            content = read_segment(targets[segment.target], segment.key, sha256=segment.sha256)
            return following, content, state
        except (IntegrityError, TargetUnavailableError) as e:
            failure = e
        now = tiers.state(tenant_id)
        if anew_left == 0 or now.catalog_version == state.catalog_version:
            if isinstance(failure, TargetUnavailableError):
                raise failure
            return following, failure, state
        state = now
    raise AssertionError("unreachable")


def _verify_segment(
    chain: _Chain,
    segment: Segment,
    content: SegmentContent | IntegrityError,
    cataloged_filter: bytes | None,
) -> None:
    r, before = segment.range, len(chain.report.problems)
    chain.report.segments += 1
    try:
        if isinstance(content, IntegrityError):
            raise content
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
