"""API keys as stored: made, listed, rotated, revoked. Whether a caller's key holds is decided in `access`.

Every change adds an entry to the record of governance and, with the same commit, tells whoever listens on
`KEYS_CHANNEL`. Changes are rare; the lock that such a NOTIFY takes at its commit is of no weight.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from eventstore.catalog.tenants import get_tenant
from eventstore.clock import US_PER_S, to_iso
from eventstore.db.engine import Database
from eventstore.db.tables import governance
from eventstore.db.tables_access import api_keys
from eventstore.errors import InputError, KeyNotFoundError, StateError, TenantClosedError, TenantNotFoundError
from eventstore.governance.record import EntryKind, record, required_text
from eventstore.model.access import Role
from eventstore.model.apikey import ApiKey, KeyState, digest_of, is_key_id, key_id_of, new_key_text
from eventstore.model.limits import Limits
from eventstore.model.tenant import TenantState, is_tenant_id

__all__ = [
    "KEYS_CHANNEL",
    "administrator_was_made",
    "create_key",
    "find_key",
    "get_key",
    "last_change",
    "list_keys",
    "note_uses",
    "revoke_key",
    "rotate_key",
]

KEYS_CHANNEL = "eventstore_keys"
LABEL_CHARACTERS_MAX = 200
# Of one tenant; those that ended within a day count, for each may have used up the day's limits.
TENANT_KEYS_MAX = 1000
_DAY_US = 86_400 * US_PER_S
# Compared with where there is no row, so that an unknown id takes the same steps as a wrong secret.
_NO_DIGEST = bytes(32)
_KEY_COLUMNS = [c for c in api_keys.c if c.name not in ("key_no", "digest", "changed_no")]


def create_key(
    database: Database,
    *,
    role: Role,
    tenant_id: str | None,
    by: str,
    now_us: int,
    label: str = "",
    expires_us: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> tuple[ApiKey, str]:
    """Make a key of a tenant, or of the deployment (None): the key, and its text, which nothing shows again.

    Raises:
        InputError: it would have ended already, or a text is missing or too long.
        StateError: the tenant has as many keys as it may have.
        TenantNotFoundError, TenantClosedError
    """
    key_id, text = new_key_text(role)
    who = required_text("who asks for it", by)
    named = required_text("the label", label, most=LABEL_CHARACTERS_MAX) if label else ""
    key = ApiKey(key_id, tenant_id, role, named, now_us, who, expires_us, limits)
    with database.transaction() as conn:
        _add(conn, key, text, EntryKind.KEY_CREATED, now_us)
    return key, text


def rotate_key(
    database: Database,
    key_id: str,
    *,
    by: str,
    now_us: int,
    overlap_us: int,
    expires_us: int | None = None,
    tenant_id: str | None = None,
) -> tuple[ApiKey, str, ApiKey]:
    """Make a key like another, which ends after the overlap (or at its own time, if that is sooner): the new
    key, its text, and the old key. Without `expires_us` the new key lasts as long as the old one was made to.

    With a `tenant_id`, only a key of that tenant is found.

    Raises:
        KeyNotFoundError: there is no such key.
        StateError: it has ended, and there is nothing to overlap with; or the tenant has too many keys.
        InputError: the new key would have ended already.
        TenantClosedError
    """
    with database.transaction() as conn:
        old = _lock(conn, key_id, tenant_id)
        _refuse_ended(old, now_us)
        if expires_us is None and old.expires_us is not None:
            expires_us = now_us + old.expires_us - old.created_us
        new_id, text = new_key_text(old.role)
        who = required_text("who asks for it", by)
        new = replace(
            old,
            key_id=new_id,
            created_us=now_us,
            created_by=who,
            expires_us=expires_us,
            replaces=old.key_id,
            last_used_us=None,
        )
        entry_no = _add(conn, new, text, EntryKind.KEY_ROTATED, now_us)
        ends_us = now_us + overlap_us
        if old.expires_us is not None:
            ends_us = min(ends_us, old.expires_us)
        _change(conn, key_id, expires_us=ends_us, changed_no=entry_no)
    return new, text, replace(old, expires_us=ends_us)


def revoke_key(
    database: Database, key_id: str, *, by: str, now_us: int, tenant_id: str | None = None
) -> ApiKey:
    """End a key now, in every process: those that remember it hear of it with the commit.

    With a `tenant_id`, only a key of that tenant is found.

    Raises:
        KeyNotFoundError: there is no such key.
        StateError: it was revoked already.
    """
    who = required_text("who revokes it", by)
    with database.transaction() as conn:
        key = _lock(conn, key_id, tenant_id)
        if key.revoked_us is not None:
            _refuse_ended(key, now_us)
        document = {"key_id": key_id, "role": key.role.value}
        entry_no = record(conn, EntryKind.KEY_REVOKED, key.tenant_id, who, document, now_us)
        _change(conn, key_id, revoked_us=now_us, revoked_by=who, changed_no=entry_no)
    return replace(key, revoked_us=now_us, revoked_by=who)


def list_keys(
    conn: sa.Connection,
    *,
    tenant_id: str | None = None,
    now_us: int,
    ended: bool = False,
    after: int = 0,
    limit: int = 1000,
) -> tuple[list[ApiKey], int | None]:
    """Keys of a tenant, or all (None), as they were made: those that hold, or with `ended` also the others;
    and, if there may be more, what the next page comes `after`."""
    query = sa.select(api_keys.c.key_no, *_KEY_COLUMNS).where(api_keys.c.key_no > after)
    if tenant_id is not None:
        query = query.where(api_keys.c.tenant_id == tenant_id)
    if not ended:
        holds = api_keys.c.expires_us.is_(None) | (api_keys.c.expires_us > now_us)
        query = query.where(api_keys.c.revoked_us.is_(None), holds)
    rows = conn.execute(query.order_by(api_keys.c.key_no).limit(limit)).all()
    return [_key(row) for row in rows], rows[-1].key_no if len(rows) == limit else None


# --- for whoever decides about callers ----------------------------------------------------------------


def find_key(conn: sa.Connection, text: bytes) -> ApiKey | None:
    """The key with this text, ended or not; None: there is none. Takes as long for a wrong secret as for an
    unknown id."""
    key_id = key_id_of(text)
    if key_id is None:
        return None
    query = sa.select(api_keys.c.digest, *_KEY_COLUMNS).where(api_keys.c.key_id == key_id)
    row = conn.execute(query).one_or_none()
    same = hmac.compare_digest(digest_of(text), _NO_DIGEST if row is None else row.digest)
    return _key(row) if row is not None and same else None


def get_key(conn: sa.Connection, key_id: str) -> ApiKey | None:
    """The key with this id, ended or not; None: there is none."""
    row = conn.execute(sa.select(*_KEY_COLUMNS).where(api_keys.c.key_id == key_id)).one_or_none()
    return None if row is None else _key(row)


def administrator_was_made(conn: sa.Connection) -> bool:
    """Whether the deployment ever had an administrator's key. One that has ended counts: a store does not
    open itself again. After a rebuild from the archive, the record still knows of the keys that are gone."""
    ours = sa.exists().where(api_keys.c.role == Role.ADMINISTRATOR.value, api_keys.c.tenant_id.is_(None))
    recorded = sa.exists().where(
        governance.c.kind == EntryKind.KEY_CREATED.value,
        governance.c.tenant_id.is_(None),
        governance.c.document["role"].astext == Role.ADMINISTRATOR.value,
    )
    return bool(conn.execute(sa.select(sa.or_(ours, recorded))).scalar_one())


def last_change() -> sa.Select[tuple[int | None]]:
    """Asks for a number that rises with every change of any key; null: there are none."""
    return sa.select(sa.func.max(api_keys.c.changed_no))


def note_uses(conn: sa.Connection, uses: Mapping[str, int]) -> None:
    """Store when keys were last used (µs by key_id), in the connection's transaction."""
    if not uses:
        return
    used = sa.bindparam("used_us", type_=sa.BigInteger)
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.key_id == sa.bindparam("used_id"))
        .values(last_used_us=sa.func.greatest(api_keys.c.last_used_us, used))
    )
    # In one order everywhere, so that processes that note the same keys wait rather than deadlock.
    conn.execute(statement, [{"used_id": key_id, "used_us": us} for key_id, us in sorted(uses.items())])


