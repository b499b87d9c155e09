"""The whole way on six real histories: import, archive, read back, verify, each value against the files.

The files are not part of the project. They are looked for in the folder that DATA names, or in
../shared/data/git-history beside the checkout; without them these tests are skipped.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from eventstore.app import Store, open_store
from eventstore.clock import US_PER_S
from eventstore.governance.tenants import create_tenant
from eventstore.intake.importer import import_file
from eventstore.integrity.verify import verify_log
from eventstore.model.policy import Policy
from eventstore.model.query import EventFilter, Order
from eventstore.model.run import RunStatus
from eventstore.model.window import WindowUnit
from eventstore.query.stats import log_stats
from eventstore.settings import Settings
from tests.conftest import TODAY_US, create_database

_CHECKOUT = Path(__file__).resolve().parents[2]
_FOLDER = Path(os.environ.get("DATA", _CHECKOUT.parent / "shared/data/git-history"))
_FILES = sorted(_FOLDER.glob("*__*.parquet"))
_HOT_US = 90 * 86_400 * US_PER_S
_SAMPLED_ENTITIES = 25

pytestmark = pytest.mark.skipif(
    len(_FILES) != 6, reason=f"the six real histories are not in {_FOLDER} (set DATA to their folder)"
)


def _tenant(path: Path) -> str:
    return path.stem.split("__")[1]


@pytest.fixture(scope="module")
def imported(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """All six histories, imported with their own times and brought to the policy of 2026-11-21."""
    folder = tmp_path_factory.mktemp("real")
    url = create_database(server_url, "real_histories", template=template_database)
    settings = Settings(database_url=url, home=folder, archive_url=(folder / "archive").as_uri())
    with open_store(settings) as store:
        for path in _FILES:
            create_tenant(store.database, _tenant(path), Policy(WindowUnit.MONTH, _HOT_US))
            report = import_file(
                store.database,
                _tenant(path),
                path,
                recorded_at_column="occurred_at",
                value_bytes_max=settings.value_bytes_max,
            )
            assert report.rows_rejected == 0
            assert report.rows_stored == pq.read_metadata(path).num_rows
        run = store.compactor.run(store.compactor.tenants(), TODAY_US)
        assert run.status is RunStatus.COMPLETED, [o.error for o in run.outcomes]
        yield store


def _expected(path: Path) -> pa.Table:
    """The file read independently, as the events it must have become (what the store adds left out)."""
    rows = pq.read_table(path)
    quoted = {
        name: pc.if_else(
            pc.is_null(rows[name]),
            pa.scalar(None, pa.string()),
            pc.binary_join_element_wise('"', rows[name], '"', ""),
        )
        for name in ("old_value", "new_value")
    }
    metadata = pc.binary_join_element_wise('{"change_id":"', rows["change_id"], '"}', "")
    return pa.table(
        {
            "recorded_at": rows["occurred_at"],
            "occurred_at": rows["occurred_at"],
            **{name: rows[name] for name in ("entity_type", "entity_id", "action", "field")},
            **quoted,
            **{name: rows[name] for name in ("actor", "source", "workspace_id")},
            "metadata": metadata,
        }
    ).combine_chunks()


def _read(store: Store, tenant: str, wanted: EventFilter, order: Order = Order.ASC) -> pa.Table:
    return pa.concat_tables(store.reader.stream(tenant, wanted, order=order)).combine_chunks()


@pytest.mark.parametrize("path", _FILES, ids=_tenant)
def test_every_value_equals_the_file(imported: Store, path: Path) -> None:
    expected = _expected(path)
    events = _read(imported, _tenant(path), EventFilter())
    assert events.column("seq").to_pylist() == list(range(1, expected.num_rows + 1))
    for name in expected.column_names:
        assert events.column(name).equals(expected.column(name).cast(events.column(name).type)), name


@pytest.mark.parametrize("path", _FILES, ids=_tenant)
def test_entity_histories_equal_the_file(imported: Store, path: Path) -> None:
    """Asked for by entity: all of curl's when FULL=1, otherwise a sample that has the busiest in it."""
    expected = _expected(path)
    tenant = _tenant(path)
    counts = pc.value_counts(expected["entity_id"]).to_pylist()
    counts.sort(key=lambda c: c["counts"], reverse=True)
    entities = [c["values"] for c in counts]
    if not (tenant == "curl" and os.environ.get("FULL")):
        sampled = random.Random(tenant).sample(entities, _SAMPLED_ENTITIES)
        entities = [*entities[:2], *sampled]
    seqs = pa.array(range(1, expected.num_rows + 1))
    names = expected["entity_id"].combine_chunks()
    encoded = names.dictionary_encode()
    index_of = {name: i for i, name in enumerate(encoded.dictionary.to_pylist())}
    for entity in entities:
        mine = pc.equal(encoded.indices, index_of[entity])
        events = _read(imported, tenant, EventFilter(entity_id=entity))
        assert events.column("seq").combine_chunks().equals(seqs.filter(mine)), entity
        rows = expected.filter(mine)
        for name in ("old_value", "new_value", "actor", "action", "recorded_at"):
            assert events.column(name).equals(rows.column(name).cast(events.column(name).type)), entity


