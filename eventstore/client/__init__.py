"""The client of the store: append, read and follow over HTTP, and lose nothing while the store is away.

`Client` and `AsyncClient` are here. The recorder with its durable outbox is in
`eventstore.client.recorder`, the logging handler in `eventstore.client.logging`, the middleware in
`eventstore.client.asgi`.
"""

from eventstore.client.aio import AsyncClient
from eventstore.client.answers import (
    Appended,
    EntityState,
    FeedReset,
    FieldState,
    Flushed,
    SetBy,
    Stats,
    Stored,
)
from eventstore.client.attempts import Retry
from eventstore.client.events import Event, NewEvent
from eventstore.client.sync import Client

__all__ = [
    "Appended",
    "AsyncClient",
    "Client",
    "EntityState",
    "Event",
    "FeedReset",
    "FieldState",
    "Flushed",
    "NewEvent",
    "Retry",
    "SetBy",
    "Stats",
    "Stored",
]
