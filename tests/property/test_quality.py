"""The quality rules over columns find what a plain walk over the events finds, however they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from eventstore.model.event import Event
from eventstore.model.quality import Profile, QualityAction, QualityFinding, QualityRule, compare
from eventstore.retention import neighbours, quality
from eventstore.retention.quality import WindowQuality
from tests.property.strategies import events, examples
from tests.unit.helpers import as_batch

STOP_ALL = dict.fromkeys(QualityRule, QualityAction.STOP)
TYPES = {"[": "array", "t": "bool", "f": "bool", "n": "null", "{": "object", '"': "string"}

few = st.sampled_from
values = st.none() | few(
    ['"a"', '"b"', "1", "1.0", "true", "{}", '{"a":1}', "[]", '"a long text of several words"']
)
colliding = st.builds(
    replace,
    events,
    entity_type=few(["o", "order"]),
    entity_id=few(["1", "2", "rder", "é" * 9]) | st.text("ab", min_size=1, max_size=3),
    field=few(["*", "1", "state"]),
    old_value=values,
    new_value=values,
    occurred_at_us=st.integers(-3, 3) | few([-(2**60), 2**60]),
)
logs = st.lists(colliding, max_size=40)
keys_max = few([1, 2, 3, 1000])


def reference(log: Sequence[Event], keys_max: int) -> tuple[dict[str, list[int]], dict[str, int], Profile]:
    """What breaks which rule, from where on a rule no longer knows all, and the profile; one by one."""
    broken: dict[str, list[int]] = {"continuity": [], "time_order": []}
    unknown: dict[str, int] = {}
    shown: dict[tuple[str, str, str], Event] = {}
    moved: dict[tuple[str, str], Event] = {}
    types: dict[str, dict[str, set[str]]] = {}
    for e in log:
        found = TYPES.get(e.new_value[0], "number") if e.new_value is not None else "null"
        types.setdefault(e.entity_type, {}).setdefault(e.field, set()).add(found)

        key = (e.entity_type, e.entity_id, e.field)
        if key in shown or len(shown) < keys_max:
            before = shown.get(key)
            silent = any(x and x.old_value is None and x.new_value is None for x in (e, before))
            if before and not silent and e.old_value != before.new_value:
                broken["continuity"].append(e.seq)
            shown[key] = e
        else:
            unknown.setdefault("continuity", e.seq)

        if key[:2] in moved or len(moved) < keys_max:
            before = moved.get(key[:2])
            if before and e.occurred_at_us < before.occurred_at_us:
                broken["time_order"].append(e.seq)
            moved[key[:2]] = e
        else:
            unknown.setdefault("time_order", e.seq)
    fields = {kind: {n: tuple(sorted(t)) for n, t in names.items()} for kind, names in types.items()}
    return broken, unknown, Profile(fields)


def run(
    batches: Sequence[pa.RecordBatch], keys_max: int, before: Profile
) -> tuple[list[QualityFinding], WindowQuality]:
    judged = WindowQuality(STOP_ALL, previous_profile=before, previous_counts=[100] * 3, keys_max=keys_max)
    for batch in batches:
        judged.add(batch)
    return judged.finish(), judged


@examples(200)
@given(logs, logs, keys_max, st.data())
def test_rules_by_column(log: list[Event], earlier: list[Event], keys_max: int, data: st.DataObject) -> None:
    log = [replace(e, seq=n) for n, e in enumerate(log, 7)]
    broken, unknown, profile = reference(log, keys_max)
    before = reference(earlier, keys_max)[2]
    whole = as_batch(log)
    findings, judged = run([whole], keys_max, before)
    assert judged.profile == profile
    assert judged.schema_change == compare(before, profile)
    found = [(f.rule.value, f.level, f.count, f.first_seq) for f in findings]
    expected: list[tuple[str, str, int | None, int | None]] = []
    for rule, seqs in broken.items():
        if seqs:
            expected.append((rule, "FAIL", len(seqs), seqs[0]))
        if rule in unknown:
            expected.append((rule, "WARN", None, unknown[rule]))
    if len(log) < 20:
        expected.append(("volume", "FAIL", None, None))
    if compare(before, profile):
        expected.append(("schema", "FAIL", None, None))
    assert found == expected

    # However the events are cut into batches, and those into slices, and the texts into blocks.
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=8)))
    batches = [whole.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    with (
        mock.patch.object(quality, "SLICE_ROWS", data.draw(st.integers(1, 9))),
        mock.patch.object(quality, "_WAITING_BYTES_MAX", data.draw(few([0, 500, 10**6]))),
        mock.patch.object(neighbours, "_BLOCK_BYTES", data.draw(few([0, 20, 10**6]))),
        mock.patch.object(neighbours, "_SLOTS_MIN", 2),
    ):
        again, judged = run(batches, keys_max, before)
    assert again == findings
    assert judged.profile == profile
