"""Every key in an archive target: a hive layout that DuckDB, Spark, Trino and Athena read as it is."""

from __future__ import annotations

from eventstore.clock import from_us
from eventstore.model.window import Window

__all__ = ["MARKER_KEY", "segment_key", "tenant_prefix"]

# Says which database the archive belongs to (integrity.binding).
MARKER_KEY = "eventstore.json"


def tenant_prefix(tenant_id: str) -> str:
    """What all keys of a tenant begin with."""
    return f"tenant_id={tenant_id}/"


def segment_key(tenant_id: str, window: Window, part: int) -> str:
    """The key of a window's segment; `part` counts from 0."""
    start, end = from_us(window.from_us), from_us(window.to_us)
    stamp = "%Y%m%dT%H%M%SZ"
    return (
        f"{tenant_prefix(tenant_id)}month={start:%Y-%m}/"
        f"archive.{tenant_id}.{start:{stamp}}-{end:{stamp}}.p{part:03d}.parquet"
    )
