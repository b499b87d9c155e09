"""Evidence bundles over both tiers: made, verified offline by both tools, refused in every altered form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eventstore import verifier
from eventstore.app import Store, keepers_of
from eventstore.cli.main import app
from eventstore.clock import FixedClock
from eventstore.errors import InputError, IntegrityError, StateError
from eventstore.governance.certificates import add_key
from eventstore.governance.signing import SigningKey
from eventstore.governance.tenants import create_tenant
from eventstore.integrity import bundle
from eventstore.integrity.bundle import BundleSummary, write_bundle
from eventstore.integrity.checkpoints import latest, log_origin, log_verifier_keys, make_checkpoint
from eventstore.integrity.publishing import Keepers, Published
from eventstore.model.note import Checkpoint
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.query import EventFilter
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.query.tiers import Tiers
from eventstore.retention.compactor import RunOrder
from tests.unit.helpers import (
    DAY_US,
    START_US,
    append,
    fill_days,
    make_tenant,
    new_event,
    read,
    run_retention,
)

ROOT = Path(__file__).resolve().parents[2]
NOW_US = START_US + 30 * DAY_US
PER_DAY, DAYS = 6, 5


def make(store: Store, path: Path, **more: Any) -> BundleSummary:
    """A bundle of the tenant acme; conditions as of `EventFilter`, the rest as of `write_bundle`."""
    names = set(EventFilter.__dataclass_fields__)
    wanted = EventFilter(**{name: value for name, value in more.items() if name in names})
    options = {
        "reader": store.reader,
        "keepers": keepers_of(store.settings, "acme"),
        "asked_by": "lea",
        "reason": "case 7",
        "now_us": NOW_US,
        **{name: value for name, value in more.items() if name not in names},
    }
    return write_bundle(store.database, store.tiers, store.key, "acme", wanted, path, **options)


def verified(path: Path, *keys: str) -> list[str]:
    with path.open("rb") as file:
        return verifier.verify(file, [key for text in keys for key in verifier.read_keys(text)])


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def seqs_in(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in members(path)["events.ndjson"].splitlines()]


@pytest.fixture
def tiered(store: Store, clock: FixedClock) -> Store:
    """A tenant whose first day is destroyed, two days are archived, and the rest is hot."""
    tiers = (ArchiveTier("archive", DAY_US),)
    create_tenant(store.database, "acme", Policy(WindowUnit.DAY, DAY_US, tiers, Ending.EXPIRE))
    fill_days(store, clock, "acme", DAYS, per_day=PER_DAY)
    run_retention(store, START_US + 3 * DAY_US, "acme")
    order = RunOrder(RunKind.EXPIRY, "test")
    run_retention(store, START_US + 4 * DAY_US, "acme")
    store.compactor.run(store.compactor.tenants("acme"), START_US + 3 * DAY_US, order=order)
    state = store.tiers.state("acme")
    assert (state.archived_through, state.last_seq) == (3 * PER_DAY, DAYS * PER_DAY)
    assert store.reader.expired("acme", 1, 99) == [(1, PER_DAY, 1)]
    return store


def test_a_bundle_over_both_tiers_is_verified_offline_by_both_tools(tiered: Store, tmp_path: Path) -> None:
    path = tmp_path / "acme.evidence.zip"
    summary = make(tiered, path, entity_type="order", entity_id="1")
    expected = [row["seq"] for row in read(tiered, "acme", entity_id="1")]
    assert summary.events == len(expected) == 8
    assert summary.size_bytes == path.stat().st_size
    assert seqs_in(path) == expected
    (key,) = log_verifier_keys(tiered.database, "acme")

    copy = shutil.copy(ROOT / "docs" / "verify_bundle.py", tmp_path / "verify_bundle.py")
    # Alone: no path of the store's, and nothing of it loaded when it is done.
    program = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    assert not [n for n in sys.modules if n.split('.')[0] == 'eventstore'], sys.modules\n"
    )
    for options in ([], ["--key", key]):
        command = [sys.executable, "-I", "-c", f"import sys; sys.argv = sys.argv[1:]\n{program}", str(copy)]
        done = subprocess.run(
            [*command, str(path), *options],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("VERIFIED\n8 events of 'acme'; 'lea' asked")
        assert ("anybody could have made another" in done.stdout) == (not options)

    shown = CliRunner().invoke(app, ["verify-bundle", str(path), "--key", key])
    assert shown.exit_code == 0, shown.output
    assert "8 events of 'acme'" in shown.output


def test_what_is_in_a_bundle(tiered: Store, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        make(tiered, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.zip", "b.zip"]
    found = members(tmp_path / "a.zip")
    assert [*found] == [
        "events.ndjson",
        "proofs.ndjson",
        "windows.ndjson",
        "certificates/00000001.json",
        "checkpoint.txt",
        "key.pub",
        "bundle.json",
        "README.html",
    ]
    windows = [json.loads(line) for line in found["windows.ndjson"].splitlines()]
    assert [w["state"] for w in windows] == ["expired", "dropped", "dropped", "open", "open"]
    assert [len(w["segments"]) for w in windows] == [0, 1, 1, 0, 0]
    about = json.loads(found["bundle.json"])
    assert (about["events"], about["windows"], about["certificates"]) == (24, 5, 1)
    assert (about["tenant_id"], about["asked_by"], about["reason"], about["question"]) == (
        "acme",
        "lea",
        "case 7",
        {},
    )
    assert found["checkpoint.txt"].decode().splitlines()[1] == "30"
    # The events as the API shows them, each with the hash before it.
    lines = [json.loads(line) for line in found["events.ndjson"].splitlines()]
    stored = read(tiered, "acme")
    assert [line["hash"] for line in lines] == [row["hash"].hex() for row in stored]
    assert [line["prev_hash"] for line in lines[1:]] == [row["hash"].hex() for row in stored[:-1]]
    assert [*lines[0]][-2:] == ["hash", "prev_hash"]


QUESTIONS: tuple[tuple[dict[str, Any], str | None], ...] = (
    ({"seq_from": 8, "seq_to": 20}, "from seq 8 to 20"),
    ({"seq_from": 7}, "from seq 7 to 30"),
    ({"seq_from": 3, "seq_to": 20}, None),
    ({"entity_id": "2"}, None),
    ({"entity_id": "0"}, None),  # begins right behind what was destroyed
    ({"recorded_from_us": START_US + 2 * DAY_US, "recorded_to_us": START_US + 4 * DAY_US}, None),
    ({"seq_from": 1, "seq_to": 6}, None),
    ({"entity_id": "nobody's"}, None),
    # At every edge: of tiers, of windows and segments, and of what was destroyed.
    *(
        ({"seq_from": seq, "seq_to": seq}, f"from seq {seq} to {seq}")
        for seq in (7, 12, 13, 18, 19, 24, 25, 30)
    ),
)


def test_questions(tiered: Store, tmp_path: Path) -> None:
    """The hash before each event is found wherever that lies; what is whole is said to be."""
    path = tmp_path / "a.zip"
    for wanted, whole in QUESTIONS:
        summary = make(tiered, path, **wanted)
        said = "\n".join(verified(path))
        assert seqs_in(path) == [row["seq"] for row in read(tiered, "acme", **wanted)]
        assert summary.events == len(seqs_in(path))
        assert (f"no event {whole} is missing" in said) == (whole is not None), wanted
        first = wanted.get("seq_from", 1)
        assert summary.expired == ([(first, 6)] if first < 7 else []), wanted
        # By its time, too, what was destroyed may be no part of the question.
        assert ("certificates/00000001.json" in members(path)) == (
            first < 7 and "recorded_to_us" not in wanted
        )


def test_hashes_before_scattered_events_are_read_in_few_looks(
    tiered: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes after the checkpoint is in no bundle of it."""
    checkpoint = make_checkpoint(tiered.database, tiered.tiers, tiered.key, "acme")
    append(tiered, "acme", new_event("1"))
    monkeypatch.setattr(bundle, "checkpoint_and_publish", lambda *parts, progress: Published(checkpoint))
    # Proofs read whole blocks, and their own way.
    monkeypatch.setattr(bundle.Tree, "prove", lambda self, tenant, seqs, size, root: [[] for _ in seqs])
    looks: list[tuple[int, int]] = []
    ask = type(tiered.tiers).hashes

    def hashes(tiers: Tiers, tenant_id: str, first: int, last: int) -> bytes:
        looks.append((first, last))
        return ask(tiers, tenant_id, first, last)

    monkeypatch.setattr(type(tiered.tiers), "hashes", hashes)
    make(tiered, tmp_path / "a.zip", entity_id="1")
    assert looks == [(7, 16), (19, 28)], "one for each step of the reader"
    looks.clear()
    monkeypatch.setattr(bundle, "_GAP", 2)
    make(tiered, tmp_path / "b.zip", entity_id="1")
    assert looks == [(seq, seq) for seq in (7, 10, 13, 16, 19, 22, 25, 28)]
    assert members(tmp_path / "a.zip") == members(tmp_path / "b.zip")
    assert seqs_in(tmp_path / "a.zip")[-1] == 29


