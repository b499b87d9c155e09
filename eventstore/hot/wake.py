"""Commits wake whoever follows a log: at once in this process, by NOTIFY in the others.

A NOTIFY inside the append's transaction would take a lock of the whole database at commit, so it goes over a
connection of its own, for all commits of a moment together. It is a hint: nothing depends on it for more than
time, since whoever follows a log looks at it every second anyhow (an import, or another version of this
program, sends none).

LISTEN takes no privilege: smuggled SQL may do it as well. So what is said is sealed with a key that the
application's role cannot read.
"""

from __future__ import annotations

import base64
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import psycopg
from cryptography.fernet import Fernet, InvalidToken

from eventstore.db.engine import Database
from eventstore.errors import EventStoreError

__all__ = ["Listener", "Wakes", "payload_of"]

_log = logging.getLogger(__name__)

_CHANNEL = "eventstore_commits"
# Between two NOTIFYs at the least; the first after a pause goes at once.
_EVERY_S = 0.02
# Postgres takes less than 8000 bytes; sealed, these are 7800.
_PAYLOAD_BYTES_MAX = 5780
_PAUSE_S = 1.0  # after a connection was lost
_LISTEN_S = 0.25  # how long a listener waits before it looks whether it is to end

# Called with the tenant whose log has grown; None: any may have. From any thread, and must not wait.
Listener = Callable[[str | None], None]


class _Payload(msgspec.Struct):
    """`sender` is the process, `tenants` whose logs have grown; None: too many to name."""

    sender: str
    tenants: list[str] | None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Payload)


class Wakes:
    """Tells listeners of commits in this process, and in others of its database. Safe for many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = secrets.token_hex(8)
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._something = threading.Event()
        self._over = threading.Event()
        self._listening = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, *, tell: bool = True) -> None:
        """Begin to hear of other processes' commits and, with `tell`, to tell them of this one's."""
        works = [self._listen, self._notify] if tell else [self._listen]
        for work in works:
            thread = threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop; what is pending is left to the others' next look."""
        self._over.set()
        self._something.set()
        for thread in self._threads:
            thread.join()

    def is_listening(self, timeout_s: float) -> bool:
        """Whether other processes are heard by then."""
        return self._listening.wait(timeout_s)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Have a listener called inside."""
        with self._lock:
            self._listeners = [*self._listeners, listener]
        try:
            yield
        finally:
            with self._lock:
                self._listeners = [other for other in self._listeners if other is not listener]

    def committed(self, tenant_id: str) -> None:
        """A tenant's log has grown by a commit of this process."""
        self._wake(tenant_id)
        with self._lock:
            self._pending.add(tenant_id)
        self._something.set()

    def _wake(self, tenant_id: str | None) -> None:
        for listener in self._listeners:
            listener(tenant_id)

    def _seal(self) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self._database.app.derived_key("wakes")))

    # --- to other processes -----------------------------------------------------------------------------

    def _notify(self) -> None:
        while not self._over.is_set():
            try:
                seal = self._seal()
                with self._database.connect_apart() as conn:
                    # A NOTIFY is a transaction; nobody waits for this one to be on disk.
                    conn.execute("SET synchronous_commit = off")
                    self._notify_over(conn, seal)
            except (psycopg.Error, EventStoreError) as e:
                _log.info("other processes could not be told of commits: %s", e)
                self._over.wait(_PAUSE_S)

    def _notify_over(self, conn: psycopg.Connection[tuple[object, ...]], seal: Fernet) -> None:
        while True:
            self._something.wait()
            if self._over.is_set():
                return
            self._something.clear()
            with self._lock:
                tenants, self._pending = self._pending, set()
            if tenants:
                payload = payload_of(seal, self._process, tenants)
                conn.execute("SELECT pg_notify(%s, %s)", [_CHANNEL, payload])
                self._over.wait(_EVERY_S)

    # --- from other processes ---------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                seal = self._seal()
                with self._database.connect_apart() as conn:
                    conn.execute(f"LISTEN {_CHANNEL}")
                    self._listening.set()
                    self._wake(None)  # whatever was said while nobody listened
                    while not self._over.is_set():
                        for notice in conn.notifies(timeout=_LISTEN_S):
                            self._heard(seal, notice.payload)
            except (psycopg.Error, EventStoreError) as e:
                self._listening.clear()
                _log.info("other processes' commits are not heard of: %s", e)
                self._over.wait(_PAUSE_S)

    def _heard(self, seal: Fernet, payload: str) -> None:
        try:
            said = _DECODER.decode(seal.decrypt(payload))
        except (InvalidToken, msgspec.MsgspecError):
            self._wake(None)  # of another version
            return
        if said.sender == self._process:
            return
        if said.tenants is None:
            self._wake(None)
            return
        for tenant_id in said.tenants:
            self._wake(tenant_id)


def payload_of(seal: Fernet, sender: str, tenants: set[str]) -> str:
    """What a NOTIFY says, sealed: whose logs have grown, or that any may have, if they are too many."""
    if sum(map(len, tenants)) < _PAYLOAD_BYTES_MAX:
        payload = _ENCODER.encode(_Payload(sender, sorted(tenants)))
        if len(payload) <= _PAYLOAD_BYTES_MAX:
            return seal.encrypt(payload).decode()
    return seal.encrypt(_ENCODER.encode(_Payload(sender, None))).decode()
