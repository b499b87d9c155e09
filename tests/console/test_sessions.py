"""Sessions of the console: how they end, what is stored of them, and that each is no better than its key."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import groupby

import httpx
import pytest

from eventstore.app import Store, scheduler_of
from eventstore.clock import US_PER_S, FixedClock, SystemClock
from eventstore.db.engine import Database
from eventstore.governance.keys import create_key, revoke_key
from eventstore.governance.sessions import Sessions, csrf_of, prune_sessions
from eventstore.model.access import Principal, Role
from eventstore.model.limits import Limits
from tests.conftest import TODAY_US
from tests.console.served import Person, served_console
from tests.unit.helpers import HOUR_US, append, execute, make_tenant, new_event, read

MINUTE_US = 60 * US_PER_S
PERSON = Principal("oidc:ann", Role.COMPLIANCE, "acme", person=True)


@pytest.fixture
def sessions(database: Database, clock: FixedClock) -> Sessions:
    return Sessions(database, clock, lifetime_us=12 * HOUR_US, idle_us=HOUR_US)


def stored(database: Database) -> int:
    ((count,),) = execute(database.url, "SELECT count(*) FROM sessions")
    found: int = count
    return found


def test_a_session_ends_by_its_time_however_much_it_is_used(sessions: Sessions, clock: FixedClock) -> None:
    name = sessions.begin(PERSON).name
    for n in range(24):
        clock.move_to(TODAY_US + n * HOUR_US // 2)
        found = sessions.find(name)
        assert found is not None
        assert found.person == PERSON
    clock.move_to(TODAY_US + 12 * HOUR_US - 1)
    assert sessions.find(name) is not None
    clock.move_to(TODAY_US + 12 * HOUR_US)
    assert sessions.find(name) is None


def test_a_session_that_is_left_alone_ends(sessions: Sessions, clock: FixedClock) -> None:
    used, left = sessions.begin(PERSON).name, sessions.begin(PERSON).name
    clock.move_to(TODAY_US + 2 * MINUTE_US)
    assert sessions.find(used) is not None
    clock.move_to(TODAY_US + HOUR_US)
    assert sessions.find(used) is not None
    assert sessions.find(left) is None


def test_a_person_s_session_ends_with_the_issuer_s_word(sessions: Sessions, clock: FixedClock) -> None:
    name = sessions.begin(PERSON, ends_us=TODAY_US + 5 * MINUTE_US).name
    late = sessions.begin(PERSON, ends_us=TODAY_US + 1000 * HOUR_US)
    assert late.expires_us == TODAY_US + 12 * HOUR_US
    clock.move_to(TODAY_US + 5 * MINUTE_US - 1)
    assert sessions.find(name) is not None
    clock.move_to(TODAY_US + 5 * MINUTE_US)
    assert sessions.find(name) is None


def test_what_is_stored_signs_nobody_in(sessions: Sessions, database: Database) -> None:
    names = {sessions.begin(PERSON).name for _ in range(20)}
    assert len(names) == 20
    rows = execute(database.url, "SELECT digest, sessions::text FROM sessions")
    assert {bytes(digest) for digest, _ in rows} == {hashlib.sha256(n.encode()).digest() for n in names}
    for name in names:
        assert all(name not in text and csrf_of(name) not in text for _, text in rows)
        assert csrf_of(name) != name
    for digest, text in rows:
        # Neither what is stored, nor anything that could be made of it, is the name of a session.
        for guess in (bytes(digest).hex(), bytes(digest).hex()[:43], text[:43]):
            assert sessions.find(guess) is None


def test_ended_sessions_are_removed_a_few_at_a_time(
    sessions: Sessions, database: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.governance.sessions._PRUNED_AT_ONCE", 3)
    for _ in range(8):
        sessions.begin(PERSON)
    clock.move_to(TODAY_US + 12 * HOUR_US)
    kept = sessions.begin(PERSON).name  # takes some with it
    assert stored(database) == 8 - 3 + 1
    assert prune_sessions(database, clock.now_us()) == 5
    assert sessions.find(kept) is not None
    assert stored(database) == 1


def test_the_scheduler_removes_what_has_ended(store: Store) -> None:
    now_us = SystemClock().now_us()
    sessions = Sessions(store.database, FixedClock(now_us - HOUR_US), lifetime_us=HOUR_US, idle_us=HOUR_US)
    sessions.begin(PERSON)
    assert stored(store.database) == 1
    scheduler_of(store)._jobs["prune"].work(TODAY_US)
    assert stored(store.database) == 0


def test_a_key_has_so_many_sessions_at_the_most(
    sessions: Sessions, database: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.governance.sessions._OF_KEY_MAX", 3)
    keys = [
        create_key(database, role=Role.READER, tenant_id=None, by="test", now_us=TODAY_US)[0].key_id
        for _ in range(2)
    ]
    names = {key: [] for key in keys}
    for n in range(5):
        clock.move_to(TODAY_US + n)
        for key in keys:
            names[key].append(sessions.begin(key).name)
    for key in keys:
        alive = [name for name in names[key] if sessions.find(name) is not None]
        assert alive == names[key][-3:]


# --- over the web -------------------------------------------------------------------------------------


def is_signed_in(person: Person) -> bool:
    status = person.get("/console/reason").status_code
    assert status in (200, 303)
    return status == 200


def test_a_revoked_key_ends_its_sessions_in_every_process(store: Store) -> None:
    make_tenant(store)
    with served_console(store) as served, served_console(store, administrator=False) as another:
        ann, ben = served.person(Role.READER), served.person(Role.READER)
        elsewhere = Person(another.client(cookies=ann.client.cookies), ann.key, ann.subject, ann.csrf)
        assert is_signed_in(ann)
        assert is_signed_in(elsewhere)
        revoke_key(store.database, ann.subject.removeprefix("key:"), by="test", now_us=SystemClock().now_us())
        for process in (served, another):
            # The notice goes out with the commit; what is heard of it is what the API hears, too.
            process.app.state.authentication.authenticator._forget()
        assert not is_signed_in(ann)
        assert not is_signed_in(elsewhere)
        assert is_signed_in(ben)
        assert stored(store.database) == 1  # the session is gone, and not only refused


def test_an_expired_key_ends_its_session_at_the_next_request(store: Store) -> None:
    make_tenant(store)
    with served_console(store) as served:
        ann = served.person(Role.READER)
        key_id = ann.subject.removeprefix("key:")
        authenticator = served.app.state.authentication.authenticator
        execute(
            store.database.url, f"UPDATE api_keys SET expires_us = {TODAY_US * 2} WHERE key_id = '{key_id}'"
        )
        authenticator._forget()
        assert is_signed_in(ann)
        # It is remembered now, and ends while it is remembered.
        authenticator._clock = FixedClock(TODAY_US * 2)
        assert not is_signed_in(ann)


def test_sessions_end_by_the_settings(store: Store) -> None:
    make_tenant(store)
    settings = store.settings.model_copy(update={"session_lifetime": "3h", "session_idle": "1h"})
    clock = FixedClock(TODAY_US)
    with served_console(replace(store, settings=settings), clock=clock) as served:
        ann, ben = served.person(Role.READER), served.person(Role.READER)
        for minutes in (50, 100, 150):
            clock.move_to(TODAY_US + minutes * MINUTE_US)
            assert is_signed_in(ann)
        assert not is_signed_in(ben)
        clock.move_to(TODAY_US + 180 * MINUTE_US)
        assert not is_signed_in(ann)


def test_signing_out_ends_the_session_itself(store: Store) -> None:
    make_tenant(store)
    with served_console(store) as served:
        ann = served.person(Role.READER)
        copied = served.client(cookies=ann.client.cookies)
        answer = ann.post("/console/sign-out")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in")
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert not ann.client.cookies
        assert copied.get("/console/reason").status_code == 303
        assert stored(store.database) == 0


def test_a_person_is_held_to_the_limits_of_the_key(store: Store) -> None:
    make_tenant(store)
    with served_console(store) as served:
        ann = served.person(Role.READER, limits=Limits(requests_per_s=3))
        limits = served.app.state.limits
        limits._monotonic_ns = lambda: 10**18
        answers = [ann.get("/console/reason") for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["retry-after"] == "1"
        assert "Too many requests" in answers[-1].text
        # One rate for the pages and for the API.
        api = httpx.get(f"{served.url}/v1/tenants/acme/stats", headers={"authorization": f"Bearer {ann.key}"})
        assert api.status_code == 429


def test_reads_are_written_down_with_the_person_and_the_reason(store: Store) -> None:
    make_tenant(store)
    append(store, "acme", new_event("1"))
    with served_console(store) as served:
        ann = served.person(Role.READER)  # by the API this role's reads are no events
        ann.page("/console/t/acme/search")
        answer = ann.post("/console/reason", reason=" case 17 ", next="/console/t/acme/search")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/t/acme/search")
        page = ann.page("/console/t/acme/search")
        assert "case 17" in page
        ann.post("/console/reason", reason="")
        ann.page("/console/t/acme/search")
        rows = [r for r in read(store, "eventstore-reads") if r["entity_id"] == "acme"]
        assert {r["actor"] for r in rows} == {ann.subject}
        given = [kind for kind, _ in groupby("case 17" in (r["metadata"] or "") for r in rows)]
        assert given == [False, True, False]
        for bad in ("x" * 1001, "two\nlines"):
            assert ann.post("/console/reason", reason=bad).status_code == 400


def test_where_a_reason_is_required_it_is_asked_for_first(store: Store) -> None:
    make_tenant(store)
    settings = store.settings.model_copy(update={"reason_required": True})
    with served_console(replace(store, settings=settings)) as served:
        ann = served.person(Role.COMPLIANCE)
        asked = ann.get("/console/t/acme/search", entity_type="a&b")
        assert asked.status_code == 303
        assert asked.headers["location"] == (
            "/console/reason?next=/console/t/acme/search%3Fentity_type%3Da%2526b"
        )
        part = ann.client.get(
            "/console/t/acme/search?q=x",
            headers={"hx-request": "true", "hx-current-url": f"{served.url}/console/t/acme/search?q=y"},
        )
        assert part.headers["hx-redirect"] == "/console/reason?next=/console/t/acme/search%3Fq%3Dy"
        # Nothing tells a foreign tenant from an absent one before that, either.
        assert ann.get("/console/t/other/search").status_code == 404
        form = ann.page(asked.headers["location"])
        assert 'value="/console/t/acme/search?entity_type=a%26b"' in form
        ann.post("/console/reason", reason="case 17")
        assert ann.get("/console/t/acme/search").status_code == 200
