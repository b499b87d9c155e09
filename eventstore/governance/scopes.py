"""What a hold of some scope may keep, by the catalog alone: whole windows, because a window is destroyed as a
whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.catalog.removals import list_removals
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.tables import segments
from eventstore.governance.holds import may_cover
from eventstore.governance.windows import CountedWindow, counted_windows
from eventstore.model.hold import HoldScope
from eventstore.model.window import WindowState

__all__ = [
    "BEING_DESTROYED",
    "ScopeCount",
    "covered_by",
    "covered_windows",
    "preview_scope",
    "preview_scopes",
]

BEING_DESTROYED = "being destroyed"
_FETCH = 1_000


@dataclass(frozen=True, slots=True)
class ScopeCount:
    """What a scope may cover in one place: whole windows, because a window is destroyed as a whole.
    `place`: `hot`, the name of a target, or `being destroyed`: certified, but not yet deleted."""

    place: str
    windows: int
    events: int


def preview_scope(conn: sa.Connection, tenant_id: str, scope: HoldScope) -> list[ScopeCount]:
    """What a hold of this scope may cover, by place. In the hot tier times alone decide; in the archive the
    segments' entity filters too. Never too little.

    Raises:
        TenantNotFoundError
    """
    return preview_scopes(conn, tenant_id, [scope])[0]


def preview_scopes(
    conn: sa.Connection, tenant_id: str, scopes: Sequence[HoldScope]
) -> list[list[ScopeCount]]:
    """As `preview_scope`, for several scopes in one look at the catalog.

    Raises:
        TenantNotFoundError
    """
    counts: list[dict[str, list[int]]] = [{} for _ in scopes]
    for index, place, found in covered_by(conn, tenant_id, scopes):
        _count(counts[index], place, found.events)
    for removal in list_removals(conn, tenant_id=tenant_id):
        for index, scope in enumerate(scopes):
            if removal.destroys and may_cover(
                scope,
                first_us=removal.min_recorded_at_us,
                last_us=removal.max_recorded_at_us,
                entity_filter=removal.entity_filter,
            ):
                _count(counts[index], BEING_DESTROYED, removal.last_seq - removal.first_seq + 1)
    return [[ScopeCount(place, *count) for place, count in found.items()] for found in counts]


def covered_windows(
    conn: sa.Connection, tenant_id: str, scope: HoldScope
) -> Iterator[tuple[str, CountedWindow]]:
    """The windows that a hold of this scope may keep, oldest first, each with its place (`ScopeCount`).

    Raises:
        TenantNotFoundError
    """
    return ((place, found) for _, place, found in covered_by(conn, tenant_id, [scope]))


def covered_by(
    conn: sa.Connection, tenant_id: str, scopes: Sequence[HoldScope]
) -> Iterator[tuple[int, str, CountedWindow]]:
    """Which of some scopes (by index) may cover which windows that are not destroyed."""
    get_tenant(conn, tenant_id)
    archived = _touched_segments(conn, tenant_id, scopes)
    for found in counted_windows(conn, tenant_id):
        record = found.record
        if record.state is WindowState.EXPIRED:
            continue
        hot = record.state is not WindowState.DROPPED
        place = "hot" if hot else record.target or "archive"
        for index, scope in enumerate(scopes):
            if (
                scope.touches(record.window.from_us, record.window.to_us - 1)
                if hot
                else record.window.from_us in archived[index]
            ):
                yield index, place, found


def _count(counts: dict[str, list[int]], place: str, events: int) -> None:
    count = counts.setdefault(place, [0, 0])
    count[0] += 1
    count[1] += events


def _touched_segments(conn: sa.Connection, tenant_id: str, scopes: Sequence[HoldScope]) -> list[set[int]]:
    """For each scope the windows, by their beginning in µs, of segments that it may cover."""
    s = segments.c
    # Filters are large: they are fetched only for whom they tell something.
    bits = s.entity_filter if any(scope.entities for scope in scopes) else sa.null().label("entity_filter")
    query = sa.select(s.window_from, s.min_recorded_at, s.max_recorded_at, bits).where(
        s.tenant_id == tenant_id
    )
    touched: list[set[int]] = [set() for _ in scopes]
    for window_from, first, last, found in conn.execute(query, execution_options={"yield_per": _FETCH}):
        begins_us, first_us, last_us = to_us(window_from), to_us(first), to_us(last)
        entity_filter = None if found is None else bytes(found)
        for scope, windows in zip(scopes, touched, strict=True):
            if may_cover(scope, first_us=first_us, last_us=last_us, entity_filter=entity_filter):
                windows.add(begins_us)
    return touched
