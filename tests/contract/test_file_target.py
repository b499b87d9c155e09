"""The conformance suite over `file://`, and what a folder in particular can do wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eventstore.archive.file import FileTarget
from eventstore.archive.registry import open_target
from eventstore.archive.target import ArchiveTarget
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError
from eventstore.testing.target_contract import TargetContract

KEY = "tenant_id=acme/month=2024-01/archive.x.parquet"


class TestFileTarget(TargetContract):
    @pytest.fixture
    def target(self, tmp_path: Path) -> ArchiveTarget:
        return open_target((tmp_path / "not yet made").as_uri())


def test_urls() -> None:
    target = open_target("file:///a%20folder/b")
    assert isinstance(target, FileTarget)
    assert target.root == Path("/a folder/b")
    assert target.local_path("k") == Path("/a folder/b/k")
    assert "/a folder/b" in target.describe()


@pytest.mark.parametrize(
    "url", ["file://host/a", "file:a/b", "file:///a?b=c", "/a/b", "nope://x", "", "s3x://bucket"]
)
def test_urls_of_no_target(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        open_target(url)
    assert caught.value.hint


@pytest.fixture
def blocked(tmp_path: Path) -> FileTarget:
    """A file where the target's folder should be: nobody can write there, not even root."""
    path = tmp_path / "blocked"
    path.write_bytes(b"")
    return FileTarget(path)


def test_a_folder_that_cannot_be_written_is_unavailable(blocked: FileTarget, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.write_bytes(b"x")
    with pytest.raises(TargetUnavailableError):
        blocked.stage(KEY)
    with pytest.raises(TargetUnavailableError):
        blocked.put(KEY, staged)
    for verb in (blocked.open, blocked.stat, blocked.delete):
        with pytest.raises(TargetUnavailableError):
            verb(KEY)


def test_a_folder_in_place_of_an_object_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / KEY).mkdir(parents=True)
    with pytest.raises(TargetUnavailableError):
        FileTarget(tmp_path).open(KEY)
    assert list(FileTarget(tmp_path).list()) == []


def test_a_staged_file_that_went_away_is_unavailable(tmp_path: Path) -> None:
    target = FileTarget(tmp_path)
    staged = target.stage(KEY)
    staged.unlink()
    with pytest.raises(TargetUnavailableError):
        target.put(KEY, staged)
    with pytest.raises(ArchiveDamageError):
        target.stat(KEY)


def test_versions_see_changes_behind_the_targets_back(tmp_path: Path) -> None:
    """Same size, same modification time: the change of the inode's own time still shows."""
    target = FileTarget(tmp_path)
    staged = target.stage(KEY)
    staged.write_bytes(b"0" * 100)
    target.put(KEY, staged)
    path = tmp_path / KEY
    before, times = target.stat(KEY).version, path.stat()
    path.write_bytes(b"1" * 100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert target.stat(KEY).version != before


def test_keys_never_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        FileTarget(tmp_path / "a").open("../b")
