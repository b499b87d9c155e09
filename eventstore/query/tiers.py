"""Which tier holds what: the watermark, the hot rows above it, the segments below it."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa
import sqlalchemy as sa
from psycopg import sql

from eventstore.archive.scan import ArchiveScan
from eventstore.catalog.windows import (
    entity_filters_bytes,
    list_entity_filters,
    list_segments,
    read_watermark,
)
from eventstore.clock import to_us
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.db.engine import Database
from eventstore.db.tables import certificates
from eventstore.errors import CoverageError, IntegrityError, TargetUnavailableError, TenantNotFoundError
from eventstore.hot.read import EVENT_COLUMNS_SQL, to_events
from eventstore.model.bloom import BloomProbe
from eventstore.model.certificate import CertificateKind
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.model.tenant import check_tenant_id
from eventstore.query.conditions import DuckDialect, PostgresDialect, conditions
from eventstore.query.coverage import Meter, opened_bytes

__all__ = ["ArchivePart", "ExpiredRange", "LogState", "Tiers", "list_expired", "span"]

_HASH_BYTES = 32

# What was moved or archived while its hashes were read is looked up anew, so often at the most.
_ANEW_MAX = 5
_CACHED_PARTS_MAX = 200_000
# Of one tenant, and of all of them together.
_FILTER_BYTES_MAX = 64 * 2**20
_CACHED_FILTER_BYTES_MAX = 256 * 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Known(Generic[T]):
    """Something listed from the catalog, up to a watermark, as it was in a version of the catalog; `size` is
    what it counts for in its cache."""

    through: int
    value: T
    size: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class LogState:
    """A tenant's log as one snapshot sees it: seq 1 to `archived_through` are in the archive (or have expired
    there), what follows up to `last_seq` is hot. `catalog_version` rises when something that is archived
    comes to lie elsewhere, or expires."""

    archived_through: int
    last_seq: int
    last_hash: bytes
    id_lead_us: int
    catalog_version: int


@dataclass(frozen=True, slots=True)
class ExpiredRange:
    """A range of the archived log (both ends inclusive) that was destroyed; a certificate stands for it.

    The chain comes to it with `hash_before` and goes on from `hash_after`. `window_from_us` is the beginning
    of its window; None: it was destroyed with the whole log, when the tenant was offboarded.
    """

    first_seq: int
    last_seq: int
    certificate_no: int
    hash_before: bytes
    hash_after: bytes
    window_from_us: int | None


ArchivePart = Segment | ExpiredRange


def span(part: ArchivePart) -> tuple[int, int]:
    """The first and the last seq of a part of the archive."""
    found = part.range if isinstance(part, Segment) else part
    return found.first_seq, found.last_seq


def list_expired(conn: sa.Connection, tenant_id: str) -> list[ExpiredRange]:
    """What of a log was destroyed, in seq order, no seq twice. What had expired before an offboarding stays
    under its own certificate."""
    c = certificates.c
    rows = conn.execute(
        sa.select(c.kind, c.first_seq, c.last_seq, c.number, c.hash_before, c.hash_after, c.window_from)
        .where(c.tenant_id == tenant_id)
        .order_by(c.first_seq, c.number)
    )
    expired: list[ExpiredRange] = []
    whole: ExpiredRange | None = None
    for kind, first, last, number, before, after, window_from in rows:
        window_from_us = None if window_from is None else to_us(window_from)
        found = ExpiredRange(first, last, number, bytes(before), bytes(after), window_from_us)
        if kind == CertificateKind.OFFBOARDED:
            whole = found
        else:
            expired.append(found)
    return expired if whole is None else _fill(expired, whole)


def _fill(expired: Sequence[ExpiredRange], whole: ExpiredRange) -> list[ExpiredRange]:
    """The expired ranges, and between them what was left when the whole log was destroyed."""
    parts: list[ExpiredRange] = []
    at, last_hash = whole.first_seq, whole.hash_before
    for one in expired:
        if one.first_seq > at:
            rest = replace(
                whole,
                first_seq=at,
                last_seq=one.first_seq - 1,
                hash_before=last_hash,
                hash_after=one.hash_before,
            )
            parts.append(rest)
        parts.append(one)
        at, last_hash = one.last_seq + 1, one.hash_after
    if at <= whole.last_seq:
        parts.append(replace(whole, first_seq=at, hash_before=last_hash))
    return parts


def _among(
    wanted: EventFilter, seq_from: int, seq_to: int, descending: bool, limit: int, *, counted: bool = False
) -> str:
    """The look into the entity index, which a query under row-level security cannot use by itself. Where
    there are no conditions but the entity's, no more seqs are fetched than will be returned."""
    if wanted.entity_id is None:
        return ""
    plain = not counted and wanted == EventFilter(
        entity_type=wanted.entity_type,
        entity_id=wanted.entity_id,
        seq_from=wanted.seq_from,
        seq_to=wanted.seq_to,
    )
    dialect = PostgresDialect()
    entity_type = "NULL" if wanted.entity_type is None else dialect.text(wanted.entity_type)
    return (
        f" AND seq = ANY (ARRAY(SELECT hot.entity_seqs({entity_type}, {dialect.text(wanted.entity_id)},"
        f" {int(seq_from)}, {int(seq_to)}, {descending}, {int(limit) if plain else 'NULL'})))"
    )


