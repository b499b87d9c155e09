"""The command that serves the API."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from eventstore.access.authenticator import HOW_TO_BEGIN
from eventstore.app import Store, open_store
from eventstore.cli.output import errors
from eventstore.errors import SetupError
from eventstore.governance.keys import administrator_was_made
from eventstore.settings import load_settings

__all__ = ["register", "serve_store"]

_log = logging.getLogger(__name__)

_RESTART_S = 5.0
_PATIENCE_S = 60.0
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
) -> None:
    """Serve the HTTP API until it is told to stop (SIGINT or SIGTERM)."""
    settings = load_settings()
    with open_store(settings) as store, ExitStack() as stack:
        if not store.database.app_login:
            _log.warning(
                "the application has no database login of its own (EVENTSTORE_APP_DATABASE_URL): SQL that "
                "was smuggled in could undo row-level security; see docs/howto/database-roles.md"
            )
        if scheduler:
            stack.enter_context(_scheduler_beside())
        serve_store(
            store, host or settings.host, settings.port if port is None else port, access_log=access_log
        )


@contextmanager
def _scheduler_beside() -> Iterator[None]:
    """The scheduler as a process of its own: what it does must not hold up requests here. If it ends by
    itself, it is started again after a pause."""
    beside = _Beside()
    thread = threading.Thread(target=beside.run, name="scheduler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        beside.stop()
        thread.join()


class _Beside:
    """Keeps the scheduler's process going."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        argv = [sys.executable, "-m", "eventstore.cli.main", "scheduler", "--with-parent", str(os.getpid())]
        while True:
            with self._lock:
                if self._over.is_set():
                    return
                self._process = subprocess.Popen(argv)
            status = self._process.wait()
            if self._over.is_set():
                return
            _log.warning("the scheduler ended with status %d; it is started again", status)
            self._over.wait(_RESTART_S)

    def stop(self) -> None:
        with self._lock:
            self._over.set()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            # In the middle of a long step; whoever comes next finds everything as it must be.
            self._process.kill()


def serve_store(store: Store, host: str, port: int, *, access_log: bool = False) -> None:
    """Serve the API on an open store until a signal ends it.

    Raises:
        SetupError: the address is taken or not ours.
    """
    # Only this command needs them, and they take a while to load.
    import uvicorn

    from eventstore.console.server import create_web

    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as e:
        raise SetupError(
            f"cannot listen on {host}:{port}: {e.strerror}", hint="choose another with --port"
        ) from e
    if sys.platform == "linux":
        # What a connection has not taken in for so long is thrown away with it, once we have closed it too.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
    with listener:
        base = f"http://{host}:{listener.getsockname()[1]}"
        typer.echo(f"Serving {base}/v1 (described at {base}/openapi.json), and for people {base}/console.")
        typer.echo("Ctrl-C stops it.")
        _tell_how_to_begin(store)
        application = create_web(store)

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
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
