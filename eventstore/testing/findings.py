"""What the checker says, and what it needs of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from eventstore.testing.reference import Folder

__all__ = ["Archive", "Archives", "Report", "Violation", "archives_by_name"]

# What a deployment calls its archive unless it has several.
_DEFAULT = "archive"


class Archive(Protocol):
    """What is needed of an archive; every `ArchiveTarget` has it."""

    def open(self, key: str) -> BinaryIO: ...
    def list(self, prefix: str = "") -> Iterator[Any]: ...


Archives = Mapping[str, Archive]


def archives_by_name(archive: Path | Archive | Mapping[str, Path | Archive]) -> dict[str, Archive]:
    """The archives under their names; a single one is the default one. A path is a folder."""
    given = archive if isinstance(archive, Mapping) else {_DEFAULT: archive}
    return {name: Folder(found) if isinstance(found, Path) else found for name, found in given.items()}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be. `kind` is a short fixed word, `message` names the place."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(slots=True)
class Report:
    """What was found. `orphans` are objects that nothing names: legal after a crash (the retry adopts them),
    so they are told apart from violations; with several archives, each with its archive's name before it.
    `events` counts each event that is still there once, `destroyed` those that certificates stand for."""

    violations: list[Violation] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    events: int = 0
    destroyed: int = 0

    def add(self, kind: str, message: str) -> None:
        self.violations.append(Violation(kind, message))

    @property
    def kinds(self) -> set[str]:
        return {v.kind for v in self.violations}

    def __str__(self) -> str:
        lines = [str(v) for v in self.violations] + [f"orphan (legal): {key}" for key in self.orphans]
        counts = f"{self.events} events, {self.destroyed} destroyed, {len(self.violations)} violations"
        return "\n".join([counts, *lines])
