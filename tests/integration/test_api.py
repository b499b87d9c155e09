"""The HTTP API over a real socket: every route, and every way in which a request can be wrong."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from eventstore.api import append as append_module
from eventstore.clock import to_iso
from tests.integration.apiserver import (
    BODY_BYTES_MAX,
    REQUIRED,
    VALUE_BYTES_MAX,
    Served,
    Tenant,
    event,
    is_problem,
    served_api,
)
from tests.unit.helpers import DAY_US, START_US


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for the module; each test has a tenant of its own."""
    with served_api(server_url, template_database, tmp_path_factory.mktemp("api")) as opened:
        yield opened


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return Tenant(served)


# --- the routes -------------------------------------------------------------------------------------


def test_health_and_description(served: Served) -> None:
    assert served.client.get("/healthz").json() == {"status": "ok"}
    described = served.client.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    assert {"/healthz", "/v1/tenants/{tenant}/events", "/v1/runs/{run_id}"} <= set(described["paths"])


def test_one_event_is_appended_and_read_back(tenant: Tenant) -> None:
    given = "0190163d-8694-739b-aea5-966c26f8ad90"
    sent = event(
        event_id=given,
        field="status",
        old_value=None,
        new_value={"b": 1, "a": [1.50, "é", 10**30, None]},
        workspace_id="w",
        metadata={"ip": "::1"},
        occurred_at="2024-02-29T12:00:00+02:00",
    )
    response = tenant.post(sent)
    assert response.status_code == 201
    assert response.json() == {
        "first_seq": 1,
        "last_seq": 1,
        "count": 1,
        "duplicates": 0,
        "events": [{"seq": 1, "event_id": given}],
    }
    shown = tenant.found("events/1")["event"]
    assert len(bytes.fromhex(shown.pop("hash"))) == 32
    assert shown == {
        **sent,
        "seq": 1,
        "recorded_at": to_iso(START_US),
        "occurred_at": "2024-02-29T10:00:00.000000Z",
    }
    # Values come back as they were sent: no key is moved, no number is rounded.
    assert '"new_value":{"b":1,"a":[1.5,"' in tenant.get("events/1").text
    assert tenant.found(f"events/{given}")["event"]["seq"] == 1
    assert tenant.found(f"events/{given.upper()}")["event"]["seq"] == 1


def test_many_events_as_an_array_and_as_a_stream(tenant: Tenant) -> None:
    first = tenant.append(event(entity_id="1"), event(entity_id="2"))
    assert (first["first_seq"], first["last_seq"], first["count"]) == (1, 2, 2)
    lines = b"".join(json.dumps(event(entity_id=str(n))).encode() + b"\n\n" for n in range(3, 6))
    second = tenant.post(lines, media_type="application/x-ndjson; charset=utf-8")
    assert (second.status_code, second.json()["last_seq"]) == (201, 5)
    assert [e["seq"] for e in second.json()["events"]] == [3, 4, 5]
    assert [e["entity_id"] for e in tenant.found("events")["events"]] == ["1", "2", "3", "4", "5"]
    short = tenant.post(event(), events="false").json()
    assert "events" not in short
    assert short["count"] == 1


