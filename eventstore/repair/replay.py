"""The record of governance read back from the targets, and policies and holds made anew from it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from eventstore.archive.targets import Targets
from eventstore.clock import parse_time_us
from eventstore.db.tables import governance, holds, policies
from eventstore.errors import ArchiveDamageError, InputError, IntegrityError
from eventstore.governance.record import Entry, EntryKind, parse_entry, record
from eventstore.model.hold import HoldScope
from eventstore.model.policy import PolicyOverride
from eventstore.repair.survey import Survey, read_object

__all__ = ["LAST_WORDS", "Record", "hold_everything", "read_record", "replay_defaults", "replay_tenant"]

_HOLD = "rebuild"
_UNREADABLE = "unreadable"
# Each decision is copied right after it was made; but the last ones may not have been, and nothing tells.
LAST_WORDS = "what was decided last may not have been copied before the database was lost"


@dataclass(slots=True)
class Record:
    """The record as the targets have it. `problems`: what is missing or cannot be read, in words; with any,
    nobody can know what is held. `in_default`: the entries that the default target has."""

    entries: list[Entry] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    in_default: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    @property
    def tenants(self) -> dict[str, Entry]:
        """The tenants that it knows, with the entry that says that they were made."""
        made = EntryKind.TENANT_CREATED.value
        return {e.tenant_id: e for e in self.entries if e.kind == made and e.tenant_id is not None}

    @property
    def targets(self) -> set[str]:
        """The targets that any version of a policy has named."""
        policies = [e.document["policy"] for e in self.entries if e.kind == EntryKind.POLICY.value]
        return {tier["target"] for policy in policies for tier in policy.get("tiers", ())}

    @property
    def policy_no_max(self) -> int:
        """The number of the newest version of a policy; 0: there was none."""
        numbers = [e.document.get("policy_no", 0) for e in self.entries if e.kind == EntryKind.POLICY.value]
        return max(numbers, default=0)


def read_record(
    targets: Targets, survey: Survey, progress: Callable[[int, int], None] | None = None
) -> Record:
    """Read every entry, and look for what is missing.

    Raises:
        TargetUnavailableError: a target did not answer.
    """
    found = Record()
    for count, entry_no in enumerate(sorted(survey.governance), start=1):
        entry = None
        for held in survey.governance[entry_no]:
            try:
                entry = parse_entry(read_object(targets, held))
                _check(entry, entry_no)
            except (IntegrityError, ArchiveDamageError) as e:
                entry = None
                found.problems.append(f"{held.key} in {held.target!r}: {e.message}")
                continue
            if held.target == targets.default:
                found.in_default.add(entry_no)
            break
        if entry is None:
            found.unreadable.append(entry_no)
        else:
            found.entries.append(entry)
        if progress is not None and count % 100 == 0:
            progress(count, len(survey.governance))
    numbers = set(survey.governance)
    missing = [n for n in range(1, max(numbers, default=0) + 1) if n not in numbers]
    if missing:
        found.problems.append(
            f"{len(missing):,} of its entries are missing, the first is number {missing[0]}"
        )
    unknown = sorted((survey.segments.keys() | survey.certificates.keys()) - found.tenants.keys())
    if unknown:
        found.problems.append(f"it does not say that these tenants were made: {', '.join(unknown[:5])}")
    return found


def _check(entry: Entry, entry_no: int) -> None:
    """That an entry can be replayed.

    Raises:
        IntegrityError: it cannot.
    """
    document = entry.document
    try:
        kind = EntryKind(entry.kind)
        if entry.entry_no != entry_no:
            raise ValueError(f"it is entry {entry.entry_no}")
        if kind is EntryKind.POLICY:
            _policy_row(entry)
        elif kind is EntryKind.HOLD_PLACED:
            _hold_row(entry)
        elif kind is EntryKind.HOLD_RELEASED:
            uuid.UUID(document["hold_id"])
            str(document["reason"])
    except (ValueError, KeyError, TypeError, InputError) as e:
        raise IntegrityError(f"it cannot be replayed: {e}") from e


def _policy_row(entry: Entry) -> dict[str, Any]:
    document = entry.document
    return {
        "policy_no": int(document["policy_no"]),
        "tenant_id": entry.tenant_id,
        "document": PolicyOverride.from_json(document["policy"]).as_json(),
        "effective_us": parse_time_us(document["effective"]),
        "created_us": entry.at_us,
        "actor": entry.actor,
        "reason": str(document["reason"]),
        "confirmed_events": document["confirmed_events"],
    }


def _hold_row(entry: Entry) -> dict[str, Any]:
    document = entry.document
    if entry.tenant_id is None:
        raise ValueError("a hold without a tenant")
    return {
        "hold_id": uuid.UUID(document["hold_id"]),
        "tenant_id": entry.tenant_id,
        "name": str(document["name"]),
        "reason": str(document["reason"]),
        "placed_by": entry.actor,
        "placed_us": entry.at_us,
        "scope": HoldScope.from_json(document["scope"]).as_json(),
    }


def replay_defaults(conn: sa.Connection, found: Record, now_us: int) -> None:
    """Store the record itself, and the versions of the deployment's default policy, in the connection's
    transaction."""
    rows = [
        {
            "entry_no": e.entry_no,
            "at_us": e.at_us,
            "kind": e.kind,
            "tenant_id": e.tenant_id,
            "actor": e.actor,
            "document": e.document,
            "mirrored": e.entry_no in found.in_default,
        }
        for e in found.entries
    ]
    # What cannot be read keeps its number: its object is there, and nothing else may come under its key.
    rows += [
        {
            "entry_no": entry_no,
            "at_us": now_us,
            "kind": _UNREADABLE,
            "tenant_id": None,
            "actor": "rebuild",
            "document": {},
            "mirrored": True,
        }
        for entry_no in found.unreadable
    ]
    if rows:
        conn.execute(sa.insert(governance), rows)
    _policies(conn, found, None)
    if found.policy_no_max:
        sequence = sa.func.pg_get_serial_sequence("policies", "policy_no")
        conn.execute(sa.select(sa.func.setval(sequence, found.policy_no_max)))


def replay_tenant(conn: sa.Connection, found: Record, tenant_id: str) -> int:
    """Make a registered tenant's policies and holds anew, in the connection's transaction; how many holds are
    in force."""
    _policies(conn, found, tenant_id)
    placed: dict[uuid.UUID, dict[str, Any]] = {}
    for entry in found.entries:
        if entry.tenant_id != tenant_id:
            continue
        if entry.kind == EntryKind.HOLD_PLACED.value:
            row = _hold_row(entry)
            none = {"released_us": None, "released_by": None, "release_reason": None}
            placed[row["hold_id"]] = {**row, **none}
        elif entry.kind == EntryKind.HOLD_RELEASED.value:
            released = placed.get(uuid.UUID(entry.document["hold_id"]))
            if released is not None:
                released["released_us"], released["released_by"] = entry.at_us, entry.actor
                released["release_reason"] = str(entry.document["reason"])
    if placed:
        conn.execute(sa.insert(holds), list(placed.values()))
    return sum(row["released_us"] is None for row in placed.values())


def _policies(conn: sa.Connection, found: Record, tenant_id: str | None) -> None:
    rows = [
        _policy_row(entry)
        for entry in found.entries
        if entry.kind == EntryKind.POLICY.value and entry.tenant_id == tenant_id
    ]
    if rows:
        conn.execute(sa.insert(policies), rows)


def hold_everything(conn: sa.Connection, tenant_id: str, problems: Sequence[str], now_us: int) -> str:
    """Place a hold over all of a tenant's log, in the connection's transaction; its name."""
    taken = set(conn.execute(sa.select(holds.c.name).where(holds.c.tenant_id == tenant_id)).scalars())
    name = next(n for n in (_HOLD, *(f"{_HOLD}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    reason = (
        "the catalog was rebuilt from the archive targets, and the record of holds and policies there need "
        f"not be whole ({'; '.join(problems)[:1000]}); release it when you know what has to be held"
    )
    row = {
        "hold_id": uuid.uuid4(),
        "tenant_id": tenant_id,
        "name": name,
        "reason": reason,
        "placed_by": "archive rebuild",
        "placed_us": now_us,
        "scope": HoldScope().as_json(),
    }
    conn.execute(sa.insert(holds).values(row))
    document = {"hold_id": str(row["hold_id"]), "name": name, "reason": reason, "scope": row["scope"]}
    record(conn, EntryKind.HOLD_PLACED, tenant_id, "archive rebuild", document, now_us)
    return name
