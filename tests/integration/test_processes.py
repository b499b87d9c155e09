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

from eventstore.app import Store, verify_tenant
from eventstore.settings import Settings
from tests.integration.commands import has_ended, port_of, serving
from tests.unit.helpers import make_tenant, read, seqs
from tests.waiting import until

PATH = "/v1/tenants/acme/events"
_SSE = {"accept": "text/event-stream"}


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


def test_they_serve_one_log(store: Store, settings: Settings, tmp_path: Path) -> None:
    make_tenant(store, "acme")
    out = tmp_path / "log"
    with serving(settings, out, "--no-scheduler", "--processes", "2") as process:
        several = Served(psutil.Process(process.pid), port_of(out))
        with several.client_of_each(2) as clients:

            def work(client: httpx.Client) -> list[int]:
                return [_append(client, str(n)) for n in range(60)]

            with ThreadPoolExecutor(2) as executor:
                first, second = executor.map(work, clients.values())
            # Their commits took turns; what was answered is what there is.
            assert sorted(first + second) == list(range(1, 121))
            assert first == sorted(first)
            assert second == sorted(second)
            assert max(first[0], second[0]) < min(first[-1], second[-1])
            for client in clients.values():
                page = client.get(PATH, params={"limit": 200}).json()
                assert [event["seq"] for event in page["events"]] == list(range(1, 121))

            # A feed of the one hears of appends to the other.
            follower, writer = clients.values()
            query = {"since": 120}
            with follower.stream("GET", "/v1/tenants/acme/feed", params=query, headers=_SSE) as answer:
                assert answer.status_code == 200, answer.read()
                lines = answer.iter_lines()
                for expected in range(121, 124):
                    assert _append(writer, "1") == expected
                    data = next(line for line in lines if line.startswith("data:"))
                    assert json.loads(data.removeprefix("data:"))["seq"] == expected
        (other,) = several.others()
        for each in (process, other):  # as a terminal does, which tells all of them
            each.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, out.read_text()
        until(lambda: has_ended(other), "it has ended too")
    assert seqs(read(store, "acme")) == list(range(1, 124))
    assert verify_tenant(store, "acme").ok
    assert "Traceback" not in out.read_text()


def test_one_that_is_killed_is_started_again_and_the_others_answer(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    make_tenant(store, "acme")
    out = tmp_path / "log"
    with serving(settings, out, "--no-scheduler", "--processes", "2") as process:
        several = Served(psutil.Process(process.pid), port_of(out))
        with several.client_of_each(2) as clients:
            assert [_append(client, "1") for client in clients.values()] == [1, 2]
        (killed,) = several.others()
        killed.kill()
        until(lambda: has_ended(killed), "it has ended")
        for seq in range(3, 9):
            with several.client() as (client, holder):
                assert holder.pid == process.pid
                assert _append(client, "1") == seq
        with several.client_of_each(2) as clients:
            assert killed.pid not in clients
            assert [_append(client, "1") for client in clients.values()] == [9, 10]
        (other,) = several.others()
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM), out.read_text()
        until(lambda: has_ended(other), "it has ended too")
    assert verify_tenant(store, "acme").ok


def test_the_first_that_is_killed_takes_the_others_along(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "log"
    with serving(settings, out, "--no-scheduler", "--processes", "2") as process:
        several = Served(psutil.Process(process.pid), port_of(out))
        with several.client_of_each(2):
            (other,) = several.others()
        process.kill()
        until(lambda: has_ended(other), "it has ended too")
