"""How far an outbox has come: two numbers in a small file that is only ever overwritten in place.

The file has two slots of a block each, written in turn, so that a torn write leaves the other whole. It needs
no new room, so the cursor moves, and files can be pruned, on a disk that is full.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

__all__ = ["Cursor", "CursorFile", "sync_folder"]

_SLOT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Cursor:
    """Events up to `acknowledged` are stored. Those behind it up to `marked` may have been sent, and nobody
    knows yet whether they were stored."""

    acknowledged: int
    marked: int

    @property
    def in_doubt(self) -> bool:
        return self.marked > self.acknowledged


class _Slot(msgspec.Struct):
    write_no: int
    acknowledged: int
    marked: int
    crc: int = 0


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class CursorFile:
    """The file, held open by the outbox's owner."""

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self._fsync = fsync
        new = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self._fd).st_size < 2 * _SLOT_BYTES:
            # The room for all writes to come.
            _write_at(self._fd, b" " * (2 * _SLOT_BYTES), 0)
            os.fsync(self._fd)
        if new:
            sync_folder(path.parent)
        found = [slot for number in (0, 1) if (slot := self._read(number)) is not None]
        newest = max(found, key=lambda slot: slot.write_no, default=None)
        self._write_no = 0 if newest is None else newest.write_no
        # What was read; None: there is no cursor, or none that can be read.
        self.value = None if newest is None else Cursor(newest.acknowledged, newest.marked)

    def write(self, value: Cursor) -> None:
        """Durable when this returns; the former value stands if it raises OSError."""
        number = self._write_no + 1
        slot = _Slot(number, value.acknowledged, value.marked)
        slot.crc = _crc(slot)
        data = msgspec.json.encode(slot).ljust(_SLOT_BYTES - 1) + b"\n"
        _write_at(self._fd, data, number % 2 * _SLOT_BYTES)
        if self._fsync:
            os.fdatasync(self._fd)
        self._write_no, self.value = number, value

    def close(self) -> None:
        os.close(self._fd)

    def _read(self, number: int) -> _Slot | None:
        data = os.pread(self._fd, _SLOT_BYTES, number * _SLOT_BYTES)
        try:
            slot = msgspec.json.decode(data, type=_Slot)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return slot if slot.crc == _crc(slot) else None


def _crc(slot: _Slot) -> int:
    return zlib.crc32(f"{slot.write_no} {slot.acknowledged} {slot.marked}".encode())


def _write_at(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
