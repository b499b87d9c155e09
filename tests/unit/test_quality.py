"""The quality rules one by one: what breaks them, what does not, and what they say they do not know."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.model.event import Event
from eventstore.model.quality import (
    DEFAULT_QUALITY,
    PROFILE_FIELDS_MAX,
    Profile,
    QualityAction,
    QualityFinding,
    QualityRule,
    SchemaChange,
    compare,
    volume_fall,
)
from eventstore.retention import neighbours
from eventstore.retention.neighbours import LastValues, text_hashes
from eventstore.retention.quality import WindowQuality
from tests.unit.helpers import as_batch

CONTINUITY, TIME_ORDER = QualityRule.CONTINUITY, QualityRule.TIME_ORDER
VOLUME, SCHEMA = QualityRule.VOLUME, QualityRule.SCHEMA
OFF, WARN, STOP = QualityAction.OFF, QualityAction.WARN, QualityAction.STOP


def event(
    old: str | None = None,
    new: str | None = None,
    entity_id: str = "1",
    field: str = "state",
    entity_type: str = "order",
    at: int = 0,
) -> Event:
    return Event(
        seq=0,
        event_id=bytes(16),
        recorded_at_us=0,
        occurred_at_us=at,
        entity_type=entity_type,
        entity_id=entity_id,
        action="changed",
        field=field,
        old_value=old,
        new_value=new,
        actor="ann",
        source="test",
        workspace_id=None,
        metadata=None,
        hash=bytes(32),
    )


def numbered(events: Sequence[Event], first_seq: int = 1) -> pa.RecordBatch:
    return as_batch([replace(e, seq=first_seq + n) for n, e in enumerate(events)])


def only(rule: QualityRule, action: QualityAction = WARN) -> dict[QualityRule, QualityAction]:
    return {**dict.fromkeys(QualityRule, OFF), rule: action}


def judge(
    policy: Mapping[QualityRule, QualityAction],
    *batches: pa.RecordBatch,
    profile: Profile | None = None,
    counts: Sequence[int] = (),
    keys_max: int = 1000,
) -> list[QualityFinding]:
    quality = WindowQuality(policy, previous_profile=profile, previous_counts=counts, keys_max=keys_max)
    for batch in batches:
        quality.add(batch)
    return quality.finish()


def broken(rule: QualityRule, *events: Event) -> list[tuple[int | None, int | None]]:
    return [(f.count, f.first_seq) for f in judge(only(rule), numbered(events))]


# Continuity


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(None, '"a"'), event('"a"', '"b"'), event('"b"', None)], []),
        ([event(None, '"a"'), event('"x"', '"b"'), event('"a"', '"c"')], [(2, 2)]),
        ([event('"x"', '"a"')], []),  # nothing before it in the window
        ([event('"a"', None), event(None, '"b"')], []),  # two nulls are equal
        ([event(None, '"a"'), event(None, '"b"')], [(1, 2)]),
        ([event('"a"', None), event('"b"', '"c"')], [(1, 2)]),
        ([event(None, "1"), event("1.0", "2")], [(1, 2)]),  # as stored, not as meant
        ([event(None, '{"a":1,"b":2}'), event('{"a":1,"b":2}', "2")], []),
        # An event without values says nothing, neither about itself nor for the next one.
        ([event(None, '"a"'), event(), event('"a"', '"b"'), event('"x"', '"c"')], [(1, 4)]),
        ([event(None, '"a"'), event(), event(None, '"b"')], []),
        # Another field, entity or type is another key, however the parts of the names are cut.
        ([event(None, '"a"'), event('"b"', '"c"', field="*")], []),
        ([event(None, '"a"'), event('"b"', '"c"', entity_id="2")], []),
        ([event(None, '"a"'), event('"b"', '"c"', entity_type="invoice")], []),
        ([event(None, "1", "1s", "tate"), event("2", "3", "1", "state")], []),
        ([event(None, "1", "a", "b"), event("2", "3", "b", "a")], []),
        # A difference anywhere in a value, also in a last incomplete word and in the length alone.
        ([event(None, f'"{"a" * 50}"'), event(f'"{"a" * 49}b"', "1")], [(1, 2)]),
        ([event(None, f'"b{"a" * 50}"'), event(f'"{"a" * 51}"', "1")], [(1, 2)]),
        ([event(None, "[1,2]"), event("[1,2,3]", "1")], [(1, 2)]),
    ],
)
def test_continuity(events: list[Event], expected: list[tuple[int, int]]) -> None:
    assert broken(CONTINUITY, *events) == expected
    # The same when each event comes in a batch of its own, among others that make the table grow.
    quality = WindowQuality(only(CONTINUITY), previous_profile=None, previous_counts=())
    for n, one in enumerate(events, 1):
        quality.add(numbered([one], n))
        quality.add(numbered([event(None, "1", f"other {n} {m}") for m in range(3000)], n + 1))
        assert quality.profile is None  # what was added is judged now
    assert [(f.count, f.first_seq) for f in quality.finish()] == expected


def test_a_finding_says_what_and_where_and_how_bad() -> None:
    events = numbered([event(None, "1", "x" * 500), event("2", "3", "x" * 500)], 41)
    (finding,) = judge(only(CONTINUITY, STOP), events)
    assert finding == QualityFinding(
        CONTINUITY,
        STOP,
        1,
        42,
        "1 events begin with another old_value than the new_value before, first seq 42: "
        f"order {'x' * 80}… state",
    )
    assert finding.level == "FAIL"
    (finding,) = judge(only(CONTINUITY, WARN), events)
    assert finding.level == "WARN"


# Time order


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(at=5), event(at=5), event(at=6)], []),
        ([event(at=5), event(at=4), event(at=3), event(at=4)], [(2, 2)]),
        ([event(at=5), event(at=4, entity_id="2"), event(at=4, entity_type="invoice")], []),
        ([event(at=5), event(at=4, field="*")], [(1, 2)]),  # an entity, whatever its fields
        ([event(at=-5), event(at=-6), event(at=0), event(at=-1)], [(2, 2)]),  # before 1970
    ],
)
def test_time_order(events: list[Event], expected: list[tuple[int, int]]) -> None:
    assert broken(TIME_ORDER, *events) == expected
    quality = WindowQuality(only(TIME_ORDER), previous_profile=None, previous_counts=())
    for n, one in enumerate(events, 1):
        quality.add(numbered([one], n))
        assert quality.profile is None  # does not disturb
    assert [(f.count, f.first_seq) for f in quality.finish()] == expected


# What is too much to remember


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("rule", [CONTINUITY, TIME_ORDER])
def test_what_is_not_remembered_is_said_to_be_unknown(rule: QualityRule, rows: int) -> None:
    def change(entity_id: str) -> Event:
        return event("1", "2", entity_id, at=-len(events))  # breaks both rules, unless it is the first

    events: list[Event] = []
    for entity_id in ("a", "b", "b", "c", "c", "a", "d", "d", "b"):
        events.append(change(entity_id))
    whole = numbered(events)
    batches = [whole.slice(start, rows) for start in range(0, len(events), rows)]
    found, unknown = judge(only(rule, STOP), *batches, keys_max=2)
    assert (found.count, found.first_seq, found.level) == (3, 3, "FAIL")  # of a and b, also later
    assert (unknown.rule, unknown.count, unknown.first_seq, unknown.level) == (rule, None, 4, "WARN")
    assert unknown.message == "unknown beyond seq 4 for what first comes there: more than 2 keys"
    assert len(judge(only(rule), *batches, keys_max=4)) == 1


def test_the_table_keeps_the_last_values_while_it_grows() -> None:
    rng = np.random.default_rng(3)
    table, model = LastValues(10_000), dict[tuple[int, int], int]()
    # Every first word comes with five second ones, which have to tell them apart.
    universe = rng.integers(0, 2**63, (15_000, 2), dtype=np.uint64)
    universe[:, 0] = np.repeat(universe[:3000, 0], 5) * np.uint64(2)
    for _ in range(20):
        some = universe[rng.permutation(len(universe))[:2000]]
        values = rng.integers(0, 2**63, len(some), dtype=np.uint64)
        keys = list(zip(some[:, 0].tolist(), some[:, 1].tolist(), strict=True))
        before, found, kept = table.exchange(some[:, 0], some[:, 1], values, np.arange(len(some))[::-1])
        assert found.tolist() == [key in model for key in keys]
        assert before[found].tolist() == [model[key] for key in keys if key in model]
        for key, value in reversed(list(zip(keys, values.tolist(), strict=True))):
            if key in model or len(model) < 10_000:
                model[key] = value
        assert kept.tolist() == [key in model for key in keys]
    assert len(model) == 10_000


def test_one_half_of_a_hash_in_common_is_no_false_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Different entities whose first hashes are all the same are still told apart by their second."""
    real = neighbours.text_hashes

    def collide(column: pa.Array, lanes: int) -> list[neighbours.Words]:
        hashes = real(column, lanes)
        return [np.zeros_like(hashes[0]), *hashes[1:]] if lanes == 2 else hashes

    monkeypatch.setattr(neighbours, "text_hashes", collide)
    quality = WindowQuality(only(CONTINUITY), previous_profile=None, previous_counts=())
    for n in range(6):
        quality.add(numbered([event(f"{m}", f"{m}", f"{m}") for m in range(0, 100, 1 + n % 3)], 1 + n * 100))
        assert quality.profile is None  # what was added is judged now
    assert quality.finish() == []
    quality.add(numbered([event("1", "2", "98")], 601))
    assert [(f.count, f.first_seq) for f in quality.finish()] == [(1, 601)]


