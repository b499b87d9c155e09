"""What a benchmark says: rows of the table, and the figures that were measured for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Measured", "Row", "amount", "spread"]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table before it is measured.

    The figure is the median of `what` over the median of `against`, both in `unit`; `absolute`: it is the
    median of `what` itself. It is to be `at_least` or `at_most` so much; with neither, it is only told.
    """

    what: str
    against: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    absolute: bool = False

    @property
    def goal(self) -> str:
        """The goal in words; a dash where there is none."""
        unit = f" {self.unit}" if self.absolute else ""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{unit}"
        return "–" if self.at_most is None else f"≤ {self.at_most:g}{unit}"


@dataclass(frozen=True, slots=True)
class Measured:
    """A row with its runs. `error` is why there are none; None when there are."""

    row: Row
    what: Sequence[float] = ()
    against: Sequence[float] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    error: str | None = None

    @property
    def figure(self) -> float | None:
        """The ratio of the medians, or the median itself; None if the benchmark failed."""
        if self.error is not None or not self.what:
            return None
        return median(self.what) if self.row.absolute else median(self.what) / median(self.against)

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None if there is no goal, or nothing was measured."""
        figure = self.figure
        if figure is None:
            return None
        if self.row.at_least is not None:
            return figure >= self.row.at_least
        return None if self.row.at_most is None else figure <= self.row.at_most

    def is_worse_than(self, before: float) -> bool:
        """Whether the figure fell by more than noise explains (a tenth) since a run before."""
        figure = self.figure
        if figure is None or (self.row.at_least is None and self.row.at_most is None):
            return False
        return figure < before * 0.9 if self.row.at_least is not None else figure > before * 1.1


def amount(value: float) -> str:
    """A number for people: thousands with commas, small ones with three digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(values: Sequence[float], unit: str) -> str:
    """Median and range, e.g. `12.3 ms (11.9 to 15)`."""
    if not values:
        return "–"
    return f"{amount(median(values))} {unit} ({amount(min(values))} to {amount(max(values))})"