def test_a_long_answer_is_written_beside_the_event_loop(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_in: list[bool] = []
    write = append_module._content

    def noted(*args: Any) -> bytes:
        written_in.append(sys._getframe(1).f_code.co_name == "respond")
        return write(*args)

    monkeypatch.setattr(append_module, "_INLINE_EVENTS_MAX", 2)
    monkeypatch.setattr(append_module, "_content", noted)
    for count in (2, 3):
        answer = tenant.append(*[event(entity_id=str(n)) for n in range(count)])
        assert len(answer["events"]) == count
    assert written_in == [True, False]


def test_a_repeat_is_answered_alike(tenant: Tenant) -> None:
    one = event(event_id="0190163d-8694-739b-aea5-966c26f8ad90")
    assert tenant.append(one)["events"] == tenant.append(one)["events"]
    assert (tenant.append(one)["count"], tenant.append(one)["duplicates"], tenant.last_seq()) == (0, 1, 1)


def test_a_body_in_chunks_without_content_length(tenant: Tenant) -> None:
    parts = (json.dumps(event(entity_id=str(n))).encode() + b"\n" for n in range(100))
    response = tenant.served.client.post(
        f"{tenant.path}/events", content=parts, headers={"content-type": "application/x-ndjson"}
    )
    assert "content-length" not in response.request.headers
    assert (response.status_code, response.json()["count"]) == (201, 100)


def test_stats(tenant: Tenant) -> None:
    empty = tenant.found("stats")
    assert (empty["head"]["last_seq"], empty["head"]["clock"]) == (0, None)
    events = tenant.fill()
    found = tenant.found("stats")
    assert (found["tenant"], found["hot"]["events"], found["archive"]["events"]) == (tenant.name, 4, 12)
    assert found["archive"]["segments"] == 3
    assert found["windows"] == {"open": 1, "sealed": 0, "archived": 0, "dropped": 3, "expired": 0}
    assert found["head"]["last_hash"] == events[-1]["hash"]
    assert found["head"]["clock"] == events[-1]["recorded_at"]
    sizes = [
        p.stat().st_size for p in (tenant.served.archive / f"tenant_id={tenant.name}").rglob("*.parquet")
    ]
    assert found["archive"]["bytes"] == sum(sizes)
    assert found["archive"]["targets"] == {"archive": {"events": 12, "bytes": sum(sizes)}}
    assert found["expired"] == {"events": 0}
    assert found["hot"]["bytes"] > 0


def test_recent_is_newest_first_over_both_tiers(tenant: Tenant) -> None:
    tenant.fill()
    assert tenant.seqs("recent", limit=6) == [16, 15, 14, 13, 12, 11]
    assert tenant.seqs("recent") == list(range(16, 0, -1))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 4, 16, 17])
@pytest.mark.parametrize("params", [{}, {"entity_id": "1"}, {"actor": "a2"}, {"seq_from": 3, "seq_to": 14}])
def test_pages_give_each_event_once(served: Served, order: str, limit: int, params: dict[str, Any]) -> None:
    tenant = filled(served)
    every = tenant.seqs("events", order=order, limit=1000, **params)
    assert every == sorted(every, reverse=order == "desc")
    found: list[int] = []
    cursor: dict[str, str] = {}
    for _ in range(30):
        page = tenant.found("events", order=order, limit=limit, **params, **cursor)
        assert len(page["events"]) <= limit
        found += [e["seq"] for e in page["events"]]
        if page["next_cursor"] is None:
            break
        assert len(page["events"]) == limit
        cursor = {"cursor": page["next_cursor"]}
    assert found == every
    assert len(every) == {None: 16, "1": 8}.get(params.get("entity_id"), 0) or params.keys() != {"entity_id"}


_filled: dict[int, Tenant] = {}


def filled(served: Served) -> Tenant:
    """A tenant that tests share, because they only read."""
    if id(served) not in _filled:
        _filled[id(served)] = Tenant(served)
        _filled[id(served)].fill()
    return _filled[id(served)]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"entity_id": "0"}, [1, 3, 5, 7, 9, 11, 13, 15]),
        ({"entity_id": "0", "entity_type": "order"}, [1, 3, 5, 7, 9, 11, 13, 15]),
        ({"entity_id": "0", "entity_type": "invoice"}, []),
        ({"actor": "a3"}, [4, 8, 12, 16]),
        ({"action": "day-2"}, [9, 10, 11, 12]),
        ({"action": "day-3", "actor": "a0"}, [13]),
        ({"source": "test", "seq_to": 2}, [1, 2]),
        ({"source": "nope"}, []),
        ({"field": "*", "seq_from": 15}, [15, 16]),
        ({"workspace_id": "w"}, []),
        ({"recorded_from": "2024-03-03", "recorded_to": "2024-03-04T00:00:00Z"}, [9, 10, 11, 12]),
        ({"recorded_from": "2024-03-04T03:00:00+02:00"}, [13, 14, 15, 16]),
        ({"recorded_from": "2024-03-04T03:00:00.000001+02:00"}, []),
        ({"occurred_to": "2024-03-01T01:00:00.000001Z"}, [1, 2, 3, 4]),
        ({"occurred_to": "2024-03-01T01:00:00Z"}, []),
        ({"seq_from": 100}, []),
        ({"seq_from": 5, "seq_to": 4}, []),
        ({"entity_id": "'; DROP TABLE events; --"}, []),
    ],
)
def test_conditions(served: Served, params: dict[str, Any], expected: list[int]) -> None:
    assert filled(served).seqs("events", **params) == expected


