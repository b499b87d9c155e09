"""The routes of governance: tenants, policies, holds, certificates, explanations. What they answer has the
shape that the OpenAPI document gives, whoever asks is recorded, and no body makes the store fail."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import pytest

from eventstore.api.certificates import CertificatePage, CertificateView
from eventstore.api.explain import ExplanationView
from eventstore.api.holds import HoldList, HoldView, ScopeView
from eventstore.api.policies import ChangedPolicy, ChangeView, PolicyVersions, PolicyView
from eventstore.api.tenants import TenantPage, TenantView
from eventstore.app import Store, open_store
from eventstore.clock import FixedClock
from eventstore.governance.certificates import trusted_keys
from eventstore.governance.record import parse_entry
from eventstore.governance.signing import verify
from eventstore.model.access import Role
from eventstore.model.run import RunKind
from eventstore.retention.compactor import RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.integration.callers import Callers, calling
from tests.unit.helpers import DAY_US, HOUR_US, START_US, append, execute, new_event, run_retention

Shape = TypeVar("Shape")


class Face:
    """The API as its callers see it, an administrator of the deployment first of all."""

    def __init__(self, callers: Callers, clock: FixedClock, archive: Path) -> None:
        self.callers, self.clock, self.archive = callers, clock, archive
        self.store: Store = callers.store
        self.subject, text = callers.key(Role.ADMINISTRATOR, None)
        self.client = callers.client(text)
        self._numbers = itertools.count(1)

    def tenant(self, **policy: Any) -> str:
        """A new tenant with a policy, in days."""
        name = f"t{next(self._numbers)}"
        asked = {"tenant": name, "policy": {"window": "day", "hot_for": "0s", **policy}}
        ok(self.client.post("/v1/tenants", json=asked), TenantView, 201)
        return name

    def fill(self, tenant: str, days: int = 3) -> None:
        """Four events on each of some days, all but the last one archived."""
        for day in range(days):
            self.clock.move_to(START_US + day * DAY_US + HOUR_US)
            append(self.store, tenant, *(new_event(str(n)) for n in range(4)))
        run_retention(self.store, START_US + (days - 1) * DAY_US, tenant)

    def entries(self, tenant: str) -> list[tuple[str, str]]:
        """Kind and actor of what is recorded of a tenant in the archive's copy of the record."""
        found = [
            parse_entry(path.read_bytes()) for path in sorted(self.archive.rglob("governance/**/*.json"))
        ]
        return [(entry.kind, entry.actor) for entry in found if entry.tenant_id == tenant]


def ok(response: httpx.Response, shape: type[Shape], status: int = 200) -> Shape:
    """The answer; exactly of the shape that the document gives."""
    assert response.status_code == status, response.text
    return msgspec.json.decode(response.content, type=shape)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["type"]) == (status, f"urn:eventstore:{code}"), body
    return body


@pytest.fixture(scope="module")
def face(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Face]:
    folder = tmp_path_factory.mktemp("governance")
    name = f"governance_{folder.name}"
    url = create_database(server_url, name, template=template_database)
    clock = FixedClock(START_US)
    archive = folder / "archive"
    settings = Settings(
        database_url=url,
        home=folder,
        archive_url=archive.as_uri(),
        targets={"deep": (folder / "deep").as_uri()},
    )
    with open_store(settings, clock=clock) as store, calling(store) as callers:
        yield Face(callers, clock, archive)
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


# --- tenants ------------------------------------------------------------------------------------------


def test_tenants_are_made_listed_and_shown(face: Face) -> None:
    made = ok(
        face.client.post("/v1/tenants", json={"tenant": "zeta", "policy": {"hot_for": "30d"}}),
        TenantView,
        201,
    )
    assert (made.tenant, made.state.value, made.policy.hot_for) == ("zeta", "active", "30d")
    assert ok(face.client.get("/v1/tenants/zeta"), TenantView) == made
    problem(face.client.post("/v1/tenants", json={"tenant": "zeta"}), 409, "tenant-exists")
    names, cursor = [], None
    face.tenant()
    while True:
        asked = {"limit": 1} | ({} if cursor is None else {"cursor": cursor})
        page = ok(face.client.get("/v1/tenants", params=asked), TenantPage)
        names += [view.tenant for view in page.tenants]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert names == sorted(set(names))
    assert {"zeta"} < set(names)
    assert face.entries("zeta") == [("tenant_created", face.subject), ("policy", face.subject)]


