"""Keys and envelopes: what is refused, what never shows, and two who make the key at once."""

from __future__ import annotations

import base64
import copy
import json
import multiprocessing
import os
import pickle
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from eventstore.errors import EventStoreError, IntegrityError, SetupError
from eventstore.governance import signing
from eventstore.governance.envelope import CERTIFICATE_TYPE, Envelope, Signature, decode, encode, pae
from eventstore.governance.signing import SigningKey, VerifyKey, verify

# RFC 8032, 7.1, test 2: the private key, the public key, and the signature over the byte 0x72.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
KEYS = {KEY.key_id: KEY.verify_key}
PAYLOAD = b'{"number":1}'
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX modes")


def parts(envelope: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(envelope)
    return found


def compact(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


# --- envelopes --------------------------------------------------------------------------------------


def test_the_encoding_is_that_of_dsse() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # protocol.md, test vectors
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 ", "lengths are in bytes"


def test_an_envelope_is_the_json_of_dsse() -> None:
    envelope = KEY.sign(CERTIFICATE_TYPE, PAYLOAD)
    members = parts(envelope)
    assert list(members) == ["payload", "payloadType", "signatures"]
    assert base64.b64decode(members["payload"], validate=True) == PAYLOAD
    assert members["payloadType"] == "application/vnd.eventstore.certificate+json"
    (signature,) = members["signatures"]
    assert signature.keys() == {"keyid", "sig"}
    assert signature["keyid"] == KEY.key_id
    Ed25519PrivateKey.from_private_bytes(SECRET).public_key().verify(
        base64.b64decode(signature["sig"]), b"DSSEv1 43 " + CERTIFICATE_TYPE.encode() + b" 12 " + PAYLOAD
    )
    assert encode(decode(envelope)) == envelope


def test_signing_is_deterministic() -> None:
    assert KEY.sign(CERTIFICATE_TYPE, PAYLOAD) == KEY.sign(CERTIFICATE_TYPE, PAYLOAD)


def test_what_was_signed_is_given_back() -> None:
    assert verify(KEY.sign(CERTIFICATE_TYPE, PAYLOAD), KEYS) == PAYLOAD
    assert verify(KEY.sign("text/plain", b""), KEYS, payload_type="text/plain") == b""


def test_every_altered_byte_is_refused() -> None:
    envelope = KEY.sign(CERTIFICATE_TYPE, PAYLOAD)
    for at in range(len(envelope)):
        for bits in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80):
            altered = bytearray(envelope)
            altered[at] ^= bits
            with pytest.raises(IntegrityError):
                verify(bytes(altered), KEYS)


def test_every_missing_or_added_byte_is_refused() -> None:
    envelope = KEY.sign(CERTIFICATE_TYPE, PAYLOAD)
    for at in range(len(envelope) + 1):
        for altered in (
            envelope[:at],
            envelope[:at] + envelope[at + 1 :],
            envelope[:at] + b" " + envelope[at:],
        ):
            if altered != envelope:
                with pytest.raises(IntegrityError):
                    verify(altered, KEYS)


def other_forms() -> Iterator[Any]:
    """Envelopes with the same content and signature, written in another way."""
    members = parts(KEY.sign(CERTIFICATE_TYPE, b"\xfb\xff\xfe1"))
    assert "+" in members["payload"]
    assert "/" in members["payload"]
    url_safe = {**members, "payload": members["payload"].replace("+", "-").replace("/", "_")}
    yield pytest.param(compact(url_safe), id="url-safe base64")
    yield pytest.param(compact({**members, "payload": members["payload"].rstrip("=")}), id="no padding")
    yield pytest.param(json.dumps(members).encode(), id="white space")
    yield pytest.param(compact(dict(reversed(members.items()))), id="another order")
    yield pytest.param(compact({**members, "more": 1}), id="a member more")
    yield pytest.param(
        compact(members)[:-1] + b',"payload":"' + members["payload"].encode() + b'"}', id="twice"
    )
    yield pytest.param(compact(members).replace(b"payloadType", b"payload\\u0054ype"), id="an escape")
    yield pytest.param(compact(members) + b"\n", id="a line end")
    (signature,) = members["signatures"]
    yield pytest.param(compact({**members, "signatures": [{"sig": signature["sig"]}]}), id="no keyid")


@pytest.mark.parametrize("envelope", list(other_forms()))
def test_other_forms_of_the_same_envelope_are_refused(envelope: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^envelope: "):
        verify(envelope, KEYS)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"payload":1}'])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^envelope: "):
        decode(data)


def test_an_unknown_key_is_named() -> None:
    other = SigningKey.generate()
    with pytest.raises(IntegrityError, match=f"key '{other.key_id}', which is not among .*{KEY.key_id}"):
        verify(other.sign(CERTIFICATE_TYPE, PAYLOAD), KEYS)
    with pytest.raises(IntegrityError, match="none"):
        verify(KEY.sign(CERTIFICATE_TYPE, PAYLOAD), {})


def test_a_signature_of_another_key_under_a_known_id_is_refused() -> None:
    other = SigningKey.generate()
    forged = decode(other.sign(CERTIFICATE_TYPE, PAYLOAD))
    envelope = encode(
        Envelope(forged.payload_type, PAYLOAD, (Signature(KEY.key_id, forged.signatures[0].sig),))
    )
    with pytest.raises(IntegrityError, match="does not fit"):
        verify(envelope, KEYS)


def test_another_type_of_payload_is_refused_although_well_signed() -> None:
    with pytest.raises(IntegrityError, match="'text/plain'"):
        verify(KEY.sign("text/plain", PAYLOAD), KEYS)


def test_a_signature_does_not_pass_for_another_type() -> None:
    signed = decode(KEY.sign("text/plain", PAYLOAD))
    with pytest.raises(IntegrityError, match="does not fit"):
        verify(encode(Envelope(CERTIFICATE_TYPE, PAYLOAD, signed.signatures)), KEYS)


def test_all_of_several_signatures_have_to_be_right() -> None:
    other = SigningKey.generate()
    both = {**KEYS, other.key_id: other.verify_key}
    first, second = (decode(key.sign(CERTIFICATE_TYPE, PAYLOAD)).signatures[0] for key in (KEY, other))

    def envelope(*signatures: Signature) -> bytes:
        return encode(Envelope(CERTIFICATE_TYPE, PAYLOAD, signatures))

    assert verify(envelope(first, second), both) == PAYLOAD
    with pytest.raises(IntegrityError, match=other.key_id):
        verify(envelope(first, second), KEYS)
    with pytest.raises(IntegrityError, match="does not fit"):
        verify(envelope(first, Signature(other.key_id, first.sig)), both)
    with pytest.raises(IntegrityError, match="signatures"):
        verify(envelope(), both)
    with pytest.raises(IntegrityError, match="does not fit"):
        verify(envelope(Signature(KEY.key_id, first.sig[:-1])), both)


# --- keys -------------------------------------------------------------------------------------------


def test_known_answers() -> None:
    assert KEY.verify_key.raw == PUBLIC
    assert KEY.verify_key.fits(RFC_SIGNATURE, b"\x72")
    assert not KEY.verify_key.fits(RFC_SIGNATURE, b"\x73")
    assert KEY.key_id == KEY.verify_key.key_id == "39f713d0a644253f"  # sha256sum of PUBLIC


def test_public_keys_go_through_pem_and_raw() -> None:
    key = KEY.verify_key
    assert VerifyKey.from_pem(key.to_pem()) == VerifyKey.from_raw(key.raw) == key
    with pytest.raises(SetupError, match="not 31"):
        VerifyKey.from_raw(key.raw[1:])


def test_what_is_no_public_key_is_refused_and_not_repeated() -> None:
    private = private_pem()
    elliptic = generate_private_key(SECP256R1())
    other = elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for pem in (b"", b"junk", private, other):
        with pytest.raises(SetupError, match="no Ed25519 public key") as refused:
            VerifyKey.from_pem(pem)
        assert_silent(refused.value)


def private_pem() -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def assert_silent(error: EventStoreError) -> None:
    """Neither the words, nor what led to them, nor any local variable on the way holds the private key."""
    secrets = [SECRET.hex(), base64.b64encode(SECRET).decode(), private_pem().split(b"\n")[1].decode()]
    shown = [str(error), repr(error), error.hint, repr(error.__cause__), repr(error.__context__)]
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == signing.__file__:
            shown += map(repr, trace.tb_frame.f_locals.values())
        trace = trace.tb_next
    assert not [text for text in shown for secret in (*secrets, repr(SECRET)[2:-1]) if secret in text]


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key.pem"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "key.pem"
    made = SigningKey.load_or_create(path)
    content = path.read_bytes()
    assert content.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert SigningKey.load_or_create(path).key_id == SigningKey.load(path).key_id == made.key_id
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["key.pem"], "nothing is left beside it"
    assert SigningKey.load_or_create(tmp_path / "another.pem").key_id != made.key_id


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_its_owner_may_read_a_new_key(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        SigningKey.load_or_create(tmp_path / "key.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o644, 0o610, 0o601, 0o440])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, private_pem(), mode)
    for read in (SigningKey.load, SigningKey.load_or_create):
        with pytest.raises(SetupError, match=f"mode {mode:04o}.*chmod 600") as refused:
            read(path)
        assert_silent(refused.value)
    path.chmod(0o400)
    assert SigningKey.load(path).key_id == KEY.key_id


def bad_files() -> Iterator[Any]:
    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    pem = private_pem()
    yield pytest.param(b"", id="empty")
    yield pytest.param(pem[: len(pem) // 2], id="half")
    yield pytest.param(pem.replace(b"MC4CAQAw", b"MC4CAQAx"), id="damaged")
    yield pytest.param(SECRET, id="raw")
    yield pytest.param(KEY.verify_key.to_pem(), id="public")
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    yield pytest.param(locked, id="encrypted")
    other = generate_private_key(SECP256R1())
    yield pytest.param(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), id="another algorithm"
    )


@pytest.mark.parametrize("content", list(bad_files()))
def test_a_file_that_is_no_key_is_refused_kept_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    path = key_file(tmp_path, content)
    for read in (SigningKey.load, SigningKey.load_or_create):
        with pytest.raises(SetupError, match="holds no unencrypted Ed25519 private key") as refused:
            read(path)
        assert_silent(refused.value)
        assert path.read_bytes() == content


@posix
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, words in (("pipe", "is not a file"), (".", "is not a file"), ("dangling", "cannot read")):
        with pytest.raises(SetupError, match=words):
            SigningKey.load_or_create(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(SetupError, match="cannot read"):
        SigningKey.load(tmp_path / "none.pem")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot (make|read)"):
        SigningKey.load_or_create(tmp_path / "file" / "key.pem")


def test_a_private_key_is_not_shown_and_not_copied(caplog: pytest.LogCaptureFixture) -> None:
    assert repr(KEY) == str(KEY) == f"SigningKey({KEY.key_id})"
    assert not hasattr(KEY, "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not copied"):
            attempt(KEY)
    assert not caplog.records


def test_whoever_is_second_reads_the_key_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes its key after we found none, right before ours gets its name."""
    path, link = tmp_path / "key.pem", os.link

    def late(source: str, target: Path) -> None:
        key_file(tmp_path, private_pem())
        link(source, target)

    monkeypatch.setattr(signing.os, "link", late)
    assert SigningKey.load_or_create(path).key_id == KEY.key_id
    assert path.read_bytes() == private_pem()
    assert os.listdir(tmp_path) == ["key.pem"]


def test_nobody_sees_a_half_written_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name appears with the whole, synced content: until the link there is none."""
    path, link, fsync, done = tmp_path / "key.pem", os.link, os.fsync, list[str]()

    def watch(name: str, verb: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if name == "link":
                assert not path.exists()
            done.append(name)
            verb(*arguments)

        return call

    monkeypatch.setattr(signing.os, "link", watch("link", link))
    monkeypatch.setattr(signing.os, "fsync", watch("fsync", fsync))
    SigningKey.load_or_create(path)
    assert done == ["fsync", "link", "fsync"], "the content, the name, the folder"


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing.os, "fsync", full)
    with pytest.raises(SetupError, match="No space left") as refused:
        SigningKey.load_or_create(tmp_path / "key.pem")
    assert_silent(refused.value)
    assert os.listdir(tmp_path) == []


ROUNDS = 40


def _race(folder: Path, barrier: Barrier, answers: Any) -> None:
    found = []
    for turn in range(ROUNDS):
        barrier.wait(60)
        found.append(SigningKey.load_or_create(folder / f"{turn}.pem").key_id)
    answers.put(found)


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, barrier, answers)) for _ in range(3)]
    for racer in racers:
        racer.start()
    found = [answers.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    stored = [SigningKey.load(tmp_path / f"{turn}.pem").key_id for turn in range(ROUNDS)]
    assert found == [stored] * 3
    assert len(os.listdir(tmp_path)) == ROUNDS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("this openssl has no Ed25519")
    path.chmod(0o600)
    public = subprocess.run(
        ["openssl", "pkey", "-in", path, "-pubout"], capture_output=True, check=True
    ).stdout
    assert VerifyKey.from_pem(public) == SigningKey.load(path).verify_key
    assert SigningKey.load(path).verify_key.to_pem() == public
