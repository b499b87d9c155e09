"""Forms that were sent: read within bounds, and taken only from a page of this console's own.

A page of another origin can send a form here, with the visitor's cookies, but it can neither read the token
that the session's pages carry nor say that it is of this origin: browsers write `Sec-Fetch-Site` and `Origin`
themselves.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request

from eventstore.console.visit import Visit
from eventstore.errors import ForbiddenError, InputError, MediaTypeError, TooLargeError

__all__ = ["BODY_BYTES_MAX", "checked_form", "form"]

BODY_BYTES_MAX = 64 * 2**10
_FIELDS_MAX = 200
_MEDIA_TYPE = "application/x-www-form-urlencoded"


async def form(request: Request, me: Visit) -> Mapping[str, str]:
    """The fields of a form of this visitor's, without the token that it was checked by.

    Raises:
        ForbiddenError: it has not the session's token, or comes from elsewhere.
        MediaTypeError, TooLargeError, InputError: it is no form, or too long a one.
    """
    return await checked_form(request, me.csrf)


async def checked_form(request: Request, token: str) -> Mapping[str, str]:
    """The same with whatever token the page was given."""
    if not _is_own(request):
        raise _not_own()
    fields = _parsed(await _body(request))
    given = fields.pop("csrf", "")
    if not token or not hmac.compare_digest(given.encode(), token.encode()):
        raise _not_own()
    return fields


def _not_own() -> ForbiddenError:
    return ForbiddenError(
        "this form is not of a page that you have open here",
        hint="load the page again, and send it from there; you may have to sign in again",
    )


def _is_own(request: Request) -> bool:
    """Whether the browser says that a page of this origin sends this. A program says nothing, and needs the
    token all the same."""
    sites = request.headers.getlist("sec-fetch-site")
    if sites:
        return sites == ["same-origin"]
    origins = request.headers.getlist("origin")
    if not origins:
        return True
    if len(origins) > 1:
        return False
    try:
        found = urlsplit(origins[0])
    except ValueError:
        return False
    ours = {request.headers.get("host")}
    console_url = request.app.state.api.state.store.settings.console_url
    if console_url is not None:
        ours.add(urlsplit(console_url).netloc)  # a proxy may have put its own Host
    return found.scheme in ("http", "https") and found.netloc in ours


async def _body(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _MEDIA_TYPE or "content-encoding" in request.headers:
        raise MediaTypeError(f"a form is sent as {_MEDIA_TYPE}, plain")
    parts, size_bytes = [], 0
    async for part in request.stream():
        size_bytes += len(part)
        if size_bytes > BODY_BYTES_MAX:
            raise TooLargeError(f"a form has at most {BODY_BYTES_MAX} bytes", limit_bytes=BODY_BYTES_MAX)
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX
        )
    except ValueError as e:  # of too many fields, too
        raise InputError("this is no form as browsers send them") from e
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InputError("a field of the form is given twice")
    if any("\0" in value for value in fields.values()):
        raise InputError("a field of the form holds a NUL character")
    return fields
