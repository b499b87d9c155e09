"""A handful of events, row by row.

Column-wise encoding and COPY are made for many events: whatever their number, they cost half a
millisecond of calls and three round trips while the head's lock is held. A few events go as one INSERT,
sent together with the head's update and the COMMIT. What is stored is the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from eventstore.clock import to_iso, to_us
from eventstore.columns.schema import EVENT_FIELDS
from eventstore.db.partitions import SCHEMA
from eventstore.model.event import TEXT_FIELDS, Event, NewEvent, canonical_bytes, chain_hash, uuid7
from eventstore.model.tenant import Head

__all__ = ["FEW_BYTES_MAX", "FEW_MAX", "insert_statement", "stamp_few"]

# From about this many events on, COPY is quicker (measured: docs/design/0008-group-commit.md).
FEW_MAX = 48
FEW_BYTES_MAX = 256 * 2**10

_COLUMNS = ", ".join(("tenant_id", *EVENT_FIELDS))
_texts = attrgetter(*TEXT_FIELDS)


def stamp_few(events: Sequence[NewEvent], head: Head, recorded_us: int) -> list[Event]:
    """Give new events their places at the end of a log; `hot.batch.stamp` for a few."""
    stamped, last_hash = [], head.last_hash
    for seq, new in enumerate(events, start=head.last_seq + 1):
        event = Event(
            seq=seq,
            event_id=uuid7(recorded_us, seq) if new.event_id is None else new.event_id.bytes,
            recorded_at_us=recorded_us,
            occurred_at_us=recorded_us if new.occurred_at is None else to_us(new.occurred_at),
            entity_type=new.entity_type,
            entity_id=new.entity_id,
            action=new.action,
            field=new.field,
            old_value=bytes(new.old_value).decode() or None,
            new_value=bytes(new.new_value).decode() or None,
            actor=new.actor,
            source=new.source,
            workspace_id=new.workspace_id,
            metadata=bytes(new.metadata).decode() or None,
            hash=b"",
        )
        event.hash = last_hash = chain_hash(last_hash, canonical_bytes(event))
        stamped.append(event)
    return stamped


def insert_statement(tenant_id: str, leaf: str, events: Sequence[Event]) -> str:
    """One INSERT of those events into their leaf.

    The tenant is a checked slug and the leaf a name that the store made; texts are quoted here, for a
    session in which a backslash is only a backslash (`standard_conforming_strings`, set by `db.engine`).
    """
    recorded = to_iso(events[0].recorded_at_us)
    rows = ", ".join([_row(tenant_id, event, recorded) for event in events])
    return f'INSERT INTO {SCHEMA}."{leaf}" ({_COLUMNS}) VALUES {rows}'


def _row(tenant_id: str, e: Event, recorded: str) -> str:
    occurred = recorded if e.occurred_at_us == e.recorded_at_us else to_iso(e.occurred_at_us)
    texts = ["NULL" if text is None else "'" + text.replace("'", "''") + "'" for text in _texts(e)]
    return (
        f"('{tenant_id}', {e.seq}, '{e.event_id.hex()}', '{recorded}', '{occurred}', "
        f"{', '.join(texts)}, '\\x{e.hash.hex()}')"
    )
