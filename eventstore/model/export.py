"""Exports: their formats, and those made in the background: what is asked for, and how far it has come.
Values without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any
from uuid import UUID

from eventstore.model.query import EventFilter, Order

__all__ = [
    "SUFFIXES",
    "BackgroundExport",
    "ExportFormat",
    "ExportState",
    "FileFormat",
    "filter_from_json",
    "filter_json",
]


class ExportFormat(StrEnum):
    """ndjson and csv for any program; parquet and arrow (an IPC stream) keep every type."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


class FileFormat(StrEnum):
    """What the file is. bundle: an evidence bundle, the events with their proofs."""

    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    ARROW = "arrow"
    BUNDLE = "bundle"


SUFFIXES: Mapping[FileFormat, str] = {
    FileFormat.CSV: "csv",
    FileFormat.NDJSON: "ndjson",
    FileFormat.PARQUET: "parquet",
    FileFormat.ARROW: "arrows",
    FileFormat.BUNDLE: "evidence.zip",
}


class ExportState(StrEnum):
    """waiting → making → ready → expired; or failed, or cancelled. making goes back to waiting when its
    process stops or dies: it is then made anew."""

    WAITING = "waiting"
    MAKING = "making"
    READY = "ready"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_going_on(self) -> bool:
        return self in (ExportState.WAITING, ExportState.MAKING)


@dataclass(frozen=True, slots=True)
class BackgroundExport:
    """An export as it is stored. Times are µs since 1970 UTC.

    `asked_by` is a principal's subject. `events` and `size_bytes` grow while it is made, and so
    does `looked_at`, the seqs of the log that were looked at. `attempt` counts who
    began to make it, from 1; 0: nobody yet. `through_seq` None: not begun. `gone` are the seqs, first and
    last, that it should hold and that were destroyed before. `expires_us` None: it is not ready yet. `host`
    is the machine on which the file was put. `error` None: nothing went wrong.
    """

    export_id: UUID
    tenant_id: str
    asked_by: str
    role: str
    person: bool
    asker_tenant: str | None
    reason: str | None
    wanted: EventFilter
    order: Order
    form: FileFormat
    byte_order_mark: bool
    state: ExportState
    asked_us: int
    started_us: int | None
    finished_us: int | None
    expires_us: int | None
    events: int
    size_bytes: int
    looked_at: int
    attempt: int
    through_seq: int | None
    gone: Sequence[tuple[int, int]]
    host: str | None
    sha256: bytes | None
    error: str | None

    @property
    def progress(self) -> float | None:
        """How much of what it covers was looked at, from 0 to 1; None: it has not begun, is not
        known, as of bundles, or has ended otherwise than ready."""
        if self.state is ExportState.READY:
            return 1.0
        if self.state is not ExportState.MAKING or self.through_seq is None or self.form is FileFormat.BUNDLE:
            return None
        first = max(1, self.wanted.seq_from or 1)
        last = self.through_seq if self.wanted.seq_to is None else min(self.through_seq, self.wanted.seq_to)
        return min(1.0, self.looked_at / max(1, last - first + 1))

    @property
    def file_name(self) -> str:
        """What the file is called where it is downloaded."""
        return f"{self.tenant_id}-{str(self.export_id)[-12:]}.{SUFFIXES[self.form]}"

    @property
    def stored_name(self) -> str:
        """What it is called in the folder of exports: another one for each attempt, so that whoever made an
        earlier one, and wakes up late, overwrites nothing."""
        return f"{self.export_id}.{self.attempt}.{SUFFIXES[self.form]}"


def filter_json(wanted: EventFilter) -> dict[str, Any]:
    """The conditions of a filter as JSON values; those that are not there are left out."""
    given = {f.name: getattr(wanted, f.name) for f in fields(wanted)}
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in given.items()
        if value is not None
    }


def filter_from_json(conditions: Mapping[str, Any]) -> EventFilter:
    """The filter of `filter_json`."""
    given = dict(conditions)
    if "event_id" in given:
        given["event_id"] = bytes.fromhex(given["event_id"])
    return EventFilter(**given)
