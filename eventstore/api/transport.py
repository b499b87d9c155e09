"""How answers travel: compressed where the caller takes that, and to pages of other origins where the
settings say so."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

__all__ = ["add_compression", "add_cors"]

_SMALL_BYTES = 1024
# Level 5 of 9: a page of events comes to within a few percent of level 9's size, in a third of its time.
_LEVEL = 5


def add_compression(app: FastAPI) -> None:
    """Compress answers with gzip, each chunk of a stream at once; not Server-Sent Events, which are to arrive
    one by one, not Parquet, which is compressed itself, and not files, which are asked for in ranges."""
    app.add_middleware(
        GZipMiddleware,
        minimum_size=_SMALL_BYTES,
        compresslevel=_LEVEL,
        exclude_content_types=(
            *DEFAULT_EXCLUDED_CONTENT_TYPES,
            "application/octet-stream",
            "application/vnd.apache.parquet",
        ),
    )


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call the API. No cookie or other credential of the browser's goes along:
    they send a key or a token themselves, as everybody does."""
    if not origins:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=(
            "Authorization",
            "Content-Encoding",
            "Content-Type",
            "Eventstore-Reason",
            "If-None-Match",
            "Last-Event-ID",
        ),
        expose_headers=(
            "Content-Disposition",
            "ETag",
            "Eventstore-Next-Since",
            "Eventstore-Through-Seq",
            "Retry-After",
        ),
    )
