"""Every page, as a browser lays it out: nothing that keeps somebody from using it, in light and dark, at the
width of a desk and of a phone; and no complaint of the browser's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, Route

from tests.browser.chromium import DESKTOP, PHONE, Watched
from tests.browser.visits import PAGES, address_of, sign_in
from tests.browser.world import World

_WIDER = """() => {
    const most = document.documentElement.clientWidth;
    const scrolled = [...document.querySelectorAll('*')].filter((e) =>
        e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX !== 'visible');
    return [...document.body.querySelectorAll('*')]
        .filter((e) => e.getBoundingClientRect().right > most + 1 && !scrolled.some((s) => s.contains(e)))
        .slice(0, 5).map((e) => e.outerHTML.slice(0, 160));
}"""


# What another width or other colours can change; the rest is looked at once, since it takes a second a page.
_OF_COLOURS = ["color-contrast", "link-in-text-block"]
_OF_WIDTH = [*_OF_COLOURS, "scrollable-region-focusable", "target-size", "aria-hidden-focus", "meta-viewport"]


def _violations(page: Page, rules: list[str] | None) -> list[str]:
    """What axe finds serious or critical, by all its rules where none are given, with the first elements that
    it names."""
    options: dict[str, Any] = {"resultTypes": ["violations"], "preload": False}
    if rules is not None:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = page.evaluate("async (options) => (await axe.run(options)).violations", options)
    return [
        f"{v['impact']} {v['id']}: {v['help']}: {[n['html'][:160] for n in v['nodes'][:3]]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def _look(watched: Watched, where: str) -> None:
    """At both widths, in both colours."""
    page, found = watched.page, []
    page.evaluate(AXE_SCRIPT)
    looks = (
        (DESKTOP, "light", None),
        (DESKTOP, "dark", _OF_COLOURS),
        (PHONE, "dark", _OF_WIDTH),
        (PHONE, "light", _OF_COLOURS),
    )
    for size, colours, rules in looks:
        watched.resize(size)
        page.emulate_media(color_scheme=colours)  # type: ignore[arg-type]
        found += [f"{where} at {size[0]} in {colours}: {v}" for v in _violations(page, rules)]
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > size[0]:
            found.append(f"{where} at {size[0]} is {wide} wide: {page.evaluate(_WIDER)}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_open_to_everybody(person: Callable[..., Watched], world: World, name: str) -> None:
    watched = person()
    _sign_in_quickly(watched, world)
    answer = watched.page.goto(address_of(world, name))
    assert answer is not None
    expected = 404 if name == "not-found" else 200
    assert answer.status == expected, watched.page.inner_text("main")[:500]
    if expected == 404:
        # The browser says of a page that was not found that it was not found.
        watched.complaints[:] = [c for c in watched.complaints if "404" not in c]
    assert watched.page.title().strip()
    assert watched.page.locator("h1").count() == 1
    _look(watched, name)


def test_what_a_page_says_while_it_reads_on_is_open_to_everybody(
    person: Callable[..., Watched], world: World
) -> None:
    watched = person()
    _sign_in_quickly(watched, world)
    asked: list[Route] = []
    watched.page.route("**/*life=part*", lambda route: asked.append(route))  # which is never answered
    watched.page.goto(address_of(world, "entity-then"))
    watched.page.wait_for_selector("[aria-busy=true].htmx-request")
    _look(watched, "entity-then, reading on")
    assert len(asked) == 1


def test_the_first_page_is_open_to_everybody(person: Callable[..., Watched], world: World) -> None:
    watched = person()
    watched.page.goto(f"{world.console}/sign-in")
    _look(watched, "sign-in")


def _sign_in_quickly(watched: Watched, world: World) -> None:
    """With the session of whoever has signed in before: signing in itself is tried elsewhere."""
    if world.session is None:
        sign_in(watched, world)
        world.session = watched.context.cookies()
    watched.context.add_cookies(world.session)
