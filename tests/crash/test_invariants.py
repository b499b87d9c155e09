"""The judge can find guilty: each kind of damage, done by hand, is named by the checker."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from sqlalchemy.engine import make_url

from eventstore.archive.file import FileTarget
from eventstore.testing.invariants import acknowledged_present, check_store
from tests.conftest import create_database
from tests.crash.world import BASE_US, HOUR_US, SEED_EVENTS, Host, World

Acknowledged = dict[str, list[tuple[int, bytes]]]

LAST = 2 * SEED_EVENTS  # seq 1 to 40 are archived and dropped, 41 to 80 are hot
LEAF = "hot.events_1_20240301t010000"


@pytest.fixture(scope="module")
def intact(
    host: Host,
    server_url: str,
    seeded_template: tuple[str, Acknowledged],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """A store whose first windows are archived; to copy from."""
    template, seeded = seeded_template
    url = create_database(server_url, f"intact_{secrets.token_hex(4)}", template=template)
    world = World(host, url, tmp_path_factory.mktemp("intact"), seeded)
    assert world.run_retention("retention", BASE_US + HOUR_US)["windows"] == 2
    report = world.check(orphans_allowed=False)
    assert report.events == 2 * LAST
    return world


@pytest.fixture
def archived(intact: World, server_url: str, tmp_path: Path) -> Iterator[World]:
    """A copy of it, to be damaged."""
    name = f"damaged_{secrets.token_hex(6)}"
    template = make_url(intact.url).database
    world = World(intact.host, create_database(server_url, name, template=template), tmp_path, intact.seeded)
    shutil.copytree(intact.archive, world.archive, dirs_exist_ok=True)
    yield world
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _sql(world: World, *statements: str) -> None:
    with psycopg.connect(world.url) as conn:
        for statement in statements:
            conn.execute(statement)


def _hot(*statements: str) -> Callable[[World], None]:
    """Change hot events behind the back of the triggers that refuse it."""
    off = f"ALTER TABLE {LEAF} DISABLE TRIGGER ALL"
    on = f"ALTER TABLE {LEAF} ENABLE ALWAYS TRIGGER refuse_change"
    return lambda world: _sql(world, off, *(s.format(leaf=LEAF) for s in statements), on)


def _catalog(*statements: str) -> Callable[[World], None]:
    return lambda world: _sql(world, *statements)


def _segment(world: World) -> Path:
    return min((world.archive / "tenant_id=alpha").rglob("*.p000.parquet"))


def _flip_byte(world: World) -> None:
    data = bytearray(_segment(world).read_bytes())
    data[len(data) // 3] ^= 1
    _segment(world).write_bytes(data)


def _rewrite(world: World) -> None:
    """Another program's copy: same rows, without the store's metadata."""
    pq.write_table(pq.read_table(_segment(world)).replace_schema_metadata(None), _segment(world))


def _shorten(world: World) -> None:
    table = pq.read_table(_segment(world))
    pq.write_table(table.slice(0, table.num_rows - 1), _segment(world))


def _back_in_hot(row_change: str) -> Callable[[World], None]:
    """An archived event's row in Postgres again, in a leaf with the bounds of its window."""

    def damage(world: World) -> None:
        table = pq.read_table(_segment(world))
        first = {name: table.column(name)[0].as_py() for name in table.column_names}
        leaf = "hot.events_1_20240301t000000"
        with psycopg.connect(world.url) as conn:
            conn.execute(f"CREATE TABLE {leaf} (LIKE events)")
            conn.execute(
                f"ALTER TABLE hot.events_1 ATTACH PARTITION {leaf}"
                " FOR VALUES FROM ('2024-03-01T00:00:00Z') TO ('2024-03-01T01:00:00Z')"
            )
            names = ", ".join(f'"{name}"' for name in first)
            conn.execute(
                f"INSERT INTO {leaf} (tenant_id, {names}) VALUES ('alpha'{', %s' * len(first)})",
                list(first.values()),
            )
            conn.execute(row_change.format(leaf=leaf))

    return damage


