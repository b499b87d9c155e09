"""Decides who calls: an API key, a person's token, or the machine itself until there is an administrator.

Every credential that does not hold is answered alike, whatever is wrong with it. What was found of a key is
remembered for as long as `KeyWatch` vouches for it; what was not found is never remembered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from eventstore.access.loopback import is_from_here
from eventstore.access.oidc import OidcVerifier
from eventstore.access.refusal import refused
from eventstore.access.watch import KeyWatch
from eventstore.clock import Clock, SystemClock
from eventstore.db.engine import Database
from eventstore.errors import EventStoreError, UnauthenticatedError
from eventstore.governance.keys import administrator_was_made, find_key, get_key, note_uses
from eventstore.model.access import Principal, Role
from eventstore.model.apikey import ApiKey, KeyState, digest_of

__all__ = ["HOW_TO_BEGIN", "Authenticator", "bearer_of"]

_log = logging.getLogger(__name__)

HOW_TO_BEGIN = "on the server run: eventstore keys create --role administrator"

# The person, or program, at the machine itself.
_LOOPBACK = Principal("loopback", Role.ADMINISTRATOR, limits=None)
_KEY_PREFIX = b"es_"
_REMEMBERED_MAX = 100_000
_USES_EVERY_S = 30.0

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class _Remembered:
    principal: Principal
    key_id: str
    expires_us: int | None


class Authenticator:
    """Safe for many threads. `remembered` never waits; `authenticate` asks Postgres, or the issuer's web
    server, and is to be called in a thread."""

    def __init__(
        self, database: Database, *, oidc: OidcVerifier | None = None, clock: Clock | None = None
    ) -> None:
        self._database = database
        self._oidc = oidc
        self._clock = clock or SystemClock()
        self._watch = KeyWatch(database, on_change=self._forget, on_beat=self._beat)
        self._lock = threading.Lock()
        self._changes = 0
        # By the digest of a key's text, and by its id.
        self._keys: dict[bytes | str, _Remembered] = {}
        # Whoever may sign in as an administrator from elsewhere, this machine has no privilege left.
        self._administered = oidc is not None
        self._open_to_machine = False
        self._uses: dict[str, int] = {}
        self._uses_noted_s = time.monotonic()

    def start(self) -> None:
        self._watch.start()

    def close(self) -> None:
        """Stop, and store when keys were last used."""
        self._watch.close()
        self.store_uses()

    def remembered(self, bearer: bytes | None, peer: str | None, headers: Headers) -> Principal | None:
        """The caller, if that needs nobody to be asked; None: ask `authenticate`. `bearer` is as `bearer_of`
        found it, `peer` the address of whoever connected."""
        if time.monotonic() >= self._watch.believed_until:
            return None
        if bearer is None:
            return _LOOPBACK if self._open_to_machine and is_from_here(peer, headers) else None
        found = self._keys.get(digest_of(bearer))
        if found is None or not self._open_to_others(peer, headers):
            return None
        now_us = self._clock.now_us()
        if found.expires_us is not None and now_us >= found.expires_us:
            return None
        self._uses[found.key_id] = now_us
        return found.principal

    def authenticate(self, bearer: bytes | None, peer: str | None, headers: Headers) -> Principal:
        """The caller.

        Raises:
            UnauthenticatedError: no credentials, or none that hold.
            RetryError: whoever could tell does not answer.
        """
        known = self.remembered(bearer, peer, headers)  # others may have asked while this one waited
        if known is not None:
            return known
        self.check_open(peer, headers)
        if bearer is None:
            if not self._administered:
                return _LOOPBACK
            raise UnauthenticatedError(
                "this takes credentials", hint="send Authorization: Bearer KEY, with an API key or a token"
            )
        if self._oidc is not None and self.asks_issuer(bearer):
            return self._oidc.principal_of(bearer)
        return self._of_key(bearer)

    def holder_of(self, key_id: str) -> Principal:
        """Who calls with a key, by its id: for a session that began with the key itself. What is remembered
        is as new as it is for requests that bring the key.

        Raises:
            UnauthenticatedError: the key has ended.
        """
        now_us = self._clock.now_us()
        if time.monotonic() < self._watch.believed_until:
            known = self._keys.get(key_id)
            if known is not None and (known.expires_us is None or now_us < known.expires_us):
                self._uses[key_id] = now_us
                return known.principal
        before = self._changes
        with self._database.transaction() as conn:
            key = get_key(conn, key_id)
        return self._in_force(key, before, key_id)

    def check_open(self, peer: str | None, headers: Headers) -> None:
        """Whether a request from there is answered at all.

        Raises:
            UnauthenticatedError: there is no administrator yet, and it was not made on this machine.
        """
        if not self.is_administered() and not is_from_here(peer, headers):
            raise UnauthenticatedError(
                "there is no administrator yet, and until then only this machine itself is served",
                hint=f"{HOW_TO_BEGIN}, then send Authorization: Bearer KEY",
            )

    def asks_issuer(self, bearer: bytes | None) -> bool:
        """Whether `authenticate` would look at it as a token."""
        return self._oidc is not None and bearer is not None and not bearer.startswith(_KEY_PREFIX)

    def is_administered(self) -> bool:
        """Whether the deployment has, or had, an administrator: from then on every request needs
        credentials."""
        if not self._administered:
            before = self._changes
            with self._database.transaction() as conn:
                made = administrator_was_made(conn)
            with self._lock:
                if made:
                    self._administered = True
                    self._open_to_machine = False
                elif before == self._changes:
                    self._open_to_machine = True
        return self._administered

    def store_uses(self) -> None:
        """Store when keys were last used. What cannot be stored now is kept for the next time."""
        self._uses_noted_s = time.monotonic()
        uses, self._uses = self._uses, {}
        noted = uses.copy()
        if not noted:
            return
        try:
            with self._database.transaction() as conn:
                note_uses(conn, noted)
        except (EventStoreError, sa.exc.SQLAlchemyError) as e:
            _log.info("the last use of %d keys could not be stored: %s", len(noted), e)
            for key_id, us in noted.items():
                self._uses.setdefault(key_id, us)

    def _of_key(self, text: bytes) -> Principal:
        before = self._changes
        with self._database.transaction() as conn:
            key = find_key(conn, text)
        return self._in_force(key, before, digest_of(text))

    def _in_force(self, key: ApiKey | None, before: int, name: bytes | str) -> Principal:
        """Who calls with the key that was found, which is remembered under a name. `before` counts the
        changes that were known of when it was asked for.

        Raises:
            UnauthenticatedError: there is none, or it has ended.
        """
        now_us = self._clock.now_us()
        if key is None or key.state(now_us) is not KeyState.ACTIVE:
            raise refused()
        with self._lock:
            # A change that was heard of meanwhile may have been after what was read: then it is not kept.
            if before == self._changes and len(self._keys) < _REMEMBERED_MAX:
                self._keys[name] = _Remembered(key.principal, key.key_id, key.expires_us)
        self._uses[key.key_id] = now_us
        return key.principal

    def _open_to_others(self, peer: str | None, headers: Headers) -> bool:
        return self._administered or is_from_here(peer, headers)

    def _forget(self) -> None:
        with self._lock:
            self._changes += 1
            self._keys = {}
            self._open_to_machine = False

    def _beat(self) -> None:
        if time.monotonic() - self._uses_noted_s >= _USES_EVERY_S and self._uses:
            self.store_uses()


def bearer_of(headers: Headers) -> bytes | None:
    """What a request brings to show who it is from; None: nothing.

    Raises:
        UnauthenticatedError: it brings something else than one bearer's credential.
    """
    given = [value for name, value in headers if name == b"authorization"]
    if not given:
        return None
    if len(given) > 1 or given[0][:7].lower() != b"bearer ":
        raise refused()
    return given[0][7:].strip()
