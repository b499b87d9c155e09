"""Templates to pages: the environment, what every page knows, and how values are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from starlette.responses import HTMLResponse

from eventstore import __version__
from eventstore.clock import to_iso
from eventstore.console.visit import Visit

__all__ = ["is_fragment", "render"]


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
    found.filters |= {"time": _time, "bytes": _bytes, "count": lambda n: f"{n:,}"}
    found.globals["version"] = __version__
    return found


_TEMPLATES = _environment()


def is_fragment(request: Request) -> bool:
    """Whether htmx asks for a part of a page, to put it into the one that is shown."""
    return request.headers.get("HX-Request") == "true" and "HX-History-Restore-Request" not in request.headers


def render(
    request: Request, visit: Visit | None, template: str, status: int = 200, **context: Any
) -> HTMLResponse:
    """A page of a template. Besides `context` it knows `visit` (None: nobody is signed in), `path` (of the
    request, without its query) and `tenant` (None unless the path names one)."""
    known = {"visit": visit, "path": request.url.path, "tenant": request.path_params.get("tenant")}
    body = _TEMPLATES.get_template(template).render({**known, **context})
    return HTMLResponse(body, status, headers={"Vary": "HX-Request, Cookie"})
