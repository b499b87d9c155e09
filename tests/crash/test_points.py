"""kill -9 at every step, with appenders and a reader at work; a restart; the independent checker as judge."""

from __future__ import annotations

import signal

import pytest

from tests.crash.points import APPEND_POINTS, RETENTION_POINTS
from tests.crash.world import BASE_US, HOUR_US, World

# Two windows are closed; others append to the third, and the run is made at its end: it is sealed under them.
OPEN_US = BASE_US + 2 * HOUR_US
NOW_US = OPEN_US + HOUR_US


@pytest.mark.parametrize(("point", "state"), RETENTION_POINTS.values(), ids=RETENTION_POINTS.keys())
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
    world.wait_progress(appender, reader, lines=2)
    world.finish()
    world.check(orphans_allowed=False)


@pytest.mark.parametrize("point", APPEND_POINTS.values(), ids=APPEND_POINTS.keys())
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
