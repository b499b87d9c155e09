"""A few events, row by row, become what many, column by column, become."""

from __future__ import annotations

import json

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.app import Store
from eventstore.governance.tenants import create_tenant
from eventstore.hot import append as append_module
from eventstore.hot.append import AppendRequest
from eventstore.hot.batch import pending_batch, stamp
from eventstore.hot.few import stamp_few
from eventstore.model.event import NewEvent, chain_start
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.model.query import EventFilter
from eventstore.model.tenant import Head

_TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=40
)
_VALUES = st.one_of(st.none(), _TEXTS, st.integers(), st.lists(_TEXTS, max_size=3))
_EVENTS = st.builds(
    lambda kind, entity, action, actor, source, old, new, workspace, event_id, occurred: NewEvent(
        entity_type=kind,
        entity_id=entity,
        action=action,
        actor=actor,
        source=source,
        old_value=_raw(old),
        new_value=_raw(new),
        workspace_id=workspace,
        event_id=event_id,
        occurred_at=occurred,
    ),
    *[_TEXTS] * 5,
    *[_VALUES] * 2,
    st.none() | _TEXTS,
    st.uuids(),
    st.none() | st.datetimes(timezones=st.timezones()),
)
_RECORDED_US = 1_790_000_000_123_456


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw() if value is None else msgspec.Raw(json.dumps(value, ensure_ascii=False).encode())


@given(st.lists(_EVENTS, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_both_ways_of_stamping_agree(events: list[NewEvent]) -> None:
    head = Head(41, chain_start("acme"), 0, 0)
    few = stamp_few(events, head, _RECORDED_US)
    many, last_hash = stamp(
        pending_batch(events),
        first_seq=42,
        recorded_us=np.full(len(events), _RECORDED_US, dtype=np.int64),
        previous_hash=head.last_hash,
    )
    assert [e.hash for e in few] == many.column("hash").to_pylist()
    assert few[-1].hash == last_hash
    assert [e.event_id for e in few] == many.column("event_id").to_pylist()


def test_texts_that_quoting_could_break_are_stored_as_they_are(store: Store) -> None:
    """One INSERT composed as text, against COPY: the same rows, whatever the texts hold."""
    hostile = [
        "'",
        "''",
        "\\",
        "\\'",
        "'); DROP TABLE events; --",
        "$$",
        "%s",
        "{}",
        "\n\t\r",
        "é\u2028😀",
        '"',
    ]
    events = [
        NewEvent(
            entity_type=text,
            entity_id=text,
            action=text,
            actor=text,
            source=text,
            field=text,
            workspace_id=text,
            old_value=_raw(text),
            new_value=_raw({text: [text]}),
            metadata=_raw({text: text}),
        )
        for text in hostile
    ]
    columns = {}
    for tenant, few_max in (("few", append_module.FEW_MAX), ("many", 0)):
        create_tenant(store.database, tenant, DEFAULT_POLICY)
        kept, append_module.FEW_MAX = append_module.FEW_MAX, few_max
        try:
            store.appender.append(tenant, [AppendRequest(events)])
        finally:
            append_module.FEW_MAX = kept
        found = store.reader.page(tenant, EventFilter(), limit=100).events
        columns[tenant] = found.drop_columns(["event_id", "hash"])
    assert columns["few"].column("entity_id").to_pylist() == hostile
    assert columns["few"].equals(columns["many"])
