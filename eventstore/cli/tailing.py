"""The command that follows a log: the newest events, and then what comes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.markup import escape

from eventstore.app import Store, open_store
from eventstore.cli.event_output import write_events
from eventstore.cli.filters import with_filter
from eventstore.cli.output import Format, errors, resolve_format
from eventstore.cli.reading import FormatOption, TenantArgument
from eventstore.client import Client, Event, FeedReset
from eventstore.columns.schema import EVENT_FIELDS, EVENT_SCHEMA
from eventstore.errors import EventStoreError, FeedResetError, RetryError
from eventstore.hot.wake import Wakes
from eventstore.model.event import VALUE_FIELDS
from eventstore.model.query import FEED_FILTERS, EventFilter, Order
from eventstore.query.feed import FeedReader
from eventstore.settings import load_settings

__all__ = ["register"]

# Without being woken (by an import, say) the log is looked at so often, in seconds.
_LOOK_S = 1.0
# What a shell expects of a program that Ctrl-C ended.
_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the following command."""
    app.command("tail")(tail)


@with_filter(*FEED_FILTERS)
def tail(
    tenant: TenantArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the newest first.")] = 10,
    *,
    wanted: EventFilter,
    form: FormatOption = None,
    url: Annotated[
        str | None, typer.Option(help="Ask the store served there, over HTTP, instead of opening it here.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="EVENTSTORE_KEY", show_envvar=True, help="The API key for --url."),
    ] = None,
) -> None:
    """Show the newest events, oldest first; with -f, and then each as it comes."""
    if url is not None:
        with Client(url, tenant, api_key=api_key) as client:
            _show(_served_events(client, wanted, lines, follow=follow), form)
        return
    with open_store(load_settings()) as store, ExitStack() as stack:
        woken = threading.Event()
        if follow:
            wakes = Wakes(store.database)
            wakes.start(tell=False)
            stack.callback(wakes.close)
            stack.enter_context(wakes.listening(lambda name: woken.set() if name in (None, tenant) else None))
        _show(_events(store, tenant, wanted, lines, woken if follow else None), form)


def _show(events: Iterable[pa.Table], form: Format | None) -> None:
    try:
        write_events(events, resolve_format(form))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def _events(
    store: Store, tenant: str, wanted: EventFilter, lines: int, woken: threading.Event | None
) -> Iterator[pa.Table]:
    """The newest events up to the log's end as it is, and, with `woken`, all that follow it."""
    reader = FeedReader(store.tiers)
    cursor = reader.head(tenant)
    if lines:
        yield _newest(store, tenant, wanted, lines, cursor)
    while woken is not None:
        # Whatever was shown is to be seen, also through a pipe, before anything is waited for.
        sys.stdout.flush()
        woken.wait(_LOOK_S)
        woken.clear()
        try:
            for look in reader.read(tenant, cursor, wanted):
                cursor = look.through
                if look.events.num_rows:
                    yield look.events
        except FeedResetError as e:
            _tell(e)
            cursor = e.since
        except RetryError as e:
            _tell(e)


def _newest(store: Store, tenant: str, wanted: EventFilter, lines: int, last_seq: int) -> pa.Table:
    """The last so many events up to a seq, oldest first. What was destroyed is not missed here."""
    steps = store.reader.stream(tenant, wanted, order=Order.DESC, after=last_seq + 1, limit=lines)
    found = pa.concat_tables([EVENT_SCHEMA.empty_table(), *steps])
    return found.take(pc.sort_indices(found, [("seq", "ascending")]))


def _served_events(client: Client, wanted: EventFilter, lines: int, *, follow: bool) -> Iterator[pa.Table]:
    """The same over HTTP, with what a reader's key may ask."""
    filters = {name: value for name in FEED_FILTERS if (value := getattr(wanted, name)) is not None}
    cursor = client.stats().head.last_seq
    if lines and cursor:
        newest = client.events(
            order="desc", limit=lines, page_events=min(lines, 1000), seq_to=cursor, **filters
        )
        yield _table(list(newest)[::-1])
    if not follow:
        return
    sys.stdout.flush()
    for item in client.feed(cursor, on_reset="yield", **filters):
        if isinstance(item, FeedReset):
            _tell(f"events up to seq {item.since} were destroyed; going on behind them")
            continue
        yield _table([item])
        sys.stdout.flush()


def _table(events: Sequence[Event]) -> pa.Table:
    def text(value: object) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    rows = [
        {name: getattr(event, name) for name in EVENT_FIELDS}
        | {"event_id": event.event_id.bytes, "hash": bytes.fromhex(event.hash)}
        | {name: text(getattr(event, name)) for name in VALUE_FIELDS}
        for event in events
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def _tell(error: EventStoreError | str) -> None:
    errors.print(f"[yellow]{escape(str(error))}[/]", highlight=False)