def test_a_tenants_own_callers_see_it_alone(face: Face) -> None:
    name, other = face.tenant(), face.tenant()
    own = face.callers.as_role(Role.ADMINISTRATOR, name)
    assert ok(own.get(f"/v1/tenants/{name}"), TenantView).tenant == name
    assert ok(face.callers.as_role(Role.READER, name).get(f"/v1/tenants/{name}"), TenantView).tenant == name
    problem(own.get(f"/v1/tenants/{other}"), 404, "tenant-not-found")
    problem(own.get("/v1/tenants/nobody"), 404, "tenant-not-found")
    problem(own.get("/v1/tenants"), 403, "forbidden")
    problem(own.post("/v1/tenants", json={"tenant": "more"}), 403, "forbidden")
    problem(own.get("/v1/policy"), 403, "forbidden")


# --- policies -----------------------------------------------------------------------------------------


def test_a_change_that_destroys_sooner_is_explained_confirmed_and_withdrawn(face: Face) -> None:
    name = face.tenant()
    face.fill(name)
    path = f"/v1/tenants/{name}/policy"
    client = face.callers.as_role(Role.OPERATOR, name)
    before = ok(client.get(path), PolicyView)
    wanted = {"tiers": [{"target": "archive", "for": "1d"}], "then": "expire"}
    explained = ok(client.post(f"{path}/preview", json={"policy": wanted}), ChangeView)
    assert explained.destroys_sooner
    assert explained.events_destroyed_sooner == 12
    assert explained.tenants[0].effects[0].effect == "destroyed sooner"
    assert explained.differences
    assert ok(client.get(path), PolicyView) == before

    change = {"policy": wanted, "reason": "a contract"}
    for confirm in ({}, {"confirm": 11}):
        refused = problem(client.put(path, json={**change, **confirm}), 409, "confirmation-needed")
        assert refused["events"] == 12
    assert ok(client.get(f"{path}/versions"), PolicyVersions).versions[-1].reason == "made with the tenant"
    changed = ok(client.put(path, json={**change, "confirm": 12}), ChangedPolicy)
    assert changed.version is not None
    assert changed.version.confirmed_events == 12
    assert changed.version.actor.startswith("key:operator-")
    assert changed.version.effective > changed.version.created
    shown = ok(client.get(path), PolicyView)
    assert shown.policy == before.policy
    assert [coming.policy_no for coming in shown.coming] == [changed.version.policy_no]
    assert face.entries(name)[-1] == ("policy", changed.version.actor)

    withdrawn = ok(client.put(path, json={"policy": {"then": "keep"}, "reason": "no"}), ChangedPolicy)
    assert withdrawn.version is not None
    assert ok(client.get(path), PolicyView).coming == []
    assert [v.stands for v in ok(client.get(f"{path}/versions"), PolicyVersions).versions] == [
        True,
        False,
        True,
    ]
    again = ok(client.put(path, json={"policy": {"then": "keep"}, "reason": "no"}), ChangedPolicy)
    assert again.version is None


def test_compliance_sees_policies_and_changes_none(face: Face) -> None:
    name = face.tenant(tiers=[{"target": "archive", "for": "1d"}], then="expire")
    client = face.callers.as_role(Role.COMPLIANCE, name)
    path = f"/v1/tenants/{name}/policy"
    seen = ok(client.get(path), PolicyView)
    assert seen == ok(face.callers.as_role(Role.OPERATOR, name).get(path), PolicyView)
    assert len(ok(client.get(f"{path}/versions"), PolicyVersions).versions) == 1
    problem(client.put(path, json={"policy": None, "reason": "x"}), 403, "forbidden")
    problem(client.post(f"{path}/preview", json={"policy": None}), 403, "forbidden")
    of_deployment = face.callers.as_role(Role.COMPLIANCE, None)
    ok(of_deployment.get("/v1/policy"), PolicyView)
    problem(of_deployment.put("/v1/policy", json={"policy": {}, "reason": "x"}), 403, "forbidden")
    problem(client.get("/v1/policy"), 403, "forbidden")
    for role in (Role.WRITER, Role.READER):
        problem(face.callers.as_role(role, name).get(path), 403, "forbidden")


