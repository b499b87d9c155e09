"""The recorder: durable before it returns, sent by count or time, and bounded."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from eventstore.client import Client, NewEvent, Retry
from eventstore.client import outbox as outbox_module
from eventstore.client.outbox import read_outbox
from eventstore.client.recorder import Recorder, Rejected
from eventstore.errors import BusyError, InvalidEventError, RetryError, SetupError, TooLargeError

WAIT_S = 20


def event(n: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "entity_type": "order",
        "entity_id": str(n),
        "action": "changed",
        "actor": "ann",
        "source": "web",
        **values,
    }


class Store:
    """Takes everything, unless it is told to be away. `arrived` is set with each request that it took."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.up = threading.Event()
        self.up.set()
        self.bad: set[str] = set()
        self.arrived = threading.Semaphore(0)
        self.refused = threading.Semaphore(0)
        self.api_keys: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.up.is_set():
            self.refused.release()
            raise httpx.ConnectError("refused")
        self.api_keys.add(request.headers["authorization"])
        events = [msgspec.json.decode(part) for part in request.content.splitlines()]
        for number, found in enumerate(events, 1):
            if found["entity_id"] in self.bad:
                problem = {
                    "type": "urn:eventstore:invalid-event",
                    "detail": "bad",
                    "status": 422,
                    "line": number,
                }
                return httpx.Response(422, json=problem)
        self.batches.append(events)
        self.arrived.release()
        counts = {"first_seq": 1, "last_seq": 1, "count": len(events), "duplicates": 0}
        return httpx.Response(201, json=counts)

    def has_refused(self, times: int = 2) -> None:
        """Wait for failures: when the second comes, the first has been told."""
        for _ in range(times):
            assert self.refused.acquire(timeout=WAIT_S)

    @property
    def entities(self) -> list[str]:
        return [e["entity_id"] for batch in self.batches for e in batch]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def client(store: Store) -> Iterator[Client]:
    with Client("http://store", "acme", api_key="sk_secret", transport=httpx.MockTransport(store)) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


QUICK = {"retry": Retry(first_s=0.001, longest_s=0.01)}


def test_a_recorded_event_is_on_the_disk_with_its_id_and_time(
    client: Client, folder: Path, store: Store
) -> None:
    store.up.clear()
    with Recorder(client, folder, **QUICK) as recorder:
        event_id = recorder.record(event(7, new_value={"a": [1, None]}))
        ((number, line),) = read_outbox(folder)
        found = msgspec.json.decode(line)
        assert (number, found["event_id"], found["new_value"]) == (1, str(event_id), {"a": [1, None]})
        assert event_id.version == 7
        assert found["occurred_at"].endswith("Z")
        store.up.set()
    assert store.entities == ["7"]
    assert store.api_keys == {"Bearer sk_secret"}


