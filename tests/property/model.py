"""What a log is, as a plain Python list: the model that the store is held against."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.unit.helpers import DAY_US

BEFORE_ALL_US = -62_135_596_800_000_000


@dataclass
class Stored:
    seq: int
    event_id: bytes
    recorded_at_us: int
    occurred_at_us: int
    entity_type: str
    entity_id: str
    action: str
    actor: str
    new_value: str | None


@dataclass
class ModelStore:
    """One tenant with windows of a day, each due at its end."""

    events: list[Stored] = field(default_factory=list)
    archived_through: int = 0
    clock_us: int = BEFORE_ALL_US  # no later event is recorded before it

    def version(self, entity_type: str, entity_id: str) -> int:
        return max(
            (e.seq for e in self.events if (e.entity_type, e.entity_id) == (entity_type, entity_id)),
            default=0,
        )

    def append(self, requests: list[list[dict[str, Any]]], now_us: int) -> list[list[int] | None]:
        """The seqs of each request's events, or None where it is refused. Ids are filled in by the caller."""
        now_us = max(now_us, self.clock_us)
        answers: list[list[int] | None] = []
        for request in requests:
            hot = {e.event_id: e.seq for e in self.events if e.seq > self.archived_through}
            new: list[Stored] = []
            seqs: list[int] = []
            refused = False
            for event in request:
                event_id = event["event_id"]
                if event_id is not None and event_id.bytes in hot:
                    seqs.append(hot[event_id.bytes])
                    continue
                expected = event["expected_version"]
                if expected is not None and expected != self.version(
                    event["entity_type"], event["entity_id"]
                ):
                    refused = True
                seq = len(self.events) + len(new) + 1
                if event_id is not None:
                    hot[event_id.bytes] = seq
                occurred_us = now_us if event["occurred_at_us"] is None else event["occurred_at_us"]
                new.append(
                    Stored(
                        seq,
                        event_id.bytes if event_id is not None else b"",
                        now_us,
                        occurred_us,
                        event["entity_type"],
                        event["entity_id"],
                        event["action"],
                        event["actor"],
                        event["new_value"],
                    )
                )
                seqs.append(seq)
            if refused:
                answers.append(None)
                continue
            answers.append(seqs)
            self.events += new
            if new:
                self.clock_us = now_us
        return answers

    def compact(self, now_us: int) -> int:
        """Archive every day that has ended by then; how many windows that were."""
        days = set()
        for event in self.events[self.archived_through :]:
            end_us = (event.recorded_at_us // DAY_US + 1) * DAY_US
            if end_us > now_us:
                break
            days.add(end_us)
            self.archived_through = event.seq
            self.clock_us = max(self.clock_us, end_us)
        return len(days)

    def query(self, wanted: dict[str, Any], *, descending: bool) -> list[Stored]:
        found = [
            e
            for e in self.events
            if all(getattr(e, name) == wanted[name] for name in wanted if name in TEXTS)
            and wanted.get("recorded_from_us", e.recorded_at_us) <= e.recorded_at_us
            and e.recorded_at_us < wanted.get("recorded_to_us", e.recorded_at_us + 1)
            and wanted.get("occurred_from_us", e.occurred_at_us) <= e.occurred_at_us
            and e.occurred_at_us < wanted.get("occurred_to_us", e.occurred_at_us + 1)
            and wanted.get("seq_from", 0) <= e.seq <= wanted.get("seq_to", 2**62)
        ]
        return found[::-1] if descending else found


TEXTS = ("entity_type", "entity_id", "action", "actor")


def pooled_id(number: int, at_us: int) -> uuid.UUID:
    """One of a few ids, of both kinds: version 7 with a time, version 4 without."""
    if number % 2:
        return uuid.UUID(int=(4 << 76) | number)
    ms = (at_us + number * DAY_US // 3) // 1000
    return uuid.UUID(int=ms << 80 | 7 << 76 | 2 << 62 | number)