def test_a_policy_that_makes_no_sense_is_refused_and_nothing_is_changed(face: Face) -> None:
    name = face.tenant()
    path = f"/v1/tenants/{name}/policy"
    before = ok(face.client.get(f"{path}/versions"), PolicyVersions)
    for wrong in (
        {"tiers": [{"target": "nowhere"}]},
        {"tiers": []},
        {"tiers": 5},
        {"tiers": [5]},
        {"tiers": [{"target": "archive", "for": "soon"}]},
        {"tiers": [{"target": "archive"}, {"target": "deep"}]},
        {"then": "expire"},
        {"then": "burn"},
        {"window": "century"},
        {"hot_for": 5},
        {"hot_for": "9" * 64},
        {"hot_for": "9999y"},
        {"quality": {"volume": "shout"}},
        {"quality": []},
        {"hotfor": "1d"},
        5,
        [],
    ):
        for response in (
            face.client.post(f"{path}/preview", json={"policy": wrong}),
            face.client.put(path, json={"policy": wrong, "reason": "r"}),
        ):
            problem(response, 400, "invalid-request")
    for body in ({"policy": {}}, {"policy": {"hot_for": "1d"}, "reason": " "}, {"reason": "r"}):
        problem(face.client.put(path, json=body), 400, "invalid-request")
    assert ok(face.client.get(f"{path}/versions"), PolicyVersions) == before


def test_the_default_policy_is_changed_for_all_that_follow_it(face: Face) -> None:
    follower = ok(face.client.post("/v1/tenants", json={"tenant": "follower"}), TenantView, 201)
    change = {"policy": {"tiers": [{"target": "archive", "for": "2y"}, {"target": "deep"}]}, "reason": "all"}
    explained = ok(face.client.post("/v1/policy/preview", json={"policy": change["policy"]}), ChangeView)
    assert explained.tenant is None
    assert "follower" in {t.tenant for t in explained.tenants}
    changed = ok(face.client.put("/v1/policy", json=change), ChangedPolicy)
    assert changed.version is not None
    after = ok(face.client.get("/v1/tenants/follower"), TenantView)
    assert after.policy_no == changed.version.policy_no
    assert after.policy != follower.policy
    assert ok(face.client.get("/v1/policy"), PolicyView).policy == after.policy
    assert ok(face.client.get("/v1/policy/versions"), PolicyVersions).versions[-1] == changed.version
    ok(face.client.put("/v1/policy", json={"policy": None, "reason": "back"}), ChangedPolicy)
    assert ok(face.client.get("/v1/tenants/follower"), TenantView).policy == follower.policy


# --- holds --------------------------------------------------------------------------------------------


def test_a_hold_is_previewed_placed_shown_and_released(face: Face) -> None:
    name = face.tenant()
    face.fill(name)
    path = f"/v1/tenants/{name}/holds"
    client = face.callers.as_role(Role.COMPLIANCE, name)
    scope = {"entities": [{"entity_type": "order", "entity_id": "1"}], "to": "2024-03-03"}
    seen = ok(client.post(f"{path}/preview", json=scope), ScopeView)
    assert {(c.place, c.windows, c.events) for c in seen.may_cover} == {("archive", 2, 8)}
    assert ok(client.get(path), HoldList).holds == []

    case = "Smith v. Acme / 7"
    asked = {"name": case, "reason": "litigation", "scope": scope}
    placed = ok(client.post(path, json=asked), HoldView, 201)
    assert placed.may_cover == seen.may_cover
    assert placed.placed_by.startswith("key:compliance-")
    problem(client.post(path, json=asked), 409, "conflict")
    shown = ok(client.get(f"{path}/{case}"), HoldView)
    assert shown == placed
    assert [hold.name for hold in ok(client.get(path), HoldList).holds] == [case]

    problem(client.post(f"{path}/{case}/release", json={}), 400, "invalid-request")
    released = ok(client.post(f"{path}/{case}/release", json={"reason": "settled"}), HoldView)
    assert (released.released_by, released.release_reason) == (placed.placed_by, "settled")
    problem(client.post(f"{path}/{case}/release", json={"reason": "again"}), 409, "conflict")
    assert ok(client.get(path), HoldList).holds == []
    assert len(ok(client.get(path, params={"released": True}), HoldList).holds) == 1
    assert face.entries(name)[-2:] == [
        ("hold_placed", placed.placed_by),
        ("hold_released", placed.placed_by),
    ]