def test_a_blank_in_place_of_a_plus_is_understood(served: Served) -> None:
    response = served.client.get(f"{filled(served).path}/events?recorded_from=2024-03-04T03:00:00+02:00")
    assert [e["seq"] for e in response.json()["events"]] == [13, 14, 15, 16]


def test_answers_say_what_they_covered(served: Served) -> None:
    tenant = filled(served)
    covered = tenant.found("events", entity_id="0")["covered"]
    assert covered["hot"] == [{"first_seq": 13, "last_seq": 16}]
    assert covered["archive"] == [{"first_seq": 1, "last_seq": 12}]
    assert covered["archive_windows"] == 3
    assert (covered["archive_from"], covered["archive_to"]) == (
        to_iso(START_US),
        to_iso(START_US + 3 * DAY_US),
    )
    assert covered["unreadable"] == []
    hot_only = tenant.found("recent", limit=2)["covered"]
    assert (hot_only["archive"], hot_only["archive_windows"]) == ([], 0)
    one = tenant.found("events/5")["covered"]
    assert (one["archive"], one["hot"]) == ([{"first_seq": 5, "last_seq": 5}], [])


IDS = [
    "a/b",
    "a/b/../c",
    "..",
    ".",
    "a.b",
    "100%",
    "%2F",
    "a b",
    "é→日本",
    "a?b=c&d",
    "a#b",
    "/",
    "//x",
    "+",
    "'",
    '"\\',
]


@pytest.mark.parametrize("entity_id", IDS)
def test_history_takes_any_id(tenant: Tenant, entity_id: str) -> None:
    tenant.append(
        event(entity_id=entity_id), event(entity_id="other"), event(entity_id=entity_id, entity_type="x")
    )
    url = f"http://127.0.0.1:{tenant.served.address[1]}{tenant.path}/history/{quote(entity_id, safe='')}"
    # httpx would resolve dots in a path, so the request line is written by hand.
    with socket.create_connection(tenant.served.address, timeout=30) as conn:
        path = url.partition(":")[2].split("/", 3)[3]
        conn.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: conn.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], answer
    found = json.loads(body)["events"]
    assert [(e["seq"], e["entity_id"]) for e in found] == [(1, entity_id), (3, entity_id)]
    assert tenant.seqs("events", entity_id=entity_id) == [1, 3]
    assert tenant.seqs("events", entity_id=entity_id, entity_type="x") == [3]


def test_history_pages_and_orders(served: Served) -> None:
    tenant = filled(served)
    assert tenant.seqs("history/1", order="desc") == [16, 14, 12, 10, 8, 6, 4, 2]
    first = tenant.found("history/1", limit=3)
    assert tenant.seqs("history/1", limit=3, cursor=first["next_cursor"]) == [8, 10, 12]
    assert tenant.seqs("history/1", entity_type="nope") == []


# --- what is not there ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["events", "events/1", "history/1", "recent", "stats"])
@pytest.mark.parametrize("name", ["nobody", "No-Slug", "a" * 64])
def test_an_unknown_tenant(served: Served, name: str, path: str) -> None:
    response = served.client.get(f"/v1/tenants/{name}/{path}")
    is_problem(response, 404 if name == "nobody" else response.status_code)
    assert response.status_code in (400, 404)


def test_appending_to_an_unknown_tenant(served: Served) -> None:
    response = served.client.post("/v1/tenants/nobody/events", json=event())
    is_problem(response, 404, type="urn:eventstore:tenant-not-found")


