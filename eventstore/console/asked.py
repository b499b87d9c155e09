"""What a person asks of a log: the conditions as typed, what is wrong with them, and the address that asks
the same again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from fastapi import Request

from eventstore.clock import US_PER_S, parse_time_us, to_iso
from eventstore.errors import InputError
from eventstore.model.query import EventFilter

__all__ = ["CONDITIONS", "ROWS", "ROWS_MAX", "Asked", "asked_of", "conditions", "moment"]

_TEXTS = ("text", "entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")
_TIMES = ("recorded_from", "recorded_to", "occurred_from", "occurred_to")
_SEQS = ("seq_from", "seq_to")
_DETAILS = ("source", "workspace_id", "occurred_from", "occurred_to", *_SEQS)
# In the order in which addresses have them.
CONDITIONS = (*_TEXTS, *_TIMES, *_SEQS)
# How many rows a page has: no condition, but a part of the address.
_LIMIT = "limit"
ROWS = 50
ROWS_MAX = 100
_RANGES = (("recorded_from", "recorded_to"), ("occurred_from", "occurred_to"), _SEQS)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search as it was asked for: `typed` has what is not empty, by the condition's name, `problems` what
    is wrong with it, by name, too ('' is of none). `wanted` is None where there are any."""

    typed: Mapping[str, str]
    wanted: EventFilter | None
    problems: Mapping[str, str] = field(default_factory=dict)

    def address(self, **changed: str | int | None) -> str:
        """The query of an address that asks this, with some conditions changed (None: without it)."""
        values = {**self.typed, **{name: value for name, value in changed.items() if value is not None}}
        left_out = {name for name, value in changed.items() if value is None}
        known = [(name, values.pop(name)) for name in CONDITIONS if name in values and name not in left_out]
        more = [(name, value) for name, value in values.items() if name not in left_out]
        return urlencode([*known, *more])

    @property
    def is_detailed(self) -> bool:
        """Whether conditions are asked for, or wrong, that the page folds away."""
        return not set(self.typed).isdisjoint(_DETAILS)

    @property
    def is_by_time(self) -> bool:
        """Whether nothing but recorded time and seq is asked for: what the catalog answers."""
        return not set(self.typed) - {"recorded_from", "recorded_to", *_SEQS, _LIMIT}

    @property
    def rows(self) -> int:
        """How many rows a page is to have."""
        return int(self.typed.get(_LIMIT, ROWS))


def conditions(
    text: str = "",
    entity_type: str = "",
    entity_id: str = "",
    actor: str = "",
    action: str = "",
    field: str = "",
    source: str = "",
    workspace_id: str = "",
    recorded_from: str = "",
    recorded_to: str = "",
    occurred_from: str = "",
    occurred_to: str = "",
    seq_from: str = "",
    seq_to: str = "",
    limit: str = "",
) -> dict[str, str]:
    """The conditions of an address, for FastAPI to know; empty ones are none."""
    given = dict(locals())
    return {name: given[name] for name in (*CONDITIONS, _LIMIT) if given[name].strip()}


def asked_of(request: Request, typed: Mapping[str, str], also: tuple[str, ...] = ()) -> Asked:
    """Understand what was typed. `also` are parameters that an address may have besides."""
    problems: dict[str, str] = {}
    values: dict[str, object] = {}
    for name, value in typed.items():
        try:
            values |= _value(name, value)
        except InputError as e:
            said = e.message.removeprefix(f"{name}: ")
            problems[name] = f"{said}; {e.hint}" if e.hint else said
    for start, end in _RANGES:
        low, high = (values.get(f"{name}_us", values.get(name)) for name in (start, end))
        if isinstance(low, int) and isinstance(high, int) and low > high:
            problems[end] = "is before the beginning"
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = sorted(set(given) - {*CONDITIONS, _LIMIT, *also})
    if unknown:
        problems[""] = f'There is no condition "{unknown[0][:100]}", so nothing was searched.'
    elif len(set(given)) < len(given):
        problems[""] = "A condition is given more than once."
    if problems:
        return Asked(typed, None, problems)
    return Asked(typed, EventFilter(**values))  # type: ignore[arg-type]


def _value(name: str, typed: str) -> dict[str, object]:
    """The field of `EventFilter` that a condition is, by its name there.

    Raises:
        InputError
    """
    if "\ufffd" in typed:
        raise InputError("is not UTF-8")
    if name in _TIMES:
        # A '+' of an offset that was sent unescaped arrives as a blank.
        text = typed.strip()
        return {f"{name}_us": parse_time_us(text.replace(" ", "+") if "T" in text else text)}
    if name == _LIMIT:
        if not typed.isascii() or not typed.isdigit() or not 1 <= int(typed[:9]) <= ROWS_MAX:
            raise InputError("is no number of rows", hint=f"give 1 to {ROWS_MAX}")
        return {}
    if name in _SEQS:
        text = typed.strip().replace(",", "")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InputError("is no seq", hint="seqs are whole numbers")
        return {name: int(text)}
    EventFilter(**{name: typed})  # type: ignore[arg-type]
    return {name: typed}


def moment(us: int) -> str:
    """A time as short as it can be written exactly: a date for midnight UTC, else RFC 3339."""
    text = to_iso(us)
    if us % (86_400 * US_PER_S) == 0:
        return text[:10]
    return text if us % US_PER_S else text[:19] + "Z"
