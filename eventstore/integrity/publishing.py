"""Checkpoints where somebody else keeps them: a file, or an address that takes a PUT.

What is there already is read first. It has to be a checkpoint of the same log, not larger than what is to be
signed, and the tree has to have its root: else nothing is signed, and nothing is replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from eventstore.db.engine import Database
from eventstore.db.locks import busy_when_locked, checkpoint_key
from eventstore.db.tables import heads
from eventstore.db.tables_tree import checkpoints
from eventstore.errors import EventStoreError, InputError, IntegrityError, TargetUnavailableError
from eventstore.governance.certificates import trusted_keys
from eventstore.governance.signing import SigningKey
from eventstore.integrity.checkpoints import SignedCheckpoint, log_origin, make_checkpoint, read_checkpoint
from eventstore.integrity.places import check_destination
from eventstore.integrity.tree import Progress, Tree
from eventstore.model.note import Checkpoint
from eventstore.query.tiers import Tiers

__all__ = [
    "Destination",
    "Keepers",
    "Published",
    "checkpoint_and_publish",
    "destination_of",
    "list_digest",
    "tenants_behind",
]

_log = logging.getLogger(__name__)

_DOCUMENT_BYTES_MAX = 64 * 2**10
_TIMEOUT_S = 10.0
_PAUSES_S = (0.5, 2.0)
# So long somebody else's checkpoint of the same log is waited for.
_LOCK_TIMEOUT_MS = 60_000
# A destination that nobody can read, or where there is nothing yet.
_NOTHING = (401, 403, 404, 405, 410, 501)
_AGAIN = (429, 500, 502, 503, 504)
# What was read is not there any more: somebody else has replaced it. It is read and compared again, so often.
_QUICKER = 412
_QUICKER_MAX = 3


class Destination(Protocol):
    """Where one log's checkpoints are kept."""

    def describe(self) -> str:
        """Its name for people, without credentials."""

    def read(self) -> str | None:
        """What is there; None: nothing, or it cannot be read there."""

    def replace(self, document: str, newer: Callable[[str | None], bool]) -> None:
        """Store a document if `newer`, which is given what is there, says so."""


