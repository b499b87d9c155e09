"""What is imported: a file, or a stream put into a temporary file; its format and its identity."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from eventstore.errors import InputError, StateError

__all__ = ["ImportFormat", "Source", "open_source"]

_BLOCK_BYTES = 1 << 20
_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"BZh91AY&SY": "bzip2 -dc",
    b"PK\x03\x04": "unzip -p",
}
_PARQUET_MAGIC = b"PAR1"
_BOM = b"\xef\xbb\xbf"


class ImportFormat(StrEnum):
    """The formats that can be imported."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Source:
    """A seekable file, open for reading, and the SHA-256 of its bytes."""

    name: str
    format: ImportFormat
    file: BinaryIO
    size_bytes: int
    sha256: bytes
    changed_ns: int

    def check_unchanged(self) -> None:
        """
        Raises:
            StateError: the file was written to since its SHA-256 was taken.
        """
        now = os.fstat(self.file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size_bytes, self.changed_ns):
            raise StateError(
                f"{self.name} was changed while it was being imported",
                hint="what was stored so far stays; import a file that nobody writes to",
            )


@contextmanager
def open_source(
    source: Path | BinaryIO, file_format: ImportFormat | None, hashed: Callable[[int, int | None], None]
) -> Iterator[Source]:
    """Open a file, or spool a stream to a temporary file, and take its SHA-256.

    `hashed` is told how many bytes of how many (None: not known) have been read.

    Raises:
        InputError: no such file, a format that nobody named, or content of another format.
    """
    if isinstance(source, Path):
        chosen = file_format or _by_suffix(source)
        try:
            file = open(source, "rb")  # noqa: SIM115
        except OSError as e:
            raise InputError(f"cannot read {source}: {e.strerror}", hint="check the path") from e
        with file:
            # What is appended from here on is seen by `check_unchanged`.
            before = os.fstat(file.fileno())
            digest = _hash(file, None, lambda done: hashed(done, before.st_size), before.st_size)
            yield _checked(str(source), chosen, file, digest, before)
    else:
        if file_format is None:
            raise InputError(
                "standard input has no name to tell its format", hint="say which: --format jsonl"
            )
        with tempfile.TemporaryFile() as spool:
            digest = _hash(source, spool, lambda done: hashed(done, None), None)
            spool.flush()
            yield _checked("standard input", file_format, spool, digest, os.fstat(spool.fileno()))


def _by_suffix(path: Path) -> ImportFormat:
    name = _SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise InputError(
            f"the name of {path} does not tell its format",
            hint="say which: --format parquet, --format jsonl or --format csv",
        )
    return ImportFormat(name)


def _hash(
    source: BinaryIO, copy: BinaryIO | None, done: Callable[[int], None], size_bytes: int | None
) -> bytes:
    """SHA-256 of a file of that size, or (None) of all that a stream gives."""
    digest, count = hashlib.sha256(), 0
    while (size_bytes is None or count < size_bytes) and (block := source.read(_BLOCK_BYTES)):
        digest.update(block)
        if copy is not None:
            copy.write(block)
        count += len(block)
        done(count)
    return digest.digest()


def _checked(
    name: str, chosen: ImportFormat, file: BinaryIO, sha256: bytes, status: os.stat_result
) -> Source:
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{name} is compressed", hint=f"{command} FILE | eventstore import TENANT - --format {chosen}"
            )
    is_parquet = start.startswith(_PARQUET_MAGIC)
    if chosen is ImportFormat.PARQUET and not is_parquet:
        raise InputError(
            f"{name} is not a Parquet file (it begins with {start[:4]!r}, not {_PARQUET_MAGIC!r})",
            hint="say what it is with --format jsonl or --format csv",
        )
    if chosen is not ImportFormat.PARQUET and is_parquet:
        raise InputError(f"{name} is a Parquet file, not {chosen}", hint="say so: --format parquet")
    text = start.removeprefix(_BOM).lstrip()
    if chosen is ImportFormat.JSONL and text.startswith(b"["):
        raise InputError(
            f"{name} is one JSON array, not a JSON object a line",
            hint="jq -c '.[]' FILE | eventstore import TENANT - --format jsonl",
        )
    return Source(name, chosen, file, status.st_size, sha256, status.st_mtime_ns)
