"""Certificates as stored: numbering, signing, keeping, copying to a target, and checking them.

A tenant's certificates are a chain of their own. Each is stored in the transaction that takes what it stands
for out of the log; its copy in the default target follows, so that it outlives Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.archive.layout import certificate_key, public_key_key
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.catalog.subtrees import keep_subtrees
from eventstore.clock import from_us, to_us
from eventstore.db.engine import Database
from eventstore.db.tables import certificates, deployment, heads, segments, signing_keys, windows
from eventstore.errors import (
    CertificateNotFoundError,
    EventStoreError,
    IntegrityError,
    SetupError,
    StateError,
)
from eventstore.governance.envelope import CERTIFICATE_TYPE, decode
from eventstore.governance.holds import lock_destruction
from eventstore.governance.record import EntryKind, put_equal, record, required_text
from eventstore.governance.signing import SigningKey, VerifyKey, verify
from eventstore.model.certificate import (
    Certificate,
    CertificateKind,
    certificate_start,
    from_payload,
    payload_sha256,
    to_payload,
)
from eventstore.model.certificate_chain import check_against_log, check_certificate, check_chain
from eventstore.model.window import WindowState

__all__ = [
    "StoredCertificate",
    "add_key",
    "check_certificates",
    "get_certificate",
    "knows_keys",
    "latest_copy",
    "list_certificates",
    "newest_certificates",
    "next_certificate",
    "put_certificate",
    "refuse_strange_key",
    "remember_key",
    "signing_time_us",
    "store_certificate",
    "store_copies",
    "trusted_keys",
]


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A certificate, its envelope, and the target that has a copy (None: none yet). Its signature has not
    been looked at."""

    certificate: Certificate
    envelope: bytes
    stored_in: str | None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys that signed it."""
        return tuple(signature.key_id for signature in decode(self.envelope).signatures)


# --- storing ------------------------------------------------------------------------------------------


def next_certificate(conn: sa.Connection, tenant_id: str) -> tuple[int, bytes]:
    """The number and `previous_sha256` of a tenant's next certificate, which has to be stored in the
    connection's transaction: the tenant's destruction lock is held until that ends.

    Raises:
        BusyError: the lock was not to be had in time.
    """
    lock_destruction(conn, tenant_id)
    query = (
        sa.select(certificates.c.number, certificates.c.payload_sha256)
        .where(certificates.c.tenant_id == tenant_id)
        .order_by(certificates.c.number.desc())
        .limit(1)
    )
    last = conn.execute(query).one_or_none()
    if last is not None:
        return last.number + 1, bytes(last.payload_sha256)
    return 1, certificate_start(_store_id(conn), tenant_id)


def signing_time_us(conn: sa.Connection) -> int:
    """The time at which a certificate is signed: the database's, which no simulated clock moves."""
    return to_us(conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one())


def _store_id(conn: sa.Connection) -> str:
    return str(conn.execute(sa.select(deployment.c.store_id)).scalar_one())


def store_certificate(conn: sa.Connection, certificate: Certificate, key: SigningKey) -> StoredCertificate:
    """Sign a certificate and store it, in the connection's transaction, with the public half of the key.

    Raises:
        IntegrityError: it contradicts itself, or is not the tenant's next one. Nothing is stored.
        InputError: it says something that no certificate can.
    """
    problems = check_certificate(certificate)
    if (certificate.number, certificate.previous_sha256) != next_certificate(conn, certificate.tenant_id):
        problems.append(f"{certificate}: it does not follow the one before")
    if certificate.store_id != _store_id(conn):
        problems.append(f"{certificate}: it is of another store")
    if problems:
        raise IntegrityError("; ".join(problems), hint="nothing was destroyed; please report this")
    refuse_strange_key(conn, key.verify_key)
    payload = to_payload(certificate)
    envelope = key.sign(CERTIFICATE_TYPE, payload)
    # As whoever verifies it will read it.
    assert verify(envelope, {key.key_id: key.verify_key}) == payload
    remember_key(conn, key.verify_key)
    start = certificate.window_from_us
    conn.execute(
        sa.insert(certificates).values(
            tenant_id=certificate.tenant_id,
            number=certificate.number,
            kind=certificate.kind.value,
            window_from=None if start is None else from_us(start),
            first_seq=certificate.first_seq,
            last_seq=certificate.last_seq,
            hash_before=certificate.hash_before,
            hash_after=certificate.hash_after,
            payload_sha256=payload_sha256(payload),
            envelope=envelope,
            issued_us=certificate.issued_at_us,
        )
    )
    keep_subtrees(conn, certificate.tenant_id, certificate.subtrees)
    return StoredCertificate(certificate, envelope, None)


