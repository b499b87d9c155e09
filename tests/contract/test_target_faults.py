"""What networks and servers do to a remote target, in HTTP: nothing is lost, overwritten or hidden."""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import traceback
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from uuid import uuid4

import pytest

from eventstore.archive.probe import prove_create_only
from eventstore.archive.registry import open_target
from eventstore.archive.s3 import S3Target
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.verify import read_segment
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError
from eventstore.testing.target_contract import TargetContract
from tests.contract.conftest import BUCKET, Connections
from tests.contract.servers import Exchange, Proxy
from tests.contract.test_remote_targets import load, store

KEY = "tenant_id=acme/month=2024-01/archive.x.parquet"
DATA = b"the segment's bytes" * 1000

Retries = list[tuple[int, str, float]]


@pytest.fixture
def target(proxy: Proxy, connections: Connections) -> Iterator[S3Target]:
    """A target behind the proxy, which waits for nobody between its attempts."""
    with connections.open(f"s3://{BUCKET}/{uuid4()}?endpoint_url={proxy.url}") as target:
        target._attempts._sleep = lambda _: None
        yield target


@pytest.fixture
def hasty(proxy: Proxy, connections: Connections) -> Iterator[S3Target]:
    """One that waits half a second for an answer."""
    with connections.open(f"s3://{BUCKET}/{uuid4()}?endpoint_url={proxy.url}&timeout_s=0.5") as target:
        target._attempts._sleep = lambda _: None
        yield target


@pytest.fixture
def retries(target: S3Target) -> Retries:
    """What the target tells of its retries."""
    told: Retries = []
    target.on_retry = lambda *retry: told.append(retry)
    return told


def fail(status: int, code: str) -> object:
    return lambda exchange: exchange.error(status, code)


def hang_up(exchange: Exchange) -> None:
    exchange.hang_up()


def do_and_hang_up(exchange: Exchange) -> None:
    exchange.forward()
    exchange.hang_up()


# --- storing ----------------------------------------------------------------------------------------------


def test_a_refused_connection_is_tried_again_and_then_told(retries: Retries) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        target = open_target(f"s3://{BUCKET}/x?endpoint_url=http://127.0.0.1:{taken.getsockname()[1]}")
        assert isinstance(target, S3Target)
        waits: list[float] = []
        target._attempts._sleep = waits.append
        target.on_retry = lambda *retry: retries.append(retry)
        with pytest.raises(TargetUnavailableError, match="after 4 attempts") as caught:
            store(target, KEY, DATA)
        assert "see whether it is up" in caught.value.hint
        assert [attempt for attempt, _, _ in retries] == [1, 2, 3]
        assert waits == [backoff_s for _, _, backoff_s in retries]
        assert all(0.05 <= wait <= 0.2 * 2**n for n, wait in enumerate(waits))
        with pytest.raises(TargetUnavailableError):
            list(target.list())
        target.close()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_failures_of_the_server_are_tried_again(
    target: S3Target, proxy: Proxy, retries: Retries, status: int
) -> None:
    proxy.fault("PUT", fail(status, "SlowDown" if status == 503 else "Whatever"), times=3)
    assert store(target, KEY, DATA) is True
    assert load(target, KEY) == DATA
    assert proxy.count("PUT") == 4
    assert [attempt for attempt, _, _ in retries] == [1, 2, 3]
    assert all(str(status) in reason for _, reason, _ in retries)
    assert target.pushback == (3 if status in (503, 429) else 0)


def test_attempts_are_bounded(target: S3Target, proxy: Proxy) -> None:
    proxy.fault("PUT", fail(500, "InternalError"), times=100)
    with pytest.raises(TargetUnavailableError, match=r"cannot store .* after 4 attempts: .*500"):
        store(target, KEY, DATA)
    assert proxy.count("PUT") == 4
    with pytest.raises(ArchiveDamageError):
        target.open(KEY)


