"""The governor: what it feels, how it steers, and that each change is in the journals of runs under way."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from eventstore.archive.targets import Targets
from eventstore.db.engine import Database
from eventstore.retention.governor import Governor, Signals, next_parallelism
from tests.unit.helpers import execute
from tests.waiting import until

CALM = Signals(append_p99_ms=None, rest_p99_ms=None, checkpoints=0, pushback=0)
SLOW = Signals(append_p99_ms=30, rest_p99_ms=4, checkpoints=0, pushback=0)


@pytest.mark.parametrize(
    ("append_ms", "rest_ms", "pressed"),
    [
        (None, 4, False),  # nobody appends
        (500, None, False),  # nobody knows what is usual
        (8, 4, False),  # twice as slow, but by a few milliseconds only
        (9, 4, False),
        (9.1, 4, True),
        (40, 20, False),
        (40.1, 20, True),
    ],
)
def test_appends_are_slow_in_proportion(
    append_ms: float | None, rest_ms: float | None, pressed: bool
) -> None:
    words = Signals(append_ms, rest_ms, checkpoints=0, pushback=0).pressure()
    assert (words is not None) == pressed
    assert words is None or words.startswith("appends slowed down: p99 ")


def test_checkpoints_and_targets_press() -> None:
    assert Signals(None, None, checkpoints=1, pushback=0).pressure() is None
    assert Signals(None, None, 2, 0).pressure() == "checkpoints crowd: 2 asked for within a minute"
    assert Signals(None, None, 0, 1).pressure() == "a target pushed back 1 times"
    # Appends come first: they are whom it is all about.
    assert str(Signals(30, 4, 2, 1).pressure()).startswith("appends")


def test_half_under_pressure_one_more_after_a_calm() -> None:
    slow = SLOW.pressure()
    assert [next_parallelism(now, 8, SLOW, 0) for now in (8, 5, 2)] == [(4, slow), (2, slow), (1, slow)]
    assert next_parallelism(1, 8, SLOW, 0) == (1, None)  # never none at all
    assert next_parallelism(0, 8, CALM, 5) == (1, "calm again")
    assert [next_parallelism(4, 8, CALM, calm) for calm in (0, 4, 5)] == [
        (4, None),
        (4, None),
        (5, "calm again"),
    ]
    assert next_parallelism(8, 8, CALM, 99) == (8, None)
    assert next_parallelism(8, 4, CALM, 0) == (4, "the settings allow no more")


# --- with a real Postgres -----------------------------------------------------------------------------


class Scene:
    """A database with a run under way and one that has ended, and a governor."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = database.url
        self.target = type("Target", (), {"pushback": 0})()
        self.targets = Targets.single(self.target)
        self.asked = 0
        # What Postgres counts for the whole server, other tests' checkpoints included.
        monkeypatch.setattr(Governor, "_checkpoints_asked", self._checkpoints)
        self.now_s = 1000.0
        self.governor = Governor(database, self.targets, most=4)
        self.process = uuid.uuid4()
        self.run = uuid.uuid4()
        for run_id, status in ((self.run, "running"), (uuid.uuid4(), "completed")):
            execute(
                self.url,
                "INSERT INTO runs (run_id, kind, now_us, requested_by, holder, status)"
                " VALUES (%s, 'retention', 0, 'test', 0, %s)",
                [run_id, status],
            )
        assert self.governor.step() == 4

    def _checkpoints(self, _: object) -> tuple[int, float]:
        self.now_s += 2
        return self.asked, self.now_s

    def pulse(self, p99_ms: float) -> None:
        execute(
            self.url,
            "INSERT INTO pulses VALUES (%s, clock_timestamp(), 9, 1, %s) ON CONFLICT (process)"
            " DO UPDATE SET at = excluded.at, p99_ms = excluded.p99_ms",
            [self.process, p99_ms],
        )

    def working(self, count: int) -> None:
        execute(self.url, "DELETE FROM tasks")
        for hour in range(count):
            execute(
                self.url,
                "INSERT INTO tasks (run_id, tenant_id, window_from, action, state, holder, leased_until)"
                " VALUES (%s, 'acme', to_timestamp(%s), 'archive', 'running', 1, now())",
                [self.run, hour * 3600],
            )

    def told(self) -> list[Any]:
        """What the journals say of it: only that of the run under way."""
        rows = execute(
            self.url,
            "SELECT run_id, detail FROM run_entries WHERE kind = 'parallelism_adjusted' ORDER BY entry_no",
        )
        assert {run_id for run_id, _ in rows} <= {self.run}
        return [(detail["from"], detail["to"], detail["reason"]) for _, detail in rows]

    def limit(self) -> tuple[int, bool]:
        ((parallelism, lately),) = execute(
            self.url, "SELECT parallelism, felt_at > now() - interval '5 s' FROM governor"
        )
        return parallelism, lately