def store_copies(database: Database, targets: Targets, tenant_id: str | None = None) -> int:
    """Copy every certificate (of a tenant) that has no copy yet into the default target, and the public keys;
    how many there were. Idempotent.

    Raises:
        ArchiveConflictError: another object lies under a certificate's key.
        SetupError, TargetUnavailableError: the default target cannot be used now.
    """
    query = sa.select(certificates.c.tenant_id, certificates.c.number, certificates.c.envelope).where(
        certificates.c.stored_in.is_(None)
    )
    if tenant_id is not None:
        query = query.where(certificates.c.tenant_id == tenant_id)
    with database.transaction() as conn:
        missing = list(conn.execute(query.order_by(certificates.c.tenant_id, certificates.c.number)))
        keys = trusted_keys(conn) if missing else {}
    for key_id, key in keys.items():  # without it, whoever has only the archive could not check them
        put_equal(targets[targets.default], public_key_key(key_id), key.to_pem())
    for row in missing:
        put_certificate(targets[targets.default], row.tenant_id, row.number, bytes(row.envelope))
        # Dying here leaves a copy that nobody noted; the next time it is found equal.
        with database.transaction() as conn:
            conn.execute(
                sa.update(certificates)
                .where(certificates.c.tenant_id == row.tenant_id, certificates.c.number == row.number)
                .values(stored_in=targets.default)
            )
    return len(missing)


def put_certificate(target: ArchiveTarget, tenant_id: str, number: int, envelope: bytes) -> None:
    """Store a copy of an envelope, or find it stored already. Durable when this returns.

    Raises:
        ArchiveConflictError: another object lies under its key.
        TargetUnavailableError: the target did not answer.
    """
    put_equal(target, certificate_key(tenant_id, number), envelope)


def latest_copy(target: ArchiveTarget, tenant_id: str) -> tuple[int, bytes] | None:
    """Number and payload SHA-256 of the newest certificate that a target has a copy of: the database may have
    lost its own. None: it has none.

    Raises:
        IntegrityError: the copy is damaged.
        TargetUnavailableError: the target did not answer.
    """
    prefix = certificate_key(tenant_id, 0).removesuffix("00000000.json")
    newest = max((info.key for info in target.list(prefix)), default=None)
    if newest is None:
        return None
    with target.open(newest) as file:
        payload = decode(file.read()).payload
    return from_payload(payload).number, payload_sha256(payload)


# --- keys ---------------------------------------------------------------------------------------------


def remember_key(conn: sa.Connection, key: VerifyKey) -> None:
    """Keep a public key among those that are trusted. Idempotent.

    Raises:
        IntegrityError: another key is kept under its id.
    """
    known = conn.execute(
        sa.select(signing_keys.c.public_key).where(signing_keys.c.key_id == key.key_id)
    ).scalar_one_or_none()
    if known is None:
        conn.execute(
            sa.dialects.postgresql.insert(signing_keys)
            .values(key_id=key.key_id, public_key=key.raw)
            .on_conflict_do_nothing()
        )
    elif bytes(known) != key.raw:
        raise IntegrityError(f"another public key is kept as {key.key_id}", hint="look at table signing_keys")


def add_key(database: Database, key: VerifyKey, *, actor: str, reason: str, now_us: int) -> None:
    """Let another key sign for this deployment, from now on beside the others; recorded.

    Raises:
        InputError: who or why is missing.
        StateError: it is one of the deployment's keys already.
    """
    who, why = required_text("who adds it", actor), required_text("the reason", reason)
    with database.transaction() as conn:
        if key.key_id in _key_ids(conn):
            raise StateError(
                f"{key.key_id} is a key of this deployment already",
                hint="to sign with another one, move the file away first, and keep it",
            )
        document = {"key_id": key.key_id, "public_key": key.to_pem().decode(), "reason": why}
        record(conn, EntryKind.SIGNING_KEY_ADDED, None, who, document, now_us)
        remember_key(conn, key)


