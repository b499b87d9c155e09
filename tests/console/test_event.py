"""The page of an event: its fields, its place in the chain, where it lies, and its proof."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eventstore.app import Store
from eventstore.catalog.windows import list_segments
from eventstore.clock import FixedClock
from eventstore.console.pages import event as event_page
from eventstore.governance.certificates import get_certificate
from eventstore.governance.holds import place_hold
from eventstore.governance.tenants import create_tenant
from eventstore.integrity.checkpoints import latest, make_checkpoint
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.limits import Limits
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind
from eventstore.model.tenant import READS_TENANT
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from tests.console.hostile import findings
from tests.console.served import Person, ServedConsole, served_console
from tests.console.walking import own_store
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    execute,
    leaves,
    make_tenant,
    new_event,
    read,
    run_retention,
    tamper,
)

BASE = "/console/t/acme/event"
_LARGE = {f"member {n}": "<b>" * 10 for n in range(20_000)}


@dataclass
class World:
    """`acme` has three days of four events, of which the first is archived; and one large event. `aged` has
    lost its first day under policy."""

    store: Store
    clock: FixedClock
    served: ServedConsole
    person: Person

    def page(self, seq: int) -> str:
        return self.person.page(f"{BASE}/{seq}")


@pytest.fixture(scope="module")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("event")
    with own_store(server_url, template_database, folder) as (store, clock):
        make_tenant(store)
        for day in range(3):
            clock.move_to(START_US + day * DAY_US + DAY_US // 2)
            append(store, "acme", *(new_event(str(n % 2), new_value={"n": n}) for n in range(4)))
        run_retention(store, START_US + DAY_US)
        append(store, "acme", new_event("x<y", new_value=_LARGE, metadata={"why": "\u202e"}))
        _age(store, clock)
        scope = HoldScope((("order", "0"),))
        place_hold(store.database, "acme", "case 7", "asked by <court>", "legal", scope, START_US)
        with served_console(store) as served:
            yield World(store, clock, served, served.person(Role.COMPLIANCE))


def _age(store: Store, clock: FixedClock) -> None:
    policy = Policy(WindowUnit.DAY, 0, (ArchiveTier("archive", 2 * DAY_US),), Ending.EXPIRE)
    create_tenant(store.database, "aged", policy)
    for day in range(4):
        clock.move_to(START_US + day * DAY_US + DAY_US // 2)
        append(store, "aged", new_event("1"), new_event("2"))
    run_retention(store, START_US + 3 * DAY_US, "aged")
    order = RunOrder(RunKind.EXPIRY, "olga")
    report = store.compactor.run(
        store.compactor.tenants("aged"), START_US + 3 * DAY_US + DAY_US // 2, order=order
    )
    assert report.outcomes[0].windows == 1


def text_of(page: str) -> str:
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
    return re.sub(r" ([.,;:])", r"\1", text)


def row_of(world: World, seq: int, tenant: str = "acme") -> dict[str, Any]:
    (row,) = read(world.store, tenant, seq_from=seq, seq_to=seq)
    return row


# --- what it says -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [1, 3, 4, 5, 12])
def test_all_fields_and_the_chain_of_an_event_of_either_tier(world: World, seq: int) -> None:
    page, row = world.page(seq), row_of(world, seq)
    text = text_of(page)
    for name in ("entity_type", "entity_id", "action", "field", "actor", "source"):
        assert f"{name} {row[name]}" in text
    assert json.loads(row["new_value"]) == {"n": (seq - 1) % 4}
    assert 'new_value { "n": ' in text
    assert f"hash {row['hash'].hex()}" in text
    assert row["recorded_at"].strftime("recorded_at %Y-%m-%dT%H:%M:%S") in text
    assert "chain matches" in text
    assert "it matches: no field of this event was changed" in text
    if seq > 1:
        assert f"Hash before it, of the event #{seq - 1}: {row_of(world, seq - 1)['hash'].hex()}" in text
    assert ("archive" if seq <= 4 else "hot") in re.findall(r'<span class="pill (\w+)">', page)


def test_where_an_archived_event_lies(world: World) -> None:
    with world.store.database.transaction() as conn:
        (segment,) = list_segments(conn, "acme", seq_from=3, seq_to=3)
    text = text_of(world.page(3))
    assert f"Object {segment.key} Its SHA-256 {segment.sha256.hex()}" in text
    assert "Window 2024-03-01 00:00:00 to 2024-03-02 00:00:00, dropped Target archive" in text
    assert "Object" not in text_of(world.page(5))


def test_links_to_its_neighbours(world: World) -> None:
    def links(seq: int) -> list[tuple[str, str]]:
        (nav,) = re.findall(
            r'<nav class="pager" aria-label="Other events">.*?</nav>', world.page(seq), re.DOTALL
        )
        return re.findall(rf'href="{BASE}/(\d+)">([^<]*) #', nav)

    before, after = "Of this entity, before:", "Of this entity, after:"
    assert links(1) == [("2", "After:"), ("3", after)]
    assert links(5) == [("4", "Before:"), ("6", "After:"), ("3", before), ("7", after)]
    assert links(13) == [("12", "Before:")]
    assert 'href="/console/t/acme/entity?entity_type=order&amp;entity_id=x%3Cy"' in world.page(13)


def test_a_large_value_is_cut_and_can_be_downloaded(world: World) -> None:
    page = world.page(13)
    assert len(page) < 200_000
    assert not findings(page)
    assert "more characters are not shown" in page
    assert '"why": "\\u202e"' in html.unescape(page)  # as it was sent
    answer = world.person.get(f"{BASE}/13/value", of="new_value")
    assert answer.json() == _LARGE
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"] == "application/json"
    assert world.person.get(f"{BASE}/13/value", of="old_value").status_code == 404
    assert world.person.get(f"{BASE}/13/value", of="hash").status_code == 400


@pytest.mark.parametrize(("seq", "status"), [(14, 404), (10**17, 404), (0, 400), (-1, 400), (10**18, 400)])
def test_what_is_no_event(world: World, seq: int, status: int) -> None:
    answer = world.person.get(f"{BASE}/{seq}")
    assert answer.status_code == status
    if status == 404:
        assert f"There is no event #{seq:,}" in answer.text
        assert "the log ends at event 13" in answer.text


def test_the_read_is_written_down(world: World) -> None:
    world.page(5)
    entry = json.loads(read(world.store, READS_TENANT)[-1]["new_value"])
    assert (entry["route"], entry["query"]) == ("GET /console/t/{tenant}/event/{seq}", {"seq": "5"})


# --- who sees what ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "holds", "plan", "export"),
    [
        (Role.READER, False, False, False),
        (Role.COMPLIANCE, True, True, True),
        (Role.ADMINISTRATOR, True, True, True),
    ],
)
def test_holds_plans_and_exports_are_shown_to_whom_they_concern(
    world: World, role: Role, holds: bool, plan: bool, export: bool
) -> None:
    page = world.served.person(role).page(f"{BASE}/1")
    assert ("asked by &lt;court&gt;" in page) == holds
    assert ("What happens to it next" in page) == plan
    assert ("/console/t/acme/exports?seq_from=1&amp;seq_to=1&amp;format=bundle" in page) == export
    assert ("asked by" in world.served.person(role).page(f"{BASE}/2")) == plan  # of another entity's window


def test_who_may_not_read_sees_nothing(world: World) -> None:
    operator = world.served.person(Role.OPERATOR, None)
    for address in (f"{BASE}/1", f"{BASE}/1/value?of=new_value", "/console/t/acme/entity?entity_id=1"):
        assert operator.get(address).status_code == 403


# --- its proof ----------------------------------------------------------------------------------------


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _root(leaves_: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word by word."""
    if len(leaves_) == 1:
        return leaves_[0]
    half = 1 << ((len(leaves_) - 1).bit_length() - 1)
    return _node(_root(leaves_[:half]), _root(leaves_[half:]))


