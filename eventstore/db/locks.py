"""Every lock that is not a row's: advisory lock keys, and the time-outs of the ones that may wait.

Order, to stay free of deadlocks: retention lock of a tenant → its head row → its watermark row → windows.
"""

from __future__ import annotations

import hashlib

__all__ = ["DROP_LAST_LOCK_TIMEOUT_MS", "DROP_LOCK_TIMEOUT_MS", "migration_key", "retention_key"]

# A drop waits this long for readers of the tenant's parent table before it steps back: while it waits,
# every new reader of that tenant queues behind it.
DROP_LOCK_TIMEOUT_MS = 200
# The last try waits longer than Postgres' deadlock_timeout (1 s), after which it cancels an autovacuum that
# is in the way.
DROP_LAST_LOCK_TIMEOUT_MS = 1500


def _key(purpose: str) -> int:
    digest = hashlib.sha256(f"eventstore/lock/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def retention_key(tenant_id: str) -> int:
    """Held for the length of a tenant's retention, so that two runs do not do the same work twice."""
    return _key(f"retention/{tenant_id}")


def migration_key() -> int:
    """Held while the schema is migrated."""
    return _key("migration")
