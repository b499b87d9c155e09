"""The cache of remote segments: bounded, never wrong, shared by threads and by processes."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase, BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.archive import cache as cache_module
from eventstore.archive.cache import SegmentCache
from eventstore.errors import ArchiveDamageError, BusyError, TargetUnavailableError
from eventstore.model.segment import Segment, SegmentRange
from eventstore.model.window import Window
from tests.property.strategies import examples

DEADLINE_S = 30.0


def content_of(number: int, size_bytes: int = 1000) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def segment_of(number: int, content: bytes, target: str = "far") -> Segment:
    return Segment(
        range=SegmentRange("acme", Window(0, 1), 0, number, number, bytes(32), bytes(32)),
        key=f"k{number}",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
        min_recorded_at_us=0,
        max_recorded_at_us=0,
        target=target,
    )


class Remote:
    """Objects by target and key, as a target has them; counts how often each is opened."""

    def __init__(self, *contents: bytes) -> None:
        self.segments = [segment_of(number, content) for number, content in enumerate(contents)]
        self.objects = {("far", f"k{number}"): content for number, content in enumerate(contents)}
        self.opened: list[str] = []
        self.before_open: Callable[[Segment], None] = lambda segment: None

    def __call__(self, segment: Segment) -> BufferedIOBase:
        self.opened.append(segment.key)
        self.before_open(segment)
        found = self.objects.get((segment.target, segment.key))
        if found is None:
            raise ArchiveDamageError(f"{segment.key} is missing", key=segment.key)
        return BytesIO(found)


def contents(cache: SegmentCache, remote: Remote, segments: Sequence[Segment]) -> list[bytes]:
    with cache.pinned(segments, remote) as paths:
        return [Path(path).read_bytes() for path in paths]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def test_a_segment_is_fetched_once(tmp_path: Path) -> None:
    remote = Remote(content_of(0), content_of(1), b"")
    cache = SegmentCache(tmp_path / "a" / "cache", size_bytes_max=10_000)
    assert not cache.has(remote.segments[0])
    for _ in range(3):
        assert contents(cache, remote, remote.segments) == [content_of(0), content_of(1), b""]
    assert sorted(remote.opened) == ["k0", "k1", "k2"]
    assert cache.has(remote.segments[0])
    assert cache.is_known(remote.segments[0])
    assert [p.name for p in files(tmp_path / "a" / "cache")] == sorted(
        f"{s.sha256.hex()}.parquet" for s in remote.segments
    )
    # One segment asked for twice, or found in two targets, is one file.
    twice = [remote.segments[0], segment_of(0, content_of(0), "near"), remote.segments[0]]
    assert contents(cache, remote, twice) == [content_of(0)] * 3
    assert len(remote.opened) == 3


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    remote = Remote(*(content_of(n) for n in range(4)))
    cache = SegmentCache(tmp_path, size_bytes_max=3000)
    a, b, c, d = remote.segments
    for segment in (a, b, c, a, d):
        contents(cache, remote, [segment])
        assert size_of(tmp_path) <= 3000
    assert [cache.has(s) for s in (a, b, c, d)] == [True, False, True, True]
    assert remote.opened == ["k0", "k1", "k2", "k3"]
    contents(cache, remote, [b])
    assert [cache.has(s) for s in (a, b, c, d)] == [True, True, False, True]


@examples(40)
@given(data=st.data())
def test_any_use_is_right_and_bounded(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against a model: an ordered list of what was used, oldest first."""
    folder = tmp_path_factory.mktemp("cache")
    sizes = data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=8))
    most = data.draw(st.integers(100, 1500))
    remote = Remote(*(n.to_bytes(2, "big") + bytes(size) for n, size in enumerate(sizes)))
    cache = SegmentCache(folder, size_bytes_max=most)
    numbers = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3)
    for asked in data.draw(st.lists(numbers, max_size=12)):
        wanted = [remote.segments[n] for n in asked]
        if data.draw(st.integers(0, 9)) == 0:
            cache = SegmentCache(folder, size_bytes_max=most)  # a new process
        with cache.pinned(wanted, remote) as paths:
            assert [Path(p).read_bytes() for p in paths] == [remote.objects["far", s.key] for s in wanted]
            pinned = sum(s.size_bytes for s in set(wanted))
            assert size_of(folder) <= max(most, pinned)
        assert size_of(folder) <= most


def test_a_segment_larger_than_the_bound_is_served_and_then_goes(tmp_path: Path) -> None:
    remote = Remote(content_of(0, 5000), content_of(1))
    cache = SegmentCache(tmp_path, size_bytes_max=3000)
    contents(cache, remote, [remote.segments[1]])
    assert contents(cache, remote, [remote.segments[0]]) == [content_of(0, 5000)]
    assert files(tmp_path) == []


