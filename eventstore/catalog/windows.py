"""Windows and segments as Postgres knows them, and the cutover: the one moment a window changes tier."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.catalog.removals import RemovalReason, no_longer_elsewhere, request_removal
from eventstore.clock import from_us, to_us
from eventstore.db.tables import segments, watermarks, windows
from eventstore.errors import CoverageError
from eventstore.model.segment import Segment, SegmentRange, VerifiedSegment
from eventstore.model.window import Window, WindowRecord, WindowState

__all__ = [
    "Watermark",
    "check_cover",
    "cut_over",
    "entity_filters_bytes",
    "expire_window",
    "get_window",
    "list_entity_filters",
    "list_segments",
    "list_windows",
    "mark_dropped",
    "move_segments",
    "raise_catalog_version",
    "read_watermark",
    "replace_segment",
    "uncataloged",
]


@dataclass(frozen=True, slots=True)
class Watermark:
    """Readers take every seq ≤ `archived_through` from the archive; `archived_hash` is that event's.
    `catalog_version` rises whenever something that is already archived changes its place, or expires."""

    archived_through: int
    archived_hash: bytes
    catalog_version: int


def read_watermark(conn: sa.Connection, tenant_id: str, *, for_update: bool = False) -> Watermark:
    """The tenant's watermark as this statement's snapshot sees it."""
    query = sa.select(watermarks).where(watermarks.c.tenant_id == tenant_id)
    row = conn.execute(query.with_for_update() if for_update else query).one()
    return Watermark(row.archived_through, bytes(row.archived_hash), row.catalog_version)


def list_windows(conn: sa.Connection, tenant_id: str) -> list[WindowRecord]:
    """A tenant's windows, oldest first."""
    query = sa.select(windows).where(windows.c.tenant_id == tenant_id).order_by(windows.c.window_from)
    return [_record(row) for row in conn.execute(query)]


def get_window(conn: sa.Connection, tenant_id: str, from_us_: int) -> WindowRecord | None:
    """The window that begins at a time; None if there is none."""
    row = conn.execute(
        sa.select(windows).where(windows.c.tenant_id == tenant_id, windows.c.window_from == from_us(from_us_))
    ).one_or_none()
    return None if row is None else _record(row)


def _record(row: sa.Row[tuple[object, ...]]) -> WindowRecord:
    return WindowRecord(
        Window(to_us(row.window_from), to_us(row.window_to)),
        WindowState(row.state),
        row.leaf,
        row.first_seq,
        row.last_seq,
        row.hash_before,
        row.hash_after,
        row.target,
    )


def list_segments(
    conn: sa.Connection, tenant_id: str, *, seq_from: int = 1, seq_to: int | None = None
) -> list[Segment]:
    """A tenant's segments that touch a seq range (both ends inclusive), in seq order."""
    query = (
        sa.select(segments, windows.c.window_to)
        .join(
            windows,
            sa.and_(
                windows.c.tenant_id == segments.c.tenant_id, windows.c.window_from == segments.c.window_from
            ),
        )
        .where(segments.c.tenant_id == tenant_id, segments.c.last_seq >= seq_from)
        .order_by(segments.c.first_seq)
    )
    if seq_to is not None:
        query = query.where(segments.c.first_seq <= seq_to)
    return [
        Segment(
            range=SegmentRange(
                tenant_id=row.tenant_id,
                window=Window(to_us(row.window_from), to_us(row.window_to)),
                part=row.part,
                first_seq=row.first_seq,
                last_seq=row.last_seq,
                hash_before=bytes(row.hash_before),
                hash_after=bytes(row.hash_after),
                schema_version=row.schema_version,
            ),
            key=row.key,
            size_bytes=row.size_bytes,
            sha256=bytes(row.sha256),
            min_recorded_at_us=to_us(row.min_recorded_at),
            max_recorded_at_us=to_us(row.max_recorded_at),
            target=row.target,
        )
        for row in conn.execute(query)
    ]


def uncataloged(conn: sa.Connection, digests: Collection[bytes]) -> set[bytes]:
    """Those of the SHA-256 that no segment has any more."""
    known = sa.select(segments.c.sha256).where(segments.c.sha256.in_(digests))
    return set(digests) - {bytes(found) for found in conn.execute(known).scalars()}


def entity_filters_bytes(conn: sa.Connection, tenant_id: str) -> int:
    """How many bytes the entity filters of all of a tenant's segments take."""
    size = sa.func.coalesce(sa.func.sum(sa.func.octet_length(segments.c.entity_filter)), 0)
    return int(conn.execute(sa.select(size).where(segments.c.tenant_id == tenant_id)).scalar_one())


