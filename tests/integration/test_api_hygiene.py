"""Whatever a request brings, the answer is one that is described: hostile addresses and bodies on every route
of the OpenAPI document; and how answers travel (compression, other origins)."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from eventstore.settings import Settings
from tests.integration.apiserver import Served, Tenant, event, is_problem, served_api

# Bodies that nobody can write down.
COLUMNS = {"application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"}
ORIGIN = "https://console.example.org"


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hygiene")
    with served_api(server_url, template_database, folder, cors_origins=(ORIGIN,)) as opened:
        yield opened


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return Tenant(served)


def operations(served: Served) -> list[tuple[str, str, dict[str, Any]]]:
    paths = served.client.get("/openapi.json").json()["paths"]
    return [(m.upper(), path, operation) for path, by in paths.items() for m, operation in by.items()]


def filled(path: str, tenant: str, values: dict[str, str] | None = None) -> str:
    known = {"tenant": tenant, **(values or {})}
    return re.sub(r"\{(\w+)\}", lambda m: known.get(m[1], "1"), path)


def is_described(answer: httpx.Response, operation: dict[str, Any]) -> None:
    """A status that the document has, with a media type that it has for it; and no error of the store's."""
    where = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:200]}"
    assert answer.status_code < 500, where
    described = operation["responses"].get(str(answer.status_code))
    assert described is not None, where
    kinds = {kind.partition(";")[0] for kind in described.get("content", {})}
    if answer.content:
        assert answer.headers["content-type"].partition(";")[0] in kinds, where


# --- the document -----------------------------------------------------------------------------------


def test_every_answer_and_body_has_a_schema_and_json_an_example(served: Served) -> None:
    for method, path, operation in operations(served):
        assert operation["summary"], path
        bodies = [("body", operation["requestBody"])] if "requestBody" in operation else []
        for status, one in [*operation["responses"].items(), *bodies]:
            if status in ("204", "304"):
                continue
            assert one.get("content"), f"{method} {path} {status}"
            for kind, content in one["content"].items():
                assert content.get("schema"), f"{method} {path} {status} {kind}"
                assert "example" in content, f"{method} {path} {status} {kind}"


