"""Why a window is where it is, what happens to it next and when, and what is in the way. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from eventstore.clock import to_iso
from eventstore.model.hold import Hold
from eventstore.model.itinerary import Itinerary, itinerary
from eventstore.model.policy import Policy, PolicyInForce, PolicyVersion
from eventstore.model.run import TaskAction, TaskState
from eventstore.model.window import WindowRecord, WindowState

__all__ = [
    "Blocker",
    "BlockerKind",
    "Explanation",
    "HoldOver",
    "NextStep",
    "PolicyFacts",
    "TaskFacts",
    "WindowFacts",
    "at_text",
    "explain_facts",
    "policy_lines",
    "span_text",
    "steps_and_blockers",
]


class BlockerKind(StrEnum):
    """What can be in the way of a next step."""

    HOLD = "hold"
    FAILED_TASK = "failed task"
    OLDER_WINDOW = "older window"
    READERS = "readers"
    UNKNOWN_TARGET = "unknown target"


@dataclass(frozen=True, slots=True)
class Blocker:
    """Something in the way, and of what."""

    kind: BlockerKind
    blocks: str
    message: str


@dataclass(frozen=True, slots=True)
class NextStep:
    """Something that happens at the first run after `at_us`. It is due when that has passed."""

    what: str
    at_us: int
    due: bool
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """`place` is a tier, a target, or that it is destroyed. `changes` tells what a policy in its grace time
    will do to it."""

    subject: str
    place: str
    because: tuple[str, ...]
    next: tuple[NextStep, ...]
    blocked_by: tuple[Blocker, ...]
    changes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "place": self.place,
            "because": list(self.because),
            "next": [
                {"what": s.what, "at": to_iso(s.at_us), "due": s.due, "target": s.target} for s in self.next
            ],
            "blocked_by": [
                {"kind": b.kind.value, "blocks": b.blocks, "message": b.message} for b in self.blocked_by
            ],
            "changes": list(self.changes),
        }

    def in_words(self) -> str:
        """The explanation as lines for people."""
        lines = [f"{self.subject}: {self.place}", "Why:", *(f"  {line}" for line in self.because), "Next:"]
        for step in self.next:
            when = f"due since {at_text(step.at_us)}" if step.due else f"from {at_text(step.at_us)}"
            lines.append(f"  {step.what}, {when}")
        if not self.next:
            lines.append("  nothing; it stays as it is")
        if self.blocked_by:
            lines += ["In the way:", *(f"  of {b.blocks}: {b.message}" for b in self.blocked_by)]
        if self.changes:
            lines += ["About to change:", *(f"  {line}" for line in self.changes)]
        return "\n".join(lines)


# --- facts --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What is in force for the tenant; the newest version in it (None: all is built in); and what will be,
    once versions that are in their grace time come into force."""

    in_force: PolicyInForce
    newest: PolicyVersion | None
    coming: tuple[tuple[PolicyVersion, Policy], ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """The window's newest task. `error` None: it has not failed, or not yet."""

    action: TaskAction
    state: TaskState
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class HoldOver:
    """A hold over the window. Not `certain`: times and filters do not exclude it, and the events were not
    read; they are before anything is destroyed."""

    hold: Hold
    certain: bool


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """All that is known of a window. `older_hot` is an older window of the tenant that stays hot, because it
    is not due or failed; `left` counts objects of it that are still to be deleted."""

    tenant_id: str
    record: WindowRecord
    events: int
    policy: PolicyFacts
    now_us: int
    known_targets: Collection[str]
    task: TaskFacts | None = None
    holds: Sequence[HoldOver] = ()
    older_hot: WindowRecord | None = None
    left: int = 0
    certificate: int | None = None


# --- in words -----------------------------------------------------------------------------------------


def at_text(us: int) -> str:
    """A time for people: a date where it is midnight, else to the minute."""
    text = to_iso(us)
    return text[:10] if text[11:19] == "00:00:00" else text[:16].replace("T", " ") + "Z"


def span_text(record: WindowRecord) -> str:
    """A window's span for people."""
    return f"{at_text(record.window.from_us)} … {at_text(record.window.to_us)}"


def policy_lines(policy: PolicyFacts) -> list[str]:
    """Which policy is in force, and since when."""
    version = policy.newest
    if version is None:
        return [f"built-in policy: {policy.in_force.policy.in_words()}"]
    whose = "the deployment's default" if version.tenant_id is None else "its own policy"
    since = max(version.effective_us, version.created_us)
    return [
        f"policy version {version.policy_no} ({whose}), in force since {at_text(since)}: "
        f"{policy.in_force.policy.in_words()}"
    ]


def explain_facts(facts: WindowFacts) -> Explanation:
    """Why a window is where it is, what comes next, and what is in the way."""
    record = facts.record
    subject = f"window {span_text(record)} of {facts.tenant_id} ({facts.events:,} events)"
    if record.state is WindowState.EXPIRED:
        return _expired(facts, subject)
    way = itinerary(facts.policy.in_force.policy, record, facts.now_us)
    steps = _steps(facts, way)
    return Explanation(
        subject,
        _place(record),
        (*_because(facts, way), *policy_lines(facts.policy)),
        tuple(steps),
        tuple(_blockers(facts, way, steps)),
        tuple(_changes(facts, way)),
    )


def steps_and_blockers(facts: WindowFacts) -> tuple[Sequence[NextStep], Sequence[Blocker]]:
    """What comes next for a window, and what is in the way, as `explain_facts` says it; without the words
    about why, which take most of the time where there are thousands of windows."""
    if facts.record.state is WindowState.EXPIRED:
        explained = _expired(facts, "")
        return explained.next, explained.blocked_by
    way = itinerary(facts.policy.in_force.policy, facts.record, facts.now_us)
    steps = _steps(facts, way)
    return steps, _blockers(facts, way, steps)


def _expired(facts: WindowFacts, subject: str) -> Explanation:
    stands = "a certificate" if facts.certificate is None else f"certificate {facts.certificate}"
    because = [f"it was taken out of the log under policy; {stands} stands for it"]
    blockers: list[Blocker] = []
    steps: list[NextStep] = []
    place = "destroyed"
    if facts.left:
        place = "being destroyed"
        because.append(f"{facts.left:,} of its objects are still to be deleted from their targets")
        steps.append(NextStep("its objects are deleted", facts.record.window.to_us, due=True))
        blockers = [_hold_blocker(over, "destruction") for over in facts.holds]
        blockers += _task_blockers(facts)
    return Explanation(subject, place, tuple(because), tuple(steps), tuple(blockers), ())


def _place(record: WindowRecord) -> str:
    match record.state:
        case WindowState.OPEN:
            return "hot, in Postgres; open"
        case WindowState.SEALED:
            return "hot, in Postgres; sealed, so that nothing can be added"
        case WindowState.ARCHIVED:
            return f"in the target {record.target}; its copy in Postgres is not dropped yet"
        case _:
            return f"in the target {record.target}"


def _because(facts: WindowFacts, way: Itinerary) -> list[str]:
    record, policy = facts.record, facts.policy.in_force.policy
    if record.state in (WindowState.OPEN, WindowState.SEALED):
        assert way.archive_us is not None
        if record.window.to_us > facts.now_us:
            return [f"it has not ended: that is on {at_text(record.window.to_us)}"]
        if way.archive_us > facts.now_us:
            return [f"it ended on {at_text(record.window.to_us)}, and its hot time is not over"]
        return [f"its hot time was over on {at_text(way.archive_us)}, but it is not archived yet"]
    wanted = policy.tier_at(record.window, facts.now_us)
    names = [tier.target for tier in policy.tiers]
    if record.target not in names:
        return [f"it was archived to {record.target}, which the policy does not name any more"]
    here = names.index(record.target)
    if wanted is None or here > wanted:
        return [f"the policy would not have it in {record.target} yet, but a window never goes back"]
    if here < wanted:
        return [f"its time in {record.target} is over, but it is not moved yet"]
    end_us = policy.tier_end(record.window, here)
    if end_us is not None and end_us <= facts.now_us:
        return [f"its time in {record.target} was over on {at_text(end_us)}, but it is not destroyed yet"]
    start_us = policy.tier_starts(record.window)[here]
    until = "for ever" if end_us is None else f"until {at_text(end_us)}"
    return [f"the policy has it in {record.target} from {at_text(start_us)} {until}"]


def _steps(facts: WindowFacts, way: Itinerary) -> list[NextStep]:
    def step(what: str, at_us: int, target: str | None = None) -> NextStep:
        return NextStep(what, at_us, at_us <= facts.now_us, target)

    found = []
    if way.archive_us is not None:
        sealing = "sealed, then " if facts.record.state is WindowState.OPEN else ""
        found.append(step(f"{sealing}archived to {way.target}", way.archive_us, way.target))
    if facts.record.state is WindowState.ARCHIVED:
        found.append(step("dropped from Postgres", facts.now_us))
    found += [step(f"moved to {target}", at_us, target) for target, at_us in way.moves]
    if way.destroy_us is not None:
        found.append(step("destroyed", way.destroy_us))
    return found


def _blockers(facts: WindowFacts, way: Itinerary, steps: Sequence[NextStep]) -> list[Blocker]:
    found = _task_blockers(facts)
    if facts.older_hot is not None and way.archive_us is not None and way.archive_us <= facts.now_us:
        found.append(
            Blocker(
                BlockerKind.OLDER_WINDOW,
                "archiving",
                f"window {span_text(facts.older_hot)} is older and not archived yet; windows go in order",
            )
        )
    if facts.record.state is WindowState.ARCHIVED:
        found.append(
            Blocker(
                BlockerKind.READERS,
                "dropping it from Postgres",
                "long reads of the tenant hold its table; each run tries again",
            )
        )
    for step in steps:
        if step.target is not None and step.target not in facts.known_targets:
            what = "archiving" if step.what.endswith(f"archived to {step.target}") else "moving"
            found.append(
                Blocker(
                    BlockerKind.UNKNOWN_TARGET, what, f"the deployment has no target named {step.target!r}"
                )
            )
    blocks = "destruction" if way.destroy_us is not None else "destruction, which the policy does not ask for"
    return found + [_hold_blocker(over, blocks) for over in facts.holds]


def _task_blockers(facts: WindowFacts) -> list[Blocker]:
    task = facts.task
    if task is None or task.state in (TaskState.DONE, TaskState.RUNNING):
        return []
    what = {
        TaskAction.ARCHIVE: "archiving",
        TaskAction.MOVE: "moving",
        TaskAction.EXPIRE: "destruction",
    }[task.action]
    if task.state is TaskState.BLOCKED:
        message = "the last run left it, because an older window of the tenant failed"
    elif task.error is not None:
        tries = "once" if task.attempts == 1 else f"{task.attempts} times"
        message = f"it was tried {tries}: {task.error}"
    else:
        return []
    return [Blocker(BlockerKind.FAILED_TASK, what, message)]


def _hold_blocker(over: HoldOver, blocks: str) -> Blocker:
    hold = over.hold
    says = "held by" if over.certain else "perhaps held (its events were not read) by"
    return Blocker(
        BlockerKind.HOLD,
        blocks,
        f"{says} {hold.name!r}: {hold.scope.in_words()}; {hold.reason} ({hold.placed_by})",
    )


def _changes(facts: WindowFacts, way: Itinerary) -> list[str]:
    """What versions in their grace time will do to it, each against what is in force now."""
    found = []
    for version, policy in facts.policy.coming:
        after = itinerary(policy, facts.record, max(facts.now_us, version.effective_us))
        parts = []
        if after.archive_us is not None and after.archive_us != way.archive_us:
            parts.append(f"archived to {after.target} from {at_text(after.archive_us)}")
        parts += [
            f"moved to {target} from {at_text(max(at_us, version.effective_us))}"
            for target, at_us in after.moves
            if (target, at_us) not in way.moves
        ]
        gone = [t for t, _ in way.moves if t not in dict(after.moves) and t != after.target]
        parts += [f"no longer moved to {target}" for target in gone]
        if after.destroy_us != way.destroy_us:
            parts.append(
                "no longer destroyed"
                if after.destroy_us is None
                else f"destroyed from {at_text(max(after.destroy_us, version.effective_us))}"
            )
        if parts:
            found.append(
                f"policy version {version.policy_no} comes into force on {at_text(version.effective_us)}: "
                + ", ".join(parts)
            )
    return found
