"""A tenant explained: where its windows are, what happens to which of them next, what is in the way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eventstore.model.explain import (
    Blocker,
    BlockerKind,
    Explanation,
    NextStep,
    PolicyFacts,
    WindowFacts,
    at_text,
    policy_lines,
    span_text,
    steps_and_blockers,
)
from eventstore.model.hold import Hold
from eventstore.model.tenant import Tenant, TenantState
from eventstore.model.window import WindowRecord, WindowState

__all__ = ["TenantFacts", "explain_tenant_facts"]

_NAMED_MAX = 5  # of each kind of trouble so many are named, the rest is counted
_HOT = (WindowState.OPEN, WindowState.SEALED, WindowState.ARCHIVED)

_Explained = tuple[WindowFacts, Sequence[NextStep], Sequence[Blocker]]


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """All that is known of a tenant. Its windows come without holds: these are told for the whole tenant."""

    tenant: Tenant
    windows: Sequence[WindowFacts]
    policy: PolicyFacts
    holds: Sequence[Hold]
    now_us: int


def explain_tenant_facts(facts: TenantFacts) -> Explanation:
    """Where a tenant's windows are and why, the next of each kind of step, and what is in the way."""
    name = facts.tenant.tenant_id
    explained = [(w, *steps_and_blockers(w)) for w in facts.windows]
    return Explanation(
        f"tenant {name}",
        _state_text(facts.tenant),
        (*policy_lines(facts.policy), *_places(facts.windows)),
        tuple(_next_steps(explained)),
        tuple(_blockers(facts, explained)),
        tuple(
            f"policy version {version.policy_no} comes into force on {at_text(version.effective_us)}: "
            f"{policy.in_words()}"
            for version, policy in facts.policy.coming
        ),
    )


def _state_text(tenant: Tenant) -> str:
    match tenant.state:
        case TenantState.ACTIVE:
            return f"active; its next window is one {tenant.unit}"
        case TenantState.CLOSING:
            return "closing: it is being offboarded, and takes no more events"
        case TenantState.CLOSED:
            return "closed: it was offboarded, and its events are destroyed"


def _place(record: WindowRecord) -> str:
    if record.state is WindowState.EXPIRED:
        return "destroyed"
    return "hot" if record.state in _HOT else f"in {record.target}"


def _places(windows: Sequence[WindowFacts]) -> list[str]:
    """A line for each place, in the order of age."""
    found: dict[str, list[WindowFacts]] = {}
    for window in windows:
        found.setdefault(_place(window.record), []).append(window)
    lines = []
    for place, those in found.items():
        count, events = len(those), sum(w.events for w in those)
        first, last = those[0].record.window, those[-1].record.window
        lines.append(
            f"{place}: {count:,} window{'' if count == 1 else 's'}, {events:,} events, "
            f"{at_text(first.from_us)} … {at_text(last.to_us)}"
        )
    return lines or ["it has no events"]


def _next_steps(explained: Iterable[_Explained]) -> list[NextStep]:
    """The earliest of each kind of step, and how many more of it are due."""
    found: dict[str, list[tuple[NextStep, WindowFacts]]] = {}
    for window, steps_of_it, _ in explained:
        for step in steps_of_it:
            found.setdefault(step.what.removeprefix("sealed, then "), []).append((step, window))
    steps = []
    for what, those in found.items():
        first, window = min(those, key=lambda pair: pair[0].at_us)
        more = sum(step.due for step, _ in those) - 1
        others = f" (and {more:,} more due)" if more > 0 else ""
        steps.append(
            NextStep(
                f"window {span_text(window.record)} {what}{others}", first.at_us, first.due, first.target
            )
        )
    return sorted(steps, key=lambda step: step.at_us)


def _blockers(facts: TenantFacts, explained: Sequence[_Explained]) -> list[Blocker]:
    found: list[Blocker] = []
    targets: dict[str, Blocker] = {}
    for window, _, blockers in explained:
        for blocker in blockers:
            if blocker.kind is BlockerKind.UNKNOWN_TARGET:
                targets.setdefault(blocker.message, blocker)
            else:
                what = f"{blocker.blocks} of window {span_text(window.record)}"
                found.append(Blocker(blocker.kind, what, blocker.message))
    shown: list[Blocker] = list(targets.values())
    for kind in BlockerKind:
        those = [blocker for blocker in found if blocker.kind is kind]
        shown += those[:_NAMED_MAX]
        if len(those) > _NAMED_MAX:
            message = f"{len(those) - _NAMED_MAX:,} more windows"
            shown.append(Blocker(kind, those[0].blocks.partition(" of window")[0], message))
    shown += [
        Blocker(
            BlockerKind.HOLD,
            "destruction",
            f"held by {hold.name!r}: {hold.scope.in_words()}; {hold.reason} ({hold.placed_by})",
        )
        for hold in facts.holds
    ]
    return shown
