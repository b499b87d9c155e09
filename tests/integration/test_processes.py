"""`serve --processes`: several processes on one port, of which any may end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from eventstore.app import Store, verify_tenant
from eventstore.settings import Settings
from tests.integration.commands import has_ended, port_of, serving
from tests.unit.helpers import make_tenant, read, seqs
from tests.waiting import until

PATH = "/v1/tenants/acme/events"


class Served:
    """A server of several processes, and connections to it."""

    def __init__(self, first: psutil.Process, port: int) -> None:
        self.first, self.port = first, port

    def others(self) -> list[psutil.Process]:
        """The processes beside the first."""
        return [p for p in self.first.children() if "--listener" in p.cmdline() and p.is_running()]

    def holder(self, local_port: int) -> psutil.Process | None:
        """Which process took the connection that has this port at our end."""
        for process in [self.first, *self.others()]:
            for found in process.net_connections("tcp"):
                if found.raddr and found.raddr[1] == local_port and found.laddr[1] == self.port:
                    return process
        return None

    @contextmanager
    def client(self) -> Iterator[tuple[httpx.Client, psutil.Process]]:
        """A client with one connection, which it keeps, and the process at its other end."""
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", limits=limits, timeout=60) as client:
            with client.stream("GET", "/healthz") as answer:
                stream = answer.extensions["network_stream"]
                local_port = stream.get_extra_info("client_addr")[1]
                assert answer.read()
            yield client, until(lambda: self.holder(local_port), "somebody holds the connection")

    @contextmanager
    def client_of_each(self, count: int) -> Iterator[dict[int, httpx.Client]]:
        """A client at each of so many processes, by process id."""
        with ExitStack() as stack:
            found: dict[int, httpx.Client] = {}

            def another() -> bool:
                client, process = stack.enter_context(self.client())
                found.setdefault(process.pid, client)
                return len(found) == count

            until(another, f"{count} processes answer")
            yield found


@contextmanager
def served(settings: Settings, tmp_path: Path, processes: int) -> Iterator[Served]:
    out = tmp_path / "log"
    with serving(settings, out, "--no-scheduler", "--processes", str(processes)) as process:
        yield Served(psutil.Process(process.pid), port_of(out))


def _append(client: httpx.Client, entity: str) -> int:
    event = {
        "entity_type": "thing",
        "entity_id": entity,
        "action": "update",
        "actor": "ann",
        "source": "test",
    }
    answer = client.post(PATH, json=event)
    assert answer.status_code == 201, answer.text
    seq: int = answer.json()["first_seq"]
    return seq


def test_all_of_them_append_to_one_log(store: Store, settings: Settings, tmp_path: Path) -> None:
    make_tenant(store, "acme")
    with served(settings, tmp_path, 3) as several, several.client_of_each(3) as clients:

        def work(client: httpx.Client) -> list[int]:
            return [_append(client, str(n)) for n in range(60)]

        with ThreadPoolExecutor(3) as executor:
            answered = list(executor.map(work, clients.values()))
        # Their commits took turns; what was answered is what there is.
        assert sorted(seq for found in answered for seq in found) == list(range(1, 181))
        assert all(found == sorted(found) for found in answered)
        assert max(answered[0][0], answered[1][0], answered[2][0]) < min(found[-1] for found in answered)
        for client in clients.values():
            page = client.get(PATH, params={"limit": 200}).json()
            assert [event["seq"] for event in page["events"]] == list(range(1, 181))
    assert seqs(read(store, "acme")) == list(range(1, 181))
    assert verify_tenant(store, "acme").ok


def test_a_feed_of_one_hears_of_appends_to_the_others(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_tenant(store, "acme")
    with served(settings, tmp_path, 2) as several, several.client_of_each(2) as clients:
        follower, writer = clients.values()
        headers = {"accept": "text/event-stream"}
        with follower.stream("GET", "/v1/tenants/acme/feed", headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()
            for expected in range(1, 6):
                assert _append(writer, "1") == expected
                data = next(line for line in lines if line.startswith("data:"))
                assert json.loads(data.removeprefix("data:"))["seq"] == expected


def test_one_that_is_killed_is_started_again_and_the_others_answer(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_tenant(store, "acme")
    with served(settings, tmp_path, 2) as several:
        with several.client_of_each(2) as clients:
            for client in clients.values():
                _append(client, "1")
        (killed,) = several.others()
        killed.kill()
        until(lambda: has_ended(killed), "it has ended")
        for seq in range(3, 9):
            with several.client() as (client, process):
                assert process.pid == several.first.pid
                assert _append(client, "1") == seq
        with several.client_of_each(2) as clients:
            assert killed.pid not in clients
            assert [_append(client, "1") for client in clients.values()] == [9, 10]
    assert verify_tenant(store, "acme").ok


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_they_end_together(store: Store, settings: Settings, tmp_path: Path, how: signal.Signals) -> None:
    make_tenant(store, "acme")
    out = tmp_path / "log"
    with serving(settings, out, "--no-scheduler", "--processes", "2") as process:
        several = Served(psutil.Process(process.pid), port_of(out))
        with several.client_of_each(2) as clients:
            for client in clients.values():
                _append(client, "1")
        (other,) = several.others()
        process.send_signal(how)
        if how is signal.SIGINT:
            other.send_signal(how)  # a terminal sends it to all
        assert process.wait(60) in (0, 130, -how), out.read_text()
        until(lambda: has_ended(other), "it has ended too")
    assert seqs(read(store, "acme")) == [1, 2]
    assert "Traceback" not in out.read_text()
