"""Which tier holds what: the watermark, the hot rows above it, the segments below it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
from psycopg import sql

from eventstore.archive.scan import ArchiveScan
from eventstore.catalog.windows import entity_filters_bytes, list_entity_filters, list_segments
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.db.engine import Database
from eventstore.errors import TenantNotFoundError
from eventstore.hot.read import EVENT_COLUMNS_SQL, to_events
from eventstore.model.bloom import BloomProbe
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.model.tenant import check_tenant_id
from eventstore.query.conditions import DuckDialect, PostgresDialect, conditions

__all__ = ["LogState", "Tiers"]

_CACHED_SEGMENTS_MAX = 200_000
# Of one tenant, and of all of them together.
_FILTER_BYTES_MAX = 64 * 2**20
_CACHED_FILTER_BYTES_MAX = 256 * 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Known(Generic[T]):
    """Something listed from the catalog, up to a watermark; `size` is what it counts for in its cache."""

    through: int
    value: T
    size: int = 0


@dataclass(frozen=True, slots=True)
class LogState:
    """A tenant's log as one snapshot sees it: seq 1 to `archived_through` are in the archive, what
    follows up to `last_seq` is hot."""

    archived_through: int
    last_seq: int
    last_hash: bytes
    id_lead_us: int


class Tiers:
    """The two tiers of every log. Each method is one look; `query.reader` makes one log of them."""

    def __init__(self, database: Database, scan: ArchiveScan) -> None:
        self._database = database
        self._scan = scan
        self._lock = threading.Lock()
        # Segments never change, and a log's archive only grows: what was listed up to a watermark stays so.
        self._segments: OrderedDict[str, _Known[tuple[Segment, ...]]] = OrderedDict()
        self._filters: OrderedDict[str, _Known[dict[int, bytes]]] = OrderedDict()

    def state(self, tenant_id: str) -> LogState:
        """The log's state now.

        Raises:
            TenantNotFoundError: no such tenant.
        """
        check_tenant_id(tenant_id)
        with self._database.connection() as conn:
            row = conn.execute(
                "SELECT w.archived_through, h.last_seq, h.last_hash, h.id_lead_us FROM heads h"
                " JOIN watermarks w USING (tenant_id) WHERE h.tenant_id = %s",
                [tenant_id],
            ).fetchone()
        if row is None:
            raise TenantNotFoundError(tenant_id)
        return LogState(*row)

    def hot(
        self,
        tenant_id: str,
        wanted: EventFilter,
        seq_from: int,
        seq_to: int,
        *,
        descending: bool,
        limit: int,
    ) -> pa.Table:
        """Matching hot events of a seq range, in order, at most `limit`.

        Beware: Postgres takes the snapshot of this statement before it locks the partitions, so a window
        that was cut over and dropped in between is missing without a word. The caller must look at the
        watermark afterwards, and read anew if it has moved past the range's start.
        """
        query = sql.SQL(
            "SELECT {columns} FROM events WHERE tenant_id = {tenant_id} AND {where}"
            " ORDER BY seq {order} LIMIT {limit}"
        ).format(
            columns=sql.SQL(EVENT_COLUMNS_SQL),
            tenant_id=sql.Literal(tenant_id),
            where=sql.SQL(conditions(wanted, PostgresDialect(), seq_from=seq_from, seq_to=seq_to)),
            order=sql.SQL("DESC" if descending else "ASC"),
            limit=sql.Literal(limit),
        )
        with self._database.arrow() as conn, conn.cursor() as cursor:
            cursor.execute(query.as_string())
            with cursor.fetch_record_batch() as reader:
                return pa.Table.from_batches([to_events(batch) for batch in reader], EVENT_SCHEMA)

    def archived(
        self,
        segments: Sequence[Segment],
        wanted: EventFilter,
        seq_from: int,
        seq_to: int,
        *,
        descending: bool,
        limit: int,
    ) -> pa.Table:
        """Matching archived events of a seq range within these segments, in order, at most `limit`."""
        where = conditions(wanted, DuckDialect(), seq_from=seq_from, seq_to=seq_to)
        return self._scan.query(segments, where, descending=descending, limit=limit)

    def segments(self, tenant_id: str, archived_through: int) -> Sequence[Segment]:
        """All segments up to a watermark, in seq order."""
        with self._lock:
            known = self._segments.get(tenant_id, _Known(0, ()))
        if known.through < archived_through:
            with self._database.transaction() as conn:
                new = list_segments(conn, tenant_id, seq_from=known.through + 1, seq_to=archived_through)
            known = _Known(archived_through, (*known.value, *new), known.size + len(new))
            self._remember(self._segments, tenant_id, known, _CACHED_SEGMENTS_MAX)
        if known.through > archived_through:
            return [s for s in known.value if s.range.last_seq <= archived_through]
        return known.value

    def without_entity(self, tenant_id: str, archived_through: int, entity_id: str) -> set[int]:
        """The segments, by first seq, that certainly hold no event of an entity."""
        probe = BloomProbe(entity_id.encode())
        filters = self.entity_filters(tenant_id, archived_through)
        return {first_seq for first_seq, bits in filters.items() if not probe.may_be_in(bits)}

    def entity_filters(self, tenant_id: str, archived_through: int) -> Mapping[int, bytes]:
        """The entity filters up to a watermark, by the segments' first seqs; none at all if they are too
        large to keep (the Bloom filters inside the files then serve)."""
        none: dict[int, bytes] = {}
        with self._lock:
            known = self._filters.get(tenant_id, _Known(0, none))
        if known.through < archived_through:
            with self._database.transaction() as conn:
                if entity_filters_bytes(conn, tenant_id) > _FILTER_BYTES_MAX:
                    return none
                new = list_entity_filters(
                    conn, tenant_id, seq_from=known.through + 1, seq_to=archived_through
                )
            size_bytes = known.size + sum(len(bits) for bits in new.values())
            known = _Known(archived_through, known.value | new, size_bytes)
            self._remember(self._filters, tenant_id, known, _CACHED_FILTER_BYTES_MAX)
        return known.value

    def _remember(
        self, cache: OrderedDict[str, _Known[Any]], tenant_id: str, known: _Known[Any], most: int
    ) -> None:
        """Keep what is known of a tenant; beyond a size of `most` the longest unused are forgotten."""
        with self._lock:
            cache[tenant_id] = known
            cache.move_to_end(tenant_id)
            while len(cache) > 1 and sum(k.size for k in cache.values()) > most:
                cache.popitem(last=False)
