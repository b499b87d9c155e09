"""A tenant: where its history lies over time, how much it is, under which policy, and what happens next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from eventstore.app import Store
from eventstore.clock import US_PER_S, clamp_us, from_us, parse_time_us, to_iso, to_us
from eventstore.console import timemap
from eventstore.console.pages import certificates
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import Visit, visit
from eventstore.console.words import policy_sentences
from eventstore.errors import InputError
from eventstore.governance.certificates import newest_certificates
from eventstore.governance.holds import holds_in_force
from eventstore.integrity.checkpoints import latest
from eventstore.model.access import Permission
from eventstore.model.explain import Blocker, BlockerKind, NextStep, PolicyFacts
from eventstore.model.hold import Hold
from eventstore.model.policy import PolicyVersion
from eventstore.query.explain import explain_tenant, policy_facts
from eventstore.query.stats import log_stats
from eventstore.query.timemap import MapPart, TimeMap, ended_before, time_map

__all__ = ["router"]

router = APIRouter()
router.include_router(certificates.router)

_DAY_US = 86_400 * US_PER_S
_MONTHS = 24
_BLOCKERS_MAX = 20
# So many windows are explained while the page is made.
_EXPLAINED_AT_ONCE = 1_500


@dataclass(frozen=True, slots=True)
class Coming:
    """A policy that will come into force: what it says, and what it destroys on that day unless held."""

    version: PolicyVersion
    sentences: list[str]
    windows: int
    events: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the tenant: shown to who may see policies, as the API tells nobody else."""

    policy: PolicyFacts
    sentences: list[str]
    coming: list[Coming]
    holds: list[Hold]


@dataclass(frozen=True, slots=True)
class Next:
    """What happens next, and what is in the way but for holds, which have a list of their own."""

    steps: Sequence[NextStep]
    blockers: list[Blocker]
    blockers_more: int


@dataclass(frozen=True, slots=True)
class Month:
    """A bar of growth: what was recorded, the month's place among those shown, and its height, of 100."""

    part: MapPart
    index: int
    height: float


@router.get("/t/{tenant}")
def show(
    tenant: str,
    request: Request,
    me: Annotated[Visit, visit(Permission.READ)],
    from_: Annotated[str, Query(alias="from", max_length=64)] = "",
    to: Annotated[str, Query(max_length=64)] = "",
    explained: Annotated[bool, Query()] = False,
) -> Response:
    """The page; `from` and `to` are what the map shows, by default the whole log. What happens next is worked
    out for every window: where they are very many, the page asks for that part afterwards (htmx, or
    `explained`)."""
    store = me.store
    now_us = store.database.now_us()
    may_know = me.may(Permission.EXPLAIN, tenant)
    if is_fragment(request) and may_know:
        with store.database.transaction() as conn:
            holds = holds_in_force(conn, tenant)
        return render(request, me, "_tenant_next.html", next=_next(store, tenant, now_us), holds=holds)
    (start_us, end_us), problems = _bounds(from_, to)
    found = time_map(store.database, tenant, now_us=now_us, from_us_=start_us, to_us_=end_us)
    rules = _rules(store, tenant, now_us) if may_know else None
    stats = log_stats(store.database, tenant)
    at_once = may_know and (explained or sum(stats.windows.values()) <= _EXPLAINED_AT_ONCE)
    colour_of = timemap.colours(
        [total.place for total in found.totals()],
        [tier.target for tier in rules.policy.in_force.policy.tiers] if rules else [],
    )
    drawing = timemap.draw(found, rules.holds if rules else [], colour_of, now_us)
    with store.database.transaction() as conn:
        newest = newest_certificates(conn, tenant, limit=1)
    return render(
        request,
        me,
        "tenant.html",
        400 if problems else 200,
        map=found,
        totals=found.totals(),
        colour_of=colour_of,
        drawing=drawing,
        given={"from": from_, "to": to},
        problems=problems,
        zooms=_zooms(found, now_us),
        stats=stats,
        months=_months(store, tenant, found, now_us),
        rules=rules,
        holds=rules.holds if rules else [],
        next=_next(store, tenant, now_us) if at_once else None,
        now_us=now_us,
        checkpoint=latest(store.database, tenant),
        certificate=newest[0].certificate if newest else None,
        address=_address,
        search=lambda part: (
            f"/console/t/{tenant}/search?"
            + urlencode({"recorded_from": to_iso(part.from_us), "recorded_to": to_iso(part.to_us)})
        ),
        size=timemap,
    )


