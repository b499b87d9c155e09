"""The archive target `s3://`: S3 and what speaks its protocol, a Ceph object gateway for one, through s3fs.

Nothing is asked of the server but a single PUT with `If-None-Match: *`. No multipart upload (on some servers
its create overwrites), no checksum beyond Content-MD5 (newer ones confuse older servers), no trust in what
the server answers.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from eventstore.archive.address import Address
from eventstore.archive.attempts import classify, server_code
from eventstore.archive.remote import OBJECT_BYTES_MAX, TIMEOUT_S, FsspecTarget, filesystem_class
from eventstore.archive.target import ObjectInfo
from eventstore.errors import SetupError, StateError, TargetUnavailableError

__all__ = ["S3Target"]

_OPTIONS = ("endpoint_url", "object_lock", "profile", "region", "timeout_s")
_LOCK_MODES = ("compliance", "governance")
_CONNECTIONS = 32
# How servers say that they do not list versions, or do not let us.
_NO_VERSIONS = {"NotImplemented", "MethodNotAllowed", "AccessDenied", "InvalidArgument", "501", "405", "403"}


class S3Target(FsspecTarget):
    """Objects of one bucket below a prefix; with `object_lock`, each is locked until its tier's end."""

    object_lock: str | None = None  # None: no object is locked

    @classmethod
    def from_url(cls, url: str) -> S3Target:
        """The target of `s3://bucket/prefix?endpoint_url=…&region=…&profile=…&object_lock=…&timeout_s=…`.

        Raises:
            SetupError: unknown options, credentials in the URL, or s3fs is not installed.
        """
        address = Address.parse(url, known=_OPTIONS)
        filesystem = filesystem_class("s3", extra="s3")
        lock = address.options.get("object_lock")
        if lock is not None and lock not in _LOCK_MODES:
            raise SetupError(f"{address}: no such object_lock", hint=f"one of: {', '.join(_LOCK_MODES)}")
        timeout_s = address.number("timeout_s", TIMEOUT_S)
        options: dict[str, Any] = {
            "max_concurrency": 1,  # an object is read by one request
            "config_kwargs": {
                "connect_timeout": min(timeout_s, 10),
                "read_timeout": timeout_s,
                "max_pool_connections": _CONNECTIONS,
                "retries": {"total_max_attempts": 1, "mode": "standard"},  # `Attempts` does it
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        }
        if "endpoint_url" in address.options:
            options["endpoint_url"] = address.options["endpoint_url"]
        if "region" in address.options:
            options["client_kwargs"] = {"region_name": address.options["region"]}
        if "profile" in address.options:
            options["profile"] = address.options["profile"]
        target = cls(filesystem, options, address.root, str(address), timeout_s=timeout_s)
        target.object_lock = lock
        return target

    def check_settings(self) -> None:
        """That the bucket can lock objects, where they are to be locked.

        Raises:
            SetupError: it cannot.
            TargetUnavailableError: it did not answer.
        """
        if self.object_lock is None:
            return
        with suppress(FileNotFoundError):
            found = self._attempts.run("read the object lock's settings", self._lock_settings)
            if found.get("ObjectLockEnabled") == "Enabled":
                return
        raise SetupError(
            f"{self._description}: the bucket has no object lock",
            hint="make a bucket with object lock enabled, or leave object_lock out of the URL",
        )

    def close(self) -> None:
        filesystem = self._own_filesystem()
        super().close()
        if filesystem is not None and getattr(filesystem, "_s3creator", None) is not None:
            filesystem.close_session(filesystem.loop, filesystem._s3creator)

    # --- how S3 does it -------------------------------------------------------------------------------

    def _make_filesystem(self) -> Any:
        filesystem = super()._make_filesystem()
        filesystem.retries = 1  # `Attempts` does it
        return filesystem

    def _create(self, path: str, data: bytes, retain_until_us: int | None) -> None:
        # Content-MD5: the server refuses what was damaged on the way, and S3 demands it for locked objects.
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        extra: dict[str, Any] = {"ContentMD5": base64.b64encode(md5).decode()}
        until = self._lock_end(retain_until_us)
        if self.object_lock is not None and until is not None:
            extra["ObjectLockMode"] = self.object_lock.upper()
            extra["ObjectLockRetainUntilDate"] = until
        # Below twice the chunk size it is a single PUT.
        self._call("pipe_file", path, data, chunksize=OBJECT_BYTES_MAX, mode="create", **extra)

    def _lock_end(self, retain_until_us: int | None) -> datetime | None:
        """Until when an object is to be locked; None: it is not."""
        # An end that has passed locks nothing, and the server refuses it.
        if self.object_lock is None or retain_until_us is None or retain_until_us <= time.time_ns() // 1000:
            return None
        return datetime.fromtimestamp(-(-retain_until_us // 10**6), UTC)

    def keep(self, key: str, retain_until_us: int | None) -> None:
        """Lock an object that is there until a time, at the least: a lock that lasts longer stays.

        Raises:
            TargetUnavailableError: it did not answer, or may not.
        """
        until = self._lock_end(retain_until_us)
        if until is None:
            return

        def extend() -> None:
            found = self._s3("head_object", Key=self._key(key))
            locked: datetime | None = found.get("ObjectLockRetainUntilDate")
            if locked is None or locked < until:  # never sooner
                mode = found.get("ObjectLockMode") or str(self.object_lock).upper()
                retention = {"Mode": mode, "RetainUntilDate": until}
                self._s3("put_object_retention", Key=self._key(key), Retention=retention)

        self._run(f"lock {key} until {until:%Y-%m-%d}", extend)

    def _info(self, key: str) -> ObjectInfo:
        try:
            found = self._s3("head_object", Key=self._key(key))
        except FileNotFoundError:
            # HEAD has no words for it: whether it is the object that is missing, or the whole bucket.
            self._s3("list_objects_v2", Prefix=self._key(key), MaxKeys=1)
            raise
        return _info(key, int(found["ContentLength"]), found)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # The server sorts them; a page at a time is in memory.
        start = len(self._key(""))
        token: dict[str, str] = {}
        while True:
            page = self._run(
                f"list {prefix}*",
                partial(self._s3, "list_objects_v2", Prefix=self._key(prefix), **token),
            )
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # folders, as consoles make them
                    yield _info(found["Key"][start:], int(found["Size"]), found)
            if not page.get("IsTruncated"):
                return
            if token.get("ContinuationToken") == page["NextContinuationToken"]:
                raise TargetUnavailableError(f"{self._description}: its listing does not get on")
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _run(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return self._attempts.run(what, call)
        except FileNotFoundError as e:
            text = str(e)
        raise TargetUnavailableError(f"{self._description}: cannot {what}: {text}")

    def _remove(self, key: str) -> None:
        """Remove every version of an object; without versions, it has one of the id 'null'."""
        versions = self._versions(key)
        if versions is None:
            answer = self._s3("delete_object", Key=self._key(key))
            if answer.get("VersionId") not in (None, "null") or answer.get("DeleteMarker"):
                raise TargetUnavailableError(
                    f"{self._description}: {key} is hidden, but its versions are still there",
                    hint="allow s3:ListBucketVersions and s3:DeleteObjectVersion",
                )
            return
        for version in versions:
            self._remove_version(key, version)

    def _remove_version(self, key: str, version: str) -> None:
        try:
            self._s3("delete_object", Key=self._key(key), VersionId=version)
            return
        except PermissionError as e:
            failure = classify(e)
        locked = self._locked_until(key, version)
        if locked is not None:
            raise StateError(f"{self._description}: {key} cannot be deleted", hint=f"locked {locked}")
        raise TargetUnavailableError(
            f"{self._description}: cannot delete {key}: {failure.reason}", hint=failure.hint
        )

    def _versions(self, key: str) -> Sequence[str] | None:
        """The ids of an object's versions and delete markers; None: the server does not tell."""
        found = []
        marker: dict[str, str] = {}
        while True:
            try:
                page = self._s3("list_object_versions", Prefix=self._key(key), **marker)
            except OSError as e:
                if server_code(e) in _NO_VERSIONS:
                    return None
                raise
            entries = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            found += [e["VersionId"] for e in entries if e["Key"] == self._key(key)]
            # Keys that go on after this one sort behind it.
            if not page.get("IsTruncated") or not any(e["Key"] == self._key(key) for e in entries):
                return found
            marker = {
                "KeyMarker": page["NextKeyMarker"],
                "VersionIdMarker": page.get("NextVersionIdMarker", ""),
            }

    def _locked_until(self, key: str, version: str) -> str | None:
        """What keeps a version from deletion, in words; None: nothing, or the server does not tell."""
        found: dict[str, Any] = {}
        with suppress(Exception):  # it only words an error that is raised anyway
            found = self._s3("head_object", Key=self._key(key), VersionId=version)
        until: datetime | None = found.get("ObjectLockRetainUntilDate")
        if until is not None and until > datetime.now(UTC):
            mode = found["ObjectLockMode"].lower()
            return f"until {until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} ({mode} mode)"
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return "by a legal hold on the object itself"
        return None

    def _lock_settings(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._s3("get_object_lock_configuration")["ObjectLockConfiguration"]
            return found
        except OSError as e:
            if server_code(e) in (
                "ObjectLockConfigurationNotFoundError",
                "NotImplemented",
                "MethodNotAllowed",
            ):
                return {}
            raise

    def _s3(self, operation: str, **parameters: Any) -> dict[str, Any]:
        bucket = self._root.partition("/")[0]
        found: dict[str, Any] = self._call("call_s3", operation, Bucket=bucket, **parameters)
        return found

    def _key(self, key: str) -> str:
        """A key within the bucket; of '', what all keys begin with."""
        return self._path(key).partition("/")[2]


def _info(key: str, size_bytes: int, found: dict[str, Any]) -> ObjectInfo:
    # HEAD tells seconds, LIST may tell more.
    modified = int(found["LastModified"].timestamp())
    return ObjectInfo(key, size_bytes, f"{found['ETag'].strip(chr(34))}.{modified}.{size_bytes}")
