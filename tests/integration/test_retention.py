"""Runs of retention: order, resuming, refusing, determinism, conflicts, adoption, the journal."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pyarrow.parquet as pq
import pytest

from eventstore.app import Store, open_store
from eventstore.archive import parquet
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.clock import FixedClock, SystemClock, to_us
from eventstore.errors import InputError, TargetUnavailableError, TenantNotFoundError
from eventstore.integrity.verify import verify_log
from eventstore.model.event import uuid7
from eventstore.model.run import RunReport, RunStatus
from eventstore.model.window import WindowState
from eventstore.retention import archiving as archiving_module
from eventstore.retention.compactor import Compactor, check_now
from eventstore.settings import Settings
from eventstore.testing.invariants import check_store
from tests.conftest import create_database
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
)

FAR_US = START_US + 30 * DAY_US


def state_of(url: str, tenant: str = "acme") -> list[str]:
    rows = execute(url, "SELECT state FROM windows WHERE tenant_id = %s ORDER BY window_from", [tenant])
    return [state for (state,) in rows]


def entries(url: str, report: RunReport) -> list[tuple[str, str | None, Any]]:
    rows = execute(
        url,
        "SELECT kind, tenant_id, detail, entry_no FROM run_entries WHERE run_id = %s ORDER BY entry_no",
        [report.run_id],
    )
    return [row[:3] for row in rows]


def kinds(url: str, report: RunReport) -> list[str]:
    return [kind for kind, _, _ in entries(url, report)]


def files(folder: Path) -> dict[str, bytes]:
    """All segments in the archive (staged files, too)."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {key: data for key, data in found.items() if key.startswith("tenant_id=")}


def whole(store: Store, archive_dir: Path, *tenants: str) -> None:
    """Both judges: the store's own proof, and the independent checker."""
    for tenant in tenants or ("acme",):
        report = verify_log(store.tiers, store.targets, tenant)
        assert report.ok, report.problems
    independent = check_store(store.database.url, archive_dir)
    assert not independent.violations, independent


def with_target(store: Store, **faults: Any) -> Compactor:
    return compactor_on(store, FaultyTarget(store.target, **faults))


def compactor_on(store: Store, target: ArchiveTarget) -> Compactor:
    return Compactor(store.database, Targets.single(target), store.key, retry_pauses_s=())


def run_with(store: Store, compactor: Compactor, now_us: int = FAR_US) -> RunReport:
    return compactor.run(compactor.tenants(), now_us)


# --- a run ------------------------------------------------------------------------------------------


