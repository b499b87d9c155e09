"""Reading ahead: order, bounds, errors, and leaving early."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from eventstore.retention.prefetch import prefetch


class Source(Iterator[int]):
    """Counts what was taken from it, and knows whether it was closed."""

    def __init__(self, end: int, *, fail_at: int | None = None) -> None:
        self.end, self.fail_at = end, fail_at
        self.taken = 0
        self.closed = threading.Event()
        self.thread: int | None = None

    def __next__(self) -> int:
        self.thread = threading.get_ident()
        if self.taken == self.fail_at:
            raise ValueError("broken")
        if self.taken == self.end:
            raise StopIteration
        self.taken += 1
        return self.taken

    def close(self) -> None:
        self.closed.set()


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_from_another_thread(depth: int) -> None:
    source = Source(100)
    assert list(prefetch(source, depth=depth)) == list(range(1, 101))
    assert source.thread != threading.get_ident()
    assert source.closed.is_set()
    assert prefetch_threads() == 0


def test_an_empty_source() -> None:
    assert list(prefetch(iter(()))) == []


def test_nulls_are_items_too() -> None:
    assert list(prefetch(iter([None, None]))) == [None, None]


def test_an_error_comes_out_after_the_items_before_it() -> None:
    source = Source(10, fail_at=3)
    items = prefetch(source)
    assert [next(items), next(items), next(items)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert source.closed.is_set()
    assert prefetch_threads() == 0


def test_leaving_early_closes_the_source_and_ends_the_thread() -> None:
    source = Source(1_000_000)
    items = prefetch(source, depth=2)
    assert next(items) == 1
    items.close()
    assert source.closed.is_set()
    assert prefetch_threads() == 0
    # One is held by the user, two wait in the queue, one more waits for room.
    assert source.taken <= 4


def test_it_reads_ahead_while_the_user_is_busy() -> None:
    reached = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        yield 2
        reached.set()

    items = prefetch(source(), depth=2)
    assert next(items) == 1
    assert reached.wait(10), "nothing was fetched ahead"
    assert list(items) == [2]
