"""Certificates: their bytes, what is refused in them, and what each check of a chain finds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from eventstore.clock import US_PER_S, parse_time_us
from eventstore.errors import InputError, IntegrityError
from eventstore.governance.envelope import CERTIFICATE_TYPE, decode, pae
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
from eventstore.model.subtrees import lost_subtrees

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "certificate-format.md"
STORE = "019a48f1-d680-7000-8000-0368969ec29a"
DAY_US = 86_400 * US_PER_S
DAY0_US = parse_time_us("2024-03-01")
# RFC 8032, 7.1, test 2. Nobody's secret.
KEY = SigningKey(
    Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
)


def hash_of(seq: int) -> bytes:
    """The hash of an event of a log that is made up: ten events a day."""
    return chain_start("acme") if seq == 0 else hashlib.sha256(f"event {seq}".encode()).digest()


def expired(day: int, *, number: int = 1, previous: bytes = b"", head_seq: int = 100) -> Certificate:
    """The certificate of the day's window: seq 10 * day + 1 to 10 * day + 10."""
    start_us, first, last = DAY0_US + day * DAY_US, 10 * day + 1, 10 * day + 10
    key = f"tenant_id=acme/month=2024-03/archive.acme.202403{day + 1:02d}.p000.parquet"
    segment = DestroyedSegment(key, "deep", 0, first, last, 4096, hash_of(-first))
    return Certificate(
        store_id=STORE,
        tenant_id="acme",
        number=number,
        previous_sha256=previous or certificate_start(STORE, "acme"),
        kind=CertificateKind.EXPIRED,
        window_from_us=start_us,
        window_to_us=start_us + DAY_US,
        first_seq=first,
        last_seq=last,
        event_count=10,
        hash_before=hash_of(first - 1),
        hash_after=hash_of(last),
        segments=(segment,),
        subtrees=lost_subtrees(first, last),
        policy_version=2,
        policy="window day, hot 7d, deep 30d, then expire",
        head_seq=head_seq,
        head_hash=hash_of(head_seq),
        head_recorded_at_us=DAY0_US + head_seq * DAY_US,
        decided_by="scheduler",
        reason="past its policy",
        issued_at_us=DAY0_US + (100 + number) * DAY_US,
        signed_at_us=DAY0_US + (101 + number) * DAY_US,
    )


def offboarded(head_seq: int = 100, **values: Any) -> Certificate:
    return replace(
        expired(0, head_seq=head_seq),
        kind=CertificateKind.OFFBOARDED,
        window_from_us=None,
        window_to_us=None,
        last_seq=head_seq,
        event_count=head_seq,
        hash_after=hash_of(head_seq),
        segments=(),
        subtrees=lost_subtrees(1, head_seq),
        reason="contract ended",
        **values,
    )


Chain = list[tuple[Certificate, bytes]]


def chained(*certificates: Certificate) -> Chain:
    """Numbered from 1 and joined, as they are given."""
    chain: Chain = []
    previous = certificate_start(certificates[0].store_id, certificates[0].tenant_id)
    for number, certificate in enumerate(certificates, 1):
        linked = replace(certificate, number=number, previous_sha256=previous)
        payload = to_payload(linked)
        chain.append((linked, payload))
        previous = payload_sha256(payload)
    return chain


# Out of the order of seq: a hold kept the first day longer than the second.
WHOLE = chained(
    expired(1, head_seq=100), expired(0, head_seq=110), expired(2, head_seq=110), expired(4, head_seq=130)
)


def altered(at: int, **values: Any) -> Chain:
    """The whole chain with values of one certificate changed, and everything joined anew."""
    return chained(*(replace(c, **values) if i == at else c for i, (c, _) in enumerate(WHOLE)))


# --- payload ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "certificate", [expired(3), offboarded(), offboarded(0)], ids=["expired", "all", "empty"]
)
def test_payloads_go_back_and_forth(certificate: Certificate) -> None:
    payload = to_payload(certificate)
    assert from_payload(payload) == certificate
    assert to_payload(from_payload(payload)) == payload
    plain = json.loads(payload)
    assert payload == json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert check_certificate(certificate) == []


