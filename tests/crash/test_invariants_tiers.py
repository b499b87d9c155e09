"""The judge can find guilty, continued: targets, removals, certificates, runs."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy.engine import make_url

from eventstore.model.subtrees import lost_subtrees
from eventstore.testing.invariants import Report, check_store
from tests.conftest import create_database
from tests.crash.world import BASE_US, HOUR_US, SEED_EVENTS, Host, World

# Of each tenant, seq 1 to 40 have expired, and 41 to 80 have moved on to the second tier.
GONE, LAST = SEED_EVENTS, 2 * SEED_EVENTS
WINDOW_0 = "tenant_id = 'alpha' AND window_from = '2024-03-01T00:00:00Z'"
WINDOW_1 = "tenant_id = 'alpha' AND window_from = '2024-03-01T01:00:00Z'"
ALPHA = "tenant_id = 'alpha'"
TYPE = b"application/vnd.eventstore.certificate+json"


@pytest.fixture(scope="module")
def intact(
    host: Host, server_url: str, archived_world: World, tmp_path_factory: pytest.TempPathFactory
) -> World:
    template = make_url(archived_world.url).database
    folder = tmp_path_factory.mktemp("tiers")
    shutil.copytree(archived_world.archive, folder / "archive")
    url = create_database(server_url, f"tiers_{secrets.token_hex(4)}", template=template)
    world = World(host, url, folder, archived_world.seeded)
    assert world.run_retention("move", BASE_US + 12 * HOUR_US)["windows"] == 4
    assert world.run_retention("expire", BASE_US + 31 * HOUR_US, "--kind", "expiry")["windows"] == 2
    return world


@pytest.fixture
def tiers(intact: World, server_url: str, tmp_path: Path) -> Iterator[World]:
    """A copy, to be damaged."""
    name = f"damaged_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=make_url(intact.url).database)
    shutil.copytree(intact.folder, tmp_path, dirs_exist_ok=True)
    yield World(intact.host, url, tmp_path, intact.seeded)
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def judge(world: World, *, destroyed_ok: bool = True) -> Report:
    folders = {name: world.folder / name for name in ("archive", "near", "deep")}
    return check_store(world.url, folders, acknowledged=world.acknowledged(), destroyed_ok=destroyed_ok)


def sql(*statements: str) -> Callable[[World], None]:
    def damage(world: World) -> None:
        with psycopg.connect(world.url) as conn:
            for statement in statements:
                conn.execute(statement)

    return damage


def segment_of(world: World, target: str) -> Path:
    return min((world.folder / target / "tenant_id=alpha").rglob("*.p000.parquet"))


def _copy_of(world: World) -> Path:
    return world.archive / "tenant_id=alpha/certificates/00000001.json"


def _alter_copy(world: World) -> None:
    _copy_of(world).write_bytes(_copy_of(world).read_bytes().replace(b'"keyid":"', b'"keyid": "'))


def _object_back(world: World) -> None:
    """The former copy of what was moved, written once more."""
    segment = segment_of(world, "near")
    target = world.archive / segment.relative_to(world.folder / "near")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(segment, target)


def sealed(payload: dict[str, Any], key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """A certificate's envelope and the digest of its payload."""
    data = json.dumps(payload, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    key_id = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]
    signature = key.sign(b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE, len(data), data))
    envelope = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": TYPE.decode(),
        "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":")).encode(), hashlib.sha256(data).digest()


