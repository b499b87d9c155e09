"""Commands are loaded when they are asked for, and what they work with when they begin.

To list all commands none is loaded. To describe one, its own module is; what that imports within
`with later():` are names which are bound when a command begins. So help does not wait for the parts of the
store, which take ten times as long to load as the command line itself.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

__all__ = ["Commands", "LaterCommand", "add_command", "later"]

_Namespace = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Whether a module is being loaded for what it says of its commands; otherwise nothing is put off.
_describing = False
# The modules with names that are not bound yet.
_waiting: list[_Namespace] = []


class _Module:
    """A module that is not imported yet; its attributes are names of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> _Module:
        return _Module(f"{self._path}:{name}")

    def _resolve(self) -> object:
        path, _, name = self._path.partition(":")
        module = importlib.import_module(path)
        if not name:
            return module
        return getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{path}.{name}")


@contextmanager
def later() -> Iterator[None]:
    """What the block imports into its module is bound when a command begins, if the module is being loaded
    to describe its commands; else at once. Nothing of it may be used before: in a command's own parameters,
    a default, a constant."""
    if not _describing:
        yield
        return
    # The frames: this generator's, contextlib's __enter__, and the module's.
    namespace = sys._getframe(2).f_globals
    real = builtins.__import__

    def note(
        name: str,
        given: Mapping[str, object] | None = None,
        own: Mapping[str, object] | None = None,
        names: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        loaded = sys.modules.get(name)
        if given is not namespace or (loaded and all(hasattr(loaded, one) for one in names or ())):
            return real(name, given, own, names or (), level)
        # `import a.b as c` asks for a, and then for b of it.
        return _Module(name if names else name.partition(".")[0])

    builtins.__import__ = note  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = real
    _waiting.append(namespace)


def _bind() -> None:
    while _waiting:
        namespace = _waiting.pop()
        for name, value in list(namespace.items()):
            if isinstance(value, _Module):
                namespace[name] = value._resolve()


@contextmanager
def _only_described() -> Iterator[None]:
    global _describing
    before, _describing = _describing, True
    try:
        yield
    finally:
        _describing = before


class Commands(typer.Typer):
    """Commands that bind, when one of them begins, what was put off."""

    def command(self, *args: Any, **options: Any) -> Callable[[_Function], _Function]:
        """As `typer.Typer.command`."""
        add = super().command(*args, **options)

        def decorate(function: _Function) -> _Function:
            @functools.wraps(function)
            def begin(*args: Any, **options: Any) -> Any:
                _bind()
                return function(*args, **options)

            add(begin)
            return function

        return decorate


class LaterCommand(TyperCommand):
    """Stands for a command, or a group of them, in the list of all, until it is asked for."""

    module: str

    def load(self) -> Any:
        """The command itself."""
        apart = Commands()
        with _only_described():
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
