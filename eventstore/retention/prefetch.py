"""Reading ahead: an iterator run in a thread of its own, a bounded number of items before its user."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")


def prefetch(source: Iterator[T], *, depth: int = 1) -> Iterator[T]:
    """The items of `source`, up to `depth` of them fetched ahead. Its errors come out here, and leaving
    early closes it."""
    items: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in source:
                if not put((item, None, False)):
                    break
            else:
                put((None, None, True))
        except BaseException as e:  # noqa: BLE001 - raised again at the other end
            put((None, e, True))
        finally:
            if hasattr(source, "close"):
                source.close()

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, done = items.get()
            if error is not None:
                raise error
            if done:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
