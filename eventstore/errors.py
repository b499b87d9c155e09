"""Every error a caller of the store can meet, grouped by what the caller does about it.

`InputError`: mend the request. `StateError`: the request is fine, the store's state refuses it.
`RetryError`: the same request may succeed later. `IntegrityError`: call someone; nothing was destroyed.
`SetupError`: mend the installation. `api/problems.py` is the one place that turns them into HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "ArchiveConflictError",
    "ArchiveDamageError",
    "BusyError",
    "CertificateNotFoundError",
    "CheckpointNotFoundError",
    "ConfirmationError",
    "CoverageError",
    "EmbeddedPostgresError",
    "EventNotFoundError",
    "EventStoreError",
    "ExportNotFoundError",
    "FeedResetError",
    "ForbiddenError",
    "HeldError",
    "HoldNotFoundError",
    "InputError",
    "IntegrityError",
    "InvalidEventError",
    "KeyNotFoundError",
    "LeaseLostError",
    "MediaTypeError",
    "NoCopyError",
    "Place",
    "QualityError",
    "RateLimitedError",
    "RetryError",
    "RunNotFoundError",
    "SchemaVersionError",
    "SetupError",
    "StateError",
    "SubscriptionNotFoundError",
    "TargetUnavailableError",
    "TenantClosedError",
    "TenantExistsError",
    "TenantNotFoundError",
    "TooLargeError",
    "UnauthenticatedError",
    "VersionConflictError",
]


class EventStoreError(Exception):
    """Root of the store's errors.

    `code` is stable and machine-readable, `message` says what happened, `hint` what to do next.
    """

    code = "eventstore-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Place:
    """Where in an input something is wrong. `index` counts events from 0, `line` lines from 1."""

    field: str | None = None
    index: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.line is not None:
            parts.append(f"line {self.line}")
        elif self.index is not None:
            parts.append(f"event {self.index}")
        if self.field is not None:
            parts.append(f"field {self.field!r}")
        return ", ".join(parts)


# --- mend the request -------------------------------------------------------------------------------


class InputError(EventStoreError):
    """The request itself is wrong; sending it again unchanged cannot succeed."""

    code = "invalid-request"


class InvalidEventError(InputError):
    """An event breaks a rule of the model. `place` names the field and the event or line."""

    code = "invalid-event"

    def __init__(self, message: str, *, place: Place | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.place = place or Place()


class TooLargeError(InputError):
    """A body or a value is over its limit. `limit_bytes` is that limit, `place` where the value is."""

    code = "too-large"

    def __init__(self, message: str, *, limit_bytes: int, place: Place | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit_bytes = limit_bytes
        self.place = place or Place()


class MediaTypeError(InputError):
    """A body of a media type that is not taken."""

    code = "media-type"


class TenantNotFoundError(InputError):
    """No such tenant (or none that this caller may know of)."""

    code = "tenant-not-found"

    def __init__(self, tenant: str) -> None:
        super().__init__(f"there is no tenant {tenant!r}", hint=f"eventstore tenants create {tenant}")
        self.tenant = tenant


class EventNotFoundError(InputError):
    """No event has that seq or event_id."""

    code = "event-not-found"


class RunNotFoundError(InputError):
    """No run has that id, or begins with it."""

    code = "run-not-found"


class HoldNotFoundError(InputError):
    """The tenant has no hold of that name, and never had."""

    code = "hold-not-found"


class CertificateNotFoundError(InputError):
    """The tenant has no certificate of that number."""

    code = "certificate-not-found"


class CheckpointNotFoundError(InputError):
    """The tenant has no checkpoint of that size, or none yet."""

    code = "checkpoint-not-found"


class KeyNotFoundError(InputError):
    """No API key has that id, or none that this caller may know of."""

    code = "key-not-found"


class SubscriptionNotFoundError(InputError):
    """The tenant has no subscription of that name."""

    code = "subscription-not-found"


class ExportNotFoundError(InputError):
    """The tenant has no export of that id, or none that this caller may know of."""

    code = "export-not-found"


class UnauthenticatedError(InputError):
    """No credentials, or none that hold."""

    code = "unauthenticated"


class ForbiddenError(InputError):
    """The caller is known, and its role does not permit this."""

    code = "forbidden"


# --- the state refuses ------------------------------------------------------------------------------


class StateError(EventStoreError):
    """The request is well formed, but the store's present state refuses it."""

    code = "conflict"


