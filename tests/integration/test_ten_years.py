"""Ten years of real histories under three-tier policies, day by day on a simulated clock.

At every step every event is there exactly once, hot, in one target, or under a certificate; holds are
respected, certificates chained, and the hot tier is within policy. `ten_years_judge` judges.

The real histories are looked for as `test_real_histories` does, and that test is skipped without them. By
default it takes a whole history and a part of another, and visits every sixtieth day, and each day where
something happens; with FULL=1 it takes all six, and every day. The same show over a small generated history
always runs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventstore.app import open_store
from eventstore.clock import FixedClock, parse_time_us
from eventstore.model.policy import ArchiveTier, Ending, Policy
from eventstore.model.window import Window, WindowUnit
from eventstore.retention.compactor import Compactor
from eventstore.settings import Settings
from tests.integration.ten_years import GRACE_DAYS, Life
from tests.integration.ten_years_judge import History
from tests.integration.test_real_histories import _FILES, _FOLDER
from tests.unit.helpers import DAY_US

FULL = bool(os.environ.get("FULL"))


@dataclass(frozen=True, slots=True)
class Times:
    """How long a show lasts, and where in it (in days) what happens. Each is far enough from the next."""

    start_us: int
    days: int
    hold_all: int
    hold_range: int
    release_all: int
    hold_entity: int
    release_range: int
    outage: int
    release_entity: int
    pause: int
    shorter: int
    hold_to_the_end: int
    longer: int
    outage_days: int
    pause_days: int = 40

    def busy(self) -> set[int]:
        """The days around which the scheduler is watched daily."""
        alone = (
            "hold_all",
            "release_all",
            "release_range",
            "release_entity",
            "hold_to_the_end",
            "shorter",
            "longer",
        )
        around = [
            *(getattr(self, name) for name in alone),
            self.shorter + GRACE_DAYS,
            self.outage + self.outage_days - 1,
            self.pause + self.pause_days,
        ]
        return {day + n for day in around for n in (0, 1)} | {self.days - 1, self.days}


def policy(hot: int, near: int, deep: int | None, *, last: str = "deep") -> Policy:
    """Three tiers, in days: hot, near, deep; what has no end is kept."""
    far = ArchiveTier(last, None if deep is None else deep * DAY_US)
    tiers = (ArchiveTier("near", near * DAY_US), far)
    ending = Ending.KEEP if deep is None else Ending.EXPIRE
    return Policy(WindowUnit.MONTH, hot * DAY_US, tiers, ending)


class Show:
    """Runs a life through its times. The first history is the one to which everything happens."""

    def __init__(self, life: Life, times: Times, *, stride: int, deep_days: int) -> None:
        self._life, self._times, self._stride, self._deep_days = life, times, stride, deep_days
        self._main = next(iter(life.histories.values()))
        # Its policy in the end is longer: what had left the nearer tier does not come back.
        self._policy = self._main.policy_at(0)

    def run(self) -> None:
        times, life, happening = self._times, self._life, self._happenings()
        busy, deep_at = times.busy(), self._deep_days
        paused = range(times.pause, times.pause + times.pause_days)
        for day in range(times.days + 1):
            midnight_us = times.start_us + day * DAY_US
            if day in happening:
                life.clock.move_to(midnight_us)
                happening[day]()
            if day % self._stride and day not in busy:
                continue
            begun = life.day(
                midnight_us, led=day not in paused, apart=self._stride == 1 and day != paused.stop
            )
            if day == paused.stop:
                # What was missed is caught up, and once.
                assert [begun.count(job) for job in ("retention", "expiry")] == [1, 1]
            if day >= deep_at and life.whole:
                life.look_deep()
                deep_at = day + self._deep_days
        life.look_deep()
        print(f"\n{life.figures}")
        self._judge_show()

    def _happenings(self) -> dict[int, Callable[[], None]]:
        """What happens at the midnight with which a day begins."""
        times, life, name = self._times, self._life, self._main.name
        p = self._policy
        near, deep = p.tiers
        assert near.for_us is not None
        assert deep.for_us is not None
        shorter = replace(p, tiers=(near, replace(deep, for_us=deep.for_us * 3 // 4 // DAY_US * DAY_US)))
        longer = replace(
            p, tiers=(replace(near, for_us=near.for_us * 2), replace(deep, for_us=deep.for_us * 2))
        )
        rare = self._entity(self._range_us(times.hold_entity, p), min)
        first, second = self._range_us(times.hold_range, p), self._range_us(times.hold_to_the_end, shorter)
        busy = self._entity(second, max)
        return {
            times.hold_all: lambda: life.hold(name, "audit"),
            times.hold_range: lambda: life.hold(name, "merger", from_us=first[0], to_us=first[1]),
            times.release_all: lambda: life.release(name, "audit"),
            times.hold_entity: lambda: life.hold(name, "patent", entities=(rare, ("file", "never seen"))),
            times.release_range: lambda: life.release(name, "merger"),
            times.outage: lambda: life.switch_off("deep"),
            times.outage + times.outage_days: life.switch_on,
            times.release_entity: lambda: life.release(name, "patent"),
            times.shorter: lambda: life.change_policy(name, shorter),
            times.hold_to_the_end: lambda: life.hold(
                name, "open case", entities=(busy,), from_us=second[0], to_us=second[1]
            ),
            times.longer: lambda: life.change_policy(name, longer),
        }

    def _range_us(self, day: int, policy: Policy) -> tuple[int, int]:
        """The two months that expire next at a day."""
        assert policy.lifetime_us is not None
        at_us = self._times.start_us + day * DAY_US - policy.lifetime_us
        first = Window.containing(WindowUnit.MONTH, at_us)
        second = Window.containing(WindowUnit.MONTH, first.to_us)
        return first.from_us, second.to_us

    def _entity(self, span_us: tuple[int, int], choose: Callable[..., tuple[str, str]]) -> tuple[str, str]:
        """The one of some months with the fewest or the most events in all."""
        history = self._main
        start, end = np.searchsorted(history.times, span_us)
        rows = history.rows.slice(start, end - start)
        found = sorted(set(zip(*(rows[n].to_pylist() for n in ("entity_type", "entity_id")), strict=True)))
        assert found, "there is no event in these months"
        return choose(found, key=lambda entity: len(history.seqs_of(entity)))

    def _judge_show(self) -> None:
        """That it showed what it is for."""
        life, main, figures = self._life, self._main, self._life.figures
        assert figures.expired >= 10
        assert figures.moved >= 20
        assert figures.held > 0
        assert figures.late > 0
        assert all(h.imported == len(h.times) for h in life.histories.values())
        assert main.holds.keys() == {"open case"}
        kept = [w for w in main.windows if w.state == "dropped" and main.holders(w.first_seq, w.last_seq)]
        assert kept, "the last hold keeps something"
        for name, history in life.histories.items():
            assert (len(history.gone) > 0) == (history.policy_at(0).ending is Ending.EXPIRE), name


@pytest.fixture
def live(database_url: str, tmp_path: Path) -> Iterator[Callable[[Times, list[History]], Life]]:
    """Makes the life of some histories: three folders are its targets."""
    folders = {name: tmp_path / name for name in ("archive", "near", "deep")}
    for folder in (*folders.values(), tmp_path / "home"):
        folder.mkdir()
    settings = Settings(
        database_url=database_url,
        home=tmp_path / "home",
        archive_url=folders["archive"].as_uri(),
        targets={name: folders[name].as_uri() for name in ("near", "deep")},
        retention_schedule="0 1 * * *",
        expiry_schedule="0 3 * * *",
        expiry_notice="1d",
        precreate_schedule="never",
        scrub_schedule="never",
        # Daily runs, and what is signed once a week: of six logs, it would be most of the time.
        checkpoint_schedule="0 2 * * 0",
    )
    clock = FixedClock(0)
    with open_store(settings, clock=clock) as opened:
        impatient = Compactor(opened.database, opened.targets, opened.key, retry_pauses_s=())
        lives: list[Life] = []

        def make(times: Times, histories: list[History]) -> Life:
            clock.move_to(times.start_us)
            lives.append(Life(replace(opened, compactor=impatient), clock, folders, histories))
            return lives[-1]

        yield make
        for life in lives:
            life.close()


Live = Callable[[Times, list[History]], Life]


def between(rows: pa.Table, start_us: int, end_us: int, *, every: int = 1) -> pa.Table:
    """The rows of a span of time; one of so many."""
    times = np.asarray(rows["occurred_at"].cast(pa.int64()))
    start, end = np.searchsorted(times, (start_us, end_us))
    return rows.slice(start, end - start).take(pa.array(range(0, int(end - start), every)))


# --- a generated history --------------------------------------------------------------------------------

THREE_YEARS = Times(
    start_us=parse_time_us("2020-01-01T00:00:00Z"),
    days=3 * 365,
    hold_all=260,
    hold_range=330,
    release_all=345,
    hold_entity=400,
    release_range=470,
    outage=490,
    outage_days=35,
    release_entity=580,
    pause=600,
    shorter=680,
    hold_to_the_end=760,
    longer=930,
)


def generated(seed: str, times: Times) -> pa.Table:
    """A history of the files' shape: a few events a week, and values that follow one another."""
    rng = random.Random(seed)
    state: dict[str, str] = {}
    rows: list[tuple[object, ...]] = []
    at_us = times.start_us
    while (at_us := at_us + rng.randrange(1, 4 * DAY_US)) < times.start_us + times.days * DAY_US:
        for _ in range(rng.choice((1, 1, 2, 5))):
            name = f"file-{rng.choice((rng.randrange(6), rng.randrange(200)))}"
            old, new = (
                state.get(name),
                None if rng.random() < 0.1 and name in state else f"{rng.random():.9f}",
            )
            action = "delete" if new is None else "insert" if old is None else "update"
            rows.append((at_us, name, action, old, new, f"person-{rng.randrange(5)}", f"change-{len(rows)}"))
            state.pop(name, None)
            if new is not None:
                state[name] = new
    given = list(zip(*rows, strict=True))
    texts = ("entity_id", "action", "old_value", "new_value", "actor", "change_id")
    same = {"workspace_id": "made/up", "source": "test", "entity_type": "file", "field": "blob"}
    return pa.table(
        {
            "occurred_at": pa.array(given[0], pa.int64()).cast(pa.timestamp("us", "UTC")),
            **{name: pa.array(given[i + 1], pa.string()) for i, name in enumerate(texts)},
            **{name: pa.array([value] * len(rows), pa.string()) for name, value in same.items()},
        }
    )


