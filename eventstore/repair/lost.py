"""Events that were in Postgres only when it was lost, as far as a certificate saw them.

A certificate says where the log ended when it was issued. If the archive ends before that, the events between
are gone, and yet their seqs and the hash of the last one are known. Another certificate takes their place: so
their seqs are never given to other events, the chain goes on from where it was, and the loss is on record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from eventstore.clock import US_PER_S
from eventstore.governance.certificates import next_certificate, signing_time_us, store_certificate
from eventstore.governance.policies import policy_of
from eventstore.governance.signing import SigningKey
from eventstore.model.certificate import Certificate, CertificateKind
from eventstore.model.subtrees import lost_subtrees
from eventstore.model.window import Window
from eventstore.repair.chain import ChosenWindow, Log

__all__ = ["certify_lost", "lost_end"]

_BY = "archive rebuild"
_REASON = "lost with the database: these events were in Postgres only when the catalog was rebuilt"


def lost_end(log: Log, certificates: Sequence[Certificate]) -> Certificate | None:
    """The certificate that saw the log end furthest behind where its objects end; None: none did."""
    if log.offboarded is not None:
        return None
    furthest = max(certificates, key=lambda c: c.head_seq, default=None)
    return furthest if furthest is not None and furthest.head_seq > log.last_seq else None


def certify_lost(
    conn: sa.Connection, tenant_id: str, log: Log, seen: Certificate, key: SigningKey, now_us: int
) -> ChosenWindow:
    """Certify what is lost up to where a certificate saw the log end, in the connection's transaction, and
    let the log end there. The certificates that were found have to be stored."""
    start_us = log.windows[-1].window.to_us if log.windows else seen.head_recorded_at_us
    # Keys tell windows apart by the second. Not to the window's regular end: that may lie in the future.
    end_us = max(start_us, seen.head_recorded_at_us) // US_PER_S * US_PER_S + US_PER_S
    policy = policy_of(conn, tenant_id, now_us)
    number, previous = next_certificate(conn, tenant_id)
    certificate = Certificate(
        store_id=seen.store_id,
        tenant_id=tenant_id,
        number=number,
        previous_sha256=previous,
        kind=CertificateKind.EXPIRED,
        window_from_us=start_us // US_PER_S * US_PER_S,
        window_to_us=end_us,
        first_seq=log.last_seq + 1,
        last_seq=seen.head_seq,
        event_count=seen.head_seq - log.last_seq,
        hash_before=log.last_hash,
        hash_after=seen.head_hash,
        segments=(),
        subtrees=lost_subtrees(log.last_seq + 1, seen.head_seq),
        policy_version=policy.policy_no,
        policy=json.dumps(policy.policy.as_json(), sort_keys=True),
        head_seq=seen.head_seq,
        head_hash=seen.head_hash,
        head_recorded_at_us=max(seen.head_recorded_at_us, end_us),
        decided_by=_BY,
        reason=_REASON,
        issued_at_us=now_us,
        signed_at_us=signing_time_us(conn),
    )
    store_certificate(conn, certificate, key)
    window = ChosenWindow(
        Window(start_us // US_PER_S * US_PER_S, end_us),
        certificate.first_seq,
        certificate.last_seq,
        certificate.hash_before,
        certificate.hash_after,
        None,
        certificate=certificate,
    )
    log.windows.append(window)
    log.last_seq, log.last_hash = window.last_seq, window.hash_after
    return window
