"""The log of reads: who read what of which tenant, and why.

Reads by people (and by keys of the roles compliance and administrator) are events of a tenant of the store's
own, `eventstore-reads`: an ordinary log, with its chain, its retention and its holds, to which nobody else
can append. It shares the process's group commits, so that many reads at once take few of them.

A page is written down when it has been read, and before it is answered: what was asked, what was covered. A
stream is written down before its first byte, and again when it ends, however it ends. A read that cannot be
written down is refused.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import msgspec
import psycopg
import sqlalchemy as sa

from eventstore.clock import to_iso
from eventstore.errors import EventStoreError, InputError, RetryError, TenantExistsError, TenantNotFoundError
from eventstore.hot.append import AppendRequest, AppendResult
from eventstore.model.access import Principal, Role
from eventstore.model.event import TEXT_LIMITS, NewEvent
from eventstore.model.tenant import READS_TENANT, is_tenant_id
from eventstore.query.coverage import Coverage, Meter
from eventstore.query.reader import LogReader

__all__ = ["REASON_CHARACTERS_MAX", "Asked", "Read", "ReadAction", "ReadsLog", "is_logged"]

_log = logging.getLogger(__name__)

REASON_CHARACTERS_MAX = 1000
_LOGGED_ROLES = (Role.COMPLIANCE, Role.ADMINISTRATOR)
# What is kept of a parameter, of the lists of what was covered, and how long a read waits for its entry.
_TEXT_CHARACTERS_MAX = 2000
_LISTED_MAX = 100
_WAIT_S = 30.0
_ENCODER = msgspec.json.Encoder()

Submit = Callable[[str, AppendRequest], Future[AppendResult]]


class ReadAction(StrEnum):
    """The `action` of an entry."""

    READ = "read"
    EXPORT = "export"
    FEED = "feed"
    SEARCH = "search"


@dataclass(frozen=True, slots=True)
class Asked:
    """A read as it was asked for. `route` is its method and path as the API declares them, `query` every
    parameter, those of the path included. `reason` None: none was given."""

    principal: Principal
    tenant_id: str
    action: ReadAction
    route: str
    query: Mapping[str, object]
    reason: str | None


def is_logged(principal: Principal) -> bool:
    """Whether this caller's reads are events: of a person, or of a role that people have."""
    return principal.person or principal.role in _LOGGED_ROLES


class ReadsLog:
    """Writes the log of reads. Safe for many threads.

    `submit` is the group committer's; `create` makes the tenant when the first read comes.
    """

    def __init__(
        self, submit: Submit, create: Callable[[str], object], *, reason_required: bool = False
    ) -> None:
        self._submit = submit
        self._create = create
        self._creating = threading.Lock()
        self.reason_required = reason_required

    def read(self, asked: Asked, reader: LogReader, meter: Meter | None) -> Read:
        """A read that begins. It goes through the reader, and counts by its caller's meter (None: nobody
        counts).

        Raises:
            InputError: a reason is needed and was not given, or cannot be one.
        """
        if not is_logged(asked.principal):
            return Read(None, asked, reader, meter)
        if asked.reason is None and self.reason_required:
            raise InputError(
                "this read needs a reason",
                hint="say why with the parameter reason=…, or in the header Eventstore-Reason",
            )
        if asked.reason is not None and not _is_reason(asked.reason):
            raise InputError(f"reason: is no text of at most {REASON_CHARACTERS_MAX} characters")
        return Read(self, asked, reader, meter)

    def store(self, event: NewEvent) -> None:
        """Append an entry; when this returns it is durable.

        Raises:
            RetryError: it cannot be stored now.
        """
        try:
            try:
                self.submit(event).result(_WAIT_S)
            except TenantNotFoundError:
                with self._creating, suppress(TenantExistsError):
                    self._create(READS_TENANT)
                self.submit(event).result(_WAIT_S)
        except (EventStoreError, psycopg.Error, sa.exc.SQLAlchemyError, FutureTimeoutError) as e:
            _log.error("a read was refused, because it could not be written down: %s", e)
            raise RetryError(
                "the read could not be written down, and is refused",
                hint="try again in a moment; the server's log says why",
            ) from e

    def submit(self, event: NewEvent) -> Future[AppendResult]:
        """Hand an entry to the group committer."""
        size_bytes = len(bytes(event.new_value)) + len(bytes(event.metadata)) + 500
        return self._submit(READS_TENANT, AppendRequest([event], size_bytes=size_bytes))


class ReadMeter:
    """Counts what one read scans, and passes it on to the caller's meter."""

    def __init__(self, caller: Meter | None) -> None:
        self.archive_bytes = 0
        self._caller = caller

    def check(self) -> None:
        if self._caller is not None:
            self._caller.check()

    def add(self, archive_bytes: int) -> None:
        self.archive_bytes += archive_bytes
        if self._caller is not None:
            self._caller.add(archive_bytes)


