"""What retention is to do: a pure function of policies, windows and the time. No I/O.

A dry run and a run make the same plan. A window is found by its partition's bounds; the catalog must
agree with them, or the tenant stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eventstore.errors import CoverageError
from eventstore.model.tenant import Head, Tenant
from eventstore.model.window import Window, WindowRecord, WindowState

__all__ = ["FoundLeaf", "TenantPlan", "WindowPlan", "plan_tenant"]


@dataclass(frozen=True, slots=True)
class FoundLeaf:
    """A leaf as Postgres' own catalog has it."""

    name: str
    window: Window


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """A window that is due, from the state it is in to dropped. `event_count` is exact, as of the plan."""

    record: WindowRecord
    event_count: int

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are still to be done, in order."""
        match self.record.state:
            case WindowState.OPEN:
                return ("seal", "write", "verify", "cut over", "drop")
            case WindowState.SEALED:
                return ("write", "verify", "cut over", "drop")
            case WindowState.ARCHIVED:
                return ("verify", "drop")
            case WindowState.DROPPED:
                return ()


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """A tenant's due windows, oldest first, and how many windows stay hot."""

    tenant: Tenant
    due: tuple[WindowPlan, ...]
    hot_windows: int


def plan_tenant(
    tenant: Tenant,
    *,
    leaves: Sequence[FoundLeaf],
    windows: Sequence[WindowRecord],
    head: Head,
    archived_through: int,
    now_us: int,
) -> TenantPlan:
    """Plan one tenant. `windows` is the whole catalog of its windows, oldest first.

    Raises:
        CoverageError: partitions and catalog disagree, or the windows do not follow one another.
    """
    _check_leaves(tenant, leaves, windows)
    counts = _check_sequence(tenant, windows, head, archived_through)
    hot = [w for w in windows if w.state is not WindowState.DROPPED]
    due = []
    for record in hot:
        if record.window.to_us + tenant.policy.hot_for_us > now_us:
            break
        due.append(WindowPlan(record, counts[record.window]))
    return TenantPlan(tenant, tuple(due), len(hot) - len(due))


def _check_leaves(tenant: Tenant, leaves: Sequence[FoundLeaf], windows: Sequence[WindowRecord]) -> None:
    found = {leaf.name: leaf.window for leaf in leaves}
    known = {w.leaf: w.window for w in windows if w.state is not WindowState.DROPPED}
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
        if record.state in (WindowState.ARCHIVED, WindowState.DROPPED):
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
