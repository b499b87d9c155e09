"""Segments: immutable Parquet files, each holding a contiguous seq range of one tenant's window."""

from __future__ import annotations

from dataclasses import dataclass

from eventstore.model.window import Window

__all__ = ["SEGMENT_SCHEMA_VERSION", "Segment", "SegmentRange", "VerifiedSegment"]

SEGMENT_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class SegmentRange:
    """What a segment says of itself in its own metadata; with it the catalog can be rebuilt."""

    tenant_id: str
    window: Window
    part: int
    first_seq: int
    last_seq: int
    hash_before: bytes
    hash_after: bytes
    schema_version: int = SEGMENT_SCHEMA_VERSION

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant_id}, window {self.window}, part {self.part}, seq {self.first_seq} to "
            f"{self.last_seq}, hashes {self.hash_before.hex()[:12]}… to {self.hash_after.hex()[:12]}…, "
            f"schema {self.schema_version}"
        )

    @property
    def event_count(self) -> int:
        return self.last_seq - self.first_seq + 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as the catalog knows it: its range, its target and its key there, its size and SHA-256."""

    range: SegmentRange
    key: str
    size_bytes: int
    sha256: bytes
    min_recorded_at_us: int
    max_recorded_at_us: int
    target: str = "archive"


@dataclass(frozen=True, slots=True)
class VerifiedSegment:
    """Proof that a segment was read back from its target and matched the database, value by value.

    Only `archive.verify` makes one; dropping a partition demands them for its whole seq range.
    `entity_filter` is its Bloom filter over entity_id (None: it has none that would tell them apart).
    """

    segment: Segment
    entity_filter: bytes | None = None
