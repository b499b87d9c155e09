"""What an export says of itself: `manifest.json`, and which files belong to an export at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec

from eventstore.errors import InputError

__all__ = [
    "CERTIFICATE_FILE",
    "MANIFEST_FILE",
    "Export",
    "ExportCertificate",
    "ExportGap",
    "ExportPart",
    "decode_manifest",
    "encode_manifest",
    "files_of",
    "part_file",
]

MANIFEST_FILE = "manifest.json"
CERTIFICATE_FILE = "certificate.json"

_FORMAT = "eventstore-export"
_VERSION = 1
_OURS = re.compile(r"part-\d{5,}\.parquet|certificates/\d{8,}\.json|export\.incomplete")
# What a killed export has left behind while it built a file.
_STAGED = re.compile(
    r"(certificates/)?\.staged-(part-\d{5,}\.parquet|\d{8,}\.json"
    r"|manifest\.json|certificate\.json|export\.incomplete)\..+"
)

_HOW_TO_VERIFY = (
    "Compare the SHA-256 of each file. Read the parts in order: seq rises by one from 1, except across the "
    "ranges in `gaps`, which were destroyed before, under the certificates named. The hash of an event is "
    "SHA-256(hash of the one before || its canonical bytes); the first event follows `chain_start`, the "
    "first one behind a gap its `hash_after`, and the last event has `last_hash`. A certificate is a DSSE "
    "envelope, signed with one of `public_keys` (compare those with a copy that you trust). Parts, canonical "
    "bytes and certificates are described in the store's docs/reference."
)

_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_From0 = Annotated[int, msgspec.Meta(ge=0)]
_From1 = Annotated[int, msgspec.Meta(ge=1)]
_PartName = Annotated[str, msgspec.Meta(pattern=r"\Apart-\d{5,}\.parquet\Z")]
_CertificateName = Annotated[str, msgspec.Meta(pattern=r"\Acertificates/\d{8,}\.json\Z")]


class ExportPart(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file, in the format of a segment. Hashes are of the chain before and after its events."""

    file: _PartName
    sha256: _Digest
    size_bytes: _From0
    rows: _From1
    first_seq: _From1
    last_seq: _From1
    hash_before: _Digest
    hash_after: _Digest


class ExportGap(msgspec.Struct, frozen=True, kw_only=True):
    """A range that was destroyed before the export; the certificate of that number stands for it."""

    first_seq: _From1
    last_seq: _From1
    certificate: _From1
    hash_before: _Digest
    hash_after: _Digest


class ExportCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope of a certificate that the tenant had before its offboarding."""

    number: _From1
    file: _CertificateName
    sha256: _Digest


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A complete export of seq 1 to `last_seq`. `events` counts those that it holds.

    `first_hash` is the hash of the first event that it holds (None: it holds none), `last_hash` that of the
    log's end (of an empty log: `chain_start`). Hashes are 64 hex digits.
    """

    store_id: str
    tenant_id: str
    exported_at: str
    events: _From0
    last_seq: _From0
    chain_start: _Digest
    first_hash: _Digest | None
    last_hash: _Digest
    parts: tuple[ExportPart, ...]
    gaps: tuple[ExportGap, ...]
    certificates: tuple[ExportCertificate, ...]
    public_keys: dict[str, str]  # key id → PEM
    how_to_verify: str = _HOW_TO_VERIFY
    format: str = _FORMAT
    format_version: int = _VERSION

    @property
    def size_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.size_bytes for part in self.parts)


def part_file(number: int) -> str:
    """The name of a part; `number` counts from 0."""
    return f"part-{number:05d}.parquet"


def encode_manifest(export: Export) -> bytes:
    """The bytes of `manifest.json`."""
    return msgspec.json.format(msgspec.json.encode(export), indent=1) + b"\n"


def decode_manifest(data: bytes, folder: Path) -> Export:
    """Read `manifest.json`.

    Raises:
        InputError: it is not one of this format.
    """
    try:
        found = msgspec.json.decode(data, type=Export)
    except (msgspec.MsgspecError, ValueError) as e:
        raise _not_an_export(folder, f"its {MANIFEST_FILE} cannot be read: {e}") from e
    if (found.format, found.format_version) != (_FORMAT, _VERSION):
        raise _not_an_export(folder, f"its {MANIFEST_FILE} is of another format")
    return found


def files_of(folder: Path) -> set[str]:
    """Every file in the folder (relative, with `/`); none if there is no folder yet.

    Raises:
        InputError: it is no folder, or something lies in it that is not of an export.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint="name a new folder for the export")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(found):
        known = name in (MANIFEST_FILE, CERTIFICATE_FILE) or _OURS.fullmatch(name) or _STAGED.fullmatch(name)
        if not known:
            raise _not_an_export(folder, f"it holds {name}")
    return found


def _not_an_export(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} is not empty, and no export of this log: {why}",
        hint="name a new folder for the export; nothing in this one was touched",
    )
