"""A histogram as a chart of bars, each a link to its own span of time; and how counting goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eventstore.clock import US_PER_S, clamp_us
from eventstore.console.asked import Asked, moment
from eventstore.errors import InputError
from eventstore.query.histogram import BARS_MAX, Histogram, edges_between

__all__ = ["HEIGHT", "WIDTH", "Bar", "Chart", "Counting", "chart_of"]

WIDTH = 1000
HEIGHT = 120
# A span with any events is seen, however few they are.
_HEIGHT_MIN = 2
_CONTINUED = re.compile(r"-?[0-9]{1,18}(?:,-?[0-9]{1,18}){5,}")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar, in units of the chart. `state` says what is not as counted: `uncounted`, `unreadable`,
    `expired`, or nothing."""

    x: float
    width: float
    y: float
    height: float
    start: str
    end: str
    count: int
    state: str
    address: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart. `next` goes on counting (None: all is counted), and may open `left_bytes` of the archive until
    all is."""

    bars: list[Bar]
    start_us: int
    end_us: int
    most: int
    total: int
    next: Counting | None
    left_bytes: int


@dataclass(frozen=True, slots=True)
class Counting:
    """A count that is under way, as it stands in the address of its continuation: how often it went on by
    itself and what it has read of the archive since somebody asked, below which seq it goes on, its ends in
    µs, and what was counted so far."""

    hops: int
    archive_bytes: int
    after: int
    from_us: int
    to_us: int
    counts: tuple[int, ...]

    def __str__(self) -> str:
        return ",".join(
            map(str, (self.hops, self.archive_bytes, self.after, self.from_us, self.to_us, *self.counts))
        )

    @property
    def edges_us(self) -> list[int]:
        return edges_between(self.from_us, self.to_us)

    @staticmethod
    def parse(text: str) -> Counting:
        """Raises InputError: it is no continuation."""
        hint = "search again"
        if not _CONTINUED.fullmatch(text):
            raise InputError("bars: is no count that goes on", hint=hint)
        hops, archive_bytes, after, from_us, to_us, *counts = map(int, text.split(","))
        found = Counting(hops, archive_bytes, after, from_us, to_us, tuple(counts))
        shown = from_us < to_us and (clamp_us(from_us), clamp_us(to_us)) == (from_us, to_us)
        fits = shown and len(found.edges_us) == len(counts) + 1 <= BARS_MAX + 1
        if not fits or after < 1 or min(hops, archive_bytes) < 0 or min(counts) < 0:
            raise InputError("bars: is no count that goes on", hint=hint)
        return found


def chart_of(found: Histogram, asked: Asked, base: str, before: Counting) -> Chart:
    """The chart of a histogram that went on from `before`; `base` is the address of the search page."""
    first_us, last_us = found.edges_us[0], found.edges_us[-1]
    most = max(found.counts)
    bars = []
    for index, count in enumerate(found.counts):
        start_us, end_us = found.edges_us[index], found.edges_us[index + 1]
        x = (start_us - first_us) * WIDTH / (last_us - first_us)
        width = (end_us - start_us) * WIDTH / (last_us - first_us)
        height = max(_HEIGHT_MIN, count * HEIGHT / most) if count else 0
        # Its own ends are those of the log, to the microsecond: where none was asked for, none is.
        start = _asked_end(asked, "recorded_from", start_us, is_edge=index == 0)
        end = _asked_end(asked, "recorded_to", end_us, is_edge=index == len(found.counts) - 1)
        address = asked.address(recorded_from=start, recorded_to=end)
        bars.append(
            Bar(
                round(x, 2),
                round(width, 2),
                round(HEIGHT - height, 2),
                round(height, 2),
                moment(start_us),
                moment(end_us),
                count,
                _state(found, index),
                f"{base}?{address}",
            )
        )
    following = None
    if found.next_after is not None:
        read_bytes = before.archive_bytes + found.coverage.archive_bytes
        counts = tuple(found.counts)
        following = Counting(before.hops + 1, read_bytes, found.next_after, first_us, last_us, counts)
    return Chart(bars, first_us, last_us, most, sum(found.counts), following, found.left_bytes)


def _asked_end(asked: Asked, name: str, at_us: int, *, is_edge: bool) -> str | None:
    if is_edge:
        return asked.typed.get(name)
    assert at_us % US_PER_S == 0
    return moment(at_us)


def _state(found: Histogram, index: int) -> str:
    if not found.is_counted(index):
        return "uncounted"
    if index in found.unreadable:
        return "unreadable"
    return "expired" if index in found.expired else ""
