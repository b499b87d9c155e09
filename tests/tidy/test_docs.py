"""The documentation says what the program is: commands, options, settings, routes, tests, links, examples."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from fastapi.routing import APIRoute
from typer.core import TyperGroup

from eventstore.api.events import router
from eventstore.api.problems import _STATUS
from eventstore.api.server import create_app
from eventstore.archive.parquet import RowGroup, SegmentWriter
from eventstore.cli.main import app as cli
from eventstore.columns.schema import EVENT_SCHEMA
from eventstore.db.migrate import migrations_path
from eventstore.errors import EventStoreError, SetupError
from eventstore.model.event import Event, canonical_bytes, chain_hash, chain_start
from eventstore.model.event import TEXT_LIMITS
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window
from eventstore.settings import Settings
