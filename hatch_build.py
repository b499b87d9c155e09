"""The build's own step: the console's front-end library, out of the package that carries it."""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Files of django-htmx, which carries htmx as it was published, and their names here.
_FRONT_END = {"django_htmx/static/django_htmx/htmx-2.min.js": "htmx.min.js"}
_VENDOR = Path("eventstore/console/static/vendor")


class FrontEnd(BuildHookInterface[Any]):
    """Copies what the console serves beside its own files; nothing of it is in the repository."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        vendor = Path(self.root) / _VENDOR
        vendor.mkdir(parents=True, exist_ok=True)
        carrier = distribution("django-htmx")
        for name, kept in _FRONT_END.items():
            shutil.copyfile(str(carrier.locate_file(name)), vendor / kept)
        build_data["artifacts"].append(f"{_VENDOR.as_posix()}/*")
