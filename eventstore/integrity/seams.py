"""Where a log goes on from what was destroyed: what lies before and behind it is chained to what its
certificate says."""

from __future__ import annotations

from collections.abc import Callable

from eventstore.columns.canonical import first_chain_break
from eventstore.db.engine import Database
from eventstore.errors import IntegrityError, StateError
from eventstore.model.query import EventFilter
from eventstore.query.reader import LogReader
from eventstore.query.tiers import ExpiredRange, Tiers, list_expired

__all__ = ["check_seams"]

_HINT = "the log was changed: run eventstore verify, and compare it with a backup"

# The hash that an event of a tenant is chained to.
HashBefore = Callable[[str, int], bytes]


def check_seams(
    database: Database, tiers: Tiers, hash_before: HashBefore, tenant_id: str, begin: int, end: int
) -> None:
    """See that the chain holds wherever a destroyed range begins or ends within the events `begin` + 1 to
    `end`, all of which the log has. One event is read behind each.

    Raises:
        IntegrityError: what lies beside a range is not what its certificate says.
        StateError: it was destroyed meanwhile.
        TenantNotFoundError, TargetUnavailableError
    """
    with database.app.transaction(tenant_id) as conn:
        expired = list_expired(conn, tenant_id)
    begins = {gone.first_seq for gone in expired}
    for gone in expired:
        if begin < gone.first_seq <= end and hash_before(tenant_id, gone.first_seq) != gone.hash_before:
            raise IntegrityError(
                f"what lies before event {gone.first_seq} of {tenant_id!r} is not what certificate"
                f" {gone.certificate_no} says",
                hint=_HINT,
            )
        if begin <= gone.last_seq < end and gone.last_seq + 1 not in begins:
            _check_behind(tiers, tenant_id, gone)


def _check_behind(tiers: Tiers, tenant_id: str, gone: ExpiredRange) -> None:
    """See that the event behind a destroyed range is chained to the hash that its certificate ends with."""
    seq = gone.last_seq + 1
    page = LogReader(tiers).page(tenant_id, EventFilter(seq_from=seq, seq_to=seq), limit=1)
    if page.events.num_rows == 0:
        raise StateError(f"event {seq} of {tenant_id!r} was destroyed meanwhile", hint="try again")
    (event,) = page.events.combine_chunks().to_batches()
    if first_chain_break(gone.hash_after, event)[0] is not None:
        raise IntegrityError(
            f"event {seq} of {tenant_id!r} does not go on from what certificate {gone.certificate_no} says",
            hint=_HINT,
        )
