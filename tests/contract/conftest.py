"""An S3 server for the suite: moto, or the bucket that EVENTSTORE_TEST_S3_URL names (`s3://bucket/prefix?…`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from eventstore.archive.address import Address
from eventstore.archive.registry import open_target
from eventstore.archive.s3 import S3Target
from tests.contract.servers import Proxy, moto_server

BUCKET, LOCKED = "archive-tests", "locked-archive-tests"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test server's, and none of whoever runs the tests, unless they named a server of their own."""
    if "EVENTSTORE_TEST_S3_URL" in os.environ:
        return
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEYOFTESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """A moto server with a plain bucket and one that locks objects; its URL."""
    import boto3

    with moto_server() as url:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="AKIATESTKEYOFTESTS",
            aws_secret_access_key="secret-of-the-tests",
        )
        client.create_bucket(Bucket=BUCKET)
        client.create_bucket(Bucket=LOCKED, ObjectLockEnabledForBucket=True)
        yield url
        client.close()


class Connections:
    """Connections by options: making a client takes longer than most tests."""

    def __init__(self) -> None:
        self._kept: dict[str, S3Target] = {}

    @contextmanager
    def open(self, url: str) -> Iterator[S3Target]:
        """A target that uses the connections of an earlier one."""
        target = open_target(url)
        assert isinstance(target, S3Target)
        first = self._kept.setdefault(repr(target._options), target)
        target._filesystems[os.getpid()] = first._filesystem()
        yield target
        if target is not first:
            target._filesystems.clear()
            target.close()

    def close(self) -> None:
        for target in self._kept.values():
            target.close()


@pytest.fixture(scope="session")
def connections() -> Iterator[Connections]:
    connections = Connections()
    yield connections
    connections.close()


@pytest.fixture(scope="session")
def running_proxy(moto: str) -> Iterator[Proxy]:
    with Proxy().running(moto) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy) -> Proxy:
    """A proxy before moto, with faults on demand."""
    running_proxy.reset()
    return running_proxy


@pytest.fixture
def s3_url(request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own."""
    given = os.environ.get("EVENTSTORE_TEST_S3_URL")
    if given is None:
        return f"s3://{BUCKET}/{uuid4()}?endpoint_url={request.getfixturevalue('moto')}"
    address = Address.parse(given, known=("endpoint_url", "profile", "region", "timeout_s"))
    query = given.partition("?")[2]
    return f"s3://{address.root}/{uuid4()}?{query}".rstrip("?")


@pytest.fixture
def s3(s3_url: str, connections: Connections) -> Iterator[S3Target]:
    """An empty target on the S3 server; what a test leaves on a real one is removed."""
    with connections.open(s3_url) as target:
        yield target
        if "EVENTSTORE_TEST_S3_URL" in os.environ:
            for info in list(target.list()):
                target.delete(info.key)


@pytest.fixture(autouse=True)
def _one_put_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto looks whether an object is there and then stores it, in threads: of two that create one at the
    same moment both may win, as no S3 lets them. Where just that is tested, its PUTs come one by one."""
    if getattr(request.node, "originalname", "") != "test_of_concurrent_puts_exactly_one_creates":
        return
    from moto.server import MotoRequestHandler

    run, serial = MotoRequestHandler.run_wsgi, threading.Lock()

    def run_wsgi(handler: MotoRequestHandler) -> None:
        with serial:
            run(handler)

    monkeypatch.setattr(MotoRequestHandler, "run_wsgi", run_wsgi)
