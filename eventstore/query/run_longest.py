"""The longest window of a run, and why it took so long: from what its steps took and what was retried."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from eventstore.query.run_entries import IS_UNDERSTOOD, number_sql
from eventstore.query.run_entries import iso as iso_of
from eventstore.query.run_view import JournalEntry, LongestWindow, RetryGroup, Unknown

__all__ = ["longest_window", "retry_groups", "seconds", "why_so_long"]

_GROUPS_MAX = 20
# A window with this many times the events of the median one is long for that reason too.
_LARGE = 2
_COMPARED_MIN = 3
# Steps that add up to less of the window's time than this do not explain it.
_EXPLAINED = 0.5


def longest_window(
    conn: sa.Connection,
    run_id: uuid.UUID,
    *,
    ended: bool,
    unfinished: Sequence[JournalEntry],
    any_retries: bool,
) -> LongestWindow | Unknown:
    """The window that took longest of those that ended; `unfinished` are the latest starts of the others."""
    row = conn.execute(
        sa.text(
            "SELECT kind, tenant_id, window_from, detail,"
            " (SELECT window_to FROM windows w WHERE w.tenant_id = e.tenant_id"
            "  AND w.window_from = e.window_from) AS window_to"
            " FROM run_entries e WHERE run_id = :run_id AND kind IN ('window_completed', 'window_failed')"
            f" AND {IS_UNDERSTOOD} ORDER BY {number_sql('duration_ms')} DESC, entry_no LIMIT 1"
        ),
        {"run_id": run_id},
    ).one_or_none()
    if row is None:
        return Unknown(why=_why_none(ended, len(unfinished)))
    detail = row.detail
    failed = row.kind == "window_failed"
    steps = _steps(detail)
    retries = []
    if any_retries:
        retries = retry_groups(conn, run_id, tenant_id=row.tenant_id, window_from=row.window_from)
    attempts, median_events = _among_others(conn, run_id, row)
    duration_ms = int(detail["duration_ms"])
    return LongestWindow(
        tenant_id=row.tenant_id,
        window_from=None if row.window_from is None else iso_of(row.window_from),
        window_to=None if row.window_to is None else iso_of(row.window_to),
        action=detail["action"],
        result="failed" if failed else "completed",
        duration_ms=duration_ms,
        events=Unknown(why="a failed window does not say") if failed else int(detail["events"]),
        attempts=int(detail["attempts"]) if failed else attempts,
        step=max(steps, key=lambda name: steps[name]) if steps else Unknown(why=_no_steps(failed)),
        steps_ms=steps,
        retries=retries,
        why=_why_failed(detail, retries)
        if failed
        else why_so_long(duration_ms, steps, retries, int(detail["events"]), median_events),
        caveat=None if ended else _caveat(conn, unfinished, duration_ms),
    )


def why_so_long(
    duration_ms: int,
    steps_ms: dict[str, int],
    retries: Sequence[RetryGroup],
    events: int,
    median_events: int | None,
) -> str | Unknown:
    """Why a completed window took as long as it did, in words.

    `median_events` is that of all completed windows; None: there are too few to compare with.
    """
    if not any(steps_ms.values()):
        return Unknown(why=_no_steps(False))
    step = max(steps_ms, key=lambda name: steps_ms[name])
    share = round(100 * steps_ms[step] / max(duration_ms, 1))
    words = f"{step} took {seconds(steps_ms[step])} of {seconds(duration_ms)} ({min(share, 100)} %)"
    own = [group for group in retries if group.what == step]
    if own:
        words += ": " + "; ".join(_tries(group) for group in own[:3])
    parts = [words, *(f"{group.what}: {_tries(group)}" for group in retries if group.what != step)][:4]
    if median_events is not None and events > _LARGE * median_events:
        than = (
            f"{events / median_events:,.0f} times the median window's {median_events:,}"
            if median_events
            else ("while the median window's were 0")
        )
        parts.append(f"it held {events:,} events, {than}")
    total_ms = sum(steps_ms.values())
    if total_ms < _EXPLAINED * duration_ms:
        parts.append(f"its steps explain {seconds(total_ms)} of it, the rest is unknown")
    return "; ".join(parts)


def retry_groups(
    conn: sa.Connection,
    run_id: uuid.UUID,
    *,
    tenant_id: str | None = None,
    window_from: object = None,
) -> list[RetryGroup]:
    """Retries by what and why, the most frequent first: of one window, or (no `window_from`) of the run."""
    where = "" if window_from is None else " AND tenant_id = :tenant_id AND window_from = :window_from"
    rows = conn.execute(
        sa.text(
            "SELECT coalesce(detail->>'what', 'window') AS what, detail->>'reason' AS reason,"
            " count(*) AS tries, count(DISTINCT (tenant_id, window_from)) AS windows,"
            f" coalesce(sum({number_sql('backoff_s')}), 0) AS pauses_s"
            f" FROM run_entries WHERE run_id = :run_id AND kind = 'retry' AND {IS_UNDERSTOOD}{where}"
            " GROUP BY 1, 2 ORDER BY count(*) DESC, min(entry_no) LIMIT :most"
        ),
        {"run_id": run_id, "tenant_id": tenant_id, "window_from": window_from, "most": _GROUPS_MAX},
    ).all()
    return [
        RetryGroup(
            what=row.what,
            reason=row.reason,
            count=row.tries,
            windows=row.windows,
            pauses_s=round(float(row.pauses_s), 3),
        )
        for row in rows
    ]


def seconds(ms: float) -> str:
    """A length of time for people: `340 ms`, `12.3 s`, `4 min 5 s`, `2 h 10 min`."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 99_950:
        return f"{ms / 1000:.1f} s"
    whole = round(ms / 1000)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _tries(group: RetryGroup) -> str:
    times = "once" if group.count == 1 else f"{group.count:,} times"
    pauses = f" (pauses of {seconds(group.pauses_s * 1000)})" if group.pauses_s else ""
    return f"tried again {times}{pauses}, {group.reason}"


