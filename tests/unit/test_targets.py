"""Named targets, their URLs, what is told of them, and the faulty target of the tests."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from uuid import uuid4

import pytest

from eventstore.archive import registry
from eventstore.archive.address import Address, clean, location_of
from eventstore.archive.attempts import Attempts, Failure, classify
from eventstore.archive.file import FileTarget
from eventstore.archive.layout import MARKER_KEY
from eventstore.archive.probe import prove_create_only
from eventstore.archive.registry import open_target
from eventstore.archive.remote import MemoryTarget
from eventstore.archive.s3 import S3Target
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError
from eventstore.testing.faulty import FaultyTarget

KEY = "tenant_id=acme/month=2024-01/archive.x.parquet"


def store(target: ArchiveTarget, data: bytes, key: str = KEY) -> bool:
    staged = target.stage(key)
    staged.write_bytes(data)
    return target.put(key, staged)


def load(target: ArchiveTarget, key: str = KEY) -> bytes:
    with target.open(key) as file:
        return file.read()


@pytest.fixture
def memory() -> ArchiveTarget:
    return open_target(f"memory://{uuid4()}")


# --- URLs -------------------------------------------------------------------------------------------------


def test_s3_options_reach_the_library() -> None:
    target = open_target(
        "s3://bucket/pre/fix/?endpoint_url=http://ceph:7480&region=eu-1&profile=p&object_lock=compliance&timeout_s=2.5"
    )
    assert isinstance(target, S3Target)
    assert (target._root, target.object_lock) == ("bucket/pre/fix", "compliance")
    config = target._options["config_kwargs"]
    assert (config["connect_timeout"], config["read_timeout"]) == (2.5, 2.5)
    assert config["retries"]["total_max_attempts"] == 1
    assert target._options["endpoint_url"] == "http://ceph:7480"
    assert target._options["client_kwargs"] == {"region_name": "eu-1"}
    assert target._options["profile"] == "p"
    assert target.describe() == "s3://bucket/pre/fix at http://ceph:7480"


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:s3cr3t@bucket/x",
        "s3://s3cr3t@bucket/x",
        "s3://key:s3cr3t/with/slash@bucket/x",
        "s3://bucket/x?key=s3cr3t",
        "s3://bucket/x?secret=s3cr3t",
        "s3://bucket/x?AWS_SECRET_ACCESS_KEY=s3cr3t",
        "s3://bucket/x?s3cr3t",
        "s3://bucket/x?s3cr3t=1",
        "s3://bucket/x?token=s3cr3t",
        "s3://bucket/x#s3cr3t",
        "s3://bucket/x?endpoint_url=http://a:s3cr3t@host",
        "s3://bucket/x?endpoint_url=s3cr3t",
        "s3://bucket/x?object_lock=s3cr3t",
        "s3://bucket/x?timeout_s=s3cr3t",
        "gs://bucket/x?token=s3cr3t",
        "az://bucket/x?account_key=s3cr3t",
        "az://bucket/x?sas_token=s3cr3t",
        "az://bucket/x?connection_string=s3cr3t",
        "memory://bucket?password=s3cr3t",
        "fsspec+sftp://user:s3cr3t@host/x",
        "fsspec+sftp://host/x?password=s3cr3t",
        "file://user:s3cr3t@host/x",
        "nope://user:s3cr3t@host/x",
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        open_target(url)
    assert "s3cr3t" not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert caught.value.hint


def test_an_unknown_option_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(SetupError, match="no option 'colour'") as caught:
        open_target("s3://bucket/x?colour=red")
    for name in ("endpoint_url", "object_lock", "profile", "region", "timeout_s"):
        assert name in caught.value.hint


@pytest.mark.parametrize(
    "url",
    ["s3:///x", "gs://", "s3://b/../c", "s3://b?timeout_s=0", "s3://b?timeout_s=-1", "fsspec+file:///tmp/x",
     "fsspec+nope://x/y", "nope://x", "x", ""],
)  # fmt: skip
def test_urls_of_no_target(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        open_target(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("file:///a/b", "file://localhost/a//b/", True),
        ("file:///a/b", "file:///a/c", False),
        ("s3://b/x", "s3://b/x/?profile=p&timeout_s=3", True),
        ("s3://b/x?endpoint_url=http://H:1/", "s3://b/x?endpoint_url=http://h:1", True),
        ("s3://b/x?endpoint_url=http://h:1", "s3://b/x", False),
        ("az://b/x?account_name=a", "az://b/x?account_name=c", False),
    ],
)
def test_two_urls_of_one_place(one: str, other: str, same: bool) -> None:
    assert (location_of(one) == location_of(other)) is same


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert location_of((tmp_path / "a").as_uri()) == location_of((tmp_path / "b").as_uri())


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = import_module("fsspec.registry")._registry
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(known, "s3", raising=False)
    with pytest.raises(SetupError, match=r"pip install 'eventstore\[s3\]'"):
        open_target("s3://bucket/x")


def test_a_target_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "mine": "eventstore.archive.remote:MemoryTarget",
        "broken": "eventstore.no_such_module:Target",
        "file": "eventstore.archive.remote:MemoryTarget",  # the table goes before
    }
    entries = EntryPoints(EntryPoint(name, path, registry.ENTRY_POINTS) for name, path in points.items())
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: entries.select(**wanted))
    assert isinstance(open_target("mine://x"), MemoryTarget)
    assert isinstance(open_target("file:///x"), FileTarget)
    with pytest.raises(SetupError, match="cannot be loaded"):
        open_target("broken://x")
    with pytest.raises(SetupError, match="no archive target for other://") as caught:
        open_target("other://x")
    assert "mine://" in caught.value.hint


# --- what is told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cr3t@host/path",
        "GET https://host/b/k?X-Amz-Signature=s3cr3t&X-Amz-Date=1 failed",
        "Authorization: AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=s3cr3t",
        "{'Authorization': 'Bearer s3cr3t'}",
        '"x-amz-security-token": "s3cr3t"',
        "aws_secret_access_key = s3cr3t",
        "<AWSAccessKeyId>s3cr3t</AWSAccessKeyId>",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=s3cr3t;",
        "sv=2022&sig=s3cr3t",
        "refresh_token: s3cr3t",
        "client_secret=s3cr3t",
        "token ya29.s3cr3t",
        "AKIAS3CR3TS3CR3T was refused s" + "x" * 400 + "s3cr3t",
    ],
)
def test_texts_are_cleaned(text: str) -> None:
    cleaned = clean(text)
    assert "s3cr3t" not in cleaned.lower()
    assert "\n" not in cleaned


def test_cleaning_leaves_words_alone() -> None:
    text = "The specified key does not exist: tenant_id=acme/month=2024-01/a.parquet at http://host:1/x"
    assert clean(text) == text


class Answered(Exception):  # noqa: N818
    """As botocore's ClientError."""

    def __init__(self, status: int, code: str) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (Answered(500, "InternalError"), {}),
        (Answered(503, "SlowDown"), {"pushback"}),
        (Answered(200, "SlowDown"), {"pushback"}),
        (Answered(429, ""), {"pushback"}),
        (Answered(404, "NoSuchKey"), {"missing", "refused", "fatal"}),
        (Answered(404, "NoSuchBucket"), {"refused", "fatal"}),
        (Answered(412, "PreconditionFailed"), {"refused"}),
        (Answered(409, "ConditionalRequestConflict"), {"refused"}),
        (Answered(400, "InvalidArgument"), {"refused", "fatal"}),
        (Answered(400, "BadDigest"), {"refused"}),
        (Answered(400, "RequestTimeout"), {}),
        (Answered(403, "AccessDenied"), {"refused", "fatal"}),
        (FileExistsError("k"), {"refused"}),
        (FileNotFoundError("k"), {"missing", "refused", "fatal"}),
        (ConnectionResetError(), {}),
        (TimeoutError(), {}),
        (TypeError("no such option"), {"fatal"}),
    ],
)  # fmt: skip
def test_what_a_failure_means(error: Exception, meaning: set[str]) -> None:
    failure = classify(error)
    flags = ("missing", "refused", "pushback", "fatal")
    assert {flag for flag in flags if getattr(failure, flag)} == set(meaning)


