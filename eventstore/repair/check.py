"""The catalog and the targets' listings held against each other, without reading any content.

Both come in the order of keys and are merged as they stream by. What does not fit is only suspected: listings
may be stale, and windows move while this runs. So every suspicion is looked at again, in the catalog as it is
then and by asking for the object itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, groupby
from typing import Any

import sqlalchemy as sa

from eventstore.archive.layout import (
    GOVERNANCE_PREFIX,
    KEYS_PREFIX,
    MARKER_KEY,
    parse_certificate_key,
    parse_governance_key,
    parse_segment_key,
    tenant_prefix,
)
from eventstore.archive.probe import PROBE_PREFIX
from eventstore.archive.target import ArchiveTarget, ObjectInfo
from eventstore.archive.targets import Targets
from eventstore.catalog.tenants import get_tenant
from eventstore.clock import to_us
from eventstore.db.engine import Database
from eventstore.db.tables import certificates, governance, quarantine, removals, segments, windows
from eventstore.errors import ArchiveDamageError, SetupError, TargetUnavailableError
from eventstore.model.window import WindowState
from eventstore.repair.listing import chosen_targets

__all__ = ["Finding", "FindingKind", "check_archive", "check_target", "see_marker"]

_FETCH = 5_000
_AT_ONCE = 500


class FindingKind(StrEnum):
    """What a check may find. `is_wrong` tells what somebody has to look at from what is on its way."""

    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    ORPHAN = "orphan"
    UNKNOWN_RECORD = "unknown record"
    COPY_MISSING = "copy missing"
    NOT_COPIED = "not copied yet"
    TARGET_AWAY = "target away"
    READ_ONLY = "read only"
    UNFINISHED = "unfinished work"
    PENDING = "removal pending"
    QUARANTINED = "quarantined"

    @property
    def is_wrong(self) -> bool:
        return self not in (
            FindingKind.READ_ONLY,
            FindingKind.UNFINISHED,
            FindingKind.PENDING,
            FindingKind.QUARANTINED,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that catalog and target do not agree on, or that is not done yet. `key` and `tenant_id` None:
    it is about the whole target, or about no one tenant."""

    kind: FindingKind
    target: str
    key: str | None
    tenant_id: str | None
    message: str


class _Kept(StrEnum):
    """Why the catalog knows a key."""

    SEGMENT = "segment"
    PENDING = "pending"
    REMOVED = "removed"
    QUARANTINED = "quarantined"
    COPY = "copy"  # of a certificate or an entry in the record, noted as stored there
    RECORD = "record"  # the same, not noted


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    kept: _Kept
    size_bytes: int | None
    tenant_id: str | None
    reason: str | None


