"""A target that has not shown yet that it does not overwrite: it is read as any other, and takes nothing.

A disk that is full, a right that was taken away or a server that lets writes time out must not keep anybody
from reading the archive. Such a target proves itself before the first object that is put into it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

from eventstore.archive.probe import prove_create_only
from eventstore.archive.target import ArchiveTarget, ObjectInfo, keep_object
from eventstore.errors import TargetUnavailableError

__all__ = ["UnprovenTarget"]


class UnprovenTarget:
    """A target whose every `put` proves it first, until one proof succeeds. Deleting needs no proof: it is
    what makes room on a full disk. Safe for many threads."""

    def __init__(self, inner: ArchiveTarget) -> None:
        self.inner = inner
        # Why it takes nothing: what its last proof failed with. '': it was not asked yet, or is proven.
        self.reason = ""
        self.proven = False
        self._lock = threading.Lock()

    def prove(self) -> None:
        """Prove it now, unless it is proven.

        Raises:
            SetupError: it overwrites, or must not be used for another reason.
            TargetUnavailableError: it takes no writes now; `reason` says why from then on.
        """
        with self._lock:
            if self.proven:
                return
            try:
                prove_create_only(self.inner)
            except TargetUnavailableError as e:
                self.reason = e.message
                raise
            self.proven, self.reason = True, ""

    def stage(self, key: str) -> Path:
        return self.inner.stage(key)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        try:
            self.prove()
        except BaseException as e:
            staged.unlink(missing_ok=True)  # used up, as by any put
            if isinstance(e, TargetUnavailableError):
                raise TargetUnavailableError(
                    f"{self.describe()} is read only: {e.message}", hint=e.hint
                ) from e
            raise
        return self.inner.put(key, staged, retain_until_us=retain_until_us)

    def open(self, key: str) -> BufferedIOBase:
        return self.inner.open(key)

    def stat(self, key: str) -> ObjectInfo:
        return self.inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def local_path(self, key: str) -> Path | None:
        return self.inner.local_path(key)

    def describe(self) -> str:
        return self.inner.describe()

    # --- what a target may have more --------------------------------------------------------------------

    @property
    def pushback(self) -> int:
        return int(getattr(self.inner, "pushback", 0))

    @property
    def on_retry(self) -> Callable[[int, str, float], None] | None:
        found: Callable[[int, str, float], None] | None = getattr(self.inner, "on_retry", None)
        return found

    @on_retry.setter
    def on_retry(self, callback: Callable[[int, str, float], None] | None) -> None:
        if hasattr(self.inner, "on_retry"):
            self.inner.on_retry = callback

    def keep(self, key: str, retain_until_us: int | None) -> None:
        keep_object(self.inner, key, retain_until_us)

    def close(self) -> None:
        close = getattr(self.inner, "close", None)
        if close is not None:
            close()
