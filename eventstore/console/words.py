"""Policies, scopes and times in sentences, for people who read no configuration."""

from __future__ import annotations

from collections.abc import Sequence

from eventstore.clock import US_PER_S
from eventstore.model.explain import at_text
from eventstore.model.hold import HoldScope
from eventstore.model.policy import Ending, Policy

__all__ = ["duration", "listed", "policy_sentences", "scope_words"]

_UNITS = (("year", 365 * 86_400), ("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


def duration(us: int) -> str:
    """A length of time, exactly: `90 days`, `1 year and 12 hours`. A year is 365 days."""
    rest, fraction_us = divmod(us, US_PER_S)
    parts = []
    for name, seconds in _UNITS:
        count, rest = divmod(rest, seconds)
        text = f"{count:,}"
        if name == "second" and fraction_us:
            text += f".{fraction_us:06d}".rstrip("0")
        if text != "0":
            parts.append(f"{text} {name}{'' if text == '1' else 's'}")
    return listed(parts) or "no time"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def policy_sentences(policy: Policy) -> list[str]:
    """What happens to a window under a policy, a sentence each, from its end to the end of its life."""
    said = [f"Events are kept together by the {policy.unit}; times count from the end of each {policy.unit}."]
    if policy.hot_for_us:
        said.append(f"Hot for {duration(policy.hot_for_us)}.")
    else:
        said.append(f"Hot until the {policy.unit} has ended.")
    last = len(policy.tiers) - 1
    for index, tier in enumerate(policy.tiers):
        if index == last and (policy.ending is Ending.KEEP or tier.for_us is None):
            said.append(f"Then in '{tier.target}', kept for ever.")
        else:
            assert tier.for_us is not None
            said.append(f"Then {duration(tier.for_us)} in '{tier.target}'.")
    if policy.ending is Ending.EXPIRE:
        said.append("Then destroyed; a certificate stands for it.")
    return said


def scope_words(scope: HoldScope, *, most: int = 3) -> str:
    """What a hold covers, in one line; at most so many entities are named."""
    what = "every event, past and future"
    if scope.entities:
        named = [f"{kind} {name}" for kind, name in scope.entities[:most]]
        left = len(scope.entities) - len(named)
        if left:
            named.append(f"{left:,} more")
        what = f"events of {listed(named)}"
    elif scope.from_us is not None or scope.to_us is not None:
        what = "every event"
    times = []
    if scope.from_us is not None:
        times.append(f"from {at_text(scope.from_us)} on")
    if scope.to_us is not None:
        times.append(f"before {at_text(scope.to_us)}")
    return what + (f" recorded {listed(times)}" if times else "")
