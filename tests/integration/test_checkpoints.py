"""Signed checkpoints: what they prove, and what they notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from eventstore.app import Store, checkpoint_all, checkpoint_tenant, verify_tenant
from eventstore.columns.canonical import canonical_column, chain_column
from eventstore.db.engine import Database
from eventstore.db.locks import checkpoint_key
from eventstore.errors import BusyError, IntegrityError, SetupError, TargetUnavailableError
from eventstore.integrity import checkpoints, publishing
from eventstore.integrity.checkpoints import (
    SignedCheckpoint,
    latest,
    list_checkpoints,
    log_origin,
    make_checkpoint,
    read_checkpoint,
)
from eventstore.integrity.merkle import is_consistent
from eventstore.integrity.publishing import list_digest, tenants_behind
from eventstore.integrity.tree import Tree
from eventstore.model.note import Checkpoint
from eventstore.model.query import EventFilter
from eventstore.settings import load_settings
from tests.integration.test_tree import hashes, tree_of
from tests.unit.helpers import append, execute, make_tenant, new_event
from tests.unit.test_merkle import mth


def checkpoint(store: Store, tenant: str = "acme") -> SignedCheckpoint:
    found = make_checkpoint(store.database, store.tiers, store.key, tenant)
    assert found is not None
    return found


def events(store: Store, count: int, tenant: str = "acme") -> None:
    append(store, tenant, *(new_event(str(n)) for n in range(count)))


def publishing_to(store: Store, *places: str) -> Store:
    """The store with these places in its settings."""
    return replace(store, settings=store.settings.model_copy(update={"checkpoint_to": places}))


@pytest.fixture
def acme(store: Store) -> Store:
    make_tenant(store)
    events(store, 300)
    return store


def test_a_checkpoint_is_of_the_log_as_it_is(acme: Store) -> None:
    first = checkpoint(acme)
    signed = read_checkpoint(first.note, log_origin(acme.database, "acme"), [acme.key.verify_key])
    assert (signed.size, signed.root) == (300, mth(hashes(acme)))
    assert checkpoint(acme) == first == latest(acme.database, "acme")
    events(acme, 30)
    second = checkpoint(acme)
    assert second.size == 330
    assert [one.size for one in list_checkpoints(acme.database, "acme")] == [330, 300]
    proof = tree_of(acme).consistency("acme", 300, 330)
    assert is_consistent(300, 330, first.root, second.root, proof)


def test_an_empty_log_has_none(store: Store) -> None:
    make_tenant(store)
    assert make_checkpoint(store.database, store.tiers, store.key, "acme") is None


def test_a_note_is_no_envelope(acme: Store) -> None:
    with pytest.raises(AssertionError):
        acme.key.sign_note("x", "DSSEv1 4 text\n")


# --- history that is changed after it was signed ----------------------------------------------------------


def rewritten(store: Store, from_seq: int) -> None:
    """The log as somebody leaves it who changes a hot event and everything after it, with a chain that is
    whole: hashes, head and all."""
    url, last = store.database.url, store.tiers.state("acme").last_seq
    (leaf,) = (name for (name,) in execute(url, "SELECT leaf FROM windows"))
    with psycopg.connect(url) as conn:
        conn.execute(f'ALTER TABLE hot."{leaf}" DISABLE TRIGGER ALL'.encode())
        conn.execute(f"UPDATE hot.\"{leaf}\" SET actor = 'eve' WHERE seq = %s".encode(), [from_seq])
        conn.commit()
        table = store.tiers.hot("acme", EventFilter(), from_seq, last, descending=False, limit=10_000)
        (batch,) = table.combine_chunks().to_batches()
        before = store.tiers.hashes("acme", from_seq - 1, from_seq - 1)
        column, end = chain_column(before, canonical_column(batch))
        conn.cursor().executemany(
            f'UPDATE hot."{leaf}" SET hash = %s WHERE seq = %s'.encode(),
            list(zip(column.to_pylist(), range(from_seq, last + 1), strict=True)),
        )
        conn.execute("UPDATE heads SET last_hash = %s WHERE tenant_id = 'acme'", [end])
        conn.execute(f'ALTER TABLE hot."{leaf}" ENABLE ALWAYS TRIGGER refuse_change'.encode())


def test_rewritten_history_is_not_signed(acme: Store) -> None:
    """The chain is whole, so only what was signed tells; and it says up to where the log still holds."""
    checkpoint(acme)
    events(acme, 20)
    checkpoint(acme)
    rewritten(acme, 305)
    with pytest.raises(IntegrityError, match=r"up to seq 300 it still is, not from seq 301 on"):
        checkpoint(acme)
    events(acme, 20)
    with pytest.raises(IntegrityError, match=r"event 320 has another hash|another root"):
        checkpoint(acme)
    assert latest(acme.database, "acme").size == 320  # type: ignore[union-attr]


def test_history_rewritten_under_whole_tiles_is_noticed(store: Store) -> None:
    """Of events, nothing but the last is read for the root of 256: its hash is compared."""
    make_tenant(store)
    events(store, 256)
    checkpoint(store)
    rewritten(store, 250)
    with pytest.raises(IntegrityError, match="event 256 has another hash; no checkpoint holds"):
        checkpoint(store)
    events(store, 256)
    with pytest.raises(IntegrityError, match="the event 256 of 'acme' is not the one that its tree"):
        checkpoint(store)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE tree_tiles SET hashes = sha256('x')", "another root"),
        ("UPDATE checkpoints SET root = sha256('x')", "altered in the database"),
        ("UPDATE checkpoints SET note = replace(note, '300', '299')",
         "does not fit"),
        ("UPDATE heads SET last_seq = 299", "ends at seq 299, and 300 events were signed"),
    ],
    ids=["tile", "root", "note", "head"],
)  # fmt: skip
def test_what_was_tampered_with_is_noticed(acme: Store, statement: str, words: str) -> None:
    checkpoint(acme)
    execute(acme.database.url, statement)
    with pytest.raises(IntegrityError, match=words):
        checkpoint(acme)


def faults(store: Store) -> list[str]:
    return [problem.message for problem in verify_tenant(store, "acme").problems]


def test_verify_compares_everything_with_what_was_signed(acme: Store) -> None:
    checkpoint(acme)
    events(acme, 300)
    checkpoint(acme)
    assert faults(acme) == []
    rewritten(acme, 280)
    found = faults(acme)
    assert (
        "Merkle tree: checkpoint of 300 events: event 300 has another hash than when it was signed" in found
    )
    assert any("checkpoint of 600 events: the events have another root" in one for one in found)
    assert any("the tile of level 8 has another hash for subtree 1" in one for one in found)
    assert not any("subtree 0" in one for one in found)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE tree_tiles SET hashes = sha256('x')", "the tile of level 8 has another hash for subtree 0"),
        ("DELETE FROM tree_tiles", "the tile of level 8 lacks subtree 0"),
        ("UPDATE checkpoints SET root = sha256('x')", "its row in the database says something else"),
        ("UPDATE checkpoints SET note = replace(note, '300', '299')", "does not fit"),
        ("UPDATE trees SET size = 512", "the tree has grown over 512 events, beyond the log"),
        ("INSERT INTO tree_subtrees VALUES ('acme', 1, 1, sha256('x'))", "no certificate has subtree 1"),
        ("UPDATE heads SET last_seq = 299, last_hash = (SELECT hash FROM events WHERE seq = 299)",
         "300 events were signed, and the log has 299"),
    ],
    ids=["tile", "lost-tile", "root", "note", "size", "subtree", "head"],
)  # fmt: skip
def test_verify_finds_what_was_tampered_with(acme: Store, statement: str, words: str) -> None:
    checkpoint(acme)
    execute(acme.database.url, statement)
    assert any(words in one for one in faults(acme)), faults(acme)


# --- publishing -------------------------------------------------------------------------------------------


def test_checkpoints_are_published_to_a_file(acme: Store, tmp_path: Path) -> None:
    place = tmp_path / "kept" / "{tenant}.txt"
    file = tmp_path / "kept" / "acme.txt"
    assert checkpoint_tenant(acme, "acme", to=[str(place)]).failed == ()
    first = file.read_text()
    assert first == latest(acme.database, "acme").note  # type: ignore[union-attr]
    events(acme, 5)
    assert checkpoint_tenant(acme, "acme", to=[place.parent.as_uri() + "/{tenant}.txt"]).failed == ()
    assert file.read_text() != first
    assert list(file.parent.iterdir()) == [file]


def test_an_old_database_does_not_go_on_from_a_larger_publication(acme: Store, tmp_path: Path) -> None:
    """Everything that the database knows was set back; what somebody else keeps tells."""
    file = tmp_path / "acme.txt"
    events(acme, 10)
    checkpoint_tenant(acme, "acme", to=[str(file)])
    published = file.read_text()
    execute(acme.database.url, "DELETE FROM checkpoints")
    execute(
        acme.database.url,
        "UPDATE heads SET last_seq = 300, last_hash = (SELECT hash FROM events WHERE seq = 300)",
    )
    with pytest.raises(
        IntegrityError, match="keeps a checkpoint of 310 events of 'acme', and the log has 300"
    ):
        checkpoint_tenant(acme, "acme", to=[str(file)])
    assert latest(acme.database, "acme") is None
    assert file.read_text() == published


def test_another_history_does_not_replace_a_publication(acme: Store, tmp_path: Path) -> None:
    """Neither of the same length, nor of a greater one."""
    file = tmp_path / "acme.txt"
    checkpoint_tenant(acme, "acme", to=[str(file)])
    published = file.read_text()
    rewritten(acme, 290)
    execute(acme.database.url, "DELETE FROM checkpoints")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="the log does not begin with those"):
            checkpoint_tenant(acme, "acme", to=[str(file)])
        events(acme, 5)
    assert latest(acme.database, "acme") is None
    assert file.read_text() == published


@pytest.mark.parametrize("content", ["hello\n", "x" * 70_000, "other"], ids=["text", "long", "other-tenant"])
def test_what_is_no_checkpoint_of_the_log_is_not_replaced(acme: Store, tmp_path: Path, content: str) -> None:
    file = tmp_path / "acme.txt"
    if content == "other":
        make_tenant(acme, "other")
        events(acme, 3, "other")
        content = checkpoint(acme, "other").note
    file.write_text(content)
    with pytest.raises(IntegrityError, match="what is kept at"):
        checkpoint_tenant(acme, "acme", to=[str(file)])
    assert file.read_text() == content


class Keeper:
    """Somebody's web server that keeps what is put there. `answers`: what it says to the next requests
    instead; `meanwhile`: what somebody else puts there just before each of the next PUTs."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.answers: list[int] = []
        self.meanwhile: list[bytes] = []
        self.readable = True
        self.url = ""


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    kept = Keeper()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept.asked.append((self.command, self.path, self.headers.get("Authorization")))
            if self.command == "PUT" and kept.meanwhile:
                kept.documents[self.path] = kept.meanwhile.pop(0)
            there = kept.documents.get(self.path)
            if kept.answers:
                self.answer(kept.answers.pop(0), Location="/elsewhere")
            elif self.command == "GET":
                found = 404 if there is None else 200 if kept.readable else 403
                self.answer(found, there or b"" if found == 200 else b"", ETag=f'"{hash(there)}"')
            elif self.headers.get("If-Match") not in (None, f'"{hash(there)}"'):
                self.answer(412)
            else:
                kept.documents[self.path] = body
                self.answer(204)

        do_GET = do_PUT = serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_PAUSES_S", (0.0, 0.0))


