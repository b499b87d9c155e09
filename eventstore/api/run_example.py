"""The run that stands as an example in the OpenAPI document: a night of one tenant, two windows archived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ENTRIES_EXAMPLE", "RUNS_EXAMPLE", "RUN_EXAMPLE"]

_RUN_ID = "36ede067-2626-45c4-a238-ab3c7505e9d9"
_NAME = "tenant_id=acme/month=2026-08/archive.acme.20260801T000000Z-20260802T000000Z.p000.parquet"
_NONE: Mapping[str, Any] = {"count": 0, "items": [], "more": 0}
_WRITTEN: Mapping[str, Any] = {
    "entry_no": 3,
    "at": "2026-11-21T02:00:07.310554Z",
    "kind": "file_written",
    "tenant_id": "acme",
    "window_from": "2026-08-01T00:00:00.000000Z",
    "detail": {
        "target": "archive",
        "name": _NAME,
        "part": 0,
        "rows": 450000,
        "size_bytes": 11902331,
        "created": True,
    },
}
_DUE: Mapping[str, Any] = {
    "state": "open",
    "action": "archive",
    "events": 450000,
    "first_seq": 1,
    "to_target": "archive",
    "window_from": "2026-08-01T00:00:00.000000Z",
    "window_to": "2026-08-02T00:00:00.000000Z",
}
_STARTED: Mapping[str, Any] = {
    "run_id": _RUN_ID,
    "kind": "retention",
    "requested_by": "scheduler",
    "now": "2026-11-21T02:00:00.000000Z",
    "started_at": "2026-11-21T02:00:00.051223Z",
}

RUNS_EXAMPLE: Mapping[str, Any] = {
    "runs": [
        {
            **_STARTED,
            "status": "completed",
            "finished_at": "2026-11-21T02:00:09.201113Z",
            "duration_ms": 9150,
            "windows": 1,
            "windows_failed": 0,
            "events": 450000,
            "error": None,
            "tasks": None,
            "at_work": None,
        }
    ],
    "next_cursor": None,
}
ENTRIES_EXAMPLE: Mapping[str, Any] = {
    "entries": [_WRITTEN],
    "next_after": 3,
    "status": "completed",
    "ended": True,
}
RUN_EXAMPLE: Mapping[str, Any] = {
    **_STARTED,
    "planned": {
        "tenant_count": 1,
        "tenants": [
            {
                "entry_no": 1,
                "at": "2026-11-21T02:00:00.147841Z",
                "tenant_id": "acme",
                "policy_no": 1,
                "policy": "windows of one day, hot for 90d, then archive, then kept there for ever",
                "due_count": 1,
                "due_events": 450000,
                "due": [_DUE],
                "more": 0,
                "hot_windows": 90,
                "archived_windows": 12,
            }
        ],
        "more_tenants": 0,
        "actions": {"archive": {"windows": 1, "events": 450000}},
        "windows": 1,
        "events": 450000,
        "warnings": _NONE,
        "note": None,
    },
    "happened": {
        "windows": {
            "started": 1,
            "completed": 1,
            "failed": 0,
            "unfinished": _NONE,
            "events": 450000,
            "segments": 1,
            "size_bytes": 11902331,
        },
        "files_written": {
            "count": 1,
            "rows": 450000,
            "size_bytes": 11902331,
            "found": 0,
            "items": [_WRITTEN],
            "more": 0,
        },
        "files_removed": {"count": 0, "rows": 0, "size_bytes": 0, "found": 0, "items": [], "more": 0},
        "retries": _NONE,
        "parallelism": _NONE,
        "compared": {
            "validations_passed": 1,
            "validations_failed": 0,
            "counts_matched": 1,
            "counts_mismatched": 0,
            "source_count": 450000,
            "archived_rows": 450000,
        },
    },
    "degraded": {
        "anything": False,
        "retries": 0,
        "retry_reasons": [],
        "failed_windows": _NONE,
        "failed_tenants": _NONE,
        "warnings": _NONE,
        "quality_fail": 0,
        "quality_warn": 0,
        "quality": _NONE,
        "schema_changes": _NONE,
        "lowered_parallelism": _NONE,
        "failed_validations": _NONE,
        "mismatches": _NONE,
        "held_count": 0,
        "held": [],
    },
    "outcome": {
        "status": "completed",
        "ended": True,
        "finished_at": "2026-11-21T02:00:09.201113Z",
        "duration_ms": 9150,
        "windows": 1,
        "windows_failed": 0,
        "events": 450000,
        "error": None,
        "progress": {
            "total": 1,
            "waiting": 0,
            "running": 0,
            "done": 1,
            "failed": 0,
            "blocked": 0,
            "at_work": 0,
            "abandoned": 0,
            "next_try_at": None,
        },
        "activity": None,
    },
    "longest_window": {
        "tenant_id": "acme",
        "window_from": "2026-08-01T00:00:00.000000Z",
        "window_to": "2026-08-02T00:00:00.000000Z",
        "action": "archive",
        "result": "completed",
        "duration_ms": 8841,
        "events": 450000,
        "attempts": 1,
        "step": "write and verify",
        "steps_ms": {"write and verify": 8102, "cut over": 74, "drop": 69, "seal": 596},
        "retries": [],
        "why": "write and verify took 8102 ms of 8841 ms (92 %)",
        "caveat": None,
    },
    "entries": {
        "count": 7,
        "last_entry_no": 7,
        "last_at": "2026-11-21T02:00:09.204904Z",
        "by_kind": {
            "plan_resolved": 1,
            "window_started": 1,
            "file_written": 1,
            "validation_result": 1,
            "reconciliation_result": 1,
            "window_completed": 1,
            "run_completed": 1,
        },
    },
    "not_understood": _NONE,
}
