"""What routes answer and take, as the OpenAPI document shows it.

Shapes are types that msgspec knows (Structs, mostly), whether or not a route encodes its answer with them.
A route says `responses=answers(EventPage, 404, example=…)`, and one with a body
`openapi_extra=accepts(NewKey, example=…)`. What every route can answer (400, 401, 403, 429, 500, 503; 404
below a tenant; 413 and 415 with a body) is added by `api.openapi`: a route names only what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from eventstore.api import problems

__all__ = ["EXAMPLE_KEY", "SHAPES_KEY", "Problem", "accepts", "answers", "problem_response", "schema_of"]

# Where a response or a body carries the definitions that it refers to, until `api.openapi` collects them.
SHAPES_KEY = "x-shapes"
# What other media types hold, and an example where there is one.
Media = Mapping[str, str | tuple[str, str]]
# An example as JSON text: FastAPI would take every null out of it.
EXAMPLE_KEY = "x-example"
_REFERENCE = "#/components/schemas/{name}"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 has it. What is of no use for it is left out; some have further members."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET
    line: int | msgspec.UnsetType = msgspec.UNSET
    limit_bytes: int | msgspec.UnsetType = msgspec.UNSET
    retry_after_s: int | msgspec.UnsetType = msgspec.UNSET


# What is said of a status unless a route says better, and the problem that stands as its example.
_PROBLEMS: Mapping[int, tuple[str, str, str]] = {
    400: ("The request or a parameter is wrong", "invalid-request", "there is no parameter 'entity' here"),
    401: ("No credentials, or none that hold", "unauthenticated", "there are no credentials"),
    403: ("The caller's role does not permit it", "forbidden", "the role 'reader' does not permit this"),
    404: (
        "There is no such thing, or none that this caller may know of",
        "tenant-not-found",
        "no tenant 'x'",
    ),
    409: ("The store's present state refuses it", "conflict", "the state refuses it"),
    410: ("What is asked for does not exist any more", "gone", "it was destroyed"),
    413: ("The body, or a value in it, is too large", "too-large", "the body is larger than 67108864 bytes"),
    415: ("Another media type, or another encoding", "media-type", "the media type 'text/xml' is not taken"),
    422: (
        "The body breaks a rule; `field` and `index` or `line` say where. Nothing was stored.",
        "invalid-event",
        "event 0, actor: Object missing required field `actor`",
    ),
    429: ("One of the caller's limits is used up", "rate-limited", "the key has used up its requests"),
    500: ("Stored history is damaged, or the store met an error of its own", "integrity", "…"),
    503: ("Unavailable for the moment; send it again", "busy", "too many events are waiting to be stored"),
}


def schema_of(shape: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of a type, and the definitions that it refers to, by name."""
    (schema,), definitions = msgspec.json.schema_components([shape], ref_template=_REFERENCE)
    return schema, definitions


def problem_response(status: int, description: str = "") -> dict[str, Any]:
    """A response that is a problem."""
    said, code, detail = _PROBLEMS[status]
    example: dict[str, Any] = {
        "type": f"urn:eventstore:{code}",
        "title": said,
        "status": status,
        "detail": detail,
    }
    response: dict[str, Any] = {"description": description or said}
    if status in (429, 503):
        example["retry_after_s"] = 1
        response["headers"] = {
            "Retry-After": {"description": "Seconds after which to try again", "schema": {"type": "string"}}
        }
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    schema, definitions = schema_of(Problem)
    content = {problems.MEDIA_TYPE: {"schema": schema, "example": example}}
    return {**response, "content": content, SHAPES_KEY: definitions}


def answers(
    shape: Any,
    *statuses: int,
    example: Any = None,
    status: int = 200,
    description: str = "",
    media: Media | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its success, and the problems that are its own.

    Args:
        statuses: of the problems.
        shape: of the JSON that it answers; None: it answers none.
        media: other media types that it answers, each with what they hold, e.g.
            `{"text/event-stream": "An event of the log each"}`, or that and an example. They are described
            as texts.
        headers: of the successful answer, each with what it says.
    """
    content, definitions = _content(shape, example, media)
    success: dict[str, Any] = {"description": description or "Done", SHAPES_KEY: definitions}
    if content:
        success["content"] = content
    if headers:
        success["headers"] = {
            name: {"description": said, "schema": {"type": "string"}} for name, said in headers.items()
        }
    return {status: success, **{problem: problem_response(problem) for problem in statuses}}


def accepts(
    shape: Any,
    *,
    example: Any = None,
    media: Media | None = None,
    required: bool = True,
    description: str = "",
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself. For the arguments see `answers`."""
    content, definitions = _content(shape, example, media)
    body: dict[str, Any] = {"required": required, "content": content}
    if description:
        body["description"] = description
    return {"requestBody": body, SHAPES_KEY: definitions}


def _content(shape: Any, example: Any, media: Media | None) -> tuple[dict[str, Any], dict[str, Any]]:
    content: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    if shape is not None:
        schema, definitions = schema_of(shape)
        content["application/json"] = {"schema": schema}
        if example is not None:
            content["application/json"][EXAMPLE_KEY] = msgspec.json.encode(example).decode()
    for media_type, told in (media or {}).items():
        said, shown = (told, None) if isinstance(told, str) else told
        content[media_type] = {"schema": {"type": "string", "description": said}}
        if shown is not None:
            content[media_type]["example"] = shown
    return content, definitions