def test_every_member_by_name() -> None:
    members = json.loads(to_payload(expired(0)))
    assert members["window_from"] == "2024-03-01T00:00:00.000000Z"
    assert members["window_to"] == "2024-03-02T00:00:00.000000Z"
    assert members["hash_after"] == hash_of(10).hex()
    assert members["kind"] == "expired"
    assert members.keys() == {field.name.removesuffix("_us") for field in fields(Certificate)}
    assert members["segments"][0].keys() == {field.name for field in fields(DestroyedSegment)}


def refused(members: dict[str, Any]) -> str:
    """Why a payload of these members is refused."""
    payload = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(IntegrityError) as error:
        from_payload(payload)
    return error.value.message


MEMBERS: dict[str, Any] = json.loads(to_payload(expired(0)))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member_is_named(name: str) -> None:
    assert f"`{name}`" in refused({n: v for n, v in MEMBERS.items() if n != name})


@pytest.mark.parametrize("name", MEMBERS["segments"][0])
def test_a_missing_member_of_a_segment_is_named(name: str) -> None:
    short = {n: v for n, v in MEMBERS["segments"][0].items() if n != name}
    message = refused({**MEMBERS, "segments": [short]})
    assert f"`{name}`" in message
    assert "segments[" in message


def test_an_unknown_member_is_named() -> None:
    assert "`remark`" in refused({**MEMBERS, "remark": 1})
    assert "`remark`" in refused({**MEMBERS, "segments": [{**MEMBERS["segments"][0], "remark": 1}]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store_id", "X"),
        ("store_id", STORE.upper()),
        ("store_id", STORE + "\n"),
        ("tenant_id", "Acme"),
        ("tenant_id", "acme\n"),
        ("number", 0),
        ("number", "1"),
        ("number", 1.5),
        ("number", True),
        ("number", 2**63),
        ("previous_sha256", "0" * 63),
        ("previous_sha256", "0" * 65),
        ("previous_sha256", "A" * 64),
        ("hash_before", "0" * 64 + "\n"),
        ("hash_after", None),
        ("kind", "lost"),
        ("window_from", "yesterday"),
        ("window_from", "2024-03-01T00:00:00"),
        ("window_to", 1),
        ("issued_at", None),
        ("signed_at", "today"),
        ("head_recorded_at", "10000-01-01T00:00:00Z"),
        ("first_seq", 0),
        ("last_seq", -1),
        ("segments", {}),
        ("subtrees", {}),
        ("subtrees", [{"level": 63, "index": 0, "hash": "0" * 64}]),
        ("policy_version", -1),
        ("policy", ""),
        ("decided_by", ""),
        ("reason", "x" * 65537),
    ],
)
def test_a_malformed_member_is_named(name: str, value: Any) -> None:
    assert name in refused({**MEMBERS, name: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p + b"\n",
        lambda p: b" " + p,
        lambda p: p.replace(b'"number":1,', b'"number": 1,'),
        lambda p: p.replace(b'"number":1,', b'"number":1.0,'),
        lambda p: p.replace(b'"number":1,', b'"number":1,"number":1,'),
        lambda p: p.replace(b'"number":1,', b'"number":2,"number":1,'),
        lambda p: p.replace(b"acme", b"\\u0061cme", 1),
        lambda p: p.replace(b".000000Z", b"Z"),
        lambda p: p.replace(b".000000Z", b".000000+00:00"),
        lambda p: p.replace(b"2024-03-01T00:00:00.000000Z", b"2024-03-01"),
        lambda p: p[:-1] + b',"decided_by":"scheduler"}',
    ],
)
def test_the_same_in_other_bytes_is_refused(change: Callable[[bytes], bytes]) -> None:
    payload = to_payload(expired(0))
    assert change(payload) != payload
    with pytest.raises(IntegrityError, match="certificate: "):
        from_payload(change(payload))


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"{}", b"\xff", b"{", b"[" * 100_000, b'{"x":' + b"[" * 100_000]
)
def test_what_is_no_certificate_is_refused(payload: bytes) -> None:
    with pytest.raises(IntegrityError, match="certificate: "):
        from_payload(payload)


