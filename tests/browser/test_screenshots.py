"""The pictures of the console in docs/screenshots: there, small, and shown in the documentation.

`make screenshots` (SCREENSHOTS=1) takes them anew, of the store that `world` makes; otherwise it is only seen
what is there, without a browser.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.chromium import Watched
from tests.browser.pictures import reduced
from tests.browser.visits import address_of, sign_in
from tests.browser.world import PATIENT, TENANT, World

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_FOLDER = _DOCS / "screenshots"
_HOWTO = _DOCS / "howto" / "console.md"
_SIZES = ((1280, 900), (390, 844))
_BYTES_MAX = 150_000
_SHOWN = (
    *("sign-in", "tenants", "tenant", "search", "search-entity", "entity", "entity-then", "event"),
    *("holds", "hold-preview", "hold", "hold-release", "certificates", "exports", "runs", "run"),
)
TAKE = bool(os.environ.get("SCREENSHOTS"))


def _path(name: str, width: int) -> Path:
    return _FOLDER / f"{name}-{width}.png"


def test_nothing_else_lies_there() -> None:
    expected = {_path(name, width).name for name in _SHOWN for width, _ in _SIZES}
    assert {path.name for path in _FOLDER.iterdir()} == expected


@pytest.mark.parametrize("name", _SHOWN)
def test_a_page_has_its_pictures(name: str) -> None:
    for width, height in _SIZES:
        data = _path(name, width).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (width, height)
        assert len(data) < _BYTES_MAX
        assert f"../screenshots/{name}-{width}.png" in _HOWTO.read_text()


@pytest.mark.skipif(not TAKE, reason="pictures are taken anew with SCREENSHOTS=1 (make screenshots) alone")
@pytest.mark.parametrize("width_height", _SIZES, ids=["1280", "390"])
def test_take_them(person: Callable[..., Watched], world: World, width_height: tuple[int, int]) -> None:
    _FOLDER.mkdir(exist_ok=True)
    watched = person(size=width_height)
    page, empty = watched.page, watched.page.context.new_page()

    def take(name: str) -> None:
        page.wait_for_load_state("networkidle")
        page.evaluate("document.activeElement.blur()")
        taken = page.screenshot(animations="disabled", caret="hide")
        _path(name, width_height[0]).write_bytes(reduced(empty, taken))

    page.goto(f"{world.console}/sign-in")
    take("sign-in")
    sign_in(watched, world)
    if width_height == _SIZES[0]:
        _export(page, world)
    for name in _SHOWN:
        if name == "hold-preview":
            _preview(page, world)
        elif name != "sign-in":
            page.goto(address_of(world, name))
        else:
            continue
        take(name)


def _export(page: Page, world: World) -> None:
    page.goto(f"{world.console}/t/{TENANT}/exports?entity_type=patient&entity_id={PATIENT}")
    page.get_by_label("Why", exact=True).fill("Request of the court, case-2026-031")
    page.get_by_role("button", name="Ask for it").click()
    page.get_by_role("link", name="Download").first.wait_for()


def _preview(page: Page, world: World) -> None:
    page.goto(f"{world.console}/t/{TENANT}/holds/new?entity_type=patient&entity_id={PATIENT}")
    page.get_by_label("Case", exact=True).fill("case-2026-031")
    page.get_by_label("Why", exact=True).fill("Request of the court")
    page.get_by_role("button", name="Look what it covers").click()
    page.wait_for_url("**/preview")