WINDOW_0 = "tenant_id = 'alpha' AND window_from = '2024-03-01T00:00:00Z'"
WINDOW_1 = "tenant_id = 'alpha' AND window_from = '2024-03-01T01:00:00Z'"
ALPHA = "WHERE tenant_id = 'alpha'"
HASH = "sha256('no')"

# What is done → the kinds that must be among those named.
DAMAGE: dict[str, tuple[Callable[[World], None], set[str]]] = {
    "hot row deleted": (_hot("DELETE FROM {leaf} WHERE seq = 50"), {"gap", "acknowledged"}),
    "last hot row deleted": (_hot(f"DELETE FROM {{leaf}} WHERE seq = {LAST}"), {"gap", "acknowledged"}),
    "hot row altered": (_hot("UPDATE {leaf} SET actor = 'x' WHERE seq = 50"), {"chain"}),
    "null for empty": (_hot("UPDATE {leaf} SET workspace_id = '' WHERE seq = 50"), {"chain"}),
    "event_id altered": (
        _hot("UPDATE {leaf} SET event_id = gen_random_uuid() WHERE seq = 50"),
        {"chain", "acknowledged"},
    ),
    "hot row twice": (
        _hot(
            "CREATE TEMP TABLE c ON COMMIT DROP AS SELECT * FROM {leaf} WHERE seq = 50",
            "ALTER TABLE {leaf} ADD CHECK (true)",
            "DROP INDEX hot.events_1_20240301t010000_seq_idx",
            "DROP INDEX hot.events_1_20240301t010000_event_id_idx",
            "INSERT INTO {leaf} SELECT * FROM c",
        ),
        {"seen-twice"},
    ),
    "time goes back": (
        _hot("UPDATE {leaf} SET recorded_at = '2024-03-01T01:00:00Z' WHERE seq = 50"),
        {"time", "chain"},
    ),
    "leaf dropped unarchived": (_catalog(f"DROP TABLE {LEAF}"), {"gap", "leaf", "acknowledged"}),
    "leaf with other bounds": (
        _catalog(
            f"ALTER TABLE hot.events_1 DETACH PARTITION {LEAF}",
            f"ALTER TABLE hot.events_1 ATTACH PARTITION {LEAF}"
            " FOR VALUES FROM ('2024-03-01T01:00:00Z') TO ('2024-03-01T03:00:00Z')",
        ),
        {"leaf"},
    ),
    "archived row back": (_back_in_hot("SELECT 1"), {"seen-twice", "leaf"}),
    "awaiting leaf differs": (
        _back_in_hot(
            f"UPDATE {{leaf}} SET actor = 'x'; UPDATE windows SET state = 'archived' WHERE {WINDOW_0}"
        ),
        {"tiers-differ"},
    ),
    "watermark too high": (
        _catalog(f"UPDATE watermarks SET archived_through = 60 {ALPHA}"),
        {"watermark", "seen-twice"},
    ),
    "watermark too low": (
        _catalog(f"UPDATE watermarks SET archived_through = 39 {ALPHA}"),
        {"watermark"},
    ),
    "watermark hash": (_catalog(f"UPDATE watermarks SET archived_hash = {HASH} {ALPHA}"), {"watermark"}),
    "watermark gone": (_catalog(f"DELETE FROM watermarks {ALPHA}"), {"watermark"}),
    "head gone": (_catalog(f"DELETE FROM heads {ALPHA}"), {"head"}),
    "head too low": (_catalog(f"UPDATE heads SET last_seq = 79 {ALPHA}"), {"head"}),
    "head too high": (_catalog(f"UPDATE heads SET last_seq = 81 {ALPHA}"), {"gap"}),
    "head hash": (_catalog(f"UPDATE heads SET last_hash = {HASH} {ALPHA}"), {"head"}),
    "head clock": (_catalog(f"UPDATE heads SET last_recorded_us = 0 {ALPHA}"), {"head"}),
    "segments row deleted": (
        _catalog("DELETE FROM segments WHERE tenant_id = 'alpha' AND first_seq = 1"),
        {"gap", "acknowledged", "segment"},
    ),
    "segments row twice": (
        _catalog(
            "CREATE TEMP TABLE c ON COMMIT DROP AS SELECT * FROM segments"
            " WHERE tenant_id = 'alpha' AND first_seq = 1",
            "UPDATE c SET first_seq = first_seq + 1, key = key || 'x'",
            "INSERT INTO segments SELECT * FROM c",
        ),
        {"segment-missing", "segment"},
    ),
    "segments row altered": (
        _catalog("UPDATE segments SET last_seq = last_seq - 1 WHERE tenant_id = 'alpha' AND first_seq = 33"),
        {"segment"},
    ),
    "segment times altered": (
        _catalog("UPDATE segments SET min_recorded_at = now() WHERE tenant_id = 'alpha' AND first_seq = 1"),
        {"segment"},
    ),
    "segment gone": (lambda world: _segment(world).unlink(), {"segment-missing", "acknowledged"}),
    "segment byte flipped": (_flip_byte, {"segment-bytes"}),
    "segment rewritten": (_rewrite, {"segment-bytes", "segment"}),
    "segment shortened": (_shorten, {"segment-bytes", "segment", "gap", "acknowledged"}),
    "window back to sealed": (
        _catalog(f"UPDATE windows SET state = 'sealed' WHERE {WINDOW_0}"),
        {"window", "watermark", "leaf"},
    ),
    "window archived unsealed": (
        _catalog(
            f"UPDATE windows SET state = 'archived', last_seq = 80, hash_before = {HASH}, hash_after = {HASH}"
            f" WHERE {WINDOW_1}"
        ),
        {"window", "watermark"},
    ),
    "window row altered": (
        _catalog(f"UPDATE windows SET first_seq = 42 WHERE {WINDOW_1}"),
        {"window", "leaf"},
    ),
    "tenant unknown": (
        _catalog(
            "CREATE TABLE hot.strange (LIKE events)",
            f"INSERT INTO hot.strange SELECT 'ghost', seq, event_id, recorded_at, occurred_at, entity_type,"
            f" entity_id, action, field, old_value, new_value, actor, source, workspace_id, metadata, hash"
            f" FROM {LEAF} LIMIT 1",
            "ALTER TABLE events ATTACH PARTITION hot.strange FOR VALUES IN ('ghost')",
        ),
        {"tenant"},
    ),
}