@pytest.fixture
def scene(database: Database, monkeypatch: pytest.MonkeyPatch) -> Scene:
    execute(database.url, "INSERT INTO tenants (tenant_id, window_unit) VALUES ('acme', 'hour')")
    return Scene(database, monkeypatch)


def test_appends_that_slow_down_lower_it_and_calm_raises_it(scene: Scene) -> None:
    for _ in range(3):
        scene.pulse(4)
        assert scene.governor.step() == 4  # at rest: nothing is worked on
    scene.working(4)
    scene.pulse(30)
    assert [scene.governor.step() for _ in range(3)] == [2, 1, 1]
    scene.pulse(6)
    assert [scene.governor.step() for _ in range(10)] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    told = scene.told()
    slow = "appends slowed down: p99 30 ms, 4 ms at rest"
    assert told == [(4, 2, slow), (2, 1, slow), (1, 2, "calm again"), (2, 3, "calm again")]
    assert scene.limit() == (3, True)


def test_slow_appends_while_nothing_is_worked_on_are_usual(scene: Scene) -> None:
    for _ in range(3):
        scene.pulse(30)
        scene.governor.step()
    scene.working(1)
    assert scene.governor.step() == 4
    # A pulse of a process that has ended says nothing.
    scene.pulse(900)
    execute(scene.url, "UPDATE pulses SET at = now() - interval '1 minute'")
    assert scene.governor.step() == 4
    assert scene.told() == []


def test_checkpoints_that_crowd_lower_it_for_a_minute(scene: Scene) -> None:
    scene.asked += 1
    assert scene.governor.step() == 4
    scene.asked += 1
    assert scene.governor.step() == 2
    assert scene.told() == [(4, 2, "checkpoints crowd: 2 asked for within a minute")]
    scene.now_s += 60
    assert [scene.governor.step() for _ in range(5)] == [2, 2, 2, 2, 3]


def test_a_target_that_pushes_back_lowers_it(scene: Scene) -> None:
    """Felt in this process, or told by a worker's journal."""
    scene.target.pushback = 3
    assert scene.governor.step() == 2
    assert scene.governor.step() == 2  # no more since
    retry = '{"attempt": 1, "reason": "503", "backoff_s": 1.0, "what": "%s"}'
    entry = "INSERT INTO run_entries (run_id, kind, detail) VALUES (%s, 'retry', %s)"
    execute(scene.url, entry, [scene.run, retry % "drop"])
    assert scene.governor.step() == 2
    execute(scene.url, entry, [scene.run, retry % "target"])
    assert scene.governor.step() == 1
    assert [reason for *_, reason in scene.told()] == [
        "a target pushed back 3 times",
        "a target pushed back 1 times",
    ]


def test_the_settings_allow_less_than_before(scene: Scene, database: Database) -> None:
    assert Governor(database, scene.targets, most=2).step() == 2
    assert scene.told() == [(4, 2, "the settings allow no more")]


def test_it_affirms_its_word(scene: Scene) -> None:
    """Claims heed a limit only while its governor is there."""
    execute(scene.url, "UPDATE governor SET felt_at = now() - interval '1 hour'")
    assert scene.governor.step() == 4
    assert scene.limit() == (4, True)


def test_postgres_counts_the_checkpoints_that_are_asked_for(database: Database) -> None:
    governor = Governor(database, Targets.single(object()), most=4)  # type: ignore[arg-type]

    def asked() -> tuple[int, float]:
        with database.transaction() as conn:
            return governor._checkpoints_asked(conn)

    before, before_s = asked()
    execute(database.url, "CHECKPOINT")
    # The checkpointer tells of it some time after it is done.
    until(lambda: asked()[0] > before, "the checkpoint is counted")
    assert asked()[1] > before_s
