"""The stand-alone verifier: what it accepts, and every way it has to refuse.

A bundle is made here from plain values, so that a test can forge any part of it and sign it all again: what
the holder of the key does. What somebody does who has no key is to change bytes.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventstore import verifier
from eventstore.errors import InputError
from eventstore.governance.envelope import CERTIFICATE_TYPE
from eventstore.governance.signing import SigningKey
from eventstore.integrity import bundle_zip
from eventstore.integrity.bundle_zip import BundleZip, bundle_text
from eventstore.integrity.merkle import inclusion_proof, leaf_hash, nodes_over, root_at
from eventstore.model.event import TEXT_FIELDS, VALUE_FIELDS, Event, canonical_bytes, chain_hash, chain_start
from eventstore.model.note import Checkpoint, verifier_key
from eventstore.query.render import to_json_lines
from tests.unit.helpers import START_US, as_batch

ROOT = Path(__file__).resolve().parents[2]
STORE = "019a48f1-d680-7000-8000-0368969ec29a"
ORIGIN = f"eventstore/{STORE}/acme"
SIZE, FIRST = 11, 4  # events of the log; the first that was not destroyed
HOSTILE = 'a"\\\u00e9\u2028\x1b</script>'

# What a JSON parser of the usual kind reads in another way than it is written.
LARGE = f'{{"a":1.50,"a":[1e400,{"9" * 5000},"\\u0041"],"n":{"[" * 500}{"]" * 500}}}'


def nodes_of(hashes: list[bytes]) -> Any:
    def unknown(level: int, index: int) -> bytes:
        raise AssertionError((level, index))

    return nodes_over(0, [leaf_hash(value) for value in hashes], unknown)


def log_of(size: int = SIZE, *, start: bytes | None = None, break_at: int = 0) -> list[tuple[Event, bytes]]:
    """Events with the hash before each. `break_at`: an event that is chained to something else."""
    found, before = [], chain_start("acme") if start is None else start
    for seq in range(1, size + 1):
        before = bytes(32) if seq == break_at else before
        event = Event(
            seq=seq,
            event_id=seq.to_bytes(16, "big"),
            recorded_at_us=START_US + seq,
            occurred_at_us=-seq,
            entity_type="order",
            entity_id=HOSTILE if seq % 2 else "plain",
            action="changed",
            field="*",
            old_value=None,
            new_value=f'{{"a":1.50,"a":[1e400,{"9" * 5000},"\\u0041"],"n":{"[" * 500}{"]" * 500}}}'
            if seq == 5
            else "1",
            actor="ann",
            source="test",
            workspace_id=None if seq % 3 else "w",
            metadata=None,
            hash=b"",
        )
        event.hash = chain_hash(before, canonical_bytes(event))
        found.append((event, before))
        before = event.hash
    return found


def line_of(event: Event, before: bytes) -> bytes:
    shown = to_json_lines(pa.Table.from_batches([as_batch([event])]))
    return shown[:-2] + f',"prev_hash":"{before.hex()}"}}\n'.encode()


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class Forged:
    """A bundle in its parts. Its log has 11 events in four windows; the first three events were destroyed."""

    key: SigningKey
    log: list[tuple[Event, bytes]] = field(default_factory=log_of)
    seqs: list[int] = field(default_factory=lambda: [4, 5, 6, 8, 9, 11])
    size: int = SIZE
    origin: str = ORIGIN
    checkpoint_key: SigningKey | None = None
    edit: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    windows: Callable[[list[dict[str, Any]]], object] = lambda windows: None
    about: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    names: Callable[[list[str]], object] = lambda names: None
    root: bytes | None = None

    def hash(self, seq: int) -> str:
        return self.log[seq - 1][0].hash.hex() if seq else chain_start("acme").hex()

    def manifests(self) -> list[dict[str, Any]]:
        found = []
        for first, last, state in (
            (1, 3, "expired"),
            (4, 6, "dropped"),
            (7, 9, "sealed"),
            (10, None, "open"),
        ):
            ends = {"first_seq": first, "last_seq": last}
            ends |= {
                "hash_before": self.hash(first - 1) if last else None,
                "hash_after": self.hash(last) if last else None,
            }
            segments = [{**ends, "key": "k", "sha256": "0"}] if state == "dropped" else []
            found.append({"state": state, **ends, "segments": segments})
        self.windows(found)
        return found

    def envelope(self) -> bytes:
        said = {
            "first_seq": 1,
            "hash_after": self.hash(3),
            "hash_before": self.hash(0),
            "last_seq": 3,
            "number": 1,
            "store_id": STORE,
            "tenant_id": "acme",
        }
        return self.key.sign(CERTIFICATE_TYPE, dumps({**said, **self.certificate}))

    def contents(self) -> dict[str, bytes]:
        nodes = nodes_of([event.hash for event, _ in self.log])
        root = root_at(self.size, nodes) if self.root is None else self.root
        signer = self.checkpoint_key or self.key
        windows = self.manifests()
        about = {"store_id": STORE, "tenant_id": "acme", "asked_by": "lea", "asked_at": "now", "question": {}}
        about |= {"events": len(self.seqs), "windows": len(windows), "certificates": 1, **self.about}
        proofs = (
            {"seq": s, "path": [n.hex() for n in inclusion_proof(s - 1, max(self.size, s), nodes)]}
            for s in self.seqs
        )
        found = {
            "events.ndjson": b"".join(line_of(*self.log[seq - 1]) for seq in self.seqs),
            "proofs.ndjson": b"".join(dumps(proof) + b"\n" for proof in proofs),
            "windows.ndjson": b"".join(dumps(window) + b"\n" for window in windows),
            "certificates/00000001.json": self.envelope(),
            "checkpoint.txt": str(
                signer.sign_note(ORIGIN, Checkpoint(self.origin, self.size, root).text())
            ).encode(),
            "key.pub": f"{verifier_key(ORIGIN, self.key.verify_key.raw)}\n".encode(),
            "bundle.json": dumps(about),
            "README.html": b"<p>A page.",
        }
        for name, change in self.edit.items():
            found[name] = change(found[name])
        return found

    def sign(self, text: str) -> bytes:
        return str(self.key.sign_note(ORIGIN, text)).encode()

    def octets(self) -> bytes:
        contents = self.contents()
        names = [*contents]
        self.names(names)
        file = io.BytesIO()
        zip_ = BundleZip(file)
        for name in names:
            zip_.add(name, contents.get(name, b"{}"))
        zip_.finish(self.sign)
        return file.getvalue()

    def sign_again(self, unsigned: bytes) -> bytes:
        """Bytes that a zip's comment may follow, with one that is signed."""
        return unsigned + self.sign(bundle_text(hashlib.sha256(unsigned).hexdigest()))


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def forged(key: SigningKey) -> Forged:
    return Forged(key)


