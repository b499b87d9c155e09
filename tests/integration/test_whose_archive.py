"""An archive that is another store's, or takes no writes: what a process that opens it may do there."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eventstore.app import open_store
from eventstore.archive.file import FileTarget
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.errors import SetupError
from eventstore.integrity import binding
from eventstore.model.run import RunStatus
from eventstore.settings import Settings
from tests.conftest import TODAY_US, create_database
from tests.unit.helpers import DAY_US, START_US, execute, fill_days, make_tenant, read, run_retention


def test_a_full_archive_is_read_by_a_new_process_and_written_when_there_is_room(
    settings: Settings, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(settings, clock=clock) as store:
        make_tenant(store)
        fill_days(store, clock, "acme", 3)
        assert run_retention(store, START_US + DAY_US * 3 // 2).outcomes[0].windows == 1
        before = read(store, "acme")

    plain = FileTarget.stage

    def full(self: FileTarget, key: str) -> Path:
        staged = plain(self, key)
        staged.unlink()
        staged.symlink_to("/dev/full")
        return staged

    with monkeypatch.context() as patched:
        patched.setattr(FileTarget, "stage", full)
        with open_store(settings, clock=clock) as store:
            assert read(store, "acme") == before
            report = run_retention(store, START_US + 3 * DAY_US)
            assert report.status is RunStatus.FAILED
            assert "No space left" in str(report.outcomes[0].error)
            assert read(store, "acme") == before
        for name in ("DATABASE_URL", "HOME", "ARCHIVE_URL"):
            monkeypatch.setenv(f"EVENTSTORE_{name}", str(getattr(settings, name.lower())))
        checked = CliRunner().invoke(app, ["archive", "check"])
        assert checked.exit_code == 0, checked.output
        assert "read only: archive" in checked.output
        assert "takes no writes" in CliRunner().invoke(app, ["archive", "ls"]).output
        # Whose archive it is, is looked at all the same.
        marker = Path(settings.resolved_archive_url.removeprefix("file://")) / "eventstore.json"
        kept = marker.read_text()
        marker.write_text(kept.replace(kept.split('"')[3], "other"))
        with pytest.raises(SetupError, match="another database"), open_store(settings, clock=clock):
            pass
        marker.write_text(kept)
    with open_store(settings, clock=clock) as store:
        assert run_retention(store, START_US + 3 * DAY_US).status is RunStatus.COMPLETED


@pytest.fixture
def clusters(server_url: str, template_database: str, tmp_path: Path) -> Iterator[list[Settings]]:
    """Two whole clusters, each with a database, a home and three days of events, and nothing archived."""
    made, names = [], [f"cluster_{secrets.token_hex(6)}" for _ in range(2)]
    for name in names:
        url = create_database(server_url, name, template=template_database)
        execute(url, "UPDATE deployment SET store_id = gen_random_uuid()")  # as each migration makes its own
        own = Settings(database_url=url, home=tmp_path / name)
        clock = FixedClock(TODAY_US)
        with open_store(own, clock=clock) as store:
            make_tenant(store)
            fill_days(store, clock, "acme", 3)
        made.append(own)
    yield made
    for name in names:
        execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def onto(settings: Settings, shared: Path) -> Settings:
    return settings.model_copy(update={"archive_url": shared.as_uri()})


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_cluster_is_refused_before_it_writes_anything(
    clusters: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    with open_store(onto(clusters[0], shared)) as store:
        run_retention(store, START_US + 3 * DAY_US)
    before = contents(shared)
    asked: list[str] = []
    stage = FileTarget.stage
    monkeypatch.setattr(FileTarget, "stage", lambda self, key: asked.append(key) or stage(self, key))
    second = onto(clusters[1], shared)
    with pytest.raises(SetupError, match="archive of another database"), open_store(second):
        pass
    assert asked == []
    assert contents(shared) == before


def test_of_two_clusters_that_begin_at_once_on_an_empty_archive_one_has_it(
    clusters: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    together = threading.Barrier(2, timeout=20)
    read_marker: Callable[..., Any] = binding._read_marker

    def both_see_none(target: Any) -> Any:
        found = read_marker(target)
        if found is None:
            together.wait()
        return found

    monkeypatch.setattr(binding, "_read_marker", both_see_none)

    def begin(settings: Settings) -> str | None:
        try:
            with open_store(onto(settings, shared)) as store:
                report = run_retention(store, START_US + 3 * DAY_US)
                assert report.outcomes[0].windows == 3
        except SetupError as e:
            return e.message
        return None

    with ThreadPoolExecutor(2) as executor:
        refused = list(executor.map(begin, clusters))
    assert sum(r is None for r in refused) == 1, refused
    assert "archive of another database" in str(refused[0] or refused[1])
    loser = clusters[0 if refused[0] else 1]
    taken = contents(shared)
    with open_store(loser) as store:  # on its own archive, as before
        assert len(read(store, "acme")) == 15
        assert run_retention(store, START_US + 3 * DAY_US).status is RunStatus.COMPLETED
        assert len(read(store, "acme")) == 15
    assert contents(shared) == taken
