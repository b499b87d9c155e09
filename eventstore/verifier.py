"""Check an evidence bundle without the store that made it: python verify_bundle.py FILE [--key KEY]...

Needs Python 3.11 and the package `cryptography`, and nothing of the store, which has this one file twice, as
eventstore/verifier.py and docs/verify_bundle.py. Exit status: 0 all holds, 1 refused, 2 it cannot be read.
"""
import argparse
import base64
import hashlib
import json
import struct
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["REFUSED", "main", "read_keys", "verify"]

STREAMED = ["events.ndjson", "proofs.ndjson", "README.html"]  # read line by line, or not at all
LAST = ["checkpoint.txt", "key.pub", "bundle.json", "README.html"]
VALUES = ["old_value", "new_value", "metadata"]  # JSON, which is hashed as it is written
FIELDS = ["seq", "event_id", "recorded_at", "occurred_at", "entity_type", "entity_id", "action", "field"]
FIELDS += ["old_value", "new_value", "actor", "source", "workspace_id", "metadata", "hash", "prev_hash"]
LINE_MAX, HELD_MAX = 2**26, 2**24  # bytes of a line, and of all members together that are kept in memory
REFUSED = (AttributeError, InvalidSignature, LookupError, RecursionError, TypeError, ValueError, struct.error)
Key = tuple[str, bytes, bytes]  # its name, four bytes that go with the name, and the 32 of the key itself
dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
read_value = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=int).raw_decode

def need(held: object, otherwise: str) -> None:
    if not held:
        raise ValueError(otherwise)

def read_json(octets: bytes) -> Any:  # as it is written in one way only: no blank, no float, no member twice
    value = json.loads(octets.decode(), parse_float=lambda text: None)
    need(dumps(value).encode() == octets, "JSON is not in its canonical form")
    return value

def unbase64(text: str) -> bytes:
    octets = base64.b64decode(text, validate=True)
    need(base64.b64encode(octets).decode() == text, "base64 is not in its canonical form")
    return octets

def read_keys(text: str) -> list[Key]:
    """The public keys in a text, one a line, as https://c2sp.org/signed-note writes them."""
    keys = []
    for name, digest, encoded in (line.split("+", 2) for line in text.split()):
        octets = unbase64(encoded)
        keys.append((name, hashlib.sha256(f"{name}\n".encode() + octets).digest()[:4], octets[1:]))
        need(octets[:1] == b"\1" and keys[-1][1].hex() == digest, f"there is no public key behind {name!r}")
    return keys

def signed(note: bytes, keys: list[Key], what: str) -> tuple[str, Key]:
    """The text of a note that has one signature, and which of the keys made that."""
    text, _, line = note.decode().rpartition("\n\n")
    dash, name, encoded = line.split(" ")
    need(dash == "\N{EM DASH}" and encoded.endswith("\n"), f"{what} has no signature")
    octets = unbase64(encoded[:-1])
    key = next((key for key in keys if key[:2] == (name, octets[:4])), ("", b"", b""))
    need(key[2], f"{what} is signed with another key: {name!r}, {octets[:4].hex()}")
    Ed25519PublicKey.from_public_bytes(key[2]).verify(octets[4:], f"{text}\n".encode())
    return f"{text}\n", key

def scan(file: BinaryIO) -> tuple[dict[str, tuple[int, int]], dict[str, bytes], str, bytes]:
    """Where members are, what those hold that are not streamed, the SHA-256 up to the comment, and that."""
    places, contents, digest, central, at, held = {}, {}, hashlib.sha256(), bytearray(), 0, 0
    while (head := file.read(30)).startswith(b"PK\3\4"):
        crc, size, length = struct.unpack_from("<I4xIH", head, 14)
        plain = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, crc, size, size, length, 0)
        digest.update(head + (octets := file.read(length)))
        name, start, content = octets.decode("ascii"), file.tell(), b""
        held += length + (0 if name in STREAMED else size)
        need(head[4:] == plain and name not in places and held <= HELD_MAX, f"{name!r} is no plain member")
        for done in range(0, size, 2**20):
            digest.update(chunk := file.read(min(2**20, size - done)))
            content += b"" if name in STREAMED else chunk
        central += b"PK\1\2\x14\0" + plain + struct.pack("<10xI", at) + octets
        places[name], contents[name], at = (start, size), content, start + size
    end = central + struct.pack("<4s4H2I", b"PK\5\6", 0, 0, len(places), len(places), len(central), at)
    digest.update(rest := head + file.read(max(len(end) + 2 - len(head), 0)))
    comment = file.read(2**16)
    need(rest == end + len(comment).to_bytes(3, "little")[:2], "the zip does not end as its members ask for")
    return places, contents, digest.hexdigest(), comment

