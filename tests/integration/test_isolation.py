"""No caller learns anything of another's tenant: every route of the OpenAPI document × every role × the own,
a foreign and a tenant that does not exist; and attempts made up by hypothesis (ISOLATION_ATTEMPTS of them,
600 unless set; the promise is about 10,000).

A route whose parameters this module cannot fill makes the matrix fail: it is taught here, in `PATH_VALUES`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore.api.server import create_app
from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.governance.exports import ExportLimits, Wish, ask_export
from eventstore.governance.holds import place_hold
from eventstore.governance.keys import create_key
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.model.access import PERMISSIONS, Permission, Principal, Role
from eventstore.model.export import FileFormat
from eventstore.model.hold import HoldScope
from eventstore.model.query import EventFilter
from tests.conftest import TODAY_US
from tests.unit.helpers import DAY_US, START_US, append, make_tenant, new_event, run_retention

OWN, FOREIGN, NOBODY = "acme", "rival", "ghost"
# In every value of the foreign tenant, and in no request unless it asks for just that value.
MARK = "zq7secret"
ATTEMPTS = int(os.environ.get("ISOLATION_ATTEMPTS", "600"))
METHODS = ("get", "put", "post", "patch", "delete")


@dataclass
class World:
    """Two tenants that have everything, keys of every role, and the application that serves them."""

    app: Any
    portal: BlockingPortal
    keys: dict[str | None, dict[Role, str]]
    known: dict[str, dict[str, str]] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        key: str | None,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        given_headers = {"accept": "application/json, application/x-ndjson", **(headers or {})}
        if key is not None:
            given_headers["authorization"] = f"Bearer {key}"

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=("203.0.113.9", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
                return await client.request(method, path, headers=given_headers, json=body)

        return self.portal.call(ask)


def fill(store: Store, clock: FixedClock, tenant: str, mark: str) -> dict[str, str]:
    """A tenant with events in both tiers, a hold and a key of its own; what there is, by parameter."""
    make_tenant(store, tenant)
    for day in range(3):
        clock.move_to(START_US + day * DAY_US)
        event = new_event(
            f"{mark}-entity", actor=f"{mark}-actor", new_value=f"{mark}-value", source=f"{mark}"
        )
        append(store, tenant, event, event)
    run_retention(store, START_US + 2 * DAY_US, tenant)
    make_checkpoint(store.database, store.tiers, store.key, tenant)
    place_hold(store.database, tenant, f"{mark}-case", f"{mark} reason", f"{mark} by", HoldScope(), START_US)
    key, _ = create_key(
        store.database,
        role=Role.READER,
        tenant_id=tenant,
        by=f"{mark} by",
        now_us=TODAY_US,
        label=f"{mark} key",
    )
    export = ask_export(
        store.database,
        tenant,
        Wish(EventFilter(actor=f"{mark}-actor"), FileFormat.CSV, reason=f"{mark} reason"),
        by=Principal(f"{mark}-person", Role.COMPLIANCE, tenant, person=True),
        limits=ExportLimits(9, 9),
    )
    with store.database.transaction() as conn:
        (event_id,) = conn.execute(
            sa.text("SELECT event_id FROM events WHERE tenant_id = :t ORDER BY seq DESC LIMIT 1"),
            {"t": tenant},
        ).one()
        runs = conn.execute(sa.text("SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1")).scalar()
    return {
        "tenant": tenant,
        "seq": "1",
        "seq_or_event_id": str(event_id),
        "event_id": str(event_id),
        "entity_id": f"{mark}-entity",
        "key_id": key.key_id,
        "export_id": str(export.export_id),
        "run_id": str(runs),
        "name": f"{mark}-case",
        "hold": f"{mark}-case",
        "number": "1",
        "version": "1",
        "policy_no": "1",
        "subscription": f"{mark}-subscription",
        "member": f"{mark}-member",
    }


@pytest.fixture
def world(store: Store, clock: FixedClock) -> Iterator[World]:
    keys: dict[str | None, dict[Role, str]] = {}
    known = {OWN: fill(store, clock, OWN, "own"), FOREIGN: fill(store, clock, FOREIGN, MARK)}
    clock.move_to(TODAY_US)
    for tenant in (None, OWN):
        keys[tenant] = {
            role: create_key(
                store.database, role=role, tenant_id=tenant, by="ann", now_us=store.database.now_us()
            )[1]
            for role in Role
        }
    # Exports stay as they were asked for: what is made meanwhile would give another answer at another moment.
    quiet = replace(store, settings=store.settings.model_copy(update={"export_workers": 0}))
    app = create_app(quiet)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        yield World(app, portal, keys, known)


@dataclass(frozen=True)
class Operation:
    """A route of the document, and the permission that its code asks for (None: open to anybody)."""

    method: str
    path: str
    permission: Permission | None
    body: Any

    @property
    def of_tenant(self) -> bool:
        return "{tenant}" in self.path

    def address(self, values: dict[str, str]) -> str:
        names = re.findall(r"{(\w+)}", self.path)
        unknown = [name for name in names if name not in values]
        assert not unknown, f"teach `fill` what {unknown} of {self.path} may be"
        return re.sub(r"{(\w+)}", lambda m: quote(values[m[1]], safe=""), self.path)


def operations(app: Any) -> list[Operation]:
    """What the document says there is; the permission comes from the route's own dependencies."""
    permissions = {
        (method, re.sub(r"{(\w+):\w+}", r"{\1}", str(route.path_format))): permission
        for route in iter_route_contexts(app.routes)
        if (dependant := getattr(route, "dependant", None)) is not None
        for permission in _permissions(dependant)
        for method in route.methods or ()
    }
    found = []
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                content = operation.get("requestBody", {}).get("content", {})
                body = content.get("application/json", {}).get("example")
                key = (method.upper(), path)
                found.append(Operation(method.upper(), path, permissions.get(key), body))
    return found


