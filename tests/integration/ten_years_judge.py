"""An independent judge of a deployment on a simulated clock; for `ten_years`.

It knows what was imported and which policies, holds and outages there were. After every day it works out by
its own arithmetic where each window must be, and holds that against plain SQL and the folders of the targets.
It asks none of the code that it judges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg.rows import namedtuple_row

from eventstore.app import Store, verify_tenant
from eventstore.clock import to_iso
from eventstore.model.hold import HoldScope
from eventstore.model.policy import Ending, Policy
from eventstore.model.query import EventFilter
from eventstore.testing.invariants import check_store
from tests.unit.helpers import DAY_US

__all__ = ["NOTICE_US", "Figures", "History", "Judge", "lifetime_us"]

# How long an expired window is listed before it is destroyed.
NOTICE_US = DAY_US
_ALL_US = 2**62

_WINDOWS = """
SELECT w.tenant_id, (extract(epoch FROM w.window_from) * 1000000)::bigint AS from_us,
       (extract(epoch FROM w.window_to) * 1000000)::bigint AS to_us, w.state, w.target, w.leaf,
       w.first_seq, w.last_seq, s.first, s.last, s.parts, s.targets
  FROM windows w LEFT JOIN (
       SELECT tenant_id, window_from, min(first_seq) AS first, max(last_seq) AS last,
              sum(last_seq - first_seq + 1)::bigint AS parts, array_agg(DISTINCT target) AS targets
         FROM segments GROUP BY 1, 2) s USING (tenant_id, window_from)
 ORDER BY w.tenant_id, w.window_from
"""
_HOT = """
SELECT tableoid::regclass::text AS leaf, min(seq) AS first, max(seq) AS last, count(*) AS events
  FROM events WHERE tenant_id = %s GROUP BY 1
