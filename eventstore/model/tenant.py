"""A tenant: the owner of one log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from eventstore.errors import InputError
from eventstore.model.window import WindowUnit

__all__ = [
    "READS_TENANT",
    "RESERVED_PREFIX",
    "TENANT_ID_PATTERN",
    "Head",
    "Tenant",
    "TenantState",
    "check_new_tenant_id",
    "check_not_own",
    "check_tenant_id",
    "is_tenant_id",
]

TENANT_ID_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
_TENANT_ID = re.compile(TENANT_ID_PATTERN)

# Tenants of the store's own: nobody else makes one, or appends to it.
RESERVED_PREFIX = "eventstore-"
READS_TENANT = f"{RESERVED_PREFIX}reads"  # the log of reads


def is_tenant_id(text: str) -> bool:
    """Whether a tenant could have this name."""
    return _TENANT_ID.fullmatch(text) is not None


def check_tenant_id(tenant_id: str) -> str:
    """Return the slug itself.

    Raises:
        InputError: not `[a-z0-9][a-z0-9-]{0,62}`.
    """
    if not is_tenant_id(tenant_id):
        raise InputError(
            f"{tenant_id!r} is no tenant name",
            hint="use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or a digit",
        )
    return tenant_id


def check_new_tenant_id(tenant_id: str) -> str:
    """Return the slug itself, if somebody may make a tenant of that name.

    Raises:
        InputError: no slug, or reserved for the store's own.
    """
    if tenant_id.startswith(RESERVED_PREFIX):
        raise InputError(
            f"names that begin with {RESERVED_PREFIX!r} are the store's own", hint="choose another name"
        )
    return check_tenant_id(tenant_id)


def check_not_own(tenant_id: str, what: str) -> None:
    """Let pass what is done to a tenant, unless that is one of the store's own. `what` is done, e.g. "be
    offboarded".

    Raises:
        InputError: it is the store's own.
    """
    if tenant_id.startswith(RESERVED_PREFIX):
        raise InputError(f"{tenant_id!r} is the store's own, and cannot {what}")


class TenantState(StrEnum):
    """active → closing → closed. closing: being offboarded, takes no more events. closed: all its events are
    destroyed; its name stays taken, because its certificates stay."""

    ACTIVE = "active"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as registered. `tenant_no` is a small integer that names its tables; `unit` is what its next
    window is aligned to."""

    tenant_id: str
    tenant_no: int
    unit: WindowUnit
    created_at_us: int
    state: TenantState = TenantState.ACTIVE


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a tenant's log: the next event gets `last_seq + 1` and chains onto `last_hash`.

    `last_recorded_at_us` is the tenant's clock: no later event is recorded before it. It is the time of
    the last event, or the end of the last sealed window if that is later.
    `id_lead_us` is the most by which the time inside a caller's UUIDv7 was ever ahead of the moment the
    event was recorded; it bounds in which windows a repeated event_id can lie.
    """

    last_seq: int
    last_hash: bytes
    last_recorded_at_us: int
    id_lead_us: int