@pytest.mark.parametrize(
    ("which", "status"),
    [
        ("0", 404),
        ("2", 404),
        ("999999999999999999", 404),
        ("1000000000000000000", 400),
        ("-1", 400),
        ("x", 400),
        ("1.0", 400),
        ("٣", 400),
        ("0190163d-8694-739b-aea5-966c26f8ad90", 404),
        ("ffffffff-ffff-7fff-bfff-ffffffffffff", 404),
        ("00000000-0000-7000-8000-000000000000", 404),
        ("00000000-0000-4000-8000-000000000000", 404),
        ("0190163d-8694-739b-aea5-966c26f8ad9", 400),
    ],
)
def test_an_event_that_is_not_there(tenant: Tenant, which: str, status: int) -> None:
    tenant.append(event())
    is_problem(tenant.get(f"events/{which}"), status)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "sideways"}, "order"),
        ({"seq_from": -1}, "seq_from"),
        ({"seq_to": 2**63}, "seq_to"),
        ({"partial": "perhaps"}, "partial"),
        ({"cursor": "x"}, None),
        ({"cursor": "-1"}, None),
        ({"recorded_from": "yesterday"}, None),
        ({"recorded_to": "2024-03-01T00:00:00"}, None),
        ({"occurred_from": "0001-01-01T00:00:00+14:00"}, None),
        ({"occurred_to": "9999-12-31T23:59:59-14:00"}, None),
    ],
)
def test_wrong_parameters(served: Served, params: dict[str, Any], field: str | None) -> None:
    body = is_problem(filled(served).get("events", **params), 400)
    assert body.get("field") == field
    (name,) = params
    assert name in body["detail"] or name == "cursor"


def test_wrong_methods_and_paths(served: Served) -> None:
    tenant = filled(served)
    for method in ("PUT", "PATCH", "DELETE"):
        for path in ("events", "events/1", "stats"):
            is_problem(served.client.request(method, f"{tenant.path}/{path}"), 405)
    is_problem(served.client.get("/nope"), 404)
    assert tenant.last_seq() == 16


# --- bodies that are wrong --------------------------------------------------------------------------


def line(n: int, **values: Any) -> bytes:
    return json.dumps(event(entity_id=str(n), **values)).encode()


def stream_with(broken: bytes, *, at: int = 37) -> bytes:
    return b"\n".join(broken if n == at else line(n) for n in range(1, 61))


