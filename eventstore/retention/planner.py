"""What retention is to do: a pure function of policies, windows, holds and the time. No I/O.

A dry run and a run make the same plan. A window is found by its partition's bounds; the catalog must
agree with them, or the tenant stops.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from eventstore.errors import CoverageError
from eventstore.model.policy import PolicyInForce
from eventstore.model.run import TaskAction
from eventstore.model.tenant import Head, Tenant
from eventstore.model.window import Window, WindowRecord, WindowState

__all__ = ["FoundLeaf", "TenantPlan", "WindowPlan", "plan_expiry", "plan_tenant"]

_GONE = (WindowState.DROPPED, WindowState.EXPIRED)  # no partition any more


@dataclass(frozen=True, slots=True)
class FoundLeaf:
    """A leaf as Postgres' own catalog has it."""

    name: str
    window: Window


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """A window that is due, from the state it is in to where it is to be.

    `quarantined` are the (target, key) of objects in quarantine that are destroyed with it.
    `event_count` is exact, as of the plan. `target` is where it goes (None: it is destroyed). `held_by` names
    the legal holds that stop its destruction.
    """

    record: WindowRecord
    event_count: int
    action: TaskAction = TaskAction.ARCHIVE
    target: str | None = None
    held_by: tuple[str, ...] = ()
    quarantined: tuple[tuple[str, str], ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are still to be done, in order."""
        match self.action, self.record.state:
            case TaskAction.ARCHIVE, WindowState.OPEN:
                return ("seal", "write", "verify", "cut over", "drop")
            case TaskAction.ARCHIVE, WindowState.SEALED:
                return ("write", "verify", "cut over", "drop")
            case TaskAction.ARCHIVE, WindowState.ARCHIVED:
                return ("verify", "drop")
            case TaskAction.MOVE, _ if self.record.target == self.target:
                return ("remove former copy",)
            case TaskAction.MOVE, _:
                return ("copy", "verify", "cut over", "remove former copy")
            case TaskAction.EXPIRE, WindowState.DROPPED:
                return ("certify", "take out of the log", "destroy")
            case TaskAction.EXPIRE, WindowState.EXPIRED:
                return ("destroy",)
        return ()


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """A tenant's due windows, oldest first, how many stay hot and archived, and what is in the way."""

    tenant: Tenant
    policy: PolicyInForce
    due: tuple[WindowPlan, ...]
    hot_windows: int
    archived_windows: int
    warnings: tuple[str, ...] = ()


def plan_tenant(
    tenant: Tenant,
    *,
    policy: PolicyInForce,
    leaves: Sequence[FoundLeaf],
    windows: Sequence[WindowRecord],
    head: Head,
    archived_through: int,
    now_us: int,
    unremoved: Collection[Window] = (),
    left: Collection[tuple[str, Window]] = (),
) -> TenantPlan:
    """Plan the archiving and moving of one tenant's windows. `windows` is the whole catalog of its windows,
    oldest first; `unremoved` are those of which a former copy is still to be removed; `left` are the
    (target, window) that a window has already left: it does not go back there.

    Raises:
        CoverageError: partitions and catalog disagree, or the windows do not follow one another.
    """
    _check_leaves(tenant, leaves, windows)
    counts = _check_sequence(tenant, windows, head, archived_through)
    due, warnings, hot, archived = [], [], 0, 0
    waiting = False  # an older window stays hot, so that no younger one may be archived
    for record in windows:
        wanted = policy.policy.tier_at(record.window, now_us)
        count = counts[record.window]
        match record.state:
            case WindowState.EXPIRED:
                continue
            case WindowState.DROPPED:
                target = _next_target(policy, record, wanted, left)
                if target != record.target or record.window in unremoved:
                    due.append(WindowPlan(record, count, TaskAction.MOVE, target))
                else:
                    archived += 1
            case _ if wanted is None or waiting:
                waiting = True
                hot += 1
            case _:
                # What was once frozen stays: a retry writes to the same target.
                target = record.target or policy.policy.tiers[wanted].target
                due.append(WindowPlan(record, count, TaskAction.ARCHIVE, target))
    unknown = _foreign_targets(policy, windows)
    if unknown:
        warnings.append(f"windows lie in {', '.join(unknown)}, which the policy does not name")
    return TenantPlan(tenant, policy, tuple(due), hot, archived, tuple(warnings))


def plan_expiry(
    tenant: Tenant,
    *,
    policy: PolicyInForce,
    windows: Sequence[WindowRecord],
    held: Mapping[Window, Sequence[str]],
    now_us: int,
    unremoved: Collection[Window] = (),
    quarantined: Mapping[Window, Sequence[tuple[str, str]]] | None = None,
) -> TenantPlan:
    """Plan the destruction of what has expired. `held` names the holds over each window that is due;
    `unremoved` are expired windows of which an object is still there."""
    due, warnings, kept = [], [], 0
    set_aside = quarantined or {}
    for record in windows:
        if record.state is WindowState.EXPIRED:
            if record.window in unremoved or record.window in set_aside:
                due.append(_expiry(record, held, set_aside))
            continue
        expires_us = policy.policy.expires_at(record.window)
        if expires_us is None or expires_us > now_us:
            kept += record.state is WindowState.DROPPED
        elif record.state is not WindowState.DROPPED:
            warnings.append(f"window {record.window} has expired, but is not archived yet ({record.state})")
        else:
            due.append(_expiry(record, held, set_aside))
    return TenantPlan(tenant, policy, tuple(due), 0, kept, tuple(warnings))


def _expiry(
    record: WindowRecord,
    held: Mapping[Window, Sequence[str]],
    quarantined: Mapping[Window, Sequence[tuple[str, str]]],
) -> WindowPlan:
    assert record.event_count is not None
    return WindowPlan(
        record,
        record.event_count,
        TaskAction.EXPIRE,
        None,
        tuple(held.get(record.window, ())),
        tuple(quarantined.get(record.window, ())),
    )


def _next_target(
    policy: PolicyInForce, record: WindowRecord, wanted: int | None, left: Collection[tuple[str, Window]]
) -> str:
    """The target in which an archived window should be: that of its tier, but never one behind it. A policy
    that is changed to hold windows longer does not bring back what has moved on."""
    names = [tier.target for tier in policy.policy.tiers]
    assert record.target is not None
    if wanted is None:
        return record.target
    here = names.index(record.target) if record.target in names else -1
    if wanted <= here or (names[wanted], record.window) in left:
        return record.target
    return names[wanted]


def _foreign_targets(policy: PolicyInForce, windows: Sequence[WindowRecord]) -> list[str]:
    named = {tier.target for tier in policy.policy.tiers}
    return sorted({w.target for w in windows if w.state is WindowState.DROPPED and w.target} - named)


def _check_leaves(tenant: Tenant, leaves: Sequence[FoundLeaf], windows: Sequence[WindowRecord]) -> None:
    found = {leaf.name: leaf.window for leaf in leaves}
    known = {w.leaf: w.window for w in windows if w.state not in _GONE}
    for name in sorted(found.keys() | known.keys()):
        if found.get(name) != known.get(name):
            raise CoverageError(
                f"partition {name} of {tenant.tenant_id!r}: Postgres has "
                f"{found.get(name, 'no such partition')}, the catalog {known.get(name, 'no such window')}",
                hint="someone made, changed or removed a partition by hand; this tenant is left alone",
            )


def _check_sequence(
    tenant: Tenant, windows: Sequence[WindowRecord], head: Head, archived_through: int
) -> dict[Window, int]:
    """Each window begins where the one before it ends, the last at the head; the archive is a prefix."""
    counts: dict[Window, int] = {}
    archived = 0
    for index, record in enumerate(windows):
        following = windows[index + 1].first_seq if index + 1 < len(windows) else head.last_seq + 1
        expected_first = 1 if index == 0 else windows[index - 1].first_seq + counts[windows[index - 1].window]
        if record.first_seq != expected_first or record.last_seq not in (None, following - 1):
            raise CoverageError(
                f"window {record.window} of {tenant.tenant_id!r} holds seq {record.first_seq} to "
                f"{record.last_seq}, but must hold {expected_first} to {following - 1}",
                hint="the catalog of windows is damaged; run eventstore verify",
            )
        counts[record.window] = following - record.first_seq
        if record.state is WindowState.ARCHIVED or record.state in _GONE:
            if archived != record.first_seq - 1:
                raise CoverageError(
                    f"window {record.window} of {tenant.tenant_id!r} is archived before an older one",
                    hint="run eventstore verify",
                )
            archived = following - 1
    if archived != archived_through:
        raise CoverageError(
            f"the archive of {tenant.tenant_id!r} should reach seq {archived}, "
            f"the watermark says {archived_through}",
            hint="run eventstore verify",
        )
    return counts