def test_a_run_archives_what_is_due_and_leaves_the_rest(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    make_tenant(store, hot_for_us=2 * DAY_US)
    fill_days(store, clock, "acme", 6)
    before = read(store, "acme")
    report = run_retention(store, START_US + 5 * DAY_US)  # days 0, 1, 2 ended two days ago
    (outcome,) = report.outcomes
    assert report.status is RunStatus.COMPLETED
    assert (outcome.windows, outcome.events, outcome.segments, outcome.error) == (3, 15, 3, None)
    assert state_of(store.database.url) == ["dropped"] * 3 + ["open"] * 3
    assert len(leaves(store.database.url)) == 3
    found = files(archive_dir)
    assert sorted(found) == [
        "tenant_id=acme/month=2024-03/"
        f"archive.acme.202403{d:02d}T000000Z-202403{d + 1:02d}T000000Z.p000.parquet"
        for d in (1, 2, 3)
    ]
    assert outcome.size_bytes == sum(map(len, found.values()))
    assert read(store, "acme") == before
    whole(store, archive_dir)


def test_the_edge_of_hot_for_is_exact(store: Store, clock: FixedClock) -> None:
    make_tenant(store, hot_for_us=5_000_000)
    fill_days(store, clock, "acme", 1)
    due_us = START_US + DAY_US + 5_000_000
    assert run_retention(store, due_us - 1).outcomes[0].windows == 0
    assert run_retention(store, due_us).outcomes[0].windows == 1


def test_the_steps_come_in_order_and_each_before_the_next(store: Store, clock: FixedClock) -> None:
    """What is durable at the moment the segment is stored, and at the moment it is read back."""
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    url = store.database.url
    seen: list[tuple[str, list[str], int, int]] = []

    def look(step: str) -> Callable[[str], None]:
        def at(key: str) -> None:
            seen.append((step, state_of(url), store.tiers.state("acme").archived_through, len(leaves(url))))

        return at

    report = run_with(store, with_target(store, after_put=look("put"), before_open=look("read back")))
    assert report.status is RunStatus.COMPLETED
    assert seen == [("put", ["sealed"], 0, 1), ("read back", ["sealed"], 0, 1)]
    assert state_of(url) == ["dropped"]
    assert (store.tiers.state("acme").archived_through, leaves(url)) == (5, [])


def test_the_journal_tells_the_run(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    make_tenant(store, "idle")
    fill_days(store, clock, "acme", 2, per_day=4)
    report = run_retention(store, FAR_US)
    url = store.database.url
    found = entries(url, report)
    per_window = [
        "window_started",
        "file_written",
        "validation_result",
        "reconciliation_result",
        "window_completed",
    ]
    assert [k for k, _, _ in found] == ["plan_resolved", *per_window, *per_window, "run_completed"]
    assert [tenant for _, tenant, _ in found] == ["acme"] * 11 + [None]
    plan = found[0][2]
    assert [(w["first_seq"], w["events"], w["state"]) for w in plan["due"]] == [
        (1, 4, "open"),
        (5, 4, "open"),
    ]
    written = found[2][2]
    assert (written["rows"], written["part"], written["created"]) == (4, 0, True)
    assert written["size_bytes"] == store.target.stat(written["name"]).size_bytes
    assert found[4][2] == {"source_count": 4, "archived_rows": 4, "matched": True}
    assert found[5][2]["events"] == 4
    assert set(found[5][2]["steps_ms"]) == {"seal", "write and verify", "cut over", "drop"}
    ended = found[-1][2]
    assert (ended["status"], ended["windows"], ended["windows_failed"], ended["events"]) == (
        "completed",
        2,
        0,
        8,
    )
    rows = execute(url, "SELECT status, now_us, finished_at >= started_at FROM runs")
    assert rows == [("completed", FAR_US, True)]


def test_a_second_run_does_nothing(store: Store, clock: FixedClock, archive_dir: Path) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 2)
    run_retention(store, FAR_US)
    before = {p: p.stat().st_ctime_ns for p in archive_dir.rglob("*")}
    report = run_retention(store, FAR_US)
    assert (report.status, report.outcomes[0].windows) == (RunStatus.COMPLETED, 0)
    assert kinds(store.database.url, report) == ["run_completed"]
    assert {p: p.stat().st_ctime_ns for p in archive_dir.rglob("*")} == before


def test_a_window_of_one_event(store: Store, clock: FixedClock, archive_dir: Path) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 3, per_day=1)
    before = read(store, "acme")
    assert run_retention(store, FAR_US).outcomes[0].events == 3
    assert read(store, "acme") == before
    whole(store, archive_dir)


def test_a_log_without_events(store: Store) -> None:
    make_tenant(store)
    report = run_retention(store, FAR_US)
    assert (report.status, report.outcomes[0].windows) == (RunStatus.COMPLETED, 0)
    assert read(store, "acme") == []


def test_only_the_named_tenant(store: Store, clock: FixedClock) -> None:
    for name in ("acme", "b"):
        make_tenant(store, name)
        fill_days(store, clock, name, 1)
        clock.move_to(START_US)
    run_retention(store, FAR_US, "b")
    assert (state_of(store.database.url), state_of(store.database.url, "b")) == (["open"], ["dropped"])
    with pytest.raises(TenantNotFoundError):
        run_retention(store, FAR_US, "nobody")


def test_the_future_is_refused(store: Store) -> None:
    make_tenant(store)
    later_us = SystemClock().now_us() + 60_000_000
    with pytest.raises(InputError, match="future"):
        run_retention(store, later_us)
    assert execute(store.database.url, "SELECT * FROM runs") == []
    assert check_now(START_US) == START_US