def test_values_of_one_hash_are_no_false_finding_either(monkeypatch: pytest.MonkeyPatch) -> None:
    events = numbered([event("1", "2"), event("2", "3"), event("4", "5")])
    monkeypatch.setattr(
        "eventstore.retention.quality.text_hashes", lambda column, lanes: [np.full(len(column), 9, np.uint64)]
    )
    assert judge(only(CONTINUITY), events) == []


def test_hashes_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "a", "b", "a" * 7, "a" * 8, "a" * 9, "é" * 40, "x" * 40_000, "x" * 39_999 + "y", "a", ""]
    texts += ["y" * 8 + "x" * 8, "x" * 8 + "y" * 8, "a\0"]  # words that change places
    texts += ["y" * 8 + "x" * 32_768, "x" * 32_768 + "y" * 8]  # and far apart
    column = pa.array(["padding", *texts, "end"])[1:-1]
    first, second = text_hashes(column, 2)
    for lane in (first, second):
        assert len(set(lane.tolist())) == len(set(texts))
        assert (lane[0], lane[1]) == (lane[10], lane[9])
    assert not set(first.tolist()) & set(second.tolist())
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 10)
    assert text_hashes(column, 1)[0].tolist() == first.tolist()
    assert text_hashes(pa.array(["", ""]), 1)[0].tolist() == [first[0]] * 2


