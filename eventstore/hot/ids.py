"""Which event_ids the hot tier holds already: the look-up that makes a repeated append harmless."""

from __future__ import annotations

import numpy as np

from eventstore.clock import clamp_us, from_us
from eventstore.hot.log import LogTransaction

__all__ = ["stored_ids"]


def stored_ids(log: LogTransaction, octets: bytes) -> dict[bytes, int]:
    """The seqs of those ids, given as 16 bytes each run together, that lie in the hot tier.

    An id of version 7 was recorded no earlier than its own time less the tenant's lead, so older windows
    need no look; one id of another version, and all windows are looked at.
    """
    if not octets or log.head.last_seq == 0:
        return {}
    upper = np.frombuffer(octets, dtype=">u8")[::2]
    query = (
        # A join: for `= ANY(array)` the planner weighs each element anew for every leaf, for seconds.
        "SELECT e.event_id, e.seq FROM unnest(%s::uuid[]) AS given(id) JOIN events e ON e.event_id = given.id"
        " WHERE e.tenant_id = %s"
    )
    parameters: list[object] = ["{" + octets.hex(",", 16) + "}", log.tenant_id]
    if bool((upper >> 12 & 0xF == 7).all()):
        query += " AND e.recorded_at >= %s"
        parameters.append(from_us(clamp_us(int(upper.min() >> 16) * 1000 - log.head.id_lead_us)))
    return {row[0].bytes: row[1] for row in log.conn.execute(query, parameters)}
