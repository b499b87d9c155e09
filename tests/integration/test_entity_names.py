"""Types and ids of entities are values, whatever characters they have, down to the statement that is run with
rights that the application has not."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from eventstore.app import Store
from eventstore.model.query import EventFilter, Order
from tests.unit.helpers import append, make_tenant, new_event

NAMES = ["100%", "%s", "%0a", "%1$L", "%2$s", "%%", "it's", "\\", "$$", "a'; SELECT 1 --", "é中💥"]


@pytest.fixture
def filled(store: Store) -> Store:
    make_tenant(store)
    append(store, "acme", *(new_event(name, entity_type=kind) for name in NAMES for kind in (name, "order")))
    make_tenant(store, "other")
    append(store, "other", *(new_event(str(n)) for n in range(7)))
    return store


@pytest.mark.parametrize("order", Order)
def test_an_entity_is_found_by_whatever_name(filled: Store, order: Order) -> None:
    for number, name in enumerate(NAMES):
        seqs = [2 * number + 1, 2 * number + 2]
        for kind, expected in (
            (name, seqs[:1]),
            ("order", seqs[1:]),
            (None, sorted(seqs, reverse=order == "desc")),
        ):
            wanted = EventFilter(entity_type=kind, entity_id=name)
            page = filled.reader.page("acme", wanted, order=order, limit=9)
            assert page.events.column("seq").to_pylist() == expected


@pytest.mark.parametrize("kind", ["%2$s", "%s", "%1$s%2$s"])
def test_no_statement_is_smuggled_in(filled: Store, kind: str) -> None:
    """What is returned is numbers of events of that entity: 7, of another tenant's log, is none."""
    smuggled = "' UNION SELECT h.last_seq FROM public.heads h WHERE h.tenant_id = 'other' -- "
    query = sa.text("SELECT hot.entity_seqs(:kind, :id, 1, 99, true, NULL)")
    with filled.database.app.transaction("acme") as conn:
        assert conn.execute(query, {"kind": kind, "id": smuggled}).all() == []
        assert conn.execute(query, {"kind": smuggled, "id": kind}).all() == []
