"""Certificates over arbitrary values: what is written is read back, and nothing but that is read."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from eventstore.errors import InputError, IntegrityError
from eventstore.governance.envelope import CERTIFICATE_TYPE, Envelope, Signature, decode, encode
from eventstore.governance.signing import SigningKey, verify
from eventstore.model.certificate import (
    Certificate,
    CertificateKind,
    DestroyedSegment,
    certificate_start,
    from_payload,
    payload_sha256,
    to_payload,
)
from eventstore.model.certificate_chain import check_against_log, check_certificate, check_chain
from eventstore.model.event import chain_start
from eventstore.model.subtrees import Subtree, lost_subtrees
from tests.property.strategies import examples, times

KEY = SigningKey.generate()
KEYS = {KEY.key_id: KEY.verify_key}
STORE = "019a48f1-d680-7000-8000-0368969ec29a"

digests = st.binary(min_size=32, max_size=32)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
counts = st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 2**53, 2**53 + 1, 2**63 - 1])
from_1 = counts.map(lambda n: max(n, 1))
segments = st.builds(
    DestroyedSegment,
    key=words,
    target=words,
    part=counts,
    first_seq=from_1,
    last_seq=from_1,
    size_bytes=counts,
    sha256=digests,
)
subtrees = st.builds(Subtree, level=st.integers(0, 62), index=counts, hash=digests)
certificates = st.builds(
    Certificate,
    store_id=st.uuids().map(str),
    tenant_id=st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z"),
    number=from_1,
    previous_sha256=digests,
    kind=st.sampled_from(CertificateKind),
    window_from_us=st.none() | times,
    window_to_us=st.none() | times,
    first_seq=from_1,
    last_seq=counts,
    event_count=counts,
    hash_before=digests,
    hash_after=digests,
    segments=st.lists(segments, max_size=3).map(tuple),
    subtrees=st.lists(subtrees, max_size=3).map(tuple),
    policy_version=counts,
    policy=words,
    head_seq=counts,
    head_hash=digests,
    head_recorded_at_us=times,
    decided_by=words,
    reason=words,
    issued_at_us=times,
    signed_at_us=times,
    format_version=st.just(1),
)


@given(certificates)
@examples(150)
def test_certificates_go_through_their_payload(certificate: Certificate) -> None:
    payload = to_payload(certificate)
    assert from_payload(payload) == certificate
    assert to_payload(from_payload(payload)) == payload
    # The canonical form is what plain JSON writers give: sorted, compact, nothing escaped that need not be.
    plain = json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert payload == plain.encode()
    check_certificate(certificate)  # whatever it says, it is answered in words


@given(certificates, certificates)
@examples(50)
def test_different_certificates_have_different_payloads(one: Certificate, other: Certificate) -> None:
    assert (to_payload(one) == to_payload(other)) == (one == other)


@given(certificates, st.integers(min_value=0), st.integers(1, 255))
@examples(150)
def test_an_altered_payload_is_refused_or_says_something_else(
    certificate: Certificate, at: int, bits: int
) -> None:
    payload = bytearray(to_payload(certificate))
    payload[at % len(payload)] ^= bits
    try:
        found = from_payload(bytes(payload))
    except IntegrityError:
        return
    assert found != certificate
    assert to_payload(found) == payload


@given(st.binary(max_size=200) | st.text().map(lambda t: t.encode(errors="surrogatepass")))
@examples(150)
def test_whatever_else_comes_is_refused_as_such(data: bytes) -> None:
    for read in (from_payload, decode):
        try:
            read(data)
        except IntegrityError:
            continue
        raise AssertionError(f"{data!r} was read")


@given(
    st.text(),
    st.binary(max_size=300),
    st.lists(st.tuples(words, st.binary(max_size=80)), min_size=1, max_size=4),
)
@examples(100)
def test_envelopes_go_back_and_forth(kind: str, payload: bytes, signatures: list[tuple[str, bytes]]) -> None:
    envelope = Envelope(kind, payload, tuple(Signature(*s) for s in signatures))
    try:
        data = encode(envelope)
    except UnicodeEncodeError:
        return  # a lone surrogate
    assert decode(data) == envelope


@given(certificates, st.integers(min_value=0), st.integers(1, 255))
@examples(150)
def test_an_altered_envelope_is_refused(certificate: Certificate, at: int, bits: int) -> None:
    payload = to_payload(certificate)
    envelope = bytearray(KEY.sign(CERTIFICATE_TYPE, payload))
    assert verify(bytes(envelope), KEYS) == payload
    envelope[at % len(envelope)] ^= bits
    try:
        verify(bytes(envelope), KEYS)
    except IntegrityError:
        return
    raise AssertionError("an altered envelope was taken")


def log_hash(seq: int) -> bytes:
    return payload_sha256(b"event %d" % seq) if seq else chain_start("acme")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
@examples(100)
def test_chains_over_windows_in_any_order_are_whole(sizes: list[int], data: st.DataObject) -> None:
    """Windows expire in any order; what was expired is never asked for, the rest is compared."""
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    order = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(1, len(sizes)))]
    chain: list[tuple[Certificate, bytes]] = []
    head, previous = ends[-1], certificate_start(STORE, "acme")
    for number, at in enumerate(order, 1):
        head += data.draw(st.integers(0, 3))
        first, last = ends[at] - sizes[at] + 1, ends[at]
        certificate = Certificate(
            store_id=STORE, tenant_id="acme", number=number, previous_sha256=previous,
            kind=CertificateKind.EXPIRED, window_from_us=10 * at, window_to_us=10 * at + 10,
            first_seq=first, last_seq=last, event_count=sizes[at],
            hash_before=log_hash(first - 1), hash_after=log_hash(last), segments=(),
            subtrees=lost_subtrees(first, last),
            policy_version=0, policy="p", head_seq=head, head_hash=log_hash(head), head_recorded_at_us=head,
            decided_by="d", reason="r", issued_at_us=number, signed_at_us=number,
        )  # fmt: skip
        payload = to_payload(certificate)
        chain.append((certificate, payload))
        previous = payload_sha256(payload)
    every = [certificate for certificate, _ in chain]
    gone = {seq for c in every for seq in range(c.first_seq, c.last_seq + 1)}

    def hash_at(seq: int) -> bytes | None:
        return None if seq in gone else log_hash(seq)

    assert check_chain(chain, store_id=STORE, tenant_id="acme") == []
    assert check_against_log(every, head, log_hash(head), hash_at) == []
    for cut in range(head):
        assert check_against_log(every, cut, log_hash(cut), hash_at)
    kept = [n for n in range(len(chain)) if n != random.Random(head).randrange(len(chain))]
    if kept and kept != list(range(len(kept))):
        assert check_chain([chain[n] for n in kept])
    forged = replace(every[0], reason="another")
    if len(chain) > 1:
        assert check_chain([(forged, to_payload(forged)), *chain[1:]])


@given(certificates, words)
@examples(50)
def test_what_to_payload_takes_is_what_from_payload_takes(certificate: Certificate, name: str) -> None:
    """A tenant's name is checked on both sides."""
    try:
        payload = to_payload(replace(certificate, tenant_id=name))
    except InputError:
        return
    assert from_payload(payload).tenant_id == name
