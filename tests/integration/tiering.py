"""A log over Postgres and several archive targets, whose windows a test archives, moves and destroys by hand;
for `test_reader_tiers`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import pyarrow as pa

from eventstore.archive.bloom import entity_filter
from eventstore.archive.cache import SegmentCache
from eventstore.archive.layout import segment_key
from eventstore.archive.parquet import RowGroup, SegmentWriter
from eventstore.archive.scan import ArchiveScan
from eventstore.archive.target import ArchiveTarget, ObjectInfo
from eventstore.archive.targets import Targets
from eventstore.archive.verify import read_segment
from eventstore.catalog.tenants import add_tenant
from eventstore.catalog.windows import (
    cut_over,
    expire_window,
    list_segments,
    list_windows,
    move_segments,
)
from eventstore.columns.canonical import int64_values
from eventstore.db.engine import Database
from eventstore.errors import TargetUnavailableError
from eventstore.governance.certificates import next_certificate, store_certificate
from eventstore.governance.signing import SigningKey
from eventstore.hot.batch import pending_batch
from eventstore.hot.drop import drop_window
from eventstore.hot.log import log_transaction
from eventstore.hot.read import leaf_batches
from eventstore.hot.seal import seal_window
from eventstore.model.certificate import Certificate, CertificateKind
from eventstore.model.segment import Segment, SegmentRange, VerifiedSegment
from eventstore.model.subtrees import lost_subtrees
from eventstore.model.window import WindowRecord, WindowUnit
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from tests.unit.helpers import DAY_US, HOUR_US, START_US, execute, new_event

__all__ = ["PER_DAY", "Lab", "Tiered", "Watched"]

PER_DAY = 5
_numbers = itertools.count(1)


class Watched:
    """A target that counts what is asked of it, may be switched off, and lets a test do something right
    before an object is looked at."""

    def __init__(self, inner: ArchiveTarget) -> None:
        self.inner = inner
        self.down = False
        self.asked: list[str] = []
        self.before: Callable[[str], None] | None = None

    def _look(self, key: str) -> None:
        self.asked.append(key)
        if self.down:
            raise TargetUnavailableError(f"{self.describe()} is away")
        if self.before is not None:
            before, self.before = self.before, None
            before(key)

    def stage(self, key: str) -> Path:
        return self.inner.stage(key)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        return self.inner.put(key, staged, retain_until_us=retain_until_us)

    def open(self, key: str) -> BufferedIOBase:
        self._look(key)
        return self.inner.open(key)

    def stat(self, key: str) -> ObjectInfo:
        self._look(key)
        return self.inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def local_path(self, key: str) -> Path | None:
        return self.inner.local_path(key)

    def describe(self) -> str:
        return self.inner.describe()


class Lab:
    """A database, a local target `archive` and two remote ones, `near` and `deep`."""

    def __init__(self, database: Database, folder: Path) -> None:
        number = next(_numbers)
        self.database, self.folder = database, folder
        self.key = SigningKey.generate()
        urls = {
            "archive": (folder / "archive").as_uri(),
            "near": f"memory://near-{number}",
            "deep": f"memory://deep-{number}",
        }
        (folder / "archive").mkdir(parents=True, exist_ok=True)
        self.targets = Targets(urls, default="archive")
        self.watched = {name: Watched(self.targets[name]) for name in urls}
        self.targets._open.update(self.watched)

    def reader(self, name: str = "cache", *, size_bytes_max: int = 2**20) -> tuple[LogReader, Tiers]:
        """A reader that knows nothing yet, as a new process has; its cache is the folder of that name."""
        cache = SegmentCache(self.folder / name, size_bytes_max=size_bytes_max)
        tiers = Tiers(self.database, ArchiveScan(self.targets, cache))
        return LogReader(tiers), tiers

    def tenant(self, days: int, *, per_day: int = PER_DAY) -> Tiered:
        return Tiered(self, days, per_day)


class Tiered:
    """A tenant with a window a day, all hot at first. Day n (from 0) holds seq n * per_day + 1 and on; entity
    ids go round 0, 1, 2, and entity `day-n` occurs on that day only."""

    def __init__(self, lab: Lab, days: int, per_day: int) -> None:
        self.lab, self.days, self.per_day = lab, days, per_day
        self.name = f"t-{next(_numbers)}"
        with lab.database.transaction() as conn:
            self.tenant = add_tenant(conn, self.name, WindowUnit.DAY)
        for day in range(days):
            events = [new_event(f"day-{day}"), *(new_event(str(n % 3)) for n in range(1, per_day))]
            self.append(START_US + day * DAY_US + 12 * HOUR_US, *events)

    def append(self, at_us: int, *events: object) -> None:
        with (
            self.lab.database.connection() as conn,
            log_transaction(conn, self.name, {}) as log,
        ):
            log.write(pending_batch(events), np.full(len(events), at_us, dtype=np.int64))  # type: ignore[arg-type]

    def day(self, day: int) -> list[int]:
        return list(range(day * self.per_day + 1, (day + 1) * self.per_day + 1))

    def record(self, day: int) -> WindowRecord:
        with self.lab.database.transaction() as conn:
            return list_windows(conn, self.name)[day]

    def segments(self, day: int) -> list[Segment]:
        seqs = self.day(day)
        with self.lab.database.transaction() as conn:
            return list_segments(conn, self.name, seq_from=seqs[0], seq_to=seqs[-1])

    def archive(self, day: int, target: str = "archive") -> None:
        """Seal, write (in two segments), cut over and drop a day."""
        database = self.lab.database
        record = seal_window(database, self.tenant, self.record(day), target=target)
        events = pa.Table.from_batches(list(leaf_batches(database, record.leaf)))
        half = (events.num_rows + 1) // 2
        verified: list[VerifiedSegment] = []
        last_hash = record.hash_before
        assert last_hash is not None
        for part, rows in enumerate(t for t in (events.slice(0, half), events.slice(half)) if t.num_rows):
            made = self._write(record, part, rows.combine_chunks(), last_hash, target)
            verified.append(made)
            last_hash = made.segment.range.hash_after
        with database.transaction() as conn:
            cut_over(conn, record, verified)
        drop_window(database, self.tenant, record, verified)

    def _write(
        self, record: WindowRecord, part: int, events: pa.Table, hash_before: bytes, target: str
    ) -> VerifiedSegment:
        store = self.lab.watched[target].inner
        seqs, times = int64_values(events["seq"].chunk(0)), int64_values(events["recorded_at"].chunk(0))
        found = SegmentRange(
            tenant_id=self.name,
            window=record.window,
            part=part,
            first_seq=int(seqs[0]),
            last_seq=int(seqs[-1]),
            hash_before=hash_before,
            hash_after=events["hash"][-1].as_py(),
        )
        key = segment_key(self.name, record.window, part)
        path = store.stage(key)
        with SegmentWriter(path, rows_left=events.num_rows) as writer:
            writer.write(RowGroup(events, events.nbytes))
            writer.finish(found)
        data = path.read_bytes()
        assert store.put(key, path)
        content = read_segment(store, key)
        segment = Segment(
            range=found,
            key=key,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            min_recorded_at_us=int(times[0]),
            max_recorded_at_us=int(times[-1]),
            target=target,
        )
        return VerifiedSegment(segment, entity_filter(content.file, content.data))

    def copy(self, day: int, target: str) -> list[VerifiedSegment]:
        """Copy a day's segments to another target; the catalog does not know yet."""
        to = self.lab.watched[target].inner
        copies = []
        for segment in self.segments(day):
            staged = to.stage(segment.key)
            with self.lab.watched[segment.target].inner.open(segment.key) as file:
                staged.write_bytes(file.read())
            to.put(segment.key, staged)
            copies.append(VerifiedSegment(replace(segment, target=target)))
        return copies

    def delete(self, segments: list[Segment]) -> None:
        for segment in segments:
            self.lab.watched[segment.target].inner.delete(segment.key)

    def move(self, day: int, target: str) -> None:
        """Copy, commit, and delete the former copies."""
        former, copies = self.segments(day), self.copy(day, target)
        with self.lab.database.transaction() as conn:
            move_segments(conn, self.record(day), copies, target)
        self.delete(former)

    def expire(self, day: int) -> int:
        """Destroy a day under a certificate, whose number this is."""
        former, record = self.segments(day), self.record(day)
        assert record.last_seq is not None
        assert record.hash_before is not None
        assert record.hash_after is not None
        (store_id,) = execute(self.lab.database.url, "SELECT store_id::text FROM deployment")[0]
        last_seq, last_hash, last_us = execute(
            self.lab.database.url,
            "SELECT last_seq, last_hash, last_recorded_us FROM heads WHERE tenant_id = %s",
            [self.name],
        )[0]
        with self.lab.database.transaction() as conn:
            number, previous = next_certificate(conn, self.name)
            certificate = Certificate(
                store_id=store_id,
                tenant_id=self.name,
                number=number,
                previous_sha256=previous,
                kind=CertificateKind.EXPIRED,
                window_from_us=record.window.from_us,
                window_to_us=record.window.to_us,
                first_seq=record.first_seq,
                last_seq=record.last_seq,
                event_count=self.per_day,
                hash_before=record.hash_before,
                hash_after=record.hash_after,
                segments=(),
                subtrees=lost_subtrees(record.first_seq, record.last_seq),
                policy_version=0,
                policy="test",
                head_seq=last_seq,
                head_hash=last_hash,
                head_recorded_at_us=last_us,
                decided_by="test",
                reason="test",
                issued_at_us=last_us,
                signed_at_us=last_us,
            )
            store_certificate(conn, certificate, self.lab.key)
            expire_window(conn, self.name, record)
        self.delete(former)
        return number

    def offboard(self) -> int:
        """Destroy the whole log, hot events too, under a certificate."""
        url = self.lab.database.url
        last_seq, last_hash = execute(
            url, "SELECT last_seq, last_hash FROM heads WHERE tenant_id = %s", [self.name]
        )[0]
        start = self.record(0).hash_before
        with self.lab.database.transaction() as conn:
            number, _ = next_certificate(conn, self.name)
            segments = list_segments(conn, self.name)
            driver = conn.connection.driver_connection
            assert driver is not None
            driver.execute(
                "INSERT INTO certificates (tenant_id, number, kind, first_seq, last_seq, hash_before,"
                " hash_after, payload_sha256, envelope, issued_us)"
                " VALUES (%s, %s, 'offboarded', 1, %s, %s, %s, '', '', 0)",
                [self.name, number, last_seq, start, last_hash],
            )
            driver.execute("DELETE FROM segments WHERE tenant_id = %s", [self.name])
            driver.execute(
                "UPDATE watermarks SET archived_through = %s, archived_hash = %s,"
                " catalog_version = catalog_version + 1 WHERE tenant_id = %s",
                [last_seq, last_hash, self.name],
            )
            for (leaf,) in driver.execute(
                "SELECT leaf FROM windows WHERE tenant_id = %s AND state = 'open'", [self.name]
            ).fetchall():
                driver.execute(f"DROP TABLE hot.{leaf}")
        self.delete(segments)
        return number

    def drop_only_in_catalog(self, day: int) -> None:
        """What nobody may do: take a day's segments out of the catalog without a certificate."""
        seqs = self.day(day)
        execute(
            self.lab.database.url,
            "DELETE FROM segments WHERE tenant_id = %s AND first_seq BETWEEN %s AND %s",
            [self.name, seqs[0], seqs[-1]],
        )
