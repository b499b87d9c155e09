"""Exports as Arrow, pandas or polars. Each is needed only by who asks for it."""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO

from eventstore.errors import SetupError

__all__ = ["arrow_table", "check", "to_pandas", "to_polars"]


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        name = package.partition(".")[0]
        raise SetupError(f"{name} is not installed, and this needs it", hint=f"pip install {name}") from e


def check(*packages: str) -> None:
    """Raises SetupError where one is missing: before anything is fetched."""
    for package in packages:
        _need(package)


def arrow_table(stream: BinaryIO) -> Any:
    """The `pyarrow.Table` of an Arrow IPC stream."""
    return _need("pyarrow.ipc").open_stream(stream).read_all()


def to_pandas(table: Any) -> Any:
    """A `pandas.DataFrame`."""
    _need("pandas")
    return table.to_pandas()


def to_polars(table: Any) -> Any:
    """A `polars.DataFrame`."""
    return _need("polars").from_arrow(table)