JSON, LINES = "application/json", "application/x-ndjson"
NESTED = b"[" * 100_000 + b"]" * 100_000
WRONG: dict[str, tuple[str, bytes, int, dict[str, Any]]] = {
    "missing field": (
        JSON,
        json.dumps({k: v for k, v in REQUIRED.items() if k != "actor"}).encode(),
        422,
        {"field": "actor", "index": 0},
    ),
    "missing in the second": (
        JSON,
        json.dumps([event(), {"entity_type": "x"}]).encode(),
        422,
        {"field": "entity_id", "index": 1},
    ),
    "unknown field": (JSON, json.dumps(event(colour="red")).encode(), 422, {"field": "colour", "index": 0}),
    "empty text": (JSON, json.dumps(event(actor="")).encode(), 422, {"field": "actor", "index": 0}),
    "over-long": (
        JSON,
        json.dumps([event()] * 3 + [event(entity_id="x" * 1025)]).encode(),
        422,
        {"field": "entity_id", "index": 3},
    ),
    "null where text must be": (
        JSON,
        json.dumps(event(entity_type=None)).encode(),
        422,
        {"field": "entity_type"},
    ),
    "number where text must be": (JSON, json.dumps(event(entity_id=7)).encode(), 422, {"field": "entity_id"}),
    "bad time": (JSON, json.dumps(event(occurred_at="yesterday")).encode(), 422, {"field": "occurred_at"}),
    "time without zone": (
        JSON,
        json.dumps(event(occurred_at="2024-03-01T00:00:00")).encode(),
        422,
        {"field": "occurred_at"},
    ),
    "time before year 1": (
        JSON,
        json.dumps(event(occurred_at="0001-01-01T00:00:00+01:00")).encode(),
        422,
        {"field": "occurred_at"},
    ),
    "bad event_id": (JSON, json.dumps(event(event_id="x")).encode(), 422, {"field": "event_id"}),
    "negative version": (
        JSON,
        json.dumps(event(expected_version=-1)).encode(),
        422,
        {"field": "expected_version"},
    ),
    "huge version": (
        JSON,
        json.dumps(event(expected_version=2**63)).encode(),
        422,
        {"field": "expected_version"},
    ),
    "fractional version": (
        JSON,
        json.dumps(event(expected_version=1.5)).encode(),
        422,
        {"field": "expected_version"},
    ),
    "metadata no object": (
        JSON,
        json.dumps(event(metadata=[1])).encode(),
        422,
        {"field": "metadata", "index": 0},
    ),
    "value over its limit": (
        JSON,
        json.dumps([event(), event(new_value="x" * 1001)]).encode(),
        413,
        {"limit_bytes": VALUE_BYTES_MAX},
    ),
    "NUL in a text": (JSON, json.dumps(event(actor="a\0")).encode(), 422, {"field": "actor", "index": 0}),
    "NUL in a value": (
        JSON,
        json.dumps(event(new_value={"a": ["\0"]})).encode(),
        422,
        {"field": "new_value"},
    ),
    "NUL in a key": (JSON, json.dumps(event(metadata={"\0": 1})).encode(), 422, {"field": "metadata"}),
    "NUL in a key given twice": (
        JSON,
        json.dumps(event(new_value=7)).encode().replace(b"7", b'{"a":"\\u0000","a":1}'),
        422,
        {"field": "new_value"},
    ),
    "raw NUL": (JSON, json.dumps(event(actor="aXb")).encode().replace(b"X", b"\0"), 422, {}),
    "lone surrogate": (JSON, json.dumps(event(entity_id="\ud800")).encode(), 422, {"index": 0}),
    "lone surrogate in a value": (JSON, json.dumps(event(old_value=["\udfff"])).encode(), 422, {"index": 0}),
    "not UTF-8": (JSON, json.dumps(event(actor="aXb")).encode().replace(b"X", b"\xff"), 422, {}),
    "not UTF-8 in a line": (LINES, stream_with(line(1).replace(b"ann", b"\xff")), 422, {"line": 37}),
    "UTF-16": (JSON, json.dumps(event()).encode("utf-16"), 422, {}),
    "nothing": (JSON, b"", 422, {}),
    "white space": (JSON, b" \n ", 422, {}),
    "an empty array": (JSON, b"[]", 422, {}),
    "an empty stream": (LINES, b"\n\n", 422, {}),
    "null": (JSON, b"null", 422, {"index": 0}),
    "a number": (JSON, b"7", 422, {"index": 0}),
    "an array in an array": (JSON, b"[[]]", 422, {"index": 0}),
    "half an object": (JSON, json.dumps(event()).encode()[:-1], 422, {}),
    "two objects": (JSON, json.dumps(event()).encode() * 2, 422, {}),
    "trailing comma": (JSON, json.dumps([event()]).encode()[:-1] + b",]", 422, {}),
    "a broken line": (LINES, stream_with(b'{"entity_type": '), 422, {"line": 37}),
    "a missing field in a line": (
        LINES,
        stream_with(b'{"entity_type":"t"}'),
        422,
        {"line": 37, "field": "entity_id"},
    ),
    "a value over its limit in a line": (LINES, stream_with(line(1, old_value="x" * 1001)), 413, {}),
    "NUL in a line": (LINES, stream_with(line(1, actor="\0")), 422, {"line": 37, "field": "actor"}),
    "an array in a line": (LINES, stream_with(b"[" + line(1) + b"]"), 422, {"line": 37}),
    "deep nesting": (JSON, json.dumps(event(new_value=7)).encode().replace(b"7", NESTED), 422, {}),
    "deep nesting with blanks": (
        JSON,
        json.dumps(event(new_value=7)).encode().replace(b"7", b"[ " * 400 + b"]" * 400 + b","),
        422,
        {},
    ),
    "deep body": (JSON, NESTED, 422, {}),
    "too large": (
        JSON,
        b"[" + b",".join([json.dumps(event()).encode()] * 4000) + b"]",
        413,
        {"limit_bytes": BODY_BYTES_MAX},
    ),
    "another media type": ("text/csv", b"a,b", 415, {}),
    "a form": ("application/x-www-form-urlencoded", b"a=b", 415, {}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_bodies_are_refused_and_nothing_is_stored(tenant: Tenant, case: str) -> None:
    media_type, body, status, expected = WRONG[case]
    tenant.append(event())
    response = tenant.post(body, media_type=media_type)
    is_problem(response, status, **expected)
    assert tenant.last_seq() == 1
    assert tenant.append(event())["first_seq"] == 2  # and the server goes on


def test_a_value_over_its_limit_is_told_where(tenant: Tenant) -> None:
    body = is_problem(tenant.post([event(), event(new_value="x" * 1001)]), 413)
    assert "event 1" in body["detail"]
    assert "new_value" in body["detail"]
    tenant.append(event(new_value="x" * (VALUE_BYTES_MAX - 2)))  # exactly the limit, with its quotes


def test_huge_numbers_are_kept(tenant: Tenant) -> None:
    digits = "9" * 900
    body = json.dumps(event(new_value=7, actor="\U0001f600")).encode().replace(b"7", digits.encode())
    assert tenant.post(body).status_code == 201
    assert f'"new_value":{digits}' in tenant.get("events/1").text


def test_a_body_over_the_limit_without_content_length(tenant: Tenant) -> None:
    def parts() -> Iterator[bytes]:
        for n in range(4000):
            yield line(n) + b"\n"

    try:
        response = tenant.served.client.post(
            f"{tenant.path}/events", content=parts(), headers={"content-type": LINES}
        )
    except (httpx.WriteError, httpx.ReadError):
        pass  # refused and closed while we were still sending
    else:
        is_problem(response, 413, limit_bytes=BODY_BYTES_MAX)
    assert tenant.last_seq() == 0


def test_a_body_that_breaks_off_stores_nothing(tenant: Tenant) -> None:
    with socket.create_connection(tenant.served.address, timeout=30) as conn:
        body = line(1) + b"\n"
        conn.sendall(
            f"POST {tenant.path}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {LINES}\r\n"
            f"Content-Length: {len(body) * 2}\r\n\r\n".encode()
            + body
        )
    tenant.append(event())
    assert tenant.last_seq() == 1


def test_conflicts(tenant: Tenant) -> None:
    tenant.append(event(), event(entity_id="2"))
    body = is_problem(
        tenant.post([event(expected_version=1), event(entity_id="2", expected_version=0)]),
        409,
        type="urn:eventstore:version-conflict",
    )
    assert body["conflicts"] == [
        {"entity_type": "order", "entity_id": "2", "expected_version": 0, "actual_version": 2, "index": 1}
    ]
    assert tenant.last_seq() == 2
    assert tenant.post(event(entity_id="2", expected_version=2)).status_code == 201


# --- damage -----------------------------------------------------------------------------------------


def test_a_damaged_segment_is_an_error_unless_a_partial_answer_is_asked_for(tenant: Tenant) -> None:
    tenant.fill()
    paths = sorted((tenant.served.archive / f"tenant_id={tenant.name}").rglob("*.parquet"))
    data = bytearray(paths[1].read_bytes())
    data[200] ^= 1
    paths[1].write_bytes(data)
    key = paths[1].relative_to(tenant.served.archive).as_posix()
    for path in ("events", "history/1", "events/6", "recent"):
        body = is_problem(tenant.get(path), 500, type="urn:eventstore:archive-damage")
        assert key in body["detail"]
    page = tenant.found("events", partial="true")
    assert [e["seq"] for e in page["events"]] == [1, 2, 3, 4, *range(9, 17)]
    (missing,) = page["covered"]["unreadable"]
    assert (missing["key"], missing["first_seq"], missing["last_seq"]) == (key, 5, 8)
    assert missing["window_from"] == to_iso(START_US + DAY_US)
    assert tenant.seqs("history/1", partial="true") == [2, 4, 10, 12, 14, 16]
    assert tenant.seqs("events", seq_from=9) == list(range(9, 17))