def test_a_plan_changes_nothing(store: Store, clock: FixedClock, archive_dir: Path) -> None:
    tenant = make_tenant(store)
    fill_days(store, clock, "acme", 2)
    plan = store.compactor.plan(tenant, FAR_US)
    assert [w.record.state for w in plan.due] == [WindowState.OPEN] * 2
    assert state_of(store.database.url) == ["open"] * 2
    assert files(archive_dir) == {}
    assert execute(store.database.url, "SELECT * FROM runs") == []


def test_appends_go_on_while_a_window_is_archived(store: Store, clock: FixedClock, archive_dir: Path) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 1)

    def write(key: str) -> None:
        append(store, "acme", new_event("meanwhile"))
        assert seqs(read(store, "acme")) == list(range(1, store.tiers.state("acme").last_seq + 1))

    run_with(store, with_target(store, after_put=write, before_open=write), START_US + DAY_US)
    assert [row["entity_id"] for row in read(store, "acme")[5:]] == ["meanwhile"] * 2
    assert to_us(read(store, "acme")[5]["recorded_at"]) == START_US + DAY_US
    whole(store, archive_dir)


# --- resuming ---------------------------------------------------------------------------------------


def broken(step: str) -> Callable[[str], None]:
    def fail(key: str) -> None:
        raise TargetUnavailableError(f"pulled the plug at {step}")

    return fail


@pytest.mark.parametrize("step", ["after_put", "before_open"])
def test_a_sealed_window_is_taken_up_again(
    store: Store, clock: FixedClock, archive_dir: Path, step: str
) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 2)
    before = read(store, "acme")
    failed = run_with(store, with_target(store, **{step: broken(step)}))
    assert failed.status is RunStatus.FAILED
    assert step in str(failed.outcomes[0].error)
    assert state_of(store.database.url) == ["sealed", "open"]
    assert read(store, "acme") == before
    stored = files(archive_dir)
    assert len(stored) == 1
    append(store, "acme", new_event("later"))
    report = run_retention(store, FAR_US)
    assert report.status is RunStatus.COMPLETED
    written = [detail for kind, _, detail in entries(store.database.url, report) if kind == "file_written"]
    assert [detail["created"] for detail in written] == [False, True]  # found its own work
    assert stored.items() <= files(archive_dir).items()
    assert read(store, "acme")[:10] == before
    whole(store, archive_dir)


def test_a_retry_archives_the_same_range(store: Store, clock: FixedClock) -> None:
    """What was frozen stays so, although events were added since."""
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    run_with(store, with_target(store, after_put=broken("put")))
    rows = "SELECT first_seq, last_seq, hash_before, hash_after FROM windows WHERE first_seq = 1"
    frozen = execute(store.database.url, rows)
    for _ in range(3):
        append(store, "acme", new_event())
        run_with(store, with_target(store, before_open=broken("read")))
        assert execute(store.database.url, rows) == frozen
    run_retention(store, FAR_US)
    assert execute(store.database.url, rows) == frozen
    assert frozen[0][:2] == (1, 5)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving_module, "_DROP_PAUSES_S", (0.0,))