def list_entity_filters(
    conn: sa.Connection, tenant_id: str, *, seq_from: int, seq_to: int
) -> dict[int, bytes]:
    """The entity filters of segments within a seq range, by the segment's first seq."""
    query = sa.select(segments.c.first_seq, segments.c.entity_filter).where(
        segments.c.tenant_id == tenant_id,
        segments.c.first_seq >= seq_from,
        segments.c.last_seq <= seq_to,
        segments.c.entity_filter.is_not(None),
    )
    return {row.first_seq: bytes(row.entity_filter) for row in conn.execute(query)}


def cut_over(
    conn: sa.Connection,
    record: WindowRecord,
    verified: Sequence[VerifiedSegment],
    *,
    profile: Mapping[str, object] | None = None,
) -> None:
    """Make a sealed window archived, in the connection's transaction: segments, state and watermark.

    Before the commit readers take the window from Postgres, after it from the archive. Idempotent for
    the same segments. `profile` is the shape of its events (None: not taken).

    Raises:
        CoverageError: the segments do not cover the window exactly, or the window does not follow the
            watermark. Nothing is changed.
    """
    found = [v.segment for v in verified]
    if not found or record.last_seq is None:
        raise CoverageError(f"window {record.window} is not ready for its cutover")
    tenant_id = found[0].range.tenant_id
    check_cover(record, found)
    watermark = read_watermark(conn, tenant_id, for_update=True)
    if watermark.archived_through == record.last_seq and watermark.archived_hash == record.hash_after:
        known = list_segments(conn, tenant_id, seq_from=record.first_seq, seq_to=record.last_seq)
        if [s.key for s in known] == [s.key for s in found]:
            return
    if (watermark.archived_through, watermark.archived_hash) != (record.first_seq - 1, record.hash_before):
        raise CoverageError(
            f"window {record.window} of {tenant_id!r} begins at seq {record.first_seq}, "
            f"but the archive ends at seq {watermark.archived_through}",
            hint="an earlier window is missing from the archive: run eventstore verify",
        )
    conn.execute(sa.insert(segments), [_segment_row(v) for v in verified])
    conn.execute(
        sa.update(watermarks)
        .where(watermarks.c.tenant_id == tenant_id)
        .values(archived_through=record.last_seq, archived_hash=record.hash_after)
    )
    _move(conn, tenant_id, record, WindowState.SEALED, WindowState.ARCHIVED, "archived_at", profile=profile)


def move_segments(
    conn: sa.Connection, record: WindowRecord, verified: Sequence[VerifiedSegment], target: str
) -> None:
    """Make the copies of a window's segments in another target the ones that count, in the connection's
    transaction; the former ones are to be removed. Idempotent.

    Raises:
        CoverageError: the copies are not those of the window's segments.
    """
    assert record.last_seq is not None
    found = [v.segment for v in verified]
    check_cover(record, found)
    tenant_id = found[0].range.tenant_id
    read_watermark(conn, tenant_id, for_update=True)  # two changes of one catalog come one after the other
    former = list_segments(conn, tenant_id, seq_from=record.first_seq, seq_to=record.last_seq)
    if [(s.target, s.key) for s in former] == [(s.target, s.key) for s in found]:
        return
    if [(s.range, s.sha256) for s in former] != [(s.range, s.sha256) for s in found]:
        raise CoverageError(
            f"the copies in {target!r} are not those of the segments of window {record.window}",
            hint="run eventstore archive scrub",
        )
    # A part that lies there already, as a repair may leave it, is its own copy.
    request_removal(
        conn, tenant_id, record.first_seq, record.last_seq, RemovalReason.MOVED, but_not_in=target
    )
    for segment in found:
        conn.execute(
            sa.update(segments)
            .where(segments.c.tenant_id == tenant_id, segments.c.first_seq == segment.range.first_seq)
            .values(target=segment.target, key=segment.key, scrubbed_at=sa.func.now())
        )
    conn.execute(
        sa.update(windows)
        .where(windows.c.tenant_id == tenant_id, windows.c.window_from == from_us(record.window.from_us))
        .values(target=target, copying_to=[])
    )
    raise_catalog_version(conn, tenant_id)


