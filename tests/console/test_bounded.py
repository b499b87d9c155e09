"""However much there is, a page stays a page: every page over a log with a busy entity, long values, many
holds and many runs, and each of its parameters that asks for more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from eventstore.governance.holds import place_hold
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.limits import Limits
from tests.console.served import Person, served_console
from tests.console.walking import Page, own_store, pages
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, make_tenant, new_event

_TENANT = "acme"
_DAYS, _PER_DAY, _LONG, _HOLDS = 40, 100, 60, 250
_VALUE_BYTES = 100_000
_PAGE_BYTES_MAX = 700_000  # as sent, without compression


@dataclass
class Full:
    person: Person
    pages: list[Page]
    values: dict[str, str]


@pytest.fixture(scope="module")
def full(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Full]:
    folder = tmp_path_factory.mktemp("bounded")
    with own_store(server_url, template_database, folder) as (store, clock):
        make_tenant(store, _TENANT)
        for day in range(_DAYS):
            clock.move_to(START_US + day * DAY_US + HOUR_US)
            events = (new_event(old_value=n, new_value=n + 1, field=f"f{n % 7}") for n in range(_PER_DAY))
            append(store, _TENANT, *events)
            tenants = store.compactor.tenants()
            report = store.compactor.run(tenants, START_US + day * DAY_US)
        for number in range(_LONG):
            value = {f"member-{n}": chr(97 + number % 26) * 1000 for n in range(_VALUE_BYTES // 1000)}
            append(store, _TENANT, new_event(old_value="x" * _VALUE_BYTES, new_value=value, metadata=value))
        for number in range(_HOLDS):
            scope = HoldScope(tuple(("order", f"{number}-{n}") for n in range(50)))
            place_hold(store.database, _TENANT, f"case-{number}", "r" * 1000, "legal", scope, START_US)
        last = _DAYS * _PER_DAY + _LONG
        values = {"tenant": _TENANT, "seq": str(last), "run_id": str(report.run_id), "hold": "case-1"}
        with served_console(store) as served:
            person = served.person(Role.ADMINISTRATOR, None, Limits(requests_per_s=100_000))
            gets = [p for p in pages(served.app) if p.method == "GET" and set(p.names) <= values.keys()]
            yield Full(person, gets, values)


def test_every_page_is_bounded(full: Full) -> None:
    sizes, found = {}, 0
    for page in full.pages:
        for more in ({}, {"limit": "1000000"}, {"limit": "1000"}, {"page": "1000000"}):
            query = {"entity_type": "order", "entity_id": "1", **more}
            answer = full.person.get(page.address(full.values), **query)
            assert answer.status_code in (200, 303, 400, 404), (page, more, answer.text[-500:])
            found += answer.status_code == 200
            sizes[page.path, *more.items()] = len(answer.content)
    assert found >= 3 * 9
    too_large = {where: size for where, size in sizes.items() if size > _PAGE_BYTES_MAX}
    assert not too_large


def test_what_is_left_out_of_a_long_value_is_said(full: Full) -> None:
    """Bounded is not silently cut."""
    event = full.person.page(f"/console/t/{_TENANT}/event/{full.values['seq']}")
    assert "more characters" in event or "x" * _VALUE_BYTES in event
