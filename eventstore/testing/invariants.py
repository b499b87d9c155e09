"""An independent checker of a whole store: the judge after a crash, a restore or a migration.

It shares nothing with the code that it judges: catalog and hot events are read with plain SQL, segments with
plain pyarrow, and every hash is computed anew from the words of the segment format. What one module believes
by mistake, the other does not believe with it.

It may run beside appends and retention. Neither a drop nor an object's removal is MVCC, so the hot tables
(ACCESS SHARE) and the list of removals (SHARE) are locked before the snapshot is taken: nothing that the
snapshot sees can go away meanwhile. Drops, moves and expiry have to wait until the checker is through.

    report = check_store("postgresql://…", Path("/data/archive"))
    assert not report.violations, report
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg.rows import dict_row

from eventstore.testing.bookkeeping import check_bookkeeping
from eventstore.testing.destruction import Destroyed, check_certificates, check_objects, check_removals
from eventstore.testing.findings import Archive, Archives, Report, Violation, archives_by_name
from eventstore.testing.reference import (
    COLUMNS,
    TIMES,
    Row,
    chain_start,
    link,
    parse_us,
    segment_rows,
    us_sql,
)

__all__ = ["Archive", "Report", "Violation", "acknowledged_present", "check_store"]

Acknowledged = Mapping[str, Iterable[tuple[int, bytes]]]  # tenant → (seq, event_id) of stored events

_BOUNDS = re.compile(r"FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)")
_GONE = ("dropped", "expired")
_OLDER, _FROZEN = ("archived", *_GONE), ("sealed", "archived", *_GONE)
_REPAIRED = re.compile(r".*\.r\d+\.parquet")


def check_store(
    url: str,
    archive: Path | Archive | Mapping[str, Path | Archive],
    *,
    acknowledged: Acknowledged | None = None,
    destroyed_ok: bool = True,
) -> Report:
    """Read everything and hold it against every invariant; and that `acknowledged` is there, exactly once.

    `url` is a libpq URL of the tables' owner; `archive` the target, or the folder where its objects are, or
    all of them under their names. `destroyed_ok`: acknowledged events may be gone if a certificate says so.
    """
    report, archives = Report(), archives_by_name(archive)
    expected = {tenant: list(pairs) for tenant, pairs in (acknowledged or {}).items()}
    with psycopg.connect(url, row_factory=dict_row, options="-c TimeZone=UTC") as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Before the first query: locks, then snapshot.
        conn.execute("LOCK TABLE events IN ACCESS SHARE MODE")
        conn.execute("LOCK TABLE removals IN SHARE MODE")
        tenants = conn.execute(
            "SELECT t.tenant_id, t.tenant_no, t.state, h.last_seq, h.last_hash, h.last_recorded_us, h.closed,"
            " w.archived_through, w.archived_hash FROM tenants t"
            " LEFT JOIN heads h USING (tenant_id) LEFT JOIN watermarks w USING (tenant_id) ORDER BY 1"
        ).fetchall()
        gone: dict[str, list[Destroyed]] = {}
        for tenant in tenants:
            name = tenant["tenant_id"]
            check = _TenantCheck(conn, archives, report, tenant, expected.pop(name, []))
            if check.has_head():
                gone[name] = check_certificates(conn, archives, report, tenant)
                check.run(gone[name], destroyed_ok=destroyed_ok)
        for row in conn.execute("SELECT DISTINCT tenant_id FROM events"):
            if row["tenant_id"] not in {t["tenant_id"] for t in tenants}:
                report.add("tenant", f"hot events of {row['tenant_id']!r}, which is not registered")
        stored = {name: {info.key for info in found.list()} for name, found in archives.items()}
        check_removals(conn, report, stored, gone)
        check_objects(conn, report, stored)
        check_bookkeeping(conn, report)
    for name, pairs in expected.items():
        if pairs:
            report.add("acknowledged", f"{name!r} is not registered; {len(pairs)} of its events are lost")
    return report


def acknowledged_present(
    url: str, archive: Path | Archive | Mapping[str, Path | Archive], acknowledged: Acknowledged
) -> list[Violation]:
    """The acknowledged events that are not there exactly once, each under its seq; empty when all are."""
    report = check_store(url, archive, acknowledged=acknowledged)
    return [v for v in report.violations if v.kind == "acknowledged"]


class _TenantCheck:
    """One tenant's log, walked from seq 1 to its head: archive first, then the hot events above it."""

    def __init__(
        self,
        conn: psycopg.Connection[Row],
        archives: Archives,
        report: Report,
        tenant: Row,
        acknowledged: list[tuple[int, bytes]],
    ) -> None:
        self._conn, self._archives, self._report = conn, archives, report
        self._tenant = tenant
        self._name: str = tenant["tenant_id"]
        self._acknowledged = dict(acknowledged)
        self._ids = dict.fromkeys(self._acknowledged.values(), 0)
        if len(self._ids) != len(acknowledged):
            self._add("acknowledged", "one seq or one event_id was acknowledged for two events")
        self._next_seq, self._hash, self._recorded_us = 1, chain_start(self._name), -(2**63)
        # Hashes at the ends of windows and, for windows that await their drop, of every archived event.
        self._hash_at: dict[int, bytes] = {0: self._hash}
        self._awaiting: list[tuple[int, int]] = []
        self._destroyed: list[Destroyed] = []

    def has_head(self) -> bool:
        for part, column in (("head", "last_seq"), ("watermark", "archived_through")):
            if self._tenant[column] is None:
                self._add(part, "the row is missing")
        return self._tenant["last_seq"] is not None and self._tenant["archived_through"] is not None

    def run(self, destroyed: list[Destroyed], *, destroyed_ok: bool) -> None:
        """Check the tenant, of which certificates stand for `destroyed`."""
        self._destroyed = destroyed
        windows = self._rows(
            "SELECT *, {window_from} AS from_us, {window_to} AS to_us FROM windows WHERE tenant_id = %s"
            " ORDER BY window_from"
        )
        leaves = {w["leaf"]: w for w in windows if w["state"] not in _GONE}
        self._awaiting = [(w["first_seq"], w["last_seq"]) for w in windows if w["state"] == "archived"]
        ends = {w["last_seq"] for w in windows} | {self._tenant["archived_through"], self._tenant["last_seq"]}
        ends |= {d.head_seq for d in destroyed}
        self._check_segments(windows, ends)
        self._bridge()
        if self._next_seq <= self._tenant["archived_through"]:
            self._add(
                "watermark",
                f"at seq {self._tenant['archived_through']}, the archive ends at seq {self._next_seq - 1}",
            )
            self._next_seq = self._tenant["archived_through"] + 1
        self._check_hot(leaves, ends)
        self._check_ends()
        self._check_windows(windows)
        self._check_destroyed(windows)
        self._check_leaves(leaves)
        self._check_acknowledged(destroyed_ok=destroyed_ok)
        gone = sum(d.last - d.first + 1 for d in destroyed)
        self._report.events += self._tenant["last_seq"] - gone
        self._report.destroyed += gone

    def _bridge(self) -> None:
        """Go on behind what certificates stand for, if it comes next."""
        for d in self._destroyed:
            if d.first == self._next_seq <= d.last:
                if d.hash_before != self._hash:
                    self._add("certificate", f"seq {d.first} to {d.last} do not join the chain")
                self._next_seq, self._hash = d.last + 1, d.hash_after
                self._hash_at[d.last] = self._hash

    # --- the two tiers --------------------------------------------------------------------------------

    def _check_segments(self, windows: list[Row], ends: set[int | None]) -> None:
        by_from = {w["from_us"]: w for w in windows}
        segments = self._rows(
            "SELECT s.*, {window_from} AS from_us, {min_recorded_at} AS min_us, {max_recorded_at} AS max_us,"
            " (SELECT {window_to} FROM windows w WHERE (w.tenant_id, w.window_from)"
            " = (s.tenant_id, s.window_from)) AS to_us"
            " FROM segments s WHERE s.tenant_id = %s ORDER BY s.first_seq"
        )
        for segment in segments:
            key, window = segment["key"], by_from.get(segment["from_us"])
            self._bridge()
            if any(
                d.first <= segment["last_seq"] and segment["first_seq"] <= d.last for d in self._destroyed
            ):
                self._add("certificate", f"segment {key} is certified as destroyed")
            if window and segment["target"] != window["target"] and not _REPAIRED.fullmatch(key):
                self._add("target", f"segment {key} is in another target than its window")
            if segment["last_seq"] > self._tenant["archived_through"]:
                self._add("watermark", f"segment {key} lies above it")
            if window is None or window["state"] not in _OLDER:
                self._add("window", f"segment {key} belongs to a window that is not archived")
            elif not window["first_seq"] <= segment["first_seq"] <= segment["last_seq"] <= window["last_seq"]:
                self._add("window", f"segment {key} is not inside its window's seqs")
            if segment["hash_before"] != self._hash:
                self._add("segment", f"{key}: hash_before does not join the chain")
            file = self._open_segment(segment)
            count, times = 0, []
            for row in segment_rows(file) if file is not None else ():
                self._event(row, f"segment {key}", ends, archived=True)
                times.append(row["recorded_at"])
                count += 1
            if file is None:
                self._resume(segment)
            elif (segment["first_seq"] + count - 1, self._hash) != (
                segment["last_seq"],
                segment["hash_after"],
            ):
                self._add("segment", f"{key}: its rows are not those of the catalog")
            elif (times[0], times[-1]) != (segment["min_us"], segment["max_us"]):
                self._add("segment", f"{key}: its times are not those of the catalog")
            elif window and not window["from_us"] <= times[0] <= times[-1] < window["to_us"]:
                self._add("segment", f"{key}: its times are not inside its window")

    def _open_segment(self, segment: Row) -> pq.ParquetFile | None:
        key = segment["key"]
        if segment["target"] not in self._archives:
            self._add("target", f"{key} is in {segment['target']!r}, which was not given")
            return None
        try:
            with self._archives[segment["target"]].open(key) as opened:
                data = opened.read()
        except Exception as e:  # noqa: BLE001 - whatever a target raises, the segment cannot be read
            self._add("segment-missing", f"{key}: {e}")
            return None
        if len(data) != segment["size_bytes"] or hashlib.sha256(data).digest() != segment["sha256"]:
            self._add("segment-bytes", f"{key}: size or SHA-256 differ from the catalog")
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            found = {k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items()}
            if file.read().column_names != list(COLUMNS):
                self._add("segment", f"{key}: its columns are {file.schema_arrow.names}")
                return None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            self._add("segment-bytes", f"{key} cannot be read: {e}")
            return None
        expected = {
            "tenant_id": self._name,
            "window_from_us": str(segment["from_us"]),
            "window_to_us": str(segment["to_us"]),
            "hash_before": segment["hash_before"].hex(),
            "hash_after": segment["hash_after"].hex(),
            **{name: str(segment[name]) for name in ("part", "first_seq", "last_seq", "schema_version")},
        }
        for name, value in expected.items():
            own = found.get(f"eventstore.{name}")
            if own != value:
                self._add("segment", f"{key}: it says {name} {own} of itself, the catalog {value}")
        return file

    def _resume(self, segment: Row) -> None:
        """Go on behind a segment that cannot be read, so that one damage is not reported a thousand times."""
        self._next_seq, self._hash = segment["last_seq"] + 1, segment["hash_after"]
        self._hash_at[segment["last_seq"]] = self._hash

    def _check_hot(self, leaves: Mapping[str, Row], ends: set[int | None]) -> None:
        columns = ", ".join(us_sql(c) if c in TIMES else f'"{c}"' for c in COLUMNS)
        with self._conn.cursor("hot_events") as cursor:
            cursor.execute(
                f"SELECT {columns}, tableoid::regclass::text AS leaf FROM events WHERE tenant_id = %s"
                " ORDER BY seq",
                [self._name],
            )
            for row in cursor:
                seq, leaf = row["seq"], row["leaf"].removeprefix("hot.").strip('"')
                row["event_id"] = row["event_id"].bytes
                window = leaves.get(leaf)
                if window is None:
                    self._add("leaf", f"seq {seq} lies in {leaf}, which no window has")
                elif not (
                    window["from_us"] <= row["recorded_at"] < window["to_us"]
                    and window["first_seq"] <= seq <= (window["last_seq"] or seq)
                ):
                    self._add("leaf", f"seq {seq} does not belong into {leaf}")
                if seq > self._tenant["archived_through"]:
                    self._event(row, f"leaf {leaf}", ends, archived=False)
                elif window is None or window["state"] != "archived":
                    self._add("seen-twice", f"seq {seq} is archived, and still in {leaf}")
                elif row["hash"] != self._hash_at.get(seq) or row["hash"] != link(
                    self._hash_at.get(seq - 1, b""), row
                ):
                    self._add("tiers-differ", f"seq {seq} in {leaf} is not what was archived")

    def _event(self, row: Row, place: str, ends: set[int | None], *, archived: bool) -> None:
        """The next event of the log, as its tier has it."""
        seq, event_id = row["seq"], row["event_id"]
        if seq > self._next_seq:
            self._bridge()
        if seq < self._next_seq:
            self._add("seen-twice", f"seq {seq} comes again in {place}")
            return
        if seq > self._next_seq:
            self._add("gap", f"seq {self._next_seq} to {seq - 1} are missing before {place}")
            self._hash = row["hash"]  # what follows can be judged only against itself
        elif row["hash"] != link(self._hash, row):
            self._add("chain", f"it breaks at seq {seq} in {place}")
        if row["recorded_at"] < self._recorded_us:
            self._add("time", f"recorded_at goes back at seq {seq} in {place}")
        if seq in self._acknowledged and self._acknowledged[seq] != event_id:
            self._add("acknowledged", f"seq {seq} is {event_id.hex()}, not {self._acknowledged[seq].hex()}")
        if event_id in self._ids:
            self._ids[event_id] += 1
        self._next_seq, self._hash, self._recorded_us = seq + 1, row["hash"], row["recorded_at"]
        kept = archived and any(first - 1 <= seq <= last for first, last in self._awaiting)
        if kept or seq in ends:
            self._hash_at[seq] = self._hash

    # --- the catalog ----------------------------------------------------------------------------------

    def _check_ends(self) -> None:
        head = self._tenant
        self._bridge()
        if self._next_seq - 1 < head["last_seq"]:
            self._add("gap", f"seq {self._next_seq} to {head['last_seq']} are missing at the end of the log")
        elif self._next_seq - 1 > head["last_seq"]:
            self._add("head", f"it says seq {head['last_seq']}, the log ends at seq {self._next_seq - 1}")
        elif self._hash != head["last_hash"]:
            self._add("head", "its hash is not that of the last event")
        if self._recorded_us > head["last_recorded_us"]:
            self._add("head", "its clock is behind the last event")
        if self._hash_at.get(head["archived_through"]) != head["archived_hash"]:
            self._add("watermark", f"its hash is not that of seq {head['archived_through']}")

    def _check_windows(self, windows: list[Row]) -> None:
        states = [w["state"] for w in windows]
        if [s in _OLDER for s in states] != sorted((s in _OLDER for s in states), reverse=True):
            self._add("window", f"an older window is archived after a newer one: {states}")
        archived_through = max((w["last_seq"] for w in windows if w["state"] in _OLDER), default=0)
        if archived_through != self._tenant["archived_through"]:
            self._add("watermark", f"the archived windows end at seq {archived_through}")
        next_seq, end_us = 1, -(2**63)
        whole = any(d.window is None for d in self._destroyed)  # then nobody knows a hash within
        nexts = [w["first_seq"] for w in windows[1:]] + [self._tenant["last_seq"] + 1]
        for w, follows in zip(windows, nexts, strict=False):
            if w["first_seq"] != next_seq or follows <= w["first_seq"] or w["from_us"] < end_us:
                self._add("window", f"{w['leaf']} does not follow the window before it")
            ends = (self._hash_at.get(w["first_seq"] - 1), self._hash_at.get(follows - 1))
            if w["state"] in _FROZEN and (
                w["last_seq"] != follows - 1 or (not whole and ends != (w["hash_before"], w["hash_after"]))
            ):
                self._add("window", f"{w['leaf']} was not frozen as it is now")
            if w["state"] in _FROZEN and not whole and self._tenant["last_recorded_us"] < w["to_us"]:
                self._add("head", f"its clock can still write into the sealed {w['leaf']}")
            next_seq, end_us = follows, w["to_us"]

    def _check_destroyed(self, windows: list[Row]) -> None:
        """Every window that has expired has its certificate, and the other way round."""
        for d in self._destroyed:
            if self._hash_at.get(d.head_seq, d.head_hash) != d.head_hash:
                self._add("certificate", f"a certificate saw another hash at seq {d.head_seq}")
        expired = {_span(w) for w in windows if w["state"] == "expired"}
        whole = [d for d in self._destroyed if d.window is None]
        certified = {
            (*d.window, d.first, d.last, d.hash_before, d.hash_after) for d in self._destroyed if d.window
        }
        if bool(whole) != (self._tenant["state"] == "closed"):
            self._add("tenant", f"it is {self._tenant['state']}, its certificates say something else")
        if whole:
            seqs = (whole[0].first, whole[0].last, whole[0].hash_after)
            if seqs != (1, self._tenant["last_seq"], self._tenant["last_hash"]):
                self._add("certificate", "the log was offboarded, but not all of it")
            if any(w["state"] != "expired" for w in windows) or not self._tenant["closed"]:
                self._add("tenant", "it was offboarded, and something is left of it")
            return
        for span in expired ^ certified:
            what = (
                "gone without a certificate" if span in expired else "certified as destroyed, and not expired"
            )
            self._add("certificate", f"seq {span[2]} to {span[3]} are {what}")

    def _check_leaves(self, leaves: Mapping[str, Row]) -> None:
        found = {}
        for row in self._conn.execute(
            "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i"
            " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(%s)",
            [f"hot.events_{self._tenant['tenant_no']}"],
        ):
            match = _BOUNDS.fullmatch(row["bounds"])
            found[row["relname"]] = match and tuple(parse_us(text) for text in match.groups())
        for name in sorted(found.keys() | leaves.keys()):
            window = leaves.get(name)
            if window is None:
                self._add("leaf", f"partition {name} belongs to no window")
            elif found.get(name) != (window["from_us"], window["to_us"]):
                self._add("leaf", f"partition {name} is missing or has other bounds than its window")

    def _check_acknowledged(self, *, destroyed_ok: bool) -> None:
        for seq, event_id in self._acknowledged.items():
            times = self._ids[event_id]
            gone = destroyed_ok and any(d.first <= seq <= d.last for d in self._destroyed)
            if times != (0 if gone else 1):
                self._add("acknowledged", f"seq {seq} ({event_id.hex()}) is there {times} times")

    def _rows(self, query: str) -> list[Row]:
        query = re.sub(r"\{(\w+)\}", r"(extract(epoch FROM \1) * 1000000)::bigint", query)
        return self._conn.execute(query.encode(), [self._name]).fetchall()

    def _add(self, kind: str, message: str) -> None:
        self._report.add(kind, f"{self._name!r}: {message}")


def _span(window: Row) -> tuple[int, int, int, int, bytes, bytes]:
    return (
        window["from_us"],
        window["to_us"],
        window["first_seq"],
        window["last_seq"],
        bytes(window["hash_before"]),
        bytes(window["hash_after"]),
    )