def test_a_put_that_timed_out_before_it_was_done_is_done_again(hasty: S3Target, proxy: Proxy) -> None:
    gone = Event()

    def stall(exchange: Exchange) -> None:
        gone.wait(20)
        exchange.hang_up()

    proxy.fault("PUT", stall)
    assert store(hasty, KEY, DATA) is True
    assert proxy.count("PUT") >= 2
    gone.set()


def test_a_put_that_timed_out_after_it_was_done_is_found(hasty: S3Target, proxy: Proxy) -> None:
    gone = Event()

    def do_and_stall(exchange: Exchange) -> None:
        exchange.forward()
        gone.wait(20)
        exchange.hang_up()

    proxy.fault("PUT", do_and_stall)
    assert store(hasty, KEY, DATA) is True
    assert proxy.count("PUT") == 1
    gone.set()


def test_a_put_whose_answer_was_lost_is_found(target: S3Target, proxy: Proxy, retries: Retries) -> None:
    proxy.fault("PUT", do_and_hang_up)
    store(target, KEY, DATA)  # who created it is unknown: the HTTP library repeats a request by itself
    assert retries == []
    assert load(target, KEY) == DATA


def test_a_lost_answer_and_a_refused_repetition_are_our_own_object(hasty: S3Target, proxy: Proxy) -> None:
    """The first PUT arrives late, after we have looked and found nothing: the second is told 'it exists'."""
    late: list[Exchange] = []
    gone = Event()

    def keep_and_stall(exchange: Exchange) -> None:
        late.append(exchange)
        gone.wait(20)
        exchange.hang_up()

    proxy.fault("PUT", keep_and_stall)
    proxy.fault("PUT", lambda exchange: late[0].forward() and None)
    assert store(hasty, KEY, DATA) is True
    assert proxy.count("PUT") >= 2
    gone.set()


def test_another_object_that_came_between_is_left_alone(target: S3Target, proxy: Proxy) -> None:
    def other_first(exchange: Exchange) -> None:
        replace(exchange, body=b"another", headers=without(exchange, "content-md5")).forward()
        exchange.error(500, "InternalError")

    proxy.fault("PUT", other_first)
    assert store(target, KEY, DATA) is False
    assert load(target, KEY) == b"another"


def without(exchange: Exchange, *names: str) -> dict[str, str]:
    return {name: value for name, value in exchange.headers.items() if name.lower() not in names}


@pytest.mark.parametrize(
    ("status", "code"),
    [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict"), (400, "InvalidArgument")],
)
def test_however_a_server_says_that_it_exists(target: S3Target, proxy: Proxy, status: int, code: str) -> None:
    store(target, KEY, DATA)
    proxy.fault("PUT", fail(status, code), times=2)
    assert store(target, KEY, b"another") is False
    assert store(target, KEY, DATA) is False  # equal, but it was there for sure
    assert proxy.used_up
    assert load(target, KEY) == DATA


def test_a_conflict_with_nothing_there_yet_is_tried_again(target: S3Target, proxy: Proxy) -> None:
    proxy.fault("PUT", fail(409, "ConditionalRequestConflict"))
    assert store(target, KEY, DATA) is True


def test_a_request_that_the_server_will_never_take_is_not_repeated(target: S3Target, proxy: Proxy) -> None:
    proxy.fault("PUT", fail(400, "InvalidArgument"), times=9)
    with pytest.raises(TargetUnavailableError, match="InvalidArgument"):
        store(target, KEY, DATA)
    assert proxy.count("PUT") == 1


def test_when_it_cannot_be_read_back_nobody_says_it_is_stored(target: S3Target, proxy: Proxy) -> None:
    proxy.fault("PUT", do_and_hang_up)
    proxy.fault("GET", hang_up, times=8)  # the HTTP library repeats each by itself
    with pytest.raises(TargetUnavailableError, match=r"cannot read .* back after"):
        store(target, KEY, DATA)
    assert store(target, KEY, DATA) is False  # the next run finds it
    assert load(target, KEY) == DATA


def test_a_truncated_upload_is_found_by_reading_it(target: S3Target, proxy: Proxy) -> None:
    def truncate(exchange: Exchange) -> None:
        exchange.body = exchange.body[:100]
        exchange.headers = without(exchange, "content-md5")

    proxy.fault("PUT", truncate)
    store(target, KEY, DATA)
    with pytest.raises(ArchiveDamageError, match="SHA-256"):
        read_segment(target, KEY, sha256=hashlib.sha256(DATA).digest())
    assert store(target, KEY, DATA) is False  # and nobody takes it for the object


def test_each_put_is_one_request_with_the_bytes_digest(target: S3Target, proxy: Proxy) -> None:
    store(target, KEY, DATA * 600)  # 11 MB
    (_, path, headers), *others = [seen for seen in proxy.seen if seen[0] in ("PUT", "POST")]
    assert others == []
    assert "upload" not in path
    assert headers["If-None-Match"] == "*"
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(DATA * 600).digest()).decode()
    assert not [name for name in headers if "checksum" in name.lower()]