@pytest.mark.usefixtures("no_pauses")
def test_a_drop_that_a_reader_holds_up_waits_for_the_next_run(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    before = read(store, "acme")
    with psycopg.connect(store.database.url) as reader:
        reader.execute("SELECT count(*) FROM events WHERE tenant_id = 'acme'")
        report = run_retention(store, FAR_US)
        # Archived and verified: no failure, but a warning.
        assert report.status is RunStatus.COMPLETED
        assert "not dropped yet" in report.outcomes[0].warnings[0]
        assert "readers hold the table of 'acme'" in report.outcomes[0].warnings[0]
        assert state_of(store.database.url) == ["archived"]
        assert len(leaves(store.database.url)) == 1
        assert store.tiers.state("acme").archived_through == 5
        assert read(store, "acme") == before  # each event once, although both tiers hold it
        whole(store, archive_dir)
    assert kinds(store.database.url, report).count("retry") == 1
    assert "warning" in kinds(store.database.url, report)
    again = run_retention(store, FAR_US)
    assert state_of(store.database.url) == ["dropped"]
    assert leaves(store.database.url) == []
    assert "file_written" in kinds(store.database.url, again)  # verified once more before the drop
    assert read(store, "acme") == before
    whole(store, archive_dir)


@pytest.mark.usefixtures("no_pauses")
def test_an_archived_window_whose_segment_went_away_is_never_dropped(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    with psycopg.connect(store.database.url) as reader:
        reader.execute("SELECT count(*) FROM events WHERE tenant_id = 'acme'")
        run_retention(store, FAR_US)
    (path,) = archive_dir.rglob("*.parquet")
    segment = path.read_bytes()
    path.write_bytes(segment[:-1] + b"X")
    failed = run_retention(store, FAR_US)
    assert failed.status is RunStatus.FAILED
    assert path.name in str(failed.outcomes[0].error)
    assert (state_of(store.database.url), len(leaves(store.database.url))) == (["archived"], 1)
    path.write_bytes(segment)
    assert run_retention(store, FAR_US).status is RunStatus.COMPLETED
    assert state_of(store.database.url) == ["dropped"]


# --- windows are known by their bounds --------------------------------------------------------------


def two_tenants(store: Store, clock: FixedClock) -> None:
    for name in ("a-first", "acme", "z-last"):
        make_tenant(store, name)
        fill_days(store, clock, name, 2)
        clock.move_to(START_US)


RENAME = "ALTER TABLE {leaf} RENAME TO renamed_by_hand"
DETACH = "ALTER TABLE hot.events_2 DETACH PARTITION {leaf}"
DROP = "DROP TABLE {leaf}"
STRANGE = (
    "CREATE TABLE hot.strange (LIKE events);"
    " ALTER TABLE hot.events_2 ATTACH PARTITION hot.strange"
    " FOR VALUES FROM ('2023-01-01Z') TO ('2023-01-02Z')"
)
DEFAULT = "CREATE TABLE hot.strange PARTITION OF hot.events_2 DEFAULT"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (RENAME, "renamed_by_hand"),
        (DETACH, "no such partition"),
        (DROP, "no such partition"),
        (STRANGE, "strange"),
        (DEFAULT, "strange"),
    ],
    ids=["renamed", "detached", "dropped", "nobody recorded it", "a default partition"],
)
def test_a_partition_changed_by_hand_stops_that_tenant_and_no_other(
    store: Store, clock: FixedClock, archive_dir: Path, change: str, named: str
) -> None:
    two_tenants(store, clock)
    url = store.database.url
    leaf = next(name for name in leaves(url) if name.startswith("hot.events_2_"))
    execute(url, change.format(leaf=leaf))
    report = run_retention(store, FAR_US)
    assert report.status is RunStatus.FAILED
    outcomes = {o.tenant_id: o for o in report.outcomes}
    error = outcomes["acme"].error
    assert error is not None
    assert leaf.removeprefix("hot.") in error or named in error
    assert outcomes["acme"].windows == 0
    assert all(outcomes[name].windows == 2 and outcomes[name].error is None for name in ("a-first", "z-last"))
    assert not any("tenant_id=acme/" in key for key in files(archive_dir))
    assert state_of(url) == ["open", "open"]
    found = entries(url, report)
    failed = [(t, d["message"]) for k, t, d in found if k == "plan_warning" and d["failed"]]
    assert failed == [("acme", error)]
    assert (found[-1][2]["status"], found[-1][2]["error"]) == ("failed", error)
    assert execute(url, "SELECT status FROM runs") == [("failed",)]


def test_a_leaf_that_holds_other_rows_than_the_catalog_says_is_not_sealed(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 2)
    (first, _) = leaves(store.database.url)
    for statement in (
        f"ALTER TABLE {first} DISABLE TRIGGER refuse_change",
        f"DELETE FROM {first} WHERE seq = 3",
    ):
        execute(store.database.url, statement)
    report = run_retention(store, FAR_US)
    assert "seq 3 does not follow" in str(report.outcomes[0].error)
    assert len(leaves(store.database.url)) == 2
    assert "dropped" not in state_of(store.database.url)
    assert files(archive_dir) == {}


