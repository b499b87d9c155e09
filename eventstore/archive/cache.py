"""Local copies of remote segments, for queries: fetched whole, digested on the way, evicted by size.

A file is named after its SHA-256 and appears complete or not at all, so it does not matter which target a
copy came from, nor which process fetched it. Nothing here has to survive a power cut.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from eventstore.errors import ArchiveDamageError, BusyError, TargetUnavailableError
from eventstore.model.segment import Segment

__all__ = ["Fetch", "SegmentCache"]

# Opens a segment's object in its target, at its beginning.
Fetch = Callable[[Segment], BufferedIOBase]
# Device, inode, size, mtime and ctime: what changes when a file's bytes do.
_Version = tuple[int, int, int, int, int]

_CHUNK_BYTES = 2**20
_SUFFIX = ".parquet"
_NAME = re.compile(rf"[0-9a-f]{{64}}\{_SUFFIX}")
_FETCHING = ".fetch-"
# A download holds a lock on its file from its first moment on; this is how long that moment may be.
_UNLOCKED_S = 60.0
_KNOWN_MAX = 100_000


class SegmentCache:
    """Files of segments in `folder`, of at most `size_bytes_max` bytes together. Safe for use by many
    threads, and by several processes that share the folder.

    The bound is kept before a download begins. It is exceeded only while queries need more than that at
    once (their files are pinned), or while other processes download, by what they are at.
    """

    def __init__(self, folder: Path, *, size_bytes_max: int, downloads_max: int = 8) -> None:
        self.size_bytes_max = size_bytes_max
        self._folder = folder
        self._prefix = f"{folder}/"
        self._downloads_max = downloads_max
        self._slots = threading.BoundedSemaphore(downloads_max)
        self._lock = threading.Lock()
        self._known: dict[bytes, _Version] = {}  # the files as they were when this process found them right
        self._used: dict[bytes, float] = {}  # when this process last asked for them (time.time)
        self._pins: Counter[bytes] = Counter()
        self._running: dict[bytes, tuple[Segment, Future[None]]] = {}
        self._room_lock = threading.Lock()  # taken before the other, never after it
        self._reserved_bytes = 0  # of downloads that run in this process
        self._too_full = False

    def is_known(self, segment: Segment) -> bool:
        """Whether this process has found a copy right before (it may be gone, or changed, since)."""
        return segment.sha256 in self._known

    def has(self, segment: Segment) -> bool:
        """Whether there is a copy, so that its target need not be asked (unless the copy turns out wrong)."""
        return _version_of(self._path(segment.sha256)) is not None

    @contextmanager
    def pinned(self, segments: Sequence[Segment], fetch: Fetch) -> Iterator[list[str]]:
        """The paths of the segments' copies, in the order given, fetching those that are not there.

        This process evicts none of them before the block ends; another one may.

        Raises:
            ArchiveDamageError: an object is missing, or its bytes are not the cataloged ones. Nothing of it
                is kept.
            TargetUnavailableError: a target did not answer.
            BusyError: the folder takes no more files.
        """
        digests = [segment.sha256 for segment in segments]
        with self._lock:
            self._pins.update(digests)
            self._used.update(dict.fromkeys(digests, time.time()))
        try:
            self._provide_all(segments, fetch)
            yield [self._path(digest) for digest in digests]
        finally:
            with self._lock:
                self._pins.subtract(digests)
                self._pins = +self._pins
            if self._too_full:
                with suppress(OSError):  # the next download tries it again, and says what is wrong
                    self._make_room(0)

    def digests(self) -> list[bytes]:
        """The SHA-256 of every segment of which there is a copy."""
        names = self._folder.glob(f"*{_SUFFIX}") if self._folder.is_dir() else ()
        return [bytes.fromhex(path.stem) for path in names if _NAME.fullmatch(path.name)]

    def forget(self, digests: Collection[bytes]) -> None:
        """Remove copies: their events were destroyed, and are to be nowhere. A query that has one open ends
        with what it has."""
        for sha256 in digests:
            Path(self._path(sha256)).unlink(missing_ok=True)
            with self._lock:
                self._known.pop(sha256, None)

    def _path(self, sha256: bytes) -> str:
        return f"{self._prefix}{sha256.hex()}{_SUFFIX}"

    def _is_right(self, sha256: bytes) -> bool:
        known = self._known.get(sha256)
        return known is not None and known == _version_of(self._path(sha256))

    def _provide_all(self, segments: Sequence[Segment], fetch: Fetch) -> None:
        wanted = list({s.sha256: s for s in segments if not self._is_right(s.sha256)}.values())
        if len(wanted) == 1:
            self._provide(wanted[0], fetch)
        if len(wanted) < 2:
            return
        with ThreadPoolExecutor(min(len(wanted), self._downloads_max), "fetch") as executor:
            # After a failure, `map` cancels those that have not begun.
            for _ in executor.map(lambda segment: self._provide(segment, fetch), wanted):
                pass

    def _provide(self, segment: Segment, fetch: Fetch) -> None:
        """Have a right copy. Of several threads that want the same one, the first fetches it."""
        while True:
            with self._lock:
                running = self._running.get(segment.sha256)
                if running is None:
                    mine: Future[None] = Future()
                    self._running[segment.sha256] = (segment, mine)
                    break
            fetched, future = running
            error = future.exception()
            if error is None:
                return
            # A segment that moves has two places for a while; the failure of one is not that of the other.
            if (fetched.target, fetched.key) == (segment.target, segment.key):
                raise error
        try:
            if not self._is_right(segment.sha256) and not self._recognise(segment.sha256):
                with self._slots:
                    self._download(segment, fetch)
        except BaseException as e:
            self._end_of(segment, mine, e)
            raise
        self._end_of(segment, mine, None)

    def _end_of(self, segment: Segment, running: Future[None], error: BaseException | None) -> None:
        with self._lock:
            del self._running[segment.sha256]
        if error is None:
            running.set_result(None)
        else:
            running.set_exception(error)

    def _recognise(self, sha256: bytes) -> bool:
        """Digest a file that this process has not seen as it is now: from an earlier process, from another
        one, or changed on the disk. A wrong one will be replaced."""
        try:
            with open(self._path(sha256), "rb") as file:
                before = _version(os.fstat(file.fileno()))
                digest = hashlib.file_digest(file, "sha256").digest()
                after = _version(os.fstat(file.fileno()))
        except OSError:  # not there, or unreadable as it is
            return False
        if digest != sha256 or before != after:
            return False
        self._remember(sha256, after)
        return True

    def _remember(self, sha256: bytes, version: _Version) -> None:
        with self._lock:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
                self._used.clear()
            self._known[sha256] = version

    def _download(self, segment: Segment, fetch: Fetch) -> None:
        path, name = self._path(segment.sha256), None
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._make_room(segment.size_bytes)
            try:
                handle, name = tempfile.mkstemp(prefix=_FETCHING, dir=self._folder)
                with open(handle, "wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # says that somebody is at it
                    _copy(segment, fetch, file)
                    file.flush()
                    # Dying before this line leaves a file that nobody has locked, and that will be swept.
                    os.replace(name, path)
                    # Not earlier: renaming changes ctime. And not by the path, where another process may have
                    # put its own copy by now; that one has to be digested.
                    version = _version(os.fstat(file.fileno()))
            finally:
                with self._room_lock:
                    self._reserved_bytes -= segment.size_bytes
                if name is not None:
                    with suppress(FileNotFoundError):
                        os.unlink(name)
        except OSError as e:
            raise BusyError(
                f"cannot keep a copy of {segment.key} in {self._folder}: {e}",
                hint="make room there, or see that this user may write there",
            ) from e
        self._remember(segment.sha256, version)

    def _make_room(self, size_bytes: int) -> None:
        """Reserve bytes for a download; evict those files that were not used for longest, but none that is
        pinned. The caller gives the reserved bytes back."""
        with self._room_lock:
            found = self._list_files()
            total_bytes = self._reserved_bytes + size_bytes + sum(size for _, size, _ in found)
            for _, size, sha256 in sorted(found):
                if total_bytes <= self.size_bytes_max:
                    break
                with self._lock:
                    if self._pins[sha256]:
                        continue
                    self._known.pop(sha256, None)
                    self._used.pop(sha256, None)
                    with suppress(FileNotFoundError):  # another process was quicker
                        os.unlink(self._path(sha256))
                total_bytes -= size
            self._too_full = total_bytes > self.size_bytes_max
            self._reserved_bytes += size_bytes

    def _list_files(self) -> list[tuple[float, int, bytes]]:
        """When each file was last used, its size, its SHA-256. What killed downloads left is swept."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(_FETCHING):
                        if time.time() - status.st_mtime > _UNLOCKED_S:
                            _sweep(entry.path)
                    elif _NAME.fullmatch(entry.name):
                        sha256 = bytes.fromhex(entry.name.removesuffix(_SUFFIX))
                        # Of a file that only others use, the time of access has to do.
                        used = self._used.get(sha256) or max(status.st_atime, status.st_mtime)
                        found.append((used, status.st_size, sha256))
                except FileNotFoundError:  # evicted by another process meanwhile
                    continue
        return found