def _bounds(from_: str, to: str) -> tuple[tuple[int | None, int | None], dict[str, InputError]]:
    """The times that were asked for, and what is wrong with them, by field."""
    found: dict[str, int | None] = {"from": None, "to": None}
    problems: dict[str, InputError] = {}
    for name, text in (("from", from_), ("to", to)):
        try:
            found[name] = parse_time_us(text) if text.strip() else None
        except InputError as e:
            problems[name] = e
    start_us, end_us = found["from"], found["to"]
    if start_us is not None and end_us is not None and start_us >= end_us:
        problems["to"] = InputError("this is not later than the beginning", hint="write a later time")
    return ((None, None) if problems else (start_us, end_us)), problems


def _address(from_us_: int, to_us_: int) -> str:
    """The map of a time, as the query of this page."""
    return "?" + urlencode({"from": to_iso(from_us_), "to": to_iso(to_us_)}) + "#map"


def _zooms(found: TimeMap, now_us: int) -> list[tuple[str, str]]:
    """Other times to look at, by name and address."""
    length = found.to_us - found.from_us
    offered = [("Whole log", "?#map")]
    wider = clamp_us(found.from_us - length // 2), clamp_us(found.to_us + length // 2)
    offered.append(("Zoom out", _address(*wider)))
    offered.append(("Earlier", _address(clamp_us(found.from_us - length), found.from_us)))
    offered.append(("Later", _address(found.to_us, clamp_us(found.to_us + length))))
    offered.append(("Last year", _address(now_us - 365 * _DAY_US, now_us)))
    return offered


def _rules(store: Store, tenant: str, now_us: int) -> Rules:
    with store.database.transaction() as conn:
        policy = policy_facts(conn, tenant, now_us)
        holds = holds_in_force(conn, tenant)
    coming = []
    for version, then in policy.coming:
        windows = events = 0
        if then.lifetime_us is not None:
            at_us = clamp_us(version.effective_us - then.lifetime_us)
            windows, events = ended_before(store.database, tenant, at_us)
        coming.append(Coming(version, policy_sentences(then), windows, events))
    return Rules(policy, policy_sentences(policy.in_force.policy), coming, holds)


def _next(store: Store, tenant: str, now_us: int) -> Next:
    found = explain_tenant(store.database, tenant, now_us=now_us, known_targets=store.targets.names)
    blockers = [blocker for blocker in found.blocked_by if blocker.kind is not BlockerKind.HOLD]
    return Next(found.next, blockers[:_BLOCKERS_MAX], max(0, len(blockers) - _BLOCKERS_MAX))


def _months(store: Store, tenant: str, found: TimeMap, now_us: int) -> list[Month]:
    """What was recorded in each of the log's last months, whatever has become of it."""
    if found.last_us is None:
        return []
    newest = _month_number(min(found.last_us - 1, now_us))
    year, month = divmod(newest - (_MONTHS - 1), 12)
    start_us = to_us(datetime(max(year, 1), month + 1, 1, tzinfo=UTC))
    shown = time_map(store.database, tenant, now_us=now_us, from_us_=start_us, span="month")
    joined: dict[int, MapPart] = {}
    for part in shown.parts:
        number = _month_number(part.slot_us)
        known = joined.get(number)
        joined[number] = part if known is None else known.joined(part)
    most = max((part.events for part in joined.values()), default=0)
    return [
        Month(part, number - newest + _MONTHS - 1, part.events * 100 / max(most, 1))
        for number, part in joined.items()
        if newest - _MONTHS < number <= newest
    ]


def _month_number(us: int) -> int:
    moment = from_us(us)
    return moment.year * 12 + moment.month - 1
