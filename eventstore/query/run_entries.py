"""Entries of journals in SQL: which ones this program understands, and lists of them.

What is summed up over a journal is summed up by Postgres. So the forms of entries (`model.run`) become
conditions on their JSON: an entry that does not meet its kind's is shown raw, and counts nowhere else.
"""

from __future__ import annotations

import types
import typing
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from eventstore.clock import to_iso, to_us
from eventstore.model import run as model
from eventstore.query.run_view import LIST_MAX, JournalEntry, Listed

__all__ = [
    "ENTRY_CLASSES",
    "ENTRY_COLUMNS",
    "HELD_LOCKS",
    "IS_UNDERSTOOD",
    "entry_view",
    "iso",
    "list_entries",
    "number_sql",
]

ENTRY_CLASSES: dict[str, type[model.Entry]] = {
    "plan_resolved": model.PlanResolved,
    "plan_warning": model.PlanWarning,
    "window_started": model.WindowStarted,
    "window_completed": model.WindowCompleted,
    "window_failed": model.WindowFailed,
    "file_written": model.FileWritten,
    "file_removed": model.FileRemoved,
    "retry": model.Retry,
    "quality_issue": model.QualityIssue,
    "schema_changed": model.SchemaChanged,
    "warning": model.Warned,
    "parallelism_adjusted": model.ParallelismAdjusted,
    "validation_result": model.ValidationResult,
    "reconciliation_result": model.ReconciliationResult,
    "run_completed": model.RunCompleted,
}

# The columns of an entry, for `entry_view`.
ENTRY_COLUMNS = "entry_no, at, kind, tenant_id, window_from, detail"
# The advisory locks that somebody holds: a worker is alive for as long as its own is among them.
HELD_LOCKS = (
    "(SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)
_JSON_TYPES: dict[object, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


def _condition(member: str, expected: Any) -> str:
    """That a member of `detail` has a JSON type which its field can have."""
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        conditions = [_condition(member, kind) for kind in typing.get_args(expected)]
        return f"({' OR '.join(conditions)})"
    if expected is type(None):
        return f"coalesce(jsonb_typeof(detail->'{member}') = 'null', false)"
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        values = ", ".join(f"'{value.value}'" for value in expected)
        return f"coalesce(detail->>'{member}' IN ({values}), false)"
    condition = f"coalesce(jsonb_typeof(detail->'{member}') = '{_JSON_TYPES[origin or expected]}', false)"
    if origin is dict:  # of numbers, by name
        condition += f""" AND NOT jsonb_path_exists(detail->'{member}', '$.* ? (@.type() != "number")')"""
    return condition


def _form(entry: type[model.Entry]) -> str:
    """That `detail` has a kind's form: the fields that have to be there, of their types. Lists are not looked
    into: what reads them copes with any items."""
    conditions = []
    for field in msgspec.structs.fields(entry):
        condition = _condition(field.encode_name, field.type)
        if not field.required:
            condition = f"({condition} OR NOT detail ? '{field.encode_name}')"
        conditions.append(condition)
    return " AND ".join(conditions)


# An entry of a kind and form that this program knows.
IS_UNDERSTOOD = (
    "(CASE kind "
    + " ".join(f"WHEN '{kind}' THEN {_form(c)}" for kind, c in ENTRY_CLASSES.items())
    + " ELSE false END)"
)


def number_sql(member: str) -> str:
    """A member of `detail` as a number; null where it is none, so that no entry can make a query fail."""
    return (
        f"CASE WHEN jsonb_typeof(detail->'{member}') = 'number' THEN CAST(detail->'{member}' AS numeric) END"
    )


def iso(moment: datetime) -> str:
    """A time of the database as the store prints times."""
    return to_iso(to_us(moment))


def entry_view(row: sa.Row[Any]) -> JournalEntry:
    """A row of `ENTRY_COLUMNS`."""
    return JournalEntry(
        entry_no=row.entry_no,
        at=iso(row.at),
        kind=row.kind,
        tenant_id=row.tenant_id,
        window_from=None if row.window_from is None else iso(row.window_from),
        detail=row.detail,
    )


def list_entries(conn: sa.Connection, run_id: uuid.UUID, condition: str, *, count: int) -> Listed:
    """The first entries of a run that meet a condition of SQL; `count` says how many do."""
    if not count:
        return Listed()
    rows = conn.execute(
        sa.text(
            f"SELECT {ENTRY_COLUMNS} FROM run_entries WHERE run_id = :run_id AND {condition}"
            " ORDER BY entry_no LIMIT :most"
        ),
        {"run_id": run_id, "most": LIST_MAX},
    ).all()
    return Listed(count=count, items=[entry_view(row) for row in rows], more=count - len(rows))
