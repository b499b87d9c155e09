"""Signed envelopes: DSSE version 1, the JSON form.

The source is https://github.com/secure-systems-lab/dsse (protocol.md and envelope.md, 1.0): what is signed is
the pre-authentication encoding (PAE) of payload type and payload, never JSON that has to be parsed first.

What is written here, every DSSE verifier reads. What is read here is stricter than DSSE asks for: exactly the
bytes that `encode` writes (standard base64, no other members, no white space, every `keyid` set), because an
envelope is evidence, and one that is not as it was written should be noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from eventstore.errors import IntegrityError

__all__ = ["CERTIFICATE_TYPE", "Envelope", "Signature", "decode", "encode", "pae"]

CERTIFICATE_TYPE = "application/vnd.eventstore.certificate+json"
_SIGNATURES_MAX = 16


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and the id of its key. The id is a hint which key to try: it is not itself signed."""

    key_id: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload, what it is (a media type), and one signature or more over both."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


class _SignatureJson(msgspec.Struct, forbid_unknown_fields=True):
    keyid: str
    sig: bytes  # as base64


class _EnvelopeJson(msgspec.Struct, forbid_unknown_fields=True):
    payload: bytes  # as base64
    payload_type: str = msgspec.field(name="payloadType")
    signatures: Annotated[list[_SignatureJson], msgspec.Meta(min_length=1, max_length=_SIGNATURES_MAX)]


_read = msgspec.json.Decoder(_EnvelopeJson).decode


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in bytes
    as ASCII decimals."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode(envelope: Envelope) -> bytes:
    """The envelope as JSON: members in the order payload, payloadType, signatures; no white space."""
    signatures = [_SignatureJson(s.key_id, s.sig) for s in envelope.signatures]
    return msgspec.json.encode(_EnvelopeJson(envelope.payload, envelope.payload_type, signatures))


def decode(data: bytes) -> Envelope:
    """Read an envelope. Its signatures have not been looked at yet: `governance.signing.verify` does that.

    Raises:
        IntegrityError: not the bytes that `encode` gives for what they hold.
    """
    try:
        found = _read(data)
    except (msgspec.MsgspecError, ValueError) as e:
        raise IntegrityError(f"envelope: {e}", hint="compare it with another copy") from e
    signatures = tuple(Signature(s.keyid, s.sig) for s in found.signatures)
    envelope = Envelope(found.payload_type, found.payload, signatures)
    if encode(envelope) != data:
        raise IntegrityError("envelope: not in canonical form", hint="compare it with another copy")
    return envelope
