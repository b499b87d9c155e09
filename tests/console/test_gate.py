"""What holds for every page of the console, whichever there are: nobody comes in unknown, no role further
than it may; forms are bounded; and every answer, of whatever kind, tells the browser what to refuse."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Mount

from eventstore.console.forms import BODY_BYTES_MAX
from eventstore.console.gate import HEADERS
from eventstore.console.view import readable
from eventstore.model.access import PERMISSIONS, Permission, Role
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import Page, own_store, pages
from tests.unit.helpers import START_US, append, make_tenant, new_event

# Of these no permission is asked: whoever signs in, and is signed in, may. All others are found by `pages`.
OPEN = {
    "/console/": "shows each role what it may see",
    "/console/reason": "is about the session alone",
    "/console/sign-out": "is about the session alone",
}
ASKED = {
    "runs": Permission.OPERATE,
    "holds": Permission.HOLD,
    "exports": Permission.EXPORT,
    "checkpoint": Permission.EXPORT,
}
DOOR = {"/console/sign-in", "/console/sign-in/issuer", "/console/sign-in/done"}
VALUES = {"tenant": "acme", "seq": "1", "run_id": str(uuid.UUID(int=1)), "number": "1", "name": "case-17"}


class _Values(dict[str, str]):
    """What a parameter of a path may be; a new one is an id of something that is not there."""

    def __missing__(self, name: str) -> str:
        return str(uuid.UUID(int=1))

    def __contains__(self, name: object) -> bool:
        return True


def address(page: Page) -> str:
    return page.address(_Values(VALUES))


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedConsole]:
    with own_store(server_url, template_database, tmp_path_factory.mktemp("gate")) as (store, clock):
        make_tenant(store)
        clock.move_to(START_US)
        append(store, "acme", new_event("1"))
        with served_console(store) as running:
            yield running


@pytest.fixture(scope="module")
def walked(served: ServedConsole) -> list[Page]:
    found = pages(served.app)
    assert len(found) >= 12
    return found


@pytest.fixture(scope="module")
def ann(served: ServedConsole) -> Person:
    return served.person(Role.COMPLIANCE)


def has_headers(answer: httpx.Response) -> None:
    for name, value in HEADERS.items():
        assert answer.headers.get(name) == value, (answer.request.url, name)
    assert answer.headers["cache-control"] in ("no-store", "no-cache")


def test_every_page_asks_for_a_permission(walked: list[Page]) -> None:
    for page in walked:
        if page.path not in DOOR and page.path not in OPEN:
            assert page.permission is of_section(page.path), page


def of_section(path: str) -> Permission:
    """What the API asks for the same things."""
    return next((asks for part, asks in ASKED.items() if f"/{part}" in path), Permission.READ)


def test_whoever_is_not_signed_in_is_led_to_the_sign_in(served: ServedConsole, walked: list[Page]) -> None:
    client = served.client()
    stale = served.client(cookies={"eventstore": "x" * 43})
    for page in walked:
        if page.path in DOOR:
            continue
        where = address(page)
        for browser in (client, stale):
            answer = browser.request(page.method, where, params={"a": "b"}, data=None)
            has_headers(answer)
            assert answer.status_code == 303, page
            back = f"{where}%3Fa%3Db" if page.method == "GET" else "/console/"
            assert answer.headers["location"] == f"/console/sign-in?next={back}", page
            assert answer.content == b""
        part = client.request(
            page.method,
            where,
            headers={"hx-request": "true", "hx-current-url": f"{served.url}/console/t/acme/search?q=1"},
        )
        assert part.status_code == 401
        assert part.headers["hx-redirect"] == "/console/sign-in?next=/console/t/acme/search%3Fq%3D1"
        assert part.content == b""
    broken = {"hx-request": "true", "hx-current-url": "http://["}
    nowhere = client.get("/console/t/acme/search", headers=broken)
    assert (nowhere.status_code, nowhere.headers["hx-redirect"]) == (401, "/console/sign-in?next=/console/")


def test_no_role_comes_further_than_it_may(served: ServedConsole, walked: list[Page]) -> None:
    people = {role: served.person(role) for role in (Role.READER, Role.COMPLIANCE, Role.ADMINISTRATOR)}
    operator = served.person(Role.OPERATOR, None)
    asked = 0
    for page in walked:
        if page.permission is None:
            continue
        of_deployment = "tenant" not in page.names
        for role, person in [*people.items(), (Role.OPERATOR, operator)]:
            may = page.permission in PERMISSIONS[role]
            if of_deployment and person is not operator:
                may = False  # a tenant's key is none of the deployment
            if may:
                continue
            asked += 1
            fields = {"csrf": person.csrf} if page.method == "POST" else None
            answer = person.client.request(page.method, address(page), data=fields)
            assert answer.status_code == 403, (page, role)
            has_headers(answer)
    assert asked >= 10


def test_a_form_without_the_token_is_refused(walked: list[Page], ann: Person, served: ServedConsole) -> None:
    admin = served.person(Role.ADMINISTRATOR, None)
    tried = [page for page in walked if page.method != "GET"]
    assert len(tried) >= 3
    for page in tried:
        for fields in ({}, {"csrf": ""}, {"csrf": ann.csrf}, {"csrf": "\u20ac"}):
            answer = admin.client.post(address(page), data={**fields, "reason": "x", "name": "case-17"})
            assert answer.status_code == 403, page
            has_headers(answer)


def test_forms_are_bounded_and_nothing_else_is_taken(ann: Person) -> None:
    where = "/console/reason"
    body = f"csrf={ann.csrf}&reason="
    form = {"content-type": "application/x-www-form-urlencoded"}
    fits = body + "x" * (BODY_BYTES_MAX - len(body))

    def sent(content: bytes | str, **headers: str) -> int:
        return ann.client.post(where, content=content, headers={**form, **headers}).status_code

    assert sent(body) == 303
    assert sent(fits) == 400  # it is read, and the reason is too long
    assert sent(fits + "x") == 413
    assert sent(body, **{"content-type": "application/json"}) == 415
    assert sent(body, **{"content-type": "multipart/form-data; boundary=a"}) == 415
    assert sent(body, **{"content-type": "text/plain"}) == 415
    assert sent(body, **{"content-encoding": "gzip"}) == 415
    assert sent(body + "a&reason=b") == 400  # which of the two?
    assert sent(body + "%00") == 400
    assert sent(body + "%ff") == 400
    assert sent(b"\xff" + body.encode()) == 400
    assert sent(body + "&a=" * 300) == 400

    def in_parts() -> Iterator[bytes]:
        yield from (fits.encode(), b"x")

    assert ann.client.post(where, content=in_parts(), headers=form).status_code == 413  # says no length
    for site, status in (("same-origin", 303), ("same-site", 403), ("cross-site", 403), ("none", 403)):
        assert sent(body, **{"sec-fetch-site": site}) == status
    ours = f"http://{ann.client.base_url.netloc.decode()}"
    for origin, status in ((ours, 303), ("http://elsewhere.example", 403), ("http://[", 403), ("null", 403)):
        assert sent(body, origin=origin) == status


def test_every_kind_of_answer_has_the_headers(served: ServedConsole, ann: Person) -> None:
    client = served.client()
    kinds = {
        "/console": 308,
        "/console/": 303,
        "/console/sign-in": 200,
        "/console/nothing": 404,
        "/console/sign-in/": 404,
        "/console/static/console.css": 200,
        "/console/static/vendor/htmx.min.js": 200,
        "/console/static/../server.py": 404,
        "/console/static/%2e%2e/server.py": 404,
        "/console/static/": 404,
        "/console/%00": 400,
        "/console/?a=%00": 400,
    }
    for where, status in kinds.items():
        answer = client.get(where)
        assert answer.status_code == status, where
        has_headers(answer)
    assert client.put("/console/sign-in").status_code == 405
    has_headers(client.put("/console/sign-in"))
    assert ann.get("/console/t/acme/event/x").status_code in (400, 404)
    # The API beside it is as it was.
    assert "content-security-policy" not in client.get("/healthz").headers


def test_an_error_of_our_own_tells_nothing(
    served: ServedConsole, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(served.app.state.console.state.door.sessions, "give_reason", broken)
    answer = ann.post("/console/reason", reason="x")
    assert answer.status_code == 500
    has_headers(answer)
    assert "its log says more" in answer.text
    for hidden in ("the secret inside", "RuntimeError", "Traceback", "broken"):
        assert hidden not in answer.text


def test_files_are_kept_by_their_tag(served: ServedConsole) -> None:
    client = served.client()
    first = client.get("/console/static/console.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/console/static/console.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    has_headers(again)


def test_every_page_works_without_inline_scripts_and_styles(
    served: ServedConsole, walked: list[Page]
) -> None:
    admin = served.person(Role.ADMINISTRATOR, None)
    seen = 0
    for page in walked:
        if page.method != "GET" or page.path in DOOR:
            continue
        answer = admin.get(address(page))
        if not answer.headers.get("content-type", "").startswith("text/html"):
            continue
        seen += 1
        for inline in (" style=", " onclick", " hx-on", "<style", "javascript:", "<script>"):
            assert inline not in answer.text, (page, inline)
    assert seen >= 8


def test_the_choice_of_colours_is_the_visitor_s(served: ServedConsole) -> None:
    for cookie, shown in (("dark", ' data-theme="dark"'), ("light", ' data-theme="light"'), ('"><b>', "")):
        page = served.client(cookies={"eventstore-theme": cookie}).get("/console/sign-in").text
        assert f'<html lang="en"{shown}>' in page
    assert '<html lang="en">' in served.client().get("/console/sign-in").text


def test_where_one_is_stands_in_the_head_of_the_page(ann: Person, served: ServedConsole) -> None:
    page = ann.page("/console/t/acme/search")
    assert '<a href="/console/t/acme/search" aria-current="page">Search</a>' in page
    assert page.count('aria-current="page"') == 1
    for name in ("Overview", "Holds", "Exports"):
        assert f">{name}</a>" in page
    assert "/console/runs" not in page
    reader = served.person(Role.READER).page("/console/t/acme/search")
    assert ">Holds</a>" not in reader
    assert ">Exports</a>" not in reader
    assert ann.subject in page
    assert '<a class="skip" href="#main">' in page


def test_the_static_files_are_ours_alone(served: ServedConsole) -> None:
    (static,) = (r for r in served.app.state.console.routes if isinstance(r, Mount))
    folder = Path(str(static.app.directory))  # type: ignore[attr-defined]
    assert {f.suffix for f in folder.rglob("*") if f.is_file()} <= {".css", ".js", ".svg"}


def test_values_are_shown_as_they_are_stored() -> None:
    assert readable('"a\\u0041\\u0000"').text == "aA\ufffd"
    assert readable("1.10").text == "1.10"
    assert readable('{"n":12345678901234567890.10}').text == '{\n  "n": 12345678901234567890.10\n}'
    assert readable("null").is_none
    assert readable(None).is_none
    assert readable('""').text == ""
    assert not readable('""').is_none
    assert readable("[" * 100_000).left_out == 96_000
    assert readable(b'"\\ud800"').text == "?"
    assert readable('"' + "x" * 5000 + '"').left_out == 1000
