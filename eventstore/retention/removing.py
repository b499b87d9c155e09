"""Deleting what the catalog no longer names from its target, one object at a time.

Each deletion is a transaction of its own, which holds the tenant's destruction lock and looks at the holds:
a hold that has been committed stops everything that it covers and is not yet gone, also in a run under way.
Only then the object is deleted, and last its row marked: dying in between leaves the row, and the deletion is
repeated.
"""

from __future__ import annotations

from eventstore.archive.target import ArchiveTarget
from eventstore.archive.verify import digest_segment
from eventstore.catalog.removals import Removal, list_removals, lock_removal, mark_removed
from eventstore.catalog.windows import list_segments
from eventstore.db.engine import kept_alive
from eventstore.errors import ArchiveDamageError
from eventstore.governance.holds import holds_in_force, lock_destruction
from eventstore.model.hold import Hold
from eventstore.model.run import FileRemoved, Warned
from eventstore.retention.holding import HeldSegment, holds_over
from eventstore.retention.task import TaskContext

__all__ = ["remove_objects"]


def remove_objects(task: TaskContext) -> int:
    """Delete the objects of the task's window that are to be removed; how many are left because of a hold.

    Raises:
        TargetUnavailableError: a target did not answer, or keeps an object under lock.
    """
    with task.database.transaction() as conn:
        pending = list_removals(
            conn, tenant_id=task.tenant.tenant_id, window_from_us=task.claim.window_from_us
        )
    kept = 0
    for removal in pending:
        task.check_stop()
        if not removal.destroys and not task.copied and not _is_elsewhere(task, removal):
            kept += 1
            continue
        holds = _remove(task, task.target(removal.target), removal)
        if holds:
            kept += 1
            names = ", ".join(hold.name for hold in holds)
            task.tell(Warned(message=f"{removal.key} is kept: held by {names}"))
        else:
            task.tell(
                FileRemoved(
                    target=removal.target,
                    name=removal.key,
                    size_bytes=removal.size_bytes,
                    reason=removal.reason.value,
                )
            )
    return kept


def _is_elsewhere(task: TaskContext, removal: Removal) -> bool:
    """Whether what counts instead of a former copy is whole. It was read back before it counted; but that may
    be long ago, if the former copy's target was away since, and this may be the last good one."""
    with task.database.transaction() as conn:
        known = list_segments(conn, removal.tenant_id, seq_from=removal.first_seq, seq_to=removal.last_seq)
    try:
        for segment in known:
            digest_segment(task.target(segment.target), segment)
    except ArchiveDamageError as e:
        task.tell(Warned(message=f"{removal.key} in {removal.target!r} is kept, it may be needed: {e}"))
        return False
    return True


def _remove(task: TaskContext, target: ArchiveTarget, removal: Removal) -> list[Hold]:
    """Delete one object; or the holds that stop it."""
    judged: dict[frozenset[object], list[Hold]] = {}
    while True:
        with task.database.transaction() as conn:
            task.guard(conn)
            lock_destruction(conn, removal.tenant_id)
            locked = lock_removal(conn, removal.target, removal.key)
            if locked is None:
                return []  # somebody else has done it
            # As it is now: what was a former copy may be the last one since.
            in_force = holds_in_force(conn, removal.tenant_id) if locked.destroys else []
            known = frozenset(hold.hold_id for hold in in_force)
            covering = [] if not in_force else judged.get(known)
            if covering is not None:
                if not covering:
                    with kept_alive(conn):
                        target.delete(removal.key)
                    mark_removed(conn, removal.target, removal.key)
                return covering
        # What the holds cover may take reading the segment: not in a transaction that others wait for.
        judged[known] = holds_over(
            in_force, [HeldSegment.of_removal(removal)], task.shop.targets, on_unreadable=task.warn
        )
