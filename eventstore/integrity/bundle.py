"""Evidence bundles: events with what proves them, in one file that is checked without the store.

A bundle is of one moment: it ends where a checkpoint does that is made first. Its events are read as any
others, one step after the other, so its memory is bounded by a step, and by a few numbers for each event.
Its format is described in docs/reference/bundle-format.md; `eventstore.verifier`, which checks it, shares no
code with this.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.catalog.windows import list_segments, list_windows
from eventstore.clock import SystemClock, to_iso
from eventstore.columns.canonical import canonical_column, fixed_bytes, int64_values
from eventstore.db.engine import Database
from eventstore.errors import InputError, IntegrityError, StateError
from eventstore.governance.certificates import StoredCertificate, list_certificates
from eventstore.governance.signing import SigningKey
from eventstore.integrity.bundle_page import bundle_page
from eventstore.integrity.bundle_zip import BundleZip
from eventstore.integrity.checkpoints import SignedCheckpoint, log_origin, log_verifier_keys
from eventstore.integrity.publishing import Keepers, checkpoint_and_publish
from eventstore.integrity.tree import Tree
from eventstore.model.event import chain_start
from eventstore.model.note import verifier_key
from eventstore.model.query import EventFilter
from eventstore.model.segment import Segment
from eventstore.model.window import WindowRecord, WindowState
from eventstore.query.coverage import Coverage
from eventstore.query.reader import LogReader
from eventstore.query.render import PREVIOUS, format_uuid, json_lines
from eventstore.query.tiers import ExpiredRange, Tiers

__all__ = ["BUNDLE_EVENTS_MAX", "BundleSummary", "question_of", "write_bundle"]

BUNDLE_EVENTS_MAX = 100_000
# Called with how many events are done, and of how many; None: their number is not known yet.
Progress = Callable[[int, int | None], None]

_HASH_BYTES = 32
_PROOFS_AT_ONCE = 4096
# Where the hashes before several events are wanted, what lies between two of them is read as well, up to so
# many hashes: a look of its own costs more. No look reads more than the second number.
_GAP = 16_384
_RUN = 262_144
# What a verifier keeps in memory of a bundle (windows, certificates) is less than this.
_HELD_BYTES_MAX = 15 * 2**20
_NARROW = "ask for less in one bundle: a shorter time, a range of seqs, or one entity"


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """What came to be in a bundle. `log_size` is the size of its checkpoint; `expired` are the seqs, first
    and last, that it should hold and that were destroyed before."""

    events: int
    size_bytes: int
    log_size: int
    expired: Sequence[tuple[int, int]]


def write_bundle(
    database: Database,
    tiers: Tiers,
    key: SigningKey,
    tenant_id: str,
    wanted: EventFilter,
    path: Path,
    *,
    reader: LogReader,
    keepers: Keepers,
    asked_by: str,
    reason: str | None = None,
    now_us: int | None = None,
    events_max: int = BUNDLE_EVENTS_MAX,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> BundleSummary:
    """Make a bundle of all events that meet the conditions, and put it where `path` says, replacing what is
    there. Nothing is to be seen there before it is whole and durable.

    The same question at the same time (`now_us`, µs since 1970 UTC; None: now) of the same log gives the same
    bytes. `reader` reads the events, and counts what its meter counts. The `keepers` of the checkpoint are
    asked what they have before it is signed, and get it. `progress` is called now and then,
    in the thread that called this, and may raise. When `stop` is set, it ends at the next step.

    Raises:
        InputError: the log is empty, there are more than `events_max` events, or the file became too large.
        StateError: it was stopped, or something of it was destroyed meanwhile.
        IntegrityError: the log is not what was signed or published, or an event not what its hash says.
        SetupError: this host has no key to sign with.
        TenantNotFoundError, TargetUnavailableError, RateLimitedError
    """
    _check_texts(asked_by, reason)
    look = _looking(progress, stop)
    published = checkpoint_and_publish(
        database, tiers, key, tenant_id, keepers, progress=lambda _done, _total: look(0, None)
    )
    published.log_failures(tenant_id)
    checkpoint = published.checkpoint
    if checkpoint is None:
        raise InputError(f"the log of {tenant_id!r} is empty: there is nothing to prove")
    last_seq = checkpoint.size if wanted.seq_to is None else min(wanted.seq_to, checkpoint.size)
    making = _Making(
        database=database,
        tiers=tiers,
        key=key,
        reader=reader,
        tenant_id=tenant_id,
        wanted=replace(wanted, seq_to=last_seq),
        asked=question_of(wanted),
        checkpoint=checkpoint,
        events_max=events_max,
        look=look,
    )
    about = {
        "asked_by": asked_by,
        "asked_at": to_iso(SystemClock().now_us() if now_us is None else now_us),
        "reason": reason,
    }
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with staged.open("xb+") as file:
            summary = making.write(BundleZip(file), about)
            file.flush()
            os.fsync(file.fileno())
        # Dying before this line leaves a file that nobody takes for a bundle: it has another name.
        staged.replace(path)
    finally:
        with suppress(FileNotFoundError):
            staged.unlink()
    return summary


def question_of(wanted: EventFilter) -> dict[str, str | int]:
    """The conditions of a filter by the names that the API has for them, times and ids as text."""
    question: dict[str, str | int] = {}
    for field in fields(wanted):
        value = getattr(wanted, field.name)
        if value is None:
            continue
        if field.name.endswith("_us"):
            value = to_iso(value)
        elif isinstance(value, bytes):
            value = format_uuid(value)
        question[field.name.removesuffix("_us")] = value
    return question


def _looking(progress: Progress | None, stop: threading.Event | None) -> Progress:
    """What tells how far it is, and ends it there if that is wanted."""

    def look(done: int, total: int | None) -> None:
        if stop is not None and stop.is_set():
            raise StateError("the bundle was stopped before it was whole", hint="ask for it again")
        if progress is not None:
            progress(done, total)

    return look


def _check_texts(asked_by: str, reason: str | None) -> None:
    for text in (asked_by, reason or "-"):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{text!r} is not valid Unicode") from None
        if not text or len(text) > 10_000:
            raise InputError("who asks, and why, takes 1 to 10,000 characters")


def _json(value: object) -> bytes:
    """JSON in the one form that a verifier takes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(slots=True, kw_only=True)
