"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Long, for a loaded machine: it passes only in a test that fails.
DEADLINE_S = 60.0
_PAUSE_S = 0.005


def until(condition: Callable[[], T | None], what: str, *, within_s: float = DEADLINE_S) -> T:
    """Poll until the condition holds (is not None, False or empty); its value.

    Raises:
        AssertionError: it did not hold within `within_s` seconds; says what was waited for.
    """
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s:g} s in vain until {what}"
        time.sleep(_PAUSE_S)
    return found
