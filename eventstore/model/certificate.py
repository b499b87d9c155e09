"""Certificates: what is left of history that was destroyed, one chain of them for each tenant.

A certificate says which part of a log was destroyed, by whom, why and under which policy, and where the
log ended at that time. Its payload (canonical JSON) is what gets signed; each holds the SHA-256 of the one
before. `docs/reference/certificate-format.md` describes the bytes for someone who writes a verifier.

Whether certificates fit together is for `model.certificate_chain`, signatures are for `governance.signing`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from eventstore.clock import parse_time_us, to_iso
from eventstore.errors import InputError, IntegrityError
from eventstore.model.subtrees import Subtree
from eventstore.model.tenant import TENANT_ID_PATTERN

__all__ = [
    "CERTIFICATE_VERSION",
    "Certificate",
    "CertificateKind",
    "DestroyedSegment",
    "certificate_start",
    "from_payload",
    "payload_sha256",
    "to_payload",
]

CERTIFICATE_VERSION = 1
_START_TAG = b"eventstore/certificate/v1"


class CertificateKind(StrEnum):
    """expired: one window was destroyed under the policy. offboarded: the whole log was destroyed."""

    EXPIRED = "expired"
    OFFBOARDED = "offboarded"


@dataclass(frozen=True, slots=True)
class DestroyedSegment:
    """One object that was deleted: its key, and the name of the target in which it lay."""

    key: str
    target: str
    part: int
    first_seq: int
    last_seq: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Times are microseconds since 1970 UTC, hashes 32 bytes, seq ranges inclusive at both ends.

    An expired window has its window and its seq range. An offboarding has no window (None) and always the
    whole log, 1 to `head_seq`, also when windows of it had expired before; of an empty log that is 1 to 0.
    `hash_before` is the hash of the event before `first_seq` (the start of the chain for seq 1),
    `hash_after` that of `last_seq`: the chain goes on from there, across what is gone.
    `subtrees` are the full subtrees of the log's Merkle tree that make the seq range: with them what is left
    of the log can still be proven (`model.subtrees`).
    `policy_version` 0 is the built-in default; `policy` is that version's document, as text.
    `head_seq`, `head_hash` and `head_recorded_at_us` are the tenant's head when this was issued. Whoever
    cuts off the end of the log later has to explain them.
    `issued_at_us` is the time at which it was decided, that of the run: a simulated one may lie in the past.
    `signed_at_us` is the real time of signing, by the database's clock.
    `number` counts the tenant's certificates from 1; `previous_sha256` is the SHA-256 of the payload of
    the one before, or `certificate_start` for the first.
    """

    store_id: str
    tenant_id: str
    number: int
    previous_sha256: bytes
    kind: CertificateKind
    window_from_us: int | None
    window_to_us: int | None
    first_seq: int
    last_seq: int
    event_count: int
    hash_before: bytes
    hash_after: bytes
    segments: tuple[DestroyedSegment, ...]
    subtrees: tuple[Subtree, ...]
    policy_version: int
    policy: str
    head_seq: int
    head_hash: bytes
    head_recorded_at_us: int
    decided_by: str
    reason: str
    issued_at_us: int
    signed_at_us: int
    format_version: int = CERTIFICATE_VERSION

    def __str__(self) -> str:
        return f"certificate {self.number} of {to_iso(self.issued_at_us)}"


# --- payload ----------------------------------------------------------------------------------------

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_From1 = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
_Tenant = Annotated[str, msgspec.Meta(pattern=rf"\A{TENANT_ID_PATTERN}\Z")]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Words = Annotated[str, msgspec.Meta(min_length=1, max_length=65536)]


