"""One append transaction on one tenant's log: head lock, leaf, COPY, head update, commit.

Both ways in use it: `hot.append` (requests, group commit) and `intake.importer` (files with their own times).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql

from eventstore.clock import from_us, to_iso, to_us
from eventstore.columns.canonical import fixed_bytes
from eventstore.db.partitions import SCHEMA, admit_own_leaf, create_leaf
from eventstore.db.statements import run_together
from eventstore.errors import BusyError, CoverageError, InputError, TenantClosedError, TenantNotFoundError
from eventstore.hot.batch import stamp
from eventstore.hot.copy_frame import COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, copy_rows
from eventstore.hot.few import insert_statement, stamp_few
from eventstore.model.event import NewEvent, uuid7_time_us
from eventstore.model.tenant import Head, check_tenant_id
from eventstore.model.window import Window, WindowState, WindowUnit

__all__ = ["LeafCache", "LogTransaction", "log_transaction"]

# Rows encoded at a time: while Postgres takes in one chunk, the next is encoded.
_CHUNK_ROWS = 1024

# A tenant's open window and its leaf. It cannot go stale: recorded times come from the head, and sealing
# moves the head past the window's end before anything else happens to it.
LeafCache = dict[str, tuple[Window, str]]

# Composed as text: the tenant is a checked slug, the rest are numbers and hex digits. `scope` is of
# `db.roles`, and empty on the owner's connections.
_LOCK = """
BEGIN;
{scope}SELECT t.tenant_no, t.window_unit, h.last_seq, h.last_hash, h.last_recorded_us, h.id_lead_us,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, h.closed
  FROM heads h JOIN tenants t USING (tenant_id)
 WHERE h.tenant_id = '{tenant_id}'
   FOR UPDATE OF h
"""

_COMMIT = """
UPDATE heads SET last_seq = {head.last_seq}, last_hash = '\\x{last_hash}',
       last_recorded_us = {head.last_recorded_at_us}, id_lead_us = {head.id_lead_us}
 WHERE tenant_id = '{tenant_id}';
COMMIT
"""


class LogTransaction:
    """The tail of a log while its head's lock is held. Use `log_transaction`."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        tenant_id: str,
        tenant_no: int,
        unit: WindowUnit,
        head: Head,
        database_us: int,
        leaves: LeafCache,
        *,
        owner: bool,
    ) -> None:
        self.conn = conn
        self.tenant_id = tenant_id
        self.head = head
        self.database_us = database_us  # Postgres' clock when the lock was taken
        self._tenant_no = tenant_no
        self._unit = unit
        self._leaves = leaves
        self._owner = owner
        self._made: tuple[Window, str] | None = None
        self._insert = ""

    def write(self, pending: pa.RecordBatch, recorded_us: npt.NDArray[np.int64]) -> pa.Array:
        """Append events (`PENDING_SCHEMA`) at those recorded times, which never decrease.

        Returns their event_ids. Nothing is durable before the transaction has committed.

        Raises:
            InputError: a time lies before the log's last recorded time.
        """
        earliest = int(recorded_us[0])
        if earliest < self.head.last_recorded_at_us or bool(np.any(np.diff(recorded_us) < 0)):
            raise InputError(
                f"the log of {self.tenant_id!r} has come to {to_iso(self.head.last_recorded_at_us)}; "
                f"an event cannot be recorded before that",
                hint="import older histories, in order of time, before newer ones",
            )
        ids, start = [], 0
        while start < pending.num_rows:
            window, leaf = self._leaf(int(recorded_us[start]))
            end = int(np.searchsorted(recorded_us, window.to_us, side="left"))
            ids += self._copy(leaf, pending.slice(start, end - start), recorded_us[start:end])
            start = end
        return pa.concat_arrays(ids)

    def write_few(self, events: Sequence[NewEvent], recorded_us: int) -> list[bytes]:
        """Append a few events at one recorded time, no earlier than the head's; once in a transaction, and
        after nothing else. They are sent with the COMMIT.

        Returns their event_ids. Nothing is durable before the transaction has committed.
        """
        assert not self._insert
        assert recorded_us >= self.head.last_recorded_at_us
        _, leaf = self._leaf(recorded_us)
        stamped = stamp_few(events, self.head, recorded_us)
        self._insert = insert_statement(self.tenant_id, leaf, stamped) + ";"
        ids = [event.event_id for event in stamped]
        leads = [at_us - recorded_us for at_us in map(uuid7_time_us, ids) if at_us is not None]
        lead_us = max(self.head.id_lead_us, 0, *leads)
        self.head = Head(stamped[-1].seq, stamped[-1].hash, recorded_us, lead_us)
        return ids

    def _copy(self, leaf: str, pending: pa.RecordBatch, recorded_us: npt.NDArray[np.int64]) -> list[pa.Array]:
        # Straight into the leaf: its partition constraint holds tenant and window, and a COPY there does
        # not wait for a lock on the parents. (A connection that is new to the leaf looks at them once, and
        # may then wait for a drop as long as that waits itself: its lock time-out.)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(SCHEMA, leaf), sql.SQL(", ").join(map(sql.Identifier, COPY_COLUMNS))
        )
        ids = []
        with self.conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(COPY_HEADER)
            for start in range(0, pending.num_rows, _CHUNK_ROWS):
                times = recorded_us[start : start + _CHUNK_ROWS]
                events, last_hash = stamp(
                    pending.slice(start, _CHUNK_ROWS),
                    first_seq=self.head.last_seq + 1,
                    recorded_us=times,
                    previous_hash=self.head.last_hash,
                )
                copy.write(copy_rows(self.tenant_id, events))
                self.head = Head(
                    self.head.last_seq + events.num_rows,
                    last_hash,
                    int(times[-1]),
                    max(self.head.id_lead_us, _id_lead_us(events.column("event_id"), times)),
                )
                ids.append(events.column("event_id"))
            copy.write(COPY_TRAILER)
        return ids

    def _leaf(self, at_us: int) -> tuple[Window, str]:
        """The open window of a moment at the log's end, and its leaf, made now if it is the first event."""
        found = self._made or self._leaves.get(self.tenant_id)
        if found is not None and found[0].from_us <= at_us < found[0].to_us:
            return found
        newest = self.conn.execute(
            "SELECT window_from, window_to, state, leaf FROM windows WHERE tenant_id = %s"
            " ORDER BY window_from DESC LIMIT 1",
            [self.tenant_id],
        ).fetchone()
        window = Window.containing(self._unit, at_us)
        if newest is not None:
            last = Window(to_us(newest[0]), to_us(newest[1]))
            if at_us < last.to_us:
                if newest[2] != WindowState.OPEN or at_us < last.from_us:
                    raise CoverageError(
                        f"the log of {self.tenant_id!r} would go back into window {last} ({newest[2]})",
                        hint="run eventstore verify",
                    )
                if not self._owner:
                    admit_own_leaf(self.conn, newest[3])
                self._made = (last, newest[3])
                return self._made
            window = window.clip_from(last.to_us)
        leaf = create_leaf(self.conn, self._tenant_no, window, own=not self._owner)
        if self._owner:
            start, end = from_us(window.from_us), from_us(window.to_us)
            self.conn.execute(
                "INSERT INTO windows (tenant_id, window_from, window_to, state, leaf, first_seq)"
                " VALUES (%s, %s, %s, 'open', %s, %s)",
                [self.tenant_id, start, end, leaf, self.head.last_seq + 1],
            )
        self._made = (window, leaf)
        return self._made

    def _commit(self) -> None:
        update = _COMMIT.format(tenant_id=self.tenant_id, head=self.head, last_hash=self.head.last_hash.hex())
        run_together(self.conn, self._insert + update)
        # Only now, committed, may the leaf be relied on by others.
        if self._made is not None:
            self._leaves[self.tenant_id] = self._made


