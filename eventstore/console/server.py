"""The web application: the API, and the console mounted in it."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from eventstore.api.server import create_app
from eventstore.app import Store
from eventstore.clock import Clock, SystemClock
from eventstore.console import problems
from eventstore.console.gate import ConsoleGate
from eventstore.console.pages import entity, event, exports, holds, home, runs, search, signin, tenant

__all__ = ["create_web"]

_STATIC = Path(__file__).parent / "static"


def create_web(store: Store, *, clock: Clock | None = None) -> FastAPI:
    """The application that is served: the API at /v1, the console at /console. `clock` is what sessions end
    by."""
    api = create_app(store)
    api.mount("/console", _console(api, store, clock or SystemClock()))
    return api


def _console(api: FastAPI, store: Store, clock: Clock) -> FastAPI:
    console = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The API's own parts (`api.state`): the console asks what the API asks, in the same process.
    console.state.api = api
    problems.install(console)
    console.add_middleware(ConsoleGate)
    for page in (signin, home, search, entity, event, tenant, holds, runs, exports):
        console.include_router(page.router)
    console.mount("/static", StaticFiles(directory=_STATIC), name="static")
    return console