def knows_keys(conn: sa.Connection) -> bool:
    """Whether anything of this deployment was signed, or is to be."""
    return bool(_key_ids(conn))


def _key_ids(conn: sa.Connection) -> set[str]:
    return set(conn.execute(sa.select(signing_keys.c.key_id)).scalars())


def refuse_strange_key(conn: sa.Connection, key: VerifyKey) -> None:
    """The first key that signs is the deployment's; a host that made one of its own must not go on with it
    unnoticed (SetupError)."""
    known = _key_ids(conn)
    if known and key.key_id not in known:
        raise SetupError(
            f"this host's signing key {key.key_id} is none of this deployment's ({', '.join(sorted(known))})",
            hint="copy the key file from the host that has it, or run eventstore certificates new-key",
        )


def trusted_keys(conn: sa.Connection) -> dict[str, VerifyKey]:
    """Every public key that signed something of this store, by its id.

    Raises:
        IntegrityError: one is not what its id says.
    """
    found = {}
    for row in conn.execute(sa.select(signing_keys.c.key_id, signing_keys.c.public_key)):
        try:
            key = VerifyKey.from_raw(bytes(row.public_key))
        except SetupError as e:
            raise IntegrityError(f"signing key {row.key_id}: {e.message}", hint=e.hint) from e
        if key.key_id != row.key_id:
            raise IntegrityError(
                f"signing key {row.key_id} was altered", hint="compare it with the key that you have"
            )
        found[row.key_id] = key
    return found


# --- reading and checking -----------------------------------------------------------------------------


def list_certificates(conn: sa.Connection, tenant_id: str) -> list[StoredCertificate]:
    """A tenant's certificates by number.

    Raises:
        IntegrityError: one cannot be read. `check_certificates` says more.
    """
    return [_stored(row) for row in _rows(conn, tenant_id)]


def newest_certificates(
    conn: sa.Connection, tenant_id: str, *, before: int | None = None, limit: int
) -> list[StoredCertificate]:
    """At most `limit` of a tenant's certificates, the newest first; those with numbers below `before`.

    Raises:
        IntegrityError: one cannot be read.
    """
    query = sa.select(certificates).where(certificates.c.tenant_id == tenant_id)
    if before is not None:
        query = query.where(certificates.c.number < before)
    rows = conn.execute(query.order_by(certificates.c.number.desc()).limit(limit))
    return [_stored(row) for row in rows]


def get_certificate(conn: sa.Connection, tenant_id: str, number: int) -> StoredCertificate:
    """One certificate.

    Raises:
        CertificateNotFoundError: the tenant has none of that number.
        IntegrityError: it cannot be read.
    """
    for row in _rows(conn, tenant_id, number):
        return _stored(row)
    raise CertificateNotFoundError(
        f"{tenant_id!r} has no certificate {number}", hint=f"eventstore certificates list {tenant_id}"
    )


def _stored(row: sa.Row[tuple[object, ...]]) -> StoredCertificate:
    envelope = bytes(row.envelope)
    return StoredCertificate(from_payload(decode(envelope).payload), envelope, row.stored_in)


def _rows(
    conn: sa.Connection, tenant_id: str, number: int | None = None
) -> Sequence[sa.Row[tuple[object, ...]]]:
    query = sa.select(certificates).where(certificates.c.tenant_id == tenant_id)
    if number is not None:
        query = query.where(certificates.c.number == number)
    return conn.execute(query.order_by(certificates.c.number)).all()