def lines(file: BinaryIO, at: int, size: int) -> Any:
    end = at + size
    while at < end:
        file.seek(at)
        line = file.readline(min(end - at, LINE_MAX))
        need(line.endswith(b"\n"), "a line has no end, or is too long")
        at += len(line)
        yield line[:-1]

def parse(line: str) -> tuple[dict[str, Any], bytes]:
    """An event and its canonical bytes. Members have their places, and texts are written in one way only."""
    event, end = dict[str, Any](), 0
    for name in FIELDS:
        label = f'{"," if event else "{"}"{name}":'
        need(line.startswith(label, end), f"an event's {name} is not where it has to be")
        value, end = read_value(line, start := end + len(label))
        text = line[start:end]
        event[name] = text if name in VALUES and value is not None else int(value) if name == "seq" else value
        need(name in VALUES or dumps(event[name]) == text, f"an event's {name} is not in its canonical form")
    need(line[end:] == "}" and str(UUID(event["event_id"])) == event["event_id"], "an event has no such form")
    parts = [struct.pack("<2q", 1, event["seq"]), UUID(event["event_id"]).bytes]
    for text in (event["recorded_at"], event["occurred_at"]):
        moment = datetime.fromisoformat(text).replace(tzinfo=None)
        need(moment.isoformat(timespec="microseconds") + "Z" == text, f"{text!r} is no time")
        parts.append(struct.pack("<q", (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)))
    for octets in (None if event[name] is None else event[name].encode() for name in FIELDS[4:-2]):
        parts.append(b"\xff" * 8 if octets is None else struct.pack("<q", len(octets)) + octets)
    return event, b"".join(parts)

def root_of(at: int, last: int, node: bytes, path: list[str]) -> bytes:
    """Where a proof (RFC 6962, 2.1.1) leads from leaf number `at` of a tree, whose last is number `last`."""
    inner = (at ^ last).bit_length()  # from this height on, there is nothing on the right
    need(len(path) == inner + (at >> inner).bit_count(), f"the proof of event {at + 1} has another length")
    for height, beside in enumerate(map(bytes.fromhex, path)):
        left = height >= inner or at >> height & 1
        node = hashlib.sha256(b"\1" + (beside + node if left else node + beside)).digest()
    return node

