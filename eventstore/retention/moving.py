"""The task that brings an archived window into its next target: the same cutover, from target to target."""

from __future__ import annotations

from eventstore.catalog.removals import note_copying, removed_keys
from eventstore.catalog.windows import list_segments
from eventstore.errors import ArchiveConflictError
from eventstore.model.run import ReconciliationResult, ValidationResult
from eventstore.model.window import WindowState
from eventstore.retention.removing import remove_objects
from eventstore.retention.steps import copy_window, cut_over_move
from eventstore.retention.task import TaskContext

__all__ = ["move"]


def move(task: TaskContext) -> None:
    """Bring the window into the target where its policy wants it now, and remove the former copy.

    Raises:
        EventStoreError: a step failed; the former copy is untouched unless the new one counts.
    """
    wanted = _wanted(task)
    if task.record.state is WindowState.DROPPED and wanted is not None:
        _copy(task, wanted)
    with task.step("remove former copy"):
        remove_objects(task)


def _wanted(task: TaskContext) -> str | None:
    """The target of the tier in which the window belongs; None: it stays, because it is there or further on.

    As the planner decides it: a window that is only here to lose a former copy does not go back to that.
    """
    policy, here = task.policy.policy, task.record.target
    index = policy.tier_at(task.window, task.now_us)
    names = [tier.target for tier in policy.tiers]
    if index is None or (here in names and index <= names.index(here)):
        return None
    return names[index]


def _copy(task: TaskContext, wanted: str) -> None:
    record = task.record
    assert record.last_seq is not None
    assert record.event_count is not None
    with task.database.transaction() as conn:
        task.guard(conn)
        segments = list_segments(
            conn, task.tenant.tenant_id, seq_from=record.first_seq, seq_to=record.last_seq
        )
        gone = removed_keys(conn, wanted, [segment.key for segment in segments])
        if not gone:
            note_copying(conn, task.tenant.tenant_id, record.window.from_us, wanted)
    if gone:
        raise ArchiveConflictError(
            f"{sorted(gone)[0]} was removed from {wanted!r} before, and is not written there again",
            hint="a window does not go back to a target that it has left: mend the policy's tiers",
        )
    policy = task.policy.policy
    index = next(i for i, tier in enumerate(policy.tiers) if tier.target == wanted)
    target = task.target(wanted)
    with task.step("copy and verify"):
        verified = copy_window(
            task.target,
            target,
            wanted,
            segments,
            on_file=task.on_file,
            retain_until_us=policy.tier_end(task.window, index),
        )
    rows = sum(v.segment.range.event_count for v in verified)
    task.tell_soon(
        ValidationResult(passed=True, segments=len(verified), compared="every byte of every segment")
    )
    task.tell_soon(
        ReconciliationResult(
            source_count=record.event_count, archived_rows=rows, matched=rows == record.event_count
        )
    )
    with task.step("cut over", at_once=True):
        cut_over_move(task.database, record, verified, wanted, guard=task.guard)
    task.copied = True
    # Dying here leaves both copies, of which the new one counts; the former is in `removals`.
    task.record = task.reread()
