"""A served store for people to look at: the same at every run, with a tenant whose log lies in every tier.

`clinic` has four years of events by the month: destroyed, `deep`, `archive` and hot ones, a hold that keeps
some months longer, and the runs that brought it there. `depot` is another tenant, with little in it.
"""

from __future__ import annotations

import json
import random
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock, parse_time_us, to_iso
from eventstore.governance.holds import place_hold
from eventstore.governance.keys import create_key
from eventstore.governance.tenants import create_tenant
from eventstore.intake.importer import import_file
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunKind, RunStatus
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.console.served import served_console
from tests.unit.helpers import DAY_US, execute

__all__ = ["CASE", "NOW_US", "OTHER", "PATIENT", "TENANT", "World", "served_world"]

TENANT, OTHER = "clinic", "depot"
# The patient that tests and pictures follow, and the case about another one.
PATIENT, CASE = "patient-0042", "case-2026-014"
NOW_US = parse_time_us("2026-11-20T09:30:00Z")
_START_US = parse_time_us("2022-11-01T00:00:00Z")
_POLICY = Policy(
    WindowUnit.MONTH,
    90 * DAY_US,
    (ArchiveTier("archive", 365 * DAY_US), ArchiveTier("deep", 730 * DAY_US)),
    Ending.EXPIRE,
)
# Two more windows become due after the last of them, for a run that is watched.
_RUNS = ("2024-03-02", "2024-09-01", "2025-03-01", "2025-09-01", "2026-03-01", "2026-09-05")
_EXPIRY = "2026-09-06"
# Each run as if it had taken place when it was due, in the night of its day.
_THEN = "to_timestamp(r.now_us / 1e6) + interval '3 hours' - r.started_at"
_AS_IF_THEN = (
    f"UPDATE run_entries e SET at = e.at + ({_THEN}) FROM runs r WHERE r.run_id = e.run_id",
    f"UPDATE runs r SET started_at = r.started_at + ({_THEN}), finished_at = r.finished_at + ({_THEN})",
)
_EVENTS = 4_000
# field → the values that it takes in turn
_VALUES: dict[str, tuple[Any, ...]] = {
    "address": ("1 Mill Lane", "17 Harbour Road", "4 Station Square", "23 Orchard Street", "9 Bridge Walk"),
    "insurer": ("Northern Mutual", "Civic Health", "Seaside Cover"),
    "allergies": ([], ["penicillin"], ["penicillin", "latex"], ["latex"]),
    "consent": ({"research": False}, {"research": True}, {"research": True, "until": "2027-12-31"}),
}
_ACTORS = ("front-desk-1", "front-desk-2", "nurse-07", "nurse-11", "billing", "import")


@dataclass
class World:
    """`keys` has the text of a key for each role: writers, readers and compliance staff have one of `TENANT`,
    operators and administrators one of the deployment. `run_id` is the last run of retention, `hold_id` the
    hold in force, `archived_seq` an event of the patient's in the archive, `session` an administrator's
    cookies (None: nobody came yet)."""

    store: Store
    port: int
    keys: dict[Role, str]
    run_id: uuid.UUID
    hold_id: uuid.UUID
    archived_seq: int
    session: list[Any] | None = None

    @property
    def console(self) -> str:
        return f"http://127.0.0.1:{self.port}/console"


@contextmanager
def served_world(server_url: str, template_database: str, folder: Path) -> Iterator[World]:
    """Make it, and serve it in a thread."""
    name = f"world_{secrets.token_hex(4)}"
    settings = Settings(
        database_url=create_database(server_url, name, template=template_database),
        home=folder,
        archive_url=(folder / "archive").as_uri(),
        targets={"deep": (folder / "deep").as_uri()},
    )
    with open_store(settings, clock=FixedClock(NOW_US)) as store:
        keys, run_id, hold_id = _fill(store, folder)
        archived_us = parse_time_us("2025-07-01T00:00:00Z")
        wanted = EventFilter(entity_id=PATIENT, recorded_to_us=archived_us)
        found = store.reader.page(TENANT, wanted, order=Order.DESC, limit=1).events
        with served_console(store, administrator=False) as served:
            yield World(store, served.port, keys, run_id, hold_id, found.column("seq")[0].as_py())
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _fill(store: Store, folder: Path) -> tuple[dict[Role, str], uuid.UUID, uuid.UUID]:
    create_tenant(store.database, TENANT, _POLICY, now_us=_START_US)
    create_tenant(store.database, OTHER, Policy(WindowUnit.MONTH, 90 * DAY_US), now_us=_START_US)
    _import(store, TENANT, folder, _patients(_EVENTS))
    _import(store, OTHER, folder, _patients(20))
    scope = HoldScope((("patient", "patient-0007"),), None, parse_time_us("2023-02-01T00:00:00Z"))
    held_us = parse_time_us("2026-03-04T10:12:00Z")
    hold = place_hold(store.database, TENANT, CASE, "Complaint before the ombudsman", "legal", scope, held_us)
    orders = [(RunKind.RETENTION, day) for day in _RUNS] + [(RunKind.EXPIRY, _EXPIRY)]
    for kind, day in orders:
        report = store.compactor.run(
            store.compactor.tenants(), parse_time_us(day), order=RunOrder(kind, "scheduler")
        )
        assert report.status is RunStatus.COMPLETED, report
        if kind is RunKind.RETENTION:
            last = report.run_id
    for statement in _AS_IF_THEN:
        execute(store.database.url, statement)
    keys = {}
    for role in Role:
        tenant = None if role in (Role.OPERATOR, Role.ADMINISTRATOR) else TENANT
        _, keys[role] = create_key(
            store.database, role=role, tenant_id=tenant, by="set-up", now_us=NOW_US, label=f"{role} (demo)"
        )
    return keys, last, hold.hold_id


def _import(store: Store, tenant: str, folder: Path, events: list[dict[str, Any]]) -> None:
    path = folder / f"{tenant}.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    report = import_file(
        store.database,
        tenant,
        path,
        recorded_at_column="occurred_at",
        value_bytes_max=store.settings.value_bytes_max,
        clock=FixedClock(NOW_US),
    )
    assert report.rows_stored == len(events), report


def _patients(count: int) -> list[dict[str, Any]]:
    """Changes of patients' fields, ever the same. Each names what the value was before."""
    chance = random.Random(5)
    now: dict[tuple[str, str], int] = {}
    events = []
    for number, at_us in enumerate(sorted(chance.randrange(_START_US, NOW_US) for _ in range(count))):
        patient = PATIENT if number % 80 == 3 else f"patient-{int(chance.paretovariate(0.7)) % 900:04}"
        field = chance.choice(list(_VALUES))
        known = now.get((patient, field))
        step = 0 if known is None else (known + 1) % len(_VALUES[field])
        now[patient, field] = step
        event = {
            "event_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            "occurred_at": to_iso(at_us),
            "entity_type": "patient",
            "entity_id": patient,
            "action": "insert" if known is None else "update",
            "field": field,
            "new_value": _VALUES[field][step],
            "actor": chance.choice(_ACTORS),
            "source": chance.choice(("frontend", "frontend", "nightly-import")),
            "workspace_id": "main-site",
            "metadata": {"request": f"req-{number:05}"},
        }
        if known is not None:
            event["old_value"] = _VALUES[field][known]
        events.append(event)
    return events
