"""Search: events of both tiers, newest first, under a histogram of time.

The page answers with what it finds within a moment, and goes on in parts: rows by `part=rows`, counts by
`part=chart`. Each part is given a time, reads at least a step of the log, and says how far it has come. Parts
go on by themselves so often, then when they are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import RedirectResponse

from eventstore.access.reads import Read
from eventstore.clock import US_PER_S, SystemClock
from eventstore.console.asked import Asked, asked_of, conditions, moment
from eventstore.console.chart import Chart, Counting, chart_of
from eventstore.console.snippet import Snippet, snippet
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import Visit, visit
from eventstore.errors import InputError
from eventstore.model.access import Permission
from eventstore.query.histogram import count_by_time, extent, recorded_by
from eventstore.query.search import Origin, Searched, places, search, windows_between

__all__ = ["router"]

router = APIRouter()

# So many rows in one page of the browser's; what is older is a page of its own.
SHOWN_MAX = 500
# How often a part goes on by itself.
HOPS_MAX = 20
# What a chart reads of the archive by itself, in bytes: whoever wants more is told what it costs.
CHART_BYTES_MAX = 256 * 2**20
# What the page gives itself for its first rows, and for its chart; then each part. A step of the log more
# may follow.
_FIRST_S = 0.1
_CHART_S = 0.05
_PART_S = 0.5
_ROUTE = "GET /console/t/{tenant}/search"
_PARTS = ("rows", "chart")
_ALSO = ("after", "part", "so_far", "bars", "chart")
_QUICK = (("24 hours", 1), ("7 days", 7), ("90 days", 90))
_DAY_US = 86_400 * US_PER_S
_SO_FAR = re.compile(r"[0-9]{1,18}(?:-[0-9]{1,18}){3}")

Typed = Annotated[dict[str, str], Depends(conditions)]


@dataclass(frozen=True, slots=True)
class SoFar:
    """What earlier parts of a search have covered: the seq it began at, the bytes read of the archive, the
    rows that are shown, and how often it went on by itself since somebody asked."""

    top: int
    archive_bytes: int
    shown: int
    hops: int

    def __str__(self) -> str:
        return f"{self.top}-{self.archive_bytes}-{self.shown}-{self.hops}"

    @staticmethod
    def parse(text: str) -> SoFar:
        """Raises InputError: it is none."""
        if not _SO_FAR.fullmatch(text):
            raise InputError("so_far: is not of a search", hint="search again")
        return SoFar(*map(int, text.split("-")))


@dataclass(frozen=True, slots=True)
class Row:
    """An event as a row shows it. Times in µs; `window` as text, and None where it is not known."""

    seq: int
    recorded_us: int
    entity_type: str
    entity_id: str
    action: str
    field: str
    old: Snippet | None
    new: Snippet | None
    actor: str
    source: str
    target: str | None
    window: str | None
    entity_address: str
    actor_address: str


@dataclass(frozen=True, slots=True)
class More:
    """How a search goes on. `address` None: it is over. `by_itself`: without being asked; `in_place`: in the
    page that is shown. `back_to_us` is the time down to which all was searched."""

    address: str | None
    fragment: str
    by_itself: bool
    in_place: bool
    is_full: bool
    back_to_us: int | None
    top: int | None
    low: int | None
    hot: int
    archived: int
    windows: int
    archive_bytes: int
    shown: int


@router.get("/t/{tenant}/search")
def show(
    request: Request,
    tenant: str,
    me: Annotated[Visit, visit(Permission.READ)],
    typed: Typed,
    after: str = "",
    part: str = "",
    so_far: str = "",
    bars: str = "",
    chart: str = "",
) -> Response:
    """The page, or a part of it: `rows` from `after` on, or the `chart`."""
    base = f"/console/t/{tenant}/search"
    asked = asked_of(request, typed, _ALSO)
    if part and part not in _PARTS:
        raise InputError("part: is none of this page", hint="search again")
    if is_fragment(request) and part:
        if asked.wanted is None:
            raise InputError(next(iter(asked.problems.values())))
        if part == "chart":
            return _chart_part(request, me, tenant, asked, base, bars)
        return _rows_part(request, me, tenant, asked, base, _seq(after), so_far)
    if asked.wanted is not None:
        # Without empty conditions and parts, in one order. How characters are escaped does not matter.
        canonical = asked.address(after=after or None, chart=chart or None)
        if request.query_params.multi_items() != parse_qsl(canonical):
            return RedirectResponse(f"{base}?{canonical}" if canonical else base, 303)
    return _page(request, me, tenant, asked, base, _seq(after), with_chart=bool(chart))


def _seq(after: str) -> int | None:
    if not after:
        return None
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise InputError("after: is no seq", hint="search again")
    return int(after)


# --- the page and its parts ---------------------------------------------------------------------------


def _page(
    request: Request,
    me: Visit,
    tenant: str,
    asked: Asked,
    base: str,
    after: int | None,
    *,
    with_chart: bool,
) -> Response:
    context: dict[str, Any] = {
        "asked": asked,
        "base": base,
        "after": after,
        "quick": _quick(asked, base),
        "exports": f"/console/t/{tenant}/exports?{asked.address(limit=None)}"
        if me.may(Permission.EXPORT, tenant)
        else None,
    }
    if asked.wanted is None:
        return render(request, me, "search.html", 400, **context, chart=None, chart_address=None)
    with me.read(tenant, _ROUTE, _logged(asked, after)) as read:
        found = search(read.reader, tenant, asked.wanted, after=after, limit=asked.rows, budget_s=_FIRST_S)
        drawn = None
        if asked.is_by_time or with_chart:
            budget_s = _PART_S if with_chart else _CHART_S
            drawn = _count(me, read, tenant, asked, base, None, budget_s)
        read.covers(found.coverage, events=found.events.num_rows)
        rows = _rows(me, tenant, asked, base, found)
        more = _more(me, tenant, asked, base, found, None)
    return render(
        request,
        me,
        "search.html",
        **context,
        **_shown(rows, more, found),
        chart=drawn,
        chart_address=None if drawn is not None else f"{base}?{asked.address(part='chart')}",
        chart_page=f"{base}?{asked.address(after=after, chart=1)}",
        **_chart_next(asked, base, drawn),
    )


def _rows_part(
    request: Request,
    me: Visit,
    tenant: str,
    asked: Asked,
    base: str,
    after: int | None,
    so_far: str,
) -> Response:
    before = SoFar.parse(so_far) if so_far else None
    assert asked.wanted is not None
    with me.read(tenant, _ROUTE, _logged(asked, after, part="rows")) as read:
        found = search(read.reader, tenant, asked.wanted, after=after, limit=asked.rows, budget_s=_PART_S)
        read.covers(found.coverage, events=found.events.num_rows)
        rows = _rows(me, tenant, asked, base, found)
        more = _more(me, tenant, asked, base, found, before)
    return render(request, me, "_search_rows.html", base=base, **_shown(rows, more, found))


def _chart_part(request: Request, me: Visit, tenant: str, asked: Asked, base: str, bars: str) -> Response:
    before = Counting.parse(bars) if bars else None
    with me.read(tenant, _ROUTE, _logged(asked, None, part="chart")) as read:
        drawn = _count(me, read, tenant, asked, base, before, _PART_S)
    return render(request, me, "_search_chart.html", chart=drawn, **_chart_next(asked, base, drawn))


def _count(
    me: Visit,
    read: Read,
    tenant: str,
    asked: Asked,
    base: str,
    before: Counting | None,
    budget_s: float,
) -> Chart | None:
    """The chart, or what could be counted of it in time. None: there is nothing to count."""
    assert asked.wanted is not None
    tiers = me.store.tiers
    if before is None:
        ends = extent(tiers, tenant, asked.wanted)
        if ends is None:
            return None
        before = Counting(0, 0, 0, *ends, counts=())
    found = count_by_time(
        tiers,
        tenant,
        asked.wanted,
        before.edges_us,
        after=before.after or None,
        counts=before.counts or None,
        budget_s=budget_s,
        budget_bytes=max(0, CHART_BYTES_MAX - before.archive_bytes),
        meter=read.meter,
    )
    read.covers(found.coverage, events=0)
    return chart_of(found, asked, base, before)


def _chart_next(asked: Asked, base: str, drawn: Chart | None) -> dict[str, Any]:
    """How a chart goes on, by itself or when somebody asks for it; that begins anew, and costs as much."""
    if drawn is None or drawn.next is None:
        return {"chart_next": None, "chart_by_itself": False, "chart_cost_bytes": 0}
    following = drawn.next
    is_dear = following.archive_bytes >= CHART_BYTES_MAX and drawn.left_bytes > 0
    by_itself = following.hops <= HOPS_MAX and not is_dear
    if not by_itself:
        following = replace(following, hops=0, archive_bytes=0)
    return {
        "chart_next": f"{base}?{asked.address(part='chart', bars=str(following))}",
        "chart_by_itself": by_itself,
        "chart_cost_bytes": min(drawn.left_bytes, CHART_BYTES_MAX),
    }


def _logged(asked: Asked, after: int | None, **more: str) -> dict[str, object]:
    """A search as the log of reads has it."""
    return {**asked.typed, **({} if after is None else {"after": after}), **more}


def _quick(asked: Asked, base: str) -> list[tuple[str, str]]:
    """Links to the last days, by the minute: so that the same link is not another one a moment later."""
    now_us = SystemClock().now_us() // (60 * US_PER_S) * 60 * US_PER_S
    found = [
        (name, asked.address(recorded_from=moment(now_us - days * _DAY_US), recorded_to=None))
        for name, days in _QUICK
    ]
    found.append(("All", asked.address(recorded_from=None, recorded_to=None)))
    return [(name, f"{base}?{query}" if query else base) for name, query in found]


# --- what is shown ------------------------------------------------------------------------------------


def _shown(rows: Sequence[Row], more: More, found: Searched) -> dict[str, Any]:
    return {
        "rows": rows,
        "more": more,
        "expired": sorted(found.coverage.expired, reverse=True),
        "unreadable": found.coverage.unreadable,
    }


def _rows(me: Visit, tenant: str, asked: Asked, base: str, found: Searched) -> list[Row]:
    origins = places(me.store.database, me.store.tiers, tenant, found)
    events = found.events
    times = events.column("recorded_at").cast("int64").to_pylist()
    return [
        _row(values, at_us, origin, tenant, asked, base)
        for values, at_us, origin in zip(
            events.drop_columns(["recorded_at", "occurred_at"]).to_pylist(), times, origins, strict=True
        )
    ]


def _row(values: Mapping[str, Any], at_us: int, origin: Origin, tenant: str, asked: Asked, base: str) -> Row:
    text = asked.typed.get("text")
    entity = Asked({name: values[name] for name in ("entity_type", "entity_id")}, None).address()
    window = None if origin.window is None else f"{moment(origin.window[0])} – {moment(origin.window[1])}"
    return Row(
        seq=values["seq"],
        recorded_us=at_us,
        entity_type=values["entity_type"],
        entity_id=values["entity_id"],
        action=values["action"],
        field=values["field"],
        old=snippet(values["old_value"], text),
        new=snippet(values["new_value"], text),
        actor=values["actor"],
        source=values["source"],
        target=origin.target,
        window=window,
        entity_address=f"/console/t/{tenant}/entity?{entity}",
        actor_address=f"{base}?{asked.address(actor=values['actor'])}",
    )


def _more(me: Visit, tenant: str, asked: Asked, base: str, found: Searched, before: SoFar | None) -> More:
    tiers = me.store.tiers
    top = before.top if before is not None else found.top
    hops = 0 if before is None else before.hops
    scanned = found.coverage.archive_bytes + (0 if before is None else before.archive_bytes)
    shown = found.events.num_rows + (0 if before is None else before.shown)
    windows = hot = archived = 0
    low = found.low
    if top is not None and low is not None:
        through = tiers.state(tenant).archived_through
        windows = windows_between(tiers, tenant, low, top)
        hot = max(0, top - max(low - 1, through))
        archived = top - low + 1 - hot
    back_to_us = None
    if found.next_after is not None:
        back_to_us = recorded_by(tiers, tenant, found.next_after - 1)
    by_itself = not found.is_full and hops < HOPS_MAX
    following = SoFar(top or 0, scanned, shown, hops + 1 if by_itself else 0)
    address = None if found.next_after is None else f"{base}?{asked.address(after=found.next_after)}"
    fragment = asked.address(after=found.next_after, part="rows", so_far=str(following))
    return More(
        address=address,
        fragment=f"{base}?{fragment}",
        by_itself=by_itself,
        in_place=shown < SHOWN_MAX,
        is_full=found.is_full,
        back_to_us=back_to_us,
        top=top,
        low=low,
        hot=hot,
        archived=archived,
        windows=windows,
        archive_bytes=scanned,
        shown=shown,
    )
