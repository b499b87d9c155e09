"""Where a tenant's history lies over time, counted in the database into no more parts than a map can show."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import US_PER_S, clamp_us, from_us, to_us
from eventstore.db.engine import Database

__all__ = ["SLOTS_MAX", "Gap", "MapPart", "Place", "PlaceKind", "TimeMap", "ended_before", "time_map"]

# So many windows, or spans of a calendar, are shown at most; and so many parts, since windows of one span
# may lie in several places.
SLOTS_MAX = 112
_PARTS_MAX = 114
_GAPS_MAX = 12
_DAY_US = 86_400 * US_PER_S
# What windows are put together by, with about the shortest that such a span can be.
_SPANS = {
    "hour": _DAY_US // 24,
    "day": _DAY_US,
    "week": 7 * _DAY_US,
    "month": 28 * _DAY_US,
    "quarter": 91 * _DAY_US,
    "year": 365 * _DAY_US,
    "decade": 3652 * _DAY_US,
    "century": 36_524 * _DAY_US,
    "millennium": 365_242 * _DAY_US,
}

_WINDOWS = """
WITH listed AS (
    SELECT w.window_from, w.window_to, w.state, w.target, w.state IN ('archived', 'dropped') AS archived,
           coalesce(w.last_seq, lead(w.first_seq) OVER later - 1, h.last_seq) - w.first_seq + 1 AS events,
           lead(w.window_from) OVER later AS next_from
    FROM windows w JOIN heads h USING (tenant_id) WHERE w.tenant_id = :tenant
    WINDOW later AS (ORDER BY w.window_from)
), shown AS (
    SELECT * FROM listed WHERE window_to > :from AND window_from < :to
)
"""
_EXTENT = "SELECT min(window_from), max(window_to) FROM windows WHERE tenant_id = :tenant"
_COUNT = """
SELECT count(*) FROM windows WHERE tenant_id = :tenant AND window_to > :from AND window_from < :to
"""
_PARTS = (
    _WINDOWS
    + """, stored AS (
    SELECT window_from, sum(size_bytes) AS size_bytes FROM segments WHERE tenant_id = :tenant
    GROUP BY window_from
)
SELECT {slot} AS slot,
       CASE WHEN state = 'expired' THEN 'expired' WHEN archived THEN 'archive' ELSE 'hot' END AS kind,
       CASE WHEN archived THEN target END AS target,
       count(*), sum(events)::bigint, coalesce(sum(stored.size_bytes), 0)::bigint,
       min(window_from), max(window_to)
FROM shown LEFT JOIN stored USING (window_from)
GROUP BY 1, 2, 3 ORDER BY 1, 7, 2, 3
"""
)
_GAPS = (
    _WINDOWS
    + """
SELECT window_to, next_from, count(*) OVER ()
FROM shown WHERE next_from > window_to AND next_from < :to
ORDER BY next_from - window_to DESC, window_to LIMIT :most
"""
)


_ENDED = (
    _WINDOWS
    + """
SELECT count(*), coalesce(sum(events), 0)::bigint FROM shown WHERE window_to <= :to AND state <> 'expired'
"""
)


class PlaceKind(StrEnum):
    """hot: read from Postgres. archive: read from a target. expired: destroyed, a certificate stands for
    it."""

    HOT = "hot"
    ARCHIVE = "archive"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where windows lie. `target` is the name of the archive's target; None: they are not there."""

    kind: PlaceKind
    target: str | None = None

    @property
    def name(self) -> str:
        """As people read it."""
        return self.target or ("destroyed" if self.kind is PlaceKind.EXPIRED else "hot")