def test_holds_that_do_not_exist_or_make_no_sense(face: Face) -> None:
    name = face.tenant()
    path = f"/v1/tenants/{name}/holds"
    problem(face.client.get(f"{path}/none"), 404, "hold-not-found")
    problem(face.client.post(f"{path}/none/release", json={"reason": "r"}), 404, "hold-not-found")
    for nul in (
        face.client.get(f"{path}/a%00b"),
        face.client.post(f"{path}/a%00b/release", json={"reason": "r"}),
        face.client.post(path, json={"name": "a\0", "reason": "r", "scope": {}}),
        face.client.post(path, json={"name": "a", "reason": "r\0", "scope": {}}),
    ):
        problem(nul, 400, "invalid-request")
    entity = {"entity_type": "order", "entity_id": "1"}
    for scope in (
        {"from": "yesterday"},
        {"from": "2025-01-02", "to": "2025-01-01"},
        {"entities": [5]},
        {"entities": [{"entity_id": "1"}]},
        {"entities": [{**entity, "entity_id": "a\0"}]},
        {"entities": [entity] * 10_001},
        {"until": "2025-01-01"},
        [],
    ):
        problem(face.client.post(f"{path}/preview", json=scope), 400, "invalid-request")
        problem(
            face.client.post(path, json={"name": "n", "reason": "r", "scope": scope}), 400, "invalid-request"
        )
    raw = {"content-type": "application/json"}
    for body in (b"{", b'{"name":"\xff"}', b'"\\ud800"', b"[" * 30_000, b'{"entities":"x"}'):
        problem(face.client.post(f"{path}/preview", content=body, headers=raw), 400, "invalid-request")
    problem(face.client.post(path, content=b"{}", headers={"content-type": "text/xml"}), 415, "media-type")
    assert ok(face.client.get(path, params={"released": True}), HoldList).holds == []
    for role in (Role.WRITER, Role.READER, Role.OPERATOR):
        problem(face.callers.as_role(role, name).get(path), 403, "forbidden")


# --- certificates and explanations --------------------------------------------------------------------


def test_what_was_destroyed_has_certificates_and_an_explanation(face: Face) -> None:
    name = face.tenant(tiers=[{"target": "archive", "for": "1d"}], then="expire")
    face.fill(name, days=3)
    compactor = face.store.compactor
    compactor.run(compactor.tenants(name), START_US + 3 * DAY_US, order=RunOrder(RunKind.EXPIRY, "test"))
    path = f"/v1/tenants/{name}"
    client = face.callers.as_role(Role.READER, name)
    pages, cursor = [], None
    while True:
        asked = {"limit": 1} | ({} if cursor is None else {"cursor": cursor})
        page = ok(client.get(f"{path}/certificates", params=asked), CertificatePage)
        pages += page.certificates
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [view.certificate["number"] for view in pages] == list(range(1, len(pages) + 1))
    assert len(pages) >= 1
    one = ok(client.get(f"{path}/certificates/1"), CertificateView)
    assert one == pages[0]
    assert (one.certificate["first_seq"], one.certificate["tenant_id"]) == (1, name)
    envelope = client.get(f"{path}/certificates/1", params={"envelope": True})
    assert envelope.headers["content-type"] == "application/vnd.dsse.envelope.v1+json"
    with face.store.database.transaction() as conn:
        keys = trusted_keys(conn)
    assert json.loads(verify(envelope.content, keys)) == one.certificate
    problem(client.get(f"{path}/certificates/99"), 404, "certificate-not-found")
    problem(client.get(f"{path}/certificates/0"), 400, "invalid-request")

    problem(client.get(f"{path}/explain"), 403, "forbidden")
    whole_of_compliance = ok(
        face.callers.as_role(Role.COMPLIANCE, name).get(f"{path}/explain"), ExplanationView
    )
    operator = face.callers.as_role(Role.OPERATOR, name)
    whole = ok(operator.get(f"{path}/explain"), ExplanationView)
    assert whole_of_compliance.subject == whole.subject
    gone = ok(operator.get(f"{path}/explain", params={"seq": 1}), ExplanationView)
    assert "destroyed" in gone.place
    assert "certificate 1" in gone.in_words
    by_time = ok(operator.get(f"{path}/explain", params={"window": "2024-03-03T05:00:00Z"}), ExplanationView)
    last = face.store.reader.event(name, seq=12).events.column("event_id")[0].as_py()
    by_id = ok(operator.get(f"{path}/explain", params={"event_id": last.hex()}), ExplanationView)
    assert by_time.place == by_id.place
    assert by_time.place != gone.place
    assert whole.subject.startswith(f"{name}") or name in whole.subject
    problem(operator.get(f"{path}/explain", params={"seq": 99}), 404, "event-not-found")
    for wrong in (
        {"seq": 1, "window": "2024-03-03"},
        {"window": "2020-01-01"},
        {"event_id": "x"},
        {"seq": 0},
    ):
        problem(operator.get(f"{path}/explain", params=wrong), 400, "invalid-request")