def _steps(detail: dict[str, Any]) -> dict[str, int]:
    """The times of the steps, longest first; empty where the entry has none that can be read."""
    try:
        steps = msgspec.convert(detail.get("steps_ms", {}), dict[str, int])
    except msgspec.ValidationError:
        return {}
    return dict(sorted(steps.items(), key=lambda item: -item[1]))


def _no_steps(failed: bool) -> str:
    kind = "window_failed" if failed else "window_completed"
    return f"the journal has no times of its steps ({kind} without steps_ms)"


def _why_failed(detail: dict[str, Any], retries: Sequence[RetryGroup]) -> str:
    tries = "; ".join(f"{group.what}: {_tries(group)}" for group in retries[:3])
    attempts = int(detail["attempts"])
    count = "1 attempt" if attempts == 1 else f"{attempts:,} attempts"
    return f"it failed after {count}: {detail['error']}" + (f"; {tries}" if tries else "")


def _why_none(ended: bool, unfinished: int) -> str:
    if ended:
        return "no window was completed, and none failed" + (
            f"; {unfinished:,} begun and not ended" if unfinished else ""
        )
    return "no window has ended yet" + (f"; {unfinished:,} begun" if unfinished else "")


def _among_others(
    conn: sa.Connection, run_id: uuid.UUID, row: sa.Row[Any]
) -> tuple[int | Unknown, int | None]:
    """How many attempts a window took, and the median of the events of all completed ones."""
    found = conn.execute(
        sa.text(
            f"SELECT max({number_sql('attempt')}) FILTER (WHERE kind = 'window_started'"
            "  AND tenant_id = :tenant_id AND window_from = :window_from"
            "  AND detail->>'action' = :action) AS attempts,"
            f" percentile_disc(0.5) WITHIN GROUP (ORDER BY {number_sql('events')})"
            "  FILTER (WHERE kind = 'window_completed') AS median,"
            " count(*) FILTER (WHERE kind = 'window_completed') AS windows"
            " FROM run_entries WHERE run_id = :run_id"
            f" AND kind IN ('window_started', 'window_completed') AND {IS_UNDERSTOOD}"
        ),
        {
            "run_id": run_id,
            "tenant_id": row.tenant_id,
            "window_from": row.window_from,
            "action": row.detail["action"],
        },
    ).one()
    no_start = Unknown(why="the journal has no start of it")
    return (
        no_start if found.attempts is None else int(found.attempts),
        int(found.median) if found.windows >= _COMPARED_MIN else None,
    )


def _caveat(conn: sa.Connection, unfinished: Sequence[JournalEntry], duration_ms: int) -> str | None:
    """That a window which has not ended was begun longer ago than the longest one took."""
    first = min(unfinished, key=lambda entry: entry.at, default=None)
    if first is None:
        return None
    since_ms = conn.execute(
        sa.text("SELECT extract(epoch FROM now() - CAST(:at AS timestamptz)) * 1000"), {"at": first.at}
    ).scalar_one()
    if since_ms <= duration_ms:
        return None
    return (
        f"{first.tenant_id} {first.window_from} was begun {seconds(float(since_ms))} ago and has not ended:"
        " how long it takes is not known yet"
    )
