"""The console's pages over the six real histories, with all that is older than 90 days in the archive.

The histories are not part of the project: DATA names their folder, or they lie in ../shared/data/git-history
beside the checkout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eventstore.app import Store
from eventstore.clock import US_PER_S, SystemClock, to_iso
from eventstore.governance.holds import get_hold, place_hold
from eventstore.governance.keys import create_key
from eventstore.governance.tenants import create_tenant
from eventstore.intake.importer import import_file
from eventstore.integrity.checkpoints import make_checkpoint
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.limits import Limits
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunStatus
from eventstore.model.window import WindowUnit
from tests.bench.lab import ROOT, Lab
from tests.bench.measure import Measured, Row, amount
from tests.console.served import csrf_of

__all__ = ["PAGES", "ROWS", "run"]

_FOLDER = Path(os.environ.get("DATA", ROOT.parent / "shared/data/git-history"))
_HOT_US = 90 * 86_400 * US_PER_S
_PAGE_MS, _SEARCH_MS = 300, 1000

# name → goal in ms
PAGES = {
    "tenants": _PAGE_MS,
    "tenant": _PAGE_MS,
    "event in the archive": _PAGE_MS,
    "the busiest entity": _PAGE_MS,
    "its life, by htmx": _PAGE_MS,
    "its state two years ago, by htmx": _PAGE_MS,
    "its whole life, by htmx": _SEARCH_MS,
    "a rare entity, all archived": _PAGE_MS,
    "holds": _PAGE_MS,
    "what a hold would cover": _PAGE_MS,
    "a hold's case": _PAGE_MS,
    "its release": _PAGE_MS,
    "exports": _PAGE_MS,
    "runs": _PAGE_MS,
    "the run that archived it all": _PAGE_MS,
    "search: all, newest first": _SEARCH_MS,
    "search: one entity": _SEARCH_MS,
    "search: one person's updates": _SEARCH_MS,
    "search: a month ten years back": _SEARCH_MS,
    "search: an action nobody did": _SEARCH_MS,
    "search: a text in values": _SEARCH_MS,
    "search: a text that is nowhere": _SEARCH_MS,
    "search: the chart of all": _SEARCH_MS,
}


class Question(NamedTuple):
    """How a page is asked for. `fields` None: by its address alone; else by a form that is sent there.
    `part`: as htmx asks for a part of it."""

    address: str
    fields: dict[str, str] | None = None
    part: bool = False


ROWS = tuple(
    Row(
        f"console, {name}",
        "the slowest of six real histories, 90 days hot",
        "ms",
        at_most=goal,
        absolute=True,
    )
    for name, goal in PAGES.items()
)


def run(lab: Lab) -> list[Measured]:
    """Every page of each tenant, one after the other, by somebody who is signed in."""
    files = sorted(_FOLDER.glob("*__*.parquet"))
    if not files:
        raise RuntimeError(f"the real histories are not in {_FOLDER} (set DATA to their folder)")
    if lab.quick:
        files = [min(files, key=lambda path: path.stat().st_size)]
    with lab.site() as site:
        with site.store() as store:
            for path in files:
                lab.say(f"importing {path.stem}")
                load(store, path)
            lab.say("archiving")
            report = store.compactor.run(store.compactor.tenants(), SystemClock().now_us())
            assert report.status is RunStatus.COMPLETED
            lab.say("signing checkpoints, so that events have proofs")
            for path in files:
                make_checkpoint(store.database, store.tiers, store.key, _tenant(path))
            asked = {_tenant(path): questions(store, path, str(report.run_id)) for path in files}
            key = administrator(store)
        with lab.api(site) as (port, _), signed_in(port, key) as client:
            return measure(client, asked, lab.rounds())


def load(store: Store, path: Path) -> None:
    """Import a history, with its own times, and place a hold in it."""
    tenant = _tenant(path)
    create_tenant(store.database, tenant, Policy(WindowUnit.MONTH, _HOT_US))
    most = store.settings.value_bytes_max
    import_file(store.database, tenant, path, recorded_at_column="occurred_at", value_bytes_max=most)
    now_us = SystemClock().now_us()
    scope = HoldScope((("file", "README.md"),))
    place_hold(store.database, tenant, "case-1", "asked by a court", "legal", scope, now_us)


def _tenant(path: Path) -> str:
    return path.stem.split("__")[1]


def administrator(store: Store) -> str:
    """The text of a key for everything, as often as one likes."""
    now_us = SystemClock().now_us()
    limits = Limits(requests_per_s=100_000)
    return create_key(
        store.database, role=Role.ADMINISTRATOR, tenant_id=None, by="bench", now_us=now_us, limits=limits
    )[1]


@contextmanager
def signed_in(port: int, key: str) -> Iterator[httpx.Client]:
    """A browser of somebody who has this key."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        csrf = csrf_of(client.get("/console/sign-in"))
        answer = client.post("/console/sign-in", data={"csrf": csrf, "key": key})
        assert answer.status_code == 303, answer.text
        yield client


