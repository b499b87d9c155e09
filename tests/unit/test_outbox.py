"""The outbox: numbers, rolling, recovery, pruning, the cursor, and a disk that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore.client import cursor as cursor_module
from eventstore.client import outbox as outbox_module
from eventstore.client.cursor import Cursor, CursorFile
from eventstore.client.outbox import Outbox, read_outbox
from eventstore.errors import BusyError, IntegrityError


def line(n: int, filler: int = 0) -> bytes:
    return b'{"event_id":"e%d","x":"%s"}\n' % (n, b"x" * filler)


def lines(first: int, last: int) -> list[bytes]:
    return [line(n) for n in range(first, last + 1)]


def held(folder: Path) -> list[tuple[int, bytes]]:
    return list(read_outbox(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def outbox(folder: Path) -> Iterator[Outbox]:
    opened = Outbox(folder, roll_bytes=100)
    yield opened
    opened.close()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("events-*"))


def test_files_are_named_by_their_first_number_and_rolled_by_size(outbox: Outbox, folder: Path) -> None:
    for n in range(1, 8):
        outbox.append([line(n, 10)])
    per_file = 100 // len(line(1, 10))
    assert names(folder) == [f"events-{n:020d}.jsonl" for n in range(1, 8, per_file)]
    assert held(folder) == [(n, line(n, 10)) for n in range(1, 8)]
    assert outbox.last == 7
    assert outbox.size_bytes == sum(path.stat().st_size for path in folder.glob("events-*"))


def test_numbers_go_on_after_reopening_even_when_everything_was_pruned(folder: Path) -> None:
    box = Outbox(folder, roll_bytes=100)
    for n in range(1, 8):
        box.append([line(n, 10)])
    box.move(Cursor(7, 7))
    box.close()
    assert len(names(folder)) == 1
    (folder / names(folder)[0]).unlink()
    again = Outbox(folder)
    again.append([line(8)])
    assert held(folder) == [(8, line(8))]
    assert again.cursor == Cursor(7, 7)
    again.close()


def test_what_was_marked_and_lost_with_the_files_is_marked_no_longer(folder: Path) -> None:
    box = Outbox(folder)
    box.append(lines(1, 9))
    box.move(Cursor(5, 9))
    box.close()
    (folder / names(folder)[0]).write_bytes(b"".join(lines(1, 3)))
    again = Outbox(folder)
    assert (again.last, again.cursor) == (5, Cursor(5, 5))
    again.append([line(6)])
    again.move(Cursor(6, 6))
    again.close()


def test_a_batch_is_read_from_where_the_last_one_ended(outbox: Outbox) -> None:
    outbox.append(lines(1, 3))
    outbox.append(lines(4, 6))
    assert outbox.read(1, count_max=2, bytes_max=10**6) == lines(1, 2)
    assert outbox.read(3, count_max=10, bytes_max=10**6) == [line(3)], "a batch ends with its file"
    assert outbox.read(4, count_max=10, bytes_max=10**6) == lines(4, 6)
    assert outbox.read(2, count_max=10, bytes_max=10**6) == lines(2, 3)
    assert outbox.read(4, count_max=10, bytes_max=1) == [line(4)], "one at least"
    assert outbox.read(7, count_max=10, bytes_max=10**6) == []


def test_a_second_owner_is_told_who_the_first_is(outbox: Outbox, folder: Path) -> None:
    with pytest.raises(BusyError, match=str(os.getpid())):
        Outbox(folder)


def test_a_reader_takes_no_lock_and_no_torn_line(outbox: Outbox, folder: Path) -> None:
    outbox.append(lines(1, 2))
    with (folder / names(folder)[0]).open("ab") as file:
        file.write(line(3)[:-1])
    assert held(folder) == [(1, line(1)), (2, line(2))]


# --- recovery -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    acknowledged=st.integers(0, 8),
    marked=st.integers(0, 8),
)
def test_cut_at_every_byte_of_its_last_file_it_keeps_every_whole_event(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], acknowledged: int, marked: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    written = [line(n, size) for n, size in enumerate(sizes, 1)]
    box = Outbox(folder, roll_bytes=120, fsync=False)
    for data in written:
        box.append([data])
    stored = min(acknowledged, len(written))
    box.move(Cursor(stored, min(max(stored, marked), len(written))))
    box.close()
    name = names(folder)[-1]
    data = (folder / name).read_bytes()
    first = int(name[7:27])
    kept_before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for length in range(len(data), -1, -1):
        for other in folder.iterdir():
            other.unlink()
        for other_name, content in kept_before.items():
            (folder / other_name).write_bytes(content)
        (folder / name).write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        box = Outbox(folder, roll_bytes=120, fsync=False)
        last = first + whole - 1
        assert box.last == max(last, stored)
        assert box.cursor.acknowledged == stored
        assert stored <= box.cursor.marked <= box.last
        unsent = box.read(stored + 1, count_max=100, bytes_max=10**6)
        assert unsent == written[stored : stored + len(unsent)]
        box.append([line(99)])
        box.close()
        found = held(folder)
        assert found[-1] == (max(last, stored) + 1, line(99))
        wanted = dict(enumerate(written[:last], 1))
        assert {n: data for n, data in found[:-1] if n > stored} == {
            n: data for n, data in wanted.items() if n > stored
        }


def test_what_is_no_torn_line_is_kept_aside(folder: Path) -> None:
    box = Outbox(folder)
    box.append(lines(1, 2))
    box.close()
    path = folder / names(folder)[0]
    path.write_bytes(line(1) + b"\0\0\n" + line(3))
    box = Outbox(folder)
    assert box.last == 1
    box.close()
    (aside,) = folder.glob("*.torn-*")
    assert aside.read_bytes() == b"\0\0\n" + line(3)


def test_a_damaged_or_missing_file_among_others_is_an_error(folder: Path) -> None:
    box = Outbox(folder, roll_bytes=10)
    for n in (1, 2, 3):
        box.append([line(n)])
    box.close()
    middle = folder / names(folder)[1]
    middle.write_bytes(line(2)[:-3])
    with pytest.raises(IntegrityError, match="is damaged at byte 0"):
        Outbox(folder)
    middle.unlink()
    with pytest.raises(IntegrityError, match="is damaged"):
        Outbox(folder)
    middle.write_bytes(line(2))
    (folder / names(folder)[0]).unlink()
    with pytest.raises(IntegrityError, match="1 to 1 were recorded"):
        Outbox(folder)


def test_without_a_cursor_everything_is_in_doubt(folder: Path) -> None:
    box = Outbox(folder)
    box.append(lines(1, 5))
    box.move(Cursor(2, 2))
    box.close()
    (folder / "cursor.json").unlink()
    box = Outbox(folder)
    assert box.cursor == Cursor(0, 5)
    box.close()


# --- the cursor -----------------------------------------------------------------------------------------


def test_a_torn_write_of_the_cursor_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"
    file = CursorFile(path)
    for n in range(1, 4):
        file.write(Cursor(n, n + 1))
    file.close()
    data = path.read_bytes()
    assert len(data) == 8192
    # The third write went into the second slot; tear it at every byte of what it wrote.
    end = data.rindex(b"}") + 1
    assert end > 4096
    assert CursorFile(path).value == Cursor(3, 4)
    for length in range(4096, end):
        path.write_bytes(data[:length] + b" " * (8192 - length))
        assert CursorFile(path).value == Cursor(2, 3), length


def test_the_cursor_moves_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(folder, roll_bytes=10)
    for n in (1, 2, 3):
        box.append([line(n)])
    size = (folder / "cursor.json").stat().st_size

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(outbox_module, "_write_all", full)
    box.move(Cursor(3, 3))
    assert (folder / "cursor.json").stat().st_size == size
    assert len(names(folder)) == 1
    box.close()


def test_a_short_write_of_the_cursor_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CursorFile(tmp_path / "cursor.json")
    whole = os.pwrite
    monkeypatch.setattr(cursor_module.os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    file.write(Cursor(1, 1))
    file.close()
    assert CursorFile(tmp_path / "cursor.json").value == Cursor(1, 1)


# --- a disk that fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 5, 40])
def test_a_write_that_fails_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """Also when a part of it was written: the next event begins a new file."""
    box = Outbox(folder)
    box.append(lines(1, 2))
    room = [taken]
    write = os.write

    def short(fd: int, data: Any) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "no space left")
        written = write(fd, bytes(data)[: min(room[0], 7)])
        room[0] -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(outbox_module.os, "write", short)
        with pytest.raises(OSError, match="no space"):
            box.append(lines(3, 5))
        assert box.last == 2
        assert (folder / names(folder)[0]).read_bytes() == b"".join(lines(1, 2))
        room[0] = 10**6
        box.append([line(6)])  # short writes are gone on with
    assert held(folder) == [(1, line(1)), (2, line(2)), (3, line(6))]
    box.close()
    again = Outbox(folder)
    assert again.read(1, count_max=9, bytes_max=10**6) == lines(1, 2)
    assert again.read(3, count_max=9, bytes_max=10**6) == [line(6)]
    again.close()


def test_a_sync_that_fails_and_a_cut_that_fails_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(folder)
    box.append([line(1)])

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(outbox_module.os, "fdatasync", broken)
        patched.setattr(outbox_module.os, "ftruncate", broken)
        with pytest.raises(OSError, match="broken"):
            box.append([line(2)])
    box.append([line(3)])
    box.close()
    # The given-up event still lies in the first file; the second one's name says that it does not count.
    assert (folder / names(folder)[0]).read_bytes() == line(1) + line(2)
    assert held(folder) == [(1, line(1)), (2, line(3))]
    again = Outbox(folder)
    assert (again.last, again.read(2, count_max=9, bytes_max=10**6)) == (2, [line(3)])
    again.close()


def test_an_event_is_put_aside_once_with_its_reason(outbox: Outbox, folder: Path) -> None:
    outbox.append(lines(1, 3))
    for _ in range(2):
        outbox.reject(2, line(2), {"code": "invalid-event"})
    path = folder / f"rejected-{1:020d}.jsonl"
    with path.open("ab") as file:
        file.write(b'{"number":3,"rea')  # the process died here
    outbox.reject(3, line(3), {"code": "too-large"})
    found = [msgspec.json.decode(entry) for entry in path.read_bytes().splitlines()]
    assert [(f["number"], f["reason"]["code"], f["event"]["event_id"]) for f in found] == [
        (2, "invalid-event", "e2"),
        (3, "too-large", "e3"),
    ]
    assert outbox.rejected() == 2
    before = outbox.size_bytes
    size = path.stat().st_size
    path.unlink()
    outbox.count_rejected()
    assert outbox.size_bytes == before - size
