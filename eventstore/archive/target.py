"""The archive target: where segments go. A few verbs, and what each promises.

A target keeps immutable objects under keys. It never overwrites: that is the promise on which "archive
before delete" stands, and a target that cannot keep it must not be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

from eventstore.errors import TargetUnavailableError

__all__ = ["ArchiveTarget", "ObjectInfo", "keep_object", "put_bytes"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it. `version` changes whenever its bytes may have changed."""

    key: str
    size_bytes: int
    version: str


class ArchiveTarget(Protocol):
    """Keys are relative, '/'-separated, and made by `archive.layout` alone. Safe for many threads.

    A target may have more: `pushback`, a count that only rises, of the answers that asked for less;
    `on_retry(attempt, reason, backoff_s)`, an attribute that is called before each wait; `check_settings()`,
    called once when it is opened; `keep(key, retain_until_us)`, which locks an object that is there as `put`
    would have; `close()`. Who uses them asks first whether they are there.
    """

    def stage(self, key: str) -> Path:
        """A fresh local path at which to build the object for `put`. Staged files are never listed."""
        ...

    def put(self, key: str, staged: Path, *, retain_until_us: int | None = None) -> bool:
        """Store the staged file under the key, unless the key exists. The staged file is used up.

        When this returns True, the whole object is durable under the key: it survives a power cut, and
        nobody ever sees a part of it. False: there is an object already, which is untouched. It may be equal,
        and even be from this very call, where an answer was lost on the way.
        `retain_until_us` is the end of the tier: a target with object lock keeps the object from deletion
        until then, others ignore it. None: nothing is locked.

        Raises:
            TargetUnavailableError: it could not be stored; whether the object exists is unknown.
        """
        ...

    def open(self, key: str) -> BufferedIOBase:
        """The object's stored bytes, from its beginning.

        Raises:
            ArchiveDamageError: there is no such object.
            TargetUnavailableError: the target did not answer.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Size and version of an object.

        Raises:
            ArchiveDamageError: there is no such object.
            TargetUnavailableError: the target did not answer.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key begins with the prefix, in the order of keys.

        Raises:
            TargetUnavailableError: the target did not answer; never an empty or a short list instead.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object, durably and in every version; no error if there is none.

        Raises:
            StateError: the target itself keeps it from deletion, until a time or until a hold is released.
            TargetUnavailableError: the target did not answer; whether the object exists is unknown.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a local file, if it exists. None: it has to be fetched."""
        ...

    def describe(self) -> str:
        """The target in words for a person, without credentials."""
        ...


def put_bytes(target: ArchiveTarget, key: str, data: bytes) -> bool:
    """Store a small object by `put`, and answer as it does.

    Raises:
        TargetUnavailableError: it could not be stored, or there is no room to stage it.
    """
    staged = target.stage(key)
    try:
        staged.write_bytes(data)
    except OSError as e:
        staged.unlink(missing_ok=True)
        raise TargetUnavailableError(
            f"{target.describe()}: cannot stage {key}: {e.strerror}", hint="make room there"
        ) from e
    return target.put(key, staged)


def keep_object(target: ArchiveTarget, key: str, retain_until_us: int | None) -> None:
    """An object that was there already, and is taken for one's own, is kept as long as one that is put now.

    Raises:
        TargetUnavailableError: the target did not answer, or may not lock it.
    """
    keep = getattr(target, "keep", None)
    if keep is not None:
        keep(key, retain_until_us)