def test_nothing_in_use_is_evicted(tmp_path: Path) -> None:
    remote = Remote(*(content_of(n) for n in range(5)))
    cache = SegmentCache(tmp_path, size_bytes_max=2500)
    with cache.pinned(remote.segments[:2], remote) as paths:
        for segment in remote.segments[2:]:
            contents(cache, remote, [segment])
        assert [Path(path).read_bytes() for path in paths] == [content_of(0), content_of(1)]
        with cache.pinned(remote.segments[:1], remote):
            pass  # pinned twice: still in use when one of them ends
        contents(cache, remote, remote.segments[2:])
        assert [Path(path).read_bytes() for path in paths] == [content_of(0), content_of(1)]
    assert size_of(tmp_path) <= 2500
    contents(cache, remote, remote.segments[3:])
    assert [cache.has(s) for s in remote.segments] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: data * 3_000,
    ],
    ids=["a bit", "cut short", "too long", "empty", "very long"],
)
def test_damage_is_named_and_nothing_of_it_is_kept(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    remote = Remote(content_of(0), content_of(1))
    remote.objects["far", "k0"] = damage(content_of(0))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    for _ in range(2):
        with pytest.raises(ArchiveDamageError, match="k0 in target far") as caught:
            contents(cache, remote, [remote.segments[0]])
        assert caught.value.key == "k0"
        assert files(tmp_path) == []
    assert contents(cache, remote, remote.segments[1:]) == [content_of(1)]
    remote.objects["far", "k0"] = content_of(0)  # repaired
    assert contents(cache, remote, remote.segments) == [content_of(0), content_of(1)]


def test_a_missing_object_and_a_target_that_goes_away(tmp_path: Path) -> None:
    class Breaking(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise ConnectionResetError("reset by peer")
            return super().read(100)

    remote = Remote(content_of(0))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    breaking = cache.pinned(remote.segments, lambda segment: Breaking(content_of(0)))
    with pytest.raises(TargetUnavailableError, match=r"k0 from far.*reset by peer"), breaking:
        pass
    del remote.objects["far", "k0"]
    with pytest.raises(ArchiveDamageError, match="missing"):
        contents(cache, remote, remote.segments)
    assert files(tmp_path) == []


def test_of_an_object_without_an_end_no_more_than_its_size_is_read(tmp_path: Path) -> None:
    class Endless(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 < size <= 2**20
            return bytes(size)

    remote = Remote(content_of(0))
    endless = SegmentCache(tmp_path, size_bytes_max=10_000).pinned(remote.segments, lambda _: Endless())
    with pytest.raises(ArchiveDamageError, match="it has more bytes"), endless:
        pass
    assert files(tmp_path) == []


def test_a_file_that_was_changed_on_the_disk_is_fetched_anew(tmp_path: Path) -> None:
    remote = Remote(content_of(0))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    contents(cache, remote, remote.segments)
    (path,) = files(tmp_path)
    for other in (None, cache):  # in the same process, and found by a new one
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(700)
            file.write(b"!")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
        cache = other or SegmentCache(tmp_path, size_bytes_max=10_000)
        assert contents(cache, remote, remote.segments) == [content_of(0)]
    assert remote.opened == ["k0"] * 3
    path.unlink()
    assert contents(cache, remote, remote.segments) == [content_of(0)]


def test_a_new_process_digests_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(content_of(0))
    contents(SegmentCache(tmp_path, size_bytes_max=10_000), remote, remote.segments)
    digested: list[str] = []
    file_digest = hashlib.file_digest

    def counting(file: BufferedIOBase, name: str) -> object:
        digested.append(name)
        return file_digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    assert not cache.is_known(remote.segments[0])
    for _ in range(3):
        assert contents(cache, remote, remote.segments) == [content_of(0)]
    assert (digested, remote.opened) == (["sha256"], ["k0"])


def test_threads_share_one_download(tmp_path: Path) -> None:
    remote = Remote(content_of(0))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    started = threading.Barrier(8)
    begun, go_on = threading.Event(), threading.Event()

    def hold(segment: Segment) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    def read() -> list[bytes]:
        started.wait(DEADLINE_S)
        return contents(cache, remote, remote.segments)

    remote.before_open = hold
    with ThreadPoolExecutor(8) as executor:
        futures = [executor.submit(read) for _ in range(8)]
        assert begun.wait(DEADLINE_S)
        time.sleep(0.05)
        go_on.set()
        assert all(future.result(DEADLINE_S) == [content_of(0)] for future in futures)
    assert remote.opened == ["k0"]


def test_the_failure_of_one_place_is_not_that_of_another(tmp_path: Path) -> None:
    """A segment that has just moved: who waits for its download from the former place tries the new one."""
    remote = Remote(content_of(0))
    moved = segment_of(0, content_of(0), "near")
    remote.objects = {("near", "k0"): content_of(0)}
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    begun, go_on = threading.Event(), threading.Event()

    def hold(segment: Segment) -> None:
        if segment.target == "far":
            begun.set()
            assert go_on.wait(DEADLINE_S)

    remote.before_open = hold
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(contents, cache, remote, remote.segments)
        assert begun.wait(DEADLINE_S)
        second = executor.submit(contents, cache, remote, [moved])
        time.sleep(0.05)
        go_on.set()
        assert isinstance(first.exception(DEADLINE_S), ArchiveDamageError)
        assert second.result(DEADLINE_S) == [content_of(0)]


def test_downloads_at_once_are_bounded(tmp_path: Path) -> None:
    remote = Remote(*(content_of(n, 10) for n in range(40)))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000, downloads_max=3)
    lock, now, most = threading.Lock(), 0, 0

    def count(segment: Segment) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    remote.before_open = count
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda n: contents(cache, remote, remote.segments[n::4]), range(4)))
    assert most == 3
    assert len(remote.opened) == 40