def replace_segment(conn: sa.Connection, damaged: Segment, verified: VerifiedSegment) -> None:
    """Make a good copy of a segment the one that counts, in the connection's transaction (a repair).

    Raises:
        CoverageError: the catalog does not name the damaged one any more, or the copy is of another segment.
    """
    good, r = verified.segment, damaged.range
    read_watermark(conn, r.tenant_id, for_update=True)
    if good.range != r or good.sha256 != damaged.sha256:
        raise CoverageError(f"{good.key} is no copy of {damaged.key}", hint="nothing was changed")
    moved = conn.execute(
        sa.update(segments)
        .where(
            segments.c.tenant_id == r.tenant_id,
            segments.c.first_seq == r.first_seq,
            segments.c.target == damaged.target,
            segments.c.key == damaged.key,
        )
        .values(target=good.target, key=good.key, scrubbed_at=sa.func.now())
    )
    if moved.rowcount != 1:
        raise CoverageError(
            f"the catalog does not name {damaged.key} any more", hint="it was moved meanwhile; scrub again"
        )
    raise_catalog_version(conn, r.tenant_id)


def expire_window(conn: sa.Connection, tenant_id: str, record: WindowRecord) -> None:
    """Take a window out of the log, in the connection's transaction: its segments are to be removed. Its
    certificate must be stored in the same transaction.

    Raises:
        CoverageError: it is not (or no longer) archived and dropped.
    """
    assert record.last_seq is not None
    read_watermark(conn, tenant_id, for_update=True)
    _move(conn, tenant_id, record, WindowState.DROPPED, WindowState.EXPIRED, "expired_at", profile=None)
    request_removal(conn, tenant_id, record.first_seq, record.last_seq, RemovalReason.EXPIRED)
    no_longer_elsewhere(conn, tenant_id, record.window.from_us)
    conn.execute(
        sa.delete(segments).where(
            segments.c.tenant_id == tenant_id,
            segments.c.first_seq >= record.first_seq,
            segments.c.last_seq <= record.last_seq,
        )
    )
    raise_catalog_version(conn, tenant_id)


def raise_catalog_version(conn: sa.Connection, tenant_id: str) -> None:
    """Tell readers that the list of segments they keep is out of date."""
    conn.execute(
        sa.update(watermarks)
        .where(watermarks.c.tenant_id == tenant_id)
        .values(catalog_version=watermarks.c.catalog_version + 1)
    )


def mark_dropped(conn: sa.Connection, tenant_id: str, record: WindowRecord) -> None:
    """Record that an archived window's partition is gone, in the transaction that drops it."""
    _move(conn, tenant_id, record, WindowState.ARCHIVED, WindowState.DROPPED, "dropped_at")


def check_cover(record: WindowRecord, found: Sequence[Segment]) -> None:
    """The segments cover the window's frozen seq range exactly once, hash to hash.

    Raises:
        CoverageError: they do not.
    """
    seq, last_hash = record.first_seq, record.hash_before
    for segment in found:
        if segment.range.first_seq != seq or segment.range.hash_before != last_hash:
            break
        seq, last_hash = segment.range.last_seq + 1, segment.range.hash_after
    else:
        if seq - 1 == record.last_seq and last_hash == record.hash_after:
            return
    raise CoverageError(
        f"the segments of window {record.window} do not cover seq {record.first_seq} to {record.last_seq}",
        hint="nothing was dropped; run eventstore verify",
    )


def _move(
    conn: sa.Connection,
    tenant_id: str,
    record: WindowRecord,
    old: WindowState,
    new: WindowState,
    stamp: str,
    **more: object,
) -> None:
    moved = conn.execute(
        sa.update(windows)
        .where(
            windows.c.tenant_id == tenant_id,
            windows.c.window_from == from_us(record.window.from_us),
            windows.c.state == old.value,
        )
        .values({"state": new.value, stamp: sa.func.now(), **more})
    )
    if moved.rowcount != 1:
        raise CoverageError(
            f"window {record.window} of {tenant_id!r} is not {old.value}",
            hint="another run may have worked on it; run again",
        )


def _segment_row(verified: VerifiedSegment) -> dict[str, object]:
    segment, r = verified.segment, verified.segment.range
    return {
        "tenant_id": r.tenant_id,
        "first_seq": r.first_seq,
        "last_seq": r.last_seq,
        "window_from": from_us(r.window.from_us),
        "part": r.part,
        "target": segment.target,
        "key": segment.key,
        "hash_before": r.hash_before,
        "hash_after": r.hash_after,
        "min_recorded_at": from_us(segment.min_recorded_at_us),
        "max_recorded_at": from_us(segment.max_recorded_at_us),
        "size_bytes": segment.size_bytes,
        "sha256": segment.sha256,
        "schema_version": r.schema_version,
        "entity_filter": verified.entity_filter,
    }
