"""The client's page names every public name, method and argument, and no method that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import eventstore.client
from eventstore.client import AsyncClient, Client, asgi, logging, recorder
from eventstore.client.asgi import RecordChanges, record_change
from eventstore.client.logging import EventHandler
from eventstore.client.recorder import Recorder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "client.md").read_text()
CLASSES = (Client, AsyncClient, Recorder, EventHandler, RecordChanges)


def own_methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_") and callable(getattr(kind, name))}


def test_every_public_name_is_documented() -> None:
    names = {
        *eventstore.client.__all__,
        *recorder.__all__,
        *logging.__all__,
        *asgi.__all__,
    } - {"Full"}  # an argument's type, whose two values are documented
    assert {name for name in names if not re.search(rf"`{name}\b", PAGE)} == set()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_method_is_documented(kind: type) -> None:
    assert {name for name in own_methods(kind) if not re.search(rf"`{name}\b", PAGE)} == set()


def test_every_method_that_is_documented_exists() -> None:
    named = {
        name
        for row in re.findall(r"^\| (`[a-z_]+\(.*?`) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`([a-z_]+)\(", row)
    }
    assert len(named) > 20
    assert named <= set().union(*map(own_methods, CLASSES))


@pytest.mark.parametrize("call", [*CLASSES, record_change], ids=lambda call: call.__name__)
def test_every_argument_of_a_constructor_is_documented(call: type) -> None:
    wanted = set(inspect.signature(call).parameters) - {"self"}
    (signature,) = set(re.findall(rf"`{call.__name__}\(([^)]*)\)", PAGE)) or {""}
    named = set(re.findall(r"\w+", signature))
    assert wanted == named or call is AsyncClient, wanted ^ named


def test_both_clients_have_the_same_methods() -> None:
    assert own_methods(Client) - {"close"} == own_methods(AsyncClient) - {"aclose"}