def test_a_failure_while_another_was_handled_is_judged_by_itself() -> None:
    error = ConnectionResetError("and then")
    error.__context__ = FileNotFoundError("what the library looked for first")
    assert not classify(error).missing


def test_waits_grow_are_bounded_and_differ() -> None:
    waits: list[float] = []
    attempts = Attempts("there", 30, waits.append)
    for attempt in range(1, 30):
        attempts.again("do it", attempt, Failure("why"))
    assert all(wait <= min(0.2 * 2**n, 10) for n, wait in enumerate(waits))
    assert min(waits[10:]) >= 2.5
    assert len(set(waits)) > 20
    with pytest.raises(TargetUnavailableError, match="cannot do it after 30 attempts: why"):
        attempts.again("do it", 30, Failure("why"))


# --- named targets ----------------------------------------------------------------------------------------


def test_targets_are_opened_proven_and_prepared_once(tmp_path: Path) -> None:
    prepared: list[tuple[str, list[str]]] = []

    def prepare(name: str, target: ArchiveTarget) -> None:
        prepared.append((name, [info.key for info in target.list()]))

    urls = {"near": (tmp_path / "near").as_uri(), "deep": f"memory://{uuid4()}"}
    targets = Targets(urls, default="near", prepare=prepare)
    assert (targets.names, targets.default, targets.opened()) == (("near", "deep"), "near", {})
    assert "deep" in targets
    assert "other" not in targets
    with ThreadPoolExecutor(8) as executor:
        found = set(executor.map(lambda _: id(targets["near"]), range(50)))
    assert len(found) == 1
    assert prepared == [("near", [])]
    assert list(targets["near"].list()) == []  # the probe has gone
    assert list(targets.opened()) == ["near"]
    assert isinstance(targets["deep"], MemoryTarget)
    targets.close()
    assert targets.opened() == {}
    assert isinstance(targets["near"], FileTarget)
    assert [name for name, _ in prepared] == ["near", "deep", "near"]


