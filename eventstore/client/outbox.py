"""A durable outbox: a folder of JSONL files from which one sender takes events in order.

    events-00000000000000000001.jsonl    an event a line, as it will be sent; the name numbers the first
    cursor.json                          how far the store has acknowledged them
    rejected-00000000000000000001.jsonl  what the store will never take, each with the reason
    outbox.lock                          locked by the owner

The numbers are the outbox's own. One process owns it; whoever only reads takes no lock. What is read here
never rests on what was not yet made durable: a file is followed up to where its last group was synced.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import msgspec

from eventstore.client.cursor import Cursor, CursorFile, sync_folder
from eventstore.errors import BusyError, IntegrityError

__all__ = ["ROLL_BYTES", "Outbox", "read_outbox"]

ROLL_BYTES = 8 * 2**20
_log = logging.getLogger(__name__)


class _Line(msgspec.Struct):
    """What is looked at to know a whole line from a torn one."""

    event_id: str


_LINE = msgspec.json.Decoder(_Line)


def _files(folder: Path, kind: str = "events") -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob(f"{kind}-*.jsonl"):
        digits = path.stem.removeprefix(f"{kind}-")
        if len(digits) == 20 and digits.isdigit():
            found.append((int(digits), path))
    return sorted(found)


def _whole(line: bytes) -> bool:
    try:
        _LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return line.endswith(b"\n")


def read_outbox(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Each event that lies in an outbox: its number, and its line. Takes no lock; a torn end is not given,
    nor what is pruned meanwhile."""
    files = _files(folder)
    for place, (start, path) in enumerate(files):
        end = files[place + 1][0] if place + 1 < len(files) else None
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        for number, line in enumerate(data.splitlines(keepends=True), start):
            if number == end or not _whole(line):
                break
            yield number, line


