"""The form of a legal hold: what was typed, what it means, and what is wrong with it, by field."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from eventstore.clock import parse_time_us
from eventstore.errors import InputError
from eventstore.governance.holds import NAME_CHARACTERS_MAX
from eventstore.governance.record import required_text
from eventstore.model.event import TEXT_LIMITS
from eventstore.model.hold import ENTITIES_MAX, HoldScope

__all__ = ["COVERS", "HoldForm", "empty_form", "read_form"]

FIELDS = ("name", "reason", "covers", "entities", "from", "to")
COVERS = ("everything", "entities")


@dataclass(slots=True)
class HoldForm:
    """A hold that is being asked for. `typed` has each of `FIELDS` as it was typed; `scope` is None where
    `problems` names a field of it. `case` is the id that the hold will have: a form that comes twice places
    one hold."""

    typed: dict[str, str]
    case: uuid.UUID
    name: str = ""
    reason: str = ""
    scope: HoldScope | None = None
    problems: dict[str, InputError] = field(default_factory=dict)


def empty_form(given: Mapping[str, str]) -> HoldForm:
    """A form to begin with; `given` fills some of its fields."""
    typed = {name: given.get(name, "") for name in FIELDS}
    typed["covers"] = typed["covers"] or ("entities" if typed["entities"] else "")
    return HoldForm(typed, uuid.uuid4())


def read_form(fields: Mapping[str, str]) -> HoldForm:
    """What a form says. Every field is looked at, so that all that is wrong is said at once."""
    found = HoldForm({name: fields.get(name, "") for name in FIELDS}, _case(fields.get("case")))
    typed = found.typed
    try:
        found.name = required_text("the case's name", typed["name"], most=NAME_CHARACTERS_MAX)
    except InputError as e:
        found.problems["name"] = e
    try:
        found.reason = required_text("the reason", typed["reason"])
    except InputError as e:
        found.problems["reason"] = e
    times: dict[str, int | None] = {"from": None, "to": None}
    for name in times:
        try:
            times[name] = parse_time_us(typed[name]) if typed[name].strip() else None
        except InputError as e:
            found.problems[name] = e
    entities = _entities(found)
    if found.problems.keys() & {"covers", "entities", "from", "to"}:
        return found
    try:
        found.scope = HoldScope(entities, times["from"], times["to"])
    except InputError as e:
        found.problems["entities" if len(entities) > ENTITIES_MAX else "to"] = e
    return found


def _case(text: str | None) -> uuid.UUID:
    """Raises:
    InputError: the form was altered.
    """
    try:
        return uuid.uuid4() if not text else uuid.UUID(text)
    except ValueError as e:
        raise InputError("the form is not as it was sent", hint="begin again") from e


def _entities(found: HoldForm) -> tuple[tuple[str, str], ...]:
    """The entities that are named, a line each, without repetitions."""
    covers, lines = found.typed["covers"], found.typed["entities"].splitlines()
    lines = [line.strip() for line in lines]
    if covers not in COVERS:
        found.problems["covers"] = InputError(
            "nothing is chosen", hint="say whether everything is held, or some entities"
        )
        return ()
    if covers == "everything":
        if any(lines):
            found.problems["covers"] = InputError(
                "everything is chosen, but entities are named", hint="choose some entities, or name none"
            )
        return ()
    entities: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, 1):
        kind, slash, name = line.partition("/")
        if not line:
            continue
        try:
            if not slash:
                raise InputError(f"{line[:80]!r} names no entity", hint="write TYPE/ID, e.g. contract/c-1")
            kind = required_text("the type", kind, most=TEXT_LIMITS["entity_type"])
            name = required_text("the id", name, most=TEXT_LIMITS["entity_id"])
        except InputError as e:
            found.problems["entities"] = InputError(f"line {number}: {e.message}", hint=e.hint)
            return ()
        entities[kind, name] = None
    if not entities:
        found.problems["entities"] = InputError("no entity is named", hint="write TYPE/ID, one a line")
    return tuple(entities)
