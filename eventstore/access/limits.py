"""Limits per caller that this process keeps in memory: the rate of requests, feeds and exports at the
same time, and the size of a body.

With several API processes each grants the rate and the feeds on its own: to ask the others would cost more
than the append that it delays. What has to hold for all of them together, the bytes scanned in the archive,
is in `access.usage`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from weakref import WeakSet

from eventstore.errors import RateLimitedError
from eventstore.model.access import Principal
from eventstore.model.limits import Limits

__all__ = ["CallerLimits", "FeedSlot"]

_FEED_RETRY_S = 10
_NS_PER_S = 10**9
_CALLERS_MAX = 10_000


class CallerLimits:
    """What callers may ask of this process. `defaults` hold for those without a value of their own, and name
    every limit. `monotonic_ns` is a clock that never goes back. Safe for many threads."""

    def __init__(self, defaults: Limits, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        assert len(defaults.as_json()) == len(Limits.__dataclass_fields__), "every limit has a default"
        self._defaults = defaults
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        # By caller: when all that it has sent would have been answered at its rate. A caller that is not
        # here has sent nothing for a while.
        self._due_ns: dict[str, int] = {}
        self._feeds: dict[str, WeakSet[FeedSlot]] = {}

    def of(self, principal: Principal) -> Limits | None:
        """A caller's limits, none left open; None: it has none."""
        return None if principal.limits is None else principal.limits.over(self._defaults)

    def admit(self, principal: Principal) -> None:
        """Count a request. A caller may send a second's worth at once, and then goes on at its rate (the
        generic cell rate algorithm: one number a caller). A request that is refused does not count.

        Raises:
            RateLimitedError: too many were sent.
        """
        own = principal.limits
        if own is None:
            return
        per_s = own.requests_per_s or self._defaults.requests_per_s
        assert per_s is not None
        now_ns = self._monotonic_ns()
        with self._lock:
            due_ns = max(self._due_ns.get(principal.subject, 0), now_ns) + _NS_PER_S // per_s
            wait_ns = due_ns - now_ns - _NS_PER_S
            if wait_ns <= 0:
                self._due_ns[principal.subject] = due_ns
                if len(self._due_ns) > _CALLERS_MAX:
                    self._due_ns = {who: due for who, due in self._due_ns.items() if due > now_ns}
                return
        raise RateLimitedError(
            f"more than {per_s} requests in a second",
            hint="send many events in one request, or wait",
            retry_after_s=-(-wait_ns // _NS_PER_S),
        )

    def body_bytes_max(self, principal: Principal) -> int | None:
        """The largest body that the caller may send; None: whatever the process takes."""
        own = principal.limits
        return None if own is None else own.body_bytes_max or self._defaults.body_bytes_max

    def feed(self, principal: Principal) -> FeedSlot:
        """A place for one more feed, taken until it is left.

        Raises:
            RateLimitedError: the caller has as many feeds open in this process as it may have.
        """
        limits = self.of(principal)
        slot = FeedSlot()
        if limits is None:
            return slot
        assert limits.feeds_max is not None
        with self._lock:
            slots = self._feeds.setdefault(principal.subject, WeakSet())
            if len(slots) >= limits.feeds_max:
                raise RateLimitedError(
                    f"{limits.feeds_max} feeds and exports are open already",
                    hint="close one of them first",
                    retry_after_s=_FEED_RETRY_S,
                )
            slots.add(slot)
        slot.among = slots
        return slot


class FeedSlot:
    """A feed's place among those of its caller.

    It is left at the end of a `with`, by `leave`, or when nobody refers to it any more: an answer whose
    client went away before the first byte never comes to its `with`.
    """

    def __init__(self) -> None:
        self.among: WeakSet[FeedSlot] | None = None  # None: nobody counts

    def leave(self) -> None:
        """Give the place back; again: nothing happens."""
        if self.among is not None:
            self.among.discard(self)

    def __enter__(self) -> FeedSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
