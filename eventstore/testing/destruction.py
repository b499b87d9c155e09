"""For the checker: certificates, what they stand for, and what was to be removed from the targets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import pairwise

import psycopg

from eventstore.testing.findings import Archives, Report
from eventstore.testing.reference import Row, certificate_start, parse_us, unseal

__all__ = ["Destroyed", "check_certificates", "check_objects", "check_removals"]

_MEMBERS = {
    *("format_version", "store_id", "tenant_id", "number", "previous_sha256", "kind", "window_from"),
    *("window_to", "first_seq", "last_seq", "event_count", "hash_before", "hash_after", "segments"),
    *("policy_version", "policy", "head_seq", "head_hash", "head_recorded_at", "decided_by", "reason"),
    *("issued_at", "signed_at", "subtrees"),
}
_COPY = re.compile(r"tenant_id=([^/]+)/certificates/(\d{8})\.json")
# What belongs to no window: whose archive it is, copies of governance and keys, and left probes.
_OF_THE_STORE = re.compile(r"eventstore\.json|(governance|keys|probe)/.*")


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A seq range (both ends inclusive) that a certificate stands for. `window` None: the whole log."""

    first: int
    last: int
    hash_before: bytes
    hash_after: bytes
    window: tuple[int, int] | None
    head_seq: int
    head_hash: bytes


def check_certificates(
    conn: psycopg.Connection[Row], archives: Archives, report: Report, tenant: Row
) -> list[Destroyed]:
    """Check a tenant's certificates, each on its own and as a chain; what they stand for, oldest first."""
    name = tenant["tenant_id"]
    keys = {
        row["key_id"]: bytes(row["public_key"])
        for row in conn.execute("SELECT * FROM signing_keys").fetchall()
    }
    store = conn.execute("SELECT store_id::text FROM deployment").fetchone()
    assert store is not None
    found: list[Destroyed] = []
    before, head_seq, offboarded = certificate_start(store["store_id"], name), 0, False
    rows = conn.execute(
        "SELECT *, (extract(epoch FROM window_from) * 1000000)::bigint AS from_us FROM certificates"
        " WHERE tenant_id = %s ORDER BY number",
        [name],
    ).fetchall()
    for number, row in enumerate(rows, start=1):
        place = f"{name!r}: number {row['number']}"
        try:
            payload = unseal(bytes(row["envelope"]), keys)
            said = json.loads(payload)
            destroyed = _destroyed(said)
            fits = _fits(said, row, payload)
        except (ValueError, KeyError, TypeError) as e:
            report.add("certificate", f"{place}: {e}")
            continue
        if not fits or (said["store_id"], said["tenant_id"]) != (store["store_id"], name):
            report.add("certificate", f"{place}: it says something else than its row")
        if said["number"] != number or said["previous_sha256"] != before:
            report.add("certificate", f"{place}: it does not follow the one before")
        if not head_seq <= said["head_seq"] <= tenant["last_seq"]:
            report.add("certificate", f"{place}: it saw seq {said['head_seq']}, the log ends before that")
        if offboarded or said["last_seq"] - said["first_seq"] + 1 != said["event_count"]:
            report.add("certificate", f"{place}: it contradicts itself or the ones before")
        if said["last_seq"] > said["head_seq"]:
            report.add("certificate", f"{place}: it goes beyond the head")
        _check_copy(archives, report, row, place)
        before, head_seq = hashlib.sha256(payload).hexdigest(), said["head_seq"]
        offboarded = offboarded or said["kind"] == "offboarded"
        found.append(destroyed)
    expired = sorted((d for d in found if d.window), key=lambda d: d.first)
    for one, other in pairwise(expired):
        if other.first <= one.last or (other.window or (0, 0))[0] < (one.window or (0, 0))[1]:
            report.add("certificate", f"{name!r}: seq {other.first} is in two certificates")
    whole = [d for d in found if not d.window]
    return whole or expired


def _destroyed(said: Row) -> Destroyed:
    if set(said) != _MEMBERS or said["format_version"] != 1:
        raise ValueError("it has other members than a certificate")
    if said["kind"] not in ("expired", "offboarded") or (said["kind"] == "expired") != bool(
        said["window_from"]
    ):
        raise ValueError(f"it is of kind {said['kind']!r}, from {said['window_from']}")
    _check_subtrees(said)
    window = None
    if said["window_from"]:
        window = (parse_us(said["window_from"]), parse_us(said["window_to"]))
    return Destroyed(
        said["first_seq"],
        said["last_seq"],
        bytes.fromhex(said["hash_before"]),
        bytes.fromhex(said["hash_after"]),
        window,
        said["head_seq"],
        bytes.fromhex(said["head_hash"]),
    )


