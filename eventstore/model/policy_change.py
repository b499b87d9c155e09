"""What a change of a policy would move or destroy, and when, worked out before it is taken. Pure.

Destruction is compared by the policies alone: a window is destroyed sooner if its time under the policy after
the change comes before that under the one before. Moves are compared by what would in fact happen: what is
due under both is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from eventstore.clock import to_iso
from eventstore.errors import InputError
from eventstore.model.itinerary import Itinerary, itinerary
from eventstore.model.policy import (
    Ending,
    Policy,
    PolicyOverride,
    PolicyVersion,
    format_duration,
    policy_in_force,
)
from eventstore.model.window import WindowRecord, WindowState, WindowUnit

__all__ = [
    "Effect",
    "EffectKind",
    "PolicyChange",
    "Situation",
    "TenantChange",
    "WindowEffects",
    "add_window",
    "check_targets",
    "destroys_sooner",
    "in_grace",
    "pinned",
    "situations",
    "standing",
]

_FAR_US = 2**63


class EffectKind(StrEnum):
    """How windows fare otherwise than before. sooner: also what would never have happened before. never: what
    would have happened before, and will not."""

    DESTROYED_SOONER = "destroyed sooner"
    DESTROYED_LATER = "destroyed later"
    DESTROYED_NEVER = "not destroyed any more"
    ARCHIVED_SOONER = "archived sooner"
    ARCHIVED_LATER = "archived later"
    ARCHIVED_ELSEWHERE = "archived elsewhere"
    MOVED_SOONER = "moved sooner"
    MOVED_LATER = "moved later"
    MOVED_NEVER = "not moved any more"


@dataclass(slots=True)
class Effect:
    """One kind of effect on a tenant's windows: how many, with how many events, and when the first and the
    last of it would happen (µs; None: never). `target` None: it is about no target."""

    kind: EffectKind
    target: str | None
    windows: int = 0
    events: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def add(self, events: int, at_us: int | None) -> None:
        self.windows += 1
        self.events += events
        if at_us is not None:
            self.first_us = at_us if self.first_us is None else min(self.first_us, at_us)
            self.last_us = at_us if self.last_us is None else max(self.last_us, at_us)

    def as_json(self) -> dict[str, Any]:
        return {
            "effect": self.kind.value,
            "target": self.target,
            "windows": self.windows,
            "events": self.events,
            "first": None if self.first_us is None else to_iso(self.first_us),
            "last": None if self.last_us is None else to_iso(self.last_us),
        }


@dataclass(frozen=True, slots=True)
class Situation:
    """A tenant's policy before and after a change, from a moment on: when it is made, and again when a
    version of the other scope that is in its grace time comes into force."""

    from_us: int
    before: Policy
    after: Policy


@dataclass(frozen=True, slots=True)
class TenantChange:
    """What a change means for one tenant."""

    tenant_id: str
    before: Policy
    after: Policy
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What a change of the default (`tenant_id` None) or of a tenant's own policy would do.

    `override` is the whole of what the scope would say. `withdraws` are the versions in their grace time that
    would then never come into force. `effective_us` is when the change would come into force.
    `events_destroyed_sooner` counts events of windows that have ended; a confirmation names that count.
    `first_destruction_us` is when the first window, ended or not, would be destroyed sooner; None: none
    would.
    """

    tenant_id: str | None
    override: PolicyOverride
    before: Policy
    after: Policy
    effective_us: int
    withdraws: tuple[int, ...]
    tenants: tuple[TenantChange, ...]
    destroys_sooner: bool
    events_destroyed_sooner: int
    first_destruction_us: int | None

    @property
    def changes_nothing(self) -> bool:
        """No tenant's policy would be another one, now or later."""
        return self.before == self.after and not self.withdraws and not self.tenants

    def as_json(self) -> dict[str, Any]:
        return {
            "tenant": self.tenant_id,
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "effective": to_iso(self.effective_us),
            "withdraws": list(self.withdraws),
            "destroys_sooner": self.destroys_sooner,
            "events_destroyed_sooner": self.events_destroyed_sooner,
            "first_destruction": None
            if self.first_destruction_us is None
            else to_iso(self.first_destruction_us),
            "tenants": [
                {"tenant": t.tenant_id, "effects": [effect.as_json() for effect in t.effects]}
                for t in self.tenants
            ],
        }

    def differences(self) -> list[str]:
        """What the policy says differently, a line each, for people."""
        old, new = self.before, self.after
        lines = []
        if old.unit != new.unit:
            lines.append(f"windows of one {new.unit} instead of one {old.unit}, from the next window on")
        if old.hot_for_us != new.hot_for_us:
            lines.append(
                f"hot for {format_duration(new.hot_for_us)} instead of {format_duration(old.hot_for_us)}"
            )
        if (old.tiers, old.ending) != (new.tiers, new.ending):
            lines.append(f"{_stays(new)}, instead of {_stays(old)}")
        lines += [
            f"quality rule {rule}: {new.quality.get(rule, 'off')} instead of {old.quality.get(rule, 'off')}"
            for rule in sorted(old.quality.keys() | new.quality.keys())
            if old.quality.get(rule) != new.quality.get(rule)
        ]
        return lines


