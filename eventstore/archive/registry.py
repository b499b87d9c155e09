"""Which class serves which URL scheme: a table of import paths, so that nothing is loaded in vain."""

from __future__ import annotations

from importlib import import_module
from typing import cast
from urllib.parse import urlsplit

from eventstore.archive.target import ArchiveTarget
from eventstore.errors import SetupError

__all__ = ["TARGETS", "open_target"]

TARGETS: dict[str, str] = {
    "file": "eventstore.archive.file:FileTarget",
}


def open_target(url: str) -> ArchiveTarget:
    """The target of a URL.

    Raises:
        SetupError: no target is known for its scheme.
    """
    scheme = urlsplit(url).scheme
    path = TARGETS.get(scheme)
    if path is None:
        raise SetupError(
            f"no archive target for {scheme or url!r}",
            hint=f"use one of: {', '.join(f'{known}://' for known in sorted(TARGETS))}",
        )
    module, _, name = path.partition(":")
    return cast(ArchiveTarget, getattr(import_module(module), name).from_url(url))
