"""The client for programs with an event loop: what `Client` does, with `await`."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar, overload

import httpx
from httpx_sse import EventSource

from eventstore.client import frames
from eventstore.client.answers import Appended, EntityState, FeedReset, Flushed, Stats
from eventstore.client.attempts import Attempts, Retry, read_answer
from eventstore.client.calls import Call, Calls, ExportFormat, Moment
from eventstore.client.connection import http_options, part_path, stream_timeout
from eventstore.client.events import Event, Recordable
from eventstore.client.feeding import Following, OnReset

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """One tenant of a store, for asyncio.

    Args:
        url: of the store, such as `https://store.example`.
        tenant: whose log it is.
        api_key: sent with each request; it is in no repr and no message.
        timeout_s: for connecting, and for each wait for the answer to go on.
        reason: why a person reads, for the log of reads; some stores want one.
        retry: how often, and after what pauses, a request is sent again.
        transport: how requests are carried out, for tests and special networks.

    Every method may raise the errors of `eventstore.errors` that the store answers with, and `RetryError`
    when there was no answer after all attempts. May be used by several tasks of one event loop.
    """

    def __init__(
        self,
        url: str,
        tenant: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        reason: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.tenant = tenant
        self._retry = retry or Retry()
        self.calls = Calls(tenant)
        self._http = httpx.AsyncClient(**http_options(url, api_key, timeout_s, reason), transport=transport)

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._http.base_url)!r}, {self.tenant!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- appending --------------------------------------------------------------------------------------

    async def append(self, events: Recordable | Iterable[Recordable]) -> Appended:
        """As `Client.append`."""
        return await self._do(self.calls.append(events))

    async def record_insert(
        self,
        entity_type: str,
        entity_id: str,
        fields: Mapping[str, Any],
        *,
        actor: str,
        source: str,
        **more: Any,
    ) -> Appended:
        """As `Client.record_insert`."""
        return await self._do(
            self.calls.insert(entity_type, entity_id, fields, actor=actor, source=source, **more)
        )

    async def record_update(
        self,
        entity_type: str,
        entity_id: str,
        changes: Mapping[str, tuple[Any, Any]],
        *,
        actor: str,
        source: str,
        **more: Any,
    ) -> Appended:
        """As `Client.record_update`."""
        return await self._do(
            self.calls.update(entity_type, entity_id, changes, actor=actor, source=source, **more)
        )

    async def record_ingest(
        self, dataset: str, count: int, *, actor: str, source: str, **more: Any
    ) -> Appended:
        """As `Client.record_ingest`."""
        return await self._do(self.calls.ingest(dataset, count, actor=actor, source=source, **more))

    async def flush(self) -> Flushed:
        """Wait until everything that was accepted before is durable and visible."""
        return await self._do(self.calls.flush())

    # --- reading ----------------------------------------------------------------------------------------

    def events(
        self,
        *,
        order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
        page_events: int = 1000,
        **filters: object,
    ) -> AsyncIterator[Event]:
        """As `Client.events`."""
        return self._pages("events", limit, page_events, order=order, **filters)

    def history(
        self,
        entity_id: str,
        *,
        entity_type: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
        page_events: int = 1000,
        partial: bool | None = None,
    ) -> AsyncIterator[Event]:
        """Everything that happened to an entity."""
        return self._pages(
            self.calls.history_path(entity_id),
            limit,
            page_events,
            entity_type=entity_type,
            order=order,
            partial=partial,
        )

    async def event(self, seq_or_event_id: int | str | uuid.UUID) -> Event:
        """One event, by its seq or its event_id.

        Raises:
            EventNotFoundError
        """
        return await self._do(self.calls.event(seq_or_event_id))

    async def as_of(
        self,
        entity_id: str,
        moment: Moment | None = None,
        *,
        entity_type: str | None = None,
        partial: bool = False,
    ) -> EntityState:
        """As `Client.as_of`."""
        return await self._do(self.calls.as_of(entity_id, moment, entity_type, partial))

    async def stats(self) -> Stats:
        """How much the log holds, by tier."""
        return await self._do(self.calls.stats())

    # --- following --------------------------------------------------------------------------------------

    @overload
    def feed(
        self,
        since: int = 0,
        *,
        on_reset: Literal["raise"] = "raise",
        attempts: int | None = None,
        **filters: object,
    ) -> AsyncIterator[Event]: ...

    @overload
    def feed(
        self, since: int = 0, *, on_reset: Literal["yield"], attempts: int | None = None, **filters: object
    ) -> AsyncIterator[Event | FeedReset]: ...

    async def feed(
        self, since: int = 0, *, on_reset: OnReset = "raise", attempts: int | None = None, **filters: object
    ) -> AsyncIterator[Event | FeedReset]:
        """As `Client.feed`."""
        following = Following(
            self.calls, since, filters, on_reset=on_reset, retry=self._retry, attempts=attempts
        )
        while True:
            params, headers = following.connect()
            try:
                async with self._stream("GET", following.path, params, headers) as response:
                    if response.is_success:
                        async for message in EventSource(response).aiter_sse():
                            item = following.take(message)
                            if item is not None:
                                yield item
                            if following.over:
                                break
                        pause_s = following.ended()
                    else:
                        await response.aread()
                        item, pause_s = following.refused(response)
                        if item is not None:
                            yield item
            except httpx.TransportError as e:
                pause_s = following.lost(e)
            await asyncio.sleep(pause_s)

    # --- exporting --------------------------------------------------------------------------------------

    async def export(self, path: str | Path, format: ExportFormat = "ndjson", **filters: object) -> int:  # noqa: A002
        """As `Client.export`."""
        target = Path(path)
        part = part_path(target)
        try:
            with part.open("wb") as file:
                await self._download(self.calls.export(format, **filters), file)
                size_bytes = file.tell()
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return size_bytes

    async def to_arrow(self, **filters: object) -> Any:
        """The events that meet the conditions, as a `pyarrow.Table`; pyarrow has to be installed."""
        frames.check("pyarrow")
        sink = io.BytesIO()
        await self._download(self.calls.export("arrow", **filters), sink)
        sink.seek(0)
        return frames.arrow_table(sink)

    async def to_pandas(self, **filters: object) -> Any:
        """The same as a `pandas.DataFrame`; pyarrow and pandas have to be installed."""
        frames.check("pyarrow", "pandas")
        return frames.to_pandas(await self.to_arrow(**filters))

    async def to_polars(self, **filters: object) -> Any:
        """The same as a `polars.DataFrame`; pyarrow and polars have to be installed."""
        frames.check("pyarrow", "polars")
        return frames.to_polars(await self.to_arrow(**filters))

    # --- carrying calls out -----------------------------------------------------------------------------

    async def attempt(self, call: Call[Any]) -> httpx.Response:
        """Send a call once; the answer, whatever it is. For what has its own way of trying again.

        Raises:
            httpx.TransportError: there was none.
        """
        return await self._http.request(
            call.method, call.path, params=call.params, content=call.content, headers=call.headers
        )

    async def _do(self, call: Call[T]) -> T:
        attempts = Attempts(self._retry, self.tenant)
        while True:
            try:
                response = await self.attempt(call)
            except httpx.TransportError as e:
                pause_s = attempts.failed(e)
            else:
                asked_s = attempts.answered(response)
                if asked_s is None:
                    return read_answer(call, response)
                pause_s = asked_s
            await asyncio.sleep(pause_s)

    async def _pages(
        self, rest: str, limit: int | None, page_events: int, **params: object
    ) -> AsyncIterator[Event]:
        cursor = None
        while limit is None or limit > 0:
            wanted = page_events if limit is None else min(limit, page_events)
            page = await self._do(self.calls.page(rest, limit=wanted, cursor=cursor, **params))
            for event in page.events:
                yield event
            cursor = page.next_cursor
            if cursor is None:
                return
            if limit is not None:
                limit -= len(page.events)

    def _stream(self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        return self._http.stream(method, path, params=params, headers=headers, timeout=stream_timeout())

    async def _download(self, call: Call[Any], sink: BinaryIO) -> None:
        attempts = Attempts(self._retry, self.tenant)
        while True:
            sink.seek(0)
            sink.truncate()
            try:
                async with self._stream(call.method, call.path, call.params, call.headers) as response:
                    if response.is_success:
                        async for block in response.aiter_bytes():
                            sink.write(block)
                        return
                    await response.aread()
                    pause_s = attempts.answered(response) or 0.0
            except httpx.TransportError as e:
                pause_s = attempts.failed(e)
            await asyncio.sleep(pause_s)
