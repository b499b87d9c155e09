"""Reading a request's body within its bounds, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from eventstore.errors import BusyError, InputError, MediaTypeError, TooLargeError

__all__ = ["BodyBudget", "BodyShare", "media_type_of", "read_body"]

_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


def media_type_of(request: Request) -> str:
    """The media type of the body, without its parameters; JSON unless the request says another."""
    given = request.headers.get("content-type", "")
    return given.partition(";")[0].strip().lower() or "application/json"


class BodyBudget:
    """The bytes of all bodies that one process is taking in, each until it is answered. Used by one event
    loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """One body's part, given back at the end of the block."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self._bytes -= share.size_bytes

    def take(self, share: BodyShare, size_bytes: int) -> None:
        """Take so much more for a body. The only one under way is never refused.

        Raises:
            BusyError: with it, they would be too large together.
        """
        others = self._bytes - share.size_bytes
        if others and self._bytes + size_bytes > self._bytes_max:
            raise BusyError(
                "this process takes in as many bytes as it can hold",
                hint="send it again in a moment, in smaller requests or fewer at once",
            )
        self._bytes += size_bytes
        share.size_bytes += size_bytes


class BodyShare:
    """What one body has taken of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self.size_bytes = 0
        self._budget = budget

    def take(self, size_bytes: int) -> None:
        """Raises:
        BusyError: the process has no place for so much more now.
        """
        self._budget.take(self, size_bytes)


async def read_body(request: Request, bytes_max: int, share: BodyShare | None = None) -> bytes:
    """The whole body, decompressed if need be. What is read, and what it becomes, is at most `bytes_max`, and
    counts in its `share` (None: for a body so small that nobody counts it).

    Raises:
        BusyError: too many bodies are under way.
        TooLargeError: it is larger.
        MediaTypeError: it is compressed in a way that is not taken.
        InputError: it cannot be decompressed.
    """
    codec = _codec(request.headers.get("content-encoding", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if share is not None:
            share.take(len(part))
        parts.append(part)
    body = b"".join(parts)
    if codec is None:
        return body
    plain = await run_in_threadpool(_decompress, body, codec, bytes_max)
    if share is not None:
        share.take(len(plain))
    return plain


def _codec(encoding: str) -> str | None:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _ENCODINGS:
        raise MediaTypeError(
            f"bodies with the content-encoding {encoding!r} are not taken", hint="use gzip, zstd or none"
        )
    return _ENCODINGS[name]


def _decompress(body: bytes, codec: str, bytes_max: int) -> bytes:
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            # One byte more than is allowed tells that there is more; the rest is never made.
            data: bytes = stream.read(bytes_max + 1) if body else b""
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"the body is not {codec}: {e}", hint="say how it is compressed") from e
    if len(data) > bytes_max:
        raise _too_large(bytes_max, "decompressed, ")
    return data


def _too_large(bytes_max: int, how: str = "") -> TooLargeError:
    return TooLargeError(
        f"{how}the body is larger than {bytes_max} bytes",
        limit_bytes=bytes_max,
        hint="send it in several requests",
    )