def check(octets: bytes, *keys: str) -> list[str]:
    named = [key for text in keys for key in verifier.read_keys(text)]
    return verifier.verify(io.BytesIO(octets), named)


def refused(octets: bytes, why: str, *keys: str) -> None:
    with pytest.raises(verifier.REFUSED, match=why):
        check(octets, *keys)


# --- what it is ---------------------------------------------------------------------------------------


def test_it_is_one_short_file_of_the_standard_library_and_cryptography() -> None:
    source = (ROOT / "eventstore" / "verifier.py").read_bytes()
    assert (ROOT / "docs" / "verify_bundle.py").read_bytes() == source, "copy eventstore/verifier.py there"
    assert len(source.splitlines()) < 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [f"{'.' * node.level}{node.module}"]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - {"cryptography"} <= sys.stdlib_module_names


def test_a_bundle_that_holds(forged: Forged) -> None:
    octets = forged.octets()
    about, *said = check(octets, verifier_key(ORIGIN, forged.key.verify_key.raw))
    assert about == "6 events of 'acme'; 'lea' asked at 'now' for {}."
    text = "\n".join(said)
    assert (
        f"size 11, root {base64.b64encode(root_at(11, nodes_of([e.hash for e, _ in forged.log]))).decode()}"
        in text
    )
    assert hashlib.sha256(forged.key.verify_key.raw).hexdigest() in text
    assert "Not proved: that no other event meets the question" in text
    assert "brought this key" not in text
    assert "brought this key" in check(octets)[-1]
    with zipfile.ZipFile(io.BytesIO(octets)) as opened:
        assert opened.testzip() is None
        assert opened.namelist()[-1] == "README.html"