def test_a_later_format_is_refused_by_its_version() -> None:
    message = refused({**MEMBERS, "format_version": 2, "what": "no idea"})
    assert "format_version is 2" in message


@pytest.mark.parametrize(
    "values",
    [
        {"hash_after": b"short"},
        {"reason": "\ud800"},
        {"reason": ""},
        {"number": 0},
        {"format_version": 2},
        {"issued_at_us": 10**18},
        {"first_seq": 2**63},
        {"store_id": "x"},
        {"segments": (replace(expired(0).segments[0], sha256=b""),)},
    ],
)
def test_nothing_is_written_that_could_not_be_read(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no certificate can say this"):
        to_payload(replace(expired(0), **values))


def test_the_first_link_depends_on_store_and_tenant() -> None:
    other = STORE.replace("0", "1")
    starts = {certificate_start(s, t) for s in (STORE, other) for t in ("acme", "acm", "e")}
    assert len(starts) == 6
    framed = b"".join(
        len(p).to_bytes(8, "little") + p for p in (b"eventstore/certificate/v1", STORE.encode(), b"acme")
    )
    assert certificate_start(STORE, "acme") == hashlib.sha256(framed).digest()


def changed(value: Any) -> Any:
    """Another value of the same kind, well formed."""
    match value:
        case CertificateKind():
            return CertificateKind.OFFBOARDED if value == "expired" else CertificateKind.EXPIRED
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case int():
            return value + 1
        case tuple():
            return ()
        case None:
            return 0
    return value.replace("0", "1") if value == STORE else value + "x"


@pytest.mark.parametrize("name", [f.name for f in fields(Certificate) if f.name != "format_version"])
def test_every_altered_field_changes_what_is_signed(name: str) -> None:
    """Whatever one says differently, neither its signature nor the next certificate fits any more."""
    (certificate, payload), (following, next_payload) = WHOLE[1:3]
    forged = replace(certificate, **{name: changed(getattr(certificate, name))})
    forged_payload = to_payload(forged)
    assert forged_payload != payload
    envelope = decode(KEY.sign(CERTIFICATE_TYPE, payload))
    message = pae(CERTIFICATE_TYPE, forged_payload)
    assert not KEY.verify_key.fits(envelope.signatures[0].sig, message)
    chain = [WHOLE[0], (forged, forged_payload), (following, next_payload), WHOLE[3]]
    assert f"{following}: previous_sha256 is not the SHA-256 of the one before" in check_chain(chain)


# --- chain ------------------------------------------------------------------------------------------


def test_a_whole_chain_has_no_problem() -> None:
    assert check_chain(WHOLE) == []
    assert check_chain(WHOLE, store_id=STORE, tenant_id="acme") == []
    assert check_chain([]) == []
    assert check_chain(chained(*(c for c, _ in WHOLE), offboarded(140))) == []
    assert check_chain(chained(offboarded(0))) == []


def problem(chain: Sequence[tuple[Certificate, bytes]], **known: Any) -> str:
    """All problems in one text; there has to be one."""
    problems = check_chain(chain, **known)
    assert problems
    return "\n".join(problems)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_certificate_that_was_taken_out_is_missed(at: int) -> None:
    found = problem([*WHOLE[:at], *WHOLE[at + 1 :]])
    assert f"where certificate {at + 1} has to be, there is {at + 2}" in found
    assert "previous_sha256" in found


def test_the_last_ones_are_missed_by_who_noted_one_only() -> None:
    note = (4, payload_sha256(WHOLE[3][1]))
    assert check_chain(WHOLE[:3]) == [], "the rest is whole"
    assert check_chain(WHOLE, noted=note) == []
    assert check_chain(WHOLE, noted=(2, payload_sha256(WHOLE[1][1]))) == []
    assert "certificate 4 was noted, and the last one is 3" in problem(WHOLE[:3], noted=note)
    assert "certificate 4 was noted, and there is none" in problem([], noted=note)
    rewritten = altered(3, reason="another")
    assert check_chain(rewritten) == [], "nothing comes after it"
    assert "is not the one noted" in problem(rewritten, noted=note)


def test_a_swap_is_found() -> None:
    assert "where certificate 2 has to be, there is 3" in problem([WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3]])


