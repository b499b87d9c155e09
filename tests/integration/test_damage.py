"""Damage of every kind: it is named, never read over in silence, and nothing is dropped on its strength."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eventstore.app import Store
from eventstore.archive.cache import SegmentCache
from eventstore.archive.scan import ArchiveScan
from eventstore.archive.targets import Targets
from eventstore.clock import FixedClock
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.errors import ArchiveDamageError, IntegrityError
from eventstore.integrity.verify import VerifyReport, verify_log
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunStatus
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from eventstore.retention.compactor import Compactor
from tests.unit.helpers import (
    DAY_US,
    START_US,
    FaultyTarget,
    append,
    execute,
    fill_days,
    leaves,
    make_tenant,
    new_event,
    read,
    run_retention,
    seqs,
    tamper,
)

DAYS, PER_DAY = 4, 30
FAR_US = START_US + 30 * DAY_US


@pytest.fixture
def archived(store: Store, clock: FixedClock) -> Store:
    """Four archived days of 30 events each, and a hot day of 3."""
    make_tenant(store)
    fill_days(store, clock, "acme", DAYS, per_day=PER_DAY)
    run_retention(store, FAR_US)
    clock.move_to(FAR_US)
    append(store, "acme", *(new_event(f"hot-{n}") for n in range(3)))
    return store


@pytest.fixture
def paths(archived: Store, archive_dir: Path) -> list[Path]:
    found = sorted(archive_dir.rglob("*.parquet"))
    assert len(found) == DAYS
    return found


def key_of(path: Path, archive_dir: Path) -> str:
    return path.relative_to(archive_dir).as_posix()


def verify(store: Store) -> VerifyReport:
    return verify_log(store.tiers, store.targets, "acme")


def fresh_reader(store: Store) -> tuple[LogReader, ArchiveScan]:
    """A reader that has seen nothing yet, as a new process has."""
    scan = ArchiveScan(store.targets, SegmentCache(store.settings.resolved_home / "cache", size_bytes_max=0))
    return LogReader(Tiers(store.database, scan)), scan


def refuses(store: Store, path: Path, archive_dir: Path, wanted: EventFilter) -> None:
    """Every way that needs the segment raises, in this process and in a new one; others go on."""
    reader, scan = fresh_reader(store)
    for each in (store.reader, reader):
        for order in Order:
            with pytest.raises(ArchiveDamageError) as caught:
                list(each.stream("acme", wanted, order=order))
            assert caught.value.key == key_of(path, archive_dir)
        assert each.page("acme", EventFilter(), order=Order.DESC, limit=2).events["seq"].to_pylist() == [
            123,
            122,
        ]
    scan.close()


# --- bytes of a segment -----------------------------------------------------------------------------


def places(path: Path) -> dict[str, int]:
    """A position inside each part of a segment."""
    data = path.read_bytes()
    meta = pq.ParquetFile(path).metadata
    group = meta.row_group(0)
    found = {"magic": 0, "footer length": len(data) - 6, "last byte": len(data) - 1}
    footer_start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found["footer"] = (footer_start + len(data)) // 2
    for index, name in enumerate(EVENT_FIELDS):
        column = group.column(index)
        start = column.dictionary_page_offset or column.data_page_offset
        found[f"pages of {name}"] = start + column.total_compressed_size // 2
        if column.bloom_filter_offset is not None:
            found[f"bloom of {name}"] = column.bloom_filter_offset + column.bloom_filter_length // 2
    found["page index"] = footer_start - 20
    return found


def flip(path: Path, at: int, bit: int = 0) -> Callable[[], None]:
    """Flip a bit; the answer puts it back."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)

    def restore() -> None:
        data[at] ^= 1 << bit
        path.write_bytes(data)

    return restore