def key_of(world: World) -> Ed25519PrivateKey:
    key = load_pem_private_key((world.folder / "keys" / "signing.pem").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def payload_of(world: World) -> dict[str, Any]:
    ((envelope,),) = world.query(f"SELECT envelope FROM certificates WHERE {ALPHA}")
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    return found


def forged(*, another_key: bool = False, **changes: Any) -> Callable[[World], None]:
    """What somebody with the key may write: another certificate, rightly signed, with its row and copy."""

    def damage(world: World) -> None:
        key = Ed25519PrivateKey.generate() if another_key else key_of(world)
        payload = payload_of(world) | changes
        envelope, digest = sealed(payload, key)
        with psycopg.connect(world.url) as conn:
            conn.execute(
                "UPDATE certificates SET envelope = %s, payload_sha256 = %s, number = %s, last_seq = %s,"
                f" hash_before = %s, hash_after = %s WHERE {ALPHA}",
                [
                    envelope,
                    digest,
                    payload["number"],
                    payload["last_seq"],
                    bytes.fromhex(payload["hash_before"]),
                    bytes.fromhex(payload["hash_after"]),
                ],
            )
        _copy_of(world).rename(_copy_of(world).with_name(f"{payload['number']:08d}.json")).write_bytes(
            envelope
        )

    return damage


NO = hashlib.sha256(b"no").hexdigest()
TASK = "INSERT INTO tasks (run_id, tenant_id, window_from, action)"
RUN = "(SELECT run_id FROM runs ORDER BY started_at LIMIT 1)"
ENTRY = "SELECT run_id, kind, tenant_id, window_from, detail FROM run_entries"

# What is done → the kinds that must be among those named.
DAMAGE: dict[str, tuple[Callable[[World], None], set[str]]] = {
    # targets
    "row names another target": (
        sql(f"UPDATE segments SET target = 'deep' WHERE {WINDOW_1}"),
        {"segment-missing", "target"},
    ),
    "row names an unknown target": (
        sql(f"UPDATE segments SET target = 'elsewhere' WHERE {WINDOW_1}"),
        {"target", "acknowledged"},
    ),
    "window names another target": (sql(f"UPDATE windows SET target = 'deep' WHERE {WINDOW_1}"), {"target"}),
    "object in another target": (
        lambda world: shutil.move(segment_of(world, "near"), world.folder / "x.parquet"),
        {"segment-missing"},
    ),
    # removals
    "removed object back": (_object_back, {"removal"}),
    "removal of what counts": (
        sql(
            "INSERT INTO removals (target, key, tenant_id, window_from, reason, first_seq, last_seq,"
            " min_recorded_at, max_recorded_at, size_bytes, sha256) SELECT target, key, tenant_id,"
            " window_from, 'moved', first_seq, last_seq, min_recorded_at, max_recorded_at, size_bytes,"
            f" sha256 FROM segments WHERE {WINDOW_1}"
        ),
        {"removal"},
    ),
    "removal without a certificate": (
        sql(f"UPDATE removals SET reason = 'expired' WHERE {WINDOW_1}"),
        {"removal"},
    ),
    # certificates
    "certificate gone": (sql(f"DELETE FROM certificates WHERE {ALPHA}"), {"certificate", "removal", "gap"}),
    "certificate altered": (
        sql(f"UPDATE certificates SET envelope = set_byte(envelope, 99, 65) WHERE {ALPHA}"),
        {"certificate"},
    ),
    "certificate's row altered": (
        sql(f"UPDATE certificates SET last_seq = last_seq + 1 WHERE {ALPHA}"),
        {"certificate"},
    ),
    "certificate's time altered": (
        sql(f"UPDATE certificates SET issued_us = issued_us + 1 WHERE {ALPHA}"),
        {"certificate"},
    ),
    "certificate of another key": (forged(another_key=True), {"certificate"}),
    "key gone": (sql("DELETE FROM signing_keys"), {"certificate"}),
    "certificate of another store": (forged(store_id="0" * 8), {"certificate"}),
    "certificate of another tenant": (forged(tenant_id="gamma"), {"certificate"}),
    "certificate without its former one": (forged(number=2), {"certificate"}),
    "certificate after another": (forged(previous_sha256=NO), {"certificate"}),
    "certificate that miscounts": (forged(event_count=1), {"certificate"}),
    "certificate with another member": (forged(more=1), {"certificate"}),
    "certificate of another end": (forged(last_seq=GONE - 1, event_count=GONE - 1), {"certificate", "gap"}),
    "certificate of another hash": (forged(hash_after=NO), {"certificate", "segment"}),
    "certificate of another begin": (forged(hash_before=NO), {"certificate"}),
    "log shorter than certified": (forged(head_seq=LAST + 1), {"certificate"}),
    "log other than certified": (forged(head_hash=NO), {"certificate"}),
    "certificate's copy altered": (_alter_copy, {"certificate"}),
    "certificate's copy gone": (lambda world: _copy_of(world).unlink(), {"certificate"}),
    "certificate only in a target": (
        lambda world: shutil.copy(_copy_of(world), _copy_of(world).with_name("00000002.json")),
        {"certificate"},
    ),
    # expired windows
    "expired without a certificate": (
        sql(f"UPDATE windows SET state = 'expired' WHERE {WINDOW_1}"),
        {"certificate"},
    ),
    "certified, not expired": (
        sql(f"UPDATE windows SET state = 'dropped' WHERE {WINDOW_0}"),
        {"certificate"},
    ),
    "expired, with a segment": (
        sql(
            f"CREATE TEMP TABLE c ON COMMIT DROP AS SELECT * FROM segments WHERE {WINDOW_1} LIMIT 1",
            "UPDATE c SET first_seq = 1, last_seq = 40, key = 'x', window_from = '2024-03-01T00:00:00Z'",
            "INSERT INTO segments SELECT * FROM c",
        ),
        {"certificate", "segment-missing"},
    ),
    "expired, with a partition": (
        sql(
            "CREATE TABLE hot.events_1_20240301t000000 (LIKE events)",
            "ALTER TABLE hot.events_1 ATTACH PARTITION hot.events_1_20240301t000000"
            " FOR VALUES FROM ('2024-03-01T00:00:00Z') TO ('2024-03-01T01:00:00Z')",
        ),
        {"leaf"},
    ),
    "closed without a certificate": (
        sql(f"UPDATE tenants SET state = 'closed' WHERE {ALPHA}"),
        {"tenant"},
    ),
    # runs
    "two tasks for a window": (
        sql(
            "DROP INDEX tasks_unfinished_uq",
            f"UPDATE runs SET status = 'running', finished_at = NULL WHERE run_id = {RUN}",
            f"{TASK} SELECT {RUN}, tenant_id, window_from, 'move' FROM windows, generate_series(1, 2)"
            f" WHERE {WINDOW_1}",
        ),
        {"run"},
    ),
    "task of an ended run": (
        sql(f"{TASK} SELECT {RUN}, tenant_id, window_from, 'move' FROM windows WHERE {WINDOW_1}"),
        {"run"},
    ),
    "task for no window": (
        sql(f"{TASK} VALUES ({RUN}, 'alpha', '2020-01-01', 'move')"),
        {"run"},
    ),
    "end of a run not told": (sql("DELETE FROM run_entries WHERE kind = 'run_completed'"), {"run"}),
    "end of a run told twice": (
        sql(
            "INSERT INTO run_entries (run_id, kind, tenant_id, window_from, detail)"
            f" {ENTRY} WHERE kind = 'run_completed' LIMIT 1"
        ),
        {"run"},
    ),
    "run ended otherwise": (sql("UPDATE runs SET status = 'failed'"), {"run"}),
    "run without its end": (sql("UPDATE runs SET finished_at = NULL"), {"run"}),
    "end of a window not told": (
        sql(f"DELETE FROM run_entries WHERE kind = 'window_completed' AND {WINDOW_1}"),
        {"run"},
    ),
    "end of a window told twice": (
        sql(
            "INSERT INTO run_entries (run_id, kind, tenant_id, window_from, detail)"
            f" {ENTRY} WHERE kind = 'window_completed' AND {WINDOW_1}"
        ),
        {"run"},
    ),
}


def test_what_is_whole_is_found_whole(intact: World) -> None:
    report = judge(intact)
    assert not report.violations, str(report)
    assert (report.events, report.destroyed, report.orphans) == (2 * (LAST - GONE), 2 * GONE, [])
    strict = judge(intact, destroyed_ok=False)
    assert strict.kinds == {"acknowledged"}
    assert len(strict.violations) == 2 * GONE


@pytest.mark.parametrize(("damage", "kinds"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named(tiers: World, damage: Callable[[World], None], kinds: set[str]) -> None:
    damage(tiers)
    report = judge(tiers)
    assert report.kinds >= kinds, str(report)
    if not kinds & {"run"}:
        assert any("'alpha'" in v.message for v in report.violations)


def test_what_a_crash_leaves_is_legal(tiers: World) -> None:
    """A copy that nobody names yet; one that is still to be removed; a probe."""
    segment = segment_of(tiers, "near")
    copy = tiers.folder / "deep" / segment.relative_to(tiers.folder / "near")
    copy.parent.mkdir(parents=True)
    shutil.copy(segment, copy)
    _object_back(tiers)
    (tiers.archive / "probe").mkdir(exist_ok=True)
    (tiers.archive / "probe" / "left").touch()
    sql(f"UPDATE removals SET removed_at = NULL WHERE {WINDOW_1}")(tiers)
    report = judge(tiers)
    assert not report.violations, str(report)
    assert report.orphans == [copy.relative_to(tiers.folder).as_posix()]


def _offboard(world: World) -> None:
    """Take the whole of a log away, as it has to be done."""
    ((last_seq, last_hash),) = world.query(f"SELECT last_seq, last_hash FROM heads WHERE {ALPHA}")
    former = payload_of(world)
    ((digest,),) = world.query(f"SELECT payload_sha256 FROM certificates WHERE {ALPHA}")
    payload = former | {
        "kind": "offboarded",
        "number": 2,
        "previous_sha256": digest.hex(),
        "window_from": None,
        "window_to": None,
        "last_seq": last_seq,
        "event_count": last_seq,
        "hash_after": last_hash.hex(),
        "segments": [],
        "subtrees": [
            {"level": s.level, "index": s.index, "hash": s.hash.hex()} for s in lost_subtrees(1, last_seq)
        ],
    }
    envelope, sha256 = sealed(payload, key_of(world))
    with psycopg.connect(world.url) as conn:
        conn.execute(
            "INSERT INTO certificates (tenant_id, number, kind, first_seq, last_seq, hash_before, hash_after,"
            " payload_sha256, envelope, issued_us) SELECT tenant_id, 2, 'offboarded', 1, %s, hash_before, %s,"
            f" %s, %s, issued_us FROM certificates WHERE {ALPHA}",
            [last_seq, last_hash, sha256, envelope],
        )
        conn.execute(f"DELETE FROM segments WHERE {ALPHA}")
        conn.execute(f"UPDATE windows SET state = 'expired' WHERE {ALPHA}")
        conn.execute(f"UPDATE heads SET closed = true WHERE {ALPHA}")
        conn.execute(f"UPDATE tenants SET state = 'closed' WHERE {ALPHA}")
    for path in (world.folder / "near" / "tenant_id=alpha").rglob("*.parquet"):
        path.unlink()


LEFT: dict[str, tuple[str, set[str]]] = {
    "nothing": ("SELECT 1", set()),
    "takes events": (f"UPDATE heads SET closed = false WHERE {ALPHA}", {"tenant"}),
    "a window": (f"UPDATE windows SET state = 'dropped' WHERE {WINDOW_1}", {"tenant"}),
    "another end": (f"UPDATE heads SET last_seq = last_seq + 1 WHERE {ALPHA}", {"certificate", "gap"}),
    "active": (f"UPDATE tenants SET state = 'active' WHERE {ALPHA}", {"tenant"}),
    "a segment": (
        "CREATE TEMP TABLE c AS SELECT * FROM segments WHERE tenant_id = 'beta' LIMIT 1;"
        "UPDATE c SET tenant_id = 'alpha', key = key || 'x'; INSERT INTO segments SELECT * FROM c",
        {"certificate"},
    ),
}


@pytest.mark.parametrize(("statement", "kinds"), LEFT.values(), ids=LEFT.keys())
def test_what_is_left_of_an_offboarded_tenant(tiers: World, statement: str, kinds: set[str]) -> None:
    _offboard(tiers)
    sql(statement)(tiers)
    report = judge(tiers)
    assert report.kinds >= kinds, str(report)
    assert bool(report.violations) == bool(kinds), str(report)
