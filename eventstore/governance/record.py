"""The record of governance: every change of a policy, a hold, a key or a tenant, in order, never changed.

Entries are numbered 1, 2, 3, … without a gap, in the transaction of what they record. Each is copied to the
default target as an object of its own, so that policies and holds outlive Postgres.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from eventstore.archive.layout import governance_key
from eventstore.archive.target import ArchiveTarget, put_bytes
from eventstore.archive.targets import Targets
from eventstore.clock import parse_time_us, to_iso
from eventstore.db import locks
from eventstore.db.engine import Database
from eventstore.db.tables import governance
from eventstore.errors import (
    ArchiveConflictError,
    BusyError,
    InputError,
    IntegrityError,
    TargetUnavailableError,
)

__all__ = [
    "Entry",
    "EntryKind",
    "mark_mirrored",
    "mirror",
    "mirror_or_warn",
    "parse_entry",
    "put_equal",
    "record",
    "required_text",
    "take_lock",
    "unmirrored",
]

_BATCH = 500


class EntryKind(StrEnum):
    """What an entry records."""

    TENANT_CREATED = "tenant_created"
    TENANT_OFFBOARDED = "tenant_offboarded"
    POLICY = "policy"
    HOLD_PLACED = "hold_placed"
    HOLD_RELEASED = "hold_released"
    SIGNING_KEY_ADDED = "signing_key_added"
    QUALITY_ACCEPTED = "quality_accepted"
    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    # By an administrator: what becomes of a subscription in its maker's own hands is not recorded.
    SUBSCRIPTION_MOVED = "subscription_moved"
    SUBSCRIPTION_DELETED = "subscription_deleted"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it is recorded. `tenant_id` None: about the deployment."""

    entry_no: int
    at_us: int
    kind: str
    tenant_id: str | None
    actor: str
    document: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The entry's object in a target: JSON with sorted members, always the same bytes."""
        members = {
            "format_version": 1,
            "entry_no": self.entry_no,
            "at": to_iso(self.at_us),
            "kind": self.kind,
            "tenant_id": self.tenant_id,
            "actor": self.actor,
            "document": self.document,
        }
        return json.dumps(members, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"


def parse_entry(data: bytes) -> Entry:
    """Read what `Entry.to_bytes` wrote.

    Raises:
        IntegrityError: it is not that.
    """
    try:
        found = json.loads(data)
        entry = Entry(
            found["entry_no"],
            parse_time_us(found["at"]),
            found["kind"],
            found["tenant_id"],
            found["actor"],
            found["document"],
        )
        if entry.to_bytes() == data:
            return entry
    except (ValueError, KeyError, TypeError, InputError):
        pass
    raise IntegrityError(
        "this is no entry of the record of governance, or it was altered",
        hint="compare it with the table governance",
    )


def record(
    conn: sa.Connection,
    kind: EntryKind,
    tenant_id: str | None,
    actor: str,
    document: Mapping[str, Any],
    at_us: int,
) -> int:
    """Add an entry in the connection's transaction; its number. Whoever adds one waits for the one before to
    be committed or rolled back, so that no number is left out.

    Raises:
        BusyError: another change took too long.
    """
    take_lock(conn, locks.governance_key(), "another change of policies or holds is being recorded")
    highest = conn.execute(sa.select(sa.func.max(governance.c.entry_no))).scalar_one()
    entry_no = (highest or 0) + 1
    conn.execute(
        sa.insert(governance).values(
            entry_no=entry_no,
            at_us=at_us,
            kind=kind.value,
            tenant_id=tenant_id,
            actor=actor,
            document=dict(document),
        )
    )
    return int(entry_no)


def unmirrored(conn: sa.Connection, *, limit: int = _BATCH) -> list[Entry]:
    """Entries that have no copy in the default target yet, in order."""
    query = sa.select(governance).where(~governance.c.mirrored).order_by(governance.c.entry_no).limit(limit)
    return [
        Entry(row.entry_no, row.at_us, row.kind, row.tenant_id, row.actor, row.document)
        for row in conn.execute(query)
    ]


def mark_mirrored(conn: sa.Connection, entry_no: int) -> None:
    """Note that an entry's copy is durable in the default target."""
    conn.execute(sa.update(governance).where(governance.c.entry_no == entry_no).values(mirrored=True))


def mirror(database: Database, target: ArchiveTarget) -> int:
    """Copy every entry that has no copy yet into the default target; how many. Idempotent, also for several
    at once.

    Raises:
        ArchiveConflictError: another object lies under an entry's key; it is left as it is.
        TargetUnavailableError: the target did not answer; what was copied so far is noted.
    """
    count = 0
    while True:
        with database.transaction() as conn:
            entries = unmirrored(conn)
        for entry in entries:
            put_equal(target, governance_key(entry.entry_no), entry.to_bytes())
            # Dying here leaves a copy that nobody noted; the next time it is found equal.
            with database.transaction() as conn:
                mark_mirrored(conn, entry.entry_no)
            count += 1
        if len(entries) < _BATCH:
            return count


def mirror_or_warn(database: Database, targets: Targets) -> str | None:
    """`mirror` right after a change, which stands whether or not this succeeds; None, or a warning."""
    try:
        mirror(database, targets[targets.default])
    except (TargetUnavailableError, ArchiveConflictError, BusyError) as e:
        return f"the change stands, but its copy is not in the target {targets.default!r} yet: {e}"
    return None


def put_equal(target: ArchiveTarget, key: str, data: bytes) -> None:
    """Store an object, or find exactly it stored already. Durable when this returns.

    Raises:
        ArchiveConflictError: another object lies under the key; it is left as it is.
        TargetUnavailableError: the target did not answer.
    """
    if put_bytes(target, key, data):
        return
    with target.open(key) as file:
        if file.read() != data:
            raise ArchiveConflictError(
                f"another object lies under {key} in {target.describe()}",
                hint="does another deployment use this target? Nothing was overwritten",
            )


def take_lock(conn: sa.Connection, key: int, reason: str) -> None:
    """Hold an advisory lock until the transaction ends. Waits as long as the session's lock time-out.

    Raises:
        BusyError: somebody else held it for longer.
    """
    with locks.busy_when_locked(reason, hint="nothing was changed; try again in a moment"):
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def required_text(name: str, value: str, *, most: int = 2000) -> str:
    """A text that must say something, without blanks around it.

    Raises:
        InputError: it is empty, too long, or cannot be stored.
    """
    text = value.strip()
    if not text:
        raise InputError(f"{name} is empty", hint=f"say {name} in a few words")
    if len(text) > most:
        raise InputError(f"{name} has {len(text):,} characters", hint=f"{most:,} are the most")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid Unicode", hint="write it in plain text") from None
    if "\0" in text:
        raise InputError(f"{name} holds a NUL character", hint="leave it out")
    return text
