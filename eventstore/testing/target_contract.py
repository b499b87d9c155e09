"""The conformance suite of archive targets. Whoever writes a target subclasses it and makes a fresh one:

    class TestMyTarget(TargetContract):
        @pytest.fixture
        def target(self, tmp_path):
            return MyTarget(...)

A target that fails any of these must not hold an archive: "archive before delete" stands on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from eventstore.archive.layout import segment_key, tenant_prefix
from eventstore.archive.probe import prove_create_only
from eventstore.archive.target import ArchiveTarget
from eventstore.errors import ArchiveDamageError
from eventstore.model.window import Window

__all__ = ["TargetContract"]

_HOUR_US = 3_600_000_000
_WRITERS = 8


def _key(tenant_id: str, hour: int = 0, part: int = 0) -> str:
    return segment_key(tenant_id, Window(hour * _HOUR_US, (hour + 1) * _HOUR_US), part)


KEY = _key("acme")


def _put(target: ArchiveTarget, key: str, data: bytes) -> bool:
    staged = target.stage(key)
    staged.write_bytes(data)
    return target.put(key, staged)


def _read(target: ArchiveTarget, key: str) -> bytes:
    with target.open(key) as file:
        return file.read()


def _keys(infos: Iterable[object]) -> list[str]:
    return [info.key for info in infos]  # type: ignore[attr-defined]


class TargetContract:
    """What every archive target promises (see `archive.target.ArchiveTarget`)."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> ArchiveTarget:
        """An empty target of its own for each test. Override it."""
        raise NotImplementedError("override the fixture `target`")

    # --- put ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "data", [b"", b"\x00PAR1", bytes(range(256)) * 40_000], ids=["empty", "few", "10 MB"]
    )
    def test_what_was_put_is_read_byte_for_byte(self, target: ArchiveTarget, data: bytes) -> None:
        assert _put(target, KEY, data) is True
        assert _read(target, KEY) == data
        assert target.stat(KEY).size_bytes == len(data)

    def test_put_never_overwrites(self, target: ArchiveTarget) -> None:
        _put(target, KEY, b"first")
        before = target.stat(KEY)
        for other in (b"second", b"first", b"", b"longer than the first"):
            assert _put(target, KEY, other) is False
            assert _read(target, KEY) == b"first"
        assert target.stat(KEY) == before

    def test_put_uses_the_staged_file_up(self, target: ArchiveTarget) -> None:
        for created in (True, False):
            staged = target.stage(KEY)
            staged.write_bytes(b"x")
            assert target.put(KEY, staged) is created
            assert not staged.exists()

    def test_of_concurrent_puts_exactly_one_creates(self, target: ArchiveTarget) -> None:
        for part in range(5):
            key = _key("acme", part=part)
            contents = [bytes([writer]) * 100_000 for writer in range(_WRITERS)]
            barrier = Barrier(_WRITERS)

            def write(data: bytes, key: str = key, barrier: Barrier = barrier) -> bool:
                staged = target.stage(key)
                staged.write_bytes(data)
                barrier.wait(30)
                return target.put(key, staged)

            with ThreadPoolExecutor(_WRITERS) as executor:
                created = list(executor.map(write, contents))
            assert created.count(True) == 1
            assert _read(target, key) == contents[created.index(True)]

    def test_keys_lie_in_nested_folders_beside_one_another(self, target: ArchiveTarget) -> None:
        keys = ["a", "b/c", "b/d/e", "b/d/f/g.parquet", KEY]
        for key in keys:
            assert _put(target, key, key.encode()) is True
        for key in keys:
            assert _read(target, key) == key.encode()

    # --- stage ----------------------------------------------------------------------------------------

    def test_staged_files_are_never_listed_nor_read(self, target: ArchiveTarget) -> None:
        staged = target.stage(KEY)
        staged.write_bytes(b"half")
        assert _keys(target.list()) == []
        with pytest.raises(ArchiveDamageError):
            target.open(KEY)
        _put(target, KEY, b"whole")
        assert _keys(target.list()) == [KEY]

    def test_staged_files_do_not_meet(self, target: ArchiveTarget) -> None:
        paths = {target.stage(KEY) for _ in range(10)}
        assert len(paths) == 10

    # --- open, stat -----------------------------------------------------------------------------------

    def test_a_missing_object_is_damage_and_named(self, target: ArchiveTarget) -> None:
        for verb in (target.open, target.stat):
            with pytest.raises(ArchiveDamageError) as caught:
                verb(KEY)
            assert caught.value.key == KEY
            assert KEY in caught.value.message

    def test_open_begins_at_the_beginning_each_time(self, target: ArchiveTarget) -> None:
        _put(target, KEY, b"0123456789")
        with target.open(KEY) as one, target.open(KEY) as two:
            assert (one.read(3), two.read(4), one.read()) == (b"012", b"0123", b"3456789")

    def test_stat_keeps_its_version_until_the_bytes_change(self, target: ArchiveTarget) -> None:
        _put(target, KEY, b"0" * 1000)
        first = target.stat(KEY)
        assert target.stat(KEY) == first
        assert next(iter(target.list())).version == first.version
        target.delete(KEY)
        _put(target, KEY, b"1" * 1000)
        assert target.stat(KEY).version != first.version

    # --- list -----------------------------------------------------------------------------------------

    def test_list_gives_every_object_once_in_the_order_of_keys(self, target: ArchiveTarget) -> None:
        # "acme-2" sorts before "acme/": '-' is less than '/'.
        keys = [_key(tenant, hour, part) for tenant in ("acme", "acme-2", "b", "acm") for hour in (0, 900)
                for part in (0, 1)]  # fmt: skip
        for key in reversed(keys):
            _put(target, key, key.encode())
        infos = list(target.list())
        assert _keys(infos) == sorted(keys)
        assert [i.size_bytes for i in infos] == [len(key) for key in sorted(keys)]

    def test_list_takes_a_prefix(self, target: ArchiveTarget) -> None:
        keys = [_key("acme"), _key("acme", 900), _key("acme-2"), _key("b")]
        for key in keys:
            _put(target, key, b"x")
        assert _keys(target.list(tenant_prefix("acme"))) == sorted(keys[:2])
        assert _keys(target.list(keys[0])) == keys[:1]
        assert _keys(target.list(keys[0][:-1])) == keys[:1]  # a prefix need not end with a name
        assert _keys(target.list("tenant_id=ac")) == sorted(keys[:3])
        assert _keys(target.list("nobody/")) == []

    def test_an_empty_target_lists_nothing(self, target: ArchiveTarget) -> None:
        assert list(target.list()) == []

    # --- delete ---------------------------------------------------------------------------------------

    def test_delete_removes_one_object_and_may_be_repeated(self, target: ArchiveTarget) -> None:
        other = _key("acme", part=1)
        _put(target, KEY, b"x")
        _put(target, other, b"y")
        for _ in range(2):
            target.delete(KEY)
            assert _keys(target.list()) == [other]
        with pytest.raises(ArchiveDamageError):
            target.open(KEY)
        target.delete(_key("nobody"))
        assert _put(target, KEY, b"again") is True
        assert _read(target, KEY) == b"again"

    # --- the rest -------------------------------------------------------------------------------------

    def test_it_proves_itself_and_leaves_nothing(self, target: ArchiveTarget) -> None:
        for _ in range(2):
            prove_create_only(target)
        assert _keys(target.list()) == []

    def test_a_time_to_retain_may_be_given_to_any_target(self, target: ArchiveTarget) -> None:
        staged = target.stage(KEY)
        staged.write_bytes(b"x")
        # In the past: where objects are locked, this one can be removed at once.
        assert target.put(KEY, staged, retain_until_us=1) is True
        assert _read(target, KEY) == b"x"

    def test_a_local_path_is_the_object_itself(self, target: ArchiveTarget) -> None:
        _put(target, KEY, b"0123456789")
        path = target.local_path(KEY)
        assert path is None or path.read_bytes() == b"0123456789"

    def test_readers_and_writers_may_be_many(self, target: ArchiveTarget) -> None:
        keys = [_key("acme", part=part) for part in range(_WRITERS)]

        def work(key: str) -> bytes:
            _put(target, key, key.encode() * 100)
            assert target.stat(key).size_bytes == len(key) * 100
            return _read(target, key)

        with ThreadPoolExecutor(_WRITERS) as executor:
            assert list(executor.map(work, keys)) == [key.encode() * 100 for key in keys]
        assert _keys(target.list()) == sorted(keys)

    def test_it_describes_itself(self, target: ArchiveTarget) -> None:
        assert target.describe()