def test_a_repeat_is_found() -> None:
    assert "where certificate 3 has to be, there is 2" in problem([*WHOLE[:2], WHOLE[1], *WHOLE[2:]])


def test_an_inserted_certificate_is_found() -> None:
    stranger = replace(expired(6), number=2, previous_sha256=WHOLE[1][0].previous_sha256)
    renumbered = [(c, p) for c, p in WHOLE]
    renumbered.insert(1, (stranger, to_payload(stranger)))
    assert "previous_sha256" in problem(renumbered)


def test_a_first_one_that_starts_elsewhere_is_found() -> None:
    first = replace(WHOLE[0][0], previous_sha256=bytes(32))
    assert "previous_sha256" in problem([(first, to_payload(first))])


def test_a_payload_that_says_something_else_is_found() -> None:
    claimed = replace(WHOLE[3][0], reason="another")
    assert "its payload says something else" in problem([*WHOLE[:3], (claimed, WHOLE[3][1])])
    unwritable = replace(WHOLE[3][0], reason="")
    assert "its payload says something else" in problem([*WHOLE[:3], (unwritable, WHOLE[3][1])])


@pytest.mark.parametrize(
    ("at", "values", "words"),
    [
        (3, {"event_count": 9}, "event_count 9 is not that of seq 41 to 50"),
        (3, {"event_count": 11}, "event_count 11 is not"),
        (3, {"first_seq": 30, "event_count": 21, "segments": ()}, "seq 30 is in certificate 3"),
        (1, {"last_seq": 11, "event_count": 11, "head_seq": 110}, "is in certificate 2"),
        (0, {"first_seq": 1, "last_seq": 60, "event_count": 60}, "seq 41 is in certificate 1"),
        (2, {"head_seq": 109}, "the head goes back from seq 110 to 109"),
        (2, {"head_recorded_at_us": DAY0_US}, "the head's time goes back to 2024-03-01"),
        (3, {"head_seq": 45}, "seq 50 lies beyond the head, 45"),
        (3, {"tenant_id": "other"}, "its tenant_id is other, not acme"),
        (3, {"store_id": STORE.replace("0", "1")}, "its store_id is 119a"),
        (3, {"window_from_us": None}, "needs a window_from"),
        (3, {"window_to_us": None}, "needs a window_from"),
        (3, {"window_to_us": DAY0_US}, "needs a window_from before its window_to"),
        (3, {"last_seq": 40, "event_count": 0, "segments": ()}, "at least one event"),
        (3, {"subtrees": ()}, "its subtrees are not those that make seq 41 to 50"),
        (3, {"subtrees": lost_subtrees(41, 49)}, "its subtrees are not those"),
        (3, {"window_from_us": DAY0_US + DAY_US}, "begins before that of certificate 3"),
        (
            1,
            {"hash_before": bytes(32)},
            "the hash of seq 0 is another one than that of the start of the chain",
        ),
        (1, {"hash_after": bytes(32)}, "the hash of seq 10 is another one than that of certificate 1"),
        (2, {"hash_before": bytes(32)}, "the hash of seq 20 is another one than that of certificate 1"),
        (2, {"head_hash": bytes(32)}, "the hash of seq 110 is another one than that of certificate 2"),
        (3, {"kind": CertificateKind.OFFBOARDED}, "an offboarding has no window"),
        (
            3,
            {"kind": CertificateKind.OFFBOARDED, "window_from_us": None, "window_to_us": None},
            "an offboarding is of seq 1 to the head, 130, not 41 to 50",
        ),
    ],
)
def test_what_cannot_be_is_found(at: int, values: dict[str, Any], words: str) -> None:
    """Even when everything is joined and could have been signed anew."""
    assert words in problem(altered(at, **values))