def test_a_range_without_a_gap_is_said_to_be_whole(forged: Forged) -> None:
    forged.seqs = [5, 6, 7, 8]
    forged.windows = lambda windows: windows.pop()
    forged.about = {"question": {"seq_from": 5, "seq_to": 8}}
    assert "Proved: no event from seq 5 to 8 is missing." in check(forged.octets())
    forged.seqs = [5, 6, 8]
    assert not any("is missing" in line for line in check(forged.octets()))


def test_proofs_of_every_event_in_trees_of_every_size() -> None:
    for size in range(1, 70):
        nodes = nodes_of([bytes([at]) * 32 for at in range(size)])
        for at in range(size):
            path = [node.hex() for node in inclusion_proof(at, size, nodes)]
            assert verifier.root_of(at, size - 1, nodes(0, at), path) == root_at(size, nodes)
            for wrong in ([*path, "00" * 32], path[:-1] if path else ["00" * 32]):
                with pytest.raises(ValueError, match="another length"):
                    verifier.root_of(at, size - 1, nodes(0, at), wrong)


# --- somebody without the key -------------------------------------------------------------------------


def test_every_byte_changed_is_refused(forged: Forged) -> None:
    forged.seqs.remove(5)  # the large one
    octets = forged.octets()
    assert len(octets) <= 20_000
    taken = [at for at in range(len(octets)) if accepted(flipped(octets, at, 1 << at % 8))]
    assert not taken


def test_random_changes_are_refused(forged: Forged) -> None:
    octets, choose = forged.octets(), random.Random(31)
    for _ in range(2_000):
        changed = altered(octets, choose)
        assert changed == octets or not accepted(changed)


def flipped(octets: bytes, at: int, bits: int) -> bytes:
    return octets[:at] + bytes([octets[at] ^ bits]) + octets[at + 1 :]


def altered(octets: bytes, choose: random.Random) -> bytes:
    at, other = sorted(choose.randrange(len(octets)) for _ in range(2))
    match choose.randrange(7):
        case 0:
            return flipped(octets, at, 1 << choose.randrange(8))
        case 1:
            return flipped(octets, at, choose.randrange(1, 256))
        case 2:
            return octets[:at]
        case 3:
            return octets[:at] + choose.randbytes(choose.randrange(1, 40)) + octets[at:]
        case 4:
            return octets + choose.randbytes(choose.randrange(1, 40))
        case 5:
            return octets[:at] + octets[other:]
        case _:
            starts = [at for at in range(len(octets)) if octets.startswith(b"PK\3\4", at)]
            first, second, third = sorted(choose.sample(starts, 3))
            return octets[:first] + octets[second:third] + octets[first:second] + octets[third:]


def accepted(octets: bytes) -> bool:
    try:
        check(octets)
    except verifier.REFUSED:
        return False
    return True