class TestRefused:
    def test_an_empty_log(self, store: Store, tmp_path: Path) -> None:
        make_tenant(store)
        with pytest.raises(InputError, match="the log of 'acme' is empty"):
            make(store, tmp_path / "a.zip")

    def test_too_many_events(self, tiered: Store, tmp_path: Path) -> None:
        for wanted in ({}, {"actor": "ann"}):
            with pytest.raises(InputError, match="at most 23 events") as caught:
                make(tiered, tmp_path / "a.zip", events_max=23, **wanted)
            assert "ask for less in one bundle" in caught.value.hint
            assert not [p for p in tmp_path.iterdir() if p.is_file()], "nothing is left of it"
            assert make(tiered, tmp_path / "b.zip", events_max=24, **wanted).events == 24
            (tmp_path / "b.zip").unlink()
        for text in ("\ud800", "", "x" * 10_001):
            with pytest.raises(InputError):
                make(tiered, tmp_path / "a.zip", asked_by=text)

    def test_one_that_is_stopped_and_one_that_would_not_hold(
        self, tiered: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop = threading.Event()
        (tmp_path / "a.zip").write_bytes(b"another one")
        told: list[tuple[int, int | None]] = []

        def progress(done: int, total: int | None) -> None:
            told.append((done, total))
            stop.set()

        with pytest.raises(StateError, match="stopped before it was whole"):
            make(tiered, tmp_path / "a.zip", stop=stop, progress=progress)
        assert (tmp_path / "a.zip").read_bytes() == b"another one"
        assert len(told) == 1
        change: Callable[..., Any] = bundle.canonical_column
        monkeypatch.setattr(bundle, "canonical_column", lambda events: change(events.slice(1)))
        with pytest.raises(IntegrityError, match="the event 7 is not what its hash was made of"):
            make(tiered, tmp_path / "a.zip")
        assert (tmp_path / "a.zip").read_bytes() == b"another one"
        assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.zip"]

    def test_what_is_destroyed_on_the_way(self, tiered: Store, tmp_path: Path) -> None:
        def destroy(done: int, total: int | None) -> None:
            if total is None and done:
                order = RunOrder(RunKind.EXPIRY, "test")
                tenants = tiered.compactor.tenants("acme")
                tiered.compactor.run(tenants, START_US + 9 * DAY_US, order=order)

        with pytest.raises((StateError, InputError), match="destroyed"):
            make(tiered, tmp_path / "a.zip", progress=destroy)
        assert not (tmp_path / "a.zip").exists()


def test_the_page_shows_hostile_texts_as_text(tiered: Store, clock: FixedClock, tmp_path: Path) -> None:
    hostile = "</dd><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e'\"&"
    append(tiered, "acme", new_event(hostile, actor=hostile, new_value=hostile))
    path = tmp_path / "a.zip"
    make(tiered, path, entity_id=hostile, asked_by=hostile, reason=hostile)
    page = members(path)["README.html"].decode()
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert "\\u001b[2J\\u202e" in page
    assert "src=" not in page.replace("&lt;img src=x", "")
    assert "http" not in page.replace("http-equiv", "")
    (about, *_) = verified(path)
    assert "1 events" in about
    assert "\x1b" not in about


def test_a_key_that_was_replaced(tiered: Store, tmp_path: Path) -> None:
    """The checkpoint is the old key's if the log has not grown since: it takes both keys, or neither."""
    make_checkpoint(tiered.database, tiered.tiers, tiered.key, "acme")
    (old,) = log_verifier_keys(tiered.database, "acme")
    new = SigningKey.generate()
    add_key(tiered.database, new.verify_key, actor="lea", reason="a new host", now_us=NOW_US)
    path = tmp_path / "a.zip"
    write_bundle(
        tiered.database,
        tiered.tiers,
        new,
        "acme",
        EventFilter(),
        path,
        reader=tiered.reader,
        keepers=Keepers(),
        asked_by="lea",
        now_us=NOW_US,
    )
    both = log_verifier_keys(tiered.database, "acme")
    verified(path)
    verified(path, *both)
    with pytest.raises(ValueError, match="the file is signed with another key"):
        verified(path, old)
    with pytest.raises(ValueError, match="the checkpoint is signed with another key"):
        verified(path, *(key for key in both if key != old))


def test_publications_are_looked_at_before_a_bundle_is_signed(tiered: Store, tmp_path: Path) -> None:
    """What is kept elsewhere contradicts the log: nothing is signed. Else it gets the checkpoint."""
    place = tmp_path / "kept" / "acme"
    places = (str(place.parent / "{tenant}"),)
    told = replace(tiered, settings=tiered.settings.model_copy(update={"checkpoint_to": places}))
    origin, size = log_origin(tiered.database, "acme"), tiered.tiers.state("acme").last_seq
    place.parent.mkdir()
    place.write_text(str(tiered.key.sign_note(origin, Checkpoint(origin, size, bytes(32)).text())))
    with pytest.raises(IntegrityError, match="the log does not begin with those"):
        make(told, tmp_path / "a.zip")
    assert latest(tiered.database, "acme") is None
    place.unlink()
    make(told, tmp_path / "a.zip")
    assert place.read_bytes() == members(tmp_path / "a.zip")["checkpoint.txt"]


def test_a_bundle_is_stopped_while_the_tree_grows(tiered: Store, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StateError, match="stopped"):
        make(tiered, tmp_path / "a.zip", stop=stop)
    assert latest(tiered.database, "acme") is None
    with pytest.raises(KeyboardInterrupt):
        make(tiered, tmp_path / "a.zip", progress=interrupt)
    assert latest(tiered.database, "acme") is None


def interrupt(_done: int, _total: int | None) -> None:
    raise KeyboardInterrupt


class TestCommandLine:
    def test_a_bundle_is_made_and_verified(
        self, tiered: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (
            ("DATABASE_URL", tiered.settings.database_url),
            ("HOME", str(tiered.settings.home)),
            ("ARCHIVE_URL", tiered.settings.archive_url),
        ):
            monkeypatch.setenv(f"EVENTSTORE_{name}", str(value))
        path = tmp_path / "a.zip"
        options = ["--output", str(path), "--entity-id", "1", "--reason", "case 7", "--by", "lea"]
        done = CliRunner().invoke(app, ["bundle", "acme", *options])
        assert done.exit_code == 0, done.output
        assert "8 events of acme" in done.output
        assert "(6 destroyed before)" in done.output
        keys = tmp_path / "keys"
        keys.write_text(log_verifier_keys(tiered.database, "acme")[0] + "\n")
        for name in ("DATABASE_URL", "HOME", "ARCHIVE_URL"):
            monkeypatch.setenv(f"EVENTSTORE_{name}", "nowhere")  # it asks nobody
        shown = CliRunner().invoke(app, ["verify-bundle", str(path), "--key", str(keys)])
        assert shown.exit_code == 0, shown.output
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        shown = CliRunner().invoke(app, ["verify-bundle", str(path)])
        assert isinstance(shown.exception, IntegrityError)
        assert "is refused: the file is not the one that was signed" in str(shown.exception)
        for wrong in ([str(tmp_path / "none")], [str(path), "--key", "nothing"]):
            shown = CliRunner().invoke(app, ["verify-bundle", *wrong])
            assert isinstance(shown.exception, InputError), wrong
