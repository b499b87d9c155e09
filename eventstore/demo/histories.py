"""Histories for the demo, as files to import: a checkout's own git history, and generated ones."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eventstore.clock import US_PER_S

__all__ = ["GENERATED", "write_generated", "write_git_history"]

_DAY_US = 86_400 * US_PER_S

# tenant → (what its entities are, the fields that change, events, years)
GENERATED: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "shop": ("order", ("status", "address", "total", "carrier"), 140_000, 6),
    "clinic": ("patient", ("address", "insurer", "allergies", "consent"), 90_000, 8),
    "fleet": ("vehicle", ("driver", "mileage", "depot"), 40_000, 4),
}


def write_git_history(checkout: Path, path: Path) -> int:
    """Write a checkout's history as Parquet: one event a changed file, in the order of commit time.

    Returns how many events; 0 (and no file) where there is no git history.
    """
    command = ["git", "-C", str(checkout), "log", "--reverse", "--raw", "--no-renames", "--no-abbrev", "-m"]
    command += ["--first-parent", "-z", "--format=%x01%H%x02%ct%x02%an"]
    try:
        found = subprocess.run(command, capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return 0
    rows = []
    for commit in found.stdout.decode(errors="replace").split("\x01")[1:]:
        head, _, changes = commit.partition("\0")
        change_id, seconds, author = head.split("\x02")
        fields = changes.lstrip("\n").split("\0")
        for raw, name in zip(fields[::2], fields[1::2], strict=False):
            _, _, old, new, status = raw.split(" ")
            rows.append((int(seconds), change_id, author, name, old, new, status[:1]))
    if not rows:
        return 0
    rows.sort(key=lambda row: row[0])  # stable: changes of one commit stay together
    actions = {"A": "insert", "D": "delete"}
    absent = "0" * 40
    table = pa.table(
        {
            "occurred_at": pa.array([r[0] * US_PER_S for r in rows], pa.timestamp("us", "UTC")),
            "entity_type": ["file"] * len(rows),
            "entity_id": [r[3] for r in rows],
            "action": [actions.get(r[6], "update") for r in rows],
            "field": ["blob"] * len(rows),
            "old_value": pa.array([None if r[4] == absent else r[4] for r in rows], pa.string()),
            "new_value": pa.array([None if r[5] == absent else r[5] for r in rows], pa.string()),
            "actor": [r[2] for r in rows],
            "source": ["git"] * len(rows),
            "change_id": [r[1] for r in rows],
        }
    )
    pq.write_table(table, path)
    return len(rows)


def write_generated(tenant: str, path: Path, *, until_us: int) -> int:
    """Write a generated history that ends at a time: seasons over the year, quiet nights and week-ends, a
    few entities and people that are far busier than the others. The same call gives the same file."""
    kind, fields, count, years = GENERATED[tenant]
    random = np.random.default_rng([ord(c) for c in tenant])
    times = _times(random, count, years, until_us)
    entities = (random.zipf(1.35, count) * 7919) % (count // 12)
    field_index = random.integers(0, len(fields), count)
    values = random.integers(0, 1000, count)
    previous = _previous(entities * len(fields) + field_index, values)
    actors = random.zipf(1.5, count) % 60
    names = pa.array(fields)
    field_names = names.take(pa.array(field_index))
    table = pa.table(
        {
            "occurred_at": pa.array(times, pa.timestamp("us", "UTC")),
            "entity_type": pa.array([kind]).take(pa.array(np.zeros(count, np.int32))),
            "entity_id": _numbered(f"{kind}/", entities),
            "action": pc.if_else(pa.array(previous < 0), "insert", "update"),
            "field": field_names,
            "old_value": pc.if_else(
                pa.array(previous < 0),
                pa.scalar(None, pa.string()),
                pc.binary_join_element_wise(field_names, _numbered("", previous), "-"),
            ),
            "new_value": pc.binary_join_element_wise(field_names, _numbered("", values), "-"),
            "actor": _numbered("user-", actors),
            "source": pa.array(["web", "batch", "support"]).take(
                pa.array(random.choice(3, count, p=[0.7, 0.2, 0.1]))
            ),
            "workspace_id": _numbered(f"{tenant}-", actors % 4),
            "request": _numbered("r", np.arange(count)),
        }
    )
    pq.write_table(table, path)
    return count


def _times(random: np.random.Generator, count: int, years: int, until_us: int) -> npt.NDArray[np.int64]:
    start_us = until_us - years * 365 * _DAY_US
    days = np.arange(years * 365)
    dates = [datetime.fromtimestamp((start_us + int(d) * _DAY_US) / US_PER_S, UTC) for d in days]
    season = 1 + 0.6 * np.sin(2 * np.pi * (np.array([d.timetuple().tm_yday for d in dates]) - 260) / 365)
    week = np.array([0.25 if d.weekday() >= 5 else 1.0 for d in dates])
    growth = np.linspace(0.4, 1.6, len(days))
    weight = season * week * growth
    chosen = random.choice(days, count, p=weight / weight.sum())
    of_day = np.clip(random.normal(13.5, 3.2, count), 0, 23.999) * 3600 * US_PER_S
    return np.sort(start_us + chosen * _DAY_US + of_day.astype(np.int64))


def _previous(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each position the value at the position before with the same key; -1 for the first."""
    order = np.argsort(keys, kind="stable")
    shifted = np.concatenate(([-1], values[order][:-1]))
    shifted[np.concatenate(([True], keys[order][1:] != keys[order][:-1]))] = -1
    previous = np.empty_like(values)
    previous[order] = shifted
    return previous


def _numbered(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
