"""The pages that tests look at, by name, and how a person gets to them."""

from __future__ import annotations

from urllib.parse import urlencode

from eventstore.model.access import Role
from tests.browser.chromium import Watched
from tests.browser.world import OTHER, PATIENT, TENANT, World

__all__ = ["PAGES", "address_of", "sign_in"]

_BASE = f"/console/t/{TENANT}"
_ENTITY = {"entity_type": "patient", "entity_id": PATIENT}

# name → address below the origin. `{seq}` is an archived event of the patient's, `{run}` the last run,
# `{hold}` the hold in force.
PAGES = {
    "tenants": "/console/",
    "tenant": _BASE,
    "search": f"{_BASE}/search",
    "search-entity": f"{_BASE}/search?{urlencode({**_ENTITY, 'field': 'address'})}",
    "search-nothing": f"{_BASE}/search?{urlencode({'actor': 'nobody'})}",
    "entity": f"{_BASE}/entity?{urlencode(_ENTITY)}",
    "entity-then": f"{_BASE}/entity?{urlencode({**_ENTITY, 'as_of': '2025-06-01T00:00:00Z'})}",
    "event": f"{_BASE}/event/{{seq}}",
    "holds": f"{_BASE}/holds",
    "hold": f"{_BASE}/holds/{{hold}}",
    "hold-release": f"{_BASE}/holds/{{hold}}/release",
    "certificates": f"{_BASE}/certificates",
    "exports": f"{_BASE}/exports",
    "runs": "/console/runs",
    "run": "/console/runs/{run}",
    "tenant-plain": f"/console/t/{OTHER}",
    "not-found": f"{_BASE}/event/999999",
}


def address_of(world: World, name: str) -> str:
    """The whole address of a page."""
    path = PAGES[name].format(seq=world.archived_seq, run=world.run_id, hold=world.hold_id)
    return f"http://127.0.0.1:{world.port}{path}"


def sign_in(watched: Watched, world: World, role: Role = Role.ADMINISTRATOR) -> None:
    """As a person does, with a key."""
    page = watched.page
    page.goto(f"{world.console}/sign-in")
    page.get_by_label("Key", exact=True).fill(world.keys[role])
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(lambda url: "/sign-in" not in url)