def _copy(segment: Segment, fetch: Fetch, file: BinaryIO) -> None:
    """Write an object's bytes to a file, a chunk at a time.

    Raises:
        ArchiveDamageError: they are not the segment's.
        TargetUnavailableError: the target stopped answering.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with fetch(segment) as source:
        while True:
            try:
                chunk = source.read(_CHUNK_BYTES)
            except OSError as e:
                raise TargetUnavailableError(
                    f"cannot read {segment.key} from {segment.target}: {e}", hint="try again in a moment"
                ) from e
            size_bytes += len(chunk)
            if not chunk or size_bytes > segment.size_bytes:
                break
            digest.update(chunk)
            file.write(chunk)
    if size_bytes != segment.size_bytes or digest.digest() != segment.sha256:
        # No more than its size is ever read, so of an object that is too large only that much is known.
        what = (
            "more bytes"
            if size_bytes > segment.size_bytes
            else f"{size_bytes} bytes with SHA-256 {digest.hexdigest()}"
        )
        raise ArchiveDamageError(
            f"segment {segment.key} in target {segment.target}: it has {what}, not {segment.size_bytes} "
            f"bytes with SHA-256 {segment.sha256.hex()} as cataloged",
            key=segment.key,
            hint="run eventstore archive scrub, which repairs it where another copy is right",
        )


def _version(status: os.stat_result) -> _Version:
    # ctime too: setting mtime back cannot hide a change.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _version_of(path: str) -> _Version | None:
    """None: there is no such file."""
    try:
        return _version(os.stat(path))
    except FileNotFoundError:
        return None


def _sweep(path: str) -> None:
    """Remove the file of a download, unless somebody is still at it."""
    with open(path, "rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