def test_an_event_is_proven_as_soon_as_there_is_a_checkpoint(world: World) -> None:
    make_tenant(world.store, "proven")
    append(world.store, "proven", *(new_event(str(n)) for n in range(5)))
    address = "/console/t/proven/event/3"
    reader, person = (world.served.person(role, "proven") for role in (Role.READER, Role.COMPLIANCE))
    assert "There is no checkpoint of this log yet" in reader.page(address)
    assert "Make a checkpoint now" not in reader.page(address)
    assert reader.post(f"{address}/checkpoint").status_code == 403
    assert person.client.post(f"{address}/checkpoint").status_code in (400, 403, 415)  # no form of this page
    assert "Make a checkpoint now" in person.page(address)
    assert "There is no checkpoint of this log yet" in reader.page(address)
    answer = person.post(f"{address}/checkpoint")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}#proof")

    page = reader.page(address)
    assert "This event is in the log that was signed" in page
    rows = read(world.store, "proven")
    found = [hashlib.sha256(b"\x00" + row["hash"]).digest() for row in rows]
    assert f"Signed root {_root(found).hex()} Leaf {found[2].hex()}" in text_of(page)
    path = [bytes.fromhex(one) for one in re.findall(r'<li class="hash">([0-9a-f]{64})</li>', page)]
    assert path == [found[3], _node(found[0], found[1]), found[4]]

    append(world.store, "proven", new_event("later"))
    page = person.page("/console/t/proven/event/6")
    assert "This event is newer than the last checkpoint, of 5 events" in text_of(page)
    assert "Make a checkpoint now" in page
    assert "This event is in the log that was signed" in person.page(address)