@pytest.mark.parametrize(
    ("first_seq", "last_seq"), [(40, 50), (41, 51), (45, 44)], ids=["before", "after", "backwards"]
)
def test_a_segment_outside_of_the_range_is_found(first_seq: int, last_seq: int) -> None:
    segment = replace(WHOLE[3][0].segments[0], first_seq=first_seq, last_seq=last_seq)
    assert "lies outside of its seq range" in problem(altered(3, segments=(segment,)))


def test_a_segment_that_is_named_twice_is_found() -> None:
    (segment,) = WHOLE[3][0].segments
    assert "is there twice" in problem(altered(3, segments=(segment, segment)))
    elsewhere = replace(segment, target="near")
    assert check_chain(altered(3, segments=(segment, elsewhere))) == [], "a copy in another target"


def test_nothing_comes_after_an_offboarding() -> None:
    assert "it comes after the offboarding" in problem(chained(offboarded(100), expired(3)))


def test_the_chain_of_another_tenant_is_found() -> None:
    assert "its tenant_id is acme, not other" in problem(WHOLE, tenant_id="other")
    assert f"its store_id is {STORE}, not x" in problem(WHOLE, store_id="x")


# --- against the log --------------------------------------------------------------------------------

CERTIFICATES = [certificate for certificate, _ in WHOLE]
GONE = {*range(1, 31), *range(41, 51)}


def log(head_seq: int, **other: bytes | None) -> tuple[int, bytes, Callable[[int], bytes | None]]:
    """A log to that seq without the expired events; `seq_7=...` says otherwise of one."""
    asked = {int(name.removeprefix("seq_")): value for name, value in other.items()}

    def hash_at(seq: int) -> bytes | None:
        assert 1 <= seq <= head_seq
        assert seq not in GONE
        return asked.get(seq, hash_of(seq))

    return head_seq, asked.get(head_seq) or hash_of(head_seq), hash_at


@pytest.mark.parametrize("head_seq", [130, 131, 500])
def test_a_log_that_went_on_fits(head_seq: int) -> None:
    assert check_against_log(CERTIFICATES, *log(head_seq)) == []
    assert check_against_log([], *log(head_seq)) == []


@pytest.mark.parametrize("head_seq", [129, 110, 0])
def test_a_log_whose_end_was_cut_off_is_found(head_seq: int) -> None:
    last = CERTIFICATES[-1]
    found = check_against_log(CERTIFICATES, *log(head_seq))
    assert f"the log's end was cut off: {last} saw seq 130, the log ends at {head_seq}" in found
    assert "certificate 4 of 2024-06-10T00:00:00.000000Z saw" in found[0]


@pytest.mark.parametrize(("head_seq", "seq"), [(130, 130), (500, 130), (500, 110), (500, 100), (500, 40)])
def test_an_altered_log_is_found(head_seq: int, seq: int) -> None:
    found = check_against_log(CERTIFICATES, *log(head_seq, **{f"seq_{seq}": bytes(32)}))
    assert found
    assert all(
        f"the log was altered: seq {seq} has another hash than certificate" in words for words in found
    )


def test_a_log_that_was_cut_off_and_written_on_is_found() -> None:
    found = check_against_log(
        CERTIFICATES, 200, hash_of(200), lambda seq: hash_of(seq if seq < 120 else -seq)
    )
    assert found == ["the log was altered: seq 130 has another hash than " + str(CERTIFICATES[3]) + " saw"]


