"""Records over HTTP: what an insert, an update and an ingest become; flushing, an event's ETag, readiness."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import sqlalchemy as sa

from eventstore.hot.group import GroupCommitter
from eventstore.model.records import derived_id
from tests.integration.apiserver import Served, Tenant, event, is_problem, served_api

WHO = {"actor": "ann", "source": "web"}
RECORD = {"entity_type": "order", "entity_id": "a/b", **WHO}
GIVEN = "0190163d-8694-739b-aea5-966c26f8ad90"


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served_api(server_url, template_database, tmp_path_factory.mktemp("records")) as opened:
        yield opened


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return Tenant(served)


def record(tenant: Tenant, what: str, body: Any, **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return tenant.served.client.post(
        f"{tenant.path}/records/{what}", content=data, headers={"content-type": "application/json", **headers}
    )


def told(tenant: Tenant) -> list[tuple[Any, ...]]:
    names = ("entity_type", "entity_id", "action", "field", "old_value", "new_value")
    return [tuple(e[name] for name in names) for e in tenant.found("events")["events"]]


def test_an_insert_is_one_event_of_the_whole_record(tenant: Tenant) -> None:
    answer = record(
        tenant, "insert", {**RECORD, "fields": {"b": 1.50, "a": [None]}, "metadata": {"ip": "::1"}}
    )
    assert (answer.status_code, answer.json()["count"], answer.json()["first_seq"]) == (201, 1, 1)
    assert told(tenant) == [("order", "a/b", "insert", "*", None, {"b": 1.5, "a": [None]})]
    (stored,) = tenant.found("events")["events"]
    assert (stored["actor"], stored["source"], stored["metadata"]) == ("ann", "web", {"ip": "::1"})


@pytest.mark.parametrize(
    "changes",
    [
        {"status": {"old": "draft", "new": "signed"}, "note": {"new": None}},
        [{"field": "status", "old": "draft", "new": "signed"}, {"field": "note"}],
    ],
)
def test_an_update_is_an_event_a_field(tenant: Tenant, changes: Any) -> None:
    answer = record(tenant, "update", {**RECORD, "changes": changes, "event_id": GIVEN})
    assert answer.status_code == 201
    assert told(tenant) == [
        ("order", "a/b", "update", "status", "draft", "signed"),
        ("order", "a/b", "update", "note", None, None),
    ]
    first, second = answer.json()["events"]
    assert first["event_id"] == GIVEN
    assert second["event_id"][:19] == GIVEN[:19]  # a UUIDv7 of the same time
    # Sent again it is the same events.
    again = record(tenant, "update", {**RECORD, "changes": changes, "event_id": GIVEN}).json()
    assert (again["count"], again["duplicates"], again["events"]) == (0, 2, [first, second])


def test_ids_of_further_events_differ_by_field() -> None:
    import uuid

    given = uuid.UUID(GIVEN)
    made = {derived_id(given, name) for name in ("a", "b", "c")}
    assert len(made) == 3
    assert {one.version for one in made} == {7}
    assert {one.variant for one in made} == {uuid.RFC_4122}


def test_an_update_expects_the_version_before_all_of_it(tenant: Tenant) -> None:
    record(tenant, "insert", {**RECORD, "fields": {}})
    changes = {"a": {"new": 1}, "b": {"new": 2}}
    stale = record(tenant, "update", {**RECORD, "changes": changes, "expected_version": 7})
    is_problem(stale, 409, type="urn:eventstore:version-conflict")
    assert record(tenant, "update", {**RECORD, "changes": changes, "expected_version": 1}).status_code == 201
    assert tenant.last_seq() == 3


def test_an_ingest_is_an_event_of_its_dataset(tenant: Tenant) -> None:
    body = {"dataset": "invoices", "count": 48210, "actor": "nightly", "source": "s3://landing"}
    assert record(tenant, "ingest", body).status_code == 201
    assert told(tenant) == [("dataset", "invoices", "ingest", "*", None, {"count": 48210})]


@pytest.mark.parametrize(
    ("what", "body", "field"),
    [
        ("insert", {**RECORD}, "fields"),
        ("insert", {**RECORD, "fields": [1]}, "fields"),
        ("insert", {**RECORD, "fields": None}, "fields"),
        ("insert", {**RECORD, "fields": {}, "colour": 1}, "colour"),
        ("insert", {**RECORD, "fields": {}, "actor": ""}, "actor"),
        ("insert", {**RECORD, "fields": {"a": "\0"}}, "new_value"),
        ("update", {**RECORD, "changes": {}}, "changes"),
        ("update", {**RECORD, "changes": []}, "changes"),
        ("update", {**RECORD, "changes": {"": {}}}, "changes"),
        ("update", {**RECORD, "changes": {"a": {"neu": 1}}}, "changes"),
        ("update", {**RECORD, "changes": [{"field": "a"}, {"field": "a"}]}, "changes"),
        ("update", {**RECORD, "changes": {"a\0": {}}}, "field"),
        ("ingest", {"dataset": "d", "count": -1, **WHO}, "count"),
        ("ingest", {"dataset": "d", "count": 1.5, **WHO}, "count"),
        ("ingest", b"", None),
        ("ingest", b"[]", None),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_stored(
    tenant: Tenant, what: str, body: Any, field: str | None
) -> None:
    assert is_problem(record(tenant, what, body), 422).get("field") == field
    assert tenant.last_seq() == 0


def test_records_are_json_alone(tenant: Tenant) -> None:
    answer = record(tenant, "insert", {**RECORD, "fields": {}}, **{"content-type": "application/x-ndjson"})
    is_problem(answer, 415)


# --- flush ------------------------------------------------------------------------------------------


def test_a_flush_waits_for_what_was_accepted_before(tenant: Tenant) -> None:
    """Held up in the middle of a commit, a flush is not answered; afterwards everything is visible."""
    held, asked, go = threading.Event(), threading.Event(), threading.Event()
    appender = tenant.served.store.appender
    real = type(appender).append

    def slow(self: Any, tenant_id: str, requests: Any) -> Any:
        held.set()
        assert go.wait(30)
        return real(self, tenant_id, requests)

    def flush(self: Any, tenant_id: str) -> Any:
        found = real_flush(self, tenant_id)
        asked.set()
        return found

    real_flush = GroupCommitter.flush
    with (
        patch.object(type(appender), "append", slow),
        patch.object(GroupCommitter, "flush", flush),
        ThreadPoolExecutor(3) as pool,
    ):
        first = pool.submit(tenant.append, event(), event())
        assert held.wait(30)
        flushing = pool.submit(tenant.served.client.post, f"{tenant.path}/flush")
        assert asked.wait(30)
        # Another request goes all the way meanwhile, the flush does not.
        assert tenant.served.client.get("/healthz").status_code == 200
        assert not flushing.done()
        go.set()
        answer = flushing.result(30)
        assert answer.json() == {"count": 2, "last_seq": 2}
        assert first.result(30)["count"] == 2


def test_a_flush_with_nothing_waiting(tenant: Tenant) -> None:
    tenant.append(event())
    answer = tenant.served.client.post(f"{tenant.path}/flush")
    assert (answer.status_code, answer.json()) == (200, {"count": 0, "last_seq": 1})
    is_problem(tenant.served.client.post("/v1/tenants/nobody/flush"), 404)


# --- ETag -------------------------------------------------------------------------------------------


def test_one_event_is_not_sent_to_who_has_it(tenant: Tenant) -> None:
    tenant.append(event(), event())
    url = f"{tenant.path}/events/1"
    client = tenant.served.client
    etag = client.get(url).headers["etag"]
    for given in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        answer = client.get(url, headers={"if-none-match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    other = client.get(f"{tenant.path}/events/2", headers={"if-none-match": etag})
    assert (other.status_code, other.json()["event"]["seq"]) == (200, 2)
    assert other.headers["etag"] != etag
    is_problem(client.get(f"{tenant.path}/events/3", headers={"if-none-match": "*"}), 404)


# --- readiness --------------------------------------------------------------------------------------


def test_ready(served: Served) -> None:
    answer = served.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert {c["name"]: c["ok"] for c in answer.json()["checks"]} == {
        "database": True,
        "schema": True,
        "archive": True,
    }


def test_not_ready_with_a_schema_of_another_version(served: Served) -> None:
    with served.store.database.transaction() as conn:
        before = conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '0001_x'"))
    try:
        body = is_problem(served.client.get("/readyz"), 503, type="urn:eventstore:not-ready")
    finally:
        with served.store.database.transaction() as conn:
            conn.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": before})
    failed = {check["name"]: check["why"] for check in body["checks"] if not check["ok"]}
    assert list(failed) == ["schema"]
    assert "0001_x" in failed["schema"]


def test_without_its_archive_a_process_is_ready_and_says_so(served: Served) -> None:
    targets = served.store.targets
    opened = targets._open.pop("archive")
    url, targets._urls["archive"] = targets._urls["archive"], "s3://nowhere?endpoint_url=http://127.0.0.1:1"
    try:
        answer = served.client.get("/readyz")
    finally:
        targets._urls["archive"] = url
        targets._open["archive"] = opened
    assert (answer.status_code, answer.json()["checks"][-1]["ok"]) == (200, False)
    assert "nowhere" not in answer.text  # anybody may ask
