"""The HTTP application."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from eventstore import __version__
from eventstore.access.authenticator import Authenticator
from eventstore.access.limits import CallerLimits
from eventstore.access.oidc import OidcVerifier
from eventstore.access.reads import ReadsLog
from eventstore.access.usage import ArchiveUsage
from eventstore.api import (
    certificates,
    entities,
    event_ids,
    events,
    explain,
    export,
    exports,
    feed,
    health,
    holds,
    keys,
    openapi,
    policies,
    problems,
    proofs,
    records,
    runs,
    subscriptions,
    tenants,
)
from eventstore.api.access import Authentication, Gate
from eventstore.api.append import AppendService, AppendShortcut
from eventstore.api.export_worker import ExportWorker
from eventstore.api.feed_hub import FeedHub
from eventstore.api.health import Readiness
from eventstore.api.hygiene import CleanAddress
from eventstore.api.limits import meter_of_principal
from eventstore.api.transport import add_compression, add_cors
from eventstore.app import Store
from eventstore.governance.tenants import create_tenant
from eventstore.hot.group import GroupCommitter
from eventstore.hot.pulse import Pulse
from eventstore.hot.wake import Wakes
from eventstore.query.feed import FeedReader

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
        wakes = Wakes(store.database)
        wakes.start()

        def on_commit(tenant_id: str, last_seq: int | None, took_s: float) -> None:
            pulse.add(took_s)
            if last_seq is not None:
                wakes.committed(tenant_id)

        committer = GroupCommitter(store.appender, workers=settings.append_workers, on_commit=on_commit)
        app.state.appending = AppendService(
            committer,
            body_bytes_max=settings.body_bytes_max,
            value_bytes_max=settings.value_bytes_max,
            bodies_bytes_max=settings.bodies_bytes_max,
        )
        oidc = None if settings.oidc is None else OidcVerifier(settings.oidc)
        authenticator = Authenticator(store.database, oidc=oidc)
        authenticator.start()
        app.state.authentication = Authentication(authenticator)
        app.state.limits = CallerLimits(settings.default_limits)
        app.state.usage = ArchiveUsage(store.database)
        app.state.usage.start()
        app.state.reads = ReadsLog(
            committer.submit,
            partial(create_tenant, store.database, actor="eventstore", is_own=True),
            reason_required=settings.reason_required,
        )
        app.state.exports = ExportWorker(store, app.state.reads, partial(meter_of_principal, app.state))
        app.state.exports.start()
        app.state.readiness = Readiness(store)
        app.state.exporting = anyio.CapacityLimiter(export.STEPS_AT_ONCE)
        app.state.wakes = wakes
        app.state.feeds = FeedHub(FeedReader(store.tiers), wakes)
        try:
            async with app.state.feeds.running():
                yield
        finally:
            await run_in_threadpool(app.state.exports.close)  # writes its ends down, so before the committer
            await run_in_threadpool(committer.close)
            await run_in_threadpool(app.state.usage.close)
            await run_in_threadpool(wakes.close)
            await run_in_threadpool(pulse.close)
            await run_in_threadpool(authenticator.close)

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
    # Each stands before those that were added earlier.
    add_compression(app)
    app.add_middleware(AppendShortcut)
    app.add_middleware(CleanAddress)
    app.add_middleware(Gate)
    add_cors(app, store.settings.cors_origins)
    app.include_router(events.router)
    app.include_router(event_ids.router)
    app.include_router(runs.router)
    app.include_router(export.router)
    app.include_router(exports.router)
    app.include_router(tenants.router)
    app.include_router(policies.router)
    app.include_router(holds.router)
    app.include_router(certificates.router)
    app.include_router(proofs.router)
    app.include_router(explain.router)
    app.include_router(keys.router)
    app.include_router(feed.router)
    app.include_router(subscriptions.router)
    app.include_router(records.router)
    app.include_router(entities.router)
    app.include_router(health.router)
    return app