def _permissions(dependant: Dependant) -> list[Permission]:
    own = getattr(dependant.call, "permission", None)
    return [*([] if own is None else [own]), *(p for d in dependant.dependencies for p in _permissions(d))]


OPEN = {"/healthz", "/readyz"}


def told(response: httpx.Response, tenant: str) -> tuple[Any, ...]:
    """All that an answer tells, but for the tenant's name that the request had named."""
    headers = sorted((n, v) for n, v in response.headers.items() if n != "content-length")
    return response.status_code, response.text.replace(tenant, "…"), headers


def test_every_route_of_the_document_asks_for_a_permission(world: World) -> None:
    missing = [f"{o.method} {o.path}" for o in operations(world.app) if o.permission is None]
    assert sorted(missing) == sorted(f"GET {path}" for path in OPEN)


def test_the_matrix(world: World) -> None:
    """Own: by the role's permission alone. Foreign: as one that does not exist, whatever the role."""
    looked_up: list[str] = []
    execute = psycopg.Cursor.execute

    def watched(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
        looked_up.append(f"{query} {params}")
        return execute(cursor, query, params, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", watched)
        cells = 0
        for operation in operations(world.app):
            if operation.permission is None:
                continue
            assert world.ask(operation.method, operation.address(world.known[OWN]), None).status_code == 401
            for role in Role:
                for of, keys in world.keys.items():
                    cells += 1
                    own = world.ask(
                        operation.method, operation.address(world.known[OWN]), keys[role], body=operation.body
                    )
                    allowed = operation.permission in PERMISSIONS[role] and (
                        of is None or operation.of_tenant
                    )
                    where = (
                        f"{operation.method} {operation.path} as {role} of {of}: {own.status_code} {own.text}"
                    )
                    assert own.status_code != 401, where
                    assert own.status_code < 500, where
                    assert (own.status_code == 403) == (not allowed), where
                    assert MARK not in own.text or of is None, where
                    if operation.of_tenant and of is not None:
                        answers = []
                        looked_up.clear()
                        for tenant in (FOREIGN, NOBODY):
                            values = {**world.known[FOREIGN], "tenant": tenant}
                            answers.append(
                                told(
                                    world.ask(
                                        operation.method,
                                        operation.address(values),
                                        keys[role],
                                        body=operation.body,
                                    ),
                                    tenant,
                                )
                            )
                        assert answers[0] == answers[1], where
                        assert answers[0][0] == 404, where
                        assert MARK not in answers[0][1], where
                        # Nothing is looked up, so there is no difference in time either.
                        named = [q for q in looked_up if FOREIGN in q or NOBODY in q]
                        assert not named, (where, named)
        assert cells >= 20 * 2 * len(Role)
        world.ask("GET", f"/v1/tenants/{OWN}/events", world.keys[OWN][Role.READER])
        assert any(OWN in query for query in looked_up), "nothing was watched"


def test_nobody_without_credentials_learns_which_routes_and_tenants_there_are(world: World) -> None:
    bodies = {
        world.ask("GET", path, key).text
        for path in (
            f"/v1/tenants/{OWN}/events",
            f"/v1/tenants/{NOBODY}/events",
            "/v1/keys",
            "/v1/nothing",
        )
        for key in ("es_wrong", "es_" + "0" * 60)
    }
    assert len(bodies) == 1


def spellings(tenant: str) -> st.SearchStrategy[str]:
    """Ways to write a tenant into a path."""
    return st.sampled_from(
        [
            tenant,
            tenant.upper(),
            quote(tenant[0]).replace(tenant[0], f"%{ord(tenant[0]):02x}") + tenant[1:],
            f"{OWN}/../{tenant}",
            f"{OWN}%2f..%2f{tenant}",
            f"{OWN}%2F%2e%2e%2F{tenant}",
            f"{tenant}%00",
            f"{tenant}%20",
            f" {tenant}",
            f"{OWN}%0a{tenant}",
            f"{OWN}'%20OR%20'1'='1",
            f"{OWN}%3b{tenant}",
            f"{OWN},{tenant}",
            f"./{tenant}",
            f"/{tenant}",
            f"{tenant}?tenant={OWN}",
            f"{tenant}#{OWN}",
        ]
    )


def test_made_up_attempts(world: World) -> None:
    """Own keys with foreign ids, names, cursors, seqs and paths: no answer has anything of the foreign tenant
    that the request had not, and a foreign id under the own tenant is answered as one that nobody has."""
    wanted = [o for o in operations(world.app) if o.permission is not None]
    theirs, ours = world.known[FOREIGN], world.known[OWN]
    cursors = ["1", "2", "3", "6", "9223372036854775807", "0", "-1", "MQ", "eyJhIjoxfQ", theirs["event_id"]]
    strangers = {
        "event_id": str(uuid.UUID(int=uuid.UUID(theirs["event_id"]).int ^ 1)),
        "seq_or_event_id": str(uuid.UUID(int=uuid.UUID(theirs["event_id"]).int ^ 1)),
        "key_id": theirs["key_id"][::-1],
        "export_id": str(uuid.UUID(int=uuid.UUID(theirs["export_id"]).int ^ 1)),
        "entity_id": "nobody-entity",
        "name": "nobody-case",
        "hold": "nobody-case",
        "subscription": "nobody-subscription",
        "member": "nobody-member",
    }
    tried = 0

    @settings(
        max_examples=ATTEMPTS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        nonlocal tried
        tried += 1
        operation = data.draw(st.sampled_from(wanted))
        role = data.draw(st.sampled_from(list(Role)))
        key = world.keys[OWN][role]
        names = set(re.findall(r"{(\w+)}", operation.path))
        values = {
            n: quote((theirs if data.draw(st.booleans()) else ours).get(n, "x"), safe="") for n in names
        }
        if "tenant" in names:
            values["tenant"] = data.draw(st.one_of(st.just(OWN), spellings(FOREIGN)))
        path = re.sub(r"{(\w+)}", lambda m: values[m[1]], operation.path)
        query = data.draw(
            st.dictionaries(
                st.sampled_from(
                    [
                        "tenant",
                        "cursor",
                        "entity_id",
                        "actor",
                        "seq_from",
                        "since",
                        "after",
                        "limit",
                        "source",
                    ]
                ),
                st.sampled_from([FOREIGN, *cursors, theirs["entity_id"], f"{MARK}-actor", MARK]),
                max_size=2,
            )
        )
        if query:
            path += ("&" if "?" in path else "?") + "&".join(
                f"{n}={quote(v, safe='')}" for n, v in query.items()
            )
        body = operation.body
        if body is not None and data.draw(st.booleans()):
            body = {**body, "tenant": FOREIGN} if isinstance(body, dict) else body
        headers = data.draw(
            st.sampled_from(
                [
                    {},
                    {"x-tenant": FOREIGN},
                    {"x-original-url": f"/v1/tenants/{FOREIGN}/events"},
                    {"x-forwarded-for": "127.0.0.1"},
                    {"last-event-id": "1"},
                    {"if-none-match": "*"},
                ]
            )
        )
        response = world.ask(operation.method, path, key, body=body, headers=headers)
        assert response.status_code < 500, (operation, path, response.text)
        asked = path + json.dumps(body) + json.dumps(headers)
        leaked = [w for w in re.findall(rf"{MARK}[-\w ]*", response.text) if w.strip() not in asked]
        assert not leaked, (operation.method, path, role, response.status_code, response.text)
        # A foreign id under the own tenant is answered as one that nobody has.
        if "tenant" in names and values["tenant"] == OWN and not query and body is operation.body:
            own_path = {n: quote(theirs[n], safe="") for n in names - {"tenant"} if n in strangers}
            if own_path:
                foreign = {**ours, "tenant": OWN, **{n: theirs[n] for n in own_path}}
                unknown = {**ours, "tenant": OWN, **{n: strangers[n] for n in own_path}}
                one = world.ask(operation.method, operation.address(foreign), key, body=body)
                two = world.ask(operation.method, operation.address(unknown), key, body=body)
                assert one.status_code == two.status_code, (operation, one.text, two.text)

    attempt()
    assert tried >= ATTEMPTS
