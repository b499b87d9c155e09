"""An entity as the log says it was: against a fold of all its events in plain Python, over both tiers.

`EXAMPLES=20 python -m pytest tests/integration/test_as_of.py` tries twenty times as many histories.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.clock import to_iso
from eventstore.db.engine import Database
from eventstore.errors import ArchiveDamageError, InputError, TenantNotFoundError
from eventstore.hot.batch import pending_batch
from eventstore.hot.log import log_transaction
from eventstore.model.event import NewEvent
from eventstore.query import as_of as as_of_module
from eventstore.query import walk as walk_module
from eventstore.query.as_of import EntityState, entity_as_of
from eventstore.query.reader import LogReader
from tests.conftest import create_database
from tests.integration.tiering import Lab, Tiered
from tests.property.strategies import examples
from tests.unit.helpers import DAY_US, START_US, new_event

PER_DAY = 8
DAYS = 3


@pytest.fixture(scope="module")
def lab(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    database = Database(
        create_database(server_url, f"as_of_{secrets.token_hex(4)}", template=template_database)
    )
    database.open()
    lab = Lab(database, tmp_path_factory.mktemp("as-of"))
    yield lab
    lab.targets.close()
    database.close()


def at_us(n: int) -> int:
    """When event n (from 0) is recorded; pairs share a moment."""
    day, within = divmod(n, PER_DAY)
    return START_US + day * DAY_US + within // 2 * 1000


def laid_out(lab: Lab, events: list[NewEvent], archived: int = 0) -> Tiered:
    """A log of `PER_DAY` events a day, the first days archived."""
    tenant = Tiered(lab, 0, PER_DAY)
    times = np.array([at_us(n) for n in range(len(events))], dtype=np.int64)
    with lab.database.connection() as conn, log_transaction(conn, tenant.name, {}) as log:
        log.write(pending_batch(events), times)
    for day in range(archived):
        tenant.archive(day)
    return tenant


# --- the reference ----------------------------------------------------------------------------------


@dataclass
class Naive:
    """What is known of an entity after some events, by the rules in their plainest form."""

    fields: dict[str, tuple[Any, int]] = field(default_factory=dict)  # value, and the seq that set it
    version: int = 0
    ended: int | None = None

    def take(self, seq: int, event: NewEvent) -> None:
        self.version, self.ended = seq, None
        value = json.loads(bytes(event.new_value)) if event.new_value else None
        if event.field != "*":
            self._set(event.field, value, seq)
        elif event.action in ("delete", "deleted"):
            self.fields, self.ended = {}, seq
        elif isinstance(value, dict):
            for name, member in value.items():
                self._set(name, member, seq)
        elif value is not None:
            self._set("*", value, seq)

    def _set(self, name: str, value: Any, seq: int) -> None:
        self.fields.pop(name, None)
        if value is not None:
            self.fields[name] = (value, seq)


def reference(events: list[NewEvent], entity_id: str, as_of_us: int | None) -> Naive:
    naive = Naive()
    for n, event in enumerate(events):
        if event.entity_id == entity_id and (as_of_us is None or at_us(n) <= as_of_us):
            naive.take(n + 1, event)
    return naive


def as_naive(state: EntityState) -> Naive:
    fields = {name: (json.loads(s.value or ""), s.origin.seq) for name, s in state.fields.items()}
    return Naive(fields, state.version, None if state.ended is None else state.ended.seq)


# --- the property -----------------------------------------------------------------------------------

values = st.sampled_from([None, 1, "x", [1, None], {}, {"x": 1}, {"x": None, "y": {"z": 2}}, {"*": "w"}])
fields = st.sampled_from(["*", "*", "x", "y"])
actions = st.sampled_from(["update", "update", "update", "insert", "delete", "deleted", "viewed"])
one_event = st.builds(
    lambda entity, action, name, value: new_event(entity, action=action, field=name, new_value=value),
    st.sampled_from(["a", "a", "b"]),
    actions,
    fields,
    values,
)
histories = st.lists(one_event, min_size=PER_DAY * DAYS, max_size=PER_DAY * DAYS)


# Not made smaller when it fails: each try is a whole log.
WHOLE = hypothesis.settings(examples(10), phases=[hypothesis.Phase.generate])


@given(events=histories)
@WHOLE
def test_the_fold_is_what_a_plain_one_is_at_every_moment(lab: Lab, events: list[NewEvent]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(walk_module, "_STEP_ROWS_FIRST", 2)  # several tables, and what is found across them
        patched.setattr(walk_module, "_STEP_BYTES", 1)
        tenant = laid_out(lab, events, archived=DAYS - 1)
        reader, _ = lab.reader()
        moments = [
            None,
            START_US - 1,
            *(at_us(n) + late for n in range(1, len(events), 5) for late in (-1, 0)),
        ]
        for entity_id in ("a", "b", "nobody"):
            for moment in moments:
                found = entity_as_of(reader, tenant.name, entity_id, entity_type="order", as_of_us=moment)
                expected = reference(events, entity_id, moment)
                assert as_naive(found) == expected, (entity_id, moment)
                assert found.exists == (expected.version > 0 and expected.ended is None)
                assert not found.is_incomplete
        untyped = entity_as_of(reader, tenant.name, "a", as_of_us=at_us(11))
        assert as_naive(untyped) == reference(events, "a", at_us(11))


# --- what the property does not reach ---------------------------------------------------------------


def test_a_field_names_the_event_that_set_it(lab: Lab) -> None:
    events = [new_event("a", field="x", new_value=n, actor=f"actor-{n}") for n in range(3)]
    tenant = laid_out(lab, events)
    reader, _ = lab.reader()
    origin = entity_as_of(reader, tenant.name, "a", as_of_us=at_us(1)).fields["x"].origin
    page = reader.event(tenant.name, seq=2).events
    assert (origin.seq, origin.actor, origin.recorded_at) == (2, "actor-1", to_iso(at_us(1)))
    assert origin.event_id.replace("-", "") == page.column("event_id")[0].as_py().hex()


def test_values_stay_as_they_were_written(lab: Lab) -> None:
    import msgspec

    written = NewEvent(
        entity_type="order",
        entity_id="a",
        action="insert",
        actor="ann",
        source="test",
        new_value=msgspec.Raw(b'{"n":1.50,"big":' + b"9" * 400 + b',"t":"\\u00e9"}'),
    )
    tenant = laid_out(lab, [written])
    found = entity_as_of(lab.reader()[0], tenant.name, "a").fields
    assert {name: s.value for name, s in found.items()} == {"n": "1.50", "big": "9" * 400, "t": '"\\u00e9"'}


def test_two_types_with_one_id_have_to_be_told_apart(lab: Lab) -> None:
    tenant = laid_out(
        lab, [new_event("a", entity_type=t, field="x", new_value=t) for t in ("order", "invoice")]
    )
    reader, _ = lab.reader()
    with pytest.raises(InputError, match="several types have the id 'a': invoice, order"):
        entity_as_of(reader, tenant.name, "a")
    assert entity_as_of(reader, tenant.name, "a", entity_type="invoice").fields["x"].value == '"invoice"'
    # Of one type alone, that is found.
    assert entity_as_of(reader, tenant.name, "a", as_of_us=START_US - 1).entity_type is None


def test_what_may_be_missing_is_said(lab: Lab) -> None:
    events = [new_event("a", field=f"f{n}", new_value=n) for n in range(PER_DAY * 2)]
    tenant = laid_out(lab, events, archived=1)
    tenant.expire(0)
    state = entity_as_of(lab.reader()[0], tenant.name, "a", entity_type="order")
    assert list(state.fields) == sorted(f"f{n}" for n in range(PER_DAY, PER_DAY * 2))
    assert state.is_incomplete
    assert [(a, b) for a, b, _ in state.coverage.expired] == [(1, PER_DAY)]


def test_what_was_destroyed_before_an_entity_ended_is_not_missing(lab: Lab) -> None:
    events = [new_event("a", field="x", new_value=1)] * PER_DAY
    events += [new_event("a", action="delete"), new_event("a", field="y", new_value=2)]
    tenant = laid_out(lab, events, archived=1)
    tenant.expire(0)
    state = entity_as_of(lab.reader()[0], tenant.name, "a", entity_type="order")
    assert (list(state.fields), state.is_incomplete) == (["y"], False)


def test_a_damaged_segment_is_an_error_unless_a_partial_answer_is_asked_for(lab: Lab) -> None:
    events = [new_event("a", field=f"f{n}", new_value=n) for n in range(PER_DAY * 2)]
    tenant = laid_out(lab, events, archived=1)
    segment = tenant.segments(0)[0]
    path = lab.folder / "archive" / segment.key
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    reader, _ = lab.reader()
    with pytest.raises(ArchiveDamageError):
        entity_as_of(reader, tenant.name, "a")
    state = entity_as_of(reader, tenant.name, "a", partial=True)
    assert (state.is_incomplete, len(state.fields)) == (True, PER_DAY * 2 - segment.range.event_count)


def test_fields_are_bounded_in_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_of_module, "_STATE_BYTES_MAX", 1000)
    tenant = laid_out(lab, [new_event("a", field=f"f{n}", new_value="v" * 200) for n in range(6)])
    with pytest.raises(InputError, match="take more than 1000 bytes"):
        entity_as_of(lab.reader()[0], tenant.name, "a")
    # One field written over and over takes no more than once.
    again = laid_out(lab, [new_event("a", field="f", new_value="v" * 200) for _ in range(6)])
    assert list(entity_as_of(lab.reader()[0], again.name, "a").fields) == ["f"]


def test_no_such_tenant(lab: Lab) -> None:
    reader: LogReader = lab.reader()[0]
    with pytest.raises(TenantNotFoundError):
        entity_as_of(reader, "nobody", "a")
