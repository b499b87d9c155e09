"""Mending a damaged segment: a good copy is looked for, put under a new key, and takes its place.

A new key, because nothing is then deleted or overwritten: whoever is stopped in the middle and goes on hours
later can do no harm. The damaged object stays where it is, and is noted in `quarantine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from eventstore.archive.copy import copy_segment
from eventstore.archive.layout import parse_segment_key, repaired_key
from eventstore.archive.targets import Targets
from eventstore.archive.verify import verify_copy
from eventstore.catalog.removals import removed_keys
from eventstore.catalog.windows import replace_segment
from eventstore.db.engine import Database
from eventstore.db.tables import quarantine, segments
from eventstore.errors import (
    ArchiveConflictError,
    ArchiveDamageError,
    CoverageError,
    NoCopyError,
    SetupError,
    TargetUnavailableError,
)
from eventstore.governance.policies import policy_of
from eventstore.model.segment import Segment, VerifiedSegment

__all__ = ["Mended", "mend", "put_in_quarantine", "still_cataloged"]

_REPAIRS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Mended:
    """A damaged segment's good copy, which the catalog names now. `source` says where it came from; `created`
    is False where it lay under its key already."""

    verified: VerifiedSegment
    source: str
    created: bool


def mend(
    database: Database, targets: Targets, damaged: Segment, reason: str, *, lies_there: bool, now_us: int
) -> Mended | None:
    """Put a good copy in a damaged or missing segment's place; None: the catalog no longer names it.

    `lies_there`: there is an object under its key, which goes into quarantine.

    Raises:
        NoCopyError: there is no good copy. Nothing was changed.
        TargetUnavailableError: the segment's own target did not answer.
    """
    unasked: list[str] = []
    for name, key in _places(targets, damaged, unasked):
        try:
            copied = _bring(database, targets, damaged, name, key, now_us)
        except ArchiveDamageError:
            continue  # no good copy either
        except (TargetUnavailableError, SetupError):
            if name == damaged.target:
                raise
            unasked.append(name)
            continue
        # Dying here leaves a good copy that no catalog row names: the next scrub finds it, and takes it.
        try:
            with database.transaction() as conn:
                replace_segment(conn, damaged, copied.verified)
                if lies_there:
                    put_in_quarantine(conn, damaged.target, damaged.key, damaged.range.tenant_id, reason)
                _leave_quarantine(conn, copied.verified.segment)
        except CoverageError:
            # Moved, destroyed, or mended by somebody else meanwhile. What was copied is an orphan, or his.
            return None
        return copied
    away = f"; could not be asked: {', '.join(sorted(set(unasked)))}" if unasked else ""
    raise NoCopyError(
        f"{reason}; no target has a good copy{away}",
        key=damaged.key,
        hint="nothing was changed; bring the object back from a backup under its key, and scrub again",
    )


def _places(targets: Targets, damaged: Segment, unasked: list[str]) -> Iterator[tuple[str, str]]:
    """Where a good copy may lie (target, key): in the other targets, then under its own target's other keys.
    A listing costs one request; the segment's own key is tried whatever it says."""
    others = [name for name in targets.names if name != damaged.target]
    prefix = repaired_key(damaged.key, 0).removesuffix("parquet")
    for name in (*others, damaged.target):
        try:
            listed = [info.key for info in targets[name].list(prefix)]
        except (TargetUnavailableError, SetupError):
            if name == damaged.target:
                raise
            unasked.append(name)
            continue
        keys = dict.fromkeys([damaged.key, *(key for key in listed if parse_segment_key(key) is not None)])
        for key in keys:
            if (name, key) != (damaged.target, damaged.key):
                yield name, key


def _bring(
    database: Database, targets: Targets, damaged: Segment, name: str, key: str, now_us: int
) -> Mended:
    """The good copy in the segment's own target, copied there if it is not."""
    target = targets[damaged.target]
    with database.transaction() as conn:
        prefix = repaired_key(damaged.key, 0)
        tried = [prefix, *(repaired_key(damaged.key, n) for n in range(1, _REPAIRS_MAX))]
        gone = removed_keys(conn, damaged.target, tried)
        retain_until_us = _retain_until(conn, damaged, now_us)
    source = f"{key} in {name!r}"
    if name == damaged.target and key not in gone:
        verified = verify_copy(target, damaged, target_name=name, key=key, created=True)
        return Mended(verified, source, created=False)
    good = replace(damaged, key=key)
    for new in tried[1:]:
        if new in gone or new == damaged.key:
            continue
        try:
            copied = copy_segment(
                targets[name],
                target,
                good,
                to=damaged.target,
                key=new,
                retain_until_us=retain_until_us,
            )
        except ArchiveConflictError:
            continue  # that number is taken, by something else
        return Mended(copied.verified, source, copied.created)
    raise ArchiveDamageError(f"no key is left for a copy of {damaged.key}", key=damaged.key)


def _retain_until(conn: sa.Connection, segment: Segment, now_us: int) -> int | None:
    """The end of the tier that is in the segment's target, for targets that lock objects."""
    policy = policy_of(conn, segment.range.tenant_id, now_us).policy
    for index, tier in enumerate(policy.tiers):
        if tier.target == segment.target:
            return policy.tier_end(segment.range.window, index)
    return None


def still_cataloged(database: Database, segment: Segment) -> bool:
    """Whether the catalog names a segment's very object now."""
    with database.transaction() as conn:
        return bool(
            conn.execute(
                sa.select(
                    sa.exists().where(segments.c.target == segment.target, segments.c.key == segment.key)
                )
            ).scalar_one()
        )


def put_in_quarantine(conn: sa.Connection, target: str, key: str, tenant_id: str | None, reason: str) -> bool:
    """Note an object that is never read again and never deleted; False: it is noted already."""
    row = {"target": target, "key": key, "tenant_id": tenant_id, "reason": reason}
    noting = insert(quarantine).values(row).on_conflict_do_nothing().returning(quarantine.c.key)
    return conn.execute(noting).one_or_none() is not None


def _leave_quarantine(conn: sa.Connection, segment: Segment) -> None:
    """An object that counts now is none that nobody knows."""
    conn.execute(
        sa.delete(quarantine).where(quarantine.c.target == segment.target, quarantine.c.key == segment.key)
    )