# Volume


@pytest.mark.parametrize(
    ("count", "previous", "expected"),
    [
        (19, [100, 100, 100], (3, 100.0)),
        (20, [100, 100, 100], None),  # a fifth is not less than a fifth
        (0, [100, 100], None),  # too few windows
        (0, [99, 99, 99], None),  # too small ones
        (0, [100, 1, 200], (3, 100.0)),
        (29, [100, 200, 100, 200], (4, 150.0)),
        (30, [100, 200, 100, 200], None),
        (10, [10_000] * 9 + [100] * 12, (12, 100.0)),  # only the last twelve
        (200, [10_000] * 9 + [100] * 12, None),
        (0, [], None),
    ],
)
def test_volume(count: int, previous: list[int], expected: tuple[int, float] | None) -> None:
    assert volume_fall(count, previous) == expected
    found = judge(only(VOLUME), numbered([event()] * count) if count else numbered([]), counts=previous)
    assert [(f.rule, f.count, f.first_seq) for f in found] == ([(VOLUME, None, None)] if expected else [])


def test_the_message_about_volume() -> None:
    (finding,) = judge(
        only(VOLUME), numbered([event()]), numbered([event()]), counts=[1000, 2001, 1000, 3000]
    )
    assert finding.message == "2 events, fewer than a fifth of 1,500.5, the median of the 4 windows before"


