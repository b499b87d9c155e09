"""The documentation says what the program is: commands, options, settings, routes, tests, links, examples."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest
import typer.main

from eventstore.api.problems import _STATUS
from eventstore.api.server import create_app
from eventstore.archive.layout import segment_key
from eventstore.archive.parquet import RowGroup, SegmentWriter
from eventstore.cli.lazy import LaterCommand
from eventstore.cli.main import app as cli
from eventstore.clock import parse_time_us
from eventstore.errors import EventStoreError, SetupError
from eventstore.model.event import TEXT_LIMITS, Event, NewEvent, canonical_bytes, chain_hash, chain_start
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window
from eventstore.settings import Settings
from tests.unit.helpers import as_batch

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
PAGE_NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


# --- command line ---------------------------------------------------------------------------------------


def commands(command: Any, name: str = "eventstore") -> Iterator[tuple[str, set[str], list[str]]]:
    """Each command's full name, its options, and its arguments in order."""
    if isinstance(command, LaterCommand):
        command = command.load()
    if hasattr(command, "commands"):
        for child_name, child in command.commands.items():
            yield from commands(child, f"{name} {child_name}")
        return
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    options = {o for p in shown for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
    arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    yield name, options - {"--help"}, arguments


COMMANDS = {name: (options, arguments) for name, options, arguments in commands(typer.main.get_command(cli))}


def documented_commands() -> dict[str, tuple[list[str], set[str]]]:
    """Each command of the page: its arguments, and the options that its section names."""
    found = {}
    for section in re.split(r"^## ", text(REFERENCE / "cli.md"), flags=re.MULTILINE)[1:]:
        heading = re.match(r"`(eventstore[^`]*)`", section)
        if heading is not None:
            words = heading[1].split()
            name = " ".join(word for word in words if not word.isupper() and "_" not in word)
            found[name] = (words[len(name.split()) :], set(re.findall(r"`(--[a-z-]+)", section)))
    return found


def test_every_command_is_documented_and_no_other() -> None:
    assert documented_commands().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_options_and_arguments_are_documented_and_no_others(name: str) -> None:
    options, arguments = COMMANDS[name]
    documented_arguments, documented_options = documented_commands()[name]
    assert documented_options == options
    assert documented_arguments == arguments


# --- settings -------------------------------------------------------------------------------------------


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    rows = re.findall(r"^\| `EVENTSTORE_([A-Z_]+)` \|", text(REFERENCE / "settings.md"), re.MULTILINE)
    assert [row.lower() for row in rows] == list(Settings.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_settings_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"\bEVENTSTORE_([A-Z_]+)\b", text(page)))
    named -= {"TEST_DATABASE_URL", "KEY"}  # of the tests, and of a command's option
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


# --- API ------------------------------------------------------------------------------------------------


def operations() -> dict[str, dict[str, Any]]:
    paths = create_app(Mock()).openapi()["paths"]
    return {f"{method.upper()} {path}": found for path, by in paths.items() for method, found in by.items()}


def test_every_route_is_documented_and_no_other() -> None:
    named = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", text(REFERENCE / "api.md"))
    assert set(named) == operations().keys()


def test_every_query_parameter_is_documented() -> None:
    named = set(re.findall(r"`([a-z_]+)`", text(REFERENCE / "api.md")))
    for name, operation in operations().items():
        wanted = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"}
        assert wanted <= named, name


def errors_of(kind: type[EventStoreError]) -> Iterator[type[EventStoreError]]:
    for child in kind.__subclasses__():
        if not issubclass(child, SetupError) and child.__module__ == "eventstore.errors":
            yield child
            yield from errors_of(child)


@pytest.mark.parametrize("kind", list(errors_of(EventStoreError)), ids=lambda kind: kind.code)
def test_every_problem_is_documented_with_its_status(kind: type[EventStoreError]) -> None:
    status = next(status for base, status, _ in _STATUS if issubclass(kind, base))
    rows = [r for r in text(REFERENCE / "api.md").splitlines() if f"`urn:eventstore:{kind.code}`" in r]
    assert len(rows) == 1
    assert rows[0].split("|")[2].strip() == str(status)


# --- events ---------------------------------------------------------------------------------------------


def test_every_field_of_an_event_is_documented_with_its_limit() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]* \| [^|]* \| ([^|]*?) ?\|", events_page(), re.MULTILINE))
    assert rows.keys() == {*NewEvent.__struct_fields__, *Event.__match_args__} - {
        "recorded_at_us",
        "occurred_at_us",
    } | {"recorded_at"}
    for name, limit in TEXT_LIMITS.items():
        assert rows[name] == f"{limit} characters"


def events_page() -> str:
    return text(REFERENCE / "events.md")


# The event that the page works through.
EXAMPLE = Event(
    seq=1,
    event_id=bytes.fromhex("019a48f1d680700080000368969ec29a"),
    recorded_at_us=parse_time_us("2025-11-03T09:00:00Z"),
    occurred_at_us=parse_time_us("2025-11-03T09:00:00Z"),
    entity_type="contract",
    entity_id="c-1",
    action="created",
    field="*",
    old_value=None,
    new_value='"draft"',
    actor="anna",
    source="legacy",
    workspace_id=None,
    metadata=None,
    hash=b"",
)