# --- rows ---------------------------------------------------------------------------------------------


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        role=Role(row.role),
        label=row.label,
        created_us=row.created_us,
        created_by=row.created_by,
        expires_us=row.expires_us,
        limits=Limits.of_json(row.limits),
        replaces=row.replaces,
        revoked_us=row.revoked_us,
        revoked_by=row.revoked_by,
        last_used_us=row.last_used_us,
    )


def _lock(conn: sa.Connection, key_id: str, tenant_id: str | None) -> ApiKey:
    if is_key_id(key_id):
        query = sa.select(*_KEY_COLUMNS).where(api_keys.c.key_id == key_id)
        if tenant_id is not None:
            query = query.where(api_keys.c.tenant_id == tenant_id)
        row = conn.execute(query.with_for_update()).one_or_none()
        if row is not None:
            return _key(row)
    raise KeyNotFoundError(f"there is no key {key_id!r}", hint="eventstore keys list --all")


def _refuse_ended(key: ApiKey, now_us: int) -> None:
    if key.revoked_us is not None:
        raise StateError(
            f"key {key.key_id} was revoked by {key.revoked_by} on {to_iso(key.revoked_us)[:10]}",
            hint="make a new one",
        )
    if key.state(now_us) is KeyState.EXPIRED:
        assert key.expires_us is not None
        raise StateError(f"key {key.key_id} ended on {to_iso(key.expires_us)[:10]}", hint="make a new one")


