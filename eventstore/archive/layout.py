"""Every key in an archive target: a hive layout that DuckDB, Spark, Trino and Athena read as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from eventstore.clock import from_us, to_us
from eventstore.model.tenant import TENANT_ID_PATTERN
from eventstore.model.window import Window

__all__ = [
    "GOVERNANCE_PREFIX",
    "KEYS_PREFIX",
    "MARKER_KEY",
    "SegmentKey",
    "certificate_key",
    "governance_key",
    "parse_certificate_key",
    "parse_governance_key",
    "parse_segment_key",
    "public_key_key",
    "repaired_key",
    "segment_key",
    "tenant_prefix",
]

# Says which database the archive belongs to (integrity.binding).
MARKER_KEY = "eventstore.json"
# What the keys of the record of governance begin with.
GOVERNANCE_PREFIX = "governance/"
# What the keys of public signing keys begin with.
KEYS_PREFIX = "keys/"

_TENANT = rf"tenant_id=(?P<tenant>{TENANT_ID_PATTERN})/"
_STAMP = r"\d{1,4}\d{4}T\d{6}Z"
_SEGMENT = re.compile(
    _TENANT + r"month=\d{1,4}-\d\d/archive\.(?P=tenant)\."
    rf"(?P<start>{_STAMP})-(?P<end>{_STAMP})\.p(?P<part>\d{{3,9}})(\.r(?P<repair>[1-9]\d{{0,5}}))?\.parquet"
)
_CERTIFICATE = re.compile(_TENANT + r"certificates/(?P<number>\d{8,10})\.json")
_GOVERNANCE = re.compile(GOVERNANCE_PREFIX + r"(?P<number>\d{8,18})\.json")
_REPAIRED = re.compile(r"(\.r[1-9]\d{0,5})?\.parquet$")


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """What a segment's key says. `repair` is 0, or counts the copies that took a damaged one's place."""

    tenant_id: str
    window: Window
    part: int
    repair: int = 0


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


def certificate_key(tenant_id: str, number: int) -> str:
    """The key of a copy of a tenant's certificate; `number` counts from 1."""
    return f"{tenant_prefix(tenant_id)}certificates/{number:08d}.json"


def governance_key(entry_no: int) -> str:
    """The key of a copy of an entry in the record of governance; `entry_no` counts from 1."""
    return f"{GOVERNANCE_PREFIX}{entry_no:08d}.json"


def public_key_key(key_id: str) -> str:
    """The key of a copy of a public signing key, as PEM."""
    return f"{KEYS_PREFIX}{key_id}.pem"


def repaired_key(key: str, repair: int) -> str:
    """The key of a copy that takes the place of a damaged segment, of whichever repair that was; `repair`
    counts from 1, and 0 is the first key of all."""
    return _REPAIRED.sub(f".r{repair}.parquet" if repair else ".parquet", key)


def parse_segment_key(key: str) -> SegmentKey | None:
    """What `segment_key` and `repaired_key` put into a key; None if they did not make it."""
    match = _SEGMENT.fullmatch(key)
    if match is None:
        return None
    try:
        window = Window(_stamp_us(match["start"]), _stamp_us(match["end"]))
    except ValueError:
        return None
    return SegmentKey(match["tenant"], window, int(match["part"]), int(match["repair"] or 0))


def parse_certificate_key(key: str) -> tuple[str, int] | None:
    """Tenant and number of a certificate's key; None if it is not one."""
    match = _CERTIFICATE.fullmatch(key)
    return None if match is None else (match["tenant"], int(match["number"]))


def parse_governance_key(key: str) -> int | None:
    """The number in the key of an entry of the record of governance; None if it is not one."""
    match = _GOVERNANCE.fullmatch(key)
    return None if match is None else int(match["number"])


def _stamp_us(text: str) -> int:
    # Not strptime: it takes no year of fewer than four digits, and strftime writes some so.
    year, rest = int(text[:-12]), text[-12:-1]
    month, day, hour, minute, second = (int(rest[i : i + 2]) for i in (0, 2, 5, 7, 9))
    return to_us(datetime(year, month, day, hour, minute, second, tzinfo=UTC))