def _stays(policy: Policy) -> str:
    stays = [
        tier.target if tier.for_us is None else f"{tier.target} for {format_duration(tier.for_us)}"
        for tier in policy.tiers
    ]
    return ", then ".join([*stays, "destroyed" if policy.ending is Ending.EXPIRE else "kept there for ever"])


def pinned(override: PolicyOverride) -> PolicyOverride:
    """An override whose last tier has no end, and that does not say what then, says keep: so a default that
    expires does not contradict it later."""
    if override.tiers and override.tiers[-1].for_us is None and override.ending is None:
        return replace(override, ending=Ending.KEEP)
    return override


# --- versions -----------------------------------------------------------------------------------------


def standing(versions: Sequence[PolicyVersion]) -> list[PolicyVersion]:
    """Versions of one scope without those that never came, or never will come, into force: a version in its
    grace time ends when a later one of its scope is made, whatever that says and whenever it takes effect."""
    ordered = sorted(versions, key=lambda version: version.policy_no)
    kept, earliest_later_us = [], _FAR_US
    for version in reversed(ordered):
        if version.effective_us <= earliest_later_us:
            kept.append(version)
        earliest_later_us = min(earliest_later_us, version.created_us)
    return kept[::-1]


def in_grace(versions: Sequence[PolicyVersion], at_us: int) -> list[PolicyVersion]:
    """Versions of one scope that will come into force after a moment."""
    return [version for version in standing(versions) if version.effective_us > at_us]


def situations(
    defaults: Sequence[PolicyVersion],
    own: Sequence[PolicyVersion],
    *,
    changes_default: bool,
    override: PolicyOverride,
    now_us: int,
) -> list[Situation]:
    """The policy of a tenant before and after a change of the default, or of its own, at every moment at
    which the other one changes.

    Raises:
        InputError: the two scopes would contradict each other at some moment.
    """
    other = own if changes_default else defaults
    moments = [now_us, *(version.effective_us for version in in_grace(other, now_us))]
    changed = [v for v in standing(defaults if changes_default else own) if v.effective_us <= now_us]
    new = PolicyVersion(2**62, None, override, now_us, now_us, "", "")
    found = []
    for at_us in moments:
        others = standing(other)
        if changes_default:
            before, after = (policy_in_force(d, others, at_us) for d in (changed, [new]))
        else:
            before, after = (policy_in_force(others, o, at_us) for o in (changed, [new]))
        found.append(Situation(at_us, before.policy, after.policy))
    return found


# --- effects ------------------------------------------------------------------------------------------


def destroys_sooner(found: Sequence[Situation]) -> bool:
    """Whether the change gives windows a shorter lifetime, or an end that had none; or makes windows shorter
    that will expire: time counts from a window's end, which then comes sooner."""
    units = list(WindowUnit)
    return any(
        _or_far(s.after.lifetime_us) < _or_far(s.before.lifetime_us)
        or (s.after.lifetime_us is not None and units.index(s.after.unit) < units.index(s.before.unit))
        for s in found
    )


@dataclass(slots=True)
class WindowEffects:
    """What adding windows up gives."""

    effects: dict[tuple[EffectKind, str | None], Effect] = field(default_factory=dict)
    events_destroyed_sooner: int = 0
    first_destruction_us: int | None = None

    def note(self, kind: EffectKind, target: str | None, events: int, at_us: int | None) -> None:
        self.effects.setdefault((kind, target), Effect(kind, target)).add(events, at_us)

    def in_order(self) -> tuple[Effect, ...]:
        """Destruction first."""
        kinds = list(EffectKind)
        return tuple(sorted(self.effects.values(), key=lambda e: (kinds.index(e.kind), e.target or "")))


