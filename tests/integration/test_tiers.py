"""A window's way through the tiers: hot, near, deep, destroyed; and what stops it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.errors import BusyError, SetupError, TargetUnavailableError
from eventstore.governance.certificates import check_certificates, list_certificates, trusted_keys
from eventstore.governance.holds import place_hold, release_hold
from eventstore.governance.policies import apply_change
from eventstore.governance.tenants import create_tenant
from eventstore.integrity.binding import bind_archive
from eventstore.integrity.verify import verify_log
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy, PolicyOverride
from eventstore.model.run import RunKind, RunReport, RunStatus
from eventstore.model.window import WindowUnit
from eventstore.retention import moving as moving_module
from eventstore.retention import removing as removing_module
from eventstore.retention.compactor import Compactor, RunOrder
from eventstore.settings import Settings
from tests.unit.helpers import DAY_US, START_US, append, execute, fill_days, new_event, read, seqs

# Hot for a day, near for two, deep for three, then destroyed: day 0 is destroyed at day 7.
POLICY = Policy(
    WindowUnit.DAY,
    DAY_US,
    (ArchiveTier("near", 2 * DAY_US), ArchiveTier("deep", 3 * DAY_US)),
    Ending.EXPIRE,
)
EXPIRY = RunOrder(RunKind.EXPIRY, "test")


@pytest.fixture
def tiered(database_url: str, tmp_path: Path, clock: FixedClock) -> Iterator[Store]:
    """A store with the targets `archive`, `near` and `deep`, and the tenant acme with ten days of events."""
    folders = {name: tmp_path / name for name in ("archive", "near", "deep")}
    for folder in folders.values():
        folder.mkdir()
    settings = Settings(
        database_url=database_url,
        home=tmp_path / "home",
        archive_url=folders["archive"].as_uri(),
        targets={name: folders[name].as_uri() for name in ("near", "deep")},
    )
    with open_store(settings, clock=clock) as opened:
        impatient = Compactor(opened.database, opened.targets, opened.key, retry_pauses_s=())
        create_tenant(opened.database, "acme", POLICY)
        fill_days(opened, clock, "acme", 10)
        yield replace(opened, compactor=impatient)


def run(store: Store, day: float, order: RunOrder | None = None) -> RunReport:
    return store.compactor.run(store.compactor.tenants(), START_US + round(day * DAY_US), order=order)


def where(store: Store) -> list[str]:
    """Each window's target (or state, when it is in none), oldest first."""
    rows = execute(
        store.database.url,
        "SELECT CASE WHEN state = 'dropped' THEN target ELSE state END FROM windows ORDER BY window_from",
    )
    return [place for (place,) in rows]


def objects(store: Store, target: str) -> list[str]:
    return [info.key for info in store.targets[target].list("tenant_id=") if info.key.endswith(".parquet")]


def kinds(store: Store, report: RunReport) -> list[str]:
    query = "SELECT kind FROM run_entries WHERE run_id = %s ORDER BY entry_no"
    return [kind for (kind,) in execute(store.database.url, query, [report.run_id])]


def whole(store: Store) -> None:
    with store.database.transaction() as conn:
        assert check_certificates(conn, "acme", trusted_keys(conn)) == []
    report = verify_log(store.tiers, store.targets, "acme")
    assert report.ok, report.problems


def test_windows_go_from_tier_to_tier_and_every_event_stays_readable(tiered: Store) -> None:
    before = read(tiered, "acme")
    for day in range(1, 8):
        report = run(tiered, day)
        assert report.status is RunStatus.COMPLETED, report
        assert read(tiered, "acme") == before
    # At day 7: day 0 to 3 have been near for two days, 4 and 5 have left Postgres since.
    assert where(tiered) == ["deep"] * 4 + ["near"] * 2 + ["open"] * 4
    assert (len(objects(tiered, "near")), len(objects(tiered, "deep")), objects(tiered, "archive")) == (
        2,
        4,
        [],
    )
    assert run(tiered, 7).outcomes[0].windows == 0
    whole(tiered)


