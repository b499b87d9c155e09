"""An entity's whole life, and its state as of any moment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request, Response

from eventstore.access.reads import Read, ReadAction
from eventstore.api.parameters import time_us
from eventstore.clock import to_iso
from eventstore.console.links import entity_address
from eventstore.console.steps import lacks_old_values, steps_of
from eventstore.console.values import Readable, readable
from eventstore.console.view import is_fragment, render
from eventstore.console.visit import Visit, visit
from eventstore.model.access import Permission
from eventstore.model.query import EventFilter, Order, decode_cursor
from eventstore.query.as_of import EntityState, Origin, fold_state
from eventstore.query.life import Depth, Life, Touch, entity_life, entity_page, merge_coverage, state_at
from eventstore.query.places import places_of
from eventstore.query.reader import Page

__all__ = ["router"]

router = APIRouter()

_ROUTE = "GET /console/t/{tenant}/entity"
STEPS_MAX = 50
_LOOK_BACK = 50
_FEW_STEPS = 10
# Of a state: fields that are shown, and characters of each value.
_FIELDS_MAX = 200
_CHARACTERS_MAX = 240
_LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a page is asked for. `order` is that of the timeline; `after` the seq that it goes on after."""

    tenant: str
    entity_type: str | None
    entity_id: str
    field: str | None
    order: Order
    as_of_us: int | None
    after: int | None
    depth: Depth

    def address(self, entity_type: str | None, **changed: object) -> str:
        """The page with other parameters; where the timeline begins, and how much of its life is read, are
        given up unless they are among them."""
        given: dict[str, object] = {
            "field": self.field,
            "order": None if self.order is Order.DESC else self.order.value,
            "as_of": None if self.as_of_us is None else to_iso(self.as_of_us),
            **changed,
        }
        return entity_address(self.tenant, entity_type, self.entity_id, **given)

    def wanted(self, entity_type: str) -> EventFilter:
        return EventFilter(entity_type=entity_type, entity_id=self.entity_id, field=self.field)


@dataclass(frozen=True, slots=True)
class _FieldNow:
    """A field of the state, and the event that set it."""

    name: str
    value: Readable
    origin: Origin


@router.get("/t/{tenant}/entity")
def show(
    request: Request,
    me: Annotated[Visit, visit(Permission.READ)],
    tenant: str,
    entity_type: str = "",
    entity_id: str = "",
    field: str = "",
    order: Order = Order.DESC,
    as_of: Annotated[str, Query(description="Now, unless given")] = "",
    cursor: str = "",
    life: Annotated[Depth, Query(description="How far back it is read")] = Depth.GLANCE,
) -> Response:
    """Its timeline, its state, and who touched it: of a long life the timeline alone unless `life` says more.
    Asked for by htmx with a cursor: the steps that follow; else what its events say together."""
    asked = _Asked(
        tenant,
        entity_type or None,
        entity_id,
        field or None,
        order,
        _moment(as_of),
        decode_cursor(cursor) if cursor else None,
        life,
    )
    if not entity_id:
        return render(request, me, "entity.html", asked=asked, life=None)
    part = is_fragment(request) and asked.entity_type is not None
    query: dict[str, object] = {name: value for name, value in request.query_params.items() if value}
    with me.read(tenant, _ROUTE, query, action=ReadAction.READ) as read:
        if part and asked.after is not None:
            return render(request, me, "_entity_steps.html", **_timeline(me, read, asked, None))
        found = entity_life(read.reader, tenant, entity_id, entity_type=asked.entity_type, depth=asked.depth)
        context: dict[str, Any] = {"asked": asked, "life": found, "together": None, "part": part}
        if found.entity_type is not None and found.events.num_rows:
            if found.complete or asked.depth is not Depth.GLANCE:
                context["together"] = _together(read, asked, found)
            if not part:
                context |= _timeline(me, read, asked, found)
                newest = fold_state(found.entity_type, entity_id, [found.events.slice(0, 1)])
                context["ended"] = newest.ended is not None and asked.as_of_us is None
        read.covers(found.coverage, events=found.events.num_rows)
        return render(request, me, "_entity_together.html" if part else "entity.html", **context)


def _moment(text: str) -> int | None:
    """The moment of a control for date and time, which has no zone and means UTC, or of a full time.

    Raises:
        InputError: it is no time.
    """
    if not text:
        return None
    return time_us("as_of", text + "Z" if _LOCAL_TIME.fullmatch(text) else text)


# --- the timeline -------------------------------------------------------------------------------------


