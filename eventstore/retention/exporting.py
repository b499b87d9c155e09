"""The export of a whole log into a folder, before the log is destroyed: Parquet parts and a manifest.

A complete export has its `manifest.json`, which is written last, after every part was read back from the
disk and found whole. Without it (`export.incomplete` is there instead) it is done anew. Memory is bounded by
one part.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventstore.archive.file import FileTarget
from eventstore.archive.parquet import RowGroup, SegmentWriter, cut_row_groups, segment_is_full
from eventstore.clock import to_iso
from eventstore.columns.canonical import canonical_column, int64_values
from eventstore.db.engine import Database
from eventstore.errors import BusyError, CoverageError, InputError, TargetUnavailableError
from eventstore.governance.certificates import list_certificates, trusted_keys
from eventstore.governance.record import put_equal
from eventstore.governance.signing import VerifyKey
from eventstore.model.event import chain_start
from eventstore.model.query import EventFilter
from eventstore.model.segment import SegmentRange
from eventstore.model.window import Window
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers, list_expired
from eventstore.retention.export_manifest import (
    CERTIFICATE_FILE,
    MANIFEST_FILE,
    Export,
    ExportCertificate,
    ExportGap,
    ExportPart,
    decode_manifest,
    encode_manifest,
    files_of,
    part_file,
)
from eventstore.retention.export_verify import verify_export
from eventstore.retention.task import Stopped

__all__ = ["ExportOrder", "check_folder", "export_log", "put_certificate_file"]

_UNDER_WAY = "export.incomplete"
_ANOTHER = "name a new folder for the export; nothing in this one was touched"

# Told of each part: what is being done, the events so far, and all of them.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """What to export where: the closed log of a tenant, whose head is `last_seq` with `last_hash`. `events`
    is how many of them still exist, for the progress alone. `key` will have signed the last certificate."""

    folder: Path
    store_id: str
    tenant_id: str
    last_seq: int
    last_hash: bytes
    events: int
    key: VerifyKey
    now_us: int

    def check_is_of(self, export: Export) -> None:
        """Raises:
        InputError: the export is of another state of the log.
        """
        if (export.last_seq, export.last_hash) != (self.last_seq, self.last_hash.hex()):
            raise InputError(
                f"{self.folder} holds an export up to seq {export.last_seq}, and the log ends at "
                f"seq {self.last_seq}, or with another hash",
                hint=_ANOTHER,
            )


def check_folder(folder: Path, store_id: str, tenant_id: str) -> Export | None:
    """The complete export of the tenant's log that is in the folder; None: there is none, but it can be made
    there (nothing is there yet, or an export that was broken off).

    Raises:
        InputError: something else is there.
    """
    names = files_of(folder)
    if CERTIFICATE_FILE in names and MANIFEST_FILE not in names:
        raise InputError(f"{folder} holds a certificate and no export", hint=_ANOTHER)
    if MANIFEST_FILE in names:
        export = decode_manifest((folder / MANIFEST_FILE).read_bytes(), folder)
        if (export.store_id, export.tenant_id) != (store_id, tenant_id):
            raise InputError(f"{folder} holds the export of {export.tenant_id!r}", hint=_ANOTHER)
        return export
    begun = _UNDER_WAY in names and (folder / _UNDER_WAY).read_bytes() == _marker(store_id, tenant_id)
    # Until its marker is there, a broken off export has staged nothing but that.
    if not begun and any(not name.startswith(f".staged-{_UNDER_WAY}") for name in names):
        raise InputError(f"{folder} is not empty, and no export of {tenant_id!r}", hint=_ANOTHER)
    return None


def _marker(store_id: str, tenant_id: str) -> bytes:
    return json.dumps({"store_id": store_id, "tenant_id": tenant_id}).encode() + b"\n"


def export_log(
    database: Database, tiers: Tiers, order: ExportOrder, stop: threading.Event, progress: Progress
) -> Export:
    """Have a complete and verified export in the folder: the one that is there, or a new one.

    When this returns, every event that still exists was read back from the folder's disk, and its place in
    the chain recomputed, up to the head.

    Raises:
        InputError: something else is in the folder, or the export of another state of the log.
        IntegrityError: what was read back is not the log.
        BusyError: another process exports into the folder.
        TargetUnavailableError: the folder cannot be written, or a segment not be read now.
        Stopped: told to stop; a later call begins anew.
    """
    target = FileTarget(order.folder)
    if check_folder(order.folder, order.store_id, order.tenant_id) is None:
        put_equal(target, _UNDER_WAY, _marker(order.store_id, order.tenant_id))
    with _alone_in(order.folder):
        found = check_folder(order.folder, order.store_id, order.tenant_id)
        if found is None:
            # Dying from here on leaves an incomplete export, which the next call removes.
            _clean(order.folder, target)
            first_hash, parts = _write_parts(database, tiers, target, order, stop, progress)
            found = _describe(database, target, order, first_hash, parts)
            _verify(database, order, found, stop, progress)
            put_equal(target, MANIFEST_FILE, encode_manifest(found))
            # Dying here leaves a complete export.
        else:
            order.check_is_of(found)
            _verify(database, order, found, stop, progress)
        if (order.folder / _UNDER_WAY).exists():
            target.delete(_UNDER_WAY)
    return found


def put_certificate_file(folder: Path, envelope: bytes) -> None:
    """Store the certificate of the offboarding beside the export. Idempotent.

    Raises:
        ArchiveConflictError: another one is there.
        TargetUnavailableError: the folder cannot be written.
    """
    put_equal(FileTarget(folder), CERTIFICATE_FILE, envelope)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise BusyError(f"another process exports into {folder}", hint="let it finish") from e
        yield
    finally:
        os.close(handle)


def _clean(folder: Path, target: FileTarget) -> None:
    """Remove what an export that was broken off has left, but for the marker that says so."""
    for name in files_of(folder) - {_UNDER_WAY}:
        target.delete(name)


# --- writing ------------------------------------------------------------------------------------------


def _write_parts(
    database: Database,
    tiers: Tiers,
    target: FileTarget,
    order: ExportOrder,
    stop: threading.Event,
    progress: Progress,
) -> tuple[str | None, list[ExportPart]]:
    """Write every event that exists; the first one's hash (None: there is none), and the parts."""
    first_hash: str | None = None
    parts: list[ExportPart] = []
    tables = LogReader(tiers).stream(order.tenant_id, EventFilter(seq_to=order.last_seq))
    for _, pieces in groupby(_pieces(tables), key=lambda piece: piece[0]):
        groups = cut_row_groups((events, sizes) for _, events, sizes in pieces)
        group, last_hash = next(groups, None), b""
        while group is not None:
            if stop.is_set():
                raise Stopped
            if not last_hash:
                last_hash = _hash_before(database, order.tenant_id, group.events.column("seq")[0].as_py())
            if first_hash is None:
                first_hash = group.events.column("hash")[0].as_py().hex()
            part, group = _write_part(target, order, len(parts), last_hash, group, groups)
            last_hash = bytes.fromhex(part.hash_after)
            parts.append(part)
            progress("export", sum(p.rows for p in parts), order.events)
    return first_hash, parts