def test_a_run_that_comes_late_goes_straight_to_the_right_tier(tiered: Store) -> None:
    before = read(tiered, "acme")
    run(tiered, 7)
    assert where(tiered) == ["deep"] * 4 + ["near"] * 2 + ["open"] * 4
    assert execute(tiered.database.url, "SELECT count(*) FROM removals") == [(0,)]
    assert read(tiered, "acme") == before


def test_expiry_destroys_what_was_listed_and_leaves_a_certificate(tiered: Store) -> None:
    before = read(tiered, "acme")
    run(tiered, 8.5)
    notice = replace(EXPIRY, notice_us=DAY_US)
    listed = run(tiered, 8.5, notice)
    assert (listed.status, listed.outcomes[0].windows) == (RunStatus.COMPLETED, 0)
    assert kinds(tiered, listed) == ["plan_resolved", "run_completed"]
    assert read(tiered, "acme") == before
    assert run(tiered, 9.4, notice).outcomes[0].windows == 0
    # Day 2 expired at day 9: it is listed now, and not yet destroyed.
    done = run(tiered, 9.5, notice)
    assert done.outcomes[0].windows == 2
    assert where(tiered)[:3] == ["expired", "expired", "deep"]
    assert [e["seq"] for e in read(tiered, "acme")] == list(range(11, 51))
    assert len(objects(tiered, "deep")) == len(set(objects(tiered, "deep"))) == where(tiered).count("deep")
    with tiered.database.transaction() as conn:
        made = list_certificates(conn, "acme")
    assert [(c.certificate.number, c.certificate.first_seq, c.certificate.last_seq) for c in made] == [
        (1, 1, 5),
        (2, 6, 10),
    ]
    assert made[1].certificate.head_seq == 50
    assert "expire" not in made[0].certificate.decided_by
    whole(tiered)


def test_what_a_move_wrote_before_it_was_given_up_goes_with_the_window(
    tiered: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiered, 2)

    def lost(*_: object, **__: object) -> None:
        raise BusyError("the connection is lost before the cutover")

    with monkeypatch.context() as patch:
        patch.setattr(moving_module, "cut_over_move", lost)
        assert run(tiered, 4).status is RunStatus.FAILED
    assert where(tiered)[0] == "near"
    copied = set(objects(tiered, "near")) & set(objects(tiered, "deep"))
    assert copied, "the move was to have written its copy"
    # Nobody comes back to it before its time is over.
    run(tiered, 8, EXPIRY)
    assert where(tiered)[0] == "expired"
    assert not copied & set(objects(tiered, "near") + objects(tiered, "deep"))
    assert execute(tiered.database.url, "SELECT count(*) FROM removals WHERE removed_at IS NULL") == [(0,)]


def test_a_policy_that_keeps_destroys_nothing(tiered: Store) -> None:
    create_tenant(tiered.database, "keeps", replace(POLICY, ending=Ending.KEEP))
    clock = FixedClock(START_US)
    append(tiered, "keeps", new_event())
    del clock
    run(tiered, 60)
    report = run(tiered, 60, EXPIRY)
    assert {o.tenant_id: o.windows for o in report.outcomes}["keeps"] == 0


def hold(store: Store, name: str = "case 1", **scope: Any) -> None:
    place_hold(store.database, "acme", name, "a court asked", "counsel", HoldScope(**scope), START_US)


def test_a_hold_stops_destruction_and_its_release_lets_it_go_on(tiered: Store) -> None:
    run(tiered, 20)
    hold(tiered, "both", from_us=START_US + DAY_US, to_us=START_US + 3 * DAY_US)
    hold(tiered, "second only", from_us=START_US + 2 * DAY_US, to_us=START_US + 3 * DAY_US)
    report = run(tiered, 20, EXPIRY)
    assert report.status is RunStatus.COMPLETED
    assert report.outcomes[0].windows == 8
    assert any("held by both, second only" in w for w in report.outcomes[0].warnings)
    assert where(tiered)[:4] == ["expired", "deep", "deep", "expired"]
    assert seqs(read(tiered, "acme")) == list(range(6, 16))
    whole(tiered)
    release_hold(tiered.database, "acme", "both", "counsel", "settled", START_US)
    run(tiered, 20, EXPIRY)
    assert where(tiered)[:4] == ["expired", "expired", "deep", "expired"]
    release_hold(tiered.database, "acme", "second only", "counsel", "settled", START_US)
    run(tiered, 20, EXPIRY)
    assert where(tiered) == ["expired"] * 10
    assert read(tiered, "acme") == []
    assert objects(tiered, "deep") == []
    whole(tiered)


