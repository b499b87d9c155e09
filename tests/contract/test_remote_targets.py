"""The conformance suite over the remote targets, and what tells them from a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from eventstore.archive.registry import open_target
from eventstore.archive.remote import FsspecTarget
from eventstore.archive.s3 import S3Target
from eventstore.archive.target import ArchiveTarget, keep_object
from eventstore.errors import ArchiveDamageError, SetupError, StateError, TargetUnavailableError
from eventstore.testing.faulty import FaultyTarget
from eventstore.testing.target_contract import TargetContract
from tests.contract.conftest import BUCKET, LOCKED, Connections

KEY = "tenant_id=acme/month=2024-01/archive.x.parquet"
HOUR_US = 3_600_000_000


def store(target: ArchiveTarget, key: str, data: bytes, *, retain_until_us: int | None = None) -> bool:
    staged = target.stage(key)
    staged.write_bytes(data)
    return target.put(key, staged, retain_until_us=retain_until_us)


def load(target: ArchiveTarget, key: str) -> bytes:
    with target.open(key) as file:
        return file.read()


class TestMemoryTarget(TargetContract):
    @pytest.fixture
    def target(self) -> ArchiveTarget:
        return open_target(f"memory://{uuid4()}/archive")


class TestS3Target(TargetContract):
    @pytest.fixture
    def target(self, s3: S3Target) -> ArchiveTarget:
        return s3


class TestLockingS3Target(TargetContract):
    """A bucket with versions and object lock is one like others, as long as nothing is locked."""

    @pytest.fixture
    def target(self, moto: str, connections: Connections) -> Iterator[ArchiveTarget]:
        url = f"s3://{LOCKED}/{uuid4()}?endpoint_url={moto}&object_lock=governance"
        with connections.open(url) as target:
            yield target


class TestFsspecTarget(TargetContract):
    """Any file system of fsspec."""

    @pytest.fixture
    def target(self) -> ArchiveTarget:
        return open_target(f"fsspec+memory://{uuid4()}/archive")


class TestFaultyTarget(TargetContract):
    @pytest.fixture
    def target(self) -> ArchiveTarget:
        return FaultyTarget(open_target(f"memory://{uuid4()}"))


def test_a_listing_goes_over_its_pages(s3: S3Target, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"tenant_id=a/{number:02}" for number in range(7)]
    for key in keys:
        store(s3, key, b"x")
    plain = s3._s3

    def small_pages(operation: str, **parameters: object) -> dict[str, object]:
        size = {"MaxKeys": 3} if operation == "list_objects_v2" else {}
        return plain(operation, **parameters, **size)

    monkeypatch.setattr(s3, "_s3", small_pages)
    assert [info.key for info in s3.list("tenant_id=a/")] == keys


def test_a_bucket_that_is_not_there_is_no_missing_object(moto: str) -> None:
    target = open_target(f"s3://no-such-bucket/x?endpoint_url={moto}")
    for verb in (target.stat, target.open, target.delete, lambda key: list(target.list(key))):
        with pytest.raises(TargetUnavailableError, match="create the bucket") as caught:
            verb(KEY)
        assert "404 NoSuchBucket" in caught.value.message
    with pytest.raises(TargetUnavailableError, match="create the bucket"):
        store(target, KEY, b"x")
    target.close()  # type: ignore[attr-defined]


def test_staged_files_lie_elsewhere_and_are_cleaned_up(s3_url: str) -> None:
    s3 = open_target(s3_url)
    assert isinstance(s3, S3Target)
    kept, used = s3.stage(KEY), s3.stage(KEY)
    folder = kept.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    used.write_bytes(b"x")
    s3.put(KEY, used)
    assert [path.name for path in folder.iterdir()] == [kept.name]
    s3.close()
    assert not folder.exists()
    assert store(s3, KEY, b"y") is False  # it opens anew
    assert load(s3, KEY) == b"x"
    s3.delete(KEY)
    s3.close()


def test_a_forked_child_has_connections_and_staged_files_of_its_own(s3: S3Target) -> None:
    staged = s3.stage(KEY)
    store(s3, "parent", b"parent")
    pid = os.fork()
    if pid == 0:  # pragma: no cover - it is another process
        status = 1
        try:
            mine = s3.stage(KEY)
            if mine.parent != staged.parent and load(s3, "parent") == b"parent":
                mine.write_bytes(b"child")
                status = 0 if s3.put("child", mine) else 2
                s3.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert load(s3, "child") == b"child"
    assert staged.exists()


# --- object lock ------------------------------------------------------------------------------------------


@pytest.fixture
def locking(moto: str, connections: Connections) -> Iterator[S3Target]:
    url = f"s3://{LOCKED}/{uuid4()}?endpoint_url={moto}&object_lock=compliance"
    with connections.open(url) as target:
        yield target


def test_a_locked_object_cannot_be_deleted_before_its_tiers_end(locking: S3Target) -> None:
    until_us = 4_102_444_800_500_000  # 2100-01-01T00:00:00.5Z: never earlier than asked for
    assert store(locking, KEY, b"locked", retain_until_us=until_us) is True
    with pytest.raises(StateError, match=r"locked until 2100-01-01T00:00:01Z \(compliance mode\)") as caught:
        locking.delete(KEY)
    assert not isinstance(caught.value, TargetUnavailableError)
    assert load(locking, KEY) == b"locked"


def test_an_object_that_was_there_is_locked_until_the_tiers_end_and_never_sooner(locking: S3Target) -> None:
    def locked_until() -> str:
        found = locking._s3("head_object", Key=locking._key(KEY)).get("ObjectLockRetainUntilDate")
        return "" if found is None else f"{found:%Y-%m-%d}"

    store(locking, KEY, b"left unlocked")
    for until_us, expected in (
        (4_102_444_800_000_000, "2100-01-01"),
        (4_133_980_800_000_000, "2101-01-01"),
        (4_102_444_800_000_000, "2101-01-01"),
        (None, "2101-01-01"),
    ):
        keep_object(locking, KEY, until_us)
        assert locked_until() == expected


def test_without_a_time_nothing_is_locked_and_deleting_leaves_no_version(locking: S3Target) -> None:
    store(locking, KEY, b"x")
    store(locking, f"{KEY}2", b"another, whose key goes on")
    locking.delete(KEY)
    versions = locking._s3("list_object_versions", Prefix=locking._key(KEY))
    assert [found["Key"] for found in versions["Versions"]] == [locking._key(f"{KEY}2")]
    assert "DeleteMarkers" not in versions


def test_deleting_removes_what_a_plain_delete_has_hidden(locking: S3Target) -> None:
    store(locking, KEY, b"x")
    locking._s3("delete_object", Key=locking._key(KEY))  # somebody's: it leaves a marker
    with pytest.raises(ArchiveDamageError):
        locking.open(KEY)
    locking.delete(KEY)
    versions = locking._s3("list_object_versions", Prefix=locking._key(KEY))
    assert "Versions" not in versions
    assert "DeleteMarkers" not in versions


def test_a_bucket_without_object_lock_is_refused_when_objects_are_to_be_locked(moto: str) -> None:
    target = open_target(f"s3://{BUCKET}/x?endpoint_url={moto}&object_lock=governance")
    assert isinstance(target, S3Target)
    with pytest.raises(SetupError, match="no object lock"):
        target.check_settings()
    target.close()


def test_objects_that_one_request_cannot_carry_are_refused(
    s3: S3Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.archive.remote.OBJECT_BYTES_MAX", 5)
    with pytest.raises(TargetUnavailableError, match="5 bytes"):
        store(s3, KEY, b"12345")
    assert list(s3.list()) == []


def test_a_staged_file_that_went_away_is_unavailable(s3: FsspecTarget) -> None:
    staged = s3.stage(KEY)
    staged.unlink()
    with pytest.raises(TargetUnavailableError):
        s3.put(KEY, staged)
