"""Postgres is lost, and the catalog made anew from the archive targets alone."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy.engine import make_url

from eventstore.app import Store, open_store
from eventstore.archive.layout import governance_key, public_key_key, repaired_key
from eventstore.archive.parquet import RowGroup, SegmentWriter, as_events, read_range
from eventstore.archive.registry import open_target
from eventstore.archive.target import put_bytes
from eventstore.archive.targets import Targets
from eventstore.clock import FixedClock
from eventstore.db.engine import Database
from eventstore.errors import SetupError, StateError, TargetUnavailableError
from eventstore.governance.certificates import check_certificates, trusted_keys
from eventstore.governance.holds import holds_in_force, place_hold, release_hold
from eventstore.governance.policies import policy_of
from eventstore.governance.record import mirror, put_equal
from eventstore.governance.signing import SigningKey
from eventstore.governance.tenants import create_tenant
from eventstore.integrity.verify import verify_log
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind, RunStatus
from eventstore.model.segment import Segment, SegmentRange
from eventstore.model.window import Window, WindowUnit
from eventstore.repair import rebuild as rebuild_module
from eventstore.repair.chain import choose_log
from eventstore.repair.check import check_archive
from eventstore.repair.rebuild import RebuildReport, rebuild
from eventstore.repair.replay import LAST_WORDS
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.unit.helpers import DAY_US, START_US, append, execute, fill_days, new_event, read

KEEPING = Policy(WindowUnit.DAY, DAY_US, (ArchiveTier("archive", 2 * DAY_US), ArchiveTier("deep")))
EXPIRING = Policy(
    WindowUnit.DAY,
    DAY_US,
    (ArchiveTier("archive", 2 * DAY_US), ArchiveTier("deep", 3 * DAY_US)),
    Ending.EXPIRE,
)
NOW_US = START_US + 9 * DAY_US
TENANTS = ("acme", "acme-2", "held")


@dataclass
class World:
    """A deployment whose database can be thrown away: its targets and its key stay."""

    server_url: str
    template: str
    settings: Settings
    clock: FixedClock
    made: list[str]
    folder: Path

    @contextmanager
    def open(self) -> Iterator[Store]:
        with open_store(self.settings, clock=self.clock) as opened:
            impatient = Compactor(opened.database, opened.targets, opened.key, retry_pauses_s=())
            yield replace(opened, compactor=impatient)

    def new_database(self, *, template: str | None = None) -> None:
        """An empty one with the schema (or a copy of another); the old one is not used any more."""
        name = f"rebuild_{secrets.token_hex(6)}"
        self.made.append(name)
        url = create_database(self.server_url, name, template=template or self.template)
        self.settings = self.settings.model_copy(update={"database_url": url})

    def drop(self) -> None:
        with psycopg.connect(self.server_url, autocommit=True) as conn:
            for name in self.made:
                conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def rebuild(self, **more: Any) -> RebuildReport:
        database = Database(str(self.settings.database_url))
        database.open()
        targets = Targets(self.settings.target_urls, default="archive")
        key = SigningKey.load(self.settings.resolved_key_file)
        try:
            return rebuild(database, targets, **{"key": key, "now_us": NOW_US + DAY_US, **more})
        finally:
            targets.close()
            database.close()


@pytest.fixture(scope="module")
def filled(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A deployment with ten days of three tenants, from which each test gets a copy."""
    made = _world(server_url, template_database, tmp_path_factory.mktemp("filled"))
    made.new_database()
    with made.open() as store:
        fill(store, made.clock)
    yield made
    made.drop()


