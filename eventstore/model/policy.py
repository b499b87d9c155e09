"""A tenant's policy: how its log is cut into windows, how long a window stays in each tier, and what then.

A policy in force is made of three layers, each overriding what lies below it: what is built in, the
deployment's default, and the tenant's own (`PolicyOverride`). Every version of the last two is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from eventstore.clock import US_PER_S
from eventstore.errors import InputError
from eventstore.model.quality import DEFAULT_QUALITY, QualityAction, QualityRule
from eventstore.model.window import Window, WindowUnit

__all__ = [
    "DEFAULT_POLICY",
    "DEFAULT_TARGET",
    "ArchiveTier",
    "Ending",
    "Policy",
    "PolicyInForce",
    "PolicyOverride",
    "PolicyVersion",
    "format_duration",
    "longest_kept",
    "parse_duration_us",
    "policy_in_force",
    "version_in_force",
]

# The name of the target that EVENTSTORE_ARCHIVE_URL gives.
DEFAULT_TARGET = "archive"

E = TypeVar("E", bound=StrEnum)

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_DURATION = re.compile(r"(\d+)(?:\.(\d{1,6}))?([smhdwy])")


class Ending(StrEnum):
    """What happens after the last tier's time: `keep` there for ever, or `expire` (destroy)."""

    KEEP = "keep"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True)
