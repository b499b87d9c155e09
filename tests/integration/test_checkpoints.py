"""Signed checkpoints: what they prove, and what they notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from eventstore.app import Store, checkpoint_all, checkpoint_tenant
from eventstore.clock import FixedClock
from eventstore.errors import IntegrityError, TargetUnavailableError
from eventstore.integrity.checkpoints import (
    SignedCheckpoint,
    get_checkpoint,
    latest,
    list_checkpoints,
    log_origin,
    make_checkpoint,
    read_checkpoint,
)
from eventstore.integrity.merkle import is_consistent
from eventstore.integrity.tree import Tree
from tests.integration.test_tree import hashes, tree_of
from tests.unit.helpers import append, execute, fill_days, make_tenant, new_event
from tests.unit.test_merkle import mth


def checkpoint(store: Store, tenant: str = "acme") -> SignedCheckpoint:
    found = make_checkpoint(store.database, store.tiers, store.key, tenant)
    assert found is not None
    return found


def events(store: Store, count: int, tenant: str = "acme") -> None:
    append(store, tenant, *(new_event(str(n)) for n in range(count)))


@pytest.fixture
def acme(store: Store) -> Store:
    make_tenant(store)
    events(store, 300)
    return store


def keys(store: Store) -> list[object]:
    return [store.key.verify_key]


def test_a_checkpoint_is_of_the_log_as_it_is(acme: Store) -> None:
    first = checkpoint(acme)
    signed = read_checkpoint(first.note, log_origin(acme.database, "acme"), [acme.key.verify_key])
    assert (signed.size, signed.root) == (300, mth(hashes(acme)))
    assert checkpoint(acme) == first == latest(acme.database, "acme")
    events(acme, 30)
    second = checkpoint(acme)
    assert second.size == 330
    assert [one.size for one in list_checkpoints(acme.database, "acme")] == [330, 300]
    proof = tree_of(acme).consistency("acme", 300, 330)
    assert is_consistent(300, 330, first.root, second.root, proof)


def test_an_empty_log_has_none(store: Store) -> None:
    make_tenant(store)
    assert make_checkpoint(store.database, store.tiers, store.key, "acme") is None


def test_a_note_is_no_envelope(acme: Store) -> None:
    with pytest.raises(AssertionError):
        acme.key.sign_note("x", "DSSEv1 4 text\n")


# --- history that is changed after it was signed ----------------------------------------------------------


def rewritten(store: Store, from_seq: int) -> None:
    """The log as somebody leaves it who changes an event and everything after it, with a chain that is whole:
    hash, head and all."""
    (leaf,) = (name for (name,) in execute(store.database.url, "SELECT leaf FROM windows"))
    url = store.database.url
    execute(url, f'ALTER TABLE hot."{leaf}" DISABLE TRIGGER ALL')
    rechain(store, leaf, from_seq)
    execute(url, f'ALTER TABLE hot."{leaf}" ENABLE TRIGGER ALL')


def rechain(store: Store, leaf: str, from_seq: int) -> None:
    from eventstore.columns.canonical import canonical_column, chain_column
    from eventstore.model.query import EventFilter

    url = store.database.url
    execute(url, f"UPDATE hot.\"{leaf}\" SET actor = 'somebody else' WHERE seq = %s", [from_seq])
    last = store.tiers.state("acme").last_seq
    table = store.tiers.hot("acme", EventFilter(), from_seq, last, descending=False, limit=10_000)
    (batch,) = table.combine_chunks().to_batches()
    before = store.tiers.hashes("acme", from_seq - 1, from_seq - 1)
    column, end = chain_column(before, canonical_column(batch))
    for seq, value in zip(range(from_seq, last + 1), column.to_pylist(), strict=True):
        execute(url, f'UPDATE hot."{leaf}" SET hash = %s WHERE seq = %s', [value, seq])
    execute(url, "UPDATE heads SET last_hash = %s WHERE tenant_id = 'acme'", [end])


def test_rewritten_history_is_not_signed(acme: Store) -> None:
    """The chain is whole, so only what was signed tells; and it says up to where the log still holds."""
    checkpoint(acme)
    events(acme, 20)
    checkpoint(acme)
    rewritten(acme, 305)
    with pytest.raises(IntegrityError, match=r"up to seq 300 it still is, not from seq 301 on"):
        checkpoint(acme)
    events(acme, 20)
    with pytest.raises(IntegrityError, match="event 320 has another hash|another root"):
        checkpoint(acme)
    assert latest(acme.database, "acme").size == 320  # type: ignore[union-attr]


def test_history_rewritten_under_a_tree_that_has_grown_on_is_noticed(acme: Store) -> None:
    """Nothing of the last block is read for the root of 256: the hash of its last event is compared."""
    checkpoint(acme)
    rewritten(acme, 250)
    with pytest.raises(IntegrityError, match="not what was signed|not the one that its tree"):
        checkpoint(acme)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE tree_tiles SET hashes = sha256('x')", "another root"),
        ("UPDATE checkpoints SET root = sha256('x')", "altered in the database"),
        ("UPDATE checkpoints SET note = replace(note, chr(10) || '300' || chr(10), chr(10) || '299' || chr(10))",
         "does not fit"),
        ("UPDATE heads SET last_seq = 299", "ends at seq 299, and 300 events were signed"),
    ],
    ids=["tile", "root", "note", "head"],
)  # fmt: skip
def test_what_was_tampered_with_is_noticed(acme: Store, statement: str, words: str) -> None:
    checkpoint(acme)
    execute(acme.database.url, statement)
    with pytest.raises(IntegrityError, match=words):
        checkpoint(acme)