def test_all_histories_of_curl_equal_the_file(imported: Store) -> None:
    """Every entity's history, taken from one pass over the log."""
    (path,) = [p for p in _FILES if _tenant(p) == "curl"]
    expected, events = _expected(path), _read(imported, "curl", EventFilter(), Order.DESC)

    def histories(table: pa.Table, rows: Iterator[int]) -> dict[str, list[tuple[object, ...]]]:
        columns = [
            table.column(n).to_pylist() for n in ("entity_id", "action", "old_value", "new_value", "actor")
        ]
        found: dict[str, list[tuple[object, ...]]] = {}
        for row in rows:
            entity, *values = (column[row] for column in columns)
            found.setdefault(entity, []).append(tuple(values))
        return found

    there = histories(events, iter(range(events.num_rows - 1, -1, -1)))
    assert there == histories(expected, iter(range(expected.num_rows)))
    assert len(there) == 7_449


@pytest.mark.parametrize("path", _FILES, ids=_tenant)
def test_hot_holds_only_what_the_policy_keeps(imported: Store, path: Path) -> None:
    tenant = _tenant(path)
    times = pq.read_table(path, columns=["occurred_at"])["occurred_at"]
    # A window leaves when its end lies 90 days back: months up to and including July 2026 have left.
    first_hot = pa.scalar(1_785_542_400 * US_PER_S).cast(times.type)  # 2026-08-01T00:00:00Z
    hot = pc.sum(pc.greater_equal(times, first_hot)).as_py()
    stats = log_stats(imported.database, tenant)
    assert (stats.hot.events, stats.archive.events) == (hot, len(times) - hot)
    with imported.database.connection() as conn:
        query = "SELECT count(*), min(recorded_at) FROM events WHERE tenant_id = %s"
        row = conn.execute(query, [tenant]).fetchone()
    assert row is not None
    assert row[0] == hot


@pytest.mark.parametrize("path", _FILES, ids=_tenant)
def test_verifies(imported: Store, path: Path) -> None:
    report = verify_log(imported.tiers, imported.targets, _tenant(path))
    assert report.problems == []
    assert report.events == pq.read_metadata(path).num_rows


def test_a_second_run_does_nothing(imported: Store) -> None:
    before = sorted((o.key, o.version) for o in imported.target.list())
    run = imported.compactor.run(imported.compactor.tenants(), TODAY_US)
    assert run.status is RunStatus.COMPLETED
    assert sum(o.windows for o in run.outcomes) == 0
    assert sorted((o.key, o.version) for o in imported.target.list()) == before


def test_a_second_import_does_nothing(imported: Store) -> None:
    for path in _FILES:
        report = import_file(
            imported.database,
            _tenant(path),
            path,
            recorded_at_column="occurred_at",
            value_bytes_max=imported.settings.value_bytes_max,
        )
        assert report.already_finished
