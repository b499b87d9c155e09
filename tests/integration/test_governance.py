"""Policies, holds, their record, certificates and explanations, against a real Postgres."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from eventstore.archive.file import FileTarget
from eventstore.archive.layout import certificate_key, governance_key
from eventstore.archive.targets import Targets
from eventstore.catalog.tenants import get_tenant
from eventstore.cli.main import app
from eventstore.cli.output import console
from eventstore.clock import US_PER_S, from_us, parse_time_us
from eventstore.db.engine import Database
from eventstore.db.tables import (
    certificates,
    deployment,
    governance,
    heads,
    policies,
    removals,
    runs,
    segments,
    signing_keys,
    tasks,
    tenants,
    windows,
)
from eventstore.errors import (
    ArchiveConflictError,
    BusyError,
    ConfirmationError,
    HeldError,
    InputError,
    IntegrityError,
    StateError,
    TargetUnavailableError,
    TenantClosedError,
    TenantExistsError,
    TenantNotFoundError,
)
from eventstore.governance import record as recording
from eventstore.governance.certificates import (
    check_certificates,
    list_certificates,
    next_certificate,
    remember_key,
    store_certificate,
    store_copies,
    trusted_keys,
)
from eventstore.governance.holds import (
    assert_not_held,
    holds_in_force,
    list_holds,
    lock_destruction,
    place_hold,
    release_hold,
)
from eventstore.governance.policies import (
    apply_change,
    bring_units_into_force,
    policies_at,
    policies_of_all,
    policy_of,
    policy_versions,
    preview_change,
)
from eventstore.governance.record import EntryKind, mirror, mirror_or_warn, parse_entry, unmirrored
from eventstore.governance.scopes import preview_scope
from eventstore.governance.signing import SigningKey, verify
from eventstore.governance.tenants import create_tenant
from eventstore.model.certificate import Certificate, CertificateKind, from_payload
from eventstore.model.event import chain_start
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.policy import DEFAULT_POLICY, ArchiveTier, Ending, Policy, PolicyOverride, PolicyVersion
from eventstore.model.subtrees import lost_subtrees
from eventstore.model.tenant import TenantState
from eventstore.model.window import WindowState, WindowUnit
from eventstore.query.explain import explain_tenant, explain_window

DAY_US = 86_400 * US_PER_S
START_US = parse_time_us("2024-03-01")
NOW_US = START_US + 100 * DAY_US
GRACE_US = 7 * DAY_US
TARGETS = ("archive", "near", "deep")
EXPIRE_50D = PolicyOverride(tiers=(ArchiveTier("archive", 40 * DAY_US),), ending=Ending.EXPIRE)
KEEP_10D = Policy(WindowUnit.DAY, 10 * DAY_US)


def hash_of(tenant_id: str, seq: int) -> bytes:
    return chain_start(tenant_id) if seq == 0 else hashlib.sha256(f"{tenant_id}/{seq}".encode()).digest()


def fill(database: Database, tenant_id: str = "acme", days: int = 100, *, dropped: int = 0) -> None:
    """Windows of a day with ten events each, in the catalog alone; the first `dropped` are archived, each in
    one segment, in the target `archive`."""
    with database.transaction() as conn:
        for day in range(days):
            start_us, first, last = START_US + day * DAY_US, 10 * day + 1, 10 * day + 10
            state = WindowState.DROPPED if day < dropped else WindowState.OPEN
            values: dict[str, Any] = {
                "tenant_id": tenant_id,
                "window_from": from_us(start_us),
                "window_to": from_us(start_us + DAY_US),
                "state": state.value,
                "leaf": f"{tenant_id}_{day}",
                "first_seq": first,
            }
            hashes = {"hash_before": hash_of(tenant_id, first - 1), "hash_after": hash_of(tenant_id, last)}
            if day < dropped:
                values |= {"last_seq": last, "target": "archive", **hashes}
            conn.execute(sa.insert(windows).values(values))
            if day < dropped:
                segment = {
                    "tenant_id": tenant_id,
                    "first_seq": first,
                    "last_seq": last,
                    "window_from": from_us(start_us),
                    "part": 0,
                    "target": "archive",
                    "key": f"{tenant_id}/{day}",
                    "min_recorded_at": from_us(start_us),
                    "max_recorded_at": from_us(start_us + DAY_US - 1),
                    "size_bytes": 1,
                    "sha256": b"",
                    "schema_version": 1,
                    **hashes,
                }
                conn.execute(sa.insert(segments).values(segment))
        head = {"last_seq": 10 * days, "last_hash": hash_of(tenant_id, 10 * days)}
        conn.execute(sa.update(heads).where(heads.c.tenant_id == tenant_id).values(head))


def change(
    database: Database,
    tenant_id: str | None,
    override: PolicyOverride | None,
    *,
    at_us: int = NOW_US,
    confirm: int | None = None,
) -> PolicyVersion:
    return apply_change(
        database,
        tenant_id,
        override,
        actor="records officer",
        reason="schedule 4",
        now_us=at_us,
        known_targets=TARGETS,
        grace_us=GRACE_US,
        confirm=confirm,
    )


def in_force(database: Database, tenant_id: str = "acme", at_us: int = NOW_US) -> tuple[int, Policy]:
    with database.transaction() as conn:
        found = policy_of(conn, tenant_id, at_us)
        times = (at_us, at_us - GRACE_US, at_us + GRACE_US, at_us)
        each = [policy_of(conn, tenant_id, time_us) for time_us in times]
        assert [policies[tenant_id] for policies in policies_at(conn, *times)] == each
    return found.policy_no, found.policy


@pytest.fixture
def acme(database: Database) -> Database:
    """A tenant with a policy of its own, and windows of 100 days that have all ended."""
    create_tenant(database, "acme", KEEP_10D, now_us=NOW_US)
    fill(database)
    return database


class TestTenants:
    def test_its_policy_is_in_force_at_once_and_for_earlier_times_too(self, database: Database) -> None:
        made = create_tenant(database, "acme", KEEP_10D, now_us=NOW_US)
        assert made.unit is WindowUnit.DAY
        for at_us in (START_US, NOW_US):
            assert in_force(database, at_us=at_us)[1] == KEEP_10D

    def test_without_a_policy_it_follows_the_default(self, database: Database) -> None:
        change(database, None, PolicyOverride(unit=WindowUnit.WEEK), at_us=START_US)
        assert create_tenant(database, "acme", now_us=NOW_US).unit is WindowUnit.WEEK
        with database.transaction() as conn:
            assert policy_versions(conn, "acme") == []
        assert in_force(database)[1] == replace(DEFAULT_POLICY, unit=WindowUnit.WEEK)

    def test_nothing_is_left_of_one_that_cannot_be_made(self, database: Database) -> None:
        create_tenant(database, "acme")
        with pytest.raises(TenantExistsError):
            create_tenant(database, "acme", KEEP_10D)
        with pytest.raises(InputError, match="needs a time"):
            create_tenant(database, "other", PolicyOverride(ending=Ending.EXPIRE))
        far = PolicyOverride(tiers=(ArchiveTier("far"),))
        with pytest.raises(InputError, match="no archive target 'far'"):
            create_tenant(database, "other", far, known_targets=TARGETS)
        with database.transaction() as conn:
            assert [entry.kind for entry in unmirrored(conn)] == [EntryKind.TENANT_CREATED]
            assert conn.execute(sa.select(sa.func.count()).select_from(policies)).scalar_one() == 0


class TestPolicyChanges:
    def test_one_that_destroys_nothing_sooner_is_in_force_at_once(self, acme: Database) -> None:
        made = change(acme, "acme", PolicyOverride(hot_for_us=5 * DAY_US))
        assert (made.effective_us, made.confirmed_events) == (NOW_US, None)
        assert in_force(acme) == (made.policy_no, replace(KEEP_10D, hot_for_us=5 * DAY_US))

    def test_it_is_explained_before(self, acme: Database) -> None:
        found = preview_change(acme, "acme", EXPIRE_50D, NOW_US, TARGETS, grace_us=GRACE_US)
        assert found.destroys_sooner
        # All windows have ended, the last one this very moment.
        assert found.events_destroyed_sooner == 1000
        assert found.first_destruction_us == found.effective_us == NOW_US + GRACE_US
        (tenant,) = found.tenants
        assert [(e.kind.value, e.windows, e.events) for e in tenant.effects] == [
            ("destroyed sooner", 100, 1000)
        ]
        assert tenant.effects[0].last_us == NOW_US + 50 * DAY_US
        json.dumps(found.as_json())
        assert in_force(acme)[1] == KEEP_10D

    def test_only_windows_that_have_ended_are_counted(self, acme: Database) -> None:
        found = preview_change(acme, "acme", EXPIRE_50D, NOW_US - DAY_US, TARGETS)
        assert found.events_destroyed_sooner == 990
        assert found.tenants[0].effects[0].events == 1000

    @pytest.mark.parametrize("confirm", [None, 0, 999, 1001])
    def test_one_that_destroys_sooner_needs_the_count(self, acme: Database, confirm: int | None) -> None:
        with pytest.raises(ConfirmationError, match=r"1,000 events .* the first on 2024-06-16") as refused:
            change(acme, "acme", EXPIRE_50D, confirm=confirm)
        assert refused.value.events == 1000
        with acme.transaction() as conn:
            assert len(policy_versions(conn, "acme")) == 1

    def test_and_waits_for_the_grace_to_be_over(self, acme: Database) -> None:
        made = change(acme, "acme", EXPIRE_50D, confirm=1000)
        assert (made.effective_us, made.confirmed_events) == (NOW_US + GRACE_US, 1000)
        assert in_force(acme, at_us=NOW_US + GRACE_US - 1)[1] == KEEP_10D
        assert in_force(acme, at_us=NOW_US + GRACE_US) == (made.policy_no, EXPIRE_50D.over(KEEP_10D))

    def test_one_that_is_withdrawn_in_its_grace_never_comes_into_force(self, acme: Database) -> None:
        shortened = change(acme, "acme", EXPIRE_50D, confirm=1000)
        present = PolicyOverride(hot_for_us=10 * DAY_US)
        explained = preview_change(acme, "acme", present, NOW_US + DAY_US, TARGETS)
        assert explained.withdraws == (shortened.policy_no,)
        assert not explained.destroys_sooner
        made = change(acme, "acme", present, at_us=NOW_US + DAY_US)
        for day in range(2, 40):
            assert in_force(acme, at_us=NOW_US + day * DAY_US) == (made.policy_no, KEEP_10D)
        with acme.transaction() as conn:
            assert len(policy_versions(conn, "acme")) == 3

    def test_a_change_of_the_default_counts_everyone_who_follows_it(self, acme: Database) -> None:
        create_tenant(acme, "beta", PolicyOverride(unit=WindowUnit.DAY))
        fill(acme, "beta", 60)
        create_tenant(acme, "gone")
        with acme.transaction() as conn:
            conn.execute(sa.update(tenants).where(tenants.c.tenant_id == "gone").values(state="closed"))
        found = preview_change(acme, None, EXPIRE_50D, NOW_US, TARGETS)
        assert [(t.tenant_id, t.effects[0].events) for t in found.tenants] == [("beta", 600)]
        with pytest.raises(ConfirmationError):
            change(acme, None, EXPIRE_50D)
        made = change(acme, None, EXPIRE_50D, confirm=600)
        assert in_force(acme, "beta", made.effective_us)[1].lifetime_us == 130 * DAY_US
        assert in_force(acme, "acme", made.effective_us)[1] == KEEP_10D

    def test_a_default_that_contradicts_a_tenants_own_policy_names_the_tenant(self, acme: Database) -> None:
        change(acme, None, PolicyOverride(tiers=(ArchiveTier("deep", DAY_US),)))
        create_tenant(acme, "beta", PolicyOverride(ending=Ending.EXPIRE))
        with pytest.raises(InputError, match="'beta'"):
            change(acme, None, PolicyOverride(tiers=(ArchiveTier("deep"),)))

    def test_a_tenant_whose_last_tier_has_no_end_keeps_whatever_the_default_says(
        self, acme: Database
    ) -> None:
        create_tenant(acme, "beta", PolicyOverride(tiers=(ArchiveTier("deep"),)))
        create_tenant(acme, "delta")
        change(acme, "delta", PolicyOverride(tiers=(ArchiveTier("deep"),)))
        made = change(acme, None, EXPIRE_50D)
        for name in ("beta", "delta"):
            assert in_force(acme, name, made.effective_us)[1].ending is Ending.KEEP

    def test_a_reset_is_protected_like_any_change(self, acme: Database) -> None:
        create_tenant(acme, "beta", PolicyOverride(ending=Ending.KEEP))
        fill(acme, "beta", 60)
        change(acme, None, EXPIRE_50D)
        with pytest.raises(ConfirmationError) as refused:
            change(acme, "beta", None)
        assert refused.value.events == 600
        made = change(acme, "beta", None, confirm=600)
        assert made.override == PolicyOverride()
        assert in_force(acme, "beta", made.effective_us)[1].ending is Ending.EXPIRE

    def test_a_target_that_is_not_known_is_refused_with_those_that_are(self, acme: Database) -> None:
        with pytest.raises(InputError) as refused:
            change(acme, "acme", PolicyOverride(tiers=(ArchiveTier("far"),)))
        assert refused.value.hint == "known are: archive, deep, near"

    def test_who_and_why_have_to_be_said(self, acme: Database) -> None:
        for actor, reason in (("", "why"), ("who", "  "), ("who", "nul\0")):
            with pytest.raises(InputError):
                apply_change(
                    acme, "acme", None, actor=actor, reason=reason, now_us=NOW_US, known_targets=TARGETS
                )
        with pytest.raises(TenantNotFoundError):
            change(acme, "nobody", None)

    def test_units_come_into_force_at_once_or_when_their_time_has_come(self, acme: Database) -> None:
        def unit() -> WindowUnit:
            with acme.transaction() as conn:
                return get_tenant(conn, "acme").unit

        change(acme, "acme", PolicyOverride(unit=WindowUnit.HOUR))
        assert unit() is WindowUnit.HOUR
        week = replace(EXPIRE_50D, unit=WindowUnit.WEEK)
        change(acme, "acme", week, confirm=1000)
        with acme.transaction() as conn:
            assert bring_units_into_force(conn, policies_of_all(conn, NOW_US)) == []
        assert unit() is WindowUnit.HOUR
        with acme.transaction() as conn:
            in_force = policies_of_all(conn, NOW_US + GRACE_US)
            assert bring_units_into_force(conn, in_force) == ["acme"]
        assert unit() is WindowUnit.WEEK

    def test_all_policies_take_two_queries(self, acme: Database) -> None:
        for number in range(5):
            create_tenant(acme, f"t-{number}", KEEP_10D)
        statements: list[str] = []

        def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        with acme.transaction() as conn:
            sa.event.listen(acme.engine, "before_cursor_execute", note)
            try:
                assert len(policies_of_all(conn, NOW_US)) == 6
            finally:
                sa.event.remove(acme.engine, "before_cursor_execute", note)
        assert len(statements) == 2


# --- the record ---------------------------------------------------------------------------------------


@pytest.fixture
def target(archive_dir: Path) -> FileTarget:
    return FileTarget(archive_dir)


class TestRecord:
    def test_everything_is_recorded_in_order(self, acme: Database) -> None:
        change(acme, "acme", EXPIRE_50D, confirm=1000)
        place_hold(acme, "acme", "case", "why", "counsel", HoldScope(), NOW_US)
        release_hold(acme, "acme", "case", "counsel", "over", NOW_US)
        with acme.transaction() as conn:
            entries = unmirrored(conn)
        assert [(e.entry_no, e.kind, e.tenant_id) for e in entries] == [
            (1, "tenant_created", "acme"),
            (2, "policy", "acme"),
            (3, "policy", "acme"),
            (4, "hold_placed", "acme"),
            (5, "hold_released", "acme"),
        ]
        assert entries[2].document["confirmed_events"] == 1000
        for entry in entries:
            assert parse_entry(entry.to_bytes()) == entry
        with pytest.raises(IntegrityError):
            parse_entry(entries[0].to_bytes().replace(b"acme", b"beta") + b" ")

    def test_numbers_have_no_gap_however_many_write_and_fail(self, database: Database) -> None:
        class StopError(Exception):
            pass

        def write(worker: int) -> None:
            for n in range(8):
                try:
                    with database.transaction() as conn:
                        recording.record(conn, EntryKind.POLICY, None, "x", {}, worker)
                        if n % 3 == 0:
                            raise StopError
                except StopError:
                    pass

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.transaction() as conn:
            numbers = list(
                conn.execute(sa.select(governance.c.entry_no).order_by(governance.c.entry_no)).scalars()
            )
        assert numbers == list(range(1, 4 * 5 + 1))

    def test_each_entry_is_copied_once(self, acme: Database, target: FileTarget) -> None:
        assert mirror(acme, target) == 2
        assert mirror(acme, target) == 0
        assert [o.key for o in target.list("governance/")] == [governance_key(1), governance_key(2)]
        with target.open(governance_key(2)) as file:
            assert parse_entry(file.read()).document["policy"] == KEEP_10D.as_json()

    def test_a_copy_that_nobody_noted_is_found_equal(self, acme: Database, target: FileTarget) -> None:
        mirror(acme, target)
        with acme.transaction() as conn:
            conn.execute(sa.update(governance).values(mirrored=False))
        assert mirror(acme, target) == 2

    def test_another_object_under_the_key_is_left_and_told(self, acme: Database, target: FileTarget) -> None:
        path = target.root / governance_key(1)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"of somebody else")
        with pytest.raises(ArchiveConflictError):
            mirror(acme, target)
        assert path.read_bytes() == b"of somebody else"
        warning = mirror_or_warn(acme, Targets.single(target))
        assert warning is not None
        assert "the change stands" in warning

    def test_a_target_that_is_away_is_a_warning_and_made_up_for_later(
        self, acme: Database, target: FileTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(_: str) -> Path:
            raise TargetUnavailableError("it does not answer")

        with monkeypatch.context() as patched:
            patched.setattr(target, "stage", away)
            assert "it does not answer" in str(mirror_or_warn(acme, Targets.single(target)))
        assert mirror_or_warn(acme, Targets.single(target)) is None
        with acme.transaction() as conn:
            assert unmirrored(conn) == []


# --- holds --------------------------------------------------------------------------------------------


def hold(database: Database, name: str = "case", **scope: Any) -> Hold:
    return place_hold(database, "acme", name, "court order", "counsel", HoldScope(**scope), NOW_US)


@contextmanager
def in_thread(work: Any) -> Iterator[list[Any]]:
    """Work that may have to wait; its results, once the block has ended."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as e:  # noqa: BLE001 - shown by the test
            results.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(30)


