"""Runs of retention: what a run is, and what its journal says."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["EntryKind", "RunReport", "RunStatus", "TenantOutcome"]


class RunStatus(StrEnum):
    """running until the run says how it ended; a run whose process was killed stays running."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class EntryKind(StrEnum):
    """The kinds of journal entries, in the order in which a window meets them."""

    PLAN_RESOLVED = "plan_resolved"
    WINDOW_STARTED = "window_started"
    FILE_WRITTEN = "file_written"
    RETRY = "retry"
    WINDOW_COMPLETED = "window_completed"
    WARNING = "warning"
    TENANT_FAILED = "tenant_failed"
    RUN_COMPLETED = "run_completed"


@dataclass(slots=True)
class TenantOutcome:
    """What a run did for one tenant. `error` is None when all that was planned was done."""

    tenant_id: str
    windows: int = 0
    events: int = 0
    segments: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended: failed as soon as one tenant did; the others were worked on all the same."""

    run_id: uuid.UUID
    status: RunStatus
    outcomes: list[TenantOutcome]