# Schema


def profile_of(*events: Event) -> Profile:
    quality = WindowQuality({}, previous_profile=None, previous_counts=())
    quality.add(numbered(events))
    assert quality.profile is not None
    return quality.profile


def test_profile() -> None:
    values = ['"a"', "1", "-1", "true", "false", "{}", "[]", "null", None, "0.5"]
    types = ["string", "number", "number", "bool", "bool", "object", "array", "null", "null", "number"]
    events = [event(None, value, field=f"f{n}") for n, value in enumerate(values)]
    events += [event("1", None, field="f0"), event(None, "7", entity_type="invoice", field="*")]
    found = profile_of(*events)
    expected = {f"f{n}": (name,) for n, name in enumerate(types)}
    assert found.fields == {"order": {**expected, "f0": ("null", "string")}, "invoice": {"*": ("number",)}}
    assert not found.truncated
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_profile_of_many_fields_is_truncated() -> None:
    events = [event(None, "1", field=f"f{n}") for n in range(PROFILE_FIELDS_MAX)]
    whole = profile_of(*events)
    assert (len(whole.fields["order"]), whole.truncated) == (PROFILE_FIELDS_MAX, False)
    more = profile_of(*events, event(None, "1", field="one more"), event(None, "1"))
    assert more == Profile({}, truncated=True)
    assert Profile.from_json(json.loads(json.dumps(more.to_json()))) == more
    assert compare(whole, more) is None
    assert compare(more, whole) is None
    # Also when both columns have so many names that their pairs are not counted in a table.
    assert profile_of(
        *(event(None, "1", entity_type=f"t{n}", field=f"f{n}") for n in range(1000))
    ).fields == {f"t{n}": {f"f{n}": ("number",)} for n in range(1000)}


S, N, Z = "string", "number", "null"


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"o": {"a": (S,)}}, {"o": {"a": (S,)}}, SchemaChange()),
        ({"o": {"a": (S,)}}, {"o": {"a": (S,), "b": (N,)}}, SchemaChange(added=("o.b",))),
        ({"o": {"a": (S,), "b": (N,)}}, {"o": {"a": (S,)}}, SchemaChange(removed=("o.b",))),
        ({"o": {"a": (S,)}, "p": {"x": (S,)}}, {"o": {"a": (S,)}}, SchemaChange()),  # p may be quiet
        ({"o": {"a": (S,)}}, {"o": {"a": (S,)}, "p": {"x": (S,), "*": (N,)}}, SchemaChange(added=("p",))),
        ({"o": {"a": (S,)}}, {"o": {"a": (N,)}}, SchemaChange(type_changed=(("o.a", (S,), (N,)),))),
        ({"o": {"a": (S,)}}, {"o": {"a": (N, S)}}, SchemaChange(type_changed=(("o.a", (S,), (N, S)),))),
        ({"o": {"a": (N, S)}}, {"o": {"a": (N,)}}, SchemaChange()),  # shows less of itself
        ({"o": {"a": (S,)}}, {"o": {"a": (Z, S)}}, SchemaChange()),
        ({"o": {"a": (Z,)}}, {"o": {"a": (S,)}}, SchemaChange()),
        ({}, {}, SchemaChange()),
    ],
)
def test_compare(
    before: dict[str, dict[str, tuple[str, ...]]],
    now: dict[str, dict[str, tuple[str, ...]]],
    expected: SchemaChange,
) -> None:
    assert compare(Profile(before), Profile(now)) == expected
    assert bool(expected) is (expected != SchemaChange())


