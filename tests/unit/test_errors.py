"""The tree of errors is part of the interface: classes, codes, HTTP and exit statuses are pinned here."""

from __future__ import annotations

import json

import pytest

from eventstore import errors
from eventstore.api.problems import MEDIA_TYPE, from_error
from eventstore.cli.main import _EXIT_STATUS
from eventstore.errors import (
    ArchiveConflictError,
    ArchiveDamageError,
    BusyError,
    CertificateNotFoundError,
    CheckpointNotFoundError,
    ConfirmationError,
    CoverageError,
    EmbeddedPostgresError,
    EventNotFoundError,
    EventStoreError,
    ExportNotFoundError,
    FeedResetError,
    ForbiddenError,
    HeldError,
    HoldNotFoundError,
    InputError,
    IntegrityError,
    InvalidEventError,
    KeyNotFoundError,
    LeaseLostError,
    MediaTypeError,
    NoCopyError,
    Place,
    QualityError,
    RateLimitedError,
    RetryError,
    RunNotFoundError,
    SchemaVersionError,
    SetupError,
    StateError,
    SubscriptionNotFoundError,
    TargetUnavailableError,
    TenantClosedError,
    TenantExistsError,
    TenantNotFoundError,
    TooLargeError,
    UnauthenticatedError,
    VersionConflict,
    VersionConflictError,
)

CONFLICT = VersionConflict("order", "7", 3, 5, Place(field="expected_version", index=1))
# Each error once: its parent, its code, its HTTP status, the exit status of the command line.
TREE: list[tuple[EventStoreError, type[Exception], str, int, int]] = [
    (EventStoreError("m"), Exception, "eventstore-error", 500, 70),
    (InputError("m"), EventStoreError, "invalid-request", 400, 65),
    (InvalidEventError("m"), InputError, "invalid-event", 422, 65),
    (MediaTypeError("m"), InputError, "media-type", 415, 65),
    (TooLargeError("m", limit_bytes=9), InputError, "too-large", 413, 65),
    (TenantNotFoundError("acme"), InputError, "tenant-not-found", 404, 65),
    (EventNotFoundError("m"), InputError, "event-not-found", 404, 65),
    (RunNotFoundError("m"), InputError, "run-not-found", 404, 65),
    (HoldNotFoundError("m"), InputError, "hold-not-found", 404, 65),
    (CertificateNotFoundError("m"), InputError, "certificate-not-found", 404, 65),
    (CheckpointNotFoundError("m"), InputError, "checkpoint-not-found", 404, 65),
    (KeyNotFoundError("m"), InputError, "key-not-found", 404, 65),
    (SubscriptionNotFoundError("m"), InputError, "subscription-not-found", 404, 65),
    (ExportNotFoundError("m"), InputError, "export-not-found", 404, 65),
    (UnauthenticatedError("m"), InputError, "unauthenticated", 401, 65),
    (ForbiddenError("m"), InputError, "forbidden", 403, 65),
    (StateError("m"), EventStoreError, "conflict", 409, 65),
    (TenantExistsError("m"), StateError, "tenant-exists", 409, 65),
    (TenantClosedError("m"), StateError, "tenant-closed", 409, 65),
    (ConfirmationError("m", events=3), StateError, "confirmation-needed", 409, 65),
    (HeldError("m", holds=["a case"]), StateError, "held", 409, 65),
    (FeedResetError("m", oldest_seq=4, since=3, expired=[(1, 1, 3)]), StateError, "feed-reset", 410, 65),
    (LeaseLostError("m"), StateError, "lease-lost", 409, 65),
    (QualityError("m"), StateError, "quality", 409, 65),
    (VersionConflictError([CONFLICT]), StateError, "version-conflict", 409, 65),
    (RetryError("m"), EventStoreError, "unavailable", 503, 75),
    (BusyError("m"), RetryError, "busy", 503, 75),
    (RateLimitedError("m"), RetryError, "rate-limited", 429, 75),
    (TargetUnavailableError("m"), RetryError, "target-unavailable", 503, 75),
    (IntegrityError("m"), EventStoreError, "integrity", 500, 70),
    (ArchiveConflictError("m"), IntegrityError, "archive-conflict", 500, 70),
    (ArchiveDamageError("m", key="k"), IntegrityError, "archive-damage", 500, 70),
    (NoCopyError("m", key="k"), ArchiveDamageError, "no-copy", 500, 70),
    (CoverageError("m"), IntegrityError, "coverage", 500, 70),
    (SetupError("m"), EventStoreError, "setup", 500, 78),
    (SchemaVersionError("m"), SetupError, "schema-version", 500, 78),
    (EmbeddedPostgresError("m"), SetupError, "embedded-postgres", 500, 78),
]
ids = [type(row[0]).__name__ for row in TREE]


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_the_tree_is_complete() -> None:
    ours = {kind for kind in subclasses(EventStoreError) if kind.__module__.startswith("eventstore")}
    assert {type(row[0]) for row in TREE} == ours, "pin the new error in TREE, and document it"
    assert {kind.__name__ for kind in ours} | {"Place"} == set(errors.__all__)


