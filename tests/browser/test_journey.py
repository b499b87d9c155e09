"""What compliance staff do, in a browser, from signing in to a file that proves itself to somebody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from eventstore.governance.holds import get_hold
from eventstore.model.access import Role
from eventstore.model.query import EventFilter, Order
from eventstore.retention.compactor import RunOrder
from tests.browser.chromium import Watched
from tests.browser.visits import sign_in
from tests.browser.world import NOW_US, PATIENT, TENANT, World

_ROOT = Path(__file__).resolve().parents[2]
_TABS_MAX = 150
_IS_OUTLINED = """e => getComputedStyle(e).outlineStyle !== 'none'
    || getComputedStyle(e).boxShadow !== 'none'"""


def _changes(world: World, **more: str) -> list[int]:
    """The seqs of the patient's events, newest first, as the store itself reads them."""
    wanted = EventFilter(entity_type="patient", entity_id=PATIENT, **more)
    tables = world.store.reader.stream(TENANT, wanted, order=Order.DESC)
    return [seq for table in tables for seq in table.column("seq").to_pylist()]


def _tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until the focus is there, and see that it can be seen."""
    for _ in range(_TABS_MAX):
        page.keyboard.press("Tab")
        if wanted.evaluate("e => e === document.activeElement"):
            outlined = (
                "e => getComputedStyle(e).outlineStyle !== 'none' || getComputedStyle(e).boxShadow !== 'none'"
            )
            assert wanted.evaluate(outlined), "the focus cannot be seen"
            return
    raise AssertionError(f"{wanted} cannot be reached by the keyboard")


def test_all_changes_of_a_field_are_found_by_the_keyboard_alone(
    person: Callable[..., Watched], world: World
) -> None:
    page = person().page
    page.goto(f"{world.console}/t/{TENANT}/search")  # a link that somebody has sent
    key = page.get_by_label("Key", exact=True)
    _tab_to(page, key)
    page.keyboard.type(world.keys[Role.COMPLIANCE])
    page.keyboard.press("Enter")
    page.wait_for_url("**/search")
    for label, text in (("Entity id", PATIENT), ("Field", "address")):
        _tab_to(page, page.get_by_label(label, exact=True))
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?*")
    expected = _changes(world, field="address")
    links = page.locator("table tbody tr td.num a")
    expect(links).to_have_count(len(expected))
    assert [int(text.replace(",", "")) for text in links.all_inner_texts()] == expected
    # From both tiers, and the page says from which.
    told = page.locator("table .pill").all_inner_texts()
    assert {text.split(":")[0].strip() for text in told} >= {"hot", "archive"}
    _tab_to(page, links.last)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/event/{expected[-1]}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{expected[-1]:,}")
    assert PATIENT in page.inner_text("main")


def test_a_search_is_a_link_that_can_be_sent(person: Callable[..., Watched], world: World) -> None:
    """To somebody else, who signs in on the way and sees the same."""
    sender = person()
    sign_in(sender, world, Role.COMPLIANCE)
    sender.page.goto(f"{world.console}/t/{TENANT}/search")
    sender.page.get_by_label("Entity id", exact=True).fill(PATIENT)
    sender.page.get_by_label("Text in old or new values").fill("harbour")
    sender.page.get_by_role("button", name="Search", exact=True).click()
    sender.page.wait_for_url("**/search?*")
    rows = sender.page.locator("table tbody tr td.num a")
    expect(rows).to_have_count(len(_changes(world, text="harbour")))
    receiver = person()
    receiver.page.goto(sender.page.url)
    receiver.page.get_by_label("Key", exact=True).fill(world.keys[Role.READER])
    receiver.page.get_by_role("button", name="Sign in", exact=True).click()
    receiver.page.wait_for_url(sender.page.url)
    same = receiver.page.locator("table tbody tr td.num a")
    expect(same).to_have_count(rows.count())  # results stream in
    assert same.all_inner_texts() == rows.all_inner_texts()


def test_a_hold_is_placed_after_a_look_at_what_it_covers(
    person: Callable[..., Watched], world: World
) -> None:
    watched = person()
    sign_in(watched, world, Role.COMPLIANCE)
    page = watched.page
    page.goto(f"{world.console}/t/{TENANT}/holds")
    page.get_by_role("link", name="Place a hold").click()
    page.get_by_label("Case", exact=True).fill("case-2026-031")
    page.get_by_label("Why", exact=True).fill("Request of the court")
    page.get_by_label("Events of some entities").check()
    page.get_by_label("Entities", exact=True).fill(f"patient/{PATIENT}")
    page.get_by_role("button", name="Look what it covers").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Place this hold?")
    together = page.get_by_role("row", name="together").get_by_role("cell")
    expect(together.first).to_have_text(str(len(_changes(world))))  # counted once the page is shown
    page.get_by_role("button", name="Place the hold").click()
    page.wait_for_url("**/holds/*done=placed")
    with world.store.database.transaction() as conn:
        hold = get_hold(conn, TENANT, "case-2026-031")
    assert hold.in_force
    assert hold.scope.entities == (("patient", PATIENT),)
    page.goto(f"{world.console}/t/{TENANT}/event/{_changes(world)[-1]}")
    assert "held" in page.inner_text("main")


def test_a_run_is_watched_while_it_goes_on(person: Callable[..., Watched], world: World) -> None:
    """Its page follows without being loaded again, window by window, to its end."""
    watched = person()
    sign_in(watched, world, Role.OPERATOR)
    page, store = watched.page, world.store
    tenants = store.compactor.tenants(TENANT)
    run_id = store.compactor.start(tenants, NOW_US, order=RunOrder(requested_by="operator"))
    page.goto(f"{world.console}/runs")
    page.locator(f"a[href$='/runs/{run_id}']").first.click()
    page.wait_for_url(f"**/runs/{run_id}")
    progress = page.get_by_role("progressbar")
    due = int(progress.get_attribute("max") or 0)
    assert due >= 2
    page.evaluate("window.notLoadedAgain = true")
    with store.compactor.worker() as worker:
        for done in range(1, due):
            assert worker.do_next([TENANT])
            expect(page.locator("label[for=run-progress]")).to_contain_text(f"{done} of {due}")
        assert worker.do_next([TENANT])
        assert not worker.do_next([TENANT])
    expect(page.get_by_text("completed", exact=True).first).to_be_visible()
    expect(progress).to_have_count(0)
    assert page.evaluate("window.notLoadedAgain")


def test_a_bundle_is_exported_and_proves_itself(
    person: Callable[..., Watched], world: World, tmp_path: Path
) -> None:
    """Asked for on the page, made in the background, downloaded, and verified by the file in docs/ alone."""
    watched = person()
    sign_in(watched, world, Role.COMPLIANCE)
    page = watched.page
    page.goto(f"{world.console}/t/{TENANT}/search?entity_type=patient&entity_id={PATIENT}")
    page.get_by_role("link", name="Export these events").click()
    formats = page.get_by_label("Format", exact=True)
    bundle = formats.locator("option", has_text="bundle").first.get_attribute("value")
    formats.select_option(bundle)
    page.get_by_label("Why", exact=True).fill("case-2026-031")
    page.get_by_role("button", name="Ask for it").click()
    download = page.get_by_role("link", name="Download").first
    expect(download).to_be_visible(timeout=30_000)
    with page.expect_download() as found:
        download.click()
    path = tmp_path / "evidence.zip"
    found.value.save_as(path)
    command = [sys.executable, "-I", str(_ROOT / "docs" / "verify_bundle.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(len(_changes(world))) in done.stdout
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
