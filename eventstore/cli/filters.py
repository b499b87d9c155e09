"""Which events: the options of every command that asks, declared once, and the conditions that they make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from eventstore.clock import parse_time_us
from eventstore.model.query import EventFilter

__all__ = ["with_filter"]

_Exactly = Annotated[str | None, typer.Option(help="Exactly this.")]
_Text = Annotated[str | None, typer.Option(help="Occurs in the old or the new value.")]
_From = Annotated[str | None, typer.Option(help="A time, inclusive.")]
_To = Annotated[str | None, typer.Option(help="A time, exclusive.")]
_Seq = Annotated[int | None, typer.Option(help="Inclusive.")]


def _filter_of(
    *,
    entity_type: _Exactly = None,
    entity_id: _Exactly = None,
    actor: _Exactly = None,
    action: _Exactly = None,
    field: _Exactly = None,
    source: _Exactly = None,
    workspace_id: _Exactly = None,
    text: _Text = None,
    recorded_from: _From = None,
    recorded_to: _To = None,
    occurred_from: _From = None,
    occurred_to: _To = None,
    seq_from: _Seq = None,
    seq_to: _Seq = None,
) -> EventFilter:
    """The conditions that the options name. Its parameters are the options.

    Raises:
        InputError: a time is none, or no event can have a text.
    """

    def time_us(text: str | None) -> int | None:
        return None if text is None else parse_time_us(text)

    return EventFilter(
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        action=action,
        field=field,
        source=source,
        workspace_id=workspace_id,
        recorded_from_us=time_us(recorded_from),
        recorded_to_us=time_us(recorded_to),
        occurred_from_us=time_us(occurred_from),
        occurred_to_us=time_us(occurred_to),
        seq_from=seq_from,
        seq_to=seq_to,
        text=text,
    )


_OPTIONS = inspect.signature(_filter_of, eval_str=True).parameters


def with_filter(*only: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options in the place of its parameter `wanted`, which gets the filter. `only`: those
    of these names; all, unless there are any."""
    options = {name: option for name, option in _OPTIONS.items() if not only or name in only}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def begin(**given: Any) -> None:
            wanted = _filter_of(**{name: given.pop(name) for name in options})
            command(wanted=wanted, **given)

        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            parameters += options.values() if name == "wanted" else [parameter]
        # What typer looks at. It passes everything by name, so the order is that of the help alone.
        begin.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        return begin

    return decorate