def test_what_is_gone_without_a_certificate_is_found() -> None:
    (found,) = check_against_log(CERTIFICATES, *log(500, seq_100=None))
    assert "seq 100, which certificate 1" in found
    assert "is in no tier" in found


def test_heads_that_expired_later_are_not_asked_for() -> None:
    later = [c for c, _ in chained(expired(0, head_seq=20), expired(1, head_seq=100))]
    asked: list[int] = []
    assert check_against_log(later, 100, hash_of(100), lambda seq: asked.append(seq)) == []
    assert asked == []


def test_an_offboarded_log_is_gone_or_ends_where_it_did() -> None:
    every = [c for c, _ in chained(*CERTIFICATES, offboarded(140))]
    nothing = lambda _seq: None  # noqa: E731
    assert check_against_log(every, 140, hash_of(140), nothing) == []
    assert check_against_log(every, 0, hash_of(0), nothing) == []
    (found,) = check_against_log(every, 141, hash_of(141), nothing)
    assert "the log goes on to seq 141 after its offboarding at 140" in found
    assert "cut off" in check_against_log(every, 139, hash_of(139), nothing)[0]
    assert "altered" in check_against_log(every, 140, bytes(32), nothing)[0]


# --- the reference page -----------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_page_names_every_member() -> None:
    rows = re.findall(r"^\| `([a-z_0-9]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == {*MEMBERS, *MEMBERS["segments"][0], *MEMBERS["subtrees"][0]}


def example() -> bytes:
    """The envelope that the page shows."""
    (envelope,) = (b for b in blocks("json") if b.startswith('{"payload":"'))
    return envelope.strip().encode()


def test_the_example_of_the_page_is_right() -> None:
    envelope = example()
    payload = verify(envelope, {KEY.key_id: KEY.verify_key})
    assert KEY.sign(CERTIFICATE_TYPE, payload) == envelope
    certificate = from_payload(payload)
    assert check_chain([(certificate, payload)]) == []
    (shown,) = (b for b in blocks("json") if not b.startswith('{"payload":"'))
    assert json.loads(shown) == json.loads(payload)
    page = PAGE.read_text(encoding="utf-8")
    for fact in (KEY.key_id, payload_sha256(payload).hex(), KEY.verify_key.raw.hex()):
        assert fact in page
    assert KEY.verify_key.to_pem().decode() in page


def prepared(folder: Path) -> None:
    (folder / "certificate.json").write_bytes(example())
    (folder / "key.pem").write_bytes(KEY.verify_key.to_pem())


def tampered(folder: Path) -> None:
    members = json.loads(example())
    members["payload"] = members["payload"].replace("e", "f", 1)
    (folder / "certificate.json").write_text(json.dumps(members))


def test_the_python_of_the_page_works(tmp_path: Path) -> None:
    (script,) = blocks("python")
    (tmp_path / "verify_certificates.py").write_text(script, encoding="utf-8")
    chain = [KEY.sign(CERTIFICATE_TYPE, payload) for _, payload in WHOLE]
    names = [f"{number}.json" for number in range(1, 5)]
    prepared(tmp_path)
    for name, envelope in zip(names, chain, strict=True):
        (tmp_path / name).write_bytes(envelope)

    def run(*files: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "verify_certificates.py", "key.pem", *files]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run(*names)
    assert done.returncode == 0, done.stderr
    assert "4 certificates" in done.stdout
    assert run("certificate.json").returncode == 0
    assert run("1.json", "3.json", "4.json").returncode != 0
    assert run("2.json").returncode != 0
    tampered(tmp_path)
    assert "InvalidSignature" in run("certificate.json").stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_the_shell_of_the_page_works(tmp_path: Path) -> None:
    (script,) = (b for b in blocks("sh") if "openssl" in b)
    prepared(tmp_path)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run()
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    tampered(tmp_path)
    assert "Signature Verified Successfully" not in run().stdout
