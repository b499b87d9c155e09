"""The folder of exports that are made in the background: written under a temporary name, and removed when
their time has come.

A file has its own name for each attempt (`BackgroundExport.stored_name`). Whoever writes one has it in its
place, whole and durable, before the export is called ready.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from eventstore.clock import US_PER_S
from eventstore.db.engine import Database
from eventstore.errors import StateError, TooLargeError
from eventstore.governance.export_making import expire_exports, states_of
from eventstore.model.export import SUFFIXES, BackgroundExport, ExportState

__all__ = ["ExportFolder", "Fill"]

_PART = ".part"
_ENDINGS = "|".join(re.escape(suffix) for suffix in SUFFIXES.values())
_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# A bundle is written under a temporary name of its own, beside the one that it is asked for.
_OWN = r"\.part\.[0-9a-f]{8}\.part"
_NAME = re.compile(rf"(\.)?({_ID})\.([1-9][0-9]{{0,8}})\.(?:{_ENDINGS})(?(1){_OWN}|(?:\.part)?)")
_READ_BYTES = 2**20
# So many names are asked of the database at once.
_ASKED_AT_ONCE = 1000
# So much of the disk is left free for others, among them perhaps the store's own database: of a small one, a
# part; looked at each time that so much more is written.
_FREE_BYTES_MIN = 2**30
_FREE_PART_MIN = 20
_ROOM_LOOK_BYTES = 16 * 2**20

# Makes the file of this name, which does not exist yet.
Fill = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class ExportFolder:
    """The folder. A file may have `size_bytes_max` bytes. Nobody but the process's own account may look into
    it. Files of exports of which the database knows nothing, for it is older than they are, go when nobody
    has written them for `unknown_kept_us`; None: they stay."""

    path: Path
    size_bytes_max: int
    unknown_kept_us: int | None = None

    def prepare(self) -> None:
        """Make the folder, if need be.

        Raises:
            OSError: it cannot be made.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path_of(self, export: BackgroundExport) -> Path:
        """Where an export's file lies, if it lies on this machine."""
        return self.path / export.stored_name

    def write(self, export: BackgroundExport, fill: Fill) -> bytes:
        """Put an export's file into its place; its SHA-256. When this returns it is durable. If anything goes
        wrong nothing is left.

        Raises:
            TooLargeError: it is larger than it may be.
            StateError: there is too little room for it.
            OSError: it cannot be written.
        """
        self.prepare()
        self.check_room()
        path = self.path_of(export)
        part = path.with_name(path.name + _PART)
        try:
            fill(part)
            part.chmod(0o600)
            self.check_size(part.stat().st_size)
            digest = _settle(part)
            # Dying here leaves a file that nobody refers to: the next look removes it.
            os.rename(part, path)
            _sync_folder(self.path)
        except BaseException:
            for left in (part, path):
                with suppress(FileNotFoundError):
                    left.unlink()
            raise
        return digest

    def write_pieces(self, part: Path, pieces: Iterable[bytes], look: Callable[[int], None]) -> None:
        """Write a file piece by piece. `look` is told its size after each, and may raise.

        Raises:
            TooLargeError: it is larger than it may be.
            StateError: there is too little room for it.
            OSError: it cannot be written.
        """
        size_bytes = looked_bytes = 0
        with _create(part) as file:
            for piece in pieces:
                file.write(piece)
                size_bytes += len(piece)
                self.check_size(size_bytes)
                if size_bytes - looked_bytes >= _ROOM_LOOK_BYTES:
                    looked_bytes = size_bytes
                    self.check_room()
                look(size_bytes)

    def written_bytes(self, part: Path) -> int:
        """How much of a file there is by now, also if it is written under a temporary name of its own."""
        size_bytes = 0
        for entry in os.scandir(self.path):
            if entry.name == part.name or entry.name.startswith(f".{part.name}."):
                with suppress(FileNotFoundError):  # it was renamed just now
                    size_bytes += entry.stat(follow_symlinks=False).st_size
        return size_bytes

    def check_room(self) -> None:
        """
        Raises:
            StateError: so little room is left on the disk that what is there belongs to others.
        """
        disk = shutil.disk_usage(self.path)
        if disk.free < min(_FREE_BYTES_MIN, disk.total // _FREE_PART_MIN):
            raise StateError(
                "too little room is left on the disk on which exports are put",
                hint="ask whoever runs the store for room, or narrow the times",
            )

    def check_size(self, size_bytes: int) -> None:
        """
        Raises:
            TooLargeError: a file is larger than it may be.
        """
        if size_bytes > self.size_bytes_max:
            raise TooLargeError(
                f"the file would be larger than {self.size_bytes_max} bytes",
                limit_bytes=self.size_bytes_max,
                hint="narrow the times or name an entity; or ask for Parquet, which is smaller",
            )

    def remove(self, export: BackgroundExport) -> None:
        """Remove an export's file, if it lies here."""
        with suppress(FileNotFoundError):
            self.path_of(export).unlink()

    def sweep(self, database: Database, *, tenant_id: str | None = None) -> list[str]:
        """End the exports whose time has come, and all of a tenant that is offboarded, and remove the files
        of those that have ended, with what processes that died have left; the names that went. A file whose
        name is not exactly that of an export stays."""
        expire_exports(database, tenant_id=tenant_id)
        found: dict[str, tuple[UUID, int, bool]] = {}
        unknown_before_s = float("-inf")
        if self.unknown_kept_us is not None:
            unknown_before_s = time.time() - self.unknown_kept_us / US_PER_S
        old: set[str] = set()
        with suppress(FileNotFoundError):  # no export was ever made on this machine
            for entry in os.scandir(self.path):
                match = _NAME.fullmatch(entry.name)
                if match is not None and entry.is_file(follow_symlinks=False):
                    found[entry.name] = UUID(match[2]), int(match[3]), entry.name.endswith(_PART)
                    with suppress(FileNotFoundError):  # it has gone since
                        if entry.stat(follow_symlinks=False).st_mtime < unknown_before_s:
                            old.add(entry.name)
        ids = sorted({export_id for export_id, _, _ in found.values()})
        states: dict[UUID, tuple[ExportState, int]] = {}
        for start in range(0, len(ids), _ASKED_AT_ONCE):
            states |= states_of(database, ids[start : start + _ASKED_AT_ONCE])
        removed = []
        for name, (export_id, attempt, is_part) in found.items():
            known = states.get(export_id)
            if name in old if known is None else not _is_wanted(*known, attempt, is_part=is_part):
                with suppress(FileNotFoundError):
                    (self.path / name).unlink()
                    removed.append(name)
        return removed


def _is_wanted(state: ExportState, newest: int, attempt: int, *, is_part: bool) -> bool:
    if attempt != newest:
        return False
    return state is ExportState.MAKING or (state is ExportState.READY and not is_part)


def _create(part: Path) -> io.BufferedWriter:
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "wb")


def _settle(part: Path) -> bytes:
    """Make a file durable; its SHA-256, of what is read back."""
    digest = hashlib.sha256()
    with part.open("rb") as file:
        os.fsync(file.fileno())
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.digest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