def _pieces(
    tables: Iterator[pa.Table],
) -> Iterator[tuple[int, pa.RecordBatch, npt.NDArray[np.int64]]]:
    """The stream in pieces without a gap: the number of the run in which nothing is missing, the events, and
    the size of each one's canonical bytes."""
    run, following = 0, 1
    for table in tables:
        for batch in table.combine_chunks().to_batches():
            seqs = int64_values(batch.column("seq"))
            if seqs[0] != following:
                run += 1
            cuts = [0, *(np.flatnonzero(np.diff(seqs) != 1) + 1).tolist(), len(seqs)]
            ends = np.frombuffer(canonical_column(batch).buffers()[1], dtype=np.int32)
            sizes = np.diff(ends[: len(seqs) + 1]).astype(np.int64)
            for index, (start, end) in enumerate(pairwise(cuts)):
                run += index > 0
                yield run, batch.slice(start, end - start), sizes[start:end]
            following = int(seqs[-1]) + 1


def _hash_before(database: Database, tenant_id: str, first_seq: int) -> bytes:
    """What the chain had come to before the first event of a run: the start, or what was destroyed."""
    if first_seq == 1:
        return chain_start(tenant_id)
    with database.transaction() as conn:
        expired = list_expired(conn, tenant_id)
    for one in expired:
        if one.last_seq == first_seq - 1:
            return one.hash_after
    raise CoverageError(
        f"seq {first_seq - 1} of {tenant_id!r} is in no tier, and no certificate stands for it",
        hint="nothing was destroyed; run eventstore verify",
    )


