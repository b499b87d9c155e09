"""Archive targets through fsspec: `gs://`, `az://`, `memory://`, and others. S3 has more to it: `s3.py`.

An object is built as a local file and stored by one create-only request. After any failure the stored object
is read and its SHA-256 compared with the file's: servers differ in how they say "it exists", and a request
whose answer was lost may have been carried out.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from io import BufferedIOBase, BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.asyn import sync  # type: ignore[import-untyped]

from eventstore.archive.address import Address, clean
from eventstore.archive.attempts import Attempts, classify
from eventstore.archive.target import ObjectInfo
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError

__all__ = ["AzureTarget", "FsspecTarget", "GoogleTarget", "MemoryTarget", "filesystem_class"]

OBJECT_BYTES_MAX = 5 * 2**30  # what one PUT may carry, on S3; a segment has some sixty megabytes
TIMEOUT_S = 30.0
# No call lasts longer than this many time-outs, however slowly bytes trickle.
CALL_TIMEOUTS = 10

_STAGE_PREFIX = "eventstore-staged-"
_LEFT_S = 86_400  # staged files of killed processes are removed after a day; no object takes that long
# Their debug logs hold whole requests: signatures, session tokens.
_TALKATIVE = ("botocore", "aiobotocore", "urllib3", "azure", "gcsfs", "google", "s3fs", "adlfs", "fsspec")


class FsspecTarget:
    """Objects below `root` of an fsspec file system. Safe for many threads, and in a forked child.

    `timeout_s` bounds a connection and a pause between bytes; a whole call may take ten of them.
    """

    attempts = 4
    # Many file systems of fsspec look first and store then: at least not two threads at once.
    _creating: AbstractContextManager[Any] = threading.Lock()

    def __init__(
        self,
        filesystem: type[Any],
        options: Mapping[str, Any],
        root: str,
        description: str,
        *,
        timeout_s: float = TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._class, self._options, self._root = filesystem, dict(options), root
        self._description = description
        self._limit_s = timeout_s * CALL_TIMEOUTS
        self._attempts = Attempts(description, self.attempts, sleep)
        # Per process: neither connections nor the staging folder are a forked child's.
        self._filesystems: dict[int, Any] = {}
        self._folders: dict[int, Path] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_url(cls, url: str) -> FsspecTarget:
        """The target of `fsspec+protocol://host/path?option=value`; the options are the file system's own.

        Raises:
            SetupError: the URL has credentials, or fsspec does not know the protocol.
        """
        address = Address.parse(url, known=None)
        protocol = address.scheme.removeprefix("fsspec+")
        if protocol in ("file", "local"):
            raise SetupError("fsspec's local files may be overwritten", hint="write file:///absolute/path")
        filesystem = filesystem_class(protocol, extra="")
        place = f"{protocol}://{address.container}/{address.prefix}"
        try:
            options = {**filesystem._get_kwargs_from_urls(place), **address.options}
            root = str(filesystem._strip_protocol(place)).rstrip("/")
        except (ValueError, TypeError) as e:
            raise SetupError(f"{address}: {clean(e)}", hint="fsspec+protocol://host/path") from None
        return cls(filesystem, options, root, str(address))

    # --- what tells of its state ----------------------------------------------------------------------

    @property
    def pushback(self) -> int:
        """How often the server asked for less (429, 503, SlowDown), ever. It only rises."""
        return self._attempts.pushback

    @property
    def on_retry(self) -> Callable[[int, str, float], None] | None:
        """Called before each wait with the attempt that failed, the reason, and the wait in seconds."""
        return self._attempts.on_retry

    @on_retry.setter
    def on_retry(self, callback: Callable[[int, str, float], None] | None) -> None:
        self._attempts.on_retry = callback

    def describe(self) -> str:
        return self._description

    def close(self) -> None:
        """Let connections and staged files go. A later call opens it again."""
        with self._lock:
            self._filesystems.pop(os.getpid(), None)
            folder = self._folders.pop(os.getpid(), None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    # --- the verbs ------------------------------------------------------------------------------------

    def stage(self, key: str) -> Path:
        try:
            handle, name = tempfile.mkstemp(prefix=f"{key.rpartition('/')[2]}.", dir=self._staging_folder())
        except OSError as e:
            raise TargetUnavailableError(
                f"cannot stage an object for {self._description}: {e}",
                hint=f"see that {tempfile.gettempdir()} has room, or name another folder by TMPDIR",
            ) from e
        os.close(handle)
        return Path(name)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        try:
            try:
                size = staged.stat().st_size
                data = staged.read_bytes() if size < OBJECT_BYTES_MAX else None
            except OSError as e:
                raise TargetUnavailableError(f"the staged file of {key} cannot be read: {e}") from e
            if data is None:
                raise TargetUnavailableError(
                    f"{key} has {size} bytes; one request carries less than {OBJECT_BYTES_MAX}",
                    hint="archive smaller windows",
                )
            return self._put(key, data, retain_until_us)
        finally:
            staged.unlink(missing_ok=True)

    def _put(self, key: str, data: bytes, retain_until_us: int | None) -> bool:
        digest = hashlib.sha256(data).digest()
        in_doubt = False  # whether an attempt of ours may have been carried out
        for attempt in count(1):
            try:
                self._create(self._path(key), data, retain_until_us)
                return True
            except Exception as e:  # noqa: BLE001 - the libraries' exceptions have no common root
                failure = classify(e)
            # Whatever the failure says, what is stored decides.
            stored = self._stored_digest(key, f"read {key} back after {failure.reason}")
            if stored == digest:
                return in_doubt or not failure.refused
            if stored is not None:
                return False
            in_doubt |= not failure.refused
            self._attempts.again(f"store {key}", attempt, failure)
        raise AssertionError("attempts end with an error")

    def open(self, key: str) -> BufferedIOBase:
        return BytesIO(self._read(key, f"read {key}"))

    def stat(self, key: str) -> ObjectInfo:
        try:
            return self._attempts.run(f"look at {key}", lambda: self._info(key))
        except FileNotFoundError:
            pass
        raise self._missing(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from sorted(self._listing(prefix), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._attempts.run(f"delete {key}", lambda: self._remove(key))

    def local_path(self, key: str) -> Path | None:
        return None

    # --- what differs by store ------------------------------------------------------------------------

    def _create(self, path: str, data: bytes, retain_until_us: int | None) -> None:
        """Store data under a path by one request that fails if there is something."""
        with self._creating:
            self._call("pipe_file", path, data, mode="create")

    def _info(self, key: str) -> ObjectInfo:
        found = self._call("info", self._path(key))
        if found["type"] != "file":  # other keys begin with this one and a '/'
            raise FileNotFoundError(key)
        return _object_info(key, found)

    def _listing(self, prefix: str) -> Iterable[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        path = self._path(folder) if folder else self._root

        def find() -> dict[str, Any]:
            found: dict[str, Any] = self._call("find", path, detail=True)
            if not found:
                self._check_container()
            return found

        try:
            found = self._attempts.run(f"list {prefix}*", find)
        except FileNotFoundError:
            self._check_container()
            return []
        names = ((name.strip("/").removeprefix(f"{self._root.strip('/')}/"), i) for name, i in found.items())
        return [_object_info(key, i) for key, i in names if key.startswith(prefix) and i["type"] == "file"]

    def _remove(self, key: str) -> None:
        self._call("rm_file", self._path(key))

    def _check_container(self) -> None:
        """Where objects lie in buckets: that this one exists, lest all its objects seem to be missing.

        Raises:
            TargetUnavailableError: it does not, or did not answer.
        """

    # --- tools ----------------------------------------------------------------------------------------

    def _call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        filesystem = self._filesystem()
        if filesystem.async_impl:
            coroutine = getattr(filesystem, f"_{verb}")
            return sync(filesystem.loop, coroutine, *args, timeout=self._limit_s, **kwargs)
        return getattr(filesystem, verb)(*args, **kwargs)

    def _read(self, key: str, what: str) -> bytes:
        try:
            data: bytes = self._attempts.run(what, lambda: self._call("cat_file", self._path(key)))
            return data
        except (FileNotFoundError, IsADirectoryError):
            pass
        raise self._missing(key)

    def _stored_digest(self, key: str, what: str) -> bytes | None:
        """The SHA-256 of the object as it is stored; None if there is none."""
        try:
            return hashlib.sha256(self._read(key, what)).digest()
        except ArchiveDamageError:
            return None

    def _missing(self, key: str) -> ArchiveDamageError:
        self._check_container()
        return ArchiveDamageError(
            f"segment {key} is missing from {self._description}", key=key, hint="restore it from a backup"
        )

    def _path(self, key: str) -> str:
        assert ".." not in key.split("/"), f"not a key: {key!r}"
        return f"{self._root}/{key}"

    def _own_filesystem(self) -> Any:
        """This process's file system; None: no call was made yet."""
        return self._filesystems.get(os.getpid())

    def _filesystem(self) -> Any:
        found = self._own_filesystem()
        if found is None:
            for name in _TALKATIVE:
                logger = logging.getLogger(name)
                logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
            # No caches: another process's work has to be seen at once. Two threads may both come here; the
            # second's is dropped unused.
            found = self._filesystems.setdefault(os.getpid(), self._make_filesystem())
        return found

    def _make_filesystem(self) -> Any:
        try:
            return self._class(**self._options, skip_instance_cache=True, use_listings_cache=False)
        except (TypeError, ImportError) as e:
            text = clean(e)
        raise SetupError(f"{self._description}: {text}", hint="see the options of its fsspec file system")

    def _staging_folder(self) -> Path:
        with self._lock:
            folder = self._folders.get(os.getpid())
            if folder is None or not folder.is_dir():
                _sweep()
                folder = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX))  # for this user's eyes only
                self._folders[os.getpid()] = folder
                weakref.finalize(self, _remove_folder, folder, os.getpid())
            return folder