def _timeline(me: Visit, read: Read, asked: _Asked, life: Life | None) -> dict[str, Any]:
    """A page of steps. `life`: what is known of the entity already, so that it need not be read again."""
    entity_type = asked.entity_type or (life.entity_type if life is not None else None)
    assert entity_type is not None
    page = None if life is None else _from_life(asked, life)
    if page is None:
        page = entity_page(
            read.reader,
            asked.tenant,
            asked.wanted(entity_type),
            order=asked.order,
            after=asked.after,
            limit=STEPS_MAX,
        )
        if life is not None:
            merge_coverage(life.coverage, page.coverage)
        else:
            read.covers(page.coverage, events=page.events.num_rows)
    recorded_us = page.events.column("recorded_at").cast(pa.int64()).to_pylist()
    places = places_of(me.store.database, asked.tenant, recorded_us)
    steps = steps_of(page.events, places, _known(read, asked, entity_type, page, life))
    return {
        "asked": asked,
        "fields": [] if life is None else life.fields()[:_FIELDS_MAX],
        "steps": steps,
        "entity_type": entity_type,
        "more": None if page.next_after is None else asked.address(entity_type, cursor=page.next_after),
        "looked_to": page.next_after,
        # Of a field that is rarely changed, a page has looked at a few events only.
        "by_itself": asked.field is not None and life is not None and len(steps) < _FEW_STEPS,
    }


def _from_life(asked: _Asked, life: Life) -> Page | None:
    """The page out of what has been read already; None: it is not in there."""
    if not life.complete and (asked.order is Order.ASC or asked.after is not None):
        return None
    events = life.events
    if asked.order is Order.ASC:
        events = events.take(pa.array(range(events.num_rows - 1, -1, -1), pa.int64()))
    seqs = events.column("seq").to_numpy()
    chosen = np.ones(len(seqs), np.bool_)
    if asked.after is not None:
        chosen &= seqs > asked.after if asked.order is Order.ASC else seqs < asked.after
    if asked.field is not None:
        chosen &= pc.equal(events.column("field"), asked.field).to_numpy()
    events = events.filter(pa.array(chosen))
    after = None if life.complete else int(seqs[-1])
    if events.num_rows > STEPS_MAX:
        after = events.column("seq")[STEPS_MAX - 1].as_py()
        events = events.slice(0, STEPS_MAX)
    return Page(events, after, life.coverage)


def _known(read: Read, asked: _Asked, entity_type: str, page: Page, life: Life | None) -> pa.Table | None:
    """The events from which old values can be told that those of a page do not say: theirs and some before,
    without a gap. None: there is none, or what lies between is not at hand."""
    if not lacks_old_values(page.events) or page.coverage.unreadable:
        return None
    if life is not None and life.complete:
        return life.events
    if asked.field is not None:
        return None
    wanted = EventFilter(entity_type=entity_type, entity_id=asked.entity_id)
    lowest = min(page.events.column("seq").to_pylist())
    before = read.reader.page(
        asked.tenant, wanted, order=Order.DESC, after=lowest, limit=_LOOK_BACK, partial=True
    )
    return None if before.coverage.unreadable else pa.concat_tables([page.events, before.events])


# --- what the events say together ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Together:
    """When an entity was first seen and by whom it was touched, in which tiers it lies, and its state."""

    first_seq: int
    first_us: int
    touches: list[Touch]
    tiers: dict[str, int]
    state: EntityState
    # Whether all events that count for the state were looked at.
    state_complete: bool
    fields: list[_FieldNow]
    fields_left_out: int


def _together(read: Read, asked: _Asked, life: Life) -> _Together:
    state, complete = state_at(read.reader, asked.tenant, life, asked.as_of_us, depth=asked.depth)
    first = life.events.slice(life.events.num_rows - 1)
    if not life.complete:
        wanted = EventFilter(entity_type=life.entity_type, entity_id=life.entity_id)
        oldest = read.reader.page(asked.tenant, wanted, order=Order.ASC, limit=1, partial=True)
        merge_coverage(life.coverage, oldest.coverage)
        first = oldest.events if oldest.events.num_rows else first
    return _Together(
        first.column("seq")[0].as_py(),
        first.column("recorded_at").cast(pa.int64())[0].as_py(),
        life.touches(),
        life.tiers(),
        state,
        complete,
        [
            _FieldNow(name, readable(setting.value or "null", _CHARACTERS_MAX), setting.origin)
            for name, setting in list(state.fields.items())[:_FIELDS_MAX]
        ],
        max(0, len(state.fields) - _FIELDS_MAX),
    )
