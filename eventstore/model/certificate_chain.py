"""What is wrong with certificates: with one alone, with a tenant's chain of them, against its log.

Every check gives problems in words, all that it finds; an empty list means that it found none. Signatures are
no matter of this module: whoever may write certificates and has no key could make a chain that is whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from eventstore.clock import to_iso
from eventstore.errors import InputError
from eventstore.model.certificate import (
    Certificate,
    CertificateKind,
    certificate_start,
    payload_sha256,
    to_payload,
)
from eventstore.model.event import chain_start
from eventstore.model.subtrees import cover

__all__ = ["check_against_log", "check_certificate", "check_chain"]


def check_certificate(certificate: Certificate) -> list[str]:
    """What contradicts itself within one certificate, in words; empty: nothing. Ask before signing."""
    return [f"{certificate}: {problem}" for problem in _contradictions(certificate)]


def _contradictions(c: Certificate) -> Iterator[str]:
    if c.event_count != c.last_seq - c.first_seq + 1:
        yield f"event_count {c.event_count} is not that of seq {c.first_seq} to {c.last_seq}"
    if c.kind is CertificateKind.EXPIRED:
        if c.window_from_us is None or c.window_to_us is None or c.window_from_us >= c.window_to_us:
            yield "an expired window needs a window_from before its window_to"
        if c.last_seq > c.head_seq:
            yield f"seq {c.last_seq} lies beyond the head, {c.head_seq}"
        if c.event_count < 1:
            yield "an expired window has at least one event"
    else:
        if c.window_from_us is not None or c.window_to_us is not None:
            yield "an offboarding has no window"
        if (c.first_seq, c.last_seq) != (1, c.head_seq):
            yield f"an offboarding is of seq 1 to the head, {c.head_seq}, not {c.first_seq} to {c.last_seq}"
    if [(s.level, s.index) for s in c.subtrees] != list(cover(c.first_seq - 1, c.last_seq)):
        yield f"its subtrees are not those that make seq {c.first_seq} to {c.last_seq}"
    seen = set()
    for s in c.segments:
        if not c.first_seq <= s.first_seq <= s.last_seq <= c.last_seq:
            yield f"segment {s.key} (seq {s.first_seq} to {s.last_seq}) lies outside of its seq range"
        if (s.target, s.key) in seen:
            yield f"segment {s.key} of target {s.target} is there twice"
        seen.add((s.target, s.key))


def check_chain(
    certificates: Sequence[tuple[Certificate, bytes]],
    *,
    store_id: str | None = None,
    tenant_id: str | None = None,
    noted: tuple[int, bytes] | None = None,
) -> list[str]:
    """What is wrong with a tenant's certificates (each with its payload bytes, by rising number), in words.

    Empty: they are whole. `store_id` and `tenant_id` are whose they have to be (None: all of one, any).
    That the last ones were taken away cannot be seen from the rest: it takes `noted`, the number and
    payload SHA-256 of one that someone wrote down elsewhere, or the log (windows that are gone).
    """
    if not certificates:
        return [f"certificate {noted[0]} was noted, and there is none"] if noted else []
    every = [certificate for certificate, _ in certificates]
    problems = []
    for name, given in (("store_id", store_id), ("tenant_id", tenant_id)):
        owner = given or getattr(every[0], name)
        strangers = [c for c in every if getattr(c, name) != owner]
        problems += [f"{c}: its {name} is {getattr(c, name)}, not {owner}" for c in strangers]
    problems += _links(certificates, noted)
    for certificate in every:
        problems += check_certificate(certificate)
    problems += [*_heads(every), *_ranges(every), *_hashes(every)]
    return problems


def _links(
    certificates: Sequence[tuple[Certificate, bytes]], noted: tuple[int, bytes] | None
) -> Iterator[str]:
    first = certificates[0][0]
    number, previous = 1, certificate_start(first.store_id, first.tenant_id)
    for certificate, payload in certificates:
        if certificate.number != number:
            yield f"where certificate {number} has to be, there is {certificate.number}"
        if certificate.previous_sha256 != previous:
            yield f"{certificate}: previous_sha256 is not the SHA-256 of the one before"
        if not _is_payload(certificate, payload):
            yield f"{certificate}: its payload says something else"
        number, previous = certificate.number + 1, payload_sha256(payload)
        if noted is not None and noted[0] == certificate.number and noted[1] != previous:
            yield f"{certificate}: its payload's SHA-256 is not the one noted"
    if noted is not None and noted[0] >= number:
        yield f"certificate {noted[0]} was noted, and the last one is {number - 1}"


def _is_payload(certificate: Certificate, payload: bytes) -> bool:
    try:
        return to_payload(certificate) == payload
    except InputError:
        return False


def _heads(certificates: Sequence[Certificate]) -> Iterator[str]:
    for before, after in pairwise(certificates):
        if after.head_seq < before.head_seq:
            yield f"{after}: the head goes back from seq {before.head_seq} to {after.head_seq}"
        if after.head_recorded_at_us < before.head_recorded_at_us:
            yield f"{after}: the head's time goes back to {to_iso(after.head_recorded_at_us)}"
        if before.kind is CertificateKind.OFFBOARDED:
            yield f"{after}: it comes after the offboarding, {before}"


def _ranges(certificates: Sequence[Certificate]) -> Iterator[str]:
    """Expired windows in the order of seq: no event in two, and time rises with seq."""
    expired = [c for c in certificates if c.kind is CertificateKind.EXPIRED]
    furthest: Certificate | None = None
    for c in sorted(expired, key=lambda c: c.first_seq):
        if furthest is not None:
            if c.first_seq <= furthest.last_seq:
                yield f"{c}: seq {c.first_seq} is in {furthest} too"
            elif (c.window_from_us or 0) < (furthest.window_to_us or 0):
                yield f"{c}: its window begins before that of {furthest} ends"
        if furthest is None or c.last_seq > furthest.last_seq:
            furthest = c


def _hashes(certificates: Sequence[Certificate]) -> Iterator[str]:
    """Whatever several certificates (and the start of the chain) say of one seq is the same hash."""
    known = {0: (chain_start(certificates[0].tenant_id), "the start of the chain")}
    for c in certificates:
        said = ((c.first_seq - 1, c.hash_before), (c.last_seq, c.hash_after), (c.head_seq, c.head_hash))
        for seq, value in said:
            expected, witness = known.setdefault(seq, (value, str(c)))
            if value != expected:
                yield f"{c}: the hash of seq {seq} is another one than that of {witness}"


def check_against_log(
    certificates: Sequence[Certificate],
    head_seq: int,
    head_hash: bytes,
    hash_at: Callable[[int], bytes | None],
) -> list[str]:
    """What the log, as it is now, contradicts in certificates that `check_chain` found whole; empty: nothing.

    `hash_at` gives the stored hash of an event, None if no tier has it. It is not asked about events
    whose destruction is certified. Of an offboarded tenant the head may be gone: give `head_seq` 0.
    """
    if not certificates:
        return []
    last, highest = certificates[-1], max(certificates, key=lambda c: c.head_seq)
    offboarded = last.kind is CertificateKind.OFFBOARDED
    if offboarded and head_seq == 0:
        return []
    problems = []
    if offboarded and head_seq > last.head_seq:
        problems.append(f"the log goes on to seq {head_seq} after its offboarding at {last.head_seq}: {last}")
    if highest.head_seq > head_seq:
        problems.append(
            f"the log's end was cut off: {highest} saw seq {highest.head_seq}, the log ends at {head_seq}"
        )
    destroyed = sorted((c.first_seq, c.last_seq) for c in ([last] if offboarded else certificates))
    known: dict[int, bytes | None] = {head_seq: head_hash}
    for c in certificates:
        for seq, expected in _said(c).items():
            at = bisect_right(destroyed, seq, key=lambda span: span[0]) - 1
            certified = at >= 0 and seq <= destroyed[at][1]
            if not 1 <= seq <= head_seq or (certified and seq != head_seq):
                continue
            if seq not in known:
                known[seq] = hash_at(seq)
            if known[seq] is None:
                problems.append(f"seq {seq}, which {c} saw, is in no tier, and none says it was destroyed")
            elif known[seq] != expected:
                problems.append(f"the log was altered: seq {seq} has another hash than {c} saw")
    return problems


def _said(c: Certificate) -> dict[int, bytes]:
    """The hashes that a certificate tells, by seq; where it tells one twice, `check_chain` compares them."""
    return {c.first_seq - 1: c.hash_before, c.last_seq: c.hash_after, c.head_seq: c.head_hash}
