"""A real target into whose verbs a test puts faults: what networks, servers and disks do, on demand.

    faulty = FaultyTarget(target)
    faulty.fail("put", times=2)        # twice nothing is stored, and the caller is told so
    faulty.lose_answers()              # the object is stored, and the caller is told that it failed
    faulty.truncate()                  # half of the object is stored, and the caller is told that it is there

It also watches: whoever rewrites an object that it saw before fails at once, with an AssertionError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path

from eventstore.archive.target import ArchiveTarget, ObjectInfo
from eventstore.errors import ArchiveDamageError, TargetUnavailableError

__all__ = ["FaultyTarget"]

_VERBS = ("stage", "put", "open", "stat", "list", "delete")


class FaultyTarget:
    """`before(verb, key)` is called at the beginning of each call, and may wait, count or raise; `opened`
    alters what `open` gives; `before_open` and `after_put` are told of a key; `stage` takes the place of
    staging."""

    def __init__(
        self,
        inner: ArchiveTarget,
        *,
        before: Callable[[str, str], None] | None = None,
        opened: Callable[[str, bytes], bytes] | None = None,
        after_put: Callable[[str], None] | None = None,
        before_open: Callable[[str], None] | None = None,
        stage: Callable[[str], Path] | None = None,
    ) -> None:
        self.inner = inner
        self.refused = False  # nobody answers: every call fails
        self.calls: Counter[str] = Counter()
        self.pushback = 0
        self.on_retry: Callable[[int, str, float], None] | None = None
        self._before, self._opened, self._stage = before, opened, stage
        self._after_put, self._before_open = after_put, before_open
        self._failing: dict[str, list[str]] = {verb: [] for verb in _VERBS}
        self._lost = self._truncated = self._full = 0
        self._stale: list[ObjectInfo] | None = None  # None: listings are true
        self._seen: dict[str, bytes] = {}  # key → SHA-256 of what was stored through this target
        self._lock = threading.Lock()

    # --- faults ---------------------------------------------------------------------------------------

    def fail(self, verb: str, *, times: int = 1, reason: str = "503 SlowDown") -> None:
        """The next calls of a verb do nothing and fail. Reasons with 429 or 503 count as pushback."""
        self._failing[verb] += [reason] * times

    def lose_answers(self, times: int = 1) -> None:
        """The next puts are carried out, and then time out."""
        self._lost += times

    def truncate(self, times: int = 1) -> None:
        """The next puts store half of the object, and report success."""
        self._truncated += times

    def fill_disk(self, times: int = 1) -> None:
        """The next staged files are on a full disk: writing to them fails with ENOSPC."""
        self._full += times

    def freeze_listing(self) -> None:
        """From now on `list` gives what there is now."""
        self._stale = list(self.inner.list())

    def heal(self) -> None:
        """No faults any more."""
        with self._lock:
            self._failing = {verb: [] for verb in _VERBS}
            self._lost = self._truncated = self._full = 0
            self._stale, self.refused = None, False

    # --- the verbs ------------------------------------------------------------------------------------

    def stage(self, key: str) -> Path:
        self._enter("stage", key)
        if self._take("_full"):
            # A link, so that whoever removes the staged file does not remove the device.
            staged = self.inner.stage(key)
            staged.unlink()
            staged.symlink_to("/dev/full")
            return staged
        return self.inner.stage(key) if self._stage is None else self._stage(key)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        self._enter("put", key)
        if staged.is_symlink():
            raise TargetUnavailableError(f"cannot store {key}: {os.strerror(errno.ENOSPC)}", hint="make room")
        if self._take("_truncated"):
            os.truncate(staged, staged.stat().st_size // 2)
        digest = hashlib.sha256(staged.read_bytes()).digest()
        created = self.inner.put(key, staged, retain_until_us=retain_until_us)
        with self._lock:
            assert not (created and key in self._seen), f"{key} was there, and was stored again"
            if created:
                self._seen[key] = digest
        self._check(key)
        if self._after_put is not None:
            self._after_put(key)
        if self._take("_lost"):
            raise TargetUnavailableError(f"cannot store {key}: timed out", hint="try again")
        return created

    def open(self, key: str) -> BufferedIOBase:
        self._enter("open", key)
        if self._before_open is not None:
            self._before_open(key)
        file = self.inner.open(key)
        if self._opened is None:
            return file
        with file:
            return BytesIO(self._opened(key, file.read()))

    def stat(self, key: str) -> ObjectInfo:
        self._enter("stat", key)
        return self.inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._enter("list", prefix)
        if self._stale is None:
            return self.inner.list(prefix)
        return iter([info for info in self._stale if info.key.startswith(prefix)])

    def delete(self, key: str) -> None:
        self._enter("delete", key)
        self.inner.delete(key)
        with self._lock:
            self._seen.pop(key, None)

    def local_path(self, key: str) -> Path | None:
        # What is to go through the faults must not go round them.
        return None if self._opened is not None or self.refused else self.inner.local_path(key)

    def describe(self) -> str:
        return f"faulty {self.inner.describe()}"

    # --- tools ----------------------------------------------------------------------------------------

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody answers inside."""
        self.refused = True
        try:
            yield
        finally:
            self.refused = False

    def _enter(self, verb: str, key: str) -> None:
        self.calls[verb] += 1
        if self._before is not None:
            self._before(verb, key)
        if self.refused:
            raise TargetUnavailableError(
                f"{self.describe()}: connection refused", hint="see whether it is up"
            )
        with self._lock:
            reason = self._failing[verb].pop(0) if self._failing[verb] else None
            if reason is not None and reason.startswith(("429", "503")):
                self.pushback += 1
        if reason is not None:
            raise TargetUnavailableError(
                f"{self.describe()}: cannot {verb} {key}: {reason}", hint="try again"
            )

    def _take(self, fault: str) -> bool:
        with self._lock:
            left: int = getattr(self, fault)
            setattr(self, fault, max(0, left - 1))
            return left > 0

    def _check(self, key: str) -> None:
        """That an object which was stored here is still the one that was stored."""
        expected = self._seen.get(key)
        if expected is None:
            return
        try:
            with self.inner.open(key) as file:
                found = hashlib.sha256(file.read()).digest()
        except ArchiveDamageError:
            return  # removed behind this target's back, which is no rewrite
        assert found == expected, f"{key} was rewritten"