@pytest.fixture
def world(filled: World, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(filled.folder, tmp_path, dirs_exist_ok=True)
    made = _world(filled.server_url, filled.template, tmp_path)
    made.clock = FixedClock(filled.clock.now_us())
    made.new_database(template=filled.made[0])
    yield made
    made.drop()


def _world(server_url: str, template: str, folder: Path) -> World:
    settings = Settings(
        home=folder / "home",
        archive_url=(folder / "archive").as_uri(),
        targets={"deep": (folder / "deep").as_uri()},
    )
    for name in ("archive", "deep"):
        (folder / name).mkdir(exist_ok=True)
    return World(server_url, template, settings, FixedClock(START_US), [], folder)


def fill(store: Store, clock: FixedClock) -> None:
    """Ten days of three tenants: `acme` keeps, `acme-2` expires, `held` too, were it not for its holds."""
    for name, policy in zip(TENANTS, (KEEPING, EXPIRING, EXPIRING), strict=True):
        create_tenant(store.database, name, policy, now_us=START_US)
        fill_days(store, clock, name, 10, per_day=3)
    place_hold(store.database, "held", "case-1", "a law suit", "ann", HoldScope(), START_US)
    place_hold(store.database, "acme-2", "case-2", "another one", "ben", HoldScope(), START_US)
    release_hold(store.database, "acme-2", "case-2", "ben", "settled", START_US + 1)
    for day in (4, 9):
        assert store.compactor.run(store.compactor.tenants(), START_US + day * DAY_US).status is (
            RunStatus.COMPLETED
        )
    expiry = RunOrder(RunKind.EXPIRY, "test")
    store.compactor.run(store.compactor.tenants(), NOW_US, order=expiry)
    mirror(store.database, store.target)


@dataclass(frozen=True)
class Seen:
    """What can be known of a tenant; what was in Postgres only is left out."""

    events: list[dict[str, Any]]
    windows: list[tuple[Any, ...]]
    segments: list[tuple[Any, ...]]
    certificates: list[tuple[Any, ...]]
    policy: object
    holds: list[object]
    tenant: object


def see(store: Store, tenant: str) -> Seen:
    url = store.database.url
    (through,) = execute(url, "SELECT archived_through FROM watermarks WHERE tenant_id = %s", [tenant])[0]

    def rows(query: str) -> list[tuple[Any, ...]]:
        return execute(url, query, [tenant])

    with store.database.transaction() as conn:
        return Seen(
            [row for row in read(store, tenant) if row["seq"] <= through],
            rows(
                "SELECT window_from, window_to, state, first_seq, last_seq, hash_before, hash_after, target"
                " FROM windows WHERE tenant_id = %s AND state IN ('dropped', 'expired') ORDER BY window_from"
            ),
            rows(
                "SELECT first_seq, last_seq, window_from, part, target, key, hash_before, hash_after,"
                " min_recorded_at, max_recorded_at, size_bytes, sha256, schema_version, entity_filter"
                " FROM segments WHERE tenant_id = %s ORDER BY first_seq"
            ),
            rows(
                "SELECT number, kind, window_from, first_seq, last_seq, hash_before, hash_after,"
                " payload_sha256, envelope, issued_us, stored_in FROM certificates WHERE tenant_id = %s"
            ),
            policy_of(conn, tenant, NOW_US),
            # But for the hold that every rebuild places.
            [dataclasses.astuple(hold) for hold in holds_in_force(conn, tenant) if hold.name != "rebuild"],
            rows("SELECT window_unit, state FROM tenants WHERE tenant_id = %s"),
        )


def whole(store: Store, tenant: str) -> None:
    assert verify_log(store.tiers, store.targets, tenant).ok
    with store.database.transaction() as conn:
        assert check_certificates(conn, tenant, trusted_keys(conn)) == []


def governance_of(store: Store) -> list[tuple[Any, ...]]:
    return execute(
        store.database.url,
        "SELECT entry_no, at_us, kind, tenant_id, actor, document, mirrored FROM governance"
        " ORDER BY entry_no",
    )


def test_every_history_is_as_before_and_the_log_goes_on(world: World) -> None:
    with world.open() as store:
        before = {name: see(store, name) for name in TENANTS}
        governance = governance_of(store)
    assert [len(before[name].certificates) for name in TENANTS] == [0, 3, 0]
    assert {target for s in before.values() for _, _, _, _, target, *_ in s.segments} == {"archive", "deep"}
    world.new_database()
    report = world.rebuild()
    assert (report.stopped, report.warnings, report.strange_keys) == ({}, [], [])
    # What was decided last may never have been copied: nothing is destroyed before somebody has looked.
    assert report.held == [LAST_WORDS]
    assert [t.held_by for t in report.tenants] == ["rebuild"] * 3
    assert [t.tenant_id for t in report.tenants] == sorted(TENANTS)
    assert {t.tenant_id: t.lost for t in report.tenants} == {"acme": None, "acme-2": (25, 30), "held": None}
    with world.open() as store:
        for name in TENANTS:
            now = see(store, name)
            if name == "acme-2":
                # Certificate 3 had seen the log end at 30: that what lies between is lost has one of its own.
                assert now.certificates[-1][:5] == (4, "expired", now.windows[-1][0], 25, 30)
                now = replace(now, certificates=now.certificates[:-1], windows=now.windows[:-1])
            for member in dataclasses.fields(Seen):
                assert getattr(now, member.name) == getattr(before[name], member.name), (name, member.name)
            whole(store, name)
        now_recorded = governance_of(store)
        assert now_recorded[: len(governance)] == governance
        assert [entry[2] for entry in now_recorded[len(governance) :]] == ["hold_placed"] * 3
        assert list(check_archive(store.database, store.targets)) == []
        # The log goes on behind the last archived event: seq 25 to 30 were hot, and are gone.
        world.clock.move_to(START_US + 20 * DAY_US)
        result = append(store, "acme", new_event("after"))
        assert (result.first_seq, result.last_seq) == (25, 25)
        assert append(store, "acme-2", new_event("after")).first_seq == 31
        assert read(store, "acme")[-1]["seq"] == 25
        whole(store, "acme")
        # And, the holds released, the policies do their work: windows move, expire and are certified on.
        for name in TENANTS:
            release_hold(store.database, name, "rebuild", "ann", "nothing else was held", START_US)
        store.compactor.run(store.compactor.tenants(), START_US + 25 * DAY_US)
        expiry = RunOrder(RunKind.EXPIRY, "test")
        done = store.compactor.run(store.compactor.tenants(), START_US + 25 * DAY_US, order=expiry)
        assert done.status is RunStatus.COMPLETED
        assert [len(see(store, name).certificates) for name in TENANTS] == [0, 9, 0]
        for name in TENANTS:
            whole(store, name)
    with pytest.raises(StateError, match="3 in tenants"):
        world.rebuild()


def test_a_rebuild_that_was_killed_goes_on_with_the_other_tenants(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.new_database()
    adopt, adopted = rebuild_module.adopt_tenant, []

    def killed_at_the_second(*args: Any) -> Any:
        if adopted:
            raise KeyboardInterrupt
        adopted.append(args[2])
        return adopt(*args)

    monkeypatch.setattr(rebuild_module, "adopt_tenant", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        world.rebuild()
    monkeypatch.undo()
    report = world.rebuild()
    assert (report.present, [t.tenant_id for t in report.tenants]) == (["acme"], ["acme-2", "held"])
    with world.open() as store:
        for name in TENANTS:
            whole(store, name)
        assert len(governance_of(store)) == report.entries + 3  # a hold for each tenant


def test_a_gap_stops_its_tenant_only_and_is_mended_by_bringing_the_object_back(world: World) -> None:
    with world.open() as store:
        before = see(store, "acme")
        (target, key) = execute(
            store.database.url, "SELECT target, key FROM segments WHERE tenant_id = 'acme' AND first_seq = 7"
        )[0]
        with store.targets[target].open(key) as file:
            data = file.read()
        store.targets[target].delete(key)
    world.new_database()
    report = world.rebuild()
    assert list(report.stopped) == ["acme"]
    assert "seq 7 to 9 are in no object" in report.stopped["acme"]
    # Not before it is whole, or somebody says that it is not to be.
    with pytest.raises(SetupError, match="being rebuilt"), world.open():
        pass
    unfinished = make_url(str(world.settings.database_url)).database
    world.new_database(template=unfinished)
    assert world.rebuild(leave_out=["acme"]).stopped == {}
    with world.open() as store:
        there = execute(store.database.url, "SELECT tenant_id FROM tenants ORDER BY 1")
        assert [name for (name,) in there] == ["acme-2", "held"]
        put_bytes(store.targets[target], key, data)
    world.new_database(template=unfinished)
    report = world.rebuild()
    assert (report.stopped, report.present) == ({}, ["acme-2", "held"])
    with world.open() as store:
        assert see(store, "acme") == before


def altered(data: bytes, path: Path) -> None:
    """A segment that is right in form and says of itself what the given one does; an event was changed."""
    file = pq.ParquetFile(pa.BufferReader(data))
    events = as_events(file.read())
    assert events is not None
    actors = pa.array(["eve", *events["actor"].to_pylist()[1:]])
    events = events.set_column(events.schema.get_field_index("actor"), events.schema.field("actor"), actors)
    with SegmentWriter(path, rows_left=events.num_rows) as writer:
        writer.write(RowGroup(events, 1))
        writer.finish(read_range(file, "key"))


def test_of_two_objects_for_one_range_the_whole_one_counts(world: World) -> None:
    with world.open() as store:
        before = see(store, "acme")
        (key,) = execute(
            store.database.url,
            "SELECT key FROM segments WHERE tenant_id = 'acme' AND target = 'archive' ORDER BY 1 LIMIT 1",
        )[0]
        path = store.target.local_path(key)
        assert path is not None
        data = path.read_bytes()
        # Its good copy lies beside it; the object itself is damaged, and in the other target is a forged one.
        mended = store.target.local_path(repaired_key(key, 1))
        assert mended is not None
        mended.write_bytes(data)
        path.write_bytes(data[:2000] + b"\0" * 100 + data[2100:])
        stray = store.targets["deep"].stage(key)
        altered(data, stray)
        store.targets["deep"].put(key, stray)
        (store.target.local_path("tenant_id=acme/notes.txt") or path).write_text("whatever")
    world.new_database()
    assert world.rebuild().stopped == {}
    with world.open() as store:
        assert see(store, "acme").events == before.events
        whole(store, "acme")
        found = execute(store.database.url, "SELECT target, key, reason FROM quarantine ORDER BY 1, 2")
        assert [row[:2] for row in found] == [
            ("archive", key),
            ("archive", "tenant_id=acme/notes.txt"),
            ("deep", key),
        ]
        assert "the chain breaks at seq" in found[2][2]
        assert path.exists()
        used = execute(store.database.url, "SELECT 1 FROM segments WHERE key = %s", [repaired_key(key, 1)])
        assert used == [(1,)]


def test_a_window_whose_parts_are_good_in_different_targets_only_is_brought_into_one() -> None:
    def part(first: int, last: int, before: bytes, after: bytes, target: str, number: int) -> Segment:
        r = SegmentRange("acme", Window(0, 10), number, first, last, before, after)
        return Segment(r, f"p{number}", 1, b"", 0, 0, target)

    parts = [
        part(1, 2, b"a", b"b", "near", 0),
        part(3, 3, b"b", b"c", "deep", 1),
        part(3, 3, b"x", b"c", "near", 1),
    ]
    log = choose_log(b"a", parts, [], ["near", "deep"])
    assert (log.problem, log.last_seq, log.windows[0].target) == (None, 3, "near")
    assert [s.target for s in log.windows[0].segments] == ["near", "deep"]
    # Whole in both: the earlier tier, from which it had not been removed.
    both = [replace(s, target=t) for s in parts[:2] for t in ("deep", "near")]
    log = choose_log(b"a", both, [], ["near", "deep"])
    assert ([s.target for s in log.windows[0].segments], len(log.left)) == (["near", "near"], 2)


def test_with_a_gap_in_the_record_nothing_is_destroyed(world: World) -> None:
    with world.open() as store:
        (number,) = execute(
            store.database.url, "SELECT entry_no FROM governance WHERE kind = 'hold_placed' ORDER BY 1"
        )[0]
        store.target.delete(governance_key(number))
    world.new_database()
    report = world.rebuild()
    assert report.held == [f"1 of its entries are missing, the first is number {number}", LAST_WORDS]
    assert [t.held_by for t in report.tenants] == ["rebuild"] * 3
    with world.open() as store:
        for name in TENANTS:
            with store.database.transaction() as conn:
                assert "rebuild" in [hold.name for hold in holds_in_force(conn, name)]
        late_us = START_US + 60 * DAY_US
        before = [see(store, name).segments for name in TENANTS]
        store.compactor.run(store.compactor.tenants(), late_us, order=RunOrder(RunKind.EXPIRY, "test"))
        assert [see(store, name).segments for name in TENANTS] == before
        # Until somebody says so, who knows.
        release_hold(store.database, "acme-2", "rebuild", "ann", "looked it up", late_us)
        store.compactor.run(store.compactor.tenants(), late_us, order=RunOrder(RunKind.EXPIRY, "test"))
        assert see(store, "acme-2").segments == []
        assert governance_of(store)[-1][0] > number


def test_a_certificate_that_nobody_can_check_stops_its_tenant(world: World) -> None:
    with world.open() as store:
        key = store.key.verify_key
        store.target.delete(public_key_key(key.key_id))
    world.new_database()
    other = SigningKey.generate()
    report = world.rebuild(key=other)
    assert list(report.stopped) == ["acme-2"]
    assert key.key_id in report.stopped["acme-2"]
    # Its public half may lie in a target; that is said, because who may write there could have put it there.
    put_equal(open_target(world.settings.target_urls["archive"]), public_key_key(key.key_id), key.to_pem())
    report = world.rebuild(key=other)
    assert (report.stopped, report.strange_keys) == ({}, [key.key_id])


def test_only_an_empty_database_and_the_targets_of_one_store_are_taken(world: World, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"not empty: 3 in tenants"):
        world.rebuild()
    world.new_database()
    whole_settings = world.settings
    other = tmp_path / "other"
    other.mkdir()
    targets = {**world.settings.targets, "other": other.as_uri()}
    world.settings = world.settings.model_copy(update={"targets": targets})
    with pytest.raises(SetupError, match="carries no store's marker"):
        world.rebuild()
    (other / "eventstore.json").write_text('{"store_id": "00000000-0000-0000-0000-000000000000"}')
    with pytest.raises(SetupError, match="not those of one store"):
        world.rebuild()
    world.settings = whole_settings
    url = str(world.settings.database_url)
    assert execute(url, "SELECT count(*) FROM tenants") == [(0,)]
    assert world.rebuild().stopped == {}


def test_a_target_that_goes_away_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.new_database()

    def away(*args: Any, **more: Any) -> Any:
        raise TargetUnavailableError("nobody answers")

    monkeypatch.setattr(rebuild_module, "read_segment", away)
    with pytest.raises(TargetUnavailableError):
        world.rebuild()
    monkeypatch.undo()
    assert len(world.rebuild().tenants) == 3


def test_a_target_that_a_policy_names_must_be_there(world: World) -> None:
    """Without it the rebuilt log would end early, and its seqs would be given to other events."""
    world.new_database()
    world.settings = world.settings.model_copy(update={"targets": {}})
    with pytest.raises(SetupError, match="name the target 'deep', which is not configured"):
        world.rebuild()