def test_what_its_proof_reads_of_the_archive_counts(world: World) -> None:
    make_checkpoint(world.store.database, world.store.tiers, world.store.key, "acme")
    visitor = world.served.person(Role.READER, limits=Limits(archive_bytes_per_day=1))
    # The event is hot, as are those of its entity around it: only its proof comes to what is archived.
    assert "hashes lead" in visitor.page(f"{BASE}/11")
    refused = visitor.get(f"{BASE}/11")
    assert (refused.status_code, "retry-after" in refused.headers) == (429, True)


def test_publications_are_looked_at_before_the_page_signs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tenant(world.store, "kept")
    append(world.store, "kept", *(new_event(str(n)) for n in range(5)))
    told = replace(
        world.store,
        settings=world.store.settings.model_copy(update={"checkpoint_to": (str(tmp_path / "{tenant}"),)}),
    )
    (tmp_path / "kept").write_text("something else")
    with served_console(told) as served:
        person = served.person(Role.COMPLIANCE, "kept")
        assert person.post("/console/t/kept/event/3/checkpoint").status_code == 500
        assert latest(told.database, "kept") is None
        (tmp_path / "kept").unlink()
        with monkeypatch.context() as patched:
            patched.setattr(event_page, "_GROWTH_MAX", 4)
            answer = person.post("/console/t/kept/event/3/checkpoint")
            assert (answer.status_code, "eventstore checkpoint kept" in answer.text) == (409, True)
            assert latest(told.database, "kept") is None
        assert person.post("/console/t/kept/event/3/checkpoint").status_code == 303
    assert (tmp_path / "kept").read_text() == latest(told.database, "kept").note  # type: ignore[union-attr]


def test_what_was_changed_since_it_was_signed_has_no_proof(world: World) -> None:
    make_tenant(world.store, "forged")
    append(world.store, "forged", *(new_event(str(n)) for n in range(4)))
    person = world.served.person(Role.COMPLIANCE, "forged")
    person.post("/console/t/forged/event/1/checkpoint")
    assert "proven" in person.page("/console/t/forged/event/2")
    url = world.store.database.url
    (leaf,) = [
        name for name in leaves(url) if execute(url, f"SELECT 1 FROM {name} WHERE tenant_id = 'forged'")
    ]
    tamper(url, leaf, f"UPDATE {leaf} SET actor = 'eve' WHERE seq = 2")
    page = person.page("/console/t/forged/event/2")
    assert "It does not match." in page
    assert "chain broken" in page
    assert "chain matches" in person.page("/console/t/forged/event/3")  # onto the hash that is stored
    tamper(url, leaf, f"UPDATE {leaf} SET hash = sha256('x') WHERE seq = 2")
    page = person.page("/console/t/forged/event/2")
    assert "There is no proof of it now:" in page
    assert "proven" not in re.findall(r'<span class="pill ok">([^<]*)</span>', page)
    assert "chain broken" in person.page("/console/t/forged/event/3")


# --- what was destroyed -------------------------------------------------------------------------------


def test_a_certificate_stands_for_what_was_destroyed(world: World) -> None:
    person = world.served.person(Role.READER, "aged")
    text = text_of(person.page("/console/t/aged/event/2"))
    with world.store.database.transaction() as conn:
        certificate = get_certificate(conn, "aged", 1).certificate
    assert "The certificate's signature was checked just now, and is right." in text
    assert "Certificate 1 What one window, under the policy Events 1–2 (2)" in text
    assert f"by {certificate.decided_by} Why {certificate.reason} Policy version" in text
    assert f"comes to it with {certificate.hash_before.hex()}" in text
    assert 'href="/console/t/aged/event/3"' in person.page("/console/t/aged/event/1")


def test_the_chain_goes_on_across_what_was_destroyed(world: World) -> None:
    text = text_of(world.served.person(Role.READER, "aged").page("/console/t/aged/event/3"))
    assert "Hash before it, of what certificate 1 stands for:" in text
    assert "chain matches" in text
    assert "the entity's first" in text


def test_a_certificate_that_was_altered_is_said_to_be(world: World) -> None:
    url = world.store.database.url
    (before,) = execute(url, "SELECT envelope FROM certificates WHERE tenant_id = 'aged'")
    envelope = json.loads(bytes(before[0]))
    sig = envelope["signatures"][0]["sig"]
    envelope["signatures"][0]["sig"] = ("B" if sig[0] == "A" else "A") + sig[1:]
    altered = json.dumps(envelope, separators=(",", ":"))

    def put(text: str) -> None:
        execute(url, "ALTER TABLE certificates DISABLE TRIGGER USER")
        execute(url, "UPDATE certificates SET envelope = %s WHERE tenant_id = 'aged'", [text.encode()])
        execute(url, "ALTER TABLE certificates ENABLE TRIGGER USER")

    put(altered)
    try:
        page = world.served.person(Role.READER, "aged").page("/console/t/aged/event/1")
    finally:
        put(bytes(before[0]).decode())
    assert "The certificate's signature is not right:" in html.unescape(page)
