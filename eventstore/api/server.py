"""The HTTP application."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from eventstore import __version__
from eventstore.api import events, openapi, problems, runs
from eventstore.api.append import AppendService, AppendShortcut
from eventstore.app import Store
from eventstore.hot.group import GroupCommitter
from eventstore.hot.pulse import Pulse

__all__ = ["create_app"]

# How long one thread may keep the interpreter while another waits: the committing threads wait for the
# network many times in a commit, and would lose Python's default of 5 ms each time.
_SWITCH_INTERVAL_S = 0.0005


def create_app(store: Store) -> FastAPI:
    """The application on an open store; its own lifespan starts and drains the committer."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        app.state.store = store
        settings = store.settings
        pulse = Pulse(store.database)
        pulse.start()
        committer = GroupCommitter(store.appender, workers=settings.append_workers, on_commit=pulse.add)
        app.state.appending = AppendService(
            committer, body_bytes_max=settings.body_bytes_max, value_bytes_max=settings.value_bytes_max
        )
        try:
            yield
        finally:
            await run_in_threadpool(committer.close)
            await run_in_threadpool(pulse.close)

    app = FastAPI(
        title="eventstore",
        version=__version__,
        summary="One ordered, hash-chained log per tenant over Postgres and an archive of Parquet.",
        lifespan=lifespan,
        # The usual documentation pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    openapi.install(app)
    app.add_middleware(AppendShortcut)
    app.include_router(events.router)
    app.include_router(runs.router)

    @app.get("/healthz", summary="Whether the process serves")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
