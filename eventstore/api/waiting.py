"""Answers that wait: given up when their client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

__all__ = ["gone", "unless_gone"]

T = TypeVar("T")


async def gone(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What some work comes to; None: its client went, and the work was cancelled. Call it after the body was
    read. What runs in a thread at that moment runs to its end, and is lost.

    Raises:
        Whatever the work raises.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
