"""What will happen to a window under a policy, and when: the way of one window through the tiers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from eventstore.model.policy import Policy
from eventstore.model.window import WindowRecord, WindowState

__all__ = ["Itinerary", "itinerary"]

_HOT = (WindowState.OPEN, WindowState.SEALED)


@dataclass(frozen=True, slots=True)
class Itinerary:
    """Times in µs, by the policy alone: one that has passed says since when it has been due.

    `archive_us` None: it has left the hot tier. `target` is where it goes from there, or is. `moves` are the
    targets that follow, in order, each with its time. `destroy_us` None: never.
    """

    archive_us: int | None
    target: str
    moves: tuple[tuple[str, int], ...]
    destroy_us: int | None


def itinerary(policy: Policy, record: WindowRecord, at_us: int) -> Itinerary:
    """The way of a window that is not destroyed yet, from a moment on.

    A tier whose time has passed before the window came to it is left out, and a window never goes back to a
    tier behind the one it is in: as retention plans it.
    """
    starts = policy.tier_starts(record.window)
    names = [tier.target for tier in policy.tiers]
    archive_us = None
    if record.state in _HOT:
        archive_us = starts[0]
        # What was once frozen stays: a sealed window goes where it was to go when it was sealed.
        arrival = policy.tier_at(record.window, max(archive_us, at_us))
        assert arrival is not None
        target = record.target or names[arrival]
    else:
        assert record.target is not None
        target = record.target
    here = names.index(target) if target in names else -1
    now_us = max(at_us, archive_us or at_us)
    moves = []
    for index in range(max(here + 1, 0), len(names)):
        # From a target that the policy does not name, a window goes to the tier of its age.
        overtaken = index + 1 < len(names) and starts[index + 1] <= max(now_us, starts[index])
        if not overtaken:
            moves.append((names[index], starts[index]))
    return Itinerary(archive_us, target, tuple(moves), policy.expires_at(record.window))
