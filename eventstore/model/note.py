"""Signed notes and the checkpoints of a log in them.

The sources are https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint: what witnesses and monitors
of transparency logs read. Signing itself is `governance.signing`'s.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256

from eventstore.errors import InputError

__all__ = [
    "Checkpoint",
    "Note",
    "NoteSignature",
    "key_hash",
    "origin_of",
    "parse_note",
    "parse_verifier_key",
    "verifier_key",
]

_ED25519 = b"\x01"
_KEY_HASH_BYTES = 4
_KEY_BYTES = 32
_ROOT_BYTES = 32
_SIGNATURES_MAX = 64
_DASH = "\N{EM DASH} "


def key_hash(name: str, public: bytes) -> bytes:
    """The four bytes by which a signature names its key: of the key's name and its 32 bytes."""
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_HASH_BYTES]


def verifier_key(name: str, public: bytes) -> str:
    """A public key as those who verify notes keep it: `name+hash+key`."""
    return f"{name}+{key_hash(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


def parse_verifier_key(text: str) -> tuple[str, bytes]:
    """The name and the 32 bytes of a verifier key.

    Raises:
        InputError: it is none, or not of Ed25519.
    """
    name, _, rest = text.strip().partition("+")
    short, _, encoded = rest.partition("+")
    octets = _decoded(encoded)
    if not name or octets is None or octets[:1] != _ED25519 or len(octets) != _KEY_BYTES + 1:
        raise InputError(f"{text.strip()!r} is no verifier key of Ed25519", hint="it reads name+hash+key")
    if short != key_hash(name, octets[1:]).hex():
        raise InputError(f"the verifier key of {name!r} is not whole: its hash is another's")
    return name, octets[1:]


def _decoded(encoded: str) -> bytes | None:
    """Base64 in its canonical form; None: it is not. (Elsewise a character of a note could be changed without
    a change of what it says.)"""
    try:
        octets = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return octets if base64.b64encode(octets).decode() == encoded else None


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: the key's name, its hash, and the signature of the note's text."""

    name: str
    key_hash: bytes
    signature: bytes

    def line(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.key_hash + self.signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text that ends in a newline, and who signed it."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line() for signature in self.signatures)


def parse_note(document: str) -> Note:
    """A note from its document.

    Raises:
        InputError: it is none.
    """
    text, blank, lines = document.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or any(ord(c) < 32 and c != "\n" for c in document):
        raise InputError("this is no signed note", hint="a text, an empty line, then lines of signatures")
    signatures = []
    for line in lines[:-1].split("\n"):
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        octets = _decoded(encoded)
        if octets is None:
            raise InputError(f"a line of signatures is not base64: {line!r}")
        if not line.startswith(_DASH) or not name or "+" in name or len(octets) <= _KEY_HASH_BYTES:
            raise InputError(f"{line!r} is no line of a signature")
        signatures.append(NoteSignature(name, octets[:_KEY_HASH_BYTES], octets[_KEY_HASH_BYTES:]))
    if len(signatures) > _SIGNATURES_MAX:
        raise InputError(f"a note of {len(signatures)} signatures is not read")
    return Note(text + "\n", tuple(signatures))


def origin_of(store_id: str, tenant_id: str) -> str:
    """What a tenant's log is called in its checkpoints; its key has that name, too."""
    return f"eventstore/{store_id}/{tenant_id}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of one log: its name for the world, how many events it has, and the root of its tree."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """What is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """A checkpoint from a note's text.

        Raises:
            InputError: it is none.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise InputError("this is no checkpoint", hint="origin, size and root, a line each")
        origin, size, encoded, *extensions = lines[:-1]
        if not size.isascii() or not size.isdigit() or (size[0] == "0" and size != "0") or len(size) > 19:
            raise InputError(f"a checkpoint's size is a decimal number, not {size!r}")
        root = _decoded(encoded)
        if root is None:
            raise InputError(f"a checkpoint's root is not base64: {encoded!r}")
        if len(root) != _ROOT_BYTES:
            raise InputError(f"a checkpoint's root has {_ROOT_BYTES} bytes, not {len(root)}")
        return cls(origin, int(size), root, tuple(extensions))