def wait_until_blocked(database: Database) -> None:
    """Until somebody waits for an advisory lock."""
    query = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    for _ in range(500):
        with database.transaction() as conn:
            if conn.execute(query).scalar_one():
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


class TestHolds:
    def test_placed_listed_released(self, acme: Database) -> None:
        first = hold(acme, "first", entities=(("order", "a/b"),), from_us=START_US, to_us=NOW_US)
        second = hold(acme, "second")
        with acme.transaction() as conn:
            assert holds_in_force(conn, "acme") == [first, second]
        released = release_hold(acme, "acme", "first", "counsel", "settled", NOW_US + 1)
        assert (released.released_by, released.release_reason) == ("counsel", "settled")
        with acme.transaction() as conn:
            assert list_holds(conn, "acme", in_force_only=True) == [second]
            assert list_holds(conn) == [released, second]
            assert holds_in_force(conn, "nobody") == []

    def test_what_is_refused(self, acme: Database) -> None:
        hold(acme)
        with pytest.raises(StateError, match="has, or had, a hold named 'case'"):
            hold(acme)
        release_hold(acme, "acme", "case", "counsel", "over", NOW_US)
        with pytest.raises(StateError, match="was released by counsel"):
            release_hold(acme, "acme", "case", "counsel", "over", NOW_US)
        with pytest.raises(StateError):
            hold(acme)  # a name is one case for good
        with pytest.raises(InputError, match="no hold named"):
            release_hold(acme, "acme", "other", "counsel", "over", NOW_US)
        for name, reason, who in (("", "r", "w"), ("x" * 201, "r", "w"), ("n", " ", "w"), ("n", "r", "")):
            with pytest.raises(InputError):
                place_hold(acme, "acme", name, reason, who, HoldScope(), NOW_US)
        place_hold(acme, "acme", "x" * 200, "r", "w", HoldScope(), NOW_US)
        with pytest.raises(TenantNotFoundError):
            place_hold(acme, "nobody", "n", "r", "w", HoldScope(), NOW_US)
        with acme.transaction() as conn:
            conn.execute(sa.update(tenants).values(state=TenantState.CLOSED.value))
        with pytest.raises(TenantClosedError):
            hold(acme, "late")

    def test_whoever_destroys_is_told_which_holds_are_in_the_way(self, acme: Database) -> None:
        hold(acme, "one")
        hold(acme, "two")
        with acme.transaction() as conn, pytest.raises(HeldError, match="one, two") as refused:
            assert_not_held(conn, "acme", "the log")
        assert refused.value.holds == ["one", "two"]
        with acme.transaction() as conn:
            assert_not_held(conn, "acme", "a window", covering=lambda found: [])

    def test_a_hold_waits_for_a_destruction_under_way_and_the_next_one_sees_it(self, acme: Database) -> None:
        destroyed: list[str] = []
        with acme.transaction() as conn:
            assert_not_held(conn, "acme", "window 1")
            with in_thread(lambda: hold(acme)) as results:
                wait_until_blocked(acme)
                assert results == []
                destroyed.append("window 1")
                conn.commit()
        assert isinstance(results[0], Hold), results
        with acme.transaction() as conn, pytest.raises(HeldError):
            assert_not_held(conn, "acme", "window 2")
        assert destroyed == ["window 1"]

    def test_a_destruction_waits_for_a_hold_that_is_being_placed(self, acme: Database) -> None:
        """The other way round: it began before the hold's commit, and must see it all the same."""

        def destroy() -> None:
            with acme.transaction() as conn:
                conn.execute(sa.select(sa.func.count()).select_from(windows))  # it has begun
                assert_not_held(conn, "acme", "window 1")

        with acme.transaction() as conn:
            lock_destruction(conn, "acme")
            with in_thread(destroy) as results:
                wait_until_blocked(acme)
                conn.execute(
                    sa.text(
                        "INSERT INTO holds (hold_id, tenant_id, name, reason, placed_by, placed_us, scope)"
                        " VALUES (gen_random_uuid(), 'acme', 'case', 'r', 'w', 0, CAST(:scope AS jsonb))"
                    ),
                    {"scope": json.dumps(HoldScope().as_json())},
                )
                conn.commit()
        assert isinstance(results[0], HeldError), results

    def test_it_does_not_wait_for_ever(self, acme: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        def impatient(conn: sa.Connection, tenant_id: str) -> None:
            conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            lock_destruction(conn, tenant_id)

        monkeypatch.setattr("eventstore.governance.holds.lock_destruction", impatient)
        with acme.transaction() as conn:
            lock_destruction(conn, "acme")
            with pytest.raises(BusyError, match="right now"):
                hold(acme)
        with acme.transaction() as conn:
            assert holds_in_force(conn, "acme") == []

    def test_another_tenants_destruction_is_not_waited_for(self, acme: Database) -> None:
        create_tenant(acme, "beta")
        with acme.transaction() as conn:
            lock_destruction(conn, "beta")
            hold(acme)

    def test_what_a_scope_may_cover(self, database: Database) -> None:
        create_tenant(database, "acme", KEEP_10D)
        fill(database, dropped=60)
        with database.transaction() as conn:
            assert [(c.place, c.windows, c.events) for c in preview_scope(conn, "acme", HoldScope())] == [
                ("archive", 60, 600),
                ("hot", 40, 400),
            ]
            edge = HoldScope(from_us=START_US + 59 * DAY_US, to_us=START_US + 61 * DAY_US)
            assert [(c.place, c.windows) for c in preview_scope(conn, "acme", edge)] == [
                ("archive", 1),
                ("hot", 1),
            ]
            conn.execute(
                sa.insert(removals).values(
                    target="archive",
                    key="k",
                    tenant_id="acme",
                    window_from=from_us(START_US - DAY_US),
                    reason="expired",
                    first_seq=1,
                    last_seq=7,
                    min_recorded_at=from_us(START_US),
                    max_recorded_at=from_us(START_US),
                    size_bytes=1,
                    sha256=b"",
                )
            )
            found = preview_scope(conn, "acme", HoldScope(to_us=START_US + 1))
            assert [(c.place, c.windows, c.events) for c in found] == [
                ("archive", 1, 10),
                ("being destroyed", 1, 7),
            ]


# --- certificates -------------------------------------------------------------------------------------


KEY = SigningKey.generate()


def certificate(conn: sa.Connection, day: int, **values: Any) -> Certificate:
    """The next certificate of acme, for the window of a day."""
    number, previous = next_certificate(conn, "acme")
    first, last = 10 * day + 1, 10 * day + 10
    made = Certificate(
        store_id=str(conn.execute(sa.select(deployment.c.store_id)).scalar_one()),
        tenant_id="acme",
        number=number,
        previous_sha256=previous,
        kind=CertificateKind.EXPIRED,
        window_from_us=START_US + day * DAY_US,
        window_to_us=START_US + (day + 1) * DAY_US,
        first_seq=first,
        last_seq=last,
        event_count=10,
        hash_before=hash_of("acme", first - 1),
        hash_after=hash_of("acme", last),
        segments=(),
        subtrees=lost_subtrees(first, last),
        policy_version=1,
        policy="{}",
        head_seq=1000,
        head_hash=hash_of("acme", 1000),
        head_recorded_at_us=NOW_US,
        decided_by="scheduler",
        reason="expired",
        issued_at_us=NOW_US + day,
        signed_at_us=NOW_US + day,
    )
    return replace(made, **values)


def expire(database: Database, day: int) -> Certificate:
    """Certify a window and mark it as gone, as retention does."""
    with database.transaction() as conn:
        made = certificate(conn, day)
        store_certificate(conn, made, KEY)
        conn.execute(sa.delete(segments).where(segments.c.first_seq == made.first_seq))
        conn.execute(sa.update(windows).where(windows.c.first_seq == made.first_seq).values(state="expired"))
    return made


def problems(database: Database, **more: Any) -> list[str]:
    with database.transaction() as conn:
        return check_certificates(conn, "acme", trusted_keys(conn), **more)


@pytest.fixture
def expired(database: Database) -> Database:
    """A tenant of which two windows have expired."""
    create_tenant(database, "acme", KEEP_10D)
    fill(database, dropped=60)
    expire(database, 0)
    expire(database, 1)
    return database


class TestCertificates:
    def test_they_are_chained_signed_and_whole(self, expired: Database) -> None:
        with expired.transaction() as conn:
            stored = list_certificates(conn, "acme")
            keys = trusted_keys(conn)
        assert [s.certificate.number for s in stored] == [1, 2]
        assert set(keys) == {KEY.key_id} == set(stored[0].key_ids)
        assert problems(expired) == []

    def test_only_the_next_one_is_stored(self, expired: Database) -> None:
        for wrong in (
            {"number": 4},
            {"previous_sha256": b"\0" * 32},
            {"event_count": 9},
            {"store_id": str(uuid.uuid4())},
        ):
            with pytest.raises(IntegrityError), expired.transaction() as conn:
                store_certificate(conn, certificate(conn, 2, **wrong), KEY)
        assert problems(expired) == []

    def test_two_at_once_come_one_after_the_other(self, expired: Database) -> None:
        with expired.transaction() as conn:
            first = certificate(conn, 2)
            with in_thread(lambda: expire(expired, 3)) as results:
                wait_until_blocked(expired)
                store_certificate(conn, first, KEY)
                conn.execute(sa.update(windows).where(windows.c.first_seq == 21).values(state="expired"))
                conn.commit()
        assert isinstance(results[0], Certificate), results
        assert problems(expired) == []

    def test_copies(self, expired: Database, target: FileTarget) -> None:
        targets = Targets.single(target)
        assert store_copies(expired, targets, "nobody") == 0
        assert store_copies(expired, targets, "acme") == 2
        assert store_copies(expired, targets) == 0
        with target.open(certificate_key("acme", 2)) as file, expired.transaction() as conn:
            assert from_payload(verify(file.read(), trusted_keys(conn))).number == 2
            assert {s.stored_in for s in list_certificates(conn, "acme")} == {"archive"}
            conn.execute(sa.update(certificates).values(stored_in=None))
        assert store_copies(expired, targets) == 2
        with expired.transaction() as conn:
            conn.execute(sa.update(certificates).values(stored_in=None))
        (target.root / certificate_key("acme", 1)).write_bytes(b"x")
        with pytest.raises(ArchiveConflictError):
            store_copies(expired, targets)

    @pytest.mark.parametrize(
        ("statement", "found"),
        [
            (
                "UPDATE certificates SET first_seq = 2 WHERE number = 1",
                "its row in the database says something else",
            ),
            ("UPDATE certificates SET envelope = 'x' WHERE number = 2", "envelope"),
            ("DELETE FROM certificates WHERE number = 1", "where certificate 1 has to be, there is 2"),
            ("DELETE FROM certificates WHERE number = 2", "seq 11 to 20 is gone, and no certificate"),
            ("UPDATE windows SET state = 'dropped' WHERE first_seq = 1", "the catalog does not say so"),
            ("UPDATE heads SET last_seq = 999", "the log's end was cut off"),
            ("UPDATE heads SET last_hash = 'x'", "the log was altered: seq 1000"),
            ("UPDATE windows SET hash_after = 'x' WHERE first_seq = 11", None),
            ("DELETE FROM signing_keys", "is not among the known ones"),
        ],
    )
    def test_what_was_altered_is_found(self, expired: Database, statement: str, found: str | None) -> None:
        with expired.transaction() as conn:
            conn.execute(sa.text(statement))
        told = problems(expired)
        if found is None:  # of what is certified as destroyed, the certificate is the witness
            assert told == []
        else:
            assert any(found in problem for problem in told), told

    def test_hashes_that_the_catalog_does_not_know_are_asked_for(self, expired: Database) -> None:
        with expired.transaction() as conn:
            head = {"last_seq": 1005, "last_hash": b"later"}
            conn.execute(sa.update(heads).where(heads.c.tenant_id == "acme").values(head))
        assert problems(expired) == []
        assert problems(expired, hash_at=lambda seq: hash_of("acme", seq)) == []
        told = problems(expired, hash_at=lambda seq: b"other")
        assert len(told) == 2  # each certificate saw it
        assert all("seq 1000 has another hash" in problem for problem in told)

    def test_certificates_that_were_taken_away_with_their_windows_show_by_what_was_noted(
        self, expired: Database
    ) -> None:
        with expired.transaction() as conn:
            noted = conn.execute(
                sa.select(certificates.c.payload_sha256).where(certificates.c.number == 2)
            ).scalar_one()
            conn.execute(sa.delete(certificates).where(certificates.c.number == 2))
            conn.execute(sa.update(windows).where(windows.c.first_seq == 11).values(state="dropped"))
        assert problems(expired) == []
        assert problems(expired, noted=(2, bytes(noted))) != []

    def test_a_key_is_not_replaced(self, expired: Database) -> None:
        with expired.transaction() as conn:
            remember_key(conn, KEY.verify_key)
            conn.execute(sa.update(signing_keys).values(public_key=SigningKey.generate().verify_key.raw))
        with pytest.raises(IntegrityError, match="another public key"), expired.transaction() as conn:
            remember_key(conn, KEY.verify_key)
        with pytest.raises(IntegrityError, match="was altered"), expired.transaction() as conn:
            trusted_keys(conn)


# --- explain ------------------------------------------------------------------------------------------


class TestExplain:
    def explain(self, database: Database, at_us: int) -> str:
        found = explain_window(database, "acme", at_us, now_us=NOW_US, known_targets=TARGETS)
        json.dumps(found.as_json())
        return found.in_words()

    def test_windows_in_each_state(self, expired: Database) -> None:
        assert "certificate 2 stands for it" in self.explain(expired, START_US + DAY_US)
        assert "in the target archive" in self.explain(expired, START_US + 5 * DAY_US)
        late = self.explain(expired, START_US + 60 * DAY_US)
        assert "its hot time was over on 2024-05-11, but it is not archived yet" in late
        assert "In the way" not in late
        with pytest.raises(InputError, match="no window at 2023-01-01"):
            self.explain(expired, parse_time_us("2023-01-01"))

    def test_holds_failures_and_coming_policies(self, expired: Database) -> None:
        hold(expired, entities=(("order", "7"),))
        change(expired, "acme", EXPIRE_50D, confirm=980)
        with expired.transaction() as conn:
            run_id = uuid.uuid4()
            values = {
                "run_id": run_id,
                "kind": "retention",
                "now_us": 0,
                "requested_by": "x",
                "status": "failed",
                "holder": 0,
            }
            conn.execute(sa.insert(runs).values(values))
            for day, state, error in ((60, "failed", "disk full"), (61, "blocked", None)):
                conn.execute(
                    sa.insert(tasks).values(
                        run_id=run_id,
                        tenant_id="acme",
                        window_from=from_us(START_US + day * DAY_US),
                        action="archive",
                        state=state,
                        attempts=2,
                        error=error,
                    )
                )
        text = self.explain(expired, START_US + 5 * DAY_US)
        assert "perhaps held (its events were not read) by 'case': events of order 7; court order" in text
        assert "policy version 2 comes into force on 2024-06-16: destroyed from 2024-06-16" in text
        assert "of archiving: it was tried 2 times: disk full" in self.explain(
            expired, START_US + 60 * DAY_US
        )
        blocked = self.explain(expired, START_US + 61 * DAY_US)
        assert "an older window of the tenant failed" in blocked
        assert "window 2024-04-30 … 2024-05-01 is older" in blocked
        whole = explain_tenant(expired, "acme", now_us=NOW_US, known_targets=("near",)).in_words()
        for line in (
            "destroyed: 2 windows, 20 events",
            "in archive: 58 windows, 580 events",
            "hot: 40 windows, 400 events",
            "disk full",
            "held by 'case'",
            "no target named 'archive'",
            "policy version 2 comes into force on 2024-06-16",
        ):
            assert line in whole


# --- commands -----------------------------------------------------------------------------------------


class Commands:
    """The command line on one database and three targets."""

    def __call__(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    targets = {name: (tmp_path / name).as_uri() for name in ("near", "deep")}
    monkeypatch.setenv("EVENTSTORE_DATABASE_URL", database_url)
    monkeypatch.setenv("EVENTSTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVENTSTORE_TARGETS", json.dumps(targets))
    monkeypatch.setattr(console, "_width", 250)
    return Commands()


class TestCommands:
    def test_a_policy_from_its_making_to_its_withdrawal(
        self, run: Commands, database: Database, tmp_path: Path
    ) -> None:
        made = run("tenants", "create", "acme", "--window", "day", "--hot-for", "10d", "--tier", "near=1y")
        assert made == (
            "Tenant acme: windows of one day, hot for 10d, then near for 365d, then kept there for ever."
        )
        fill(database)
        expire = ["policy", "set", "acme", "--tier", "near=1y", "--tier", "deep=1d", "--then", "expire"]
        shown = run(*expire, "--dry-run")
        assert "near for 365d, then deep for 1d, then destroyed, instead of near for 365d" in shown
        assert "acme 100 1,000 destroyed sooner" in shown
        assert shown.endswith("Nothing was changed.")
        with pytest.raises(ConfirmationError) as refused:
            run(*expire, "--reason", "schedule 4")
        count = refused.value.events
        assert count == 1000
        with pytest.raises(InputError, match="a change needs a reason"):
            run(*expire, "--confirm", "1000")
        assert "Policy version 2 is in force from" in run(*expire, "--reason", "r", "--confirm", "1000")
        assert "(version 2): windows of one day" in run("policy", "show", "acme")
        assert "policy version 2 comes into force on" in run("explain", "acme", "--window", "2024-03-05")
        withdrawn = run("policy", "set", "acme", "--then", "keep", "--reason", "a mistake", "--by", "counsel")
        assert "Version 2, in its grace time, would be withdrawn" in withdrawn
        document = json.loads(run("policy", "show", "acme", "--json"))
        assert (document["policy"]["then"], document["policy_no"]) == ("keep", 3)
        assert document["versions"][2]["actor"] == "counsel"
        assert "then near for 365d, then kept" in run("tenants", "list")
        assert (tmp_path / "home/archive" / governance_key(4)).is_file()

    def test_a_default_and_a_reset(self, run: Commands) -> None:
        run("tenants", "create", "acme", "--hot-for", "10d")
        assert "hot for 5d instead of 90d" in run(
            "policy", "set", "--default", "--hot-for", "5d", "--reason", "r"
        )
        assert "hot for 5d" in run("policy", "show")
        assert "hot for 5d instead of 10d" in run("policy", "reset", "acme", "--reason", "r")
        assert "follows the default" in run("policy", "show", "acme")
        for wrong in (["policy", "set", "--hot-for", "5d"], ["policy", "set", "acme", "--default"]):
            with pytest.raises(InputError, match="whose policy"):
                run(*wrong)
        for option, value in (
            ("--tier", "far=1y"),
            ("--tier", "near="),
            ("--quality", "volume"),
            ("--tier", "=1y"),
        ):
            with pytest.raises(InputError):
                run("policy", "set", "acme", option, value)
        with pytest.raises(InputError, match="nothing to change"):
            run("policy", "set", "acme")
        assert "says so already" in run("policy", "set", "acme", "--hot-for", "5d")

    def test_a_hold_from_its_placing_to_its_release(self, run: Commands, database: Database) -> None:
        run("tenants", "create", "acme")
        fill(database)
        case = ["acme", "case 1", "--reason", "court order"]
        scope = ["--entity", "contract/a/b", "--from", "2024-03-02", "--to", "2024-03-04"]
        assert run("holds", "place", *case, *scope, "--dry-run").endswith("hot 2 20 Nothing was held.")
        assert run("holds", "list") == "No holds in force."
        assert "contract a/b from 2024-03-02T00:00:00.000000Z" in run("holds", "place", *case, *scope)
        (found,) = json.loads(run("holds", "list", "acme", "--json"))
        assert found["scope"]["entities"] == [{"entity_type": "contract", "entity_id": "a/b"}]
        assert "held by 'case 1'" in run("explain", "acme")
        released = run("holds", "release", *case)
        assert released == "Hold 'case 1' of acme is released; 0 holds of the tenant still in force."
        assert "released" in run("holds", "list", "--all")
        with pytest.raises(InputError, match="names no entity"):
            run("holds", "place", "acme", "case 2", "--reason", "r", "--entity", "contract")

    def test_certificates(self, run: Commands, expired: Database) -> None:
        with expired.transaction() as conn:
            conn.execute(sa.delete(segments))  # they are in no target
        assert "1 2024-06-09 00:00 expired 2024-03-01 … 2024-03-02 1 … 10 10" in run(
            "certificates", "list", "acme"
        )
        assert [c["number"] for c in json.loads(run("certificates", "list", "acme", "--json"))] == [1, 2]
        assert json.loads(run("certificates", "show", "acme", "2"))["first_seq"] == 11
        envelope = run("certificates", "show", "acme", "2", "--envelope").encode()
        assert from_payload(verify(envelope, {KEY.key_id: KEY.verify_key})).number == 2
        assert run("certificates", "verify", "acme") == (
            "2 certificates of acme: signatures, chain and log agree."
        )
        with pytest.raises(IntegrityError, match="1 problem"):
            run("certificates", "verify", "acme", "--noted", f"3:{'0' * 64}")
        with pytest.raises(InputError, match="is not NUMBER:SHA256"):
            run("certificates", "verify", "acme", "--noted", "3:00")
        with pytest.raises(InputError, match="has no certificate 3"):
            run("certificates", "show", "acme", "3")
