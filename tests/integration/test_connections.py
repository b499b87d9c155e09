"""Connections to Postgres: how many a request takes, and what callers are told when one cannot be had."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

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