def test_a_flipped_bit_anywhere_is_named_by_verify(
    archived: Store, paths: list[Path], archive_dir: Path
) -> None:
    path = paths[1]
    size = path.stat().st_size
    positions = {**places(path), **{f"at {at}": at for at in range(1, size, size // 40)}}
    assert {"bloom of entity_id", "bloom of event_id", "page index", "footer"} <= positions.keys()
    for label, at in positions.items():
        restore = flip(path, at)
        report = verify(archived)
        assert [(p.key, p.seq) for p in report.problems] == [(key_of(path, archive_dir), 31)], label
        assert report.first_break == 31
        assert report.events == 3 * PER_DAY + 3, label  # everything else was verified all the same
        restore()
    assert verify(archived).ok


def test_a_flipped_bit_anywhere_is_never_read_over(
    archived: Store, paths: list[Path], archive_dir: Path
) -> None:
    """Even where the query would not have met it, and where decoding goes well, such as a Bloom filter."""
    path = paths[1]
    assert seqs(read(archived, "acme", seq_from=31, seq_to=60)) == list(range(31, 61))  # read intact before
    for at in places(path).values():
        restore = flip(path, at)
        refuses(archived, path, archive_dir, EventFilter(seq_from=31, seq_to=31))
        restore()
    assert seqs(read(archived, "acme")) == list(range(1, 124))


@pytest.mark.parametrize(
    "wanted",
    [{}, {"entity_id": "1"}, {"actor": "ann"}, {"recorded_from_us": START_US + DAY_US}, {"seq_to": 40}],
    ids=["all", "an entity", "an actor", "a time", "seqs"],
)
def test_every_query_that_needs_the_segment_raises(
    archived: Store, paths: list[Path], archive_dir: Path, wanted: dict[str, object]
) -> None:
    flip(paths[1], 100)
    refuses(archived, paths[1], archive_dir, EventFilter(**wanted))  # type: ignore[arg-type]


def test_queries_that_do_not_need_the_segment_are_answered(archived: Store, paths: list[Path]) -> None:
    flip(paths[1], 100)
    assert seqs(read(archived, "acme", seq_to=30)) == list(range(1, 31))
    assert seqs(read(archived, "acme", seq_from=61)) == list(range(61, 124))
    assert seqs(read(archived, "acme", recorded_from_us=START_US + 2 * DAY_US)) == list(range(61, 124))


@pytest.mark.parametrize("kept", [0, 3, 100, -1], ids=["empty", "3 bytes", "100 bytes", "all but one"])
def test_a_truncated_segment(archived: Store, paths: list[Path], archive_dir: Path, kept: int) -> None:
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[:kept])
    assert [(p.key, p.seq) for p in verify(archived).problems] == [(key_of(paths[2], archive_dir), 61)]
    refuses(archived, paths[2], archive_dir, EventFilter())


def test_a_longer_segment(archived: Store, paths: list[Path], archive_dir: Path) -> None:
    paths[2].write_bytes(paths[2].read_bytes() + b"\0")
    assert [p.key for p in verify(archived).problems] == [key_of(paths[2], archive_dir)]


@pytest.mark.parametrize("index", [0, 1, DAYS - 1], ids=["first", "in between", "last"])
def test_a_deleted_segment(archived: Store, paths: list[Path], archive_dir: Path, index: int) -> None:
    paths[index].unlink()
    report = verify(archived)
    assert [(p.key, p.seq) for p in report.problems] == [
        (key_of(paths[index], archive_dir), index * PER_DAY + 1)
    ]
    assert "missing" in report.problems[0].message
    refuses(archived, paths[index], archive_dir, EventFilter())


def test_swapped_segments(archived: Store, paths: list[Path], archive_dir: Path) -> None:
    one, two = paths[0].read_bytes(), paths[2].read_bytes()
    paths[0].write_bytes(two)
    paths[2].write_bytes(one)
    assert [p.key for p in verify(archived).problems] == [key_of(paths[n], archive_dir) for n in (0, 2)]
    with pytest.raises(ArchiveDamageError):
        read(archived, "acme", seq_to=5)
    assert seqs(read(archived, "acme", seq_from=31, seq_to=60)) == list(range(31, 61))


def test_every_damage_is_named_not_the_first_alone(
    archived: Store, paths: list[Path], archive_dir: Path
) -> None:
    flip(paths[0], 50)
    paths[3].unlink()
    report = verify(archived)
    assert [p.key for p in report.problems] == [key_of(paths[n], archive_dir) for n in (0, 3)]
    assert (report.first_break, report.segments, report.events) == (1, DAYS, 2 * PER_DAY + 3)


def test_a_segment_forged_with_its_catalog_row_is_seen_by_the_chain(
    archived: Store, paths: list[Path], archive_dir: Path
) -> None:
    """Somebody rewrites a segment and the SHA-256 that the catalog has of it: the chain still knows."""
    source = pq.ParquetFile(paths[1])
    table = source.read()
    index = table.schema.get_field_index("actor")
    forged = table.column("actor").to_pylist()
    forged[7] = "eve"
    table = table.set_column(index, table.schema.field(index), [forged])
    with pq.ParquetWriter(paths[1], source.schema_arrow, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(source.metadata.metadata))
    data = paths[1].read_bytes()
    execute(
        archived.database.url,
        "UPDATE segments SET sha256 = %s, size_bytes = %s, entity_filter = NULL WHERE first_seq = 31",
        [hashlib.sha256(data).digest(), len(data)],
    )
    _reader, scan = fresh_reader(archived)
    report = verify_log(Tiers(archived.database, scan), archived.targets, "acme")
    scan.close()
    assert [(p.seq, p.key) for p in report.problems] == [(38, key_of(paths[1], archive_dir))]
    assert "altered" in report.problems[0].message


def test_a_filter_of_the_catalog_that_is_not_the_segments(
    archived: Store, paths: list[Path], archive_dir: Path
) -> None:
    """It would keep queries from opening a segment that holds what they look for."""
    execute(archived.database.url, "UPDATE segments SET entity_filter = %s WHERE first_seq = 31", [bytes(32)])
    _, scan = fresh_reader(archived)
    report = verify_log(Tiers(archived.database, scan), archived.targets, "acme")
    scan.close()
    assert [(p.seq, p.key) for p in report.problems] == [(31, key_of(paths[1], archive_dir))]


def test_a_segment_that_the_catalog_forgot(archived: Store, paths: list[Path]) -> None:
    execute(archived.database.url, "DELETE FROM segments WHERE first_seq = 31")
    reader, scan = fresh_reader(archived)
    report = verify_log(Tiers(archived.database, scan), archived.targets, "acme")
    assert report.first_break == 31
    # Also where a condition leaves events out, so that their number says nothing.
    for wanted in (EventFilter(), EventFilter(entity_id="1"), EventFilter(actor="ann")):
        for order in Order:
            with pytest.raises(IntegrityError, match="covers seq 31"):
                list(reader.stream("acme", wanted, order=order))
    scan.close()


# --- partial answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", Order)
def test_a_partial_answer_names_what_is_missing(
    archived: Store, paths: list[Path], archive_dir: Path, order: Order
) -> None:
    flip(paths[1], 100)
    page = archived.reader.page("acme", EventFilter(), order=order, limit=1000, partial=True)
    expected = [*range(1, 31), *range(61, 124)]
    assert page.events["seq"].to_pylist() == (expected if order is Order.ASC else expected[::-1])
    (missing,) = page.coverage.unreadable
    assert (missing.key, missing.first_seq, missing.last_seq) == (key_of(paths[1], archive_dir), 31, 60)
    assert missing.window_from_us == START_US + DAY_US
    assert "SHA-256" in missing.error


# --- damage before the drop -------------------------------------------------------------------------


@pytest.fixture
def hot(store: Store, clock: FixedClock) -> Store:
    make_tenant(store)
    fill_days(store, clock, "acme", 1, per_day=PER_DAY)
    return store


def test_a_segment_damaged_between_write_and_verify_stops_the_window(hot: Store, archive_dir: Path) -> None:
    """Wherever the damage is, also where no value shows it: a Bloom filter or a page index that lies would
    hide events from queries for ever."""
    url = hot.database.url
    log = read(hot, "acme")
    labels: list[str] = []
    for n in range(100):
        done: list[str] = []

        def damage(key: str, n: int = n, done: list[str] = done) -> None:
            path = archive_dir / key
            found = sorted(places(path).items())
            if n < len(found):
                flip(path, found[n][1])
                done.append(found[n][0])

        compactor = Compactor(
            hot.database, Targets.single(FaultyTarget(hot.target, after_put=damage)), hot.key
        )
        report = compactor.run(compactor.tenants(), FAR_US)
        if not done:
            break
        labels += done
        assert report.status is RunStatus.FAILED, done
        assert ".p000.parquet" in str(report.outcomes[0].error), done
        assert execute(url, "SELECT state FROM windows") == [("sealed",)], done
        # Nor does the next run take it over.
        assert run_retention(hot, FAR_US).status is RunStatus.FAILED, done
        assert len(leaves(url)) == 1
        assert read(hot, "acme") == log
        for path in archive_dir.rglob("*.parquet"):
            path.unlink()
    assert {"bloom of entity_id", "page index", "footer", "pages of hash"} <= set(labels)
    assert report.status is RunStatus.COMPLETED  # undamaged at last
    assert read(hot, "acme") == log
    assert verify(hot).ok


@pytest.mark.parametrize("kind", ["gone", "truncated", "another"])
def test_what_is_read_back_must_be_what_was_written(hot: Store, archive_dir: Path, kind: str) -> None:
    def damage(key: str) -> None:
        path = archive_dir / key
        data = path.read_bytes()
        path.unlink()
        if kind != "gone":
            path.write_bytes(data[: len(data) // 2] if kind == "truncated" else b"PAR1 nothing PAR1")

    compactor = Compactor(hot.database, Targets.single(FaultyTarget(hot.target, after_put=damage)), hot.key)
    report = compactor.run(compactor.tenants(), FAR_US)
    assert report.status is RunStatus.FAILED
    assert execute(hot.database.url, "SELECT state FROM windows") == [("sealed",)]
    assert seqs(read(hot, "acme")) == list(range(1, PER_DAY + 1))


# --- the hot tier and the head ----------------------------------------------------------------------


def test_an_altered_hot_event_is_named(hot: Store) -> None:
    (leaf,) = leaves(hot.database.url)
    for column, value in (
        ("actor", "'eve'"),
        ("new_value", "NULL"),
        ("occurred_at", "now()"),
        ("hash", "sha256('')"),
    ):
        before = execute(hot.database.url, f"SELECT {column} FROM {leaf} WHERE seq = 7")[0][0]
        tamper(hot.database.url, leaf, f"UPDATE {leaf} SET {column} = {value} WHERE seq = 7")
        report = verify(hot)
        assert (report.first_break, report.problems[0].key) == (7, None), column
        execute(hot.database.url, f"ALTER TABLE {leaf} DISABLE TRIGGER refuse_change")
        execute(hot.database.url, f"UPDATE {leaf} SET {column} = %s WHERE seq = 7", [before])
        assert verify(hot).ok


def test_an_event_altered_with_its_hash_is_named_by_the_next_one(hot: Store) -> None:
    (leaf,) = leaves(hot.database.url)
    tamper(hot.database.url, leaf, f"UPDATE {leaf} SET hash = sha256('x') WHERE seq = {PER_DAY}")
    assert verify(hot).first_break == PER_DAY


@pytest.mark.parametrize("seq", [1, 7, PER_DAY], ids=["first", "in between", "last"])
def test_a_deleted_hot_event_is_named(hot: Store, seq: int) -> None:
    (leaf,) = leaves(hot.database.url)
    tamper(hot.database.url, leaf, f"DELETE FROM {leaf} WHERE seq = {seq}")
    assert verify(hot).first_break == seq
    with pytest.raises(IntegrityError, match="should hold seq"):
        read(hot, "acme")


def test_two_swapped_hot_events_are_named(hot: Store) -> None:
    (leaf,) = leaves(hot.database.url)
    for change in (
        f"SET seq = -1 WHERE seq = {PER_DAY}",
        f"SET seq = {PER_DAY} WHERE seq = 9",
        "SET seq = 9 WHERE seq = -1",
    ):
        tamper(hot.database.url, leaf, f"UPDATE {leaf} {change}")
    assert verify(hot).first_break == 9


@pytest.mark.parametrize(
    "change",
    ["last_hash = sha256('')", "last_seq = last_seq + 1", "last_seq = last_seq - 1"],
    ids=["its hash", "too far", "not far enough"],
)
def test_a_changed_head_is_named(archived: Store, change: str) -> None:
    execute(archived.database.url, f"UPDATE heads SET {change}")
    report = verify(archived)
    assert not report.ok
    assert report.first_break in (122, 123, 124)


def test_a_whole_log_is_whole(archived: Store) -> None:
    report = verify(archived)
    assert (report.ok, report.events, report.segments, report.last_seq, report.first_break) == (
        True,
        123,
        4,
        123,
        None,
    )