class Read:
    """One read, with the reader (or for other readers the meter) to go through.

    A page goes within `with read:`, and says what it found by `covers`; a stream goes between `begin` and
    `end`. Where the caller's reads are no events, all of this does nothing.
    """

    def __init__(self, log: ReadsLog | None, asked: Asked, reader: LogReader, meter: Meter | None) -> None:
        self.meter = ReadMeter(meter)
        self.reader = reader.metered(self.meter)
        self.asked = asked
        self._log = log
        self._id = uuid.uuid4()
        self._coverage: Coverage | None = None
        self._seqs: tuple[int, int] | None = None
        self._events = 0
        self._open = False
        self._lock = threading.Lock()

    @property
    def is_logged(self) -> bool:
        return self._log is not None

    def covers(
        self, coverage: Coverage | None = None, *, events: int, seqs: tuple[int, int] | None = None
    ) -> None:
        """What was looked at, by tiers or as the first and the last seq, and how many events are answered (or
        went out so far)."""
        self._coverage, self._seqs, self._events = coverage, seqs, events

    def __enter__(self) -> Read:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answered(error)

    def answered(self, error: BaseException | None = None) -> None:
        """Write a page down, as the end of a `with` does; also one that failed, since "there is none" tells
        something too. Waits until that is durable.

        Raises:
            RetryError: it cannot be written down.
        """
        if self._log is not None and is_tenant_id(self.asked.tenant_id):
            self._log.store(self._entry("answered" if error is None else "failed", error))

    def begin(self) -> None:
        """Write down that a stream begins, before its first byte. Waits until that is durable.

        Raises:
            RetryError: it cannot be written down.
        """
        if self._log is not None:
            self._log.store(self._entry("begun"))
            self._open = True

    def end(self, error: BaseException | None = None) -> None:
        """Write down what a stream has covered. Waits for nothing, so that it may be called wherever a stream
        is given up; again, or without `begin`: nothing happens."""
        with self._lock:
            is_open, self._open = self._open, False
        if self._log is None or not is_open:
            return
        try:
            future = self._log.submit(self._entry("ended" if error is None else "failed", error))
        except EventStoreError as e:
            self._miss(e)
            return
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[AppendResult]) -> None:
        error = future.exception()
        if error is not None:
            self._miss(error)

    def _miss(self, error: BaseException) -> None:
        # That it began stands in the log; what is missing is how far it came.
        _log.error("the end of the read %s could not be written down: %s", self._id, error)

    def _entry(self, state: str, error: BaseException | None = None) -> NewEvent:
        asked, principal = self.asked, self.asked.principal
        value: dict[str, object] = {
            "read": str(self._id),
            "state": state,
            "route": asked.route,
            "query": {name: _plain(given) for name, given in asked.query.items()},
            "role": principal.role.value,
        }
        if error is not None:
            value["error"] = error.code if isinstance(error, EventStoreError) else "internal"
        if state != "begun":
            value["events"] = self._events
            value["archive_bytes"] = self.meter.archive_bytes
            if self._coverage is not None:
                value["covered"] = _covered(self._coverage)
            elif self._seqs is not None and self._seqs[0] <= self._seqs[1]:
                value["covered"] = {"first_seq": self._seqs[0], "last_seq": self._seqs[1]}
        most = TEXT_LIMITS["actor"]
        if len(principal.subject) > most:
            value["subject"] = principal.subject
        return NewEvent(
            entity_type="tenant",
            entity_id=asked.tenant_id,
            action=asked.action.value,
            actor=_plain(principal.subject[:most]),
            source="api",
            new_value=msgspec.Raw(_ENCODER.encode(value)),
            metadata=msgspec.Raw(_ENCODER.encode({"reason": asked.reason}) if asked.reason else b""),
        )


def _is_reason(text: str) -> bool:
    return len(text) <= REASON_CHARACTERS_MAX and _plain(text) == text


def _plain(value: object) -> str:
    """A value as a text that an event may hold, cut where it is very long."""
    text = str(value).replace("\0", "\ufffd").encode(errors="replace").decode()
    return text if len(text) <= _TEXT_CHARACTERS_MAX else f"{text[:_TEXT_CHARACTERS_MAX]}…"


def _covered(coverage: Coverage) -> dict[str, object]:
    """What was covered, as answers show it, with the windows of the archive; long lists are cut, and
    `<list>_more` says how many items are left out."""
    windows = [{"from": to_iso(a), "to": to_iso(b)} for a, b in sorted(coverage.windows)]
    covered: dict[str, object] = {**coverage.as_json(), "windows": windows}
    for name, items in list(covered.items()):
        if isinstance(items, list) and len(items) > _LISTED_MAX:
            covered[name] = items[:_LISTED_MAX]
            covered[f"{name}_more"] = len(items) - _LISTED_MAX
    return covered
