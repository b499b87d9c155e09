"""The client against a real server: each method once, both ways, and the recorder over an outage."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest

from eventstore.client import AsyncClient, Client, NewEvent, Retry
from eventstore.client.outbox import Outbox
from eventstore.client.recorder import Recorder
from eventstore.clock import from_us
from eventstore.errors import (
    EventNotFoundError,
    InvalidEventError,
    TenantNotFoundError,
    TooLargeError,
    VersionConflictError,
)
from eventstore.governance.keys import create_key
from eventstore.model.access import Role
from tests.integration.apiserver import REQUIRED, VALUE_BYTES_MAX, Served, Tenant, served_api
from tests.unit.helpers import DAY_US, START_US

WHO = {"actor": "ann", "source": "web"}
RETRY = Retry(attempts=2, first_s=0.01)


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served_api(server_url, template_database, tmp_path_factory.mktemp("client")) as opened:
        yield opened


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return Tenant(served)


def url(served: Served) -> str:
    return f"http://127.0.0.1:{served.address[1]}"


class Caller:
    """A method of either client, by name; iterators become lists of at most `take` items."""

    def __init__(self, kind: str, tenant: Tenant, **options: Any) -> None:
        self.kind = kind
        self._given = (url(tenant.served), tenant.name)
        self._options = {"retry": RETRY, **options}

    def __call__(self, name: str, *args: Any, take: int = 1000, **options: Any) -> Any:
        if self.kind == "async":
            return asyncio.run(self._later(name, args, options, take))
        with Client(*self._given, **self._options) as client:
            found = getattr(client, name)(*args, **options)
            if isinstance(found, Iterator):
                return [item for _, item in zip(range(take), found, strict=False)]
            return found

    async def _later(self, name: str, args: Any, options: Any, take: int) -> Any:
        async with AsyncClient(*self._given, **self._options) as client:
            found = getattr(client, name)(*args, **options)
            if not isinstance(found, AsyncIterator):
                return await found
            items = []
            async for item in found:
                items.append(item)
                if len(items) == take:
                    break
            return items


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, tenant: Tenant) -> Caller:
    return Caller(request.param, tenant)


def test_appending_and_reading_back(call: Caller) -> None:
    first = NewEvent(**REQUIRED, new_value={"a": [1, "é"]}, occurred_at=datetime(2024, 2, 1, tzinfo=UTC))
    done = call("append", first)
    assert (done.first_seq, done.count, done.duplicates) == (1, 1, 0)
    many = [{**REQUIRED, "entity_id": "a/b ü", "event_id": str(uuid.uuid4())} for _ in range(5)]
    assert call("append", many).last_seq == 6
    again = call("append", many)
    assert (again.count, again.duplicates, again.events[4].seq) == (0, 5, 6)
    event = call("event", done.events[0].event_id)
    assert event == call("event", 1)
    assert (event.new_value, event.occurred_at) == ({"a": [1, "é"]}, datetime(2024, 2, 1, tzinfo=UTC))
    assert event.recorded_at == from_us(START_US)
    assert [e.seq for e in call("history", "a/b ü", page_events=2)] == [2, 3, 4, 5, 6]
    assert [e.seq for e in call("events", order="desc", limit=3, actor="ann")] == [6, 5, 4]
    assert call("stats").head.last_seq == 6
    flushed = call("flush")
    assert (flushed.count, flushed.last_seq) == (0, 6)


def test_records_and_the_entity_as_it_was(call: Caller, tenant: Tenant) -> None:
    call("record_insert", "order", "o/1", {"state": "new"}, **WHO)
    tenant.served.clock.move_to(START_US + DAY_US)
    changes = {"state": ("new", "paid"), "sum": (None, 7)}
    assert call("record_update", "order", "o/1", changes, **WHO, metadata={"ip": "::1"}).count == 2
    assert call("record_ingest", "prices", 1000, **WHO).first_seq == 4
    now = call("as_of", "o/1")
    assert {name: (field.value, field.seq) for name, field in now.fields.items()} == {
        "state": ("paid", 2),
        "sum": (7, 3),
    }
    assert (now.exists, now.version, now.incomplete, now.fields["sum"].actor) == (True, 3, False, "ann")
    before = call("as_of", "o/1", from_us(START_US) + timedelta(hours=1), entity_type="order")
    assert before.fields["state"].value == "new"


def test_the_stores_errors(call: Caller, tenant: Tenant) -> None:
    with pytest.raises(InvalidEventError) as wrong:
        call("append", [REQUIRED, {**REQUIRED, "actor": ""}])
    assert (wrong.value.place.field, wrong.value.place.line) == ("actor", 2)
    with pytest.raises(TooLargeError) as large:
        call("append", {**REQUIRED, "new_value": "x" * VALUE_BYTES_MAX})
    assert large.value.limit_bytes == VALUE_BYTES_MAX
    with pytest.raises(VersionConflictError) as conflict:
        call("append", {**REQUIRED, "expected_version": 3})
    assert conflict.value.conflicts[0].actual == 0
    with pytest.raises(EventNotFoundError):
        call("event", 999)
    tenant.name = "nobody"
    with pytest.raises(TenantNotFoundError) as missing:
        Caller(call.kind, tenant)("stats")
    assert missing.value.tenant == "nobody"
    assert tenant.served.store is not None


def test_the_feed_goes_through_both_tiers_into_what_comes(call: Caller, tenant: Tenant) -> None:
    tenant.fill()
    assert [e.seq for e in call("feed", 0, take=16)] == list(range(1, 17))
    assert [e.seq for e in call("feed", 5, actor="a1", take=3)] == [6, 10, 14]
    with Client(url(tenant.served), tenant.name) as client:
        live = client.feed(15)
        assert next(live).seq == 16
        tenant.append(REQUIRED)
        assert next(live).seq == 17


def test_exports_are_the_events(call: Caller, tenant: Tenant, tmp_path: Path) -> None:
    shown = tenant.fill()
    size = call("export", tmp_path / "all.ndjson")
    lines = (tmp_path / "all.ndjson").read_bytes()
    assert size == len(lines)
    assert [msgspec.json.decode(line) for line in lines.splitlines()] == shown
    call("export", tmp_path / "some.parquet", "parquet", actor="a1")
    table = call("to_arrow", actor="a1")
    assert pq.read_table(tmp_path / "some.parquet").column("seq").to_pylist() == [2, 6, 10, 14]
    assert table.column("seq").to_pylist() == [2, 6, 10, 14]
    assert call("to_pandas", actor="a1")["seq"].tolist() == [2, 6, 10, 14]
    assert call("to_polars", actor="a1")["seq"].to_list() == [2, 6, 10, 14]


# --- the recorder ---------------------------------------------------------------------------------------


class Lossy(httpx.HTTPTransport):
    """Carries requests out, and loses the answers of those for which `loses` is set."""

    loses = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if self.loses and request.method == "POST":
            response.close()
            raise httpx.ReadTimeout("lost")
        return response


def writer_key(tenant: Tenant) -> str:
    _, text = create_key(
        tenant.served.store.database, role=Role.WRITER, tenant_id=tenant.name, by="test", now_us=START_US
    )
    return text


def test_a_batch_whose_answer_was_lost_and_whose_window_was_archived_is_not_stored_again(
    tenant: Tenant, tmp_path: Path
) -> None:
    """The store's own look for repeated ids would not find it: it goes to the hot tier only. With a key that
    may append, and not read."""
    transport = Lossy()
    with Client(url(tenant.served), tenant.name, api_key=writer_key(tenant), transport=transport) as client:
        transport.loses = True
        recorder = Recorder(client, tmp_path, retry=Retry(first_s=60.0))
        sent = [recorder.record({**REQUIRED, "entity_id": str(n)}, wait=n == 2) for n in range(3)]
        recorder.flush(timeout_s=0.0)
        while recorder.status().failures == 0:
            recorder.flush(timeout_s=0.01)
        recorder.close(timeout_s=0)
        assert tenant.seqs("events") == [1, 2, 3]

        tenant.served.clock.move_to(START_US + 3 * DAY_US)
        compactor = tenant.served.store.compactor
        report = compactor.run(compactor.tenants(tenant.name), START_US + 3 * DAY_US)
        assert report.outcomes[0].windows == 1
        transport.loses = False
        with Recorder(client, tmp_path) as recorder:
            recorder.record({**REQUIRED, "entity_id": "3"})
            assert recorder.flush(timeout_s=20) == 0
    found = tenant.found("events")["events"]
    assert [e["entity_id"] for e in found] == ["0", "1", "2", "3"]
    assert [e["event_id"] for e in found][:3] == [str(event_id) for event_id in sent]


def test_whether_an_event_is_stored_is_told_to_who_appends(tenant: Tenant) -> None:
    tenant.fill()
    known = tenant.found("events/2")["event"]["event_id"]
    assert tenant.found(f"event-ids/{known}") == {"seq": 2, "event_id": known}
    headers = {"authorization": f"Bearer {writer_key(tenant)}"}
    client = tenant.served.client
    assert client.get(f"{tenant.path}/event-ids/{known}", headers=headers).json()["seq"] == 2
    assert client.get(f"{tenant.path}/events/{known}", headers=headers).status_code == 403
    missing = client.get(f"{tenant.path}/event-ids/{uuid.uuid4()}", headers=headers)
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:eventstore:event-not-found")
    assert client.get(f"{tenant.path}/event-ids/7", headers=headers).status_code == 400
    stranger = Tenant(tenant.served)
    foreign = {"authorization": f"Bearer {writer_key(stranger)}"}
    told = client.get(f"{tenant.path}/event-ids/{known}", headers=foreign)
    assert (told.status_code, told.json()["type"]) == (404, "urn:eventstore:tenant-not-found")


def test_a_poison_event_that_got_into_an_outbox_is_put_aside(tenant: Tenant, tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    lines = [
        msgspec.json.encode({**REQUIRED, "event_id": str(uuid.uuid4()), "entity_id": str(n)}) + b"\n"
        for n in range(4)
    ]
    bad = {**REQUIRED, "event_id": str(uuid.uuid4()), "new_value": "x" * VALUE_BYTES_MAX}
    box.append([*lines[:2], msgspec.json.encode(bad) + b"\n", *lines[2:]])
    box.close()
    with Client(url(tenant.served), tenant.name) as client, Recorder(client, tmp_path) as recorder:
        assert recorder.flush(timeout_s=20) == 0
        assert recorder.status().rejected == 1
    assert [e["entity_id"] for e in tenant.found("events")["events"]] == ["0", "1", "2", "3"]