def test_an_altered_event_is_never_archived(store: Store, clock: FixedClock, archive_dir: Path) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    (leaf,) = leaves(store.database.url)
    for statement in (
        f"ALTER TABLE {leaf} DISABLE TRIGGER refuse_change",
        f"UPDATE {leaf} SET actor = 'eve' WHERE seq = 4",
    ):
        execute(store.database.url, statement)
    report = run_retention(store, FAR_US)
    assert "the chain breaks at seq 4" in str(report.outcomes[0].error)
    assert (state_of(store.database.url), files(archive_dir)) == (["sealed"], {})


def test_an_error_of_the_disk_stops_one_tenant_and_no_other(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    """A full disk while the segment is built: an error that is none of the store's own."""
    two_tenants(store, clock)

    def stage(key: str) -> Path:
        return Path("/dev/full") if "tenant_id=acme/" in key else store.target.stage(key)

    report = run_with(store, with_target(store, stage=stage))
    assert [o.tenant_id for o in report.outcomes if o.error] == ["acme"]
    assert [o.windows for o in report.outcomes] == [2, 0, 2]
    assert execute(store.database.url, "SELECT status FROM runs") == [("failed",)]
    assert run_retention(store, FAR_US).status is RunStatus.COMPLETED
    whole(store, archive_dir, "a-first", "acme", "z-last")


# --- the same window gives the same bytes -----------------------------------------------------------


@contextmanager
def second_store(server_url: str, template: str, folder: Path) -> Iterator[tuple[Store, FixedClock]]:
    name = f"test_{folder.name}_{uuid7(0).hex()[16:]}"
    url = create_database(server_url, name, template=template)
    clock = FixedClock(START_US)
    (folder / "archive").mkdir(parents=True)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with ExitStack() as stack:
        stack.callback(execute, server_url, f'DROP DATABASE "{name}" WITH (FORCE)')
        yield stack.enter_context(open_store(settings, clock=clock)), clock


def fill_the_same(store: Store, clock: FixedClock) -> None:
    make_tenant(store, "other" if store.settings.home.name == "two" else "another")  # other numbers of tables
    make_tenant(store)
    for day in range(2):
        clock.move_to(START_US + day * DAY_US)
        for n in range(6):
            event_id = UUID(bytes=uuid7(START_US)[:10] + (day * 100 + n).to_bytes(6, "big"))
            append(store, "acme", new_event(f"{n}", event_id=event_id, new_value={"n": n}))


def test_the_same_events_give_the_same_files_in_another_store(
    store: Store,
    clock: FixedClock,
    archive_dir: Path,
    server_url: str,
    template_database: str,
    tmp_path: Path,
) -> None:
    fill_the_same(store, clock)
    run_retention(store, FAR_US)
    with second_store(server_url, template_database, tmp_path / "two") as (other, other_clock):
        fill_the_same(other, other_clock)
        run_retention(other, START_US + DAY_US)  # at another time, in two runs
        run_retention(other, FAR_US)
        assert files(tmp_path / "two" / "archive") == files(archive_dir)
        assert len(files(archive_dir)) == 2


def test_equal_rows_in_different_bytes_are_adopted(
    store: Store,
    clock: FixedClock,
    archive_dir: Path,
    server_url: str,
    template_database: str,
    tmp_path: Path,
) -> None:
    """As another version of the Parquet library may have written before a crash."""
    fill_the_same(store, clock)
    with second_store(server_url, template_database, tmp_path / "two") as (other, other_clock):
        fill_the_same(other, other_clock)
        run_retention(other, FAR_US)
    rewritten = {}
    for key, data in files(tmp_path / "two" / "archive").items():
        path = archive_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        source = pq.ParquetFile(tmp_path / "two" / "archive" / key)
        with pq.ParquetWriter(path, source.schema_arrow, compression="snappy", store_schema=False) as writer:
            for group in range(source.num_row_groups):
                writer.write_table(source.read_row_group(group))
            writer.add_key_value_metadata(dict(source.metadata.metadata))
        rewritten[key] = path.read_bytes()
        assert rewritten[key] != data
    before = read(store, "acme")
    report = run_retention(store, FAR_US)
    assert report.status is RunStatus.COMPLETED, report.outcomes
    written = [d for kind, _, d in entries(store.database.url, report) if kind == "file_written"]
    assert [d["created"] for d in written] == [False, False]
    assert files(archive_dir) == rewritten
    assert read(store, "acme") == before
    assert seqs(read(store, "acme", entity_id="3")) == [4, 10]
    whole(store, archive_dir)


def first_key() -> str:
    return "tenant_id=acme/month=2024-03/archive.acme.20240301T000000Z-20240302T000000Z.p000.parquet"


@pytest.mark.parametrize("kind", ["not parquet", "empty", "another tenant's", "other events"])
def test_a_different_object_under_the_key_stops_the_tenant_and_is_not_overwritten(
    store: Store, clock: FixedClock, archive_dir: Path, kind: str
) -> None:
    make_tenant(store, "b")
    make_tenant(store)
    fill_days(store, clock, "b", 1)
    path = archive_dir / first_key()
    path.parent.mkdir(parents=True)
    run_retention(store, FAR_US)
    clock.move_to(START_US)
    if kind in ("another tenant's", "other events"):
        (segment,) = (p for p in archive_dir.rglob("*.parquet"))
        source = pq.ParquetFile(segment)
        metadata = dict(source.metadata.metadata)
        if kind == "other events":
            metadata[b"eventstore.tenant_id"] = b"acme"
        with pq.ParquetWriter(path, source.schema_arrow, store_schema=False) as writer:
            writer.write_table(source.read())
            writer.add_key_value_metadata(metadata)
    else:
        path.write_bytes(b"" if kind == "empty" else b"something else")
    before = path.read_bytes()
    fill_days(store, clock, "acme", 2)
    log = read(store, "acme")
    for _ in range(2):
        report = run_retention(store, FAR_US)
        assert report.status is RunStatus.FAILED
        error = str({o.tenant_id: o for o in report.outcomes}["acme"].error)
        assert "a different object lies under" in error
        assert first_key() in error
        assert path.read_bytes() == before
        assert state_of(store.database.url) == ["sealed", "open"]  # nor is a later window taken before it
        assert read(store, "acme") == log
    path.unlink()  # moved away: it goes on
    assert run_retention(store, FAR_US).status is RunStatus.COMPLETED
    assert read(store, "acme") == log


def test_equal_metadata_over_other_values_is_not_adopted(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    """Not the number of events nor their ends: every value of every row is compared."""
    make_tenant(store)
    fill_days(store, clock, "acme", 1)
    run_with(store, with_target(store, after_put=broken("put")))
    (path,) = archive_dir.rglob("*.parquet")
    source = pq.ParquetFile(path)
    table, metadata = source.read(), dict(source.metadata.metadata)
    original = path.read_bytes()
    for column, value in (("actor", "eve"), ("new_value", None), ("entity_id", "2 "), ("metadata", "{}")):
        values = table.column(column).to_pylist()
        values[2] = value
        index = table.schema.get_field_index(column)
        changed = table.set_column(index, table.schema.field(index), [values])
        with pq.ParquetWriter(path, source.schema_arrow, store_schema=False) as writer:
            writer.write_table(changed)
            writer.add_key_value_metadata(metadata)
        report = run_retention(store, FAR_US)
        assert "row group 0 differs from the database" in str(report.outcomes[0].error), column
        assert state_of(store.database.url) == ["sealed"]
    path.write_bytes(original)
    assert run_retention(store, FAR_US).status is RunStatus.COMPLETED
    whole(store, archive_dir)


# --- large windows ----------------------------------------------------------------------------------


def test_a_large_window_is_cut_into_several_segments(
    store: Store, clock: FixedClock, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 10)
    monkeypatch.setattr(parquet, "SEGMENT_ROWS_MAX", 20)
    make_tenant(store)
    fill_days(store, clock, "acme", 2, per_day=45)
    before = read(store, "acme")
    report = run_retention(store, FAR_US)
    (outcome,) = report.outcomes
    assert (outcome.error, outcome.windows, outcome.segments) == (None, 2, 6)
    parts = execute(
        store.database.url,
        "SELECT part, first_seq, last_seq, hash_before, hash_after FROM segments ORDER BY 2",
    )
    spans = [(1, 20), (21, 40), (41, 45), (46, 65), (66, 85), (86, 90)]
    assert [(p, (a, b)) for p, a, b, _, _ in parts] == list(zip([0, 1, 2] * 2, spans, strict=True))
    assert all(one[4] == two[3] for one, two in itertools.pairwise(parts))
    assert sorted(key[-12:] for key in files(archive_dir))[:2] == ["p000.parquet"] * 2
    assert read(store, "acme") == before
    for wanted in ({"entity_id": "1"}, {"seq_from": 19, "seq_to": 67}, {"action": "day-1"}):
        assert read(store, "acme", **wanted) == [
            row
            for row in before
            if row["entity_id"] == wanted.get("entity_id", row["entity_id"])
            and row["action"] == wanted.get("action", row["action"])
            and wanted.get("seq_from", 0) <= row["seq"] <= wanted.get("seq_to", 99)
        ]
    whole(store, archive_dir)


def test_large_values_cut_segments_too(
    store: Store, clock: FixedClock, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES_MAX", 4000)
    monkeypatch.setattr(parquet, "SEGMENT_BYTES_MAX", 8000)
    make_tenant(store)
    clock.move_to(START_US)
    append(store, "acme", *(new_event(str(n), new_value="x" * 3000) for n in range(9)))
    before = read(store, "acme")
    assert run_retention(store, FAR_US).outcomes[0].segments == 3
    assert read(store, "acme") == before
    whole(store, archive_dir)


def test_a_run_broken_between_two_segments_of_a_window_goes_on(
    store: Store, clock: FixedClock, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS_MAX", 10)
    monkeypatch.setattr(parquet, "SEGMENT_ROWS_MAX", 20)
    make_tenant(store)
    fill_days(store, clock, "acme", 1, per_day=45)
    before = read(store, "acme")

    def fail(key: str) -> None:
        if ".p001." in key:
            raise TargetUnavailableError("no more")

    assert run_with(store, with_target(store, before_open=fail)).status is RunStatus.FAILED
    assert sorted(key[-12:-8] for key in files(archive_dir)) == ["p000", "p001"]
    assert execute(store.database.url, "SELECT * FROM segments") == []  # all of a window, or none
    report = run_retention(store, FAR_US)
    created = [d["created"] for kind, _, d in entries(store.database.url, report) if kind == "file_written"]
    assert created == [False, False, True]
    assert read(store, "acme") == before
    whole(store, archive_dir)


# --- two at once ------------------------------------------------------------------------------------


def test_a_window_is_worked_on_by_one_worker_at_a_time(
    store: Store, clock: FixedClock, archive_dir: Path
) -> None:
    """A second run finds the first window in other hands, waits for it, and does what comes after it."""
    make_tenant(store)
    fill_days(store, clock, "acme", 2)
    inside, go = threading.Event(), threading.Event()
    puts: list[str] = []

    def hold(key: str) -> None:
        puts.append(key)
        inside.set()
        assert go.wait(60)

    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(run_with, store, with_target(store, after_put=hold))
        try:
            assert inside.wait(60)
            second = executor.submit(run_with, store, with_target(store, after_put=puts.append))
            statuses = "SELECT status FROM runs ORDER BY started_at"
            while execute(store.database.url, statuses)[1:] != [("running",)]:
                assert not second.done()
            assert state_of(store.database.url) == ["sealed", "open"]
        finally:
            go.set()
        reports = [first.result(60), second.result(60)]
    assert [report.status for report in reports] == [RunStatus.COMPLETED] * 2
    assert sum(report.outcomes[0].windows for report in reports) == 2
    assert "in another worker's hands" in str(reports[1].outcomes[0].warnings)
    assert len(puts) == len(set(puts)) == 2
    assert state_of(store.database.url) == ["dropped"] * 2
    whole(store, archive_dir)
