"""Whether a file's columns can become events at all, found out before anything is stored."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from eventstore.errors import InputError
from eventstore.hot.batch import PENDING_SCHEMA
from eventstore.model.event import TEXT_LIMITS

__all__ = [
    "FIELDS",
    "REQUIRED_FIELDS",
    "ImportOptions",
    "check_columns",
    "check_recorded_at",
    "is_bytes",
    "is_string",
]

REQUIRED_FIELDS = ("entity_type", "entity_id", "action", "actor", "source")
FIELDS = frozenset(PENDING_SCHEMA.names)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a file is read. `recorded_at_column` None: events are recorded when they are stored."""

    recorded_at_column: str | None
    value_bytes_max: int


def check_columns(schema: pa.Schema, source: str, options: ImportOptions) -> None:
    """Refuse a file whose columns cannot become events, before anything is stored.

    Raises:
        InputError: names the column and says what to do.
    """
    names = schema.names
    found = f"its columns are: {', '.join(names)}"
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{source} has two columns named {name!r}", hint="rename one of them")
    for name in REQUIRED_FIELDS:
        if name not in names:
            raise InputError(f"{source} has no column {name!r}", hint=f"every event needs it; {found}")
    recorded = options.recorded_at_column
    if recorded is not None and recorded not in names:
        raise InputError(f"{source} has no column {recorded!r} for the recorded times", hint=found)
    for name in TEXT_LIMITS:
        if name in names and not _is_text(kind := _value_type(schema.field(name).type)):
            raise InputError(f"column {name!r} of {source} is {kind}, not text", hint="write it as strings")
    for name in {"occurred_at", recorded} & set(names):
        kind = _value_type(schema.field(name).type)
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or is_string(kind)):
            raise InputError(
                f"column {name!r} of {source} is {kind}, not a time",
                hint="write it as timestamps, or as text like 2026-01-31T12:00:00Z",
            )
    if "event_id" in names:
        kind = _value_type(schema.field("event_id").type)
        if not (is_string(kind) or is_bytes(kind)):
            raise InputError(
                f"column 'event_id' of {source} is {kind}, not a UUID", hint="write it as text or as 16 bytes"
            )


def check_recorded_at(name: str | None) -> None:
    """
    Raises:
        InputError: the column for recorded times is a field that holds something else.
    """
    if name in FIELDS - {"occurred_at"}:
        raise InputError(
            f"{name!r} is an event field that holds no times", hint="name the column with the recorded times"
        )


def _value_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_string(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return is_string(kind) or bool(pa.types.is_integer(kind))
