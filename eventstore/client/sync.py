"""The client for programs without an event loop."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
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

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """One tenant of a store.

    Args:
        url: of the store, such as `https://store.example`.
        tenant: whose log it is.
        api_key: sent with each request; it is in no repr and no message.
        timeout_s: for connecting, and for each wait for the answer to go on.
        reason: why a person reads, for the log of reads; some stores want one.
        retry: how often, and after what pauses, a request is sent again.
        transport: how requests are carried out, for tests and special networks.

    Every method may raise the errors of `eventstore.errors` that the store answers with, and `RetryError`
    when there was no answer after all attempts. May be used by several threads.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.tenant = tenant
        self._retry = retry or Retry()
        self.calls = Calls(tenant)
        self._http = httpx.Client(**http_options(url, api_key, timeout_s, reason), transport=transport)

    def __repr__(self) -> str:
        return f"Client({str(self._http.base_url)!r}, {self.tenant!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- appending --------------------------------------------------------------------------------------

    def append(self, events: Recordable | Iterable[Recordable]) -> Appended:
        """Store one event, or many: all of them or none. Returns once they are durable.

        Raises:
            InvalidEventError, TooLargeError: an event breaks a rule; `place` says where.
            VersionConflictError: an `expected_version` does not hold.
        """
        return self._do(self.calls.append(events))

    def record_insert(
        self,
        entity_type: str,
        entity_id: str,
        fields: Mapping[str, Any],
        *,
        actor: str,
        source: str,
        **more: Any,
    ) -> Appended:
        """A record was made, with these fields. `more`: `workspace_id`, `metadata`, `event_id`,
        `occurred_at`, `expected_version`, as an event has them."""
        return self._do(self.calls.insert(entity_type, entity_id, fields, actor=actor, source=source, **more))

    def record_update(
        self,
        entity_type: str,
        entity_id: str,
        changes: Mapping[str, tuple[Any, Any]],
        *,
        actor: str,
        source: str,
        **more: Any,
    ) -> Appended:
        """Fields of a record were changed, each from an old to a new value: an event for each field, stored
        together. `more` as in `record_insert`."""
        return self._do(
            self.calls.update(entity_type, entity_id, changes, actor=actor, source=source, **more)
        )

    def record_ingest(self, dataset: str, count: int, *, actor: str, source: str, **more: Any) -> Appended:
        """A batch of `count` rows came into a dataset. `more` as in `record_insert`."""
        return self._do(self.calls.ingest(dataset, count, actor=actor, source=source, **more))

    def flush(self) -> Flushed:
        """Wait until everything that was accepted before is durable and visible."""
        return self._do(self.calls.flush())

    # --- reading ----------------------------------------------------------------------------------------

    def events(
        self,
        *,
        order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
        page_events: int = 1000,
        **filters: object,
    ) -> Iterator[Event]:
        """The events that meet all conditions, in the order of the log, a page at a time.

        `filters`: `entity_type`, `entity_id`, `actor`, `action`, `field`, `source`, `workspace_id`, `text`,
        `recorded_from`, `recorded_to`, `occurred_from`, `occurred_to`, `seq_from`, `seq_to`, `partial`.
        """
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
    ) -> Iterator[Event]:
        """Everything that happened to an entity."""
        return self._pages(
            self.calls.history_path(entity_id),
            limit,
            page_events,
            entity_type=entity_type,
            order=order,
            partial=partial,
        )

    def event(self, seq_or_event_id: int | str | uuid.UUID) -> Event:
        """One event, by its seq or its event_id.

        Raises:
            EventNotFoundError
        """
        return self._do(self.calls.event(seq_or_event_id))

    def as_of(
        self,
        entity_id: str,
        moment: Moment | None = None,
        *,
        entity_type: str | None = None,
        partial: bool = False,
    ) -> EntityState:
        """An entity's fields as the log says they were at a moment (now by default), each with the event that
        set it."""
        return self._do(self.calls.as_of(entity_id, moment, entity_type, partial))

    def stats(self) -> Stats:
        """How much the log holds, by tier."""
        return self._do(self.calls.stats())

    # --- following --------------------------------------------------------------------------------------

    @overload
    def feed(
        self,
        since: int = 0,
        *,
        on_reset: Literal["raise"] = "raise",
        attempts: int | None = None,
        **filters: object,
    ) -> Iterator[Event]: ...

    @overload
    def feed(
        self, since: int = 0, *, on_reset: Literal["yield"], attempts: int | None = None, **filters: object
    ) -> Iterator[Event | FeedReset]: ...

    def feed(
        self, since: int = 0, *, on_reset: OnReset = "raise", attempts: int | None = None, **filters: object
    ) -> Iterator[Event | FeedReset]:
        """The events behind the seq `since`, then new ones as they come, without an end.

        When the connection breaks it connects again, from the last event that was given; `attempts` bounds
        how often in a row in vain. `filters` are equal texts: `entity_type`, `entity_id`, `actor`,
        `action`, `field`, `source`, `workspace_id`.

        Raises:
            FeedResetError: what follows `since` was destroyed. With `on_reset="yield"` a `FeedReset` is given
                instead, and the feed goes on with what exists.
            CoverageError: the feed left out an event.
            EventStoreError: an error that the feed tells of.
        """
        following = Following(
            self.calls, since, filters, on_reset=on_reset, retry=self._retry, attempts=attempts
        )
        while True:
            params, headers = following.connect()
            try:
                with self._stream("GET", following.path, params, headers) as response:
                    if response.is_success:
                        for message in EventSource(response).iter_sse():
                            item = following.take(message)
                            if item is not None:
                                yield item
                            if following.over:
                                break
                        pause_s = following.ended()
                    else:
                        response.read()
                        item, pause_s = following.refused(response)
                        if item is not None:
                            yield item
            except httpx.TransportError as e:
                pause_s = following.lost(e)
            time.sleep(pause_s)

    # --- exporting --------------------------------------------------------------------------------------

    def export(self, path: str | Path, format: ExportFormat = "ndjson", **filters: object) -> int:  # noqa: A002
        """Write the events that meet the conditions of `events` to a file; its size in bytes.

        The file has its name only when it is whole. Needs a key that may export.
        """
        target = Path(path)
        part = part_path(target)
        try:
            with part.open("wb") as file:
                self._download(self.calls.export(format, **filters), file)
                size_bytes = file.tell()
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return size_bytes

    def to_arrow(self, **filters: object) -> Any:
        """The events that meet the conditions, as a `pyarrow.Table`; pyarrow has to be installed."""
        frames.check("pyarrow")
        sink = io.BytesIO()
        self._download(self.calls.export("arrow", **filters), sink)
        sink.seek(0)
        return frames.arrow_table(sink)

    def to_pandas(self, **filters: object) -> Any:
        """The same as a `pandas.DataFrame`; pyarrow and pandas have to be installed."""
        frames.check("pyarrow", "pandas")
        return frames.to_pandas(self.to_arrow(**filters))

    def to_polars(self, **filters: object) -> Any:
        """The same as a `polars.DataFrame`; pyarrow and polars have to be installed."""
        frames.check("pyarrow", "polars")
        return frames.to_polars(self.to_arrow(**filters))

    # --- carrying calls out -----------------------------------------------------------------------------

    def attempt(self, call: Call[Any]) -> httpx.Response:
        """Send a call once; the answer, whatever it is. For what has its own way of trying again.

        Raises:
            httpx.TransportError: there was none.
        """
        return self._http.request(
            call.method, call.path, params=call.params, content=call.content, headers=call.headers
        )

    def _do(self, call: Call[T]) -> T:
        attempts = Attempts(self._retry, self.tenant)
        while True:
            try:
                response = self.attempt(call)
            except httpx.TransportError as e:
                pause_s = attempts.failed(e)
            else:
                asked_s = attempts.answered(response)
                if asked_s is None:
                    return read_answer(call, response)
                pause_s = asked_s
            time.sleep(pause_s)

    def _pages(self, rest: str, limit: int | None, page_events: int, **params: object) -> Iterator[Event]:
        cursor = None
        while limit is None or limit > 0:
            wanted = page_events if limit is None else min(limit, page_events)
            page = self._do(self.calls.page(rest, limit=wanted, cursor=cursor, **params))
            yield from page.events
            cursor = page.next_cursor
            if cursor is None:
                return
            if limit is not None:
                limit -= len(page.events)

    def _stream(self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        return self._http.stream(method, path, params=params, headers=headers, timeout=stream_timeout())

    def _download(self, call: Call[Any], sink: BinaryIO) -> None:
        attempts = Attempts(self._retry, self.tenant)
        while True:
            sink.seek(0)
            sink.truncate()
            try:
                with self._stream(call.method, call.path, call.params, call.headers) as response:
                    if response.is_success:
                        for block in response.iter_bytes():
                            sink.write(block)
                        return
                    response.read()
                    pause_s = attempts.answered(response) or 0.0
            except httpx.TransportError as e:
                pause_s = attempts.failed(e)
            time.sleep(pause_s)