def check_archive(
    database: Database,
    targets: Targets,
    *,
    tenant_id: str | None = None,
    target: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[Finding]:
    """Check every target (or one), for every tenant (or one). `progress` is told a target and how many of its
    objects were looked at.

    A target that is away is a finding, and the others are checked all the same.

    Raises:
        InputError: there is no such target.
        TenantNotFoundError
    """
    names = list(chosen_targets(targets, target))
    with database.transaction() as conn:
        if tenant_id is not None:
            get_tenant(conn, tenant_id)
        named = set(conn.execute(sa.select(segments.c.target).distinct()).scalars())
    if target is None:
        names += sorted(named - set(names))
    for name in names:
        try:
            yield from check_target(database, targets, name, tenant_id=tenant_id, progress=progress)
        except (TargetUnavailableError, SetupError) as e:
            yield Finding(FindingKind.TARGET_AWAY, name, None, None, e.message)
        if name in targets.read_only():
            why = f"it is read, and takes no writes: {targets.read_only()[name]}"
            yield Finding(FindingKind.READ_ONLY, name, None, None, why)
    yield from _not_copied(database, targets.default, tenant_id)


def check_target(
    database: Database,
    targets: Targets,
    name: str,
    *,
    tenant_id: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[Finding]:
    """Check one target.

    Raises:
        SetupError: there is no target of that name.
        TargetUnavailableError: it did not answer.
    """
    target = targets[name]
    see_marker(target)
    look = _Look(database, name, tenant_id, is_default=name == targets.default)
    listing = _counted(target.list("" if tenant_id is None else tenant_prefix(tenant_id)), name, progress)
    # The listing begins first: a transaction that waits for a slow target would be ended by its time-out.
    first = next(listing, None)
    objects: Iterator[ObjectInfo] = listing if first is None else chain((first,), listing)
    certain: list[Finding] = []
    suspects: list[str] = []
    with database.transaction() as conn:
        for key, rows, found in _merge(look.rows(conn), objects):
            finding, suspicious = _judge(name, key, rows, found)
            if suspicious:
                suspects.append(key)
            elif finding is not None:
                certain.append(finding)
    yield from certain
    for start in range(0, len(suspects), _AT_ONCE):
        yield from _look_again(look, target, suspects[start : start + _AT_ONCE])


def see_marker(target: ArchiveTarget) -> None:
    """That the target is the place it was: every one that was ever used holds its marker. A disk that is not
    mounted, or a prefix that was mistaken, would otherwise look as if all its objects were lost.

    Raises:
        TargetUnavailableError: it is not, or did not answer.
    """
    try:
        target.stat(MARKER_KEY)
    except ArchiveDamageError as e:
        raise TargetUnavailableError(
            f"{target.describe()} has no {MARKER_KEY} any more: it is another place than before",
            hint="is the disk mounted, and the address right?",
        ) from e


def _counted(
    objects: Iterable[ObjectInfo], name: str, progress: Callable[[str, int], None] | None
) -> Iterator[ObjectInfo]:
    count = 0
    for count, found in enumerate(objects, start=1):
        if progress is not None and count % 1000 == 0:
            progress(name, count)
        yield found
    if progress is not None:
        progress(name, count)


def _merge(
    rows: Iterable[_Row], objects: Iterable[ObjectInfo]
) -> Iterator[tuple[str, list[_Row], ObjectInfo | None]]:
    """Each key that the catalog or the listing has, with what either knows of it."""
    groups = ((key, list(group)) for key, group in groupby(rows, key=lambda row: row.key))
    row, found = next(groups, None), None
    for found in objects:
        while row is not None and row[0] < found.key:
            yield row[0], row[1], None
            row = next(groups, None)
        if row is not None and row[0] == found.key:
            yield found.key, row[1], found
            row = next(groups, None)
        else:
            yield found.key, [], found
    while row is not None:
        yield row[0], row[1], None
        row = next(groups, None)


def _judge(
    name: str, key: str, rows: Sequence[_Row], found: ObjectInfo | None
) -> tuple[Finding | None, bool]:
    """What is to be said of a key, and whether that needs a second look. (None, False): all is well."""
    kept = {row.kept: row for row in rows}

    def say(kind: FindingKind, message: str, row: _Row | None = None) -> Finding:
        return Finding(kind, name, key, _tenant_of(key) if row is None else row.tenant_id, message)

    if segment := kept.get(_Kept.SEGMENT):
        if found is None:
            return say(FindingKind.MISSING, "the catalog names it, and it is not there", segment), True
        if found.size_bytes != segment.size_bytes:
            sizes = f"it has {found.size_bytes:,} bytes, cataloged are {segment.size_bytes:,}"
            return say(FindingKind.WRONG_SIZE, sizes, segment), True
        return None, False
    if copy := kept.get(_Kept.COPY):
        if found is None:
            return say(FindingKind.COPY_MISSING, "its copy was stored, and is not there", copy), True
        return None, False
    if _Kept.RECORD in kept:
        return None, False
    if pending := kept.get(_Kept.PENDING):
        return say(FindingKind.PENDING, f"to be removed: {pending.reason}", pending), False
    if found is None or _is_our_own(key):
        return None, False
    if noted := kept.get(_Kept.QUARANTINED):
        return say(FindingKind.QUARANTINED, noted.reason or "", noted), False
    if parse_certificate_key(key) is not None or parse_governance_key(key) is not None:
        older = "the database does not have it: was that restored from an older backup?"
        return say(FindingKind.UNKNOWN_RECORD, older), True
    if removed := kept.get(_Kept.REMOVED):
        return say(FindingKind.ORPHAN, f"it was removed ({removed.reason}), and is there", removed), True
    return say(FindingKind.ORPHAN, "the catalog does not know it"), True


def _tenant_of(key: str) -> str | None:
    found = parse_segment_key(key)
    return found.tenant_id if found is not None else (parse_certificate_key(key) or (None,))[0]


def _is_our_own(key: str) -> bool:
    """The marker, a probe that somebody just makes, and public keys: no catalog names them."""
    return key == MARKER_KEY or key.startswith((PROBE_PREFIX, KEYS_PREFIX))


def _look_again(look: _Look, target: ArchiveTarget, keys: Sequence[str]) -> Iterator[Finding]:
    """Judge suspects by the catalog as it is now, and by what the target says of the very object."""
    with look.database.transaction() as conn:
        rows: dict[str, list[_Row]] = {}
        for row in look.rows(conn, keys):
            rows.setdefault(row.key, []).append(row)
        awaited = look.awaited(conn, keys)
    for key in keys:
        try:
            found = target.stat(key)
        except ArchiveDamageError:
            found = None
        finding, _ = _judge(look.name, key, rows.get(key, ()), found)
        if finding is None:
            continue
        if finding.kind is FindingKind.ORPHAN and found is not None and key not in rows:
            why = awaited(key, found)
            if why is not None:
                finding = Finding(FindingKind.UNFINISHED, look.name, key, finding.tenant_id, why)
        yield finding


@dataclass(frozen=True, slots=True)
class _Look:
    """What the catalog knows of one target's keys."""

    database: Database
    name: str
    tenant_id: str | None
    is_default: bool

    def rows(self, conn: sa.Connection, keys: Sequence[str] | None = None) -> Iterator[_Row]:
        """Everything known (or what is known of these keys), in the order of keys, in one streamed query."""
        known = sa.union_all(*self._parts()).subquery()
        # The order of the characters' numbers, as listings have it; not that of a language.
        query = sa.select(known).order_by(sa.collate(known.c.key, "C"))
        if keys is not None:
            query = query.where(known.c.key == sa.any_(sa.literal(list(keys), sa.ARRAY(sa.Text))))
        for row in conn.execute(query, execution_options={"yield_per": _FETCH}):
            yield _Row(row.key, _Kept(row.kept), row.size_bytes, row.tenant_id, row.reason)

    def _parts(self) -> list[sa.Select[Any]]:
        q, r, c, g = quarantine.c, removals.c, certificates.c, governance.c
        kept = sa.case((r.removed_at.is_(None), _Kept.PENDING.value), else_=_Kept.REMOVED.value)
        stored = sa.case((c.stored_in == self.name, _Kept.COPY.value), else_=_Kept.RECORD.value)
        mirrored = sa.case((g.mirrored, _Kept.COPY.value), else_=_Kept.RECORD.value)
        certificate = sa.literal("tenant_id=") + c.tenant_id + "/certificates/" + _padded(c.number) + ".json"
        parts = [
            (
                segments,
                _part(segments, segments.c.key, sa.literal(_Kept.SEGMENT.value), segments.c.size_bytes),
            ),
            (removals, _part(removals, r.key, kept, r.size_bytes, r.reason)),
            (
                quarantine,
                _part(quarantine, q.key, sa.literal(_Kept.QUARANTINED.value), reason=q.reason),
            ),
        ]
        parts = [(table, part.where(table.c.target == self.name)) for table, part in parts]
        parts.append((certificates, _part(certificates, certificate, stored)))
        if self.tenant_id is not None:
            return [part.where(table.c.tenant_id == self.tenant_id) for table, part in parts]
        if self.is_default:
            entry = sa.literal(GOVERNANCE_PREFIX) + _padded(g.entry_no) + ".json"
            parts.append((governance, _part(governance, entry, mirrored)))
        return [part for _, part in parts]

    def awaited(self, conn: sa.Connection, keys: Sequence[str]) -> Callable[[str, ObjectInfo], str | None]:
        """Says of an object that no catalog row names why a retry would take it as its own work; None: none
        would."""
        sealed = {
            (row.tenant_id, to_us(row.window_from))
            for row in conn.execute(
                sa.select(windows.c.tenant_id, windows.c.window_from).where(
                    windows.c.state == WindowState.SEALED.value, windows.c.target == self.name
                )
            )
        }
        elsewhere = {
            row.key: row
            for row in conn.execute(
                sa.select(segments.c.key, segments.c.target, segments.c.size_bytes).where(
                    segments.c.key == sa.any_(sa.literal(list(keys), sa.ARRAY(sa.Text))),
                    segments.c.target != self.name,
                )
            )
        }

        def why(key: str, found: ObjectInfo) -> str | None:
            parsed = parse_segment_key(key)
            if parsed is None:
                return None
            if parsed.repair == 0 and (parsed.tenant_id, parsed.window.from_us) in sealed:
                return "its window is being archived"
            other = elsewhere.get(key)
            if other is not None and other.size_bytes == found.size_bytes:
                return f"a copy of what is in {other.target!r}, which is to move here"
            return None

        return why


def _part(
    table: sa.Table,
    key: sa.ColumnElement[Any],
    kept: sa.ColumnElement[Any],
    size: sa.ColumnElement[Any] | None = None,
    reason: sa.ColumnElement[Any] | None = None,
) -> sa.Select[Any]:
    nothing, none = sa.cast(sa.null(), sa.BigInteger), sa.cast(sa.null(), sa.Text)
    return sa.select(
        key.label("key"),
        kept.label("kept"),
        (nothing if size is None else size).label("size_bytes"),
        table.c.tenant_id,
        (none if reason is None else reason).label("reason"),
    )


def _padded(number: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A number as keys have it: eight digits, or as many as it takes."""
    text = sa.cast(number, sa.Text)
    return sa.func.lpad(text, sa.func.greatest(8, sa.func.length(text)), "0")


def _not_copied(database: Database, default: str, tenant_id: str | None) -> Iterator[Finding]:
    query = sa.select(certificates.c.tenant_id, certificates.c.number).where(
        certificates.c.stored_in.is_(None)
    )
    if tenant_id is not None:
        query = query.where(certificates.c.tenant_id == tenant_id)
    with database.transaction() as conn:
        missing = conn.execute(query.order_by(certificates.c.tenant_id, certificates.c.number)).all()
        entries = conn.execute(
            sa.select(sa.func.count()).select_from(governance).where(~governance.c.mirrored)
        ).scalar_one()
    for row in missing:
        what = f"certificate {row.number} of {row.tenant_id!r} has no copy in a target"
        yield Finding(FindingKind.NOT_COPIED, default, None, row.tenant_id, what)
    if entries and tenant_id is None:
        what = f"{entries:,} entries of the record of governance have no copy in the target"
        yield Finding(FindingKind.NOT_COPIED, default, None, None, what)
