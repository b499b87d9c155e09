"""One archived window brought back for a time, as files in a folder of their own, apart from the log.

The folder's manifest names the files before they are there, so that whatever a process that died has left is
found and removed when its time has come; and nothing else ever is.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import sqlalchemy as sa

from eventstore.archive.targets import Targets
from eventstore.archive.verify import read_segment
from eventstore.catalog.tenants import get_tenant
from eventstore.catalog.windows import list_segments
from eventstore.clock import from_us, to_iso, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import certificates, restores, windows
from eventstore.errors import (
    ArchiveDamageError,
    InputError,
    IntegrityError,
    StateError,
    TargetUnavailableError,
)
from eventstore.model.certificate import CertificateKind
from eventstore.model.segment import Segment
from eventstore.model.window import Window, WindowState
from eventstore.repair.content import check_content

__all__ = ["MANIFEST", "Purged", "Restored", "list_restores", "purge_restores", "restore_window"]

MANIFEST = "restore.json"
_PART = ".part"
# A window that moves while it is read is looked up anew so often.
_ANEW_MAX = 5


@dataclass(frozen=True, slots=True)
class Restored:
    """A window that was brought back. `host` is the machine whose folder `place` is. `removed_us` None: it is
    still there."""

    restore_id: uuid.UUID
    tenant_id: str
    window_from_us: int
    host: str
    place: Path
    events: int
    created_us: int
    expires_us: int
    removed_us: int | None = None


@dataclass(frozen=True, slots=True)
class Purged:
    """What became of a restore whose time had come. `left`: what lies in its folder and is not its own."""

    restore: Restored
    removed: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    window: Window
    state: WindowState
    segments: tuple[Segment, ...]


def restore_window(
    database: Database,
    targets: Targets,
    tenant_id: str,
    at_us: int,
    place: Path | None = None,
    *,
    home: Path,
    now_us: int,
    expires_us: int,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Bring back the window in which a time lies. `place` is a folder that is not there yet, or empty; None:
    one under `home`. Each segment's chain is recomputed, and its file read back after it was written; when
    this returns, all are durable. `progress` is told the bytes written, and those to be written.

    Raises:
        InputError: there is no such window, it is still in Postgres, or the folder is in use.
        StateError: it was destroyed; says under which certificate.
        IntegrityError: a segment is damaged; nothing is left behind.
        TenantNotFoundError, TargetUnavailableError
    """
    found = _find(database, tenant_id, at_us)
    if place is None:
        place = home / "restored" / tenant_id / f"{from_us(found.window.from_us):%Y%m%dT%H%M%SZ}"
    place = place.expanduser().absolute()
    _make_place(place)
    events = sum(s.range.event_count for s in found.segments)
    restored = Restored(
        uuid.uuid4(), tenant_id, found.window.from_us, socket.gethostname(), place, events, now_us, expires_us
    )
    _write_durably(place / MANIFEST, _manifest(restored, found))
    # Dying here leaves a folder with a manifest and nothing else, which nobody looks for.
    with database.transaction() as conn:
        conn.execute(
            sa.insert(restores).values(
                restore_id=restored.restore_id,
                tenant_id=tenant_id,
                window_from=from_us(found.window.from_us),
                place=_place_text(restored),
                events=events,
                created_at=from_us(now_us),
                expires_us=expires_us,
            )
        )
    # Dying from here on leaves what the manifest names, or a part of it, until its time has come.
    try:
        _bring(database, targets, found, place, progress)
    except BaseException:
        _remove(database, restored, now_us)
        raise
    return restored


# --- which window -----------------------------------------------------------------------------------------


