"""Callers with keys of their own, for tests that go through the API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from eventstore.app import Store
from eventstore.clock import SystemClock
from eventstore.governance.keys import create_key
from eventstore.model.access import Role
from eventstore.model.limits import Limits
from tests.integration.following import serving

__all__ = ["Callers", "calling"]


class Callers:
    """A served store, and clients with keys. `app` is the application."""

    def __init__(self, store: Store, app: Any, port: int, stack: ExitStack) -> None:
        self.store, self.app, self.port = store, app, port
        self._stack = stack

    def key(
        self,
        role: Role,
        tenant: str | None = "acme",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> tuple[str, str]:
        """A new key: its subject, and its text."""
        key, text = create_key(
            self.store.database,
            role=role,
            tenant_id=tenant,
            by="test",
            now_us=SystemClock().now_us(),
            limits=limits,
        )
        return f"key:{key.key_id}", text

    def client(self, text: str | None = None) -> httpx.Client:
        """A client with a key; None: without one, as this machine."""
        headers = {} if text is None else {"authorization": f"Bearer {text}"}
        return self._stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)
        )

    def as_role(
        self,
        role: Role,
        tenant: str | None = "acme",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> httpx.Client:
        return self.client(self.key(role, tenant, limits)[1])


@contextmanager
def calling(store: Store) -> Iterator[Callers]:
    """The API on a store. An administrator exists, so nobody calls without a key."""
    with ExitStack() as stack:
        served = stack.enter_context(serving(store))
        callers = Callers(store, served.app, served.port, stack)
        callers.key(Role.ADMINISTRATOR, None)
        callers.client().get("/healthz")  # it has started: its state can be exchanged
        yield callers
