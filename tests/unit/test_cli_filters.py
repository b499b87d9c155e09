"""The options that say which events: all become conditions, and every command that has one has the same."""

from __future__ import annotations

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from eventstore.cli.filters import with_filter
from eventstore.cli.main import app
from eventstore.clock import parse_time_us
from eventstore.errors import InputError
from eventstore.model.query import FEED_FILTERS, EventFilter

TIMES = ("recorded_from", "recorded_to", "occurred_from", "occurred_to")
OPTIONS = {*FEED_FILTERS, "text", *TIMES, "seq_from", "seq_to"}


def asked(*arguments: str, only: tuple[str, ...] = ()) -> tuple[str, EventFilter, bool]:
    """What a command with the options gets."""
    got: list[tuple[str, EventFilter, bool]] = []
    program = typer.Typer()

    @program.command()
    @with_filter(*only)
    def command(tenant: str, *, wanted: EventFilter, flag: bool = False) -> None:
        got.append((tenant, wanted, flag))

    CliRunner().invoke(program, ["acme", *arguments], catch_exceptions=False, standalone_mode=False)
    return got[0]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_every_option_becomes_its_condition() -> None:
    texts = {name: f"a {name}" for name in (*FEED_FILTERS, "text")}
    times = {name: f"2026-01-0{day}T00:00:00Z" for day, name in enumerate(TIMES, 1)}
    given = {**texts, **times, "seq_from": "5", "seq_to": "6"}
    assert given.keys() == OPTIONS
    words = [word for name, value in given.items() for word in (option(name), value)]
    expected = EventFilter(
        **texts, **{f"{name}_us": parse_time_us(text) for name, text in times.items()}, seq_from=5, seq_to=6
    )
    assert asked(*words, "--flag") == ("acme", expected, True)
    assert asked() == ("acme", EventFilter(), False)
    assert asked("--actor", "anna", only=FEED_FILTERS) == ("acme", EventFilter(actor="anna"), False)


def test_what_is_no_time_is_refused_before_the_command_begins() -> None:
    with pytest.raises(InputError, match="'noon' is not a time"):
        asked("--occurred-to", "noon")


@pytest.mark.parametrize(
    ("command", "names"),
    [("events", OPTIONS), ("export", OPTIONS), ("bundle", OPTIONS), ("tail", set(FEED_FILTERS))],
)
def test_the_commands_have_the_same_options(command: str, names: set[str]) -> None:
    def shown(parameters: list[typer.core.TyperOption]) -> dict[str, tuple[list[str], str | None, bool]]:
        return {p.name: (p.opts, p.help, p.required) for p in parameters if p.name in OPTIONS}

    @with_filter()
    def reference(wanted: EventFilter) -> None: ...

    program = typer.Typer()
    program.command()(reference)
    every = shown(typer.main.get_command(program).params)
    mine = shown(typer.main.get_command(app).commands[command].load().params)
    assert mine == {name: every[name] for name in names}