def test_checkpoints_are_published_to_an_address(
    acme: Store, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    token = SecretStr("hush-hush")
    told = replace(acme, settings=acme.settings.model_copy(update={"checkpoint_token": token}))
    place = f"{keeper.url}/log/{{tenant}}?part=secret"
    keeper.answers = [503]  # tried again
    assert checkpoint_tenant(told, "acme", to=[place]).failed == ()
    note = latest(acme.database, "acme").note  # type: ignore[union-attr]
    assert keeper.documents == {"/log/acme?part=secret": note.encode()}
    assert {sent for *_, sent in keeper.asked} == {"Bearer hush-hush"}
    events(acme, 5)
    keeper.answers = [302]  # the token is for this address alone
    ((where, error),) = checkpoint_tenant(told, "acme", to=[place]).failed
    assert isinstance(error, TargetUnavailableError)
    assert "302" in error.message
    assert "secret" not in where + str(error) + caplog.text
    assert "hush" not in where + str(error) + caplog.text
    keeper.readable = False  # one may be put there, and not read
    assert checkpoint_tenant(told, "acme", to=[place]).failed == ()
    assert keeper.documents["/log/acme?part=secret"] != note.encode()


def test_what_somebody_else_has_published_meanwhile_is_compared_at_once(acme: Store, keeper: Keeper) -> None:
    place = f"{keeper.url}/{{tenant}}"
    notes = []
    for _ in range(4):
        notes.append(checkpoint(acme).note.encode())
        events(acme, 5)
    keeper.documents["/acme"] = notes[0]
    keeper.meanwhile = [notes[1]]
    assert checkpoint_tenant(acme, "acme", to=[place]).failed == ()
    newest = latest(acme.database, "acme").note.encode()  # type: ignore[union-attr]
    assert keeper.documents["/acme"] == newest
    assert [method for method, *_ in keeper.asked] == ["GET", "GET", "PUT", "GET", "PUT"]

    # Of another history: it is said to be, and left.
    forged = acme.key.sign_note(
        origin := log_origin(acme.database, "acme"), Checkpoint(origin, 310, bytes(32)).text()
    )
    keeper.documents["/acme"], keeper.meanwhile = notes[0], [str(forged).encode()]
    ((_, error),) = checkpoint_tenant(acme, "acme", to=[place]).failed
    assert isinstance(error, IntegrityError)
    assert "the log does not begin with those" in error.message
    assert "nothing was replaced there" in error.hint
    assert keeper.documents["/acme"] == str(forged).encode()

    # Not without end.
    keeper.documents["/acme"], keeper.meanwhile = notes[0], [notes[1], notes[2], notes[1], notes[2]]
    ((_, error),) = checkpoint_tenant(acme, "acme", to=[place]).failed
    assert isinstance(error, TargetUnavailableError)
    assert "changed each time" in error.message
    assert len(keeper.meanwhile) == 1


def test_a_destination_that_is_away_does_not_keep_others_from_theirs(
    acme: Store, keeper: Keeper, tmp_path: Path
) -> None:
    keeper.answers = [500] * 3
    file = tmp_path / "acme.txt"
    told = publishing_to(acme, f"{keeper.url}/{{tenant}}", str(tmp_path / "{tenant}.txt"))
    digest = list_digest(told.settings.checkpoint_to)
    ((where, error),) = checkpoint_tenant(told, "acme").failed
    assert where == f"{keeper.url}/acme"
    assert isinstance(error, TargetUnavailableError)
    assert file.exists()
    # It is brought there next time, though the log has not grown.
    assert tenants_behind(acme.database, digest) == ["acme"]
    assert tenants_behind(acme.database) == []
    assert checkpoint_all(told) == []
    assert keeper.documents == {"/acme": file.read_bytes()}
    assert tenants_behind(acme.database, digest) == []


def test_it_is_remembered_to_which_places_a_checkpoint_was_brought(acme: Store, tmp_path: Path) -> None:
    """Another place does not count for those of the settings; one that is added to these later gets the
    checkpoint of a log that has not grown."""
    first, second = (str(tmp_path / name / "{tenant}") for name in ("first", "second"))
    told = publishing_to(acme, first)
    checkpoint_tenant(told, "acme", to=[str(tmp_path / "elsewhere")])
    assert tenants_behind(acme.database, list_digest([first])) == ["acme"]
    assert checkpoint_all(told) == []
    kept = (tmp_path / "first" / "acme").read_text()
    assert tenants_behind(acme.database, list_digest([first])) == []
    checkpoint_tenant(told, "acme", to=[str(tmp_path / "elsewhere")])
    assert tenants_behind(acme.database, list_digest([first])) == []
    assert checkpoint_all(publishing_to(acme, second, first)) == []
    assert (tmp_path / "second" / "acme").read_text() == kept
    assert tenants_behind(acme.database, list_digest([first, second])) == []


def test_one_checkpoint_of_each_tenant_is_looked_at_however_many_there_are(acme: Store) -> None:
    make_tenant(acme, "globex")
    append(acme, "globex", new_event())
    make_checkpoint(acme.database, acme.tiers, acme.key, "acme")
    execute(
        acme.database.url,
        "INSERT INTO checkpoints SELECT tenant_id, n, root, last_hash, note, made_us, published_to"
        " FROM checkpoints, generate_series(301, 5000) n WHERE size = 300",
    )
    assert tenants_behind(acme.database) == ["globex"]
    query = publishing._behind(None)
    with acme.database.transaction() as conn:
        conn.execute(sa.text("ANALYZE checkpoints"))
        text = query.compile(conn, compile_kwargs={"literal_binds": True})
        (plan,) = conn.execute(sa.text(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}")).scalar_one()
    rows: list[float] = []

    def walk(node: dict[str, Any]) -> None:
        if node.get("Relation Name") == "checkpoints":
            rows.append((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for inner in node.get("Plans", []):
            walk(inner)

    walk(plan["Plan"])
    assert sum(rows) == 1  # of 4,701: globex has none


def test_who_signs_at_the_same_time_is_no_contradiction(
    acme: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that read the log's end, and one that appends, signs and publishes before it goes on."""
    told = publishing_to(acme, str(tmp_path / "{tenant}"))

    def other(*_: object) -> None:
        events(acme, 10)
        assert checkpoint_tenant(told, "acme").failed == ()

    others = iter([other])
    published = checkpoint_tenant(told, "acme", progress=lambda *_: next(others, lambda: None)())
    assert published.checkpoint is not None
    assert published.checkpoint.size == 310
    real = checkpoints.latest

    def latest_then_other(database: Database, tenant_id: str) -> SignedCheckpoint | None:
        monkeypatch.undo()
        events(acme, 10)
        checkpoint(acme)
        return real(database, tenant_id)

    monkeypatch.setattr(checkpoints, "latest", latest_then_other)
    assert checkpoint(acme).size == 320


def test_a_larger_publication_of_the_log_as_it_is_by_now_is_no_contradiction(
    acme: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's end is read again."""
    told = publishing_to(acme, str(tmp_path / "{tenant}"))
    real = publishing._File.read

    def read(file: publishing._File) -> str | None:
        monkeypatch.setattr(publishing._File, "read", real)
        events(acme, 300)
        file.path.write_text(checkpoint(acme).note)
        return real(file)

    monkeypatch.setattr(publishing._File, "read", read)
    assert checkpoint_tenant(told, "acme").failed == ()
    assert latest(acme.database, "acme").size == 600  # type: ignore[union-attr]


def test_one_at_a_time_signs_a_log(acme: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tenant(acme, "other")
    events(acme, 3, "other")
    monkeypatch.setattr(publishing, "_LOCK_TIMEOUT_MS", 50)
    with psycopg.connect(acme.database.url) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [checkpoint_key("acme")])
        with pytest.raises(BusyError, match="somebody else makes a checkpoint of 'acme'"):
            checkpoint_tenant(acme, "acme")
        assert checkpoint_tenant(acme, "other").checkpoint is not None
    assert checkpoint_tenant(acme, "acme").checkpoint is not None


def test_nobody_else_signs() -> None:
    """Whatever signs a log does it by the one function that looks at the publications first."""
    root = Path(publishing.__file__).parents[1]
    found = {path.name for path in root.rglob("*.py") if "make_checkpoint" in path.read_text()}
    assert found == {"checkpoints.py", "publishing.py"}


@pytest.mark.parametrize(
    "place",
    ["http://h:abc/{tenant}", "http:///{tenant}", "https://h:99999/{tenant}", "http://[x/{tenant}", "ftp://h/{tenant}",
     "", "/mnt/log.txt"],
    ids=["port", "no-host", "large-port", "bracket", "scheme", "empty", "no-tenant"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused_by_the_settings(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTSTORE_CHECKPOINT_TO", json.dumps([place]))
    with pytest.raises(SetupError, match=r"is no place for checkpoints|each log has a checkpoint of its own"):
        load_settings()


@pytest.mark.parametrize(
    "error",
    [sa.exc.InternalError("SELECT", {}, Exception("gone")), psycopg.InternalError("gone"), OSError("gone"),
     ValueError("gone")],
    ids=["sqlalchemy", "psycopg", "os", "value"],
)  # fmt: skip
def test_what_fails_for_one_tenant_is_left_with_it(
    acme: Store, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tenant(acme, "zoo")
    events(acme, 3, "zoo")
    real = Tree.grow

    def grow(tree: Tree, tenant_id: str, *arguments: Any, **more: Any) -> None:
        if tenant_id == "acme":
            raise error
        real(tree, tenant_id, *arguments, **more)

    monkeypatch.setattr(Tree, "grow", grow)
    assert checkpoint_all(acme) == ["acme"]
    assert latest(acme.database, "zoo") is not None
    assert "checkpoint of acme" in caplog.text


def test_all_tenants_get_theirs_though_one_fails(
    acme: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("broken", "zoo", "empty"):
        make_tenant(acme, name)
    events(acme, 3, "broken")
    events(acme, 3, "zoo")
    checkpoint(acme, "broken")
    execute(acme.database.url, "UPDATE checkpoints SET root = sha256('x') WHERE tenant_id = 'broken'")
    events(acme, 3, "broken")
    place = str(tmp_path / "{tenant}")
    told = publishing_to(acme, place)
    assert checkpoint_all(told) == ["broken"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["acme", "zoo"]
    assert "broken" in caplog.text
    assert "altered" in caplog.text
    assert tenants_behind(acme.database, list_digest([place])) == ["broken"]
