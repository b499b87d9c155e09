"""Sessions of the console: begun by a key or by an issuer's word, looked at with every request, and ended.

A session's name is a secret of the browser's: 256 random bits in a cookie, of which the table has the SHA-256
alone. The token that its forms carry is made from the name, so it is stored nowhere; it does not lead back.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.clock import US_PER_S, Clock
from eventstore.db.engine import Database
from eventstore.db.tables_console import sessions
from eventstore.model.access import Principal, Role

__all__ = ["Session", "Sessions", "csrf_of", "prune_sessions"]

_NAME_BYTES = 32
_NAME_CHARACTERS = 43  # of 32 bytes in URL-safe base64
# How often at the most a request writes that it came.
_SEEN_EVERY_US = 60 * US_PER_S
# A key that is signed in more often loses its oldest sessions.
_OF_KEY_MAX = 50
_PRUNED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """A session in force. Of a key (`key_id`; whether that still holds is to be asked), or of a `person` whom
    an issuer vouched for until the session's end: the other one is None."""

    name: str
    key_id: str | None
    person: Principal | None
    reason: str | None
    expires_us: int


class Sessions:
    """The sessions of a deployment. They end `lifetime_us` after they were made, and `idle_us` after they
    were last used. Safe for many threads."""

    def __init__(self, database: Database, clock: Clock, *, lifetime_us: int, idle_us: int) -> None:
        self._database = database
        self._clock = clock
        self._lifetime_us, self._idle_us = lifetime_us, idle_us

    def begin(self, whose: str | Principal, *, ends_us: int | None = None) -> Session:
        """A new session of a key (its id), or of a person; `ends_us` sooner than by itself, if given. Some of
        what has ended goes at the same time."""
        now_us = self._clock.now_us()
        expires_us = now_us + self._lifetime_us
        if ends_us is not None:
            expires_us = min(expires_us, ends_us)
        name = secrets.token_urlsafe(_NAME_BYTES)
        row: dict[str, object] = {"digest": _digest(name), "made_us": now_us, "seen_us": now_us}
        if isinstance(whose, Principal):
            row |= {"subject": whose.subject, "role": whose.role.value, "tenant_id": whose.tenant}
            session = Session(name, None, whose, None, expires_us)
        else:
            row["key_id"] = whose
            session = Session(name, whose, None, None, expires_us)
        with self._database.transaction() as conn:
            _prune(conn, now_us)
            conn.execute(sa.insert(sessions).values(expires_us=expires_us, **row))
            if session.key_id is not None:
                _keep_newest(conn, session.key_id)
        return session

    def find(self, name: str) -> Session | None:
        """The session of this name, which is in use herewith; None: there is none, or it has ended."""
        if len(name) != _NAME_CHARACTERS:
            return None
        now_us = self._clock.now_us()
        c = sessions.c
        mine = c.digest == _digest(name)
        with self._database.transaction() as conn:
            query = sa.select(sessions).where(mine, c.expires_us > now_us, c.seen_us > now_us - self._idle_us)
            row = conn.execute(query).one_or_none()
            if row is None:
                return None
            if now_us - row.seen_us >= min(_SEEN_EVERY_US, self._idle_us // 10):
                later = sa.func.greatest(c.seen_us, now_us)
                conn.execute(sa.update(sessions).where(mine).values(seen_us=later))
        person = None
        if row.subject is not None:
            person = Principal(row.subject, Role(row.role), row.tenant_id, person=True)
        return Session(name, row.key_id, person, row.reason, row.expires_us)

    def give_reason(self, name: str, reason: str | None) -> None:
        """Why its person reads from now on; None: no reason."""
        with self._database.transaction() as conn:
            conn.execute(sa.update(sessions).where(sessions.c.digest == _digest(name)).values(reason=reason))

    def end(self, name: str) -> None:
        """End it, whether there is one or not."""
        with self._database.transaction() as conn:
            conn.execute(sa.delete(sessions).where(sessions.c.digest == _digest(name)))


def csrf_of(name: str) -> str:
    """What the forms of a session (or of a page before it) carry, to show that they are its own."""
    return hmac.digest(name.encode(), b"eventstore form", "sha256").hex()


def prune_sessions(database: Database, now_us: int) -> int:
    """Remove what has ended; how many."""
    count = 0
    while True:
        with database.transaction() as conn:
            found = _prune(conn, now_us)
        count += found
        if found < _PRUNED_AT_ONCE:
            return count


def _prune(conn: sa.Connection, now_us: int) -> int:
    """Remove some sessions that have ended, and that nobody else is removing. Those that were only left alone
    end by their time, too."""
    c = sessions.c
    ended = (
        sa.select(c.digest)
        .where(c.expires_us <= now_us)
        .order_by(c.expires_us)
        .limit(_PRUNED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    return conn.execute(sa.delete(sessions).where(c.digest.in_(ended.scalar_subquery()))).rowcount


def _keep_newest(conn: sa.Connection, key_id: str) -> None:
    c = sessions.c
    older = (
        sa.select(c.digest)
        .where(c.key_id == key_id)
        .order_by(c.made_us.desc(), c.digest)
        .offset(_OF_KEY_MAX)
        .scalar_subquery()
    )
    conn.execute(sa.delete(sessions).where(c.digest.in_(older)))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