def test_a_hold_over_an_entity_keeps_the_windows_with_its_events_and_no_others(
    tiered: Store, clock: FixedClock
) -> None:
    clock.move_to(START_US + 10 * DAY_US)
    append(tiered, "acme", new_event("rare", entity_type="order"), new_event("other"))
    run(tiered, 30)
    hold(tiered, entities=(("order", "rare"), ("order", "never seen")))
    run(tiered, 30, EXPIRY)
    assert where(tiered) == ["expired"] * 10 + ["deep"]
    release_hold(tiered.database, "acme", "case 1", "counsel", "settled", START_US)
    # The same id of another type is another entity.
    hold(tiered, "case 2", entities=(("invoice", "rare"),))
    run(tiered, 30, EXPIRY)
    assert where(tiered) == ["expired"] * 11


def test_a_hold_stops_a_run_under_way_from_its_commit_on(
    tiered: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Placed after the plan and after the first window was taken out of the log: what is not gone stays."""
    run(tiered, 20)
    asked = removing_module.lock_removal
    seen: list[str] = []

    def place_first(conn: Any, target: str, key: str) -> Any:
        seen.append(key)
        return asked(conn, target, key)

    take = removing_module.list_removals

    def then_hold(*args: Any, **kwargs: Any) -> Any:
        found = take(*args, **kwargs)
        if found and not execute(tiered.database.url, "SELECT 1 FROM holds"):
            hold(tiered)
        return found

    monkeypatch.setattr(removing_module, "lock_removal", place_first)
    monkeypatch.setattr(removing_module, "list_removals", then_hold)
    before = len(objects(tiered, "deep"))
    report = run(tiered, 20, EXPIRY)
    assert len(objects(tiered, "deep")) == before, "nothing is deleted once the hold is committed"
    assert where(tiered) == ["expired"] + ["deep"] * 9
    assert any("held by case 1" in w for w in report.outcomes[0].warnings)
    # What had left the log already is kept as an object, and goes when the hold is released.
    again = run(tiered, 20, EXPIRY)
    assert len(objects(tiered, "deep")) == before
    assert again.status is RunStatus.COMPLETED
    release_hold(tiered.database, "acme", "case 1", "counsel", "settled", START_US)
    run(tiered, 20, EXPIRY)
    assert where(tiered) == ["expired"] * 10
    assert objects(tiered, "deep") == []


def test_a_target_that_is_away_stops_only_what_needs_it(
    tiered: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_tenant(tiered.database, "other", Policy(WindowUnit.DAY, DAY_US))
    before = read(tiered, "acme")
    near = tiered.targets["near"]

    def away(*_: object, **__: object) -> Any:
        raise BusyError("near does not answer")

    monkeypatch.setattr(near, "put", away)
    report = run(tiered, 3)
    assert report.status is RunStatus.FAILED
    outcomes = {o.tenant_id: o for o in report.outcomes}
    assert "near does not answer" in str(outcomes["acme"].error)
    assert outcomes["other"].error is None
    assert "dropped" not in where(tiered)
    assert read(tiered, "acme") == before
    monkeypatch.undo()
    assert run(tiered, 3).status is RunStatus.COMPLETED
    assert where(tiered)[:2] == ["near", "near"]


def test_a_changed_policy_moves_windows_on_but_never_back(tiered: Store) -> None:
    run(tiered, 7)
    longer = PolicyOverride(tiers=(ArchiveTier("near", 50 * DAY_US), ArchiveTier("deep", 50 * DAY_US)))
    apply_change(
        tiered.database,
        "acme",
        longer,
        actor="operator",
        reason="kept nearer",
        now_us=START_US + 7 * DAY_US,
        known_targets=tiered.targets.names,
    )
    run(tiered, 8)
    assert where(tiered) == ["deep"] * 4 + ["near"] * 3 + ["open"] * 3
    whole(tiered)


# --- what a policy or a target does meanwhile -------------------------------------------------------


def change(store: Store, day: float, override: PolicyOverride) -> None:
    apply_change(
        store.database,
        "acme",
        override,
        actor="operator",
        reason="a decision",
        now_us=START_US + round(day * DAY_US),
        known_targets=store.targets.names,
    )


def test_what_was_planned_is_not_destroyed_under_a_policy_that_was_made_longer_since(tiered: Store) -> None:
    run(tiered, 20)
    tiered.compactor.start(tiered.compactor.tenants(), START_US + 20 * DAY_US, order=EXPIRY)
    change(tiered, 21, PolicyOverride(ending=Ending.KEEP))
    with tiered.compactor.worker() as worker:
        while worker.do_next():
            pass
    assert where(tiered) == ["deep"] * 10
    # Nor by a run that takes place before the change.
    assert run(tiered, 20, EXPIRY).outcomes[0].windows == 0
    assert where(tiered) == ["deep"] * 10


def test_only_what_was_listed_is_destroyed(tiered: Store) -> None:
    run(tiered, 20)
    order = replace(EXPIRY, only=frozenset({("acme", START_US + DAY_US)}))
    assert run(tiered, 20, order).outcomes[0].windows == 1
    assert where(tiered) == ["deep", "expired"] + ["deep"] * 8


def test_after_a_hold_the_notice_begins_again(tiered: Store) -> None:
    run(tiered, 20)
    notice = replace(EXPIRY, notice_us=DAY_US)
    run(tiered, 20, notice)
    hold(tiered)
    run(tiered, 25, notice)
    release_hold(tiered.database, "acme", "case 1", "counsel", "settled", START_US)
    run(tiered, 30, notice)
    assert where(tiered) == ["deep"] * 10
    run(tiered, 31, notice)
    assert where(tiered) == ["expired"] * 10


def test_a_late_removal_does_not_take_the_last_good_copy(
    tiered: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former copy could not be removed at once; by the time it can, the new one has rotted."""
    before = read(tiered, "acme")
    run(tiered, 2)
    near, deep = tiered.targets["near"], tiered.targets["deep"]

    def away(key: str) -> None:
        raise TargetUnavailableError("near does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(near, "delete", away)
        run(tiered, 4)
    (key,) = objects(tiered, "deep")
    path = deep.local_path(key)
    assert path is not None
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"X")
    report = run(tiered, 4)
    assert any("may be needed" in w for w in report.outcomes[0].warnings)
    assert key in objects(tiered, "near")
    path.write_bytes(good)
    run(tiered, 4)
    assert key not in objects(tiered, "near")
    assert read(tiered, "acme") == before


def test_two_names_of_one_place_are_refused(tiered: Store) -> None:
    """Whatever the addresses look like (an alias of a host, a mount): the place itself says which it is."""
    near = tiered.targets["near"]
    bind_archive(tiered.database, "near", near)
    with pytest.raises(SetupError, match="is the target 'near', not 'alias'"):
        bind_archive(tiered.database, "alias", near)


def test_a_folder_whose_disk_is_gone_takes_nothing(tiered: Store, tmp_path: Path) -> None:
    run(tiered, 2)
    (tmp_path / "near").rename(tmp_path / "unmounted")
    (tmp_path / "near").mkdir()
    report = run(tiered, 3)
    assert "is another folder than before" in str(report.outcomes[0].error)
    assert list((tmp_path / "near").rglob("*.parquet")) == []
    assert where(tiered).count("near") == 1
    (tmp_path / "near").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "near")
    assert run(tiered, 3).status is RunStatus.COMPLETED
    whole(tiered)