def test_it_syncs_before_it_returns_and_one_sync_serves_many(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    gate = threading.Semaphore(0)
    sync = os.fdatasync

    def slow(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            assert gate.acquire(timeout=WAIT_S)
            synced.append(fd)
        sync(fd)

    recorder = Recorder(client, folder, flush_s=60, **QUICK)
    monkeypatch.setattr(outbox_module.os, "fdatasync", slow)
    threads = [threading.Thread(target=recorder.record, args=(event(n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    assert all(t.is_alive() for t in threads), "nobody returns before a sync"
    gate.release(2)
    for thread in threads:
        thread.join(WAIT_S)
    assert len(synced) <= 2
    assert recorder.status().recorded == 20
    recorder.close()


def test_by_count(client: Client, folder: Path, store: Store) -> None:
    with Recorder(client, folder, flush_events=3, flush_s=3600, **QUICK) as recorder:
        for n in range(2):
            recorder.record(event(n))
        assert not store.arrived.acquire(timeout=0.05)
        recorder.record(event(2))
        assert store.arrived.acquire(timeout=WAIT_S)
        assert store.entities == ["0", "1", "2"]


def test_by_time(client: Client, folder: Path, store: Store) -> None:
    with Recorder(client, folder, flush_events=100, flush_s=0.01, **QUICK) as recorder:
        recorder.record(event())
        assert store.arrived.acquire(timeout=WAIT_S)


def test_flush_sends_now_and_says_what_is_left(client: Client, folder: Path, store: Store) -> None:
    with Recorder(client, folder, flush_s=3600, **QUICK) as recorder:
        recorder.record(event(1), wait=False)
        assert recorder.flush() == 0
        assert store.entities == ["1"]
        store.up.clear()
        recorder.record(event(2))
        assert recorder.flush(timeout_s=0) == 1
        store.has_refused()
        status = recorder.status()
        assert (status.recorded, status.waiting, status.rejected) == (2, 1, 0)
        assert status.failures > 0
        assert isinstance(status.error, RetryError)
        store.up.set()
        assert recorder.flush() == 0
        assert recorder.status().error is None


def test_what_is_left_at_the_end_is_sent_by_the_next_recorder(
    client: Client, folder: Path, store: Store
) -> None:
    store.up.clear()
    recorder = Recorder(client, folder, **QUICK)
    for n in range(5):
        recorder.record(event(n), wait=False)
    recorder.close(timeout_s=0)
    with pytest.raises(SetupError, match="closed"):
        recorder.record(event())
    store.up.set()
    with Recorder(client, folder, **QUICK) as recorder:
        assert recorder.flush() == 0
    assert store.entities == ["0", "1", "2", "3", "4"]


def test_it_tells_of_failures_and_rejected_events(client: Client, folder: Path, store: Store) -> None:
    told: list[Exception] = []
    rejected: list[Rejected] = []

    def fails(error: Exception) -> None:
        told.append(error)
        raise ValueError("the application's own mistake")

    store.up.clear()
    with Recorder(client, folder, on_error=fails, on_rejected=rejected.append, **QUICK) as recorder:
        recorder.record(event(1))
        recorder.flush(timeout_s=0)
        store.has_refused()
        assert told
        store.bad = {"2"}
        store.up.set()
        for n in (2, 3):
            recorder.record(event(n))
        assert recorder.flush() == 0
        assert recorder.status().rejected == 1
    assert [msgspec.json.decode(r.line)["entity_id"] for r in rejected] == ["2"]
    assert store.entities == ["1", "3"]
    with Recorder(client, folder, **QUICK) as recorder:
        assert recorder.status().rejected == 1, "counted again when it opens"


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"actor": ""}, "actor"),
        ({"entity_type": "x" * 201}, "entity_type"),
        ({"color": "red"}, "color"),
        ({"metadata": [1]}, "metadata.*JSON object"),
        ({"new_value": object()}, "no JSON"),
        ({"new_value": {"a": ["\0"]}}, "NUL"),
        ({"entity_id": "\ud800"}, "no JSON"),
        ({"expected_version": 3}, "expected_version"),
        ({"event_id": "no uuid"}, "event_id"),
        ({"occurred_at": "2026-01-01T00:00:00"}, "occurred_at"),
    ],
)
def test_what_the_store_would_refuse_is_refused_at_once(
    client: Client, folder: Path, wrong: dict[str, Any], match: str
) -> None:
    with Recorder(client, folder, **QUICK) as recorder:
        with pytest.raises(InvalidEventError, match=match):
            recorder.record(event(**wrong))
        with pytest.raises(TooLargeError):
            recorder.record(event(new_value="x" * 5 * 2**20))
        recorder.record(NewEvent(entity_type="t", entity_id="i", action="a", actor="b", source="\\u0000"))
        assert recorder.status().recorded == 1


def test_inserts_updates_and_ingests(client: Client, folder: Path, store: Store) -> None:
    who = {"actor": "ann", "source": "web"}
    with Recorder(client, folder, **QUICK) as recorder:
        recorder.record_insert("order", "1", {"state": "new"}, **who)
        recorder.record_update("order", "1", {"state": ("new", "paid"), "note": (None, "x")}, **who)
        recorder.record_update("order", "1", {}, **who)
        recorder.record_ingest("prices", 1000, **who, metadata={"file": "a.csv"}, wait=False)
        recorder.flush()
    found = [e for batch in store.batches for e in batch]
    assert [(e["action"], e.get("field"), e.get("old_value"), e.get("new_value")) for e in found] == [
        ("insert", "*", None, {"state": "new"}),
        ("update", "state", "new", "paid"),
        ("update", "note", None, "x"),
        ("ingest", "*", None, {"count": 1000}),
    ]
    assert found[3]["metadata"] == {"file": "a.csv"}
    assert len({e["event_id"] for e in found}) == 4


# --- full -----------------------------------------------------------------------------------------------


SMALL = {"roll_bytes": 2000, "max_bytes": 4000}


def fill(recorder: Recorder) -> int:
    """Record until there is no room; how many were taken."""
    for n in range(1000):
        try:
            recorder.record(event(n), full="raise")
        except BusyError:
            return n
    raise AssertionError("it never fills")


def test_a_full_outbox_raises_and_takes_events_again_when_there_is_room(
    client: Client, folder: Path, store: Store
) -> None:
    store.up.clear()
    with Recorder(client, folder, **SMALL, **QUICK) as recorder:
        count = fill(recorder)
        assert recorder.flush(timeout_s=0) == count
        store.has_refused()
        with pytest.raises(BusyError, match="4000 bytes; sending fails: the store did not answer: refused"):
            recorder.record(event(), wait=False, full="raise")
        with pytest.raises(BusyError):
            recorder.record(event(), timeout_s=0.02)
        assert sum(p.stat().st_size for p in folder.glob("events-*")) <= 4000
        store.up.set()
        recorder.flush()
        assert recorder.status().size_bytes < 2000
        recorder.record(event(count))
    assert store.entities == [str(n) for n in range(count + 1)]


def test_a_full_outbox_blocks_until_there_is_room(client: Client, folder: Path, store: Store) -> None:
    store.up.clear()
    with Recorder(client, folder, **SMALL, **QUICK) as recorder:
        count = fill(recorder)
        thread = threading.Thread(target=recorder.record, args=(event(count),))
        thread.start()
        store.has_refused(3)  # several failures later it still waits
        assert thread.is_alive()
        store.up.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert store.entities == [str(n) for n in range(count + 1)]


def test_removing_rejected_events_makes_room(client: Client, folder: Path) -> None:
    with Recorder(client, folder, **SMALL, **QUICK) as recorder:
        aside = folder / f"rejected-{1:020d}.jsonl"
        aside.write_bytes(b"x" * 3999)
        recorder._outbox.count_rejected()
        with pytest.raises(BusyError):
            recorder.record(event(), full="raise")
        thread = threading.Thread(target=recorder.record, args=(event(),))
        thread.start()
        aside.unlink()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_maximum_that_two_files_do_not_fit_in_is_refused(client: Client, folder: Path) -> None:
    with pytest.raises(Exception, match="max_bytes"):
        Recorder(client, folder, max_bytes=2**20)


class Disk:
    """Stands for `_write_all`: full until it is told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = threading.Event()
        self.full.set()
        self.tried = threading.Semaphore(0)
        self._write = outbox_module._write_all
        monkeypatch.setattr(outbox_module, "_write_all", self)

    def __call__(self, fd: int, data: bytes) -> None:
        if self.full.is_set():
            self._write(fd, data[: len(data) // 2])
            self.tried.release()
            raise OSError(errno.ENOSPC, "no space left on device")
        self._write(fd, data)


def test_a_full_disk_raises_and_keeps_what_nobody_was_told_of(
    client: Client, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder(client, folder, full="raise", **QUICK) as recorder:
        disk = Disk(monkeypatch)
        with pytest.raises(RetryError, match="no space left"):
            recorder.record(event(1))
        recorder.record(event(2), wait=False)
        assert disk.tried.acquire(timeout=WAIT_S)
        assert disk.tried.acquire(timeout=WAIT_S)
        with pytest.raises((BusyError, RetryError), match="no space left"):
            recorder.record(event(3))
        assert recorder.status().error is not None
        disk.full.clear()
        recorder.sync()
        recorder.record(event(4))
    assert store.entities == ["2", "4"]


def test_a_full_disk_blocks(
    client: Client, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder(client, folder, **QUICK) as recorder:
        disk = Disk(monkeypatch)
        threads = [threading.Thread(target=recorder.record, args=(event(n),)) for n in range(3)]
        for thread in threads:
            thread.start()
        assert disk.tried.acquire(timeout=WAIT_S)
        assert all(thread.is_alive() for thread in threads)
        disk.full.clear()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
    assert sorted(store.entities) == ["0", "1", "2"]


def test_what_cannot_be_written_at_the_end_is_told(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(client, folder, **QUICK)
    Disk(monkeypatch)
    recorder.record(event(1), wait=False)
    with caplog.at_level(logging.ERROR):
        recorder.close(timeout_s=0)
    assert "1 events could not be written, and are lost" in caplog.text


# --- processes ------------------------------------------------------------------------------------------


def test_two_recorders_do_not_share_a_folder(client: Client, folder: Path) -> None:
    with Recorder(client, folder), pytest.raises(BusyError, match="belongs to another recorder"):
        Recorder(client, folder)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_to_open_its_own(client: Client, folder: Path) -> None:
    with Recorder(client, folder, **QUICK) as recorder:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                recorder.record(event())
            except SetupError:
                os.write(write_end, b"told")
            finally:
                os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        assert os.read(read_end, 10) == b"told"
        os.close(read_end)


async def _record(recorder: Recorder) -> None:
    await recorder.arecord(event(5))


def test_from_an_event_loop(client: Client, folder: Path, store: Store) -> None:
    import asyncio

    with Recorder(client, folder, **QUICK) as recorder:
        asyncio.run(_record(recorder))
        recorder.flush()
    assert store.entities == ["5"]
    assert "secret" not in repr(recorder) + repr(client)