def test_a_bundle_signed_by_somebody_else(forged: Forged) -> None:
    """Without --key it holds, and shows another fingerprint."""
    ours = verifier_key(ORIGIN, forged.key.verify_key.raw)
    other = replace(forged, key=SigningKey.generate())
    octets = other.octets()
    assert hashlib.sha256(other.key.verify_key.raw).hexdigest() in check(octets)[-1]
    refused(octets, "the file is signed with another key", ours)
    # One that says it was ours: the hash of the key is in the signature, and the signature must fit.
    name, short, _ = ours.split("+", 2)
    raw = base64.b64encode(b"\1" + other.key.verify_key.raw).decode()
    refused(octets, "no public key behind", f"{name}+{short}+{raw}")
    comment = octets[octets.rindex(b"eventstore bundle v1") :]
    text, _, line = comment.decode().rpartition("\n\n")
    encoded = base64.b64decode(line.split(" ")[2])
    as_ours = base64.b64encode(bytes.fromhex(short) + encoded[4:]).decode()
    refused(octets[: -len(comment)] + f"{text}\n\n\u2014 {name} {as_ours}\n".encode(), "^$", ours)


def test_base64_has_one_form(forged: Forged) -> None:
    """Of the last character some bits count for nothing: changed, it says the same."""
    octets = forged.octets()
    last = octets[-2:-1].decode()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    encoded = octets[octets.rindex(b" ") + 1 : -1].decode()
    assert len(base64.b64decode(encoded)) == 68
    assert last == "="
    for other in alphabet:
        changed = encoded[:-2] + other + "="
        if changed != encoded and base64.b64decode(changed) == base64.b64decode(encoded):
            refused(
                octets[: -len(encoded) - 1] + changed.encode() + b"\n", "base64 is not in its canonical form"
            )
            return
    raise AssertionError("no other form was found")


# --- somebody with the key ----------------------------------------------------------------------------


def edited(name: str, old: str, new: str) -> dict[str, Any]:
    def change(content: bytes) -> bytes:
        assert content.count(old.encode()) >= 1, (name, old)
        return content.replace(old.encode(), new.encode(), 1)

    return {"edit": {name: change}}