def _check_subtrees(said: Row) -> None:
    """The full subtrees of a certificate make its range of leaves (seq - 1), one after the other."""
    at = said["first_seq"] - 1
    for subtree in said["subtrees"]:
        size = 2 ** subtree["level"]
        if set(subtree) != {"level", "index", "hash"} or subtree["index"] * size != at:
            raise ValueError(f"its subtrees do not go on at leaf {at}")
        if len(bytes.fromhex(subtree["hash"])) != 32:
            raise ValueError("a subtree's hash has not 32 bytes")
        at += size
    if at != said["last_seq"]:
        raise ValueError(f"its subtrees end at leaf {at}")


def _fits(said: Row, row: Row, payload: bytes) -> bool:
    """Whether a row says what was signed."""
    same = all(said[name] == row[name] for name in ("number", "tenant_id", "kind", "first_seq", "last_seq"))
    hashes = all(said[name] == bytes(row[name]).hex() for name in ("hash_before", "hash_after"))
    window_from = None if said["window_from"] is None else parse_us(said["window_from"])
    return (
        same
        and hashes
        and window_from == row["from_us"]
        and parse_us(said["issued_at"]) == row["issued_us"]
        and hashlib.sha256(payload).digest() == bytes(row["payload_sha256"])
    )


def _check_copy(archives: Archives, report: Report, row: Row, place: str) -> None:
    target = row["stored_in"]
    if target is None:
        return
    if target not in archives:
        report.add("target", f"{place}: its copy is in {target!r}, which was not given")
        return
    try:
        with archives[target].open(
            f"tenant_id={row['tenant_id']}/certificates/{row['number']:08d}.json"
        ) as file:
            same = file.read() == bytes(row["envelope"])
    except Exception as e:  # noqa: BLE001 - whatever a target raises, the copy cannot be read
        report.add("certificate", f"{place}: its copy cannot be read: {e}")
        return
    if not same:
        report.add("certificate", f"{place}: its copy in {target!r} is another")


def check_removals(
    conn: psycopg.Connection[Row],
    report: Report,
    stored: Mapping[str, Set[str]],
    destroyed: Mapping[str, list[Destroyed]],
) -> None:
    """What was to be removed: no longer named by the catalog, gone if it is said to be, and events that are
    nowhere else only under a certificate. `stored` are the keys in each target."""
    for row in conn.execute(
        "SELECT r.*, EXISTS (SELECT FROM segments s WHERE (s.target, s.key) = (r.target, r.key)) AS cataloged"
        " FROM removals r ORDER BY r.target, r.key"
    ):
        place = f"{row['tenant_id']!r}: {row['key']} in {row['target']!r}"
        if row["cataloged"]:
            report.add("removal", f"{place} is to be removed, and the catalog names it")
        if row["target"] not in stored:
            report.add("target", f"{place} was not given")
        elif row["removed_at"] is not None and row["key"] in stored[row["target"]]:
            report.add("removal", f"{place} was removed, and is there")
        if row["reason"] != "moved" and not any(
            d.first <= row["first_seq"] and row["last_seq"] <= d.last
            for d in destroyed.get(row["tenant_id"], ())
        ):
            report.add("removal", f"{place} is {row['reason']}, and no certificate stands for it")


def check_objects(conn: psycopg.Connection[Row], report: Report, stored: Mapping[str, Set[str]]) -> None:
    """What lies in the targets: named by something, or an orphan."""
    named = {
        (row["target"], row["key"])
        for row in conn.execute(
            "SELECT target, key FROM segments UNION ALL SELECT target, key FROM quarantine"
            " UNION ALL SELECT target, key FROM removals WHERE removed_at IS NULL"
        )
    }
    certificates = {
        (row["tenant_id"], row["number"])
        for row in conn.execute("SELECT tenant_id, number FROM certificates")
    }
    for target, keys in stored.items():
        for key in sorted(keys):
            copy = _COPY.fullmatch(key)
            if copy is not None and (copy[1], int(copy[2])) not in certificates:
                # Its row is there before it, so that row was taken away.
                report.add("certificate", f"{copy[1]!r}: number {int(copy[2])} is only in {target!r}")
            elif copy is None and (target, key) not in named and not _OF_THE_STORE.fullmatch(key):
                report.orphans.append(key if len(stored) == 1 else f"{target}/{key}")
