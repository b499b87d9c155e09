"""Every page of the console, found from the application itself, so that a new one cannot be forgotten; the
forms that pages have; and a store for a whole module of tests."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.model.access import Permission
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.unit.helpers import START_US, execute

__all__ = ["Form", "Page", "forms_of", "own_store", "pages"]


@dataclass(frozen=True)
class Page:
    """A route. `permission` is what its visitor needs (None: open to anybody, or to anybody signed in);
    `params` are the parameters of the query that its code names."""

    method: str
    path: str
    permission: Permission | None
    params: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The parameters of its path."""
        return re.findall(r"{(\w+)}", self.path)

    def address(self, values: Mapping[str, str]) -> str:
        unknown = [name for name in self.names if name not in values]
        assert not unknown, f"teach this test what {unknown} of {self.path} may be"
        return re.sub(r"{(\w+)}", lambda m: quote(values[m[1]], safe=""), self.path)


def pages(app: Any) -> list[Page]:
    """All pages and forms' targets, in the order of their addresses."""
    (console,) = (r.app for r in app.routes if isinstance(r, Mount) and r.path == "/console")
    found = {}
    for route in iter_route_contexts(console.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            continue  # static files
        path = "/console" + re.sub(r"{(\w+):\w+}", r"{\1}", str(route.path_format))
        permissions, params = _asked(dependant)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            found[path, method] = Page(
                method, path, permissions[0] if permissions else None, tuple(sorted(params))
            )
    return [found[key] for key in sorted(found)]


def _asked(dependant: Dependant) -> tuple[list[Permission], set[str]]:
    own = getattr(dependant.call, "permission", None)
    permissions = [] if own is None else [own]
    params = {p.alias for p in dependant.query_params}
    for inner in dependant.dependencies:
        more, names = _asked(inner)
        permissions += more
        params |= names
    return permissions, params


@dataclass
class Form:
    """A form as its page has it, with what its fields hold."""

    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)


class _Forms(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Form] = []
        self._open: Form | None = None
        self._select: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = Form(given.get("method", "get").lower(), given.get("action", ""))
            self.found.append(self._open)
        elif self._open is None:
            return
        elif tag == "option" and self._select is not None:
            if "selected" in given or self._select not in self._open.fields:
                self._open.fields[self._select] = given.get("value", "")
        elif tag in ("input", "textarea", "select", "button") and given.get("name"):
            self._select = given["name"] if tag == "select" else None
            unset = given.get("type") in ("checkbox", "radio") and "checked" not in given
            if tag != "select" and not (unset and given["name"] in self._open.fields):
                self._open.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None


def forms_of(page: str) -> list[Form]:
    """The forms of a page."""
    return _Forms(page).found


@contextmanager
def own_store(server_url: str, template_database: str, folder: Path) -> Iterator[tuple[Store, FixedClock]]:
    """A store on a database of its own, and the clock that it appends by, which begins at START_US."""
    name = f"console_{folder.name}_{secrets.token_hex(4)}"
    url = create_database(server_url, name, template=template_database)
    clock = FixedClock(START_US)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    try:
        with open_store(settings, clock=clock) as store:
            yield store, clock
    finally:
        execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')
