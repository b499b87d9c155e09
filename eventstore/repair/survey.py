"""Everything that lies in the targets, by what its key says: all that is left when Postgres is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from eventstore.archive.layout import (
    KEYS_PREFIX,
    MARKER_KEY,
    parse_certificate_key,
    parse_governance_key,
    parse_segment_key,
)
from eventstore.archive.probe import PROBE_PREFIX
from eventstore.archive.targets import Targets
from eventstore.errors import ArchiveDamageError, SetupError

__all__ = ["Held", "Survey", "read_object", "survey_targets"]


@dataclass(frozen=True, slots=True)
class Held:
    """An object in a target."""

    target: str
    key: str
    size_bytes: int


@dataclass(slots=True)
class Survey:
    """What the targets of one store hold. `certificates` and `governance` by their numbers; an object may be
    in several targets. `unknown`: keys that the store did not make."""

    store_id: str
    segments: dict[str, list[Held]] = field(default_factory=dict)
    certificates: dict[str, dict[int, list[Held]]] = field(default_factory=dict)
    governance: dict[int, list[Held]] = field(default_factory=dict)
    keys: list[Held] = field(default_factory=list)
    unknown: list[Held] = field(default_factory=list)

    def add(self, held: Held) -> None:
        segment, certificate = parse_segment_key(held.key), parse_certificate_key(held.key)
        entry_no = parse_governance_key(held.key)
        if segment is not None:
            self.segments.setdefault(segment.tenant_id, []).append(held)
        elif certificate is not None:
            tenant_id, number = certificate
            self.certificates.setdefault(tenant_id, {}).setdefault(number, []).append(held)
        elif entry_no is not None:
            self.governance.setdefault(entry_no, []).append(held)
        elif held.key.startswith(KEYS_PREFIX):
            self.keys.append(held)
        elif held.key != MARKER_KEY and not held.key.startswith(PROBE_PREFIX):
            self.unknown.append(held)


def survey_targets(targets: Targets, progress: Callable[[str, int], None] | None = None) -> Survey:
    """List every configured target. `progress` is told a target and how many objects it has listed.

    Raises:
        SetupError: a target carries no store's marker, or they are not all of one store.
        TargetUnavailableError: a target did not answer.
    """
    ids = {name: _store_id(targets, name) for name in targets.names}
    if len(set(ids.values())) != 1:
        said = ", ".join(f"{name!r}: {store_id}" for name, store_id in ids.items())
        raise SetupError(
            f"the targets are not those of one store ({said})",
            hint="set EVENTSTORE_ARCHIVE_URL and EVENTSTORE_TARGETS to what they were",
        )
    survey = Survey(next(iter(ids.values())))
    for name in targets.names:
        for count, found in enumerate(targets[name].list(), start=1):
            survey.add(Held(name, found.key, found.size_bytes))
            if progress is not None and count % 1000 == 0:
                progress(name, count)
    return survey


def _store_id(targets: Targets, name: str) -> str:
    try:
        return str(json.loads(read_object(targets, Held(name, MARKER_KEY, 0)))["store_id"])
    except ArchiveDamageError as e:
        raise SetupError(
            f"target {name!r} ({targets[name].describe()}) carries no store's marker",
            hint="set EVENTSTORE_ARCHIVE_URL and EVENTSTORE_TARGETS to the targets that the store had, all of"
            " them and no other",
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise SetupError(
            f"the marker {MARKER_KEY} in {targets[name].describe()} is damaged",
            hint='write it again, as another target\'s: {"store_id": "…"}',
        ) from e


def read_object(targets: Targets, held: Held) -> bytes:
    """The bytes of a small object.

    Raises:
        ArchiveDamageError, TargetUnavailableError
    """
    with targets[held.target].open(held.key) as file:
        return file.read()
