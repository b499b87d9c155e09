"""Reading a request's body within its bounds, compressed or not."""

from __future__ import annotations

import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from eventstore.errors import InputError, MediaTypeError, TooLargeError

__all__ = ["media_type_of", "read_body"]

_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


def media_type_of(request: Request) -> str:
    """The media type of the body, without its parameters; JSON unless the request says another."""
    given = request.headers.get("content-type", "")
    return given.partition(";")[0].strip().lower() or "application/json"


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body, decompressed if need be. What is read, and what it becomes, is at most `bytes_max`.

    Raises:
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
        parts.append(part)
    body = b"".join(parts)
    return body if codec is None else await run_in_threadpool(_decompress, body, codec, bytes_max)


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
