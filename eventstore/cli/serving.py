"""The command that serves the API."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from eventstore.app import Store, open_store
from eventstore.errors import SetupError
from eventstore.settings import load_settings

__all__ = ["register", "serve_store"]


def register(app: typer.Typer) -> None:
    """Add the serving command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (EVENTSTORE_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (EVENTSTORE_PORT); 0 picks one.")
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log each request.")] = False,
) -> None:
    """Serve the HTTP API until it is told to stop (SIGINT or SIGTERM)."""
    settings = load_settings()
    with open_store(settings) as store:
        serve_store(
            store, host or settings.host, settings.port if port is None else port, access_log=access_log
        )


def serve_store(store: Store, host: str, port: int, *, access_log: bool = False) -> None:
    """Serve the API on an open store until a signal ends it.

    Raises:
        SetupError: the address is taken or not ours.
    """
    # Only this command needs them, and they take a while to load.
    import uvicorn

    from eventstore.api.server import create_app

    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as e:
        raise SetupError(
            f"cannot listen on {host}:{port}: {e.strerror}", hint="choose another with --port"
        ) from e
    with listener:
        base = f"http://{host}:{listener.getsockname()[1]}"
        typer.echo(f"Serving {base}/v1 (described at {base}/openapi.json). Ctrl-C stops it.")
        config = uvicorn.Config(
            create_app(store),
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=access_log,
            log_level="info" if access_log else "warning",
            timeout_graceful_shutdown=30,
        )
        uvicorn.Server(config).run(sockets=[listener])
