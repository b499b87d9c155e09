"""The archive target `file://`: a local folder."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from urllib.parse import unquote, urlsplit

from eventstore.archive.address import clean
from eventstore.archive.target import ObjectInfo
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError

__all__ = ["FileTarget"]

_DURABLE_MAX = 10_000
# Staged files lie beside their final place, so that publishing one is a link within the same folder.
_STAGE_PREFIX = ".staged-"


class FileTarget:
    """Objects are files below `root`. Publishing is link(2), which fails where the name exists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._identity: tuple[int, int] | None = None  # the folder's device and inode, once it was used
        # Folders below it whose names this process has synced: no need to, ever again. Shared by all threads.
        self._durable: set[Path] = set()

    @classmethod
    def from_url(cls, url: str) -> FileTarget:
        """The target of a `file://` URL with an absolute path.

        Raises:
            SetupError: another form of URL.
        """
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute() or parts.query or parts.fragment:
            raise SetupError(f"{clean(url)!r} is not a local folder", hint="write file:///absolute/path")
        return cls(path)

    def stage(self, key: str) -> Path:
        folder = self._path(key).parent
        try:
            self._see_root()
            self._durable.update(_make_folders(folder))
            prefix = f"{_STAGE_PREFIX}{key.rpartition('/')[2]}."
            _sweep(folder, prefix)
            handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
        except OSError as e:
            raise TargetUnavailableError(f"cannot write below {self.root}: {e}", hint=_HINT) from e
        os.close(handle)
        return Path(name)

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        path = self._path(key)
        try:
            self._see_root()
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            # Dying here leaves a staged file, which no listing shows and no reader opens.
            try:
                os.link(staged, path)
                created = True
            except FileExistsError:
                created = False
            os.unlink(staged)
            # Dying before this line may lose the name in a power cut; the caller has not been told yet.
            _sync_folder(path.parent)
            self._sync_names(path.parent)
        except OSError as e:
            raise TargetUnavailableError(f"cannot store {path}: {e}", hint=_HINT) from e
        return created

    def _sync_names(self, folder: Path) -> None:
        """The folders above too: a killed run may have made one and not come to syncing its name."""
        if len(self._durable) > _DURABLE_MAX:
            self._durable.clear()
        while folder != self.root:
            if folder not in self._durable:
                _sync_folder(folder.parent)
                self._durable.add(folder)
            folder = folder.parent

    def open(self, key: str) -> BufferedIOBase:
        with self._reading(key):
            return self._path(key).open("rb")

    def stat(self, key: str) -> ObjectInfo:
        with self._reading(key):
            # By far the most called: no Path is made for it.
            return _info(key, os.stat(f"{self._prefix}{key}"))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # In the order of keys, which is not that of paths: "a-b/c" comes before "a/c".
        for key, path in sorted((p.relative_to(self.root).as_posix(), p) for p in self.root.rglob("*")):
            if key.startswith(prefix) and path.is_file() and not path.name.startswith(_STAGE_PREFIX):
                yield _info(key, path.stat())

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            self._see_root()
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync_folder(path.parent)
        except OSError as e:
            raise TargetUnavailableError(f"cannot delete {path}: {e}", hint=_HINT) from e

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def _see_root(self) -> None:
        """The folder must be the one that was used first. If its disk is not mounted any more, another one
        lies there: what is written into that is hidden when the disk comes back, and what is not in it is not
        gone."""
        if self._identity is None:
            _make_folders(self.root)
        found = os.stat(self.root)
        identity = (found.st_dev, found.st_ino)
        if self._identity is None:
            self._identity = identity
        elif self._identity != identity:
            raise TargetUnavailableError(
                f"{self.root} is another folder than before", hint="see whether its disk is mounted"
            )

    def describe(self) -> str:
        return f"folder {self.root}"

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as e:
            raise ArchiveDamageError(
                f"segment {key} is missing from {self.describe()}", key=key, hint="restore it from a backup"
            ) from e
        except OSError as e:
            raise TargetUnavailableError(f"cannot read {key}: {e}", hint=_HINT) from e

    def _path(self, key: str) -> Path:
        assert ".." not in key.split("/"), f"not a key: {key!r}"
        return self.root / key


_HINT = "check that the folder exists, has room, and may be written by this user"


def _sweep(folder: Path, prefix: str) -> None:
    """Remove staged files of killed runs. No run takes a day over one segment."""
    for left in folder.glob(f"{prefix}*"):
        if time.time() - left.stat().st_mtime > 86_400:
            left.unlink(missing_ok=True)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    # ctime too: setting mtime back cannot hide a change.
    version = f"{found.st_dev}.{found.st_ino}.{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}"
    return ObjectInfo(key, found.st_size, version)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and sync each name on the way, so that none is lost in a power cut; those it made."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        _sync_folder(made.parent)
    return missing


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
