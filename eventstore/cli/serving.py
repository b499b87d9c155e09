"""The command that serves the API."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer

from eventstore.access.authenticator import HOW_TO_BEGIN
from eventstore.app import Store, open_store
from eventstore.cli.beside import Beside, end_with
from eventstore.cli.output import errors
from eventstore.errors import SetupError
from eventstore.governance.keys import administrator_was_made
from eventstore.settings import load_settings

__all__ = ["listen", "register", "serve_store"]

_log = logging.getLogger(__name__)

_UNTAKEN_MS = 60_000


def register(app: typer.Typer) -> None:
    """Add the serving command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (EVENTSTORE_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (EVENTSTORE_PORT); 0 picks one.")
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log each request.")] = False,
    scheduler: Annotated[
        bool, typer.Option(help="Run the scheduler and a worker beside it, in a process of their own.")
    ] = True,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that answer on the port; one uses one CPU core.")
    ] = 1,
    listener: Annotated[
        int | None, typer.Option(hidden=True, help="The listening socket of the first process.")
    ] = None,
    with_parent: Annotated[
        int | None, typer.Option(hidden=True, help="End when this process does, which started us.")
    ] = None,
) -> None:
    """Serve the HTTP API until it is told to stop (SIGINT or SIGTERM)."""
    if with_parent is not None:
        end_with(with_parent)
    settings = load_settings()
    with open_store(settings) as store, ExitStack() as stack:
        if listener is not None:
            # One of several: what there is to say, the first has said.
            serve_store(store, stack.enter_context(socket.socket(fileno=listener)), access_log=access_log)
            return
        if not store.database.app_login:
            _log.warning(
                "the application has no database login of its own (EVENTSTORE_APP_DATABASE_URL): SQL that "
                "was smuggled in could undo row-level security; see docs/howto/database-roles.md"
            )
        sock = stack.enter_context(
            listen(store, host or settings.host, settings.port if port is None else port)
        )
        beside = [Beside("the scheduler", "scheduler")] if scheduler else []
        more = ["serve", "--listener", str(sock.fileno()), *(["--access-log"] if access_log else [])]
        beside += [
            Beside(f"serving process {n}", *more, pass_fds=[sock.fileno()]) for n in range(2, processes + 1)
        ]
        for process in beside:
            stack.enter_context(process)

        def on_end() -> None:
            for process in beside:
                process.tell_to_end()

        serve_store(store, sock, access_log=access_log, on_end=on_end)


def listen(store: Store, host: str, port: int) -> socket.socket:
    """The socket that is served; where that is, and how to begin, is told.

    Raises:
        SetupError: the address is taken or not ours.
    """
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as e:
        raise SetupError(
            f"cannot listen on {host}:{port}: {e.strerror}", hint="choose another with --port"
        ) from e
    if sys.platform == "linux":
        # What a connection has not taken in for so long is thrown away with it, once we have closed it too.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
    base = f"http://{host}:{listener.getsockname()[1]}"
    typer.echo(f"Serving {base}/v1 (described at {base}/openapi.json), and for people {base}/console.")
    typer.echo("Ctrl-C stops it.")
    _tell_how_to_begin(store)
    return listener


def serve_store(
    store: Store,
    listener: socket.socket,
    *,
    access_log: bool = False,
    on_end: Callable[[], None] | None = None,
) -> None:
    """Serve the API on an open store until a signal ends it; `on_end` is called when that has come, before
    requests under way are waited for."""
    # Only this command needs them, and they take a while to load.
    import uvicorn

    from eventstore.console.server import create_web

    application = create_web(store)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if on_end is not None:
                on_end()
            # Before connections are waited for: feeds have no end of their own.
            application.state.feeds.end()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        # Who connected, whatever a header says: until there is an administrator it decides.
        proxy_headers=False,
        access_log=access_log,
        log_level="info" if access_log else "warning",
        timeout_graceful_shutdown=30,
    )
    Server(config).run(sockets=[listener])


def _tell_how_to_begin(store: Store) -> None:
    if store.settings.oidc is not None:
        return
    with store.database.transaction() as conn:
        if administrator_was_made(conn):
            return
    errors.print(
        "There is no administrator yet: requests of this machine need no key, all others are refused.\n"
        f"  [dim]→[/] {HOW_TO_BEGIN}",
        highlight=False,
        soft_wrap=True,
    )