def test_every_reference_resolves_and_every_shape_is_used(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred == set(document["components"]["schemas"])


def test_every_route_but_the_open_ones_takes_a_bearer(served: Served) -> None:
    found = {path: operation["security"] for _, path, operation in operations(served)}
    assert {path for path, security in found.items() if not security} == {"/healthz", "/readyz"}
    assert all(security in ([], [{"bearer": []}]) for security in found.values())


def test_examples_have_their_schemas_shape(served: Served) -> None:
    """Every member that a schema demands is in its example, and no other where it lets none in."""
    schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
    for method, path, operation in operations(served):
        for status, one in operation["responses"].items():
            for content in one.get("content", {}).values():
                if "example" in content:
                    fits(content["example"], content["schema"], schemas, f"{method} {path} {status}")


def fits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", ())) <= set(value), where
        assert set(value) <= set(schema["properties"]) or schema.get("additionalProperties") is not False, (
            where
        )
        for name, member in value.items():
            fits(member, schema["properties"].get(name, {}), schemas, f"{where} {name}")
    elif isinstance(value, list):
        for item in value:
            fits(item, schema.get("items", {}), schemas, where)


# --- hostile addresses ------------------------------------------------------------------------------

NOT_TEXT = ["%00", "a%00b", "%ff", "%ed%a0%80", "%f0%9f"]
HOSTILE = [*NOT_TEXT, "x" * 20_000, "%F0%9F%98%80", "..%2f..", "%2e%2e", "'%22;--"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_in_the_path_of_every_route(tenant: Tenant, text: str) -> None:
    for method, path, operation in operations(tenant.served):
        for name in re.findall(r"\{(\w+)\}", path):
            address = filled(path, tenant.name, {name: text})
            if address.endswith("/feed"):
                address += "?live=false"
            answer = ask(tenant, method, address)
            if answer.status_code in (404, 405) and answer.json()["type"] == "urn:eventstore:http":
                continue  # no route at all
            is_described(answer, operation)
            if text in NOT_TEXT:
                is_problem(answer, 400)


@pytest.mark.parametrize("text", [*HOSTILE, "1e999", "9" * 5000, "-1", "null", "NaN", "%2500"])
def test_hostile_texts_in_every_parameter(tenant: Tenant, text: str) -> None:
    for method, path, operation in operations(tenant.served):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                address = f"{filled(path, tenant.name)}?{parameter['name']}={text}"
                if path.endswith(("/feed", "/export")):
                    continue  # streams: their own tests send them such
                answer = ask(tenant, method, address)
                is_described(answer, operation)
                if text in NOT_TEXT:
                    is_problem(answer, 400)


def ask(tenant: Tenant, method: str, address: str, body: bytes | None = None) -> httpx.Response:
    content = b"{}" if body is None and method in ("POST", "PUT", "PATCH") else body
    headers = {} if content is None else {"content-type": "application/json"}
    return tenant.served.client.request(method, address, content=content, headers=headers)


@pytest.mark.parametrize("path", ["/events", "/events?events=%00", "/events?events=%ff", "/events?x=1"])
def test_the_shortcut_of_appends_looks_as_well(tenant: Tenant, path: str) -> None:
    for name in (tenant.name, "a%00b"):
        answer = ask(tenant, "POST", f"/v1/tenants/{name}{path}", json.dumps(event()).encode())
        if name == tenant.name and path == "/events":
            assert answer.status_code == 201
        else:
            is_problem(answer, 400)


def test_a_raw_nul_in_the_request_line(served: Served) -> None:
    with socket.create_connection(served.address, timeout=30) as conn:
        conn.sendall(b"GET /v1/tenants/a\0b/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert conn.recv(100).startswith(b"HTTP/1.1 400")


# --- hostile bodies ---------------------------------------------------------------------------------

DEEP = b"[" * 200_000
BODIES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"null",
    b'"x"',
    b"1e999",
    b"9" * 100_000,
    b'{"a":' * 50_000,
    DEEP,
    b'{"fields":' + DEEP,
    b'{"\\ud800":1}',
    b'{"actor":"\\u0000"}',
    b"[" + b"{}," * 1000 + b"{}]",
    gzip.compress(b"\0" * 10_000_000, mtime=0),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_hostile_bodies_on_every_route_that_takes_one(tenant: Tenant, body: bytes, encoding: str) -> None:
    for method, path, operation in operations(tenant.served):
        for media_type in operation.get("requestBody", {}).get("content", ()):
            answer = tenant.served.client.request(
                method,
                filled(path, tenant.name),
                content=body,
                headers={"content-type": media_type, "content-encoding": encoding},
            )
            is_described(answer, operation)
    assert tenant.last_seq() == 0


# --- how answers travel -----------------------------------------------------------------------------


def test_answers_are_compressed_for_who_takes_that(tenant: Tenant) -> None:
    tenant.append(*(event(entity_id=str(n)) for n in range(100)))
    client, url = tenant.served.client, f"{tenant.path}/events?limit=100"
    plain = client.get(url, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with client.stream("GET", url, headers={"accept-encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert "accept-encoding" in answer.headers["vary"].lower()
        raw = b"".join(answer.iter_raw())
    assert len(raw) < len(plain.content) / 5
    assert gzip.decompress(raw) == plain.content
    small = client.get(f"{tenant.path}/stats", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers


def test_a_feed_is_not_held_back_by_compression(tenant: Tenant) -> None:
    """The event comes while the stream is open: whoever compresses it in blocks would sit on it."""
    tenant.append(event())
    headers = {"accept": "text/event-stream", "accept-encoding": "gzip"}
    with tenant.served.client.stream("GET", f"{tenant.path}/feed?since=0", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in answer.headers
        seen = b""
        for part in answer.iter_raw():
            seen += part
            if b'"seq":1' in seen:
                break
    assert b'"seq":1' in seen


def test_pages_of_listed_origins_may_ask_and_no_others(served: Served, tenant: Tenant) -> None:
    client = served.client
    url = f"{tenant.path}/events/1"
    asking = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    allowed = client.options(url, headers={"origin": ORIGIN, **asking})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "access-control-allow-credentials" not in allowed.headers
    other = client.options(url, headers={"origin": "https://evil.example", **asking})
    assert "access-control-allow-origin" not in other.headers
    # A problem is to be read by the page as well.
    assert client.get(url, headers={"origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in client.get(url, headers={"origin": "https://x"}).headers


def test_no_origin_is_let_in_unless_the_settings_say_so(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert Settings().cors_origins == ()
    with served_api(server_url, template_database, tmp_path_factory.mktemp("plain")) as plain:
        answer = plain.client.get("/healthz", headers={"origin": ORIGIN})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["console.example.org", "https://x/path", "https://x y", "ftp://x"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_origins=(origin,))