class MemoryTarget(FsspecTarget):
    """`memory://name`: this process's memory, for tests. Two of one name are one store."""

    @classmethod
    def from_url(cls, url: str) -> MemoryTarget:
        address = Address.parse(url, known=())
        return cls(filesystem_class("memory", extra=""), {}, f"/{address.root}", str(address))


class _BucketTarget(FsspecTarget):
    _creating = nullcontext()  # the server sees to it
    attempts = 2  # gcsfs and the Azure library have retries of their own, which cannot be switched off

    def _check_container(self) -> None:
        container = self._root.partition("/")[0]
        try:
            self._attempts.run(f"find the bucket {container}", lambda: self._call("info", container))
            return
        except FileNotFoundError:
            pass
        raise TargetUnavailableError(
            f"{self._description}: there is no bucket {container}", hint="create it, or mend the target's URL"
        )


class GoogleTarget(_BucketTarget):
    """`gs://bucket/prefix?endpoint_url=…&project=…&timeout_s=…`, through gcsfs."""

    @classmethod
    def from_url(cls, url: str) -> GoogleTarget:
        address = Address.parse(url, known=("endpoint_url", "project", "timeout_s"))
        filesystem = filesystem_class("gs", extra="gs")
        timeout_s = address.number("timeout_s", TIMEOUT_S)
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(timeout_s, 10), sock_read=timeout_s)
        options: dict[str, Any] = {"requests_timeout": timeout}
        for name in ("endpoint_url", "project"):
            if name in address.options:
                options[name] = address.options[name]
        return cls(filesystem, options, address.root, str(address), timeout_s=timeout_s)

    def _create(self, path: str, data: bytes, retain_until_us: int | None) -> None:
        # One request, with the precondition that no generation exists: larger ones would go in parts.
        self._call("pipe_file", path, data, mode="create", chunksize=OBJECT_BYTES_MAX)


