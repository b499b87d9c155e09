"""The limit of single events over HTTP: a FastAPI endpoint that reads the body and does nothing."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI, Request, Response


def _app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.post("/v1/tenants/{tenant}/events", status_code=201)
    async def nothing(tenant: str, request: Request) -> Response:
        await request.body()
        return Response(b'{"first_seq":1,"last_seq":1,"count":1}', 201, media_type="application/json")

    return app


def _main() -> None:
    """Serve it the way `eventstore serve` serves."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"Serving http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        config = uvicorn.Config(
            _app(), loop="uvloop", http="httptools", ws="none", access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _main()