def add_window(
    total: WindowEffects,
    found: Sequence[Situation],
    record: WindowRecord,
    events: int,
    *,
    now_us: int,
    effective_us: int,
) -> None:
    """Add what a change does to one window, which is not destroyed yet."""
    assert record.state is not WindowState.EXPIRED
    _add_destruction(total, found, record, events, now_us=now_us, effective_us=effective_us)
    before = itinerary(found[0].before, record, now_us)
    after = itinerary(found[0].after, record, effective_us)
    _add_archiving(total, before, after, events, now_us, effective_us)
    old, new = dict(before.moves), dict(after.moves)
    if before.archive_us is not None:
        old[before.target] = before.archive_us
    for target in new.keys() | old.keys():
        # Where it goes from the hot tier, or is, has been told; so has that it goes elsewhere.
        if target != after.target and (target in new or target != before.target):
            _add_move(total, target, old.get(target), new.get(target), events, now_us, effective_us)


def _add_destruction(
    total: WindowEffects,
    found: Sequence[Situation],
    record: WindowRecord,
    events: int,
    *,
    now_us: int,
    effective_us: int,
) -> None:
    sooner = [
        max(after_us, effective_us, s.from_us)
        for s in found
        if (after_us := s.after.expires_at(record.window)) is not None
        and after_us < _or_far(s.before.expires_at(record.window))
    ]
    if sooner:
        at_us = min(sooner)
        total.note(EffectKind.DESTROYED_SOONER, None, events, at_us)
        if record.window.to_us <= now_us:
            total.events_destroyed_sooner += events
        if total.first_destruction_us is None or at_us < total.first_destruction_us:
            total.first_destruction_us = at_us
        return
    before_us, after_us = (p.expires_at(record.window) for p in (found[0].before, found[0].after))
    if before_us is not None and after_us is None:
        total.note(EffectKind.DESTROYED_NEVER, None, events, None)
    elif before_us is not None and after_us is not None and after_us > before_us:
        total.note(EffectKind.DESTROYED_LATER, None, events, max(after_us, effective_us))


def _add_archiving(
    total: WindowEffects, before: Itinerary, after: Itinerary, events: int, now_us: int, effective_us: int
) -> None:
    if before.archive_us is None or after.archive_us is None:
        return
    old_us, new_us = _times(before.archive_us, after.archive_us, now_us, effective_us)
    assert new_us is not None
    assert old_us is not None
    if new_us < old_us:
        total.note(EffectKind.ARCHIVED_SOONER, after.target, events, new_us)
    elif new_us > old_us:
        total.note(EffectKind.ARCHIVED_LATER, after.target, events, new_us)
    elif before.target != after.target and old_us >= effective_us:
        total.note(EffectKind.ARCHIVED_ELSEWHERE, after.target, events, new_us)


def _add_move(
    total: WindowEffects,
    target: str,
    old_us: int | None,
    new_us: int | None,
    events: int,
    now_us: int,
    effective_us: int,
) -> None:
    old_us, new_us = _times(old_us, new_us, now_us, effective_us)
    if _or_far(new_us) < _or_far(old_us):
        total.note(EffectKind.MOVED_SOONER, target, events, new_us)
    elif new_us is None and old_us is not None:
        total.note(EffectKind.MOVED_NEVER, target, events, None)
    elif _or_far(new_us) > _or_far(old_us):
        total.note(EffectKind.MOVED_LATER, target, events, new_us)


def _times(
    old_us: int | None, new_us: int | None, now_us: int, effective_us: int
) -> tuple[int | None, int | None]:
    """When something would happen without the change and with it: what is due before the change comes into
    force, happens under the old policy."""
    if old_us is not None:
        old_us = max(old_us, now_us)
        if old_us < effective_us:
            return old_us, old_us
    return old_us, None if new_us is None else max(new_us, effective_us)


def _or_far(at_us: int | None) -> int:
    return _FAR_US if at_us is None else at_us


def check_targets(override: PolicyOverride, known: Sequence[str]) -> None:
    """Raises:
    InputError: a tier names a target that the deployment does not have.
    """
    for tier in override.tiers or ():
        if tier.target not in known:
            raise InputError(
                f"there is no archive target {tier.target!r}", hint=f"known are: {', '.join(sorted(known))}"
            )
