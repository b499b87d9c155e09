"""The map of time as plain shapes, which a template draws: bars of windows, gaps, holds, today.

Shapes are in units of a drawing that is stretched to whatever width the page has; there is no text in it but
what is told when it is pointed at. Their number is bounded: `query.timemap` bounds the parts, this the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from eventstore.console.words import scope_words
from eventstore.model.explain import at_text
from eventstore.model.hold import Hold
from eventstore.query.timemap import Gap, MapPart, Place, TimeMap

__all__ = ["Bar", "Drawing", "Lane", "colours", "draw", "span_text"]

WIDTH = 1000.0
BARS_HEIGHT = 120.0
LANE_HEIGHT = 10.0
_BAR_WIDTH_MIN = 2.0
_BAR_HEIGHT_MIN = 3.0
_LANES_MAX = 8
_TARGET_COLOURS = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of the map: where, of which colour, and what it is."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str
    part: MapPart


@dataclass(frozen=True, slots=True)
class Lane:
    """A hold, or (where there are many) several: `partial` says that only some entities are held, so that
    the others in this time are not. `hold` None: several."""

    x: float
    y: float
    width: float
    partial: bool
    title: str
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """All shapes. `today_x` None: now is not in the time that is shown. `ticks` are times (µs) at the
    beginning, in the middle and at the end."""

    bars: tuple[Bar, ...]
    gaps: tuple[tuple[float, float, str], ...]
    lanes: tuple[Lane, ...]
    today_x: float | None
    ticks: tuple[int, int, int]
    most_events: int
    height: float


def colours(places: Sequence[Place], targets: Sequence[str]) -> dict[Place, str]:
    """A colour class for each place: the policy's targets first, in its order, so that they keep theirs."""
    names = list(dict.fromkeys([*targets, *(p.target for p in places if p.target is not None)]))
    found = {}
    for place in places:
        if place.target is None:
            found[place] = place.kind.value
        else:
            found[place] = f"archive-{min(names.index(place.target), _TARGET_COLOURS - 1)}"
    return found


def span_text(from_us: int, to_us: int) -> str:
    return f"{at_text(from_us)} to {at_text(to_us)}"


def draw(found: TimeMap, holds: Sequence[Hold], colour_of: Mapping[Place, str], now_us: int) -> Drawing:
    """Lay the map out. Each of its parts becomes one bar, those of one span above one another."""
    length = found.to_us - found.from_us

    def x(us: int) -> float:
        return round(min(max((us - found.from_us) / length, 0.0), 1.0) * WIDTH, 2)

    stacks = [list(parts) for _, parts in groupby(found.parts, key=lambda part: part.slot_us)]
    most = max((sum(part.events for part in stack) for stack in stacks), default=0)
    bars: list[Bar] = []
    for index, stack in enumerate(stacks):
        start, end = min(p.from_us for p in stack), max(p.to_us for p in stack)
        if index + 1 < len(stacks):  # a week may reach into the month that follows
            end = min(end, min(p.from_us for p in stacks[index + 1]))
        left, width = x(start), max(x(end) - x(start), _BAR_WIDTH_MIN)
        bars += _stack(stack, min(left, WIDTH - width), width, most, colour_of)
    lanes = _lanes(holds, found, x)
    return Drawing(
        tuple(bars),
        tuple((x(gap.from_us), x(gap.to_us), _gap_title(gap)) for gap in found.gaps),
        lanes,
        x(now_us) if found.from_us <= now_us <= found.to_us else None,
        (found.from_us, (found.from_us + found.to_us) // 2, found.to_us),
        most,
        BARS_HEIGHT + 4 + (len(lanes) * LANE_HEIGHT if lanes else 0),
    )


def _stack(
    stack: Sequence[MapPart], left: float, width: float, most: int, colour_of: Mapping[Place, str]
) -> list[Bar]:
    """The bars of one span, the oldest place at the bottom. Small ones are drawn taller than they are, so
    that they are seen; the whole never grows over the drawing's height."""
    heights = [max(_BAR_HEIGHT_MIN, part.events / max(most, 1) * BARS_HEIGHT) for part in stack]
    scale = min(1.0, BARS_HEIGHT / sum(heights))
    bars, y = [], BARS_HEIGHT
    for part, height in zip(stack, heights, strict=True):
        y -= height * scale
        bars.append(
            Bar(
                left,
                round(max(y, 0.0), 2),
                round(width, 2),
                round(height * scale, 2),
                colour_of[part.place],
                _title(part),
                part,
            )
        )
    return bars


def _title(part: MapPart) -> str:
    windows = "1 window" if part.windows == 1 else f"{part.windows:,} windows"
    return f"{span_text(part.from_us, part.to_us)}: {part.place.name}, {part.events:,} events in {windows}"


def _gap_title(gap: Gap) -> str:
    return f"{span_text(gap.from_us, gap.to_us)}: nothing was recorded"


# --- holds --------------------------------------------------------------------------------------------


def _lanes(holds: Sequence[Hold], found: TimeMap, x: Callable[[int], float]) -> tuple[Lane, ...]:
    """A lane for each hold that reaches into the time that is shown; those that are too many share the last
    one."""
    within = [hold for hold in holds if hold.scope.touches(found.from_us, found.to_us - 1)]
    alone = within if len(within) <= _LANES_MAX else within[: _LANES_MAX - 1]
    together = within[len(alone) :]
    lanes = [_lane(index, [hold], x, hold) for index, hold in enumerate(alone)]
    if together:
        lanes.append(_lane(len(lanes), together, x, None))
    return tuple(lanes)


def _lane(index: int, holds: Sequence[Hold], x: Callable[[int], float], hold: Hold | None) -> Lane:
    starts = [one.scope.from_us for one in holds]
    ends = [one.scope.to_us for one in holds]
    left = 0.0 if None in starts else x(min(us for us in starts if us is not None))
    right = WIDTH if None in ends else x(max(us for us in ends if us is not None))
    title = (
        f"{len(holds):,} more holds" if hold is None else f"Held by {hold.name}: {scope_words(hold.scope)}"
    )
    return Lane(
        min(left, WIDTH - _BAR_WIDTH_MIN),
        BARS_HEIGHT + 4 + index * LANE_HEIGHT,
        round(max(right - left, _BAR_WIDTH_MIN), 2),
        any(one.scope.entities for one in holds),
        title,
        hold,
    )