"""


def expected_events(rows: pa.Table) -> pa.Table:
    """The rows of a history as the events that they must become, what the store adds left out."""

    def quoted(values: pa.ChunkedArray) -> pa.ChunkedArray:
        null = pa.scalar(None, pa.string())
        return pc.if_else(pc.is_null(values), null, pc.binary_join_element_wise('"', values, '"', ""))

    given = {n: rows[n] for n in ("entity_type", "entity_id", "action", "field", "actor", "source")}
    return pa.table(
        {
            "recorded_at": rows["occurred_at"],
            "occurred_at": rows["occurred_at"],
            **given,
            "workspace_id": rows["workspace_id"],
            **{name: quoted(rows[name]) for name in ("old_value", "new_value")},
            "metadata": pc.binary_join_element_wise('{"change_id":"', rows["change_id"], '"}', ""),
        }
    )


@dataclass(slots=True)
class Figures:
    """What happened, and how long it took."""

    days: int = 0
    events: int = 0
    archived: int = 0
    moved: int = 0
    expired: int = 0
    held: int = 0  # windows that were due, and kept by a hold (at some day)
    late: int = 0  # windows that an outage kept where they were (at some day)
    checks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest: str = ""
    idle_ms: list[float] = field(default_factory=list)

    def spent(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def __str__(self) -> str:
        idle = sorted(self.idle_ms) or [0.0]
        spent = ", ".join(
            f"{name} {s:.1f} s" for name, s in sorted(self.seconds.items(), key=lambda item: -item[1])
        )
        return (
            f"{self.days:,} days visited, {self.events:,} events, {self.archived:,} windows archived,"
            f" {self.moved:,} moved on, {self.expired:,} expired, {self.held:,} window-days held,"
            f" {self.late:,} late for an outage, {self.checks} deep checks; {spent};"
            f" slowest tick {self.slowest_s:.2f} s ({self.slowest});"
            f" a tick with nothing due: median {idle[len(idle) // 2]:.0f} ms, most {idle[-1]:.0f} ms"
        )


class History:
    """One tenant: its events (rows in order of time), and what the judge knows of it."""

    def __init__(self, name: str, rows: pa.Table, policy: Policy) -> None:
        self.name, self.rows = name, rows.combine_chunks()
        self.events = expected_events(self.rows)
        self.times: npt.NDArray[np.int64] = np.asarray(rows["occurred_at"].cast(pa.int64()))
        keys = pc.binary_join_element_wise(rows["entity_type"], rows["entity_id"], "\0").combine_chunks()
        encoded = keys.dictionary_encode()
        self._keys = {name: i for i, name in enumerate(encoded.dictionary.to_pylist())}
        self._entity = np.asarray(encoded.indices)
        self.policies: list[tuple[int, Policy]] = [(-_ALL_US, policy)]
        self.holds: dict[str, HoldScope] = {}
        self.imported = 0
        self.windows: list[Any] = []  # as the catalog had them at the last look
        self.place: dict[int, int] = {}  # window → 0: hot, n: in the nth tier
        self.gone: dict[int, tuple[int, int]] = {}  # destroyed window → its seqs
        self.listed: dict[int, int] = {}  # window → since when it is listed for sure
        self.maybe_listed: dict[int, int] = {}  # window → since when it may have been
        self.certified = (0, b"")  # the newest certificate's number and SHA-256
        self.hashes: npt.NDArray[np.object_] = np.full(rows.num_rows, None, dtype=object)

    def policy_at(self, now_us: int) -> Policy:
        return next(policy for since_us, policy in reversed(self.policies) if since_us <= now_us)

    def seqs_of(self, entity: tuple[str, str]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._entity == self._keys["\0".join(entity)]) + 1

    def holders(self, first_seq: int, last_seq: int) -> list[str]:
        """The holds in force that cover an event of a window: a window is kept as a whole."""
        times = self.times[first_seq - 1 : last_seq]
        found = []
        for name, scope in self.holds.items():
            after, before = scope.from_us or -_ALL_US, scope.to_us or _ALL_US
            touched = times[0] < before and times[-1] >= after
            present = self._entity[first_seq - 1 : last_seq]
            among = [self._keys.get("\0".join(entity), -1) for entity in scope.entities]
            if touched and (not among or bool(np.isin(present, among).any())):
                found.append(name)
        return found

    def events_ended(self, now_us: int) -> int:
        """How many events lie in windows that have ended and are not destroyed."""
        firsts = [w.first_seq for w in self.windows] + [self.imported + 1]
        return sum(
            firsts[i + 1] - firsts[i]
            for i, w in enumerate(self.windows)
            if w.to_us <= now_us and w.from_us not in self.gone
        )


class Judge:
    """Judges the histories of a store whose targets are folders."""

    def __init__(
        self, store: Store, folders: Mapping[str, Path], histories: Mapping[str, History], figures: Figures
    ) -> None:
        self._store, self._folders, self._histories = store, dict(folders), histories
        self.figures = figures
        self.away: str | None = None  # the target that does not answer
        self._conn: psycopg.Connection[Any] = psycopg.connect(
            store.database.url, autocommit=True, row_factory=namedtuple_row
        )
        self._conn.prepare_threshold = None

    def close(self) -> None:
        self._conn.close()

    def look(self, now_us: int, *, led: bool) -> None:
        """Every event exactly once, every window where it must be, every certificate in its chain."""
        found: dict[str, list[Any]] = {name: [] for name in self._histories}
        for window in self._conn.execute(_WINDOWS.encode()).fetchall():
            found[window.tenant_id].append(window)
        heads = dict(self._conn.execute("SELECT tenant_id, last_seq FROM heads").fetchall())
        for name, history in self._histories.items():
            history.windows = found[name]
            try:
                assert heads[name] == history.imported, f"the head says {heads[name]}"
                hot = {r.leaf: r for r in self._conn.execute(_HOT, [name]).fetchall()}
                self._cover(history, hot)
                self._certificates(history)
                if led:
                    self._places(history, now_us)
            except AssertionError as e:
                raise AssertionError(f"{name} on {to_iso(now_us)[:10]}: {e}") from e
        self._objects()

    def look_at_runs(self, now_us: int, begun: list[str]) -> None:
        """Each job that was begun left one run, which has ended: well, unless a target is away."""
        query = "SELECT status, kind FROM runs WHERE now_us = %s"
        rows = self._conn.execute(query, [now_us]).fetchall()
        assert sorted(r.kind for r in rows) == sorted({"retention", "expiry"}.intersection(begun))
        assert {r.status for r in rows} <= {"completed", *(["failed"] if self.away else [])}, rows

    def _cover(self, history: History, hot: dict[str, Any]) -> None:
        """Windows tile 1..last; each is in the hot tier alone, in one target alone, or certified."""
        next_seq, times = 1, history.times
        assert bool(history.windows) == (history.imported > 0)
        firsts = [w.first_seq for w in history.windows[1:]] + [history.imported + 1] * bool(history.windows)
        for w, following in zip(history.windows, firsts, strict=True):
            last = following - 1
            assert w.first_seq == next_seq <= last, f"{w.leaf} begins at {w.first_seq}, not {next_seq}"
            assert w.from_us <= times[w.first_seq - 1] <= times[last - 1] < w.to_us, f"times in {w.leaf}"
            leaf = hot.pop(f"hot.{w.leaf}", None)
            if w.state == "open":
                cover = (leaf.first, leaf.last, leaf.events) if leaf else None
                assert w.parts is None, f"{w.leaf} is hot, and has segments"
            elif w.state == "dropped":
                assert leaf is None, f"{w.leaf} is archived, and still hot"
                assert w.targets == [w.target], f"{w.leaf} in {w.target} has segments in {w.targets}"
                cover = (w.first, w.last, w.parts)
            else:
                assert w.state == "expired", f"{w.leaf} was left {w.state}"
                assert leaf is None
                assert w.parts is None, f"{w.leaf} is destroyed, and has segments"
                cover = (w.first_seq, w.last_seq, w.last_seq - w.first_seq + 1)
            assert cover == (w.first_seq, last, last - w.first_seq + 1), f"{w.leaf} ({w.state}): {cover}"
            next_seq = following
        assert not hot, f"tables of no window: {sorted(hot)}"

    def _certificates(self, history: History) -> None:
        """Each new certificate follows the one before, stands for one destroyed window, and has its copy."""
        expired = {(w.first_seq, w.last_seq) for w in history.windows if w.state == "expired"}
        rows = self._conn.execute(
            "SELECT number, first_seq, last_seq, envelope, stored_in, issued_us FROM certificates"
            " WHERE tenant_id = %s ORDER BY number",
            [history.name],
        ).fetchall()
        assert [r.number for r in rows] == list(range(1, len(rows) + 1)), "certificates are not numbered"
        assert len(rows) == len(expired), f"{len(rows)} certificates for {len(expired)} windows"
        assert {(r.first_seq, r.last_seq) for r in rows} == expired
        number, digest = history.certified
        for row in rows[number:]:
            payload = base64.b64decode(json.loads(row.envelope)["payload"])
            said = json.loads(payload)
            assert (said["number"], said["first_seq"], said["last_seq"]) == row[:3]
            assert said["tenant_id"] == history.name
            if row.number > 1:
                assert said["previous_sha256"] == digest.hex(), f"certificate {row.number} is not chained"
            known = history.hashes[row.last_seq - 1]
            assert known is None or said["hash_after"] == known.hex(), f"certificate {row.number}: its hash"
            place = f"tenant_id={history.name}/certificates/{row.number:08d}.json"
            assert (self._folders["archive"] / place).read_bytes() == row.envelope
            digest = hashlib.sha256(payload).digest()
        history.certified = (len(rows), digest)

    def _places(self, history: History, now_us: int) -> None:
        """Each window is in the tier of its age, or where it was if that is further on; what has expired was
        listed for the notice time, and then destroyed, unless a hold covers it; nothing else was."""
        policy = history.policy_at(now_us)
        names = [tier.target for tier in policy.tiers]
        for w in history.windows:
            before = history.place.get(w.from_us, 0)
            if w.state == "expired":
                if w.from_us not in history.gone:
                    self._destroyed(history, w, policy, now_us)
                    history.gone[w.from_us] = (w.first_seq, w.last_seq)
                    self.figures.expired += 1
                continue
            place = 0 if w.state == "open" else names.index(w.target) + 1
            wanted = max(before, bisect_right(_starts_us(policy, w.to_us), now_us))
            self.figures.archived += place > 0 and before == 0
            self.figures.moved += place > before > 0
            if place != wanted:
                where = ["hot", *names]
                behind = before <= place < wanted and self.away in (where[place], where[wanted])
                assert behind, f"{w.leaf}, ended {to_iso(w.to_us)[:10]}: {where[place]}, not {where[wanted]}"
                self.figures.late += 1
            history.place[w.from_us] = place
            if w.to_us + lifetime_us(policy) <= now_us:
                self._kept(history, w, now_us, was_archived=before > 0)

    def _destroyed(self, history: History, w: Any, policy: Policy, now_us: int) -> None:
        due_us = w.to_us + lifetime_us(policy)
        assert due_us + NOTICE_US <= now_us, f"{w.leaf} was destroyed; it expires {to_iso(due_us)[:10]}"
        holders = history.holders(w.first_seq, w.last_seq)
        assert not holders, f"{w.leaf} was destroyed, and held by {holders}"
        since_us = history.maybe_listed.get(w.from_us)
        assert since_us is not None, f"{w.leaf} was destroyed, and never listed"
        assert since_us + NOTICE_US <= now_us, f"{w.leaf} was destroyed {to_iso(since_us)[:10]} after listing"

    def _kept(self, history: History, w: Any, now_us: int, *, was_archived: bool) -> None:
        """A window past its policy that is still there."""
        if history.holders(w.first_seq, w.last_seq):
            self.figures.held += 1
            return
        if w.state == "dropped":
            history.maybe_listed.setdefault(w.from_us, now_us)
        if self.away == w.target:
            return  # what cannot be read counts as held
        since_us = history.listed.get(w.from_us)
        assert since_us is None or now_us < since_us + NOTICE_US, (
            f"{w.leaf} is expired, unheld, and still there"
        )
        if was_archived:
            history.listed.setdefault(w.from_us, now_us)

    def _objects(self) -> None:
        """The targets hold the segments that the catalog names, and nothing else but what an outage kept."""
        named = {(r.target, r.key) for r in self._conn.execute("SELECT target, key FROM segments").fetchall()}
        pending = set()
        if self.away is not None:
            query = "SELECT target, key FROM removals WHERE removed_at IS NULL AND target = %s"
            pending = set(self._conn.execute(query, [self.away]).fetchall())
        stored = {
            (name, path.relative_to(folder).as_posix())
            for name, folder in self._folders.items()
            for path in folder.glob("tenant_id=*/month=*/*")
        }
        assert named <= stored, f"missing: {sorted(named - stored)[:3]}"
        assert stored - pending <= named, f"left over: {sorted(stored - pending - named)[:3]}"

    def look_deep(self) -> None:
        """Read everything: what is not destroyed equals what was imported, value by value, and verifies."""
        started = time.perf_counter()
        for history in self._histories.values():
            self._compare(history)
            report = verify_tenant(self._store, history.name)
            assert report.ok, report.problems
        found = check_store(self._store.database.url, self._folders)
        assert not found.violations, str(found)
        assert found.orphans == []
        self.figures.checks += 1
        self.figures.spent("deep checks", time.perf_counter() - started)

    def _compare(self, history: History) -> None:
        tables = list(self._store.reader.stream(history.name, EventFilter()))
        kept = np.ones(history.imported, dtype=bool)
        for first, last in history.gone.values():
            kept[first - 1 : last] = False
        seqs = np.flatnonzero(kept)
        if not tables:
            assert not len(seqs)
            return
        events = pa.concat_tables(tables)
        assert np.array_equal(events["seq"], seqs + 1)
        wanted = history.events.take(pa.array(seqs))
        for name in wanted.column_names:
            assert events[name].equals(wanted[name].cast(events[name].type)), name
        hashes = np.array(events["hash"].to_pylist(), dtype=object)
        known = history.hashes[seqs]
        same = (known == hashes) | (known == None)  # noqa: E711 - of each element
        assert bool(np.all(same)), "an event is another one than before"
        history.hashes[seqs] = hashes


def _starts_us(policy: Policy, end_us: int) -> list[int]:
    """When a window that ends then comes into each tier."""
    starts = [end_us + policy.hot_for_us]
    for tier in policy.tiers[:-1]:
        starts.append(starts[-1] + (tier.for_us or 0))
    return starts


def lifetime_us(policy: Policy) -> int:
    if policy.ending is Ending.KEEP:
        return _ALL_US
    return policy.hot_for_us + sum(tier.for_us or 0 for tier in policy.tiers)
