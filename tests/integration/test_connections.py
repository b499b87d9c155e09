"""Connections to Postgres: how many a request takes, and what callers are told when one cannot be had."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from eventstore.db.connections import Connections
from eventstore.db.engine import Database
from eventstore.errors import BusyError
from tests.integration.apiserver import Tenant, served_api


def test_a_request_holds_one_connection_at_a_time(
    server_url: str, template_database: str, tmp_path: Path
) -> None:
    """Two at once, in as many threads as there are connections, would have each wait for another's."""
    with served_api(server_url, template_database, tmp_path) as served:
        path, pool = Tenant(served).path, served.store.database.engine.pool
        out: list[int] = []
        most: dict[str, tuple[int, int]] = {}
        sa.event.listen(pool, "checkout", lambda *_: out.append(pool.checkedout()))  # type: ignore[attr-defined]
        for asked in ("/v1/tenants", path, f"{path}/policy", "/v1/policy"):
            out.clear()
            most[asked] = served.client.get(asked).status_code, max(out)
    assert set(most.values()) == {(200, 1)}, most


@pytest.mark.parametrize("kind", ["transaction", "connect_apart", "arrow"])
def test_callers_are_not_told_where_the_database_is(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    away = Connections("postgresql://somebody@127.0.0.1:1/hidden", max_connections=1)
    with pytest.raises(BusyError) as caught, getattr(away, kind)():
        pass
    told = f"{caught.value} {caught.value.hint}"
    assert not [word for word in ("127.0.0.1", "somebody", "hidden", "port") if word in told], told
    assert "127.0.0.1" in caplog.text  # whoever runs it is told


@pytest.mark.parametrize("sqlstate", ["lock_not_available", "deadlock_detected"])
def test_who_waited_for_others_in_vain_is_told_to_try_again(database: Database, sqlstate: str) -> None:
    in_the_way = f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$"
    with pytest.raises(BusyError, match="another change"), database.transaction() as conn:
        conn.exec_driver_sql(in_the_way)
    with pytest.raises(BusyError, match="another change"), database.connection() as driver:
        driver.execute(in_the_way.encode())


def test_who_gets_no_connection_in_time_is_told_to_try_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Connections(database_url, max_connections=1)
    monkeypatch.setattr(few.engine.pool, "_timeout", 0.01)

    def hold_hundred() -> None:
        with ExitStack() as held:
            for _ in range(100):
                held.enter_context(few.transaction())

    with pytest.raises(BusyError, match="no database connection came free"):
        hold_hundred()
    few.close()