def check_certificates(
    conn: sa.Connection,
    tenant_id: str,
    keys: Mapping[str, VerifyKey],
    *,
    hash_at: Callable[[int], bytes | None] | None = None,
    noted: tuple[int, bytes] | None = None,
) -> list[str]:
    """What is wrong with a tenant's certificates, in words; empty: nothing.

    Looked at: every signature, against `keys`; each row against what was signed; the chain; the log's head,
    so that a log whose end was cut off is noticed; the catalog, so that every expired window has its
    certificate, and no window with one is still there. `hash_at` gives the stored hash of an event (None: no
    tier has it), for events that the catalog knows no hash of; without it these are not compared. `noted`:
    number and payload SHA-256 of a certificate, kept elsewhere, which tells when the last ones were taken
    away.
    """
    problems: list[str] = []
    found: list[tuple[Certificate, bytes]] = []
    for row in _rows(conn, tenant_id):
        try:
            payload = verify(bytes(row.envelope), keys)
            certificate = from_payload(payload)
        except EventStoreError as e:
            problems.append(f"certificate {row.number}: {e.message}")
            continue
        if not _row_fits(row, certificate, payload):
            problems.append(f"certificate {row.number}: its row in the database says something else")
        found.append((certificate, payload))
    if problems:
        return problems
    problems = check_chain(found, store_id=_store_id(conn), tenant_id=tenant_id, noted=noted)
    every = [certificate for certificate, _ in found]
    problems += _check_windows(conn, tenant_id, every)
    head = conn.execute(sa.select(heads).where(heads.c.tenant_id == tenant_id)).one_or_none()
    if head is None:
        return [*problems, "the tenant has no head"]
    said = {seq: value for c in every for seq, value in _said(c)}

    def known_hash(seq: int) -> bytes | None:
        cataloged = _cataloged_hash(conn, tenant_id, seq)
        if cataloged is not None:
            return cataloged
        return said.get(seq) if hash_at is None else hash_at(seq)

    return problems + check_against_log(every, head.last_seq, bytes(head.last_hash), known_hash)


def _row_fits(row: sa.Row[tuple[object, ...]], certificate: Certificate, payload: bytes) -> bool:
    start = certificate.window_from_us
    return (
        row.number,
        row.tenant_id,
        row.kind,
        None if row.window_from is None else to_us(row.window_from),
        row.first_seq,
        row.last_seq,
        bytes(row.hash_before),
        bytes(row.hash_after),
        bytes(row.payload_sha256),
        row.issued_us,
    ) == (
        certificate.number,
        certificate.tenant_id,
        certificate.kind.value,
        start,
        certificate.first_seq,
        certificate.last_seq,
        certificate.hash_before,
        certificate.hash_after,
        payload_sha256(payload),
        certificate.issued_at_us,
    )


def _check_windows(conn: sa.Connection, tenant_id: str, every: Sequence[Certificate]) -> list[str]:
    """Every window that is gone has its certificate, and only they have."""
    offboarded = any(c.kind is CertificateKind.OFFBOARDED for c in every)
    certified = {
        (c.window_from_us, c.first_seq, c.last_seq) for c in every if c.kind is CertificateKind.EXPIRED
    }
    query = sa.select(windows.c.window_from, windows.c.first_seq, windows.c.last_seq).where(
        windows.c.tenant_id == tenant_id, windows.c.state == WindowState.EXPIRED.value
    )
    gone = {(to_us(row.window_from), row.first_seq, row.last_seq) for row in conn.execute(query)}
    problems = [
        f"seq {first} to {last} is gone, and no certificate stands for it"
        for _, first, last in sorted(gone - certified)
        if not offboarded
    ]
    return problems + [
        f"seq {first} to {last} is certified as destroyed, but the catalog does not say so"
        for _, first, last in sorted(certified - gone, key=lambda found: found[1])
    ]


def _said(c: Certificate) -> list[tuple[int, bytes]]:
    return [(c.first_seq - 1, c.hash_before), (c.last_seq, c.hash_after), (c.head_seq, c.head_hash)]


def _cataloged_hash(conn: sa.Connection, tenant_id: str, seq: int) -> bytes | None:
    """The hash of an event at the end of a window or a segment, as the catalog has it."""
    for table in (windows, segments):
        query = sa.select(table.c.hash_after).where(table.c.tenant_id == tenant_id, table.c.last_seq == seq)
        found = conn.execute(query).scalar_one_or_none()
        if found is not None:
            return bytes(found)
    return None
