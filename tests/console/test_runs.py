"""The pages of runs: the list with its chart, one run with its answers, and a journal that is followed while
it is written."""

from __future__ import annotations

import re
import threading
import time
import uuid
from html import unescape

import pytest

from eventstore.app import Store
from eventstore.clock import FixedClock
from eventstore.console.pages import runs as page_module
from eventstore.model.access import Role
from eventstore.model.run import (
    Retry,
    RunCompleted,
    RunKind,
    RunStatus,
    Warned,
)
from eventstore.query import runs as runs_module
from eventstore.retention.journal import Journal
from tests.console.served import served_console
from tests.unit.helpers import DAY_US, START_US, fill_days, make_tenant, run_retention

HOSTILE = "<script>alert(1)</script>"
PAGE = "/console/runs"


def entries_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'data-entry="(\d+)"', text)]


def next_of(text: str) -> tuple[str, str] | None:
    """Where the journal goes on, and when; None: it does not."""
    found = re.search(r'id="run-follow" hx-get="([^"]+)" hx-trigger="([^"]+)"', text)
    return None if found is None else (unescape(found[1]), found[2])


def journaled(store: Store, run_id: uuid.UUID) -> list[int]:
    return [entry.entry_no for entry in runs_module.read_entries(store.database, run_id).entries]


@pytest.fixture
def ended(store: Store, clock: FixedClock) -> uuid.UUID:
    """A run that archived two windows."""
    make_tenant(store)
    fill_days(store, clock, "acme", 3)
    return run_retention(store, START_US + 2 * DAY_US).run_id


def begun(store: Store, status: RunStatus | None = None, requested_by: str = "ann") -> Journal:
    journal = Journal.begin(
        store.database, kind=RunKind.EXPIRY, now_us=START_US, requested_by=requested_by, holder=0
    )
    if status is not None:
        journal.finish(
            RunCompleted(status=status, duration_ms=5, windows=0, windows_failed=1, events=0, error=HOSTILE)
        )
    return journal


def test_the_list_its_chart_and_what_is_chosen(store: Store, ended: uuid.UUID) -> None:
    failed = begun(store, RunStatus.FAILED, requested_by=HOSTILE).run_id
    with served_console(store) as served:
        olga = served.person(Role.OPERATOR, None)
        page = olga.page(PAGE)
        assert f'href="{PAGE}/{ended}"' in page
        assert f'id="bar-{failed}"' in page
        assert page.count('class="cross"') == 1
        assert "2 runs, 1 failed" in page
        assert re.search(r"<title[^>]*>Runs, oldest first</title>\s*<desc>", page)
        assert HOSTILE not in page
        assert "hx-get" not in page, "nothing goes on"
        assert "The highest bar is 10 events" in olga.page(PAGE, chart="events")
        only = olga.page(PAGE, kind="expiry", status="failed")
        assert (str(failed) in only, str(ended) in only) == (True, False)
        assert "No run is here" in olga.page(PAGE, kind="scrub")
        assert olga.get(PAGE, kind="other").status_code == 400
        assert olga.get(PAGE, cursor="x").status_code == 400
        begun(store)
        part = olga.fragment(PAGE).text
        assert 'hx-trigger="every 2s"' in part
        assert "<html" not in part


