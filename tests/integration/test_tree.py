"""The Merkle tree of a log over both tiers, against the recursive definition over the events' hashes.

The random logs are the default's few; EXAMPLES multiplies them.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from eventstore.app import Store, verify_tenant
from eventstore.clock import FixedClock, to_us
from eventstore.db.engine import Database
from eventstore.errors import InputError, IntegrityError, StateError
from eventstore.governance.certificates import list_certificates
from eventstore.governance.tenants import create_tenant
from eventstore.integrity import tree as tree_module
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.integrity.merkle import is_consistent, leaf_hash, root_from_inclusion
from eventstore.integrity.nodes import Nodes
from eventstore.integrity.tree import Kept, Tree
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind, RunStatus
from eventstore.model.subtrees import LOST_VALUE, Subtree, cover
from eventstore.model.window import WindowUnit
from eventstore.query.tiers import Tiers
from eventstore.repair.rebuild import rebuild
from eventstore.retention import expiring
from eventstore.retention.compactor import RunOrder
from tests.conftest import create_database
from tests.integration.test_offboarding import run as offboard_it
from tests.unit.helpers import (
    DAY_US,
    HOUR_US,
    START_US,
    append,
    execute,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
)
from tests.unit.test_merkle import mth

EXAMPLES = 2 * int(os.environ.get("EXAMPLES", "1"))


def hashes(store: Store, tenant: str = "acme") -> list[bytes]:
    return [row["hash"] for row in read(store, tenant)]


def tree_of(store: Store) -> Tree:
    return Tree(store.database, store.tiers)


def check(store: Store, values: Sequence[bytes], sizes: Sequence[int], seqs: Sequence[int]) -> None:
    """Roots, proofs and consistency at some sizes are those of the definition over all hashes."""
    tree = tree_of(store)
    roots = {size: mth(list(values[:size])) for size in sizes}
    for size, root in roots.items():
        assert tree.root("acme", size) == root
        wanted = [seq for seq in seqs if seq <= size]
        for seq, path in zip(wanted, tree.prove("acme", wanted, size, root=root), strict=True):
            assert root_from_inclusion(seq - 1, size, leaf_hash(values[seq - 1]), path) == root
        for first in sizes:
            if first <= size:
                proof = tree.consistency("acme", first, size)
                assert is_consistent(first, size, roots[first], root, proof)


def test_the_tree_over_both_tiers(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 4, per_day=330)
    run_retention(store, START_US + 2 * DAY_US)
    values, tree = hashes(store), tree_of(store)
    tree.grow("acme", 700)
    tree.grow("acme", 1320)
    check(store, values, [1, 255, 256, 257, 660, 1024, 1320], [1, 256, 257, 660, 661, 1024, 1025, 1320])


def test_a_grower_that_dies_and_growers_at_once(
    store: Store, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is whole or not there; whoever grows, the tree is one."""
    monkeypatch.setattr(tree_module, "_TILE_LEAVES", 512)  # a step is of two blocks here
    make_tenant(store)
    fill_days(store, clock, "acme", 2, per_day=1100)
    values = hashes(store)
    real, calls = Tree._store_step, []

    def dying(self: Tree, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("killed before its second step is stored")
        real(self, *arguments)
        if len(calls) == 3:
            raise RuntimeError("killed after it")

    monkeypatch.setattr(Tree, "_store_step", dying)
    sizes = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            tree_of(store).grow("acme", 2200)
        sizes.append(execute(store.database.url, "SELECT size FROM trees")[0][0])
    assert sizes == [512, 1024]
    check(store, values, [1, 300, 1024, 1200], [1, 700, 1100])
    monkeypatch.setattr(Tree, "_store_step", real)
    steps: list[tuple[int, int]] = []
    barrier = threading.Barrier(3)

    def grow() -> None:
        barrier.wait()
        tree_of(store).grow("acme", 2200, progress=lambda done, total: steps.append((done, total)))

    threads = [threading.Thread(target=grow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps.count((2048, 2048)) == 3
    check(store, values, [512, 2047, 2048, 2200], [1, 1100, 1101, 2048, 2049, 2200])


def test_what_cannot_be_proven_is_refused(store: Store, clock: FixedClock) -> None:
    make_tenant(store)
    fill_days(store, clock, "acme", 1, per_day=600)
    tree = tree_of(store)
    with pytest.raises(InputError, match="ends at seq 600, before 601"):
        tree.grow("acme", 601)
    with pytest.raises(InputError, match="has grown over 0 events, not 600"):
        tree.root("acme", 600)
    tree.grow("acme", 600)
    for seqs, size in (([0], 600), ([601], 600), ([500, 401], 400)):
        with pytest.raises(InputError, match="does not hold event"):
            tree.prove("acme", seqs, size)
    for first, second in ((0, 5), (7, 6)):
        with pytest.raises(InputError, match="no proof from"):
            tree.consistency("acme", first, second)
    with pytest.raises(IntegrityError, match="not the root that was signed"):
        tree.prove("acme", [5], 600, root=bytes(32))
    # A proof that a changed tile would make is not given out.
    values = hashes(store)
    wrong = mth(values[:256])[:31] + b"x"
    execute(store.database.url, "UPDATE tree_tiles SET hashes = %s || substr(hashes, 33)", [wrong])
    with pytest.raises(IntegrityError, match="does not lead to the root"):
        tree.prove("acme", [5], 600)
    execute(store.database.url, "UPDATE trees SET last_hash = sha256('x')")
    append(store, "acme", *(new_event(str(n)) for n in range(300)))
    with pytest.raises(IntegrityError, match="the event 512 of 'acme' is not the one that its tree"):
        tree.grow("acme", 900)


# --- destruction ------------------------------------------------------------------------------------------

# Whatever is archived may be destroyed a day later; the test says which windows are.
EXPIRING = Policy(WindowUnit.DAY, 0, (ArchiveTier("archive", DAY_US),), Ending.EXPIRE)


@dataclass
class History:
    """A log as it came to be: every hash, and what of it was destroyed."""

    store: Store
    clock: FixedClock
    values: list[bytes]
    sizes: list[int]
    gone: set[int]
    day: int = 0

    def add(self, count: int) -> None:
        self.clock.move_to(START_US + self.day * DAY_US + 12 * HOUR_US)
        append(self.store, "acme", *(new_event(str(n % 3)) for n in range(count)))
        last = len(self.values) + count
        joined = self.store.tiers.hashes("acme", len(self.values) + 1, last)
        self.values += [joined[at : at + 32] for at in range(0, len(joined), 32)]

    def sign(self) -> None:
        made = make_checkpoint(self.store.database, self.store.tiers, self.store.key, "acme")
        if made is not None and made.size not in self.sizes:
            assert made.root == mth(self.values[: made.size])
            self.sizes.append(made.size)

    def expire(self, wanted: Sequence[int]) -> None:
        """Destroy the windows of some days, as far as they are archived."""
        rows = execute(
            self.store.database.url,
            "SELECT window_from, first_seq, last_seq FROM windows WHERE state = 'dropped'",
        )
        chosen = [row for row in rows if (to_us(row[0]) - START_US) // DAY_US in wanted]
        only = frozenset(("acme", to_us(row[0])) for row in chosen)
        order = RunOrder(RunKind.EXPIRY, "test", only=only)
        report = self.store.compactor.run(
            self.store.compactor.tenants(), START_US + (self.day + 9) * DAY_US, order=order
        )
        assert report.status is RunStatus.COMPLETED
        for _, first, last in chosen:
            self.gone |= set(range(first, last + 1))

    def check(self, store: Store | None = None, sizes: Sequence[int] | None = None) -> None:
        """Everything that is left is proven in every checkpoint, and all of these are consistent."""
        left = [seq for seq in range(1, len(self.values) + 1) if seq not in self.gone]
        sizes = self.sizes if sizes is None else sizes
        check(store or self.store, self.values, sizes, left[:: max(1, len(left) // 40)])


@pytest.fixture
def history(store: Store, clock: FixedClock) -> History:
    create_tenant(store.database, "acme", EXPIRING)
    return History(store, clock, [], [], set())


def test_what_is_left_is_proven_after_windows_were_destroyed(history: History, tmp_path: Path) -> None:
    """Edges within blocks, windows smaller than a block, checkpoints within and at the end of what is gone;
    and from the archive targets alone, as far as certificates say it."""
    for count in (300, 90, 70, 700, 20, 200):
        history.add(count // 2)
        history.sign()
        history.add(count - count // 2)
        history.sign()
        history.day += 1
    store = history.store
    run_retention(store, START_US + history.day * DAY_US)
    for days in ([1], [2], [0], [4, 3]):
        history.expire(days)
        history.check(sizes=history.sizes if days == [4, 3] else history.sizes[1::3])
        assert verify_tenant(store, "acme").problems == []
    gone = min(history.gone)
    with pytest.raises(InputError, match="was destroyed"):
        tree_of(store).prove("acme", [gone], history.sizes[-1])
    with store.database.transaction() as conn:
        (first, *_) = list_certificates(conn, "acme")
    assert first.certificate.subtrees == tuple(
        Subtree(level, index, mth(history.values[index << level : (index + 1) << level]))
        for level, index in cover(first.certificate.first_seq - 1, first.certificate.last_seq)
    )
    # What the certificate says, and nothing else, is in the database.
    execute(store.database.url, "UPDATE tree_subtrees SET hash = sha256('x') WHERE level = 1")
    assert any("not as it was certified" in p.message for p in verify_tenant(store, "acme").problems)


@pytest.mark.parametrize(
    ("order", "at_once"),
    [*((order, False) for order in permutations(range(3))), ((0, 1, 2), True), ((2, 0, 1), True)],
    ids=["012", "021", "102", "120", "201", "210", "at-once-012", "at-once-201"],
)
def test_windows_within_a_block_are_destroyed_in_any_order(
    history: History, order: tuple[int, ...], at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leaves that were kept of a block are added to, whatever window comes first; also when what is to be
    kept of all of them was read before any of them was gone."""
    for count in (90, 40, 70, 200):
        history.add(count // 2)
        history.sign()
        history.add(count - count // 2 - 3)
        history.sign()
        history.add(3)
        history.day += 1
    history.sign()
    run_retention(history.store, START_US + history.day * DAY_US)
    if at_once:
        tree = tree_of(history.store)
        tree.grow("acme", len(history.values))
        rows = execute(history.store.database.url, "SELECT first_seq, last_seq FROM windows")
        found = {row: tree.to_keep("acme", *row) for row in rows if row[1] is not None}
        monkeypatch.setattr(
            expiring, "_to_keep", lambda task: found[task.record.first_seq, task.record.last_seq]
        )
    for day in order:
        history.expire([day])
    history.check()
    assert verify_tenant(history.store, "acme").problems == []


def test_the_tree_is_made_anew_from_the_targets(
    history: History, server_url: str, template_database: str
) -> None:
    for count in (600, 500, 300):
        history.add(count)
        history.sign()
        history.day += 1
    history.add(1)  # in Postgres alone: it is lost with it
    run_retention(history.store, START_US + 3 * DAY_US)
    history.expire([1])
    url = create_database(server_url, f"tree_{secrets.token_hex(6)}", template=template_database)
    database = Database(url)
    database.open()
    try:
        now_us = START_US + 30 * DAY_US
        report = rebuild(database, history.store.targets, key=history.store.key, now_us=now_us)
        assert (report.stopped, execute(url, "SELECT count(*) FROM trees")) == ({}, [(0,)])
        tiers = Tiers(database, history.store.tiers._scan)
        made = make_checkpoint(database, tiers, history.store.key, "acme")
        # The certificate saw the lost event: its place is taken by one of which nothing is known.
        assert made is not None
        assert made.size == 1401
        assert made.root == mth([*history.values[:1400], LOST_VALUE])
        rebuilt = replace(history.store, database=database, tiers=tiers)
        history.check(rebuilt)
        assert verify_tenant(rebuilt, "acme").problems == []
        # In the midst of what was destroyed nothing is known any more, and nothing wrong is said.
        with pytest.raises(StateError, match="is not known: something of it was destroyed"):
            tree_of(rebuilt).root("acme", 700)
    finally:
        database.close()
        execute(server_url, f'DROP DATABASE "{url.rsplit("/", 1)[1].split("?")[0]}" WITH (FORCE)')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hash_before = sha256('x')", "what lies before event 301 of 'acme' is not what certificate 1 says"),
        ("hash_after = sha256('x')", "event 421 of 'acme' does not go on from what certificate 1 says"),
    ],
)
def test_growth_over_what_was_destroyed_compares_it_with_what_is_left(
    history: History, change: str, said: str
) -> None:
    for count in (300, 120, 200):
        history.add(count)
        history.day += 1
    run_retention(history.store, START_US + 2 * DAY_US)
    history.expire([1])
    url, tree = history.store.database.url, tree_of(history.store)
    for forget in ("DELETE FROM tree_tiles", "DELETE FROM trees"):  # as after a rebuild of the catalog
        execute(url, forget)
    with psycopg.connect(url) as conn:  # as it would be if something else lay beside what was destroyed
        conn.execute("ALTER TABLE certificates DISABLE TRIGGER ALL")
        conn.execute(f"UPDATE certificates SET {change}".encode())
    with pytest.raises(IntegrityError, match=said):
        tree.grow("acme", 620)
    assert verify_tenant(history.store, "acme").problems  # which says so too


def test_a_neighbour_is_destroyed_while_proofs_are_made(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up before is looked up anew, for growth as well; but not without end."""
    for count in (300, 300, 300, 300):
        history.add(count)
        history.sign()
        history.day += 1
    run_retention(history.store, START_US + history.day * DAY_US)
    real, days, busy = tree_module.load_nodes, [1], threading.Lock()

    def load_then_destroy(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        if days and busy.acquire(blocking=False):
            history.expire([days.pop()])
            busy.release()
        return found

    tree, values = tree_of(history.store), history.values
    monkeypatch.setattr(tree_module, "load_nodes", load_then_destroy)
    assert tree.root("acme", 650) == mth(values[:650])
    assert history.gone == set(range(301, 601))
    history.add(300)
    days.append(0)
    execute(history.store.database.url, "DELETE FROM tree_tiles WHERE level > 0")
    execute(history.store.database.url, "DELETE FROM trees")
    tree.grow("acme", 1500)
    assert history.gone == set(range(1, 601))
    assert tree.root("acme", 1500) == mth(values)
    # What is not there, though nothing moved, is not asked for again and again.
    monkeypatch.setattr(tree_module, "load_nodes", real)
    execute(history.store.database.url, "DELETE FROM tree_tiles")
    with pytest.raises(StateError, match="is not known"):
        tree.root("acme", 350)


def damage(history: History, archive_dir: Path, day: int) -> None:
    """One byte of the segment of a day."""
    path = sorted(archive_dir.rglob("*.parquet"))[day]
    octets = bytearray(path.read_bytes())
    octets[len(octets) // 2] ^= 1
    path.write_bytes(octets)


def test_damage_elsewhere_takes_nothing_from_a_window_that_is_destroyed(
    history: History, archive_dir: Path
) -> None:
    """The tree does not grow over a window that is damaged, so this one's subtrees are made of its events;
    and the leaves of the block in which a checkpoint ends are kept."""
    history.add(300)
    history.day += 1
    history.add(200)
    history.sign()
    history.add(600)
    history.day += 1
    history.add(10)
    run_retention(history.store, START_US + 2 * DAY_US)
    execute(history.store.database.url, "DELETE FROM tree_tiles")
    execute(history.store.database.url, "DELETE FROM trees")
    damage(history, archive_dir, 0)
    history.expire([1])
    with history.store.database.transaction() as conn:
        (stored,) = list_certificates(conn, "acme")
    assert stored.certificate.subtrees == tuple(
        Subtree(level, index, mth(history.values[index << level : (index + 1) << level]))
        for level, index in cover(300, 1100)
    )
    ((hashes_,),) = execute(history.store.database.url, "SELECT hashes FROM tree_tiles WHERE level = 0")
    lost, kept = 300 - 256, [leaf_hash(value) for value in history.values[300:512]]
    assert bytes(hashes_) == bytes(32 * lost) + b"".join(kept)


def test_a_window_that_is_damaged_is_destroyed_with_the_others_leaves_as_they_were(
    history: History, archive_dir: Path
) -> None:
    """Of what was damaged the tree has lost values; of the block that it shares with others, only those."""
    for count in (300, 100, 300):
        history.add(count)
        history.day += 1
    run_retention(history.store, START_US + history.day * DAY_US)
    damage(history, archive_dir, 1)
    history.expire([1])
    values = [*history.values[:300], *[LOST_VALUE] * 100, *history.values[400:]]
    made = make_checkpoint(history.store.database, history.store.tiers, history.store.key, "acme")
    assert made is not None
    assert made.root == mth(values)
    check(history.store, values, [700], [1, 300, 401, 700])
    with pytest.raises(StateError, match="something of it was destroyed"):
        tree_of(history.store).root("acme", 350)


def test_leaves_of_one_block_at_a_time_are_held(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many checkpoints end in what is destroyed."""
    for _ in range(6):
        history.add(256)
        history.add(5)
        history.sign()
    real, most = Nodes.load, []

    def load(nodes: Nodes, *arguments: Any) -> None:
        real(nodes, *arguments)
        most.append(len(nodes._leaves))

    monkeypatch.setattr(Nodes, "load", load)
    kept = tree_of(history.store).to_keep("acme", 1, len(history.values))
    assert len(kept.blocks) == 5
    assert max(most) <= 2  # and that at the tree's end


def test_of_a_log_that_is_offboarded_leaves_are_stored_while_they_are_read(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many checkpoints there are; and these are as consistent as before."""
    for count in (100, 300, 200, 700, 100, 400):
        history.add(count)
        history.sign()
        history.day += 1
    run_retention(history.store, START_US + 3 * DAY_US)
    history.expire([1])
    real, most = tree_module.keep, []

    def keep(conn: sa.Connection, tenant_id: str, kept: Kept) -> None:
        most.append(len(kept.blocks))
        real(conn, tenant_id, kept)

    monkeypatch.setattr(tree_module, "keep", keep)
    monkeypatch.setattr(tree_module, "_AHEAD_BLOCKS", 2)
    values = history.values
    offboard_it(history.store, tmp_path / "out", confirm=len(values) - len(history.gone))
    assert most == [2, 2]
    tree = tree_of(history.store)
    for first, second in pairwise(history.sizes):
        roots = mth(values[:first]), mth(values[:second])
        assert is_consistent(first, second, *roots, tree.consistency("acme", first, second))


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_random_logs(history: History, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends, compactions, growth, checkpoints and destruction in any order."""
    chance = random.Random(seed)
    monkeypatch.setattr(tree_module, "_TILE_LEAVES", 512)
    for _ in range(40):
        match chance.choice(("add", "add", "day", "retention", "grow", "sign", "sign", "expire")):
            case "add":
                history.add(chance.choice((1, 7, 100, 256, 300)))
            case "day":
                history.day += 1
            case "retention":
                run_retention(history.store, START_US + history.day * DAY_US)
            case "grow":
                tree_of(history.store).grow("acme", chance.randint(0, len(history.values)))
            case "sign":
                history.sign()
            case "expire":
                history.expire([chance.randint(0, history.day)])
    history.sign()
    history.check()
    assert verify_tenant(history.store, "acme").problems == []
