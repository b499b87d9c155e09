"""Who gets in: keys from their making to their end, in one process and in several, and persons' tokens."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from eventstore.access import watch
from eventstore.access.authenticator import Authenticator
from eventstore.access.oidc import OidcVerifier
from eventstore.api.server import create_app
from eventstore.app import Store
from eventstore.cli.main import app as cli
from eventstore.cli.output import console
from eventstore.cli.serving import _tell_how_to_begin
from eventstore.clock import US_PER_S, FixedClock
from eventstore.db.engine import Database
from eventstore.errors import (
    BusyError,
    ForbiddenError,
    InputError,
    KeyNotFoundError,
    RetryError,
    StateError,
    TenantClosedError,
    TenantNotFoundError,
    UnauthenticatedError,
)
from eventstore.governance import keys as keys_module
from eventstore.governance.keys import create_key, revoke_key, rotate_key
from eventstore.model.access import Principal, Role
from eventstore.model.apikey import new_key_text
from eventstore.model.limits import Limits
from eventstore.settings import Settings
from tests.conftest import TODAY_US
from tests.integration.issuer import Issuer
from tests.unit.helpers import DAY_US, HOUR_US, execute, make_tenant
from tests.waiting import until

HERE = "127.0.0.1"
ELSEWHERE = "203.0.113.9"
LOCAL_HEADERS = [(b"host", b"127.0.0.1")]
EVENT = {"entity_type": "order", "entity_id": "1", "action": "made", "actor": "ann", "source": "web"}


class Process:
    """An API process, asked without a socket: so a request can come from any address."""

    def __init__(self, store: Store) -> None:
        self.app = create_app(store)

    @contextmanager
    def running(self) -> Iterator[Process]:
        with start_blocking_portal() as portal:
            self._portal = portal
            with portal.wrap_async_context_manager(self.app.router.lifespan_context(self.app)):
                yield self

    @property
    def authenticator(self) -> Authenticator:
        found = self.app.state.authentication.authenticator
        assert isinstance(found, Authenticator)
        return found

    def ask(
        self,
        method: str,
        path: str,
        key: str | None = None,
        *,
        peer: str = HERE,
        host: str = HERE,
        headers: dict[str, str] | None = None,
        body: Any = None,
        content: Any = None,
    ) -> httpx.Response:
        given = {
            "host": host,
            **({} if key is None else {"authorization": f"Bearer {key}"}),
            **(headers or {}),
        }

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(peer, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers=given, json=body, content=content)

        return self._portal.call(ask)

    def admits(self, key: str) -> bool:
        status = self.ask("GET", "/v1/keys", key).status_code
        assert status in (200, 401, 403)
        return status != 401

    def refuses(self, key: str) -> bool:
        return not self.admits(key)

    def remembers(self, key: str) -> bool:
        return self.authenticator.remembered(key.encode(), ELSEWHERE, []) is not None

    def remembers_after_asking(self, key: str) -> bool:
        assert self.admits(key)
        return self.remembers(key)


@pytest.fixture
def process(store: Store) -> Iterator[Process]:
    with Process(store).running() as running:
        yield running


@pytest.fixture
def another(store: Store) -> Iterator[Process]:
    with Process(store).running() as running:
        yield running


def a_key(
    database: Database, role: Role = Role.ADMINISTRATOR, tenant: str | None = None, **more: Any
) -> tuple[str, str]:
    """A new key's id and text."""
    key, text = create_key(
        database, role=role, tenant_id=tenant, by="ann", now_us=more.pop("now_us", database.now_us()), **more
    )
    return key.key_id, text


# --- the beginning ------------------------------------------------------------------------------------


def test_until_there_is_an_administrator_this_machine_alone_is_served(
    process: Process, another: Process, store: Store
) -> None:
    others: list[dict[str, Any]] = [
        {"peer": ELSEWHERE},
        {"headers": {"x-forwarded-for": ELSEWHERE}},
        {"headers": {"forwarded": "for=203.0.113.9"}},
        {"headers": {"via": "1.1 proxy"}},
        {"host": "evil.example"},
        {"headers": {"origin": "https://evil.example"}},
    ]
    for served in (process, another):
        assert served.ask("GET", "/v1/keys").status_code == 200
        for other in others:
            answer = served.ask("GET", "/v1/keys", **other)
            assert answer.status_code == 401, other
            assert "eventstore keys create --role administrator" in answer.json()["hint"]
            assert served.ask("GET", "/healthz", **other).status_code == 200
    # A tenant's key is no administrator: it lets nobody in from elsewhere yet.
    make_tenant(store)
    _, tenants = a_key(store.database, Role.ADMINISTRATOR, "acme")
    keys = "/v1/tenants/acme/keys"
    assert process.ask("GET", keys, tenants).status_code == 200
    assert process.ask("GET", keys, tenants, peer=ELSEWHERE).status_code == 401
    assert process.ask("GET", keys, tenants, headers={"via": "1.1 proxy"}).status_code == 401

    made = process.ask("POST", "/v1/keys", body={"role": "administrator", "label": "first"})
    assert made.status_code == 201
    key = made.json()["key"]
    until(lambda: another.ask("GET", "/v1/keys").status_code == 401, "the other process hears of it")
    for served in (process, another):
        assert served.ask("GET", "/v1/keys").status_code == 401
        assert served.ask("GET", "/v1/keys", key, peer=ELSEWHERE, host="events.example").status_code == 200
        assert served.ask("GET", keys, tenants, peer=ELSEWHERE).status_code == 200
        assert served.ask("GET", "/no-such-path").status_code == 401