def _write_part(
    target: FileTarget,
    order: ExportOrder,
    number: int,
    last_hash: bytes,
    first_group: RowGroup,
    groups: Iterator[RowGroup],
) -> tuple[ExportPart, RowGroup | None]:
    """Write one part; it, and the row group that comes after it (None: the run is at its end)."""
    group: RowGroup | None = first_group
    written = first_group
    name, path = part_file(number), target.stage(part_file(number))
    first, first_us = (
        int(int64_values(first_group.events.column(c).chunk(0))[0]) for c in ("seq", "recorded_at")
    )
    rows = size_bytes = 0
    try:
        with SegmentWriter(path, rows_left=order.last_seq - first + 1) as writer:
            while group is not None and not segment_is_full(rows, size_bytes):
                writer.write(group)
                rows, size_bytes, written = rows + group.events.num_rows, size_bytes + group.size_bytes, group
                group = next(groups, None)
            last_us = int(int64_values(written.events.column("recorded_at").chunk(0))[-1])
            hash_after: bytes = written.events.column("hash")[-1].as_py()
            # Parts are not cut by windows: theirs is the span of what they hold.
            span = Window(first_us, last_us + 1)
            writer.finish(
                SegmentRange(order.tenant_id, span, number, first, first + rows - 1, last_hash, hash_after)
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = path.stat().st_size
        if not target.put(name, path):
            raise BusyError(f"{target.root / name} has come meanwhile", hint="let the other process finish")
    except OSError as e:
        raise TargetUnavailableError(
            f"cannot write {target.root / name}: {e}",
            hint="check that the folder has room and may be written; then run the same command again",
        ) from e
    finally:
        path.unlink(missing_ok=True)
    part = ExportPart(
        file=name,
        sha256=digest,
        size_bytes=size_bytes,
        rows=rows,
        first_seq=first,
        last_seq=first + rows - 1,
        hash_before=last_hash.hex(),
        hash_after=hash_after.hex(),
    )
    return part, group


def _describe(
    database: Database,
    target: FileTarget,
    order: ExportOrder,
    first_hash: str | None,
    parts: Sequence[ExportPart],
) -> Export:
    """The manifest; the tenant's earlier certificates are stored beside the parts on the way."""
    with database.transaction() as conn:
        stored = list_certificates(conn, order.tenant_id)
        expired = list_expired(conn, order.tenant_id)
        keys = {**trusted_keys(conn), order.key.key_id: order.key}
    certificates = []
    for one in stored:
        name = f"certificates/{one.certificate.number:08d}.json"
        put_equal(target, name, one.envelope)
        digest = hashlib.sha256(one.envelope).hexdigest()
        certificates.append(ExportCertificate(number=one.certificate.number, file=name, sha256=digest))
    # What expired after it had been read is in the export all the same.
    gaps = [e for e in expired if not any(p.first_seq <= e.first_seq <= p.last_seq for p in parts)]
    return Export(
        store_id=order.store_id,
        tenant_id=order.tenant_id,
        exported_at=to_iso(order.now_us),
        events=sum(part.rows for part in parts),
        last_seq=order.last_seq,
        chain_start=chain_start(order.tenant_id).hex(),
        first_hash=first_hash,
        last_hash=order.last_hash.hex(),
        parts=tuple(parts),
        gaps=tuple(
            ExportGap(
                first_seq=e.first_seq,
                last_seq=e.last_seq,
                certificate=e.certificate_no,
                hash_before=e.hash_before.hex(),
                hash_after=e.hash_after.hex(),
            )
            for e in gaps
        ),
        certificates=tuple(certificates),
        public_keys={key_id: key.to_pem().decode() for key_id, key in keys.items()},
    )


def _verify(
    database: Database,
    order: ExportOrder,
    export: Export,
    stop: threading.Event,
    progress: Progress,
) -> None:
    # Gaps are taken at the word of the database's certificates, not of the manifest.
    with database.transaction() as conn:
        certified = list_expired(conn, order.tenant_id)

    def on_part(rows: int) -> None:
        progress("read back", rows, order.events)
        if stop.is_set():
            raise Stopped

    verify_export(order.folder, export, certified, on_part)
