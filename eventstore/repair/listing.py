"""What lies where: segments as the catalog knows them, and a target's objects as it lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.archive.targets import Targets
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.tables import segments, windows
from eventstore.errors import InputError
from eventstore.model.segment import Segment, SegmentRange
from eventstore.model.window import Window

__all__ = ["ListedSegment", "chosen_targets", "list_archive", "segment_from"]

_FETCH = 2_000


@dataclass(frozen=True, slots=True)
class ListedSegment:
    """A cataloged segment. `scrubbed_us` None: not read again since it came to where it is."""

    segment: Segment
    scrubbed_us: int | None


def list_archive(
    database: Database, *, tenant_id: str | None = None, target: str | None = None
) -> Iterator[ListedSegment]:
    """The segments of the catalog, by tenant and seq, in one streamed query.

    Raises:
        TenantNotFoundError
    """
    query = (
        sa.select(segments, windows.c.window_to)
        .join(
            windows,
            sa.and_(
                windows.c.tenant_id == segments.c.tenant_id, windows.c.window_from == segments.c.window_from
            ),
        )
        .order_by(segments.c.tenant_id, segments.c.first_seq)
    )
    if target is not None:
        query = query.where(segments.c.target == target)
    with database.transaction() as conn:
        if tenant_id is not None:
            get_tenant(conn, tenant_id)
            query = query.where(segments.c.tenant_id == tenant_id)
        for row in conn.execute(query, execution_options={"yield_per": _FETCH}):
            scrubbed = row.scrubbed_at
            yield ListedSegment(segment_from(row), None if scrubbed is None else to_us(scrubbed))


def segment_from(row: sa.Row[tuple[object, ...]]) -> Segment:
    """The segment of a row of `segments` with its window's `window_to`."""
    return Segment(
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


def chosen_targets(targets: Targets, only: str | None) -> tuple[str, ...]:
    """The names of all targets, or the one that is meant.

    Raises:
        InputError: there is none of that name.
    """
    if only is None:
        return targets.names
    if only not in targets:
        raise InputError(
            f"there is no archive target {only!r}", hint=f"known are: {', '.join(targets.names)}"
        )
    return (only,)
