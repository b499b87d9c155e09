"""ETags: an event never changes, so its hash tells whether a caller has it already."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Response

__all__ = ["ETAG", "NOT_MODIFIED", "IfNoneMatch", "etag_of", "is_match", "not_modified"]

ETAG = {"ETag": "The event's hash. Weak: `covered` tells in which tier it was found, which changes."}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The caller has it already", "headers": {"ETag": {"schema": {"type": "string"}}}}
}
IfNoneMatch = Annotated[str | None, Header(description="ETags that the caller has")]


def etag_of(event_hash: str) -> str:
    """The ETag of an event."""
    return f'W/"{event_hash}"'


def is_match(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller has what has that ETag (RFC 9110, 13.1.2: weak ones compare too)."""
    if if_none_match is None:
        return False
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in given or etag.removeprefix("W/") in given


def not_modified(etag: str) -> Response:
    """The answer for who has it already."""
    return Response(status_code=304, headers={"ETag": etag})