def test_codes_are_unique() -> None:
    codes = [code for _, _, code, _, _ in TREE]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(("error", "parent", "code", "http", "exit_status"), TREE, ids=ids)
def test_each_error(
    error: EventStoreError, parent: type[Exception], code: str, http: int, exit_status: int
) -> None:
    assert type(error).__bases__ == (parent,)
    assert type(error).code == code
    response = from_error(error)
    assert response.status_code == http
    assert response.headers["content-type"] == MEDIA_TYPE
    body = json.loads(bytes(response.body))
    assert body["type"] == f"urn:eventstore:{code}"
    assert (body["status"], body["detail"]) == (http, error.message)
    assert body["title"]
    assert next((s for kind, s in _EXIT_STATUS if isinstance(error, kind)), 70) == exit_status


def body_of(error: EventStoreError) -> dict[str, object]:
    found: dict[str, object] = json.loads(bytes(from_error(error).body))
    return found


def test_a_problem_says_where_in_the_input() -> None:
    by_line = body_of(InvalidEventError("m", place=Place(field="actor", line=37)))
    assert (by_line["field"], by_line["line"]) == ("actor", 37)
    assert "index" not in by_line
    by_index = body_of(InvalidEventError("m", place=Place(index=0)))
    assert by_index["index"] == 0
    assert "field" not in by_index
    assert body_of(TooLargeError("m", limit_bytes=9))["limit_bytes"] == 9


def test_a_problem_has_the_hint_where_there_is_one() -> None:
    assert body_of(InputError("m", hint="do so"))["hint"] == "do so"
    assert "hint" not in body_of(InputError("m"))


def test_retry_says_when() -> None:
    response = from_error(BusyError("m", retry_after_s=7))
    assert response.headers["retry-after"] == "7"
    assert json.loads(bytes(response.body))["retry_after_s"] == 7


def test_version_conflicts_are_listed() -> None:
    by_line = VersionConflict("order", "8", 0, 2, Place(line=4))
    assert body_of(VersionConflictError([CONFLICT, by_line]))["conflicts"] == [
        {"entity_type": "order", "entity_id": "7", "expected_version": 3, "actual_version": 5, "index": 1},
        {"entity_type": "order", "entity_id": "8", "expected_version": 0, "actual_version": 2, "line": 4},
    ]


def test_texts() -> None:
    assert str(InputError("what", hint="do so")) == "what (do so)"
    assert str(InputError("what")) == "what"
    assert str(Place("f", 0, None)) == "event 0, field 'f'"
    assert str(Place("f", None, 3)) == "line 3, field 'f'"
    assert str(Place()) == ""
