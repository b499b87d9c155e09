"""Crash points set from outside: the product has no hook for them; its functions are wrapped here.

A point is written `target:when:nth`, and may stand inside others: `outer>target:when:nth` counts only the
calls of `target` that `outer` makes, directly or not, in its own thread. A target is `module/Qualified.name`:
the name under which the caller looks it up, such as `eventstore.retention.compactor/cut_over_window`.

`when` is one of
  before  killed as the call begins
  after   killed when it has returned, before the caller hears of it
  sent    only for `psycopg/Connection.wait` and `…/run_together`: the query has left for the server, its
          answer is not read

Instead of being killed, a process may be stopped there (`halt`): it goes on when it gets SIGCONT.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import threading
from collections.abc import Callable, Generator
from importlib import import_module
from typing import Any

from psycopg import waiting

__all__ = ["arm", "die", "halt"]


def die() -> None:
    """End this process as kill -9 does: nothing is flushed, closed or rolled back."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def halt() -> None:
    """Stop this process, every thread of it, until it gets SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def arm(point: str, act: Callable[[], None] = die) -> None:
    """Wrap what the point names, in this process, for good."""
    *outer, last = point.split(">")
    target, when, nth = last.split(":")
    scopes = [_Scope() for _ in outer]
    for index, name in enumerate(outer):
        _wrap(name, functools.partial(_scoped, scopes[index]))
    _wrap(target, functools.partial(_deadly, _Countdown(int(nth), scopes), when, act))


class _Scope(threading.local):
    """How many calls of an outer function are under way in this thread."""

    depth = 0


class _Countdown:
    """Counts the calls that are inside every scope."""

    def __init__(self, nth: int, scopes: list[_Scope]) -> None:
        self._left = nth
        self._scopes = scopes
        self._lock = threading.Lock()

    def hit(self) -> bool:
        if not all(scope.depth for scope in self._scopes):
            return False
        with self._lock:
            self._left -= 1
            return self._left == 0


def _wrap(target: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module_name, _, path = target.partition("/")
    owner: Any = import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, functools.wraps(getattr(owner, name))(make(getattr(owner, name))))


def _scoped(scope: _Scope, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        scope.depth += 1
        try:
            return wrapped(*args, **kwargs)
        finally:
            scope.depth -= 1

    return call


def _deadly(
    countdown: _Countdown, when: str, act: Callable[[], None], wrapped: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        hit = countdown.hit()
        if hit and when == "before":
            act()
        if hit and when == "sent":
            (_query_and_die if wrapped.__name__ == "run_together" else _send_and_die)(*args)
        result = wrapped(*args, **kwargs)
        if hit and when == "after":
            act()
        return result

    assert when in ("before", "after") or (when == "sent" and act is die), when
    return call


def _query_and_die(conn: Any, statements: str) -> None:
    """What `db.statements.run_together` does, up to where it would wait."""
    conn.pgconn.send_query(statements.encode())
    while conn.pgconn.flush():
        select.select([], [conn.fileno()], [])
    die()


def _send_and_die(conn: Any, generator: Generator[Any, Any, Any], *_: Any) -> None:
    """Drive psycopg's generator until it waits for the answer alone: then the query is on its way."""
    state = next(generator)
    while state != waiting.Wait.R:
        readable, writable, _ = select.select([conn.fileno()], [conn.fileno()], [])
        ready = (waiting.Ready.R if readable else 0) | (waiting.Ready.W if writable else 0)
        state = generator.send(waiting.Ready(ready))
    die()
