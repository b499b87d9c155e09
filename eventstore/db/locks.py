"""Every lock that is not a row's: advisory lock keys, and the time-outs of the ones that may wait.

Order, to stay free of deadlocks: retention lock of a tenant → its head row → its watermark row → windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa

from eventstore.errors import BusyError

__all__ = [
    "DROP_LAST_LOCK_TIMEOUT_MS",
    "DROP_LOCK_TIMEOUT_MS",
    "app_login_key",
    "busy_when_locked",
    "checkpoint_key",
    "claims_key",
    "close_unlocked",
    "destruction_key",
    "exports_key",
    "governance_key",
    "leaf_key",
    "migration_key",
    "rebuild_key",
    "scheduler_key",
    "scrub_key",
]

# A drop waits this long for readers of the tenant's parent table before it steps back: while it waits,
# every new reader of that tenant queues behind it.
DROP_LOCK_TIMEOUT_MS = 200
# The last try waits longer than Postgres' deadlock_timeout (1 s), after which it cancels an autovacuum that
# is in the way.
DROP_LAST_LOCK_TIMEOUT_MS = 1500


def close_unlocked(conn: psycopg.Connection[Any]) -> None:
    """Give back all advisory locks of a session of its own, and end it.

    Of a connection that is merely closed the server takes the locks back a moment later, and who comes in
    between is told that somebody is still at work.
    """
    with conn, suppress(psycopg.OperationalError):  # a connection that is lost has no locks any more
        conn.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def busy_when_locked(message: str, hint: str) -> Iterator[None]:
    """Say what it means here that a lock was not had in time, or that this gave way in a deadlock. Inside the
    transaction's block: what leaves that has a general word already.

    Raises:
        BusyError: with the message and the hint.
    """
    try:
        yield
    except (sa.exc.OperationalError, psycopg.OperationalError) as e:
        cause = e.orig if isinstance(e, sa.exc.OperationalError) else e
        if isinstance(cause, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            raise BusyError(message, hint=hint) from e
        raise


def _key(purpose: str) -> int:
    digest = hashlib.sha256(f"eventstore/lock/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def app_login_key() -> int:
    """Held while the embedded server's login for the application is made."""
    return _key("app-login")


def checkpoint_key(tenant_id: str) -> int:
    """Held by whoever compares, signs and publishes a checkpoint of a tenant's log."""
    return _key(f"checkpoint/{tenant_id}")


def claims_key() -> int:
    """Held for the moment of a claim: claims come one after the other."""
    return _key("claims")


def destruction_key(tenant_id: str) -> int:
    """Held by a transaction that destroys something of a tenant, and by one that places a hold over it or
    changes its policy."""
    return _key(f"destruction/{tenant_id}")


def exports_key() -> int:
    """Held while an export is asked for: how many there are already is counted by one at a time."""
    return _key("exports")


def governance_key() -> int:
    """Held while an entry is added to the record of governance, which is numbered without gaps."""
    return _key("governance")


def leaf_key(name: str) -> int:
    """Held by a transaction that makes a window's table."""
    return _key(f"leaf/{name}")


def scheduler_key() -> int:
    """Held by the scheduler that leads, for as long as it does."""
    return _key("scheduler")


def rebuild_key() -> int:
    """Held by whoever rebuilds the catalog from the archive targets."""
    return _key("rebuild")


def scrub_key(target: str) -> int:
    """Held by whoever scrubs an archive target, so that two do not read everything twice."""
    return _key(f"scrub/{target}")


def migration_key() -> int:
    """Held while the schema is migrated."""
    return _key("migration")
