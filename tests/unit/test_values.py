"""Small values: times, durations, tenant names, cursors, filters, archive keys, locks."""

from __future__ import annotations

from datetime import datetime

import pytest

from eventstore.archive.layout import segment_key, tenant_prefix
from eventstore.clock import US_PER_S, FixedClock, SystemClock, from_us, parse_time_us, to_iso, to_us
from eventstore.db.locks import (
    claims_key,
    destruction_key,
    governance_key,
    migration_key,
    scheduler_key,
)
from eventstore.errors import InputError
from eventstore.model.policy import format_duration, parse_duration_us
from eventstore.model.query import EventFilter, decode_cursor, encode_cursor
from eventstore.model.tenant import check_tenant_id
from eventstore.model.window import Window, WindowUnit


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01", 0),
        (" 1970-01-02 ", 86_400_000_000),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2024-02-29T12:00:00+02:00", 1_709_200_800_000_000),
        ("2024-02-29T12:00:00.000001-05:30", 1_709_227_800_000_001),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_times_are_read_exactly(text: str, us: int) -> None:
    assert parse_time_us(text) == us
    assert parse_time_us(to_iso(us)) == us
    assert to_us(from_us(us)) == us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024-13-01",
        "2024-02-30",
        "2024-02-29T12:00:00",
        "2024-02-29 12:00",
        "1709200800",
        "é",
    ],
)
def test_what_is_no_time_or_has_no_zone_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_time_us(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00"])
def test_times_that_no_utc_year_has_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="1 to 9999"):
        parse_time_us(text)


def test_naive_datetimes_are_refused() -> None:
    with pytest.raises(InputError, match="time zone"):
        to_us(datetime(2024, 1, 1))


def test_times_are_printed_with_microseconds() -> None:
    assert to_iso(0) == "1970-01-01T00:00:00.000000Z"
    assert to_iso(-1) == "1969-12-31T23:59:59.999999Z"


def test_clocks() -> None:
    fixed = FixedClock(5)
    assert fixed.now_us() == 5
    fixed.move_to(7)
    assert fixed.now_us() == 7
    assert SystemClock().now_us() > parse_time_us("2024-01-01")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90d", 90 * 86400),
        ("12h", 43200),
        ("1d12h", 129600),
        ("2w", 14 * 86400),
        ("1y", 365 * 86400),
        ("0s", 0),
        ("5m30s", 330),
        ("1000y", 1000 * 365 * 86400),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration_us(text) == seconds * US_PER_S
    assert parse_duration_us(format_duration(seconds * US_PER_S)) == seconds * US_PER_S


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5d", "1 d", "1dx", "x1d", "1001y", "1D", "1d "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_duration_us(text)


def test_durations_are_shown_short() -> None:
    assert format_duration(90 * 86400 * US_PER_S) == "90d"
    assert format_duration(129_661 * US_PER_S) == "1d12h1m1s"
    assert format_duration(0) == "0s"


@pytest.mark.parametrize("name", ["a", "0", "acme", "a-b-9", "a" * 63, "a-"])
def test_tenant_names(name: str) -> None:
    assert check_tenant_id(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a_b", "a.b", "a/b", "a" * 64, "é", "a\n", "a b", "ａ", "١", "a'; DROP TABLE x"]
)
def test_what_is_no_tenant_name(name: str) -> None:
    with pytest.raises(InputError):
        check_tenant_id(name)


@pytest.mark.parametrize("seq", [0, 1, 10**18 - 1])
def test_cursors_come_back(seq: int) -> None:
    assert decode_cursor(encode_cursor(seq)) == seq


@pytest.mark.parametrize("text", ["", "-1", "1.0", "x", "1 ", "9" * 19, "١", "²", "+1", "1_0"])
def test_what_is_no_cursor(text: str) -> None:
    with pytest.raises(InputError, match="cursor"):
        decode_cursor(text)


def test_filters_know_what_they_leave_out() -> None:
    assert EventFilter().is_range
    assert EventFilter(seq_from=2, seq_to=5).is_range
    for name in ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id"):
        assert not EventFilter(**{name: "x"}).is_range
    for name in ("recorded_from_us", "recorded_to_us", "occurred_from_us", "occurred_to_us"):
        assert not EventFilter(**{name: 0}).is_range
    assert EventFilter(entity_id="x").is_selective
    assert EventFilter(event_id=bytes(16)).is_selective
    assert not EventFilter(entity_type="x", actor="y").is_selective


@pytest.mark.parametrize(
    ("unit", "at", "key"),
    [
        (
            "month",
            "2024-12-05",
            "tenant_id=acme/month=2024-12/archive.acme.20241201T000000Z-20250101T000000Z.p000.parquet",
        ),
        (
            "hour",
            "2024-01-31T23:10:00Z",
            "tenant_id=acme/month=2024-01/archive.acme.20240131T230000Z-20240201T000000Z.p000.parquet",
        ),
    ],
)
def test_segment_keys(unit: str, at: str, key: str) -> None:
    assert segment_key("acme", Window.containing(WindowUnit(unit), parse_time_us(at)), 0) == key


def test_parts_sort_by_number_and_stay_below_their_tenant() -> None:
    day = Window.containing(WindowUnit.DAY, 0)
    keys = [segment_key("acme", day, part) for part in (0, 1, 10, 999)]
    assert keys == sorted(keys)
    assert all(key.startswith(tenant_prefix("acme")) for key in keys)
    # The prefix of one tenant is not that of another whose name begins with it.
    assert not segment_key("acme-2", day, 0).startswith(tenant_prefix("acme"))


def test_lock_keys_differ_and_never_change() -> None:
    keys = {migration_key(), claims_key(), scheduler_key(), governance_key()}
    keys |= {destruction_key("a"), destruction_key("b"), destruction_key("ab")}
    assert len(keys) == 7
    assert all(-(2**63) <= key < 2**63 for key in keys)
    # Programs of different versions must exclude one another.
    assert destruction_key("acme") == DESTRUCTION_ACME
    assert migration_key() == MIGRATION


DESTRUCTION_ACME = 4741307394918801461
MIGRATION = 4947994604884854307
