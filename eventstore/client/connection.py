"""What both clients tell httpx."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import httpx

from eventstore.client.feeding import READ_TIMEOUT_S
from eventstore.errors import InputError

__all__ = ["http_options", "part_path", "stream_timeout"]


def http_options(url: str, api_key: str | None, timeout_s: float, reason: str | None) -> dict[str, Any]:
    """Arguments of httpx's clients.

    Raises:
        InputError: the address is none.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as e:
        raise InputError(f"{url!r} is no address: {e}", hint="give one like https://store.example") from e
    if parsed.userinfo:
        raise InputError("the address has a user or a password in it", hint="give the key as api_key")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is no address of a store", hint="give one like https://store.example")
    headers = {"accept": "application/json"}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise InputError("the API key has a blank or another character that no key has")
        # httpx hides this header's value in what it prints.
        headers["authorization"] = f"Bearer {api_key}"
    if reason is not None:
        if not reason.isascii() or not reason.isprintable():
            raise InputError("a reason travels in a header, and so in ASCII", hint="write it without accents")
        headers["eventstore-reason"] = reason
    return {"base_url": parsed, "headers": headers, "timeout": timeout_s}


def stream_timeout() -> httpx.Timeout:
    """For answers that go on: how long they may be silent."""
    return httpx.Timeout(30.0, read=READ_TIMEOUT_S)


def part_path(target: Path) -> Path:
    """Where a file lies until it is whole: beside its place, so that it can be renamed."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
