"""Who may ask before there is an administrator: this machine, and nobody through it.

A request from a loopback address need not be meant by someone at this machine. A proxy beside the store
passes on requests of others; a web page open in a browser here can send requests to localhost, under its own
name (then `Origin` names it) or under a name that it had pointed to 127.0.0.1 (then `Host` names that).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

__all__ = ["is_from_here", "names_loopback"]

_FORWARDING = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)
_SAME_SITE = frozenset({b"same-origin", b"none"})


def is_from_here(peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request (the address it came from, its headers with names in lower case) was made on this
    machine, for this machine."""
    if peer is None or not _is_loopback(peer):
        return False
    host = origin = None
    for name, value in headers:
        if name == b"host":
            if host is not None:
                return False
            host = value
        elif name == b"origin":
            if origin is not None:
                return False
            origin = value
        elif name in _FORWARDING or (name == b"sec-fetch-site" and value not in _SAME_SITE):
            return False
    if host is None or not _is_for_loopback(host):
        return False
    return origin is None or origin in (b"http://" + host, b"https://" + host)


@lru_cache(maxsize=64)
def _is_loopback(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


@lru_cache(maxsize=64)
def _is_for_loopback(host: bytes) -> bool:
    """Whether a Host header is localhost or a loopback address, with a port or without."""
    text = host.decode("latin-1")
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return bool(bracket) and (not port or port.startswith(":")) and _is_loopback(name)
    return names_loopback(text.partition(":")[0])


def names_loopback(host: str) -> bool:
    """Whether a host, without a port, is localhost or a loopback address."""
    return host.lower() == "localhost" or _is_loopback(host)