@dataclass(frozen=True, slots=True)
class MapPart:
    """Windows of one span that lie in one place: how many, their events, the bytes of their segments (0
    unless archived), and where the first begins and the last ends (µs). `slot_us` is where the span begins;
    windows belong to the span in which they begin."""

    slot_us: int
    place: Place
    windows: int
    events: int
    size_bytes: int
    from_us: int
    to_us: int

    def joined(self, other: MapPart) -> MapPart:
        """Both together, in this one's span and place."""
        return MapPart(
            self.slot_us,
            self.place,
            self.windows + other.windows,
            self.events + other.events,
            self.size_bytes + other.size_bytes,
            min(self.from_us, other.from_us),
            max(self.to_us, other.to_us),
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which nothing was recorded, between two windows or since the last one ended."""

    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class TimeMap:
    """The windows that touch [from_us, to_us), each in exactly one part; by time.

    `span` says what they are put together by (`month`, …); None: each is a part of its own. `gaps` are the
    longest, by time, `gaps_more` counts the others. `first_us` and `last_us` are the ends of the whole log's
    windows; None: it has none.
    """

    from_us: int
    to_us: int
    span: str | None
    parts: tuple[MapPart, ...]
    gaps: tuple[Gap, ...]
    gaps_more: int
    first_us: int | None
    last_us: int | None

    @property
    def windows(self) -> int:
        return sum(part.windows for part in self.parts)

    def totals(self) -> list[MapPart]:
        """All parts of each place put together, in the order of age."""
        found: dict[Place, MapPart] = {}
        for part in self.parts:
            known = found.get(part.place)
            found[part.place] = part if known is None else known.joined(part)
        return list(found.values())


def time_map(
    database: Database,
    tenant_id: str,
    *,
    now_us: int,
    from_us_: int | None = None,
    to_us_: int | None = None,
    span: str | None = None,
) -> TimeMap:
    """The map of [from_us_, to_us_), from one snapshot of the catalog. None: from the first window on, and up
    to now or the end of the last one. `span` None: the shortest that gives no more than `SLOTS_MAX`.

    Raises:
        TenantNotFoundError
    """
    with database.app.transaction(tenant_id, one_snapshot=True) as conn:
        get_tenant(conn, tenant_id)
        # Where Postgres has not counted its rows yet it takes a tenant's windows for a few, and looks each of
        # ten thousand up among all the others.
        conn.execute(sa.text("SET LOCAL enable_nestloop = off"))
        first, last = conn.execute(sa.text(_EXTENT), {"tenant": tenant_id}).one()
        first_us, last_us = None if first is None else to_us(first), None if last is None else to_us(last)
        start = (now_us if first_us is None else first_us) if from_us_ is None else from_us_
        end = max(now_us, last_us or now_us) if to_us_ is None else to_us_
        end = max(end, start + 1)
        bounds = {"tenant": tenant_id, "from": from_us(start), "to": from_us(end)}
        if first_us is None or last_us is None:
            return TimeMap(start, end, None, (), (), 0, None, None)
        known = max(start, first_us), min(end, last_us)
        if span is None:
            count = conn.execute(sa.text(_COUNT), bounds).scalar_one()
            span = None if count <= SLOTS_MAX else _span_of(known[1] - known[0])
        parts = _parts(conn, bounds, span)
        while len(parts) > _PARTS_MAX and span != "millennium":
            spans = list(_SPANS)
            span = spans[0 if span is None else spans.index(span) + 1]
            parts = _parts(conn, bounds, span)
        rows = conn.execute(sa.text(_GAPS), {**bounds, "most": _GAPS_MAX}).all()
    gaps = [Gap(to_us(a), to_us(b)) for a, b, _ in rows]
    if last_us < min(end, now_us):
        gaps.append(Gap(max(start, last_us), min(end, now_us)))
    return TimeMap(
        start,
        end,
        span,
        tuple(parts),
        tuple(sorted(gaps, key=lambda gap: gap.from_us)),
        (rows[0][2] if rows else 0) - len(rows),
        first_us,
        last_us,
    )


def ended_before(database: Database, tenant_id: str, at_us: int) -> tuple[int, int]:
    """How many windows that are not destroyed had ended by a time, and their events."""
    bounds = {"tenant": tenant_id, "from": from_us(clamp_us(-(2**62))), "to": from_us(clamp_us(at_us))}
    with database.app.transaction(tenant_id) as conn:
        count, events = conn.execute(sa.text(_ENDED), bounds).one()
    return count, events


def _span_of(length_us: int) -> str:
    """The shortest span of which no more than `SLOTS_MAX` lie in a time."""
    return next((name for name, us in _SPANS.items() if length_us // us + 2 <= SLOTS_MAX), "millennium")


def _parts(conn: sa.Connection, bounds: dict[str, object], span: str | None) -> list[MapPart]:
    # The decade of the years 1 to 9 would begin in a year that no time here can have.
    slot = (
        "window_from"
        if span is None
        else f"greatest(date_trunc('{span}', window_from, 'UTC'), '0001-01-01T00:00:00Z')"
    )
    rows = conn.execute(sa.text(_PARTS.format(slot=slot)), bounds)
    return [
        MapPart(
            to_us(begins),
            Place(PlaceKind(kind), target),
            windows,
            events,
            size_bytes,
            to_us(first),
            to_us(last),
        )
        for begins, kind, target, windows, events, size_bytes, first, last in rows
    ]
