"""The routes and commands of proof: what the API gives is enough for somebody who keeps checkpoints and has
no store."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from eventstore.api.proofs import CheckpointPage, CheckpointView, ConsistencyView, EventProofView
from eventstore.app import Store, scheduler_of
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.errors import IntegrityError
from eventstore.governance.tenants import create_tenant
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.integrity.merkle import is_consistent, leaf_hash, root_from_inclusion
from eventstore.model.access import Role
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from tests.integration.callers import Callers, calling
from tests.integration.test_api_governance import ok, problem
from tests.integration.test_tree import hashes
from tests.unit.helpers import DAY_US, START_US, append, execute, make_tenant, new_event, run_retention


@pytest.fixture
def callers(store: Store) -> Iterator[Callers]:
    make_tenant(store)
    make_tenant(store, "globex")
    with calling(store) as made:
        yield made


def sign(store: Store, count: int) -> None:
    append(store, "acme", *(new_event(str(n)) for n in range(count)))
    make_checkpoint(store.database, store.tiers, store.key, "acme")


def test_a_keeper_gets_what_is_needed(callers: Callers, store: Store, tmp_path: Path) -> None:
    client = callers.as_role(Role.READER, "acme")
    path = "/v1/tenants/acme"
    problem(client.get(f"{path}/checkpoint"), 404, "checkpoint-not-found")
    append(store, "acme", new_event())
    problem(client.get(f"{path}/events/1/proof"), 404, "checkpoint-not-found")
    sign(store, 299)
    sign(store, 30)
    later = ok(client.get(f"{path}/checkpoint"), CheckpointView)
    earlier = ok(client.get(f"{path}/checkpoint", params={"size": 300}), CheckpointView)
    assert (later.size, earlier.size) == (330, 300)
    pages = [ok(client.get(f"{path}/checkpoints", params={"limit": 1}), CheckpointPage)]
    pages.append(
        ok(client.get(f"{path}/checkpoints", params={"cursor": pages[0].next_cursor}), CheckpointPage)
    )
    assert [one for page in pages for one in page.checkpoints] == [later, earlier]
    assert pages[1].next_cursor is None
    note = client.get(f"{path}/checkpoint", params={"note": True})
    assert (note.text, note.headers["content-type"]) == (later.note, "text/plain; charset=utf-8")
    unchanged = client.get(f"{path}/checkpoint", headers={"If-None-Match": note.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    lines = note.text.splitlines()
    assert (lines[1], base64.b64decode(lines[2]).hex()) == ("330", later.root)

    answered = client.get(f"{path}/consistency", params={"first": 300, "second": 330})
    told = ok(answered, ConsistencyView)
    roots = [bytes.fromhex(one.root) for one in (earlier, later)]
    assert is_consistent(300, 330, *roots, [bytes.fromhex(one) for one in told.proof])
    assert (told.first_root, told.second_root) == (earlier.root, later.root)
    for first, second, status in ((0, 330, 400), (331, 330, 400), (5, 329, 404)):
        asked = client.get(f"{path}/consistency", params={"first": first, "second": second})
        assert asked.status_code == status, asked.text

    values = hashes(store)
    for seq in (1, 256, 257, 300):
        for size, root in ((300, roots[0]), (None, roots[1])):
            asked = {} if size is None else {"size": size}
            proof = ok(client.get(f"{path}/events/{seq}/proof", params=asked), EventProofView)
            assert proof.hash == values[seq - 1].hex()
            leaf = leaf_hash(bytes.fromhex(proof.hash))
            way = [bytes.fromhex(one) for one in proof.path]
            assert root_from_inclusion(seq - 1, proof.size, leaf, way) == root
            if seq > 1:
                assert proof.prev_hash == values[seq - 2].hex()
    problem(client.get(f"{path}/events/301/proof", params={"size": 300}), 400, "invalid-request")
    problem(client.get(f"{path}/events/331/proof"), 404, "event-not-found")
    problem(callers.as_role(Role.WRITER, "acme").get(f"{path}/checkpoint"), 403, "forbidden")
    foreign = callers.as_role(Role.READER, "globex")
    for route in ("checkpoint", "checkpoints", "consistency?first=1&second=300", "events/1/proof"):
        assert foreign.get(f"{path}/{route}").status_code == 404

    # And what a keeper does with it, without a store.
    files = {"old": earlier.note, "new": later.note, "proof": answered.text, "key": later.keys[0] + "\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    def verify(*names: str, key: str = "key") -> object:
        given = [str(tmp_path / name) for name in names]
        arguments = ["verify-checkpoint", given[0], "--key", str(tmp_path / key)]
        arguments += [
            word for pair in zip(("--previous", "--proof"), given[1:], strict=False) for word in pair
        ]
        done = CliRunner().invoke(app, arguments)
        return done.exception or done.stdout

    assert "goes on from the 300 events" in " ".join(str(verify("new", "old", "proof")).split())
    assert "signed by that key" in " ".join(str(verify("old")).split())
    assert "goes on" in " ".join(str(verify("old", "old")).split())
    assert "give the consistency proof" in str(verify("new", "old"))
    assert isinstance(verify("old", "new", "proof"), IntegrityError)
    told_proof = json.loads(answered.text)
    told_proof["proof"][0] = "00" * 32
    (tmp_path / "wrong").write_text(json.dumps(told_proof))
    assert "does not go on" in str(verify("new", "old", "wrong"))
    (tmp_path / "altered").write_text(later.note.replace("\n330\n", "\n331\n"))
    assert "does not fit" in str(verify("altered"))
    name = later.keys[0].partition("+")[0]
    raw = b"\1" + bytes(32)
    short = hashlib.sha256(name.encode() + b"\n" + raw).hexdigest()[:8]
    (tmp_path / "other").write_text(f"{name}+{short}+{base64.b64encode(raw).decode()}")
    assert "not signed by a known key" in str(verify("new", key="other"))


def test_a_state_within_what_was_destroyed_is_not_compared(
    callers: Callers, store: Store, clock: FixedClock
) -> None:
    """It is said that something was destroyed, not that history is damaged."""
    policy = Policy(WindowUnit.DAY, 0, (ArchiveTier("archive", DAY_US),), Ending.EXPIRE)
    create_tenant(store.database, "aged", policy)
    for day in range(2):
        clock.move_to(START_US + day * DAY_US + DAY_US // 2)
        append(store, "aged", *(new_event(str(n)) for n in range(300)))
    make_checkpoint(store.database, store.tiers, store.key, "aged")
    run_retention(store, START_US + DAY_US, "aged")
    store.compactor.run(
        store.compactor.tenants("aged"), START_US + 5 * DAY_US, order=RunOrder(RunKind.EXPIRY, "test")
    )
    client = callers.as_role(Role.READER, "aged")
    answer = client.get("/v1/tenants/aged/consistency", params={"first": 17, "second": 600})
    told = problem(answer, 409, "conflict")
    assert "something of it was destroyed" in str(told)
    assert client.get("/v1/tenants/aged/consistency?first=300&second=600").status_code == 200


def test_a_proof_of_changed_history_is_not_given(callers: Callers, store: Store) -> None:
    sign(store, 300)
    execute(store.database.url, "UPDATE tree_tiles SET hashes = sha256('x')")
    client = callers.as_role(Role.READER, "acme")
    answer = client.get("/v1/tenants/acme/events/5/proof")
    assert answer.status_code == 500
    assert msgspec.json.decode(answer.content)["type"] == "urn:eventstore:integrity"


def test_the_command_signs_and_publishes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("DATABASE_URL", store.settings.database_url),
        ("HOME", store.settings.home),
        ("ARCHIVE_URL", store.settings.archive_url),
        ("CHECKPOINT_TO", json.dumps([str(tmp_path / "kept" / "{tenant}")])),
    ):
        monkeypatch.setenv(f"EVENTSTORE_{name}", str(value))
    for tenant in ("acme", "globex", "idle"):
        make_tenant(store, tenant)
    append(store, "acme", new_event(), new_event())
    append(store, "globex", new_event())
    done = CliRunner().invoke(app, ["checkpoint", "--all"])
    assert done.exit_code == 0, done.output
    assert "acme: 2 events, root" in done.output
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["acme", "globex"]
    shown = CliRunner().invoke(app, ["checkpoint", "acme", "--key"])
    assert shown.output.startswith("eventstore/")
    kept = tmp_path / "kept" / "acme"
    checked = CliRunner().invoke(app, ["verify-checkpoint", str(kept), "--key", shown.output.strip()])
    assert checked.exit_code == 0, checked.output
    # One that cannot be published is told of, and the other one is.
    append(store, "acme", new_event())
    (tmp_path / "file").write_text("")
    places = ["--to", str(tmp_path / "file" / "acme"), "--to", str(kept)]
    done = CliRunner().invoke(app, ["checkpoint", "acme", *places])
    assert (done.exit_code, kept.read_text().splitlines()[1]) == (75, "3"), done.output
    for wrong in ([], ["acme", "--all"], ["acme", "globex", "--to", "x"]):
        assert CliRunner().invoke(app, ["checkpoint", *wrong]).exit_code == 2


def test_the_scheduler_signs_what_has_grown(store: Store) -> None:
    scheduler = scheduler_of(store)
    append_to = make_tenant(store).tenant_id
    append(store, append_to, new_event())
    scheduler._jobs["checkpoint"].work(0)
    scheduler.close()
    assert execute(store.database.url, "SELECT tenant_id, size FROM checkpoints") == [("acme", 1)]
