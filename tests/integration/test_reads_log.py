"""The log of reads: who read what, and why; and what is not answered when it cannot be written down."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from eventstore.access.reads import REASON_CHARACTERS_MAX, Asked, ReadAction, ReadsLog, is_logged
from eventstore.app import Store, verify_tenant
from eventstore.clock import FixedClock
from eventstore.errors import InputError, RetryError
from eventstore.governance.tenants import create_tenant
from eventstore.intake.importer import import_file
from eventstore.model.access import Principal, Role
from eventstore.model.limits import Limits
from eventstore.model.tenant import READS_TENANT
from eventstore.query.coverage import Coverage
from eventstore.retention.offboarding import Offboarding, offboard
from tests.integration.callers import Callers, calling
from tests.integration.following import serving
from tests.unit.helpers import DAY_US, START_US, append, execute, fill_days, make_tenant, new_event, read
from tests.unit.helpers import run_retention as retention

WAIT_S = 30.0
ACME = "/v1/tenants/acme"
READS = f"/v1/tenants/{READS_TENANT}"


@pytest.fixture
def callers(store: Store) -> Iterator[Callers]:
    make_tenant(store)
    append(store, "acme", *(new_event(str(n)) for n in range(3)))
    with calling(store) as found:
        yield found


def entries(store: Store) -> list[dict[str, Any]]:
    """The log of reads, with values decoded; empty while there is none."""
    if not execute(store.database.url, "SELECT 1 FROM tenants WHERE tenant_id = %s", [READS_TENANT]):
        return []
    rows = read(store, READS_TENANT)
    for row in rows:
        row["new_value"] = json.loads(row["new_value"])
        row["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
    return rows


# --- who, what, why -----------------------------------------------------------------------------------


@pytest.mark.parametrize("person", [False, True])
@pytest.mark.parametrize("role", Role)
def test_reads_by_people_are_logged(role: Role, person: bool) -> None:
    logged = is_logged(Principal("x", role, "acme", person=person))
    assert logged == (person or role in (Role.COMPLIANCE, Role.ADMINISTRATOR))


def test_an_entry_says_who_asked_what_why_and_what_was_covered(callers: Callers, clock: FixedClock) -> None:
    make_tenant(callers.store, "other")
    fill_days(callers.store, clock, "other", 2)
    retention(callers.store, START_US + 2 * DAY_US, "other")
    subject, text = callers.key(Role.COMPLIANCE, None)
    found = callers.client(text).get(
        "/v1/tenants/other/events", params={"entity_type": "order", "limit": 4, "reason": "case 7"}
    )
    assert found.status_code == 200
    covered = found.json()["covered"]
    (entry,) = entries(callers.store)
    assert (entry["entity_type"], entry["entity_id"], entry["action"]) == ("tenant", "other", "read")
    assert (entry["actor"], entry["source"], entry["metadata"]) == (subject, "api", {"reason": "case 7"})
    value = entry["new_value"]
    assert value["state"] == "answered"
    assert value["route"] == "GET /v1/tenants/{tenant}/events"
    assert value["query"] == {"entity_type": "order", "limit": "4"}
    assert value["role"] == "compliance"
    assert value["events"] == 4
    assert value["archive_bytes"] == covered["archive_bytes"] > 0
    windows = [{"from": "2024-03-01T00:00:00.000000Z", "to": "2024-03-02T00:00:00.000000Z"}]
    assert value["covered"] == {**covered, "windows": windows}
    assert covered["archive"] == [{"first_seq": 1, "last_seq": 5}]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("events?actor=ann", {"actor": "ann"}),
        ("events/2", {"seq_or_event_id": "2"}),
        ("history/a%2Fb", {"entity_id": "a/b"}),
        ("recent?limit=1", {"limit": "1"}),
    ],
)
def test_every_way_to_read_is_logged(callers: Callers, path: str, query: dict[str, str]) -> None:
    assert callers.as_role(Role.READER).get(f"{ACME}/{path}").status_code == 200
    assert entries(callers.store) == []
    assert callers.as_role(Role.COMPLIANCE).get(f"{ACME}/{path}").status_code == 200
    (entry,) = entries(callers.store)
    assert entry["new_value"]["query"] == query
    assert entry["metadata"] is None


def test_this_machine_is_logged_before_there_is_an_administrator(store: Store) -> None:
    make_tenant(store)
    with serving(store) as served:
        assert httpx.get(f"http://127.0.0.1:{served.port}{ACME}/recent").status_code == 200
    assert [entry["actor"] for entry in entries(store)] == ["loopback"]


def test_what_was_not_found_was_asked_all_the_same(callers: Callers) -> None:
    assert callers.as_role(Role.COMPLIANCE).get(f"{ACME}/events/99").status_code == 404
    (entry,) = entries(callers.store)
    value = entry["new_value"]
    assert (value["state"], value["error"], value["events"]) == ("failed", "event-not-found", 0)


def test_strange_texts_are_stored_as_texts(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    long = "x" * 5000
    assert client.get(f"{ACME}/events", params={"entity_id": long}).status_code == 200
    assert client.get(f"{ACME}/events?entity_id=a%00b").status_code == 400  # nothing was read
    assert client.get("/v1/tenants/no%20slug/events").status_code == 404
    (entry,) = entries(callers.store)
    assert entry["new_value"]["query"]["entity_id"] == "x" * 2000 + "…"


# --- reasons ------------------------------------------------------------------------------------------


def test_a_reason_comes_in_the_query_or_in_a_header(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    header = {"Eventstore-Reason": "Prüfung 1 ✓".encode()}
    for params, headers in (({"reason": "Prüfung 2"}, {}), ({}, header), ({"reason": "this"}, header)):
        assert client.get(f"{ACME}/recent", params=params, headers=headers).status_code == 200  # type: ignore[arg-type]
    assert client.get(f"{ACME}/recent", params={"reason": "  "}).status_code == 200
    assert [entry["metadata"] for entry in entries(callers.store)] == [
        {"reason": "Prüfung 2"},
        {"reason": "Prüfung 1 ✓"},
        {"reason": "this"},
        None,
    ]


def test_a_reason_can_be_demanded(callers: Callers) -> None:
    callers.app.state.reads.reason_required = True
    client = callers.as_role(Role.COMPLIANCE)
    for refused in (client.get(f"{ACME}/recent"), client.get(f"{ACME}/recent", params={"reason": " "})):
        assert refused.status_code == 400
        assert "reason=" in refused.json()["hint"]
    assert client.get(f"{ACME}/recent", params={"reason": "case 7"}).status_code == 200
    assert callers.as_role(Role.READER).get(f"{ACME}/recent").status_code == 200
    assert len(entries(callers.store)) == 1


@pytest.mark.parametrize("reason", ["x" * (REASON_CHARACTERS_MAX + 1), "a\0b"])
def test_a_reason_is_a_text_of_bounded_length(callers: Callers, reason: str) -> None:
    refused = callers.as_role(Role.COMPLIANCE).get(f"{ACME}/recent", params={"reason": reason})
    assert refused.status_code == 400
    assert entries(callers.store) == []


# --- durable first, or refused ------------------------------------------------------------------------


def test_a_read_that_cannot_be_written_down_is_refused(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    assert client.get(f"{ACME}/events").status_code == 200
    execute(callers.store.database.url, "UPDATE heads SET closed = true WHERE tenant_id = %s", [READS_TENANT])
    refused = client.get(f"{ACME}/events")
    assert refused.status_code == 503
    assert "events" not in refused.json()
    assert refused.headers["retry-after"]
    assert client.get(f"{ACME}/events/99").status_code == 503  # not even whether there is one
    assert callers.as_role(Role.READER).get(f"{ACME}/events").status_code == 200


def test_reads_wait_for_their_entries_and_many_share_a_commit(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    assert client.get(f"{ACME}/recent").status_code == 200
    committer = callers.app.state.reads._submit.__self__
    with (
        ThreadPoolExecutor(9) as pool,
        psycopg.connect(callers.store.database.url) as blocker,
    ):
        blocker.execute("SELECT FROM heads WHERE tenant_id = %s FOR UPDATE", [READS_TENANT])
        answers = [pool.submit(client.get, f"{ACME}/recent")]
        while committer._waiting.get(READS_TENANT) != deque():  # it is being committed
            assert not answers[0].done()
        answers += [pool.submit(client.get, f"{ACME}/recent") for _ in range(8)]
        while len(committer._waiting[READS_TENANT]) < 8:  # and these wait for that
            assert not any(answer.done() for answer in answers)
        blocker.rollback()
        assert [answer.result(WAIT_S).status_code for answer in answers] == [200] * 9
    commits = execute(
        callers.store.database.url,
        "SELECT count(*), count(DISTINCT xmin::text) FROM events WHERE tenant_id = %s AND seq > 1",
        [READS_TENANT],
    )
    assert commits == [(9, 2)]


def test_the_first_reads_at_once_make_one_log(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(client.get, f"{ACME}/recent") for _ in range(6)]
        assert [answer.result(WAIT_S).status_code for answer in answers] == [200] * 6
    assert len(entries(callers.store)) == 6


# --- a log like others --------------------------------------------------------------------------------


def test_the_log_of_reads_is_a_log_with_a_chain_and_a_policy(callers: Callers, clock: FixedClock) -> None:
    client = callers.as_role(Role.COMPLIANCE)
    for day in range(3):
        clock.move_to(START_US + day * 31 * DAY_US)
        assert client.get(f"{ACME}/recent").status_code == 200
    run = retention(callers.store, START_US + 365 * DAY_US, READS_TENANT)
    assert run.outcomes[0].windows == 3
    report = verify_tenant(callers.store, READS_TENANT)
    assert report.ok, report
    assert len(entries(callers.store)) == 3


def test_reading_the_log_of_reads_is_a_read_and_ends(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE, None)
    assert client.get(f"{ACME}/recent").status_code == 200
    for known in (1, 2, 3):
        page = client.get(f"{READS}/events", params={"reason": "who was it"}).json()
        assert len(page["events"]) == known
    assert [entry["entity_id"] for entry in entries(callers.store)] == ["acme", *[READS_TENANT] * 3]


def test_the_log_of_reads_is_of_the_deployment_and_nobody_writes_it(callers: Callers, tmp_path: Path) -> None:
    assert callers.as_role(Role.COMPLIANCE).get(f"{ACME}/recent").status_code == 200
    for role in Role:
        own = callers.as_role(role)
        seen, nothing = own.get(f"{READS}/events"), own.get("/v1/tenants/nothing/events")
        assert (seen.status_code, nothing.status_code) == (404, 404)
        assert seen.text == nothing.text.replace("nothing", READS_TENANT)
    assert callers.as_role(Role.READER, None).get(f"{READS}/events").status_code == 200
    event = {"entity_type": "tenant", "entity_id": "acme", "action": "read", "actor": "me", "source": "api"}
    for role in (Role.WRITER, Role.ADMINISTRATOR):
        assert callers.as_role(role, None).post(f"{READS}/events", json=event).status_code == 403
    assert len(entries(callers.store)) == 1
    for name in (READS_TENANT, "eventstore-x"):
        with pytest.raises(InputError, match="store's own"):
            create_tenant(callers.store.database, name)
    with pytest.raises(InputError, match="store's own"):
        import_file(callers.store.database, READS_TENANT, tmp_path / "forged.csv", value_bytes_max=1000)
    offboarding = Offboarding(READS_TENANT, tmp_path, "me", "to be rid of it", 1)
    with pytest.raises(InputError, match="store's own"):
        offboard(callers.store.compactor, callers.store.tiers, offboarding, START_US)


# --- streams ------------------------------------------------------------------------------------------


def stream(callers: Callers, role: Role = Role.COMPLIANCE) -> Any:
    asked = Asked(Principal("oidc:ann", role, "acme"), "acme", ReadAction.EXPORT, "GET /x", {"a": 1}, None)
    log: ReadsLog = callers.app.state.reads
    return log.read(asked, callers.store.reader, None)


def test_a_stream_is_logged_when_it_begins_and_when_it_ends(callers: Callers) -> None:
    one = stream(callers)
    one.end()  # nothing has begun
    one.begin()
    (begun,) = entries(callers.store)
    assert (begun["action"], begun["actor"], begun["new_value"]["state"]) == ("export", "oidc:ann", "begun")
    assert "covered" not in begun["new_value"]
    coverage = Coverage()
    coverage.add_hot(1, 3)
    one.covers(coverage, events=3)
    one.end()
    one.end(ValueError("too late"))
    failed = stream(callers)
    failed.begin()
    failed.covers(events=2, seqs=(1, 9))
    failed.end(RetryError("away"))
    callers.app.state.reads._submit.__self__.close()  # the ends wait for nobody; this waits for them
    _, ended, _, broken = [entry["new_value"] for entry in entries(callers.store)]
    assert (ended["state"], ended["events"], ended["read"]) == ("ended", 3, begun["new_value"]["read"])
    assert ended["covered"]["hot"] == [{"first_seq": 1, "last_seq": 3}]
    assert (broken["state"], broken["error"]) == ("failed", "unavailable")
    assert broken["covered"] == {"first_seq": 1, "last_seq": 9}
    with pytest.raises(RetryError, match="written down"):
        stream(callers).begin()


def test_a_feed_is_logged_and_its_place_is_free_again_when_its_client_is_gone(callers: Callers) -> None:
    one_feed = Limits(feeds_max=1)
    subject, text = callers.key(Role.COMPLIANCE, limits=one_feed)
    client = callers.client(text)
    path, stream_of = f"{ACME}/feed?since=1&reason=case+7", {"accept": "text/event-stream"}
    with client.stream("GET", path, headers=stream_of) as feed:
        assert feed.status_code == 200
        (begun,) = entries(callers.store)
        lines = feed.iter_lines()  # kept: without it the connection is closed
        while next(lines) != "id: 3":
            pass
        assert client.get(path, headers=stream_of).status_code == 429
    while callers.app.state.limits._feeds.get(subject):  # until the server has noticed
        pass
    with client.stream("GET", path, headers=stream_of) as feed:
        assert feed.status_code == 200
    callers.app.state.feeds.end()
    while callers.app.state.limits._feeds.get(subject):
        pass
    callers.app.state.reads._submit.__self__.close()
    rows = [
        entry for entry in entries(callers.store) if entry["new_value"]["read"] == begun["new_value"]["read"]
    ]
    assert [(row["action"], row["actor"], row["metadata"]) for row in rows] == [
        ("feed", subject, {"reason": "case 7"})
    ] * 2
    assert (rows[0]["new_value"]["state"], rows[1]["new_value"]["state"]) == ("begun", "ended")
    assert rows[1]["new_value"]["events"] == 2
    assert rows[1]["new_value"]["covered"] == {"first_seq": 2, "last_seq": 3}


def test_a_long_poll_is_a_page_and_does_not_find_itself(callers: Callers) -> None:
    client = callers.as_role(Role.COMPLIANCE, None)
    lines = {"accept": "application/x-ndjson"}
    assert len(client.get(f"{ACME}/feed?since=1", headers=lines).text.splitlines()) == 2
    assert client.get(f"{ACME}/feed?since=99", headers=lines).status_code == 400
    refused = client.get(f"{READS}/feed?since=0", headers=lines)
    assert (refused.status_code, "wait=0" in refused.json()["hint"]) == (400, True)
    assert len(client.get(f"{READS}/feed?since=0&wait=0", headers=lines).text.splitlines()) == 2
    values = [entry["new_value"] for entry in entries(callers.store)]
    assert [value["state"] for value in values] == ["answered", "failed", "answered"]
    assert values[0]["covered"] == {"first_seq": 2, "last_seq": 3}
    program = callers.as_role(Role.READER, None).get(f"{READS}/feed?since=0&wait=5", headers=lines)
    assert len(program.text.splitlines()) == 3


def test_a_stream_of_a_program_is_not_logged(callers: Callers) -> None:
    one = stream(callers, Role.READER)
    one.begin()
    one.end()
    assert not one.is_logged
    assert entries(callers.store) == []


def test_long_lists_of_what_was_covered_are_cut(callers: Callers) -> None:
    coverage = Coverage()
    for n in range(150):
        coverage.add_archive(10 * n, 10 * n + 1)
        coverage.windows.add((n * DAY_US, (n + 1) * DAY_US))
    one = stream(callers)
    one.covers(coverage, events=1)
    with one:
        pass
    covered = entries(callers.store)[0]["new_value"]["covered"]
    assert (len(covered["archive"]), covered["archive_more"], covered["archive_windows"]) == (100, 50, 150)
    assert (len(covered["windows"]), covered["windows_more"]) == (100, 50)