def lines_changed(name: str, change: Callable[[list[bytes]], object]) -> dict[str, Any]:
    def over(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        change(lines)
        return b"".join(lines)

    return {"edit": {name: over}}


def zeros(proof: bytes) -> bytes:
    """A proof whose first hash is another."""
    head, path = proof.split(b'["', 1)
    return head + b'["' + b"0" * 64 + path[64:]


def window(index: int, **values: Any) -> dict[str, Any]:
    return {"windows": lambda windows: windows[index].update(values)}


EVENTS, PROOFS, ABOUT, POINT = "events.ndjson", "proofs.ndjson", "bundle.json", "checkpoint.txt"

FORGERIES: dict[str, tuple[str, dict[str, Any]]] = {
    # What arithmetic knows.
    "content": ("the hash of event 4 is not that", edited(EVENTS, '"actor":"ann"', '"actor":"bob"')),
    "value": ("the hash of event 5 is not that", edited(EVENTS, "1.50", "1.5")),
    "time": ("the hash of event 4 is not that", edited(EVENTS, ".000004Z", ".000005Z")),
    "null": ("the hash of event 4 is not that", edited(EVENTS, '"old_value":null', '"old_value":0')),
    "another log": ("event 4 is not in the log|4 is not in", {"root": bytes(32)}),
    "broken chain": ("event 5 is not chained", {"log": log_of(break_at=5)}),
    "another tenant's chain": (
        "event 0 has two hashes",
        {
            "log": log_of(start=chain_start("other")),
            "certificate": {"hash_before": chain_start("other").hex()},
        },
    ),
    "order": ("event 4 is not in order", {"seqs": [5, 4, 6, 8, 9, 11]}),
    "twice": ("event 5 is not in order", {"seqs": [4, 5, 5, 8]}),
    "beyond the checkpoint": ("event 11 is not in order, or beyond", {"size": 9}),
    "proof missing": ("zip", lines_changed(PROOFS, lambda lines: lines.pop())),
    "event missing": ("zip", lines_changed(EVENTS, lambda lines: lines.pop())),
    "proofs swapped": ("4 is not in the log", lines_changed(PROOFS, lambda lines: lines.reverse())),
    "proof of another": ("4 is not in the log", edited(PROOFS, '"seq":4', '"seq":5')),
    "proof altered": (
        "4 is not in the log",
        lines_changed(PROOFS, lambda lines: lines.__setitem__(0, zeros(lines[0]))),
    ),
    "proof too long": ("another length", edited(PROOFS, '"path":["', f'"path":["{"0" * 64}","')),
    "no line's end": ("a line has no end", lines_changed(PROOFS, lambda lines: lines.append(b"{}"))),
    "checkpoint of another log": ("of another log", {"origin": ORIGIN + "2"}),
    "checkpoint with more": ("^$", edited(POINT, "\n\n", "\nmore\n\n")),
    "checkpoint unsigned": ("the checkpoint has no signature", edited(POINT, "\u2014", "")),
    "checkpoint of another key": (
        "the checkpoint is signed with another key",
        {"checkpoint_key": SigningKey.generate()},
    ),
    "checkpoint's size": ("^$", edited(POINT, "\n11\n", "\n12\n")),
    "of another store": ("of another log", {"about": {"store_id": "other"}}),
    "of another tenant": ("of another log", {"about": {"tenant_id": "other"}}),
    "window missing": ("event 8 lies in no window", {"windows": lambda windows: windows.pop(2)}),
    "first window missing": ("event 4 lies in no window", {"windows": lambda windows: windows.pop(1)}),
    "windows in another order": ("windows are not in order", {"windows": lambda windows: windows.reverse()}),
    "windows that overlap": ("windows are not in order", window(2, first_seq=6, hash_before=None)),
    "window too short": (
        "event 6 lies in no window|two hashes",
        window(1, last_seq=5, hash_after=None, segments=[]),
    ),
    "window's hash before": ("event 3 has two hashes", window(1, hash_before="00" * 32)),
    "window's hash after": ("event 9 does not end its window", window(2, hash_after="00" * 32)),
    "segment's hash after": (
        "event 6 has two hashes",
        {"windows": lambda windows: windows[1]["segments"][0].update(hash_after="00" * 32)},
    ),
    "hash before an event": (
        "event 8 is not chained",
        {
            "windows": lambda windows: windows.__setitem__(
                2,
                {
                    **windows[2],
                    "segments": [{"first_seq": 8, "last_seq": 9, "hash_before": "0", "hash_after": None}],
                },
            )
        },
    ),
    "destroyed, and here": ("seq 4 to 6: destroyed or not", window(1, state="expired")),
    "destroyed, and here, certified": (
        "event 4 lies in no window that is left",
        {
            "windows": lambda windows: windows[1].update(state="expired"),
            "certificate": {"last_seq": 6, "hash_after": None},
        },
    ),
    "certified, and not destroyed": ("seq 1 to 3: destroyed or not", window(0, state="dropped")),
    "no certificate": ("seq 1 to 3: destroyed or not", {"certificate": {"last_seq": 2, "hash_after": None}}),
    "certificate's hash": ("event 3 has two hashes", {"certificate": {"hash_after": "00" * 32}}),
    "certificate of another tenant": ("a certificate is of another", {"certificate": {"tenant_id": "other"}}),
    "certificate of another store": ("a certificate is of another", {"certificate": {"store_id": "other"}}),
    "certificate of another number": ("a certificate is of another", {"certificate": {"number": 2}}),
    "count of events": ("holds more or less", {"about": {"events": 7}}),
    "count of windows": ("holds more or less", {"about": {"windows": 3}}),
    "count of certificates": ("holds more or less", {"about": {"certificates": 0}}),
    "another entity": ("4: not asked for", {"about": {"question": {"entity_id": HOSTILE}}}),
    "another seq": ("event 11 is not in order, or beyond", {"about": {"question": {"seq_to": 10}}}),
    "an earlier seq": ("event 4 is not in order, or beyond", {"about": {"question": {"seq_from": 5}}}),
    # What could be read in two ways.
    "a member twice": ("canonical", edited(ABOUT, '"events":6', '"events":6,"events":6')),
    "a blank": ("canonical", edited(ABOUT, '"events":6', '"events": 6')),
    "a float": ("canonical", edited(ABOUT, '"events":6', '"events":6.0')),
    "an exponent": ("canonical", edited(ABOUT, '"events":6', '"events":6e0')),
    "a needless escape": ("canonical", edited(ABOUT, '"lea"', '"l\\u0065a"')),
    "not a number": ("Out of range float", edited(ABOUT, '"events":6', '"events":NaN')),
    "no object": ("Expecting", edited(ABOUT, "{", "[{")),
    "an event with more": ("has no such form", edited(EVENTS, '"}\n', '","more":1}\n')),
    "an event with a blank": ("is not where it has to be", edited(EVENTS, ',"event_id"', ', "event_id"')),
    "an event with a member twice": (
        "is not where it has to be",
        edited(EVENTS, '"action":"changed"', '"action":"changed","action":"changed"'),
    ),
    "seq as text": ("seq is not in its canonical form", edited(EVENTS, '"seq":4', '"seq":"4"')),
    "seq with zeros": ("event_id is not where it has to be", edited(EVENTS, '"seq":4', '"seq":04')),
    "seq with an exponent": ("invalid literal", edited(EVENTS, '"seq":4', '"seq":4e0')),
    "a text escaped": (
        "actor is not in its canonical",
        edited(EVENTS, '"actor":"ann"', '"actor":"a\\u006en"'),
    ),
    "a text that is none": ("has no attribute", edited(EVENTS, '"actor":"ann"', '"actor":{"a":"ann"}')),
    "a lone surrogate": (
        "actor is not in its canonical form",
        edited(EVENTS, '"actor":"ann"', '"actor":"\\ud800"'),
    ),
    "an id in capitals": (
        "has no such form|no such",
        edited(EVENTS, '0000-00000000000b"', '0000-00000000000B"'),
    ),
    "a time with an offset": ("is no time", edited(EVENTS, '.000004Z"', '.000004+00:00"')),
    "a time as a date": ("is no time", edited(EVENTS, "2024-03-01T00:00:00.000004Z", "2024-03-01")),
    "a hash in capitals": (
        "is not that of its content|chained",
        lines_changed(
            EVENTS, lambda lines: lines.__setitem__(0, lines[0].replace(b'"hash":"', b'"hash":" '))
        ),
    ),
    "a value that is no number": ("invalid literal", edited(EVENTS, '"new_value":1,', '"new_value":NaN,')),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_by_the_keys_holder(forged: Forged, name: str) -> None:
    why, change = FORGERIES[name]
    refused(replace(forged, **change).octets(), why)


MISPLACED = "members are missing or misplaced"
MEMBERS: dict[str, tuple[str, Callable[[list[str]], object]]] = {
    "one missing": (MISPLACED, lambda names: names.remove("README.html")),
    "one too many": (MISPLACED, lambda names: names.append("more.txt")),
    "in another place": (MISPLACED, lambda names: names.insert(0, names.pop())),
    "twice": ("'events.ndjson' is no plain member", lambda names: names.insert(0, names[0])),
    "outside": ("payload", lambda names: names.insert(4, "certificates/../../x.json")),
    "certificate that is none": ("payload", lambda names: names.insert(4, "certificates/00000002.json")),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_other_members(forged: Forged, name: str) -> None:
    why, forged.names = MEMBERS[name]
    refused(forged.octets(), why)


def rebuilt(forged: Forged, local: bytes = b"", **fields: Any) -> bytes:
    """The bundle with other fields in each header of a member (by their place there), and signed."""
    out, central = io.BytesIO(), b""
    out.write(fields.get("before", b""))
    for name, content in forged.contents().items():
        packed = fields.get("pack", bytes)(content)
        header = [20, 0, 0, 0, 33, zlib.crc32(content), len(packed), len(content), len(name), len(local)]
        for at, value in fields.get("header", {}).items():
            header[at] = value
        at = out.tell()
        head = struct.pack("<5H3I2H", *header)
        out.write(b"PK\3\4" + head + name.encode() + local + packed + fields.get("between", b""))
        head = struct.pack("<5H3I2H", *header[:9], 0)
        central += (
            b"PK\1\2\x14\0" + head + fields.get("central", bytes(10)) + struct.pack("<I", at) + name.encode()
        )
    at, size = out.tell(), len(forged.sign(bundle_text("0" * 64)))
    count = fields.get("count", 8)
    out.write(central + fields.get("behind", b""))
    out.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(central), at, size))
    return forged.sign_again(out.getvalue())


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


PLAIN, END = "'events.ndjson' is no plain member", "the zip does not end as its members ask for"
ZIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "compressed": (PLAIN, {"pack": deflated, "header": {2: 8}}),
    "encrypted": (PLAIN, {"header": {1: 1}}),
    "size behind": (PLAIN, {"header": {1: 8}}),
    "another version": (PLAIN, {"header": {0: 45}}),
    "another date": (PLAIN, {"header": {4: 34}}),
    "an extra field": (PLAIN, {"local": b"\1\0\0\0"}),
    "sizes that differ": (PLAIN, {"header": {6: 3}}),
    "absurd sizes": ("format requires", {"header": {6: 2**32 - 1, 7: 2**32 - 1}}),
    "an absurd name": ("can't decode", {"header": {8: 2**16 - 1}}),
    "something before": (END, {"before": b"#!/bin/sh\n"}),
    "something between": (END, {"between": b"PK"}),
    "something behind": (END, {"behind": b"PK\6\7" + bytes(16)}),
    "another count": (END, {"count": 7}),
    "attributes": (END, {"central": bytes(6) + b"\1\0\0\0"}),
}


