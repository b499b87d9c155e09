"""What is left lying about, and who may end that: old runs, quarantined copies, restores, a second host's
key, a window that a quality rule has stopped, a rebuild that did not come to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eventstore.app import Store, open_store
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.errors import SetupError
from eventstore.governance.certificates import list_certificates
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.quality import QualityAction, QualityRule
from eventstore.model.run import RunKind, RunReport, RunStatus
from eventstore.model.window import WindowUnit
from eventstore.repair.restore import list_restores, restore_window
from eventstore.retention.compactor import RunOrder
from eventstore.retention.pruning import prune_runs
from eventstore.settings import Settings
from tests.unit.helpers import DAY_US, START_US, append, execute, fill_days, new_event, run_retention

EXPIRING = Policy(WindowUnit.DAY, 0, (ArchiveTier("archive", 2 * DAY_US),), Ending.EXPIRE)
LATER_US = START_US + 3 * DAY_US + DAY_US // 2  # day 0 has expired, days 1 and 2 are archived


@pytest.fixture
def kept(store: Store, clock: FixedClock) -> Store:
    """Three archived days of acme, of which the first expires at `LATER_US`."""
    create_tenant(store.database, "acme", EXPIRING)
    fill_days(store, clock, "acme", 3)
    assert run_retention(store, START_US + 2 * DAY_US).status is RunStatus.COMPLETED
    return store


def expire(store: Store) -> RunReport:
    return store.compactor.run(store.compactor.tenants(), LATER_US, order=RunOrder(RunKind.EXPIRY, "test"))


def command(settings: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    for name in ("database_url", "home", "archive_url"):
        monkeypatch.setenv(f"EVENTSTORE_{name.upper()}", str(getattr(settings, name)))
    return CliRunner().invoke(app, arguments)


# --- old runs ---------------------------------------------------------------------------------------------


def test_old_runs_go_and_unfinished_ones_and_what_governs_stay(kept: Store) -> None:
    url = kept.database.url
    expire(kept)
    (old,) = execute(url, "SELECT run_id FROM runs WHERE kind = 'retention'")
    execute(url, "UPDATE runs SET finished_at = now() - interval '401 days', status = 'completed'")
    execute(url, "UPDATE tasks SET state = 'waiting' WHERE run_id = %s AND task_id = (SELECT min(task_id)"
            " FROM tasks WHERE run_id = %s)", [old[0], old[0]])  # fmt: skip
    governed = execute(url, "SELECT count(*) FROM governance UNION ALL SELECT count(*) FROM certificates")
    before_us = kept.database.now_us() - 400 * DAY_US
    assert prune_runs(kept.database, before_us - 2 * DAY_US) == 0
    assert prune_runs(kept.database, before_us) == 1
    assert execute(url, "SELECT DISTINCT run_id FROM run_entries") == [old]
    execute(url, "UPDATE tasks SET state = 'done'")
    assert prune_runs(kept.database, before_us) == 1
    counts = " UNION ALL ".join(f"SELECT count(*) FROM {t}" for t in ("runs", "run_entries", "tasks"))
    assert execute(url, counts) == [(0,)] * 3
    assert (
        execute(url, "SELECT count(*) FROM governance UNION ALL SELECT count(*) FROM certificates")
        == governed
    )


# --- quarantine -------------------------------------------------------------------------------------------


def put(store: Store, key: str) -> None:
    staged = store.target.stage(key)
    staged.write_bytes(b"rotten")
    assert store.target.put(key, staged)
    execute(
        store.database.url,
        "INSERT INTO quarantine (target, key, tenant_id, reason) VALUES ('archive', %s, 'acme', 'rot')",
        [key],
    )


def test_quarantined_copies_of_a_window_are_listed_and_destroyed_with_it_and_no_others(kept: Store) -> None:
    (first, second) = (
        key for (key,) in execute(kept.database.url, "SELECT key FROM segments ORDER BY first_seq LIMIT 2")
    )
    mine, other = (key.replace(".parquet", ".r7.parquet") for key in (first, second))
    strange = "tenant_id=acme/notes.txt"
    for key in (mine, other, strange):
        put(kept, key)
    (tenant,) = kept.compactor.tenants()
    plan = kept.compactor.plan(tenant, LATER_US, RunKind.EXPIRY)
    assert [w.quarantined for w in plan.due] == [(("archive", mine),)]
    assert len(plan.warnings) == 1
    assert strange in plan.warnings[0]
    assert expire(kept).status is RunStatus.COMPLETED
    there = {info.key for info in kept.target.list("tenant_id=acme/")}
    assert not there & {first, mine}
    assert there >= {second, other, strange}
    # One that is found only after its window has gone.
    put(kept, mine)
    assert expire(kept).status is RunStatus.COMPLETED
    assert mine not in {info.key for info in kept.target.list("tenant_id=acme/")}
    assert execute(kept.database.url, "SELECT key FROM quarantine ORDER BY key") == [(other,), (strange,)]


# --- keys -------------------------------------------------------------------------------------------------


def test_a_second_host_signs_with_no_key_of_its_own_unless_it_is_told_to(
    kept: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_retention(kept, LATER_US)
    assert expire(kept).outcomes[0].windows == 1  # the first key has signed
    elsewhere = settings.model_copy(update={"home": tmp_path / "elsewhere"})
    key_file = elsewhere.resolved_key_file
    with open_store(elsewhere) as other:
        assert not key_file.exists()
        with pytest.raises(SetupError, match="a key that is not on this host"):
            _ = other.key.verify_key
        later = RunOrder(RunKind.EXPIRY, "test")
        report = other.compactor.run(other.compactor.tenants(), LATER_US + DAY_US, order=later)
        assert "a key that is not on this host" in str(report.outcomes[0].error)
    # A file that was put there unasked does not help.
    stray = type(kept.key).load_or_create(key_file)
    with open_store(elsewhere) as other:
        report = other.compactor.run(other.compactor.tenants(), LATER_US + DAY_US, order=later)
        assert f"key {stray.key_id} is none of this deployment's" in str(report.outcomes[0].error)
    made = command(elsewhere, monkeypatch, "certificates", "new-key", "--by", "ann", "--reason", "a new site")
    assert made.exit_code == 0, made.output
    assert stray.key_id in made.output
    with open_store(elsewhere) as other:
        report = other.compactor.run(other.compactor.tenants(), LATER_US + DAY_US, order=later)
        assert report.outcomes[0].windows == 1
    with kept.database.transaction() as conn:
        stored = list_certificates(conn, "acme")
    signed = [one.key_ids for one in stored]
    # Decided at the run's time, which is simulated, and signed now.
    assert stored[0].certificate.issued_at_us == LATER_US
    assert abs(stored[0].certificate.signed_at_us - kept.database.now_us()) < DAY_US // 24
    assert signed == [(kept.key.key_id,), (stray.key_id,)]
    (entry,) = execute(kept.database.url, "SELECT actor FROM governance WHERE kind = 'signing_key_added'")
    assert entry == ("ann",)
    # With the first key alone the second certificate cannot be checked.
    pem = tmp_path / "first.pem"
    pem.write_bytes(kept.key.verify_key.to_pem())
    assert command(settings, monkeypatch, "certificates", "verify", "acme").exit_code == 0
    refused = command(settings, monkeypatch, "certificates", "verify", "acme", "--key", str(pem))
    assert stray.key_id in refused.output + str(refused.exception)


# --- quality ----------------------------------------------------------------------------------------------


def test_one_window_is_accepted_though_a_rule_stops_it(
    store: Store, clock: FixedClock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {QualityRule.CONTINUITY: QualityAction.STOP}
    create_tenant(store.database, "acme", replace(Policy(WindowUnit.DAY, 0), quality=strict))
    for day in (0, 1):
        clock.move_to(START_US + day * DAY_US + DAY_US // 2)
        append(
            store, "acme", new_event("1", old_value=0, new_value=1), new_event("1", old_value=7, new_value=8)
        )
    stopped = run_retention(store, START_US + 2 * DAY_US)
    assert "retention accept acme 2024-03-01T00:00:00Z" in str(stopped.outcomes[0].error)
    said = ("retention", "accept", "acme", "2024-03-01T09:00:00Z", "--by", "ann", "--reason", "known import")
    accepted = command(settings, monkeypatch, *said)
    assert accepted.exit_code == 0, accepted.output
    again = run_retention(store, START_US + 2 * DAY_US)
    assert (again.outcomes[0].windows, again.status) == (1, RunStatus.FAILED)  # the second day is as it was
    assert "2024-03-02" in str(again.outcomes[0].error)
    assert any("accepted by ann, known import" in warning for warning in again.outcomes[0].warnings)
    assert command(settings, monkeypatch, *said).exit_code != 0  # it is archived


# --- restores ---------------------------------------------------------------------------------------------


def test_restores_go_when_their_time_has_come_with_the_next_command_and_with_their_tenant(
    kept: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(name: str, expires_us: int) -> Path:
        now_us = kept.database.now_us()
        return restore_window(
            kept.database, kept.targets, "acme", START_US, tmp_path / name, home=tmp_path, now_us=now_us,
            expires_us=now_us + expires_us,
        ).place  # fmt: skip

    old, fresh = bring("old", -1), bring("fresh", DAY_US)
    purged = command(settings, monkeypatch, "archive", "restore", "--purge")
    assert "1 restore removed" in purged.output
    assert (old.exists(), fresh.exists()) == (False, True)
    old = bring("old", -1)
    assert command(settings, monkeypatch, "retention", "run").exit_code == 0
    assert (old.exists(), fresh.exists()) == (False, True)
    ended = command(
        settings, monkeypatch, "tenants", "offboard", "acme", "--reason", "left", "--by", "ann",
        "--export", str(tmp_path / "export"), "--confirm", "15",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert not fresh.exists()
    with kept.database.transaction() as conn:
        assert list_restores(conn) == []


# --- rebuild ----------------------------------------------------------------------------------------------


def test_an_unfinished_rebuild_stops_whatever_opens_the_store(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database_url, "INSERT INTO jobs (job, last_started_us) VALUES ('rebuild', 0)")
    with pytest.raises(SetupError, match="being rebuilt") as caught, open_store(settings):
        pass
    assert "eventstore archive rebuild" in caught.value.hint
    for arguments in (["tenants", "list"], ["retention", "run"], ["archive", "ls"]):
        assert isinstance(command(settings, monkeypatch, *arguments).exception, SetupError)
    execute(database_url, "DELETE FROM jobs")
    with open_store(settings):
        pass
