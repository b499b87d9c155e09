"""The task that brings a window from the hot tier into the archive, from whichever state it is in."""

from __future__ import annotations

import time

import sqlalchemy as sa

from eventstore.clock import from_us, to_iso
from eventstore.db.locks import DROP_LAST_LOCK_TIMEOUT_MS, DROP_LOCK_TIMEOUT_MS
from eventstore.db.tables import windows
from eventstore.errors import BusyError, CoverageError, QualityError
from eventstore.governance.quality import acceptance_of
from eventstore.model.quality import Profile, QualityAction, QualityFinding, QualityRule
from eventstore.model.run import (
    QualityIssue,
    ReconciliationResult,
    Retry,
    SchemaChanged,
    ValidationResult,
    Warned,
)
from eventstore.model.segment import VerifiedSegment
from eventstore.model.window import WindowState
from eventstore.retention.quality import WindowQuality
from eventstore.retention.steps import archive_window, cut_over_window, drop_window, seal_window
from eventstore.retention.task import TaskContext

__all__ = ["archive"]

# A drop that readers hold up is tried again after these pauses, in seconds; then it waits for the next run.
_DROP_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_COUNTS_LOOKED_AT = 12


def archive(task: TaskContext) -> None:
    """Bring the window to dropped.

    Raises:
        EventStoreError: a step failed; what was done so far stands, and the window is whole where it was.
    """
    if task.record.state in (WindowState.DROPPED, WindowState.EXPIRED):
        return
    target_name = task.record.target or _wanted_target(task)
    with task.step("seal", at_once=task.record.state is WindowState.OPEN):
        record = task.record = seal_window(
            task.database, task.tenant, task.record, target=target_name, guard=task.guard
        )
    assert record.target is not None
    assert record.event_count is not None
    target = task.target(record.target)
    quality = None if record.state is WindowState.ARCHIVED else _quality(task)
    with task.step("write and verify"):
        verified = archive_window(
            task.database,
            target,
            task.tenant,
            record,
            on_file=task.on_file,
            quality=quality,
            retain_until_us=_retain_until_us(task, record.target),
        )
    archived_rows = sum(v.segment.range.event_count for v in verified)
    task.tell_soon(
        ValidationResult(passed=True, segments=len(verified), compared="every value of every event")
    )
    task.tell_soon(
        ReconciliationResult(
            source_count=record.event_count,
            archived_rows=archived_rows,
            matched=record.event_count == archived_rows,
        )
    )
    profile = None if quality is None else _judge(task, quality)
    with task.step("cut over", at_once=True):
        cut_over_window(task.database, record, verified, guard=task.guard, profile=profile)
    with task.step("drop"):
        _drop(task, verified)


def _wanted_target(task: TaskContext) -> str:
    index = task.policy.policy.tier_at(task.window, task.now_us)
    if index is None:
        raise CoverageError(
            f"window {task.window} is no longer due under policy {task.policy.policy_no}",
            hint="the policy was changed after the plan; nothing was done",
        )
    return task.policy.policy.tiers[index].target


def _retain_until_us(task: TaskContext, target_name: str) -> int | None:
    """Until when a target with object lock keeps the window's objects: its tier's end."""
    policy = task.policy.policy
    for index, tier in enumerate(policy.tiers):
        if tier.target == target_name:
            return policy.tier_end(task.window, index)
    return None


def _quality(task: TaskContext) -> WindowQuality | None:
    rules = task.policy.policy.quality
    if all(action is QualityAction.OFF for action in rules.values()):
        return None
    query = (
        sa.select(windows.c.profile, windows.c.first_seq, windows.c.last_seq)
        .where(
            windows.c.tenant_id == task.tenant.tenant_id,
            windows.c.window_from < from_us(task.window.from_us),
        )
        .order_by(windows.c.window_from.desc())
        .limit(_COUNTS_LOOKED_AT)
    )
    with task.database.transaction() as conn:
        before = conn.execute(query).all()
    profile = before[0].profile if before else None
    return WindowQuality(
        rules,
        previous_profile=None if profile is None else Profile.from_json(profile),
        previous_counts=[row.last_seq - row.first_seq + 1 for row in before if row.last_seq is not None],
    )


def _judge(task: TaskContext, quality: WindowQuality) -> dict[str, object] | None:
    """Tell what the rules found; a rule that says stop stops the window here, before its cutover.

    Returns the window's profile, to compare the next one with.

    Raises:
        QualityError: a rule that says stop is broken.
    """
    findings = quality.finish()
    change = quality.schema_change
    for finding in findings:
        # A change of shape has an entry of its own, which says more.
        if not (change and finding.rule is QualityRule.SCHEMA and finding.action is QualityAction.WARN):
            task.tell(_issue(finding))
    if change:
        task.tell(
            SchemaChanged(
                added=list(change.added),
                removed=list(change.removed),
                type_changed=[
                    (name, ", ".join(old), ", ".join(new)) for name, old, new in change.type_changed
                ],
            )
        )
    stopping = [finding for finding in findings if finding.action is QualityAction.STOP]
    if stopping:
        with task.database.transaction() as conn:
            accepted = acceptance_of(conn, task.tenant.tenant_id, task.window)
        if accepted is None:
            raise QualityError(
                f"window {task.window}: {stopping[0].message}",
                hint="it stays in Postgres; look at its events, then let this window pass: eventstore "
                f"retention accept {task.tenant.tenant_id} {to_iso(task.window.from_us)[:19]}Z",
            )
        task.tell_soon(Warned(message=f"it goes on: accepted by {accepted.actor}, {accepted.reason}"))
    return None if quality.profile is None else quality.profile.to_json()


def _issue(finding: QualityFinding) -> QualityIssue:
    return QualityIssue(
        rule=finding.rule.value,
        level=finding.level,
        message=finding.message,
        count=finding.count,
        first_seq=finding.first_seq,
    )


def _drop(task: TaskContext, verified: list[VerifiedSegment]) -> None:
    for attempt, pause_s in enumerate((*_DROP_PAUSES_S, None), start=1):
        try:
            timeout_ms = DROP_LOCK_TIMEOUT_MS if pause_s is not None else DROP_LAST_LOCK_TIMEOUT_MS
            drop_window(
                task.database,
                task.tenant,
                task.record,
                verified,
                lock_timeout_ms=timeout_ms,
                guard=task.guard,
            )
            return
        except BusyError as e:
            if pause_s is None:
                # Archived and verified, so nothing is at risk: the next run finds it due and drops it.
                task.tell(Warned(message=f"window {task.window} not dropped yet: {e}"))
                return
            task.tell(Retry(attempt=attempt, reason=str(e), backoff_s=pause_s, what="drop"))
            task.check_stop()
            time.sleep(pause_s)