class _SegmentPayload(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    key: _Name
    target: _Name
    part: _Count
    first_seq: _From1
    last_seq: _From1
    size_bytes: _Count
    sha256: _Digest


class _SubtreePayload(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[int, msgspec.Meta(ge=0, le=62)]
    index: _Count
    hash: _Digest


class _Payload(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The members of the payload: those of `Certificate`, times without `_us` and as text."""

    format_version: int
    store_id: _Uuid
    tenant_id: _Tenant
    number: _From1
    previous_sha256: _Digest
    kind: CertificateKind
    window_from: str | None
    window_to: str | None
    first_seq: _From1
    last_seq: _Count
    event_count: _Count
    hash_before: _Digest
    hash_after: _Digest
    segments: list[_SegmentPayload]
    subtrees: list[_SubtreePayload]
    policy_version: _Count
    policy: _Words
    head_seq: _Count
    head_hash: _Digest
    head_recorded_at: str
    decided_by: _Name
    reason: _Words
    issued_at: str
    signed_at: str


class _VersionOnly(msgspec.Struct):
    format_version: int


_read_version = msgspec.json.Decoder(_VersionOnly).decode
_read = msgspec.json.Decoder(_Payload).decode


def to_payload(certificate: Certificate) -> bytes:
    """The bytes that are signed: JSON as RFC 8785 writes it (sorted members, no white space, UTF-8).

    Hashes are 64 lower-case hex digits, times RFC 3339 in UTC with microseconds.

    Raises:
        InputError: a value that a certificate cannot hold, so that `from_payload` would refuse it.
    """
    try:
        payload = _encode(certificate)
        from_payload(payload)
    except (IntegrityError, ValueError, OverflowError, TypeError) as e:
        raise InputError(f"no certificate can say this: {e}") from e
    return payload


def from_payload(payload: bytes) -> Certificate:
    """Read a payload; exactly the bytes that `to_payload` would write for the result, and no others.

    Whether what it says makes sense is another question: `model.certificate_chain`.

    Raises:
        IntegrityError: not JSON, of another format version, a member too many, missing or malformed
            (the message names it), or not in canonical form.
    """
    try:
        version = _read_version(payload).format_version
        if version != CERTIFICATE_VERSION:
            raise IntegrityError(
                f"certificate: format_version is {version}, and {CERTIFICATE_VERSION} is the one known here",
                hint="read it with the version of the store that wrote it",
            )
        found = _read(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise IntegrityError(f"certificate: {e}", hint="compare it with another copy") from e
    values = _inward(found, Certificate)
    values["segments"] = tuple(DestroyedSegment(**_inward(s, DestroyedSegment)) for s in found.segments)
    values["subtrees"] = tuple(Subtree(**_inward(s, Subtree)) for s in found.subtrees)
    certificate = Certificate(**values)
    if _encode(certificate) != payload:
        raise IntegrityError("certificate: not in canonical form", hint="compare it with another copy")
    return certificate


def payload_sha256(payload: bytes) -> bytes:
    """What the next certificate holds as `previous_sha256`."""
    return hashlib.sha256(payload).digest()


def certificate_start(store_id: str, tenant_id: str) -> bytes:
    """`previous_sha256` of a tenant's first certificate: SHA-256 of a domain tag, store and tenant, each
    after its length in 8 bytes little-endian."""
    parts = (_START_TAG, store_id.encode(), tenant_id.encode())
    return payload_sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts))


def _encode(certificate: Certificate) -> bytes:
    """What `to_payload` writes, unchecked."""
    members = _outward(certificate)
    members["segments"] = [_outward(segment) for segment in certificate.segments]
    members["subtrees"] = [_outward(subtree) for subtree in certificate.subtrees]
    return msgspec.json.encode(members, order="sorted")


def _outward(record: Certificate | DestroyedSegment | Subtree) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name.endswith("_us"):
            value = None if value is None else to_iso(value)
        members[field.name.removesuffix("_us")] = value.hex() if isinstance(value, bytes) else value
    return members


def _inward(found: msgspec.Struct, kind: type[Certificate | DestroyedSegment | Subtree]) -> dict[str, Any]:
    values = {}
    for field in fields(kind):
        name = field.name.removesuffix("_us")
        value = getattr(found, name)
        if name != field.name and value is not None:
            try:
                value = parse_time_us(value)
            except InputError as e:
                raise IntegrityError(f"certificate: {name}: {e.message}", hint=e.hint) from e
        values[field.name] = bytes.fromhex(value) if field.type == "bytes" else value
    return values