def test_pages_of_the_list_hold_each_run_once(
    store: Store, ended: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {str(ended), *(str(begun(store, RunStatus.COMPLETED).run_id) for _ in range(4))}
    monkeypatch.setattr(page_module, "_PAGE", 2)
    with served_console(store) as served:
        olga = served.person(Role.OPERATOR, None)
        seen: list[str] = []
        address: str | None = PAGE
        while address is not None:
            page = olga.page(address)
            seen += re.findall(r'id="run-([0-9a-f-]{36})"', page)
            older = re.search(r'<a href="([^"]+)">Older</a>', page)
            address = None if older is None else unescape(older[1])
    assert len(seen) == 5
    assert set(seen) == made


def test_one_run_answers_what_is_asked_of_it(store: Store, ended: uuid.UUID) -> None:
    with served_console(store) as served:
        olga = served.person(Role.OPERATOR, None)
        page = olga.page(f"{PAGE}/{ended}")
        for said in (
            "To archive: 2 windows with 10 events.",
            "2 windows completed: 10 events in 2 segments",
            "Nothing.",
            "The run is completed",
            "Which window took longest, and why",
            "as if it were 2024-03-03 00:00:00",
            "This is the end of the journal.",
        ):
            assert said in page, said
        assert entries_of(page) == journaled(store, ended)
        assert "every 2s" not in page
        assert olga.get(f"{PAGE}/{uuid.UUID(int=5)}").status_code == 404
        assert olga.get(f"{PAGE}/latest").status_code == 404


def test_what_is_not_known_is_said_and_nothing_becomes_markup(store: Store) -> None:
    journal = begun(store, requested_by=HOSTILE)
    journal.record(Warned(message=HOSTILE))
    journal.record(Retry(attempt=1, reason=HOSTILE, backoff_s=2.0))
    with store.database.transaction() as conn:
        conn.exec_driver_sql(
            "INSERT INTO run_entries (run_id, kind, detail) VALUES"
            f" ('{journal.run_id}', 'of-the-future', '{{\"a\": \"<script>alert(1)</script>\"}}')"
        )
    with served_console(store) as served:
        page = served.person(Role.OPERATOR, None).page(f"{PAGE}/{journal.run_id}")
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "What this version does not understand" in page
    assert re.search(r"[Uu]nknown: ", page)


def test_a_journal_is_followed_and_shows_each_entry_once(
    store: Store, ended: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers at several connections at once, pages of a few entries; the page goes on by itself, as htmx
    does, until the run has ended, and then asks no more."""
    monkeypatch.setattr(page_module, "_ENTRIES", 7)
    journal = begun(store)
    for n in range(20):
        journal.record(Warned(message=f"before {n}"))

    def write(name: int) -> None:
        for n in range(40):
            journal.record(Warned(message=f"{name}-{n}"))

    writers = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    with served_console(store) as served:
        olga = served.person(Role.OPERATOR, None)
        page = olga.page(f"{PAGE}/{journal.run_id}")
        assert len(entries_of(page)) == 7, "a run that goes on is shown from its last entries on"
        assert f'href="{PAGE}/{journal.run_id}?after=0"' in page
        assert "part=answers" in page
        page = olga.page(f"{PAGE}/{journal.run_id}", after="0")
        seen, following = entries_of(page), next_of(page)
        while following is not None and following[1] != "every 2s":
            part = olga.fragment(following[0])
            seen, following = seen + entries_of(part.text), next_of(part.text)
        assert following is not None
        with store.database.transaction() as conn:
            journal.record_in(conn, Warned(message="numbered, and not committed yet"))
            journal.record(Warned(message="later, and committed"))
            part = olga.fragment(following[0])
            assert entries_of(part.text) == [], "what comes to stand before it would be missed"
            following = next_of(part.text)
        for thread in writers:
            thread.start()
        finishing = threading.Thread(target=lambda: _finish(journal, writers))
        finishing.start()
        deadline = time.monotonic() + 60
        waits = 0
        while following is not None:
            assert time.monotonic() < deadline
            address, when = following
            waits += when == "every 2s"
            part = olga.fragment(address)
            assert part.status_code == 200
            seen += entries_of(part.text)
            following = next_of(part.text)
        finishing.join()
        assert seen == journaled(store, journal.run_id)
        assert len(seen) == 20 + 2 + 3 * 40 + 1
        answers = olga.fragment(f"{PAGE}/{journal.run_id}", part="answers").text
        assert "every 2s" not in answers
        assert "How it ended" in answers


def _finish(journal: Journal, writers: list[threading.Thread]) -> None:
    for thread in writers:
        thread.join()
    journal.finish(
        RunCompleted(status=RunStatus.COMPLETED, duration_ms=5, windows=0, windows_failed=0, events=0)
    )


def test_a_page_holds_so_many_entries_and_then_asks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_ENTRIES", 5)
    monkeypatch.setattr(page_module, "_SHOWN_MAX", 12)
    journal = begun(store)
    for n in range(30):
        journal.record(Warned(message=str(n)))
    with served_console(store) as served:
        olga = served.person(Role.OPERATOR, None)
        text = olga.page(f"{PAGE}/{journal.run_id}", after="0")
        seen = entries_of(text)
        while (following := next_of(text)) is not None:
            text = olga.fragment(following[0]).text
            seen += entries_of(text)
    assert len(seen) == 10
    assert "Go on from here" in text


def test_only_operators_of_the_deployment(store: Store) -> None:
    make_tenant(store)
    run_id = begun(store).run_id
    with served_console(store) as served:
        for role in (Role.READER, Role.COMPLIANCE, Role.OPERATOR, Role.ADMINISTRATOR):
            # A tenant's operator has nothing to sign in for.
            for tenant in (None,) if role is Role.OPERATOR else (None, "acme"):
                person = served.person(role, tenant)
                may = tenant is None and role in (Role.OPERATOR, Role.ADMINISTRATOR)
                for address in (PAGE, f"{PAGE}/{run_id}"):
                    assert person.get(address).status_code == (200 if may else 403)
