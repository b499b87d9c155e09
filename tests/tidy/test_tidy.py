"""Style that matters is a test: directions of imports, sizes, exports, docstrings, documented settings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "eventstore"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_alembic" not in path.parts)

# Beyond these a module or a function is too long to be read at once. What is over, is listed with the size it
# may have: it may shrink (then the list has to follow), and never grow.
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 90
LONG_MODULES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
SLACK = 60

# Characters beyond ASCII that the sources may hold: what prose and formulas need, nothing that looks like
# something else (other blanks, letters of other scripts, directions of writing).
ALLOWED = set("–—…→←↔≤≥‖×²√µéü²₂·°±≈∪∩≠▶─└├│€§")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[name_of(p) for p in paths])


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every function and method with its length in lines."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{prefix}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    yield inner[:-1], child.end_lineno - child.lineno + 1
            yield from walk(child, inner)

    yield from walk(tree, "")


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_short() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {n: s for n, s in sizes.items() if s > LONG_MODULES.get(n, MODULE_LINES_MAX)}
    assert not too_long, "split them by their jobs"
    for name, size in LONG_MODULES.items():
        assert size - SLACK <= sizes[name], f"{name} has shrunk to {sizes[name]}: lower its entry"


def test_every_function_is_short() -> None:
    sizes = {f"{name_of(p)}:{name}": lines for p in MODULES for name, lines in functions(tree_of(p))}
    too_long = {n: s for n, s in sizes.items() if s > LONG_FUNCTIONS.get(n, FUNCTION_LINES_MAX)}
    assert not too_long, "split them by their jobs"
    for name, size in LONG_FUNCTIONS.items():
        assert FUNCTION_LINES_MAX < sizes.get(name, 0) <= size, f"{name} is short now: take it off the list"


@each([p for p in MODULES if p.name != "__init__.py"])
def test_every_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module begins with what it is for"
    if path.name == "__main__.py":
        return  # run, never imported
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["__all__"]
    ]
    assert len(exported) == 1, "a module has one __all__"
    (names,) = exported
    assert len(set(names)) == len(names)
    defined = {
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else [t.id for t in node.targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign)
            else [node.target.id]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert set(names) <= defined, "__all__ names what is not there"


@each(MODULES)
def test_nothing_prints(path: Path) -> None:
    """Output goes through typer and rich, and errors are raised; a print is left over from a search."""
    calls = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "breakpoint")
    ]
    assert not calls, f"lines {calls}"


@each(MODULES)
def test_characters_are_what_they_look_like(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    strange = {f"U+{ord(c):04X} {c!r}" for c in text if not c.isascii() and c not in ALLOWED}
    strange |= {f"U+{ord(c):04X}" for c in text if ord(c) < 32 and c != "\n"}
    assert not strange
    assert text == "" or text.endswith("\n")


def test_only_settings_read_the_environment() -> None:
    """No part below reads it, so that what a store does is what its `Settings` say."""
    readers = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if path.parent.name != "demo"  # a program of its own, which sets up its surroundings
        and isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    # The supervisor hands its own environment, cleaned, to the server it starts.
    assert readers <= {
        "db/embedded/server.py",
        "db/embedded/cluster.py",
        "db/embedded/binaries.py",
        "settings.py",
    }


def test_no_product_code_imports_what_is_for_tests() -> None:
    for path in MODULES:
        if "testing" in path.parts:
            continue
        assert "eventstore.testing" not in path.read_text(), name_of(path)


SETTINGS_PAGE = ROOT / "docs" / "reference" / "settings.md"


@pytest.mark.skipif(not SETTINGS_PAGE.exists(), reason="docs/reference/settings.md is not written yet")
@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    variable = f"EVENTSTORE_{name.upper()}"
    assert re.search(rf"\b{variable}\b", SETTINGS_PAGE.read_text()), (
        f"{variable} is not in {SETTINGS_PAGE.name}"
    )


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    assert Settings.model_fields[name].description