def verify(file: BinaryIO, named: list[Key]) -> list[str]:
    """What is proved of a bundle, and what is not, in words. Raises one of REFUSED if it does not hold."""
    places, contents, digest, comment = scan(file)
    numbered = [name for name in places if name.startswith("certificates/")]
    need([*places] == [*STREAMED[:2], "windows.ndjson", *numbered, *LAST], "members are missing or misplaced")
    keys = named or read_keys(contents["key.pub"].decode())
    text, key = signed(comment, keys, "the file")
    need(text == f"eventstore bundle v1\nsha256 {digest}\n", "the file is not the one that was signed")
    about = read_json(contents["bundle.json"])
    store, tenant, asked, end, count = about["store_id"], about["tenant_id"], about["question"], 0, 0
    text, _ = signed(contents["checkpoint.txt"], keys, "the checkpoint")
    size, encoded = int(text.split("\n")[1]), text.split("\n")[2]
    need(text == f"eventstore/{store}/{tenant}\n{size}\n{encoded}\n", "the checkpoint is of another log")
    certificates = [read_json(unbase64(read_json(contents[name])["payload"])) for name in numbered]
    said = [(c["store_id"], c["tenant_id"], f"certificates/{c['number']:08}.json") for c in certificates]
    need(said == [(store, tenant, name) for name in numbered], "a certificate is of another log, or number")
    root, windows = unbase64(encoded), [read_json(line) for line in contents["windows.ndjson"].splitlines()]
    chained = struct.pack("<q19sq", 19, b"eventstore/chain/v1", len(tenant.encode())) + tenant.encode()
    told = {0: hashlib.sha256(chained).hexdigest()}  # hashes that windows and certificates tell, by seq
    for one in (*certificates, *windows, *(segment for window in windows for segment in window["segments"])):
        for seq, value in ((one["first_seq"] - 1, one["hash_before"]), (one["last_seq"], one["hash_after"])):
            need(value is None or told.setdefault(seq, value) == value, f"event {seq} has two hashes")
    low, high = max(asked.get("seq_from", 1), 1), min(asked.get("seq_to", size), size)
    for window in windows:
        first, before, end = window["first_seq"], end, window["last_seq"] or window["first_seq"]
        need(before < first <= end, "windows are not in order")
        stands = any(c["first_seq"] <= first and end <= c["last_seq"] for c in certificates)
        need(stands == (window["state"] == "expired"), f"seq {first} to {end}: destroyed or not?")
    at, left = low - 1, windows[::-1]
    for line, proof in zip(*(lines(file, *places[name]) for name in STREAMED[:2]), strict=True):
        event, octets = parse(line.decode())
        seq, link = event["seq"], hashlib.sha256(bytes.fromhex(event["prev_hash"]) + octets)
        need(at < seq <= high, f"event {seq} is not in order, or beyond what was asked for or signed")
        need(link.hexdigest() == event["hash"], f"the hash of event {seq} is not that of its content")
        need(told.get(seq - 1, event["prev_hash"]) == event["prev_hash"], f"event {seq} is not chained")
        told.pop(at, None)
        need(told.setdefault(seq, event["hash"]) == event["hash"], f"event {seq} does not end its window")
        while left[1:] and left[-2]["first_seq"] <= seq:
            left.pop()
        window = left[-1]["first_seq"], left[-1]["last_seq"] or seq, left[-1]["state"] != "expired"
        need(window[0] <= seq <= window[1] and window[2], f"event {seq} lies in no window that is left")
        need(all(event.get(name, value) == value for name, value in asked.items()), f"{seq}: not asked for")
        (number, path), leaf = read_json(proof).values(), hashlib.sha256(b"\0" + link.digest()).digest()
        need(number == seq and root_of(seq - 1, size - 1, leaf, path) == root, f"{seq} is not in the log")
        at, count = seq, count + 1
    counted = about["events"], about["windows"], about["certificates"]
    need(counted == (count, len(windows), len(numbered)), "the file holds more or less than it says")
    unknown = "Not proved: that no other event meets the question. That is the store's word."
    where = "" if named else " (The file brought this key with it: anybody could have made another.)"
    return [
        f"{count} events of {tenant!r}; {about['asked_by']!r} asked at {about['asked_at']!r} for {asked!r}.",
        "Proved: no event was changed since it was recorded, and nothing in the file since it was signed.",
        f"Proved: each event is in the log of which a checkpoint is signed: size {size}, root {encoded}",
        f"Proved: no event from seq {low} to {high} is missing." if count == high - low + 1 else unknown,
        f"Signed by {key[0]!r}. Compare the key's SHA-256: {hashlib.sha256(key[2]).hexdigest()}{where}",
    ]

def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Check an evidence bundle, offline.")
    parser.add_argument("file")
    parser.add_argument("--key", action="append", default=[], help="name+hash+key, or a file of such lines")
    given = parser.parse_args(arguments)
    try:
        texts = [Path(key).read_text() if Path(key).is_file() else key for key in given.key]
        with open(given.file, "rb") as file:
            words = verify(file, [key for text in texts for key in read_keys(text)])
    except OSError as e:
        parser.error(str(e))
    except REFUSED as e:
        parser.exit(1, f"REFUSED: {e or 'a signature does not fit'}\n")
    sys.stdout.write("\n".join(["VERIFIED", *words, ""]))

if __name__ == "__main__":
    main()
