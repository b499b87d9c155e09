"""A host for the children of this run, and stores with a past for each test."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.conftest import create_database
from tests.crash.world import BASE_US, HOUR_US, TIERED, Host, World, a_world, seed

__all__ = [
    "archived_copy",
    "archived_world",
    "host",
    "seeded_template",
    "tiered_template",
    "tiered_world",
    "world",
]

Seeded = dict[str, list[tuple[int, bytes]]]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    started = Host(tmp_path_factory.mktemp("host") / "log")
    yield started
    started.close()


@pytest.fixture(scope="session")
def seeded_template(server_url: str, template_database: str) -> tuple[str, Seeded]:
    """The name of a database with a past to copy from, and the events stored in it."""
    name = f"seeded_{secrets.token_hex(4)}"
    return name, seed(create_database(server_url, name, template=template_database))


@pytest.fixture(scope="session")
def tiered_template(server_url: str, template_database: str) -> tuple[str, Seeded]:
    """The same under a policy of three tiers and expiry."""
    name = f"tiered_{secrets.token_hex(4)}"
    return name, seed(create_database(server_url, name, template=template_database), TIERED)


@pytest.fixture(scope="session")
def archived_world(
    host: Host,
    server_url: str,
    tiered_template: tuple[str, Seeded],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """A tiered store whose two closed windows are in their first tier; to copy from."""
    template, seeded = tiered_template
    url = create_database(server_url, f"archived_{secrets.token_hex(4)}", template=template)
    world = World(host, url, tmp_path_factory.mktemp("archived"), seeded)
    assert world.run_retention("retention", BASE_US + 2 * HOUR_US)["windows"] == 4
    return world


@contextmanager
def _copied(host: Host, server_url: str, template: str, seeded: Seeded, folder: Path) -> Iterator[World]:
    name = f"crash_{secrets.token_hex(6)}"
    url = create_database(server_url, name, template=template)
    with a_world(host, url, folder, seeded) as made:
        yield made
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def world(
    host: Host, server_url: str, seeded_template: tuple[str, Seeded], tmp_path: Path
) -> Iterator[World]:
    """A store with two closed windows a tenant."""
    with _copied(host, server_url, *seeded_template, tmp_path) as made:
        yield made


@pytest.fixture
def tiered_world(
    host: Host, server_url: str, tiered_template: tuple[str, Seeded], tmp_path: Path
) -> Iterator[World]:
    """The same under a policy of three tiers and expiry."""
    with _copied(host, server_url, *tiered_template, tmp_path) as made:
        yield made


@pytest.fixture
def archived_copy(archived_world: World, server_url: str, tmp_path: Path) -> Iterator[World]:
    """A tiered store whose two closed windows are in their first tier."""
    template = make_url(archived_world.url).database
    assert template is not None
    shutil.copytree(archived_world.archive, tmp_path / "archive")
    with _copied(archived_world.host, server_url, template, archived_world.seeded, tmp_path) as made:
        yield made
