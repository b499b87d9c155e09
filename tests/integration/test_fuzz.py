"""Requests made up from the OpenAPI document: none is answered with a 5xx, nor with anything that the
document does not say (FUZZ_EXAMPLES for each route, 4 unless set). And hostile ones that no generator makes.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from eventstore.governance.keys import create_key
from eventstore.governance.subscriptions import create_subscription
from eventstore.model.access import Role
from eventstore.model.query import EventFilter
from eventstore.model.subscription import Receipt, Subscription
from tests.integration.apiserver import served_api
from tests.unit.helpers import DAY_US, START_US, append, make_tenant, new_event, run_retention

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EVENT = {"entity_type": "order", "entity_id": "1", "action": "made", "actor": "ann", "source": "web"}


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A store over real HTTP, with a tenant in both tiers and its subscription: its address, and an
    administrator's key."""
    folder = tmp_path_factory.mktemp("fuzz")
    with served_api(server_url, template_database, folder) as api:
        store = api.store
        make_tenant(store)
        subscription = Subscription("acme", "sub", EventFilter(), slots=2, lease_s=30)
        create_subscription(store.database, subscription, after=0, by="ann")
        for day in range(3):
            api.clock.move_to(START_US + day * DAY_US)
            append(store, "acme", new_event(new_value={"a": 1}), new_event("2"))
        run_retention(store, START_US + 2 * DAY_US)
        _, key = create_key(
            store.database, role=Role.ADMINISTRATOR, tenant_id=None, by="ann", now_us=store.database.now_us()
        )
        yield f"http://127.0.0.1:{api.address[1]}", key


def test_the_document_says_all(served: tuple[str, str]) -> None:
    base, key = served
    authorization = {"authorization": f"Bearer {key}"}
    document = requests.get(f"{base}/openapi.json", timeout=30).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=base)
    asked = requests.post(f"{base}/v1/tenants/acme/exports", headers=authorization, timeout=30)
    export_id = asked.json()["export_id"]
    tried = 0
    met: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attempt(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            if "tenant" in case.path_parameters and tried % 4:
                case.path_parameters["tenant"] = "acme"
            headers = dict(authorization)
            if "subscription" in case.path_parameters and case.method != "DELETE":
                aim(case, tried)
            if "export_id" in case.path_parameters and case.method != "DELETE" and tried % 3:
                case.path_parameters = {"tenant": "acme", "export_id": export_id}
            if case.path.endswith("/feed"):
                # Else the stream goes on for ever, as it has to.
                headers["accept"] = "application/x-ndjson"
                case.query = {**(case.query or {}), "wait": 0}
            response = case.call(headers=headers, timeout=60)
            if response.status_code < 300 and "/{subscription}/" in case.path:
                met.add(case.path.rpartition("/")[2])
            case.validate_response(response, checks=CHECKS, headers=headers)

        attempt()
    assert tried >= 25
    assert {"poll", "heartbeat", "leave", "seek"} <= met, "only what does not exist was asked for"


def aim(case: schemathesis.Case, tried: int) -> None:
    """Let a request about a subscription mostly find one, its members, and what they were given."""
    if tried % 4:
        case.path_parameters = {"tenant": "acme", "subscription": "sub"}
    if isinstance(case.body, dict):
        if case.path.endswith("/poll") and "wait" in case.body:
            case.body["wait"] = 0
        if "member" in case.body and tried % 3:
            case.body["member"] = "one"
        if "after" in case.body and tried % 3:
            case.body["after"] = tried % 5
        if "receipt" in case.body and tried % 3:
            case.body["receipt"] = Receipt({tried % 2: (1, 1)}).encode()


HOSTILE = {
    "nul in a value": json.dumps([{**EVENT, "entity_id": "a\0b"}]).encode(),
    "nul byte": b'[{"entity_type":"\x00"}]',
    "deep arrays": b"[" * 200_000,
    "deep value": json.dumps([EVENT])[:-2].encode()
    + b',"new_value":'
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}]",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge number": json.dumps([{**EVENT, "expected_version": 10**400}]).encode(),
    "huge exponent": json.dumps([EVENT])[:-2].encode() + b',"new_value":1e999999999}]',
    "long number": json.dumps([EVENT])[:-2].encode() + b',"new_value":' + b"9" * 100_000 + b"}]",
    "lone surrogate": json.dumps([{**EVENT, "entity_id": "\ud800"}]).encode(),
    "lone surrogate in a value": json.dumps([{**EVENT, "new_value": {"\udfff": "\ud800"}}]).encode(),
    "bad utf-8": b'[{"entity_type":"\xff\xfe"}]',
    "a byte order mark": b"\xef\xbb\xbf[]",
    "nothing": b"",
    "not json": b"<xml/>",
    "half of it": json.dumps([EVENT]).encode()[:-4],
}
# Some of these are events like any other (a very long number is valid JSON); none may be a failure of ours.
TAKEN = {"huge exponent", "long number"}


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_hostile_bodies(served: tuple[str, str], content_type: str) -> None:
    base, key = served
    headers = {"authorization": f"Bearer {key}", "content-type": content_type}
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        for path in ("events", "records/insert", "records/update", "records/ingest"):
            for name, body in HOSTILE.items():
                answer = client.post(f"/v1/tenants/acme/{path}", content=body)
                assert 400 <= answer.status_code < 500 or (
                    name in TAKEN or (name == "nothing" and content_type.endswith("ndjson"))
                ), (path, name, answer.status_code, answer.text)
                assert answer.status_code < 500
                assert "json" in answer.headers["content-type"]
        assert client.get("/v1/tenants/acme/events").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br", "identity, gzip", "x"])
def test_bombs(served: tuple[str, str], encoding: str) -> None:
    """A compressed body is refused when it grows past the limit, in memory of about that limit."""
    base, key = served
    bomb = gzip.compress(b" " * 300_000_000, 9)
    assert len(bomb) < 400_000
    headers = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "content-encoding": encoding,
    }
    for path in ("events", "records/insert"):
        answer = httpx.post(f"{base}/v1/tenants/acme/{path}", content=bomb, headers=headers, timeout=60)
        assert answer.status_code in (400, 413, 415), answer.text
        if encoding == "gzip":
            assert answer.status_code == 413


@pytest.mark.parametrize(
    "target",
    [
        "/v1/tenants/acme/events?entity_id=%00",
        "/v1/tenants/acme/events?actor=%ff%fe",
        "/v1/tenants/acme/events?cursor=%ed%a0%80",
        "/v1/tenants/acme/history/%00",
        "/v1/tenants/acme/history/%ff",
        "/v1/tenants/%00/events",
        "/v1/tenants/acme/events/" + "9" * 5000,
        "/v1/tenants/acme/events?seq_from=" + "9" * 5000,
        "/v1/tenants/acme/events?limit=1e9",
        "/v1/tenants/acme/events?recorded_from=9999999-01-01",
        "/v1/tenants/acme/events?recorded_from=0000-00-00T00:00:00Z",
        "/v1/tenants/acme/entities/1?as_of=-1",
        "/v1/tenants/acme/feed?since=-1",
        "/v1/tenants/acme/export?format=exe",
        "/v1/runs?cursor=%00",
        "/v1/runs?tenant=%00",
        "/v1/keys?cursor=%00",
        "/v1/tenants/" + "a" * 20_000 + "/events",
    ],
)
def test_hostile_addresses(served: tuple[str, str], target: str) -> None:
    base, key = served
    answer = httpx.get(f"{base}{target}", headers={"authorization": f"Bearer {key}"}, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
