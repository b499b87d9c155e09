"""Reading an export back from the disk: whether it holds a whole log, up to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eventstore.archive.file import FileTarget
from eventstore.archive.verify import read_segment
from eventstore.columns.canonical import first_chain_break, int64_values
from eventstore.errors import IntegrityError
from eventstore.model.event import chain_start
from eventstore.query.tiers import ExpiredRange
from eventstore.retention.export_manifest import Export, ExportPart

__all__ = ["verify_export"]

_DAMAGED = "nothing was destroyed; remove the folder, or name another one, and run the same command again"


def verify_export(
    folder: Path, export: Export, certified: Sequence[ExpiredRange], on_part: Callable[[int], None]
) -> None:
    """Read every file, and recompute the chain from its start to the end that the manifest names.

    `certified` is what may be missing. `on_part` is called after each part with the events read so far.

    Raises:
        IntegrityError: a file is not as it was written, or an event is missing or was altered.
        TargetUnavailableError: a file cannot be read now.
    """
    target = FileTarget(folder)
    for file in export.certificates:
        with target.open(file.file) as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                raise IntegrityError(f"{folder / file.file} was altered", hint=_DAMAGED)
    gaps = {one.first_seq: one for one in certified}
    seq, last_hash, rows = 1, chain_start(export.tenant_id), 0
    for number, part in enumerate(export.parts):
        seq, last_hash = _bridge(gaps, seq, last_hash, part.first_seq)
        try:
            seq, last_hash = _read_part(target, export.tenant_id, number, part, seq, last_hash)
        except IntegrityError as e:
            raise IntegrityError(f"{folder / part.file}: {e.message}", hint=_DAMAGED) from e
        rows += part.rows
        on_part(rows)
    seq, last_hash = _bridge(gaps, seq, last_hash, export.last_seq + 1)
    if (seq - 1, last_hash.hex(), rows) != (export.last_seq, export.last_hash, export.events):
        raise IntegrityError(
            f"the export in {folder} comes to seq {seq - 1} with {rows:,} events, which is not what its "
            f"manifest says, or its chain ends with another hash",
            hint=_DAMAGED,
        )


def _bridge(
    gaps: Mapping[int, ExpiredRange], seq: int, last_hash: bytes, following: int
) -> tuple[int, bytes]:
    """Go on behind what was destroyed before, up to the seq that comes next in the export."""
    while seq < following:
        gap = gaps.get(seq)
        if gap is None or gap.hash_before != last_hash or gap.last_seq >= following:
            raise IntegrityError(
                f"seq {seq} is missing from the export, and no certificate stands for it", hint=_DAMAGED
            )
        seq, last_hash = gap.last_seq + 1, gap.hash_after
    return seq, last_hash


def _read_part(
    target: FileTarget, tenant_id: str, number: int, part: ExportPart, seq: int, last_hash: bytes
) -> tuple[int, bytes]:
    """Read a part that has to go on from a seq and a hash; the ones after it."""
    content = read_segment(target, part.file, sha256=bytes.fromhex(part.sha256))
    said, hash_after = content.range, bytes.fromhex(part.hash_after)
    if (said.tenant_id, said.part, said.first_seq, said.last_seq, said.hash_before, said.hash_after) != (
        tenant_id,
        number,
        seq,
        part.last_seq,
        last_hash,
        hash_after,
    ):
        raise IntegrityError(f"it says of itself {said}, which does not follow")
    for events in content.row_groups():
        seqs = int64_values(events.column("seq"))
        expected = np.arange(seq, seq + len(seqs))
        if not np.array_equal(seqs, expected):
            raise IntegrityError(f"seq {seq + int(np.argmin(seqs == expected))} does not follow")
        broken, last_hash = first_chain_break(last_hash, events)
        if broken is not None:
            raise IntegrityError(f"the chain breaks at seq {seq + broken}")
        seq += len(seqs)
    if (seq - 1, last_hash, part.rows) != (part.last_seq, hash_after, part.last_seq - part.first_seq + 1):
        raise IntegrityError(f"it ends at seq {seq - 1}, or with another hash")
    return seq, last_hash