def _find(database: Database, tenant_id: str, at_us: int) -> _Found:
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        row = conn.execute(
            sa.select(windows).where(
                windows.c.tenant_id == tenant_id,
                windows.c.window_from <= from_us(at_us),
                windows.c.window_to > from_us(at_us),
            )
        ).one_or_none()
        if row is None:
            raise InputError(
                f"{tenant_id!r} has no window at {to_iso(at_us)[:19]}Z",
                hint=f"eventstore archive ls --tenant {tenant_id}",
            )
        window, state = Window(to_us(row.window_from), to_us(row.window_to)), WindowState(row.state)
        if state is WindowState.EXPIRED:
            raise _destroyed(conn, tenant_id, window, row.first_seq)
        if state in (WindowState.OPEN, WindowState.SEALED):
            raise InputError(
                f"window {window} of {tenant_id!r} is in Postgres, not in the archive",
                hint=f"eventstore events {tenant_id} reads it",
            )
        found = list_segments(conn, tenant_id, seq_from=row.first_seq, seq_to=row.last_seq)
    return _Found(window, state, tuple(found))


def _destroyed(conn: sa.Connection, tenant_id: str, window: Window, seq: int) -> StateError:
    c = certificates.c
    query = sa.select(c.number, c.kind, c.issued_us).where(
        c.tenant_id == tenant_id, c.first_seq <= seq, c.last_seq >= seq
    )
    row = conn.execute(query.order_by(c.number).limit(1)).one_or_none()
    if row is None:
        return StateError(
            f"window {window} of {tenant_id!r} was destroyed, and no certificate says so",
            hint=f"eventstore certificates verify {tenant_id}",
        )
    how = "with the whole log" if row.kind == CertificateKind.OFFBOARDED.value else "under its policy"
    return StateError(
        f"window {window} of {tenant_id!r} was destroyed {how} on {to_iso(row.issued_us)[:10]}: "
        f"certificate {row.number}",
        hint=f"eventstore certificates show {tenant_id} {row.number}",
    )


# --- bringing it ------------------------------------------------------------------------------------------


