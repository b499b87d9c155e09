"""kill -9 at random moments: a recorder, and now and then its server, which flaps besides.

OUTBOX_KILLS is how often the recorder is killed (15; the long form has 200), OUTBOX_SEED repeats a run's
choices (moments on the wall clock are not repeatable).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from eventstore.app import Store
from eventstore.client.outbox import Outbox
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.settings import Settings
from tests.crash import outbox_processes
from tests.unit.helpers import read

ROOT = Path(__file__).resolve().parents[2]
MOMENT_S_MAX = 0.6
WAIT_S = 60
WORD_S_MAX = 3.0
LAST = 25  # events of the life that is not killed


class World:
    """A server that can be killed, and the recorder's lives."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["eventstore.api.server", "tests.crash.outbox_processes"])
        kept = ("database_url", "home", "archive_url")
        self._settings = {name: getattr(settings, name) for name in kept}
        self._server: Any = None
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.recorder: subprocess.Popen[bytes] | None = None

    def start_server(self, seed: int | None) -> None:
        ready = self._context.Event()
        self._server = self._context.Process(
            target=outbox_processes.serve, args=(self._settings, self._port, seed, ready)
        )
        self._server.start()
        assert ready.wait(WAIT_S)

    def kill_server(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.join()
            self._server.close()
            self._server = None

    @property
    def is_served(self) -> bool:
        return self._server is not None

    def start_recorder(self, life: str, count: str = "") -> None:
        self._heard = b""
        command = [sys.executable, "-m", "tests.crash.outbox_processes"]
        self.recorder = subprocess.Popen(
            [*command, str(self._folder), str(self._port), life, count], cwd=ROOT, stdout=subprocess.PIPE
        )

    def kill_recorder(self) -> int:
        """How many events its life had recorded for certain."""
        assert self.recorder is not None
        self.recorder.kill()
        return self.said()

    def await_word(self) -> None:
        """Until the recorder has said something. It says nothing while its outbox is full."""
        assert self.recorder is not None
        assert self.recorder.stdout is not None
        fd = self.recorder.stdout.fileno()
        if select.select([fd], [], [], WORD_S_MAX)[0]:
            self._heard = os.read(fd, 1)

    def said(self) -> int:
        assert self.recorder is not None
        assert self.recorder.stdout is not None
        with self.recorder.stdout as out:
            lines = (self._heard + out.read()).split(b"\n")
        self.recorder.wait(WAIT_S)
        return int(lines[-2]) if len(lines) > 1 else 0


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Iterator[World]:
    made = World(settings, tmp_path / "outbox")
    yield made
    if made.recorder is not None and made.recorder.poll() is None:
        made.kill_recorder()
    made.kill_server()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_recorded_event_arrives_once_and_in_order(world: World, store: Store, tmp_path: Path) -> None:
    kills = int(os.environ.get("OUTBOX_KILLS", "15"))
    seed = int(os.environ.get("OUTBOX_SEED", str(random.SystemRandom().randrange(2**32))))
    print(f"OUTBOX_SEED={seed}")
    chosen = random.Random(seed)
    create_tenant(store.database, outbox_processes.TENANT, DEFAULT_POLICY)
    recorded: dict[str, int] = {}
    servers = 0
    for number in range(kills):
        if not world.is_served and chosen.random() < 0.7:
            world.start_server(chosen.randrange(2**32))
            servers += 1
        world.start_recorder(str(number))
        if chosen.random() < 0.8:
            # Mostly it gets to record something; sometimes it dies while it starts.
            world.await_word()
        # This sleep is the experiment: the moment of death.
        time.sleep(chosen.random() * MOMENT_S_MAX)
        if world.is_served and chosen.random() < 0.4:
            world.kill_server()
        recorded[str(number)] = world.kill_recorder()
    world.kill_server()
    world.start_server(None)
    world.start_recorder("last", str(LAST))
    recorded["last"] = world.said()
    assert world.recorder is not None
    assert world.recorder.returncode == 0

    arrived = [row["entity_id"].split("-") for row in read(store, outbox_processes.TENANT)]
    lives = [(life, [int(n) for _, n in events]) for life, events in groupby(arrived, key=lambda e: e[0])]
    assert [life for life, _ in lives] == [life for life in recorded if life in dict(lives)], "in order"
    found = dict(lives)
    for life, numbers in found.items():
        assert numbers == list(range(len(numbers))), f"life {life}: each once, in order"
    # More may have arrived: what was durable when the process died before it could say so.
    for life, count in recorded.items():
        assert len(found.get(life, ())) >= count, f"life {life}"
    left = Outbox(tmp_path / "outbox")
    assert (left.cursor.acknowledged, left.rejected()) == (left.last, 0)
    left.close()
    assert len(list((tmp_path / "outbox").glob("events-*"))) == 1
    print(f"{len(arrived)} events, {sum(recorded.values())} of them known; {kills} kills, {servers} servers")
