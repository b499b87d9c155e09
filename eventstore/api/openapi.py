"""The OpenAPI document: what FastAPI finds in the routes, completed by what holds for all of them."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from eventstore.api.schemas import EXAMPLE_KEY, SHAPES_KEY, problem_response

__all__ = ["install"]

_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a person's OIDC token.",
    }
}


def install(app: FastAPI) -> None:
    """Make the application describe itself (`/openapi.json`); made once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI has it done


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        summary=app.summary,
        routes=app.routes,
    )
    permitted = _permitted(app)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in _METHODS:
                _complete(path, operation, guarded=(path, method) in permitted)
    shapes: dict[str, Any] = {}
    _collect(document["paths"], shapes)
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        # An enumeration that is a parameter's and a shape's too is described by both.
        if set(shapes.setdefault(name, schema).get("enum", ())) != set(schema.get("enum", ())):
            raise AssertionError(f"two shapes have the name {name!r}")
    used = _referred(document["paths"], shapes)
    document["components"] = {
        "schemas": {name: shapes[name] for name in sorted(used)},
        "securitySchemes": _SECURITY,
    }
    return document


def _permitted(app: FastAPI) -> set[tuple[str, str]]:
    """The routes that ask who calls."""
    found = set()
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is not None and _asks(dependant):
            found |= {(str(route.path_format), method.lower()) for method in route.methods or ()}
    return found


def _asks(dependant: Dependant) -> bool:
    return hasattr(dependant.call, "permission") or any(map(_asks, dependant.dependencies))


def _complete(path: str, operation: dict[str, Any], *, guarded: bool) -> None:
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {})
    if "application/json" in invalid:  # FastAPI's own; here a parameter that is wrong is answered with 400
        del responses["422"]
    statuses = []
    if guarded:
        statuses = [400, 401, 403, 429, 500, 503]
        statuses += [404] if "{tenant}" in path else []
        statuses += [413, 415] if "requestBody" in operation else []
        operation["security"] = [{"bearer": []}]
    else:
        operation["security"] = []
    for status in statuses:
        given = responses.get(str(status), {})
        if "content" not in given:
            responses[str(status)] = problem_response(status, given.get("description", ""))
    for status, response in responses.items():
        content = response.get("content", {})
        if not content.get("application/json", {"schema": 1}).get("schema") and len(content) > 1:
            del content["application/json"]  # FastAPI's guess; the route says what it answers
        if status.startswith(("4", "5")) and not content:
            responses[status] = problem_response(int(status), response.get("description", ""))
    operation["responses"] = dict(sorted(responses.items()))


def _collect(node: Any, shapes: dict[str, Any]) -> None:
    """Take the definitions out of the places that brought them; two of one name have to be one. And make
    examples what they are."""
    if isinstance(node, list):
        for item in node:
            _collect(item, shapes)
    elif isinstance(node, dict):
        for name, schema in node.pop(SHAPES_KEY, {}).items():
            if shapes.setdefault(name, schema) != schema:
                raise AssertionError(f"two shapes have the name {name!r}")
        if EXAMPLE_KEY in node:
            node["example"] = json.loads(node.pop(EXAMPLE_KEY))
        for value in node.values():
            _collect(value, shapes)


def _referred(node: Any, shapes: dict[str, Any]) -> set[str]:
    """The names of the shapes that something refers to, by way of others too."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            name = str(one.get("$ref", "")).removeprefix("#/components/schemas/")
            if name in shapes and name not in found:
                found.add(name)
                waiting.append(shapes[name])
    return found
