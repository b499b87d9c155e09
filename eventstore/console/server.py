"""The web application: the API, and the console mounted in it."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from eventstore.api.server import create_app
from eventstore.app import Store
from eventstore.clock import Clock, SystemClock
from eventstore.console import problems
from eventstore.console.door import Door
from eventstore.console.gate import ConsoleGate
from eventstore.console.pages import entity, event, exports, holds, home, runs, search, signin, tenant
from eventstore.governance.sessions import Sessions
from eventstore.model.policy import parse_duration_us

__all__ = ["create_web"]

_STATIC = Path(__file__).parent / "static"


def create_web(store: Store, *, clock: Clock | None = None) -> FastAPI:
    """The application that is served: the API at /v1, the console at /console. `clock` is what sessions end
    by."""
    api = create_app(store)
    console = api.state.console = _console(api, store, clock or SystemClock())
    # An address of this origin, whatever a proxy makes of it on the way.
    api.add_route("/console", _beginning, include_in_schema=False)
    api.mount("/console", console)
    url = store.settings.console_url
    api.add_middleware(ConsoleGate, https=url is not None and url.startswith("https:"))
    return api


async def _beginning(_: Request) -> Response:
    return RedirectResponse(problems.HOME, 308)


def _console(api: FastAPI, store: Store, clock: Clock) -> FastAPI:
    console = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    # The API's own parts (`api.state`): the console asks what the API asks, in the same process.
    console.state.api = api
    settings = store.settings
    sessions = Sessions(
        store.database,
        clock,
        lifetime_us=parse_duration_us(settings.session_lifetime),
        idle_us=parse_duration_us(settings.session_idle),
    )
    console.state.door = Door(api.state, settings, sessions)
    problems.install(console)
    for page in (signin, home, search, entity, event, tenant, holds, runs, exports):
        console.include_router(page.router)
    console.mount("/static", StaticFiles(directory=_STATIC), name="static")
    return console