def test_three_years_of_a_generated_history(live: Live) -> None:
    # The other has an event every few weeks of a year, when one tenant's outage is not to be the other's.
    joins_us = THREE_YEARS.start_us + 400 * DAY_US
    other = between(generated("kept", THREE_YEARS), joins_us, joins_us + 365 * DAY_US, every=12)
    histories = [
        History("made", generated("made", THREE_YEARS), policy(30, 90, 180)),
        History("kept", other, policy(30, 90, None, last="archive")),
    ]
    Show(live(THREE_YEARS, histories), THREE_YEARS, stride=30, deep_days=300).run()


# --- the real histories ---------------------------------------------------------------------------------

# All six have events from the first to the last day.
TEN_YEARS = Times(
    start_us=parse_time_us("2014-10-01T00:00:00Z"),
    days=(datetime(2024, 10, 1, tzinfo=UTC) - datetime(2014, 10, 1, tzinfo=UTC)).days,
    hold_all=1000,
    hold_range=1150,
    release_all=1200,
    hold_entity=1400,
    release_range=1500,
    outage=1600,
    outage_days=35,
    release_entity=1800,
    pause=2000,
    shorter=2300,
    hold_to_the_end=2500,
    longer=3000,
)
POLICIES = {
    "flask": policy(90, 365, 2 * 365),
    "terraform": policy(90, 365, None, last="archive"),
    "ansible": policy(90, 365, 7 * 365),
    "curl": policy(90, 365, None, last="archive"),
    "rails": policy(90, 365, 4 * 365),
    "symfony": policy(90, 365, 3 * 365),
}