def test_the_schema_rule() -> None:
    before = profile_of(event(None, '"a"'), event(None, "1", field="total"), event(None, "1", field="gone"))
    events = numbered([event(None, '"a"'), event(None, '"1"', field="total"), event(field="new")])
    (finding,) = judge({SCHEMA: STOP}, events, profile=before)
    assert finding == QualityFinding(
        SCHEMA,
        STOP,
        None,
        None,
        "added order.new; removed order.gone; type changed order.total (number → string)",
    )
    assert judge({SCHEMA: STOP}, events, profile=None) == []
    quality = WindowQuality({}, previous_profile=before, previous_counts=())
    quality.add(events)
    change = quality.schema_change
    assert change
    assert change.added == ("order.new",)
    same = quality.profile
    quality = WindowQuality({CONTINUITY: WARN}, previous_profile=same, previous_counts=())
    quality.add(events)
    assert quality.profile == same  # also while events wait for others to be judged with
    assert (quality.schema_change, quality.finish()) == (SchemaChange(), [])
    (finding,) = judge({SCHEMA: STOP}, events, profile=Profile({}, truncated=True))
    assert (finding.level, finding.message) == (
        "WARN",
        "not compared with the window before: more than 2,000 fields",
    )


def test_a_message_names_a_few_fields_only() -> None:
    assert str(SchemaChange(added=tuple("abcdefg"))) == "added a, b, c, d, e and 2 more"


# Policy


def test_the_default_rules() -> None:
    assert DEFAULT_QUALITY == {CONTINUITY: OFF, TIME_ORDER: OFF, VOLUME: WARN, SCHEMA: WARN}
    events = numbered([event("1", "2", at=1), event("1", "2", at=0)])
    found = judge({}, events, profile=profile_of(event(field="x")), counts=[1000] * 3)
    assert [f.rule for f in found] == [VOLUME, SCHEMA]
    found = judge(
        {CONTINUITY: WARN, TIME_ORDER: STOP}, events, profile=profile_of(event(field="x")), counts=[1000] * 3
    )
    assert [f.rule for f in found] == list(QualityRule)


def test_rules_that_are_off_do_not_look() -> None:
    quality = WindowQuality(
        dict.fromkeys(QualityRule, OFF), previous_profile=Profile(), previous_counts=[1000] * 3
    )
    quality.add(numbered([event("1", "2", at=1), event("1", "2", at=0)]).select(["seq"]))
    assert (quality.finish(), quality.profile, quality.schema_change) == ([], None, None)


@pytest.mark.parametrize("rule", QualityRule)
def test_a_window_without_events(rule: QualityRule) -> None:
    assert judge(only(rule), numbered([])) == []
    assert judge(only(rule)) == []


# A real history

_CHECKOUT = Path(__file__).resolve().parents[2]
_FOLDER = Path(os.environ.get("DATA", _CHECKOUT.parent / "shared/data/git-history"))


@pytest.mark.skipif(not (_FOLDER / "curl__curl.parquet").exists(), reason="no real histories (set DATA)")
@pytest.mark.parametrize("rows", [1009, 200_000])
def test_continuity_of_a_real_history(rows: int) -> None:
    table = pq.read_table(_FOLDER / "curl__curl.parquet")
    count = table.num_rows
    columns = {name: table[name] for name in table.column_names if name in EVENT_SCHEMA.names}
    columns["seq"] = columns["recorded_at"] = pa.array(np.arange(1, count + 1))
    for name, width in (("event_id", 16), ("hash", 32)):
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), count, [None, pa.py_buffer(bytes(width * count))]
        )
    columns["metadata"] = pa.nulls(count, pa.string())
    events = pa.table({f.name: columns[f.name].cast(f.type) for f in EVENT_SCHEMA}, EVENT_SCHEMA)
    last: dict[tuple[str, str], str | None] = {}
    wrong = []
    names = ("entity_id", "field", "old_value", "new_value")
    for seq, (entity_id, field, old, new) in enumerate(
        zip(*(table[n].to_pylist() for n in names), strict=True), 1
    ):
        if last.get((entity_id, field), old) != old:
            wrong.append(seq)
        last[entity_id, field] = new
    batches = events.combine_chunks().to_batches(max_chunksize=rows)
    (finding,) = judge(only(CONTINUITY), *batches, keys_max=10**6)
    assert (finding.count, finding.first_seq) == (len(wrong), wrong[0])
