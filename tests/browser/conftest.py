"""One browser and one served store for all of a worker's tests here; a person's browser for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import Watched, launched
from tests.browser.world import World, served_world


@pytest.fixture(scope="session")
def world(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with served_world(server_url, template_database, tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def browser(world: World) -> Iterator[Browser]:
    # For a module: while playwright drives it, this thread has a running event loop.
    with launched() as found:
        yield found


@pytest.fixture
def person(browser: Browser, world: World) -> Iterator[Callable[..., Watched]]:
    """Makes a person's browser; when the test has passed, nothing happened in it that must not."""
    people: list[Watched] = []

    def arrive(**options: object) -> Watched:
        people.append(Watched(browser, world.console, **options))  # type: ignore[arg-type]
        return people[-1]

    yield arrive
    complaints = [complaint for one in people for complaint in one.complaints]
    for one in people:
        one.close()
    assert not complaints
