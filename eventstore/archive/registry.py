"""Which class serves which URL scheme: a table of import paths, so that nothing is loaded in vain.

A scheme that the table does not have may be a package's, by an entry point of the group
`eventstore.archive_targets`; and `fsspec+protocol://` is any file system that fsspec knows.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast
from urllib.parse import urlsplit

from eventstore.archive.address import clean
from eventstore.archive.target import ArchiveTarget
from eventstore.errors import SetupError

__all__ = ["ENTRY_POINTS", "TARGETS", "open_target"]

ENTRY_POINTS = "eventstore.archive_targets"

TARGETS: dict[str, str] = {
    "az": "eventstore.archive.remote:AzureTarget",
    "file": "eventstore.archive.file:FileTarget",
    "gs": "eventstore.archive.remote:GoogleTarget",
    "memory": "eventstore.archive.remote:MemoryTarget",
    "s3": "eventstore.archive.s3:S3Target",
}


def open_target(url: str) -> ArchiveTarget:
    """The target of a URL. Nothing is asked of it yet; see `archive.targets` for one that is proven.

    Raises:
        SetupError: no target is known for its scheme, its package is not installed, or the URL is not right.
    """
    return cast(ArchiveTarget, _target_class(urlsplit(url).scheme).from_url(url))


def _target_class(scheme: str) -> Any:
    path = TARGETS.get(scheme)
    if path is None and scheme.startswith("fsspec+"):
        path = "eventstore.archive.remote:FsspecTarget"
    if path is not None:
        module, _, name = path.partition(":")
        return getattr(import_module(module), name)
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        try:
            return entry.load()
        except (ImportError, AttributeError) as e:
            raise SetupError(
                f"the archive target for {scheme}:// cannot be loaded: {clean(e)}",
                hint=f"see the package of {entry.value}",
            ) from e
    known = sorted({*TARGETS, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
    raise SetupError(
        f"no archive target for {scheme}://" if scheme else "an archive target's URL has no scheme",
        hint=f"use one of: {', '.join(f'{name}://' for name in known)}, or fsspec+protocol://",
    )
