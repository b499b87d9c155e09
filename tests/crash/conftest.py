"""A host for the children of this run, and a seeded store for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import create_database
from tests.crash.world import Host, World, a_world, seed


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    started = Host(tmp_path_factory.mktemp("host") / "log")
    yield started
    started.close()


@pytest.fixture(scope="session")
def seeded_template(
    server_url: str, template_database: str
) -> tuple[str, dict[str, list[tuple[int, bytes]]]]:
    """The name of a database with a past to copy from, and the events stored in it."""
    name = f"seeded_{secrets.token_hex(4)}"
    return name, seed(create_database(server_url, name, template=template_database))


@pytest.fixture
def world(
    host: Host,
    server_url: str,
    seeded_template: tuple[str, dict[str, list[tuple[int, bytes]]]],
    tmp_path: Path,
) -> Iterator[World]:
    template, seeded = seeded_template
    name = f"crash_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=template)
    with a_world(host, url, tmp_path, seeded) as made:
        yield made
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
