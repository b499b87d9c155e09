"""Windows: alignment of each unit, ends of years, half-open ends, clipping."""

from __future__ import annotations

import pytest

from eventstore.clock import parse_time_us
from eventstore.model.window import Window, WindowRecord, WindowState, WindowUnit


def window(start: str, end: str) -> Window:
    return Window(parse_time_us(start), parse_time_us(end))


@pytest.mark.parametrize(
    ("unit", "at", "start", "end"),
    [
        ("hour", "2024-02-29T13:59:59.999999Z", "2024-02-29T13:00:00Z", "2024-02-29T14:00:00Z"),
        ("hour", "2023-12-31T23:30:00Z", "2023-12-31T23:00:00Z", "2024-01-01T00:00:00Z"),
        ("day", "2024-02-28T00:00:00Z", "2024-02-28", "2024-02-29"),
        ("day", "2024-02-29T12:00:00Z", "2024-02-29", "2024-03-01"),
        ("day", "2023-12-31T23:59:59.999999Z", "2023-12-31", "2024-01-01"),
        ("week", "2024-03-03T23:59:59.999999Z", "2024-02-26", "2024-03-04"),  # a Sunday, over a leap day
        ("week", "2024-03-04T00:00:00Z", "2024-03-04", "2024-03-11"),  # a Monday
        ("week", "2025-01-01T00:00:00Z", "2024-12-30", "2025-01-06"),  # over the year's end
        ("month", "2024-02-29T23:59:59.999999Z", "2024-02-01", "2024-03-01"),
        ("month", "2023-02-01T00:00:00Z", "2023-02-01", "2023-03-01"),
        ("month", "2024-12-31T23:59:59.999999Z", "2024-12-01", "2025-01-01"),
        ("month", "1969-12-31T23:59:59.999999Z", "1969-12-01", "1970-01-01"),  # before the epoch
        ("hour", "1969-12-31T23:59:59.999999Z", "1969-12-31T23:00:00Z", "1970-01-01T00:00:00Z"),
    ],
)
def test_containing(unit: str, at: str, start: str, end: str) -> None:
    assert Window.containing(WindowUnit(unit), parse_time_us(at)) == window(start, end)


@pytest.mark.parametrize("unit", WindowUnit)
def test_windows_of_a_unit_tile_time(unit: WindowUnit) -> None:
    current = Window.containing(unit, parse_time_us("2023-11-27T00:00:00Z"))
    for _ in range(40):
        following = Window.containing(unit, current.to_us)
        assert following.from_us == current.to_us
        assert Window.containing(unit, following.to_us - 1) == following
        assert Window.containing(unit, following.from_us) == following
        current = following


def test_clip_from_cuts_only_what_lies_before() -> None:
    day = window("2024-03-01", "2024-03-02")
    noon = parse_time_us("2024-03-01T12:00:00Z")
    assert day.clip_from(noon) == Window(noon, day.to_us)
    assert day.clip_from(day.from_us - 1) == day


def test_windows_are_shown_and_ordered_by_time() -> None:
    first, second = window("2024-03-01", "2024-03-02"), window("2024-03-02", "2024-03-03")
    assert sorted([second, first]) == [first, second]
    assert str(first) == "[2024-03-01T00:00:00.000000Z, 2024-03-02T00:00:00.000000Z)"


def test_an_open_window_counts_no_events() -> None:
    day = window("2024-03-01", "2024-03-02")
    opened = WindowRecord(day, WindowState.OPEN, "leaf", 7, None, None, None)
    sealed = WindowRecord(day, WindowState.SEALED, "leaf", 7, 9, b"", b"")
    assert opened.event_count is None
    assert sealed.event_count == 3