@pytest.mark.parametrize(("damage", "kinds"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named(archived: World, damage: Callable[[World], None], kinds: set[str]) -> None:
    damage(archived)
    report = check_store(archived.url, archived.archive, acknowledged=archived.acknowledged())
    assert report.kinds >= kinds, str(report)
    if kinds != {"tenant"}:
        assert any("'alpha'" in v.message for v in report.violations)
    assert not any("'beta'" in v.message for v in report.violations), str(report)


def test_orphans_are_legal_but_reported(archived: World) -> None:
    orphan = _segment(archived).with_name("archive.alpha.other.p000.parquet")
    shutil.copy(_segment(archived), orphan)
    _segment(archived).with_name(".staged-abc").touch()  # what a killed writer leaves; no object
    report = check_store(archived.url, FileTarget(archived.archive))
    assert not report.violations
    assert report.orphans == [orphan.relative_to(archived.archive).as_posix()]


def test_acknowledged_events_are_missed(archived: World) -> None:
    pairs = archived.acknowledged()
    assert acknowledged_present(archived.url, archived.archive, pairs) == []
    for tenant, seq in (("alpha", LAST + 1), ("alpha", 1), ("nobody", 1)):
        found = acknowledged_present(archived.url, archived.archive, {tenant: [(seq, bytes(16))]})
        assert found
        assert {v.kind for v in found} == {"acknowledged"}
    twice = {"alpha": [*pairs["alpha"], (LAST + 1, pairs["alpha"][0][1])]}
    assert acknowledged_present(archived.url, archived.archive, twice)