def _bring(
    database: Database,
    targets: Targets,
    found: _Found,
    place: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    total, done = sum(s.size_bytes for s in found.segments), 0
    last_hash = found.segments[0].range.hash_before if found.segments else b""
    for index, segment in enumerate(found.segments):
        data = _read(database, targets, found, index)
        path = place / _file_name(segment)
        part = path.with_name(path.name + _PART)
        _write_durably(part, data)
        # What counts is what lies in the folder, not what was on its way there.
        if hashlib.sha256(part.read_bytes()).digest() != segment.sha256:
            raise IntegrityError(f"{path.name} is not in {place} what it was in its target")
        if segment.range.hash_before != last_hash:
            raise IntegrityError(f"{path.name} does not join the segment before it")
        last_hash = segment.range.hash_after
        os.replace(part, path)
        _sync_folder(place)
        done += segment.size_bytes
        if progress is not None:
            progress(done, total)


def _read(database: Database, targets: Targets, found: _Found, index: int) -> bytes:
    """A segment's bytes, its digest and its chain being right."""
    segment = found.segments[index]
    for anew_left in reversed(range(_ANEW_MAX)):
        try:
            content = read_segment(targets[segment.target], segment.key, sha256=segment.sha256)
            check_content(content, target_name=segment.target)
            return content.data
        except (ArchiveDamageError, TargetUnavailableError) as e:
            now = _find(database, segment.range.tenant_id, found.window.from_us).segments
            if anew_left == 0 or index >= len(now) or now[index].sha256 != segment.sha256:
                raise
            if (now[index].target, now[index].key) == (segment.target, segment.key):
                if isinstance(e, TargetUnavailableError):
                    raise
                raise ArchiveDamageError(
                    e.message, key=e.key, hint="eventstore archive scrub repairs it if there is a good copy"
                ) from e
            segment = now[index]
    raise AssertionError("unreachable")


def _manifest(restored: Restored, found: _Found) -> bytes:
    first, last = found.segments[0].range, found.segments[-1].range
    document = {
        "what": "events of one window, brought back from the archive; apart from the log, which it does not "
        "change. These files are removed after the time below; others in this folder are not.",
        "restore_id": str(restored.restore_id),
        "tenant_id": restored.tenant_id,
        "window_from": to_iso(found.window.from_us),
        "window_to": to_iso(found.window.to_us),
        "first_seq": first.first_seq,
        "last_seq": last.last_seq,
        "hash_before": first.hash_before.hex(),
        "hash_after": last.hash_after.hex(),
        "created": to_iso(restored.created_us),
        "expires": to_iso(restored.expires_us),
        "files": [
            {
                "name": _file_name(s),
                "from_target": s.target,
                "from_key": s.key,
                "first_seq": s.range.first_seq,
                "last_seq": s.range.last_seq,
                "size_bytes": s.size_bytes,
                "sha256": s.sha256.hex(),
            }
            for s in found.segments
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _file_name(segment: Segment) -> str:
    return segment.key.rpartition("/")[2]


def _make_place(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(place.iterdir()):
            raise InputError(
                f"{place} is not empty",
                hint="name another folder with --to, or remove what is there",
            )
    except OSError as e:
        raise InputError(f"cannot use {place}: {e.strerror}", hint="name another folder with --to") from e


def _write_durably(path: Path, data: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}", hint="is there room?") from e


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the end of its time ----------------------------------------------------------------------------------


def list_restores(
    conn: sa.Connection, *, tenant_id: str | None = None, every: bool = False
) -> list[Restored]:
    """Restores that are there (or all that ever were), oldest first."""
    query = sa.select(restores).order_by(restores.c.created_at, restores.c.restore_id)
    if tenant_id is not None:
        query = query.where(restores.c.tenant_id == tenant_id)
    if not every:
        query = query.where(restores.c.removed_at.is_(None))
    return [_restored(row) for row in conn.execute(query)]


def purge_restores(database: Database, now_us: int, *, tenant_id: str | None = None) -> list[Purged]:
    """Remove the restores whose time has come, and all of a tenant, as far as they lie on this machine: the
    files that a restore's manifest names, the manifest, and the folder if nothing else is in it. Any other
    file stays."""
    with database.transaction() as conn:
        due = [r for r in list_restores(conn) if r.expires_us <= now_us or r.tenant_id == tenant_id]
    purged = []
    for found in due:
        done = _remove(database, found, now_us)
        if done is not None:
            purged.append(done)
    return purged


def _remove(database: Database, found: Restored, now_us: int) -> Purged | None:
    """Remove what a restore's manifest names; None: it lies on another machine, or cannot be removed now."""
    manifest = _read_manifest(found)
    if manifest is None and (found.host != socket.gethostname() or (found.place / MANIFEST).exists()):
        # Elsewhere; or the folder is another's by now, which nobody may take away from him.
        return None
    removed, left = 0, tuple[str, ...]()
    if manifest is not None:
        try:
            for name in _names(manifest):
                for path in (found.place / name, found.place / (name + _PART)):
                    if path.is_file() and not path.is_symlink():
                        path.unlink()
                        removed += 1
            (found.place / MANIFEST).unlink()
            _sync_folder(found.place)
        except OSError:
            return None  # tried again the next time
        left = tuple(sorted(path.name for path in found.place.iterdir()))
        with suppress(OSError):
            found.place.rmdir()  # only if it is empty
    # Dying here leaves the row, and the next time nothing is found: then it is marked.
    with database.transaction() as conn:
        conn.execute(
            sa.update(restores)
            .where(restores.c.restore_id == found.restore_id)
            .values(removed_at=from_us(now_us))
        )
    return Purged(found, removed, left)


def _read_manifest(found: Restored) -> dict[str, Any] | None:
    """The manifest in a restore's folder, if it is this restore's."""
    try:
        manifest = json.loads((found.place / MANIFEST).read_bytes())
        return manifest if manifest["restore_id"] == str(found.restore_id) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _names(manifest: dict[str, Any]) -> list[str]:
    """The files of a manifest: names only, whatever somebody may have written into it."""
    names = [str(file["name"]) for file in manifest.get("files", ())]
    return [name for name in names if name == os.path.basename(name) and name.endswith(".parquet")]


def _place_text(restored: Restored) -> str:
    return f"file://{restored.host}{quote(str(restored.place))}"


def _restored(row: sa.Row[tuple[object, ...]]) -> Restored:
    parts = urlsplit(row.place)
    return Restored(
        row.restore_id,
        row.tenant_id,
        to_us(row.window_from),
        parts.netloc,
        Path(unquote(parts.path)),
        row.events,
        to_us(row.created_at),
        row.expires_us,
        None if row.removed_at is None else to_us(row.removed_at),
    )