END_US = TEN_YEARS.start_us + TEN_YEARS.days * DAY_US


def real(name: str, start_us: int = 0, end_us: int = END_US, *, every: int = 1) -> pa.Table:
    """A history from a time on to the end of the ten years; one row of so many."""
    (path,) = [path for path in _FILES if path.stem.endswith(f"__{name}")]
    return between(pq.read_table(path), start_us, end_us, every=every)


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 300)
@pytest.mark.skipif(
    len(_FILES) != 6, reason=f"the six real histories are not in {_FOLDER} (set DATA to their folder)"
)
def test_ten_years_of_real_histories(live: Live) -> None:
    if FULL:
        histories = [History(name, real(name), kept) for name, kept in POLICIES.items()]
        Show(live(TEN_YEARS, histories), TEN_YEARS, stride=1, deep_days=365).run()
        return
    half_a_year_before_us = TEN_YEARS.start_us - 183 * DAY_US
    # The other is there around the outage, so that one tenant's is seen not to be the other's.
    joins_us = TEN_YEARS.start_us + (TEN_YEARS.outage - 150) * DAY_US
    other = real("terraform", joins_us, joins_us + 365 * DAY_US, every=25)
    histories = [
        History("flask", real("flask", half_a_year_before_us), POLICIES["flask"]),
        History("terraform", other, POLICIES["terraform"]),
    ]
    Show(live(TEN_YEARS, histories), TEN_YEARS, stride=60, deep_days=1200).run()
