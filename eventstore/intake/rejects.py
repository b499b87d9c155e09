"""The rows that an import could not take, with the reason, as lines of JSON in a file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eventstore.errors import InputError, StateError

__all__ = ["Reject", "RejectFile"]

_START = b'{"row":'
_ENCODER = msgspec.json.Encoder(enc_hook=str)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not stored. `data` is the row itself, so that it can be mended and imported again."""

    row: int  # data rows count from 1
    line: int | None  # None: the format has no lines
    column: str | None  # None: the row as a whole
    reason: str
    data: Any

    def to_json(self) -> bytes:
        entry: dict[str, Any] = {"row": self.row}
        if self.line is not None:
            entry["line"] = self.line
        entry["reason"] = self.reason
        if self.column is not None:
            entry["column"] = self.column
        entry["data"] = self.data
        return _ENCODER.encode(entry)


class _Entry(msgspec.Struct):
    row: int
    reason: str


class RejectFile:
    """Append-only, in the order of rows. It exists only while it has entries.

    It may run ahead of what the database has committed, never behind: entries are durable before the
    commit that counts them, and `rewind` drops those of a commit that never came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuse to work on a file that is something else.

        Raises:
            InputError: it is not a reject file.
        """
        try:
            with open(self.path, "rb") as file:
                first = file.readline()
        except FileNotFoundError:
            return
        except OSError as e:
            raise InputError(f"cannot use {self.path} for rejected rows: {e}", hint="choose another") from e
        whole = first.endswith(b"\n")
        # What a kill left of the first entry is no whole line.
        ours = _entry(first) is not None if whole else _START.startswith(first[: len(_START)])
        if not ours:
            raise InputError(
                f"{self.path} exists and is no file of rejected rows",
                hint="name another file for them, or move that one away",
            )

    def rewind(self, rows_read: int) -> int:
        """Keep the entries of rows up to `rows_read`; returns how many they are.

        Raises:
            StateError: the file cannot be written.
        """
        try:
            return self._rewind(rows_read)
        except FileNotFoundError:
            return 0
        except OSError as e:
            raise self._unwritable(e) from e

    def _rewind(self, rows_read: int) -> int:
        kept, end = 0, 0
        with open(self.path, "r+b") as file:
            for line in file:
                entry = _entry(line) if line.endswith(b"\n") else None
                if entry is None or entry.row > rows_read:
                    break
                kept, end = kept + 1, end + len(line)
            file.truncate(end)
            os.fsync(file.fileno())
        if kept == 0:
            self.path.unlink()
            self._sync_folder()
        return kept

    def append(self, rejects: Sequence[Reject]) -> None:
        """When this returns, the entries are durable.

        Raises:
            StateError: they could not be written.
        """
        try:
            fresh = not self.path.exists()
            with open(self.path, "ab") as file:
                for reject in rejects:
                    file.write(reject.to_json() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                self._sync_folder()
        except OSError as e:
            raise self._unwritable(e) from e

    def _unwritable(self, error: OSError) -> StateError:
        return StateError(
            f"cannot write the rejected rows to {self.path}: {error}",
            hint="mend that, or name another file; then run the same import again, it goes on from here",
        )

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _entry(line: bytes) -> _Entry | None:
    try:
        return msgspec.json.decode(line, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
