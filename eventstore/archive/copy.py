"""Copying a segment from target to target, byte for byte, and reading the copy back."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass

from eventstore.archive.target import ArchiveTarget, keep_object
from eventstore.archive.verify import verify_copy
from eventstore.errors import ArchiveDamageError
from eventstore.model.segment import Segment, VerifiedSegment

__all__ = ["Copied", "copy_segment"]

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that was read back. `created` is False when it was there already."""

    verified: VerifiedSegment
    created: bool


def copy_segment(
    source: ArchiveTarget,
    target: ArchiveTarget,
    segment: Segment,
    *,
    to: str,
    key: str | None = None,
    retain_until_us: int | None = None,
) -> Copied:
    """Copy a segment into the target named `to`, under its own key or another one.

    Raises:
        ArchiveDamageError: the source is not what the catalog says; nothing was put into the target.
        ArchiveConflictError: another object lies under the key.
        TargetUnavailableError: one of the targets did not answer.
    """
    key = key or segment.key
    staged = target.stage(key)
    try:
        with source.open(segment.key) as file, staged.open("wb") as out:
            shutil.copyfileobj(file, out, _CHUNK_BYTES)
        with staged.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").digest()
        if sha256 != segment.sha256:
            raise ArchiveDamageError(
                f"segment {segment.key} in {source.describe()}: its SHA-256 is {sha256.hex()}, "
                f"not {segment.sha256.hex()} as cataloged",
                key=segment.key,
                hint="run eventstore archive scrub, which repairs it from another copy if there is one",
            )
        created = target.put(key, staged, retain_until_us=retain_until_us)
    finally:
        staged.unlink(missing_ok=True)
    verified = verify_copy(target, segment, target_name=to, key=key, created=created)
    if not created:
        keep_object(target, key, retain_until_us)
    return Copied(verified, created)
