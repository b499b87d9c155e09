"""URLs of archive targets: taken apart, checked, and never repeated with what may be a secret in them.

Credentials come as each ecosystem gives them (environment, profiles, roles of the machine), never in a URL:
URLs end up in process lists, settings pages and logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from eventstore.errors import SetupError

__all__ = ["Address", "clean", "location_of"]

_SECRET_NAME = re.compile(
    r"key|secret|token|passw|pwd|credential|signature|\bsig\b|\bsas|connection_string|auth|user",
    re.IGNORECASE,
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HINT = (
    "give credentials as the object store's own tools take them: environment, profile or the machine's role"
)

# What error texts of HTTP libraries may hold. Whole query strings go: signed URLs carry their right in them.
_CLEANING: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@'\"<>]*@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>]*", re.IGNORECASE), r"\1?***"),
    (re.compile(r"\b(Bearer|Basic|AWS4-HMAC-SHA256|SharedKey|AWS)\s+[^\s'\"<>,;][^'\"<>\n]*"), r"\1 ***"),
    (
        re.compile(
            r"((?:x-amz-)?(?:authorization|security-token|credential|signature|(?:aws)?_?(?:secret)?_?access_?key"
            r"(?:_?id)?|account_?key|shared_?access_?signature|secret\w*|\w*token|password|api_?key|\bsig)"
            r"['\"]?\s*(?:[:=]>?|>)\s*['\"]?)(?!\*\*\*)[^\s'\"&,;<>)]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"\b(?:AKIA|ASIA|AROA)[A-Z0-9]{8,}"), "***"),
    (re.compile(r"\bya29\.[\w.-]+"), "***"),
)
_TEXT_MAX = 300


def clean(text: object) -> str:
    """A text of somebody else's (an exception's, a URL) on one line, short, and without credentials."""
    result = " ".join(str(text).split())
    for pattern, replacement in _CLEANING:
        result = pattern.sub(replacement, result)
    return result if len(result) <= _TEXT_MAX else result[:_TEXT_MAX] + "…"


@dataclass(frozen=True, slots=True)
class Address:
    """A target's URL: `scheme://container/prefix?option=value`. `prefix` has no '/' at its ends."""

    scheme: str
    container: str
    prefix: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, *, known: Iterable[str] | None) -> Address:
        """Take a URL apart. `known` names the options it may have; None: any that is no credential.

        Raises:
            SetupError: it has credentials, no container, or an unknown option. Never repeats a secret.
        """
        try:
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise SetupError("the target's URL cannot be read", hint=_form(known)) from None
        # A user alone is a name, not a secret; but where it has no meaning, it is a key id.
        user, has_user, _ = parts.netloc.rpartition("@")
        if has_user and (known is not None or ":" in user):
            raise SetupError(f"a {parts.scheme}:// URL of a target has credentials in it", hint=_HINT)
        if known is not None and ":" in parts.netloc:
            raise SetupError(
                f"a {parts.scheme}:// URL of a target has a ':' in its bucket", hint=_form(known)
            )
        if parts.fragment or "#" in url:
            raise SetupError(f"a {parts.scheme}:// URL of a target has a '#' in it", hint=_form(known))
        options: dict[str, str] = {}
        for name, value in pairs:
            _check_option(parts.scheme, name, value, known)
            options[name] = value
        if not parts.netloc and known is not None:
            raise SetupError(f"a {parts.scheme}:// URL of a target names no bucket", hint=_form(known))
        prefix = "/".join(part for part in unquote(parts.path).split("/") if part)
        if ".." in prefix.split("/"):
            raise SetupError("a target's prefix must not contain '..'", hint=_form(known))
        return cls(parts.scheme.lower(), parts.netloc, prefix, options)

    @property
    def root(self) -> str:
        """Container and prefix, as fsspec takes a path."""
        return f"{self.container}/{self.prefix}" if self.prefix else self.container

    def number(self, name: str, default: float) -> float:
        """An option that is a positive number.

        Raises:
            SetupError: it is not one.
        """
        text = self.options.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) or float(text) <= 0:
            raise SetupError(f"{name} of a {self.scheme}:// URL is not a positive number", hint=f"{name}=30")
        return float(text)

    def __str__(self) -> str:
        text = f"{self.scheme}://{self.root.rpartition('@')[2]}"
        endpoint = self.options.get("endpoint_url")
        return f"{text} at {clean(endpoint)}" if endpoint else text


def location_of(url: str) -> str:
    """Where a URL's objects lie, in one form: two URLs of one place give the same text.

    Raises:
        SetupError: it cannot be read.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme == "file":
        return f"file://{os.path.realpath(unquote(urlsplit(url).path))}"
    address = Address.parse(url, known=None)
    # Parameters of access (profile, time-out) do not tell places apart; servers and accounts do.
    place = [
        address.options.get(name, "").rstrip("/").lower()
        for name in ("endpoint_url", "account_name", "account_host")
    ]
    return f"{scheme}://{','.join(place)}/{address.root}"


def _check_option(scheme: str, name: str, value: str, known: Iterable[str] | None) -> None:
    if known is not None and name in known:
        if name.endswith("_url") and not re.fullmatch(r"https?://[^@?#\s]+", value):
            raise SetupError(
                f"{name} of a {scheme}:// URL has to be http(s)://host[:port], without credentials",
                hint=_HINT,
            )
        return
    if _SECRET_NAME.search(name):
        raise SetupError(f"a {scheme}:// URL of a target has credentials among its options", hint=_HINT)
    # A name that does not look like one may be a secret that slipped there; it is not repeated.
    shown = repr(name) if re.fullmatch(r"[a-z_]{1,20}", name) else "of that name"
    if known is not None or not _NAME.fullmatch(name):
        raise SetupError(f"a {scheme}:// URL of a target has no option {shown}", hint=_form(known))


def _form(known: Iterable[str] | None) -> str:
    if known is None:
        return "write fsspec+protocol://host/path?option=value"
    names = ", ".join(sorted(known))
    return f"write scheme://bucket/prefix, with the options: {names}" if names else "it takes no options"
