"""Where checkpoints may be published, as the settings name it: looked at without going there.

Apart from what publishes, since every command reads the settings, and few publish.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from eventstore.errors import InputError

__all__ = ["check_destination"]


def check_destination(text: str) -> str:
    """Return the text itself.

    Raises:
        InputError: neither a path nor a file or http(s) URL.
    """
    try:
        parts = urlsplit(text)
        remote = parts.scheme in ("http", "https")
        # Asking for the port reads it.
        fits = bool(parts.hostname) and parts.port != 0 and " " not in text if remote else bool(text)
        fits = fits and (remote or parts.scheme in ("", "file"))
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"{text!r} is no place for checkpoints", hint="a path, or a file or http(s) URL")
    return text