def test_the_worked_example_is_right() -> None:
    data, result = (block.splitlines() for block in code_blocks(REFERENCE / "events.md", "text"))
    written = "".join(re.split(r"  +", line)[0].replace(" ", "") for line in data)
    expected = canonical_bytes(EXAMPLE)
    assert bytes.fromhex(written) == expected
    assert f"Its {len(expected)} canonical bytes" in events_page()
    start = chain_start("acme")
    assert [line.split() for line in result] == [
        ["start", start.hex()],
        ["hash", chain_hash(start, expected).hex()],
    ]


# --- segments -------------------------------------------------------------------------------------------


def write_segment(folder: Path, events: list[Event], before: bytes, after: bytes) -> Path:
    window = Window(0, 3_600_000_000)
    path = folder / f"{events[0].seq}.parquet"
    with SegmentWriter(path, rows_left=len(events)) as writer:
        writer.write(RowGroup(pa.Table.from_batches([as_batch(events)]), 1))
        writer.finish(SegmentRange("acme", window, 0, events[0].seq, events[-1].seq, before, after))
    return path


def test_the_program_that_verifies_segments_works(tmp_path: Path) -> None:
    (program,) = code_blocks(REFERENCE / "segment-format.md", "python")
    script = tmp_path / "verify_segments.py"
    script.write_text(program)
    hashes = [chain_start("acme")]
    events = []
    for seq in range(1, 7):
        event = replace(EXAMPLE, seq=seq, recorded_at_us=seq - 3, metadata='{"ß":"✓"}')
        hashes.append(chain_hash(hashes[-1], canonical_bytes(event)))
        events.append(replace(event, hash=hashes[-1]))

    def run(*paths: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    first = write_segment(tmp_path, events[:2], hashes[0], hashes[2])
    second = write_segment(tmp_path, events[2:5], hashes[2], hashes[5])
    last = write_segment(tmp_path, events[5:], hashes[5], hashes[6])
    done = run(last, first, second)
    assert (done.returncode, done.stdout.count(" whole\n")) == (0, 3), done.stderr
    assert run(second, last).returncode == 0
    assert "does not follow" in run(first, last).stderr
    write_segment(tmp_path, [events[2], replace(events[3], actor="eve"), events[4]], hashes[2], hashes[5])
    assert "breaks at seq 4" in run(first, second, last).stderr


def test_the_key_is_laid_out_as_documented() -> None:
    window = Window(parse_time_us("2025-11-01"), parse_time_us("2025-12-01"))
    assert segment_key("acme", window, 0) in text(REFERENCE / "segment-format.md").splitlines()


# --- guarantees, dependencies, tree, migrations ---------------------------------------------------------


def names_in(path: str) -> set[str]:
    """The tests of a file, as `function` or `Class::function`, those that a class inherits included."""
    names = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            own = {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
            names |= own | {f"{node.name}::{name}" for name in SHIPPED_TESTS}
    return names


SHIPPED_TESTS = {
    found
    for path in (ROOT / "eventstore" / "testing").glob("*.py")
    for found in re.findall(r"^    def (test_\w+)", path.read_text(), re.MULTILINE)
}
GUARANTEES = ROOT / "docs" / "concepts" / "guarantees.md"
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", GUARANTEES.read_text())


@pytest.mark.parametrize(("path", "name"), NAMED_TESTS, ids=[name for _, name in NAMED_TESTS])
def test_tests_that_show_a_guarantee_exist(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert name in names_in(path)


def test_every_guarantee_names_tests() -> None:
    promises = re.split(r"^## ", text(GUARANTEES), flags=re.MULTILINE)[1:-1]
    assert len(promises) > 5
    for promise in promises:
        assert "`tests/" in promise, promise.splitlines()[0]


def test_every_dependency_has_a_line_and_every_line_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = sorted(re.match(r"[\w-]+", line)[0] for line in wanted)  # type: ignore[index]
    page = text(ROOT / "docs" / "dependencies.md")
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == names


def test_the_tree_in_the_readme_is_the_packages() -> None:
    tree = re.search(r"^eventstore/\n((?:  .*\n)+)", text(ROOT / "README.md"), re.MULTILINE)
    assert tree is not None
    package = ROOT / "eventstore"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b([a-z]+)/", tree[1])) == folders
    assert set(re.findall(r"\b([a-z]+\.py)\b", tree[1])) == modules


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "design"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text(folder / "README.md"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


# --- every page -----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_shell_examples_are_shell(page: Path) -> None:
    for block in code_blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", text(page)):
            if not re.match(r"[a-z]+:", link):
                waiting.append((page.parent / link).resolve())
    assert set(PAGES) - reached <= {ROOT / "CHANGELOG.md"}