@contextmanager
def log_transaction(
    conn: psycopg.Connection[Any], tenant_id: str, leaves: LeafCache, *, scope: str = ""
) -> Iterator[LogTransaction]:
    """Lock a tenant's head (autocommit connection), and commit at the end of the block, or roll back.

    On a connection of the application's role `scope` makes the transaction the tenant's (`db.roles`); on the
    owner's there is none.

    Round trips are few because every one is held under the lock: BEGIN goes with the lock, the head's
    update with COMMIT.

    Raises:
        TenantNotFoundError: it is not registered.
        TenantClosedError: it was offboarded.
    """
    check_tenant_id(tenant_id)
    try:
        found = run_together(conn, _LOCK.format(tenant_id=tenant_id, scope=scope))
        if not found.ntuples:
            raise TenantNotFoundError(tenant_id)
        row = [(found.get_value(0, column) or b"").decode() for column in range(8)]
        if row[7] == "t":
            raise TenantClosedError(
                f"the log of {tenant_id!r} is closed",
                hint="the tenant was offboarded; it takes no more events",
            )
        head = Head(int(row[2]), bytes.fromhex(row[3][2:]), int(row[4]), int(row[5]))
        unit, database_us = WindowUnit(row[1]), int(row[6])
        log = LogTransaction(conn, tenant_id, int(row[0]), unit, head, database_us, leaves, owner=not scope)
        yield log
        # Dying before this line leaves nothing of the append; after it, all of it.
        log._commit()
    except psycopg.errors.LockNotAvailable as e:
        conn.execute("ROLLBACK")
        raise BusyError(
            f"another writer holds the log of {tenant_id!r}", hint="send it again in a moment"
        ) from e
    except BaseException:
        # On a broken connection the server rolls back by itself; the pool discards it.
        if not conn.closed:
            with suppress(psycopg.OperationalError):
                conn.execute("ROLLBACK")
        raise


def _id_lead_us(event_ids: pa.Array, recorded_us: npt.NDArray[np.int64]) -> int:
    """By how much the times inside UUIDv7 ids are ahead of their recorded times, at the most (≥ 0)."""
    octets = fixed_bytes(event_ids, 16).view(np.uint8).reshape(-1, 16)
    version7 = octets[:, 6] >> 4 == 7
    ms = np.zeros(len(octets), dtype=np.int64)
    for column in range(6):
        ms = ms << 8 | octets[:, column]
    leads = np.where(version7, ms * 1000 - recorded_us, 0)
    return max(0, int(leads.max()))
