"""Ed25519 keys (RFC 8032): the store's own, which signs, and public ones, which verify.

The private key lies in a file that its owner alone may read: PEM with PKCS#8 inside (RFC 5958, RFC 8410), as
`openssl genpkey -algorithm ed25519` writes it. It never appears in a repr, an error or a log.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from eventstore.errors import IntegrityError, SetupError
from eventstore.governance.envelope import CERTIFICATE_TYPE, Envelope, Signature, decode, encode, pae
from eventstore.model.note import Note, NoteSignature, key_hash

__all__ = ["MissingKey", "SigningKey", "VerifyKey", "verify", "verify_note"]

_FILE_BYTES_MAX = 16_384  # a key file has about 120


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key: `raw` is its 32 bytes (RFC 8032, 5.1.5)."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the raw public key."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @classmethod
    def from_raw(cls, raw: bytes) -> VerifyKey:
        """Raises:
        SetupError: not 32 bytes.
        """
        if len(raw) != 32:
            raise SetupError(f"an Ed25519 public key has 32 bytes, not {len(raw)}", hint=_PUBLIC_HINT)
        return cls(bytes(raw))

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyKey:
        """Read a SubjectPublicKeyInfo (RFC 8410) in PEM, as `to_pem` and `openssl pkey -pubout` write it.

        Raises:
            SetupError: not that, or a key of another algorithm. What was given is not repeated.
        """
        key = _public_key(pem)
        del pem  # somebody may have given a private one, and a traceback may show local variables
        if key is None:
            raise SetupError("this is no Ed25519 public key in PEM", hint=_PUBLIC_HINT)
        return cls(key.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, for OpenSSL and others."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def fits(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's over the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key, and the envelopes it signs."""

    __slots__ = ("_private", "verify_key")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verify_key = VerifyKey(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not copied or pickled")

    @property
    def key_id(self) -> str:
        """The id of its public key."""
        return self.verify_key.key_id

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key, which is nowhere else yet."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key file.

        Raises:
            SetupError: there is none, it may be read by others than its owner (where there are POSIX modes),
                or it holds no unencrypted Ed25519 key. The file is left as it is.
        """
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not make us wait
        except OSError as e:
            raise SetupError(f"cannot read the signing key {path}: {e.strerror}", hint=_KEEP_HINT) from e
        try:
            # Of the file that was opened, not of whatever has that name a moment later.
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise SetupError(f"the signing key {path} is not a file", hint=_KEEP_HINT)
            if os.name == "posix" and mode & 0o077:
                raise SetupError(
                    f"others than its owner may use the signing key {path} (mode {stat.S_IMODE(mode):04o})",
                    hint=f"chmod 600 {path}, and think about who may have read it",
                )
            private = _private_key(handle)
        finally:
            os.close(handle)
        if private is None:
            raise SetupError(f"{path} holds no unencrypted Ed25519 private key in PEM", hint=_KEEP_HINT)
        return cls(private)

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the key file; where there is none, make one first.

        When several processes find none at once, one of them makes it and the others read that. A key that
        was made is durable when this returns. A file that is there is never replaced, whatever it holds.

        Raises:
            SetupError: as `load`, or the file cannot be made.
        """
        if not os.path.lexists(path):
            try:
                _make_folder(path.parent)
                _publish(cls.generate(), path)
            except OSError as e:
                raise SetupError(f"cannot make the signing key {path}: {e.strerror}", hint=_WRITE_HINT) from e
        return cls.load(path)

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        """An envelope (DSSE, JSON) with this payload and one signature. The same bytes every time."""
        signature = Signature(self.key_id, self._private.sign(pae(payload_type, payload)))
        return encode(Envelope(payload_type, payload, (signature,)))

    def sign_note(self, name: str, text: str) -> Note:
        """A note with one signature, by this key under that name. The same bytes every time.

        What envelopes have signed begins with `DSSEv1`: a text that does is refused, so that neither can be
        taken for the other.
        """
        if text.startswith("DSSE") or not text.endswith("\n"):
            raise AssertionError("no text of a note")
        short = key_hash(name, self.verify_key.raw)
        return Note(text, (NoteSignature(name, short, self._private.sign(text.encode())),))


class MissingKey(SigningKey):
    """Stands for the key of a deployment that has one, on a host that does not have it. Whatever needs a key
    is refused, and all else works."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"MissingKey({self._path})"

    @property
    def verify_key(self) -> VerifyKey:  # type: ignore[override]
        """
        Raises:
            SetupError: always.
        """
        raise SetupError(
            f"this deployment signs with a key that is not on this host: there is no {self._path}",
            hint="copy the file from the host that has it, or run eventstore certificates new-key",
        )

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        raise AssertionError(self.verify_key)

    def sign_note(self, name: str, text: str) -> Note:
        raise AssertionError(self.verify_key)


def verify(envelope: bytes, keys: Mapping[str, VerifyKey], *, payload_type: str = CERTIFICATE_TYPE) -> bytes:
    """The payload of an envelope, once every one of its signatures was found right.

    `keys` are the public keys that are trusted, by their `key_id`: also those that no longer sign.

    Raises:
        IntegrityError: not a canonical envelope, a payload of another type, signed with a key that is not
            among `keys` (the message names it), or a signature that does not fit.
    """
    found = decode(envelope)
    if found.payload_type != payload_type:
        raise IntegrityError(f"envelope: it holds {found.payload_type!r}, not {payload_type!r}")
    message = pae(found.payload_type, found.payload)
    for signature in found.signatures:
        key = keys.get(signature.key_id)
        if key is None:
            raise IntegrityError(
                f"envelope: signed with the key {signature.key_id!r}, which is not among the known ones"
                f" ({', '.join(sorted(keys)) or 'none'})",
                hint="if that key is yours, add its public key to those that are trusted",
            )
        if not key.fits(signature.sig, message):
            raise IntegrityError(
                f"envelope: the signature of key {signature.key_id!r} does not fit its payload",
                hint="it was altered, or not signed with that key: compare it with another copy",
            )
    return found.payload


def verify_note(note: Note, name: str, keys: Iterable[VerifyKey]) -> str:
    """The text of a note, once a signature of that name was found right. Signatures of others, of witnesses
    for instance, are not looked at.

    Raises:
        IntegrityError: none of that name is by one of these keys, or one does not fit.
    """
    known = {key_hash(name, key.raw): key for key in keys}
    ours = [one for one in note.signatures if one.name == name and one.key_hash in known]
    if not ours:
        raise IntegrityError(
            f"the note is not signed by a known key of {name!r}",
            hint="if the key that signed it is yours, add its public key to those that are trusted",
        )
    for one in ours:
        if not known[one.key_hash].fits(one.signature, note.text.encode()):
            raise IntegrityError(
                f"the signature of {name!r} does not fit the note",
                hint="it was altered: compare it with another copy",
            )
    return note.text


_KEEP_HINT = "restore it from a backup; with a new key, keep the old public key to verify what it signed"
_WRITE_HINT = "check that the folder has room and may be written by this user"
_PUBLIC_HINT = "openssl pkey -in <private key file> -pubout writes one"


def _publish(key: SigningKey, path: Path) -> None:
    """Write the key beside its place and link it there, whole and at once; a file that is there stays."""
    handle, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL, mode 0600
    try:
        with open(handle, "wb") as file:
            file.write(key._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        # Dying here leaves a staged key that nothing reads and that never signed anything.
        with suppress(FileExistsError):  # another process was first: its key is the one
            os.link(staged, path)
    finally:
        os.unlink(staged)
    # Dying before this line may lose the name in a power cut; nothing was signed with the key yet.
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# These two hold a key's bytes, so they raise nothing: a traceback may be shown with its local variables.


def _private_key(handle: int) -> Ed25519PrivateKey | None:
    try:
        key = load_pem_private_key(os.read(handle, _FILE_BYTES_MAX), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError):
        return None
    return key if isinstance(key, Ed25519PrivateKey) else None


def _public_key(pem: bytes) -> Ed25519PublicKey | None:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None