def test_an_unknown_name_is_refused_and_the_known_ones_named() -> None:
    targets = Targets({"near": "memory://x"}, default="near")
    with pytest.raises(SetupError, match="'far'") as caught:
        targets["far"]
    assert "near" in caught.value.hint


def test_a_target_that_is_away_is_tried_again_and_hinders_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")  # a file where the folder should be
    targets = Targets({"a": blocked.as_uri(), "b": (tmp_path / "b").as_uri()}, default="a")
    with pytest.raises(TargetUnavailableError):
        targets["a"]
    assert targets["b"] is targets["b"]
    assert list(targets.opened()) == ["b"]
    blocked.unlink()
    assert isinstance(targets["a"], FileTarget)


def test_what_preparing_refuses_is_not_open() -> None:
    def refuse(name: str, target: ArchiveTarget) -> None:
        raise SetupError(f"{name} belongs to another database")

    targets = Targets({"near": f"memory://{uuid4()}"}, default="near", prepare=refuse)
    for _ in range(2):
        with pytest.raises(SetupError, match="another database"):
            targets["near"]
    assert targets.opened() == {}


def test_a_target_that_takes_no_writes_is_read_and_proves_itself_before_the_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://{uuid4()}"
    store(open_target(url), b"marker", MARKER_KEY)
    plain, wanted = MemoryTarget._create, {"mode": "refuse"}

    def create(self: MemoryTarget, path: str, data: bytes, retain_until_us: int | None) -> None:
        if wanted["mode"] == "refuse":
            raise PermissionError("no right to write")
        if wanted["mode"] == "overwrite":
            self._call("pipe_file", path, data, mode="overwrite")
            return
        plain(self, path, data, retain_until_us)

    monkeypatch.setattr(MemoryTarget, "_create", create)
    targets = Targets({"near": url}, default="near")
    near = targets["near"]
    assert load(near, MARKER_KEY) == b"marker"
    assert "no right to write" in targets.read_only()["near"]
    assert "reading only" in caplog.text
    for mode, error, words in (
        ("refuse", TargetUnavailableError, "read only: .*no right to write"),
        ("overwrite", SetupError, "overwrites"),
    ):
        wanted["mode"] = mode
        with pytest.raises(error, match=words):
            store(near, b"x")
    wanted["mode"] = "create"
    assert store(near, b"x") is True
    assert targets.read_only() == {}
    # Once proven it stays so, and an empty place that takes nothing is no archive to read.
    wanted["mode"] = "refuse"
    with pytest.raises(TargetUnavailableError, match=f"cannot store {KEY}2"):
        store(near, b"y", f"{KEY}2")
    with pytest.raises(TargetUnavailableError, match="no right to write"):
        Targets({"far": f"memory://{uuid4()}"}, default="far")["far"]