def test_a_server_that_ignores_the_precondition_is_refused(target: S3Target, proxy: Proxy) -> None:
    def overwrite(exchange: Exchange) -> None:
        exchange.headers = without(exchange, "if-none-match")

    proxy.always = overwrite
    with pytest.raises(SetupError, match="overwrites"):
        prove_create_only(target)
    assert list(target.list()) == []
    proxy.always = None
    prove_create_only(target)


def test_a_server_that_answers_and_stores_nothing_is_refused(target: S3Target, proxy: Proxy) -> None:
    proxy.fault("PUT", lambda exchange: exchange.answer(200, [("ETag", '"0"')], b""), times=2)
    with pytest.raises(SetupError, match="does not keep"):
        prove_create_only(target)


# --- reading, listing, deleting ---------------------------------------------------------------------------


def test_a_truncated_download_is_read_again(target: S3Target, proxy: Proxy) -> None:
    store(target, KEY, DATA)

    def truncate(exchange: Exchange) -> None:
        status, headers, body = exchange.forward()
        exchange.answer(status, headers, body[:100], declared=len(body))

    proxy.fault("GET", truncate)
    assert load(target, KEY) == DATA
    assert proxy.count("GET") == 2


def test_reading_is_tried_again_and_never_says_missing_for_a_failure(target: S3Target, proxy: Proxy) -> None:
    store(target, KEY, DATA)
    for method, verb in (("GET", target.open), ("HEAD", target.stat)):
        proxy.fault(method, fail(500, "InternalError"), times=2)
        verb(KEY)
        proxy.fault(method, fail(503, "SlowDown"), times=4)
        with pytest.raises(TargetUnavailableError):
            verb(KEY)
        assert proxy.used_up


def test_a_listing_is_whole_or_fails(target: S3Target, proxy: Proxy) -> None:
    keys = [f"tenant_id=a/{number}" for number in range(3)]
    for key in keys:
        store(target, key, b"x")
    proxy.fault("GET", fail(503, "SlowDown"), times=2)
    assert [info.key for info in target.list()] == keys
    proxy.fault("GET", fail(500, "InternalError"), times=4)
    with pytest.raises(TargetUnavailableError, match="cannot list"):
        list(target.list())
    proxy.fault("GET", fail(404, "NoSuchBucket"))
    with pytest.raises(TargetUnavailableError, match="create the bucket"):
        list(target.list())