class Outbox:
    """The owner's side. `append` is called by one thread, everything else by one other.

    Raises (on opening):
        BusyError: another process owns it.
        IntegrityError: recorded events are missing from its files.
    """

    def __init__(self, folder: Path, *, roll_bytes: int = ROLL_BYTES, fsync: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._roll_bytes = roll_bytes
        self._fsync = fsync
        self._lock = threading.Lock()  # over the list of files, sizes and the last number
        self._fd = -1
        self._fresh = False  # the next write begins a new file
        self._places: list[
            tuple[int, int, int]
        ] = []  # numbers, each with its file's first and its offset there
        self._owned = _own(folder)
        try:
            self._cursor = CursorFile(folder / "cursor.json", fsync=fsync)
            self._recover()
        except BaseException:
            os.close(self._owned)
            raise

    # --- opening ----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []
        files = _files(self.folder)
        last = 0
        for (start, path), following in zip_longest(files, files[1:]):
            if self._starts and start != last + 1:
                raise self._missing(last + 1, start - 1)
            size, count = _recover_file(
                path, start, None if following is None else following[0], fsync=self._fsync
            )
            last = start + count - 1
            self._starts.append(start)
            self._sizes.append(size)
        known = self._cursor.value
        if known is None:
            # No cursor: whatever lies here may or may not be stored, so each is asked for.
            first = self._starts[0] if self._starts else 1
            known = Cursor(first - 1, last)
            self._cursor.write(known)
        elif self._starts and self._starts[0] > known.acknowledged + 1:
            raise self._missing(known.acknowledged + 1, self._starts[0] - 1)
        elif last < known.acknowledged:
            # Without syncs a machine's crash can take the end; all of it is stored.
            for _, path in files:
                path.unlink()
            self._starts, self._sizes, last = [], [], known.acknowledged
            # What was marked behind it went, too, and its numbers are given anew.
            self._cursor.write(Cursor(last, last))
        elif last < known.marked:
            _log.warning(
                "%s: the events %d to %d were about to be sent, and are lost",
                self.folder,
                last + 1,
                known.marked,
            )
            self._cursor.write(Cursor(known.acknowledged, last))
        self._last = last
        self.count_rejected()
        self._fresh = not self._starts
        if self._starts:
            self._fd = os.open(self._path(self._starts[-1]), os.O_WRONLY | os.O_APPEND)
        self.prune()

    def _missing(self, first: int, last: int) -> IntegrityError:
        return IntegrityError(
            f"{self.folder}: the events {first} to {last} were recorded, and are in no file",
            hint="put the missing file back; or, to go on without them, remove cursor.json",
        )

    # --- writing: one thread ------------------------------------------------------------------------------

    def append(self, lines: Sequence[bytes]) -> None:
        """Add events; durable, and numbered in this order, when this returns.

        Raises:
            OSError: nothing of them was kept.
        """
        data = b"".join(lines)
        size = self._sizes[-1] if self._starts else 0
        if self._fresh or (size and size + len(data) > self._roll_bytes):
            self._roll()
            size = 0
        try:
            _write_all(self._fd, data)
            if self._fsync:
                os.fdatasync(self._fd)
        except OSError:
            # Cut back to what is known to be good. After a failed sync nobody knows what the disk has of this
            # file's end, so it gets no more; should the cut not last, the next file's name says where it
            # ends.
            self._fresh = True
            os.ftruncate(self._fd, size)
            raise
        with self._lock:
            self._sizes[-1] = size + len(data)
            self._last += len(lines)

    def _roll(self) -> None:
        start = self._last + 1
        # Under that name there can only be what an earlier attempt left: no event of that number is durable.
        fd = os.open(self._path(start), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            if self._fsync:
                sync_folder(self.folder)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._fresh = fd, False
        with self._lock:
            if self._starts and self._starts[-1] == start:
                self._sizes[-1] = 0
            else:
                self._starts.append(start)
                self._sizes.append(0)

    # --- reading and acknowledging: another thread --------------------------------------------------------

    @property
    def last(self) -> int:
        """The number of the last durable event; 0 where none ever was."""
        return self._last

    @property
    def cursor(self) -> Cursor:
        assert self._cursor.value is not None
        return self._cursor.value

    @property
    def size_bytes(self) -> int:
        """What its files take: events not pruned yet, and rejected ones."""
        with self._lock:
            return sum(self._sizes) + self._rejected_bytes

    def read(self, first: int, *, count_max: int, bytes_max: int) -> list[bytes]:
        """Lines from one number on: at least one if there is one, at most so many, all from one file."""
        with self._lock:
            index = bisect_right(self._starts, first) - 1
            if index < 0 or first > self._last:
                return []
            start, size = self._starts[index], self._sizes[index]
            after = self._starts[index + 1] if index + 1 < len(self._starts) else self._last + 1
        count_max = min(count_max, after - first)
        known = [(n, offset) for n, of, offset in self._places if of == start and n <= first]
        number, offset = max(known, default=(start, 0))
        lines: list[bytes] = []
        taken = 0
        with self._path(start).open("rb") as file:
            file.seek(offset)
            for _ in range(number, first):
                offset += len(file.readline())
            while len(lines) < count_max and offset + taken < size:
                line = file.readline()
                if lines and taken + len(line) > bytes_max:
                    break
                lines.append(line)
                taken += len(line)
        # It is asked for these again, or for what follows.
        self._places = [(first, start, offset), (first + len(lines), start, offset + taken)]
        return lines

    def move(self, cursor: Cursor) -> None:
        """Set the cursor; durable when this returns.

        Raises:
            OSError: the former one stands.
        """
        assert self.cursor.acknowledged <= cursor.acknowledged <= cursor.marked <= self._last
        if cursor != self.cursor:
            self._cursor.write(cursor)
            self.prune()

    def prune(self) -> None:
        """Remove files whose events are all acknowledged, but the last."""
        acknowledged = self.cursor.acknowledged
        while len(self._starts) > 1 and self._starts[1] <= acknowledged + 1:
            # The cursor is durable: a file that comes back after a crash is pruned when the outbox opens.
            self._path(self._starts[0]).unlink(missing_ok=True)
            with self._lock:
                del self._starts[0], self._sizes[0]

    def reject(self, number: int, line: bytes, reason: dict[str, object]) -> None:
        """Put an event aside, with why; durable when this returns. Putting it aside again changes nothing."""
        with self._lock:
            start = self._starts[bisect_right(self._starts, number) - 1]
        path = self.folder / f"rejected-{start:020d}.jsonl"
        entry = msgspec.json.encode(
            {"number": number, "reason": reason, "event": msgspec.Raw(line.rstrip(b"\n"))}
        )
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            data = _read_all(fd)
            whole = data[: data.rfind(b"\n") + 1]
            if any(kept.startswith(b'{"number":%d,' % number) for kept in whole.splitlines()):
                return
            os.ftruncate(fd, len(whole))
            try:
                _write_all(fd, entry + b"\n")
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, len(whole))
                raise
        finally:
            os.close(fd)
        sync_folder(self.folder)
        with self._lock:
            self._rejected_bytes += len(entry) + 1

    def rejected(self) -> int:
        """How many events lie aside."""
        return sum(path.read_bytes().count(b"\n") for _, path in _files(self.folder, "rejected"))

    def count_rejected(self) -> None:
        """See anew what the rejected events take: whoever has looked at them removes them."""
        size_bytes = 0
        with self._lock:
            for _, path in _files(self.folder, "rejected"):
                with suppress(FileNotFoundError):  # removed just now
                    size_bytes += path.stat().st_size
            self._rejected_bytes = size_bytes

    def close(self) -> None:
        """Let go of it; what it holds stays for the next owner."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._cursor.close()
        os.close(self._owned)

    def _path(self, start: int) -> Path:
        return self.folder / f"events-{start:020d}.jsonl"


def _own(folder: Path) -> int:
    fd = os.open(folder / "outbox.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise BusyError(
            f"the outbox {folder} belongs to another recorder (process {owner})",
            hint="give each process a folder of its own",
        ) from e
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _recover_file(path: Path, start: int, following: int | None, *, fsync: bool) -> tuple[int, int]:
    """The bytes and events of a file that count; a torn end is cut off the last one.

    Raises:
        IntegrityError: it has fewer events than the next file's name says.
    """
    data = path.read_bytes()
    size = count = 0
    wanted = None if following is None else following - start
    for line in data.splitlines(keepends=True):
        if count == wanted or not _whole(line):
            break
        size += len(line)
        count += 1
    if wanted is not None:
        if count < wanted:
            raise IntegrityError(
                f"{path} is damaged at byte {size}: of its {wanted} events {count} can be read",
                hint="put a good copy of the file in its place",
            )
        return size, count
    torn = data[size:]
    if torn:
        if b"\n" in torn:
            # More than a line: a machine that stopped while a group was written, and none of whose events was
            # promised; or damage. Nobody can tell, so it is kept.
            aside = path.with_suffix(f".torn-{size}")
            aside.touch(0o600)
            aside.write_bytes(torn)
            _log.warning(
                "%s: %d bytes from byte %d on are no events; kept in %s", path, len(torn), size, aside
            )
        with path.open("r+b") as file:
            file.truncate(size)
            if fsync:
                os.fsync(file.fileno())
    return size, count


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_all(fd: int) -> bytes:
    size, parts, offset = os.fstat(fd).st_size, [], 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