class TenantExistsError(StateError):
    """A tenant of that name exists already."""

    code = "tenant-exists"


class TenantClosedError(StateError):
    """The tenant is being offboarded, or was: its log takes no more events."""

    code = "tenant-closed"


class ConfirmationError(StateError):
    """What was asked for destroys history, and must be confirmed by naming how many events. `events` is
    that count."""

    code = "confirmation-needed"

    def __init__(self, message: str, *, events: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.events = events


class HeldError(StateError):
    """A legal hold stops it. `holds` names the cases."""

    code = "held"

    def __init__(self, message: str, *, holds: list[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.holds = holds


class FeedResetError(StateError):
    """A feed's cursor lies below what still exists: the events that follow it were destroyed.

    `oldest_seq` is the oldest seq behind the cursor that exists; None: there is none yet. `since` is the
    cursor with which the feed goes on from there. `expired` has what is gone between: certificate, first and
    last seq.
    """

    code = "feed-reset"

    def __init__(
        self,
        message: str,
        *,
        oldest_seq: int | None,
        since: int,
        expired: list[tuple[int, int, int]],
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.oldest_seq, self.since, self.expired = oldest_seq, since, expired


class LeaseLostError(StateError):
    """A worker's claim on a window was taken over by another: what it was about to change is left alone."""

    code = "lease-lost"


class QualityError(StateError):
    """A quality rule of the policy that says stop is broken; the window stays where it is."""

    code = "quality"


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """One entity whose last seq is not the expected one; `actual` is 0 where it has no event."""

    entity_type: str
    entity_id: str
    expected: int
    actual: int
    place: Place = field(default_factory=Place)


class VersionConflictError(StateError):
    """An `expected_version` does not hold; `conflicts` names each with the actual version."""

    code = "version-conflict"

    def __init__(self, conflicts: list[VersionConflict]) -> None:
        first = conflicts[0]
        super().__init__(
            f"{first.place}: {first.entity_type} {first.entity_id!r} is at version {first.actual}, "
            f"not {first.expected}",
            hint="read the entity's latest events, decide again, and send its actual version",
        )
        self.conflicts = conflicts


# --- try again --------------------------------------------------------------------------------------


class RetryError(EventStoreError):
    """The same request may succeed later. `retry_after_s` is a suggestion in seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BusyError(RetryError):
    """A bounded queue or a lock is taken."""

    code = "busy"


class RateLimitedError(RetryError):
    """The caller has used up one of its limits; it is free again after `retry_after_s`."""

    code = "rate-limited"


class TargetUnavailableError(RetryError):
    """An archive target could not be reached or answered with a failure of its own."""

    code = "target-unavailable"


# --- call someone -----------------------------------------------------------------------------------


class IntegrityError(EventStoreError):
    """Stored history is not what it has to be. Nothing is deleted while this stands."""

    code = "integrity"


class ArchiveConflictError(IntegrityError):
    """A different object lies under the key that this window's segment must have."""

    code = "archive-conflict"


class ArchiveDamageError(IntegrityError):
    """A segment is missing, unreadable, or differs from the catalog. `key` names it."""

    code = "archive-damage"

    def __init__(self, message: str, *, key: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key


class NoCopyError(ArchiveDamageError):
    """Nowhere is there a good copy of a damaged segment (or none that could be asked now)."""

    code = "no-copy"


class CoverageError(IntegrityError):
    """Tiers do not cover the log exactly once (a gap, an overlap, a partition that nobody recorded)."""

    code = "coverage"


# --- mend the installation --------------------------------------------------------------------------


class SetupError(EventStoreError):
    """The installation or its settings are wrong."""

    code = "setup"


class SchemaVersionError(SetupError):
    """The database's schema is of another version than this program."""

    code = "schema-version"


class EmbeddedPostgresError(SetupError):
    """The embedded Postgres could not be made, started or reached."""

    code = "embedded-postgres"