def test_the_zip_is_rebuilt_rightly(forged: Forged) -> None:
    assert rebuilt(forged) == forged.octets()


@pytest.mark.parametrize("name", ZIPS)
def test_another_form_of_zip(forged: Forged, name: str) -> None:
    why, fields = ZIPS[name]
    refused(rebuilt(forged, **fields), why)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", END),
        (b"PK", END),
        (b"PK\5\6" + bytes(18), MISPLACED),
        (b"PK\3\4", "unpack_from"),
        (b"PK\3\4" + b"\xff" * 60, "can't decode"),
        (b"\0" * 100, END),
        (b"\x89PNG" * 50, END),
    ],
    ids=["empty", "two bytes", "empty zip", "cut off", "full", "zeros", "another file"],
)
def test_what_is_no_bundle(octets: bytes, why: str) -> None:
    refused(octets, why)


def test_what_is_kept_in_memory_is_bounded(forged: Forged, monkeypatch: pytest.MonkeyPatch) -> None:
    octets = forged.octets()
    monkeypatch.setattr(verifier, "HELD_MAX", 2_000)
    refused(octets, "is no plain member")
    monkeypatch.undo()
    monkeypatch.setattr(verifier, "LINE_MAX", 500)
    refused(octets, "a line has no end, or is too long")


def test_what_a_zip_cannot_count_is_not_written(forged: Forged, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("BUNDLE_BYTES_MAX", 4_000), ("MEMBERS_MAX", 7)):
        with monkeypatch.context() as patched:
            patched.setattr(bundle_zip, name, most)
            with pytest.raises(InputError, match="a bundle cannot hold"):
                forged.octets()


def test_nothing_but_the_texts_of_the_format_is_read(forged: Forged) -> None:
    """Each field of an event is hashed, and has its place in a line."""
    assert [*verifier.FIELDS[4:-2]] == [*TEXT_FIELDS]
    assert set(verifier.VALUES) == set(VALUE_FIELDS)
