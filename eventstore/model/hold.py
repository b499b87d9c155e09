"""Legal holds: cases that stop the destruction of what they cover, whatever the policy says."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from eventstore.clock import parse_time_us, to_iso
from eventstore.errors import InputError

__all__ = ["Hold", "HoldScope"]

ENTITIES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class HoldScope:
    """What a hold covers: events of these entities (type, id; none: all), recorded in [from, to)
    (None: without an end on that side). All of it None: the whole tenant, for ever."""

    entities: tuple[tuple[str, str], ...] = ()
    from_us: int | None = None
    to_us: int | None = None

    def __post_init__(self) -> None:
        if self.from_us is not None and self.to_us is not None and self.from_us >= self.to_us:
            raise InputError("the hold's time range is empty", hint="its end must lie after its start")
        if len(self.entities) > ENTITIES_MAX:
            raise InputError(f"more than {ENTITIES_MAX:,} entities", hint="hold a time range instead")

    def touches(self, first_us: int, last_us: int) -> bool:
        """Whether events recorded from `first_us` to `last_us` (both inclusive) may be covered, by their
        times alone."""
        return (self.to_us is None or first_us < self.to_us) and (
            self.from_us is None or last_us >= self.from_us
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "entities": [{"entity_type": kind, "entity_id": name} for kind, name in self.entities],
            "from": None if self.from_us is None else to_iso(self.from_us),
            "to": None if self.to_us is None else to_iso(self.to_us),
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> HoldScope:
        """Read what `as_json` wrote."""
        start, end = document["from"], document["to"]
        return HoldScope(
            tuple((e["entity_type"], e["entity_id"]) for e in document["entities"]),
            None if start is None else parse_time_us(start),
            None if end is None else parse_time_us(end),
        )

    def in_words(self) -> str:
        """The scope in one line for people."""
        what = "all events"
        if self.entities:
            named = ", ".join(f"{kind} {name}" for kind, name in self.entities[:3])
            what = f"events of {named}" + (" …" if len(self.entities) > 3 else "")
        start = "" if self.from_us is None else f" from {to_iso(self.from_us)}"
        end = "" if self.to_us is None else f" before {to_iso(self.to_us)}"
        return what + start + end


@dataclass(frozen=True, slots=True)
class Hold:
    """A case. In force from its commit until it is released (`released_us` None: still in force)."""

    hold_id: uuid.UUID
    tenant_id: str
    name: str
    reason: str
    placed_by: str
    placed_us: int
    scope: HoldScope
    released_us: int | None = None
    released_by: str | None = None
    release_reason: str | None = None

    @property
    def in_force(self) -> bool:
        return self.released_us is None
