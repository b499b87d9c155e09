"""Commands whose modules are loaded when they are asked for.

To list all commands none is loaded: what the store is made of takes ten times as long to load as the command
line itself.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["LaterCommand", "add_command"]


class LaterCommand(TyperCommand):
    """Stands for a command, or a group of them, in the list of all, until it is asked for."""

    module: str

    def load(self) -> Any:
        """The command itself."""
        apart = typer.Typer()
        importlib.import_module(self.module).register(apart)
        return typer.main.get_group(apart).commands[self.name or ""]

    def make_context(self, *args: Any, **options: Any) -> Any:
        """What the command itself makes of its arguments."""
        return self.load().make_context(*args, **options)


def add_command(app: typer.Typer, name: str, module: str, line: str) -> None:
    """Add the command (or group) that the module's `register` adds under this name. `line` is the first
    paragraph of its help, in the list of all."""
    kind = type("_" + name, (LaterCommand,), {"module": module})
    app.command(name, cls=kind, help=line)(_nothing)


def _nothing() -> None:
    """Never run: `LaterCommand` gives way to the command itself."""
