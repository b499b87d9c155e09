"""What a legal hold would keep, and which destruction it would stop, counted before it is placed.

A window is destroyed as a whole, so a hold keeps whole windows; beside these, the events that the scope names
are counted: from the catalog where it tells, else by reading them, for a bounded time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from eventstore.db.engine import Database
from eventstore.db.tables import windows
from eventstore.errors import ArchiveDamageError, TargetUnavailableError
from eventstore.governance.holds import holds_in_force
from eventstore.governance.scopes import BEING_DESTROYED, covered_by, covered_windows, preview_scope
from eventstore.governance.windows import CountedWindow
from eventstore.model.explain import PolicyFacts
from eventstore.model.hold import Hold, HoldScope
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter
from eventstore.model.window import Window, WindowState
from eventstore.query.explain import policy_facts
from eventstore.query.reader import LogReader

__all__ = ["PlaceMeasure", "ScopeMeasure", "Stopped", "destroyed_at", "measure_release", "measure_scope"]

# Of more entities the events are not read.
ENTITIES_READ_MAX = 200
# In a look at the catalog alone, of more entities the windows are not told apart by their filters.
_ENTITIES_FILTERED_MAX = 100
_BUDGET_S = 1.5
# Beyond these the events of a scope count as many, not as so many.
_EVENTS_READ_MAX = 1_000_000


@dataclass(slots=True)
class PlaceMeasure:
    """What a scope covers in one place (`hot`, a target's name, `being destroyed`).

    `windows` are those it may keep, `kept` all events in them. `events` are those that the scope itself
    names; None: they were not counted.
    """

    place: str
    windows: int = 0
    kept: int = 0
    events: int | None = 0


@dataclass(slots=True)
class Stopped:
    """The destruction that policies ask for of the windows in question: how many, with how many events; of
    how many the time has come; how many were listed for it already; and when the first comes (µs; None:
    none ever does)."""

    windows: int = 0
    events: int = 0
    due: int = 0
    listed: int = 0
    first_us: int | None = None


@dataclass(slots=True)
class ScopeMeasure:
    """What a scope covers, by place. `exact` False: events of the scope are at least so many, or were not
    counted; `why` says why. An `exact` count is of the log as it was at that moment."""

    places: list[PlaceMeasure] = field(default_factory=list)
    stops: Stopped = field(default_factory=Stopped)
    exact: bool = True
    why: str | None = None

    @property
    def windows(self) -> int:
        return sum(place.windows for place in self.places)

    @property
    def kept(self) -> int:
        return sum(place.kept for place in self.places)

    @property
    def events(self) -> int | None:
        """Of all places; None: none was counted."""
        counted = [place.events for place in self.places if place.events is not None]
        return sum(counted) if counted or not self.places else None


def measure_scope(
    database: Database,
    reader: LogReader | None,
    tenant_id: str,
    scope: HoldScope,
    *,
    now_us: int,
    budget_s: float = _BUDGET_S,
) -> ScopeMeasure:
    """Count what a hold of this scope would cover. Reading ends after about `budget_s`; what was found by
    then is a lower bound. `reader` None: nothing is read, and what the catalog does not tell not counted.

    Raises:
        TenantNotFoundError
        RateLimitedError: the reader's meter has come to its end.
    """
    filtered = scope
    if reader is None and len(scope.entities) > _ENTITIES_FILTERED_MAX:
        filtered = replace(scope, entities=())
    with database.transaction() as conn:
        covered = list(covered_windows(conn, tenant_id, filtered))
        ending = [c for c in preview_scope(conn, tenant_id, scope) if c.place == BEING_DESTROYED]
        policy = policy_facts(conn, tenant_id, now_us)
        listed = _listed(conn, tenant_id)
    found = ScopeMeasure(stops=_stops([window for _, window in covered], policy, listed, now_us))
    places: dict[str, PlaceMeasure] = {}
    for place, window in covered:
        known = places.setdefault(place, PlaceMeasure(place))
        known.windows += 1
        known.kept += window.events
    found.places = list(places.values())
    whole = not scope.entities and scope.from_us is None and scope.to_us is None
    if whole:
        for one in found.places:
            one.events = one.kept
    elif reader is None:
        _uncounted(found, "its events were not counted yet")
    elif scope.entities:
        _count_entities(found, reader, tenant_id, scope, covered, time.monotonic() + budget_s)
    else:
        _count_range(found, reader, tenant_id, scope, covered)
    for count in ending:
        # Its log is cut already: nothing but its objects is left, and they are kept whole.
        found.places.append(
            PlaceMeasure(count.place, count.windows, count.events, count.events if whole else None)
        )
    return found


def measure_release(database: Database, tenant_id: str, hold: Hold, *, now_us: int) -> Stopped:
    """The destruction that nothing would stop any more if a hold were released: of windows that it may keep,
    and no other hold in force may.

    Raises:
        TenantNotFoundError
    """
    with database.transaction() as conn:
        others = [h for h in holds_in_force(conn, tenant_id) if h.hold_id != hold.hold_id]
        own: dict[int, CountedWindow] = {}
        kept: set[int] = set()
        for index, _, window in covered_by(conn, tenant_id, [hold.scope, *(h.scope for h in others)]):
            if index == 0:
                own[window.record.window.from_us] = window
            else:
                kept.add(window.record.window.from_us)
        policy = policy_facts(conn, tenant_id, now_us)
        listed = _listed(conn, tenant_id)
    alone = [window for begins_us, window in own.items() if begins_us not in kept]
    return _stops(alone, policy, listed, now_us)


# --- destruction --------------------------------------------------------------------------------------


def destroyed_at(policy: PolicyFacts, window: Window) -> int | None:
    """When policies want a window destroyed (one that has passed says since when it has been due), those in
    their grace time included; None: never."""
    steps: list[tuple[int, Policy]] = [(-(2**62), policy.in_force.policy)]
    steps += [(version.effective_us, then) for version, then in policy.coming]
    for index, (start_us, then) in enumerate(steps):
        end_us = steps[index + 1][0] if index + 1 < len(steps) else 2**62
        at_us = then.expires_at(window)
        if at_us is not None and max(at_us, start_us) < end_us:
            return max(at_us, start_us)
    return None


def _listed(conn: sa.Connection, tenant_id: str) -> set[int]:
    """The windows, by their beginning in µs, that a run has listed for destruction."""
    beginning_us = sa.cast(sa.func.extract("epoch", windows.c.window_from) * 1_000_000, sa.BigInteger)
    query = sa.select(beginning_us).where(
        windows.c.tenant_id == tenant_id,
        windows.c.listed_us.is_not(None),
        windows.c.state == WindowState.DROPPED.value,
    )
    return set(conn.execute(query).scalars())


def _stops(covered: Sequence[CountedWindow], policy: PolicyFacts, listed: set[int], now_us: int) -> Stopped:
    stops = Stopped()
    for window in covered:
        at_us = destroyed_at(policy, window.record.window)
        if at_us is None:
            continue
        stops.windows += 1
        stops.events += window.events
        stops.due += at_us <= now_us
        stops.listed += window.record.window.from_us in listed
        stops.first_us = at_us if stops.first_us is None else min(stops.first_us, at_us)
    return stops


# --- events -------------------------------------------------------------------------------------------


def _count_range(
    found: ScopeMeasure,
    reader: LogReader,
    tenant_id: str,
    scope: HoldScope,
    covered: Sequence[tuple[str, CountedWindow]],
) -> None:
    """Recorded times rise with seqs, so a time range is a range of seqs: one look at each of its ends."""
    every = [window for _, window in covered]
    first, end = -(2**62), 2**62
    try:
        if scope.from_us is not None:
            first = _first_seq(reader, tenant_id, every, scope.from_us)
        if scope.to_us is not None:
            end = _first_seq(reader, tenant_id, every, scope.to_us)
    except (ArchiveDamageError, TargetUnavailableError) as e:
        _uncounted(found, f"the ends of the time range could not be read: {e.message}")
        return
    by_place = {place.place: place for place in found.places}
    for place, window in covered:
        starts = window.record.first_seq
        count = by_place[place]
        assert count.events is not None
        count.events += max(0, min(end, starts + window.events) - max(first, starts))


def _first_seq(reader: LogReader, tenant_id: str, every: Sequence[CountedWindow], at_us: int) -> int:
    """The seq of the first event in these windows that was recorded at a time or later; beyond every seq if
    there is none. Only a window in the middle of which the time lies is read."""
    for window in every:
        span, starts = window.record.window, window.record.first_seq
        if span.to_us <= at_us:
            continue
        if span.from_us >= at_us:
            return starts
        end = starts + window.events
        wanted = EventFilter(recorded_from_us=at_us, seq_from=starts, seq_to=end - 1)
        events = reader.page(tenant_id, wanted, limit=1).events
        return int(events.column("seq")[0].as_py()) if events.num_rows else end
    return 2**62


def _count_entities(
    found: ScopeMeasure,
    reader: LogReader,
    tenant_id: str,
    scope: HoldScope,
    covered: Sequence[tuple[str, CountedWindow]],
    deadline_s: float,
) -> None:
    """Read the events of the scope's entities, and count them by the places of their windows."""
    if len(scope.entities) > ENTITIES_READ_MAX:
        _uncounted(found, f"events of more than {ENTITIES_READ_MAX} entities are not counted one by one")
        return
    starts = np.array([window.record.first_seq for _, window in covered], np.int64)
    counts = np.zeros(len(covered) + 1, np.int64)
    try:
        late = False
        for seqs in _seqs_of(reader, tenant_id, scope):
            if late:
                found.exact, found.why = False, "counting ended early, because it took long"
                break
            # A window that began after the list was made lies in no place of it: it counts with the last.
            counts += np.bincount(np.searchsorted(starts, seqs, side="right"), minlength=len(counts))
            late = time.monotonic() > deadline_s or counts.sum() > _EVENTS_READ_MAX
    except (ArchiveDamageError, TargetUnavailableError) as e:
        found.exact, found.why = False, f"a part of the log could not be read: {e.message}"
    by_place = {place.place: place for place in found.places}
    for (place, _), count in zip(covered, counts[1:].tolist(), strict=True):
        known = by_place[place]
        assert known.events is not None
        known.events += count


def _seqs_of(reader: LogReader, tenant_id: str, scope: HoldScope) -> Iterator[npt.NDArray[np.int64]]:
    for kind, entity_id in dict.fromkeys(scope.entities):
        wanted = EventFilter(
            entity_type=kind,
            entity_id=entity_id,
            recorded_from_us=scope.from_us,
            recorded_to_us=scope.to_us,
        )
        for events in reader.stream(tenant_id, wanted, every_step=True):
            yield events.column("seq").to_numpy()


def _uncounted(found: ScopeMeasure, why: str) -> None:
    found.exact, found.why = False, why
    for place in found.places:
        place.events = None
