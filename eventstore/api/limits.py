"""How routes ask for what their caller may use: the size of a body, a place for a feed, bytes of the archive.

The rate of requests is counted by the gate (`api.access`), for every route and for the shortcut of appends.
"""

from __future__ import annotations

from starlette.datastructures import State
from starlette.requests import Request

from eventstore.access.limits import CallerLimits, FeedSlot
from eventstore.access.usage import ArchiveUsage, CallerMeter
from eventstore.api.access import principal_of
from eventstore.model.access import Principal
from eventstore.query.coverage import Meter

__all__ = ["body_bytes_max", "feed_slot", "meter_of", "meter_of_principal"]


def feed_slot(request: Request) -> FeedSlot:
    """A place for one more feed of the caller. Ask for it before the answer begins, and leave it (`with`, or
    `leave`) when the feed ends.

    Raises:
        RateLimitedError: the caller has as many feeds open as it may have.
    """
    limits: CallerLimits = request.app.state.limits
    return limits.feed(principal_of(request))


def body_bytes_max(request: Request, process_max: int) -> int:
    """The largest body that the caller may send: its own limit, never above the process's."""
    limits: CallerLimits = request.app.state.limits
    own = limits.body_bytes_max(principal_of(request))
    return process_max if own is None else min(own, process_max)


def meter_of(request: Request) -> Meter | None:
    """What counts the bytes of the archive that the caller scans; None: nobody does. `api.reads` gives routes
    a reader that has it."""
    return meter_of_principal(request.app.state, principal_of(request))


def meter_of_principal(state: State, principal: Principal) -> Meter | None:
    """The same for a caller who is known otherwise; `state` is the API's."""
    limits: CallerLimits = state.limits
    own = limits.of(principal)
    if own is None:
        return None
    usage: ArchiveUsage = state.usage
    return CallerMeter(usage, principal.subject, own.archive_bytes_per_day)