def _span_of(column: str, edges_us: Sequence[int], dialect: DuckDialect, before: int) -> str:
    """SQL for how many of these rising times are not after a column's, found by halves."""
    if not edges_us:
        return str(before)
    middle = len(edges_us) // 2
    lower = _span_of(column, edges_us[:middle], dialect, before)
    upper = _span_of(column, edges_us[middle + 1 :], dialect, before + middle + 1)
    return f"CASE WHEN {column} < {dialect.time(edges_us[middle])} THEN {lower} ELSE {upper} END"


class Tiers:
    """The two tiers of every log. Each method is one look; `query.reader` makes one log of them."""

    def __init__(self, database: Database, scan: ArchiveScan) -> None:
        self._app = database.app
        self._scan = scan
        self._lock = threading.Lock()
        # As long as the catalog's version stays, the archive only grows: what was listed up to a watermark
        # stays so. And the filter of a segment never changes, wherever its bytes come to lie.
        self._parts: OrderedDict[str, _Known[tuple[ArchivePart, ...]]] = OrderedDict()
        self._filters: OrderedDict[str, _Known[dict[int, bytes]]] = OrderedDict()
        self._meter: Meter | None = None

    def metered(self, meter: Meter | None) -> Tiers:
        """The same tiers, whose archived hashes count by a meter (None: nobody counts). What else is read
        of the archive is counted by who walks through it."""
        metered = copy.copy(self)
        metered._meter = meter
        return metered

    def state(self, tenant_id: str) -> LogState:
        """The log's state now.

        Raises:
            TenantNotFoundError: no such tenant.
        """
        check_tenant_id(tenant_id)
        row = self._app.row(
            tenant_id,
            "SELECT w.archived_through, h.last_seq, h.last_hash, h.id_lead_us, w.catalog_version"
            f" FROM heads h JOIN watermarks w USING (tenant_id) WHERE h.tenant_id = '{tenant_id}'",
        )
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
            where=sql.SQL(
                conditions(wanted, PostgresDialect(), seq_from=seq_from, seq_to=seq_to)
                + _among(wanted, seq_from, seq_to, descending, limit)
            ),
            order=sql.SQL("DESC" if descending else "ASC"),
            limit=sql.Literal(limit),
        )
        with self._app.arrow(tenant_id) as conn, conn.cursor() as cursor:
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

    def tally_hot(
        self, tenant_id: str, wanted: EventFilter, seq_from: int, seq_to: int, edges_us: Sequence[int]
    ) -> dict[int, int]:
        """How many hot events of a seq range match, by which of the spans between these times (µs, rising)
        they were recorded in: 0 is before the first. Beware as with `hot`."""
        times = ", ".join(PostgresDialect().time(us) for us in edges_us)
        query = (
            f"SELECT width_bucket(recorded_at, ARRAY[{times}]::timestamptz[]), count(*) FROM events"
            f" WHERE tenant_id = '{check_tenant_id(tenant_id)}'"
            f" AND {conditions(wanted, PostgresDialect(), seq_from=seq_from, seq_to=seq_to)}"
            f"{_among(wanted, seq_from, seq_to, False, 0, counted=True)} GROUP BY 1"
        )
        with self._app.arrow(tenant_id) as conn, conn.cursor() as cursor:
            cursor.execute(query)
            found: dict[int, int] = dict(cursor.fetchall())
            return found

    def tally_archived(
        self,
        segments: Sequence[Segment],
        wanted: EventFilter,
        seq_from: int,
        seq_to: int,
        edges_us: Sequence[int],
    ) -> dict[int, int]:
        """As `tally_hot`, of archived events within these segments."""
        dialect = DuckDialect()
        where = conditions(wanted, dialect, seq_from=seq_from, seq_to=seq_to)
        return self._scan.tally(segments, where, _span_of("recorded_at", edges_us, dialect, 0))

    def recorded_us(self, tenant_id: str, seq: int) -> int | None:
        """When a hot event was recorded, in µs; None: it is not hot."""
        row = self._app.row(
            tenant_id,
            "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM events"
            f" WHERE tenant_id = '{check_tenant_id(tenant_id)}' AND seq = {int(seq)}",
        )
        return None if row is None else int(row[0])

    def last_recorded_us(self, tenant_id: str) -> int:
        """When the log's last event was recorded, in µs; not to be asked of an empty log."""
        row = self._app.row(
            tenant_id,
            f"SELECT last_recorded_us FROM heads WHERE tenant_id = '{check_tenant_id(tenant_id)}'",
        )
        if row is None:
            raise TenantNotFoundError(tenant_id)
        return int(row[0])

    def hashes(self, tenant_id: str, first_seq: int, last_seq: int) -> bytes:
        """The hashes of a range of events, from whichever tier has them, joined in the order of seq. Nothing
        else of the events is read.

        Raises:
            CoverageError: not every one of them exists.
            RateLimitedError: the meter has come to its end.
            TenantNotFoundError, ArchiveDamageError, TargetUnavailableError, SetupError
        """
        for anew_left in reversed(range(_ANEW_MAX + 1)):
            state = self.state(tenant_id)
            seam = min(last_seq, max(state.archived_through, first_seq - 1))
            failure: IntegrityError | TargetUnavailableError
            try:
                found = self._archived_hashes(tenant_id, state, first_seq, seam)
                if seam < last_seq:
                    found += self._hot_hashes(tenant_id, seam + 1, last_seq)
                if len(found) == _HASH_BYTES * (last_seq - first_seq + 1):
                    return found
                failure = CoverageError(
                    f"not every event of seq {first_seq} to {last_seq} of {tenant_id!r} is there",
                    hint="run eventstore verify",
                )
            except (IntegrityError, TargetUnavailableError) as e:
                failure = e
            # What was archived, moved or destroyed meanwhile is looked up anew.
            now = self.state(tenant_id)
            before = (state.archived_through, state.catalog_version)
            if not anew_left or (now.archived_through, now.catalog_version) == before:
                raise failure
        raise AssertionError("unreachable")

    def _archived_hashes(self, tenant_id: str, state: LogState, first_seq: int, last_seq: int) -> bytes:
        if first_seq > last_seq:
            return b""
        segments = [
            part
            for part in self.archive(tenant_id, state)
            if isinstance(part, Segment)
            and part.range.first_seq <= last_seq
            and part.range.last_seq >= first_seq
        ]
        if self._meter is None or not segments:
            return b"".join(self._scan.hashes(segments, first_seq, last_seq))
        self._meter.check()
        try:
            return b"".join(self._scan.hashes(segments, first_seq, last_seq))
        finally:
            self._meter.add(sum(opened_bytes(segment, first_seq, last_seq) for segment in segments))

    def _hot_hashes(self, tenant_id: str, first_seq: int, last_seq: int) -> bytes:
        query = (
            f"SELECT hash FROM events WHERE tenant_id = '{check_tenant_id(tenant_id)}'"
            f" AND seq BETWEEN {int(first_seq)} AND {int(last_seq)} ORDER BY seq"
        )
        with self._app.arrow(tenant_id) as conn, conn.cursor() as cursor:
            cursor.execute(query)
            with cursor.fetch_record_batch() as reader:
                return b"".join(value for batch in reader for value in batch.column(0).to_pylist())

    def at_hand(self, segment: Segment) -> bool:
        """Whether a segment can be read without asking its target."""
        return self._scan.at_hand(segment)

    def archive(self, tenant_id: str, state: LogState) -> Sequence[ArchivePart]:
        """What the archive holds up to the state's watermark: segments and expired ranges, in seq order.

        It may be of a later version of the catalog than the state: newer, and as right.
        """
        with self._lock:
            known = self._parts.get(tenant_id)
        if known is None or known.version != state.catalog_version or known.through < state.archived_through:
            known = self._list_parts(tenant_id, known)
        if known.through > state.archived_through:
            return [part for part in known.value if span(part)[1] <= state.archived_through]
        return known.value

    def _list_parts(
        self, tenant_id: str, known: _Known[tuple[ArchivePart, ...]] | None
    ) -> _Known[tuple[ArchivePart, ...]]:
        """List the catalog: all of it, or, if its version is still the known one, what has come since."""
        # One snapshot for the version and the lists: a list of another version would stay in use.
        with self._app.transaction(tenant_id, one_snapshot=True) as conn:
            mark = read_watermark(conn, tenant_id)
            if known is None or known.version != mark.catalog_version:
                known = _Known(0, (), version=mark.catalog_version)
            new: list[ArchivePart] = list(
                list_segments(conn, tenant_id, seq_from=known.through + 1, seq_to=mark.archived_through)
            )
            if known.through == 0:
                new += list_expired(conn, tenant_id)
        anew = known.through == 0
        parts = (*known.value, *(sorted(new, key=span) if anew else new))
        known = _Known(mark.archived_through, parts, len(parts), mark.catalog_version)
        self._remember(self._parts, tenant_id, known, _CACHED_PARTS_MAX)
        if anew:
            self._forget_filters(tenant_id, {span(part)[0] for part in parts if isinstance(part, Segment)})
        return known

    def _forget_filters(self, tenant_id: str, present: set[int]) -> None:
        """Keep the filters of segments that are still there (by their first seqs)."""
        with self._lock:
            known = self._filters.get(tenant_id)
            if known is not None and not known.value.keys() <= present:
                kept = {first_seq: bits for first_seq, bits in known.value.items() if first_seq in present}
                self._filters[tenant_id] = _Known(known.through, kept, sum(map(len, kept.values())))

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
            with self._app.transaction(tenant_id) as conn:
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
