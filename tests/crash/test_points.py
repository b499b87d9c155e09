"""kill -9 at every step, with appenders and a reader at work; a restart; the independent checker as judge.

Of the steps of archiving and appending, whose tests take the longest, every second one; with CRASH_POINTS=all
(as `make torture` has it) each.
"""

from __future__ import annotations

import os
import signal
from itertools import islice

import pytest

from eventstore.db.engine import Database
from eventstore.governance.policies import add_version
from eventstore.governance.tenants import override_of
from eventstore.model.policy import Policy
from eventstore.model.window import WindowUnit
from tests.crash.points import (
    APPEND_POINTS,
    EXPIRY_POINTS,
    MOVE_POINTS,
    RETENTION_POINTS,
    TASK_POINTS,
    UNIT_POINTS,
)
from tests.crash.world import BASE_US, HOUR_US, World

# Two windows are closed; others append to the third, and the run is made at its end: it is sealed under them.
OPEN_US = BASE_US + 2 * HOUR_US
NOW_US = OPEN_US + HOUR_US
# When the windows of a tiered store are to go on to the second tier, and when they have expired.
MOVE_US, EXPIRY_US = OPEN_US + 10 * HOUR_US, OPEN_US + 30 * HOUR_US


_STRIDE = 1 if os.environ.get("CRASH_POINTS") == "all" else 2
_APPENDING = list(APPEND_POINTS.items())[::_STRIDE]
_ARCHIVING = dict(islice(RETENTION_POINTS.items(), 0, None, _STRIDE))


@pytest.mark.parametrize(("point", "state"), _ARCHIVING.values(), ids=_ARCHIVING.keys())
def test_retention_killed(world: World, point: str, state: str) -> None:
    appender = world.appender("appender", clock_us=OPEN_US)
    reader = world.reader()
    world.wait_progress(appender, reader)

    killed = world.retention("killed", NOW_US, "--crash", point)
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    world.check()
    assert world.first_window_state() == state
    # Two passes: the second began after the crash.
    world.wait_progress(appender, reader, lines=2)

    report = world.run_retention("restarted", NOW_US)
    assert (report["status"], report["errors"], report["warnings"]) == ("completed", [], [])
    world.check(orphans_allowed=False)
    again = world.run_retention("again", NOW_US)
    assert (again["status"], again["windows"]) == ("completed", 0)
    assert world.check_completed_once() == 6
    world.wait_progress(appender, reader, lines=2)
    world.finish()
    world.check(orphans_allowed=False)


@pytest.mark.parametrize(("point", "state"), TASK_POINTS.values(), ids=TASK_POINTS.keys())
def test_killed_between_tasks(world: World, point: str, state: str | None) -> None:
    lease = ("--lease", 0.03) if "Tasks.renew" in point else ()
    killed = world.retention("killed", OPEN_US, "--crash", point, *lease)
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    world.check()
    assert state in (None, world.first_window_state())
    _finish(world, OPEN_US, 4)


@pytest.mark.parametrize(("point", "target"), MOVE_POINTS.values(), ids=MOVE_POINTS.keys())
def test_move_killed(archived_copy: World, point: str, target: str) -> None:
    world = archived_copy
    reader = world.reader()
    world.wait_progress(reader)
    killed = world.retention("killed", MOVE_US, "--crash", point)
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    world.check()
    assert world.first_window() == ("dropped", target)
    world.wait_progress(reader, lines=2)
    _finish(world, MOVE_US, 8)
    assert world.first_window() == ("dropped", "near")
    world.wait_progress(reader, lines=2)
    world.finish()
    # Everything has left the former target but what belongs to the store.
    assert not list(world.archive.rglob("*.parquet"))


@pytest.mark.parametrize(("point", "state"), EXPIRY_POINTS.values(), ids=EXPIRY_POINTS.keys())
def test_expiry_killed(archived_copy: World, point: str, state: str) -> None:
    world = archived_copy
    expiry = ("--kind", "expiry")
    killed = world.retention("killed", EXPIRY_US, *expiry, "--crash", point)
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    world.check()
    assert world.first_window_state() == state
    _finish(world, EXPIRY_US, 8, *expiry)
    assert world.check().events == 0
    assert not list(world.archive.rglob("*.parquet"))
    assert len(list(world.archive.rglob("certificates/*.json"))) == 4


def _finish(world: World, now_us: int, completed: int, *more: object) -> None:
    """The next run, in a new process, does what is left; one more finds nothing. So many actions on windows
    were completed in all."""
    report = world.run_retention("restarted", now_us, *more)
    assert (report["status"], report["errors"], report["warnings"]) == ("completed", [], [])
    world.check(orphans_allowed=False)
    again = world.run_retention("again", now_us, *more)
    assert (again["status"], again["windows"]) == ("completed", 0)
    assert world.check_completed_once() == completed


@pytest.mark.parametrize(("point", "unit"), UNIT_POINTS.values(), ids=UNIT_POINTS.keys())
def test_killed_when_a_policy_comes_into_force(world: World, point: str, unit: str) -> None:
    database = Database(world.url)
    with database.transaction() as conn:
        add_version(
            conn,
            "beta",
            override_of(Policy(WindowUnit.DAY, 0)),
            effective_us=NOW_US,
            now_us=BASE_US,
            actor="test",
            reason="fewer windows",
        )
    database.close()
    unit_query = "SELECT window_unit FROM tenants ORDER BY tenant_id"
    killed = world.retention("killed", NOW_US, "--crash", point)
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    assert world.query(unit_query) == [("hour",), (unit,)]
    assert world.run_retention("restarted", NOW_US)["status"] == "completed"
    assert world.check_completed_once() == 4
    assert world.query(unit_query) == [("hour",), ("day",)]
    world.check(orphans_allowed=False)


@pytest.mark.parametrize("point", [pytest.param(point, id=name) for name, point in _APPENDING])
def test_append_killed(world: World, point: str) -> None:
    appender = world.appender("appender", clock_us=OPEN_US)
    # Twenty minutes a round: every third round makes a window, and the other appender's clock is behind.
    killed_arguments = ("--step", HOUR_US // 3, "--count", 9)
    # The reader must know of both ack files.
    killed = world.appender("killed", *killed_arguments, "--crash", point, clock_us=OPEN_US)
    reader = world.reader()
    assert killed.wait() == -signal.SIGKILL, f"the point was not reached: {world.host.log.read_text()}"
    world.wait_gone("killed")
    world.check()
    world.wait_progress(appender, reader, lines=2)

    restarted = world.appender("killed", *killed_arguments, clock_us=OPEN_US)
    assert restarted.wait() == 0, world.host.log.read_text()
    assert len({event_id for _, event_id in world.acknowledged()["alpha"]}) == len(
        world.acknowledged()["alpha"]
    )
    report = world.run_retention("retention", OPEN_US + 2 * HOUR_US)
    assert (report["status"], report["errors"], report["warnings"]) == ("completed", [], [])
    assert report["windows"] >= 4
    world.wait_progress(appender, reader, lines=2)
    world.finish()
    world.check(orphans_allowed=False)