def test_listings_are_never_remembered(target: S3Target, s3: S3Target, proxy: Proxy) -> None:
    other = open_target(f"s3://{target._root}?endpoint_url={proxy.url}")
    assert list(target.list()) == []
    store(other, KEY, DATA)
    assert [info.key for info in target.list()] == [KEY]
    assert target.stat(KEY) == other.stat(KEY)
    other.delete(KEY)
    assert list(target.list()) == []
    with pytest.raises(ArchiveDamageError):
        target.stat(KEY)
    other.close()  # type: ignore[attr-defined]


def test_deleting_is_tried_again(target: S3Target, proxy: Proxy) -> None:
    store(target, KEY, DATA)
    proxy.fault("DELETE", fail(500, "InternalError"), times=2)
    proxy.fault("DELETE", do_and_hang_up)
    target.delete(KEY)
    assert proxy.used_up
    assert list(target.list()) == []


def test_a_server_that_lists_no_versions_deletes_plainly(target: S3Target, proxy: Proxy) -> None:
    store(target, KEY, DATA)
    proxy.fault("GET", fail(501, "NotImplemented"), path="versions")
    target.delete(KEY)
    assert proxy.used_up
    assert list(target.list()) == []


# --- credentials ------------------------------------------------------------------------------------------


def test_what_a_server_says_is_told_without_credentials(
    target: S3Target, proxy: Proxy, retries: Retries, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ("AKIATESTKEYOFTESTS", "5eccre7", "secret-of-the-tests", "t0k3n")
    words = (
        "no AWSAccessKeyId=AKIATESTKEYOFTESTS with Signature: 5eccre7, see"
        " https://host/b?X-Amz-Credential=AKIATESTKEYOFTESTS&amp;X-Amz-Signature=5eccre7 and"
        " Authorization: AWS4-HMAC-SHA256 Credential=AKIATESTKEYOFTESTS/x, Signature=5eccre7"
        " X-Amz-Security-Token: t0k3n"
    )
    proxy.fault("PUT", lambda exchange: exchange.error(500, "InternalError", words))
    proxy.fault("PUT", lambda exchange: exchange.error(403, "AccessDenied", words))
    with pytest.raises(TargetUnavailableError, match="403 AccessDenied") as caught:
        store(target, KEY, DATA)
    assert proxy.count("PUT") == 2  # no use in repeating that one
    assert "credentials" in caught.value.hint
    texts = [str(caught.value), "".join(traceback.format_exception(caught.value)), str(retries)]
    texts += [target.describe(), repr(caught.value), caplog.text]
    for secret in secrets:
        assert not [text for text in texts if secret in text]


def test_without_credentials_it_says_so(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    target = open_target(f"s3://{BUCKET}/x?endpoint_url={proxy.url}")
    with pytest.raises(TargetUnavailableError, match="credentials") as caught:
        list(target.list())
    assert "check the credentials" in caught.value.hint
    unknown = open_target(f"s3://{BUCKET}/x?endpoint_url={proxy.url}&profile=nobody")
    with pytest.raises(TargetUnavailableError, match="nobody"):
        list(unknown.list())
    target.close()  # type: ignore[attr-defined]
    unknown.close()  # type: ignore[attr-defined]


# --- a gateway that is unlike S3 --------------------------------------------------------------------------


def gateway(exchange: Exchange) -> None:
    """As a Ceph object gateway of the 16th series may answer: EINVAL for an existing key, no checksums."""
    assert "uploads" not in exchange.path, "a multipart upload would overwrite"
    assert not [name for name in exchange.headers if "checksum" in name.lower()]
    status, headers, body = exchange.forward()
    if status == 412:
        exchange.error(400, "InvalidArgument")
    else:
        exchange.answer(status, [(k, v) for k, v in headers if "checksum" not in k.lower()], body)


class TestTargetBehindAGateway(TargetContract):
    @pytest.fixture
    def target(self, proxy: Proxy, connections: Connections) -> Iterator[ArchiveTarget]:
        proxy.always = gateway
        with connections.open(f"s3://{BUCKET}/{uuid4()}?endpoint_url={proxy.url}") as target:
            yield target
