"""The proof that a target does not overwrite, asked of each target before anything is put into it.

"Archive before delete" stands on create-only writes, and servers, gateways and proxies that ignore the
precondition answer as if they had heeded it. So an object is made twice.
"""

from __future__ import annotations

import uuid
from contextlib import suppress

from eventstore.archive.target import ArchiveTarget, put_bytes
from eventstore.errors import ArchiveDamageError, EventStoreError, SetupError, StateError

__all__ = ["PROBE_PREFIX", "prove_create_only"]

# A process that dies between making and removing a probe leaves it: not an object that nobody knows.
PROBE_PREFIX = "probe/"


def prove_create_only(target: ArchiveTarget) -> None:
    """Create an object twice with different bytes; the first has to stay. The object is removed again.

    Raises:
        SetupError: the target overwrites, loses what it stored, or cannot remove it.
        TargetUnavailableError: it did not answer.
    """
    check = getattr(target, "check_settings", None)
    if check is not None:
        check()
    key = f"{PROBE_PREFIX}{uuid.uuid4()}"
    first, second = (f"{word} of {key}".encode() for word in ("the first object", "another object"))
    try:
        created = put_bytes(target, key, first)
        again = put_bytes(target, key, second)
        found = _read(target, key)
    except BaseException:
        with suppress(EventStoreError):  # what failed first is what has to be told
            target.delete(key)
        raise
    try:
        target.delete(key)
    except StateError as e:
        raise SetupError(
            f"{target.describe()} locks each object by default ({e.hint})",
            hint="take its default retention away; object_lock in the target's URL locks each for its time",
        ) from e
    if not created or found is None:
        raise SetupError(
            f"{target.describe()} does not keep what it says it stored",
            hint="use another store for the archive",
        )
    if again or found != first:
        raise SetupError(
            f"{target.describe()} overwrites objects: an archive in it could be lost",
            hint="use a store that heeds If-None-Match on a PUT: a newer version, or no proxy before it",
        )


def _read(target: ArchiveTarget, key: str) -> bytes | None:
    try:
        with target.open(key) as file:
            return file.read()
    except ArchiveDamageError:
        return None
