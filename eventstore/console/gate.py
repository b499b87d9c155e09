"""What every answer of the console tells the browser to refuse: scripts and styles that are no files of ours,
frames around our pages, forms to elsewhere, copies in caches."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "ConsoleGate"]

_PREFIX = "/console"
_STATIC = f"{_PREFIX}/static/"
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
# For a year no plain http to this host, once it was reached by https.
_HSTS = "max-age=31536000"


class ConsoleGate:
    """ASGI middleware around the whole application, so that errors of any part have the headers too; what is
    not the console's passes untouched. `https`: a proxy takes TLS for us."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._https = https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == _PREFIX or path.startswith(f"{_PREFIX}/")):
            await self._app(scope, receive, send)
            return
        https = self._https or scope["scheme"] == "https"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if https:
                    headers["Strict-Transport-Security"] = _HSTS
                # Pages say what only their visitor may know. Files may be kept, and are asked for by their
                # ETag each time, so that a page never meets a script of another version.
                is_file = path.startswith(_STATIC) and message["status"] in (200, 304)
                headers["Cache-Control"] = "no-cache" if is_file else "no-store"
            await send(message)

        await self._app(scope, receive, guarded)