def questions(store: Store, path: Path, run_id: str) -> dict[str, Question]:
    """Each page for a tenant, made of what its history has."""
    tenant = _tenant(path)
    rows = pq.read_table(path, columns=["entity_id", "actor", "occurred_at", "new_value"])
    counts = sorted(pc.value_counts(rows["entity_id"]).to_pylist(), key=lambda c: -int(c["counts"]))
    busiest, rare = counts[0]["values"], counts[-1]["values"]
    middle = rows.slice(rows.num_rows // 2, 1).to_pylist()[0]
    old = store.reader.page(
        tenant, EventFilter(seq_from=rows.num_rows // 2), order=Order.ASC, limit=1
    ).events.column("seq")[0]
    start_us = int(middle["occurred_at"].timestamp() * US_PER_S)
    base = f"/console/t/{tenant}"
    with store.database.transaction() as conn:
        case = f"{base}/holds/{get_hold(conn, tenant, 'case-1').hold_id}"
    looked_at = {"name": "case-2", "reason": "asked by a court", "covers": "entities"}

    def search(**wanted: str) -> str:
        return f"{base}/search?{urlencode(wanted)}"

    def entity(name: str, **more: str) -> str:
        return f"{base}/entity?{urlencode({'entity_type': 'file', 'entity_id': name, **more})}"

    found = {
        "tenants": "/console/",
        "tenant": base,
        "event in the archive": f"{base}/event/{old}",
        "the busiest entity": entity(busiest),
        "a rare entity, all archived": entity(rare),
        "holds": f"{base}/holds",
        "a hold's case": case,
        "its release": f"{case}/release",
        "exports": f"{base}/exports",
        "runs": "/console/runs",
        "the run that archived it all": f"/console/runs/{run_id}",
        "search: all, newest first": search(),
        "search: one entity": search(entity_type="file", entity_id=busiest),
        "search: one person's updates": search(actor=middle["actor"], action="update"),
        "search: a month ten years back": search(
            recorded_from=to_iso(start_us), recorded_to=to_iso(start_us + 30 * 86_400 * US_PER_S)
        ),
        "search: an action nobody did": search(action="nothing"),
        "search: a text in values": search(text=str(middle["new_value"])[:12]),
        "search: a text that is nowhere": search(text="zq7nowhere"),
    }
    asked = {name: Question(address) for name, address in found.items()}
    preview = Question(f"{base}/holds/preview", {**looked_at, "entities": f"file/{busiest}"})
    asked["what a hold would cover"] = preview
    then = "2024-06-01T00:00:00Z"
    asked["its life, by htmx"] = Question(entity(busiest, life="part"), part=True)
    asked["its state two years ago, by htmx"] = Question(entity(busiest, life="part", as_of=then), part=True)
    asked["its whole life, by htmx"] = Question(entity(busiest, life="all"), part=True)
    asked["search: the chart of all"] = Question(search(part="chart"), part=True)
    assert asked.keys() == PAGES.keys()
    return asked


def measure(
    client: httpx.Client, asked: dict[str, dict[str, Question]], rounds: Iterator[int]
) -> list[Measured]:
    """Ask for each page of each tenant, once first, then in rounds. A figure is the slowest tenant's."""
    csrf = csrf_of(client.get("/console/reason"))
    first = {name: [_ask(client, pages[name], csrf) for pages in asked.values()] for name in PAGES}
    times: dict[str, dict[str, list[float]]] = {name: {tenant: [] for tenant in asked} for name in PAGES}
    for _ in rounds:
        for tenant, pages in asked.items():
            for name in PAGES:
                times[name][tenant].append(_ask(client, pages[name], csrf)[0])
    return [_measured(row, times[name], first[name]) for row, name in zip(ROWS, PAGES, strict=True)]


def _measured(row: Row, times: dict[str, list[float]], first: Sequence[tuple[float, int]]) -> Measured:
    slowest = max(times, key=lambda tenant: median(times[tenant]))
    every = [took for of_tenant in times.values() for took in of_tenant]
    cold, sizes = [took for took, _ in first], [size for _, size in first]
    note = (
        f"The slowest is {slowest}; of all six {amount(median(every))} ms, p95 "
        f"{amount(float(np.percentile(every, 95)))} ms; the first time {amount(median(cold))} ms, "
        f"at most {amount(max(cold))} ms; the largest page has {amount(max(sizes) / 1000)} kB."
    )
    return Measured(row, times[slowest], notes=[note])


def _ask(client: httpx.Client, asked: Question, csrf: str) -> tuple[float, int]:
    """How long a page took, in ms, and its bytes as the browser has them."""
    started = time.perf_counter()
    headers = {"HX-Request": "true"} if asked.part else {}
    if asked.fields is None:
        answer = client.get(asked.address, headers=headers)
    else:
        answer = client.post(asked.address, data={**asked.fields, "csrf": csrf}, headers=headers)
    took_ms = (time.perf_counter() - started) * 1000
    assert answer.status_code == 200, (asked, answer.status_code, answer.text[:500])
    return took_ms, len(answer.content)