def _refuse_more(conn: sa.Connection, tenant_id: str, now_us: int) -> None:
    c, since_us = api_keys.c, now_us - _DAY_US
    counts = sa.and_(
        c.tenant_id == tenant_id,
        sa.func.coalesce(c.expires_us, now_us) > since_us,
        sa.func.coalesce(c.revoked_us, now_us) > since_us,
    )
    count = conn.execute(sa.select(sa.func.count()).select_from(api_keys).where(counts)).scalar_one()
    if count >= TENANT_KEYS_MAX:
        raise StateError(
            f"{tenant_id!r} has {count} keys, counting those that ended within a day",
            hint="revoke what is not used, and make more tomorrow",
        )


def _add(conn: sa.Connection, key: ApiKey, text: str, kind: EntryKind, now_us: int) -> int:
    """Store a new key and its entry in the record, and tell those who remember keys; the entry's number."""
    if key.expires_us is not None and key.expires_us <= now_us:
        raise InputError(f"the key would have ended on {to_iso(key.expires_us)}", hint="choose a later time")
    if key.tenant_id is not None:
        if not is_tenant_id(key.tenant_id):
            raise TenantNotFoundError(key.tenant_id)
        if get_tenant(conn, key.tenant_id).state is not TenantState.ACTIVE:
            raise TenantClosedError(
                f"{key.tenant_id!r} is being offboarded, or was", hint="it gets no new keys"
            )
        _refuse_more(conn, key.tenant_id, now_us)
    document = {
        "key_id": key.key_id,
        "role": key.role.value,
        "label": key.label,
        "expires": None if key.expires_us is None else to_iso(key.expires_us),
        "limits": key.limits.as_json(),
        "replaces": key.replaces,
    }
    entry_no = record(conn, kind, key.tenant_id, key.created_by, document, now_us)
    conn.execute(
        sa.insert(api_keys).values(
            key_id=key.key_id,
            digest=digest_of(text.encode()),
            tenant_id=key.tenant_id,
            role=key.role.value,
            label=key.label,
            limits=key.limits.as_json(),
            created_us=key.created_us,
            created_by=key.created_by,
            expires_us=key.expires_us,
            replaces=key.replaces,
            changed_no=entry_no,
        )
    )
    conn.execute(sa.select(sa.func.pg_notify(KEYS_CHANNEL, "")))
    return entry_no


def _change(conn: sa.Connection, key_id: str, **values: Any) -> None:
    conn.execute(sa.update(api_keys).where(api_keys.c.key_id == key_id).values(**values))
    conn.execute(sa.select(sa.func.pg_notify(KEYS_CHANNEL, "")))
