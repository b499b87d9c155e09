"""The page of a tenant, and its certificates, as people see them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from eventstore.app import Store, open_store
from eventstore.clock import FixedClock, to_iso
from eventstore.governance.certificates import get_certificate
from eventstore.governance.holds import place_hold
from eventstore.governance.policies import apply_change
from eventstore.governance.tenants import create_tenant
from eventstore.model.access import Role
from eventstore.model.hold import HoldScope
from eventstore.model.policy import ArchiveTier, Ending, Policy, PolicyOverride
from eventstore.model.run import RunKind
from eventstore.model.window import WindowUnit
from eventstore.retention.compactor import RunOrder
from eventstore.settings import Settings
from tests.conftest import create_database
from tests.console.served import ServedConsole, served_console
from tests.unit.helpers import DAY_US, START_US, execute, fill_days

# Hot for a day, near for two, deep for three, then destroyed: day 0 is destroyed at day 7.
POLICY = Policy(
    WindowUnit.DAY,
    DAY_US,
    (ArchiveTier("near", 2 * DAY_US), ArchiveTier("deep", 3 * DAY_US)),
    Ending.EXPIRE,
)
PATH = "/console/t/acme"
RULED = "/console/t/ruled"


@pytest.fixture(scope="module")
def tiered(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """Tenants with ten days of five events: two days destroyed, the others in three tiers."""
    folder = tmp_path_factory.mktemp("tenant_page")
    settings = Settings(
        database_url=create_database(server_url, "tenant_page", template=template_database),
        home=folder / "home",
        archive_url=(folder / "archive").as_uri(),
        targets={name: (folder / name).as_uri() for name in ("near", "deep")},
    )
    for name in ("archive", "near", "deep"):
        (folder / name).mkdir()
    clock = FixedClock(START_US)
    with open_store(settings, clock=clock) as store:
        for name in ("acme", "ruled", "graced"):
            create_tenant(store.database, name, POLICY)
            fill_days(store, clock, name, 10)
        create_tenant(store.database, "hidden-one", POLICY)
        at_us = START_US + round(8.5 * DAY_US)
        store.compactor.run(store.compactor.tenants(), at_us)
        store.compactor.run(store.compactor.tenants(), at_us, order=RunOrder(RunKind.EXPIRY, "test"))
        yield store


@pytest.fixture(scope="module")
def served(tiered: Store) -> Iterator[ServedConsole]:
    with served_console(tiered) as found:
        yield found


def row(page: str, name: str) -> list[str]:
    """The cells of the first row of a table that begins with a name, as text."""
    for found in re.findall(r"<tr>(.*?)</tr>", page, re.S):
        cells = [
            re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", found, re.S)
        ]
        if cells and cells[0] == name:
            return cells
    raise AssertionError(f"no row {name!r} in {page}")


def bars(page: str, colour: str) -> int:
    return len(re.findall(rf'<rect class="{colour}" ', page))


def test_the_map_shows_each_window_where_it_lies_and_the_table_says_the_same(
    tiered: Store, served: ServedConsole
) -> None:
    page = served.person(Role.COMPLIANCE).page(PATH)
    # At day 8.5 days 0 and 1 are destroyed, 2 to 4 in deep, 5 and 6 in near, the rest is hot.
    query = "SELECT state, target, count(*) FROM windows WHERE tenant_id = 'acme' GROUP BY 1, 2 ORDER BY 1, 2"
    assert execute(tiered.database.url, query) == [
        ("dropped", "deep", 3),
        ("dropped", "near", 2),
        ("expired", "deep", 2),
        ("open", None, 3),
    ]
    assert row(page, "destroyed")[1:4] == ["2", "10", "-"]
    assert row(page, "deep")[1:3] == ["3", "15"]
    assert row(page, "near")[1:3] == ["2", "10"]
    assert row(page, "hot")[1:3] == ["3", "15"]
    assert bars(page, "expired") == 2
    # The policy's order gives the colours: near is the first target.
    assert (bars(page, "archive-1"), bars(page, "archive-0"), bars(page, "hot")) == (3, 2, 3)
    day2 = START_US + 2 * DAY_US
    assert (
        f'href="{PATH}/search?recorded_from={to_iso(day2)}&amp;recorded_to={to_iso(day2 + DAY_US)}"'
        in page.replace("%3A", ":")
    )
    assert "hidden-one" not in page


def test_the_map_can_be_narrowed_and_says_what_is_wrong_with_a_time(served: ServedConsole) -> None:
    ann = served.person(Role.COMPLIANCE)
    page = ann.page(PATH, **{"from": "2024-03-03", "to": "2024-03-05T12:00:00Z"})
    assert row(page, "deep")[1:3] == ["3", "15"]
    assert bars(page, "archive-1") == 3
    assert bars(page, "hot") == bars(page, "expired") == 0
    answer = ann.get(PATH, **{"from": "yesterday", "to": "2024-03-05"})
    assert answer.status_code == 400
    assert 'value="yesterday"' in answer.text
    assert "is not a time" in answer.text
    assert 'value="2024-03-05"' in answer.text
    backwards = ann.get(PATH, **{"from": "2024-03-05", "to": "2024-03-04"})
    assert backwards.status_code == 400
    empty = ann.page(PATH, **{"from": "2020-01-01", "to": "2020-02-01"})
    assert "Nothing was recorded between" in empty


def test_the_policy_the_next_steps_and_holds_are_told_to_who_may_see_policies(
    tiered: Store, served: ServedConsole
) -> None:
    now_us = tiered.database.now_us()
    scope = HoldScope((("order", "1"),), START_US, START_US + 3 * DAY_US)
    place_hold(tiered.database, "ruled", "<b>Smith v. Acme", "litigation", "counsel", scope, now_us)
    page = served.person(Role.COMPLIANCE, "ruled").page(RULED)
    for sentence in (
        "Hot for 1 day.",
        "Then 2 days in &#39;near&#39;.",
        "Then 3 days in &#39;deep&#39;.",
        "Then destroyed; a certificate stands for it.",
    ):
        assert f"<li>{sentence}</li>" in page
    assert "destroyed" in page.split('id="next"')[1]
    assert "1 hold in force" in page
    assert "Held by &lt;b&gt;Smith v. Acme: events of order 1 recorded from 2024-03-01 on" in page
    assert 'fill="url(#partly)"' in page
    reader = served.person(Role.READER, "ruled").page(RULED)
    assert row(reader, "deep")[1:3] == ["3", "15"]
    for secret in ("Smith", "Hot for 1 day", "hold in force"):
        assert secret not in reader, "the API tells readers of neither"


def test_a_policy_in_its_grace_time_says_when_it_comes_and_what_it_destroys(
    tiered: Store, served: ServedConsole
) -> None:
    now_us = tiered.database.now_us()
    changes = [
        (PolicyOverride(tiers=(ArchiveTier("near"),), ending=Ending.KEEP), now_us - DAY_US, None),
        (PolicyOverride(tiers=(ArchiveTier("near", 2 * DAY_US),), ending=Ending.EXPIRE), now_us, 40),
    ]
    for change, at_us, confirm in changes:
        apply_change(
            tiered.database,
            "graced",
            change,
            actor="op",
            reason="<i>shorter",
            now_us=at_us,
            known_targets=tiered.targets.names,
            confirm=confirm,
        )
    page = served.person(Role.COMPLIANCE, "graced").page("/console/t/graced")
    assert "<li>Then in &#39;near&#39;, kept for ever.</li>" in page
    coming = page.split("another policy holds")[1]
    assert "<bdi>&lt;i&gt;shorter</bdi>" in coming
    assert "Then 2 days in &#39;near&#39;." in coming
    assert "40 events in 8 windows are past its end" in coming
    assert "40 events that are destroyed sooner were confirmed" in coming


def test_certificates_are_listed_and_the_envelope_is_what_is_stored(
    tiered: Store, served: ServedConsole
) -> None:
    ann = served.person(Role.READER)
    assert "2 certificates</a>" in ann.page(PATH)
    page = ann.page(f"{PATH}/certificates")
    assert [row(page, number)[4] for number in ("1", "2")] == ["5", "5"]
    assert page.index(">2</th>") < page.index(">1</th>")
    answer = ann.get(f"{PATH}/certificates/2")
    assert answer.status_code == 200
    assert 'filename="certificate.acme.00000002.json"' in answer.headers["content-disposition"]
    with tiered.database.transaction() as conn:
        assert answer.content == get_certificate(conn, "acme", 2).envelope
    older = ann.page(f"{PATH}/certificates", before=2)
    assert row(older, "1")
    assert ">2</th>" not in older
    assert ann.get(f"{PATH}/certificates/3").status_code == 404


def test_another_tenant_s_page_is_one_that_does_not_exist(served: ServedConsole) -> None:
    ann = served.person(Role.COMPLIANCE)
    for path in ("", "/certificates", "/certificates/1", "/holds", "/holds/new"):
        foreign, absent = (ann.get(f"/console/t/{name}{path}") for name in ("hidden-one", "no-such-one"))
        assert (foreign.status_code, absent.status_code) == (404, 404), path
        assert foreign.text.replace("hidden-one", "no-such-one") == absent.text


def test_a_tenant_without_events_has_an_empty_map(served: ServedConsole) -> None:
    page = served.person(Role.COMPLIANCE, "hidden-one").page("/console/t/hidden-one")
    assert "Nothing has been recorded yet." in page


def test_a_map_of_very_many_windows_stays_small(tiered: Store, served: ServedConsole) -> None:
    create_tenant(tiered.database, "crowded", POLICY)
    execute(
        tiered.database.url,
        "INSERT INTO windows (tenant_id, window_from, window_to, state, leaf, first_seq)"
        " SELECT 'crowded', t, t + interval '1 hour', 'open', 'leaf-' || n, n"
        " FROM generate_series(1, 12000) n,"
        " LATERAL (SELECT '2023-01-01'::timestamptz + n * interval '2 hours') x(t)",
    )
    execute(tiered.database.url, "UPDATE heads SET last_seq = 12000 WHERE tenant_id = 'crowded'")
    page = served.person(Role.COMPLIANCE, "crowded").page("/console/t/crowded")
    assert row(page, "hot")[1:3] == ["12,000", "12,000"]
    (drawing,) = re.findall(r'<svg class="chart timemap".*?</svg>', page, re.S)
    assert len(re.findall(r"<[a-z]", drawing)) <= 400
    assert len(page) < 200_000
