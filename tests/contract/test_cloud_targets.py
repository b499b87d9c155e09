"""The conformance suite over `gs://` and `az://`: the real libraries, before servers made for the purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from eventstore.archive.registry import open_target
from eventstore.archive.target import ArchiveTarget
from eventstore.errors import ArchiveDamageError, TargetUnavailableError
from eventstore.testing.target_contract import KEY, TargetContract
from tests.contract.clouds import AzureHandler, GoogleHandler
from tests.contract.servers import serving
from tests.contract.test_remote_targets import store

# So do gcsfs and adlfs.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture
def objects() -> dict[str, Any]:
    return {}


@pytest.fixture
def seen() -> list[str]:
    """What was sent to create objects."""
    return []


@pytest.fixture
def gs_server(objects: dict[str, Any], seen: list[str]) -> Iterator[str]:
    with serving(GoogleHandler, objects=objects, seen=seen) as url:
        yield url


@pytest.fixture
def az_server(objects: dict[str, Any], seen: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(AzureHandler, objects=objects, seen=seen) as url:
        monkeypatch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING",
            f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey=c2VjcmV0;BlobEndpoint={url}/account;",
        )
        yield url


def check_that_nothing_is_remembered(one: ArchiveTarget, other: ArchiveTarget) -> None:
    assert list(one.list()) == []
    store(other, KEY, b"x")
    assert [info.key for info in one.list()] == [KEY]
    assert one.stat(KEY) == other.stat(KEY)
    other.delete(KEY)
    assert list(one.list()) == []
    with pytest.raises(ArchiveDamageError):
        one.stat(KEY)


class TestGoogleTarget(TargetContract):
    @pytest.fixture
    def target(self, gs_server: str) -> ArchiveTarget:
        return open_target(f"gs://bucket/pre/fix?endpoint_url={gs_server}&timeout_s=10")

    def test_listings_are_never_remembered(self, target: ArchiveTarget, gs_server: str) -> None:
        check_that_nothing_is_remembered(target, open_target(f"gs://bucket/pre/fix?endpoint_url={gs_server}"))

    def test_it_sends_the_precondition(self, target: ArchiveTarget, seen: list[str]) -> None:
        store(target, KEY, b"x")
        assert len(seen) == 1
        assert "ifGenerationMatch=0" in seen[0]

    def test_a_bucket_that_is_not_there_is_no_missing_object(
        self, target: ArchiveTarget, gs_server: str
    ) -> None:
        other = open_target(f"gs://other/pre/fix?endpoint_url={gs_server}")
        for verb in (other.stat, other.open, lambda key: list(other.list(key))):
            with pytest.raises(TargetUnavailableError, match="create it"):
                verb(KEY)


class TestAzureTarget(TargetContract):
    @pytest.fixture
    def target(self, az_server: str) -> ArchiveTarget:
        return open_target("az://bucket/pre/fix?timeout_s=10")

    def test_listings_are_never_remembered(self, target: ArchiveTarget) -> None:
        check_that_nothing_is_remembered(target, open_target("az://bucket/pre/fix"))

    def test_it_sends_the_precondition(self, target: ArchiveTarget, seen: list[str]) -> None:
        store(target, KEY, b"x")
        assert len(seen) == 1
        assert "If-None-Match: *" in seen[0]

    def test_a_bucket_that_is_not_there_is_no_missing_object(
        self, target: ArchiveTarget, az_server: str
    ) -> None:
        other = open_target("az://other/pre/fix?account_name=account")
        for verb in (other.stat, other.open, lambda key: list(other.list(key))):
            with pytest.raises(TargetUnavailableError, match=r"create it|create the bucket"):
                verb(KEY)
        assert "c2VjcmV0" not in other.describe()
