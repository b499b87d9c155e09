"""Whoever has a tenant's key sees nothing of another tenant on any page: not its name, not its events, not
that it exists. Every page × every role × addresses and parameters that are the other tenant's own."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.governance.holds import place_hold
from eventstore.model.access import PERMISSIONS, Permission, Role
from eventstore.model.hold import HoldScope
from eventstore.model.limits import Limits
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import Page, forms_of, own_store, pages
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, make_tenant, new_event

OWN, NOBODY = "acme", "ghost"
# The roles of a tenant's that have something to do in the console.
_VISITORS = [role for role in Role if Permission.READ in PERMISSIONS[role]]


@dataclass
class Neighbours:
    """`theirs` are the values of a path or a query that belong to the other tenant, whose name `rival` is in
    all it has, and nowhere else."""

    served: ServedConsole
    rival: str
    theirs: dict[str, str]
    ours: dict[str, str]
    people: dict[Role, Person]
    deployment: Person
    walked: list[Page] = field(default_factory=list)


@pytest.fixture(scope="module")
def neighbours(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Neighbours]:
    rival = f"rival-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("foreign")
    with own_store(server_url, template_database, folder) as (store, clock):
        ours, theirs = _fill(store, clock, OWN), _fill(store, clock, rival)
        with served_console(store) as served:
            often = Limits(requests_per_s=100_000)
            people = {role: served.person(role, OWN, often) for role in _VISITORS}
            everyone = served.person(Role.ADMINISTRATOR, None, often)
            for tenant in (OWN, rival):
                everyone.post(f"/console/t/{tenant}/exports", format="csv", actor=f"{tenant}-actor")
            yield Neighbours(served, rival, theirs, ours, people, everyone, pages(served.app))


def _fill(store: Store, clock: FixedClock, tenant: str) -> dict[str, str]:
    """Events in both tiers, a hold and a run, each with the tenant's name in it; what there is."""
    make_tenant(store, tenant)
    for day in range(3):
        clock.move_to(START_US + day * DAY_US + HOUR_US)
        text = f"{tenant}-value"
        changed = {"old_value": text, "new_value": text, "metadata": {text: text}, "field": f"{tenant}-field"}
        append(store, tenant, *(new_event(f"{tenant}-entity", actor=f"{tenant}-actor", **changed),) * 2)
    report = store.compactor.run(store.compactor.tenants(tenant), START_US + 2 * DAY_US)
    scope = HoldScope((("order", f"{tenant}-entity"),))
    hold = place_hold(store.database, tenant, f"{tenant}-case", f"{tenant} asked", "x", scope, START_US)
    clock.move_to(START_US)
    return {
        "tenant": tenant,
        "seq": "3",
        "run_id": str(report.run_id),
        "hold": hold.name,
        "name": hold.name,
        "hold_id": str(hold.hold_id),
        "export_id": str(uuid.uuid4()),
        "number": "1",
        "entity_type": "order",
        "entity_id": f"{tenant}-entity",
        "actor": f"{tenant}-actor",
    }


def _ask(person: Person, page: Page, values: dict[str, str], **query: str) -> httpx.Response:
    address = page.address(values)
    if page.method == "GET":
        return person.client.get(address, params=query or None)
    return person.client.post(address, data={"csrf": person.csrf, **query})


def _told(answer: httpx.Response, *tenants: str) -> tuple[Any, ...]:
    """All that an answer tells, but for the name that the request had."""
    text = answer.text
    for tenant in tenants:
        text = text.replace(tenant, "…")
    headers = sorted((n, v) for n, v in answer.headers.items() if n not in ("content-length", "date"))
    return answer.status_code, text, headers


def test_a_foreign_tenant_is_one_that_does_not_exist(neighbours: Neighbours) -> None:
    cells = 0
    for page in (p for p in neighbours.walked if "tenant" in p.names):
        for person in neighbours.people.values():
            answers = [
                _told(_ask(person, page, {**neighbours.theirs, "tenant": tenant}), tenant)
                for tenant in (neighbours.rival, NOBODY)
            ]
            assert answers[0] == answers[1], page
            assert answers[0][0] == 404, (page, answers[0])
            cells += 1
    assert cells >= 5 * len(neighbours.people)


def test_no_page_names_a_foreign_tenant(neighbours: Neighbours) -> None:
    """Own pages with foreign values in them: nothing comes back that was not sent. What was sent is left out
    of what is looked at."""
    looked_at = 0
    for page in neighbours.walked:
        if page.path.endswith("/sign-out"):
            continue
        for role, person in neighbours.people.items():
            where = (page.method, page.path, role)
            own = _ask(person, page, neighbours.ours)
            assert own.status_code < 500, (where, own.text)
            assert neighbours.rival not in own.text, where
            assert neighbours.rival not in str(own.headers), where
            foreign = _ask(person, page, {**neighbours.theirs, "tenant": OWN})
            stranger = _ask(person, page, {**_nobodys(neighbours.theirs), "tenant": OWN})
            values = {**neighbours.theirs, "tenant": OWN}
            sent = [values[name] for name in page.names]
            assert foreign.status_code == stranger.status_code, where
            assert neighbours.rival not in _less(foreign.text, sent), where
            looked_at += 3
    assert looked_at >= 3 * len(neighbours.walked)


def _nobodys(values: dict[str, str]) -> dict[str, str]:
    """Values of the same kind that nobody has."""
    return {
        name: str(uuid.uuid4()) if name.endswith("_id") and name != "entity_id" else value
        for name, value in values.items()
    }


def _less(text: str, sent: list[str]) -> str:
    for value in sent:
        text = text.replace(value, "")
    return text


def test_no_answer_to_a_question_names_a_foreign_tenant(neighbours: Neighbours) -> None:
    """Searching the own tenant for what the other one has: only the question's own words come back."""
    rival = neighbours.rival
    compliance = neighbours.people[Role.COMPLIANCE]
    for page in (p for p in neighbours.walked if p.method == "GET" and p.names == ["tenant"]):
        there = compliance.get(page.address(neighbours.ours))
        names = {n for form in forms_of(there.text) if form.method == "get" for n in form.fields}
        for name in sorted(names | set(page.params)):
            value = neighbours.theirs.get(name, f"{rival}-entity")
            answer = compliance.get(page.address(neighbours.ours), **{name: value})
            assert answer.status_code < 500, (page, name)
            assert rival not in _less(answer.text, [value]), (page, name)


def test_the_first_page_lists_own_tenants_alone(neighbours: Neighbours) -> None:
    assert neighbours.rival in neighbours.deployment.page("/console/")
    for person in neighbours.people.values():
        answer = person.get("/console/")
        assert neighbours.rival not in answer.text
        assert OWN in answer.text + answer.headers.get("location", "")


def test_errors_name_nobody_else(neighbours: Neighbours) -> None:
    for person in [*neighbours.people.values(), None]:
        client = neighbours.served.client() if person is None else person.client
        for address in (
            "/console/nothing",
            f"/console/t/{OWN}/nothing",
            f"/console/t/{OWN}/event/999999",
            f"/console/t/{OWN}/event/x",
            f"/console/t/{OWN}/search?seq_from=x&limit=-1&from=x",
            f"/console/t/{OWN}/entity?as_of=x",
            f"/console/t/{OWN}/../{NOBODY}",
            "/console/runs/x",
            f"/console/runs/{uuid.uuid4()}",
        ):
            answer = client.get(address)
            assert answer.status_code < 500, address
            assert neighbours.rival not in answer.text, address