class ArchiveTier:
    """A stay in a target, by its name. `for_us` None: for ever (in the last tier only)."""

    target: str
    for_us: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """`unit` aligns the windows; a window may leave the hot tier `hot_for_us` after its end, then stays in
    each of `tiers` for its time, and then is kept or expires. All times count from the window's end.

    Raises:
        InputError: it contradicts itself.
    """

    unit: WindowUnit
    hot_for_us: int
    tiers: tuple[ArchiveTier, ...] = (ArchiveTier(DEFAULT_TARGET),)
    ending: Ending = Ending.KEEP
    quality: Mapping[QualityRule, QualityAction] = field(default_factory=lambda: dict(DEFAULT_QUALITY))

    def __post_init__(self) -> None:
        if not self.tiers:
            raise InputError("a policy needs at least one archive tier", hint="write it like archive=7y")
        for tier in self.tiers[:-1]:
            if tier.for_us is None:
                raise InputError(
                    f"tier {tier.target!r} has no end, but is not the last one", hint="give it a time"
                )
        if self.ending is Ending.EXPIRE and self.tiers[-1].for_us is None:
            raise InputError(
                f"a policy that expires needs a time for its last tier {self.tiers[-1].target!r}",
                hint="write it like archive=7y",
            )
        names = [tier.target for tier in self.tiers]
        if len(set(names)) != len(names):
            raise InputError(f"a target stands twice in {', '.join(names)}", hint="each tier needs its own")

    def archive_at(self, window: Window) -> int:
        """When a window may leave the hot tier, in µs."""
        return window.to_us + self.hot_for_us

    def tier_starts(self, window: Window) -> list[int]:
        """When a window comes into each of the tiers, in µs."""
        starts, at = [], self.archive_at(window)
        for tier in self.tiers:
            starts.append(at)
            at += tier.for_us or 0
        return starts

    def tier_at(self, window: Window, now_us: int) -> int | None:
        """The index of the tier in which a window belongs; None: the hot one."""
        found = None
        for index, start in enumerate(self.tier_starts(window)):
            if start <= now_us:
                found = index
        return found

    def tier_end(self, window: Window, index: int) -> int | None:
        """When a window has to leave a tier; None: never."""
        if index == len(self.tiers) - 1:
            return self.expires_at(window)
        return self.tier_starts(window)[index + 1]

    def expires_at(self, window: Window) -> int | None:
        """When a window is to be destroyed, in µs; None: never."""
        lifetime = self.lifetime_us
        return None if lifetime is None else window.to_us + lifetime

    @property
    def lifetime_us(self) -> int | None:
        """How long a window is kept after its end in all tiers together; None: for ever."""
        if self.ending is Ending.KEEP:
            return None
        return self.hot_for_us + sum(tier.for_us or 0 for tier in self.tiers)

    def in_words(self) -> str:
        """The policy in one line for people."""
        parts = [f"windows of one {self.unit}", f"hot for {format_duration(self.hot_for_us)}"]
        for tier in self.tiers:
            stay = "" if tier.for_us is None else f" for {format_duration(tier.for_us)}"
            parts.append(f"then {tier.target}{stay}")
        end = "destroyed" if self.ending is Ending.EXPIRE else "kept there for ever"
        return ", ".join(parts) + f", then {end}"

    def as_json(self) -> dict[str, Any]:
        """The whole policy as a JSON document."""
        return {
            "window": self.unit.value,
            "hot_for": format_duration(self.hot_for_us),
            "tiers": [_tier_json(tier) for tier in self.tiers],
            "then": self.ending.value,
            "quality": {rule.value: action.value for rule, action in sorted(self.quality.items())},
        }


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """What a deployment or a tenant says differently; None: as the layer below says."""

    unit: WindowUnit | None = None
    hot_for_us: int | None = None
    tiers: tuple[ArchiveTier, ...] | None = None
    ending: Ending | None = None
    quality: Mapping[QualityRule, QualityAction] | None = None

    def over(self, base: Policy) -> Policy:
        """The policy that results over another one.

        Raises:
            InputError: it contradicts itself.
        """
        given = {
            name: value
            for name in ("unit", "hot_for_us", "tiers", "ending")
            if (value := getattr(self, name)) is not None
        }
        return replace(base, **given, quality={**base.quality, **(self.quality or {})})

    def changed_by(self, change: PolicyOverride) -> PolicyOverride:
        """This override with a change laid over it."""
        given = {
            name: value
            for name in ("unit", "hot_for_us", "tiers", "ending")
            if (value := getattr(change, name)) is not None
        }
        quality = {**(self.quality or {}), **(change.quality or {})} or None
        return replace(self, **given, quality=quality)

    def as_json(self) -> dict[str, Any]:
        """As a JSON document that `from_json` reads back; holds only what is given."""
        found: dict[str, Any] = {}
        if self.unit is not None:
            found["window"] = self.unit.value
        if self.hot_for_us is not None:
            found["hot_for"] = format_duration(self.hot_for_us)
        if self.tiers is not None:
            found["tiers"] = [_tier_json(tier) for tier in self.tiers]
        if self.ending is not None:
            found["then"] = self.ending.value
        if self.quality:
            found["quality"] = {rule.value: action.value for rule, action in sorted(self.quality.items())}
        return found

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> PolicyOverride:
        """Read a policy document, whole or in part.

        Raises:
            InputError: an unknown member, or a value that it cannot have; says which.
        """
        known = {"window", "hot_for", "tiers", "then", "quality"}
        unknown = sorted(document.keys() - known)
        if unknown:
            raise InputError(f"a policy has no {unknown[0]!r}", hint=f"known are: {', '.join(sorted(known))}")
        hot_for, tiers, quality = document.get("hot_for"), document.get("tiers"), document.get("quality")
        return PolicyOverride(
            unit=_choice(WindowUnit, "window", document.get("window")),
            hot_for_us=None if hot_for is None else parse_duration_us(str(hot_for)),
            tiers=None if tiers is None else tuple(_tier_from_json(tier) for tier in tiers),
            ending=_choice(Ending, "then", document.get("then")),
            quality=None if quality is None else _quality_from_json(quality),
        )


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A version of the deployment's default (`tenant_id` None) or of a tenant's own policy.

    `policy_no` numbers all versions of the deployment. It is in force from `effective_us` on, until a later
    version of the same scope is. `confirmed_events` is the count that was confirmed for a change that
    destroys sooner; None where no confirmation was needed.
    """

    policy_no: int
    tenant_id: str | None
    override: PolicyOverride
    effective_us: int
    created_us: int
    actor: str
    reason: str
    confirmed_events: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The policy of a tenant at a time. `policy_no` is that of the newest version in it; 0: all built in."""

    policy: Policy
    policy_no: int


