"""Templates to pages: the environment, what every page knows, and how values are shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from fastapi import Request
from starlette.responses import HTMLResponse

from eventstore import __version__
from eventstore.clock import to_iso
from eventstore.console.values import visible
from eventstore.console.visit import Visit
from eventstore.model.access import Permission

__all__ = ["Readable", "is_fragment", "readable", "render"]

_SHOWN_CHARACTERS_MAX = 4000
_THEMES = ("light", "dark")


@dataclass(frozen=True, slots=True)
class Readable:
    """A JSON value as text for people. `is_none`: there is none, or it is null. `is_nested`: it has lines of
    its own. `left_out` characters are not in the text."""

    text: str
    is_none: bool = False
    is_nested: bool = False
    left_out: int = 0


def readable(json_text: str | bytes | None, most: int = _SHOWN_CHARACTERS_MAX) -> Readable:
    """A stored JSON text: a string without its quotes, an object or a list indented. Numbers keep their
    digits: they are never read as floats."""
    if isinstance(json_text, bytes):
        json_text = json_text.decode(errors="replace")
    given = (json_text or "").strip()
    if given in ("", "null"):
        return Readable("", is_none=True)
    text, nested = given, given[0] in "{["
    try:
        if given[0] == '"':
            text = str(json.loads(given))
        elif nested:
            text = msgspec.json.format(given, indent=2)
    except (ValueError, RecursionError):
        text = given  # shown as it is stored
    shown = text[:most].replace("\0", "\ufffd").encode(errors="replace").decode()
    return Readable(shown, is_nested=nested or "\n" in shown, left_out=max(0, len(text) - most))


def _time(us: int | None) -> str:
    """To the second, in UTC."""
    return "-" if us is None else to_iso(us)[:19].replace("T", " ")


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "bytes": _bytes,
        "count": lambda n: f"{n:,}",
        "iso": to_iso,
        "readable": readable,
        "time": _time,
        "visible": visible,
    }
    found.globals |= {"version": __version__, "Permission": Permission}
    return found


_TEMPLATES = _environment()


def is_fragment(request: Request) -> bool:
    """Whether htmx asks for a part of a page, to put it into the one that is shown."""
    return request.headers.get("HX-Request") == "true" and "HX-History-Restore-Request" not in request.headers


def render(
    request: Request, visit: Visit | None, template: str, status: int = 200, **context: Any
) -> HTMLResponse:
    """A page of a template. Besides `context` it knows `visit` (None: nobody is signed in), `path` (of the
    request, without its query), `here` (with it: where forms of the frame lead back to), `tenant` (None
    unless the path names one) and `theme` (None: the browser's own)."""
    path = request.url.path
    theme = request.cookies.get("eventstore-theme")
    known = {
        "visit": visit,
        "path": path,
        "here": f"{path}?{request.url.query}" if request.url.query else path,
        "tenant": request.path_params.get("tenant"),
        "theme": theme if theme in _THEMES else None,
    }
    body = _TEMPLATES.get_template(template).render({**known, **context})
    return HTMLResponse(body, status, headers={"Vary": "HX-Request, Cookie"})
