"""The fixtures of this folder."""

from __future__ import annotations

from tests.crash.fixtures import (
    archived_copy,
    archived_world,
    host,
    seeded_template,
    tiered_template,
    tiered_world,
    world,
)

__all__ = [
    "archived_copy",
    "archived_world",
    "host",
    "seeded_template",
    "tiered_template",
    "tiered_world",
    "world",
]