def version_in_force(versions: Iterable[PolicyVersion], at_us: int) -> PolicyVersion | None:
    """Of one scope's versions the newest whose time has come; None: of none it has."""
    found = None
    for version in versions:
        if version.effective_us <= at_us and (found is None or version.policy_no > found.policy_no):
            found = version
    return found


def policy_in_force(
    defaults: Sequence[PolicyVersion], own: Sequence[PolicyVersion], at_us: int
) -> PolicyInForce:
    """What is in force at a time: of each scope, the newest version whose time has come."""
    policy, policy_no = DEFAULT_POLICY, 0
    for versions in (defaults, own):
        current = version_in_force(versions, at_us)
        if current is not None:
            policy, policy_no = current.override.over(policy), max(policy_no, current.policy_no)
    return PolicyInForce(policy, policy_no)


def longest_kept(*found: PolicyInForce) -> PolicyInForce:
    """Of several policies the one that destroys last; of equal ones the first."""
    return max(found, key=lambda p: float("inf") if p.policy.lifetime_us is None else p.policy.lifetime_us)


DEFAULT_POLICY = Policy(WindowUnit.MONTH, 90 * 86400 * US_PER_S)


def parse_duration_us(text: str) -> int:
    """Read `90d`, `12h`, `2w`, `1y` (365 days), `0.5s` or sums like `1d12h`; microseconds.

    Raises:
        InputError: not a duration.
    """
    total_us, at = 0, 0
    for match in _DURATION.finditer(text):
        if match.start() != at or (match[2] and match[3] != "s"):
            break
        total_us += int(match[1]) * _UNITS_S[match[3]] * US_PER_S + int((match[2] or "0").ljust(6, "0"))
        at = match.end()
    if not text or at != len(text):
        raise InputError(f"{text!r} is not a duration", hint="write it like 90d, 12h or 1d12h")
    if total_us > 1000 * _UNITS_S["y"] * US_PER_S:
        raise InputError(f"{text!r} is longer than a thousand years", hint="1000y is the most")
    return total_us


def format_duration(us: int) -> str:
    """The shortest exact form that `parse_duration_us` reads back; fractions of a second as decimals."""
    rest_s, fraction_us = divmod(us, US_PER_S)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, rest_s = divmod(rest_s, _UNITS_S[unit])
        fraction = f".{fraction_us:06d}".rstrip("0") if unit == "s" and fraction_us else ""
        if count or fraction:
            parts.append(f"{count}{fraction}{unit}")
    return "".join(parts) or "0s"


def _tier_json(tier: ArchiveTier) -> dict[str, str]:
    return {"target": tier.target} | ({} if tier.for_us is None else {"for": format_duration(tier.for_us)})


def _tier_from_json(tier: object) -> ArchiveTier:
    if not isinstance(tier, Mapping) or not isinstance(tier.get("target"), str):
        raise InputError(f"{tier!r} is not a tier", hint='write it like {"target": "deep", "for": "7y"}')
    unknown = sorted(tier.keys() - {"target", "for"})
    if unknown:
        raise InputError(f"a tier has no {unknown[0]!r}", hint="known are: target, for")
    stay = tier.get("for")
    return ArchiveTier(tier["target"], None if stay is None else parse_duration_us(str(stay)))


def _quality_from_json(quality: object) -> dict[QualityRule, QualityAction]:
    if not isinstance(quality, Mapping):
        raise InputError("quality is not an object", hint='write it like {"volume": "warn"}')
    found = {}
    for rule, action in quality.items():
        name, act = _choice(QualityRule, "quality rule", rule), _choice(QualityAction, "action", action)
        assert name is not None
        assert act is not None
        found[name] = act
    return found


def _choice(kind: type[E], name: str, value: object) -> E | None:
    if value is None:
        return None
    try:
        return kind(str(value))
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InputError(f"{name}: {value!r} is not one of {known}", hint="choose one of these") from None