class _Making:
    """One bundle on its way. `wanted` ends where the checkpoint does, `asked` is the question as put."""

    database: Database
    tiers: Tiers
    key: SigningKey
    reader: LogReader
    tenant_id: str
    wanted: EventFilter
    asked: Mapping[str, str | int]
    checkpoint: SignedCheckpoint
    events_max: int
    look: Progress

    def write(self, zip_: BundleZip, about: Mapping[str, str | None]) -> BundleSummary:
        expired = [part for part in self._parts() if isinstance(part, ExpiredRange)]
        lower, upper = self.wanted.seq_from or 1, self.wanted.seq_to or 0
        gone = self.reader.expired(self.tenant_id, lower, upper)
        self._check_count(max(0, upper - lower + 1) - sum(last - first + 1 for first, last, _ in gone))
        zip_.begin("events.ndjson")
        seqs = self._write_events(zip_, {e.last_seq: e.hash_after for e in expired}, {n for _, _, n in gone})
        zip_.begin("proofs.ndjson")
        self._write_proofs(zip_, seqs)
        windows, segments, certificates = self._catalog(seqs)
        zip_.begin("windows.ndjson")
        by_window: dict[int, list[Segment]] = {}
        for segment in segments:
            by_window.setdefault(segment.range.window.from_us, []).append(segment)
        lines = [_json(_manifest(w, by_window.get(w.window.from_us, ()))) + b"\n" for w in windows]
        held = sum(map(len, lines)) + sum(len(c.envelope) for c in certificates)
        if held > _HELD_BYTES_MAX:
            raise InputError(f"its events lie in too many windows ({len(windows):,})", hint=_NARROW)
        zip_.write(b"".join(lines))
        for stored in certificates:
            zip_.add(f"certificates/{stored.certificate.number:08}.json", stored.envelope)
        zip_.add("checkpoint.txt", self.checkpoint.note.encode())
        origin = log_origin(self.database, self.tenant_id)
        ours = verifier_key(origin, self.key.verify_key.raw)
        others = sorted(set(log_verifier_keys(self.database, self.tenant_id)) - {ours})
        zip_.add("key.pub", "".join(f"{one}\n" for one in (ours, *others)).encode())
        document = {
            "format": "eventstore bundle v1",
            "store_id": origin.split("/")[1],
            "tenant_id": self.tenant_id,
            **about,
            "question": self.asked,
            "events": len(seqs),
            "windows": len(windows),
            "certificates": len(certificates),
        }
        zip_.add("bundle.json", _json(document))
        page = bundle_page(
            tenant_id=self.tenant_id,
            question=self.asked,
            asked_by=about["asked_by"] or "",
            asked_at=about["asked_at"] or "",
            reason=about["reason"],
            events=len(seqs),
            destroyed=[(c.first_seq, c.last_seq, c.number) for c in (s.certificate for s in certificates)],
            log_size=self.checkpoint.size,
            key_text=ours,
            key_sha256=hashlib.sha256(self.key.verify_key.raw).hexdigest(),
        )
        zip_.add("README.html", page)
        size_bytes = zip_.finish(lambda text: str(self.key.sign_note(origin, text)).encode())
        return BundleSummary(len(seqs), size_bytes, self.checkpoint.size, [(a, b) for a, b, _ in gone])

    def _parts(self) -> Sequence[Segment | ExpiredRange]:
        return self.tiers.archive(self.tenant_id, self.tiers.state(self.tenant_id))

    def _check_count(self, count: int) -> None:
        """Refuse at once where a range alone decides how many events there are."""
        if self.wanted.is_range and count > self.events_max:
            raise self._too_many(f"{count:,}")

    def _too_many(self, count: str) -> InputError:
        return InputError(
            f"a bundle holds at most {self.events_max:,} events, and these are {count}", hint=_NARROW
        )

    # --- events -------------------------------------------------------------------------------------------

    def _write_events(
        self, zip_: BundleZip, gone: Mapping[int, bytes], known: set[int]
    ) -> npt.NDArray[np.int64]:
        """Write the events, each with the hash before it; their seqs. `gone`: hashes of events that were
        destroyed, by seq; `known`: the certificates that there were when this began."""
        found: list[npt.NDArray[np.int64]] = []
        count, before = 0, (0, chain_start(self.tenant_id))
        coverage = Coverage()
        steps = self.reader.stream(self.tenant_id, self.wanted, coverage=coverage, every_step=True)
        for step in steps:
            for first, last, number in coverage.expired:
                if number not in known:
                    raise StateError(
                        f"the events {first} to {last} were destroyed under certificate {number} meanwhile",
                        hint="ask again; what is left comes whole",
                    )
            count += step.num_rows
            if count > self.events_max:
                raise self._too_many(f"more ({count:,} up to seq {step.column('seq')[-1].as_py():,})")
            for events in step.combine_chunks().to_batches():
                if events.num_rows:
                    seqs = int64_values(events.column("seq"))
                    previous = self._previous(events, seqs, before, gone)
                    _check_hashes(events, previous)
                    column = pa.FixedSizeBinaryArray.from_buffers(
                        pa.binary(_HASH_BYTES), len(seqs), [None, pa.py_buffer(previous.tobytes())]
                    )
                    for piece in json_lines(pa.Table.from_batches([events]).append_column(PREVIOUS, column)):
                        zip_.write(piece)
                    found.append(seqs.copy())
                    before = int(seqs[-1]), events.column("hash")[-1].as_py()
            self.look(count, None)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _previous(
        self,
        events: pa.RecordBatch,
        seqs: npt.NDArray[np.int64],
        before: tuple[int, bytes],
        gone: Mapping[int, bytes],
    ) -> npt.NDArray[Any]:
        """The hash before each event: of the one beside it where that is it, else looked up. `before` is the
        event that was read last."""
        hashes = fixed_bytes(events.column("hash"), _HASH_BYTES)
        previous = np.concatenate([np.frombuffer(before[1], dtype="V32"), hashes[:-1]])
        beside = np.concatenate([[before[0]], seqs[:-1]])
        missing = np.flatnonzero(seqs - 1 != beside)
        for run in self._runs(seqs[missing] - 1, gone):
            at = missing[run]
            first, last = int(seqs[at[0]]) - 1, int(seqs[at[-1]]) - 1
            joined = gone[first] if first in gone else self.tiers.hashes(self.tenant_id, first, last)
            previous[at] = np.frombuffer(joined, dtype="V32")[seqs[at] - 1 - first]
        return previous

    def _runs(self, seqs: npt.NDArray[np.int64], gone: Mapping[int, bytes]) -> Iterator[slice]:
        """Slices of rising seqs whose hashes are read in one look: near to each other, and all of them there.
        Of what was destroyed, only the last event of a range comes before one that is left."""
        ends = sorted(gone)
        start = 0
        for index in range(1, len(seqs) + 1):
            if index < len(seqs):
                here, there = int(seqs[index - 1]), int(seqs[index])
                apart = there - here > _GAP or there - int(seqs[start]) >= _RUN
                if not apart and not _any_between(ends, int(seqs[start]), there):
                    continue
            yield slice(start, index)
            start = index

    # --- proofs and catalog -------------------------------------------------------------------------------

    def _write_proofs(self, zip_: BundleZip, seqs: npt.NDArray[np.int64]) -> None:
        tree = Tree(self.database, self.tiers)
        for start in range(0, len(seqs), _PROOFS_AT_ONCE):
            self.look(start, len(seqs))
            some = seqs[start : start + _PROOFS_AT_ONCE].tolist()
            proofs = tree.prove(self.tenant_id, some, self.checkpoint.size, root=self.checkpoint.root)
            lines = (
                _json({"seq": seq, "path": [node.hex() for node in proof]})
                for seq, proof in zip(some, proofs, strict=True)
            )
            zip_.write(b"".join(line + b"\n" for line in lines))
        self.look(len(seqs), len(seqs))

    def _catalog(
        self, seqs: npt.NDArray[np.int64]
    ) -> tuple[list[WindowRecord], list[Segment], list[StoredCertificate]]:
        """The windows that hold the events and those within the question that were destroyed, the segments of
        the former, and the certificates of the latter."""
        with self.database.app.transaction(self.tenant_id, one_snapshot=True) as conn:
            windows = list_windows(conn, self.tenant_id)
            segments = list_segments(conn, self.tenant_id)
            stored = list_certificates(conn, self.tenant_id)
        certificates = []
        for one in stored:
            c = one.certificate
            if self._asks_for(c.first_seq, c.last_seq, c.window_from_us, c.window_to_us):
                certificates.append(one)
        whole = any(c.certificate.window_from_us is None for c in certificates)
        found = []
        for record in windows:
            end = np.iinfo(np.int64).max if record.last_seq is None else record.last_seq
            held = np.searchsorted(seqs, record.first_seq) < np.searchsorted(seqs, end, side="right")
            expired = record.state is WindowState.EXPIRED
            if held and (expired or whole):
                raise StateError(
                    f"the window {record.window} was destroyed meanwhile",
                    hint="ask again; what is left comes whole",
                )
            window = record.window
            if held or (expired and self._asks_for(record.first_seq, int(end), window.from_us, window.to_us)):
                found.append(record)
        kept = {record.window.from_us for record in found}
        return found, [s for s in segments if s.range.window.from_us in kept], certificates

    def _asks_for(
        self, first_seq: int, last_seq: int, window_from_us: int | None, window_to_us: int | None
    ) -> bool:
        """Whether what was destroyed lies within the question, by seq and by recorded time."""
        wanted = self.wanted
        if last_seq < (wanted.seq_from or 1) or first_seq > (wanted.seq_to or 0):
            return False
        start, end = wanted.recorded_from_us, wanted.recorded_to_us
        late = window_to_us is None or start is None or window_to_us > start
        early = window_from_us is None or end is None or window_from_us < end
        return late and early


