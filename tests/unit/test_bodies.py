"""Bodies of requests as they are taken in: all of them together have a bound."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import pytest
from starlette.requests import Request

from eventstore.api.bodies import BodyBudget, BodyShare, read_body
from eventstore.errors import BusyError, TooLargeError

PART = b"x" * 100


def request(parts: Iterator[bytes], encoding: str = "") -> Request:
    async def receive() -> dict[str, object]:
        part = next(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    headers = [(b"content-encoding", encoding.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def read(budget: BodyBudget, parts: list[bytes], share: BodyShare, encoding: str = "") -> bytes:
    async def run() -> bytes:
        return await read_body(request(iter(parts), encoding), 1000, share)

    return anyio.run(run)


def test_a_body_that_comes_when_others_fill_the_process_is_refused_until_they_are_answered() -> None:
    budget = BodyBudget(250)
    with ExitStack() as first:
        assert read(budget, [PART, PART], first.enter_context(budget.share())) == PART * 2
        with budget.share() as second, pytest.raises(BusyError, match="as many bytes"):
            read(budget, [PART], second)
        with budget.share() as small:
            assert read(budget, [b"y" * 50], small) == b"y" * 50
    with budget.share() as again:
        assert read(budget, [PART], again) == PART


def test_what_was_refused_or_failed_is_given_back() -> None:
    budget = BodyBudget(350)
    with budget.share() as held:
        read(budget, [PART], held)
        for _ in range(10):
            with budget.share() as refused, pytest.raises(BusyError):
                read(budget, [PART, PART, PART], refused)
            with budget.share() as large, pytest.raises((TooLargeError, BusyError)):
                read(budget, [PART] * 11, large)
        with budget.share() as fits:
            assert len(read(budget, [PART, PART], fits)) == 200


def test_the_only_body_under_way_is_taken_however_large_it_may_be() -> None:
    budget = BodyBudget(10)
    with budget.share() as alone:
        assert len(read(budget, [PART] * 10, alone)) == 1000


def test_a_body_counts_with_what_it_becomes() -> None:
    packed = gzip.compress(PART * 9, mtime=0)
    budget = BodyBudget(len(packed) + 950)
    with budget.share() as held, budget.share() as other:
        read(budget, [b"y" * 60], held)
        with pytest.raises(BusyError):
            read(budget, [packed], other, "gzip")