@dataclass(frozen=True, slots=True)
class Keepers:
    """Who keeps the checkpoints of one log. `digest` (`list_digest`) stands for the list of places that is
    to be remembered with a checkpoint once all of them have it; None: nothing is remembered."""

    destinations: Sequence[Destination] = ()
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it: the checkpoint (None: the log is empty), and the destinations that failed, and why."""

    checkpoint: SignedCheckpoint | None
    failed: tuple[tuple[str, EventStoreError], ...] = ()

    def log_failures(self, tenant_id: str) -> None:
        """Write down which destinations failed: for whoever has nobody to tell it to."""
        for where, problem in self.failed:
            _log.error("checkpoint of %s: %s: %s", tenant_id, where, problem)


def list_digest(places: Sequence[str]) -> bytes | None:
    """What stands for a list of places (before `{tenant}` is replaced), in any order; None: for none."""
    if not places:
        return None
    return hashlib.sha256(json.dumps(sorted(set(places))).encode()).digest()


def destination_of(text: str, tenant_id: str, *, token: str | None = None) -> Destination:
    """The destination of a tenant: `{tenant}` in the text becomes its name. `token` is sent to http(s)
    addresses as a bearer token.

    Raises:
        InputError: neither a path nor a file or http(s) URL.
    """
    found = check_destination(text).replace("{tenant}", tenant_id)
    parts = urlsplit(found)
    if parts.scheme in ("http", "https"):
        return _Address(found, token)
    return _File(Path(unquote(parts.path) if parts.scheme == "file" else found))


def tenants_behind(database: Database, digest: bytes | None = None) -> list[str]:
    """The tenants whose log has grown since their last checkpoint; with the digest of a list of places also
    those of whose last one it is not remembered that all of these have it."""
    with database.transaction() as conn:
        return list(conn.execute(_behind(digest)).scalars())


def _behind(digest: bytes | None) -> sa.Select[str]:
    """The query of `tenants_behind`. It looks at one checkpoint of each tenant, however many there are: they
    are kept for ever."""
    c = checkpoints.c
    newest = (
        sa.select(c.size, c.published_to)
        .where(c.tenant_id == heads.c.tenant_id)
        .order_by(c.size.desc())
        .limit(1)
        .lateral("newest")
    )
    behind = sa.or_(newest.c.size.is_(None), heads.c.last_seq > newest.c.size)
    if digest is not None:
        behind = sa.or_(behind, newest.c.published_to.is_distinct_from(digest))
    return (
        sa.select(heads.c.tenant_id)
        .outerjoin(newest, sa.true())
        .where(heads.c.last_seq > 0, behind)
        .order_by(heads.c.tenant_id)
    )


def checkpoint_and_publish(
    database: Database,
    tiers: Tiers,
    key: SigningKey,
    tenant_id: str,
    keepers: Keepers,
    *,
    progress: Progress | None = None,
) -> Published:
    """Make a checkpoint of a log as it is now, and bring it to every destination. One that cannot be reached
    does not keep it from the others. Whatever signs a log does it by this.

    Raises:
        IntegrityError: the log is not what was signed, or what a destination has is not of this log, not
            consistent with it, or larger. Nothing was signed, and nothing replaced.
        BusyError: somebody else makes a checkpoint of the same log, and did not end.
        SetupError, TenantNotFoundError, TargetUnavailableError: as `make_checkpoint`.
    """
    # What takes long is done by any number at once; then one after the other looks, signs and publishes.
    Tree(database, tiers).grow(tenant_id, tiers.state(tenant_id).last_seq, progress=progress)
    with _alone(database, tenant_id):
        return _publish(database, tiers, key, tenant_id, keepers)


@contextmanager
def _alone(database: Database, tenant_id: str) -> Iterator[None]:
    """Nobody else signs and publishes this tenant's log until the block is left.

    Raises:
        BusyError: somebody else does, for too long.
    """
    conn = database.connect_apart()
    try:
        with busy_when_locked(
            f"somebody else makes a checkpoint of {tenant_id!r}", hint="try again in a moment"
        ):
            conn.execute(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}".encode())
            conn.execute("SELECT pg_advisory_lock(%s)", [checkpoint_key(tenant_id)])
        yield
    finally:
        conn.close()


def _publish(
    database: Database, tiers: Tiers, key: SigningKey, tenant_id: str, keepers: Keepers
) -> Published:
    origin = log_origin(database, tenant_id)
    with database.transaction() as conn:
        keys = [*trusted_keys(conn).values(), key.verify_key]
    failed: list[tuple[str, EventStoreError]] = []
    # And what was there, which was compared.
    reached: list[tuple[Destination, str | None]] = []

    def kept(destination: Destination, document: str | None) -> Checkpoint | None:
        if document is None or not document.strip():
            return None
        try:
            return read_checkpoint(document, origin, keys)
        except EventStoreError as e:
            raise IntegrityError(
                f"what is kept at {destination.describe()} is no checkpoint of {tenant_id!r}: {e.message}",
                hint="nothing was replaced; look at what is there, and name another place",
            ) from e

    def compare_one(tree: Tree, size: int, destination: Destination, there: Checkpoint, left: str) -> None:
        if there.size > size:  # the log may have grown, and been signed, since
            size = tiers.state(tenant_id).last_seq
            tree.grow(tenant_id, min(size, there.size))
        _refuse_contradiction(tree, tenant_id, size, destination, there, left)

    def compare(tree: Tree, size: int) -> None:
        for destination in keepers.destinations:
            try:
                document = destination.read()
                there = kept(destination, document)
            except (TargetUnavailableError, InputError) as e:
                failed.append((destination.describe(), e))
                continue
            if there is not None:
                compare_one(tree, size, destination, there, "nothing was signed")
            reached.append((destination, document))

    found = make_checkpoint(database, tiers, key, tenant_id, before=compare)
    if found is None:
        return Published(None)
    for destination, compared in reached:

        def newer(document: str | None, to: Destination = destination, before: str | None = compared) -> bool:
            there = kept(to, document)
            if there is not None and document != before:  # somebody was quicker
                compare_one(Tree(database, tiers), found.size, to, there, "nothing was replaced there")
            return there is None or there.size < found.size

        try:
            destination.replace(found.note, newer)
        except EventStoreError as e:
            failed.append((destination.describe(), e))
    if keepers.digest is not None and not failed:
        with database.transaction() as conn:
            conn.execute(
                sa.update(checkpoints)
                .where(checkpoints.c.tenant_id == tenant_id, checkpoints.c.size == found.size)
                .values(published_to=keepers.digest)
            )
    return Published(found, tuple(failed))


def _refuse_contradiction(
    tree: Tree, tenant_id: str, size: int, destination: Destination, there: Checkpoint, left: str
) -> None:
    """`left`: what was not done therefore."""
    where = f"{destination.describe()} keeps a checkpoint of {there.size} events of {tenant_id!r}"
    if there.size > size:
        raise IntegrityError(
            f"{where}, and the log has {size}",
            hint=f"the end of the log was lost or cut off: compare with a backup; {left}",
        )
    if tree.root(tenant_id, there.size) != there.root:
        raise IntegrityError(
            f"{where}, and the log does not begin with those",
            hint=f"history was changed: compare with a backup; {left}",
        )


# --- a file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    path: Path

    def describe(self) -> str:
        return str(self.path)

    def read(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                return _text(file.read(_DOCUMENT_BYTES_MAX + 1), self)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise TargetUnavailableError(f"cannot read {self.path}: {e.strerror}") from e

    def replace(self, document: str, newer: Callable[[str | None], bool]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent) as folder:
                if newer(self.read()):
                    self._write(document)
                    os.fsync(folder)
        except OSError as e:
            raise TargetUnavailableError(
                f"cannot write {self.path}: {e.strerror}", hint="check that this user may write there"
            ) from e

    def _write(self, document: str) -> None:
        handle, staged = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(document.encode())
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(staged)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One writer at a time: between the look at what is there and its replacement nobody else replaces it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _text(octets: bytes, place: Destination) -> str:
    try:
        if len(octets) > _DOCUMENT_BYTES_MAX:
            raise ValueError("too long")
        return octets.decode()
    except ValueError as e:
        raise IntegrityError(f"what is kept at {place.describe()} is no checkpoint: {e}") from e


# --- an address -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content: bytes
    etag: str | None


@dataclass(slots=True)
class _Address:
    url: str
    token: str | None = field(repr=False)
    _etag: str | None = None

    def describe(self) -> str:
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    def read(self) -> str | None:
        answer = self._ask("GET")
        self._etag = None
        if answer.status in _NOTHING:
            return None
        if answer.status not in (200, 204):
            raise self._refused("GET", answer)
        self._etag = answer.etag
        return _text(answer.content, self)

    def replace(self, document: str, newer: Callable[[str | None], bool]) -> None:
        for _ in range(_QUICKER_MAX):
            if not newer(self.read()):
                return
            headers = {"Content-Type": "text/plain; charset=utf-8"}
            if self._etag is not None and not self._etag.startswith("W/"):
                headers["If-Match"] = self._etag  # somebody who was quicker is not overwritten
            answer = self._ask("PUT", content=document.encode(), headers=headers)
            if answer.status in (200, 201, 202, 204):
                return
            if answer.status != _QUICKER:
                raise self._refused("PUT", answer)
        raise TargetUnavailableError(
            f"{self.describe()}: what is there changed each time before it was replaced"
            f" (PUT answered {_QUICKER}, {_QUICKER_MAX} times)",
            hint="see who else publishes there; the next checkpoint tries again",
        )

    def _ask(
        self, method: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> _Answer:
        """One request, tried again when the server is away. Redirects are not followed: the token is for this
        address alone."""
        # Whatever opens the store imports this module; little of it publishes to a web server.
        import httpx

        sent = dict(headers or {})
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            for pause_s in (*_PAUSES_S, None):
                try:
                    with client.stream(method, self.url, content=content, headers=sent) as answer:
                        octets = b""
                        for piece in answer.iter_bytes():
                            octets += piece
                            if len(octets) > _DOCUMENT_BYTES_MAX:
                                break
                    if answer.status_code not in _AGAIN:
                        etag = answer.headers.get("ETag")
                        return _Answer(answer.status_code, octets, etag)
                    failure = f"{method} answered {answer.status_code}"
                except (httpx.HTTPError, httpx.InvalidURL) as e:
                    failure = type(e).__name__
                if pause_s is None:
                    break
                time.sleep(pause_s)
        raise TargetUnavailableError(f"{self.describe()}: {failure}", hint="the next checkpoint tries again")

    def _refused(self, method: str, answer: _Answer) -> EventStoreError:
        return TargetUnavailableError(
            f"{self.describe()}: {method} answered {answer.status}",
            hint="it has to take a PUT of text/plain; see docs/howto/checkpoints.md",
        )