def _any_between(ends: Sequence[int], first: int, last: int) -> bool:
    """Whether one of some rising seqs lies in a range."""
    index = int(np.searchsorted(ends, first)) if ends else 0
    return index < len(ends) and ends[index] <= last


def _check_hashes(events: pa.RecordBatch, previous: npt.NDArray[Any]) -> None:
    """See that each event is what its hash says, as whoever verifies the bundle will.

    Raises:
        IntegrityError: one is not.
    """
    octets = canonical_column(events)
    seqs = int64_values(events.column("seq"))
    stored = fixed_bytes(events.column("hash"), _HASH_BYTES)
    for at, canonical in enumerate(octets):
        link = hashlib.sha256(previous[at].tobytes())
        link.update(canonical.as_buffer())
        if link.digest() != stored[at].tobytes():
            raise IntegrityError(
                f"the event {seqs[at]} is not what its hash was made of", hint="run eventstore verify"
            )


def _manifest(record: WindowRecord, segments: Sequence[Segment]) -> dict[str, object]:
    """A window as a bundle shows it; null is what is not known before it is sealed."""
    return {
        "window_from": to_iso(record.window.from_us),
        "window_to": to_iso(record.window.to_us),
        "state": record.state.value,
        "first_seq": record.first_seq,
        "last_seq": record.last_seq,
        "hash_before": None if record.hash_before is None else bytes(record.hash_before).hex(),
        "hash_after": None if record.hash_after is None else bytes(record.hash_after).hex(),
        "segments": [
            {
                "key": segment.key,
                "target": segment.target,
                "size_bytes": segment.size_bytes,
                "sha256": segment.sha256.hex(),
                "first_seq": segment.range.first_seq,
                "last_seq": segment.range.last_seq,
                "hash_before": segment.range.hash_before.hex(),
                "hash_after": segment.range.hash_after.hex(),
            }
            for segment in segments
        ],
    }