def test_without_its_administrator_a_store_does_not_open_again(process: Process, store: Store) -> None:
    key_id, key = a_key(store.database)
    assert process.ask("DELETE", f"/v1/keys/{key_id}", key).status_code == 200
    assert process.ask("GET", "/v1/keys").status_code == 401
    fresh = Authenticator(store.database)
    assert fresh.is_administered()
    # As after a rebuild from the archive, which brings the record back and no key.
    execute(store.database.url, "DELETE FROM api_keys")
    assert Authenticator(store.database).is_administered()


def test_the_start_says_how_to_make_the_first_administrator(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell_how_to_begin(store)
    assert "eventstore keys create --role administrator" in capsys.readouterr().err
    a_key(store.database)
    _tell_how_to_begin(store)
    assert capsys.readouterr().err == ""


# --- a key's life -------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_stored_hashed(process: Process, store: Store) -> None:
    _, admin = a_key(store.database)
    made = process.ask(
        "POST", "/v1/keys", admin, body={"role": "reader", "label": "reports", "expires_in": "1h"}
    )
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    shown = made.json()
    text = shown.pop("key")
    assert text.startswith(f"es_{shown['key_id']}_")
    listed = process.ask("GET", "/v1/keys", admin)
    assert [key["label"] for key in listed.json()["keys"]] == ["", "reports"]
    assert listed.json()["keys"][1] == shown
    secret = text.rpartition("_")[2]
    assert secret not in listed.text
    (stored,) = execute(store.database.url, f"SELECT * FROM api_keys WHERE key_id = '{shown['key_id']}'")
    assert hashlib.sha256(text.encode()).digest() in stored
    recorded = execute(store.database.url, "SELECT kind, actor, tenant_id, document FROM governance")
    assert secret not in str(stored) + str(recorded)
    assert [row[0] for row in recorded] == ["key_created", "key_created"]
    admin_id = process.ask("GET", "/v1/keys?limit=1", admin).json()["keys"][0]["key_id"]
    assert recorded[1][1] == f"key:{admin_id}"
    assert recorded[1][3]["key_id"] == shown["key_id"]


def test_every_change_of_a_key_is_in_the_record_and_its_copy(store: Store, archive_dir: Path) -> None:
    make_tenant(store)
    with Process(store).running() as process:
        made = process.ask("POST", "/v1/tenants/acme/keys", body={"role": "writer"}).json()
        path = f"/v1/tenants/acme/keys/{made['key_id']}"
        new = process.ask("POST", f"{path}/rotate", body={"overlap": "1h"}).json()
        assert process.ask("DELETE", path).json()["revoked_by"] == "loopback"
    rows = execute(
        store.database.url,
        "SELECT kind, tenant_id, document FROM governance WHERE kind LIKE 'key%' ORDER BY entry_no",
    )
    assert [(kind, tenant) for kind, tenant, _ in rows] == [
        ("key_created", "acme"),
        ("key_rotated", "acme"),
        ("key_revoked", "acme"),
    ]
    assert rows[1][2]["replaces"] == rows[2][2]["key_id"] == made["key_id"]
    assert rows[1][2]["key_id"] == new["key_id"]
    copies = [path.read_text() for path in archive_dir.rglob("*") if path.is_file()]
    assert sum('"kind": "key_' in copy for copy in copies) == 3


def test_rotation_overlaps(database: Database) -> None:
    clock = FixedClock(TODAY_US)
    deciding = Authenticator(database, clock=clock)
    a_key(database)
    old_id, old = a_key(
        database,
        Role.READER,
        label="reports",
        expires_us=TODAY_US + 30 * DAY_US,
        now_us=TODAY_US,
        limits=Limits(requests_per_s=7),
    )
    when = {"by": "ann", "now_us": TODAY_US + DAY_US}
    new, text, ending = rotate_key(database, old_id, overlap_us=HOUR_US, **when)
    assert (new.role, new.label, new.limits, new.replaces) == (
        Role.READER,
        "reports",
        Limits(requests_per_s=7),
        old_id,
    )
    assert new.expires_us == TODAY_US + 31 * DAY_US
    assert ending.expires_us == TODAY_US + DAY_US + HOUR_US

    def admitted(key: str, at_us: int) -> bool:
        clock.move_to(at_us)
        try:
            return deciding.authenticate(key.encode(), ELSEWHERE, []).limits == Limits(requests_per_s=7)
        except UnauthenticatedError:
            return False

    end_us = ending.expires_us
    assert [admitted(old, at) for at in (end_us - 1, end_us)] == [True, False]
    assert [admitted(text, at) for at in (end_us - 1, end_us, TODAY_US + 31 * DAY_US)] == [True, True, False]
    # An overlap gives the old key no more time than it had.
    late_id, _ = a_key(database, Role.READER, expires_us=TODAY_US + 60, now_us=TODAY_US)
    _, _, ending = rotate_key(database, late_id, overlap_us=HOUR_US, by="ann", now_us=TODAY_US)
    assert ending.expires_us == TODAY_US + 60
    with pytest.raises(StateError, match="ended on"):
        rotate_key(database, late_id, overlap_us=0, by="ann", now_us=TODAY_US + 60)
    with pytest.raises(KeyNotFoundError):
        rotate_key(database, "reader-0000000000", overlap_us=0, by="ann", now_us=TODAY_US)


def test_a_key_ends_at_its_time_also_where_it_is_remembered(database: Database) -> None:
    clock = FixedClock(TODAY_US)
    deciding = Authenticator(database, clock=clock)
    _, key = a_key(database, expires_us=TODAY_US + US_PER_S, now_us=TODAY_US)
    deciding.start()
    try:
        until(
            lambda: deciding.authenticate(key.encode(), ELSEWHERE, []) and remembered(deciding, key),
            "the key is remembered",
        )
        clock.move_to(TODAY_US + US_PER_S - 1)
        assert remembered(deciding, key)
        clock.move_to(TODAY_US + US_PER_S)
        assert not remembered(deciding, key)
        with pytest.raises(UnauthenticatedError):
            deciding.authenticate(key.encode(), ELSEWHERE, [])
    finally:
        deciding.close()
    with pytest.raises(InputError, match="would have ended"):
        a_key(database, expires_us=TODAY_US, now_us=TODAY_US)


def remembered(deciding: Authenticator, key: str) -> Principal | None:
    return deciding.remembered(key.encode(), ELSEWHERE, [])


def test_the_last_use_is_stored_now_and_then(process: Process, store: Store) -> None:
    key_id, key = a_key(store.database)
    versions = f"SELECT xmin::text, last_used_us FROM api_keys WHERE key_id = '{key_id}'"
    before = execute(store.database.url, versions)
    before_us = store.database.now_us()
    for _ in range(50):
        assert process.admits(key)
    assert execute(store.database.url, versions) == before, "a request wrote"
    process.authenticator.store_uses()
    ((_, used_us),) = execute(store.database.url, versions)
    assert before_us - US_PER_S < used_us <= store.database.now_us() + US_PER_S
    # An older use, of a process that was slow to tell, takes nothing back.
    process.authenticator._uses[key_id] = used_us - 1
    process.authenticator.store_uses()
    ((_, still_us),) = execute(store.database.url, versions)
    assert still_us == used_us


def test_uses_that_cannot_be_stored_are_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, key = a_key(database)
    deciding = Authenticator(database)
    deciding.authenticate(key.encode(), ELSEWHERE, [])
    with monkeypatch.context() as patched:
        patched.setattr(database, "transaction", _busy)
        deciding.store_uses()
    deciding.store_uses()
    ((used_us,),) = execute(database.url, f"SELECT last_used_us FROM api_keys WHERE key_id = '{key_id}'")
    assert used_us is not None


@contextmanager
def _busy() -> Iterator[None]:
    raise BusyError("no database today")
    yield


# --- revocation ---------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that believe for a minute what they were not told is changed."""
    monkeypatch.setattr(watch, "_BEAT_S", 60.0)
    monkeypatch.setattr(watch, "BELIEVED_S", 120.0)


@pytest.mark.usefixtures("patient")
def test_a_revoked_key_ends_at_once_in_every_process(
    store: Store, process: Process, another: Process
) -> None:
    """Only the notice can tell them here: they would not ask for a minute."""
    _, admin = a_key(store.database)
    for _ in range(5):
        made = process.ask("POST", "/v1/keys", admin, body={"role": "operator"}).json()
        for served in (process, another):
            until(partial(served.remembers_after_asking, made["key"]), "the key is remembered")
        assert process.ask("DELETE", f"/v1/keys/{made['key_id']}", admin).status_code == 200
        for served in (process, another):
            until(partial(served.refuses, made["key"]), "the key is refused", within_s=1.0)


def test_a_notice_that_went_astray_is_made_good(store: Store, process: Process) -> None:
    key_id, key = a_key(store.database)
    until(partial(process.remembers_after_asking, key), "the key is remembered")
    change = "SET revoked_us = 1, revoked_by = 'x', changed_no = changed_no + 1"
    execute(store.database.url, f"UPDATE api_keys {change} WHERE key_id = '{key_id}'")
    until(lambda: not process.admits(key), "the change is noticed", within_s=3.0)


@pytest.mark.usefixtures("patient")
def test_what_cannot_hear_of_changes_believes_nothing(
    store: Store, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, key = a_key(store.database)
    until(partial(process.remembers_after_asking, key), "the key is remembered")
    with monkeypatch.context() as cut:
        # Its listening connection is lost, and it gets no other.
        cut.setattr(watch, "_BEAT_S", 0.01)
        cut.setattr(Database, "connect_apart", _no_connection)
        execute(
            store.database.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%max(api_keys.changed_no)%'"
            " AND pid <> pg_backend_pid()",
        )
        until(lambda: process.authenticator._watch.believed_until == 0.0, "nothing is believed")
        for _ in range(3):
            assert process.admits(key)  # each time from the database
            assert not process.remembers(key)
        revoke_key(store.database, key_id, by="ann", now_us=store.database.now_us())
        assert not process.admits(key)
    _, other = a_key(store.database)
    until(partial(process.remembers_after_asking, other), "the key is remembered")
    assert not process.admits(key)


def _no_connection(_: Database) -> psycopg.Connection[Any]:
    raise BusyError("nobody answers")


def test_a_silent_network_is_not_believed_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that hangs, as with a network that swallows everything, vouches for three seconds."""
    _, key = a_key(database)
    deciding = Authenticator(database)
    deciding.start()
    try:
        until(
            lambda: deciding.authenticate(key.encode(), ELSEWHERE, []) and remembered(deciding, key),
            "the key is remembered",
        )
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 3.01 + 1.0)
        deciding._watch._over.set()  # it says nothing from here on
        assert deciding._watch.believed_until <= now_s + watch.BELIEVED_S
        assert not remembered(deciding, key)
    finally:
        monkeypatch.undo()
        deciding.close()


def test_what_was_read_before_a_change_is_not_remembered_after_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that began before the revocation and ends after it, the notice in between."""
    from eventstore.access import authenticator as module

    key_id, key = a_key(database)
    deciding = Authenticator(database)
    deciding._watch.believed_until = time.monotonic() + 60
    found = module.find_key

    def slow(conn: Any, text: bytes) -> Any:
        read = found(conn, text)
        revoke_key(database, key_id, by="ann", now_us=database.now_us())
        deciding._forget()
        return read

    monkeypatch.setattr(module, "find_key", slow)
    deciding.authenticate(key.encode(), ELSEWHERE, [])  # it held when it was asked for
    monkeypatch.undo()
    assert not remembered(deciding, key)
    with pytest.raises(UnauthenticatedError):
        deciding.authenticate(key.encode(), ELSEWHERE, [])


# --- what is wrong with it is not told ----------------------------------------------------------------


def test_whatever_is_wrong_with_a_key_is_answered_alike(process: Process, store: Store) -> None:
    database = store.database
    key_id, admin = a_key(database)
    revoked_id, revoked = a_key(database, Role.READER)
    revoke_key(database, revoked_id, by="ann", now_us=database.now_us())
    _, expired = a_key(database, Role.READER, now_us=TODAY_US - DAY_US, expires_us=TODAY_US - 1)
    _, secret = new_key_text(Role.ADMINISTRATOR)
    wrong = [
        f"es_{key_id}_{secret.rpartition('_')[2]}",
        new_key_text(Role.ADMINISTRATOR)[1],
        revoked,
        expired,
        admin[:-1],
        "es_",
        "",
        "x.y.z",
        admin.upper(),
        "é" * 40,
        "a" * 20_000,
    ]
    asked = [("GET", "/v1/keys"), ("POST", "/v1/tenants/acme/events"), ("GET", "/v1/tenants/acme/events/1")]
    answers = {
        (answer.status_code, answer.content, answer.headers["www-authenticate"])
        for key in wrong
        for method, path in asked
        for answer in [process.ask(method, path, headers={"authorization": f"Bearer {key}".encode()})]
    }
    answers |= {
        (answer.status_code, answer.content, answer.headers["www-authenticate"])
        for given in ("Basic YTpi", admin, "Bearer")
        for answer in [process.ask("GET", "/v1/keys", headers={"authorization": given})]
    }
    assert len(answers) == 1
    assert next(iter(answers))[0] == 401
    assert process.admits(admin)


def test_an_append_is_refused_before_its_body_is_read(process: Process, store: Store) -> None:
    make_tenant(store)
    a_key(store.database)
    _, writer = a_key(store.database, Role.WRITER, "acme")
    _, reader = a_key(store.database, Role.READER, "acme")
    _, foreign = a_key(store.database, Role.WRITER, make_tenant(store, "rival").tenant_id)
    read = []

    async def body() -> Any:
        read.append(1)
        yield json.dumps(EVENT).encode()

    def append(key: str | None) -> int:
        headers = {"content-type": "application/json"}
        return process.ask(
            "POST", "/v1/tenants/acme/events", key, headers=headers, content=body()
        ).status_code

    assert [append(key) for key in (None, "es_x", reader, foreign)] == [401, 401, 403, 404]
    assert not read
    assert append(writer) == 201
    assert read


# --- tenants ------------------------------------------------------------------------------------------


def test_a_tenants_administrator_has_to_do_with_its_own_keys_alone(process: Process, store: Store) -> None:
    make_tenant(store)
    make_tenant(store, "rival")
    root_id, root = a_key(store.database)
    _, admin = a_key(store.database, Role.ADMINISTRATOR, "acme")
    rival_id, rival = a_key(store.database, Role.WRITER, "rival")
    keys = "/v1/tenants/acme/keys"
    made = process.ask("POST", keys, admin, body={"role": "writer", "label": "web"})
    assert made.status_code == 201
    assert (made.json()["tenant"], made.json()["created_by"][:18]) == ("acme", "key:administrator-")
    listed = process.ask("GET", keys, admin).json()["keys"]
    assert [key["tenant"] for key in listed] == ["acme", "acme"]
    unknown = process.ask("DELETE", f"{keys}/writer-0000000000", admin)
    for foreign_id in (rival_id, root_id):
        for method, path in (("DELETE", f"{keys}/{foreign_id}"), ("POST", f"{keys}/{foreign_id}/rotate")):
            answer = process.ask(method, path, admin)
            assert answer.status_code == 404
            assert answer.text.replace(foreign_id, "writer-0000000000") == unknown.text
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", f"/v1/keys/{rival_id}")):
        assert process.ask(method, path, admin).status_code == 403
    assert process.ask("GET", "/v1/tenants/rival/keys", admin).status_code == 404
    assert process.ask("POST", keys, admin, body={"role": "writer", "tenant": "rival"}).status_code == 400
    assert (
        process.ask("POST", keys, admin, body={"role": "writer", "limits": {"feeds_max": 9}}).status_code
        == 403
    )
    assert process.ask("GET", keys, made.json()["key"]).status_code == 403
    assert process.admits(rival)
    everyone = process.ask("GET", "/v1/keys", root).json()["keys"]
    assert len(everyone) == 4
    limited = {"role": "writer", "tenant": "acme", "limits": {"feeds_max": 9}}
    assert process.ask("POST", "/v1/keys", root, body=limited).json()["limits"] == {"feeds_max": 9}


def test_a_tenants_administrator_stays_within_its_limits(
    process: Process, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tenant(store)
    now_us = store.database.now_us()
    _, admin = create_key(
        store.database,
        role=Role.ADMINISTRATOR,
        tenant_id="acme",
        by="test",
        now_us=now_us,
        limits=Limits(feeds_max=3),
    )
    keys = "/v1/tenants/acme/keys"
    made = process.ask("POST", keys, admin, body={"role": "reader"}).json()
    assert made["limits"] == {"feeds_max": 3}
    monkeypatch.setattr(keys_module, "TENANT_KEYS_MAX", 3)
    assert process.ask("DELETE", f"{keys}/{made['key_id']}", admin).status_code == 200
    other = process.ask("POST", keys, admin, body={"role": "reader"}).json()
    for path in (keys, f"{keys}/{other['key_id']}/rotate"):
        body = {"role": "reader"} if path == keys else None
        assert process.ask("POST", path, admin, body=body).status_code == 409, "a revoked one counts, too"
    assert a_key(store.database, Role.READER)


def test_keys_are_listed_a_page_at_a_time(process: Process, store: Store) -> None:
    _, root = a_key(store.database)
    made = [a_key(store.database, Role.READER)[0] for _ in range(4)]
    revoke_key(store.database, made[1], by="ann", now_us=store.database.now_us())
    for ended, expected in (("false", [made[0], *made[2:]]), ("true", made)):
        found: list[str] = []
        cursor = ""
        while True:
            page = process.ask("GET", f"/v1/keys?limit=2&ended={ended}{cursor}", root).json()
            found += [key["key_id"] for key in page["keys"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert found[1:] == expected


IMPOSSIBLE: list[tuple[Any, int]] = [
    ({}, 400),
    ({"role": "root"}, 400),
    ({"role": "reader", "tenant": "never-was"}, 404),
    ({"role": "reader", "tenant": "a\0b"}, 404),
    ({"role": "reader", "label": "a\0b"}, 400),
    ({"role": "reader", "label": "x" * 201}, 400),
    ({"role": "reader", "expires": "2020-01-01T00:00:00Z"}, 400),
    ({"role": "reader", "expires": "2099-01-01T00:00:00Z", "expires_in": "1d"}, 400),
    ({"role": "reader", "expires_in": "soon"}, 400),
    ({"role": "reader", "expires_in": "0s"}, 400),
    ({"role": "reader", "limits": {"requests_per_s": 0}}, 400),
    ({"role": "reader", "limits": {"wishes": 3}}, 400),
    ({"role": "reader", "colour": "red"}, 400),
    ([], 400),
    (None, 400),
]


def test_a_key_that_cannot_be_is_refused(process: Process, store: Store) -> None:
    for body, status in IMPOSSIBLE:
        assert process.ask("POST", "/v1/keys", body=body).status_code == status, body
    assert execute(store.database.url, "SELECT count(*) FROM api_keys") == [(0,)]
    assert execute(store.database.url, "SELECT count(*) FROM governance WHERE kind LIKE 'key%'") == [(0,)]


def test_a_tenant_that_is_closed_gets_no_keys(store: Store) -> None:
    make_tenant(store)
    execute(store.database.url, "UPDATE tenants SET state = 'closing'")
    with pytest.raises(TenantClosedError):
        a_key(store.database, Role.READER, "acme")
    with pytest.raises(TenantNotFoundError):
        a_key(store.database, Role.READER, "never-was")


# --- persons ------------------------------------------------------------------------------------------


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    yield running
    running.close()


@pytest.fixture
def signing_in(store: Store, issuer: Issuer) -> Iterator[Process]:
    """A process that takes the issuer's tokens."""
    settings = Settings(
        **{
            **store.settings.model_dump(exclude_unset=True),
            "oidc_issuer": issuer.url,
            "oidc_audience": "eventstore",
        }
    )
    with Process(replace(store, settings=settings)).running() as running:
        yield running


def test_persons_sign_in_with_tokens(signing_in: Process, store: Store, issuer: Issuer) -> None:
    make_tenant(store)
    make_tenant(store, "rival")
    stats = "/v1/tenants/acme/stats"
    assert signing_in.ask("GET", stats).status_code == 401, (
        "an issuer is an administrator: loopback is closed"
    )
    for kid in ("rsa", "ec"):
        token = issuer.token(kid)
        assert signing_in.ask("GET", stats, token, peer=ELSEWHERE).status_code == 200
        assert signing_in.ask("GET", "/v1/tenants/rival/stats", token).status_code == 404
        assert signing_in.ask("GET", "/v1/keys", token).status_code == 403
    everywhere = issuer.token(eventstore_tenant="*", eventstore_role="administrator")
    made = signing_in.ask("POST", "/v1/keys", everywhere, body={"role": "reader", "tenant": "acme"}).json()
    assert made["created_by"] == "oidc:ann@example"
    assert signing_in.ask("GET", stats, made["key"]).status_code == 200
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


def test_a_token_that_does_not_hold_is_answered_as_a_key_that_does_not(
    signing_in: Process, issuer: Issuer
) -> None:
    key, _ = issuer.keys["rsa"]
    public = key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    past = int(time.time()) - 120
    good = issuer.token()
    head, payload, signature = good.split(".")
    forger = rsa.generate_private_key(65537, 2048)
    wrong = {
        "none": jwt.encode(issuer.claims(), None, "none", headers={"kid": "rsa"}),
        "none-with-signature": f"{_part({'alg': 'none', 'kid': 'rsa'})}.{payload}.{signature}",
        "hs256-by-the-public-key": _hs256(issuer.claims(), pem),
        "hs256-named-rs256": f"{head}.{payload}.{_hs256(issuer.claims(), pem).split('.')[2]}",
        "another-audience": issuer.token(aud="other"),
        "another-issuer": issuer.token(iss="https://evil.example"),
        "expired": issuer.token(exp=past),
        "not-yet": issuer.token(nbf=int(time.time()) + 120),
        "made-in-the-future": issuer.token(iat=int(time.time()) + 120),
        **{f"without-{name}": issuer.token(**{name: None}) for name in ("exp", "iat", "iss", "aud", "sub")},
        "a-forger's": jwt.encode(issuer.claims(), forger, "RS256", headers={"kid": "rsa"}),
        "another-key's-name": jwt.encode(issuer.claims(), key, "RS256", headers={"kid": "ec"}),
        "an-unknown-key": jwt.encode(issuer.claims(), forger, "RS256", headers={"kid": "forged"}),
        "no-key": jwt.encode(issuer.claims(), key, "RS256"),
        "another-payload": f"{head}.{_part(issuer.claims(eventstore_tenant='*'))}.{signature}",
        "another-algorithm": jwt.encode(issuer.claims(), key, "PS256", headers={"kid": "rsa"}),
        "critical": issuer.token(header={"crit": ["x"], "x": 1}),
        "cut": good[:-4],
        "an-empty-subject": issuer.token(sub=" "),
        "too-long": issuer.token(more="x" * 20_000),
        "a-key": new_key_text(Role.READER)[1],
    }
    answers: dict[tuple[int, bytes], list[str]] = {}
    for name, token in wrong.items():
        answer = signing_in.ask("GET", "/v1/tenants/acme/stats", token)
        answers.setdefault((answer.status_code, answer.content), []).append(name)
    assert list(answers.values()) == [list(wrong)]
    assert next(iter(answers))[0] == 401


def _part(document: dict[str, Any]) -> str:
    return jwt.utils.base64url_encode(json.dumps(document).encode()).decode()


def _hs256(claims: dict[str, Any], secret: bytes) -> str:
    """Made by hand: the library refuses to sign with a public key."""
    import hmac

    signed = f"{_part({'alg': 'HS256', 'kid': 'rsa', 'typ': 'JWT'})}.{_part(claims)}"
    digest = hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{jwt.utils.base64url_encode(digest).decode()}"


def test_keys_that_the_issuer_changes_are_followed(issuer: Issuer) -> None:
    verifier = OidcVerifier(issuer.config(jwks_url=f"{issuer.url}/keys"), unknown_key_s=0.0)
    before = issuer.token()
    assert verifier.principal_of(before.encode()) == Principal(
        "oidc:ann@example", Role.COMPLIANCE, "acme", person=True
    )
    assert issuer.asked == ["/keys"]
    del issuer.keys["rsa"]
    issuer.add("new", rsa.generate_private_key(65537, 2048), "RS256")
    assert verifier.principal_of(issuer.token("new").encode()).tenant == "acme"
    assert issuer.asked == ["/keys"] * 2
    # The key that was withdrawn is out with the set that it is not in.
    with pytest.raises(UnauthenticatedError):
        verifier.principal_of(before.encode())


def test_unknown_keys_do_not_make_us_ask_each_time(issuer: Issuer) -> None:
    verifier = OidcVerifier(issuer.config(jwks_url=f"{issuer.url}/keys"))
    for n in range(5):
        with pytest.raises(UnauthenticatedError):
            verifier.principal_of(issuer.token(header={"kid": f"forged-{n}"}).encode())
    assert issuer.asked == ["/keys"]


def test_an_issuer_that_is_away_lets_nobody_pass(signing_in: Process, store: Store, issuer: Issuer) -> None:
    make_tenant(store)
    _, key = a_key(store.database, Role.READER, "acme")
    token = issuer.token()
    issuer.status = 500
    answer = signing_in.ask("GET", "/v1/tenants/acme/stats", token)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert signing_in.ask("GET", "/v1/tenants/acme/stats", token).status_code == 503
    assert len(issuer.asked) == 1, "it is not asked again at once"
    assert signing_in.ask("GET", "/v1/tenants/acme/stats", key).status_code == 200


@pytest.mark.parametrize("trouble", ["gone", "an error", "no keys", "another issuer", "an unsafe address"])
def test_keys_that_cannot_be_had(issuer: Issuer, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = OidcVerifier(issuer.config(), away_s=0.0, keys_s=0.001, unknown_key_s=0.0)
    token = issuer.token().encode()
    if trouble == "gone":
        verifier = OidcVerifier(replace(issuer.config(), jwks_url="http://127.0.0.1:9/keys"))
    elif trouble == "an error":
        issuer.status = 404
    elif trouble == "no keys":
        monkeypatch.setattr(
            issuer, "answer", lambda path: {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
        )
    elif trouble == "another issuer":
        issuer.said_issuer = "https://evil.example"
    else:
        # The same server, by an address that is not this machine's own.
        issuer.said_keys = f"{issuer.url}/keys".replace(HERE, "0.0.0.0")
    with pytest.raises(RetryError):
        verifier.principal_of(token)
    if trouble in ("gone", "an error"):
        return
    monkeypatch.undo()
    issuer.said_issuer = issuer.said_keys = None
    assert verifier.principal_of(token).tenant == "acme"


@pytest.mark.parametrize(
    ("claims", "role", "tenant"),
    [
        ({}, Role.COMPLIANCE, "acme"),
        ({"eventstore_role": ["reader", "offline_access"]}, Role.READER, "acme"),
        ({"eventstore_role": ["reader", "compliance"]}, Role.COMPLIANCE, "acme"),
        ({"eventstore_role": ["writer", "administrator", "reader"]}, Role.ADMINISTRATOR, "acme"),
        ({"eventstore_tenant": ["rival"]}, Role.COMPLIANCE, "rival"),
        ({"eventstore_tenant": "*"}, Role.COMPLIANCE, None),
    ],
    ids=str,
)
def test_what_claims_give(issuer: Issuer, claims: dict[str, Any], role: Role, tenant: str | None) -> None:
    found = OidcVerifier(issuer.config()).principal_of(issuer.token(**claims).encode())
    assert (found.role, found.tenant, found.person) == (role, tenant, True)


@pytest.mark.parametrize(
    "claims",
    [
        {"eventstore_role": None},
        {"eventstore_role": "root"},
        {"eventstore_role": []},
        {"eventstore_role": ["reader", "writer"]},
        {"eventstore_role": {"reader": True}},
        {"eventstore_tenant": None},
        {"eventstore_tenant": ""},
        {"eventstore_tenant": ["acme", "rival"]},
        {"eventstore_tenant": ["*", "acme"]},
        {"eventstore_tenant": "No Slug"},
        {"eventstore_tenant": 7},
    ],
    ids=str,
)
def test_claims_that_give_nothing(issuer: Issuer, claims: dict[str, Any]) -> None:
    with pytest.raises(ForbiddenError):
        OidcVerifier(issuer.config()).principal_of(issuer.token(**claims).encode())


def test_claims_of_the_issuers_own_making(issuer: Issuer) -> None:
    config = issuer.config(
        role_claim="realm_access.roles",
        tenant_claim="https://example.com/org",
        roles={"auditors": Role.COMPLIANCE, "staff": Role.READER},
    )
    token = issuer.token(
        realm_access={"roles": ["staff", "auditors", "administrator"]}, **{"https://example.com/org": "acme"}
    )
    found = OidcVerifier(config).principal_of(token.encode())
    assert (found.role, found.tenant) == (Role.COMPLIANCE, "acme")
    with pytest.raises(ForbiddenError):  # roles' own names mean nothing where others are given
        OidcVerifier(config).principal_of(
            issuer.token(realm_access={"roles": ["reader"]}, **{"https://example.com/org": "acme"}).encode()
        )


# --- the command line ---------------------------------------------------------------------------------


def test_keys_on_the_command_line(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTSTORE_DATABASE_URL", database.url)
    monkeypatch.setenv("EVENTSTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["keys", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    def listed(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run("list", "--json", *arguments).stdout)
        return found

    made = run("create", "--role", "administrator", "--label", "first", "--expires-in", "90d", "--by", "ann")
    (key,) = made.stdout.split()
    assert Authenticator(database).authenticate(key.encode(), ELSEWHERE, []).role is Role.ADMINISTRATOR
    (shown,) = listed()
    assert (shown["label"], shown["created_by"], shown["state"]) == ("first", "ann", "active")
    assert f"Key {shown['key_id']}: administrator of the whole deployment, until " in made.stderr
    assert shown["key_id"] in run("list").stdout

    (new,) = run("rotate", shown["key_id"], "--overlap", "0s").stdout.split()
    assert [k["replaces"] for k in listed()] == [shown["key_id"]]
    with pytest.raises(UnauthenticatedError):
        Authenticator(database).authenticate(key.encode(), ELSEWHERE, [])
    new_id = new.split("_")[1]
    assert run("revoke", new_id).stdout == f"Key {new_id} is revoked.\n"
    assert (run("list").stdout, listed()) == ("No keys in force.\n", [])
    assert [k["state"] for k in listed("--all")] == ["expired", "revoked"]
    with pytest.raises(StateError, match="was revoked by"):
        run("revoke", new_id)
    with pytest.raises(TenantNotFoundError):
        run("list", "never-was")
    run("create", "--role", "reader", "--limit", "feeds_max=3")
    assert listed()[0]["limits"] == {"feeds_max": 3}
    for wrong in ("feeds_max=many", "feeds_max", "wishes=3", "feeds_max=0"):
        with pytest.raises(InputError):
            run("create", "--role", "reader", "--limit", wrong)