def test_after_a_failure_the_rest_is_not_fetched(tmp_path: Path) -> None:
    remote = Remote(*(content_of(n, 10) for n in range(100)))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000, downloads_max=2)

    def away(segment: Segment) -> None:
        time.sleep(0.002)
        raise TargetUnavailableError("far is away")

    remote.before_open = away
    with pytest.raises(TargetUnavailableError):
        contents(cache, remote, remote.segments)
    assert len(remote.opened) < 20


def test_what_killed_downloads_left_is_swept(tmp_path: Path) -> None:
    old = time.time() - cache_module._UNLOCKED_S - 1
    for name in (".fetch-killed", ".fetch-running", "notes.txt", "ab.parquet"):
        (tmp_path / name).write_bytes(bytes(10_000))
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".fetch-new").touch()
    remote = Remote(content_of(0))
    with (tmp_path / ".fetch-running").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        contents(SegmentCache(tmp_path, size_bytes_max=2000), remote, remote.segments)
    left = {path.name for path in files(tmp_path)}
    # What is not the cache's is none of its business.
    assert left == {
        ".fetch-running",
        ".fetch-new",
        "notes.txt",
        "ab.parquet",
        f"{remote.segments[0].sha256.hex()}.parquet",
    }


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    remote = Remote(content_of(0))
    with pytest.raises(BusyError, match="cannot keep a copy of k0"):
        contents(SegmentCache(tmp_path / "cache", size_bytes_max=2000), remote, remote.segments)


COUNT, SIZE = 12, 20_000


def _use(folder: str, seed: int, rounds: int) -> tuple[int, int]:
    """Another process: reads at random from a cache that holds a third of what there is. How often the bytes
    were right, and how often a file had gone, evicted by the other one."""
    remote = Remote(*(content_of(n, SIZE) for n in range(COUNT)))
    cache = SegmentCache(Path(folder), size_bytes_max=COUNT * SIZE // 3)
    choose = random.Random(seed)
    right = gone = 0
    for _ in range(rounds):
        segment = choose.choice(remote.segments)
        try:
            (found,) = contents(cache, remote, [segment])
        except FileNotFoundError:
            gone += 1
            continue
        assert found == remote.objects["far", segment.key]
        right += 1
    return right, gone


def test_processes_share_a_folder(tmp_path: Path) -> None:
    rounds = 300
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.starmap(_use, [(str(tmp_path), seed, rounds) for seed in (1, 2)])
    for right, gone in answers:
        assert right + gone == rounds
        assert right > rounds * 0.8
    remote = Remote(content_of(0, SIZE))
    contents(SegmentCache(tmp_path, size_bytes_max=COUNT * SIZE // 3), remote, remote.segments)
    assert 0 < size_of(tmp_path) <= COUNT * SIZE // 3 + SIZE
    assert all(path.name.endswith(".parquet") for path in files(tmp_path))
    for path in files(tmp_path):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_what_was_destroyed_is_forgotten(tmp_path: Path) -> None:
    remote = Remote(content_of(0), content_of(1))
    cache = SegmentCache(tmp_path, size_bytes_max=10_000)
    assert cache.digests() == []
    contents(cache, remote, remote.segments)
    (tmp_path / "somebody's.parquet").write_bytes(b"x")
    assert set(cache.digests()) == {s.sha256 for s in remote.segments}
    cache.forget([remote.segments[0].sha256])
    assert cache.digests() == [remote.segments[1].sha256]
    cache.forget([remote.segments[0].sha256])
    assert contents(cache, remote, remote.segments) == [content_of(0), content_of(1)]
    assert remote.opened.count("k0") == 2