class AzureTarget(_BucketTarget):
    """`az://container/prefix?account_name=…&account_host=…&timeout_s=…`, through adlfs."""

    @classmethod
    def from_url(cls, url: str) -> AzureTarget:
        address = Address.parse(url, known=("account_host", "account_name", "timeout_s"))
        filesystem = filesystem_class("az", extra="az")
        timeout_s = address.number("timeout_s", TIMEOUT_S)
        options: dict[str, Any] = {"connection_timeout": min(timeout_s, 10), "read_timeout": timeout_s}
        for name in ("account_host", "account_name"):
            if name in address.options:
                options[name] = address.options[name]
        return cls(filesystem, options, address.root, str(address), timeout_s=timeout_s)


def filesystem_class(protocol: str, *, extra: str) -> type[Any]:
    """The fsspec class of a protocol; `extra` is the extra of this package that installs it ('': none).

    Raises:
        SetupError: it is unknown, or not installed.
    """
    try:
        found: type[Any] = fsspec.get_filesystem_class(protocol)
        return found
    except (ImportError, ValueError) as e:
        text = clean(e)
    hint = f"pip install 'eventstore[{extra}]'" if extra else "install the package that has it"
    raise SetupError(f"no file system for {protocol}://: {text}", hint=hint)


def _object_info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    version = next(
        (str(v).strip('"') for name in ("generation", "ETag", "etag") if (v := found.get(name))), ""
    )
    if not version:
        times = (
            found.get(name) for name in ("created", "mtime", "modified", "last_modified", "LastModified")
        )
        when: Any = next((t for t in times if t is not None), "")
        version = str(when.timestamp() if hasattr(when, "timestamp") else when)
    size = int(found["size"])
    return ObjectInfo(key, size, f"{version}.{size}")


def _sweep() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{_STAGE_PREFIX}*"):
        with suppress(OSError):
            if left.stat().st_uid == os.getuid() and time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _remove_folder(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not take its parent's files away
        shutil.rmtree(folder, ignore_errors=True)
