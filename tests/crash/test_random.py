"""kill -9 at random moments, round after round, on one store that goes on living.

TORTURE_ROUNDS is how many rounds (12), TORTURE_SEED repeats a run's choices (moments on the wall clock are
not repeatable; the seed and the round are printed).
"""

from __future__ import annotations

import json
import os
import random
import time

from tests.crash.world import BASE_US, HOUR_US, World

APPENDERS = ("first", "second")
MOMENT_S_MAX = 0.3


def test_random_kills(world: World) -> None:
    rounds = int(os.environ.get("TORTURE_ROUNDS", "12"))
    seed = int(os.environ.get("TORTURE_SEED", str(random.SystemRandom().randrange(2**32))))
    print(f"TORTURE_SEED={seed}")
    chosen = random.Random(seed)
    start_us = BASE_US + 6 * HOUR_US
    lives = dict.fromkeys((*APPENDERS, "retention"), 0)

    def start(name: str) -> object:
        lives[name] += 1
        if name == "retention":
            return world.start("retain", name, "--loop")
        # The appenders' clocks differ; an appender that comes back sends its unanswered events again.
        return world.appender(name, "--step", HOUR_US // 60, clock_us=start_us + APPENDERS.index(name) * 1000)

    working = {name: start(name) for name in (*APPENDERS, "retention")}
    reader = world.reader()
    for number in range(1, rounds + 1):
        print(f"round {number}")
        world.wait_progress(*working.values(), reader)
        # This sleep is the experiment: the moment of death.
        time.sleep(chosen.random() * MOMENT_S_MAX)
        victims = chosen.sample(sorted(working), chosen.randint(1, len(working)))
        for name in victims:
            working[name].kill()
        world.wait_gone(*(name for name in victims if name == "retention"))
        world.check()
        for name in victims:
            working[name] = start(name)
    world.wait_progress(*working.values(), reader, lines=2)
    world.finish()
    report = world.check()
    runs = [json.loads(line) for line in working["retention"].lines()]
    errors = {error for run in runs for error in run["errors"]}
    assert not errors, errors
    # Everything that was due has gone, and what the killed runs left behind was taken up.
    last = world.run_retention("last", start_us + 10_000 * HOUR_US)
    assert last["status"] == "completed"
    assert world.run_retention("again", start_us + 10_000 * HOUR_US)["windows"] == 0
    final = world.check(orphans_allowed=False)
    assert final.events == report.events
    print(f"{final.events} events, {sum(run['windows'] for run in runs)} windows, lives {lives}")