@pytest.mark.parametrize(
    ("urls", "default"),
    [
        ({"near": "memory://x", "deep": "memory://x/"}, "near"),
        ({"near": "memory://x", "deep": "memory://x/within"}, "near"),
        ({"near": "memory://x"}, "deep"),
        ({}, "near"),
        ({"Near": "memory://x"}, "Near"),
        ({"": "memory://x"}, ""),
        ({"-x": "memory://x"}, "-x"),
        ({"n" * 32: "memory://x"}, "n" * 32),
    ],
)
def test_settings_of_targets_that_contradict(urls: dict[str, str], default: str) -> None:
    with pytest.raises(SetupError):
        Targets(urls, default=default)


def test_prefixes_that_begin_alike_are_two_places() -> None:
    assert Targets({"a": "s3://b/x", "b": "s3://b/x2"}, default="a").names == ("a", "b")


def test_a_single_target(memory: ArchiveTarget) -> None:
    targets = Targets.single(memory)
    assert targets["archive"] is memory
    assert (targets.names, targets.default) == (("archive",), "archive")


def test_an_address_in_words() -> None:
    address = Address.parse("fsspec+sftp://me@host/a%20b/", known=None)
    assert (address.container, address.prefix) == ("me@host", "a b")
    assert str(address) == "fsspec+sftp://host/a b"


# --- probe and faulty target ------------------------------------------------------------------------------


def test_a_target_that_overwrites_is_refused(memory: ArchiveTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = memory._call  # type: ignore[attr-defined]
    monkeypatch.setattr(
        memory, "_call", lambda *args, **kwargs: plain(*args, **{**kwargs, **_overwrite(args)})
    )
    with pytest.raises(SetupError, match="overwrites"):
        prove_create_only(memory)
    assert list(memory.list()) == []


def _overwrite(args: tuple[str, ...]) -> dict[str, str]:
    return {"mode": "overwrite"} if args[0] == "pipe_file" else {}


def test_faults_on_demand(memory: ArchiveTarget) -> None:
    faulty = FaultyTarget(memory)
    faulty.fail("put", times=2)
    for _ in range(2):
        with pytest.raises(TargetUnavailableError, match="503"):
            store(faulty, b"x")
    assert faulty.pushback == 2
    faulty.lose_answers()
    with pytest.raises(TargetUnavailableError, match="timed out"):
        store(faulty, b"x")
    assert store(faulty, b"x") is False
    with faulty.away(), pytest.raises(TargetUnavailableError, match="refused"):
        faulty.stat(KEY)
    faulty.freeze_listing()
    faulty.truncate()
    assert store(faulty, b"123456", "second") is True
    assert load(faulty, "second") == b"123"
    assert [info.key for info in faulty.list()] == [KEY]
    faulty.heal()
    assert [info.key for info in faulty.list()] == ["second", KEY]
    faulty.fill_disk()
    staged = faulty.stage("third")
    with pytest.raises(OSError, match="No space left"), staged.open("wb", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(TargetUnavailableError, match="No space left"):
        faulty.put("third", staged)
    assert faulty.calls["put"] == 6


def test_the_faulty_target_catches_a_rewrite(memory: ArchiveTarget) -> None:
    faulty = FaultyTarget(memory)
    store(faulty, b"first")
    memory.delete(KEY)
    store(memory, b"second")
    with pytest.raises(AssertionError, match="rewritten"):
        store(faulty, b"first")
    faulty.delete(KEY)
    assert store(faulty, b"third") is True
    memory.delete(KEY)
    with pytest.raises(ArchiveDamageError):
        faulty.open(KEY)
    with pytest.raises(AssertionError, match="stored again"):
        store(faulty, b"fourth")
